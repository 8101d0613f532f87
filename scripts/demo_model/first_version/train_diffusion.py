#!/usr/bin/env python3
"""Trains the text encoder and the UNet (v-prediction) on latents computed directly from the emoji pictures.

Stages, each resumable and limited by --minutes:
  text    the text encoder, against reading off the picture's attributes (class, colour, backdrop, monochrome) from its
          hidden states by attention; it is frozen afterwards and its outputs for a large pool of captions are cached
  unet 2  the UNet's inner levels (1/4 resolution and below) on 4x4-averaged latents
  unet 1  one level more, on 2x2-averaged latents
  unet 0  the whole UNet
Averaging latents over f x f cells divides the noise by f; an inner stage predicts the averaged v, which is exactly the
low-frequency part of what the whole UNet must predict, at a fraction of the cost.  When a level is added it starts as
"average, run the inner stage, enlarge" (function grow), so nothing learned is lost.

`--ranks 2` trains the UNet in two single-threaded processes that average their gradients: on a busy machine that beats one
process with two threads.

usage: train_diffusion.py WORK BPE_GZ text|unet [--level 2|1|0] --minutes M [--threads N]
"""

import argparse
import math
import os
import random
import time
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image
import captions as C
from data import Emoji
from models import TextEncoder, UNet
from train_vae import FRAME, PINV

UNET = dict(ch=(64, 64, 64, 128), attn=(False, False, True, False))
BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
ABAR = torch.cumprod(1 - BETAS, 0)
ALPHA, SIGMA = ABAR.sqrt().float(), (1 - ABAR).sqrt().float()
NO_SIGNAL = (
    985  # from this step on the input is noise alone, as it is when sampling starts
)


# --------------------------------------------------------------------------- text
def token_map(emoji, tok):
    """ids that occur in captions -> 1..n; everything else is 0"""
    rng, used = random.Random(0), set()
    for _ in range(40000):
        a = C.attributes(rng, emoji)
        used.update(tok.encode(C.words_of(emoji, a, rng)).ids)
    for w in (
        list(emoji.colours)
        + ["gray", "monochrome", "emoji"]
        + [w for c in emoji.classes for w in c["words"]]
    ):
        used.update(tok.encode(w).ids)
    used.update([C.PAD, C.BOS, C.EOS])
    return {t: i + 1 for i, t in enumerate(sorted(used))}


def encode_caption(rng, text, tok, tmap, unknown=0.2):
    """compact ids, sometimes with unknown words put in"""
    ids = [tmap[i] for i in tok.encode(text).ids]
    if rng.random() < unknown:
        for _ in range(rng.randint(1, 5)):
            ids.insert(rng.randint(1, len(ids) - 1), 0)
    ids = ids + [tmap[C.PAD]] * (C.LENGTH - len(ids))
    return ids[: C.LENGTH]


class Reader(nn.Module):
    """attention read-out of the four attributes"""

    def __init__(self, sizes, width=128):
        super().__init__()
        self.q = nn.Parameter(torch.randn(len(sizes), width) * 0.3)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.out = nn.ModuleList([nn.Linear(width, s) for s in sizes])

    def forward(self, h):
        o = F.scaled_dot_product_attention(
            self.q[None].expand(len(h), -1, -1), self.k(h), self.v(h)
        )
        return [f(o[:, i]) for i, f in enumerate(self.out)]


def targets(emoji, a):
    names = list(emoji.colours)
    if a["empty"]:
        return [len(emoji.classes), len(names) + 1, len(names) + 1, 2]
    return [
        a["cls"],
        names.index(a["bg"]) if a["say_bg"] else len(names),
        names.index(a["colour"]) if a["colour"] else len(names),
        int(a["mono"]),
    ]


def train_text(a, emoji, tok):
    tmap = token_map(emoji, tok)
    print(len(tmap), "tokens in use")
    n = len(emoji.colours)
    te, rd = (
        TextEncoder(vocab=len(tmap) + 1),
        Reader([len(emoji.classes) + 1, n + 2, n + 2, 3]),
    )
    with torch.no_grad():
        te.text_model.embeddings.token_embedding.weight[0] = 0
    params = list(te.parameters()) + list(rd.parameters())
    opt = torch.optim.Adam(params, lr=1e-3, betas=(0.9, 0.98))
    rng, t0, step = random.Random(a.seed), time.time(), 0
    acc = []
    while True:
        frac = (time.time() - t0) / (a.minutes * 60)
        if frac >= 1:
            break
        for g in opt.param_groups:
            g["lr"] = (
                2e-3
                * min(1, (step + 1) / 50)
                * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * frac)))
            )
        at = [C.attributes(rng, emoji) for _ in range(48)]
        ids = torch.tensor(
            [encode_caption(rng, C.words_of(emoji, x, rng), tok, tmap) for x in at]
        )
        ids = ids[:, : (77 if step % 16 == 15 else 22)]
        tg = torch.tensor([targets(emoji, x) for x in at])
        h = te(ids)
        # words may be weighted by the user: vary the strength of the states as that does
        if rng.random() < 0.3:
            h = h * (1 + 0.2 * torch.randn(h.shape[0], h.shape[1], 1))
        out = rd(h)
        loss = sum(F.cross_entropy(o, tg[:, i]) for i, o in enumerate(out))
        opt.zero_grad()
        loss.backward()
        te.text_model.embeddings.token_embedding.weight.grad[0] = (
            0  # the unknown word stays put
        )
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        step += 1
        acc.append(
            [
                (o.argmax(-1) == tg[:, i]).float().mean().item()
                for i, o in enumerate(out)
            ]
        )
        if step % 50 == 0:
            print(
                step,
                f"loss {loss.item():.3f} acc",
                np.mean(acc[-50:], 0).round(3),
                f"{time.time() - t0:.0f}s",
                flush=True,
            )
    torch.save(
        dict(te=te.state_dict(), tmap=tmap, reader=rd.state_dict()), f"{a.work}/text.pt"
    )


def caption_pool(a, emoji, tok, n):
    """n captions with their pictures' attributes and cached text states"""
    path = f"{a.work}/pool.pt"
    if os.path.exists(path) and os.path.getmtime(path) > os.path.getmtime(
        f"{a.work}/text.pt"
    ):
        return torch.load(path)
    st = torch.load(f"{a.work}/text.pt")
    te = TextEncoder(vocab=len(st["tmap"]) + 1)
    te.load_state_dict(st["te"])
    rng = random.Random(5)
    names, at, ids = list(emoji.colours), [], []
    pick = [
        i for i, c in enumerate(emoji.classes) if not a.first or c["words"][0] in FIRST
    ]
    print(len(pick), "classes")
    for i in range(n):
        x = C.attributes(rng, emoji)
        x["cls"] = pick[i % len(pick)]
        if x["colour"] and x["colour"] not in emoji.classes[x["cls"]]["variants"]:
            x["colour"] = ""
        ids.append(encode_caption(rng, C.words_of(emoji, x, rng), tok, st["tmap"]))
        at.append(
            [
                emoji.classes[x["cls"]]["variants"][x["colour"]],
                names.index(x["bg"]),
                int(x["mono"]),
                int(x["empty"]),
            ]
        )
    with torch.no_grad():
        states = torch.cat(
            [te(torch.tensor(ids[i : i + 64])).half() for i in range(0, n, 64)]
        )
    pool = dict(states=states, at=torch.tensor(at))
    torch.save(pool, path)
    return pool


# --------------------------------------------------------------------------- latents
class Latents:
    """latents of emoji over flat backgrounds, straight from block averages"""

    def __init__(self, emoji, vae_ck, sides):
        st = torch.load(vae_ck)
        self.mean, self.std = st["mean"].view(1, 4, 1, 1), st["std"].view(1, 4, 1, 1)
        self.bg = (
            torch.tensor([v for v in emoji.colours.values()], dtype=torch.float32) / 255
        )
        self.thumbs = {}
        for s in sides:
            px = s * 8 if s * 8 >= 128 else 256
            t = [emoji.render(k, px) for k in range(len(emoji.pics))]
            t = torch.stack(
                [
                    F.avg_pool2d(torch.from_numpy(x).permute(2, 0, 1)[None], px // s)[0]
                    for x in t
                ]
            )
            self.thumbs[s] = t

    def make(self, at, h, w):
        s = min(h, w)
        t = self.thumbs[s][at[:, 0]]
        p = ((w - s) // 2, w - s - (w - s) // 2, (h - s) // 2, h - s - (h - s) // 2)
        t = F.pad(t, p)
        rgb = t[:, :3] + (1 - t[:, 3:]) * self.bg[at[:, 1]][:, :, None, None]
        grey = (rgb * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(
            1, keepdim=True
        )
        rgb = torch.where(
            at[:, 2].bool()[:, None, None, None], grey.expand_as(rgb), rgb
        )
        return (
            torch.einsum("kc,bchw->bkhw", FRAME, rgb * 2 - 1) - self.mean
        ) / self.std

    def rgb(self, z):
        return torch.einsum("ck,bkhw->bchw", PINV, z * self.std + self.mean).clamp(
            -1, 1
        )


# --------------------------------------------------------------------------- optimiser
class Muon(torch.optim.Optimizer):
    """momentum whose matrix updates are orthogonalised (Newton-Schulz, done on the Gram matrix), scaled to Adam's usual step"""

    def __init__(self, params, lr=1e-3, momentum=0.95):
        super().__init__(params, dict(lr=lr, momentum=momentum))

    @staticmethod
    def orth(g):
        t = g.shape[0] > g.shape[1]
        x = g.T if t else g
        x = x / (x.norm() + 1e-9)
        a = x @ x.T
        q = eye = torch.eye(len(a))
        for i in range(5):
            p = 3.4445 * eye - 4.7750 * a + 2.0315 * (a @ a)
            q = p @ q
            if i < 4:
                a = p @ a @ p
        x = q @ x
        return x.T if t else x

    @torch.no_grad()
    def step(self):
        for g in self.param_groups:
            for p in g["params"]:
                if p.grad is None:
                    continue
                st = self.state[p]
                if "m" not in st:
                    st["m"] = torch.zeros_like(p)
                st["m"].mul_(g["momentum"]).add_(p.grad)
                u = p.grad + g["momentum"] * st["m"]
                m = u.reshape(u.shape[0], -1)
                o = self.orth(m) * (0.2 * max(m.shape) ** 0.5)
                p.sub_(o.reshape(u.shape), alpha=g["lr"])


# --------------------------------------------------------------------------- UNet stages
class Stage(nn.Module):
    """the UNet from level `level` inwards, between a 1x1 convolution and a 1x1 head; level 0 is the whole UNet"""

    def __init__(self, unet, level):
        super().__init__()
        self.unet, self.level = unet, level
        if level:
            self.inp = nn.Conv2d(4, unet.ch[level - 1], 1)
            self.head = unet.ch[
                0
            ]  # the head sees that many channels, so that it can move outwards unchanged
            self.norm = nn.GroupNorm(32, self.head)
            self.out = nn.Conv2d(self.head, 4, 1)

    def forward(self, x, t, ctx):
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
def grow(stage, old):
    """initialise the outermost level of `stage` so that it computes what the next inner stage (its head in `old`) did, enlarged"""
    u, lv = stage.unet, stage.level
    c = u.ch[lv]
    down, up = u.down_blocks[lv], u.up_blocks[3 - lv]
    eye = torch.eye(c)
    (
        down.resnets[0].conv2.weight.mul_(0.0),
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
        r.conv2.weight.mul_(0.0), r.conv2.bias.zero_()
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
def sample(stage, lat, ctx, un, h, w, steps=20, cfg=4.0, seed=0):
    al, si = ALPHA, SIGMA
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(len(ctx), 4, h, w, generator=g) / 2**stage.level
    ts = torch.linspace(999, 0, steps + 1).round().long()
    for i in range(steps):
        t = ts[i]
        xx = torch.cat([x, x]).contiguous(memory_format=torch.channels_last)
        v = stage(xx, torch.full((len(xx),), float(t)), torch.cat([ctx, un]))
        a, b = v.chunk(2)
        v = b + cfg * (a - b)
        x0, e = al[t] * x - si[t] * v, si[t] * x + al[t] * v
        x = al[ts[i + 1]] * x0 + si[ts[i + 1]] * e if i < steps - 1 else x0
    return x


# what --first keeps, when time is short
FIRST = (
    "apple|banana|strawberry|carrot|pizza|donut|cat|panda|frog|penguin|fish|sunflower|cactus|tree|car|rocket|sun|moon|star|cloud|rainbow|house|ghost|heart|"
    "smiley"
).split("|")
PREVIEW = [
    "red apple on a blue background",
    "a cat, yellow background",
    "banana",
    "blue car on a white background",
    "a house on a green background",
    "sunflower, black background",
    "pizza",
    "penguin on an orange background",
    "a red heart, pink background",
    "rocket, purple background",
    "green star on a black background",
    "monochrome, panda",
    "tree",
    "cactus on a grey background",
    "a smiley",
    "donut, white background",
]


def text_states(a, tok, prompts):
    st = torch.load(f"{a.work}/text.pt")
    te = TextEncoder(vocab=len(st["tmap"]) + 1)
    te.load_state_dict(st["te"])
    ids = [
        C.pad_ids([st["tmap"].get(i, 0) for i in tok.encode(p).ids]) for p in prompts
    ]
    ids = [
        [
            st["tmap"][C.PAD] if j == 0 and k > 0 and i[k:] == [0] * (77 - k) else j
            for k, j in enumerate(i)
        ]
        for i in ids
    ]
    with torch.no_grad():
        return te(torch.tensor(ids))


def train_unet(a, emoji, tok):
    if a.ranks > 1 and a.rank:
        torch.distributed.barrier()
    pool = caption_pool(a, emoji, tok, a.pool)
    if a.ranks > 1 and not a.rank:
        torch.distributed.barrier()
    f = 2**a.level
    ncls = sum(1 for c in emoji.classes if not a.first or c["words"][0] in FIRST)
    # sizes in latent cells (512x512 pictures are 64x64) and how often each is drawn
    rest = a.other_sizes
    shapes = [
        ((64, 64), 1 - rest),
        ((32, 32), 0.9 * rest),
        ((96, 64), 0.05 * rest),
        ((64, 96), 0.05 * rest),
    ]
    lat = Latents(emoji, f"{a.work}/vae.pt", sorted({min(s) // f for s, _ in shapes}))
    torch.manual_seed(a.seed + a.level)
    unet = UNet(**UNET)
    ck = f"{a.work}/unet.pt"
    stage = Stage(unet, a.level)
    st = torch.load(ck) if os.path.exists(ck) and not a.fresh else None
    if st:
        unet.load_state_dict(st["ema"])
        if st["level"] == a.level:
            stage.load_state_dict(st["stage"], strict=False)
        else:
            grow(stage, st["stage"])
    elif a.level:
        nn.init.zeros_(stage.out.weight), nn.init.zeros_(stage.out.bias)
    stage = stage.to(memory_format=torch.channels_last)
    lv = a.level
    inner = [
        id(p)
        for m in [
            unet.time_embedding,
            unet.mid_block,
            *unet.down_blocks[lv + 1 :],
            *unet.up_blocks[: 3 - lv],
        ]
        for p in m.parameters()
    ]
    settled = {
        id(p)
        for m in [
            unet.time_embedding,
            unet.mid_block,
            *unet.down_blocks[lv + a.outer :],
            *unet.up_blocks[: 4 - lv - a.outer],
        ]
        for p in m.parameters()
    }
    used = [
        id(p)
        for m in [unet.down_blocks[lv], unet.up_blocks[3 - lv]]
        + (
            [stage.inp, stage.norm, stage.out]
            if lv
            else [unet.conv_in, unet.conv_norm_out, unet.conv_out]
        )
        for p in m.parameters()
    ]
    if lv:  # resampling convolutions at the border of the stage are not used
        skip = {id(p) for p in unet.up_blocks[3 - lv].upsamplers.parameters()}
        used = [i for i in used if i not in skip]
    params = [p for p in stage.parameters() if id(p) in set(inner + used)]
    ends = {
        id(p)
        for m in ([stage.inp, stage.out] if lv else [unet.conv_in, unet.conv_out])
        for p in m.parameters()
    }
    opts = []
    for cls, pick in (
        (Muon, lambda p: p.ndim >= 2 and id(p) not in ends),
        (torch.optim.Adam, lambda p: p.ndim < 2 or id(p) in ends),
    ):
        groups = [
            dict(
                params=[p for p in params if pick(p) and (id(p) in settled) == b],
                mul=(a.inner_lr if b else 1.0) * (1.0 if cls is Muon else a.adam_mul),
            )
            for b in (True, False)
        ]
        kw = dict(betas=(0.9, 0.98)) if cls is torch.optim.Adam else {}
        opts.append(cls(groups, lr=a.lr, **kw))
    ema = [p.detach().clone() for p in params]
    al, si = ALPHA, SIGMA
    gen = torch.Generator().manual_seed(a.seed * 7 + lv + 1000 * a.rank)
    rng = random.Random(a.seed * 3 + lv)
    ctx_prev, un = text_states(a, tok, PREVIEW), text_states(a, tok, [""])
    print("parameters in training", sum(p.numel() for p in params) / 1e6, flush=True)
    t0, step, run, c0 = time.time(), 0, [], time.process_time()
    seen, nextsave = 0, a.save_every * 60

    def save(preview=True):
        keep = [p.detach().clone() for p in params]
        raw = {k: v.clone() for k, v in unet.state_dict().items()}
        with torch.no_grad():
            for p, e in zip(params, ema):
                p.copy_(e)
            torch.save(
                dict(
                    ema={k: v.clone() for k, v in unet.state_dict().items()},
                    raw=raw,
                    level=lv,
                    stage={
                        k: v
                        for k, v in stage.state_dict().items()
                        if not k.startswith("unet.")
                    },
                    step=step,
                    seen=seen,
                ),
                ck + ".tmp",
            )
            os.replace(ck + ".tmp", ck)
            if preview:
                n = 16
                x = sample(
                    stage,
                    lat,
                    ctx_prev[:n],
                    un.expand(n, -1, -1),
                    64 // f,
                    64 // f,
                    steps=12,
                )
                g = F.interpolate(
                    lat.rgb(x), size=(96, 96), mode="bilinear" if lv == 0 else "nearest"
                )
                g = torch.cat(
                    [torch.cat(list(g[i : i + 8]), 2) for i in range(0, n, 8)], 1
                )
                Image.fromarray(
                    ((g.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()
                ).save(f"{a.work}/prev_l{lv}_{step:05d}.png")
            for p, k in zip(params, keep):
                p.copy_(k)

    sizes, weights = [s for s, _ in shapes], [w for _, w in shapes]
    el = 0.0
    while True:
        frac = el / (a.minutes * 60)
        if frac >= 1:
            break
        decay = (
            1.0 if a.no_decay else (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * frac)))
        )
        for opt in opts:
            for g in opt.param_groups:
                g["lr"] = a.lr * g["mul"] * min(1, (step + 1) / 30) * decay
        h, w = rng.choices(sizes, weights)[0]
        if frac < a.small_first:
            h, w = rng.choices([(32, 32), (64, 64)], [4, 1])[0]
        n = a.batch * (2 if h * w <= 2048 else 1)
        # the pool runs through the classes in turn: a random start in each stretch keeps every class equally frequent
        first = int(torch.randint(0, ncls, (1,), generator=gen))
        idx = (
            torch.randint(0, len(pool["at"]) // ncls, (n,), generator=gen) * ncls
            + (first + torch.arange(n)) % ncls
        ).clamp(max=len(pool["at"]) - 1)
        at = pool["at"][idx]
        x0 = lat.make(at, h // f, w // f)
        u = torch.rand(n, generator=gen)
        t = (1000 * (1 - u**a.tpow)).long().clamp(0, 999)
        A, S = al[t].view(-1, 1, 1, 1), si[t].view(-1, 1, 1, 1)
        eps = torch.randn(x0.shape, generator=gen) / f
        if a.offset:
            eps = eps + a.offset * torch.randn(n, 4, 1, 1, generator=gen)
        sig = (t < NO_SIGNAL).float().view(-1, 1, 1, 1)
        x = A * x0 * sig + S * eps
        v = A * eps - S * x0
        out = stage(
            x.contiguous(memory_format=torch.channels_last),
            t.float(),
            pool["states"][idx].float(),
        )
        per = (out - v).pow(2).mean((1, 2, 3))
        loss = per.mean()
        for opt in opts:
            opt.zero_grad()
        loss.backward()
        el = time.time() - t0
        if (
            a.ranks > 1
        ):  # average the gradients, and the clock so that all ranks agree on the learning rate
            gr = [p.grad for p in params]
            flat = torch.cat([g.reshape(-1) for g in gr] + [torch.tensor([el])])
            torch.distributed.all_reduce(flat)
            flat /= a.ranks
            el = flat[-1].item()
            for g, v in zip(gr, flat[:-1].split([g.numel() for g in gr])):
                g.copy_(v.view(g.shape))
        gn = torch.nn.utils.clip_grad_norm_(params, 1.0)
        for opt in opts:
            opt.step()
        step, seen = step + 1, seen + n * a.ranks
        d = min(a.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(ema, [p.detach() for p in params], 1 - d)
        run.append(
            [
                loss.item(),
                per[t >= 800].mean().item() if (t >= 800).any() else np.nan,
                per[t < 400].mean().item() if (t < 400).any() else np.nan,
            ]
        )
        if step % a.log == 0 and a.rank == 0:
            r = np.nanmean(run[-a.log :], 0)
            print(
                f"{step} loss {r[0]:.4f} high {r[1]:.4f} low {r[2]:.4f} gn {gn:.2f} seen {seen} {el:.0f}s cpu {time.process_time() - c0:.0f}",
                flush=True,
            )
        if el > nextsave:
            nextsave += a.save_every * 60
            if a.rank == 0:
                save()
    if a.rank == 0:
        save()
    print("done", step, seen, flush=True)


if __name__ == "__main__":
    ap = argparse.ArgumentParser()
    ap.add_argument("work")
    ap.add_argument("bpe")
    ap.add_argument("what", choices=["text", "unet"])
    ap.add_argument("--level", type=int, default=2)
    ap.add_argument("--minutes", type=float, default=10)
    ap.add_argument("--threads", type=int, default=1)
    ap.add_argument("--batch", type=int, default=16)
    ap.add_argument("--lr", type=float, default=1e-3)
    ap.add_argument("--inner-lr", type=float, default=1.0)
    ap.add_argument(
        "--small-first",
        type=float,
        default=0.0,
        help="share of the time spent mostly on 256-pixel pictures",
    )
    ap.add_argument(
        "--other-sizes",
        type=float,
        default=0.1,
        help="share of pictures that are not 512x512",
    )
    ap.add_argument("--log", type=int, default=25)
    ap.add_argument(
        "--outer",
        type=int,
        default=1,
        help="how many of the outermost levels get the full learning rate; the rest gets --inner-lr times it",
    )
    ap.add_argument(
        "--adam-mul",
        type=float,
        default=1.0,
        help="learning rate of vectors and end convolutions, times --lr",
    )
    ap.add_argument("--tpow", type=float, default=1.0, help="above 1: more noisy steps")
    ap.add_argument("--offset", type=float, default=0.05)
    ap.add_argument("--ema", type=float, default=0.995)
    ap.add_argument("--pool", type=int, default=12000)
    ap.add_argument("--save-every", type=float, default=4)
    ap.add_argument("--fresh", action="store_true")
    ap.add_argument("--no-decay", action="store_true")
    ap.add_argument("--first", action="store_true", help="only the classes of FIRST")
    ap.add_argument(
        "--all", action="store_true", help="all classes, not only the core set"
    )
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--ranks", type=int, default=1)
    a = ap.parse_args()
    a.rank = 0
    if a.ranks > 1:
        import subprocess
        import sys
        import tempfile

        a.rank = int(os.environ.get("DEMO_RANK", "0"))
        if a.rank == 0:
            os.environ["DEMO_MEET"] = tempfile.mktemp()
            for r in range(1, a.ranks):
                subprocess.Popen(
                    [sys.executable, *sys.argv], env=dict(os.environ, DEMO_RANK=str(r))
                )
        torch.distributed.init_process_group(
            "gloo",
            init_method="file://" + os.environ["DEMO_MEET"],
            rank=a.rank,
            world_size=a.ranks,
        )
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.manual_seed(a.seed)
    torch.set_num_threads(a.threads)
    emoji, tok = Emoji(a.work, core=not a.all), C.build_tokenizer(a.bpe)
    (train_text if a.what == "text" else train_unet)(a, emoji, tok)
