#!/usr/bin/env python3
"""Draws with several clients at once and one after another, and compares time and pictures.

    scripts/bench_concurrent.py --server target/release/ancestral --clients 8 --size 512 --steps 20

One server with --max-concurrent-jobs CLIENTS over an empty data folder (the embedded model), or over --data. Printed, as
medians of --rounds: seconds of all pictures one after another and all at once, their ratio, whether every picture is
the same to the byte, and the 99th percentile of GET /sdapi/v1/progress and /sdapi/v1/options while all are drawn at
once. The exit status is 1 where pictures differ. Needs nothing beside Python.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from latency import poll, print_latencies
from server_process import ServerProcess, call

PROMPTS = (
    "a red heart",
    "a blue star",
    "a green tree",
    "a yellow sun",
    "a house",
    "a fish",
    "a boat",
    "a cat",
)
POLLED = ("/sdapi/v1/progress", "/sdapi/v1/options")


def draw(port: int, body: dict) -> list[str]:
    """The pictures of one request.

    Raises RuntimeError when the server does not answer with pictures.
    """
    status, text = call(port, "POST", "/sdapi/v1/txt2img", body, timeout=3600)
    if status != 200:
        raise RuntimeError(f"txt2img answered {status}: {text[:300]!r}")
    return json.loads(text)["images"]


def main() -> int:
    """Runs the rounds and prints the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--server", required=True, type=Path)
    parser.add_argument(
        "--data", type=Path, help="a folder in A1111's layout; default: an empty one"
    )
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--flag",
        action="append",
        default=[],
        help="one more flag of the server, as --flag=--threads=2",
    )
    options = parser.parse_args()
    bodies = [
        {
            "prompt": PROMPTS[number % len(PROMPTS)],
            "seed": number,
            "steps": options.steps,
            "width": options.size,
            "height": options.size,
            "sampler_name": "Euler a",
        }
        for number in range(options.clients)
    ]
    alone_s, together_s, equal = [], [], True
    latencies: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        if options.data:
            shutil.copytree(options.data, Path(folder) / "data")
        flags = [f"--max-concurrent-jobs={options.clients}", *options.flag]
        with (
            ServerProcess(options.server, Path(folder), *flags) as server,
            ThreadPoolExecutor(options.clients + 1) as pool,
        ):
            draw(server.port, bodies[0])
            for _ in range(options.rounds):
                begin = time.perf_counter()
                alone = [draw(server.port, body) for body in bodies]
                alone_s.append(time.perf_counter() - begin)
                over = threading.Event()
                polling = pool.submit(poll, server.port, POLLED, over)
                begin = time.perf_counter()
                try:
                    together = list(
                        pool.map(lambda body: draw(server.port, body), bodies)
                    )
                finally:
                    over.set()
                together_s.append(time.perf_counter() - begin)
                equal = equal and alone == together
                for path, times in polling.result().items():
                    latencies[path] += times
    one, other = statistics.median(alone_s), statistics.median(together_s)
    print(
        f"{options.clients} pictures of {options.size}x{options.size} at {options.steps} steps, medians of {options.rounds}"
    )
    print(
        f"one after another {one:.2f} s, all at once {other:.2f} s: ratio {other / one:.3f}"
    )
    print("pictures " + ("identical" if equal else "DIFFER"))
    print_latencies(latencies)
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
