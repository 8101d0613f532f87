# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.4.6", "pillow==13.0.0", "tokenizers==0.23.3", "torch==2.15.0"]
# ///
"""Trains the UNet (v-prediction) on the latents of the pictures, from the inside out. Resumable.

Averaging latents over f x f cells divides the noise by f, so the inner levels of the UNet can be trained on averaged latents: that is
the low-frequency part of what the whole UNet must predict, at a fraction of the cost. Order: --level 2, --level 1, --level 0 (the whole
UNet). A level that is added starts as "average, run the inner stage, enlarge" (function grow), so nothing learned is lost.

--states true feeds the states that the text encoder should give; --states text those that it gives.

Attention weights: the states of some pictures are weighted as A1111 weights them, and the picture to draw is changed to suit (emphasised):
a thing stands out from its backdrop by its weight, the chroma of a named colour follows its weight, and a named backdrop's distance from grey.

--device cuda keeps pictures and states on the GPU, composes there, and replays a whole step as one CUDA graph for each shape.
"""

import argparse
import math
import os
import random
import sys
import time
from functools import lru_cache
from pathlib import Path

import models
import numpy as np
import torch
import torch.nn.functional as F
from concepts import EMPTY_FROM, EMPTY_TO, Spec
from conditions import (
    CODE,
    FIRST_PATCH,
    READ,
    THING_AT,
    Conditions,
    Facts,
    emphasise,
    nothing,
)
from models import UNet, unet_shape
from muon import Muon
from PIL import Image
from prepare_data import GRID, cells
from tokenizer import LENGTH
from torch import nn
from vae_frame import FRAME, PINV, latent_scaling

UNET = {"ch": (64, 64, 128, 128), "attn": (False, False, True, True)}
BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
ABAR = torch.cumprod(1 - BETAS, 0)
ALPHA, SIGMA = ABAR.sqrt().float(), (1 - ABAR).sqrt().float()
NO_SIGNAL = (
    985  # from this step on the input is noise alone, as it is when sampling starts
)
# above the second step the empty prompt always means its own picture, below the first it does so for EMPTY_SHARE of the pictures
EMPTY_FADE, EMPTY_ONLY, EMPTY_SHARE = 400, 850, 0.3
# latent heights and widths (64x64 is 512x512 pixels), how often each is drawn, how many pictures make a batch of 64x64's cost
SHAPES = [
    ((64, 64), 0.42, 1.0),
    ((32, 32), 0.12, 3.0),
    ((48, 48), 0.07, 2.0),
    ((64, 96), 0.07, 0.7),
    ((96, 64), 0.07, 0.7),
    ((112, 80), 0.12, 0.5),
    ((80, 112), 0.06, 0.5),
    ((96, 96), 0.04, 0.5),
    ((128, 128), 0.03, 0.25),
]
BINS = (0, 100, 300, 500, 700, 900, NO_SIGNAL, 1000)  # of the loss by noise, in a log
NEUTRAL = 0.6  # the grey that a backdrop of little weight fades to


class Latents:
    """Latents of pictures on a canvas, straight from block averages."""

    def __init__(self, cond: Conditions, work: Path) -> None:
        self.cond, self.device = cond, cond.codes.device
        mean, std = latent_scaling(work)
        self.mean = mean.view(1, 4, 1, 1).to(self.device)
        self.std = std.view(1, 4, 1, 1).to(self.device)
        self.frame, self.pinv = FRAME.to(self.device), PINV.to(self.device)
        grey = torch.tensor([0.299, 0.587, 0.114], device=self.device)
        self.luma = grey.view(1, 3, 1, 1)
        self.boxes: dict[int, torch.Tensor] = {}
        self.skies: dict[tuple[int, int], torch.Tensor] = {}

    def box(self, side: int) -> torch.Tensor:
        """all things as premultiplied RGBA of side x side cells"""
        if side not in self.boxes:
            px = np.stack([cells(p, side) for p in self.cond.rgba])
            flat = torch.from_numpy(px).permute(0, 3, 1, 2).half().contiguous()
            self.boxes[side] = flat.to(self.device)
        return self.boxes[side]

    def sky(self, h: int, w: int) -> torch.Tensor:
        """the empty prompt's picture (3 x h x w)"""
        if (h, w) not in self.skies:
            down, right = torch.linspace(0, 1, h)[:, None], torch.linspace(0, 1, w)
            ramp = (down + right) / 2
            a, b = (
                torch.tensor(c)[:, None, None] / 255 for c in (EMPTY_FROM, EMPTY_TO)
            )
            self.skies[h, w] = (a * (1 - ramp) + b * ramp).to(self.device)
        return self.skies[h, w]

    def rgb_of(self, f: Facts, h: int, w: int) -> torch.Tensor:
        """pictures in 0..1 at one pixel a cell, as their words are weighted"""
        side = box_side(h, w)
        top, left = (h - side) // 2, (w - side) // 2
        there = (f.picture >= 0).view(-1, 1, 1, 1)
        p = self.box(side)[f.picture.clamp(min=0)].float() * there
        rgb, cover = p[:, :3], p[:, 3:]
        thing, colour, backdrop = (x.view(-1, 1, 1, 1) for x in f.weights.unbind(1))
        bg = f.back[:, :, None, None]
        faded = (NEUTRAL + backdrop * (bg - NEUTRAL)).clamp(0, 1)
        bg = torch.where(f.named.view(-1, 1, 1, 1), faded, bg)
        y = (rgb * self.luma).sum(1, keepdim=True)
        tinted = torch.minimum((y + colour * (rgb - y)).clamp(min=0), cover)
        rgb = torch.where(f.coloured.view(-1, 1, 1, 1), tinted, rgb)
        rgb = torch.where(f.mono.view(-1, 1, 1, 1), y, rgb)
        out = bg.repeat(1, 1, h, w)
        box = (bg + thing * (rgb - cover * bg)).clamp(0, 1)
        out[:, :, top : top + side, left : left + side] = box
        return torch.where(f.empty.view(-1, 1, 1, 1), self.sky(h, w), out)

    def encode(self, rgb: torch.Tensor) -> torch.Tensor:
        return (
            torch.einsum("kc,bchw->bkhw", self.frame, rgb * 2 - 1) - self.mean
        ) / self.std

    def rgb(self, z: torch.Tensor) -> torch.Tensor:
        z = z * self.std + self.mean
        return ((torch.einsum("ck,bkhw->bchw", self.pinv, z) + 1) / 2).clamp(0, 1)


def box_side(h: int, w: int) -> int:
    """side of the box that a thing fills"""
    return 2 * round(0.375 * min(h, w))


class Stage(nn.Module):
    """the UNet from level `level` inwards, between a 1x1 convolution and a 1x1 head; level 0 is the whole UNet"""

    def __init__(self, unet: UNet, level: int) -> None:
        super().__init__()
        self.unet, self.level = unet, level
        if level:
            self.inp = nn.Conv2d(4, unet.ch[level - 1], 1)
            self.head = unet.ch[
                0
            ]  # the head sees that many channels, so that it can move outwards unchanged
            self.norm = nn.GroupNorm(32, self.head)
            self.out = nn.Conv2d(self.head, 4, 1)
            nn.init.zeros_(self.out.weight), nn.init.zeros_(self.out.bias)

    def used(self) -> list[nn.Parameter]:
        """the parameters that take part"""
        u, lv = self.unet, self.level
        if not lv:
            return list(u.parameters())
        mods = [
            self.inp,
            self.norm,
            self.out,
            u.time_embedding,
            u.mid_block,
            *u.down_blocks[lv:],
            *u.up_blocks[: 4 - lv],
        ]
        unused = {id(p) for p in u.up_blocks[3 - lv].upsamplers.parameters()}
        return [p for m in mods for p in m.parameters() if id(p) not in unused]

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, ctx: torch.Tensor
    ) -> torch.Tensor:
        u = self.unet
        if not self.level:
            return u(x, t, ctx)
        a = t.float()[:, None] * u.freqs[None]
        emb = F.silu(u.time_embedding(torch.cat([a.cos(), a.sin()], -1)))
        h = self.inp(x)
        hs = [h]
        for lv in u.down_blocks[self.level :]:
            h = lv.resnets[0](h, emb)
            if hasattr(lv, "attentions"):
                h = lv.attentions[0](h, ctx)
            hs.append(h)
            if hasattr(lv, "downsamplers"):
                h = lv.downsamplers[0](h)
                hs.append(h)
        m = u.mid_block
        h = m.resnets[1](m.attentions[0](m.resnets[0](h, emb), ctx), emb)
        ups = u.up_blocks[: len(u.ch) - self.level]
        for i, lv in enumerate(ups):
            for j, r in enumerate(lv.resnets):
                h = r(torch.cat([h, hs.pop()], 1), emb)
                if hasattr(lv, "attentions"):
                    h = lv.attentions[j](h, ctx)
            if i < len(ups) - 1:
                h = lv.upsamplers[0](h, size=hs[-1].shape[-2:])
        return self.out(models.norm(self.norm, h[:, : self.head]))


@torch.no_grad()
def grow(stage: Stage, old: dict[str, torch.Tensor]) -> None:
    """initialise the outermost level of `stage` so that it computes what the next inner stage (its head in `old`) did, enlarged"""
    u, lv = stage.unet, stage.level
    c = u.ch[lv]
    down, up = u.down_blocks[lv], u.up_blocks[3 - lv]
    eye = torch.eye(c)
    (
        down.resnets[0].conv2.weight.zero_(),
        down.resnets[0].conv2.bias.zero_(),
    )  # identity ...
    d = down.downsamplers[0].conv  # ... then 2x2 averages
    d.weight.zero_(), d.bias.zero_()
    d.weight[:, :, 1:, 1:] = eye[:, :, None, None] / 4
    w = (
        u.up_blocks[2 - lv].upsamplers[0].conv
    )  # plain enlargement of the inner features
    w.weight.zero_(), w.bias.zero_()
    w.weight[:, :, 1, 1] = torch.eye(len(w.weight))
    for r in up.resnets:
        r.conv2.weight.zero_(), r.conv2.bias.zero_()
        r.conv_shortcut.weight.zero_(), r.conv_shortcut.bias.zero_()
        r.conv_shortcut.weight[:, :c, 0, 0] = eye
    inp, norm, out = (
        (stage.inp, stage.norm, stage.out)
        if lv
        else (u.conv_in, u.conv_norm_out, u.conv_out)
    )
    for m in (inp, out):
        m.weight.zero_()
    k = inp.kernel_size[0] // 2
    inp.weight[:, :, k, k], inp.bias[:] = old["inp.weight"][:, :, 0, 0], old["inp.bias"]
    norm.weight[:], norm.bias[:] = old["norm.weight"], old["norm.bias"]
    k = out.kernel_size[0] // 2
    out.weight[:, :, k, k], out.bias[:] = old["out.weight"][:, :, 0, 0], old["out.bias"]


@torch.no_grad()
def sample(
    stage: Stage,
    ctx: torch.Tensor,
    h: int,
    w: int,
    steps: int = 16,
    cfg: float = 4.0,
    seed: int = 0,
) -> torch.Tensor:
    """plain DDIM with classifier-free guidance against zero states, for previews"""
    g = torch.Generator().manual_seed(seed)
    x = (torch.randn(len(ctx), 4, h, w, generator=g) / 2**stage.level).to(ctx.device)
    ts = torch.linspace(999, 0, steps + 1).round().long()
    empty = nothing(ctx.device).expand_as(ctx)
    for i in range(steps):
        t = ts[i]
        xx = torch.cat([x, x]).contiguous(memory_format=torch.channels_last)
        at = torch.full((len(xx),), float(t), device=ctx.device)
        a, b = stage(xx, at, torch.cat([ctx, empty])).float().chunk(2)
        v = b + cfg * (a - b)
        x0, e = ALPHA[t] * x - SIGMA[t] * v, SIGMA[t] * x + ALPHA[t] * v
        x = ALPHA[ts[i + 1]] * x0 + SIGMA[ts[i + 1]] * e if i < steps - 1 else x0
    return x


def overlap(cells_: int, size: int, side: int) -> torch.Tensor:
    """shares (cells_ x GRID) of each of `cells_` stretches of an axis of `size` in the patches of a centred box of `side`"""
    edge = torch.linspace(0, size, cells_ + 1)
    patch = (size - side) / 2 + torch.linspace(0, side, GRID + 1)
    lo = torch.maximum(edge[:-1, None], patch[None, :-1])
    hi = torch.minimum(edge[1:, None], patch[None, 1:])
    return (hi - lo).clamp(min=0) / (size / cells_)


@lru_cache(maxsize=64)
def wanted_looks(
    h: int, w: int, k: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """shares of the patches in each place of a picture of h x w cells seen at 1/k (places x patches), and which places are in the box"""
    side = box_side(h, w)
    want = torch.einsum(
        "ya,xb->yxab", overlap(h // k, h, side), overlap(w // k, w, side)
    ).reshape(-1, GRID * GRID)
    mass = want.sum(1, keepdim=True)
    want = torch.where(mass > 0.4, want / mass.clamp(min=1e-6), 0)
    return want.to(device), (mass > 0.4).sum().to(device)


def alignment_loss(
    log: list[torch.Tensor], h: int, w: int, live: torch.Tensor
) -> torch.Tensor:
    """how far half of the cross-attention is from looking, at each place of the picture, at the states of the patches that lie there"""
    total = 0.0
    for every in log:
        p = every[:, : every.shape[1] // 2]
        k = round((h * w / p.shape[2]) ** 0.5)
        want, places = wanted_looks(h, w, k, live.device)
        per = -(p[..., FIRST_PATCH:] * want).sum((1, 2, 3)) / (p.shape[1] * places)
        total = total + (per * live).sum() / live.sum().clamp(min=1)
    return total / len(log)


WORD_SHARE = 0.4


def word_loss(log: list[torch.Tensor], told: torch.Tensor) -> torch.Tensor:
    """how far the last head of cross-attention is from giving WORD_SHARE of its attention to the words of things and colours"""
    some, total = told.any(1).float(), 0.0
    for p in log:
        share = (p[:, -1].exp() * told[:, None].float()).sum(-1).clamp(1e-6, 1 - 1e-6)
        per = -WORD_SHARE * share.log() - (1 - WORD_SHARE) * (1 - share).log()
        total = total + (per.mean(1) * some).sum() / some.sum().clamp(min=1)
    return total / len(log)


def preview_specs(cond: Conditions) -> list[Spec]:
    names = [w[0] for w in cond.words]
    wish = "apple/red/blue cat//yellow banana//- car//white house//green sunflower//black rocket//purple penguin//orange"
    wish += " heart/blue/pink star/green/black pizza//- panda//grey butterfly//white rainbow//- tree//pink"
    out = []
    for one in wish.split():
        thing, colour, back = one.split("/")
        k = names.index(thing)
        out.append(
            Spec(
                k,
                colour if colour in cond.variants[k] else "",
                None if back == "-" else back,
            )
        )
    return [*out, Spec(None, empty=True)]


class Source:
    """Endless training pictures with their states, out of a pool of captions."""

    def __init__(self, a: argparse.Namespace, cond: Conditions, seed: int) -> None:
        from train_text import caption_pool, load_text

        self.a, self.cond, self.device = a, cond, cond.codes.device
        te, tmap = load_text(a.work)
        te = te.to(self.device)
        pool = caption_pool(cond, a.work, a.merges, tmap, a.pool, 5, a.processes)
        self.facts, self.kinds = pool.facts, pool.kinds
        states = []
        with torch.no_grad():
            for at in torch.arange(len(pool.ids), device=self.device).split(500):
                s = te(pool.ids[at]) if a.states == "text" else pool.wish(cond, at)
                states.append(s.half())
        self.pool = torch.cat(states)
        self.coloured = pool.facts.coloured.nonzero()[:, 0]
        self.loud = cond.scale.rsqrt().clamp(max=1.5) * 0.8
        self.said = torch.tensor([0.6, 0.7, 0.3], device=self.device)

    def weights(self, n: int) -> torch.Tensor:
        """random attention weights of thing, colour and backdrop (n x 3); many are 1"""
        r = torch.rand(5, n, 3, device=self.device)
        near, low, high = 0.7 + 0.6 * r[0], 0.4 + 0.3 * r[0], 1.3 + 0.4 * r[0]
        w = torch.where(r[1] < 0.4, near, torch.where(r[2] < 0.6, low, high))
        on = (r[3] < self.said) & (r[4, :, :1] < self.a.weighted)
        return torch.where(on, w, 1.0)

    def draw(self, n: int) -> tuple[Facts, torch.Tensor, torch.Tensor]:
        """pictures, their weighted states, and which of these are words of things and colours"""
        at = self.device
        picks = torch.randint(len(self.pool), (n,), device=at)
        some = torch.randint(len(self.coloured), (n,), device=at)
        picks = torch.where(
            torch.rand(n, device=at) < self.a.coloured, self.coloured[some], picks
        )
        ctx = self.pool[picks].float()
        if self.a.states == "true":
            live = (ctx[..., :CODE].abs().sum(-1, keepdim=True) > 0).float()
            noise = torch.randn(n, LENGTH, CODE, device=at) * self.loud
            size = self.a.blur * torch.rand(n, 1, 1, device=at)
            ctx[..., :CODE] += noise * live * size
        facts, kinds = self.facts[picks], self.kinds[picks].long()
        facts.weights = self.weights(n)
        table = torch.cat([torch.ones(n, 1, device=at), facts.weights], 1)
        return facts, emphasise(ctx, table.gather(1, kinds)), kinds > 0


def leave_unread(unet: UNet) -> None:
    """cross-attention never reads the numbers that only steady the mean of the states"""
    for name, p in unet.named_parameters():
        if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
            with torch.no_grad():
                p[:, READ:] = 0
            p.register_hook(
                lambda g: torch.cat([g[:, :READ], torch.zeros_like(g[:, READ:])], 1)
            )


def load_unet(path: Path, smooth: bool = True) -> tuple[UNet, dict]:
    """the UNet of a checkpoint (its running mean where `smooth`), in whatever shape it has, and the checkpoint"""
    st = torch.load(path, map_location="cpu")
    state = st["ema" if smooth else "raw"]
    unet = UNet(**unet_shape(state))
    unet.load_state_dict(state)
    return unet, st


def fast_on_gpu(compiled: bool) -> None:
    """settings of a training on a GPU"""
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    models.HALF_CONVOLUTIONS = False
    torch._dynamo.config.recompile_limit = 64
    models.FAST_NORM = (
        torch.compile(models.scaled, dynamic=True) if compiled else models.scaled
    )


class Lesson:
    """Draws pictures, adds noise, and takes a step."""

    def __init__(
        self,
        a: argparse.Namespace,
        stage: Stage,
        src: Source,
        lat: Latents,
        params: list[nn.Parameter],
        opts: list[torch.optim.Optimizer],
    ) -> None:
        self.a, self.stage, self.src, self.lat = a, stage, src, lat
        self.params, self.opts, self.device = params, opts, lat.device
        self.half = a.device != "cpu" and not a.single_precision
        at = self.device
        self.alpha, self.sigma = ALPHA.to(at), SIGMA.to(at)
        self.nothing = nothing(at)
        self.bins = torch.tensor(BINS[1:-1], device=at)
        # running sums that a log line empties: loss and pictures by noise; both lessons of attention and steps
        self.sums = torch.zeros(len(BINS) - 1, 2, device=at)
        self.turns = torch.zeros(3, device=at)
        self.graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        self.memory = None

    def batch(self, n: int, h: int, w: int) -> tuple[torch.Tensor, ...]:
        """noisy latents, steps, states, the v to predict, and which states are words of things and colours"""
        a, at = self.a, self.device
        f = 2**a.level
        facts, ctx, told = self.src.draw(n)
        t = (torch.rand(n, device=at) ** a.noisy * 1000).long()
        r = torch.rand(7, n, device=at)
        t = torch.where(r[0] < 0.06, NO_SIGNAL + (r[3] * (1000 - NO_SIGNAL)).long(), t)
        t = t.clamp(max=999)
        silent = r[1] < a.unprompted
        share = (t - EMPTY_FADE) / (EMPTY_ONLY - EMPTY_FADE)
        share = EMPTY_SHARE + (1 - EMPTY_SHARE) * share.clamp(0, 1)
        facts.empty = facts.empty | (silent & (r[2] <= share))
        # a prompt for something else: when little noise is left, what is there stays
        other = ~silent & (t < 500) & (r[1] > 0.93)
        ctx = torch.where(other[:, None, None], ctx.roll(-1, 0), ctx)
        ctx = torch.where(silent[:, None, None], self.nothing, ctx)
        told = torch.where(other[:, None], told.roll(-1, 0), told) & ~silent[:, None]

        def shrink(x: torch.Tensor) -> torch.Tensor:
            return F.avg_pool2d(x, f) if f > 1 else x

        x0 = shrink(self.lat.encode(self.lat.rgb_of(facts, h, w)))
        A, S = (x[t].view(-1, 1, 1, 1) for x in (self.alpha, self.sigma))
        eps = torch.randn_like(x0) / f
        signal = (t < NO_SIGNAL).view(-1, 1, 1, 1)
        x = A * x0 * signal + S * eps
        v = A * eps - S * x0
        # what a sampler shows is not quite a picture with noise: show that and ask for the true picture
        off = torch.zeros_like(x0)
        if a.boost:  # guidance pushes away from the empty prompt's picture
            k = (r[4] < a.boosted) * a.boost * torch.rand(n, device=at) ** 2
            sky = shrink(self.lat.encode(self.lat.sky(h, w)[None]))
            off = off + k.view(-1, 1, 1, 1) * (S / A).clamp(max=4.0) * (x0 - sky)
        if a.mottle:  # and leaves soft spots
            k = (r[5] < a.mottled) * a.mottle * r[6] ** 2
            spots = 0.0
            for c in (4, 8, 16):
                small = (n, 4, -(-h // f // c) + 1, -(-w // f // c) + 1)
                spots = spots + F.interpolate(
                    torch.randn(small, device=at), size=x0.shape[2:], mode="bilinear"
                )
            off = off + k.view(-1, 1, 1, 1) * (S / A).clamp(max=1.0) * spots
        off = off * signal
        return x + A * off, t, ctx, v + A * A / S * off, told

    def step(self, h: int, w: int, n: int) -> None:
        """one step on n pictures of h x w cells"""
        a = self.a
        f = 2**a.level
        x, t, ctx, v, told = self.batch(n, h, w)
        models.ATTENTION_LOG = [] if a.align else None
        with torch.autocast(
            self.device.type, torch.bfloat16, self.half, cache_enabled=False
        ):
            x = x.contiguous(memory_format=torch.channels_last)
            out = self.stage(x, t.float(), ctx)
        err = (out.float() - v).pow(2)
        if a.focus != 1:
            side = box_side(h, w) // f
            top, left = (h // f - side) // 2, (w // f - side) // 2
            err[:, :, top : top + side, left : left + side] *= a.focus
        per = err.mean((1, 2, 3))
        loss = per.mean()
        if a.align:
            live = (ctx[:, FIRST_PATCH:, THING_AT] > 0.5).all(1).float()
            log, models.ATTENTION_LOG = models.ATTENTION_LOG, None
            turn, spoken = alignment_loss(log, h, w, live), word_loss(log, told)
            loss = loss + a.align * (turn + spoken)
            more = torch.stack([turn.detach(), spoken.detach(), torch.ones_like(turn)])
            self.turns += more.float()
        for opt in self.opts:
            opt.zero_grad()
        loss.backward()
        if a.ranks > 1:
            gr = [p.grad for p in self.params]
            flat = torch.cat([g.reshape(-1) for g in gr])
            torch.distributed.all_reduce(flat)
            flat /= a.ranks
            for g, piece in zip(gr, flat.split([g.numel() for g in gr])):
                g.copy_(piece.view(g.shape))
        torch.nn.utils.clip_grad_norm_(self.params, 1.0)
        for opt in self.opts:
            opt.step()
        per = torch.stack([per.detach(), torch.ones_like(per)], 1)
        self.sums.index_add_(0, torch.bucketize(t, self.bins, right=True), per)

    def go(self, h: int, w: int, n: int) -> None:
        """a step, on a GPU by replaying it"""
        if self.device.type == "cpu" or self.a.no_graphs:
            return self.step(h, w, n)
        if (h, w) not in self.graphs:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    self.step(h, w, n)
            torch.cuda.current_stream().wait_stream(side)
            for opt in self.opts:
                opt.zero_grad(set_to_none=True)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.memory):
                self.step(h, w, n)
            self.memory = self.memory or graph.pool()
            self.graphs[h, w] = graph
        self.graphs[h, w].replay()

    def exactly(self) -> None:
        """from now on without bfloat16"""
        self.half, self.graphs, self.memory = False, {}, None
        for opt in self.opts:
            opt.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def told(self) -> str:
        """the sums in words; they start anew"""
        sums, turns = self.sums.cpu().clone(), self.turns.cpu().clone()
        self.sums.zero_(), self.turns.zero_()
        by = [round((s / n).item(), 4) if n else None for s, n in sums]
        loss = (sums[:, 0].sum() / sums[:, 1].sum()).item()
        turn, spoken = (turns[:2] / turns[2].clamp(min=1)).tolist()
        return f"loss {loss:.4f} align {turn:.3f} {spoken:.3f} by noise {by}"


def work_loop(rank: int, a: argparse.Namespace) -> None:
    torch.set_num_threads(a.threads)
    if a.ranks > 1:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", str(29500 + os.getppid() % 400))
        torch.distributed.init_process_group("gloo", rank=rank, world_size=a.ranks)
    models.HALF_CONVOLUTIONS = not a.single_precision
    gpu = a.device != "cpu"
    if gpu:
        fast_on_gpu(not a.no_compile)
    lead = rank == 0
    cond = Conditions(a.work).to(a.device)
    lat = Latents(cond, a.work)
    path = a.work / "unet.pt"
    torch.manual_seed(a.seed)
    seen = step = 0
    spent = 0.0
    if path.exists():
        unet, st = load_unet(path)
        if st["level"] == a.level:
            unet.load_state_dict(st["raw"])
            spent = st.get("spent", 0.0)
    else:
        unet, st = UNet(**UNET), None
        nn.init.zeros_(unet.conv_out.weight), nn.init.zeros_(unet.conv_out.bias)
    stage = Stage(unet, a.level)
    if st:
        seen = st["seen"]
        if st["level"] == a.level:
            stage.load_state_dict(st["stage"], strict=False)
        elif st["level"] == a.level + 1:
            grow(stage, st["stage"])
        else:
            raise SystemExit(
                f"{path} holds level {st['level']}; level {a.level} cannot follow it."
            )
    stage = stage.to(a.device).to(memory_format=torch.channels_last)
    leave_unread(unet)
    params = stage.used()
    ends = {
        id(p)
        for m in ([stage.inp, stage.out] if a.level else [unet.conv_in, unet.conv_out])
        for p in m.parameters()
    }
    matrices = [p for p in params if p.ndim >= 2 and id(p) not in ends]
    picked = {id(p) for p in matrices}
    others = [p for p in params if id(p) not in picked]
    lr = torch.tensor(a.lr, device=a.device)
    opts = [
        Muon(matrices, lr=lr),
        torch.optim.Adam(others, lr=lr, betas=(0.9, 0.98), capturable=gpu),
    ]
    ema = [p.detach().clone() for p in params]
    if st and st["level"] == a.level:
        full = {**{f"unet.{k}": v for k, v in st["ema"].items()}, **st["stage_ema"]}
        keys = {id(p): k for k, p in stage.named_parameters()}
        ema = [full[keys[id(p)]].to(p) for p in params]
    if lead:
        print(
            f"seed {a.seed}, level {a.level}, {sum(p.numel() for p in params) / 1e6:.2f} M parameters, {seen} pictures seen",
            flush=True,
        )
    torch.manual_seed(a.seed * 7919 + seen + 1000 * rank)
    shape_rng = random.Random(a.seed * 31 + seen)
    src = Source(a, cond, a.seed * 17 + seen + 1000 * rank)
    f = 2**a.level
    if lead:
        pspecs = preview_specs(cond)
        pctx = cond.states(pspecs, [[0] * 10] * len(pspecs), [None] * len(pspecs))

    def save(preview: bool) -> None:
        raw = {k: v.cpu().clone() for k, v in unet.state_dict().items()}
        head = {
            k: v.cpu().clone()
            for k, v in stage.state_dict().items()
            if not k.startswith("unet.")
        }
        keep = [p.detach().clone() for p in params]
        with torch.no_grad():
            for p, e in zip(params, ema):
                p.copy_(e)
            smooth = {k: v.cpu().clone() for k, v in unet.state_dict().items()}
            head_ema = {
                k: v.cpu().clone()
                for k, v in stage.state_dict().items()
                if not k.startswith("unet.")
            }
            torch.save(
                {
                    "raw": raw,
                    "ema": smooth,
                    "stage": head,
                    "stage_ema": head_ema,
                    "level": a.level,
                    "seen": seen,
                    "spent": spent + el,
                },
                f"{path}.tmp",
            )
            os.replace(f"{path}.tmp", path)
            if preview:
                fast, models.FAST_NORM = models.FAST_NORM, None
                x = sample(stage, pctx, 64 // f, 64 // f, cfg=a.preview_cfg)
                tiles = F.interpolate(lat.rgb(x), size=(128, 128), mode="nearest")
                sheet = torch.cat(
                    [
                        torch.cat(list(tiles[i : i + 8]), 2)
                        for i in range(0, len(tiles), 8)
                    ],
                    1,
                )
                Image.fromarray(
                    (sheet.permute(1, 2, 0) * 255).round().byte().cpu().numpy()
                ).save(a.work / f"preview_l{a.level}_{seen:07d}.png")
                models.FAST_NORM = fast
            for p, k in zip(params, keep):
                p.copy_(k)

    lesson = Lesson(a, stage, src, lat, params, opts)
    t0 = saved = shown = time.time()
    el, total = 0.0, (a.total or a.minutes) * 60
    every = 10 if gpu else 1  # steps between two steps of the running mean
    while True:
        frac = min(1.0, ((spent if a.total else 0.0) + el) / total)
        if gpu and lesson.half and frac >= a.exact_from:
            lesson.exactly()
        x = min(1.0, max(0.0, (frac - a.hold) / (1 - a.hold)))
        decay = (
            1.0
            if a.no_decay
            else a.least + (1 - a.least) * (1 + math.cos(math.pi * x)) / 2
        )
        lr.fill_(a.lr * min(1, (step + 1) / 20) * decay)
        (h, w), _, mul = shape_rng.choices(SHAPES, [s[1] for s in SHAPES])[0]
        if shape_rng.random() < a.small:
            (h, w), mul = (32, 32), 3
        n = max(1, round(a.batch * mul))
        lesson.go(h, w, n)
        step += 1
        seen += n * a.ranks
        if step % every == 0:
            mean = min(a.ema**every, (step + 5) / (step + 30 * every))
            torch._foreach_lerp_(ema, [p.detach() for p in params], 1 - mean)
        if step % 25 == 0 or not gpu:
            if gpu:
                torch.cuda.synchronize()
            # a process that was stopped has not used up its time
            el += min(time.time() - t0, 4.0 if gpu else 60.0)
            t0 = time.time()
            if a.ranks > 1:  # all ranks agree on the time
                clock = torch.tensor([el])
                torch.distributed.all_reduce(clock)
                el = clock.item() / a.ranks
        if lead and step % a.every == 0:
            print(
                f"{step} seen {seen} {lesson.told()} lr {lr.item():.5f} {el:.0f}s",
                flush=True,
            )
        done = el >= a.minutes * 60 or frac >= 1
        if lead and (done or time.time() - saved > 100):
            show = done or time.time() - shown > a.preview_every * 60
            save(show)
            saved = time.time()
            if show:
                shown = saved
        if done:
            break
    if a.ranks > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("work", type=Path)
    ap.add_argument("merges", type=Path, help="CLIP's merges.txt")
    ap.add_argument("--level", type=int, choices=(2, 1, 0), required=True)
    ap.add_argument("--minutes", type=float, required=True)
    ap.add_argument("--states", choices=("true", "text"), default="text")
    ap.add_argument("--batch", type=int, default=16)
    ap.add_argument("--lr", type=float, default=2e-3)
    ap.add_argument("--ema", type=float, default=0.99)
    ap.add_argument("--blur", type=float, default=0.3, help="noise on the true states")
    ap.add_argument(
        "--unprompted",
        type=float,
        default=0.12,
        help="share of pictures without a prompt",
    )
    ap.add_argument(
        "--weighted",
        type=float,
        default=0.6,
        help="share of pictures whose words are weighted",
    )
    ap.add_argument(
        "--coloured",
        type=float,
        default=0.0,
        help="further share of pictures with an object colour",
    )
    ap.add_argument(
        "--focus",
        type=float,
        default=1.0,
        help="how much more an error in the object's box counts",
    )
    ap.add_argument(
        "--noisy",
        type=float,
        default=1.0,
        help="below 1: more pictures with much noise",
    )
    ap.add_argument(
        "--small",
        type=float,
        default=0.0,
        help="further share of pictures of 256x256, which cost a quarter",
    )
    ap.add_argument(
        "--boost",
        type=float,
        default=0.0,
        help="how strongly to exaggerate some pictures, as guidance does",
    )
    ap.add_argument("--boosted", type=float, default=0.7, help="share of these")
    ap.add_argument(
        "--mottle",
        type=float,
        default=0.0,
        help="how strong are soft spots that some pictures have and should not",
    )
    ap.add_argument("--mottled", type=float, default=0.5, help="share of these")
    ap.add_argument(
        "--align",
        type=float,
        default=0.02,
        help="weight of the lesson where cross-attention has to look",
    )
    ap.add_argument(
        "--pool",
        type=int,
        default=4000,
        help="captions held in memory",
    )
    ap.add_argument("--no-decay", action="store_true")
    ap.add_argument(
        "--hold",
        type=float,
        default=0.6,
        help="share of the time before the learning rate falls",
    )
    ap.add_argument(
        "--least", type=float, default=0.05, help="what the learning rate falls to"
    )
    ap.add_argument(
        "--total",
        type=float,
        default=0.0,
        help="minutes of this level in all, earlier runs too: the learning rate falls, and training ends, by these",
    )
    ap.add_argument("--device", default="cpu")
    ap.add_argument("--processes", type=int, default=1, help="that draw the captions")
    ap.add_argument(
        "--exact-from",
        type=float,
        default=2.0,
        help="on a GPU: share of the time from which on nothing is in bfloat16",
    )
    ap.add_argument("--no-graphs", action="store_true", help="no CUDA graphs")
    ap.add_argument(
        "--no-compile", action="store_true", help="group norms as they stand"
    )
    ap.add_argument("--every", type=int, default=25, help="steps between two lines")
    ap.add_argument(
        "--single-precision", action="store_true", help="no bfloat16 convolutions"
    )
    ap.add_argument("--threads", type=int, default=1)
    ap.add_argument(
        "--ranks", type=int, default=1, help="processes that average their gradients"
    )
    ap.add_argument("--preview-every", type=float, default=4)
    ap.add_argument("--preview-cfg", type=float, default=4)
    ap.add_argument("--seed", type=int, default=1)
    a = ap.parse_args()
    if not a.merges.exists():
        print(f"{a.merges} is missing.", file=sys.stderr)
        return 2
    if a.ranks > 1:
        torch.multiprocessing.spawn(work_loop, args=(a,), nprocs=a.ranks)
    else:
        work_loop(0, a)
    return 0


if __name__ == "__main__":
    sys.exit(main())
