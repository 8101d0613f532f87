#!/usr/bin/env python3
"""Draws the same pictures with this server and with the programs it is compared to, in turn, and prints the ratios.

    scripts/bench.py CHECKPOINT --peers FOLDER --python VENV/bin/python --sd-server sd-server --rounds 3
    scripts/bench.py --embedded --peers FOLDER --python VENV/bin/python --steps 20 --sizes 512x512

FOLDER holds the exports that `scripts/bench_peer.py export CHECKPOINT FOLDER` writes, VENV the packages that that script
names (torch, diffusers, OpenVINO, ONNX Runtime, optimum). sd-server is stable-diffusion.cpp's server, built from the sources
in the package stable-diffusion-cpp-python:

    cmake -S vendor/stable-diffusion.cpp -B build -DCMAKE_BUILD_TYPE=Release && cmake --build build --target sd-server

What is missing is left out, with a line that says so. In every round each program is started, draws, and is ended before the
next one starts, so that only one holds the model. Each draws two pictures of the first size and one of every further size.
Told are medians over the rounds: seconds a step (both prompts; the first step at each size, which allocates, is left out),
seconds of a picture after the first (request to PNG in base64), seconds from the start of the process to its first step
and picture, and the peak of its resident memory with the first size (Linux). The step of torch, OpenVINO and ONNX Runtime is the call of
the UNet alone; that of the two servers is all that happens between two steps. What follows -- goes to this server, for example
--load-strategy fast. Needs nothing beside Python.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from server_process import (
    ServerProcess,
    before_flags,
    call,
    free_port,
    memory_mib,
    step_clock,
)

ROOT = Path(__file__).resolve().parent.parent
PYTHON_PEERS = ("torch", "openvino", "openvino-f32", "onnxruntime")
SD_CPP = ("sd.cpp-f16", "sd.cpp-f32")
US = "ancestral"
ANSWER_LIMIT_S = 3600.0
POLL_S = 0.05


@dataclass
class Measured:
    """One program at one size in one round."""

    who: str
    model: str
    size: str
    steps: int
    # Seconds of each step but the first.
    step_s: list[float]
    # Seconds of each picture but the process's first.
    picture_s: list[float]
    # Of the process, told with the first size alone.
    start_to_step_s: float | None = None
    start_to_picture_s: float | None = None
    peak_mib: float | None = None


@dataclass
class Drawn:
    """The times of one picture."""

    step_s: list[float]
    # time.monotonic() at the end of the first step, where the program tells.
    first_step_at: float | None = None


class Program(Protocol):
    """A started program that draws."""

    pid: int

    def draw(self, width: int, height: int, steps: int) -> Drawn:
        """Draws a picture."""


def body(width: int, height: int, steps: int) -> dict:
    return {
        "prompt": "a red apple",
        "sampler_name": "Euler a",
        "cfg_scale": 7,
        "seed": 1,
        "width": width,
        "height": height,
        "steps": steps,
    }


def ask_for_picture(port: int, width: int, height: int, steps: int) -> None:
    status, text = call(
        port,
        "POST",
        "/sdapi/v1/txt2img",
        body(width, height, steps),
        timeout=ANSWER_LIMIT_S,
    )
    if status != 200 or not json.loads(text)["images"]:
        raise RuntimeError(f"no picture: {status} {text[:300]!r}")


class Ancestral:
    """This server; its own clock of steps is read from /metrics while it draws."""

    def __init__(self, server: ServerProcess) -> None:
        assert server.process is not None
        self.port, self.pid = server.port, server.process.pid

    def step_clock(self) -> tuple[int, float]:
        """Steps so far, and their seconds."""
        _, text = call(self.port, "GET", "/metrics")
        return step_clock(text.decode())

    def draw(self, width: int, height: int, steps: int) -> Drawn:
        count, total = self.step_clock()
        drawing = threading.Thread(
            target=ask_for_picture, args=(self.port, width, height, steps)
        )
        drawing.start()
        found: list[float] = []
        first_step_at = None
        while drawing.is_alive():
            drawing.join(POLL_S)
            now, now_total = self.step_clock()
            if now > count and not found:
                first_step_at = time.monotonic()
            # More than one step since the last look: their mean, once for each.
            found += (
                [(now_total - total) / (now - count)] * (now - count)
                if now > count
                else []
            )
            count, total = now, now_total
        if len(found) != steps:
            raise RuntimeError(
                f"{len(found)} steps were counted, not {steps}: no picture?"
            )
        return Drawn(found, first_step_at)


class PythonPeer:
    """bench_peer.py, which is told by lines."""

    def __init__(self, process: subprocess.Popen) -> None:
        self.process, self.pid = process, process.pid

    def answer(self) -> dict:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("ended without an answer")
        return json.loads(line)

    def draw(self, width: int, height: int, steps: int) -> Drawn:
        assert self.process.stdin is not None
        print(
            json.dumps({"width": width, "height": height, "steps": steps}),
            file=self.process.stdin,
            flush=True,
        )
        begin = time.monotonic()
        answer = self.answer()
        return Drawn(answer["step_s"], begin + answer["first_step_s"])


class SdCpp:
    """stable-diffusion.cpp's server; its steps are read from what it prints."""

    def __init__(self, port: int, pid: int, log: Path) -> None:
        self.port, self.pid, self.log = port, pid, log

    def draw(self, width: int, height: int, steps: int) -> Drawn:
        begin = len(self.log.read_text(errors="replace"))
        ask_for_picture(self.port, width, height, steps)
        text = self.log.read_text(errors="replace")[begin:]
        found = re.findall(rf"(\d+)/{steps} - ([\d.]+)(s/it|it/s)", text)
        # Each number is the mean of the steps so far.
        totals = [0.0] + [
            int(n) * (float(v) if unit == "s/it" else 1 / float(v))
            for n, v, unit in found
        ]
        if len(totals) != steps + 1:
            raise RuntimeError(f"{len(totals) - 1} steps were printed, not {steps}")
        pairs = zip(totals, totals[1:], strict=False)
        return Drawn([later - sooner for sooner, later in pairs])


@contextlib.contextmanager
def started(who: str, options: argparse.Namespace, folder: Path) -> Iterator[Program]:
    """The program, ready or about to be; ended afterwards."""
    log = folder / "log"
    if who == US:
        flags = [] if options.embedded else ["--ckpt", str(options.checkpoint)]
        with ServerProcess(options.binary, folder, *flags, *options.flags) as server:
            yield Ancestral(server)
        return
    if who in PYTHON_PEERS:
        command = [
            options.python,
            ROOT / "scripts" / "bench_peer.py",
            "draw",
            who,
            options.peers,
        ]
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        with (
            log.open("w") as errors,
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
            ) as process,
        ):
            try:
                peer = PythonPeer(process)
                peer.answer()
                yield peer
            finally:
                process.kill()
        return
    port = free_port()
    element = who.removeprefix("sd.cpp-")
    command = [
        options.sd_server,
        "--model",
        options.checkpoint,
        "--type",
        element,
        "--prediction",
        "v",
    ]
    command += [
        "--listen-ip",
        "127.0.0.1",
        "--listen-port",
        str(port),
        "--threads",
        str(os.cpu_count()),
    ]
    with (
        log.open("w") as out,
        subprocess.Popen(command, stdout=out, stderr=out) as process,
    ):
        try:
            while True:
                if process.poll() is not None:
                    raise RuntimeError("sd-server ended")
                with contextlib.suppress(OSError):
                    call(port, "GET", "/")
                    break
                time.sleep(0.02)
            yield SdCpp(port, process.pid, log)
        finally:
            process.kill()


def measure(who: str, model: str, options: argparse.Namespace) -> list[Measured]:
    """One round of one program.

    Raises RuntimeError, with the end of its log, when it draws nothing.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        begin = time.monotonic()
        found = []
        try:
            with started(who, options, folder) as program:
                for size in options.sizes:
                    width, height = map(int, size.split("x"))
                    is_first_size = not found
                    at = Measured(who, model, size, options.steps, [], [])
                    for picture in range(options.pictures if is_first_size else 1):
                        picture_begin = time.monotonic()
                        drawn = program.draw(width, height, options.steps)
                        if is_first_size and picture == 0:
                            at.start_to_picture_s = time.monotonic() - begin
                            if drawn.first_step_at:
                                at.start_to_step_s = drawn.first_step_at - begin
                        else:
                            at.picture_s.append(time.monotonic() - picture_begin)
                        at.step_s += drawn.step_s[1:] if picture == 0 else drawn.step_s
                    if is_first_size:
                        at.peak_mib = memory_mib(program.pid, "VmHWM")
                    found.append(at)
        except (RuntimeError, OSError) as error:
            logs = [
                path.read_text(errors="replace")[-800:] for path in folder.glob("*log")
            ]
            raise RuntimeError(f"{who}: {error}\n{''.join(logs)}") from error
    return found


def missing(who: str, options: argparse.Namespace) -> str | None:
    """Why a program cannot be measured here."""
    if who == US:
        return (
            None
            if options.binary.is_file()
            else f"{options.binary} is missing: cargo build --release"
        )
    if who in PYTHON_PEERS:
        part = {"torch": "diffusers", "onnxruntime": "onnx"}.get(who, "openvino")
        if options.python is None or options.peers is None:
            return "--python and --peers are not given"
        if not (options.peers / part).is_dir():
            return f"{options.peers / part} is missing: scripts/bench_peer.py export writes it"
        module = "optimum.onnxruntime" if who == "onnxruntime" else part
        found = subprocess.run(
            [options.python, "-c", f"import {module}"],
            capture_output=True,
            text=True,
            check=False,
        )
        return (
            None
            if found.returncode == 0
            else f"{options.python} cannot import {module}"
        )
    if options.embedded:
        return "stable-diffusion.cpp knows the widths of the published models only"
    if options.sd_server is None:
        return "--sd-server is not given"
    return None if options.sd_server.is_file() else f"{options.sd_server} is missing"


def median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def table(found: list[Measured]) -> str:
    """Markdown: a row for each program, ratios of this server to it."""
    names = list(dict.fromkeys(one.who for one in found))
    sizes = list(dict.fromkeys(one.size for one in found))
    columns: list[tuple[str, dict[str, float | None], float]] = []
    for size in sizes:
        at = [one for one in found if one.size == size]
        steps = {
            who: median([s for one in at if one.who == who for s in one.step_s])
            for who in names
        }
        pictures = {
            who: median([s for one in at if one.who == who for s in one.picture_s])
            for who in names
        }
        count = at[0].steps
        columns += [
            (f"Step {size}, s", steps, 1),
            (f"Picture {size}, {count} steps, s", pictures, 1),
        ]
    for title, field, unit in (
        ("Start to first step, s", "start_to_step_s", 1),
        ("Start to first picture, s", "start_to_picture_s", 1),
        ("Peak memory, GiB", "peak_mib", 1024),
    ):
        told = {
            who: [getattr(o, field) for o in found if o.who == who] for who in names
        }
        medians = {
            who: median([v for v in told[who] if v is not None]) for who in names
        }
        columns.append((title, medians, unit))
    lines = [
        "| | " + " | ".join(title for title, _, _ in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for who in names:
        cells = []
        for _, values, unit in columns:
            value, ours = values[who], values.get(US)
            if value is None:
                cells.append("–")
                continue
            shown = f"{value / unit:.3g}"
            cells.append(
                shown
                if who == US or not ours
                else f"{shown} (ratio {ours / value:.2f})"
            )
        lines.append(f"| {who} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def processor() -> str:
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text()
        name = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
        units = sorted(
            set(
                re.findall(
                    r"\b(avx2|avx512f|avx512_bf16|avx512_fp16|amx_bf16|amx_fp16)\b",
                    text,
                )
            )
        )
        return f"{name[1] if name else platform.machine()} ({', '.join(units)})"
    return platform.processor() or platform.machine()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "checkpoint",
        nargs="?",
        type=Path,
        help="an SD 2.x .safetensors that predicts v",
    )
    parser.add_argument(
        "--embedded",
        action="store_true",
        help="the embedded model instead of a checkpoint",
    )
    parser.add_argument(
        "--binary", type=Path, default=ROOT / "target/release/ancestral"
    )
    parser.add_argument("--peers", type=Path, help="folder of the exports")
    parser.add_argument(
        "--python", type=Path, help="the Python that has the packages of bench_peer.py"
    )
    parser.add_argument("--sd-server", type=Path)
    parser.add_argument(
        "--only", nargs="+", choices=(US, *PYTHON_PEERS, *SD_CPP), help="these programs"
    )
    parser.add_argument("--sizes", nargs="+", default=["512x512", "640x896"])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument(
        "--pictures", type=int, default=2, help="of the first size, in each round"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--record",
        type=Path,
        help="a file of lines to which every measurement is added as it is made",
    )
    parser.add_argument(
        "--report", nargs="+", type=Path, help="only print the table of such files"
    )
    words, flags = before_flags(sys.argv[1:])
    options = parser.parse_args(words)
    options.flags = flags
    if options.report:
        print(
            table(
                [
                    Measured(**json.loads(line))
                    for path in options.report
                    for line in path.open()
                ]
            )
        )
        return 0
    if options.embedded == (options.checkpoint is not None) or not (
        options.embedded or options.checkpoint.is_file()
    ):
        print("name a checkpoint that exists, or give --embedded", file=sys.stderr)
        return 1
    options.binary = options.binary.resolve()
    programs = []
    for who in options.only or (US, *PYTHON_PEERS, *SD_CPP):
        why = missing(who, options)
        if why is None:
            programs.append(who)
        else:
            print(f"left out: {who}: {why}", file=sys.stderr)
    if not programs:
        return 1
    model = "embedded" if options.embedded else options.checkpoint.name
    print(
        f"{model}, {platform.system()}, {os.cpu_count()} cores: {processor()}",
        flush=True,
    )
    found: list[Measured] = []
    for round_index in range(options.rounds):
        for who in programs:
            try:
                measured = measure(who, model, options)
            except RuntimeError as error:
                print(error, file=sys.stderr)
                return 1
            found += measured
            lines = [json.dumps(asdict(one)) for one in measured]
            print(
                f"round {round_index + 1}: " + "\n         ".join(lines),
                file=sys.stderr,
                flush=True,
            )
            if options.record:
                with options.record.open("a") as file:
                    file.writelines(line + "\n" for line in lines)
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
