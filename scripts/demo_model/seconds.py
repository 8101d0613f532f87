# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.4.6", "pillow==13.0.0"]
# ///
"""Times the pictures of a running server, from the request to its answer: the first, and the median of those after it."""

import argparse
import statistics
import sys
import time

from client import Client


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--server", default="http://127.0.0.1:7860")
    ap.add_argument("--prompt", default="a red apple on a blue background")
    ap.add_argument("--width", type=int, default=512)
    ap.add_argument("--height", type=int, default=512)
    ap.add_argument("--steps", type=int, default=20)
    ap.add_argument("--cfg", type=float, default=6.0)
    ap.add_argument("--times", type=int, default=7, help="pictures after the first")
    a = ap.parse_args()
    if a.times < 1:
        ap.error("--times must be at least 1")
    client = Client(a.server, a.width, a.height, a.steps, a.cfg)
    took = []
    for seed in range(a.times + 1):
        t0 = time.perf_counter()
        client.png(a.prompt, seed)
        took.append(time.perf_counter() - t0)
    first, rest = took[0], took[1:]
    print(
        f"{a.width}x{a.height}, {a.steps} steps, Euler a, CFG {a.cfg}: first {first:.2f} s, "
        f"then {statistics.median(rest):.2f} s (median of {a.times}; {min(rest):.2f} to {max(rest):.2f})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
