//! ParseNet (PSFRGAN, arXiv 2009.08709) as facexlib 0.3.0 has it: which part of a face every pixel shows.
//!
//! Left out: the second answer of the network, a picture that nobody looks at.

use super::{COLOURS, batch_norm, count, leaky, unsupported};
use crate::models::graphs::builder::{Attribute, Dim, GraphBuilder, Value};
use crate::models::graphs::proto::data_type;
use crate::models::graphs::{BuildError, BuildOptions, BuiltGraph, Weights};

const SLOPE: f32 = 0.2;

/// Which convolution of a residual block changes the size.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    None,
    Half,
    Double,
}

/// Builds the parser: input `face [1, 3, s, s]`, red, green, blue in -1..1; output `classes [1, s, s]`, whole
/// numbers as floats. The side must be a multiple of two for every halving (8 in the published network).
///
/// # Errors
/// When the tensors form no ParseNet.
pub fn parsenet(weights: &Weights) -> Result<BuiltGraph, BuildError> {
    if !weights.has("encoder.0.conv2d.weight") || !weights.has("out_mask_conv.conv2d.weight") {
        return Err(unsupported("it is no ParseNet"));
    }
    if weights.dim("encoder.0.conv2d.weight", 1)? != COLOURS {
        return Err(unsupported("it takes faces of other than three channels"));
    }
    let mut g = GraphBuilder::new("face parser", weights, BuildOptions::default());
    let dims = super::picture_dims(Dim::Free("side"), Dim::Free("side"));
    let face = g.input("face", data_type::FLOAT, &dims);
    let mut h = reflected_conv(&mut g, &face, "encoder.0", 1)?;
    for n in 1..count(weights, "encoder") {
        h = block(&mut g, &h, &format!("encoder.{n}"), Change::Half)?;
    }
    let encoded = h.clone();
    for n in 0..count(weights, "body") {
        h = block(&mut g, &h, &format!("body.{n}"), Change::None)?;
    }
    h = g.add(&encoded, &h);
    for n in 0..count(weights, "decoder") {
        h = block(&mut g, &h, &format!("decoder.{n}"), Change::Double)?;
    }
    let logits = reflected_conv(&mut g, &h, "out_mask_conv", 1)?;
    let options = [("axis", Attribute::Int(1)), ("keepdims", Attribute::Int(0))];
    let classes = g.node("ArgMax", &[&logits], &options);
    let classes = g.cast_float(&classes);
    let dims = [Dim::Fixed(1), Dim::Free("side"), Dim::Free("side")];
    g.output(&classes, "classes", &dims);
    Ok(g.finish())
}

fn block(
    g: &mut GraphBuilder<'_>,
    x: &Value,
    name: &str,
    change: Change,
) -> Result<Value, BuildError> {
    let stride = if change == Change::Half { 2 } else { 1 };
    let source = if change == Change::Double {
        g.upsample(x)
    } else {
        x.clone()
    };
    let short = format!("{name}.shortcut_func");
    let shortcut = if g.weights().has(&format!("{short}.conv2d.weight")) {
        reflected_conv(g, &source, &short, stride)?
    } else {
        x.clone()
    };
    let h = reflected_conv(g, &source, &format!("{name}.conv1"), 1)?;
    let h = batch_norm(g, &h, &format!("{name}.conv1.norm.norm"))?;
    let h = leaky(g, &h, SLOPE);
    let h = reflected_conv(g, &h, &format!("{name}.conv2"), stride)?;
    let h = batch_norm(g, &h, &format!("{name}.conv2.norm.norm"))?;
    Ok(g.add(&shortcut, &h))
}

/// A 3x3 convolution of a picture whose border is mirrored by one pixel.
fn reflected_conv(
    g: &mut GraphBuilder<'_>,
    x: &Value,
    name: &str,
    stride: i64,
) -> Result<Value, BuildError> {
    let pads = g.ints(&[0, 0, 1, 1, 0, 0, 1, 1]);
    let mode = [("mode", Attribute::Text("reflect"))];
    let padded = g.node("Pad", &[x, &pads], &mode);
    g.conv(&padded, &format!("{name}.conv2d"), stride, 0)
}
