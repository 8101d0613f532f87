//! The decoder of the autoencoder in pieces that run on strips of rows, for pictures whose activations
//! do not fit into memory at once.
//!
//! What ties a decoder's rows together is the attention in its middle, which is part of the head and
//! sees the whole latent, and group normalisation, whose mean and deviation are inputs here: whoever
//! runs the strips takes them over the whole picture first. All else are convolutions, which see one
//! row on either side. They add no rows of zeros but at the picture's edge, so that a strip comes out
//! shorter than it went in by the rows that its neighbours know better.

use super::builder::{Attribute, Dim, GraphBuilder, Value};
use super::proto::data_type;
use super::vae::{blocks, decoder_beginning, decoder_levels, picture_input, picture_output};
use super::{BuildError, BuildOptions, BuiltGraph, Weights};

/// The residual blocks that run on strips, in order, with the convolution of the enlargement before
/// the block where there is one. `None`: the decoder has something (attention, a shortcut that looks at
/// neighbours) that needs the whole picture.
#[must_use]
pub fn streamed_blocks(weights: &Weights) -> Option<Vec<(Option<String>, String)>> {
    let mut found = Vec::new();
    for level in (0..decoder_levels(weights).checked_sub(1)?).rev() {
        let upsample = format!("decoder.up.{}.upsample.conv", level + 1);
        let mut before = weights
            .has(&format!("{upsample}.weight"))
            .then_some(upsample);
        let prefix = format!("decoder.up.{level}");
        if weights.has_any(&format!("{prefix}.attn.")) {
            return None;
        }
        for n in 0.. {
            let block = format!("{prefix}.block.{n}");
            if !weights.has(&format!("{block}.conv1.weight")) {
                break;
            }
            if ["conv_shortcut", "conv_out"]
                .iter()
                .any(|shortcut| weights.has(&format!("{block}.{shortcut}.weight")))
            {
                return None;
            }
            found.push((before.take(), block));
        }
        if before.is_some() {
            return None;
        }
    }
    Some(found)
}

/// The decoder from the latent up to the first streamed block, as `vae_decoder` has it. Input
/// `latent_sample`, output `hidden [b, channels, h, w]`.
///
/// # Errors
/// When the tensors do not form a decoder that the builder knows.
pub fn decoder_head(weights: &Weights, options: BuildOptions) -> Result<BuiltGraph, BuildError> {
    let mut g = GraphBuilder::new("vae_decoder_head", weights, options);
    let mut h = decoder_beginning(&mut g)?;
    let level = decoder_levels(weights).saturating_sub(1);
    h = blocks(&mut g, &h, &format!("decoder.up.{level}"))?;
    let channels = weights.dim("decoder.conv_in.weight", 0)?;
    picture_output(
        &mut g,
        &h,
        "hidden",
        channels,
        ["latent_height", "latent_width"],
    );
    Ok(g.finish())
}

/// What one strip graph computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StripPart<'n> {
    /// The enlargement's convolution alone.
    Enlarged { upsample: &'n str },
    /// A block as far as its first convolution.
    Hidden {
        upsample: Option<&'n str>,
        block: &'n str,
    },
    /// A whole block.
    Block {
        upsample: Option<&'n str>,
        block: &'n str,
    },
    /// A block from its first convolution on, which [`Self::Hidden`] gave.
    Rest { block: &'n str },
    /// From the last block to the picture.
    Picture,
}

/// The names of the inputs beside `x`, the strip.
pub struct StripInputs;

impl StripInputs {
    /// Rows of zeros at the picture's edges, as the pads of ONNX's `Pad`.
    pub const PADS: &'static str = "edge_pads";
    /// The first row of `x` (enlarged) that a whole block's shortcut adds.
    pub const FROM: &'static str = "shortcut_from";
    /// The row behind the last.
    pub const TO: &'static str = "shortcut_to";
    /// Rows of the block's input for the shortcut, where `x` is what its first convolution gave.
    pub const SHORTCUT: &'static str = "shortcut";
}

impl StripPart<'_> {
    /// Convolutions that see neighbouring rows: so many rows are lost where the picture goes on.
    #[must_use]
    pub fn reach(self) -> usize {
        match self {
            Self::Enlarged { .. } | Self::Rest { .. } | Self::Picture => 1,
            Self::Hidden { upsample, .. } => 1 + usize::from(upsample.is_some()),
            Self::Block { upsample, .. } => 2 + usize::from(upsample.is_some()),
        }
    }

    /// Rows of output a row of input.
    #[must_use]
    pub fn scale(self) -> usize {
        match self {
            Self::Enlarged { .. }
            | Self::Hidden {
                upsample: Some(_), ..
            }
            | Self::Block {
                upsample: Some(_), ..
            } => 2,
            Self::Hidden { .. } | Self::Block { .. } | Self::Rest { .. } | Self::Picture => 1,
        }
    }
}

/// The graph of one part. Inputs: `x [1, channels, rows, width]`, those of [`StripInputs`] that it needs, and
/// for each norm `n` (from 0) `mean.n` and `reciprocal.n`, `[channels, 1, 1]`; output `out`.
///
/// # Errors
/// When tensors are missing.
pub fn strip_graph(
    weights: &Weights,
    part: StripPart<'_>,
    options: BuildOptions,
) -> Result<BuiltGraph, BuildError> {
    let mut g = GraphBuilder::new("vae_strip", weights, options);
    let (upsample, first_layer) = match part {
        StripPart::Enlarged { upsample } => (Some(upsample), format!("{upsample}.weight")),
        StripPart::Hidden { upsample, block } | StripPart::Block { upsample, block } => (
            upsample,
            upsample.map_or_else(
                || format!("{block}.conv1.weight"),
                |upsample| format!("{upsample}.weight"),
            ),
        ),
        StripPart::Rest { block } => (None, format!("{block}.conv2.weight")),
        StripPart::Picture => (None, "decoder.conv_out.weight".to_owned()),
    };
    let channels = weights.dim(&first_layer, 1)?;
    let mut x = picture_input(&mut g, "x", channels, ["rows", "width"]);
    let pads = g.input(StripInputs::PADS, data_type::INT64, &[Dim::Fixed(8)]);
    if let Some(upsample) = upsample {
        let enlarged = g.upsample(&x);
        x = edge_conv(&mut g, &enlarged, &pads, upsample)?;
    }
    let (out, last_layer) = match part {
        StripPart::Enlarged { upsample } => (x, upsample.to_owned()),
        StripPart::Picture => {
            let h = normal(&mut g, &x, "decoder.norm_out", 0)?;
            let out = edge_conv(&mut g, &h, &pads, "decoder.conv_out")?;
            (out, "decoder.conv_out".to_owned())
        }
        StripPart::Hidden { block, .. } => {
            let h = normal(&mut g, &x, &format!("{block}.norm1"), 0)?;
            let layer = format!("{block}.conv1");
            (edge_conv(&mut g, &h, &pads, &layer)?, layer)
        }
        StripPart::Block { block, .. } => {
            let h = normal(&mut g, &x, &format!("{block}.norm1"), 0)?;
            let h = edge_conv(&mut g, &h, &pads, &format!("{block}.conv1"))?;
            let h = normal(&mut g, &h, &format!("{block}.norm2"), 1)?;
            let layer = format!("{block}.conv2");
            let h = edge_conv(&mut g, &h, &pads, &layer)?;
            let one = [Dim::Fixed(1)];
            let from = g.input(StripInputs::FROM, data_type::INT64, &one);
            let to = g.input(StripInputs::TO, data_type::INT64, &one);
            let axis = g.ints(&[2]);
            let same = g.node("Slice", &[&x, &from, &to, &axis], &[]);
            (with_shortcut(&mut g, &h, &same, block)?, layer)
        }
        StripPart::Rest { block } => {
            let h = normal(&mut g, &x, &format!("{block}.norm2"), 0)?;
            let layer = format!("{block}.conv2");
            let h = edge_conv(&mut g, &h, &pads, &layer)?;
            let channels = weights.dim(&format!("{block}.conv1.weight"), 1)?;
            let rows = ["out_rows", "width"];
            let same = picture_input(&mut g, StripInputs::SHORTCUT, channels, rows);
            (with_shortcut(&mut g, &h, &same, block)?, layer)
        }
    };
    let channels = weights.dim(&format!("{last_layer}.weight"), 0)?;
    picture_output(&mut g, &out, "out", channels, ["out_rows", "out_width"]);
    Ok(g.finish())
}

/// What a block's convolutions gave and the block's own input, of other channels where it has a convolution for that.
fn with_shortcut(
    g: &mut GraphBuilder<'_>,
    h: &Value,
    x: &Value,
    block: &str,
) -> Result<Value, BuildError> {
    let layer = format!("{block}.nin_shortcut");
    if !g.weights().has(&format!("{layer}.weight")) {
        return Ok(g.add(x, h));
    }
    let same = g.conv(x, &layer, 1, 0)?;
    Ok(g.add(&same, h))
}

/// Group normalisation with the group's mean and the reciprocal of its deviation given, then SiLU.
fn normal(
    g: &mut GraphBuilder<'_>,
    x: &Value,
    layer: &str,
    index: usize,
) -> Result<Value, BuildError> {
    let name = format!("{layer}.weight");
    let channels = g.weights().dim(&name, 0)?;
    let dims = [Dim::Fixed(channels), Dim::Fixed(1), Dim::Fixed(1)];
    let mean = g.input(&format!("mean.{index}"), data_type::FLOAT, &dims);
    let reciprocal = g.input(&format!("reciprocal.{index}"), data_type::FLOAT, &dims);
    let scale = g.weight(&name, &[channels, 1, 1])?;
    let shift = g.weight(&format!("{layer}.bias"), &[channels, 1, 1])?;
    let factor = g.mul(&reciprocal, &scale);
    let centred = g.node("Sub", &[x, &mean], &[]);
    let scaled = g.mul(&centred, &factor);
    let normal = g.add(&scaled, &shift);
    Ok(g.silu(&normal))
}

/// A 3x3 convolution with zeros beside the picture, and above and below it where its edge is.
fn edge_conv(
    g: &mut GraphBuilder<'_>,
    x: &Value,
    pads: &Value,
    layer: &str,
) -> Result<Value, BuildError> {
    let padded = g.node("Pad", &[x, pads], &[("mode", Attribute::Text("constant"))]);
    g.conv_with_pads(&padded, layer, 1, [0, 1, 0, 1])
}
