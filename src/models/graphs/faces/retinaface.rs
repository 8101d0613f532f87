//! RetinaFace (arXiv 1905.00641) over a ResNet, as facexlib 0.3.0 has it: a feature pyramid of three levels,
//! a context module each, and three heads with two anchors a place.
//!
//! Depth and widths come from the file; the strides are those of torchvision's ResNet. Left out: the MobileNet
//! backbone, which A1111 does not use.

use super::{batch_norm, count, leaky, relu, unsupported};
use crate::models::graphs::builder::{Attribute, Dim, GraphBuilder, ONNX, Value};
use crate::models::graphs::proto::data_type;
use crate::models::graphs::{BuildError, BuildOptions, BuiltGraph, Weights};

/// Pyramids up to this wide were trained with leaky units.
const LEAKY_WIDTH: usize = 64;

/// Builds the detector: input `picture [1, 3, h, w]`, blue, green, red minus the training's mean; outputs
/// `boxes [1, n, 4]`, `scores [1, n, 2]` (the second is that of a face) and `landmarks [1, n, 10]`, both
/// relative to the anchors, which go from fine to coarse, row by row.
///
/// # Errors
/// When the tensors form no RetinaFace over a ResNet.
pub fn retinaface(weights: &Weights) -> Result<BuiltGraph, BuildError> {
    if !weights.has("body.conv1.weight") || !weights.has("fpn.output1.0.weight") {
        return Err(unsupported("it is no RetinaFace over a ResNet"));
    }
    let mut g = GraphBuilder::new("face detector", weights, BuildOptions::default());
    let dims = super::picture_dims(Dim::Free("height"), Dim::Free("width"));
    let picture = g.input("picture", data_type::FLOAT, &dims);
    let levels = backbone(&mut g, &picture)?;
    let levels = pyramid(&mut g, levels)?;
    let mut features = Vec::with_capacity(3);
    for (n, level) in levels.iter().enumerate() {
        features.push(context(&mut g, level, &format!("ssh{}", n + 1))?);
    }
    let anchors = [Dim::Fixed(1), Dim::Free("anchors")];
    let boxes = head(&mut g, &features, "BboxHead", 4)?;
    g.output(&boxes, "boxes", &[anchors[0], anchors[1], Dim::Fixed(4)]);
    let scores = head(&mut g, &features, "ClassHead", 2)?;
    let scores = g.node("Softmax", &[&scores], &[("axis", Attribute::Int(-1))]);
    g.output(&scores, "scores", &[anchors[0], anchors[1], Dim::Fixed(2)]);
    let landmarks = head(&mut g, &features, "LandmarkHead", 10)?;
    let dims = [anchors[0], anchors[1], Dim::Fixed(10)];
    g.output(&landmarks, "landmarks", &dims);
    Ok(g.finish())
}

/// The answers of the ResNet's last three layers.
fn backbone(g: &mut GraphBuilder<'_>, picture: &Value) -> Result<[Value; 3], BuildError> {
    let h = g.conv(picture, "body.conv1", 2, 3)?;
    let h = batch_norm(g, &h, "body.bn1")?;
    let h = relu(g, &h);
    let pool = [
        ("kernel_shape", Attribute::Ints(vec![3, 3])),
        ("pads", Attribute::Ints(vec![1; 4])),
        ("strides", Attribute::Ints(vec![2; 2])),
    ];
    let h = g.node("MaxPool", &[&h], &pool);
    let first = layer(g, &h, 1)?;
    let second = layer(g, &first, 2)?;
    let third = layer(g, &second, 3)?;
    let fourth = layer(g, &third, 4)?;
    Ok([second, third, fourth])
}

/// A layer's bottlenecks; the first of all but the first layer halves the sides.
fn layer(g: &mut GraphBuilder<'_>, x: &Value, number: usize) -> Result<Value, BuildError> {
    let name = format!("body.layer{number}");
    let mut h = x.clone();
    for n in 0..count(g.weights(), &name) {
        let stride = if n == 0 && number > 1 { 2 } else { 1 };
        h = bottleneck(g, &h, &format!("{name}.{n}"), stride)?;
    }
    Ok(h)
}

fn bottleneck(
    g: &mut GraphBuilder<'_>,
    x: &Value,
    name: &str,
    stride: i64,
) -> Result<Value, BuildError> {
    let h = g.conv(x, &format!("{name}.conv1"), 1, 0)?;
    let h = batch_norm(g, &h, &format!("{name}.bn1"))?;
    let h = relu(g, &h);
    let h = g.conv(&h, &format!("{name}.conv2"), stride, 1)?;
    let h = batch_norm(g, &h, &format!("{name}.bn2"))?;
    let h = relu(g, &h);
    let h = g.conv(&h, &format!("{name}.conv3"), 1, 0)?;
    let h = batch_norm(g, &h, &format!("{name}.bn3"))?;
    let shortcut = if g.weights().has(&format!("{name}.downsample.0.weight")) {
        let short = g.conv(x, &format!("{name}.downsample.0"), stride, 0)?;
        batch_norm(g, &short, &format!("{name}.downsample.1"))?
    } else {
        x.clone()
    };
    let sum = g.add(&h, &shortcut);
    Ok(relu(g, &sum))
}

/// Coarse levels enlarged onto finer ones.
fn pyramid(g: &mut GraphBuilder<'_>, levels: [Value; 3]) -> Result<[Value; 3], BuildError> {
    let [fine, middle, coarse] = levels;
    let fine = unit(g, &fine, "fpn.output1", 0, true)?;
    let middle = unit(g, &middle, "fpn.output2", 0, true)?;
    let coarse = unit(g, &coarse, "fpn.output3", 0, true)?;
    let enlarged = enlarged_to(g, &coarse, &middle);
    let middle = g.add(&middle, &enlarged);
    let middle = unit(g, &middle, "fpn.merge2", 1, true)?;
    let enlarged = enlarged_to(g, &middle, &fine);
    let fine = g.add(&fine, &enlarged);
    let fine = unit(g, &fine, "fpn.merge1", 1, true)?;
    Ok([fine, middle, coarse])
}

/// Nearest neighbours, to the size of another level.
fn enlarged_to(g: &mut GraphBuilder<'_>, x: &Value, like: &Value) -> Value {
    let kept = g.dims_of(x, 0, 2);
    let sides = g.dims_of(like, 2, 4);
    let sizes = g.concat(&[&kept, &sides], 0);
    let options = [
        ("mode", Attribute::Text("nearest")),
        (
            "coordinate_transformation_mode",
            Attribute::Text("asymmetric"),
        ),
        ("nearest_mode", Attribute::Text("floor")),
    ];
    g.node_in(
        ONNX,
        "Resize",
        &[Some(x), None, None, Some(&sizes)],
        &options,
    )
}

/// A convolution, its normalisation and, if `active`, the unit after it.
fn unit(
    g: &mut GraphBuilder<'_>,
    x: &Value,
    name: &str,
    padding: i64,
    active: bool,
) -> Result<Value, BuildError> {
    let pyramid_width = g.weights().dim("fpn.output1.0.weight", 0)?;
    let h = g.conv(x, &format!("{name}.0"), 1, padding)?;
    let h = batch_norm(g, &h, &format!("{name}.1"))?;
    Ok(match (active, pyramid_width <= LEAKY_WIDTH) {
        (false, _) => h,
        (true, true) => leaky(g, &h, 0.1),
        (true, false) => relu(g, &h),
    })
}

/// SSH's context module: the same place seen through windows of 3, 5 and 7 pixels.
fn context(g: &mut GraphBuilder<'_>, x: &Value, name: &str) -> Result<Value, BuildError> {
    let three = unit(g, x, &format!("{name}.conv3X3"), 1, false)?;
    let shared = unit(g, x, &format!("{name}.conv5X5_1"), 1, true)?;
    let five = unit(g, &shared, &format!("{name}.conv5X5_2"), 1, false)?;
    let seven = unit(g, &shared, &format!("{name}.conv7X7_2"), 1, true)?;
    let seven = unit(g, &seven, &format!("{name}.conv7x7_3"), 1, false)?;
    let all = g.concat(&[&three, &five, &seven], 1);
    Ok(relu(g, &all))
}

/// One head's answers of all levels, `width` numbers an anchor.
fn head(
    g: &mut GraphBuilder<'_>,
    features: &[Value],
    name: &str,
    width: i64,
) -> Result<Value, BuildError> {
    let mut answers = Vec::with_capacity(features.len());
    for (n, level) in features.iter().enumerate() {
        let answer = g.conv(level, &format!("{name}.{n}.conv1x1"), 1, 0)?;
        let answer = g.transpose(&answer, &[0, 2, 3, 1]);
        answers.push(g.reshape_to(&answer, &[0, -1, width]));
    }
    Ok(g.concat(&answers.iter().collect::<Vec<_>>(), 1))
}
