#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "accelerate==1.12.0",
#     "diffusers==0.36.0",
#     "numpy==2.3.5",
#     "onnx==1.20.1",
#     "onnxruntime==1.27.0",
#     "openvino==2026.4.1",
#     "optimum==2.1.0",
#     "optimum-intel==1.27.0",
#     "optimum-onnx==0.1.0",
#     "safetensors==0.8.0",
#     "torch==2.9.1",
#     "transformers==4.57.6",
# ]
# ///
"""The Python programs that bench.py measures this server against; bench.py starts it.

    scripts/bench_peer.py export CHECKPOINT FOLDER     writes FOLDER/diffusers, FOLDER/onnx and FOLDER/openvino
    scripts/bench_peer.py draw KIND FOLDER             draws what the lines of standard input ask for

CHECKPOINT is an SD 2.1 of real size (make_random_checkpoint.py writes one of random weights) or the embedded model as one
file (docs/tour/data). A KIND is torch (modules of diffusers, eager, float32, as A1111 computes on a CPU), openvino and
openvino-f32 (optimum-intel's export; the second with the hint that asks for float32 arithmetic), and onnxruntime
(optimum-onnx's export). A line asks for a picture, {"width": 512, "height": 512, "steps": 2}; the answer is a line with its
seconds (request to PNG in base64), those until the end of the first call of the UNet, and those of each call, which
sees both prompts as a batch of two.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import sys
import time
from pathlib import Path

from bench_load import open_clip_state

ROOT = Path(__file__).resolve().parent.parent
EMBEDDED = ROOT / "onnx" / "embedded"
KINDS = ("torch", "openvino", "openvino-f32", "onnxruntime")
PROMPT, NEGATIVE, CFG_SCALE = "a red apple", "", 7.0

SD21_UNET = {
    "sample_size": 64,
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}
SD21_VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "sample_size": 512,
}
# The last layer of the tower is left out, as "penultimate" says.
SD21_TEXT = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
    "projection_dim": 1024,
}


def part_config(part: str) -> dict:
    """The embedded model's configuration of a part, without the keys that say who wrote it."""
    return json.loads((EMBEDDED / part / "config.json").read_text())


def write_diffusers(checkpoint: Path, folder: Path) -> None:
    """The checkpoint in the layout of diffusers, float32."""
    from diffusers import (
        AutoencoderKL,
        EulerAncestralDiscreteScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from diffusers.loaders.single_file_utils import (
        convert_ldm_unet_checkpoint,
        convert_ldm_vae_checkpoint,
    )
    from safetensors.torch import load_file
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    weights = {
        name: value.float()
        for name, value in load_file(checkpoint).items()
        if value.is_floating_point()
    }
    is_real_size = (
        weights["model.diffusion_model.input_blocks.0.0.weight"].shape[0] == 320
    )
    unet_config = SD21_UNET if is_real_size else part_config("unet")
    vae_config = SD21_VAE if is_real_size else part_config("vae_decoder")
    text_config = SD21_TEXT if is_real_size else part_config("text_encoder")

    unet = UNet2DConditionModel.from_config(unet_config)
    unet.load_state_dict(convert_ldm_unet_checkpoint(dict(weights), dict(unet.config)))
    vae = AutoencoderKL.from_config(vae_config)
    vae.load_state_dict(convert_ldm_vae_checkpoint(dict(weights), dict(vae.config)))
    text = CLIPTextModel(CLIPTextConfig(**text_config))
    found = text.load_state_dict(
        open_clip_state(weights, text_config["num_hidden_layers"]), strict=False
    )
    if found.unexpected_keys or any(
        "position_ids" not in name for name in found.missing_keys
    ):
        raise RuntimeError(f"the text tower does not fit: {found}")
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=CLIPTokenizer.from_pretrained(EMBEDDED / "tokenizer"),
        unet=unet,
        scheduler=EulerAncestralDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)


def export(checkpoint: Path, folder: Path) -> None:
    """Every form that a peer reads; one that is there already is kept."""

    def write(name: str, writer) -> None:
        if not (folder / name).exists():
            begin = time.monotonic()
            writer(folder / f"{name}.part")
            (folder / f"{name}.part").rename(folder / name)
            print(f"{folder / name}: {time.monotonic() - begin:.0f} s", flush=True)

    def write_onnx(target: Path) -> None:
        from optimum.exporters.onnx import main_export

        main_export(
            str(folder / "diffusers"),
            str(target),
            task="text-to-image",
            do_validation=False,
        )

    def write_openvino(target: Path) -> None:
        from optimum.exporters.openvino import main_export
        from optimum.intel import OVConfig

        main_export(
            str(folder / "diffusers"),
            str(target),
            task="text-to-image",
            ov_config=OVConfig(dtype="fp32"),
        )

    folder.mkdir(parents=True, exist_ok=True)
    write("diffusers", lambda target: write_diffusers(checkpoint, target))
    write("onnx", write_onnx)
    write("openvino", write_openvino)


def load(kind: str, folder: Path):
    """The pipeline of a kind, ready to draw."""
    if kind == "torch":
        import torch
        from diffusers import StableDiffusionPipeline

        return StableDiffusionPipeline.from_pretrained(
            folder / "diffusers", torch_dtype=torch.float32
        )
    if kind == "onnxruntime":
        from optimum.onnxruntime import ORTStableDiffusionPipeline

        return ORTStableDiffusionPipeline.from_pretrained(folder / "onnx")
    from optimum.intel import OVStableDiffusionPipeline

    hints = {"INFERENCE_PRECISION_HINT": "f32"} if kind == "openvino-f32" else {}
    return OVStableDiffusionPipeline.from_pretrained(
        folder / "openvino", ov_config=hints
    )


def draw(kind: str, folder: Path) -> None:
    """Answers the lines of standard input."""
    import torch

    torch.set_grad_enabled(False)
    answers = sys.stdout
    sys.stdout = sys.stderr
    pipeline = load(kind, folder)
    pipeline.set_progress_bar_config(disable=True)
    unet_s: list[float] = []
    ends: list[float] = []
    unet = pipeline.unet
    forward = unet.forward

    def timed(*values, **named):
        begin = time.monotonic()
        try:
            return forward(*values, **named)
        finally:
            ends.append(time.monotonic())
            unet_s.append(ends[-1] - begin)

    unet.forward = timed
    print(json.dumps({"loaded": True}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        unet_s.clear()
        ends.clear()
        begin = time.monotonic()
        picture = pipeline(
            PROMPT,
            negative_prompt=NEGATIVE,
            width=asked["width"],
            height=asked["height"],
            num_inference_steps=asked["steps"],
            guidance_scale=CFG_SCALE,
            generator=torch.Generator().manual_seed(1),
        ).images[0]
        file = io.BytesIO()
        picture.save(file, "PNG")
        text = base64.b64encode(file.getvalue()).decode()
        answer = {
            "picture_s": time.monotonic() - begin,
            "first_step_s": ends[0] - begin,
            "step_s": list(unet_s),
        }
        if asked.get("with_picture"):
            answer["png"] = text
        print(json.dumps(answer), file=answers, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    exporting = commands.add_parser("export")
    exporting.add_argument("checkpoint", type=Path)
    exporting.add_argument("folder", type=Path)
    drawing = commands.add_parser("draw")
    drawing.add_argument("kind", choices=KINDS)
    drawing.add_argument("folder", type=Path)
    options = parser.parse_args()
    if options.command == "draw":
        draw(options.kind, options.folder)
        return 0
    if not options.checkpoint.is_file():
        print(f"{options.checkpoint} is missing", file=sys.stderr)
        return 1
    export(options.checkpoint, options.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
