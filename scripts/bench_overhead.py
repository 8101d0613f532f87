#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = []
# ///
"""What the server adds to its graphs, and how its costs grow.

overhead  the share of a picture's time in which no graph runs, by the counters of GET /metrics
start     start to the first answer and to the first picture, memory when idle, size of the binary
growth    time of a picture by steps and by pixels, with the line through the first and the last
memory    resident memory over many small pictures
latency   GET progress and options while clients draw

The embedded model is drawn with unless --checkpoint names another. --data keeps the data folder.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

from latency import poll, print_latencies
from server_process import ServerProcess, call

GRAPH_SECONDS = re.compile(
    rb'^ancestral_graph_run_seconds_total\{graph="([^"]+)"\} (\S+)$', re.MULTILINE
)
LATENCY_PATHS = (
    "/sdapi/v1/progress?skip_current_image=true",
    "/sdapi/v1/progress",
    "/sdapi/v1/options",
)


def draw(server: ServerProcess, **changes: object) -> float:
    """Seconds of one request."""
    body = {
        "prompt": "a red apple",
        "steps": 20,
        "width": 512,
        "height": 512,
        "cfg_scale": 6,
        "seed": 1,
    }
    begin = time.perf_counter()
    status, answer = call(
        server.port, "POST", "/sdapi/v1/txt2img", body | changes, timeout=3600.0
    )
    took = time.perf_counter() - begin
    if status != 200:
        raise RuntimeError(f"{status}: {answer[:300]!r}")
    return took


def graph_seconds(server: ServerProcess) -> dict[str, float]:
    _, text = call(server.port, "GET", "/metrics")
    return {name.decode(): float(value) for name, value in GRAPH_SECONDS.findall(text)}


def overhead(server: ServerProcess, arguments: argparse.Namespace) -> None:
    size = {"width": arguments.size, "height": arguments.size, "steps": arguments.steps}
    draw(server, **size)
    shares = []
    for picture in range(arguments.pictures):
        before = graph_seconds(server)
        # The prompt is a new one each time, so that the text encoder runs too.
        wall = draw(
            server, prompt=f"a red apple, number {picture}", seed=picture, **size
        )
        graphs = {
            name: value - before.get(name, 0.0)
            for name, value in graph_seconds(server).items()
        }
        outside = wall - sum(graphs.values())
        shares.append(outside / wall)
        parts = ", ".join(
            f"{name} {seconds * 1e3:.1f} ms"
            for name, seconds in graphs.items()
            if seconds > 0
        )
        print(
            f"picture {wall * 1e3:.1f} ms: {parts}; outside of graphs {outside * 1e3:.1f} ms, {outside / wall:.2%}"
        )
    print(f"median share outside of graphs: {statistics.median(shares):.2%}")


def start(arguments: argparse.Namespace, data: Path) -> None:
    answers, pictures, idle = [], [], []
    for _ in range(arguments.pictures):
        server = prepared(arguments, data)
        begin = time.perf_counter()
        watcher = threading.Thread(
            target=first_answer, args=(server.port, begin, answers)
        )
        watcher.start()
        with server:
            draw(server)
            pictures.append(time.perf_counter() - begin)
            watcher.join()
            # Two seconds after the last job it gives back what graphs worked in.
            time.sleep(5)
            idle.append(server.resident_mib())
        with prepared(arguments, data) as server:
            time.sleep(1)
            idle.append(server.resident_mib())
    print(f"start to the first answer, median: {statistics.median(answers):.2f} s")
    print(
        f"start to the first picture (512x512, 20 steps), median: {statistics.median(pictures):.2f} s"
    )
    print(
        f"resident when idle: {min(idle[1::2]):.0f} MiB after the start, {min(idle[::2]):.0f} MiB after a picture"
    )
    print(f"binary: {arguments.binary.stat().st_size / 2**20:.1f} MiB")


def first_answer(port: int, begin: float, answers: list[float]) -> None:
    while True:
        try:
            call(port, "GET", "/sdapi/v1/options", timeout=10.0)
            answers.append(time.perf_counter() - begin)
            return
        except OSError:
            time.sleep(0.005)


def growth(server: ServerProcess, arguments: argparse.Namespace) -> None:
    draw(server, steps=2)
    by_steps = {}
    for steps in (5, 10, 20, 40, 80):
        by_steps[steps] = statistics.median(
            draw(server, steps=steps) for _ in range(arguments.pictures)
        )
    print_line("steps at 512x512", by_steps)
    by_pixels = {}
    for side in (256, 384, 512, 640, 768, 1024):
        draw(server, width=side, height=side, steps=1)
        seconds = (
            draw(server, width=side, height=side, steps=10)
            for _ in range(arguments.pictures)
        )
        by_pixels[side * side] = statistics.median(seconds)
    print_line("pixels at 10 steps", by_pixels)


def print_line(what: str, seconds: dict[int, float]) -> None:
    sizes = sorted(seconds)
    slope = (seconds[sizes[-1]] - seconds[sizes[0]]) / (sizes[-1] - sizes[0])
    print(f"{what}: {slope * 1e6:.3f} microseconds for each more")
    for size in sizes:
        line = seconds[sizes[0]] + slope * (size - sizes[0])
        print(
            f"  {size:>8}  {seconds[size] * 1e3:8.1f} ms  {seconds[size] / line - 1:+.1%} from the line"
        )


def memory(server: ServerProcess, arguments: argparse.Namespace) -> None:
    every = max(1, arguments.pictures // 10)
    for picture in range(1, arguments.pictures + 1):
        draw(
            server,
            width=64,
            height=64,
            steps=1,
            seed=picture,
            prompt=f"picture {picture}",
        )
        if picture % every == 0:
            print(
                f"after {picture:>5} pictures: {server.resident_mib():.1f} MiB",
                flush=True,
            )


def latency(server: ServerProcess, arguments: argparse.Namespace) -> None:
    draw(server)
    stop = threading.Event()
    drawn: list[float] = []

    def client(seed: int) -> None:
        while not stop.is_set():
            drawn.append(draw(server, seed=seed, steps=arguments.steps))

    clients = [
        threading.Thread(target=client, args=(seed,))
        for seed in range(arguments.clients)
    ]
    for thread in clients:
        thread.start()
    time.sleep(1)
    timer = threading.Timer(arguments.seconds, stop.set)
    timer.start()
    try:
        print_latencies(poll(server.port, LATENCY_PATHS, stop))
    finally:
        timer.cancel()
        stop.set()
    for thread in clients:
        thread.join()
    print(f"{len(drawn)} pictures by {arguments.clients} clients meanwhile")


def prepared(arguments: argparse.Namespace, data: Path) -> ServerProcess:
    flags = ["--ckpt", str(arguments.checkpoint)] if arguments.checkpoint else []
    return ServerProcess(arguments.binary, data, *flags, *arguments.flag)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what", choices=["overhead", "start", "growth", "memory", "latency"]
    )
    parser.add_argument("--binary", type=Path, default=Path("target/release/ancestral"))
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument(
        "--pictures",
        type=int,
        default=5,
        help="pictures of each kind; starts with start",
    )
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument(
        "--flag",
        action="append",
        default=[],
        help="a further flag of the server, as --flag=--threads=1",
    )
    arguments = parser.parse_args()
    arguments.binary = arguments.binary.resolve()
    print(json.dumps({"binary": arguments.binary.name, "what": arguments.what}))
    with tempfile.TemporaryDirectory() as folder:
        data = arguments.data or Path(folder)
        data.mkdir(parents=True, exist_ok=True)
        if arguments.what == "start":
            start(arguments, data)
            return 0
        with prepared(arguments, data) as server:
            {
                "overhead": overhead,
                "growth": growth,
                "memory": memory,
                "latency": latency,
            }[arguments.what](server, arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
