# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.4.6", "pillow==13.0.0", "safetensors==0.8.0", "tokenizers==0.23.3", "torch==2.15.0"]
# ///
"""Writes the trained parts as one Stable Diffusion 2.x checkpoint that A1111 loads: NAME.safetensors, NAME.yaml and the open_clip config."""

import argparse
import json
import re
import sys
from pathlib import Path

import torch
from models import VAE, TextEncoder, unet_shape
from safetensors.torch import save_file
from tokenizer import EOS
from train_text import LAYERS, load_text
from train_unet import BETAS, load_unet
from train_vae import CH, exact

ARCH = f"tiny-text-128x{LAYERS + 1}"
VOCAB = EOS + 1

YAML = """model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    parameterization: "v"
    linear_start: 0.00085
    linear_end: 0.0120
    num_timesteps_cond: 1
    log_every_t: 200
    timesteps: 1000
    first_stage_key: "jpg"
    cond_stage_key: "txt"
    image_size: 64
    channels: 4
    cond_stage_trainable: false
    conditioning_key: crossattn
    monitor: val/loss_simple_ema
    scale_factor: 0.18215
    use_ema: False
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        image_size: 32
        in_channels: 4
        out_channels: 4
        model_channels: {model_channels}
        attention_resolutions: {attention}
        num_res_blocks: 1
        channel_mult: {mult}
        num_head_channels: 32
        use_spatial_transformer: True
        use_linear_in_transformer: True
        transformer_depth: 1
        context_dim: 128
        use_checkpoint: False
        legacy: False
    first_stage_config:
      target: ldm.models.autoencoder.AutoencoderKL
      params:
        embed_dim: 4
        monitor: val/rec_loss
        ddconfig:
          double_z: true
          z_channels: 4
          resolution: 256
          in_channels: 3
          out_ch: 3
          ch: {vae_channels}
          ch_mult: {vae_mult}
          num_res_blocks: {vae_blocks}
          attn_resolutions: []
          dropout: 0.0
        lossconfig:
          target: torch.nn.Identity
    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder
      params:
        arch: {arch}
        freeze: True
        layer: "penultimate"
"""


def unet_names(ch: tuple[int, ...], attn: tuple[bool, ...]) -> dict[str, str]:
    """prefixes of this project's UNet -> prefixes in the ldm layout (one block a level going down, two going up)"""
    n, out, k = len(ch), {"conv_in.": "input_blocks.0.0."}, 1
    for i in range(n):
        out[f"down_blocks.{i}.resnets.0."] = f"input_blocks.{k}.0."
        if attn[i]:
            out[f"down_blocks.{i}.attentions.0."] = f"input_blocks.{k}.1."
        k += 1
        if i < n - 1:
            out[f"down_blocks.{i}.downsamplers.0.conv."] = f"input_blocks.{k}.0.op."
            k += 1
    out |= {
        "mid_block.resnets.0.": "middle_block.0.",
        "mid_block.attentions.0.": "middle_block.1.",
        "mid_block.resnets.1.": "middle_block.2.",
    }
    k = 0
    for j in range(n):
        level = n - 1 - j
        for r in range(2):
            out[f"up_blocks.{j}.resnets.{r}."] = f"output_blocks.{k}.0."
            if attn[level]:
                out[f"up_blocks.{j}.attentions.{r}."] = f"output_blocks.{k}.1."
            if r == 1 and level:
                out[f"up_blocks.{j}.upsamplers.0.conv."] = (
                    f"output_blocks.{k}.{2 if attn[level] else 1}.conv."
                )
            k += 1
    return out | {
        "conv_norm_out.": "out.0.",
        "conv_out.": "out.2.",
        "time_embedding.linear_1.": "time_embed.0.",
        "time_embedding.linear_2.": "time_embed.2.",
    }


RESNET = {
    "norm1.": "in_layers.0.",
    "conv1.": "in_layers.2.",
    "time_emb_proj.": "emb_layers.1.",
    "norm2.": "out_layers.0.",
    "conv2.": "out_layers.3.",
    "conv_shortcut.": "skip_connection.",
}


def rename_unet(
    state: dict[str, torch.Tensor], shape: dict[str, tuple]
) -> dict[str, torch.Tensor]:
    """the checkpoint's names for a UNet's tensors, whole or in part"""
    names = unet_names(**shape)
    out = {}
    for key, value in state.items():
        prefix = next(p for p in names if key.startswith(p))
        rest = key[len(prefix) :]
        if ".resnets." in prefix:
            part = next(p for p in RESNET if rest.startswith(p))
            rest = RESNET[part] + rest[len(part) :]
        out["model.diffusion_model." + names[prefix] + rest] = value
    return out


def rename_vae(state: dict[str, torch.Tensor], levels: int) -> dict[str, torch.Tensor]:
    out = {}
    for key, value in state.items():
        k = key.replace("conv_norm_out", "norm_out").replace(
            "conv_shortcut", "nin_shortcut"
        )
        k = re.sub(
            r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", k
        )
        k = k.replace("mid_block.attentions.0.", "mid.attn_1.")
        if ".attn_1." in k:
            for a, b in (
                ("group_norm.", "norm."),
                ("to_q.", "q."),
                ("to_k.", "k."),
                ("to_v.", "v."),
                ("to_out.0.", "proj_out."),
            ):
                k = k.replace(a, b)
            if value.ndim == 2:
                value = value[:, :, None, None]
        k = re.sub(
            r"encoder\.down_blocks\.(\d)\.resnets\.(\d)", r"encoder.down.\1.block.\2", k
        )
        k = re.sub(
            r"encoder\.down_blocks\.(\d)\.downsamplers\.0",
            r"encoder.down.\1.downsample",
            k,
        )
        k = re.sub(
            r"decoder\.up_blocks\.(\d)\.resnets\.(\d)",
            lambda m: f"decoder.up.{levels - 1 - int(m[1])}.block.{m[2]}",
            k,
        )
        k = re.sub(
            r"decoder\.up_blocks\.(\d)\.upsamplers\.0",
            lambda m: f"decoder.up.{levels - 1 - int(m[1])}.upsample",
            k,
        )
        out["first_stage_model." + k] = value
    return out


def rename_text(te: TextEncoder, tmap: dict[int, int]) -> dict[str, torch.Tensor]:
    """open_clip names, the whole vocabulary, and one more layer that "penultimate" leaves out"""
    sd, head = te.state_dict(), "cond_stage_model.model."
    table = sd["text_model.embeddings.token_embedding.weight"]
    big = table[0].repeat(VOCAB, 1)
    for token, row in tmap.items():
        big[token] = table[row]
    out = {
        head + "token_embedding.weight": big,
        head + "positional_embedding": sd[
            "text_model.embeddings.position_embedding.weight"
        ],
        head + "ln_final.weight": sd["text_model.final_layer_norm.weight"],
        head + "ln_final.bias": sd["text_model.final_layer_norm.bias"],
        head + "text_projection": torch.eye(big.shape[1]),
        head + "logit_scale": torch.tensor(0.0),
    }
    for i in range(LAYERS + 1):
        src = f"text_model.encoder.layers.{min(i, LAYERS - 1)}."
        part = {k[len(src) :]: v for k, v in sd.items() if k.startswith(src)}
        if i == LAYERS:
            part = {
                k: torch.zeros_like(v) + float("layer_norm" in k and "weight" in k)
                for k, v in part.items()
            }
        dst = f"{head}transformer.resblocks.{i}."
        for w in ("weight", "bias"):
            out[dst + f"attn.in_proj_{w}"] = torch.cat(
                [part[f"self_attn.{q}_proj.{w}"] for q in "qkv"]
            )
            out[dst + f"attn.out_proj.{w}"] = part[f"self_attn.out_proj.{w}"]
            out[dst + f"ln_1.{w}"], out[dst + f"ln_2.{w}"] = (
                part[f"layer_norm1.{w}"],
                part[f"layer_norm2.{w}"],
            )
            out[dst + f"mlp.c_fc.{w}"], out[dst + f"mlp.c_proj.{w}"] = (
                part[f"mlp.fc1.{w}"],
                part[f"mlp.fc2.{w}"],
            )
    return out


def schedule() -> dict[str, torch.Tensor]:
    abar = torch.cumprod(1 - BETAS, 0)
    return {"betas": BETAS.float(), "alphas_cumprod": abar.float()}


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("work", type=Path)
    ap.add_argument("out", type=Path, help="folder for the checkpoint")
    ap.add_argument("--name", default="emoji-sd2-v")
    ap.add_argument(
        "--raw",
        action="store_true",
        help="the weights themselves instead of their running mean",
    )
    a = ap.parse_args()
    for p in (a.work / "unet.pt", a.work / "vae.pt"):
        if not p.exists():
            print(f"{p} is missing; train it first.", file=sys.stderr)
            return 2
    unet, st = load_unet(a.work / "unet.pt", not a.raw)
    if st["level"]:
        print(
            f"The UNet has only been trained at level {st['level']}; train level 0 before exporting.",
            file=sys.stderr,
        )
        return 2
    vae, shape = VAE(**CH), unet_shape(unet.state_dict())
    pictures = torch.load(a.work / "vae.pt", map_location="cpu")
    vae.load_state_dict(pictures["ema"])
    exact(vae)
    te, tmap = load_text(a.work)
    parts = (
        rename_unet(unet.state_dict(), shape)
        | rename_vae(vae.state_dict(), len(CH["ch"]))
        | rename_text(te, tmap)
    )
    tensors = {k: v.half().contiguous() for k, v in parts.items()} | schedule()
    a.out.mkdir(parents=True, exist_ok=True)
    path = a.out / f"{a.name}.safetensors"
    meta = {"format": "pt", "seen": str(st["seen"])}
    for k in ("mean", "std"):
        meta[f"latent_{k}"] = json.dumps(pictures[k].tolist())
    save_file(tensors, path, metadata=meta)
    base = shape["ch"][0]
    text = YAML.format(
        model_channels=base,
        attention=[2**i for i, on in enumerate(shape["attn"]) if on],
        mult=[c // base for c in shape["ch"]],
        vae_channels=CH["ch"][0],
        vae_mult=[c // CH["ch"][0] for c in CH["ch"]],
        vae_blocks=CH["layers"],
        arch=ARCH,
    )
    (a.out / f"{a.name}.yaml").write_text(text)
    width = te.text_model.final_layer_norm.weight.shape[0]
    config = {
        "embed_dim": width,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 32},
        "text_cfg": {
            "context_length": 77,
            "vocab_size": VOCAB,
            "width": width,
            "heads": 4,
            "layers": LAYERS + 1,
        },
    }
    towers = a.out / "open_clip_model_configs"
    towers.mkdir(exist_ok=True)
    (towers / f"{ARCH}.json").write_text(json.dumps(config) + "\n")
    count = sum(v.numel() for v in tensors.values())
    print(
        f"{path}: {len(tensors)} tensors, {count / 1e6:.2f} M numbers, {path.stat().st_size / 1e6:.2f} MB, {st['seen']} pictures seen"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
