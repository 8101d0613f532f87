# /// script
# requires-python = ">=3.11,<3.12"
# dependencies = [
#     "numpy==1.26.4",
#     "Pillow==9.5.0",
#     "safetensors==0.4.5",
#     "torch==2.1.2",
#     "torchsde==0.2.6",
# ]
# ///
"""Prints how far torch itself is from the recorded pictures that the ledger of differences lists under "Rounding".

Each of those requests is drawn with a small torch pipeline (text towers, UNet and VAE of ldm and sgm, k-diffusion's
samplers) in float32 and once more in float64, and both pictures are compared with A1111's. Float64 is what any
arithmetic better than A1111's own would answer; where it misses the bar too, A1111's own rounding decides the case.

The recording's machine had AVX2, so torch is held to that; `--cpu any` lets it use what is there.
"""

import argparse
import itertools
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchsde
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

GOLDEN = Path(__file__).resolve().parent.parent / "compat-tests" / "golden"
AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
}
POSITIVE = [("a red cube on a table,", 1.0), ("blue sky", 1.2)]
NEGATIVE = [("blurry, lowres", 1.0)]
CFG_SCALE = 7.0
START, END = 49406, 49407
Prompt = list[tuple[str, float]]
Noise = Callable[[], Tensor]


@dataclass(frozen=True)
class Weights:
    """Tensors below a prefix, and the layers that they make."""

    tensors: dict[str, Tensor]
    prefix: str

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[self.prefix + name]

    def has(self, start: str) -> bool:
        return any(name.startswith(self.prefix + start) for name in self.tensors)

    def linear(self, x: Tensor, layer: str) -> Tensor:
        return F.linear(x, self[f"{layer}.weight"], self.tensors.get(f"{self.prefix}{layer}.bias"))

    def conv(self, x: Tensor, layer: str, stride: int = 1, padding: int = 1) -> Tensor:
        return F.conv2d(x, self[f"{layer}.weight"], self[f"{layer}.bias"], stride, padding)

    def group_norm(self, x: Tensor, layer: str, eps: float) -> Tensor:
        return F.group_norm(x, 32, self[f"{layer}.weight"], self[f"{layer}.bias"], eps)

    def layer_norm(self, x: Tensor, layer: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self[f"{layer}.weight"], self[f"{layer}.bias"])


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """`[batch, tokens, width]` each."""
    q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    scores = q * q.shape[-1] ** -0.5 @ k.transpose(2, 3)
    if mask is not None:
        scores = scores + mask
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def sinusoid(values: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """In float32 whatever the pipeline computes in: `[n]` -> `[n, width]`."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
    angles = values.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1).to(dtype)


class Tokenizer:
    """CLIP's byte pair encoding, for lower-case words and punctuation."""

    def __init__(self) -> None:
        folder = GOLDEN / "models" / "tokenizer"
        self.ids = json.loads((folder / "vocab.json").read_text())
        lines = (folder / "merges.txt").read_text().splitlines()
        pairs = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
        self.ranks = {pair: rank for rank, pair in enumerate(pairs)}

    def word(self, text: str) -> list[int]:
        parts = [*text[:-1], f"{text[-1]}</w>"]
        while len(parts) > 1:
            pairs = list(itertools.pairwise(parts))
            at = min(range(len(pairs)), key=lambda i: self.ranks.get(pairs[i], math.inf))
            if pairs[at] not in self.ranks:
                break
            parts[at : at + 2] = ["".join(pairs[at])]
        return [self.ids[part] for part in parts]

    def chunk(self, prompt: Prompt) -> tuple[Tensor, Tensor]:
        """One chunk of 77 tokens and their weights."""
        words = [(id_, w) for text, w in prompt for x in re.findall(r"[a-z]+|[^\sa-z]+", text) for id_ in self.word(x)]
        ids = [START, *(id_ for id_, _ in words)]
        weights = [1.0, *(weight for _, weight in words)]
        missing = 77 - len(ids)
        return torch.tensor([ids + [END] * missing]), torch.tensor([weights + [1.0] * missing])


def emphasised(states: Tensor, weights: Tensor) -> Tensor:
    """A1111's emphasis "Original"."""
    changed = states * weights.to(states.dtype)[..., None]
    return changed * (states.mean() / changed.mean())


def clip_states(w: Weights, heads: int, ids: Tensor) -> list[Tensor]:
    """The text tower of transformers, every layer's output."""
    x = w["embeddings.token_embedding.weight"][ids] + w["embeddings.position_embedding.weight"]
    mask = torch.full((77, 77), torch.finfo(torch.float32).min, dtype=x.dtype).triu(1)
    states = [x]
    while w.has(layer := f"encoder.layers.{len(states) - 1}."):
        h = w.layer_norm(x, f"{layer}layer_norm1")
        q, k, v = (w.linear(h, f"{layer}self_attn.{part}_proj") for part in "qkv")
        x = x + w.linear(attention(q, k, v, heads, mask), f"{layer}self_attn.out_proj")
        h = w.linear(w.layer_norm(x, f"{layer}layer_norm2"), f"{layer}mlp.fc1")
        x = x + w.linear(h * torch.sigmoid(1.702 * h), f"{layer}mlp.fc2")
        states.append(x)
    return states


def open_clip_states(w: Weights, heads: int, ids: Tensor) -> list[Tensor]:
    """The text tower of open_clip, every layer's output."""
    x = w["token_embedding.weight"][ids] + w["positional_embedding"]
    mask = torch.full((77, 77), -math.inf, dtype=x.dtype).triu(1)
    states = [x]
    while w.has(layer := f"transformer.resblocks.{len(states) - 1}."):
        h = w.layer_norm(x, f"{layer}ln_1")
        joined = F.linear(h, w[f"{layer}attn.in_proj_weight"], w[f"{layer}attn.in_proj_bias"])
        x = x + w.linear(attention(*joined.chunk(3, dim=-1), heads, mask), f"{layer}attn.out_proj")
        h = w.linear(w.layer_norm(x, f"{layer}ln_2"), f"{layer}mlp.c_fc")
        x = x + w.linear(F.gelu(h), f"{layer}mlp.c_proj")
        states.append(x)
    return states


@dataclass(frozen=True)
class Unet:
    """The UNet of ldm and sgm."""

    w: Weights
    heads_of: Callable[[int], int]

    def __call__(self, x: Tensor, timestep: Tensor, context: Tensor, vector: Tensor | None) -> Tensor:
        w = self.w
        emb = sinusoid(timestep, w["time_embed.0.weight"].shape[1], x.dtype)
        emb = w.linear(F.silu(w.linear(emb, "time_embed.0")), "time_embed.2")
        if vector is not None:
            emb = emb + w.linear(F.silu(w.linear(vector, "label_emb.0.0")), "label_emb.0.2")
        emb = F.silu(emb)
        skips = [w.conv(x, "input_blocks.0.0")]
        while w.has(f"{(block := f'input_blocks.{len(skips)}')}."):
            last = skips[-1]
            halves = w.has(f"{block}.0.op.weight")
            skips.append(w.conv(last, f"{block}.0.op", 2) if halves else self.block(last, emb, context, block))
        h = self.resnet(skips[-1], emb, "middle_block.0")
        h = self.transformer(h, context, "middle_block.1")
        h = self.resnet(h, emb, "middle_block.2")
        for number in range(len(skips)):
            block = f"output_blocks.{number}"
            h = self.block(torch.cat([h, skips.pop()], dim=1), emb, context, block)
            for part in (1, 2):
                if w.has(f"{block}.{part}.conv.weight"):
                    h = w.conv(F.interpolate(h, scale_factor=2, mode="nearest"), f"{block}.{part}.conv")
        return w.conv(F.silu(w.group_norm(h, "out.0", 1e-5)), "out.2")

    def block(self, x: Tensor, emb: Tensor, context: Tensor, block: str) -> Tensor:
        h = self.resnet(x, emb, f"{block}.0")
        return self.transformer(h, context, f"{block}.1") if self.w.has(f"{block}.1.norm.weight") else h

    def resnet(self, x: Tensor, emb: Tensor, layer: str) -> Tensor:
        w = self.w
        h = w.conv(F.silu(w.group_norm(x, f"{layer}.in_layers.0", 1e-5)), f"{layer}.in_layers.2")
        h = h + w.linear(emb, f"{layer}.emb_layers.1")[..., None, None]
        h = w.conv(F.silu(w.group_norm(h, f"{layer}.out_layers.0", 1e-5)), f"{layer}.out_layers.3")
        return (w.conv(x, f"{layer}.skip_connection", padding=0) if w.has(f"{layer}.skip_connection.") else x) + h

    def transformer(self, x: Tensor, context: Tensor, layer: str) -> Tensor:
        w = self.w
        is_linear = w[f"{layer}.proj_in.weight"].ndim == 2
        h = w.group_norm(x, f"{layer}.norm", 1e-6)
        h = h if is_linear else w.conv(h, f"{layer}.proj_in", padding=0)
        h = h.flatten(2).transpose(1, 2)
        h = w.linear(h, f"{layer}.proj_in") if is_linear else h
        number = 0
        while w.has(block := f"{layer}.transformer_blocks.{number}."):
            normal = w.layer_norm(h, f"{block}norm1")
            h = self.attend(normal, normal, f"{block}attn1") + h
            h = self.attend(w.layer_norm(h, f"{block}norm2"), context, f"{block}attn2") + h
            value, gate = w.linear(w.layer_norm(h, f"{block}norm3"), f"{block}ff.net.0.proj").chunk(2, dim=-1)
            h = w.linear(value * F.gelu(gate), f"{block}ff.net.2") + h
            number += 1
        h = w.linear(h, f"{layer}.proj_out") if is_linear else h
        h = h.transpose(1, 2).unflatten(2, x.shape[2:]).contiguous()
        return (h if is_linear else w.conv(h, f"{layer}.proj_out", padding=0)) + x

    def attend(self, x: Tensor, context: Tensor, layer: str) -> Tensor:
        w = self.w
        q, k, v = w.linear(x, f"{layer}.to_q"), w.linear(context, f"{layer}.to_k"), w.linear(context, f"{layer}.to_v")
        return w.linear(attention(q, k, v, self.heads_of(q.shape[-1])), f"{layer}.to_out.0")


@dataclass(frozen=True)
class Vae:
    """ldm's autoencoder."""

    w: Weights
    scale: float

    def encode(self, pixels: Tensor, noise: Tensor | None) -> Tensor:
        """The scaled latent of `[1, 3, h, w]` in -1..1; `noise` samples the posterior."""
        w = self.w
        h = w.conv(pixels, "encoder.conv_in")
        level = 0
        while w.has(f"{(prefix := f'encoder.down.{level}')}."):
            h = self.level(h, prefix)
            if w.has(f"{prefix}.downsample."):
                h = w.conv(F.pad(h, (0, 1, 0, 1)), f"{prefix}.downsample.conv", 2, 0)
            level += 1
        h = self.middle(h, "encoder.mid")
        h = w.conv(F.silu(w.group_norm(h, "encoder.norm_out", 1e-6)), "encoder.conv_out")
        mean, logvar = w.conv(h, "quant_conv", padding=0).chunk(2, dim=1)
        if noise is not None:
            mean = mean + torch.exp(0.5 * logvar.clamp(-30, 20)) * noise
        return mean * self.scale

    def decode(self, latent: Tensor) -> Tensor:
        w = self.w
        h = w.conv(w.conv(1.0 / self.scale * latent, "post_quant_conv", padding=0), "decoder.conv_in")
        h = self.middle(h, "decoder.mid")
        levels = [level for level in range(8) if w.has(f"decoder.up.{level}.")]
        for level in reversed(levels):
            h = self.level(h, f"decoder.up.{level}")
            if w.has(f"decoder.up.{level}.upsample."):
                h = F.interpolate(h, scale_factor=2.0, mode="nearest")
                h = w.conv(h, f"decoder.up.{level}.upsample.conv")
        return w.conv(F.silu(w.group_norm(h, "decoder.norm_out", 1e-6)), "decoder.conv_out")

    def level(self, x: Tensor, prefix: str) -> Tensor:
        number = 0
        while self.w.has(f"{prefix}.block.{number}."):
            x = self.resnet(x, f"{prefix}.block.{number}")
            number += 1
        return x

    def middle(self, x: Tensor, prefix: str) -> Tensor:
        x = self.resnet(x, f"{prefix}.block_1")
        w, layer = self.w, f"{prefix}.attn_1"
        h = w.group_norm(x, f"{layer}.norm", 1e-6)
        q, k, v = (w.conv(h, f"{layer}.{part}", padding=0).flatten(2).transpose(1, 2) for part in "qkv")
        h = attention(q, k, v, 1).transpose(1, 2).unflatten(2, x.shape[2:])
        x = x + w.conv(h.contiguous(), f"{layer}.proj_out", padding=0)
        return self.resnet(x, f"{prefix}.block_2")

    def resnet(self, x: Tensor, block: str) -> Tensor:
        w = self.w
        h = w.conv(F.silu(w.group_norm(x, f"{block}.norm1", 1e-6)), f"{block}.conv1")
        h = w.conv(F.silu(w.group_norm(h, f"{block}.norm2", 1e-6)), f"{block}.conv2")
        return (w.conv(x, f"{block}.nin_shortcut", padding=0) if w.has(f"{block}.nin_shortcut.") else x) + h


def log_sigmas() -> Tensor:
    """Of the usual training schedule."""
    roots = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64)
    alphas = torch.cumprod(1 - roots**2, dim=0).float()
    return (((1 - alphas) / alphas) ** 0.5).log()


LOG_SIGMAS = log_sigmas()


def uniform(steps: int) -> Tensor:
    t = torch.linspace(999, 0, steps)
    low, high, weight = t.floor().long(), t.ceil().long(), t.frac()
    sigmas = ((1 - weight) * LOG_SIGMAS[low] + weight * LOG_SIGMAS[high]).exp()
    return torch.cat([sigmas, torch.zeros(1)])


def karras(steps: int) -> Tensor:
    low, high = (float(LOG_SIGMAS[end].exp()) ** (1 / 7.0) for end in (0, -1))
    return torch.cat([(high + torch.linspace(0, 1, steps) * (low - high)) ** 7.0, torch.zeros(1)])


def timestep(sigma: Tensor) -> Tensor:
    low = ((sigma.log() - LOG_SIGMAS) >= 0).cumsum(0).argmax().clamp(max=998)
    start, end = LOG_SIGMAS[low], LOG_SIGMAS[low + 1]
    weight = ((start - sigma.log()) / (start - end)).clamp(0, 1)
    return (1 - weight) * low + weight * (low + 1)


@dataclass(frozen=True)
class Conditioning:
    context: Tensor
    vector: Tensor | None


@dataclass
class Pipeline:
    """One checkpoint in one float width. Samplers are float32, as in A1111."""

    model: str
    dtype: torch.dtype
    folder: Path
    tokenizer: Tokenizer = field(default_factory=Tokenizer)

    def __post_init__(self) -> None:
        tensors = {k: v.to(self.dtype) for k, v in load_file(self.folder / f"{self.model}.safetensors").items()}
        self.tensors = tensors
        self.is_xl = self.model == "tiny-sdxl"
        self.is_v = self.model == "tiny-sd2-v"
        is_sd1 = self.model == "tiny-sd1"
        heads_of = (lambda _: 4) if is_sd1 else (lambda channels: channels // 32)
        self.unet = Unet(Weights(tensors, "model.diffusion_model."), heads_of)
        self.vae = Vae(Weights(tensors, "first_stage_model."), 0.13025 if self.is_xl else 0.18215)

    def condition(self, prompt: Prompt, size: tuple[int, int]) -> Conditioning:
        ids, weights = self.tokenizer.chunk(prompt)
        padded = ids.clone()
        padded[0, int(ids[0].argmax()) + 1 :] = 0
        if self.model == "tiny-sd1":
            w = Weights(self.tensors, "cond_stage_model.transformer.text_model.")
            return Conditioning(emphasised(w.layer_norm(clip_states(w, 4, ids)[-1], "final_layer_norm"), weights), None)
        if self.is_v:
            w = Weights(self.tensors, "cond_stage_model.model.")
            return Conditioning(emphasised(w.layer_norm(open_clip_states(w, 4, padded)[-2], "ln_final"), weights), None)
        first = Weights(self.tensors, "conditioner.embedders.0.transformer.text_model.")
        second = Weights(self.tensors, "conditioner.embedders.1.model.")
        states = open_clip_states(second, 3, padded)
        context = [emphasised(clip_states(first, 2, ids)[3], weights), emphasised(states[-2], weights)]
        end = second.layer_norm(states[-1], "ln_final")[0, padded[0].argmax()]
        width, height = size
        sizes = sinusoid(torch.tensor([height, width, 0, 0, height, width]), 32, self.dtype)
        vector = torch.cat([end @ second["text_projection"], sizes.flatten()])[None]
        return Conditioning(torch.cat(context, dim=-1), vector)

    def denoiser(self, size: tuple[int, int]) -> Callable[[Tensor, Tensor], Tensor]:
        """Guided noise-free predictions."""
        both = [self.condition(prompt, size) for prompt in (POSITIVE, NEGATIVE)]
        context = torch.cat([each.context for each in both])
        vector = torch.cat([each.vector for each in both]) if self.is_xl else None

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            c_in = 1 / (sigma**2 + 1.0) ** 0.5
            rows = torch.cat([x, x])
            time = timestep(sigma).expand(2)
            output = self.unet((rows * c_in).to(self.dtype), time, context, vector).float()
            if self.is_v:
                denoised = output * (-sigma / (sigma**2 + 1.0) ** 0.5) + rows * (1.0 / (sigma**2 + 1.0))
            else:
                denoised = rows + output * -sigma
            positive, negative = denoised.chunk(2)
            return negative + (positive - negative) * CFG_SCALE

        return denoise

    def encode(self, picture: np.ndarray, noise: Tensor | None) -> Tensor:
        pixels = torch.from_numpy(np.moveaxis(picture.astype(np.float32) / 255.0, 2, 0))[None] * 2 - 1
        return self.vae.encode(pixels.to(self.dtype), noise).float()

    def decode(self, latent: Tensor) -> np.ndarray:
        decoded = self.vae.decode(latent.to(self.dtype)).float()
        unit = ((decoded + 1.0) / 2.0).clamp(0.0, 1.0)[0]
        return (255.0 * np.moveaxis(unit.numpy(), 0, 2)).astype(np.uint8)


def start_noise(height: int, width: int) -> tuple[Tensor, Noise]:
    """Seed 0: the start noise and the source of further noise."""
    generator = torch.Generator().manual_seed(0)

    def draw() -> Tensor:
        return torch.randn((4, height // 8, width // 8), generator=generator)[None]

    return draw(), draw


def ancestral(sigma: Tensor, sigma_next: Tensor) -> tuple[Tensor, Tensor]:
    up = min(sigma_next, (sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2) ** 0.5)
    return (sigma_next**2 - up**2) ** 0.5, up


def euler(denoise: Callable, x: Tensor, sigmas: Tensor, _noise: Noise) -> Tensor:
    for sigma, sigma_next in itertools.pairwise(sigmas):
        x = x + (x - denoise(x, sigma)) / sigma * (sigma_next - sigma)
    return x


def euler_ancestral(denoise: Callable, x: Tensor, sigmas: Tensor, noise: Noise) -> Tensor:
    for sigma, sigma_next in itertools.pairwise(sigmas):
        down, up = ancestral(sigma, sigma_next)
        x = x + (x - denoise(x, sigma)) / sigma * (down - sigma)
        if sigma_next > 0:
            x = x + noise() * up
    return x


def dpmpp_2m(denoise: Callable, x: Tensor, sigmas: Tensor, _noise: Noise) -> Tensor:
    previous, h_last = None, None
    for sigma, sigma_next in itertools.pairwise(sigmas):
        denoised = denoise(x, sigma)
        t, t_next = -sigma.log(), -sigma_next.log()
        h = t_next - t
        mixed = denoised
        if previous is not None and sigma_next > 0:
            part = 1 / (2 * (h_last / h))
            mixed = (1 + part) * denoised - part * previous
        x = (-t_next).exp() / (-t).exp() * x - (-h).expm1() * mixed
        previous, h_last = denoised, h
    return x


def dpmpp_sde(denoise: Callable, x: Tensor, sigmas: Tensor, _noise: Noise) -> Tensor:
    low, high = float(sigmas[-2]), float(sigmas[0])
    tree = torchsde.BrownianTree(low, torch.zeros_like(x[0]), high, entropy=0)

    def brownian(sigma: Tensor, sigma_next: Tensor) -> Tensor:
        return -tree(float(sigma_next), float(sigma))[None] / (sigma_next - sigma).abs().sqrt()

    for given, given_next in itertools.pairwise(sigmas):
        denoised = denoise(x, given)
        if given_next == 0:
            return x + (x - denoised) / given * (given_next - given)
        t, t_next = -given.log(), -given_next.log()
        sigma, middle, sigma_next = (-t).exp(), (-(t + (t_next - t) * 0.5)).exp(), (-t_next).exp()
        first = x
        for target, query in ((middle, middle), (sigma_next, None)):
            down, up = ancestral(sigma, target)
            t_down = -down.log()
            x = (-t_down).exp() / sigma * first - (t - t_down).expm1() * denoised
            x = x + brownian(sigma, target) * up
            if query is not None:
                denoised = denoise(x, query)
    return x


def plain(case: str, pipeline: Pipeline) -> np.ndarray:
    sampler, sigmas = {
        "t2i-xl-euler": (euler, uniform(5)),
        "t2i-xl-dpmpp-2m": (dpmpp_2m, karras(5)),
        "t2i-xl-dpmpp-sde": (dpmpp_sde, karras(5)),
    }[case]
    x, noise = start_noise(64, 96)
    return pipeline.decode(sampler(pipeline.denoiser((96, 64)), x * sigmas[0], sigmas, noise))


def from_picture(_case: str, pipeline: Pipeline) -> np.ndarray:
    picture = np.array(Image.open(GOLDEN / "inputs" / "a_128x96.png").convert("RGB"))
    init = pipeline.encode(picture, None)
    x, noise = start_noise(96, 128)
    sigmas = uniform(6)[2:]
    return pipeline.decode(euler_ancestral(pipeline.denoiser((128, 96)), init + x * sigmas[0], sigmas, noise))


def hires(case: str, pipeline: Pipeline) -> np.ndarray:
    sigmas = uniform(5)
    denoise = pipeline.denoiser((64, 64))
    x, noise = start_noise(64, 64)
    x = euler_ancestral(denoise, x * sigmas[0], sigmas, noise)
    if case == "t2i-hr-nearest":
        enlarged = Image.fromarray(pipeline.decode(x)).resize((128, 128), Image.NEAREST)
        posterior, _ = start_noise(128, 128)
        init = pipeline.encode(np.array(enlarged), posterior)
    else:
        init = F.interpolate(x, size=(16, 16), mode="bilinear")
    sigmas = uniform(7)[2:]
    x, noise = start_noise(128, 128)
    return pipeline.decode(euler_ancestral(denoise, init + x * sigmas[0], sigmas, noise))


CASES: dict[str, tuple[str, Callable[[str, Pipeline], np.ndarray]]] = {
    "i2i-xl-basic": ("tiny-sdxl", from_picture),
    "t2i-xl-dpmpp-2m": ("tiny-sdxl", plain),
    "t2i-xl-dpmpp-sde": ("tiny-sdxl", plain),
    "t2i-xl-euler": ("tiny-sdxl", plain),
    "t2i-sd1-hr": ("tiny-sd1", hires),
    "t2i-hr-nearest": ("tiny-sd2-v", hires),
}


def distance(case: str, picture: np.ndarray) -> str:
    want = np.array(Image.open(GOLDEN / "cases" / f"{case}.0.png"))
    levels = np.abs(picture.astype(int) - want.astype(int)).max(axis=-1)
    return f"max {levels.max()} on {100 * (levels > 0).mean():.2f} %"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"default: {', '.join(CASES)}")
    parser.add_argument("--cpu", choices=["avx2", "any"], default="avx2")
    options = parser.parse_args()
    unknown = [case for case in options.cases if case not in CASES]
    if unknown:
        print(f"no such case: {', '.join(unknown)}", file=sys.stderr)
        return 1
    if options.cpu == "avx2" and any(os.environ.get(key) != value for key, value in AVX2.items()):
        # The libraries read these when they are loaded, which they are by now.
        return subprocess.run([sys.executable, *sys.argv], env=os.environ | AVX2, check=False).returncode
    warnings.filterwarnings("ignore", module="torchsde")
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    index = {entry["name"]: entry for entry in json.loads((GOLDEN / "index.json").read_text())}
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
    with tempfile.TemporaryDirectory() as folder:
        make = [sys.executable, str(GOLDEN / "models" / "make_models.py"), folder, "--no-onnx"]
        subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
        for case in options.cases or CASES:
            model, draw = CASES[case]
            print(f"{case}: A1111 with two threads on {index[case]['a1111_other_threads']['percent_differing']:.2f} %")
            for dtype in (torch.float32, torch.float64):
                pipeline = Pipeline(model, dtype, Path(folder) / "Stable-diffusion")
                print(f"    {str(dtype).removeprefix('torch.')}: {distance(case, draw(case, pipeline))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
