#!/usr/bin/env python3
"""Grows an inner-stage checkpoint to the whole UNet and writes a noise-removing path for the fine scales straight into its weights.

The part of x that 4x4 averaging removes is split (Haar) into x - avg2(x) and avg2(x) - avg4(x).  For each, the best linear guess of v is
g(t) times it, with g = a s (1 - S) / (a^2 S + s^2), a and s the schedule's alpha and sigma, S the energy of that band in real latents relative to noise.
The two levels that have not been trained compute just that:
  * x, avg2(x), avg4(x) travel as pairs (c, -c) of tiny amplitude, which GroupNorm only scales (its eps dominates) and where silu(c) - silu(-c) = c;
  * in the last residual block of each level the band u enters channels (k + u, -k - u) and (k - u, u - k), k = k(t) coming from the
    time embedding: the norm divides by about k, so the difference of the two is 2 u / k(t), which is the gain wanted.
Sixteen of the 64 channels of the outer levels' stream are taken from the head for this (the least important ones).

usage: fine_path.py WORK IN.pt OUT.pt
"""

import sys
import torch
import torch.nn.functional as F
from data import Emoji
from models import UNet
from train_diffusion import ALPHA, SIGMA, UNET, Latents, Stage, grow

S = 2.0**-13
GAIN = (1e-5**0.5) / S
TAKEN = list(range(56, 64))  # channels of the way down that carry +-x
HID = 48  # first of the 16 hidden channels used in a block
DELTA, KMIN = 0.05, 0.5


@torch.no_grad()
def band_block(r, gain, xch, lch, hch, phi):
    """residual block r adds gain(t) * (x - low) to the pairs hch; xch, lch: concat indices of the +x channels and the +low channels"""
    gmax = gain.max()
    kappa = KMIN * gmax / gain  # k(t)
    a = torch.cat([phi, torch.ones(len(phi), 1)], 1).double()
    w = 1 / kappa.double()[:, None]
    A, y = a * w, torch.ones(len(phi), 1, dtype=torch.float64)
    sol = torch.linalg.solve(
        A.T @ A + 1e-5 * torch.eye(a.shape[1], dtype=torch.float64), A.T @ y
    )[:, 0]
    fit = a @ sol
    print(
        "   gain up to",
        round(gmax.item(), 2),
        "relative error of the fitted k(t)",
        round(((fit / kappa.double()) - 1).abs().mean().item(), 4),
        "worst",
        round(((fit / kappa.double()) - 1).abs().max().item(), 3),
    )
    for c in xch + lch:
        for d in (0, 1):
            r.norm1.weight[c + d], r.norm1.bias[c + d] = GAIN, 0
    c_out = gmax * KMIN / (2 * DELTA)
    for k in range(4):
        base = HID + 4 * k
        for j, (sk, su) in enumerate(((1, 1), (-1, -1), (1, -1), (-1, 1))):
            h = base + j
            r.conv1.weight[h] = 0
            r.conv1.bias[h] = 0
            for c, sg in ((xch[k], 1), (lch[k], -1)):
                r.conv1.weight[h, c, 1, 1] = su * sg * DELTA
                r.conv1.weight[h, c + 1, 1, 1] = -su * sg * DELTA
            r.time_emb_proj.weight[h] = sk * sol[:-1].float()
            r.time_emb_proj.bias[h] = sk * sol[-1].float()
            r.norm2.weight[h], r.norm2.bias[h] = 1, 0
            for d, so in ((0, 1), (1, -1)):
                r.conv2.weight[hch[k] + d, h, 1, 1] = (
                    so * (1 if j in (0, 3) else -1) * S * c_out
                )


@torch.no_grad()
def build(work, ck):
    st = torch.load(ck)
    u = UNet(**UNET)
    u.load_state_dict(st["ema"])
    old = st["stage"]
    W, b = old["inp.weight"][:, :, 0, 0].clone(), old["inp.bias"].clone()
    for lv in (1, 0):
        s = Stage(u, lv)
        grow(s, old)
        old = {k: v for k, v in s.state_dict().items() if not k.startswith("unet.")}
    # the least important blocks of four head channels
    imp = (
        (
            u.conv_out.weight[:, :, 1, 1].norm(dim=0)
            * (u.conv_norm_out.weight.abs() + u.conv_norm_out.bias.abs())
        )
        .view(16, 4)
        .sum(1)
    )
    blocks = imp.argsort()[:4].tolist()
    print(
        "head blocks taken",
        blocks,
        "their share of the weight",
        round((imp[blocks].sum() / imp.sum()).item(), 3),
    )
    pairs = [4 * q + 2 * i for q in blocks for i in (0, 1)]
    H, G = pairs[:4], pairs[4:]
    both = lambda ch: [c + d for c in ch for d in (0, 1)]  # noqa: E731
    # way down: +-x in TAKEN; level 2 gets its missing inputs from the other channels
    rem = [c for c in range(64) if c not in TAKEN]
    A = W[TAKEN] @ torch.linalg.pinv(W[rem])
    d1 = u.down_blocks[1].downsamplers[0].conv
    for i, j in enumerate(TAKEN):
        d1.weight[j] = 0
        for q, c in enumerate(rem):
            d1.weight[j, c, 1:, 1:] = A[i, q] / 4
        d1.bias[j] = b[j] - (A[i] @ b[rem])
    for k in range(4):
        for d, sg in ((0, 1), (1, -1)):
            c = TAKEN[2 * k + d]
            u.conv_in.weight[c] = 0
            u.conv_in.weight[c, k, 1, 1] = sg * S
            u.conv_in.bias[c] = 0
    # level 2, last block: +-avg4(x) into G, straight from its skip
    r2 = u.up_blocks[1].resnets[1]
    Wp = torch.linalg.pinv(W)
    for k in range(4):
        for d, sg in ((0, 1), (1, -1)):
            c = G[k] + d
            r2.conv2.weight[c], r2.conv2.bias[c] = 0, 0
            r2.conv_shortcut.weight[c] = 0
            r2.conv_shortcut.weight[c, 64:, 0, 0] = sg * S * Wp[k]
            r2.conv_shortcut.bias[c] = -sg * S * (Wp[k] @ b)
    has_att = hasattr(u.up_blocks[1], "attentions")
    if has_att:  # the transformer after it must leave G alone
        at = u.up_blocks[1].attentions[1]
        at.proj_out.weight[both(G)], at.proj_out.bias[both(G)] = 0, 0
    # energies of the bands
    emoji = Emoji(work, core=True)
    lat = Latents(emoji, f"{work}/vae.pt", [64])
    at = torch.stack(
        [
            torch.randint(0, len(emoji.pics), (200,)),
            torch.randint(0, 10, (200,)),
            torch.zeros(200, dtype=torch.long),
            torch.zeros(200, dtype=torch.long),
        ],
        1,
    )
    x0 = lat.make(at, 64, 64)
    x2, x4 = F.avg_pool2d(x0, 2), F.avg_pool2d(x0, 4)
    up = lambda z: F.interpolate(z, scale_factor=2)  # noqa: E731
    e1 = (x0 - up(x2)).pow(2).mean() / 0.75  # noise in this band: 3/4
    e2 = (x2 - up(x4)).pow(2).mean() / (0.75 / 4)
    print("band energies relative to noise", e1.item(), e2.item())
    t = torch.arange(1000).float()
    a_ = t[:, None] * u.freqs[None]
    phi = F.silu(u.time_embedding(torch.cat([a_.cos(), a_.sin()], -1)))
    gain = lambda e: ALPHA * SIGMA * (1 - min(e, 0.9)) / (ALPHA**2 * e + SIGMA**2)  # noqa: E731
    X = [64 + TAKEN[2 * k] for k in range(4)]
    # level 1
    ra, rb = u.up_blocks[2].resnets
    for c in both(H):
        ra.conv_shortcut.weight[c] = 0
    band_block(rb, gain(e2), X, G, H, phi)
    for k in range(4):  # from here on G carries avg2(x)
        for d in (0, 1):
            c = G[k] + d
            rb.conv_shortcut.weight[c] = 0
            rb.conv_shortcut.weight[c, X[k] + d, 0, 0] = 1
    # level 0
    band_block(u.up_blocks[3].resnets[1], gain(e1), X, G, H, phi)
    for c in both(H) + both(G):
        u.conv_out.weight[:, c] = 0
    for k in range(4):
        for d, sg in ((0, 1), (1, -1)):
            c = H[k] + d
            u.conv_norm_out.weight[c], u.conv_norm_out.bias[c] = GAIN, 0
            u.conv_out.weight[k, c, 1, 1] = sg
    return u, st


if __name__ == "__main__":
    import warnings

    warnings.filterwarnings("ignore")
    work, src, dst = sys.argv[1:4]
    u, st = build(work, src)
    torch.save(
        dict(ema=u.state_dict(), level=0, stage={}, step=0, seen=st.get("seen", 0)), dst
    )
    # how well does it denoise?
    emoji = Emoji(work, core=True)
    lat = Latents(emoji, f"{work}/vae.pt", [64])
    pool = torch.load(f"{work}/pool.pt")
    i = torch.arange(0, 6) * 7
    with torch.no_grad():
        x0 = lat.make(pool["at"][i], 64, 64)
        e = torch.randn_like(x0)
        for t in (20, 100, 300, 500, 700, 900):
            a, s = ALPHA[t], SIGMA[t]
            v = u(a * x0 + s * e, torch.full((6,), float(t)), pool["states"][i].float())
            print(
                t,
                "loss",
                round((v - (a * e - s * x0)).pow(2).mean().item(), 4),
                flush=True,
            )
