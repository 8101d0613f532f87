"""Starts the server over the tiny golden checkpoints and lets real clients and recorded client traffic at it.

    python compat-tests/run.py --server target/debug/ancestral
    python compat-tests/run.py --server target/debug/ancestral --only rust webuiapi

Besides .venv it installs what the clients need, see provision.py, into `compat-clients` beside the folder of the
server. What is known to fail stands under `[[client]]` in known-differences.toml; a listed check that passes fails the
run as well as an unlisted one that does not. scripts/test runs this in .venv.
"""

import argparse
import contextlib
import http.client
import os
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
from collections.abc import Callable, Iterator
from pathlib import Path

import provision

HERE = Path(__file__).resolve().parent
MODELS = HERE / "golden" / "models"
LOGIN = "user:pass"
PYTHON_CLIENTS = ["webuiapi", "sd_backend_client", "aaa1111", "image_generation_mcp"]
NODE_CLIENTS = ["stable_diffusion_api", "node_sd_webui", "modelfusion"]
# Those that have checks of their own for a server that asks for a login.
WITH_LOGIN = ["webuiapi", "sd_backend_client", "open_webui", "stable_diffusion_api", "modelfusion", "rust"]


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
def started(
    server: Path, data: Path, *flags: str, environment: dict[str, str] | None = None
) -> Iterator[tuple[str, subprocess.Popen]]:
    """The address and the process of a server that answers; what is left of it afterwards is killed."""
    port = free_port()
    checkpoint = data / "models" / "Stable-diffusion" / "tiny-sd2-v.safetensors"
    command = [str(server), "--api", "--use-cpu", "all", "--data-dir", str(data), "--ckpt", str(checkpoint)]
    command += ["--port", str(port), "--cors-allow-origins", "*", *flags]
    log = data / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, cwd=data, env={**os.environ, **(environment or {})}
        )
    base = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while not answers(base):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the server does not come up; its log says:\n{log.read_text()[-3000:]}")
            time.sleep(0.05)
        yield base, process
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def running(server: Path, data: Path, *flags: str) -> Iterator[str]:
    """The server's address while it runs; it has to end by itself, with status 0, when it is told to."""
    with started(server, data, *flags) as (base, process):
        yield base
        process.send_signal(signal.SIGTERM)
        status = process.wait(timeout=30)
        if status != 0:
            log = (data / "server.log").read_text()
            raise SystemExit(f"the server ended with status {status} after SIGTERM:\n{log[-3000:]}")


def answers(base: str) -> bool:
    try:
        urllib.request.urlopen(f"{base}/sdapi/v1/options", timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def client_commands(work: Path, only: list[str] | None) -> dict[str, list[str]]:
    """How each client's checks are run; installs what they need."""
    clients = HERE / "clients"
    commands = {name: [sys.executable, str(clients / f"{name}_client.py")] for name in PYTHON_CLIENTS}
    commands["metadata_readers"] = [sys.executable, str(clients / "metadata_readers.py")]

    def wanted(name: str) -> bool:
        return only is None or name in only

    if wanted("open_webui"):
        package = provision.open_webui(work)
        script = clients / "open_webui_client.py"
        commands["open_webui"] = [sys.executable, str(script), "--package", str(package)]
    if any(map(wanted, NODE_CLIENTS)):
        os.environ["NODE_PATH"] = str(provision.node_packages(work))
        for name in NODE_CLIENTS:
            commands[name] = [str(provision.node()), str(clients / "node" / f"{name}_client.cjs")]
    if wanted("rust"):
        commands["rust"] = [str(provision.rust_client(work))]
    return {name: command for name, command in commands.items() if wanted(name)}


def run_client(name: str, command: list[str]) -> dict[str, str | None]:
    """Every check of one client by name, with why it failed or None."""
    lines = subprocess.run(command, capture_output=True, text=True, timeout=600)
    found = re.findall(r"^(ok|FAIL) (\w+)(?:: (.*))?$", lines.stdout, re.MULTILINE)
    if not found or (lines.returncode != 0 and all(state == "ok" for state, _, _ in found)):
        raise SystemExit(f"{name} does not run:\n{lines.stdout}{lines.stderr}")
    return {f"{name}/{check}": why if state == "FAIL" else None for state, check, why in found}


def run_traces(base: str) -> dict[str, str | None]:
    """Every recorded request by trace and number, with why it failed or None."""
    command = [sys.executable, str(HERE / "client-traces" / "replay.py"), "--base", base, "--cors", "-v"]
    lines = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    found = re.findall(r"^(PASS|FAIL) \[(\w+#\d+)\] (.*)$", lines.stdout, re.MULTILINE)
    if not found:
        raise SystemExit(f"replay.py does not run:\n{lines.stdout}{lines.stderr}")
    return {f"trace/{name}": rest if state == "FAIL" else None for state, name, rest in found}


def run_openapi_fuzz(base: str) -> dict[str, str | None]:
    """Every operation of the server's document, with what is wrong with its answers or None."""
    command = [sys.executable, str(HERE / "openapi_fuzz.py"), "--base", base]
    return run_client("openapi", command)


def check_side_effects(base: str, data: Path) -> dict[str, str | None]:
    """What the routes that change something change."""
    command = [sys.executable, str(HERE / "clients" / "side_effects.py"), "--base", base, "--data", str(data)]
    return run_client("side_effects", command)


def check_exports(base: str, data: Path, server: Path) -> dict[str, str | None]:
    """What `ancestral export` writes, run by plain onnxruntime."""
    command = [sys.executable, str(HERE / "clients" / "plain_onnxruntime.py"), "--base", base, "--data", str(data)]
    return run_client("exports", [*command, "--server", str(server)])


def check_server_control(server: Path, data: Path) -> dict[str, str | None]:
    """The three routes that end the process, each on a server of its own."""
    outcome = {}
    for route, environment in (("server-stop", {}), ("server-kill", {}), ("server-restart", {"SD_WEBUI_RESTART": "tmp/restart"})):
        with started(server, data, "--api-server-stop", environment=environment) as (base, process):
            with contextlib.suppress(OSError, http.client.HTTPException):
                urllib.request.urlopen(f"{base}/sdapi/v1/{route}", data=b"", timeout=30).close()
            try:
                status = process.wait(timeout=30)
                why = None if status == 0 else f"the server ended with status {status}"
            except subprocess.TimeoutExpired:
                why = "the server goes on"
        outcome[f"control/{route}"] = why
    if not (data / "tmp" / "restart").is_file():
        outcome["control/server-restart"] = "tmp/restart was not written for the launcher"
    return outcome


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


def check_everything(server: Path, work: Path, only: list[str] | None) -> dict[str, str | None]:
    outcome: dict[str, str | None] = {}
    commands = client_commands(work, only)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        write_data_folder(data)
        with running(server, data) as base:
            for name, command in commands.items():
                outcome |= timed(name, lambda: run_client(name, [*command, "--base", base]))
            if only is None or "traces" in only:
                outcome |= timed("traces", lambda: run_traces(base))
            if only is None or "side_effects" in only:
                outcome |= timed("side_effects", lambda: check_side_effects(base, data))
            if only is None or "exports" in only:
                outcome |= timed("exports", lambda: check_exports(base, data, server))
            if only is None or "openapi" in only:
                outcome |= timed("openapi", lambda: run_openapi_fuzz(base))
        with running(server, data, "--api-auth", LOGIN) as base:
            for name in filter(commands.get, WITH_LOGIN):
                command = [*commands[name], "--base", base, "--login", LOGIN]
                outcome |= timed(f"{name}_login", lambda: run_client(f"{name}_login", command))
        if only is None or "control" in only:
            outcome |= timed("control", lambda: check_server_control(server, data))
    return outcome


def timed(name: str, checks: Callable[[], dict[str, str | None]]) -> dict[str, str | None]:
    begin = time.monotonic()
    outcome = checks()
    passed = sum(why is None for why in outcome.values())
    print(f"{name}: {passed} of {len(outcome)} checks pass ({time.monotonic() - begin:.1f} s)", flush=True)
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", type=Path, required=True, help="the built binary")
    parser.add_argument("--only", nargs="+", help="names of clients, or of traces, openapi, side_effects, exports, control; the ledger is not judged then")
    given = parser.parse_args()
    server = given.server.resolve()
    if not server.is_file():
        print(f"{server} is not built.", file=sys.stderr)
        return 1
    work = server.parent.parent / "compat-clients"
    outcome = check_everything(server, work, given.only)
    known = known_failures()
    if given.only:
        known = {name: why for name, why in known.items() if name in outcome}
    problems = judge(outcome, known)
    print("\n".join(problems))
    failing = sum(why is not None for why in outcome.values())
    print(f"clients: {len(outcome) - failing} of {len(outcome)} checks pass, {len(problems)} are wrong")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
