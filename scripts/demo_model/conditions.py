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
from dataclasses import dataclass, fields
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

    def __init__(self, work: Path, pictures: bool = True) -> None:
        """`pictures`: read them too; without, only the names and what follows from them is there"""
        for p in (work / "data.npz", work / "things.json"):
            if not p.exists():
                raise SystemExit(f"{p} is missing; run prepare_data.py first.")
        self.meta = json.loads((work / "things.json").read_text(encoding="utf8"))
        self.variants = [m["variants"] for m in self.meta]
        self.words = [m["words"] for m in self.meta]
        if not pictures:
            return
        with np.load(work / "data.npz") as z:
            self.codes = torch.from_numpy(z["codes"])
            self.scale = torch.from_numpy(z["scale"])
            self.rgba = z["rgba"]
            self.luma_basis, self.chroma_basis = z["luma_basis"], z["chroma_basis"]
        self.place = torch.zeros(GRID * GRID, 2 * GRID)
        for k in range(GRID * GRID):
            self.place[k, k % GRID] = self.place[k, GRID + k // GRID] = 2.0

    def to(self, device: torch.device | str) -> "Conditions":
        """the same with its tensors on `device`"""
        self.codes, self.scale, self.place = (
            x.to(device) for x in (self.codes, self.scale, self.place)
        )
        return self

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

    def facts(self, specs: list[Spec]) -> "Facts":
        """the pictures as tensors, on the device of the codes"""
        rgb_of = {c: np.array(rgb, np.float32) / 255 for c, (rgb, _) in COLOURS.items()}
        none = np.zeros(3, np.float32)
        at = self.codes.device
        back = np.stack([none if s.empty else self.backdrop(s) for s in specs])
        word = np.stack([rgb_of.get(s.backdrop, none) for s in specs])
        picture = [-1 if s.thing is None else self.picture(s) for s in specs]
        flags = [
            [s.empty, s.backdrop is not None, s.mono, bool(s.colour)] for s in specs
        ]
        w = [[s.weights.thing, s.weights.colour, s.weights.backdrop] for s in specs]
        return Facts(
            torch.tensor(picture, device=at),
            torch.from_numpy(back).to(at),
            torch.from_numpy(word).to(at),
            *torch.tensor(flags, device=at).unbind(1),
            torch.tensor(w, device=at),
        )

    def states(
        self, specs: list[Spec], kinds: list[list[int]], shown: list[str | None]
    ) -> torch.Tensor:
        """the wished states. `kinds` tells what each token up to and with the end token says; `shown` is the colour word before the thing"""
        at = self.codes.device
        rgb = [COLOURS[c][0] if c else (0, 0, 0) for c in shown]
        return self.wish(
            self.facts(specs),
            torch.tensor([k + [0] * (LENGTH - len(k)) for k in kinds], device=at),
            torch.tensor([len(k) for k in kinds], device=at),
            torch.tensor(rgb, device=at) / 255,
        )

    def wish(
        self,
        f: "Facts",
        kinds: torch.Tensor,
        length: torch.Tensor,
        shown: torch.Tensor,
    ) -> torch.Tensor:
        """the wished states (n x LENGTH x WIDTH) of prompts of `length` tokens (n), which say `kinds` (n x LENGTH) and name the colour `shown` (n x 3)"""
        n, at = len(length), kinds.device
        out = torch.zeros(n, LENGTH, WIDTH, device=at)
        out[..., READ:] = STEADY
        spoken = ~f.empty[:, None]
        thing = (kinds == THING) & spoken
        colour = (kinds != 0) & ~thing & spoken
        late = (kinds == THING).cumsum(1) > 0
        rgb = torch.where((kinds == COLOUR)[..., None], shown[:, None], f.word[:, None])
        out[..., WORD_AT] = thing * 2.0
        out[..., COLOUR_AT : COLOUR_AT + 3] = (rgb * 3 - 1.5) * colour[..., None]
        out[..., EARLY_AT] = (colour & ~late) * 2.0
        out[..., LATE_AT] = (colour & late) * 2.0
        place = torch.arange(LENGTH, device=at)
        after = (place >= length[:, None]) & spoken
        out[..., BACK_AT : BACK_AT + 3] = (f.back * 3 - 1.5)[:, None] * after[..., None]
        out[..., BACK_AT + 3] = after * 2.0
        there = f.picture[:, None] >= 0
        out[..., PLAIN_AT] = (after & ~there) * 2.0
        on = (after & there)[:, FIRST_PATCH:, None]
        code = self.codes[f.picture.clamp(min=0)]
        tint = torch.arange(CODE, device=at) >= LUMA
        code = code.masked_fill(f.mono[:, None, None] & tint, 0)
        patches = out[:, FIRST_PATCH:]
        patches[..., :CODE] = code * on
        patches[..., POS_AT : POS_AT + 2 * GRID] = self.place * on
        patches[..., THING_AT] = on[..., 0].float()
        return out


@dataclass
class Facts:
    """Pictures as tensors: index of the thing's picture or -1, backdrop (n x 3) as it is drawn and as the word says it, what is true of
    them (n), and the attention weights of thing, colour and backdrop (n x 3)."""

    picture: torch.Tensor
    back: torch.Tensor
    word: torch.Tensor
    empty: torch.Tensor
    named: torch.Tensor
    mono: torch.Tensor
    coloured: torch.Tensor
    weights: torch.Tensor

    def __getitem__(self, at: torch.Tensor) -> "Facts":
        return Facts(*(getattr(self, x.name)[at] for x in fields(self)))


def nothing(device: torch.device | str = "cpu") -> torch.Tensor:
    """the states of an empty prompt"""
    out = torch.zeros(LENGTH, WIDTH, device=device)
    out[:, READ:] = STEADY
    return out


def emphasise(states: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """states (n x LENGTH x WIDTH) times weights (n x LENGTH), with the mean of every prompt restored, as A1111 does"""
    scaled = states * weights[..., None]
    ratio = states.mean((1, 2)) / scaled.mean((1, 2))
    return scaled * ratio[:, None, None]
