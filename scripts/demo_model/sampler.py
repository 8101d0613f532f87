"""Loads an exported checkpoint and draws with it: Euler ancestral on k-diffusion's sigmas with classifier-free guidance, as A1111 does."""

import re
from pathlib import Path

import models
import numpy as np
import torch
from export_checkpoint import rename_unet, rename_vae
from models import VAE, TextEncoder, UNet
from safetensors.torch import load_file
from tokenizer import EOS, LENGTH, PAD
from tokenizers import Tokenizer
from train_unet import ABAR, UNET
from train_vae import CH, decode_fast
from vae_frame import SCALE

SIGMAS = ((1 - ABAR) / ABAR).sqrt().numpy()


class Painter:
    """a checkpoint, ready to draw"""

    def __init__(self, checkpoint: Path, tokenizer: Tokenizer) -> None:
        if not checkpoint.exists():
            raise SystemExit(
                f"{checkpoint} is missing; run export_checkpoint.py first."
            )
        sd = {k: v.float() for k, v in load_file(checkpoint).items()}
        self.tok = tokenizer
        self.unet, self.vae = UNet(**UNET), VAE(**CH)
        for net, names in (
            (self.unet, rename_unet(self.unet.state_dict())),
            (self.vae, rename_vae(self.vae.state_dict(), len(CH["ch"]))),
        ):
            own = net.state_dict()
            net.load_state_dict(
                {
                    k: sd[n].reshape(v.shape)
                    for (k, v), n in zip(own.items(), names, strict=True)
                }
            )
        self.text = self.load_text(sd)
        for net in (self.unet, self.vae, self.text):
            net.eval().requires_grad_(False)
            net.to(memory_format=torch.channels_last)

    @staticmethod
    def load_text(sd: dict[str, torch.Tensor]) -> TextEncoder:
        head = "cond_stage_model.model."
        layers = (
            sum(
                bool(
                    re.fullmatch(
                        re.escape(head) + r"transformer\.resblocks\.\d+\.ln_1\.weight",
                        k,
                    )
                )
                for k in sd
            )
            - 1
        )
        te = TextEncoder(layers=layers)
        new = {
            "text_model.embeddings.token_embedding.weight": sd[
                head + "token_embedding.weight"
            ],
            "text_model.embeddings.position_embedding.weight": sd[
                head + "positional_embedding"
            ],
        }
        for w in ("weight", "bias"):
            new[f"text_model.final_layer_norm.{w}"] = sd[f"{head}ln_final.{w}"]
            for i in range(layers):
                src, dst = (
                    f"{head}transformer.resblocks.{i}.",
                    f"text_model.encoder.layers.{i}.",
                )
                for q, part in zip("qkv", sd[f"{src}attn.in_proj_{w}"].chunk(3)):
                    new[f"{dst}self_attn.{q}_proj.{w}"] = part
                new[f"{dst}self_attn.out_proj.{w}"] = sd[f"{src}attn.out_proj.{w}"]
                new[f"{dst}layer_norm1.{w}"], new[f"{dst}layer_norm2.{w}"] = (
                    sd[f"{src}ln_1.{w}"],
                    sd[f"{src}ln_2.{w}"],
                )
                new[f"{dst}mlp.fc1.{w}"], new[f"{dst}mlp.fc2.{w}"] = (
                    sd[f"{src}mlp.c_fc.{w}"],
                    sd[f"{src}mlp.c_proj.{w}"],
                )
        te.load_state_dict(new)
        return te

    @torch.no_grad()
    def states(self, prompts: list[str]) -> torch.Tensor:
        rows = []
        for p in prompts:
            ids = self.tok.encode(p).ids[:LENGTH]
            ids[-1] = EOS
            rows.append(ids + [PAD] * (LENGTH - len(ids)))
        return self.text(torch.tensor(rows))

    @torch.no_grad()
    def draw(
        self,
        prompts: list[str],
        seeds: list[int],
        width: int = 512,
        height: int = 512,
        steps: int = 20,
        cfg: float = 6.0,
        negative: str = "",
        ancestral: bool = True,
    ) -> np.ndarray:
        """n x height x width x 3 bytes"""
        n = len(prompts)
        ctx = torch.cat([self.states(prompts), self.states([negative] * n)])
        gens = [torch.Generator().manual_seed(s) for s in seeds]

        def noise() -> torch.Tensor:
            return torch.stack(
                [torch.randn(4, height // 8, width // 8, generator=g) for g in gens]
            )

        ts = np.linspace(999, 0, steps)
        sig = np.append(np.exp(np.interp(ts, np.arange(1000), np.log(SIGMAS))), 0)
        x = noise() * float(sig[0])
        for i in range(steps):
            s, nxt = float(sig[i]), float(sig[i + 1])
            xin = torch.cat([x, x]) / (s**2 + 1) ** 0.5
            v = self.unet(
                xin.contiguous(memory_format=torch.channels_last),
                torch.full((2 * n,), float(ts[i])),
                ctx,
            )
            d = v * (-s / (s**2 + 1) ** 0.5) + torch.cat([x, x]) / (s**2 + 1)
            d = d[n:] + cfg * (d[:n] - d[n:])
            up = (
                min(nxt, (nxt**2 * (s**2 - nxt**2) / s**2) ** 0.5)
                if ancestral and nxt > 0
                else 0.0
            )
            down = (nxt**2 - up**2) ** 0.5
            x = x + (x - d) / s * (down - s)
            if up:
                x = x + noise() * up
        half, models.HALF_CONVOLUTIONS = models.HALF_CONVOLUTIONS, False
        y = torch.cat([decode_fast(self.vae, one[None] / SCALE) for one in x])
        models.HALF_CONVOLUTIONS = half
        return ((y.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
