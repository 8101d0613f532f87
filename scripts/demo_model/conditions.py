"""The states that the text encoder is taught to give, which are what the UNet reads.

Every state has 128 numbers. Positions 41 to 76 of a prompt (padding, unless the prompt is longer) stand for the 6x6 patches of the picture:
    0..79   the patch's code (see prepare_data.py)
    80..91  where the patch is: one of 6 columns, one of 6 rows
    92..95  the backdrop's colour, and 2 when there is one
    96      1 on a patch with a thing        97  2 when the prompt names a backdrop alone
    98..127 nothing
The words themselves, and everything in an empty prompt, have zero states. Padding before position 41 only tells the backdrop.
"""

import json
from pathlib import Path

import numpy as np
import torch
from concepts import COLOURS, PASTELS, Spec
from prepare_data import CHROMA, GRID, LUMA
from tokenizer import LENGTH

WIDTH, USED = 128, 98
FIRST_PATCH = LENGTH - GRID * GRID
CODE = LUMA + CHROMA
POS_AT, BACK_AT, THING_AT, PLAIN_AT = (
    CODE,
    CODE + 2 * GRID,
    CODE + 2 * GRID + 4,
    CODE + 2 * GRID + 5,
)
GREY = np.array([0.299, 0.587, 0.114], np.float32)


def grey(rgb: np.ndarray) -> np.ndarray:
    """the same brightness without colour"""
    return np.full(3, float(rgb @ GREY), np.float32)


class Conditions:
    """Pictures, codes and backdrops of a prepared data folder."""

    def __init__(self, work: Path) -> None:
        for p in (work / "data.npz", work / "things.json"):
            if not p.exists():
                raise SystemExit(f"{p} is missing; run prepare_data.py first.")
        self.meta = json.loads((work / "things.json").read_text(encoding="utf8"))
        self.variants = [m["variants"] for m in self.meta]
        self.words = [m["words"] for m in self.meta]
        with np.load(work / "data.npz") as z:
            self.codes = torch.from_numpy(z["codes"])
            self.scale = torch.from_numpy(z["scale"])
            self.rgba = z["rgba"]
            self.luma_basis, self.chroma_basis = z["luma_basis"], z["chroma_basis"]
        self.place = torch.zeros(GRID * GRID, 2 * GRID)
        for k in range(GRID * GRID):
            self.place[k, k % GRID] = self.place[k, GRID + k // GRID] = 2.0

    def backdrop(self, spec: Spec) -> np.ndarray:
        """RGB in 0..1 of a picture that is not the empty prompt's"""
        if spec.backdrop is not None:
            rgb = np.array(COLOURS[spec.backdrop][0], np.float32) / 255
        elif spec.thing is None:
            raise ValueError("a picture without a thing needs a backdrop")
        else:
            rgb = np.array(PASTELS[self.meta[spec.thing]["pastel"]], np.float32) / 255
        return grey(rgb) if spec.mono else rgb

    def picture(self, spec: Spec) -> int:
        """index of the thing's picture"""
        return self.variants[spec.thing][spec.colour]

    def states(self, specs: list[Spec], lengths: list[int]) -> torch.Tensor:
        """the wished states; lengths are the numbers of tokens up to and with the end token"""
        out = torch.zeros(len(specs), LENGTH, WIDTH)
        for i, (s, n) in enumerate(zip(specs, lengths)):
            if s.empty:
                continue
            out[i, n:, BACK_AT : BACK_AT + 3] = torch.from_numpy(
                self.backdrop(s) * 3 - 1.5
            )
            out[i, n:, BACK_AT + 3] = 2.0
            if s.thing is None:
                out[i, n:, PLAIN_AT] = 2.0
                continue
            code = self.codes[self.picture(s)]
            if s.mono:
                code = code.clone()
                code[:, LUMA:] = 0
            lost = max(0, n - FIRST_PATCH)
            out[i, FIRST_PATCH + lost :, :CODE] = code[lost:]
            out[i, FIRST_PATCH + lost :, POS_AT : POS_AT + 2 * GRID] = self.place[lost:]
            out[i, FIRST_PATCH + lost :, THING_AT] = 1.0
        return out
