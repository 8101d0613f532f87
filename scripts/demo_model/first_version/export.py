#!/usr/bin/env python3
"""Writes the trained model as a diffusers folder (fp16-rounded weights, stored both as fp32 and fp16) and as ONNX graphs.

usage: export.py WORK BPE_GZ OUT_DIR
"""

import json
import os
import sys
import warnings
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import save_file
import captions as C
from models import TEXT_CFG, TextEncoder, UNet, VAE
from train_diffusion import UNET

from train_vae import CH, TINY

warnings.filterwarnings("ignore")
TINY_EXACT = (
    2.0**-15
)  # the pair amplitude as a power of two, so that fp16 holds it exactly


def retune(vae):
    """move the linear paths from amplitude TINY to TINY_EXACT (norm gains the other way)"""
    r = TINY_EXACT / TINY
    with torch.no_grad():
        vae.encoder.conv_in.weight.mul_(r)
        vae.encoder.conv_norm_out.weight.div_(r)
        d = vae.decoder
        d.conv_in.weight[:6] *= r
        for m in d.modules():
            if isinstance(m, nn.GroupNorm):
                m.weight[:6] /= r


def fp16_round(m):
    with torch.no_grad():
        for p in m.parameters():
            p.copy_(p.half().float())


def load_all(work):
    vae, unet = VAE(**CH), UNet(**UNET)
    vae.load_state_dict(torch.load(f"{work}/vae.pt")["ema"])
    unet.load_state_dict(torch.load(f"{work}/unet.pt")["ema"])
    st = torch.load(f"{work}/text.pt")
    small = TextEncoder(vocab=len(st["tmap"]) + 1)
    small.load_state_dict(st["te"])
    retune(vae)
    for m in (vae, unet, small):
        fp16_round(m)
        m.eval().requires_grad_(False)
    full = TextEncoder(vocab=TEXT_CFG["vocab"])
    sd = dict(small.state_dict())
    tab = sd["text_model.embeddings.token_embedding.weight"]
    big = tab[0].repeat(TEXT_CFG["vocab"], 1)
    for t, i in st["tmap"].items():
        big[t] = tab[i]
    sd["text_model.embeddings.token_embedding.weight"] = big
    full.load_state_dict(sd)
    full.eval().requires_grad_(False)
    return vae, unet, full, small, st["tmap"]


def write_json(path, obj):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    json.dump(obj, open(path, "w"), indent=2)
    open(path, "a").write("\n")


def save_model(m, folder, name):
    os.makedirs(folder, exist_ok=True)
    sd = {k: v.contiguous() for k, v in m.state_dict().items()}
    save_file(sd, f"{folder}/{name}.safetensors", metadata={"format": "pt"})
    save_file(
        {k: v.half() for k, v in sd.items()},
        f"{folder}/{name}.fp16.safetensors",
        metadata={"format": "pt"},
    )


def diffusers_folder(out, vae, unet, text, tok, bpe):
    v = "0.31.0"
    write_json(
        f"{out}/model_index.json",
        {
            "_class_name": "StableDiffusionPipeline",
            "_diffusers_version": v,
            "requires_safety_checker": False,
            "feature_extractor": [None, None],
            "safety_checker": [None, None],
            "scheduler": ["diffusers", "DDIMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
    )
    write_json(
        f"{out}/scheduler/scheduler_config.json",
        {
            "_class_name": "DDIMScheduler",
            "_diffusers_version": v,
            "num_train_timesteps": 1000,
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "prediction_type": "v_prediction",
            "clip_sample": False,
            "set_alpha_to_one": False,
            "steps_offset": 1,
            "skip_prk_steps": True,
            "trained_betas": None,
        },
    )
    write_json(
        f"{out}/unet/config.json",
        {
            "_class_name": "UNet2DConditionModel",
            "_diffusers_version": v,
            "sample_size": 64,
            "in_channels": 4,
            "out_channels": 4,
            "center_input_sample": False,
            "flip_sin_to_cos": True,
            "freq_shift": 0,
            "layers_per_block": 1,
            "block_out_channels": list(UNET["ch"]),
            "down_block_types": [
                "CrossAttnDownBlock2D" if x else "DownBlock2D" for x in UNET["attn"]
            ],
            "up_block_types": [
                "CrossAttnUpBlock2D" if x else "UpBlock2D" for x in UNET["attn"][::-1]
            ],
            "mid_block_type": "UNetMidBlock2DCrossAttn",
            "attention_head_dim": [c // 32 for c in UNET["ch"]],
            "use_linear_projection": True,
            "cross_attention_dim": 128,
            "norm_num_groups": 32,
            "norm_eps": 1e-5,
            "act_fn": "silu",
            "downsample_padding": 1,
            "mid_block_scale_factor": 1,
        },
    )
    write_json(
        f"{out}/vae/config.json",
        {
            "_class_name": "AutoencoderKL",
            "_diffusers_version": v,
            "in_channels": 3,
            "out_channels": 3,
            "latent_channels": 4,
            "block_out_channels": list(CH["ch"]),
            "layers_per_block": CH["layers"],
            "norm_num_groups": 32,
            "sample_size": 512,
            "scaling_factor": 0.18215,
            "act_fn": "silu",
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
        },
    )
    write_json(
        f"{out}/text_encoder/config.json",
        {
            "_name_or_path": "",
            "architectures": ["CLIPTextModel"],
            "model_type": "clip_text_model",
            "vocab_size": 49408,
            "hidden_size": 128,
            "intermediate_size": 512,
            "projection_dim": 128,
            "num_hidden_layers": TEXT_CFG["layers"],
            "num_attention_heads": 4,
            "max_position_embeddings": 77,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-5,
            "attention_dropout": 0.0,
            "initializer_factor": 1.0,
            "initializer_range": 0.02,
            "bos_token_id": 49406,
            "eos_token_id": 49407,
            "pad_token_id": 0,
            "torch_dtype": "float32",
            "transformers_version": "4.46.0",
        },
    )
    save_model(unet, f"{out}/unet", "diffusion_pytorch_model")
    save_model(vae, f"{out}/vae", "diffusion_pytorch_model")
    save_model(text, f"{out}/text_encoder", "model")
    d = f"{out}/tokenizer"
    os.makedirs(d, exist_ok=True)
    tok.save(f"{d}/tokenizer.json", pretty=False)
    m = json.loads(tok.to_str())["model"]
    json.dump(m["vocab"], open(f"{d}/vocab.json", "w"), ensure_ascii=True)
    with open(f"{d}/merges.txt", "w", encoding="utf8") as f:
        f.write(
            "#version: 0.2\n"
            + "\n".join(x if isinstance(x, str) else " ".join(x) for x in m["merges"])
            + "\n"
        )

    def one(c):
        return dict(
            content=c, lstrip=False, normalized=True, rstrip=False, single_word=False
        )  # noqa: E731

    write_json(
        f"{d}/special_tokens_map.json",
        dict(
            bos_token=one("<|startoftext|>"),
            eos_token=one("<|endoftext|>"),
            unk_token=one("<|endoftext|>"),
            pad_token="!",
        ),
    )
    write_json(
        f"{d}/tokenizer_config.json",
        dict(
            add_prefix_space=False,
            bos_token="<|startoftext|>",
            eos_token="<|endoftext|>",
            unk_token="<|endoftext|>",
            pad_token="!",
            do_lower_case=True,
            errors="replace",
            model_max_length=77,
            tokenizer_class="CLIPTokenizer",
        ),
    )


# --------------------------------------------------------------------------- ONNX
class TextOnnx(nn.Module):
    """token ids are first mapped to the few rows that differ from the unknown-word row"""

    def __init__(self, small, tmap):
        super().__init__()
        self.small = small
        remap = torch.zeros(49408, dtype=torch.int32)
        for t, i in tmap.items():
            remap[t] = i
        self.register_buffer("remap", remap)

    def forward(self, ids):
        tm = self.small.text_model
        x = F.embedding(
            F.embedding(ids, self.remap[:, None])[..., 0].long(),
            tm.embeddings.token_embedding.weight,
        )
        n = ids.shape[1]
        x = x + tm.embeddings.position_embedding.weight[:n]
        i = torch.arange(n)
        mask = torch.where(i[None, :] <= i[:, None], 0.0, -1e9)
        for layer in tm.encoder.layers:
            x = layer(x, mask)
        return tm.final_layer_norm(x)


class EncOnnx(nn.Module):
    """the constructed encoder without its all-zero channels and identity blocks: the same numbers"""

    def __init__(self, vae):
        super().__init__()
        e = vae.encoder

        def cut(c, o, i):
            n = nn.Conv2d(i, o, c.kernel_size, c.stride, c.padding)
            n.weight.data, n.bias.data = (
                c.weight.data[:o, :i].clone(),
                c.bias.data[:o].clone(),
            )
            return n

        self.conv_in = cut(e.conv_in, 8, 3)
        self.down = nn.ModuleList(
            [cut(lv.downsamplers[0].conv, 8, 8) for lv in e.down_blocks[:-1]]
        )
        self.norm = nn.GroupNorm(4, 8, eps=1e-6)
        self.norm.weight.data, self.norm.bias.data = (
            e.conv_norm_out.weight.data[:8].clone(),
            e.conv_norm_out.bias.data[:8].clone(),
        )
        self.conv_out, self.quant = cut(e.conv_out, 8, 8), vae.quant_conv

    def forward(self, x):
        h = self.conv_in(x)
        for d in self.down:
            h = d(F.pad(h, (0, 1, 0, 1)))
        return self.quant(self.conv_out(F.silu(self.norm(h))))


class DecOnnx(nn.Module):
    """without the blocks whose output weights are all zero"""

    def __init__(self, vae):
        super().__init__()
        self.v = vae

    def forward(self, z):
        d = self.v.decoder
        h = d.conv_in(self.v.post_quant_conv(z))
        for i, r in enumerate(d.mid_block.resnets):
            if i == 1 and d.mid_block.attentions[0].to_out[0].weight.abs().max() > 0:
                h = d.mid_block.attentions[0](h)
            h = r(h)
        for lv in d.up_blocks:
            for r in lv.resnets:
                if r.conv2.weight.abs().max() > 0:
                    h = r(h)
            if hasattr(lv, "upsamplers"):
                h = lv.upsamplers[0](h)
        return d.conv_out(F.silu(d.conv_norm_out(h)))


def halve(path):
    """store weights as fp16 behind a Cast (ONNX Runtime folds it when it loads the graph)"""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    m = onnx.load(path)
    g, casts, init = m.graph, [], []
    for t in g.initializer:
        w = numpy_helper.to_array(t)
        if (
            w.dtype == np.float32
            and w.size >= 64
            and np.array_equal(w.astype(np.float16).astype(np.float32), w)
        ):
            init.append(numpy_helper.from_array(w.astype(np.float16), t.name))
            casts.append(
                helper.make_node(
                    "Cast",
                    [t.name],
                    [t.name + "/f32"],
                    name=t.name + "/Cast",
                    to=TensorProto.FLOAT,
                )
            )
        else:
            init.append(t)
    ren = {c.input[0]: c.output[0] for c in casts}
    for n in g.node:
        for k, i in enumerate(n.input):
            if i in ren:
                n.input[k] = ren[i]
    nodes = casts + list(g.node)
    del g.node[:], g.initializer[:]
    g.node.extend(nodes)
    g.initializer.extend(init)
    onnx.checker.check_model(m)
    onnx.save(m, path)


def onnx_folder(out, vae, unet, small, tmap):
    import onnxruntime as ort

    def go(mod, args, name, ins, outs, axes, test):
        p = f"{out}/{name}/model.onnx"
        os.makedirs(os.path.dirname(p), exist_ok=True)
        torch.onnx.export(
            mod.eval(),
            args,
            p,
            input_names=ins,
            output_names=outs,
            dynamic_axes=axes,
            opset_version=17,
            do_constant_folding=False,
            dynamo=False,
        )
        halve(p)
        so = ort.SessionOptions()
        so.intra_op_num_threads = 2
        s = ort.InferenceSession(p, so, providers=["CPUExecutionProvider"])
        with torch.no_grad():
            want = mod(*test).numpy()
        got = s.run(None, {k: v.numpy() for k, v in zip(ins, test)})[0]
        print(
            f"{name}: {os.path.getsize(p) / 1e6:.2f} MB, largest difference from torch {np.abs(want - got).max():.2e} (values up to {np.abs(want).max():.2f})",
            flush=True,
        )

    b = {0: "batch_size", 1: "sequence_length"}
    ids = torch.randint(0, 49000, (2, 77))
    go(
        TextOnnx(small, tmap),
        (ids,),
        "text_encoder",
        ["input_ids"],
        ["last_hidden_state"],
        {"input_ids": b, "last_hidden_state": b},
        (torch.randint(0, 49408, (3, 77)),),
    )
    hw = {0: "batch_size", 2: "height", 3: "width"}
    lhw = {0: "batch_size", 2: "latent_height", 3: "latent_width"}
    go(
        unet,
        (
            torch.randn(2, 4, 16, 24),
            torch.tensor([7.5, 300.25]),
            torch.randn(2, 77, 128),
        ),
        "unet",
        ["sample", "timestep", "encoder_hidden_states"],
        ["out_sample"],
        {
            "sample": hw,
            "timestep": {0: "batch_size"},
            "encoder_hidden_states": b,
            "out_sample": hw,
        },
        (torch.randn(1, 4, 18, 33), torch.tensor([801.0]), torch.randn(1, 154, 128)),
    )
    go(
        EncOnnx(vae),
        (torch.randn(2, 3, 64, 96),),
        "vae_encoder",
        ["sample"],
        ["latent_parameters"],
        {"sample": hw, "latent_parameters": lhw},
        (torch.randn(1, 3, 72, 128).clamp(-1, 1),),
    )
    go(
        DecOnnx(vae),
        (torch.randn(2, 4, 8, 12),),
        "vae_decoder",
        ["latent_sample"],
        ["sample"],
        {"latent_sample": lhw, "sample": hw},
        (torch.randn(1, 4, 9, 16) * 5,),
    )


def main(work, bpe, out):
    torch.set_num_threads(2)
    vae, unet, full, small, tmap = load_all(work)
    with torch.no_grad():  # the pruned graphs are the same functions
        x, z = torch.rand(1, 3, 64, 64) * 2 - 1, torch.randn(1, 4, 8, 8) * 5
        print(
            "pruned encoder, decoder differ by",
            (EncOnnx(vae)(x) - vae.moments(x)).abs().max().item(),
            (DecOnnx(vae)(z) - vae.decode(z)).abs().max().item(),
        )
    diffusers_folder(f"{out}/diffusers", vae, unet, full, C.build_tokenizer(bpe), bpe)
    onnx_folder(f"{out}/onnx", vae, unet, small, tmap)


if __name__ == "__main__":
    main(*sys.argv[1:4])
