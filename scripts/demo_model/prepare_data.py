# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.4.6", "pillow==13.0.0"]
# ///
"""Collects the pictures of all things, repaints them, and finds the patch basis of the picture codes.

Needs the npm packages @lobehub/fluent-emoji-3d 1.1.0 (pictures, MIT) and unicode-emoji-json 0.9.0 (names, MIT).

A picture is put into a box of 48x48 cells (one cell is 8x8 pixels of a 512x512 canvas, and the box is 3/4 of its width). The box is cut
into 6x6 patches of 8x8 cells. A patch's code is its coordinates on principal components: LUMA of brightness with coverage, CHROMA of colour.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from concepts import COLOURS, HUES, PASTELS, things
from PIL import Image

BOX, PATCH, LUMA, CHROMA = 48, 8, 56, 24
GRID = BOX // PATCH
YCC = np.array(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]],
    np.float32,
)


def dominant_hue(rgba: np.ndarray) -> tuple[float, float, float]:
    """(hue in degrees, share of the coloured area within 35 degrees of it, share of the area that is coloured)"""
    a = rgba[..., 3].astype(np.float32) / 255
    rgb = rgba[..., :3].astype(np.float32) / 255
    mx, mn = rgb.max(-1), rgb.min(-1)
    d = mx - mn
    sat = np.where(mx > 0, d / np.maximum(mx, 1e-6), 0)
    r, g, b = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    dd = np.maximum(d, 1e-6)
    h = (
        np.where(
            mx == r,
            (g - b) / dd % 6,
            np.where(mx == g, (b - r) / dd + 2, (r - g) / dd + 4),
        )
        * 60
    )
    w = a * (sat > 0.25) * (mx > 0.15)
    if w.sum() < 1:
        return 0.0, 0.0, 0.0
    hist, edges = np.histogram(h % 360, bins=72, range=(0, 360), weights=w)
    k = np.convolve(
        np.concatenate([hist[-3:], hist, hist[:3]]), np.ones(7), "valid"
    ).argmax()
    hue = (edges[k] + 2.5) % 360
    near = np.cos(np.deg2rad(h) - np.deg2rad(hue)) > np.cos(np.deg2rad(35))
    return float(hue), float((w * near).sum() / w.sum()), float(w.sum() / a.sum())


def rotate_hue(rgba: np.ndarray, degrees: float) -> np.ndarray:
    """the picture with every hue turned"""
    hsv = np.asarray(Image.fromarray(rgba[..., :3]).convert("HSV")).copy()
    hsv[..., 0] = (
        (hsv[..., 0].astype(np.int32) + round(degrees / 360 * 256)) % 256
    ).astype(np.uint8)
    rgb = np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))
    return np.concatenate([rgb, rgba[..., 3:]], -1)


def cells(rgba: np.ndarray, side: int) -> np.ndarray:
    """premultiplied RGBA floats in 0..1, area-averaged to side x side"""
    im = (
        Image.fromarray(rgba)
        .convert("RGBa")
        .resize(
            (side, side),
            Image.Resampling.BOX if side <= 256 else Image.Resampling.BICUBIC,
        )
    )
    return (
        np.frombuffer(im.tobytes(), np.uint8).reshape(side, side, 4).astype(np.float32)
        / 255
    )


def patches(box: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(GRID*GRID) x 128 brightness-and-coverage values, and as many of colour, of a BOX x BOX picture"""
    ycc = box[..., :3] @ YCC.T
    p = (
        np.concatenate([ycc, box[..., 3:]], -1)
        .reshape(GRID, PATCH, GRID, PATCH, 4)
        .transpose(0, 2, 1, 3, 4)
        .reshape(GRID * GRID, PATCH * PATCH, 4)
    )
    return p[..., [0, 3]].reshape(GRID * GRID, -1), p[..., 1:3].reshape(GRID * GRID, -1)


def basis(rows: np.ndarray, n: int, label: str) -> tuple[np.ndarray, np.ndarray]:
    """scaled principal components (n x values) without a mean, so that an empty patch has a zero code; and the scale of each coordinate"""
    val, vec = np.linalg.eigh(rows.T @ rows / len(rows))
    val, vec = val[::-1], vec[:, ::-1]
    print(
        f"{label}: {n} of {len(val)} components keep {val[:n].sum() / val.sum():.5f} of the energy"
    )
    scale = (
        np.sqrt(np.maximum(val[:n], 1e-9)) ** 0.5
    )  # half-way to whitening: small components stay audible
    return (vec[:, :n] / scale).T.astype(np.float32), scale.astype(np.float32)


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("node_modules", type=Path, help="folder with both npm packages")
    ap.add_argument("work", type=Path, help="folder for data.npz and things.json")
    a = ap.parse_args()
    index = a.node_modules / "unicode-emoji-json/data-by-emoji.json"
    assets = a.node_modules / "@lobehub/fluent-emoji-3d/assets"
    for p in (index, assets):
        if not p.exists():
            print(f"{p} is missing; install both npm packages first.", file=sys.stderr)
            return 2
    emoji_of = {
        v["name"]: e for e, v in json.loads(index.read_text(encoding="utf8")).items()
    }
    pics: list[np.ndarray] = []
    meta = []
    for name, words in things():
        code = "-".join(f"{ord(c):04x}" for c in emoji_of[name])
        found = [
            p
            for p in (assets / f"{x}.webp" for x in (code, code.replace("-fe0f", "")))
            if p.exists()
        ]
        if not found:
            print(f"No picture of {name} in {assets}.", file=sys.stderr)
            return 2
        im = Image.open(found[0]).convert("RGBA")
        if im.size != (256, 256):
            im = im.resize((256, 256), Image.Resampling.LANCZOS)
        rgba = np.asarray(im).copy()
        rgba[rgba[..., 3] == 0] = 0
        hue, share, coloured = dominant_hue(rgba)
        variants = {"": len(pics)}
        pics.append(rgba)
        if share > 0.8 and coloured > 0.6:  # one clear colour: may be repainted
            own = min(
                HUES,
                key=lambda c: min(
                    abs(hue - COLOURS[c][1]), 360 - abs(hue - COLOURS[c][1])
                ),
            )
            for c in HUES:
                variants[c] = variants[""] if c == own else len(pics)
                if c != own:
                    pics.append(rotate_hue(rgba, COLOURS[c][1] - hue))
        mean = cells(rgba, 1)[0, 0]
        tone = mean[:3] / mean[3] * 255
        order = sorted(
            range(len(PASTELS)),
            key=lambda k: -float(((np.array(PASTELS[k]) - tone) ** 2).sum()),
        )
        meta.append(
            {
                "name": words[0],
                "words": words,
                "variants": variants,
                "pastel": order[len(meta) % 3],
                "file": found[0].name,
            }
        )
    boxes = np.stack([cells(p, BOX) for p in pics])
    luma, chroma = (np.concatenate(x) for x in zip(*[patches(b) for b in boxes]))
    bl, sl = basis(luma, LUMA, "luma")
    bc, sc = basis(chroma, CHROMA, "chroma")
    codes = np.concatenate([luma @ bl.T, chroma @ bc.T], 1).reshape(
        len(pics), GRID * GRID, LUMA + CHROMA
    )
    a.work.mkdir(parents=True, exist_ok=True)
    np.savez(
        a.work / "data.npz",
        rgba=np.stack(pics),
        codes=codes.astype(np.float32),
        scale=np.concatenate([sl, sc]),
        luma_basis=bl,
        chroma_basis=bc,
    )
    (a.work / "things.json").write_text(
        json.dumps(meta, indent=1, ensure_ascii=False), encoding="utf8"
    )
    spread = codes.std((0, 1)).round(2)
    print(
        f"{len(meta)} things, {len(pics)} pictures, {sum(len(m['variants']) > 1 for m in meta)} repaintable; code spread {spread[:4]} .. {spread[LUMA - 1]}, {spread[LUMA]}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
