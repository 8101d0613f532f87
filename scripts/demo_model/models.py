"""Plain PyTorch definitions of the three networks of a Stable Diffusion 2.x style latent diffusion model.

Parameter names are those of the Hugging Face `diffusers` / `transformers` layout, so a state dict from here can be
written out unchanged as `unet/diffusion_pytorch_model.safetensors` and so on.  Only what this project needs is here.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

GROUPS = 32
HALF_CONVOLUTIONS = False  # training only: 3x3 convolutions in bfloat16, which some processors do twice as fast

UNET_CFG = {
    "ch": (32, 64, 128, 256),
    "attn": (False, True, True, False),
    "layers": 1,
    "ctx": 128,
    "head": 32,
}
VAE_CFG = {"ch": (32, 32, 64, 64), "layers": 1, "z": 4}
TEXT_CFG = {
    "vocab": 49408,
    "length": 77,
    "width": 128,
    "heads": 4,
    "layers": 4,
    "inner": 512,
}


ATTENTION_LOG = (
    None  # training only: a list that collects log-probabilities of cross-attention
)


FAST_NORM = None  # training on a GPU: what stands in for scaled()


# --------------------------------------------------------------------------- shared pieces
def scaled(x, weight, bias, eps, act):
    """group norm, with SiLU where `act`, out of sums over each channel: two passes over x in any memory format"""
    n, c, h, w = x.shape
    y = x.float()
    count = h * w * (c // GROUPS)
    mean = y.sum((2, 3)).view(n, GROUPS, -1).sum(-1) / count
    square = y.square().sum((2, 3)).view(n, GROUPS, -1).sum(-1) / count
    gain = (square - mean.square()).clamp(min=0).add(eps).rsqrt()
    a = (gain[:, :, None] * weight.view(1, GROUPS, -1)).view(n, c)
    b = bias - (mean[:, :, None] * a.view(n, GROUPS, -1)).view(n, c)
    y = y * a[:, :, None, None] + b[:, :, None, None]
    return (F.silu(y) if act else y).to(x.dtype)


def norm(m, x, act=True):
    """a group norm, followed by SiLU where `act`"""
    if FAST_NORM is not None:
        return FAST_NORM(x, m.weight, m.bias, m.eps, act)
    return F.silu(m(x)) if act else m(x)


def conv(m, x):
    """a convolution, in bfloat16 when that is switched on"""
    if not HALF_CONVOLUTIONS:
        return m(x)
    return F.conv2d(
        x.bfloat16(), m.weight.bfloat16(), m.bias.bfloat16(), m.stride, m.padding
    ).float()


class Resnet(nn.Module):
    def __init__(self, cin, cout, temb=None, eps=1e-5):
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, cin, eps=eps)
        self.conv1 = nn.Conv2d(cin, cout, 3, padding=1)
        if temb:
            self.time_emb_proj = nn.Linear(temb, cout)
        self.norm2 = nn.GroupNorm(GROUPS, cout, eps=eps)
        self.conv2 = nn.Conv2d(cout, cout, 3, padding=1)
        if cin != cout:
            self.conv_shortcut = nn.Conv2d(cin, cout, 1)
        self.proj, self.skip = bool(temb), cin != cout

    def forward(self, x, temb=None):
        h = conv(self.conv1, norm(self.norm1, x))
        if self.proj:
            h = h + self.time_emb_proj(temb)[:, :, None, None]
        h = conv(self.conv2, norm(self.norm2, h))
        return (self.conv_shortcut(x) if self.skip else x) + h


class Sampler(nn.Module):
    """Strided (down) or nearest-then-convolve (up) resampling."""

    def __init__(self, ch, mode):
        super().__init__()
        self.mode = mode
        if mode == "down":
            self.conv = nn.Conv2d(ch, ch, 3, stride=2, padding=1)
        elif mode == "vae_down":  # the SD autoencoder pads right and bottom only
            self.conv = nn.Conv2d(ch, ch, 3, stride=2, padding=0)
        else:
            self.conv = nn.Conv2d(ch, ch, 3, padding=1)

    def forward(self, x, size=None):
        if self.mode == "vae_down":
            x = F.pad(x, (0, 1, 0, 1))
        elif self.mode == "up":
            x = (
                F.interpolate(x, scale_factor=2.0, mode="nearest")
                if size is None
                else F.interpolate(x, size=size, mode="nearest")
            )
        return conv(self.conv, x)


# --------------------------------------------------------------------------- UNet
class CrossAttention(nn.Module):
    def __init__(self, dim, ctx, head, cross=False):
        super().__init__()
        self.h, self.cross = dim // head, cross
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(ctx, dim, bias=False)
        self.to_v = nn.Linear(ctx, dim, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])

    def forward(self, x, ctx):
        b, n, d = x.shape
        q = self.to_q(x).view(b, n, self.h, -1).transpose(1, 2)
        k = self.to_k(ctx).view(b, ctx.shape[1], self.h, -1).transpose(1, 2)
        v = self.to_v(ctx).view(b, ctx.shape[1], self.h, -1).transpose(1, 2)
        if ATTENTION_LOG is not None and self.cross:
            ATTENTION_LOG.append(
                (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).log_softmax(-1)
            )
        o = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d)
        return self.to_out[0](o)


class GEGLU(nn.Module):
    def __init__(self, dim, inner):
        super().__init__()
        self.proj = nn.Linear(dim, inner * 2)

    def forward(self, x):
        a, g = self.proj(x).chunk(2, dim=-1)
        return a * F.gelu(g)


class FeedForward(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.net = nn.ModuleList(
            [GEGLU(dim, dim * 4), nn.Identity(), nn.Linear(dim * 4, dim)]
        )

    def forward(self, x):
        return self.net[2](self.net[0](x))


class Block(nn.Module):
    def __init__(self, dim, ctx, head):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = CrossAttention(dim, dim, head)
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = CrossAttention(dim, ctx, head, cross=True)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim)

    def forward(self, x, ctx):
        h = self.norm1(x)
        x = x + self.attn1(h, h)
        x = x + self.attn2(self.norm2(x), ctx)
        return x + self.ff(self.norm3(x))


class Transformer(nn.Module):
    def __init__(self, dim, ctx, head):
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, dim, eps=1e-6)
        self.proj_in = nn.Linear(dim, dim)
        self.transformer_blocks = nn.ModuleList([Block(dim, ctx, head)])
        self.proj_out = nn.Linear(dim, dim)

    def forward(self, x, ctx):
        b, c, h, w = x.shape
        y = norm(self.norm, x, act=False).permute(0, 2, 3, 1).reshape(b, h * w, c)
        y = self.proj_out(self.transformer_blocks[0](self.proj_in(y), ctx))
        return x + y.view(b, h, w, c).permute(0, 3, 1, 2)


class TimeEmbedding(nn.Module):
    def __init__(self, cin, dim):
        super().__init__()
        self.linear_1 = nn.Linear(cin, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, x):
        return self.linear_2(F.silu(self.linear_1(x)))


class Level(nn.Module):
    pass


def unet_shape(state):
    """the `ch` and `attn` of a UNet with these weights"""
    at = "down_blocks.{}.resnets.0.conv1.weight"
    n = next(i for i in range(9) if at.format(i) not in state)
    return {
        "ch": tuple(len(state[at.format(i)]) for i in range(n)),
        "attn": tuple(
            f"down_blocks.{i}.attentions.0.norm.weight" in state for i in range(n)
        ),
    }


class UNet(nn.Module):
    def __init__(
        self, ch=UNET_CFG["ch"], attn=UNET_CFG["attn"], layers=1, ctx=128, head=32
    ):
        super().__init__()
        self.ch, self.attn = ch, attn
        td = ch[0] * 4
        self.conv_in = nn.Conv2d(4, ch[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(ch[0], td)
        self.register_buffer(
            "freqs",
            torch.exp(-math.log(10000) * torch.arange(ch[0] // 2) / (ch[0] // 2)),
            persistent=False,
        )
        n = len(ch)
        skips, cur = [ch[0]], ch[0]
        self.down_blocks = nn.ModuleList()
        for i in range(n):
            lv = Level()
            lv.resnets, att = nn.ModuleList(), nn.ModuleList()
            for _ in range(layers):
                lv.resnets.append(Resnet(cur, ch[i], td))
                cur = ch[i]
                if attn[i]:
                    att.append(Transformer(cur, ctx, head))
                skips.append(cur)
            if attn[i]:
                lv.attentions = att
            if i < n - 1:
                lv.downsamplers = nn.ModuleList([Sampler(cur, "down")])
                skips.append(cur)
            self.down_blocks.append(lv)
        mid = Level()
        mid.resnets = nn.ModuleList([Resnet(cur, cur, td), Resnet(cur, cur, td)])
        mid.attentions = nn.ModuleList([Transformer(cur, ctx, head)])
        self.mid_block = mid
        self.up_blocks = nn.ModuleList()
        for i in reversed(range(n)):
            lv = Level()
            lv.resnets, att = nn.ModuleList(), nn.ModuleList()
            for _ in range(layers + 1):
                lv.resnets.append(Resnet(cur + skips.pop(), ch[i], td))
                cur = ch[i]
                if attn[i]:
                    att.append(Transformer(cur, ctx, head))
            if attn[i]:
                lv.attentions = att
            if i > 0:
                lv.upsamplers = nn.ModuleList([Sampler(cur, "up")])
            self.up_blocks.append(lv)
        self.conv_norm_out = nn.GroupNorm(GROUPS, cur, eps=1e-5)
        self.conv_out = nn.Conv2d(cur, 4, 3, padding=1)

    def forward(self, x, t, ctx):
        a = t.to(self.freqs.dtype)[:, None] * self.freqs[None]
        emb = F.silu(self.time_embedding(torch.cat([a.cos(), a.sin()], -1)))
        h = self.conv_in(x)
        hs = [h]
        for lv in self.down_blocks:
            for j, r in enumerate(lv.resnets):
                h = r(h, emb)
                if hasattr(lv, "attentions"):
                    h = lv.attentions[j](h, ctx)
                hs.append(h)
            if hasattr(lv, "downsamplers"):
                h = lv.downsamplers[0](h)
                hs.append(h)
        h = self.mid_block.resnets[0](h, emb)
        h = self.mid_block.attentions[0](h, ctx)
        h = self.mid_block.resnets[1](h, emb)
        for lv in self.up_blocks:
            for j, r in enumerate(lv.resnets):
                h = r(torch.cat([h, hs.pop()], 1), emb)
                if hasattr(lv, "attentions"):
                    h = lv.attentions[j](h, ctx)
            if hasattr(lv, "upsamplers"):
                # the skip about to be joined gives the size, so odd sizes work too
                h = lv.upsamplers[0](h, size=hs[-1].shape[-2:])
        return self.conv_out(norm(self.conv_norm_out, h))


# --------------------------------------------------------------------------- VAE
class VaeAttention(nn.Module):
    def __init__(self, ch):
        super().__init__()
        self.group_norm = nn.GroupNorm(GROUPS, ch, eps=1e-6)
        self.to_q = nn.Linear(ch, ch)
        self.to_k = nn.Linear(ch, ch)
        self.to_v = nn.Linear(ch, ch)
        self.to_out = nn.ModuleList([nn.Linear(ch, ch)])

    def forward(self, x):
        b, c, h, w = x.shape
        y = self.group_norm(x).permute(0, 2, 3, 1).reshape(b, 1, h * w, c)
        y = F.scaled_dot_product_attention(self.to_q(y), self.to_k(y), self.to_v(y))
        return x + self.to_out[0](y).view(b, h, w, c).permute(0, 3, 1, 2)


def vae_mid(ch):
    m = Level()
    m.resnets = nn.ModuleList([Resnet(ch, ch, eps=1e-6), Resnet(ch, ch, eps=1e-6)])
    m.attentions = nn.ModuleList([VaeAttention(ch)])
    return m


def run_mid(m, h):
    return m.resnets[1](m.attentions[0](m.resnets[0](h)))


class Encoder(nn.Module):
    def __init__(self, ch, layers, z):
        super().__init__()
        self.conv_in = nn.Conv2d(3, ch[0], 3, padding=1)
        cur = ch[0]
        self.down_blocks = nn.ModuleList()
        for i, c in enumerate(ch):
            lv = Level()
            lv.resnets = nn.ModuleList()
            for _ in range(layers):
                lv.resnets.append(Resnet(cur, c, eps=1e-6))
                cur = c
            if i < len(ch) - 1:
                lv.downsamplers = nn.ModuleList([Sampler(cur, "vae_down")])
            self.down_blocks.append(lv)
        self.mid_block = vae_mid(cur)
        self.conv_norm_out = nn.GroupNorm(GROUPS, cur, eps=1e-6)
        self.conv_out = nn.Conv2d(cur, 2 * z, 3, padding=1)

    def forward(self, x):
        h = self.conv_in(x)
        for lv in self.down_blocks:
            for r in lv.resnets:
                h = r(h)
            if hasattr(lv, "downsamplers"):
                h = lv.downsamplers[0](h)
        h = run_mid(self.mid_block, h)
        return self.conv_out(F.silu(self.conv_norm_out(h)))


class Decoder(nn.Module):
    def __init__(self, ch, layers, z):
        super().__init__()
        cur = ch[-1]
        self.conv_in = nn.Conv2d(z, cur, 3, padding=1)
        self.mid_block = vae_mid(cur)
        self.up_blocks = nn.ModuleList()
        for i, c in enumerate(reversed(ch)):
            lv = Level()
            lv.resnets = nn.ModuleList()
            for _ in range(layers + 1):
                lv.resnets.append(Resnet(cur, c, eps=1e-6))
                cur = c
            if i < len(ch) - 1:
                lv.upsamplers = nn.ModuleList([Sampler(cur, "up")])
            self.up_blocks.append(lv)
        self.conv_norm_out = nn.GroupNorm(GROUPS, cur, eps=1e-6)
        self.conv_out = nn.Conv2d(cur, 3, 3, padding=1)

    def forward(self, z):
        h = run_mid(self.mid_block, self.conv_in(z))
        for lv in self.up_blocks:
            for r in lv.resnets:
                h = r(h)
            if hasattr(lv, "upsamplers"):
                h = lv.upsamplers[0](h)
        return self.conv_out(F.silu(self.conv_norm_out(h)))


class VAE(nn.Module):
    def __init__(self, ch=VAE_CFG["ch"], layers=VAE_CFG["layers"], z=4):
        super().__init__()
        self.encoder = Encoder(ch, layers, z)
        self.decoder = Decoder(ch, layers, z)
        self.quant_conv = nn.Conv2d(2 * z, 2 * z, 1)
        self.post_quant_conv = nn.Conv2d(z, z, 1)

    def moments(self, x):
        return self.quant_conv(self.encoder(x))

    def decode(self, z):
        return self.decoder(self.post_quant_conv(z))


# --------------------------------------------------------------------------- text encoder
class SelfAttn(nn.Module):
    def __init__(self, w, heads):
        super().__init__()
        self.h = heads
        self.k_proj = nn.Linear(w, w)
        self.v_proj = nn.Linear(w, w)
        self.q_proj = nn.Linear(w, w)
        self.out_proj = nn.Linear(w, w)

    def forward(self, x, mask):
        b, n, d = x.shape
        q, k, v = (
            p(x).view(b, n, self.h, -1).transpose(1, 2)
            for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        if mask is None:
            o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(o.transpose(1, 2).reshape(b, n, d))


class Mlp(nn.Module):
    def __init__(self, w, inner):
        super().__init__()
        self.fc1 = nn.Linear(w, inner)
        self.fc2 = nn.Linear(inner, w)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class TextLayer(nn.Module):
    def __init__(self, w, heads, inner):
        super().__init__()
        self.self_attn = SelfAttn(w, heads)
        self.layer_norm1 = nn.LayerNorm(w)
        self.mlp = Mlp(w, inner)
        self.layer_norm2 = nn.LayerNorm(w)

    def forward(self, x, mask=None):
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return x + self.mlp(self.layer_norm2(x))


class TextEncoder(nn.Module):
    """CLIP text transformer whose output is final_layer_norm(hidden state after `layers` layers).

    `vocab` may be the number of *used* tokens during training; export expands the table to 49408 rows.
    """

    def __init__(self, vocab=49408, length=77, width=128, heads=4, layers=4, inner=512):
        super().__init__()
        tm = Level()
        tm.embeddings = Level()
        tm.embeddings.token_embedding = nn.Embedding(vocab, width)
        tm.embeddings.position_embedding = nn.Embedding(length, width)
        nn.init.normal_(tm.embeddings.token_embedding.weight, std=0.02 * 10)
        nn.init.normal_(tm.embeddings.position_embedding.weight, std=0.01 * 10)
        tm.encoder = Level()
        tm.encoder.layers = nn.ModuleList(
            [TextLayer(width, heads, inner) for _ in range(layers)]
        )
        tm.final_layer_norm = nn.LayerNorm(width)
        self.text_model = tm

    def forward(self, ids, mask=None):
        tm = self.text_model
        x = (
            tm.embeddings.token_embedding(ids)
            + tm.embeddings.position_embedding.weight[: ids.shape[1]]
        )
        for layer in tm.encoder.layers:
            x = layer(x, mask)
        return tm.final_layer_norm(x)
