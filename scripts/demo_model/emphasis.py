# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.4.6", "pillow==13.0.0", "tokenizers==0.23.3", "torch==2.15.0"]
# ///
"""Measures what attention weights do to the pictures of a running server.

For each weight: chroma of the object for `(red:1.4) apple`, contrast between object and backdrop for `(apple:1.4)`, and the backdrop's
distance from grey for `(red:1.4) background`, each relative to weight 1, and how far the picture lies from that of weight 1 (mean
absolute difference in grey levels). The object is where its rendering has cover.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from client import Client
from conditions import Conditions
from prepare_data import cells

CASES = [
    ("apple", "green", "white"),
    ("heart", "red", "blue"),
    ("car", "blue", "yellow"),
    ("star", "purple", "white"),
    ("cactus", "red", "grey"),
    ("umbrella", "orange", "black"),
]
GREY = np.array([0.299, 0.587, 0.114])


def measure(im: np.ndarray, cover: np.ndarray) -> dict[str, float]:
    """the three quantities of one picture"""
    x = im.astype(np.float64)
    inside, edge = x[cover > 0.9], x[:24].reshape(-1, 3)
    back = np.median(edge, 0)
    return {
        "colour": float(np.abs(inside - (inside @ GREY)[:, None]).mean()),
        "thing": float(np.abs(inside - back).mean()),
        "backdrop": float(np.abs(back - 153).mean()),
    }


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("work", type=Path)
    ap.add_argument("--server", default="http://127.0.0.1:7860")
    ap.add_argument("--weights", type=float, nargs="*", default=[0.5, 0.7, 1.2, 1.4])
    ap.add_argument("--steps", type=int, default=20)
    ap.add_argument("--size", type=int, default=512)
    ap.add_argument("--cases", type=int, default=len(CASES))
    a = ap.parse_args()
    cond = Conditions(a.work)
    names = [w[0] for w in cond.words]
    client = Client(a.server, a.size, a.size, a.steps)
    side = 2 * round(0.375 * (a.size // 8)) * 8
    at = (a.size - side) // 2
    figures: dict[str, list[tuple[float, float]]] = {}
    for thing, colour, back in CASES[: a.cases]:
        k = names.index(thing)
        cover = np.zeros((a.size, a.size))
        picture = cond.rgba[cond.variants[k].get(colour, cond.variants[k][""])]
        cover[at : at + side, at : at + side] = cells(picture, side)[..., 3]
        words = {"colour": colour, "thing": thing, "backdrop": back}

        def draw(kind: str, weight: float) -> np.ndarray:
            w = {k: f"({v}:{weight})" if k == kind else v for k, v in words.items()}  # noqa: B023
            return client.draw(
                f"a {w['colour']} {w['thing']} on a {w['backdrop']} background", 0
            )

        plain = draw("", 1.0)
        base = measure(plain, cover)
        for kind in words:
            for weight in a.weights:
                im = draw(kind, weight)
                ratio = measure(im, cover)[kind] / base[kind]
                off = float(np.abs(im.astype(float) - plain.astype(float)).mean())
                figures.setdefault(f"{kind}:{weight}", []).append((ratio, off))
        print(thing, colour, back, "done", flush=True)
    table = {
        k: {"relative": round(r, 3), "difference": round(d, 2)}
        for k, (r, d) in ((k, np.mean(v, 0)) for k, v in figures.items())
    }
    print(json.dumps(table, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
