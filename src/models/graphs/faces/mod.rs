//! The networks of face restoration, from the names and shapes in their files: RetinaFace finds faces,
//! ParseNet tells their parts, GFPGAN and CodeFormer draw them anew.

mod codeformer;
mod gfpgan;
mod parsenet;
mod retinaface;

pub use codeformer::codeformer;
pub use gfpgan::gfpgan;
pub use parsenet::parsenet;
pub use retinaface::retinaface;

use super::builder::{Attribute, Dim, GraphBuilder, ONNX, Value};
use super::{BuildError, Weights};

/// Channels of a picture.
const COLOURS: usize = 3;

/// What a restoration network takes and gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaceShape {
    /// Width and height of a face in pixels; 512 in every published network.
    pub side_px: usize,
}

fn unsupported(reason: &str) -> BuildError {
    BuildError::Unsupported {
        part: "face network",
        reason: reason.to_owned(),
    }
}

/// How many of `beginning.0.`, `beginning.1.`, … exist.
fn count(weights: &Weights, beginning: &str) -> usize {
    (0..1024)
        .take_while(|n| weights.has_any(&format!("{beginning}.{n}.")))
        .count()
}

fn picture_dims(height: Dim, width: Dim) -> [Dim; 4] {
    [Dim::Fixed(1), Dim::Fixed(COLOURS), height, width]
}

/// Normalisation by the mean and variance that training left, eps 1e-5.
fn batch_norm(g: &mut GraphBuilder<'_>, x: &Value, layer: &str) -> Result<Value, BuildError> {
    let width = g.weights().dim(&format!("{layer}.weight"), 0)?;
    let mut inputs = vec![x.clone()];
    for part in ["weight", "bias", "running_mean", "running_var"] {
        inputs.push(g.weight(&format!("{layer}.{part}"), &[width])?);
    }
    let inputs: Vec<&Value> = inputs.iter().collect();
    let eps = [("epsilon", Attribute::Float(1e-5))];
    Ok(g.node("BatchNormalization", &inputs, &eps))
}

fn relu(g: &mut GraphBuilder<'_>, x: &Value) -> Value {
    g.node("Relu", &[x], &[])
}

fn leaky(g: &mut GraphBuilder<'_>, x: &Value, slope: f32) -> Value {
    g.node("LeakyRelu", &[x], &[("alpha", Attribute::Float(slope))])
}

/// torch's bilinear interpolation without aligned corners, both sides times `factor`.
fn bilinear(g: &mut GraphBuilder<'_>, x: &Value, factor: f32) -> Value {
    let name = format!("bilinear_scales_{factor}");
    let scales = g.floats(&name, &[1.0, 1.0, factor, factor], &[4]);
    let options = [
        ("mode", Attribute::Text("linear")),
        (
            "coordinate_transformation_mode",
            Attribute::Text("half_pixel"),
        ),
    ];
    g.node_in(ONNX, "Resize", &[Some(x), None, Some(&scales)], &options)
}
