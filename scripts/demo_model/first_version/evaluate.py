#!/usr/bin/env python3
"""Draws pictures with the exported ONNX graphs (Euler, k-diffusion sigmas, classifier-free guidance) and scores them.

The score needs no large model: a drawn picture counts as right when, among all known emoji pictures in their own colours and the
repainted ones, the nearest (mean squared difference at 32x32, each composited over the drawn picture's own border colour) is of the
class in the prompt.  "background" counts pictures whose border colour is nearest to the colour in the prompt.

usage: evaluate.py ONNX_DIR TOKENIZER_JSON WORK [--size 512] [--steps 20] [--cfg 6] [--per-class 1] [--classes first|core] [--grid out.png]
"""

import argparse
import json
import random
import time
import numpy as np
import onnxruntime as ort
from PIL import Image
from tokenizers import Tokenizer

BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=np.float64) ** 2
ABAR = np.cumprod(1 - BETAS)
SIG = np.sqrt((1 - ABAR) / ABAR)
SCALE = 0.18215


class Model:
    def __init__(self, folder, tokenizer, threads=2):
        so = ort.SessionOptions()
        so.intra_op_num_threads = threads
        so.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.s = {
            k: ort.InferenceSession(
                f"{folder}/{k}/model.onnx", so, providers=["CPUExecutionProvider"]
            )
            for k in ("text_encoder", "unet", "vae_encoder", "vae_decoder")
        }
        self.tok = Tokenizer.from_file(tokenizer)

    def text(self, prompts):
        out = []
        for p in prompts:
            i = self.tok.encode(p).ids[:77]
            i[-1] = 49407
            out.append(i + [0] * (77 - len(i)))
        return self.s["text_encoder"].run(None, {"input_ids": np.array(out, np.int64)})[
            0
        ]

    def decode(self, x):
        y = self.s["vae_decoder"].run(
            None, {"latent_sample": (x / SCALE).astype(np.float32)}
        )[0]
        return (
            ((y.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8).transpose(0, 2, 3, 1)
        )

    def encode(self, img):
        x = img.astype(np.float32).transpose(0, 3, 1, 2) / 127.5 - 1
        return self.s["vae_encoder"].run(None, {"sample": x})[0][:, :4] * SCALE

    def denoise(self, x, sigma, t, c, u, cfg):
        n = len(x)
        xin = np.concatenate([x, x]) / np.sqrt(sigma**2 + 1)
        v = self.s["unet"].run(
            None,
            {
                "sample": xin.astype(np.float32),
                "timestep": np.full(2 * n, t, np.float32),
                "encoder_hidden_states": np.concatenate([c, u]),
            },
        )[0]
        d = v * (-sigma / np.sqrt(sigma**2 + 1)) + np.concatenate([x, x]) / (
            sigma**2 + 1
        )
        return d[n:] + cfg * (d[:n] - d[n:])

    def draw(
        self,
        prompts,
        w=512,
        h=512,
        steps=20,
        cfg=6.0,
        seeds=None,
        negative="",
        ancestral=False,
        init=None,
        strength=1.0,
        raw=False,
    ):
        n = len(prompts)
        seeds = seeds or list(range(n))
        c, u = self.text(prompts), self.text([negative] * n)
        rs = [np.random.RandomState(s) for s in seeds]

        def noise():
            return np.stack([r.randn(4, h // 8, w // 8) for r in rs]).astype(np.float32)  # noqa: E731

        ts = np.linspace(999, 0, steps)
        sig = np.append(np.exp(np.interp(ts, np.arange(1000), np.log(SIG))), 0)
        x = noise() * sig[0]
        first = 0
        if init is not None:
            first = steps - max(1, int(round(strength * steps)))
            x = self.encode(init) + noise() * sig[first]
        for i in range(first, steps):
            d0 = self.denoise(x, sig[i], ts[i], c, u, cfg)
            nxt = sig[i + 1]
            up = 0.0
            if ancestral and nxt > 0:
                up = min(nxt, np.sqrt(nxt**2 * (sig[i] ** 2 - nxt**2) / sig[i] ** 2))
            down = np.sqrt(nxt**2 - up**2)
            x = x + (x - d0) / sig[i] * (down - sig[i])
            if up:
                x = x + noise() * up
        return self.decode(x), x


def judge(emoji, imgs, want, bgs):
    """share with the right class, share with the right background, list of nearest classes"""
    cls_of = np.zeros(len(emoji.pics), int) - 1
    for i, c in enumerate(emoji.classes):
        for k in c["variants"].values():
            cls_of[k] = i
    keep = np.where(cls_of >= 0)[0]
    if not hasattr(emoji, "_t32"):
        emoji._t32 = np.stack([emoji.render(k, 32) for k in keep])
    names = list(emoji.colours)
    pal = np.array([emoji.colours[n] for n in names], np.float32) / 255
    got, gb = [], []
    for im in imgs:
        h, w = im.shape[:2]
        s = min(h, w)
        im = im[(h - s) // 2 : (h + s) // 2, (w - s) // 2 : (w + s) // 2]
        a = (
            np.asarray(Image.fromarray(im).resize((32, 32), Image.BOX)).astype(
                np.float32
            )
            / 255
        )
        edge = np.median(np.concatenate([a[0], a[-1], a[:, 0], a[:, -1]]), 0)
        t = emoji._t32[..., :3] + (1 - emoji._t32[..., 3:]) * edge
        got.append(int(cls_of[keep[((t - a) ** 2).mean((1, 2, 3)).argmin()]]))
        gb.append(names[int(((pal - edge) ** 2).sum(-1).argmin())])
    ok = np.array([g == w for g, w in zip(got, want)])
    okb = np.array([g == b for g, b in zip(gb, bgs)])
    return ok, okb, got


def grid(imgs, cols, cell, path):
    rows = (len(imgs) + cols - 1) // cols
    g = Image.new("RGB", (cols * cell, rows * cell), (255, 255, 255))
    for i, im in enumerate(imgs):
        im = Image.fromarray(im)
        im.thumbnail((cell, cell), Image.BICUBIC)
        g.paste(im, ((i % cols) * cell, (i // cols) * cell))
    g.save(path)


if __name__ == "__main__":
    ap = argparse.ArgumentParser()
    ap.add_argument("onnx"), ap.add_argument("tokenizer"), ap.add_argument("work")
    ap.add_argument("--size", type=int, default=512)
    ap.add_argument("--width", type=int), ap.add_argument("--height", type=int)
    ap.add_argument("--steps", type=int, default=20)
    ap.add_argument("--cfg", type=float, default=6.0)
    ap.add_argument("--per-class", type=int, default=1)
    ap.add_argument("--classes", default="first")
    ap.add_argument("--grid", default="")
    ap.add_argument("--cell", type=int, default=96)
    a = ap.parse_args()
    from data import Emoji
    from train_diffusion import FIRST

    emoji = Emoji(a.work, core=True)
    m = Model(a.onnx, a.tokenizer)
    rng = random.Random(11)
    pick = [
        i
        for i, c in enumerate(emoji.classes)
        if a.classes == "core" or c["words"][0] in FIRST
    ]
    jobs = [
        (i, rng.choice(list(emoji.colours))) for i in pick for _ in range(a.per_class)
    ]
    imgs, t0 = [], time.time()
    for s in range(0, len(jobs), 2):
        part = jobs[s : s + 2]
        p = [f"a {emoji.classes[i]['words'][0]} on a {b} background" for i, b in part]
        imgs += list(
            m.draw(
                p,
                w=a.width or a.size,
                h=a.height or a.size,
                steps=a.steps,
                cfg=a.cfg,
                seeds=[s + j for j in range(len(part))],
            )[0]
        )
    dt = time.time() - t0
    ok, okb, got = judge(emoji, imgs, [i for i, _ in jobs], [b for _, b in jobs])
    print(
        json.dumps(
            dict(
                pictures=len(jobs),
                top1=round(float(ok.mean()), 3),
                background=round(float(okb.mean()), 3),
                seconds_each=round(dt / len(jobs), 2),
            )
        )
    )
    print(
        "missed:",
        ", ".join(
            f"{emoji.classes[i]['words'][0]}->{emoji.classes[g]['words'][0]}"
            for (i, _), g, o in zip(jobs, got, ok)
            if not o
        ),
    )
    if a.grid:
        grid(imgs, 10, a.cell, a.grid)
