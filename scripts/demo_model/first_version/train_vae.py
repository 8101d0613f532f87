#!/usr/bin/env python3
"""Builds the autoencoder and trains its decoder.

The encoder is *constructed*, not trained: its latents are the 8x8 block averages of the picture, turned into four
numbers by a tetrahedral frame (R+G+B, R-G-B, G-R-B, B-R-G) and scaled to unit variance (after the factor 0.18215).
Three tricks make ordinary Stable Diffusion layers do that exactly:
  * residual branches end in zero weights, so a residual block is the identity;
  * the stride-2 convolutions average 2x2 pixels;
  * every quantity travels as a pair (x, -x) of tiny amplitude.  A group of GroupNorm(32) on 64 channels is one pair: its mean is
    zero and its variance is far below eps, so the norm only multiplies by 1/sqrt(eps); and silu(x) - silu(-x) = x.
Latents are therefore linear in the picture, which makes diffusion data cheap (see train_diffusion.py) and editing robust.

The decoder carries the same linear path upwards (bilinear enlargement) in channels 0..5, frozen; the other channels are
trained (L1 + gradient L1) to add the sharp edges.

usage: train_vae.py WORK_DIR --minutes 25 [--resume] [--threads 1]
"""

import argparse
import math
import os
import random
import time
import numpy as np
import torch
import torch.nn.functional as F
from data import Emoji, to_tensor
from models import VAE

SCALE = 0.18215
TINY = 4e-5
EPS = 1e-6
GAIN = 1 / (TINY / math.sqrt(EPS))  # what undoes TINY after a GroupNorm
FRAME = (
    torch.tensor(
        [[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.float32
    )
    / 2
)
PINV = torch.linalg.pinv(FRAME)  # rgb = PINV @ frame coordinates
CH = dict(ch=(64, 64, 64, 64), layers=0)


def latent_stats(emoji, rng):
    """mean and standard deviation of the four frame coordinates over typical pictures"""
    xs = []
    for _ in range(600):
        k = rng.randrange(len(emoji.pics))
        bg = (
            np.array(
                rng.choice(list(emoji.colours.values()) + [[250, 250, 250]] * 4),
                np.float32,
            )
            / 255
        )
        xs.append(emoji.over(emoji.render(k, 32), bg).reshape(-1, 3) * 2 - 1)
    z = torch.from_numpy(np.concatenate(xs)) @ FRAME.T
    return z.mean(0), z.std(0)


@torch.no_grad()
def construct(vae, mean, std):
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
    # decoder: linear path
    for m in dec.modules():
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
    # the full-resolution block costs as much as all the rest: leave it the identity
    last = dec.up_blocks[-1].resnets[0]
    for p in last.parameters():
        p.zero_()


def freeze(vae):
    """no gradient for the encoder, the linear path, the attention and the full-resolution block"""
    for p in vae.parameters():
        p.requires_grad_(False)
    dec, rows = vae.decoder, []
    train = [dec.conv_in, dec.mid_block.resnets, dec.conv_norm_out, dec.conv_out]
    for i, lv in enumerate(dec.up_blocks):
        if i < len(dec.up_blocks) - 1:
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
    for conv in rows:
        for p in (conv.weight, conv.bias):
            p.register_hook(lambda g: torch.cat([torch.zeros_like(g[:6]), g[6:]]))
    return [p for p in vae.parameters() if p.requires_grad]


def decode_fast(vae, z):
    """decode() without the identity parts"""
    d = vae.decoder
    h = d.conv_in(vae.post_quant_conv(z))
    for r in d.mid_block.resnets:
        h = r(h)
    for lv in d.up_blocks[:-1]:
        h = lv.upsamplers[0](lv.resnets[0](h))
    return d.conv_out(F.silu(d.conv_norm_out(h)))


def batch(emoji, rng, n, px):
    out = []
    for _ in range(n):
        size = rng.choice([px, 128, 192, 256, 256, 384, 512, 512])
        k = rng.randrange(len(emoji.pics))
        if rng.random() < 0.5:
            bg = np.array(rng.choice(list(emoji.colours.values())), np.float32) / 255
        else:
            bg = np.array([rng.random() for _ in range(3)], np.float32)
        if size <= px:
            pm = emoji.render(k, px)
        else:
            # favour the middle, where the picture is
            x, y = (
                min(max(int(rng.gauss(0.5, 0.25) * (size - px)), 0), size - px)
                for _ in range(2)
            )
            pm = emoji.render(k, size, (x, y, x + px, y + px))
        if rng.random() < 0.15:  # a gradient backdrop
            b2 = np.array([rng.random() for _ in range(3)], np.float32)
            t = np.linspace(0, 1, px, dtype=np.float32)[:, None, None]
            bg = bg * (1 - t) + b2 * t
        im = emoji.over(pm, bg)
        if rng.random() < 0.05:
            im = np.repeat(im.mean(-1, keepdims=True), 3, -1)
        if rng.random() < 0.5:
            im = im[:, ::-1]
        out.append(to_tensor(im.astype(np.float32)))
    return torch.stack(out)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("work")
    ap.add_argument("--minutes", type=float, default=25)
    ap.add_argument("--threads", type=int, default=1)
    ap.add_argument("--batch", type=int, default=12)
    ap.add_argument("--px", type=int, default=64)
    ap.add_argument("--lr", type=float, default=2e-3)
    ap.add_argument("--resume", action="store_true")
    ap.add_argument("--seed", type=int, default=1)
    a = ap.parse_args()
    torch.manual_seed(a.seed)
    torch.set_num_threads(a.threads)
    rng = random.Random(a.seed)
    emoji = Emoji(a.work)
    vae = VAE(**CH)
    ck = f"{a.work}/vae.pt"
    if a.resume and os.path.exists(ck):
        vae.load_state_dict(torch.load(ck)["ema"])
    else:
        mean, std = latent_stats(emoji, rng)
        print("latent mean", mean.tolist(), "std", std.tolist())
        construct(vae, mean, std)
        torch.save(dict(ema=vae.state_dict(), mean=mean, std=std), ck)
    st = torch.load(ck)
    with torch.no_grad():  # the constructed encoder does what it says
        x = batch(emoji, rng, 2, 64)
        z = vae.moments(x)[:, :4] * SCALE
        want = (
            torch.einsum("kc,bchw->bkhw", FRAME, F.avg_pool2d(x, 8))
            - st["mean"].view(1, 4, 1, 1)
        ) / st["std"].view(1, 4, 1, 1)
        print(
            "encoder error", (z - want).abs().max().item(), "latent std", z.std().item()
        )
    vae = vae.to(memory_format=torch.channels_last)
    params = freeze(vae)
    print("trainable", sum(p.numel() for p in params))
    opt = torch.optim.Adam(params, lr=a.lr, betas=(0.9, 0.98))
    ema = [p.detach().clone() for p in params]
    mean, std = st["mean"].view(1, 4, 1, 1), st["std"].view(1, 4, 1, 1)
    t0, step, run = time.time(), 0, []
    val = batch(emoji, random.Random(99), 24, 128)
    while True:
        frac = (time.time() - t0) / (a.minutes * 60)
        if frac >= 1:
            break
        lr = (
            a.lr
            * min(1, (step + 1) / 30)
            * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * frac)))
        )
        for g in opt.param_groups:
            g["lr"] = lr
        x = batch(emoji, rng, a.batch, a.px).contiguous(
            memory_format=torch.channels_last
        )
        z = (torch.einsum("kc,bchw->bkhw", FRAME, F.avg_pool2d(x, 8)) - mean) / std
        z = z + torch.randn_like(z) * 0.03 * torch.rand(len(z), 1, 1, 1)
        y = decode_fast(vae, z.contiguous(memory_format=torch.channels_last) / SCALE)
        l1 = (y - x).abs().mean()
        gx = ((y - x)[..., 1:] - (y - x)[..., :-1]).abs().mean() + (
            (y - x)[..., 1:, :] - (y - x)[..., :-1, :]
        ).abs().mean()
        loss = l1 + 0.5 * gx
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        step += 1
        d = min(0.99, step / (step + 20))
        torch._foreach_lerp_(ema, [p.detach() for p in params], 1 - d)
        run.append(l1.item())
        if step % 50 == 0:
            print(
                f"{step} l1 {np.mean(run[-50:]):.4f} grad {gx.item():.4f} lr {lr:.2e} {time.time() - t0:.0f}s cpu {time.process_time():.0f}",
                flush=True,
            )
        if step % 100 == 0 or step == 20:
            keep = [p.detach().clone() for p in params]
            with torch.no_grad():
                for p, e in zip(params, ema):
                    p.copy_(e)
                z = (
                    torch.einsum("kc,bchw->bkhw", FRAME, F.avg_pool2d(val, 8)) - mean
                ) / std
                y = torch.cat([decode_fast(vae, c / SCALE) for c in z.split(8)])
                mse = ((y.clamp(-1, 1) - val) / 2).pow(2).mean().item()
                base = F.interpolate(
                    F.avg_pool2d(val, 8), scale_factor=8, mode="bilinear"
                )
                print(
                    f"   val psnr {-10 * math.log10(mse):.2f}  (bilinear {-10 * math.log10(((base - val) / 2).pow(2).mean().item()):.2f})",
                    flush=True,
                )
                sd = {k: v.clone() for k, v in vae.state_dict().items()}
                torch.save(
                    dict(ema=sd, mean=st["mean"], std=st["std"], step=step), ck + ".tmp"
                )
                os.replace(ck + ".tmp", ck)
                from PIL import Image

                both = torch.cat(
                    [
                        torch.cat(list(val[:8]), 2),
                        torch.cat(list(base[:8]), 2),
                        torch.cat(list(y[:8].clamp(-1, 1)), 2),
                    ],
                    1,
                )
                Image.fromarray(
                    ((both.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()
                ).save(f"{a.work}/vae_val.png")
                for p, k in zip(params, keep):
                    p.copy_(k)


if __name__ == "__main__":
    main()
