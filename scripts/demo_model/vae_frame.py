"""The colour frame of the latents, and where their scaling is kept."""

from pathlib import Path

import torch

SCALE = 0.18215
FRAME = (
    torch.tensor(
        [[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.float32
    )
    / 2
)
PINV = torch.linalg.pinv(FRAME)  # rgb = PINV @ frame coordinates


def latent_scaling(work: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """mean and standard deviation of the four latent channels before scaling"""
    p = work / "vae.pt"
    if not p.exists():
        raise SystemExit(f"{p} is missing; run train_vae.py first.")
    st = torch.load(p)
    return st["mean"], st["std"]
