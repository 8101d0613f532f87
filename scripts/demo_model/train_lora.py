# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.4.6", "pillow==13.0.0", "safetensors==0.8.0", "tokenizers==0.23.3", "torch==2.15.0"]
# ///
"""Trains a LoRA on the demo model that draws in large square pixels. Resumable.

The picture to draw is the usual one with its latents averaged over BLOCK x BLOCK cells (a cell is 8x8 pixels), so a 512x512 picture has 16x16
pixels of one colour each. The file has the names that kohya's scripts give to layers of the original layout, which A1111 reads.
"""

import argparse
import os
import random
import sys
import time
from pathlib import Path

import models
import torch
import torch.nn.functional as F
from conditions import Conditions, nothing
from export_checkpoint import rename_unet
from models import UNet
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrize
from train_unet import (
    ALPHA,
    NO_SIGNAL,
    SIGMA,
    Latents,
    Source,
    fast_on_gpu,
    load_unet,
)

BLOCK = 4
SIZES = [((64, 64), 1), ((48, 48), 2), ((64, 96), 1), ((96, 64), 1), ((112, 80), 1)]


class LowRank(nn.Module):
    """adds up @ down to a weight"""

    def __init__(self, weight: torch.Tensor, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, *weight.shape[1:]))
        self.up = nn.Parameter(torch.zeros(len(weight), rank))
        with torch.no_grad():
            self.down.div_(self.down[0].numel() ** 0.5)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + (self.up @ self.down.flatten(1)).view_as(weight)


def attach(unet: UNet, rank: int) -> dict[str, LowRank]:
    """a low-rank term on every convolution and linear layer of the residual and transformer blocks; keys are layer names"""
    out = {}
    for name, m in list(unet.named_modules()):
        inner = "resnets" in name or "attentions" in name
        if inner and isinstance(m, nn.Conv2d | nn.Linear):
            out[name] = LowRank(m.weight, rank)
            parametrize.register_parametrization(m, "weight", out[name])
    return out


def file_tensors(parts: dict[str, LowRank], unet: UNet) -> dict[str, torch.Tensor]:
    """the tensors of the LoRA file"""
    shape = {"ch": unet.ch, "attn": unet.attn}
    out = {}
    for name, p in parts.items():
        layer = next(iter(rename_unet({f"{name}.weight": p.up}, shape)))
        layer = layer.removeprefix("model.diffusion_model.").removesuffix(".weight")
        key = "lora_unet_" + layer.replace(".", "_")
        up, down = p.up.detach().cpu(), p.down.detach().cpu()
        if down.ndim == 4:
            up = up[:, :, None, None]
        out[f"{key}.lora_up.weight"] = up.half().contiguous()
        out[f"{key}.lora_down.weight"] = down.half().contiguous()
        out[f"{key}.alpha"] = torch.tensor(float(len(down)))
    return out


def restore(parts: dict[str, LowRank], unet: UNet, path: Path) -> None:
    """the numbers of a file that this script wrote"""
    saved = load_file(path)
    blank = file_tensors(parts, unet)
    if blank.keys() != saved.keys():
        raise SystemExit(f"{path} is not a LoRA of this model.")
    with torch.no_grad():
        ups = [k for k in blank if k.endswith("lora_up.weight")]
        for key, p in zip(ups, parts.values(), strict=True):
            p.up.copy_(saved[key].flatten(1))
            p.down.copy_(saved[key.replace("lora_up", "lora_down")])


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("work", type=Path)
    ap.add_argument("merges", type=Path, help="CLIP's merges.txt")
    ap.add_argument("out", type=Path, help="the .safetensors file to write")
    ap.add_argument("--minutes", type=float, default=15)
    ap.add_argument("--rank", type=int, default=4)
    ap.add_argument("--batch", type=int, default=4)
    ap.add_argument("--lr", type=float, default=3e-3)
    ap.add_argument("--pool", type=int, default=1000)
    ap.add_argument("--threads", type=int, default=1)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--device", default="cpu")
    ap.add_argument("--processes", type=int, default=1, help="that draw the captions")
    a = ap.parse_args()
    for p in (a.merges, a.work / "unet.pt"):
        if not p.exists():
            print(f"{p} is missing.", file=sys.stderr)
            return 2
    print("seed", a.seed)
    torch.manual_seed(a.seed)
    torch.set_num_threads(a.threads)
    models.HALF_CONVOLUTIONS = True
    a.states, a.weighted, a.coloured = "text", 0.0, 0.0
    gpu = a.device != "cpu"
    if gpu:
        fast_on_gpu(False)
        models.FAST_NORM = None
    cond = Conditions(a.work).to(a.device)
    lat, src = Latents(cond, a.work), Source(a, cond, a.seed)
    unet, _ = load_unet(a.work / "unet.pt")
    unet.requires_grad_(False)
    parts = attach(unet, a.rank)
    if a.out.exists():
        restore(parts, unet, a.out)
    unet = unet.to(a.device).to(memory_format=torch.channels_last)
    alpha, sigma = ALPHA.to(a.device), SIGMA.to(a.device)
    params = [p for m in parts.values() for p in m.parameters()]
    opt = torch.optim.Adam(params, lr=a.lr, betas=(0.9, 0.98))
    ema = [p.detach().clone() for p in params]
    rng, t0, saved, step = random.Random(a.seed), time.time(), time.time(), 0
    losses: list[torch.Tensor] = []
    while True:
        frac = (time.time() - t0) / (a.minutes * 60)
        opt.param_groups[0]["lr"] = (
            a.lr * min(1, (step + 1) / 20) * max(0.05, min(1, (1 - frac) / 0.5))
        )
        (h, w), mul = rng.choice(SIZES)
        n = a.batch * mul
        facts, ctx, _ = src.draw(n)
        t = (torch.rand(n, device=a.device) * 1000).long()
        unprompted = (torch.rand(n, device=a.device) < 0.1) & (t < 850)
        ctx = torch.where(unprompted[:, None, None], nothing(a.device), ctx)
        x0 = F.avg_pool2d(lat.encode(lat.rgb_of(facts, h, w)), BLOCK)
        x0 = F.interpolate(x0, size=(h, w), mode="nearest")
        A, S = alpha[t].view(-1, 1, 1, 1), sigma[t].view(-1, 1, 1, 1)
        eps = torch.randn_like(x0)
        x = A * x0 * (t < NO_SIGNAL).float().view(-1, 1, 1, 1) + S * eps
        with torch.autocast(torch.device(a.device).type, torch.bfloat16, gpu):
            out = unet(x.contiguous(memory_format=torch.channels_last), t.float(), ctx)
        loss = (out.float() - (A * eps - S * x0)).pow(2).mean()
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        step += 1
        torch._foreach_lerp_(
            ema, [p.detach() for p in params], 1 - min(0.98, step / (step + 10))
        )
        losses.append(loss.detach())
        if step % (100 if gpu else 10) == 0:
            print(
                f"{step} loss {torch.stack(losses).mean():.4f} {time.time() - t0:.0f}s",
                flush=True,
            )
            losses = []
        if frac >= 1 or time.time() - saved > 90:
            saved = time.time()
            now = [p.detach().clone() for p in params]
            with torch.no_grad():
                for p, e in zip(params, ema):
                    p.copy_(e)
                meta = {"ss_output_name": a.out.stem, "ss_v2": "True"}
                save_file(file_tensors(parts, unet), f"{a.out}.tmp", metadata=meta)
                os.replace(f"{a.out}.tmp", a.out)
                for p, x in zip(params, now):
                    p.copy_(x)
        if frac >= 1:
            return 0


if __name__ == "__main__":
    sys.exit(main())
