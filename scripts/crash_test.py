#!/usr/bin/env python3
"""Kills the server at random moments and counts what gets lost.

    scripts/crash_test.py --server target/release/ancestral --kills 100

Jobs are submitted to /v1/jobs while the process is killed with SIGKILL and started again. At the end every job that was
promised (202) must be done with a whole picture or say that each of its attempts was killed, every start must have succeeded, and no half-written file may lie in
the data folder. Needs nothing beside Python.
"""

import argparse
import base64
import http.client
import json
import random
import sys
import tempfile
import time
from pathlib import Path

from server_process import ServerProcess, call

PNG_END = b"IEND\xaeB`\x82"
DRAIN_LIMIT_S = 600.0


def submit(port: int, number: int) -> str | None:
    """The path of a promised job; None where the promise did not arrive."""
    body = {
        "prompt": "a red heart",
        "seed": number,
        "steps": 2,
        "width": 128,
        "height": 128,
        "force_task_id": f"crash-{number}",
        "save_images": True,
    }
    try:
        status, data = call(port, "POST", "/v1/jobs/txt2img", body, timeout=30)
    except (OSError, http.client.HTTPException):
        return None
    return json.loads(data)["links"]["self"] if status == 202 else None


def faults_of(port: int, promised: list[str], data: Path) -> tuple[list[str], int]:
    """What went wrong with the promised jobs and the files, and how many jobs were given up with that reason."""
    faults = []
    given_up = 0
    deadline = time.monotonic() + DRAIN_LIMIT_S
    for job in promised:
        while True:
            status, answer = call(port, "GET", job, timeout=30)
            state = json.loads(answer).get("state") if status == 200 else None
            if state not in ("queued", "running") or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        if state == "failed" and b"times while this job ran" in answer:
            given_up += 1
            continue
        if state != "done":
            faults.append(f"{job} is {state} ({status}): {answer[:200]!r}")
            continue
        status, answer = call(port, "GET", f"{job}/result", timeout=30)
        if status != 200 or not base64.b64decode(json.loads(answer)["images"][0]).endswith(PNG_END):
            faults.append(f"the result of {job} is not whole")
    for path in data.rglob("*"):
        if path.suffix == ".png" and not path.read_bytes().endswith(PNG_END):
            faults.append(f"{path} is half a picture")
        if path.suffix in (".json",) and path.is_file():
            try:
                json.loads(path.read_text().splitlines()[0])
            except (ValueError, IndexError):
                faults.append(f"{path} is half a file")
    return faults, given_up


def main() -> int:
    """Runs the kills and prints the verdict; status 1 after any fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True, type=Path)
    parser.add_argument("--kills", type=int, default=100)
    options = parser.parse_args()
    rng = random.Random(0)
    promised: list[str] = []
    number = 0
    with tempfile.TemporaryDirectory() as folder:
        server = ServerProcess(options.server, Path(folder), "--skip-load-model-at-start")
        for kill in range(options.kills):
            server.start()
            until = time.monotonic() + rng.uniform(0.0, 1.0)
            while time.monotonic() < until:
                if rng.random() < 0.3:
                    job = submit(server.port, number)
                    number += 1
                    if job:
                        promised.append(job)
                time.sleep(rng.uniform(0.0, 0.1))
            server.kill()
            print(f"\rkill {kill + 1} of {options.kills}, {len(promised)} jobs promised", end="", flush=True)
        print()
        server.start()
        faults, given_up = faults_of(server.port, promised, Path(folder))
        server.kill()
    for text in faults[:20]:
        print(f"fault: {text}")
    print(
        f"{options.kills} kills, {len(promised)} jobs promised, {given_up} given up because each of their attempts was "
        f"killed, {len(faults)} faults"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
