"""A server process on a free port, for scripts that put it under load or kill it."""

import http.client
import json
import re
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

START_LIMIT_S = 60.0
STEP_CLOCK = re.compile(r"^ancestral_step_seconds_(count|sum) (\S+)$", re.MULTILINE)


def memory_mib(pid: int, kind: str = "VmRSS") -> float | None:
    """The memory of a process in MiB: now (VmRSS) or at most so far (VmHWM). None where the system does not tell."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    for line in status.splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) / 1024
    return None


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def call(port: int, method: str, path: str, body: object = None, timeout: float = 300.0) -> tuple[int, bytes]:
    """Status and body of the answer to one request over its own connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def step_clock(metrics: str) -> tuple[int, float]:
    """Sampling steps so far and their seconds, from what `/metrics` answers."""
    found = dict(STEP_CLOCK.findall(metrics))
    return int(found["count"]), float(found["sum"])


def before_flags(words: list[str]) -> tuple[list[str], list[str]]:
    """A script's own words and those behind --, which go to the server.

    argparse's versions differ in how positional arguments and -- go together.
    """
    end = words.index("--") if "--" in words else len(words)
    return words[:end], words[end + 1 :]


class ServerProcess:
    """Starts the server over a data folder and waits until it is ready."""

    def __init__(self, binary: Path, data: Path, *flags: str) -> None:
        self.binary, self.data, self.flags = binary, data, flags
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts the process.

        Raises RuntimeError when it ends or is not ready within a minute; then none is left running.
        """
        try:
            self._start()
        except BaseException:
            self.kill()
            raise

    def _start(self) -> None:
        log = (self.data / "server.log").open("ab")
        self.process = subprocess.Popen(
            [self.binary, "--port", str(self.port), "--data-dir", self.data / "data", *self.flags],
            stdout=log,
            stderr=log,
        )
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}; see {self.data / 'server.log'}")
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
                connection.request("GET", "/readyz")
                if connection.getresponse().status == 200:
                    return
            except OSError:
                pass
            time.sleep(0.02)
        raise RuntimeError("the server is not ready after a minute")

    def kill(self) -> None:
        """SIGKILL: the process has no chance to tidy up."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def resident_mib(self) -> float:
        """The memory of the process in MiB (Linux)."""
        assert self.process is not None
        return memory_mib(self.process.pid) or 0.0

    def __enter__(self) -> "ServerProcess":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
