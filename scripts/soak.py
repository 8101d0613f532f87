#!/usr/bin/env python3
"""Leaves a server under load and counts what gets lost.

    scripts/soak.py --server target/release/ancestral --minutes 30 --clients 16

Every client sends txt2img requests one after another, some of them to leave early, to be interrupted by id, or to
be wrong on purpose. Checked: every answer belongs to its request, none is lost or doubled, no status 5xx but 503 of a
full queue, and the memory at the end is within 5 % of the memory after the warm-up. Needs nothing beside Python.
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
SEEDS = 8


class Tally:
    """What happened, counted under one lock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.counts: dict[str, int] = {}
        self.pictures: dict[int, set[str]] = {}
        self.faults: list[str] = []

    def count(self, what: str) -> None:
        with self.lock:
            self.counts[what] = self.counts.get(what, 0) + 1

    def fault(self, text: str) -> None:
        with self.lock:
            self.faults.append(text)

    def picture(self, seed: int, digest: str) -> None:
        with self.lock:
            self.pictures.setdefault(seed, set()).add(digest)


def draw(port: int, rng: random.Random, tally: Tally) -> None:
    """A picture; the same seed must always give the same one."""
    seed = rng.randrange(SEEDS)
    body = {"prompt": "a red heart", "seed": seed, "steps": 3, "width": 256, "height": 256, "sampler_name": "Euler a"}
    status, data = call(port, "POST", "/sdapi/v1/txt2img", body)
    if status == 503:
        tally.count("refused by the full queue")
        return
    if status != 200:
        tally.fault(f"txt2img answered {status}: {data[:200]!r}")
        return
    answer = json.loads(data)
    if json.loads(answer["info"])["seed"] != seed or len(answer["images"]) != 1:
        tally.fault("an answer belongs to another request")
        return
    tally.picture(seed, hashlib.sha256(base64.b64decode(answer["images"][0])).hexdigest())
    tally.count("pictures")


def leave(port: int, tally: Tally) -> None:
    """Asks for a picture and closes the connection at once."""
    body = {"prompt": "a blue star", "steps": 3, "width": 256, "height": 256}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", "/sdapi/v1/txt2img", json.dumps(body), {"Content-Type": "application/json"})
    connection.close()
    tally.count("clients that left")


def submit(port: int, rng: random.Random, tally: Tally) -> None:
    """A kept job, which is cancelled half of the time and else fetched once."""
    body = {"prompt": "a green leaf", "seed": 1, "steps": 3, "width": 256, "height": 256}
    status, data = call(port, "POST", "/v1/jobs/txt2img", body)
    if status == 503:
        tally.count("refused by the full queue")
        return
    if status != 202:
        tally.fault(f"/v1/jobs answered {status}: {data[:200]!r}")
        return
    job = json.loads(data)["links"]["self"]
    cancelled = rng.random() < 0.5
    if cancelled:
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
    elif view["state"] == "done" and call(port, "GET", f"{job}/result")[0] != 200:
        tally.fault("the result of a job that is done is not there")
    else:
        tally.count(f"kept jobs {view['state']}")


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
    options = parser.parse_args()
    tally = Tally()
    with tempfile.TemporaryDirectory() as data, ServerProcess(options.server, Path(data)) as server:
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
    for seed, digests in tally.pictures.items():
        if len(digests) > 1:
            tally.fault(f"seed {seed} gave {len(digests)} different pictures")
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
