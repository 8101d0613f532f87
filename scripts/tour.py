# /// script
# requires-python = ">=3.11"
# dependencies = ["pillow==13.0.0"]
# ///
"""Draws the README's pictures again: posts every request of docs/tour to a running server and writes docs/pictures.

A file docs/tour/NAME.json holds one step of the tour, or a list of them that go side by side: {"path": ..., "body": ...}. In a body,
"@NAME" in place of a picture stands for docs/pictures/NAME.png, a picture that goes into the request unchanged. What the server draws is
stored at SIDE pixels of its longer side.

Start the server with `scripts/serve --data-dir docs/tour/data`, which holds the LoRA, the embedding and the wildcard file.
"""

import argparse
import base64
import io
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).resolve().parent.parent / "docs"
SIDE, QUALITY = 256, 90


def filled(value: object) -> object:
    """a body with its pictures put in"""
    if isinstance(value, dict):
        return {k: filled(v) for k, v in value.items()}
    if isinstance(value, list):
        return [filled(v) for v in value]
    if isinstance(value, str) and value.startswith("@"):
        return base64.b64encode(
            (DOCS / "pictures" / f"{value[1:]}.png").read_bytes()
        ).decode()
    return value


def post(server: str, step: dict[str, object]) -> list[Image.Image]:
    """the pictures that the server answers, without a grid"""
    request = urllib.request.Request(
        server.rstrip("/") + step["path"],
        json.dumps(filled(step["body"])).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        got = json.load(answer)["images"]
    pictures = [Image.open(io.BytesIO(base64.b64decode(p))).convert("RGB") for p in got]
    count = step["body"].get("batch_size", 1) * step["body"].get("n_iter", 1)
    return pictures[-count:]


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--server", default="http://127.0.0.1:7860")
    ap.add_argument("--only", nargs="*", help="names of steps")
    a = ap.parse_args()
    (DOCS / "pictures").mkdir(exist_ok=True)
    for path in sorted((DOCS / "tour").glob("*.json")):
        if a.only and path.stem not in a.only:
            continue
        steps = json.loads(path.read_text(encoding="utf8"))
        pictures: list[Image.Image] = []
        try:
            for step in steps if isinstance(steps, list) else [steps]:
                pictures += post(a.server, step)
        except urllib.error.HTTPError as err:
            print(
                f"{path.name}: {err.code}, {err.read()[:300]!r}",
                file=sys.stderr,
            )
            return 1
        except urllib.error.URLError as err:
            print(f"{a.server} cannot be reached: {err.reason}", file=sys.stderr)
            return 1
        for p in pictures:
            p.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        wide = sum(p.width for p in pictures) + 4 * (len(pictures) - 1)
        row = Image.new("RGB", (wide, max(p.height for p in pictures)), "white")
        at = 0
        for p in pictures:
            row.paste(p, (at, 0))
            at += p.width + 4
        out = DOCS / "pictures" / f"{path.stem}.jpg"
        row.save(out, quality=QUALITY)
        print(f"{out.name}: {len(pictures)} pictures", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
