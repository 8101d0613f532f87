"""Starts the server over the tiny golden checkpoints and lets real clients and recorded client traffic at it.

    python compat-tests/run.py --server target/debug/ancestral

What is known to fail stands under `[[client]]` in known-differences.toml; a listed check that passes fails the
run as well as an unlisted one that does not. scripts/test runs this in .venv.
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["aiohttp==3.13.2", "numpy==2.3.5", "requests==2.32.5", "sd-parsers==0.6", "webuiapi==0.9.17"]
# ///

import argparse
import contextlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODELS = HERE / "golden" / "models"
CLIENTS = ["webuiapi_client.py", "metadata_readers.py"]


def write_data_folder(data: Path) -> None:
    """A1111's folder with every tiny checkpoint and the small files beside them."""
    build = [sys.executable, str(MODELS / "make_models.py"), str(data / "models"), "--no-onnx"]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    shutil.copytree(MODELS / "open_clip_model_configs", data / "models" / "open_clip_model_configs")
    shutil.copytree(MODELS / "Lora", data / "models" / "Lora")
    shutil.copytree(MODELS / "embeddings", data / "embeddings")
    shutil.copy(MODELS / "styles.csv", data / "styles.csv")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def running(server: Path, data: Path) -> Iterator[str]:
    """The server's address while it runs; it has to end by itself, with status 0, when it is told to."""
    port = free_port()
    checkpoint = data / "models" / "Stable-diffusion" / "tiny-sd2-v.safetensors"
    command = [str(server), "--api", "--use-cpu", "all", "--data-dir", str(data), "--ckpt", str(checkpoint)]
    command += ["--port", str(port), "--cors-allow-origins", "*"]
    log = data / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=data)
    base = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while not answers(base):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the server does not come up; its log says:\n{log.read_text()[-3000:]}")
            time.sleep(0.05)
        yield base
        process.send_signal(signal.SIGTERM)
        status = process.wait(timeout=30)
        if status != 0:
            raise SystemExit(f"the server ended with status {status} after SIGTERM:\n{log.read_text()[-3000:]}")
    finally:
        process.kill()
        process.wait()


def answers(base: str) -> bool:
    try:
        urllib.request.urlopen(f"{base}/sdapi/v1/options", timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def run_clients(base: str) -> dict[str, str | None]:
    """Every check by name, with why it failed or None."""
    outcome: dict[str, str | None] = {}
    for client in CLIENTS:
        command = [sys.executable, str(HERE / "clients" / client), "--base", base]
        lines = subprocess.run(command, capture_output=True, text=True, timeout=600)
        found = re.findall(r"^(ok|FAIL) (\w+)(?:: (.*))?$", lines.stdout, re.MULTILINE)
        if not found:
            raise SystemExit(f"{client} does not run:\n{lines.stdout}{lines.stderr}")
        for state, name, why in found:
            outcome[f"{Path(client).stem}/{name}"] = why if state == "FAIL" else None
    return outcome


def run_traces(base: str) -> dict[str, str | None]:
    """Every recorded request by trace and number, with why it failed or None."""
    command = [sys.executable, str(HERE / "client-traces" / "replay.py"), "--base", base, "--cors", "-v"]
    lines = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    found = re.findall(r"^(PASS|FAIL) \[(\w+#\d+)\] (.*)$", lines.stdout, re.MULTILINE)
    if not found:
        raise SystemExit(f"replay.py does not run:\n{lines.stdout}{lines.stderr}")
    return {f"trace/{name}": rest if state == "FAIL" else None for state, name, rest in found}


def known_failures() -> dict[str, str]:
    ledger = tomllib.loads((HERE / "known-differences.toml").read_text())
    return {
        check: f"{entry['reason']} (since {entry['since']})"
        for entry in ledger.get("client", [])
        for check in entry["checks"]
    }


def judge(outcome: dict[str, str | None], known: dict[str, str]) -> list[str]:
    problems = [f"the ledger names the check {name}, which does not exist" for name in known if name not in outcome]
    for name, why in outcome.items():
        if why is not None and name not in known:
            problems.append(f"FAILS: {name}: {why}")
        elif why is None and name in known:
            problems.append(f"PASSES though listed: {name} ({known[name]})")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", type=Path, required=True, help="the built binary")
    server = parser.parse_args().server.resolve()
    if not server.is_file():
        print(f"{server} is not built.", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        write_data_folder(data)
        with running(server, data) as base:
            outcome = run_clients(base) | run_traces(base)
    problems = judge(outcome, known_failures())
    print("\n".join(problems))
    failing = sum(why is not None for why in outcome.values())
    print(f"clients: {len(outcome) - failing} of {len(outcome)} checks pass, {len(problems)} are wrong")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
