//! The safety checker of a models folder: `safety_checker/model.onnx` in the diffusers layout, with the inputs
//! `clip_input` (`[1, 3, 224, 224]`, CLIP's normalisation) and `images` (`[1, height, width, 3]` or
//! `[1, 3, height, width]`, 0 to 1) and the output `has_nsfw_concepts`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::RgbImage;
use ndarray::Array4;
use parking_lot::Mutex;

use crate::imaging::{Filter, resize_rgb};
use crate::pipeline::{Cause, SafetyChecker};
use crate::runtime::{Graph, GraphSource, Runtime};

/// The side of the picture that CLIP sees.
const SEEN_PX: u32 = 224;
/// CLIP's mean and standard deviation of red, green and blue.
const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const DEVIATION: [f32; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_1];

/// The checker of a folder, loaded when the first picture is there.
pub struct GraphSafetyChecker {
    runtime: Runtime,
    file: PathBuf,
    graph: Mutex<Option<Arc<Graph>>>,
}

impl GraphSafetyChecker {
    /// The checker in `models`, which may be missing until the first picture is drawn.
    #[must_use]
    pub fn new(runtime: Runtime, models: &Path) -> Self {
        Self {
            runtime,
            file: models.join("safety_checker").join("model.onnx"),
            graph: Mutex::new(None),
        }
    }

    fn graph(&self) -> Result<Arc<Graph>, Cause> {
        let mut graph = self.graph.lock();
        if let Some(graph) = &*graph {
            return Ok(Arc::clone(graph));
        }
        if !self.file.is_file() {
            let path = self.file.display();
            return Err(format!("--safety-checker: {path} is not there").into());
        }
        let source = GraphSource::File(&self.file);
        let loaded = Arc::new(Graph::load(&self.runtime, "safety checker", source)?);
        *graph = Some(Arc::clone(&loaded));
        Ok(loaded)
    }
}

impl SafetyChecker for GraphSafetyChecker {
    fn is_flagged(&self, picture: &RgbImage) -> Result<bool, Cause> {
        let graph = self.graph()?;
        let channels_last = graph
            .input("images")
            .is_some_and(|input| input.dims.last() == Some(&Some(3)));
        let (seen, whole) = (seen_by_clip(picture), unit(picture, channels_last));
        let inputs = [("clip_input", (&seen).into()), ("images", (&whole).into())];
        let outputs = graph.run(&inputs, &["has_nsfw_concepts"])?;
        Ok(outputs.iter().flatten().any(|flag| *flag != 0.0))
    }
}

/// The middle square of the picture, its shorter side resized to [`SEEN_PX`].
fn seen_by_clip(picture: &RgbImage) -> Array4<f32> {
    let (width, height) = picture.dimensions();
    let shorter = width.min(height).max(1);
    let scaled = |side: u32| (u64::from(side) * u64::from(SEEN_PX) / u64::from(shorter)) as u32;
    let (wide, high) = (scaled(width).max(SEEN_PX), scaled(height).max(SEEN_PX));
    let small = resize_rgb(picture, wide, high, Filter::Bicubic);
    let (left, top) = ((wide - SEEN_PX) / 2, (high - SEEN_PX) / 2);
    let side = SEEN_PX as usize;
    Array4::from_shape_fn((1, 3, side, side), |(_, channel, y, x)| {
        let value = small.get_pixel(left + x as u32, top + y as u32).0[channel];
        (f32::from(value) / 255.0 - MEAN[channel]) / DEVIATION[channel]
    })
}

fn unit(picture: &RgbImage, channels_last: bool) -> Array4<f32> {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let value = |channel: usize, y: usize, x: usize| {
        f32::from(picture.get_pixel(x as u32, y as u32).0[channel]) / 255.0
    };
    if channels_last {
        Array4::from_shape_fn((1, height, width, 3), |(_, y, x, c)| value(c, y, x))
    } else {
        Array4::from_shape_fn((1, 3, height, width), |(_, c, y, x)| value(c, y, x))
    }
}
