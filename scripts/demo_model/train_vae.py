# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.4.6", "pillow==13.0.0", "tokenizers==0.23.3", "torch==2.15.0"]
# ///
"""Builds the autoencoder and trains its decoder. Resumable.

The encoder is *constructed*, not trained: its latents are the 8x8 block averages of the picture, turned into four numbers by a
tetrahedral frame (R+G+B, R-G-B, G-R-B, B-R-G) and scaled to unit variance (after the factor 0.18215). Three tricks make ordinary Stable
Diffusion layers do that exactly:
  * residual branches end in zero weights, so a residual block is the identity;
  * the stride-2 convolutions average 2x2 pixels;
  * every quantity travels as a pair (x, -x) of tiny amplitude. A group of GroupNorm(32) on 64 channels is one pair: its mean is zero and
    its variance is far below eps, so the norm only multiplies by 1/sqrt(eps); and silu(x) - silu(-x) = x.
Latents are therefore linear in the picture, which makes diffusion data cheap (see train_unet.py) and editing robust.

The decoder carries the same linear path upwards (bilinear enlargement) in channels 0..5, frozen; the other channels are trained (L1 +
gradient L1) to add the sharp edges, and to smooth a little noise away.
"""

import argparse
import math
import os
import random
import sys
import time
from pathlib import Path

import models
import numpy as np
import torch
import torch.nn.functional as F
from concepts import COLOURS, PASTELS
from conditions import Conditions
from models import VAE
from PIL import Image
from prepare_data import cells
from vae_frame import FRAME, PINV, SCALE

TINY = 4e-5
EPS = 1e-6
GAIN = 1 / (TINY / math.sqrt(EPS))  # what undoes TINY after a GroupNorm
TINY_EXACT = (
    2.0**-15
)  # the pair amplitude as a power of two, so that fp16 holds it exactly
CH = {"ch": (64, 64, 64, 64), "layers": 0}


def exact(vae: VAE, back: bool = False) -> None:
    """move the linear paths from amplitude TINY to TINY_EXACT (norm gains the other way), or back"""
    r = TINY / TINY_EXACT if back else TINY_EXACT / TINY
    with torch.no_grad():
        vae.encoder.conv_in.weight.mul_(r)
        vae.encoder.conv_norm_out.weight.div_(r)
        vae.decoder.conv_in.weight[:6] *= r
        for m in vae.decoder.modules():
            if isinstance(m, torch.nn.GroupNorm):
                m.weight[:6] /= r


def backdrop(rng: random.Random) -> np.ndarray:
    x = rng.random()
    if x < 0.4:
        return np.array(rng.choice(list(COLOURS.values()))[0], np.float32) / 255
    if x < 0.7:
        return np.array(rng.choice(PASTELS), np.float32) / 255
    return np.array([rng.random() for _ in range(3)], np.float32)


class Pictures:
    """crops of pictures, composed over backdrops"""

    def __init__(self, cond: Conditions) -> None:
        self.rgba = cond.rgba
        self.kept: dict[tuple[int, int], np.ndarray] = {}

    def crop(self, rng: random.Random, px: int) -> torch.Tensor:
        side = rng.choice([192, 384, 384, 384, 480])
        k = rng.randrange(len(self.rgba))
        im = self.kept.get((k, side))
        if im is None:
            im = self.kept[(k, side)] = (
                (cells(self.rgba[k], side) * 255).round().astype(np.uint8)
            )
            if len(self.kept) > 300:
                self.kept.pop(next(iter(self.kept)))
        x, y = (rng.randint(-px // 3, side - 2 * px // 3) for _ in range(2))
        out = np.zeros((px, px, 4), np.float32)
        x0, y0, x1, y1 = max(0, x), max(0, y), min(side, x + px), min(side, y + px)
        out[y0 - y : y1 - y, x0 - x : x1 - x] = (
            im[y0:y1, x0:x1].astype(np.float32) / 255
        )
        rgb = out[..., :3] + (1 - out[..., 3:]) * backdrop(rng)
        return torch.from_numpy(rgb).permute(2, 0, 1) * 2 - 1

    def batch(self, rng: random.Random, n: int, px: int) -> torch.Tensor:
        return torch.stack([self.crop(rng, px) for _ in range(n)])


class Canvas:
    """crops like those of Pictures, all on one device and drawn together"""

    SIDES = (192, 384, 480)

    def __init__(self, cond: Conditions, device: str) -> None:
        self.device = device
        self.sheets = []
        for side in self.SIDES:
            px = np.stack([(cells(p, side) * 255).round() for p in cond.rgba])
            flat = torch.from_numpy(px.astype(np.uint8)).permute(0, 3, 1, 2)
            self.sheets.append(flat.contiguous().to(device))
        named = [c for c, _ in COLOURS.values()]
        self.named, self.pastels = (
            torch.tensor(c, dtype=torch.float32, device=device) / 255
            for c in (named, PASTELS)
        )

    def batch(self, rng: random.Random, n: int, px: int) -> torch.Tensor:
        """n crops of px x px of things of one of the sizes"""
        at, k = self.device, rng.choice([0, 1, 1, 1, 2])
        sheet, side = self.sheets[k], self.SIDES[k]
        which = torch.randint(len(sheet), (n,), device=at)
        low, span = -(px // 3), side - 2 * px // 3 + px // 3 + 1
        y, x = (torch.randint(span, (n, 1), device=at) + low for _ in range(2))
        y, x = (v + torch.arange(px, device=at) for v in (y, x))
        inside = ((y >= 0) & (y < side))[:, :, None] & ((x >= 0) & (x < side))[:, None]
        y, x = y.clamp(0, side - 1), x.clamp(0, side - 1)
        p = sheet[which[:, None, None], :, y[:, :, None], x[:, None]]
        p = p.permute(0, 3, 1, 2).float() / 255 * inside[:, None]
        r = torch.rand(n, 1, device=at)
        a = self.named[torch.randint(len(self.named), (n,), device=at)]
        b = self.pastels[torch.randint(len(self.pastels), (n,), device=at)]
        any_ = torch.rand(n, 3, device=at)
        bg = torch.where(r < 0.4, a, torch.where(r < 0.7, b, any_))[:, :, None, None]
        return (p[:, :3] + (1 - p[:, 3:]) * bg) * 2 - 1


def latent_stats(
    pics: Pictures, rng: random.Random
) -> tuple[torch.Tensor, torch.Tensor]:
    """mean and standard deviation of the four frame coordinates over typical pictures"""
    x = F.avg_pool2d(pics.batch(rng, 600, 128), 8)
    z = torch.einsum("kc,bchw->bhwk", FRAME, x).reshape(-1, 4)
    return z.mean(0), z.std(0)


@torch.no_grad()
def construct(vae: VAE, mean: torch.Tensor, std: torch.Tensor) -> None:
    enc, dec = vae.encoder, vae.decoder
    for p in enc.parameters():
        p.zero_()
    for m in enc.modules():
        if isinstance(m, torch.nn.GroupNorm):
            m.weight.fill_(1)
    for k in range(4):
        enc.conv_in.weight[2 * k, :, 1, 1] = FRAME[k] * TINY
        enc.conv_in.weight[2 * k + 1, :, 1, 1] = -FRAME[k] * TINY
        enc.conv_out.weight[k, 2 * k, 1, 1] = 1
        enc.conv_out.weight[k, 2 * k + 1, 1, 1] = -1
    for lv in enc.down_blocks:
        if hasattr(lv, "downsamplers"):
            for c in range(8):
                lv.downsamplers[0].conv.weight[c, c, :2, :2] = 0.25
    enc.conv_norm_out.weight[:8] = GAIN
    enc.conv_out.bias[4:] = -16.0  # log variance of the posterior: next to none
    vae.quant_conv.weight.zero_(), vae.quant_conv.bias.zero_()
    vae.post_quant_conv.weight.zero_(), vae.post_quant_conv.bias.zero_()
    for k in range(4):
        vae.quant_conv.weight[k, k] = 1 / std[k] / SCALE
        vae.quant_conv.bias[k] = -mean[k] / std[k] / SCALE
        vae.quant_conv.weight[4 + k, 4 + k] = 1
        vae.post_quant_conv.weight[k, k] = SCALE * std[k]
        vae.post_quant_conv.bias[k] = mean[k]
    for m in dec.modules():  # decoder: linear path
        if isinstance(m, torch.nn.GroupNorm):
            m.weight[:6] = GAIN
        if hasattr(m, "conv2"):  # residual block: start as the identity
            m.conv2.weight.mul_(0.1), m.conv2.bias.zero_()
            m.conv2.weight[:6] = 0
    (
        dec.mid_block.attentions[0].to_out[0].weight.zero_(),
        dec.mid_block.attentions[0].to_out[0].bias.zero_(),
    )
    dec.conv_in.weight[:6] = 0
    dec.conv_in.bias[:6] = 0
    for c in range(3):
        dec.conv_in.weight[2 * c, :, 1, 1] = PINV[c] * TINY
        dec.conv_in.weight[2 * c + 1, :, 1, 1] = -PINV[c] * TINY
    kern = torch.tensor([1.0, 2.0, 1.0]) / 4
    for lv in dec.up_blocks:
        if hasattr(lv, "upsamplers"):
            w = lv.upsamplers[0].conv
            w.weight[:6], w.bias[:6] = 0, 0
            for c in range(6):
                w.weight[c, c] = kern[:, None] * kern[None]
    dec.conv_out.weight.zero_(), dec.conv_out.bias.zero_()
    for c in range(3):
        dec.conv_out.weight[c, 2 * c, 1, 1] = 1
        dec.conv_out.weight[c, 2 * c + 1, 1, 1] = -1
    for p in (
        dec.up_blocks[-1].resnets[0].parameters()
    ):  # the full-resolution block costs as much as all the rest: it stays the identity
        p.zero_()


def freeze(vae: VAE) -> list[torch.nn.Parameter]:
    """no gradient for the encoder, the linear path, the attention and the full-resolution block"""
    for p in vae.parameters():
        p.requires_grad_(False)
    dec = vae.decoder
    train = [dec.conv_in, dec.mid_block.resnets, dec.conv_norm_out, dec.conv_out]
    for lv in dec.up_blocks[:-1]:
        train += [lv.resnets, lv.upsamplers]
    for m in train:
        for p in m.parameters():
            p.requires_grad_(True)
    rows = (
        [dec.conv_in]
        + [r.conv2 for r in dec.mid_block.resnets]
        + [r.conv2 for lv in dec.up_blocks[:-1] for r in lv.resnets]
    )
    rows += [lv.upsamplers[0].conv for lv in dec.up_blocks[:-1]]
    for c in rows:
        for p in (c.weight, c.bias):
            p.register_hook(lambda g: torch.cat([torch.zeros_like(g[:6]), g[6:]]))
    norms = [dec.conv_norm_out] + [
        n
        for m in [dec.mid_block, *dec.up_blocks[:-1]]
        for r in m.resnets
        for n in (r.norm1, r.norm2)
    ]
    for n in norms:
        for p in (n.weight, n.bias):
            p.register_hook(lambda g: torch.cat([torch.zeros_like(g[:6]), g[6:]]))
    return [p for p in vae.parameters() if p.requires_grad]


def decode_fast(vae: VAE, z: torch.Tensor) -> torch.Tensor:
    """decode() without the identity parts"""
    d = vae.decoder
    h = d.conv_in(vae.post_quant_conv(z))
    for r in d.mid_block.resnets:
        h = r(h)
    for lv in d.up_blocks[:-1]:
        h = lv.upsamplers[0](lv.resnets[0](h))
    return d.conv_out(F.silu(d.conv_norm_out(h)))


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("work", type=Path)
    ap.add_argument("--minutes", type=float, default=20)
    ap.add_argument("--threads", type=int, default=1)
    ap.add_argument("--batch", type=int, default=12)
    ap.add_argument("--px", type=int, default=128)
    ap.add_argument("--lr", type=float, default=1e-3)
    ap.add_argument(
        "--noise",
        type=float,
        default=0.12,
        help="largest noise on the latents that the decoder must smooth away",
    )
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--device", default="cpu")
    ap.add_argument("--every", type=int, default=50, help="steps between two lines")
    a = ap.parse_args()
    print("seed", a.seed)
    torch.manual_seed(a.seed)
    torch.set_num_threads(a.threads)
    cond = Conditions(a.work)
    pics, vae, path, rng = (
        Pictures(cond),
        VAE(**CH),
        a.work / "vae.pt",
        random.Random(a.seed),
    )
    if path.exists():
        st = torch.load(path, map_location="cpu")
        vae.load_state_dict(st["ema"])
        mean, std = st["mean"], st["std"]
    else:
        mean, std = latent_stats(pics, rng)
        construct(vae, mean, std)
        torch.save({"ema": vae.state_dict(), "mean": mean, "std": std}, path)
    gpu = a.device != "cpu"
    m4, s4, frame = (
        x.to(a.device) for x in (mean.view(1, 4, 1, 1), std.view(1, 4, 1, 1), FRAME)
    )

    def latents(x: torch.Tensor) -> torch.Tensor:
        return (torch.einsum("kc,bchw->bkhw", frame, F.avg_pool2d(x, 8)) - m4) / s4

    with torch.no_grad():  # the constructed encoder does what it says
        x = pics.batch(rng, 2, 64).to(a.device)
        vae = vae.to(a.device)
        print(
            "encoder differs from block averages by",
            (vae.moments(x)[:, :4] * SCALE - latents(x)).abs().max().item(),
        )
    models.HALF_CONVOLUTIONS = False
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = gpu
    vae = vae.to(memory_format=torch.channels_last)
    params = freeze(vae)
    opt = torch.optim.Adam(params, lr=a.lr, betas=(0.9, 0.98))
    ema = [p.detach().clone() for p in params]
    val = pics.batch(random.Random(99), 32, 128).to(a.device)
    canvas = Canvas(cond, a.device) if gpu else pics
    t0 = saved = time.time()
    step, log, flat = 0, [], (0.0, 0.0)
    while True:
        frac = (time.time() - t0) / (a.minutes * 60)
        for g in opt.param_groups:
            g["lr"] = (
                a.lr
                * min(1, (step + 1) / 30)
                * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1, frac))))
            )
        x = canvas.batch(rng, a.batch, a.px)
        x = x.contiguous(memory_format=torch.channels_last)
        z = latents(x)
        z = z + torch.randn_like(z) * a.noise * torch.rand(len(z), 1, 1, 1).to(z)
        y = decode_fast(vae, z.contiguous(memory_format=torch.channels_last) / SCALE)
        d = y - x
        l1 = d.abs().mean()
        gx = (d[..., 1:] - d[..., :-1]).abs().mean() + (
            d[..., 1:, :] - d[..., :-1, :]
        ).abs().mean()
        loss = l1 + 0.5 * gx
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        step += 1
        torch._foreach_lerp_(
            ema, [p.detach() for p in params], 1 - min(0.99, step / (step + 20))
        )
        log.append(l1.detach())
        if step % a.every == 0:
            print(
                f"{step} l1 {torch.stack(log).mean():.4f} {time.time() - t0:.0f}s cpu {time.process_time():.0f}",
                flush=True,
            )
            log = []
        if frac >= 1 or time.time() - saved > 100 or step == 1:
            saved = time.time()
            keep = [p.detach().clone() for p in params]
            with torch.no_grad():
                for p, e in zip(params, ema):
                    p.copy_(e)
                y = torch.cat(
                    [decode_fast(vae, c / SCALE) for c in latents(val).split(8)]
                )
                base = F.interpolate(
                    F.avg_pool2d(val, 8), scale_factor=8, mode="bilinear"
                )
                flat = tuple(
                    -10 * math.log10(((q.clamp(-1, 1) - val) / 2).pow(2).mean().item())
                    for q in (y, base)
                )
                print(
                    f"   PSNR {flat[0]:.2f} dB, bilinear enlargement alone {flat[1]:.2f} dB",
                    flush=True,
                )
                torch.save(
                    {
                        "ema": {
                            k: v.cpu().clone() for k, v in vae.state_dict().items()
                        },
                        "mean": mean,
                        "std": std,
                    },
                    f"{path}.tmp",
                )
                os.replace(f"{path}.tmp", path)
                both = torch.cat(
                    [torch.cat(list(q[:8].clamp(-1, 1)), 2) for q in (val, base, y)], 1
                )
                Image.fromarray(
                    ((both.permute(1, 2, 0) + 1) * 127.5).round().byte().cpu().numpy()
                ).save(a.work / "vae_preview.png")
                for p, k in zip(params, keep):
                    p.copy_(k)
        if frac >= 1:
            return 0


if __name__ == "__main__":
    sys.exit(main())
