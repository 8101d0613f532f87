#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["pillow"]
# ///
"""What this machine's GPU gives: a table for docs/PERFORMANCE.md, to be run by somebody who has one.

    scripts/gpu_check.py --server target/release/ancestral --ckpt FILE.safetensors [--provider cuda]

Each row is a server of its own at one size: on the CPU provider, then on the other one in float32 and in half precision.
All draw the same picture of a few steps, and parity is the difference of its pixels from the CPU's in float32. A step's
time is the server's own (GET /metrics): both prompts, the sampler, everything between two steps; the UNet's is that of
its runs alone. Loading and the first picture at a size, in which cuDNN and TensorRT look around, are not counted.
Batches are told in pictures a minute, VAE and PNG included; memory is what nvidia-smi says of the process, or without it
the process's own resident memory. A row says on what its graphs really ran, since the server falls back to the CPU.
Without --ckpt the embedded model is used, which is an ONNX export in float32 whatever the flags say. The CPU draws the
picture for parity alone.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import re
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageChops, ImageStat
from server_process import ServerProcess, call, memory_mib, step_clock

BATCHES = (1, 2, 4, 8)
UNET_CLOCK = re.compile(
    r'^ancestral_graph_run(?:s|_seconds)_total\{graph="(?i:unet)"\} (\S+)$',
    re.MULTILINE,
)
HEADS = [
    "asked for",
    "ran on",
    "precision",
    "size",
    "levels from the CPU",
    "ms a step",
    "it/s",
    "ms a UNet run",
    "s a picture",
    "MiB",
]


@dataclass(frozen=True)
class Clock:
    """Counters of a server: steps and their seconds, runs of the UNet and their seconds."""

    steps: float
    step_s: float
    runs: float
    run_s: float

    @classmethod
    def read(cls, port: int) -> Clock:
        """The counters now."""
        text = call(port, "GET", "/metrics")[1].decode()
        runs = {"seconds" in it[0]: float(it[1]) for it in UNET_CLOCK.finditer(text)}
        return cls(
            *step_clock(text),
            runs.get(False, 0.0),
            runs.get(True, 0.0),
        )

    def step_ms_since(self, before: Clock) -> float:
        """Milliseconds of a step."""
        return 1e3 * (self.step_s - before.step_s) / max(self.steps - before.steps, 1)

    def run_ms_since(self, before: Clock) -> float:
        """Milliseconds of a run of the UNet."""
        return 1e3 * (self.run_s - before.run_s) / max(self.runs - before.runs, 1)


@dataclass
class Measured:
    """One server at one size."""

    cells: list[str]
    picture: Image.Image
    step_ms: float


def draw(
    port: int, steps: int, size: tuple[int, int], batch: int = 1
) -> tuple[Image.Image, float]:
    """The first picture of a batch, and the seconds until it was answered."""
    body = {
        "prompt": "a red apple on a table",
        "seed": 1,
        "steps": steps,
        "width": size[0],
        "height": size[1],
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
    picture = Image.open(io.BytesIO(base64.b64decode(document["images"][0])))
    return picture.convert("RGB"), elapsed


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


def levels(picture: Image.Image, reference: Image.Image) -> str:
    """How far apart two pictures are."""
    difference = ImageChops.difference(picture, reference)
    worst = max(high for _, high in difference.getextrema())
    mean = sum(ImageStat.Stat(difference).mean) / 3
    return f"{worst} worst, {mean:.3f} mean"


def pictures_a_minute(
    port: int, steps: int, size: tuple[int, int], batch: int
) -> str:
    """Of a batch, drawn a second time."""
    try:
        draw(port, 2, size, batch)
        _, elapsed = draw(port, steps, size, batch)
    except RuntimeError as error:
        return "out of memory" if "out of memory" in str(error) else "failed"
    return f"{60 * batch / elapsed:.1f}"


def measure(
    arguments: argparse.Namespace,
    provider: str,
    precision: str,
    size: tuple[int, int],
    reference: Image.Image | None,
) -> Measured:
    """One server's line of the table. Without a reference it draws the picture for parity alone."""
    flags = ["--execution-provider", provider, "--precision", precision]
    flags += ["--device-id", str(arguments.device_id)]
    if arguments.ckpt:
        flags += ["--ckpt", str(arguments.ckpt.resolve())]
    if reference is not None:
        flags += shlex.split(arguments.flags)
    with tempfile.TemporaryDirectory() as folder:
        with ServerProcess(arguments.server, Path(folder), *flags) as server:
            assert server.process is not None
            port = server.port
            begin = Clock.read(port)
            picture, seconds = draw(port, arguments.parity_steps, size)
            if reference is not None:
                draw(port, 3, size)
                begin = Clock.read(port)
                _, seconds = draw(port, arguments.steps, size)
            end = Clock.read(port)
            step_ms, run_ms = end.step_ms_since(begin), end.run_ms_since(begin)
            batches = ["-"] * len(arguments.batches)
            if reference is not None:
                batches = [
                    pictures_a_minute(port, arguments.steps, size, batch)
                    for batch in arguments.batches
                ]
            memory = held_memory(server.process.pid)
            where = ran_on(Path(folder) / "server.log")
    parity = "reference" if reference is None else levels(picture, reference)
    cells = [provider, where, precision, f"{size[0]}x{size[1]}", parity]
    cells += [f"{step_ms:.2f}", f"{1e3 / max(step_ms, 1e-3):.2f}", f"{run_ms:.2f}"]
    cells += ["-" if reference is None else f"{seconds:.3f}", memory, *batches]
    return Measured(cells, picture, step_ms)


def size_of(text: str) -> tuple[int, int]:
    """Width and height of `512x640`."""
    width, height = text.split("x")
    return int(width), int(height)


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
        "--sizes",
        type=size_of,
        nargs="+",
        default=[(512, 512)],
        help="such as 512x512 640x896 [default: 512x512]",
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument(
        "--parity-steps",
        type=int,
        default=20,
        help="of the picture that is compared [default: 20]",
    )
    parser.add_argument("--batches", type=int, nargs="*", default=list(BATCHES))
    parser.add_argument("--flags", default="", help="more flags, not for the CPU")
    arguments = parser.parse_args()
    if not arguments.server.is_file():
        print(f"gpu_check: there is no server at {arguments.server}", file=sys.stderr)
        return 1
    arguments.server = arguments.server.resolve()
    model = arguments.ckpt.name if arguments.ckpt else "embedded model"
    print(
        f"{model}, {arguments.steps} steps of Euler ({arguments.parity_steps} for parity), CFG 6\n"
    )
    heads = HEADS + [f"pictures/min at {batch}" for batch in arguments.batches]
    print("| " + " | ".join(heads) + " |")
    print("|" + "---|" * len(heads), flush=True)
    for size in arguments.sizes:
        reference = None
        wanted = [("cpu", "full")]
        wanted += [(arguments.provider, kind) for kind in ("full", "half")]
        for provider, precision in wanted:
            try:
                measured = measure(arguments, provider, precision, size, reference)
            except (RuntimeError, OSError) as error:
                print(f"gpu_check: {provider} {precision}: {error}", file=sys.stderr)
                return 1
            if reference is None:
                reference = measured.picture
            print("| " + " | ".join(measured.cells) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
