//! The upscaler networks of the ESRGAN family, from the names and shapes in their files.
//!
//! - RRDBNet (ESRGAN, arXiv 1809.00219; Real-ESRGAN, arXiv 2107.10833): a first convolution,
//!   residual-in-residual dense blocks around a skip, doublings (nearest, convolution) and two last
//!   convolutions. Leaky ReLU has slope 0.2, residues count a fifth. Three layouts of names: the
//!   numbered places of the first ESRGAN (`model.0`, `model.1.sub.N…`), those of BSRGAN
//!   (`RRDB_trunk.N.RDB1…`, `upconv1`) and those of Real-ESRGAN (`body.N.rdb1…`, `conv_up1`). Files
//!   of ESRGAN+ (arXiv 2001.08073) have `conv1x1` in every dense block; its noise belongs to the
//!   training alone. Networks for one or two times first fold pixels into channels, seen by the
//!   width of their first convolution.
//! - SRVGG "compact" (Real-ESRGAN's general and animevideo models): convolutions with PReLU, a pixel
//!   shuffle, and the nearest enlargement of the input added.
//!
//! Left out: networks that take or give other than three channels, three times enlargement of the
//! numbered layout (its files cannot be told from two times), SwinIR, DAT, HAT, SCUNet.

use super::builder::{Attribute, Dim, GraphBuilder, ONNX, Value};
use super::proto::data_type;
use super::{BuildError, BuildOptions, BuiltGraph, Weights};

/// Channels of a picture.
const COLOURS: usize = 3;
const SLOPE: f32 = 0.2;
const RESIDUE: f32 = 0.2;
/// More doublings than any network has.
const MAX_DOUBLINGS: usize = 5;

/// What a network does to a picture's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UpscalerShape {
    /// How many times longer the sides become.
    pub scale: usize,
    /// Sides must be a multiple of this; pictures are padded to it and the answer is cut.
    pub multiple: usize,
}

/// Builds an upscaler: input `picture [1, 3, h, w]` in 0..1, output `larger [1, 3, h * scale,
/// w * scale]` around 0..1, in the channel order of the input.
///
/// # Errors
/// When the tensors form no network of the family.
pub fn upscaler(
    weights: &Weights,
    options: BuildOptions,
) -> Result<(BuiltGraph, UpscalerShape), BuildError> {
    if let Some(layout) = RrdbLayout::find(weights)? {
        return rrdb_net(weights, &layout, options);
    }
    if weights.has("body.0.weight") && weights.has("body.1.weight") {
        return compact_net(weights, options);
    }
    Err(unsupported(
        "only ESRGAN, BSRGAN, Real-ESRGAN and compact (SRVGG) networks are known",
    ))
}

fn unsupported(reason: &str) -> BuildError {
    BuildError::Unsupported {
        part: "upscaler",
        reason: reason.to_owned(),
    }
}

/// How an RRDBNet's file names its parts.
#[derive(Debug)]
struct RrdbLayout {
    first: String,
    /// Before and after the number of a block.
    blocks: [&'static str; 2],
    block_count: usize,
    /// After a dense convolution's name.
    convolution_end: &'static str,
    trunk: String,
    doublings: Vec<String>,
    high: String,
    last: String,
}

impl RrdbLayout {
    fn find(weights: &Weights) -> Result<Option<Self>, BuildError> {
        if weights.has("model.0.weight") && weights.has_any("model.1.sub.") {
            return Self::numbered(weights).map(Some);
        }
        for (blocks, trunk, doubling, high) in [
            (["body.", ".rdb"], "conv_body", "conv_up", "conv_hr"),
            (["RRDB_trunk.", ".RDB"], "trunk_conv", "upconv", "HRconv"),
        ] {
            if !weights.has("conv_first.weight") || !weights.has(&format!("{trunk}.weight")) {
                continue;
            }
            let doublings = (1..=MAX_DOUBLINGS)
                .map(|n| format!("{doubling}{n}"))
                .take_while(|name| weights.has(&format!("{name}.weight")))
                .collect();
            return Ok(Some(Self {
                first: "conv_first".to_owned(),
                blocks,
                block_count: count_blocks(weights, blocks, ""),
                convolution_end: "",
                trunk: trunk.to_owned(),
                doublings,
                high: high.to_owned(),
                last: "conv_last".to_owned(),
            }));
        }
        Ok(None)
    }

    /// The places of the first ESRGAN: the convolutions after the blocks are, in order, the
    /// doublings and the last two.
    fn numbered(weights: &Weights) -> Result<Self, BuildError> {
        let blocks = ["model.1.sub.", ".RDB"];
        let block_count = count_blocks(weights, blocks, ".0");
        let mut places: Vec<String> = (2..=3 * MAX_DOUBLINGS + 4)
            .map(|place| format!("model.{place}"))
            .filter(|name| weights.has(&format!("{name}.weight")))
            .collect();
        let (Some(last), Some(high)) = (places.pop(), places.pop()) else {
            return Err(unsupported("its last convolutions are missing"));
        };
        Ok(Self {
            first: "model.0".to_owned(),
            blocks,
            block_count,
            convolution_end: ".0",
            trunk: format!("model.1.sub.{block_count}"),
            doublings: places,
            high,
            last,
        })
    }

    fn dense(&self, block: usize, part: usize, name: &str) -> String {
        let [before, after] = self.blocks;
        format!("{before}{block}{after}{part}.{name}")
    }
}

fn count_blocks(weights: &Weights, [before, after]: [&str; 2], end: &str) -> usize {
    let exists = |block: &usize| weights.has(&format!("{before}{block}{after}1.conv1{end}.weight"));
    (0..1024).take_while(exists).count()
}

fn rrdb_net(
    weights: &Weights,
    layout: &RrdbLayout,
    options: BuildOptions,
) -> Result<(BuiltGraph, UpscalerShape), BuildError> {
    if layout.block_count == 0 {
        return Err(unsupported("it has no residual blocks"));
    }
    check_colours(weights, &layout.last, COLOURS)?;
    let folded = weights.dim(&format!("{}.weight", layout.first), 1)?;
    let multiple = (1..=8)
        .find(|side| COLOURS * side * side == folded)
        .ok_or_else(|| unsupported("it takes pictures of other than three channels"))?;
    let doubled = 1_usize << layout.doublings.len();
    if doubled < multiple {
        return Err(unsupported("it makes pictures smaller"));
    }
    let mut g = GraphBuilder::new("upscaler", weights, options);
    let picture = picture_input(&mut g);
    let x = if multiple == 1 {
        picture
    } else {
        folded_pixels(&mut g, &picture, multiple)
    };
    let features = g.conv(&x, &layout.first, 1, 1)?;
    let mut h = features.clone();
    for block in 0..layout.block_count {
        let mut inner = h.clone();
        for part in 1..=3 {
            inner = dense_block(&mut g, &inner, layout, block, part)?;
        }
        h = residue(&mut g, &inner, &h);
    }
    h = g.conv(&h, &layout.trunk, 1, 1)?;
    h = g.add(&features, &h);
    for doubling in &layout.doublings {
        h = g.upsample(&h);
        h = g.conv(&h, doubling, 1, 1)?;
        h = leaky(&mut g, &h);
    }
    h = g.conv(&h, &layout.high, 1, 1)?;
    h = leaky(&mut g, &h);
    h = g.conv(&h, &layout.last, 1, 1)?;
    picture_output(&mut g, &h);
    let shape = UpscalerShape {
        scale: doubled / multiple,
        multiple,
    };
    Ok((g.finish(), shape))
}

/// Five convolutions, each of which sees the results of all before it.
fn dense_block(
    g: &mut GraphBuilder<'_>,
    x: &Value,
    layout: &RrdbLayout,
    block: usize,
    part: usize,
) -> Result<Value, BuildError> {
    let name = |n: usize| layout.dense(block, part, &format!("conv{n}{}", layout.convolution_end));
    let plus = layout.dense(block, part, "conv1x1");
    let is_plus = g.weights().has(&format!("{plus}.weight"));
    let mut known = vec![x.clone()];
    for n in 1..=4 {
        let seen = joined(g, &known);
        let y = g.conv(&seen, &name(n), 1, 1)?;
        let mut y = leaky(g, &y);
        if is_plus && n == 2 {
            let short = g.conv(x, &plus, 1, 0)?;
            y = g.add(&y, &short);
        }
        if is_plus && n == 4 {
            y = g.add(&y, &known[2]);
        }
        known.push(y);
    }
    let seen = joined(g, &known);
    let y = g.conv(&seen, &name(5), 1, 1)?;
    Ok(residue(g, &y, x))
}

fn compact_net(
    weights: &Weights,
    options: BuildOptions,
) -> Result<(BuiltGraph, UpscalerShape), BuildError> {
    let last = (1..1024)
        .map(|n| 2 * n)
        .take_while(|place| weights.has(&format!("body.{place}.weight")))
        .last()
        .ok_or_else(|| unsupported("its last convolution is missing"))?;
    let answer = weights.dim(&format!("body.{last}.weight"), 0)?;
    let scale = (1..=8)
        .find(|side| COLOURS * side * side == answer)
        .ok_or_else(|| unsupported("it gives pictures of other than three channels"))?;
    if weights.dim("body.0.weight", 1)? != COLOURS {
        return Err(unsupported(
            "it takes pictures of other than three channels",
        ));
    }
    let mut g = GraphBuilder::new("upscaler", weights, options);
    let picture = picture_input(&mut g);
    let mut h = g.conv(&picture, "body.0", 1, 1)?;
    for place in (2..=last).step_by(2) {
        let slope = format!("body.{}.weight", place - 1);
        let channels = weights.dim(&slope, 0)?;
        let slope = g.weight(&slope, &[channels, 1, 1])?;
        h = g.node("PRelu", &[&h, &slope], &[]);
        h = g.conv(&h, &format!("body.{place}"), 1, 1)?;
    }
    if scale > 1 {
        let options = [
            ("blocksize", Attribute::Int(scale as i64)),
            // Channel, row, column: torch's pixel shuffle.
            ("mode", Attribute::Text("CRD")),
        ];
        h = g.node("DepthToSpace", &[&h], &options);
    }
    let base = repeated(&mut g, &picture, scale);
    h = g.add(&h, &base);
    picture_output(&mut g, &h);
    let shape = UpscalerShape { scale, multiple: 1 };
    Ok((g.finish(), shape))
}

fn check_colours(weights: &Weights, layer: &str, wanted: usize) -> Result<(), BuildError> {
    if weights.dim(&format!("{layer}.weight"), 0)? == wanted {
        Ok(())
    } else {
        Err(unsupported(
            "it gives pictures of other than three channels",
        ))
    }
}

fn picture_input(g: &mut GraphBuilder<'_>) -> Value {
    let dims = picture_dims(["height", "width"]);
    g.input("picture", data_type::FLOAT, &dims)
}

fn picture_output(g: &mut GraphBuilder<'_>, value: &Value) {
    g.output(
        value,
        "larger",
        &picture_dims(["larger_height", "larger_width"]),
    );
}

fn picture_dims([height, width]: [&'static str; 2]) -> [Dim; 4] {
    [
        Dim::Free("batch_size"),
        Dim::Fixed(COLOURS),
        Dim::Free(height),
        Dim::Free(width),
    ]
}

fn joined(g: &mut GraphBuilder<'_>, values: &[Value]) -> Value {
    match values {
        [only] => only.clone(),
        several => g.concat(&several.iter().collect::<Vec<_>>(), 1),
    }
}

fn leaky(g: &mut GraphBuilder<'_>, x: &Value) -> Value {
    g.node("LeakyRelu", &[x], &[("alpha", Attribute::Float(SLOPE))])
}

/// `y * 0.2 + x`
fn residue(g: &mut GraphBuilder<'_>, y: &Value, x: &Value) -> Value {
    let share = g.floats("residue_share", &[RESIDUE], &[]);
    let y = g.mul(y, &share);
    g.add(&y, x)
}

/// Squares of pixels as channels, in the order of torch's `pixel_unshuffle`: colour, row, column.
fn folded_pixels(g: &mut GraphBuilder<'_>, x: &Value, side: usize) -> Value {
    let size = [("blocksize", Attribute::Int(side as i64))];
    let folded = g.node("SpaceToDepth", &[x], &size);
    // The operator's own order is row, column, colour.
    let squares = (side * side) as i64;
    let colours = COLOURS as i64;
    let order: Vec<i64> = (0..colours)
        .flat_map(|colour| (0..squares).map(move |place| place * colours + colour))
        .collect();
    let order = g.ints(&order);
    g.node("Gather", &[&folded, &order], &[("axis", Attribute::Int(1))])
}

/// Every pixel `scale` times in both directions.
fn repeated(g: &mut GraphBuilder<'_>, x: &Value, scale: usize) -> Value {
    if scale == 1 {
        return x.clone();
    }
    let factor = scale as f32;
    let scales = g.floats("base_scales", &[1.0, 1.0, factor, factor], &[4]);
    let options = [
        ("mode", Attribute::Text("nearest")),
        (
            "coordinate_transformation_mode",
            Attribute::Text("asymmetric"),
        ),
        ("nearest_mode", Attribute::Text("floor")),
    ];
    g.node_in(ONNX, "Resize", &[Some(x), None, Some(&scales)], &options)
}
