# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.4.6", "pillow==13.0.0", "safetensors==0.8.0", "tokenizers==0.23.3", "torch==2.15.0"]
# ///
"""Trains a textual inversion: vectors that make the demo model's text encoder describe a picture it has never seen.

Only the vectors are trained, against the states that conditions.py wishes for the new picture; the UNet is not needed for that. The file
holds one tensor, `emb_params`, as A1111's safetensors embeddings do; its name is the word.
"""

import argparse
import json
import random
import sys
import time
from pathlib import Path

import numpy as np
import torch
from concepts import BACK, BACKDROPS, COLOURS, SUBJECT
from conditions import (
    BACK_AT,
    CODE,
    FIRST_PATCH,
    READ,
    THING_AT,
    WIDTH,
    WORD_AT,
    Conditions,
    nothing,
)
from PIL import Image
from prepare_data import BOX, cells, patches
from safetensors.torch import save_file
from tokenizer import LENGTH, load_tokenizer
from train_text import compact, load_text

SLOT = "\ue004"


def picture_code(cond: Conditions, path: Path) -> torch.Tensor:
    """the codes of a picture's patches"""
    rgba = np.asarray(Image.open(path).convert("RGBA")).copy()
    rgba[rgba[..., 3] == 0] = 0
    luma, chroma = patches(cells(rgba, BOX))
    code = np.concatenate([luma @ cond.luma_basis.T, chroma @ cond.chroma_basis.T], 1)
    return torch.from_numpy(code.astype(np.float32))


def sentence(rng: random.Random) -> tuple[str, str | None]:
    """a caption with SLOT for the new word, and its backdrop"""
    s = rng.choice(SUBJECT).format(x=SLOT)
    if rng.random() < 0.75:
        back = rng.choice(BACKDROPS)
        return rng.choice(BACK).format(s=s, b=back), back
    return s, None


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("work", type=Path)
    ap.add_argument("merges", type=Path, help="CLIP's merges.txt")
    ap.add_argument("picture", type=Path, help="the new thing, with transparency")
    ap.add_argument("out", type=Path, help="WORD.safetensors")
    ap.add_argument("--vectors", type=int, default=8)
    ap.add_argument("--steps", type=int, default=400)
    ap.add_argument("--batch", type=int, default=8)
    ap.add_argument("--lr", type=float, default=0.03)
    ap.add_argument("--pastel", type=float, nargs=3, default=[0.84, 0.93, 1.0])
    ap.add_argument("--threads", type=int, default=1)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--device", default="cpu")
    a = ap.parse_args()
    for p in (a.merges, a.picture):
        if not p.exists():
            print(f"{p} is missing.", file=sys.stderr)
            return 2
    print("seed", a.seed)
    torch.manual_seed(a.seed)
    torch.set_num_threads(a.threads)
    cond, tok = Conditions(a.work).to(a.device), load_tokenizer(a.merges)
    te, tmap = load_text(a.work)
    te = te.to(a.device)
    tm = te.text_model
    table = tm.embeddings.token_embedding.weight
    code = picture_code(cond, a.picture).to(a.device)
    weight = torch.ones(READ, device=a.device)
    weight[:CODE] = cond.scale
    weight[WORD_AT:] = 4.0
    # Start from the known thing whose picture is most like the new one.
    scale = cond.scale**2
    off = [
        float(((cond.codes[v[""]] - code) ** 2 * scale).sum()) for v in cond.variants
    ]
    near = int(np.argmin(off))
    first = table[compact(tok.encode(cond.words[near][0]).ids, tmap)[1]]
    vectors = (
        (first + 0.05 * torch.randn(a.vectors, WIDTH).to(a.device))
        .detach()
        .requires_grad_(True)
    )
    energy = float((code**2 * scale).sum())
    print("nearest known thing:", cond.words[near][0], round(off[near] / energy, 3))
    opt = torch.optim.Adam([vectors], lr=a.lr)
    rng, t0 = random.Random(a.seed), time.time()
    for step in range(a.steps):
        opt.param_groups[0]["lr"] = a.lr * min(1, 1.2 - step / a.steps)
        rows, want = [], []
        for _ in range(a.batch):
            text, back = sentence(rng)
            before, after = text.split(SLOT)
            head = compact(tok.encode(before).ids[:-1], tmap)
            head = head[: len(tok.encode(before).ids) - 1]
            tail = compact(tok.encode(after).ids[1:], tmap)
            n = len(head) + a.vectors + len(tok.encode(after).ids) - 1
            rows.append(torch.cat([table[head], vectors, table[tail]])[:LENGTH])
            w = nothing(a.device)
            rgb = np.array(COLOURS[back][0]) / 255 if back else np.array(a.pastel)
            w[n:, BACK_AT : BACK_AT + 3] = torch.from_numpy(rgb * 3 - 1.5).float()
            w[n:, BACK_AT + 3] = 2.0
            w[FIRST_PATCH:, :CODE] = code
            w[FIRST_PATCH:, CODE:BACK_AT] = cond.place
            w[FIRST_PATCH:, THING_AT] = 1.0
            w[len(head) : len(head) + a.vectors, WORD_AT] = 2.0
            mask = torch.zeros(LENGTH, 1, device=a.device)
            mask[FIRST_PATCH:] = 1.0
            mask[len(head) : len(head) + a.vectors] = 0.1
            want.append((w, mask))
        x = torch.stack(rows) + tm.embeddings.position_embedding.weight
        for layer in tm.encoder.layers:
            x = layer(x)
        got = tm.final_layer_norm(x)[..., :READ]
        target = torch.stack([w for w, _ in want])[..., :READ]
        mask = torch.stack([m for _, m in want])
        loss = ((got - target) ** 2 * weight * mask).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
        if step % 20 == 19:
            lost = ((got - target)[:, FIRST_PATCH:, :CODE] ** 2 * scale).sum()
            print(
                f"{step + 1} loss {loss.item():.4f} lost energy {lost.item() / energy / a.batch:.3f} {time.time() - t0:.0f}s",
                flush=True,
            )
    a.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {"emb_params": vectors.detach().cpu().contiguous()},
        a.out,
        metadata={"description": json.dumps({"steps": a.steps, "seed": a.seed})},
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
