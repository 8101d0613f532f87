#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["pillow"]
# ///
"""What this machine's GPU gives: a table for docs/PERFORMANCE.md, to be run by somebody who has one.

    scripts/gpu_check.py --server target/release/ancestral --ckpt FILE.safetensors [--provider cuda]

Each row is a server of its own, started on the CPU provider and on the other one in float32 and in half
precision, that draws the same picture. Parity is the difference of its pixels from the CPU's in float32; it/s are
steps a second of one picture, without loading and the VAE; batches of 1, 2, 4 and 8 are told in pictures a minute;
memory is what nvidia-smi says of the process, or without it the process's own resident memory. A row says on what
its graphs really ran, since the server falls back to the CPU. Without --ckpt the embedded model is used, which is
an ONNX export in float32 whatever the flags say.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image, ImageChops, ImageStat
from server_process import ServerProcess, call, memory_mib

BATCHES = (1, 2, 4, 8)


def draw(port: int, steps: int, side: int, batch: int = 1) -> tuple[Image.Image, float]:
    """The first picture of a batch, and the seconds until it was answered."""
    body = {
        "prompt": "a red apple on a table",
        "seed": 1,
        "steps": steps,
        "width": side,
        "height": side,
        "batch_size": batch,
        "sampler_name": "Euler",
        "cfg_scale": 6,
    }
    begin = time.monotonic()
    status, answer = call(port, "POST", "/sdapi/v1/txt2img", body, timeout=3600)
    elapsed = time.monotonic() - begin
    document = json.loads(answer)
    if status != 200:
        raise RuntimeError(
            f"{status} {document.get('error')}: {document.get('errors') or document.get('detail')}"
        )
    return Image.open(io.BytesIO(base64.b64decode(document["images"][0]))).convert(
        "RGB"
    ), elapsed


def held_memory(pid: int) -> str:
    """MiB of the GPU that a process has, else of the machine."""
    query = [
        "nvidia-smi",
        "--query-compute-apps=pid,used_memory",
        "--format=csv,noheader,nounits",
    ]
    try:
        listed = subprocess.run(
            query, capture_output=True, text=True, check=True, timeout=20
        ).stdout
        for line in listed.splitlines():
            known, used = line.split(",")
            if int(known) == pid:
                return f"{used.strip()} (GPU)"
    except (OSError, ValueError, subprocess.SubprocessError):
        pass
    resident = memory_mib(pid)
    return "-" if resident is None else f"{int(resident)} (RAM)"


def ran_on(log: Path) -> str:
    """The provider that the server says its graphs run on."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(errors="replace"))
    found = re.search(r"graphs run on (\w+)", plain)
    return found.group(1) if found else "?"


def row(
    arguments: argparse.Namespace,
    provider: str,
    precision: str,
    reference: list[Image.Image],
) -> str:
    """One server's line of the table; the first one's picture becomes the reference."""
    with tempfile.TemporaryDirectory() as folder:
        flags = [
            "--execution-provider",
            provider,
            "--precision",
            precision,
            "--device-id",
            str(arguments.device_id),
        ]
        if arguments.ckpt:
            flags += ["--ckpt", str(arguments.ckpt.resolve())]
        with ServerProcess(arguments.server, Path(folder), *flags) as server:
            # The first pictures load the model and let cuDNN and TensorRT look around.
            draw(server.port, 2, arguments.side)
            few, many = 2, 2 + arguments.steps
            _, short = draw(server.port, few, arguments.side)
            picture, long = draw(server.port, many, arguments.side)
            speed = (many - few) / max(long - short, 1e-9)
            batches = []
            for batch in BATCHES:
                try:
                    draw(server.port, 2, arguments.side, batch)
                    _, elapsed = draw(
                        server.port, arguments.steps, arguments.side, batch
                    )
                    batches.append(f"{60 * batch / elapsed:.1f}")
                except RuntimeError as error:
                    batches.append(
                        "out of memory" if "out of memory" in str(error) else "failed"
                    )
            assert server.process is not None
            memory = held_memory(server.process.pid)
            where = ran_on(Path(folder) / "server.log")
    if reference:
        difference = ImageChops.difference(picture, reference[0])
        worst = max(high for _, high in difference.getextrema())
        mean = sum(ImageStat.Stat(difference).mean) / 3
        parity = f"{worst} worst, {mean:.3f} mean"
    else:
        reference.append(picture)
        parity = "reference"
    cells = [provider, where, precision, parity, f"{speed:.2f}", memory, *batches]
    return "| " + " | ".join(cells) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--server",
        type=Path,
        required=True,
        help="the ancestral binary, an optimised build",
    )
    parser.add_argument("--ckpt", type=Path, help="a .safetensors checkpoint")
    parser.add_argument(
        "--provider",
        default="cuda",
        help="cuda, tensorrt, directml or cpu [default: cuda]",
    )
    parser.add_argument("--device-id", type=int, default=0)
    parser.add_argument(
        "--side", type=int, default=512, help="pixels a side [default: 512]"
    )
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    if not arguments.server.is_file():
        print(f"gpu_check: there is no server at {arguments.server}", file=sys.stderr)
        return 1
    arguments.server = arguments.server.resolve()
    heads = ["asked for", "ran on", "precision", "levels from the CPU", "it/s", "MiB"]
    heads += [f"pictures/min at {batch}" for batch in BATCHES]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    reference: list[Image.Image] = []
    wanted = [
        ("cpu", "full"),
        (arguments.provider, "full"),
        (arguments.provider, "half"),
    ]
    for provider, precision in dict.fromkeys(wanted):
        try:
            lines.append(row(arguments, provider, precision, reference))
        except (RuntimeError, OSError) as error:
            print(f"gpu_check: {provider} {precision}: {error}", file=sys.stderr)
            return 1
    model = arguments.ckpt.name if arguments.ckpt else "embedded model"
    print(
        f"{model}, {arguments.side}x{arguments.side}, {arguments.steps} steps of Euler, CFG 6\n"
    )
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
