//! GFPGAN (arXiv 2101.04061), the "clean" architecture of its versions 1.2 to 1.4: a U-shaped network whose
//! features scale and shift those of a StyleGAN2 decoder (arXiv 1912.04958).
//!
//! The style code comes from the U-shaped network for every layer on its own, so the decoder's mapping network
//! is not used. A1111 draws new noise for every face, so that no two answers are alike; here it is the noise
//! that the file itself holds. Left out: the first version with its own CUDA operators, and the bilinear one.

use super::{COLOURS, FaceShape, bilinear, count, leaky, picture_dims, unsupported};
use crate::models::graphs::builder::{Attribute, Dim, GraphBuilder, Value};
use crate::models::graphs::proto::data_type;
use crate::models::graphs::{BuildError, BuildOptions, BuiltGraph, Weights};

const SLOPE: f32 = 0.2;
/// The side at which the decoder begins.
const FIRST_SIDE: usize = 4;
/// Added to a kernel's squared length.
const EPS: f32 = 1e-8;

const DECODER: &str = "stylegan_decoder";

/// Builds the network: input `face [1, 3, s, s]`, red, green, blue in -1..1; output `restored`, the same, not
/// clamped.
///
/// # Errors
/// When the tensors form no GFPGAN of the clean architecture.
pub fn gfpgan(weights: &Weights) -> Result<(BuiltGraph, FaceShape), BuildError> {
    let doublings = count(weights, "conv_body_down");
    if doublings == 0
        || doublings > 12
        || !weights.has("stylegan_decoder.style_conv1.modulated_conv.weight")
    {
        return Err(unsupported("it is no GFPGAN of the versions 1.2 to 1.4"));
    }
    if count(weights, "stylegan_decoder.style_convs") != 2 * doublings {
        return Err(unsupported("its encoder and decoder differ in depth"));
    }
    let side_px = FIRST_SIDE << doublings;
    let mut g = GraphBuilder::new("GFPGAN", weights, BuildOptions::default());
    let side = Dim::Fixed(side_px);
    let dims = picture_dims(side, side);
    let face = g.input("face", data_type::FLOAT, &dims);
    let (styles, conditions) = encoder(&mut g, &face, doublings)?;
    let restored = decoder(&mut g, &styles, &conditions)?;
    g.output(&restored, "restored", &dims);
    Ok((g.finish(), FaceShape { side_px }))
}

/// A level's factor and summand for the decoder's features.
struct Condition {
    scale: Value,
    shift: Value,
}

/// The style codes, `[1, width]` each, and the conditions from coarse to fine.
fn encoder(
    g: &mut GraphBuilder<'_>,
    face: &Value,
    doublings: usize,
) -> Result<(Vec<Value>, Vec<Condition>), BuildError> {
    let h = g.conv(face, "conv_body_first", 1, 0)?;
    let mut h = leaky(g, &h, SLOPE);
    let mut skips = Vec::with_capacity(doublings);
    for n in 0..doublings {
        h = block(g, &h, &format!("conv_body_down.{n}"), 0.5)?;
        skips.push(h.clone());
    }
    h = g.conv(&h, "final_conv", 1, 1)?;
    h = leaky(g, &h, SLOPE);
    let flat = g.reshape_to(&h, &[1, -1]);
    let codes = g.linear(&flat, "final_linear")?;
    let styles = style_codes(g, &codes, doublings)?;
    let mut conditions = Vec::with_capacity(doublings);
    for (n, skip) in skips.iter().rev().enumerate() {
        h = g.add(&h, skip);
        h = block(g, &h, &format!("conv_body_up.{n}"), 2.0)?;
        let scale = condition(g, &h, &format!("condition_scale.{n}"))?;
        let shift = condition(g, &h, &format!("condition_shift.{n}"))?;
        conditions.push(Condition { scale, shift });
    }
    Ok((styles, conditions))
}

/// One code for every modulated convolution: `2 * doublings + 2` of them, or one for all.
fn style_codes(
    g: &mut GraphBuilder<'_>,
    codes: &Value,
    doublings: usize,
) -> Result<Vec<Value>, BuildError> {
    let weights = g.weights();
    let width = weights.dim(
        "stylegan_decoder.style_conv1.modulated_conv.modulation.weight",
        1,
    )?;
    let all = weights.dim("final_linear.weight", 0)?;
    let layers = 2 * doublings + 2;
    if all == width {
        return Ok(vec![codes.clone(); layers]);
    }
    if all != width * layers {
        return Err(unsupported("its style codes have another size"));
    }
    let codes = g.reshape_to(codes, &[layers as i64, width as i64]);
    let one = |n: usize| {
        let place = g.ints(&[n as i64]);
        g.node("Gather", &[&codes, &place], &[("axis", Attribute::Int(0))])
    };
    Ok((0..layers).map(one).collect())
}

/// A residual block that scales between its convolutions.
fn block(
    g: &mut GraphBuilder<'_>,
    x: &Value,
    name: &str,
    factor: f32,
) -> Result<Value, BuildError> {
    let h = g.conv(x, &format!("{name}.conv1"), 1, 1)?;
    let h = leaky(g, &h, SLOPE);
    let h = bilinear(g, &h, factor);
    let h = g.conv(&h, &format!("{name}.conv2"), 1, 1)?;
    let h = leaky(g, &h, SLOPE);
    let short = bilinear(g, x, factor);
    let short = g.conv(&short, &format!("{name}.skip"), 1, 0)?;
    Ok(g.add(&h, &short))
}

fn condition(g: &mut GraphBuilder<'_>, x: &Value, name: &str) -> Result<Value, BuildError> {
    let h = g.conv(x, &format!("{name}.0"), 1, 1)?;
    let h = leaky(g, &h, SLOPE);
    g.conv(&h, &format!("{name}.2"), 1, 1)
}

fn decoder(
    g: &mut GraphBuilder<'_>,
    styles: &[Value],
    conditions: &[Condition],
) -> Result<Value, BuildError> {
    let constant = format!("{DECODER}.constant_input.weight");
    let shape = g.weights().shape(&constant)?.to_vec();
    let constant = g.weight(&constant, &shape)?;
    let mut h = style_conv(g, &constant, "style_conv1", &styles[0], 0)?;
    let mut picture = to_rgb(g, &h, "to_rgb1", &styles[1])?;
    for (n, condition) in conditions.iter().enumerate() {
        let (up, same) = (2 * n, 2 * n + 1);
        let enlarged = bilinear(g, &h, 2.0);
        let code = &styles[up + 1];
        h = style_conv(g, &enlarged, &format!("style_convs.{up}"), code, up + 1)?;
        h = conditioned(g, &h, condition, n)?;
        let code = &styles[same + 1];
        h = style_conv(g, &h, &format!("style_convs.{same}"), code, same + 1)?;
        let colours = to_rgb(g, &h, &format!("to_rgbs.{n}"), &styles[same + 2])?;
        let enlarged = bilinear(g, &picture, 2.0);
        picture = g.add(&colours, &enlarged);
    }
    Ok(picture)
}

/// Scale and shift of all channels, or of the second half.
fn conditioned(
    g: &mut GraphBuilder<'_>,
    x: &Value,
    condition: &Condition,
    level: usize,
) -> Result<Value, BuildError> {
    let conv = format!("{DECODER}.style_convs.{}.modulated_conv.weight", 2 * level);
    let width = g.weights().dim(&conv, 1)?;
    let changed = g
        .weights()
        .dim(&format!("condition_scale.{level}.2.weight"), 0)?;
    if changed == width {
        let scaled = g.mul(x, &condition.scale);
        return Ok(g.add(&scaled, &condition.shift));
    }
    let kept = width - changed.min(width);
    let (start, middle, end) = (
        g.ints(&[0]),
        g.ints(&[kept as i64]),
        g.ints(&[width as i64]),
    );
    let axis = g.ints(&[1]);
    let same = g.node("Slice", &[x, &start, &middle, &axis], &[]);
    let other = g.node("Slice", &[x, &middle, &end, &axis], &[]);
    let other = g.mul(&other, &condition.scale);
    let other = g.add(&other, &condition.shift);
    Ok(g.concat(&[&same, &other], 1))
}

/// A modulated convolution with its noise, bias and unit; `layer` counts them for the noise.
fn style_conv(
    g: &mut GraphBuilder<'_>,
    x: &Value,
    name: &str,
    style: &Value,
    layer: usize,
) -> Result<Value, BuildError> {
    let name = format!("{DECODER}.{name}");
    let h = modulated(g, x, &name, style, true)?;
    let gain = g.floats("root_two", &[std::f32::consts::SQRT_2], &[]);
    let h = g.mul(&h, &gain);
    let noise = format!("{DECODER}.noises.noise{layer}");
    let shape = g.weights().shape(&noise)?.to_vec();
    let noise = g.weight(&noise, &shape)?;
    let strength = g.weight(&format!("{name}.weight"), &[1])?;
    let noise = g.mul(&noise, &strength);
    let h = g.add(&h, &noise);
    let h = with_bias(g, &h, &name)?;
    Ok(leaky(g, &h, SLOPE))
}

fn to_rgb(
    g: &mut GraphBuilder<'_>,
    x: &Value,
    name: &str,
    style: &Value,
) -> Result<Value, BuildError> {
    let name = format!("{DECODER}.{name}");
    if g.weights()
        .dim(&format!("{name}.modulated_conv.weight"), 1)?
        != COLOURS
    {
        return Err(unsupported("it gives faces of other than three channels"));
    }
    let h = modulated(g, x, &name, style, false)?;
    with_bias(g, &h, &name)
}

fn with_bias(g: &mut GraphBuilder<'_>, x: &Value, name: &str) -> Result<Value, BuildError> {
    let bias = format!("{name}.bias");
    let shape = g.weights().shape(&bias)?.to_vec();
    let bias = g.weight(&bias, &shape)?;
    Ok(g.add(x, &bias))
}

/// A convolution whose kernel is multiplied by the style, an input channel a number, and then, if
/// `demodulated`, brought to length 1 for every output channel.
fn modulated(
    g: &mut GraphBuilder<'_>,
    x: &Value,
    name: &str,
    style: &Value,
    demodulated: bool,
) -> Result<Value, BuildError> {
    let conv = format!("{name}.modulated_conv");
    let kernel = format!("{conv}.weight");
    let &[1, out, width, side, _] = g.weights().shape(&kernel)? else {
        return Err(unsupported("a kernel of its decoder has other axes"));
    };
    let style = g.linear(style, &format!("{conv}.modulation"))?;
    let style = g.reshape_to(&style, &[1, width as i64, 1, 1]);
    let kernel = g.weight(&kernel, &[out, width, side, side])?;
    let mut kernel = g.mul(&kernel, &style);
    if demodulated {
        let axes = g.ints(&[1, 2, 3]);
        let squares = g.mul(&kernel, &kernel);
        let sum = g.node("ReduceSum", &[&squares, &axes], &[]);
        let eps = g.floats("demodulation_eps", &[EPS], &[]);
        let sum = g.add(&sum, &eps);
        let length = g.node("Sqrt", &[&sum], &[]);
        kernel = g.node("Div", &[&kernel, &length], &[]);
    }
    let sizes = [
        ("kernel_shape", Attribute::Ints(vec![side as i64; 2])),
        ("pads", Attribute::Ints(vec![side as i64 / 2; 4])),
    ];
    Ok(g.node("Conv", &[x, &kernel], &sizes))
}
