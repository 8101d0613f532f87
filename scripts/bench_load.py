#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "accelerate==0.21.0",
#     "diffusers==0.27.2",
#     "numpy<2",
#     "safetensors",
#     "torch==2.1.2",
#     "transformers==4.39.3",
# ]
# ///
"""From start to the first step and to the first picture: this server and torch, one after the other.

Both draw one 512x512 picture in float32 at two steps of an SD 2.1 checkpoint (make_random_checkpoint.py
writes one of random weights). --ours-only leaves torch out, for other families and sizes: SDXL at --size 1024. What
follows -- goes to the server, for example --model-memory 4. torch loads it as A1111 does with --no-half: safetensors into modules of
diffusers and transformers. Processor time is told beside wall time, since other programs do not change
it much.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from server_process import before_flags, call, step_clock

STEPS = 2


def process_figures(pid: int) -> dict[str, float]:
    """Peak resident GiB and processor seconds of a process so far."""
    status = Path(f"/proc/{pid}/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    ticks = int(fields[11]) + int(fields[12])
    return {
        "peak_gib": int(peak.split()[1]) / 2**20,
        "cpu_s": ticks / os.sysconf("SC_CLK_TCK"),
    }


def ask(port: int, path: str, body: dict | None = None) -> dict:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=3600) as answer:
        return json.load(answer)


def measure_server(
    binary: Path, checkpoint: Path, size: int, flags: list[str]
) -> dict[str, float]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as data:
        begin = time.monotonic()
        command = [binary, "--data-dir", data, "--ckpt", checkpoint, "--port", str(port)]
        command += ["--api", "--skip-load-model-at-start", *flags]
        log = Path(data) / "log"
        with log.open("w") as out:
            server = subprocess.Popen(command, stdout=out, stderr=out)
        try:
            while True:
                try:
                    ask(port, "/sdapi/v1/progress")
                    break
                except (urllib.error.URLError, ConnectionError):
                    if server.poll() is not None:
                        raise RuntimeError(log.read_text()) from None
                    time.sleep(0.02)
            body = {"prompt": "a cube", "steps": STEPS, "width": size, "height": size, "seed": 1}
            code = (
                "import sys, urllib.request as u; u.urlopen(u.Request(sys.argv[1], sys.argv[2]"
                ".encode(), {'Content-Type': 'application/json'}), timeout=3600).read()"
            )
            address = f"http://127.0.0.1:{port}/sdapi/v1/txt2img"
            client = subprocess.Popen([sys.executable, "-c", code, address, json.dumps(body)])
            found: dict[str, float] = {}
            while client.poll() is None:
                # The server's clock of steps: `progress` shows 1 only once the second step has ended.
                metrics = call(port, "GET", "/metrics")[1].decode()
                if "first_step_s" not in found and step_clock(metrics)[0] >= 1:
                    found["first_step_s"] = time.monotonic() - begin
                    found["first_step_cpu_s"] = process_figures(server.pid)["cpu_s"]
                time.sleep(0.05)
            if client.returncode:
                raise RuntimeError(log.read_text())
            return found | {"picture_s": time.monotonic() - begin} | process_figures(server.pid)
        finally:
            server.terminate()
            server.wait()


def run_torch(checkpoint: Path, size: int, begin: float) -> None:
    """In a process of its own: loads, draws, prints figures."""
    import torch
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
    from diffusers.pipelines.stable_diffusion import convert_from_ckpt as convert
    from safetensors.torch import load_file
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.set_grad_enabled(False)
    weights = load_file(checkpoint)
    unet = UNet2DConditionModel(
        cross_attention_dim=1024, attention_head_dim=[5, 10, 20, 20], use_linear_projection=True
    )
    unet.load_state_dict(convert.convert_ldm_unet_checkpoint(dict(weights), dict(unet.config)))
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
    )
    vae.load_state_dict(convert.convert_ldm_vae_checkpoint(dict(weights), dict(vae.config)))
    text = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=23,
            num_attention_heads=16,
            hidden_act="gelu",
        )
    )
    text.load_state_dict(open_clip_state(weights, 23), strict=False)
    del weights
    ids = torch.full((2, 77), 49407)
    context = text(ids).last_hidden_state
    scheduler = EulerDiscreteScheduler(prediction_type="v_prediction")
    scheduler.set_timesteps(STEPS)
    latent = torch.randn(1, 4, size // 8, size // 8) * scheduler.init_noise_sigma
    found: dict[str, float] = {}
    for at in scheduler.timesteps:
        rows = scheduler.scale_model_input(torch.cat([latent] * 2), at)
        out = unet(rows, at, encoder_hidden_states=context).sample
        guided = out[:1] + 7 * (out[1:] - out[:1])
        latent = scheduler.step(guided, at, latent).prev_sample
        if "first_step_s" not in found:
            found["first_step_s"] = time.time() - begin
            found["first_step_cpu_s"] = process_figures(os.getpid())["cpu_s"]
    vae.decode(latent / 0.18215)
    found["picture_s"] = time.time() - begin
    print(json.dumps(found | process_figures(os.getpid())))


def open_clip_state(weights: dict, layers: int) -> dict:
    prefix = "cond_stage_model.model."
    names = {
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
        "attn.out_proj": "self_attn.out_proj",
    }
    state = {
        "text_model.embeddings.token_embedding.weight": weights[f"{prefix}token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": weights[f"{prefix}positional_embedding"],
    }
    for part in ("weight", "bias"):
        state[f"text_model.final_layer_norm.{part}"] = weights[f"{prefix}ln_final.{part}"]
        for n in range(layers):
            block, target = f"{prefix}transformer.resblocks.{n}.", f"text_model.encoder.layers.{n}."
            for name, new in names.items():
                state[f"{target}{new}.{part}"] = weights[f"{block}{name}.{part}"]
            rows = weights[f"{block}attn.in_proj_{part}"].chunk(3)
            for letter, row in zip("qkv", rows, strict=True):
                state[f"{target}self_attn.{letter}_proj.{part}"] = row
    return state


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--binary", type=Path, default=Path("target/release/ancestral"))
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--ours-only", action="store_true")
    parser.epilog = "What stands after -- goes to the server as flags."
    parser.add_argument("--torch-only", type=float, help=argparse.SUPPRESS)
    words, flags = before_flags(sys.argv[1:])
    arguments = parser.parse_args(words)
    if arguments.torch_only:
        run_torch(arguments.checkpoint, arguments.size, arguments.torch_only)
        return 0
    if not arguments.binary.exists() or not shutil.which(arguments.binary):
        print(f"{arguments.binary} is missing: cargo build --release", file=sys.stderr)
        return 1
    binary = arguments.binary.resolve()
    ours = measure_server(binary, arguments.checkpoint.resolve(), arguments.size, flags)
    print("ancestral", {key: round(value, 2) for key, value in ours.items()}, flush=True)
    if arguments.ours_only:
        return 0
    command = [sys.executable, __file__, arguments.checkpoint, "--size", str(arguments.size)]
    answer = subprocess.run(
        [*map(str, command), "--torch-only", str(time.time())], stdout=subprocess.PIPE, check=True
    )
    theirs = json.loads(answer.stdout.splitlines()[-1])
    print("torch    ", {key: round(value, 2) for key, value in theirs.items()})
    print("ratio    ", {key: round(ours[key] / theirs[key], 2) for key in theirs})
    return 0


if __name__ == "__main__":
    sys.exit(main())
