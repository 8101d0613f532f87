"""Renders training pictures and captions from work/emoji.npz and work/classes.json."""

import json
import numpy as np
import torch
from PIL import Image

MARGIN = 18  # transparent pixels added round a 256-pixel emoji: it then fills 88 % of a square canvas
SIDE = 256 + 2 * MARGIN


class Emoji:
    def __init__(self, work, core=False):
        self.meta = json.load(open(f"{work}/classes.json"))
        self.classes, self.colours = self.meta["classes"], self.meta["colours"]
        if core:
            self.classes = [c for c in self.classes if c["core"]]
        rgba = np.load(f"{work}/emoji.npz")["rgba"]
        self.pics = []
        for p in rgba:
            c = np.zeros((SIDE, SIDE, 4), np.uint8)
            c[MARGIN:-MARGIN, MARGIN:-MARGIN] = p
            self.pics.append(
                Image.fromarray(c).convert("RGBa")
            )  # premultiplied: resizing then has no halo

    def render(self, k, size, box=None):
        """premultiplied RGBA floats in 0..1 of picture k on a size x size canvas (or of the part `box` of it)"""
        if box is None:
            im = self.pics[k].resize((size, size), Image.BICUBIC)
        else:
            x0, y0, x1, y1 = (v * SIDE / size for v in box)
            im = self.pics[k].resize(
                (box[2] - box[0], box[3] - box[1]), Image.BICUBIC, box=(x0, y0, x1, y1)
            )
        a = np.frombuffer(im.tobytes(), np.uint8).reshape(im.size[1], im.size[0], 4)
        return a.astype(np.float32) / 255

    def over(self, premult, bg):
        """composite over a background colour (3 floats in 0..1, or an h x w x 3 array)"""
        return premult[..., :3] + (1 - premult[..., 3:]) * bg


def to_tensor(img):
    return torch.from_numpy(np.ascontiguousarray(img)).permute(2, 0, 1) * 2 - 1
