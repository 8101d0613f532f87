# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.15.0"]
# ///
"""Splits a work folder's unet.pt into two files of half precision that are easier to carry, unet-ema.pt and unet-raw.pt, or joins them again."""

import argparse
import sys
from pathlib import Path

import torch

WEIGHTS = {"ema": ("ema", "stage_ema"), "raw": ("raw", "stage")}


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("what", choices=("split", "join"))
    ap.add_argument("work", type=Path, help="folder of unet.pt")
    ap.add_argument("parts", type=Path, help="folder of the two files")
    a = ap.parse_args()
    files = {k: a.parts / f"unet-{k}.pt" for k in WEIGHTS}
    needed = [a.work / "unet.pt"] if a.what == "split" else list(files.values())
    for p in needed:
        if not p.exists():
            print(f"{p} is missing.", file=sys.stderr)
            return 2
    if a.what == "split":
        st = torch.load(needed[0], map_location="cpu")
        rest = {k: v for k, v in st.items() if not isinstance(v, dict)}
        a.parts.mkdir(parents=True, exist_ok=True)
        for k, names in WEIGHTS.items():
            half = {n: {key: x.half() for key, x in st[n].items()} for n in names}
            torch.save(rest | half, files[k])
    else:
        st = {}
        for p in needed:
            for n, v in torch.load(p, map_location="cpu").items():
                st[n] = (
                    {k: x.float() for k, x in v.items()} if isinstance(v, dict) else v
                )
        a.work.mkdir(parents=True, exist_ok=True)
        torch.save(st, a.work / "unet.pt")
    return 0


if __name__ == "__main__":
    sys.exit(main())
