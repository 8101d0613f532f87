# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.4.6", "pillow==13.0.0", "tokenizers==0.23.3", "torch==2.15.0"]
# ///
"""Draws with the weights of a work folder and says how far the pictures are from what the prompts describe. Needs no server.

Sampling is the server's: Euler a, classifier-free guidance against the empty prompt, from the largest noise level. Every prompt has one
right picture, so errors are counted in grey levels (root of the mean square, at one pixel a cell): in the box of the thing, and outside it.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import models
import numpy as np
import torch
from concepts import BACKDROPS, COLOURS, Spec, Weights
from conditions import Conditions, emphasise
from contact_sheet import PROMPTS
from evaluate import border, repainting, requests
from models import VAE, UNet
from PIL import Image
from tokenizer import LENGTH, load_tokenizer
from train_text import compact, load_text
from train_unet import ABAR, Latents, box_side, load_unet
from train_vae import CH
from vae_frame import SCALE

LEVELS = ((1 - ABAR) / ABAR).sqrt()  # noise levels of the 1000 steps


@torch.no_grad()
def euler_a(
    unet: UNet, ctx: torch.Tensor, empty: torch.Tensor, x: torch.Tensor, a
) -> torch.Tensor:
    """latents of `ctx` from plain noise `x`, guided away from `empty`"""
    t = torch.linspace(999, 0, a.steps, dtype=torch.float64)
    lo, up = t.floor().long(), t.ceil().long()
    sigmas = (LEVELS[lo].log() * (1 - t % 1) + LEVELS[up].log() * (t % 1)).exp()
    sigmas = [*sigmas.tolist(), 0.0]
    x = x * sigmas[0]
    both = torch.cat([ctx, empty.expand_as(ctx)])
    for i, at in enumerate(t.tolist()):
        s, n = sigmas[i], sigmas[i + 1]
        scaled = (x / (s * s + 1) ** 0.5).repeat(2, 1, 1, 1)
        step = torch.full((len(scaled),), at, device=x.device)
        v = unet(scaled.contiguous(memory_format=torch.channels_last), step, both)
        c, u = v.float().chunk(2)
        v = u + a.cfg * (c - u)
        x0 = x / (s * s + 1) - v * s / (s * s + 1) ** 0.5
        up_ = min(n, (n * n * (s * s - n * n) / (s * s)) ** 0.5)
        down = max(0.0, n * n - up_ * up_) ** 0.5
        x = x + (x - x0) / s * (down - s)
        if n:
            x = x + torch.randn_like(x) * up_
    return x


class Draw:
    """prompts to pictures"""

    def __init__(self, a: argparse.Namespace) -> None:
        self.a = a
        self.cond = Conditions(a.work).to(a.device)
        self.lat = Latents(self.cond, a.work)
        self.tok = load_tokenizer(a.merges)
        te, self.tmap = load_text(a.work)
        self.te = te.to(a.device)
        unet, self.st = load_unet(a.work / "unet.pt", not a.raw)
        self.unet = unet.to(a.device).to(memory_format=torch.channels_last).eval()
        vae = VAE(**CH)
        vae.load_state_dict(torch.load(a.work / "vae.pt", map_location="cpu")["ema"])
        self.vae = vae.to(a.device)

    @torch.no_grad()
    def states(
        self, prompts: list[str], weighted: list[tuple[str, float]]
    ) -> torch.Tensor:
        """states of prompts, each with one weighted word"""
        rows, w = [], torch.ones(len(prompts), LENGTH)
        for i, (p, (word, weight)) in enumerate(zip(prompts, weighted, strict=True)):
            enc = self.tok.encode(p)
            rows.append(compact(enc.ids, self.tmap))
            at = p.find(word) if word else -1
            for k, (lo, hi) in enumerate(enc.offsets[:LENGTH]):
                if at >= 0 and at <= lo < hi <= at + len(word):
                    w[i, k] = weight
        return emphasise(
            self.te(torch.tensor(rows, device=self.a.device)), w.to(self.a.device)
        )

    @torch.no_grad()
    def latents(
        self,
        prompts: list[str],
        h: int,
        w: int,
        weighted: list[tuple[str, float]] | None = None,
        seeds: list[int] | None = None,
    ) -> torch.Tensor:
        """latents of h x w cells"""
        ctx = self.states(prompts, weighted or [("", 1.0)] * len(prompts))
        empty = self.states([""], [("", 1.0)])
        x = torch.stack(
            [
                torch.randn(4, h, w, generator=torch.Generator().manual_seed(s))
                for s in (seeds or range(len(prompts)))
            ]
        ).to(self.a.device)
        k = max(1, self.a.batch * 4096 // (h * w))
        torch.manual_seed(1)
        parts = zip(ctx.split(k), x.split(k))
        return torch.cat([euler_a(self.unet, c, empty, y, self.a) for c, y in parts])

    @torch.no_grad()
    def pictures(self, z: torch.Tensor) -> np.ndarray:
        """n x height x width x 3 bytes"""
        out = [self.vae.decode(x / SCALE).clamp(-1, 1) for x in z.split(8)]
        x = (torch.cat(out) + 1) * 127.5
        return x.round().byte().permute(0, 2, 3, 1).cpu().numpy()


def tiles(pics: list[np.ndarray], columns: int, px: int) -> Image.Image:
    """a sheet of pictures, the longer side of each `px`"""
    small = []
    for p in pics:
        im = Image.fromarray(p)
        k = px / max(im.size)
        small.append(
            im.resize((round(im.width * k), round(im.height * k)), Image.Resampling.BOX)
        )
    w, h = small[0].size
    rows = -(-len(small) // columns)
    sheet = Image.new("RGB", (w * columns, h * rows), (255, 255, 255))
    for i, im in enumerate(small):
        sheet.paste(im, (i % columns * w, i // columns * h))
    return sheet


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("work", type=Path)
    ap.add_argument("merges", type=Path, help="CLIP's merges.txt")
    ap.add_argument("out", type=Path, help="folder for the figures and sheets")
    ap.add_argument("--device", default="cpu")
    ap.add_argument("--prompts", type=int, default=212)
    ap.add_argument(
        "--sizes",
        nargs="*",
        default=["512x512", "256x256", "640x896", "896x640", "768x512"],
        help="width x height in pixels",
    )
    ap.add_argument("--shown", type=int, default=24, help="pictures on a sheet")
    ap.add_argument("--px", type=int, default=192, help="of a picture on a sheet")
    ap.add_argument("--steps", type=int, default=20)
    ap.add_argument("--cfg", type=float, default=6.0)
    ap.add_argument("--batch", type=int, default=128)
    ap.add_argument("--raw", action="store_true", help="not the running mean")
    a = ap.parse_args()
    models.HALF_CONVOLUTIONS = False
    a.out.mkdir(parents=True, exist_ok=True)
    d, t0 = Draw(a), time.time()
    cond, figures = d.cond, {"seen": d.st["seen"]}
    asks = requests(cond, a.prompts, "{}", 11)
    specs = [Spec(x.thing, x.colour, x.back or None) for x in asks]
    for size in a.sizes:
        w, h = (int(s) // 8 for s in size.split("x"))
        z = d.latents([x.prompt for x in asks], h, w)
        want = d.lat.rgb_of(cond.facts(specs), h, w)
        off = (d.lat.rgb(z) - want) * 255
        side = box_side(h, w)
        top, left = (h - side) // 2, (w - side) // 2
        box = torch.zeros(h, w, dtype=torch.bool, device=z.device)
        box[top : top + side, left : left + side] = True
        pics = d.pictures(z)
        back, colour, noise = [], [], []
        for x, im in zip(asks, pics):
            edge = border(im)
            med = np.median(edge, 0)
            noise.append(float(edge.std(0).mean()))
            if x.back:
                far = {b: ((COLOURS[b][0] - med) ** 2).sum() for b in BACKDROPS}
                back.append(min(far, key=far.get) == x.back)
            if x.colour:
                colour.append(repainting(cond, x.thing, im) == x.colour)
        figures[size] = {
            "thing_off": round(off[:, :, box].square().mean().sqrt().item(), 2),
            "backdrop_off": round(off[:, :, ~box].square().mean().sqrt().item(), 2),
            "border_spread": round(float(np.mean(noise)), 2),
            "backdrop": round(float(np.mean(back)), 3),
            "colour": round(float(np.mean(colour)), 3),
        }
        print(size, figures[size], f"{time.time() - t0:.0f}s", flush=True)
        tiles(list(pics[: a.shown]), 8, a.px).save(a.out / f"{size}.png")
    # weights: the same prompts with one word weighted
    names = [x[0] for x in cond.words]
    cases = [("apple", "green", "white"), ("heart", "red", "blue")]
    cases += [("car", "blue", "yellow"), ("star", "purple", "white")]
    cases += [("cactus", "red", "grey"), ("umbrella", "orange", "black")]
    steps = (0.5, 0.7, 1.0, 1.2, 1.4)
    shown = []
    for part in ("thing", "colour", "backdrop"):
        prompts, weighted, specs = [], [], []
        for thing, colour, back in cases:
            for weight in steps:
                prompts.append(f"a {colour} {thing} on a {back} background")
                word = {"thing": thing, "colour": colour, "backdrop": back}[part]
                weighted.append((word, weight))
                k = names.index(thing)
                shade = colour if colour in cond.variants[k] else ""
                specs.append(Spec(k, shade, back, weights=Weights(**{part: weight})))
        z = d.latents(prompts, 64, 64, weighted, [i // 5 for i in range(len(prompts))])
        got = d.lat.rgb(z)
        want = d.lat.rgb_of(cond.facts(specs), 64, 64)
        off = ((got - want) * 255).square().mean((1, 2, 3)).sqrt().view(-1, 5).mean(0)
        # the share of the change from weight 1 that is there
        one = torch.arange(len(specs), device=z.device) // 5 * 5 + 2
        asked, made = want - want[one], got - got[one]
        part_of = (asked * made).sum((1, 2, 3)).view(-1, 5).sum(0)
        part_of = part_of / asked.square().sum((1, 2, 3)).view(-1, 5).sum(0).clamp(1e-6)
        figures[f"weighted {part}"] = {
            "weights": steps,
            "off": [round(x, 1) for x in off.tolist()],
            "share": [round(x, 2) for x in part_of.tolist()],
        }
        print(part, figures[f"weighted {part}"], flush=True)
        shown += list(d.pictures(z[:20]))
    tiles(shown, 10, a.px // 2).save(a.out / "weights.png")
    z = d.latents([p for p in PROMPTS for _ in range(3)], 64, 64, seeds=[0, 1, 2] * 8)
    tiles(list(d.pictures(z)), 6, a.px).save(a.out / "sheet.png")
    (a.out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
