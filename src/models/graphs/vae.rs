//! The autoencoder of ldm (`model.py`, `AutoencoderKL`): encoder to mean and log variance, decoder
//! to pixels. Levels and blocks are read off the tensor names. GroupNorm eps is 1e-6 throughout;
//! attention has one head as wide as its channels.

use super::builder::{Attribute, Dim, GraphBuilder, Value};
use super::proto::data_type;
use super::{BuildError, BuildOptions, BuiltGraph, Weights};

pub(super) const EPS: f32 = 1e-6;

/// The block that a picture of one grey (what inpainting checkpoints are conditioned on when all is
/// masked) leaves almost flat: only its rim, where the padding reaches, differs from the rest, so
/// that a group's deviation can be a thousandth of its mean.
const FIRST_BLOCK: &str = "encoder.down.0.block.0";

/// Input `sample [b, 3, h, w]` in -1..1; output `latent_parameters [b, 2 * channels, h / 8, w / 8]`:
/// the mean and then the log variance, unscaled and not clamped.
///
/// # Errors
/// When the tensors do not form an encoder that the builder knows.
pub fn vae_encoder(weights: &Weights, options: BuildOptions) -> Result<BuiltGraph, BuildError> {
    let mut g = GraphBuilder::new("vae_encoder", weights, options);
    let channels = weights.dim("encoder.conv_in.weight", 1)?;
    let moments = weights.dim("encoder.conv_out.weight", 0)?;
    let sample = picture_input(&mut g, "sample", channels, ["height", "width"]);
    let mut h = g.conv(&sample, "encoder.conv_in", 1, 1)?;
    for level in 0.. {
        let prefix = format!("encoder.down.{level}");
        if !weights.has_any(&format!("{prefix}.")) {
            break;
        }
        h = blocks(&mut g, &h, &prefix)?;
        let downsample = format!("{prefix}.downsample.conv");
        if weights.has(&format!("{downsample}.weight")) {
            h = downsampled(&mut g, &h, &downsample)?;
        }
    }
    h = middle(&mut g, &h, "encoder.mid")?;
    h = g.group_norm(&h, "encoder.norm_out", EPS)?;
    h = g.silu(&h);
    h = g.conv(&h, "encoder.conv_out", 1, 1)?;
    if weights.has("quant_conv.weight") {
        h = g.conv(&h, "quant_conv", 1, 0)?;
    }
    picture_output(
        &mut g,
        &h,
        "latent_parameters",
        moments,
        ["latent_height", "latent_width"],
    );
    Ok(g.finish())
}

/// Input `latent_sample [b, channels, h, w]`, already divided by the scale factor; output
/// `sample [b, 3, 8h, 8w]` around -1..1.
///
/// # Errors
/// When the tensors do not form a decoder that the builder knows.
pub fn vae_decoder(weights: &Weights, options: BuildOptions) -> Result<BuiltGraph, BuildError> {
    let mut g = GraphBuilder::new("vae_decoder", weights, options);
    let mut h = decoder_beginning(&mut g)?;
    for level in (0..decoder_levels(weights)).rev() {
        let prefix = format!("decoder.up.{level}");
        h = blocks(&mut g, &h, &prefix)?;
        let upsample = format!("{prefix}.upsample.conv");
        if weights.has(&format!("{upsample}.weight")) {
            h = g.upsample(&h);
            h = g.conv(&h, &upsample, 1, 1)?;
        }
    }
    h = g.group_norm(&h, "decoder.norm_out", EPS)?;
    h = g.silu(&h);
    h = g.conv(&h, "decoder.conv_out", 1, 1)?;
    let channels = weights.dim("decoder.conv_out.weight", 0)?;
    picture_output(&mut g, &h, "sample", channels, ["height", "width"]);
    Ok(g.finish())
}

/// Levels of the decoder; the last one has the latent's size.
pub(super) fn decoder_levels(weights: &Weights) -> usize {
    (0..16)
        .take_while(|level| weights.has_any(&format!("decoder.up.{level}.")))
        .count()
}

/// The decoder's input and what comes before its levels.
pub(super) fn decoder_beginning(g: &mut GraphBuilder<'_>) -> Result<Value, BuildError> {
    let weights = g.weights();
    let quantised = weights.has("post_quant_conv.weight");
    let first = if quantised {
        "post_quant_conv"
    } else {
        "decoder.conv_in"
    };
    let channels = weights.dim(&format!("{first}.weight"), 1)?;
    let mut h = picture_input(
        g,
        "latent_sample",
        channels,
        ["latent_height", "latent_width"],
    );
    if quantised {
        h = g.conv(&h, "post_quant_conv", 1, 0)?;
    }
    h = g.conv(&h, "decoder.conv_in", 1, 1)?;
    middle(g, &h, "decoder.mid")
}

pub(super) fn picture_input(
    g: &mut GraphBuilder<'_>,
    name: &str,
    channels: usize,
    [height, width]: [&'static str; 2],
) -> Value {
    let dims = [
        Dim::Free("batch_size"),
        Dim::Fixed(channels),
        Dim::Free(height),
        Dim::Free(width),
    ];
    g.input(name, data_type::FLOAT, &dims)
}

pub(super) fn picture_output(
    g: &mut GraphBuilder<'_>,
    value: &Value,
    name: &str,
    channels: usize,
    [height, width]: [&'static str; 2],
) {
    let dims = [
        Dim::Free("batch_size"),
        Dim::Fixed(channels),
        Dim::Free(height),
        Dim::Free(width),
    ];
    g.output(value, name, &dims);
}

/// The resnets of one level, each followed by its attention where there is one.
pub(super) fn blocks(
    g: &mut GraphBuilder<'_>,
    x: &Value,
    prefix: &str,
) -> Result<Value, BuildError> {
    let mut h = x.clone();
    for n in 0.. {
        let block = format!("{prefix}.block.{n}");
        if !g.weights().has(&format!("{block}.conv1.weight")) {
            return Ok(h);
        }
        h = resnet(g, &h, &block)?;
        let attention = format!("{prefix}.attn.{n}");
        if g.weights().has(&format!("{attention}.norm.weight")) {
            h = attend(g, &h, &attention)?;
        }
    }
    Ok(h)
}

fn middle(g: &mut GraphBuilder<'_>, x: &Value, prefix: &str) -> Result<Value, BuildError> {
    let h = resnet(g, x, &format!("{prefix}.block_1"))?;
    let h = attend(g, &h, &format!("{prefix}.attn_1"))?;
    resnet(g, &h, &format!("{prefix}.block_2"))
}

/// A residual block; `conv_out` is what CodeFormer's files call the shortcut.
pub(super) fn resnet(
    g: &mut GraphBuilder<'_>,
    x: &Value,
    block: &str,
) -> Result<Value, BuildError> {
    let h = g.group_norm(x, &format!("{block}.norm1"), EPS)?;
    let h = g.silu(&h);
    let mut h = g.conv(&h, &format!("{block}.conv1"), 1, 1)?;
    if block == FIRST_BLOCK {
        h = g.centred_groups(&h);
    }
    let h = g.group_norm(&h, &format!("{block}.norm2"), EPS)?;
    let h = g.silu(&h);
    let h = g.conv(&h, &format!("{block}.conv2"), 1, 1)?;
    let x = if g.weights().has(&format!("{block}.nin_shortcut.weight")) {
        g.conv(x, &format!("{block}.nin_shortcut"), 1, 0)?
    } else if g.weights().has(&format!("{block}.conv_shortcut.weight")) {
        g.conv(x, &format!("{block}.conv_shortcut"), 1, 1)?
    } else if g.weights().has(&format!("{block}.conv_out.weight")) {
        g.conv(x, &format!("{block}.conv_out"), 1, 0)?
    } else {
        x.clone()
    };
    Ok(g.add(&x, &h))
}

/// Self-attention over all places, with one head.
pub(super) fn attend(
    g: &mut GraphBuilder<'_>,
    x: &Value,
    layer: &str,
) -> Result<Value, BuildError> {
    let channels = g.weights().dim(&format!("{layer}.norm.weight"), 0)?;
    let batch = g.dims_of(x, 0, 1);
    let h = g.group_norm(x, &format!("{layer}.norm"), EPS)?;
    let rows = g.rows_of(&h, channels);
    let mut projected = Vec::with_capacity(3);
    for part in ["q", "k", "v"] {
        let part = g.linear(&rows, &format!("{layer}.{part}"))?;
        projected.push(g.tokens_of(&part, &batch, channels));
    }
    let h = g.float_attention(&projected[0], &projected[1], &projected[2], 1, None);
    let rows = g.reshape_to(&h, &[-1, channels as i64]);
    let rows = g.linear(&rows, &format!("{layer}.proj_out"))?;
    let h = g.picture_of(&rows, &batch, channels, x);
    Ok(g.add(x, &h))
}

/// Zeros on the right and the bottom, then a convolution with stride 2; not circular even when the
/// other convolutions are.
pub(super) fn downsampled(
    g: &mut GraphBuilder<'_>,
    x: &Value,
    layer: &str,
) -> Result<Value, BuildError> {
    let pads = g.ints(&[0, 0, 0, 0, 0, 0, 1, 1]);
    let padded = g.node("Pad", &[x, &pads], &[("mode", Attribute::Text("constant"))]);
    g.conv(&padded, layer, 2, 0)
}
