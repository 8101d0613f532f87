#!/usr/bin/env python3
"""Leaves a server under load and counts what gets lost.

    scripts/soak.py --server target/release/ancestral --minutes 30 --clients 16
    scripts/soak.py --server target/release/ancestral --minutes 30 --clients 16 --concurrent-jobs 8

Every client sends requests one after another, some of them to leave early, to be cancelled by id, or to be wrong on
purpose. Checked: every picture is, to the byte, the one that its request gave before the load began, with nobody
beside it; no answer is lost or doubled, no status 5xx but 503 of a full queue, and the memory at the end is within 5 %
of the memory after the warm-up. With several jobs at once that is also: whom a job shares its steps with, and which of
them are cancelled, changes nothing. Needs nothing beside Python.
"""

import argparse
import base64
import hashlib
import http.client
import json
import random
import sys
import tempfile
import threading
import time
from pathlib import Path

from server_process import ServerProcess, call

WARM_UP_SHARE = 0.2
GROWTH_LIMIT = 0.05
# Sizes and samplers that meet in one run of the UNet, and one size that does not.
REQUESTS = [
    {"seed": seed, "width": 256, "height": 256, "steps": 3, **more}
    for seed, more in enumerate(
        [
            {"prompt": "a red heart", "sampler_name": "Euler a"},
            {"prompt": "a blue star", "sampler_name": "Euler"},
            {"prompt": "a green leaf", "sampler_name": "DPM++ 2M", "steps": 5},
            {"prompt": "a yellow sun", "sampler_name": "DPM++ 2M SDE", "cfg_scale": 12.5},
            {"prompt": "a house", "sampler_name": "DDIM", "negative_prompt": "red"},
            {"prompt": "a fish", "sampler_name": "UniPC", "n_iter": 2},
            {"prompt": "a boat", "sampler_name": "Euler a", "batch_size": 2},
            {"prompt": "a cat", "sampler_name": "Euler a", "width": 192},
        ]
    )
]


class Tally:
    """What happened, counted under one lock."""

    def __init__(self, alone: list[list[str]]) -> None:
        self.lock = threading.Lock()
        self.counts: dict[str, int] = {}
        self.alone = alone
        self.faults: list[str] = []

    def count(self, what: str) -> None:
        with self.lock:
            self.counts[what] = self.counts.get(what, 0) + 1

    def fault(self, text: str) -> None:
        with self.lock:
            self.faults.append(text)

    def compare(self, which: int, answer: bytes, what: str) -> None:
        """Counts an answer as right if its pictures are those that the request gave alone."""
        if digests(answer) == self.alone[which]:
            self.count(what)
        else:
            self.fault(f"other pictures than alone: {REQUESTS[which]}")


def digests(answer: bytes) -> list[str]:
    """A digest of every picture of an answer."""
    return [hashlib.sha256(base64.b64decode(image)).hexdigest() for image in json.loads(answer)["images"]]


def draw_alone(port: int) -> list[list[str]]:
    """The pictures of every request, one after another."""
    pictures = []
    for body in REQUESTS:
        status, data = call(port, "POST", "/sdapi/v1/txt2img", body)
        if status != 200:
            raise RuntimeError(f"txt2img answered {status}: {data[:200]!r}")
        pictures.append(digests(data))
    return pictures


def draw(port: int, rng: random.Random, tally: Tally) -> None:
    """Pictures, which must be those that the request gave alone."""
    which = rng.randrange(len(REQUESTS))
    status, data = call(port, "POST", "/sdapi/v1/txt2img", REQUESTS[which])
    if status == 503:
        tally.count("refused by the full queue")
    elif status != 200:
        tally.fault(f"txt2img answered {status}: {data[:200]!r}")
    else:
        tally.compare(which, data, "right answers")


def leave(port: int, tally: Tally) -> None:
    """Asks for a picture and closes the connection at once."""
    body = {"prompt": "a blue star", "steps": 3, "width": 256, "height": 256}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", "/sdapi/v1/txt2img", json.dumps(body), {"Content-Type": "application/json"})
    connection.close()
    tally.count("clients that left")


def submit(port: int, rng: random.Random, tally: Tally) -> None:
    """A kept job, which is cancelled half of the time and else fetched once."""
    which = rng.randrange(len(REQUESTS))
    status, data = call(port, "POST", "/v1/jobs/txt2img", REQUESTS[which])
    if status == 503:
        tally.count("refused by the full queue")
        return
    if status != 202:
        tally.fault(f"/v1/jobs answered {status}: {data[:200]!r}")
        return
    job = json.loads(data)["links"]["self"]
    cancelled = rng.random() < 0.5
    if cancelled:
        time.sleep(rng.random())
        call(port, "DELETE", job)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        view = json.loads(call(port, "GET", job)[1])
        if view["state"] in ("done", "failed", "cancelled"):
            break
        time.sleep(0.2)
    else:
        tally.fault(f"a submitted job never ended: {view}")
        return
    if view["state"] == "failed" or (view["state"] == "cancelled" and not cancelled):
        tally.fault(f"a submitted job ended as {view['state']}: {view.get('error')}")
    elif view["state"] == "cancelled":
        tally.count("kept jobs cancelled")
    else:
        status, data = call(port, "GET", f"{job}/result")
        if status == 200:
            tally.compare(which, data, "right results of kept jobs")
        else:
            tally.fault(f"the result of a job that is done was answered {status}")


def err(port: int, tally: Tally) -> None:
    """A request that must be refused."""
    status, data = call(port, "POST", "/sdapi/v1/txt2img", {"steps": "many"})
    if status != 422:
        tally.fault(f"a wrong request was answered {status}: {data[:200]!r}")
    tally.count("wrong requests")


def client(port: int, number: int, until: float, tally: Tally) -> None:
    """Sends requests until the time is over."""
    rng = random.Random(number)
    while time.monotonic() < until:
        choice = rng.random()
        try:
            if choice < 0.70:
                draw(port, rng, tally)
            elif choice < 0.80:
                submit(port, rng, tally)
            elif choice < 0.85:
                leave(port, tally)
            elif choice < 0.90:
                err(port, tally)
            else:
                status, _ = call(port, "GET", "/sdapi/v1/progress")
                if status != 200:
                    tally.fault(f"progress answered {status}")
                tally.count("polls")
        except (OSError, http.client.HTTPException) as error:
            tally.fault(f"an answer was lost: {error!r}")
            time.sleep(0.5)


def main() -> int:
    """Runs the load and prints the verdict; status 1 after any fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True, type=Path)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--concurrent-jobs", type=int, default=1, help="jobs that the server runs at once")
    options = parser.parse_args()
    flags = ["--max-concurrent-jobs", str(options.concurrent_jobs)]
    with tempfile.TemporaryDirectory() as data, ServerProcess(options.server, Path(data), *flags) as server:
        tally = Tally(draw_alone(server.port))
        begin = time.monotonic()
        until = begin + options.minutes * 60
        threads = [
            threading.Thread(target=client, args=(server.port, number, until, tally)) for number in range(options.clients)
        ]
        for thread in threads:
            thread.start()
        warm = None
        while time.monotonic() < until:
            time.sleep(min(5.0, max(0.1, until - time.monotonic())))
            if warm is None and time.monotonic() - begin > WARM_UP_SHARE * options.minutes * 60:
                warm = server.resident_mib()
        for thread in threads:
            thread.join()
        end = server.resident_mib()
    growth = end / warm - 1 if warm else 0.0
    if growth > GROWTH_LIMIT:
        tally.fault(f"memory grew by {growth:.1%} after the warm-up")
    print(json.dumps(tally.counts, indent=2))
    print(f"memory after the warm-up {warm:.0f} MiB, at the end {end:.0f} MiB ({growth:+.1%})")
    for text in tally.faults[:20]:
        print(f"fault: {text}")
    print(f"{len(tally.faults)} faults")
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.exit(main())
