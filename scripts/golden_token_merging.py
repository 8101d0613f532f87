# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "numpy==1.26.4",
#     "tomesd==0.1.3",
#     "torch==2.1.2",
# ]
# ///
"""Writes tests/golden/token_merging.json: a tiny UNet and what torch makes of noise when tomesd merges its tokens.

The golden checkpoints have no transformer at the latent's full size, the only place where A1111 merges
tokens, so their pictures show nothing of it. The network here is written down with the names that
checkpoints have. Its weights, one after the other, and the inputs are values of the generator that
tests/models.rs has as `pattern`. tomesd is applied with A1111's arguments.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import tomesd
import torch
import torch.nn.functional as F
from torch import nn

CHANNELS = 32
HEADS = 2
CONTEXT = 24
CASES = [(8, 8, 0.5), (8, 12, 0.2), (7, 9, 0.3), (6, 5, 0.9), (4, 3, 0.5)]


class Attention(nn.Module):
    def __init__(self, context: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(CHANNELS, CHANNELS, bias=False)
        self.to_k = nn.Linear(context, CHANNELS, bias=False)
        self.to_v = nn.Linear(context, CHANNELS, bias=False)
        self.to_out = nn.Sequential(nn.Linear(CHANNELS, CHANNELS))

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        context = x if context is None else context
        q, k, v = (
            t.unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for t in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Geglu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(CHANNELS, 4 * CHANNELS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(Geglu(), nn.Identity(), nn.Linear(2 * CHANNELS, CHANNELS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


class BasicTransformerBlock(nn.Module):
    """tomesd finds it by this name and takes over its `_forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.attn1 = Attention(CHANNELS)
        self.attn2 = Attention(CONTEXT)
        self.ff = FeedForward()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(CHANNELS) for _ in range(3))

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return self._forward(x, context)

    def _forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        x = self.attn1(self.norm1(x)) + x
        x = self.attn2(self.norm2(x), context) + x
        return self.ff(self.norm3(x)) + x


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, CHANNELS, eps=1e-6)
        self.proj_in = nn.Linear(CHANNELS, CHANNELS)
        self.transformer_blocks = nn.ModuleList([BasicTransformerBlock()])
        self.proj_out = nn.Linear(CHANNELS, CHANNELS)

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        h = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))
        h = self.transformer_blocks[0](h, context)
        return self.proj_out(h).transpose(1, 2).reshape(x.shape) + x


class Resnet(nn.Module):
    def __init__(self, channels_in: int) -> None:
        super().__init__()
        conv = nn.Conv2d(channels_in, CHANNELS, 3, padding=1)
        self.in_layers = nn.Sequential(nn.GroupNorm(32, channels_in), nn.SiLU(), conv)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(4 * CHANNELS, CHANNELS))
        conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.out_layers = nn.Sequential(nn.GroupNorm(32, CHANNELS), nn.SiLU(), nn.Identity(), conv)
        same = channels_in == CHANNELS
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels_in, CHANNELS, 1)

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        h = self.in_layers(x) + self.emb_layers(emb)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class Down(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.op = nn.Conv2d(CHANNELS, CHANNELS, 3, stride=2, padding=1)


class Up(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)


class Unet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        wide = 4 * CHANNELS
        self.time_embed = nn.Sequential(nn.Linear(CHANNELS, wide), nn.SiLU(), nn.Linear(wide, wide))
        first = nn.ModuleList([nn.Conv2d(4, CHANNELS, 3, padding=1)])
        self.input_blocks = nn.ModuleList([first, self.block(1), nn.ModuleList([Down()]), self.block(1)])
        self.middle_block = nn.ModuleList([Resnet(CHANNELS), Transformer(), Resnet(CHANNELS)])
        self.output_blocks = nn.ModuleList([self.block(2) for _ in range(4)])
        self.output_blocks[1].append(Up())
        conv = nn.Conv2d(CHANNELS, 4, 3, padding=1)
        self.out = nn.Sequential(nn.GroupNorm(32, CHANNELS), nn.SiLU(), conv)

    @staticmethod
    def block(times: int) -> nn.ModuleList:
        return nn.ModuleList([Resnet(times * CHANNELS), Transformer()])

    def forward(self, x: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        half = CHANNELS // 2
        frequencies = torch.exp(-np.log(10000.0) * torch.arange(half) / half)
        angles = timestep[:, None] * frequencies
        emb = self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=-1))
        h = self.input_blocks[0][0](x)
        skips = [h]
        for block in self.input_blocks[1:]:
            if isinstance(block[0], Down):
                h = block[0].op(h)
            else:
                h = block[1](block[0](h, emb), context)
            skips.append(h)
        resnet, transformer, last = self.middle_block
        h = last(transformer(resnet(h, emb), context), emb)
        for block in self.output_blocks:
            skip = skips.pop()
            h = F.interpolate(h, size=skip.shape[2:], mode="nearest") if h.shape != skip.shape else h
            h = block[1](block[0](torch.cat([h, skip], dim=1), emb), context)
            if len(block) > 2:
                h = block[2].conv(F.interpolate(h, scale_factor=2.0, mode="nearest"))
        return self.out(h)


class Checkpoint(nn.Module):
    """`model.model.diffusion_model`, where tomesd looks for the UNet."""

    def __init__(self, unet: Unet) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.diffusion_model = unet


class Pattern:
    """Values in -1..1 that look like noise."""

    def __init__(self) -> None:
        self.state = 12345

    def next(self, shape: tuple[int, ...]) -> torch.Tensor:
        values = []
        for _ in range(int(np.prod(shape))):
            self.state = (self.state * 1_664_525 + 1_013_904_223) % 2**32
            values.append((self.state >> 8) / 8_388_608.0 - 1.0)
        return torch.tensor(values, dtype=torch.float32).reshape(shape)


def fill(unet: Unet) -> list[dict]:
    """Gives every weight its values; returns how, in order: `offset + scale * pattern`."""
    pattern, tensors = Pattern(), []
    with torch.no_grad():
        for name, tensor in unet.named_parameters():
            is_scale = tensor.dim() == 1 and name.endswith("weight")
            fan_in = int(np.prod(tensor.shape[1:]))
            # Powers of two, so that the product is exact everywhere.
            scale = 0.25 if tensor.dim() == 1 else 2.0 ** -int(np.log2(fan_in) // 2)
            offset = 1.0 if is_scale else 0.0
            tensor.copy_(offset + scale * pattern.next(tuple(tensor.shape)))
            tensors.append({"name": name, "shape": list(tensor.shape), "offset": offset, "scale": scale})
    return tensors


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(__file__).parent.parent / "tests" / "golden" / "token_merging.json"
    parser.add_argument("--out", type=Path, default=default)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    unet = Unet().eval()
    tensors = fill(unet)
    checkpoint = Checkpoint(unet)
    cases = []
    for height, width, ratio in CASES:
        inputs = Pattern().next((2, 4, height, width)), torch.tensor([500.0, 81.5]), Pattern().next((2, 7, CONTEXT))
        with torch.no_grad():
            plain = unet(*inputs)
            tomesd.apply_patch(checkpoint, ratio=ratio, use_rand=False, merge_attn=True)
            merged = unet(*inputs)
            tomesd.remove_patch(checkpoint)
        flat = {
            name: [float(f"{value:.8g}") for value in values.flatten().tolist()]
            for name, values in (("plain", plain), ("merged", merged))
        }
        cases.append({"height": height, "width": width, "ratio": ratio, **flat})
        print(f"{height}x{width} {ratio}: merging changes {(plain - merged).abs().max():.3g}")
    made_by = f"scripts/golden_token_merging.py, torch {torch.__version__}, tomesd 0.1.3"
    document = {"made_by": made_by, "heads": HEADS, "context": CONTEXT, "tensors": tensors, "cases": cases}
    out.write_text(json.dumps(document) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
