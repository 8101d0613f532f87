# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.4.6", "pillow==13.0.0", "safetensors==0.8.0", "tokenizers==0.23.3", "torch==2.15.0"]
# ///
"""Makes a work folder in which training can go on from an exported checkpoint: unet.pt, text.pt and vae.pt."""

import argparse
import json
import sys
from pathlib import Path

import torch
from export_checkpoint import VOCAB, rename_unet, rename_vae
from models import VAE, TextEncoder, UNet
from safetensors import safe_open
from tokenizer import BOS, EOS, PAD
from train_text import LAYERS
from train_vae import CH, exact

HEAD = "cond_stage_model.model."


def read_net(
    net: torch.nn.Module, names: dict[str, torch.Tensor], sd: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """the state of `net`, whose keys `names` lists in their order under the checkpoint's names"""
    own = net.state_dict()
    return {
        k: sd[n].reshape(v.shape) for (k, v), n in zip(own.items(), names, strict=True)
    }


def read_shape(sd: dict[str, torch.Tensor]) -> dict[str, tuple]:
    """the shape of the UNet: every second input block starts a level"""
    at = "model.diffusion_model.input_blocks.{}.{}"
    levels = []
    while at.format(2 * len(levels) + 1, "0.in_layers.2.weight") in sd:
        levels.append(2 * len(levels) + 1)
    ch = tuple(len(sd[at.format(k, "0.in_layers.2.weight")]) for k in levels)
    return {
        "ch": ch,
        "attn": tuple(at.format(k, "1.norm.weight") in sd for k in levels),
    }


def read_text(
    sd: dict[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], dict[int, int]]:
    """the text encoder's state over its known tokens, and their rows"""
    table = sd[HEAD + "token_embedding.weight"]
    unknown = table.mode(0).values
    known = (table != unknown).any(1).nonzero().flatten().tolist()
    known = sorted({*known, PAD, BOS, EOS})
    te = TextEncoder(vocab=len(known) + 1, layers=LAYERS)
    out = te.state_dict()
    at = "text_model.embeddings."
    out[at + "token_embedding.weight"] = torch.cat([unknown[None], table[known]])
    out[at + "position_embedding.weight"] = sd[HEAD + "positional_embedding"]
    for w in ("weight", "bias"):
        out[f"text_model.final_layer_norm.{w}"] = sd[f"{HEAD}ln_final.{w}"]
        for i in range(LAYERS):
            src = f"{HEAD}transformer.resblocks.{i}."
            dst = f"text_model.encoder.layers.{i}."
            for q, part in zip("qkv", sd[f"{src}attn.in_proj_{w}"].chunk(3)):
                out[f"{dst}self_attn.{q}_proj.{w}"] = part
            for a, b in (
                ("self_attn.out_proj", "attn.out_proj"),
                ("layer_norm1", "ln_1"),
                ("layer_norm2", "ln_2"),
                ("mlp.fc1", "mlp.c_fc"),
                ("mlp.fc2", "mlp.c_proj"),
            ):
                out[f"{dst}{a}.{w}"] = sd[f"{src}{b}.{w}"]
    return out, {t: i + 1 for i, t in enumerate(known)}


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("checkpoint", type=Path)
    ap.add_argument("work", type=Path)
    a = ap.parse_args()
    if not a.checkpoint.exists():
        print(f"{a.checkpoint} is missing.", file=sys.stderr)
        return 2
    with safe_open(a.checkpoint, "pt") as f:
        meta = f.metadata()
        sd = {k: f.get_tensor(k).float() for k in f.keys()}
    if len(sd[HEAD + "token_embedding.weight"]) != VOCAB or "seen" not in meta:
        print(f"{a.checkpoint} is not a demo model.", file=sys.stderr)
        return 2
    shape = read_shape(sd)
    unet, vae = UNet(**shape), VAE(**CH)
    u = read_net(unet, rename_unet(unet.state_dict(), shape), sd)
    levels = len(CH["ch"])
    vae.load_state_dict(read_net(vae, rename_vae(vae.state_dict(), levels), sd))
    exact(vae, back=True)
    text, tmap = read_text(sd)
    head = {"level": 0, "seen": int(meta["seen"]), "stage": {}, "stage_ema": {}}
    a.work.mkdir(parents=True, exist_ok=True)
    torch.save({"raw": u, "ema": u, **head}, a.work / "unet.pt")
    torch.save({"raw": text, "ema": text, "tmap": tmap, "step": 0}, a.work / "text.pt")
    scaling = {
        k: torch.tensor(json.loads(meta[f"latent_{k}"])) for k in ("mean", "std")
    }
    v = vae.state_dict()
    torch.save({"raw": v, "ema": v, "step": 0, **scaling}, a.work / "vae.pt")
    print(f"{a.work}: {len(tmap)} known tokens, {meta['seen']} pictures seen")
    return 0


if __name__ == "__main__":
    sys.exit(main())
