# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.4.6", "pillow==13.0.0"]
# ///
"""Draws a contact sheet with a running server: fixed prompts, seeds 0, 1 and 2 in the three columns of a cell, nothing picked."""

import argparse
import sys
from pathlib import Path

from client import Client
from PIL import Image, ImageDraw

PROMPTS = [
    "a red apple on a blue background",
    "a cat, yellow background",
    "a green star on a black background",
    "a panda",
    "an owl on a green background",
    "a rocket, purple background",
    "masterpiece, best quality, a penguin, highly detailed, 4k, on a red background",
    "",
]


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("out", type=Path, help="the picture file to write")
    ap.add_argument("--server", default="http://127.0.0.1:7860")
    ap.add_argument("--prompts", nargs="*", default=PROMPTS)
    ap.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    ap.add_argument("--width", type=int, default=512)
    ap.add_argument("--height", type=int, default=512)
    ap.add_argument("--steps", type=int, default=20)
    ap.add_argument("--cfg", type=float, default=6.0)
    ap.add_argument(
        "--tile",
        type=int,
        default=128,
        help="pixels of a picture's longer side on the sheet",
    )
    ap.add_argument("--columns", type=int, default=2, help="prompts beside one another")
    a = ap.parse_args()
    client = Client(a.server, a.width, a.height, a.steps, a.cfg)
    k = a.tile / max(a.width, a.height)
    tw, th, label = round(a.width * k), round(a.height * k), 14
    cw, ch = tw * len(a.seeds) + 6, th + label
    rows = -(-len(a.prompts) // a.columns)
    sheet = Image.new("RGB", (cw * a.columns, ch * rows), (255, 255, 255))
    pen = ImageDraw.Draw(sheet)
    for i, p in enumerate(a.prompts):
        x, y = (i % a.columns) * cw, (i // a.columns) * ch
        pics = [client.draw(p, s) for s in a.seeds]
        pen.text((x + 2, y + 1), (p or "(empty prompt)")[: cw // 6], fill=(0, 0, 0))
        for j, im in enumerate(pics):
            sheet.paste(
                Image.fromarray(im).resize((tw, th), Image.Resampling.LANCZOS),
                (x + j * tw, y + label),
            )
    a.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(a.out, quality=90)
    print(
        f"{a.out}: {len(a.prompts)} prompts, seeds {a.seeds}, {a.width}x{a.height}, Euler a, {a.steps} steps, CFG {a.cfg}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
