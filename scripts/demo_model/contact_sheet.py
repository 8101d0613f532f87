# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.4.6", "pillow==13.0.0", "safetensors==0.8.0", "tokenizers==0.23.3", "torch==2.15.0"]
# ///
"""Draws a contact sheet with an exported checkpoint: fixed prompts, seeds 0, 1 and 2 in the three columns of a cell, nothing picked."""

import argparse
import sys
from pathlib import Path

import models
import numpy as np
import torch
from PIL import Image, ImageDraw
from sampler import Painter
from tokenizer import load_tokenizer

PROMPTS = [
    "a red apple on a blue background",
    "a cat, yellow background",
    "a green star on a black background",
    "a panda",
    "a purple heart on a pink background",
    "pizza",
    "a rocket, purple background",
    "an owl on a green background",
    "a house on a white background",
    "sunflower, black background",
    "a blue umbrella on an orange background",
    "a butterfly",
    "a teapot made of glass",
    "masterpiece, best quality, a penguin, highly detailed, 4k, on a red background",
    "monochrome, a frog",
    "",
]


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("checkpoint", type=Path)
    ap.add_argument("merges", type=Path, help="CLIP's merges.txt")
    ap.add_argument("out", type=Path, help="the PNG to write")
    ap.add_argument("--prompts", nargs="*", default=PROMPTS)
    ap.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    ap.add_argument("--width", type=int, default=512)
    ap.add_argument("--height", type=int, default=512)
    ap.add_argument("--steps", type=int, default=20)
    ap.add_argument("--cfg", type=float, default=6.0)
    ap.add_argument(
        "--tile",
        type=int,
        default=160,
        help="pixels of a picture's longer side on the sheet",
    )
    ap.add_argument("--columns", type=int, default=2, help="prompts beside one another")
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--fast", action="store_true", help="bfloat16 convolutions")
    a = ap.parse_args()
    if not a.merges.exists():
        print(f"{a.merges} is missing.", file=sys.stderr)
        return 2
    torch.set_num_threads(a.threads)
    models.HALF_CONVOLUTIONS = a.fast
    painter = Painter(a.checkpoint, load_tokenizer(a.merges))
    k = a.tile / max(a.width, a.height)
    tw, th, label = round(a.width * k), round(a.height * k), 14
    cw, ch = tw * len(a.seeds) + 6, th + label
    rows = -(-len(a.prompts) // a.columns)
    sheet = Image.new("RGB", (cw * a.columns, ch * rows), (255, 255, 255))
    pen = ImageDraw.Draw(sheet)
    for i, p in enumerate(a.prompts):
        x, y = (i % a.columns) * cw, (i // a.columns) * ch
        pics: list[np.ndarray] = []
        for s in a.seeds:
            pics += list(painter.draw([p], [s], a.width, a.height, a.steps, a.cfg))
        pen.text((x + 2, y + 1), (p or "(empty prompt)")[: cw // 6], fill=(0, 0, 0))
        for j, im in enumerate(pics):
            sheet.paste(
                Image.fromarray(im).resize((tw, th), Image.Resampling.LANCZOS),
                (x + j * tw, y + label),
            )
    a.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(a.out)
    print(
        f"{a.out}: {len(a.prompts)} prompts, seeds {a.seeds}, {a.width}x{a.height}, Euler a, {a.steps} steps, CFG {a.cfg}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
