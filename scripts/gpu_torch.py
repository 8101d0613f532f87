#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.11.0", "diffusers==0.42.1"]
# ///
"""Milliseconds of a UNet call in torch on a CUDA GPU, to set beside scripts/gpu_check.py's `ms a UNet run`.

    scripts/gpu_torch.py

diffusers' UNets of SD 2.1 and SDXL at their real sizes with random weights, eager, with torch's own fused attention: how
A1111 computes. Both prompts are one batch; a call ends when its output lies in RAM as float32. Told are the median and the
least of 20 calls after 4, and the most that torch held. Float32 is measured as torch has it by default (convolutions in
TF32) and without TF32, as this server computes.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from diffusers import UNet2DConditionModel

SD2: dict[str, Any] = {
    "sample_size": 64,
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}
SDXL: dict[str, Any] = {
    "sample_size": 128,
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "use_linear_projection": True,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": [
        "DownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
    ],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def measure(
    name: str,
    config: dict[str, Any],
    dtype: torch.dtype,
    sizes: list[tuple[int, int]],
    *,
    channels_last: bool = False,
) -> None:
    """Prints a line for each size in pixels."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        unet = UNet2DConditionModel(**config).to(dtype).eval()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    unet = unet.to(memory_format=layout)
    on_gpu: dict[str, Any] = {"device": "cuda", "dtype": dtype}
    for width, height in sizes:
        sample = torch.randn(2, 4, height // 8, width // 8, **on_gpu)
        sample = sample.to(memory_format=layout)
        text = torch.randn(2, 77, config["cross_attention_dim"], **on_gpu)
        timestep = torch.tensor([500, 500], device="cuda")
        more: dict[str, Any] = {}
        if "addition_embed_type" in config:
            pooled = torch.randn(2, 1280, **on_gpu)
            sizes_of = torch.zeros(2, 6, **on_gpu)
            more["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": sizes_of}
        times = []
        with torch.no_grad():
            for _ in range(4):
                unet(sample, timestep, text, **more)
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            for _ in range(20):
                begin = time.perf_counter()
                unet(sample, timestep, text, **more).sample.float().cpu()
                times.append(1e3 * (time.perf_counter() - begin))
        held = torch.cuda.max_memory_allocated() >> 20
        print(
            f"{name} {width}x{height}: median {statistics.median(times):.1f} ms, "
            f"least {min(times):.1f} ms, {held} MiB",
            flush=True,
        )
    del unet
    torch.cuda.empty_cache()


def main() -> None:
    print(
        f"torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}, {torch.cuda.get_device_name(0)}"
    )
    sizes = [(512, 512), (640, 896)]
    measure("SD 2.1 float16", SD2, torch.float16, sizes)
    measure(
        "SD 2.1 float16 channels last", SD2, torch.float16, sizes, channels_last=True
    )
    measure("SD 2.1 float32", SD2, torch.float32, sizes)
    torch.backends.cudnn.allow_tf32 = False
    measure("SD 2.1 float32 without TF32", SD2, torch.float32, sizes)
    torch.backends.cudnn.allow_tf32 = True
    measure("SDXL float16", SDXL, torch.float16, [(1024, 1024)])


if __name__ == "__main__":
    main()
