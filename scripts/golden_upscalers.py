# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "numpy==2.4.6",
#     "safetensors==0.8.0",
#     "torch==2.15.0",
# ]
# ///
"""Writes tests/golden/upscalers: tiny networks of the ESRGAN family and what torch makes of a picture.

The networks are written down here from the papers (ESRGAN, arXiv 1809.00219; Real-ESRGAN, arXiv
2107.10833) in every layout of names that their files have. Weights and pictures come from fixed
seeds; pictures are base64 of RGB bytes. A network sees channels in the order B, G, R, as in A1111.
"""

import argparse
import base64
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

FEATURES = 4
GROWTH = 2
Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Layout:
    """How a file names the parts of an RRDBNet."""

    first: str
    dense: Callable[[int, int, int], str]
    trunk: str
    up: tuple[str, ...]
    hr: str
    last: str


def sequential(blocks: int, ups: int) -> Layout:
    """The first ESRGAN: numbered places of one sequence."""
    place = 3 * ups + 2
    return Layout(
        first="model.0",
        dense=lambda i, j, k: f"model.1.sub.{i}.RDB{j}.conv{k}.0",
        trunk=f"model.1.sub.{blocks}",
        up=tuple(f"model.{3 * n + 3}" for n in range(ups)),
        hr=f"model.{place}",
        last=f"model.{place + 2}",
    )


def bsrgan(ups: int) -> Layout:
    return Layout(
        first="conv_first",
        dense=lambda i, j, k: f"RRDB_trunk.{i}.RDB{j}.conv{k}",
        trunk="trunk_conv",
        up=tuple(f"upconv{n + 1}" for n in range(ups)),
        hr="HRconv",
        last="conv_last",
    )


def realesrgan(ups: int) -> Layout:
    return Layout(
        first="conv_first",
        dense=lambda i, j, k: f"body.{i}.rdb{j}.conv{k}",
        trunk="conv_body",
        up=tuple(f"conv_up{n + 1}" for n in range(ups)),
        hr="conv_hr",
        last="conv_last",
    )


def kernel(weights: Weights, name: str, out: int, width: int, size: int = 3, bias: bool = True) -> None:
    generator = torch.Generator().manual_seed(len(weights) + 1)
    spread = 1.0 / math.sqrt(width * size * size)
    weights[f"{name}.weight"] = torch.randn(out, width, size, size, generator=generator) * spread
    if bias:
        weights[f"{name}.bias"] = torch.randn(out, generator=generator) * 0.1


def rrdb_weights(layout: Layout, blocks: int, shuffle: int = 1, plus: bool = False) -> Weights:
    weights: Weights = {}
    kernel(weights, layout.first, FEATURES, 3 * shuffle * shuffle)
    for i in range(blocks):
        for j in (1, 2, 3):
            for k in (1, 2, 3, 4, 5):
                out = FEATURES if k == 5 else GROWTH
                kernel(weights, layout.dense(i, j, k), out, FEATURES + (k - 1) * GROWTH)
            if plus:
                name = layout.dense(i, j, 1).replace("conv1.0", "conv1x1")
                kernel(weights, name, GROWTH, FEATURES, 1, bias=False)
    for name in (layout.trunk, *layout.up, layout.hr):
        kernel(weights, name, FEATURES, FEATURES)
    kernel(weights, layout.last, 3, FEATURES)
    return weights


def conv(weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    weight = weights[f"{name}.weight"].float()
    bias = weights.get(f"{name}.bias")
    return F.conv2d(x, weight, None if bias is None else bias.float(), padding=weight.shape[2] // 2)


def dense_block(
    weights: Weights, layout: Layout, x: torch.Tensor, i: int, j: int, plus: bool
) -> torch.Tensor:
    known = [x]
    for k in (1, 2, 3, 4):
        y = F.leaky_relu(conv(weights, layout.dense(i, j, k), torch.cat(known, 1)), 0.2)
        if plus and k == 2:
            y = y + conv(weights, layout.dense(i, j, 1).replace("conv1.0", "conv1x1"), x)
        if plus and k == 4:
            y = y + known[2]
        known.append(y)
    return conv(weights, layout.dense(i, j, 5), torch.cat(known, 1)) * 0.2 + x


def rrdb(
    weights: Weights, layout: Layout, blocks: int, x: torch.Tensor, shuffle: int = 1, plus: bool = False
) -> torch.Tensor:
    height, width = x.shape[2:]
    if shuffle > 1:
        x = F.pad(x, (0, -width % shuffle, 0, -height % shuffle), "reflect")
        x = F.pixel_unshuffle(x, shuffle)
    features = conv(weights, layout.first, x)
    y = features
    for i in range(blocks):
        inner = y
        for j in (1, 2, 3):
            inner = dense_block(weights, layout, inner, i, j, plus)
        y = inner * 0.2 + y
    y = features + conv(weights, layout.trunk, y)
    for name in layout.up:
        y = F.leaky_relu(conv(weights, name, F.interpolate(y, scale_factor=2, mode="nearest")), 0.2)
    y = conv(weights, layout.last, F.leaky_relu(conv(weights, layout.hr, y), 0.2))
    scale = 2 ** len(layout.up)
    return y[:, :, : height * scale // shuffle, : width * scale // shuffle]


def compact_weights(convolutions: int, scale: int) -> Weights:
    weights: Weights = {}
    kernel(weights, "body.0", FEATURES, 3)
    for n in range(convolutions + 1):
        generator = torch.Generator().manual_seed(100 + n)
        weights[f"body.{2 * n + 1}.weight"] = torch.rand(FEATURES, generator=generator) * 0.5
        last = n == convolutions
        kernel(weights, f"body.{2 * n + 2}", 3 * scale * scale if last else FEATURES, FEATURES)
    return weights


def compact(weights: Weights, convolutions: int, scale: int, x: torch.Tensor) -> torch.Tensor:
    y = conv(weights, "body.0", x)
    for n in range(convolutions + 1):
        y = F.prelu(y, weights[f"body.{2 * n + 1}.weight"].float())
        y = conv(weights, f"body.{2 * n + 2}", y)
    return F.pixel_shuffle(y, scale) + F.interpolate(x, scale_factor=scale, mode="nearest")


def calibrate(weights: Weights, last: str, network: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Makes the last layer answer around the middle of the grey levels, with contrast."""
    with torch.no_grad():
        y = network(torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(3)))
    bias = weights[f"{last}.bias"]
    gain = 0.2 / y.std()
    weights[f"{last}.bias"] = (bias - y.mean((0, 2, 3))) * gain + 0.5
    weights[f"{last}.weight"] = weights[f"{last}.weight"] * gain


def base64_of(picture: torch.Tensor) -> str:
    """`[height, width, 3]` bytes."""
    return base64.b64encode(picture.contiguous().numpy().tobytes()).decode()


def case(
    file: str, scale: int, network: Callable[[torch.Tensor], torch.Tensor], size: tuple[int, int]
) -> dict[str, object]:
    height, width = size
    generator = torch.Generator().manual_seed(7)
    rgb = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
    x = (rgb.flip(2).double() / 255).float().permute(2, 0, 1)[None]
    with torch.no_grad():
        y = network(x)[0]
    levels = (y.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).flip(2)
    assert levels.shape == (height * scale, width * scale, 3)
    assert levels.float().std() > 10, file
    return {
        "file": file,
        "scale": scale,
        "width": width,
        "height": height,
        "picture": base64_of(rgb),
        "larger": base64_of(levels),
    }


def write(folder: Path) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    cases = []

    def rrdb_case(
        file: str, layout: Layout, blocks: int, shuffle: int = 1, plus: bool = False, half: bool = False
    ) -> None:
        weights = rrdb_weights(layout, blocks, shuffle, plus)
        network = lambda x: rrdb(weights, layout, blocks, x, shuffle, plus)  # noqa: E731
        calibrate(weights, layout.last, network)
        if half:
            weights.update({name: value.half() for name, value in weights.items()})
        if file.endswith(".safetensors"):
            save_file(weights, folder / file)
        else:
            wrapped = {"params_ema": weights} if "RealESRGAN" in file else weights
            # The oldest files are in the oldest format.
            torch.save(wrapped, folder / file, _use_new_zipfile_serialization="old" not in file)
        scale = 2 ** len(layout.up) // shuffle
        cases.append(case(file, scale, network, (7, 9)))

    rrdb_case("old_1x.pth", sequential(1, 0), 1)
    rrdb_case("old_2x.pth", sequential(1, 1), 1)
    rrdb_case("old_4x.pth", sequential(2, 2), 2)
    rrdb_case("old_8x.pth", sequential(1, 3), 1)
    rrdb_case("plus_4x.pth", sequential(1, 2), 1, plus=True)
    rrdb_case("bsrgan_4x.safetensors", bsrgan(2), 1)
    rrdb_case("bsrgan_2x.safetensors", bsrgan(1), 1, half=True)
    rrdb_case("RealESRGAN_x4plus.pth", realesrgan(2), 2)
    rrdb_case("RealESRGAN_x2plus.pth", realesrgan(2), 1, shuffle=2)
    rrdb_case("RealESRGAN_x1.pth", realesrgan(2), 1, shuffle=4)
    for file, convolutions, scale in (("realesr-animevideov3.pth", 2, 4), ("compact_2x.pth", 1, 2)):
        weights = compact_weights(convolutions, scale)
        torch.save({"params": weights}, folder / file)
        network = lambda x, w=weights, n=convolutions, s=scale: compact(w, n, s, x)  # noqa: E731
        cases.append(case(file, scale, network, (7, 9)))
    document = {
        "made_by": f"scripts/golden_upscalers.py, torch {torch.__version__}",
        "tolerance": "1 grey level, on 1 % of the samples",
        "cases": cases,
    }
    (folder / "upscalers.json").write_text(json.dumps(document, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("--out", type=Path, default=root / "tests/golden/upscalers")
    write(parser.parse_args().out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
