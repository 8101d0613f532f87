//! CodeFormer (arXiv 2206.11253): an encoder, a transformer that names a codebook entry for every place, and a
//! decoder of those entries into which features of the encoder are mixed.
//!
//! Written from the paper and from the names and shapes of its file; encoder and decoder are those of VQGAN
//! (arXiv 2012.09841), with blocks in one numbered list. The features of the codebook take mean and deviation
//! of the encoder's (`adain`), as A1111 asks for.

use super::{COLOURS, FaceShape, count, leaky, picture_dims, unsupported};
use crate::models::graphs::builder::{Attribute, Dim, GraphBuilder, JoinedLinear, Value};
use crate::models::graphs::proto::data_type;
use crate::models::graphs::vae::{EPS, attend, downsampled, resnet};
use crate::models::graphs::{BuildError, BuildOptions, BuiltGraph, Weights};

/// Attention heads of the transformer, which no shape tells.
const HEADS: usize = 8;
/// Slope of the units that make scale and shift of a mixed feature.
const SLOPE: f32 = 0.2;
/// Added to a variance when features take each other's.
const VARIANCE_EPS: f32 = 1e-5;

/// Builds the network: inputs `face [1, 3, s, s]`, red, green, blue in -1..1, and `fidelity [1]`, 0 to 1, how
/// much of the encoder's features is mixed in; output `restored`, as `face`, not clamped.
///
/// # Errors
/// When the tensors form no CodeFormer.
pub fn codeformer(weights: &Weights) -> Result<(BuiltGraph, FaceShape), BuildError> {
    if !weights.has("position_emb") || !weights.has("quantize.embedding.weight") {
        return Err(unsupported("it is no CodeFormer"));
    }
    let places = weights.dim("position_emb", 0)?;
    let coarse = places.isqrt();
    let halvings = (0..count(weights, "encoder.blocks"))
        .filter(|n| weights.has(&format!("encoder.blocks.{n}.conv.weight")))
        .count();
    if coarse == 0 || coarse * coarse != places || halvings > 12 {
        return Err(unsupported("its places form no square"));
    }
    let side_px = coarse << halvings;
    let mut g = GraphBuilder::new("CodeFormer", weights, BuildOptions::default());
    let side = Dim::Fixed(side_px);
    let dims = picture_dims(side, side);
    let face = g.input("face", data_type::FLOAT, &dims);
    let fidelity = g.input("fidelity", data_type::FLOAT, &[Dim::Fixed(1)]);
    let (latent, kept) = encoder(&mut g, &face, side_px)?;
    let entries = transformer(&mut g, &latent, coarse)?;
    let entries = adopted(&mut g, &entries, &latent);
    let restored = generator(&mut g, &entries, coarse, &kept, &fidelity)?;
    g.output(&restored, "restored", &dims);
    Ok((g.finish(), FaceShape { side_px }))
}

/// What a numbered block is, told by its tensors.
enum Block {
    Residual,
    Attention,
    /// A convolution before or after which the side is halved or doubled.
    Resize,
    Convolution,
    Normalisation,
}

impl Block {
    fn of(weights: &Weights, name: &str) -> Result<Self, BuildError> {
        let has = |tensor: &str| weights.has(&format!("{name}.{tensor}"));
        if has("conv1.weight") {
            return Ok(Self::Residual);
        }
        if has("q.weight") {
            return Ok(Self::Attention);
        }
        if has("conv.weight") {
            return Ok(Self::Resize);
        }
        Ok(match weights.shape(&format!("{name}.weight"))?.len() {
            1 => Self::Normalisation,
            _ => Self::Convolution,
        })
    }
}

/// A feature of the encoder and the side at which it was taken.
struct Kept {
    side_px: usize,
    feature: Value,
}

/// The encoder's answer, and its last features before each halving.
fn encoder(
    g: &mut GraphBuilder<'_>,
    face: &Value,
    side_px: usize,
) -> Result<(Value, Vec<Kept>), BuildError> {
    if g.weights().dim("encoder.blocks.0.weight", 1)? != COLOURS {
        return Err(unsupported("it takes faces of other than three channels"));
    }
    let mut h = face.clone();
    let mut side_px = side_px;
    let mut kept = Vec::new();
    for n in 0..count(g.weights(), "encoder.blocks") {
        let name = format!("encoder.blocks.{n}");
        h = match Block::of(g.weights(), &name)? {
            Block::Residual => resnet(g, &h, &name)?,
            Block::Attention => attend(g, &h, &name)?,
            Block::Resize => {
                kept.push(Kept {
                    side_px,
                    feature: h.clone(),
                });
                side_px /= 2;
                downsampled(g, &h, &format!("{name}.conv"))?
            }
            Block::Convolution => g.conv(&h, &name, 1, 1)?,
            Block::Normalisation => g.group_norm(&h, &name, EPS)?,
        };
    }
    Ok((h, kept))
}

/// The codebook entries `[1, width, coarse, coarse]` that the transformer names.
fn transformer(
    g: &mut GraphBuilder<'_>,
    latent: &Value,
    coarse: usize,
) -> Result<Value, BuildError> {
    let weights = g.weights();
    let latent_width = weights.dim("feat_emb.weight", 1)?;
    let width = weights.dim("feat_emb.weight", 0)?;
    let layers = count(weights, "ft_layers");
    let (codes, code_width) = (
        weights.dim("quantize.embedding.weight", 0)?,
        weights.dim("quantize.embedding.weight", 1)?,
    );
    if width % HEADS != 0 {
        return Err(unsupported("its transformer has no eight heads"));
    }
    let rows = g.rows_of(latent, latent_width);
    let mut h = g.linear(&rows, "feat_emb")?;
    let positions = g.weight("position_emb", &[coarse * coarse, width])?;
    for n in 0..layers {
        h = layer(g, &h, &positions, &format!("ft_layers.{n}"), width)?;
    }
    h = g.layer_norm(&h, "idx_pred_layer.0")?;
    let logits = g.linear(&h, "idx_pred_layer.1")?;
    let options = [
        ("axis", Attribute::Int(-1)),
        ("keepdims", Attribute::Int(0)),
    ];
    let chosen = g.node("ArgMax", &[&logits], &options);
    let book = g.weight("quantize.embedding.weight", &[codes, code_width])?;
    let rows = g.node("Gather", &[&book, &chosen], &[("axis", Attribute::Int(0))]);
    let columns = g.transpose(&rows, &[1, 0]);
    let side = coarse as i64;
    Ok(g.reshape_to(&columns, &[1, code_width as i64, side, side]))
}

/// A transformer layer with normalisation first; positions are added to queries and keys alone.
fn layer(
    g: &mut GraphBuilder<'_>,
    x: &Value,
    positions: &Value,
    name: &str,
    width: usize,
) -> Result<Value, BuildError> {
    let h = g.layer_norm(x, &format!("{name}.norm1"))?;
    let placed = g.add(&h, positions);
    let attention = format!("{name}.self_attn");
    let (weight, bias) = (
        format!("{attention}.in_proj_weight"),
        format!("{attention}.in_proj_bias"),
    );
    let joined = JoinedLinear {
        weight: &weight,
        bias: &bias,
        layer: &attention,
    };
    let one = g.ints(&[1]);
    let mut projected = Vec::with_capacity(3);
    for (n, (part, source)) in [("q", &placed), ("k", &placed), ("v", &h)]
        .into_iter()
        .enumerate()
    {
        let rows = g.linear_rows(source, &joined, part, n * width, width)?;
        projected.push(g.tokens_of(&rows, &one, width));
    }
    let h = g.attention(&projected[0], &projected[1], &projected[2], HEADS, None);
    let rows = g.reshape_to(&h, &[-1, width as i64]);
    let h = g.linear(&rows, &format!("{attention}.out_proj"))?;
    let x = g.add(x, &h);
    let h = g.layer_norm(&x, &format!("{name}.norm2"))?;
    let h = g.linear(&h, &format!("{name}.linear1"))?;
    let h = g.gelu(&h);
    let h = g.linear(&h, &format!("{name}.linear2"))?;
    Ok(g.add(&x, &h))
}

/// `x` with the mean and the deviation that every channel has in `like`.
fn adopted(g: &mut GraphBuilder<'_>, x: &Value, like: &Value) -> Value {
    let (mean, deviation) = moments(g, x);
    let (like_mean, like_deviation) = moments(g, like);
    let centred = g.node("Sub", &[x, &mean], &[]);
    let normal = g.node("Div", &[&centred, &deviation], &[]);
    let scaled = g.mul(&normal, &like_deviation);
    g.add(&scaled, &like_mean)
}

/// Mean and deviation (of a sample, so divided by n - 1) over all places.
fn moments(g: &mut GraphBuilder<'_>, x: &Value) -> (Value, Value) {
    let axes = g.ints(&[2, 3]);
    let mean = g.node("ReduceMean", &[x, &axes], &[]);
    let centred = g.node("Sub", &[x, &mean], &[]);
    let squares = g.mul(&centred, &centred);
    let sum = g.node("ReduceSum", &[&squares, &axes], &[]);
    let sides = g.dims_of(x, 2, 4);
    let places = g.node("ReduceProd", &[&sides], &[("keepdims", Attribute::Int(0))]);
    let places = g.cast_float(&places);
    let one = g.floats("one", &[1.0], &[]);
    let freedom = g.node("Sub", &[&places, &one], &[]);
    let variance = g.node("Div", &[&sum, &freedom], &[]);
    let eps = g.floats("variance_eps", &[VARIANCE_EPS], &[]);
    let variance = g.add(&variance, &eps);
    (mean, g.node("Sqrt", &[&variance], &[]))
}

fn generator(
    g: &mut GraphBuilder<'_>,
    entries: &Value,
    coarse: usize,
    kept: &[Kept],
    fidelity: &Value,
) -> Result<Value, BuildError> {
    let mut h = entries.clone();
    let mut side_px = coarse;
    // A feature is mixed in after the first block of its size.
    let mut waiting = None;
    for n in 0..count(g.weights(), "generator.blocks") {
        let name = format!("generator.blocks.{n}");
        h = match Block::of(g.weights(), &name)? {
            Block::Residual => {
                let h = resnet(g, &h, &name)?;
                match waiting.take() {
                    Some(feature) => mixed(g, &h, feature, side_px, fidelity)?,
                    None => h,
                }
            }
            Block::Attention => attend(g, &h, &name)?,
            Block::Resize => {
                side_px *= 2;
                let mix = format!("fuse_convs_dict.{side_px}.");
                waiting = kept
                    .iter()
                    .find(|kept| kept.side_px == side_px && g.weights().has_any(&mix))
                    .map(|kept| &kept.feature);
                h = g.upsample(&h);
                g.conv(&h, &format!("{name}.conv"), 1, 1)?
            }
            Block::Convolution => g.conv(&h, &name, 1, 1)?,
            Block::Normalisation => g.group_norm(&h, &name, EPS)?,
        };
    }
    Ok(h)
}

/// `decoded + fidelity * (decoded * scale + shift)`, both made from the two features together.
fn mixed(
    g: &mut GraphBuilder<'_>,
    decoded: &Value,
    encoded: &Value,
    side_px: usize,
    fidelity: &Value,
) -> Result<Value, BuildError> {
    let name = format!("fuse_convs_dict.{side_px}");
    let both = g.concat(&[encoded, decoded], 1);
    let both = resnet(g, &both, &format!("{name}.encode_enc"))?;
    let scale = pair(g, &both, &format!("{name}.scale"))?;
    let shift = pair(g, &both, &format!("{name}.shift"))?;
    let change = g.mul(decoded, &scale);
    let change = g.add(&change, &shift);
    let change = g.mul(&change, fidelity);
    Ok(g.add(decoded, &change))
}

fn pair(g: &mut GraphBuilder<'_>, x: &Value, name: &str) -> Result<Value, BuildError> {
    let h = g.conv(x, &format!("{name}.0"), 1, 1)?;
    let h = leaky(g, &h, SLOPE);
    g.conv(&h, &format!("{name}.2"), 1, 1)
}
