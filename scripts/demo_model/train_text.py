# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.4.6", "pillow==13.0.0", "tokenizers==0.23.3", "torch==2.15.0"]
# ///
"""Teaches the text encoder to turn a prompt into the states that describe its picture (see conditions.py). Resumable."""

import argparse
import math
import os
import random
import sys
import time
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from concepts import BACKDROPS, COLOUR, COLOURS, Spec, caption, draw_spec
from conditions import (
    CODE,
    FIRST_PATCH,
    READ,
    STEADY,
    WIDTH,
    WORD_AT,
    Conditions,
    Facts,
)
from models import TextEncoder
from muon import Muon
from tokenizer import BOS, EOS, LENGTH, PAD, load_tokenizer
from tokenizers import Tokenizer

LAYERS = 6


def token_map(cond: Conditions, tok: Tokenizer) -> dict[int, int]:
    """ids that occur in captions -> 1..n; every other token is 0"""
    rng, used = random.Random(0), {PAD, BOS, EOS}
    for _ in range(40000):
        s = draw_spec(rng, cond.variants)
        words = [] if s.thing is None else cond.words[s.thing]
        used.update(
            tok.encode(
                caption(
                    rng,
                    s,
                    words,
                    s.thing is not None and len(cond.variants[s.thing]) > 1,
                )[0]
            ).ids
        )
    for w in [
        *BACKDROPS,
        "gray",
        "monochrome",
        "emoji",
        *(w for ws in cond.words for w in ws),
    ]:
        used.update(tok.encode(w).ids)
    return {t: i + 1 for i, t in enumerate(sorted(used))}


def compact(ids: list[int], tmap: dict[int, int]) -> list[int]:
    """token ids -> compact ids of LENGTH, padded; the end token stays when a prompt is too long"""
    if len(ids) > LENGTH:
        ids = ids[: LENGTH - 1] + [EOS]
    return [tmap.get(i, 0) for i in ids] + [tmap[PAD]] * (LENGTH - len(ids))


@dataclass
class Batch:
    """Captions: what they picture, what each token says (see concepts.py), the colour word before the thing, and compact ids."""

    specs: list[Spec]
    kinds: list[list[int]]
    shown: list[str | None]
    ids: torch.Tensor


def draw_batch(
    rng: random.Random, cond: Conditions, tok: Tokenizer, tmap: dict[int, int], n: int
) -> Batch:
    """n captions, sometimes with unknown words put in"""
    out, rows = Batch([], [], [], torch.empty(0)), []
    for _ in range(n):
        s = draw_spec(rng, cond.variants)
        words = [] if s.thing is None else cond.words[s.thing]
        repaintable = s.thing is not None and len(cond.variants[s.thing]) > 1
        text, spans = caption(rng, s, words, repaintable)
        enc = tok.encode(text)
        kinds = [
            next((k for k, lo, hi in spans if lo <= a and b <= hi and a < b), 0)
            for a, b in enc.offsets
        ]
        pairs = list(zip(enc.ids, kinds))
        if rng.random() < 0.25:
            inner = pairs[1:-1]
            most = 3 if rng.random() < 0.7 else 24
            for _ in range(rng.randint(1, most)):
                at = rng.choice([0, len(inner), rng.randint(0, len(inner))])
                inner.insert(at, (-1, 0))
            pairs = [pairs[0], *inner, pairs[-1]]
        out.specs.append(s)
        out.kinds.append([k for _, k in pairs][:LENGTH])
        out.shown.append(
            next((text[lo:hi] for k, lo, hi in spans if k == COLOUR), None)
        )
        rows.append(compact([i for i, _ in pairs], tmap))
    out.ids = torch.tensor(rows)
    return out


@dataclass
class Captions:
    """A pool of captions as tensors: pictures, compact ids, what each token says (n x LENGTH), tokens (n), the colour shown (n x 3)."""

    facts: Facts
    ids: torch.Tensor
    kinds: torch.Tensor
    length: torch.Tensor
    shown: torch.Tensor

    def wish(self, cond: Conditions, at: torch.Tensor) -> torch.Tensor:
        """the wished states of some"""
        return cond.wish(
            self.facts[at], self.kinds[at].long(), self.length[at], self.shown[at]
        )


def draw_part(job: tuple[int, int, Path, Path, dict[int, int]]) -> Batch:
    """the captions of one process of caption_pool"""
    seed, n, work, merges, tmap = job
    torch.set_num_threads(1)
    b = draw_batch(
        random.Random(seed), Conditions(work, False), load_tokenizer(merges), tmap, n
    )
    b.ids = b.ids.numpy()  # plain memory is cheaper to hand over
    return b


def caption_pool(
    cond: Conditions,
    work: Path,
    merges: Path,
    tmap: dict[int, int],
    n: int,
    seed: int,
    processes: int = 1,
) -> Captions:
    """n captions on the device of `cond`, the same whatever the number of processes"""
    parts = max(1, n // 4000)
    jobs = [(seed * 1000 + i, n // parts, work, merges, tmap) for i in range(parts)]
    if processes > 1:
        with get_context("spawn").Pool(processes) as pool:
            got = pool.map(draw_part, jobs)
    else:
        got = [draw_part(j) for j in jobs]
    at = cond.codes.device
    specs = [s for b in got for s in b.specs]
    kinds = [k + [0] * (LENGTH - len(k)) for b in got for k in b.kinds]
    length = [len(k) for b in got for k in b.kinds]
    shown = [COLOURS[c][0] if c else (0, 0, 0) for b in got for c in b.shown]
    return Captions(
        cond.facts(specs),
        torch.from_numpy(np.concatenate([b.ids for b in got])).to(at),
        torch.tensor(kinds, dtype=torch.uint8).to(at),
        torch.tensor(length).to(at),
        (torch.tensor(shown) / 255).to(at),
    )


def encode(
    te: TextEncoder, ids: torch.Tensor, keep: torch.Tensor | None = None
) -> torch.Tensor:
    """states of compact ids; `keep`: the positions to compute (a causal prefix order is kept)"""
    if keep is None:
        return te(ids)
    tm = te.text_model
    x = (
        tm.embeddings.token_embedding(ids[:, keep])
        + tm.embeddings.position_embedding.weight[keep]
    )
    for layer in tm.encoder.layers:
        x = layer(x, None)
    return tm.final_layer_norm(x)


def load_text(work: Path) -> tuple[TextEncoder, dict[int, int]]:
    """the trained text encoder with the compact vocabulary"""
    p = work / "text.pt"
    if not p.exists():
        raise SystemExit(f"{p} is missing; run train_text.py first.")
    st = torch.load(p, map_location="cpu")
    te = TextEncoder(vocab=len(st["tmap"]) + 1, layers=LAYERS)
    te.load_state_dict(st["ema"])
    return te.eval().requires_grad_(False), st["tmap"]


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("work", type=Path)
    ap.add_argument("merges", type=Path, help="CLIP's merges.txt")
    ap.add_argument("--minutes", type=float, default=30)
    ap.add_argument("--threads", type=int, default=1)
    ap.add_argument("--batch", type=int, default=48)
    ap.add_argument("--lr", type=float, default=3e-3)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--device", default="cpu")
    ap.add_argument("--every", type=int, default=50, help="steps between two lines")
    ap.add_argument("--pool", type=int, default=20000, help="captions held in memory")
    ap.add_argument("--processes", type=int, default=1, help="that draw the captions")
    a = ap.parse_args()
    if not a.merges.exists():
        print(f"{a.merges} is missing.", file=sys.stderr)
        return 2
    print("seed", a.seed)
    torch.manual_seed(a.seed)
    torch.set_num_threads(a.threads)
    torch.backends.cuda.matmul.allow_tf32 = True
    cond = Conditions(a.work).to(a.device)
    path = a.work / "text.pt"
    st = torch.load(path, map_location="cpu") if path.exists() else None
    tmap = st["tmap"] if st else token_map(cond, load_tokenizer(a.merges))
    te = TextEncoder(vocab=len(tmap) + 1, layers=LAYERS).to(a.device)
    step = st["step"] if st else 0
    if st:
        te.load_state_dict(st["raw"])
    tm = te.text_model
    with torch.no_grad():
        tm.embeddings.token_embedding.weight[0] = 0
        tm.final_layer_norm.weight[READ:] = 0
        tm.final_layer_norm.bias[READ:] = STEADY
    print(
        len(tmap),
        "tokens in use,",
        sum(p.numel() for p in tm.encoder.parameters()),
        "parameters in the layers, step",
        step,
    )
    matrices = [p for p in tm.encoder.parameters() if p.ndim == 2]
    ids = {id(p) for p in matrices}
    others = [p for p in te.parameters() if id(p) not in ids]
    opts = [
        Muon(matrices, lr=a.lr),
        torch.optim.Adam(others, lr=a.lr, betas=(0.9, 0.98)),
    ]
    params = list(te.parameters())
    ema = [p.detach().clone() for p in params]
    weight = torch.ones(READ, device=a.device)
    weight[:CODE] = cond.scale
    weight[WORD_AT:] = 4.0  # few states say this
    pool = caption_pool(
        cond, a.work, a.merges, tmap, a.pool, a.seed * 1000 + step, a.processes
    )
    print(len(pool.ids), "captions", flush=True)
    rng, t0, saved, first, log = (
        random.Random(a.seed * 1000 + step),
        time.time(),
        time.time(),
        step,
        [],
    )
    while True:
        frac = (time.time() - t0) / (a.minutes * 60)
        for opt in opts:
            for g in opt.param_groups:
                g["lr"] = (
                    a.lr
                    * min(1, (step - first + 1) / 50)
                    * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1, frac))))
                )
        at = torch.randint(len(pool.ids), (a.batch,), device=a.device)
        want = pool.wish(cond, at)
        # padding between the words and the patches: any part of it may be left out, which saves time
        words = min(int(pool.length[at].max()), FIRST_PATCH)
        middle = list(range(words, FIRST_PATCH))
        middle = sorted(
            rng.sample(
                middle,
                rng.choice([0, 1, 3, len(middle)]) if len(middle) > 3 else len(middle),
            )
        )
        keep = torch.tensor(
            list(range(words)) + middle + list(range(FIRST_PATCH, LENGTH)),
            device=a.device,
        )
        got = encode(te, pool.ids[at], keep)[..., :READ]
        want = want[:, keep, :READ]
        err = (got - want).pow(2) * weight
        loss = err.mean()
        for opt in opts:
            opt.zero_grad()
        loss.backward()
        tm.embeddings.token_embedding.weight.grad[0] = 0  # the unknown word stays put
        tm.final_layer_norm.weight.grad[READ:] = 0
        tm.final_layer_norm.bias.grad[READ:] = 0
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        for opt in opts:
            opt.step()
        step += 1
        torch._foreach_lerp_(
            ema,
            [p.detach() for p in params],
            1 - min(0.995, (step - first) / (step - first + 10)),
        )
        sq = cond.scale**2
        with torch.no_grad():
            code, true = got[..., :CODE], want[..., :CODE]
            lost = ((code - true).pow(2) * sq).sum() / (true.pow(2) * sq).sum()
            off = (got - want).abs()
            log.append(
                torch.stack(
                    [
                        loss.detach(),
                        lost,
                        off[..., CODE:].mean(),
                        off[:, :words, WORD_AT:].mean(),
                    ]
                )
            )
        if step % a.every == 0:
            m = torch.stack(log).mean(0).tolist()
            log = []
            print(
                f"{step} loss {m[0]:.4f} lost energy of codes {m[1]:.4f} other {m[2]:.4f} words {m[3]:.4f} {time.time() - t0:.0f}s cpu {time.process_time():.0f}",
                flush=True,
            )
        if frac >= 1 or time.time() - saved > 90:
            saved = time.time()
            raw = {k: v.clone() for k, v in te.state_dict().items()}
            keepers = [p.detach().clone() for p in params]
            with torch.no_grad():
                for p, x in zip(params, ema):
                    p.copy_(x)
                torch.save(
                    {
                        "ema": {k: v.clone() for k, v in te.state_dict().items()},
                        "raw": raw,
                        "tmap": tmap,
                        "step": step,
                    },
                    f"{path}.tmp",
                )
                os.replace(f"{path}.tmp", path)
                for p, x in zip(params, keepers):
                    p.copy_(x)
        if frac >= 1:
            return 0


if __name__ == "__main__":
    assert WIDTH == 128
    sys.exit(main())
