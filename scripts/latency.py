"""How long small requests take while a server draws, for the scripts that measure it."""

import statistics
import threading
import time
from collections.abc import Iterable

from server_process import call

PAUSE_S = 0.02


def poll(port: int, paths: Iterable[str], over: threading.Event) -> dict[str, list[float]]:
    """Milliseconds of GET requests to the paths in turn, each over its own connection, until `over` is set.

    Raises RuntimeError when one is not answered with 200.
    """
    took: dict[str, list[float]] = {path: [] for path in paths}
    while not over.is_set():
        for path, times in took.items():
            begin = time.perf_counter()
            status, text = call(port, "GET", path)
            times.append((time.perf_counter() - begin) * 1000)
            if status != 200:
                raise RuntimeError(f"{path} answered {status}: {text[:300]!r}")
            time.sleep(PAUSE_S)
    return took


def print_latencies(took: dict[str, list[float]]) -> None:
    """A line a path; there have to be two requests of each or more."""
    for path, times in took.items():
        cuts = statistics.quantiles(times, n=100, method="inclusive")
        figures = f"median {cuts[49]:.2f} ms, 99th percentile {cuts[98]:.2f} ms, worst {max(times):.2f} ms"
        print(f"GET {path}: {figures} of {len(times)} requests", flush=True)
