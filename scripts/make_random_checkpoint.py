#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy>=1.26"]
# ///
"""Writes a checkpoint of real size with random weights, for measurements of time and memory.

Tensor names and shapes are those of the original layouts (ldm, sgm): SD 1.5, SD 2.1 (with the .yaml
that says it predicts v) and SDXL base. Weights are normal with the deviation 1 / sqrt(inputs), norms
are 1 and 0, so that numbers stay in range and a picture of noise comes out.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Unet:
    channels: int
    multipliers: tuple[int, ...]
    # Transformer blocks a level; 0: no attention there.
    depths: tuple[int, ...]
    middle_depth: int
    context: int
    linear_projections: bool
    vector: int = 0


UNETS = {
    "sd1": Unet(320, (1, 2, 4, 4), (1, 1, 1, 0), 1, 768, False),
    "sd2": Unet(320, (1, 2, 4, 4), (1, 1, 1, 0), 1, 1024, True),
    "sdxl": Unet(320, (1, 2, 4), (0, 2, 10), 10, 2048, True, vector=2816),
}

SD2_YAML = """model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    parameterization: "v"
    linear_start: 0.00085
    linear_end: 0.0120
    timesteps: 1000
    scale_factor: 0.18215
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        num_head_channels: 64
"""


def layer(shapes: Shapes, name: str, *shape: int, bias: bool = True) -> None:
    shapes[f"{name}.weight"] = shape
    if bias:
        shapes[f"{name}.bias"] = shape[:1]


def resnet(shapes: Shapes, name: str, inputs: int, outputs: int, time: int) -> None:
    layer(shapes, f"{name}.in_layers.0", inputs)
    layer(shapes, f"{name}.in_layers.2", outputs, inputs, 3, 3)
    layer(shapes, f"{name}.emb_layers.1", outputs, time)
    layer(shapes, f"{name}.out_layers.0", outputs)
    layer(shapes, f"{name}.out_layers.3", outputs, outputs, 3, 3)
    if inputs != outputs:
        layer(shapes, f"{name}.skip_connection", outputs, inputs, 1, 1)


def transformer(shapes: Shapes, name: str, width: int, depth: int, unet: Unet) -> None:
    projection = (width, width) if unet.linear_projections else (width, width, 1, 1)
    layer(shapes, f"{name}.norm", width)
    layer(shapes, f"{name}.proj_in", *projection)
    for n in range(depth):
        block = f"{name}.transformer_blocks.{n}"
        for attention, context in (("attn1", width), ("attn2", unet.context)):
            layer(shapes, f"{block}.{attention}.to_q", width, width, bias=False)
            layer(shapes, f"{block}.{attention}.to_k", width, context, bias=False)
            layer(shapes, f"{block}.{attention}.to_v", width, context, bias=False)
            layer(shapes, f"{block}.{attention}.to_out.0", width, width)
        layer(shapes, f"{block}.ff.net.0.proj", 8 * width, width)
        layer(shapes, f"{block}.ff.net.2", width, 4 * width)
        for norm in ("norm1", "norm2", "norm3"):
            layer(shapes, f"{block}.{norm}", width)
    layer(shapes, f"{name}.proj_out", *projection)


def unet_shapes(unet: Unet) -> Shapes:
    shapes: Shapes = {}
    time = 4 * unet.channels
    layer(shapes, "time_embed.0", time, unet.channels)
    layer(shapes, "time_embed.2", time, time)
    if unet.vector:
        layer(shapes, "label_emb.0.0", time, unet.vector)
        layer(shapes, "label_emb.0.2", time, time)
    layer(shapes, "input_blocks.0.0", unet.channels, 4, 3, 3)
    levels = [unet.channels * multiplier for multiplier in unet.multipliers]
    skips, width, k = [unet.channels], unet.channels, 1
    for level, outputs in enumerate(levels):
        for _ in range(2):
            resnet(shapes, f"input_blocks.{k}.0", width, outputs, time)
            width = outputs
            if unet.depths[level]:
                transformer(shapes, f"input_blocks.{k}.1", width, unet.depths[level], unet)
            skips.append(width)
            k += 1
        if level + 1 < len(levels):
            layer(shapes, f"input_blocks.{k}.0.op", width, width, 3, 3)
            skips.append(width)
            k += 1
    resnet(shapes, "middle_block.0", width, width, time)
    transformer(shapes, "middle_block.1", width, unet.middle_depth, unet)
    resnet(shapes, "middle_block.2", width, width, time)
    k = 0
    for level in reversed(range(len(levels))):
        for j in range(3):
            resnet(shapes, f"output_blocks.{k}.0", width + skips.pop(), levels[level], time)
            width = levels[level]
            if unet.depths[level]:
                transformer(shapes, f"output_blocks.{k}.1", width, unet.depths[level], unet)
            if level and j == 2:
                index = 2 if unet.depths[level] else 1
                layer(shapes, f"output_blocks.{k}.{index}.conv", width, width, 3, 3)
            k += 1
    layer(shapes, "out.0", width)
    layer(shapes, "out.2", 4, width, 3, 3)
    return shapes


def vae_block(shapes: Shapes, name: str, inputs: int, outputs: int) -> None:
    layer(shapes, f"{name}.norm1", inputs)
    layer(shapes, f"{name}.conv1", outputs, inputs, 3, 3)
    layer(shapes, f"{name}.norm2", outputs)
    layer(shapes, f"{name}.conv2", outputs, outputs, 3, 3)
    if inputs != outputs:
        layer(shapes, f"{name}.nin_shortcut", outputs, inputs, 1, 1)


def vae_middle(shapes: Shapes, name: str, width: int) -> None:
    vae_block(shapes, f"{name}.block_1", width, width)
    layer(shapes, f"{name}.attn_1.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        layer(shapes, f"{name}.attn_1.{part}", width, width, 1, 1)
    vae_block(shapes, f"{name}.block_2", width, width)


def vae_shapes() -> Shapes:
    shapes: Shapes = {}
    levels = (128, 256, 512, 512)
    layer(shapes, "encoder.conv_in", 128, 3, 3, 3)
    width = 128
    for level, outputs in enumerate(levels):
        for j in range(2):
            vae_block(shapes, f"encoder.down.{level}.block.{j}", width, outputs)
            width = outputs
        if level < 3:
            layer(shapes, f"encoder.down.{level}.downsample.conv", width, width, 3, 3)
    vae_middle(shapes, "encoder.mid", width)
    layer(shapes, "encoder.norm_out", width)
    layer(shapes, "encoder.conv_out", 8, width, 3, 3)
    layer(shapes, "decoder.conv_in", width, 4, 3, 3)
    vae_middle(shapes, "decoder.mid", width)
    for level in reversed(range(4)):
        for j in range(3):
            vae_block(shapes, f"decoder.up.{level}.block.{j}", width, levels[level])
            width = levels[level]
        if level:
            layer(shapes, f"decoder.up.{level}.upsample.conv", width, width, 3, 3)
    layer(shapes, "decoder.norm_out", width)
    layer(shapes, "decoder.conv_out", 3, width, 3, 3)
    layer(shapes, "quant_conv", 8, 8, 1, 1)
    layer(shapes, "post_quant_conv", 4, 4, 1, 1)
    return shapes


def transformers_tower(width: int, layers: int) -> Shapes:
    """CLIP-L as transformers names it."""
    shapes: Shapes = {
        "embeddings.token_embedding.weight": (49408, width),
        "embeddings.position_embedding.weight": (77, width),
    }
    for n in range(layers):
        block = f"encoder.layers.{n}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            layer(shapes, f"{block}.self_attn.{part}", width, width)
        layer(shapes, f"{block}.layer_norm1", width)
        layer(shapes, f"{block}.mlp.fc1", 4 * width, width)
        layer(shapes, f"{block}.mlp.fc2", width, 4 * width)
        layer(shapes, f"{block}.layer_norm2", width)
    layer(shapes, "final_layer_norm", width)
    return shapes


def open_clip_tower(width: int, layers: int, projected: int) -> Shapes:
    shapes: Shapes = {
        "positional_embedding": (77, width),
        "text_projection": (width, projected),
        "logit_scale": (),
        "token_embedding.weight": (49408, width),
    }
    for n in range(layers):
        block = f"transformer.resblocks.{n}"
        layer(shapes, f"{block}.ln_1", width)
        shapes[f"{block}.attn.in_proj_weight"] = (3 * width, width)
        shapes[f"{block}.attn.in_proj_bias"] = (3 * width,)
        layer(shapes, f"{block}.attn.out_proj", width, width)
        layer(shapes, f"{block}.ln_2", width)
        layer(shapes, f"{block}.mlp.c_fc", 4 * width, width)
        layer(shapes, f"{block}.mlp.c_proj", width, 4 * width)
    layer(shapes, "ln_final", width)
    return shapes


def checkpoint_shapes(family: str) -> Shapes:
    clip_l = transformers_tower(768, 12)
    towers = {
        "sd1": {"cond_stage_model.transformer.text_model.": clip_l},
        "sd2": {"cond_stage_model.model.": open_clip_tower(1024, 24, 1024)},
        "sdxl": {
            "conditioner.embedders.0.transformer.text_model.": clip_l,
            "conditioner.embedders.1.model.": open_clip_tower(1280, 32, 1280),
        },
    }[family]
    parts = {
        "model.diffusion_model.": unet_shapes(UNETS[family]),
        "first_stage_model.": vae_shapes(),
        **towers,
    }
    return {
        prefix + name: shape for prefix, part in parts.items() for name, shape in part.items()
    }


def is_norm(name: str, shape: tuple[int, ...]) -> bool:
    return name.endswith(".weight") and len(shape) == 1


def values(
    name: str, shape: tuple[int, ...], generator: np.random.Generator
) -> Iterator[np.ndarray]:
    """The tensor in pieces, so that a large table needs little memory."""
    count = math.prod(shape)
    if len(shape) < 2:
        yield np.full(count, 1.0 if is_norm(name, shape) else 0.0, np.float32)
        return
    is_table = "embedding" in name and "blocks" not in name
    deviation = 0.02 if is_table else math.prod(shape[1:]) ** -0.5
    for first in range(0, count, 1 << 24):
        piece = generator.standard_normal(min(1 << 24, count - first), np.float32)
        yield piece * np.float32(deviation)


def write(path: Path, shapes: Shapes, element: str, seed: int) -> None:
    size = {"fp32": 4, "fp16": 2}[element]
    header, offset = {}, 0
    for name, shape in shapes.items():
        length = math.prod(shape) * size
        header[name] = {
            "dtype": {"fp32": "F32", "fp16": "F16"}[element],
            "shape": list(shape),
            "data_offsets": [offset, offset + length],
        }
        offset += length
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    generator = np.random.default_rng(seed)
    unfinished = path.with_name(path.name + ".part")
    try:
        with unfinished.open("wb") as file:
            file.write(len(head).to_bytes(8, "little"))
            file.write(head)
            for name, shape in shapes.items():
                for piece in values(name, shape, generator):
                    file.write(piece.astype(np.float16 if size == 2 else np.float32).tobytes())
        unfinished.rename(path)
    finally:
        unfinished.unlink(missing_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", choices=sorted(UNETS))
    parser.add_argument("element", choices=["fp16", "fp32"])
    parser.add_argument("path", type=Path, help="the .safetensors file to write")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.path.exists():
        print(f"{arguments.path} exists already", file=sys.stderr)
        return 1
    shapes = checkpoint_shapes(arguments.family)
    write(arguments.path, shapes, arguments.element, arguments.seed)
    if arguments.family == "sd2":
        arguments.path.with_suffix(".yaml").write_text(SD2_YAML)
    count = sum(math.prod(shape) for shape in shapes.values())
    print(
        f"{arguments.path}: {len(shapes)} tensors, {count / 1e6:.1f} million values, "
        f"{arguments.path.stat().st_size / 2**30:.2f} GiB, seed {arguments.seed}, "
        f"numpy {np.__version__}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
