#!/usr/bin/env python3
"""Turns a checkpoint of an inner stage into a whole-UNet checkpoint (exact enlargement, nothing trained).
usage: grow_checkpoint.py IN.pt OUT.pt"""

import sys
import torch
from models import UNet
from train_diffusion import UNET, Stage, grow

st = torch.load(sys.argv[1])
u = UNet(**UNET)
u.load_state_dict(st["ema"])
old = st["stage"]
for lv in range(st["level"] - 1, -1, -1):
    s = Stage(u, lv)
    grow(s, old)
    old = {k: v for k, v in s.state_dict().items() if not k.startswith("unet.")}
torch.save(
    dict(ema=u.state_dict(), level=0, stage={}, step=st["step"], seen=st["seen"]),
    sys.argv[2],
)
