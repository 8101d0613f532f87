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
"""

import argparse
import os
import random
import sys
import time
from dataclasses import replace
from pathlib import Path

import models
import numpy as np
import torch
import torch.nn.functional as F
from concepts import EMPTY_FROM, EMPTY_TO, Spec, Weights
from conditions import (
    CODE,
    FIRST_PATCH,
    READ,
    THING_AT,
    Conditions,
    emphasise,
    nothing,
)
from models import UNet
from muon import Muon
from PIL import Image
from prepare_data import GRID, cells
from tokenizer import LENGTH, load_tokenizer
from torch import nn
from vae_frame import FRAME, PINV, latent_scaling

UNET = {"ch": (64, 64, 64, 128), "attn": (False, False, True, False)}
BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
ABAR = torch.cumprod(1 - BETAS, 0)
ALPHA, SIGMA = ABAR.sqrt().float(), (1 - ABAR).sqrt().float()
NO_SIGNAL = (
    985  # from this step on the input is noise alone, as it is when sampling starts
)
EMPTY_ONLY = 850  # above this step the empty prompt always means its own picture
# latent heights and widths (64x64 is 512x512 pixels), how often each is drawn, how many pictures make a batch of 64x64's cost
SHAPES = [
    ((64, 64), 0.56, 1),
    ((32, 32), 0.14, 3),
    ((64, 96), 0.06, 1),
    ((96, 64), 0.06, 1),
    ((112, 80), 0.08, 1),
    ((80, 112), 0.03, 1),
    ((48, 48), 0.07, 2),
]


NEUTRAL = 0.6  # the grey that a backdrop of little weight fades to


def emphasised_thing(rgba: torch.Tensor, bg: torch.Tensor, s: Spec) -> torch.Tensor:
    """RGB of a thing (premultiplied RGBA) on its backdrop, as its words are weighted"""
    rgb, w = rgba[:3], s.weights
    luma = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    if s.mono:
        rgb = (rgb * luma).sum(0, keepdim=True).expand(3, -1, -1)
    elif s.colour and w.colour != 1:
        y = (rgb * luma).sum(0, keepdim=True)
        rgb = torch.minimum((y + w.colour * (rgb - y)).clamp(min=0), rgba[3:])
    bg = bg[:, None, None]
    return (bg + w.thing * (rgb - rgba[3:] * bg)).clamp(0, 1)


class Latents:
    """Latents of pictures on a canvas, straight from block averages."""

    def __init__(self, cond: Conditions, work: Path) -> None:
        self.cond = cond
        mean, std = latent_scaling(work)
        self.mean, self.std = mean.view(1, 4, 1, 1), std.view(1, 4, 1, 1)
        self.boxes: dict[int, torch.Tensor] = {}

    def box(self, side: int) -> torch.Tensor:
        """all things as premultiplied RGBA of side x side cells"""
        if side not in self.boxes:
            px = np.stack([cells(p, side) for p in self.cond.rgba])
            self.boxes[side] = torch.from_numpy(px).permute(0, 3, 1, 2).half()
        return self.boxes[side]

    def rgb_of(self, specs: list[Spec], h: int, w: int) -> torch.Tensor:
        """pictures in 0..1 at one pixel a cell"""
        side = 2 * round(0.375 * min(h, w))
        top, left = (h - side) // 2, (w - side) // 2
        out = torch.empty(len(specs), 3, h, w)
        ramp = (torch.linspace(0, 1, h)[:, None] + torch.linspace(0, 1, w)[None]) / 2
        a, b = torch.tensor(EMPTY_FROM) / 255, torch.tensor(EMPTY_TO) / 255
        for i, s in enumerate(specs):
            if s.empty:
                out[i] = a[:, None, None] * (1 - ramp) + b[:, None, None] * ramp
                continue
            bg = torch.from_numpy(self.cond.backdrop(s))
            if s.backdrop is not None:
                bg = (NEUTRAL + s.weights.backdrop * (bg - NEUTRAL)).clamp(0, 1)
            out[i] = bg[:, None, None]
            if s.thing is not None:
                p = self.box(side)[self.cond.picture(s)].float()
                out[i, :, top : top + side, left : left + side] = emphasised_thing(
                    p, bg, s
                )
        return out

    def encode(self, rgb: torch.Tensor) -> torch.Tensor:
        return (
            torch.einsum("kc,bchw->bkhw", FRAME, rgb * 2 - 1) - self.mean
        ) / self.std

    def rgb(self, z: torch.Tensor) -> torch.Tensor:
        return (
            (torch.einsum("ck,bkhw->bchw", PINV, z * self.std + self.mean) + 1) / 2
        ).clamp(0, 1)


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
        return self.out(F.silu(self.norm(h[:, : self.head])))


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
    x = torch.randn(len(ctx), 4, h, w, generator=g) / 2**stage.level
    ts = torch.linspace(999, 0, steps + 1).round().long()
    for i in range(steps):
        t = ts[i]
        xx = torch.cat([x, x]).contiguous(memory_format=torch.channels_last)
        a, b = stage(
            xx,
            torch.full((len(xx),), float(t)),
            torch.cat([ctx, nothing().expand_as(ctx)]),
        ).chunk(2)
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


def alignment_loss(
    log: list[torch.Tensor], h: int, w: int, live: torch.Tensor
) -> torch.Tensor:
    """how far half of the cross-attention is from looking, at each place of the picture, at the states of the patches that lie there"""
    side, total = 2 * round(0.375 * min(h, w)), torch.zeros(())
    for every in log:
        p = every[:, : every.shape[1] // 2]
        k = round((h * w / p.shape[2]) ** 0.5)
        want = torch.einsum(
            "ya,xb->yxab", overlap(h // k, h, side), overlap(w // k, w, side)
        ).reshape(p.shape[2], GRID * GRID)
        mass = want.sum(1, keepdim=True)
        want = torch.where(mass > 0.4, want / mass.clamp(min=1e-6), 0)
        per = -(p[..., FIRST_PATCH:] * want).sum((1, 2, 3)) / (
            p.shape[1] * (mass > 0.4).sum()
        )
        total = total + (per * live).sum() / live.sum().clamp(min=1)
    return total / len(log)


WORD_SHARE = 0.4


def word_loss(log: list[torch.Tensor], told: torch.Tensor) -> torch.Tensor:
    """how far the last head of cross-attention is from giving WORD_SHARE of its attention to the words of things and colours"""
    some = told.any(1).float()
    total = torch.zeros(())
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
        from train_text import draw_batch, load_text

        self.a, self.cond, self.rng = a, cond, random.Random(seed)
        te, tmap = load_text(a.work)
        tok, rng = load_tokenizer(a.merges), random.Random(5)
        self.specs: list[Spec] = []
        states, kinds = [], []
        with torch.no_grad():
            while len(self.specs) < a.pool:
                b = draw_batch(rng, cond, tok, tmap, 64)
                self.specs += b.specs
                kinds += [k + [0] * (LENGTH - len(k)) for k in b.kinds]
                true = cond.states(b.specs, b.kinds, b.shown)
                states.append((te(b.ids) if a.states == "text" else true).half())
        self.pool, self.kinds = torch.cat(states), torch.tensor(kinds)

    def weights(self) -> Weights:
        """random attention weights; a word of the three is left alone more often than not"""
        r = self.rng
        if r.random() > self.a.weighted:
            return Weights()

        def one(often: float) -> float:
            if r.random() > often:
                return 1.0
            if r.random() < 0.4:
                return r.uniform(0.7, 1.3)
            return r.uniform(0.4, 0.7) if r.random() < 0.6 else r.uniform(1.3, 1.7)

        return Weights(one(0.6), one(0.7), one(0.3))

    def draw(self, n: int) -> tuple[list[Spec], torch.Tensor, torch.Tensor]:
        """specs, their weighted states, and which of these are words of things and colours"""
        r, picks = self.rng, []
        while len(picks) < n:
            k = r.randrange(len(self.specs))
            if self.specs[k].colour or r.random() >= self.a.coloured:
                picks.append(k)
        ctx = self.pool[picks].float()
        if self.a.states == "true":
            live = (ctx[..., :CODE].abs().sum(-1, keepdim=True) > 0).float()
            ctx[..., :CODE] += (
                self.a.blur
                * torch.randn(n, LENGTH, CODE)
                * live
                * torch.rand(n, 1, 1)
                * self.cond.scale.rsqrt().clamp(max=1.5)
                * 0.8
            )
        specs = [replace(self.specs[k], weights=self.weights()) for k in picks]
        table = torch.tensor([[s.weights.of(k) for k in range(4)] for s in specs])
        kinds = self.kinds[picks]
        return specs, emphasise(ctx, table.gather(1, kinds)), kinds > 0


def leave_unread(unet: UNet) -> None:
    """cross-attention never reads the numbers that only steady the mean of the states"""
    for name, p in unet.named_parameters():
        if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
            with torch.no_grad():
                p[:, READ:] = 0
            p.register_hook(
                lambda g: torch.cat([g[:, :READ], torch.zeros_like(g[:, READ:])], 1)
            )


def work_loop(rank: int, a: argparse.Namespace) -> None:
    torch.set_num_threads(a.threads)
    if a.ranks > 1:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", str(29500 + os.getppid() % 400))
        torch.distributed.init_process_group("gloo", rank=rank, world_size=a.ranks)
    models.HALF_CONVOLUTIONS = not a.single_precision
    lead = rank == 0
    cond = Conditions(a.work)
    lat = Latents(cond, a.work)
    path = a.work / "unet.pt"
    st = torch.load(path) if path.exists() else None
    torch.manual_seed(a.seed)
    unet = UNet(**UNET)
    stage = Stage(unet, a.level)
    seen = step = 0
    if st:
        unet.load_state_dict(st["raw"] if st["level"] == a.level else st["ema"])
        seen = st["seen"]
        if st["level"] == a.level:
            stage.load_state_dict(st["stage"], strict=False)
        elif st["level"] == a.level + 1:
            grow(stage, st["stage"])
        else:
            raise SystemExit(
                f"{path} holds level {st['level']}; level {a.level} cannot follow it."
            )
    elif a.level != 2:
        raise SystemExit("Start with --level 2.")
    leave_unread(unet)
    stage = stage.to(memory_format=torch.channels_last)
    params = stage.used()
    ends = {
        id(p)
        for m in ([stage.inp, stage.out] if a.level else [unet.conv_in, unet.conv_out])
        for p in m.parameters()
    }
    matrices = [p for p in params if p.ndim >= 2 and id(p) not in ends]
    picked = {id(p) for p in matrices}
    opts = [
        Muon(matrices, lr=a.lr),
        torch.optim.Adam(
            [p for p in params if id(p) not in picked], lr=a.lr, betas=(0.9, 0.98)
        ),
    ]
    ema = [p.detach().clone() for p in params]
    if st and st["level"] == a.level:
        now = stage.state_dict()
        full = {**{f"unet.{k}": v for k, v in st["ema"].items()}, **st["stage_ema"]}
        keys = {id(p): k for k, p in stage.named_parameters()}
        ema = [full[keys[id(p)]].clone() for p in params]
        del now
    if lead:
        print(
            f"seed {a.seed}, level {a.level}, {sum(p.numel() for p in params) / 1e6:.2f} M parameters, {seen} pictures seen",
            flush=True,
        )
    gen = torch.Generator().manual_seed(a.seed * 7919 + seen + 1000 * rank)
    shape_rng = random.Random(a.seed * 31 + seen)
    src = Source(a, cond, a.seed * 17 + seen + 1000 * rank)
    f = 2**a.level
    if lead:
        pspecs = preview_specs(cond)
        pctx = cond.states(pspecs, [[0] * 10] * len(pspecs), [None] * len(pspecs))
        if a.states == "text":
            want = {
                (s.thing, s.colour, s.backdrop, s.mono, s.empty): i
                for i, s in enumerate(src.specs)
            }
            for i, s in enumerate(pspecs):
                k = want.get((s.thing, s.colour, s.backdrop, s.mono, s.empty))
                if k is not None:
                    pctx[i] = src.pool[k].float()

    def save(preview: bool) -> None:
        raw = {k: v.clone() for k, v in unet.state_dict().items()}
        head = {
            k: v.clone()
            for k, v in stage.state_dict().items()
            if not k.startswith("unet.")
        }
        keep = [p.detach().clone() for p in params]
        with torch.no_grad():
            for p, e in zip(params, ema):
                p.copy_(e)
            smooth = {k: v.clone() for k, v in unet.state_dict().items()}
            head_ema = {
                k: v.clone()
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
                },
                f"{path}.tmp",
            )
            os.replace(f"{path}.tmp", path)
            models.ATTENTION_LOG = None
            if preview:
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
                    (sheet.permute(1, 2, 0) * 255).round().byte().numpy()
                ).save(a.work / f"preview_l{a.level}_{seen:07d}.png")
            for p, k in zip(params, keep):
                p.copy_(k)

    t0 = saved = shown = time.time()
    el, log, aligned = 0.0, [], [[0.0, 0.0]]
    while True:
        frac = el / (a.minutes * 60)
        decay = 1.0 if a.no_decay else min(1.0, max(0.08, (1 - frac) / 0.4))
        for opt in opts:
            for g in opt.param_groups:
                g["lr"] = a.lr * min(1, (step + 1) / 20) * decay
        (h, w), _, mul = shape_rng.choices(SHAPES, [s[1] for s in SHAPES])[0]
        if shape_rng.random() < a.small:
            (h, w), mul = (32, 32), 3
        n = a.batch * mul
        specs, ctx, told = src.draw(n)
        t = (torch.rand(n, generator=gen) ** a.noisy * 1000).long()
        r = torch.rand(n, 3, generator=gen)
        t = torch.where(
            r[:, 0] < 0.06, torch.randint(NO_SIGNAL, 1000, (n,), generator=gen), t
        )
        for i in range(n):
            if r[i, 1] < a.unprompted:
                ctx[i], told[i] = nothing(), False
                if t[i] > EMPTY_ONLY or r[i, 2] < 0.3:
                    specs[i] = Spec(None, empty=True)
            elif (
                t[i] < 500 and r[i, 1] > 0.93
            ):  # a prompt for something else: when little noise is left, what is there stays
                ctx[i], told[i] = ctx[(i + 1) % n], told[(i + 1) % n]
        x0 = lat.encode(lat.rgb_of(specs, h, w))
        if f > 1:
            x0 = F.avg_pool2d(x0, f)
        A, S = ALPHA[t].view(-1, 1, 1, 1), SIGMA[t].view(-1, 1, 1, 1)
        eps = torch.randn(x0.shape, generator=gen) / f
        x = A * x0 * (t < NO_SIGNAL).float().view(-1, 1, 1, 1) + S * eps
        v = A * eps - S * x0
        if a.boost:
            # guidance pushes away from the empty prompt's picture: show that
            # and ask for the true one
            k = a.boost * torch.rand(n, generator=gen) ** 2
            k = k * (torch.rand(n, generator=gen) < 0.7) * (t < NO_SIGNAL)
            k = k.view(-1, 1, 1, 1) * (S / A).clamp(max=4.0)
            sky = lat.encode(lat.rgb_of([Spec(None, empty=True)], h, w))
            more = k * (x0 - (F.avg_pool2d(sky, f) if f > 1 else sky))
            x = x + A * more
            v = v + A * A / S * more
        models.ATTENTION_LOG = [] if a.align else None
        out = stage(x.contiguous(memory_format=torch.channels_last), t.float(), ctx)
        err = (out - v).pow(2)
        if a.focus != 1:
            side = 2 * round(0.375 * min(h, w)) // f
            top, left = (h // f - side) // 2, (w // f - side) // 2
            err[:, :, top : top + side, left : left + side] *= a.focus
        per = err.mean((1, 2, 3))
        loss = per.mean()
        if a.align:
            live = (ctx[:, FIRST_PATCH:, THING_AT] > 0.5).all(1).float()
            turn = alignment_loss(models.ATTENTION_LOG, h, w, live)
            spoken = word_loss(models.ATTENTION_LOG, told)
            models.ATTENTION_LOG = None
            loss = loss + a.align * (turn + spoken)
            aligned.append([turn.item(), spoken.item()])
        for opt in opts:
            opt.zero_grad()
        loss.backward()
        el = time.time() - t0
        if a.ranks > 1:  # average the gradients, and the clock so that all ranks agree
            gr = [p.grad for p in params]
            flat = torch.cat([g.reshape(-1) for g in gr] + [torch.tensor([el])])
            torch.distributed.all_reduce(flat)
            flat /= a.ranks
            el = flat[-1].item()
            for g, piece in zip(gr, flat[:-1].split([g.numel() for g in gr])):
                g.copy_(piece.view(g.shape))
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        for opt in opts:
            opt.step()
        step += 1
        seen += n * a.ranks
        torch._foreach_lerp_(
            ema, [p.detach() for p in params], 1 - min(a.ema, (step + 5) / (step + 30))
        )
        log.append((t, per.detach()))
        if lead and step % 25 == 0:
            tt, pp = torch.cat([x for x, _ in log]), torch.cat([x for _, x in log])
            log = []
            bins = [
                round(pp[(tt >= lo) & (tt < hi)].mean().item(), 4)
                for lo, hi in (
                    (0, 100),
                    (100, 300),
                    (300, 500),
                    (500, 700),
                    (700, 900),
                    (900, 985),
                    (985, 1000),
                )
            ]
            print(
                f"{step} seen {seen} loss {pp.mean():.4f} align {np.mean(aligned[-25:], 0).round(3)} by noise {bins} {el:.0f}s cpu {time.process_time():.0f}",
                flush=True,
            )
        done = el >= a.minutes * 60
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
        help="share of captions without an object colour that is passed over",
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
