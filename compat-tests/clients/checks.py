"""What the scripts beside this one share: their command line, their report, a test picture.

Each script drives one unmodified client against a started server and prints one line a check, `ok NAME` or
`FAIL NAME: why`. With `--login user:password` only the checks of a server with `--api-auth` run.
"""

import argparse
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

PROMPT = "a red cube on a table, (blue sky:1.2)"
NEGATIVE = "blurry, lowres"


def expect(condition: object, what: object) -> None:
    if not condition:
        raise AssertionError(what)


def expect_equal(got: object, want: object, what: str) -> None:
    expect(got == want, f"{what}: {got!r}, not {want!r}")


def expect_error(act: Callable[[], object], *texts: str) -> None:
    """The client has to raise, and what it raises has to say these texts."""
    try:
        act()
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        for text in texts:
            expect(text in said, f"the error does not say {text!r}: {said[:300]}")
        return
    raise AssertionError("the client takes it")


def picture(size: tuple[int, int] = (64, 64)) -> Image.Image:
    """A blue ground with an orange square in its upper left quarter."""
    image = Image.new("RGB", size, "steelblue")
    image.paste("orange", (size[0] // 8, size[1] // 8, size[0] // 2, size[1] // 2))
    return image


def mask(size: tuple[int, int] = (64, 64)) -> Image.Image:
    """White where the picture is to be painted again: its middle."""
    image = Image.new("L", size, 0)
    image.paste(255, (size[0] // 4, size[1] // 4, size[0] * 3 // 4, size[1] * 3 // 4))
    return image


def arguments() -> argparse.Namespace:
    """`base`, the server's address; `login`, user and password where it asks for them; the rest see below."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--base", default="http://127.0.0.1:7860")
    parser.add_argument("--login", help="user:password; runs the checks of a server with --api-auth")
    parser.add_argument("--package", type=Path, help="where the files of a package lie that is not installed")
    parser.add_argument("--data", type=Path, help="the server's data folder")
    parser.add_argument("--server", type=Path, help="the built binary")
    given = parser.parse_args()
    given.base = given.base.rstrip("/")
    given.login = tuple(given.login.split(":", 1)) if given.login else None
    return given


def run(checks: Sequence[Callable[..., None]], *client: object) -> int:
    """Runs every check with the client; the exit status."""
    failed = 0
    for check in checks:
        try:
            check(*client)
            print(f"ok {check.__name__}", flush=True)
        except Exception as error:
            failed += 1
            why = str(error) or traceback.format_exc(limit=-1)
            print(f"FAIL {check.__name__}: {type(error).__name__}: {' '.join(why.split())[:300]}", flush=True)
    return 1 if failed else 0
