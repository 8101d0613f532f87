# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.15.0"]
# ///
"""Copies what is needed to go on training into a small folder: UNet and text encoder in half precision, the autoencoder as it is."""

import argparse
import shutil
import sys
from pathlib import Path

import torch


def halve(x: object) -> object:
    """the same structure with half-precision tensors"""
    if isinstance(x, dict):
        return {k: halve(v) for k, v in x.items()}
    if isinstance(x, torch.Tensor) and x.dtype == torch.float32:
        return x.half()
    return x


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("work", type=Path)
    ap.add_argument("out", type=Path)
    a = ap.parse_args()
    needed = [a.work / n for n in ("unet.pt", "text.pt", "vae.pt", "things.json")]
    for p in needed:
        if not p.exists():
            print(f"{p} is missing.", file=sys.stderr)
            return 2
    a.out.mkdir(parents=True, exist_ok=True)
    for p in needed[:2]:
        torch.save(halve(torch.load(p)), a.out / p.name)
    for p in needed[2:]:
        shutil.copyfile(p, a.out / p.name)
    total = sum((a.out / p.name).stat().st_size for p in needed)
    print(f"{a.out}: {total / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
