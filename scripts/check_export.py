#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "diffusers==0.36.0",
#     "numpy>=2",
#     "onnxruntime==1.27.0",
#     "optimum-onnx==0.1.0",
#     "torch==2.9.1",
#     "transformers==4.57.6",
# ]
# ///
"""Checks that a folder of `ancestral export` runs elsewhere: in plain onnxruntime and in optimum.

    scripts/check_export.py --server target/release/ancestral --checkpoint tiny-sd1.safetensors --models MODELS

The checkpoint is exported. Then:

1. optimum loads the folder as a pipeline and draws from fixed latents; this program repeats its loop with plain
   onnxruntime (text encoder, UNet, VAE decoder), and both must agree;
2. the server draws from the checkpoint and from the folder, and the pictures must agree.

Text tower configurations lie beside the checkpoint, and in MODELS (A1111's `models`) for the server. SD 1.x and 2.x.
That exports made by torch run here is shown by tests/models.rs. The exit status is 1 where something differs.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
from optimum.onnxruntime import ORTStableDiffusionPipeline
from PIL import Image
from server_process import ServerProcess, call

# Largest value of a difference, relative to the largest value.
TOLERANCE = 1e-4
STEPS = 3
GUIDANCE = 5.0
PROMPT = "a red cube on a table"


def difference(got: np.ndarray, want: np.ndarray) -> float:
    """The largest difference relative to the largest wanted value."""
    return float(np.abs(got - want).max() / np.abs(want).max())


def session(folder: Path, part: str) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(folder / part / "model.onnx", providers=["CPUExecutionProvider"])


def alone(folder: Path, pipeline: ORTStableDiffusionPipeline, latents: np.ndarray) -> np.ndarray:
    """What the pipeline should draw, by plain onnxruntime and the pipeline's tokenizer and scheduler. [1, 3, h, w]"""
    import torch

    encoder, unet, decoder = (session(folder, part) for part in ("text_encoder", "unet", "vae_decoder"))

    def encoded(text: str) -> np.ndarray:
        ids = pipeline.tokenizer(
            text, padding="max_length", max_length=77, truncation=True, return_tensors="np"
        ).input_ids
        wanted = encoder.get_inputs()[0].type
        ids = ids.astype(np.int64 if "int64" in wanted else np.int32)
        return encoder.run(["last_hidden_state"], {"input_ids": ids})[0]

    context = np.concatenate([encoded(""), encoded(PROMPT)])
    scheduler = pipeline.scheduler.from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(STEPS)
    x = torch.from_numpy(latents) * scheduler.init_noise_sigma
    types = {port.name: port.type for port in unet.get_inputs()}
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, timestep).numpy()
        time = np.array([timestep] * (2 if "timestep" in types else 1))
        feed = {
            "sample": np.concatenate([scaled, scaled]),
            "timestep": time.astype(np.float32 if "float" in types["timestep"] else np.int64),
            "encoder_hidden_states": context,
        }
        shape = next(port.shape for port in unet.get_inputs() if port.name == "timestep")
        if not shape:
            feed["timestep"] = feed["timestep"][0]
        elif shape == [1]:
            feed["timestep"] = feed["timestep"][:1]
        out = unet.run(None, feed)[0]
        guided = out[:1] + GUIDANCE * (out[1:] - out[:1])
        x = scheduler.step(torch.from_numpy(guided), timestep, x).prev_sample
    scale = json.loads((folder / "vae_decoder/config.json").read_text())["scaling_factor"]
    name = decoder.get_inputs()[0].name
    return decoder.run(None, {name: (x.numpy() / scale).astype(np.float32)})[0]


def by_server(server: Path, models: Path, checkpoint: Path) -> np.ndarray:
    """The picture that the server draws with a checkpoint or a folder. [height, width, 3]"""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "data/models"
        shutil.copytree(models, target, ignore=shutil.ignore_patterns("Stable-diffusion"))
        with ServerProcess(server, Path(folder), "--ckpt", str(checkpoint)) as running:
            body = {"prompt": PROMPT, "steps": STEPS, "width": 64, "height": 64, "seed": 1}
            status, text = call(running.port, "POST", "/sdapi/v1/txt2img", body)
            if status != 200:
                raise RuntimeError(f"{checkpoint}: {status} {text[:300]!r}")
            picture = base64.b64decode(json.loads(text)["images"][0])
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(np.float32)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True, type=Path)
    parser.add_argument("--checkpoint", required=True, type=Path)
    parser.add_argument("--models", required=True, type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / options.checkpoint.stem
        command = [options.server, "export", options.checkpoint, folder]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        pipeline = ORTStableDiffusionPipeline.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        latents = np.random.default_rng(0).standard_normal((1, 4, 8, 8)).astype(np.float32)
        import torch

        drawn = pipeline(
            PROMPT,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            height=64,
            width=64,
            latents=torch.from_numpy(latents),
            output_type="np",
        ).images[0]
        plain = np.clip(alone(folder, pipeline, latents)[0].transpose(1, 2, 0) / 2 + 0.5, 0, 1)
        by_optimum = difference(drawn, plain)
        ours, theirs = (by_server(options.server, options.models, it) for it in (options.checkpoint, folder))
        levels = float(np.abs(ours - theirs).max())
    print(f"{options.checkpoint.name}: onnxruntime {onnxruntime.__version__} and optimum differ by {by_optimum:.1e}")
    print(f"{options.checkpoint.name}: the server's pictures from file and folder differ by {levels:.0f} grey levels")
    return 0 if by_optimum <= TOLERANCE and levels <= 1 else 1


if __name__ == "__main__":
    sys.exit(main())
