#!/usr/bin/env python3
"""Switches between checkpoints back and forth and tells what becomes of the memory.

    scripts/bench_switch.py --server target/release/ancestral --data DATA --checkpoints tiny-sd1 tiny-sd2-v tiny-sdxl

DATA is a folder in A1111's layout that has the checkpoints. Each round draws one small picture with every checkpoint in
turn. Printed: the time of a switch (a picture after a switch less a picture without one), and the resident memory after
the warm-up and at the end. The exit status is 1 where memory grew by more than 5 %. Links in DATA stay links, so that
large checkpoints are not copied; with --minutes it stops after the round in which that time is over. Needs nothing beside
Python.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from server_process import ServerProcess, call

GROWTH_LIMIT = 0.05
WARM_UP_ROUNDS = 5


def draw(port: int, checkpoint: str) -> float:
    """Seconds that one picture takes.

    Raises RuntimeError when the server does not answer with a picture.
    """
    body = {
        "prompt": "a lighthouse",
        "seed": 1,
        "steps": 2,
        "width": 64,
        "height": 64,
        "override_settings": {"sd_model_checkpoint": checkpoint},
        "override_settings_restore_afterwards": False,
    }
    begin = time.monotonic()
    status, text = call(port, "POST", "/sdapi/v1/txt2img", body, timeout=600)
    if status != 200 or not json.loads(text)["images"]:
        raise RuntimeError(f"{checkpoint}: {status} {text[:300]!r}")
    used = json.loads(json.loads(text)["info"])["sd_model_name"]
    if used != Path(checkpoint).stem:
        raise RuntimeError(f"{checkpoint} is not in the folder; the picture was drawn with {used}")
    return time.monotonic() - begin


def main() -> int:
    """Runs the rounds and prints the verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True, type=Path)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--checkpoints", required=True, nargs="+")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--warm-up", type=int, default=WARM_UP_ROUNDS, help="rounds before memory is first measured")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no new round after this time")
    parser.add_argument("--model-memory", help="GiB, so small that only one checkpoint fits", default="0.001")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(options.data, Path(folder) / "data", symlinks=True)
        with ServerProcess(options.server, Path(folder), "--model-memory", options.model_memory) as server:
            switched, stayed = [], []
            warm, rounds, begin = 0.0, 0, time.monotonic()
            while rounds < options.rounds and time.monotonic() - begin < options.minutes * 60:
                for checkpoint in options.checkpoints:
                    switched.append(draw(server.port, checkpoint))
                    stayed.append(draw(server.port, checkpoint))
                rounds += 1
                resident = server.resident_mib()
                print(f"round {rounds}: {resident:.0f} MiB", file=sys.stderr, flush=True)
                if rounds == options.warm_up:
                    warm = resident
            end = server.resident_mib()
    cost = statistics.median(switched) - statistics.median(stayed)
    growth = end / warm - 1 if warm else 0.0
    print(f"{rounds * len(options.checkpoints)} switches, {cost:.3f} s each (median)")
    print(f"memory after {options.warm_up} rounds {warm:.0f} MiB, at the end {end:.0f} MiB ({growth:+.1%})")
    return 1 if growth > GROWTH_LIMIT else 0


if __name__ == "__main__":
    sys.exit(main())
