# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.4.6", "pillow==13.0.0", "tokenizers==0.23.3", "torch==2.15.0"]
# ///
"""Scores the model that a running server draws with.

A small classifier is trained on renderings of the pictures (any place, size, backdrop, colour, blur and noise) and checked on renderings
drawn with a seed that training never uses; it never sees a generated picture. It then names the thing in pictures of random prompts,
among all things. Backdrop: the border's median is nearest to the colour in the prompt, among the ten. Object colour: among the seven
repaintings of the thing, the one in the prompt is nearest to the drawn picture. Noise: spread of the border within a picture, in grey levels.

The pictures are kept, so that a run that was cut off goes on where it stopped.
"""

import argparse
import itertools
import json
import random
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from client import Client, pixels
from concepts import BACKDROPS, COLOURS
from conditions import Conditions
from PIL import Image, ImageFilter
from prepare_data import cells
from torch import nn
from train_vae import backdrop

PX = 64


class Classifier(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        widths = [3, 32, 64, 128, 192]
        self.body = nn.Sequential(
            *[
                nn.Sequential(
                    nn.Conv2d(i, o, 3, 2, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU()
                )
                for i, o in itertools.pairwise(widths)
            ]
        )
        self.head = nn.Linear(192 * 16, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.dropout(self.body(x).flatten(1), 0.3, self.training))


class Renderings:
    """labelled random renderings at PX x PX"""

    def __init__(self, cond: Conditions) -> None:
        self.cond = cond
        self.label = {k: i for i, v in enumerate(cond.variants) for k in v.values()}
        self.pics = [
            Image.fromarray((cells(p, 96) * 255).round().astype(np.uint8), "RGBa")
            for p in cond.rgba
        ]

    def one(self, rng: random.Random) -> tuple[np.ndarray, int]:
        thing = rng.randrange(len(self.cond.variants))
        v = self.cond.variants[thing]
        k = v[""] if rng.random() < 0.5 else rng.choice(list(v.values()))
        side = rng.randint(40, 58)
        im = (
            np.asarray(self.pics[k].resize((side, side), Image.Resampling.BOX)).astype(
                np.float32
            )
            / 255
        )
        bg = backdrop(rng)
        out = np.empty((PX, PX, 3), np.float32)
        out[:] = bg
        x, y = (
            min(PX - side, max(0, (PX - side) // 2 + rng.randint(-3, 3)))
            for _ in range(2)
        )
        out[y : y + side, x : x + side] = im[..., :3] + (1 - im[..., 3:]) * bg
        if rng.random() < 0.06:
            out[:] = (out @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
        if rng.random() < 0.5:
            soft = Image.fromarray((out.clip(0, 1) * 255).astype(np.uint8)).filter(
                ImageFilter.GaussianBlur(rng.random() * 1.2)
            )
            out = np.asarray(soft).astype(np.float32) / 255
        out = (out - 0.5) * rng.uniform(0.8, 1.25) + 0.5 + rng.uniform(-0.06, 0.06)
        out += (
            np.random.default_rng(rng.getrandbits(32))
            .normal(0, 0.05 * rng.random(), out.shape)
            .astype(np.float32)
        )
        return out.clip(0, 1), thing

    def batch(self, rng: random.Random, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows = [self.one(rng) for _ in range(n)]
        x = (
            torch.from_numpy(np.stack([r[0] for r in rows]))
            .permute(0, 3, 1, 2)
            .contiguous()
        )
        return x * 2 - 1, torch.tensor([r[1] for r in rows])


def train_classifier(cond: Conditions, path: Path, steps: int, seed: int) -> Classifier:
    torch.manual_seed(seed)
    ren, net = Renderings(cond), Classifier(len(cond.variants))
    if path.exists():
        net.load_state_dict(torch.load(path))
    else:
        opt, rng = (
            torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.02),
            random.Random(seed),
        )
        sched = torch.optim.lr_scheduler.OneCycleLR(opt, 4e-3, total_steps=steps)
        for step in range(steps):
            x, y = ren.batch(rng, 64)
            loss = F.cross_entropy(net(x), y, label_smoothing=0.05)
            opt.zero_grad()
            loss.backward()
            opt.step()
            sched.step()
            if step % 100 == 99:
                print(f"classifier step {step + 1} loss {loss.item():.3f}", flush=True)
        torch.save(net.state_dict(), path)
    net.eval().requires_grad_(False)
    x, y = ren.batch(random.Random(seed + 10**6), 2000)
    rank = (net(x).argsort(-1, descending=True) == y[:, None]).float().argmax(-1)
    print(
        f"classifier on 2000 held-back renderings: top-1 {(rank < 1).float().mean():.3f}, top-5 {(rank < 5).float().mean():.3f}",
        flush=True,
    )
    return net


def square(im: np.ndarray) -> Image.Image:
    h, w = im.shape[:2]
    s = min(h, w)
    return Image.fromarray(im[(h - s) // 2 : (h + s) // 2, (w - s) // 2 : (w + s) // 2])


def border(im: np.ndarray) -> np.ndarray:
    b = max(2, min(im.shape[:2]) // 20)
    return np.concatenate(
        [
            im[:b].reshape(-1, 3),
            im[-b:].reshape(-1, 3),
            im[:, :b].reshape(-1, 3),
            im[:, -b:].reshape(-1, 3),
        ]
    ).astype(np.float32)


def repainting(cond: Conditions, thing: int, im: np.ndarray) -> str:
    """the colour whose repainting of the thing is nearest"""
    a = (
        np.asarray(square(im).resize((PX, PX), Image.Resampling.BOX)).astype(np.float32)
        / 255
    )
    bg = np.median(border(im), 0) / 255
    best: dict[str, float] = {}
    for colour, k in cond.variants[thing].items():
        if colour:
            want = np.empty((PX, PX, 3), np.float32)
            want[:] = bg
            p = cells(cond.rgba[k], 48)
            want[8:56, 8:56] = p[..., :3] + (1 - p[..., 3:]) * bg
            best[colour] = float(((want - a) ** 2).mean())
    return min(best, key=lambda c: best[c])


class Ask(NamedTuple):
    """one random prompt, and what its picture has to show; `colour` and `back` are empty where the prompt names none"""

    thing: int
    colour: str
    back: str
    prompt: str


def requests(cond: Conditions, count: int, around: str, seed: int) -> list[Ask]:
    """every thing equally often, in random order; half of the repaintable ones with a colour, four of five with a backdrop"""
    rng = random.Random(seed)
    order = [k % len(cond.variants) for k in range(count)]
    rng.shuffle(order)
    asks = []
    for thing in order:
        name, colours = cond.words[thing][0], [c for c in cond.variants[thing] if c]
        colour = rng.choice(colours) if colours and rng.random() < 0.5 else ""
        back = rng.choice(BACKDROPS) if rng.random() < 0.8 else ""
        prompt = f"a {colour} {name}".replace("  ", " ") + (
            f" on a {back} background" if back else ""
        )
        asks.append(Ask(thing, colour, back, around.replace("{}", prompt)))
    return asks


def draw(client: Client, asks: list[Ask], kept: Path, minutes: float) -> list[Path]:
    """files of the pictures of `asks`, each drawn with its place as the seed; fewer where `minutes` were over

    A file of an earlier run is taken as it is when its infotext names the same prompt, seed, size, steps, CFG scale and model.
    """
    kept.mkdir(parents=True, exist_ok=True)
    model = str(client.get("/sdapi/v1/options")["sd_checkpoint_hash"])[:10]
    t0, files, drawn = time.time(), [], 0
    for i, ask in enumerate(asks):
        file = kept / f"{i:04}.png"
        if same_request(file, client, model, ask.prompt, i):
            files.append(file)
            continue
        if time.time() - t0 > minutes * 60:
            break
        png = client.png(ask.prompt, i)
        half = file.with_suffix(".tmp")
        half.write_bytes(png)
        half.replace(file)
        files.append(file)
        drawn += 1
        if drawn % 25 == 0:
            each = (time.time() - t0) / drawn
            print(f"{len(files)} pictures, {each:.2f} s each", flush=True)
    return files


def same_request(
    file: Path, client: Client, model: str, prompt: str, seed: int
) -> bool:
    """whether the picture's infotext names this request"""
    if not file.exists():
        return False
    told = Image.open(file).info.get("parameters", "")
    first, _, rest = told.rpartition("\n")
    fields = rest.split(", ")
    wanted = (
        f"Steps: {client.steps}",
        f"CFG scale: {client.cfg}",
        f"Seed: {seed}",
        f"Size: {client.width}x{client.height}",
        f"Model hash: {model}",
    )
    return first == prompt and all(w in fields for w in wanted)


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("work", type=Path)
    ap.add_argument("--server", default="http://127.0.0.1:7860")
    ap.add_argument("--prompts", type=int, default=500)
    ap.add_argument("--width", type=int, default=512)
    ap.add_argument("--height", type=int, default=512)
    ap.add_argument("--steps", type=int, default=20)
    ap.add_argument("--cfg", type=float, default=6.0)
    ap.add_argument(
        "--minutes",
        type=float,
        default=60,
        help="stop drawing after this time and score what there is",
    )
    ap.add_argument(
        "--pictures",
        type=Path,
        help="folder that keeps the drawn pictures (default: in WORK, by size); what lies there is not drawn again",
    )
    ap.add_argument(
        "--around",
        default="{}",
        help="words to put around each prompt, which stands at {}",
    )
    ap.add_argument(
        "--draw-only", action="store_true", help="keep the pictures, score nothing"
    )
    ap.add_argument("--classifier-steps", type=int, default=900)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--out", type=Path, help="JSON file for the figures")
    ap.add_argument("--seed", type=int, default=11)
    a = ap.parse_args()
    if "{}" not in a.around:
        ap.error("--around needs {} where the prompt goes")
    print("seed", a.seed)
    torch.set_num_threads(a.threads)
    cond = Conditions(a.work)
    folder = f"pictures-{a.width}x{a.height}" + ("-around" if a.around != "{}" else "")
    kept = a.pictures or a.work / folder
    client = Client(a.server, a.width, a.height, a.steps, a.cfg)
    asked = requests(cond, a.prompts, a.around, a.seed)
    files = draw(client, asked, kept, a.minutes)
    if a.draw_only or not files:
        print(f"{len(files)} of {len(asked)} pictures in {kept}")
        return 0
    net = train_classifier(cond, a.work / "classifier.pt", a.classifier_steps, a.seed)
    hits: dict[str, list[float]] = {
        "top1": [],
        "top5": [],
        "backdrop": [],
        "colour": [],
        "noise": [],
    }
    wrong: list[str] = []
    for ask, file in zip(asked, files):
        thing, colour, back, prompt = ask
        im = pixels(file.read_bytes())
        x = torch.from_numpy(
            np.asarray(square(im).resize((PX, PX), Image.Resampling.BOX)).astype(
                np.float32
            )
            / 127.5
            - 1
        )
        rank = int(
            (net(x.permute(2, 0, 1)[None])[0].argsort(descending=True) == thing)
            .float()
            .argmax()
        )
        hits["top1"].append(rank < 1)
        hits["top5"].append(rank < 5)
        if rank:
            wrong.append(prompt)
        edge = border(im)
        med = np.median(edge, 0)
        hits["noise"].append(float(edge.std(0).mean()))
        if back:
            near = min(
                BACKDROPS,
                key=lambda b: float(((np.array(COLOURS[b][0]) - med) ** 2).sum()),
            )
            hits["backdrop"].append(near == back)
        if colour:
            hits["colour"].append(repainting(cond, thing, im) == colour)
    n = len(hits["top1"])
    figures = {k: round(float(np.mean(v)), 3) for k, v in hits.items() if v}
    figures |= {
        "pictures": n,
        "with_backdrop": len(hits["backdrop"]),
        "with_colour": len(hits["colour"]),
        "size": f"{a.width}x{a.height}",
        "wrong": wrong[:60],
    }
    print(json.dumps(figures))
    if a.out:
        a.out.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
