"""The states that the text encoder is taught to give, which are what the UNet reads.

Every state has 128 numbers. Positions 41 to 76 of a prompt (padding, unless the prompt is longer) stand for the 6x6 patches of the picture:
    0..79   the patch's code (see prepare_data.py)
    80..91  where the patch is: one of 6 columns, one of 6 rows
    92..95  the backdrop's colour, and 2 when there is one
    96      1 on a patch with a thing        97  2 when the prompt names a backdrop alone
Padding before position 41 only tells the backdrop. The words that name a thing or a colour say so themselves, so that an attention weight
(which multiplies the states of its words) is there for the UNet to read:
    98      2 on the words of a thing
    99..101 the colour that a word names     102 2 on the words of a colour, before the thing or without one     103 2 on those after the thing
Every other word, and everything in an empty prompt, says nothing: zero up to here.
    104..127 STEADY, everywhere: A1111 restores the mean of the states after weighting, and these keep that mean far from zero. The UNet does
             not read them.
"""

import json
from pathlib import Path

import numpy as np
import torch
from concepts import COLOUR, COLOURS, PASTELS, THING, Spec
from prepare_data import CHROMA, GRID, LUMA
from tokenizer import LENGTH

WIDTH, READ = 128, 104
STEADY = 3.0
FIRST_PATCH = LENGTH - GRID * GRID
CODE = LUMA + CHROMA
POS_AT, BACK_AT, THING_AT, PLAIN_AT = (
    CODE,
    CODE + 2 * GRID,
    CODE + 2 * GRID + 4,
    CODE + 2 * GRID + 5,
)
WORD_AT = PLAIN_AT + 1
COLOUR_AT, EARLY_AT, LATE_AT = WORD_AT + 1, WORD_AT + 4, WORD_AT + 5
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

    def word(self, kind: int, colour: str | None, late: bool) -> torch.Tensor:
        """the state of a word that names a thing, or a colour (`late`: after the thing)"""
        out = torch.zeros(WIDTH)
        if kind == THING:
            out[WORD_AT] = 2.0
        elif kind:
            rgb = torch.tensor(COLOURS[colour][0]) / 255
            out[COLOUR_AT : COLOUR_AT + 3] = rgb * 3 - 1.5
            out[LATE_AT if late else EARLY_AT] = 2.0
        return out

    def states(
        self, specs: list[Spec], kinds: list[list[int]], shown: list[str | None]
    ) -> torch.Tensor:
        """the wished states. `kinds` tells what each token up to and with the end token says; `shown` is the colour word before the thing"""
        out = nothing().repeat(len(specs), 1, 1)
        for i, (s, kind) in enumerate(zip(specs, kinds)):
            if s.empty:
                continue
            n, late = len(kind), False
            for at, k in enumerate(kind):
                late = late or k == THING
                if k:
                    named = shown[i] if k == COLOUR else s.backdrop
                    out[i, at, :READ] = self.word(k, named, late)[:READ]
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


def nothing() -> torch.Tensor:
    """the states of an empty prompt"""
    out = torch.zeros(LENGTH, WIDTH)
    out[:, READ:] = STEADY
    return out


def emphasise(states: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """states (n x LENGTH x WIDTH) times weights (n x LENGTH), with the mean of every prompt restored, as A1111 does"""
    scaled = states * weights[..., None]
    ratio = states.mean((1, 2)) / scaled.mean((1, 2))
    return scaled * ratio[:, None, None]
