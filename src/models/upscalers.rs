//! Upscaler networks behind `pipeline`'s traits: loads the graphs of the ESRGAN family and keeps the
//! few that were used last.
//!
//! Follows A1111's way with a picture: B, G, R order, 0..1 computed in double precision, tiles from
//! `imaging`, and rounding (half to even) instead of cutting on the way back.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use image::{Rgb, RgbImage};
use ndarray::{Array4, ArrayD};

use super::checkpoint::{LoadError, load_built, open_weights};
use super::file_cache::FileCache;
use super::graphs::{BuildOptions, UpscalerShape, Weights, upscaler};
use crate::catalogue::{REALESRGAN_MODELS, UpscalerList};
use crate::imaging::upscale_tiled;
use crate::pipeline::{Cause, Tiling, UpscalerNetwork, UpscalerProvider};
use crate::runtime::{Graph, Runtime};

/// Networks that stay loaded; they have 2 to 70 MB of weights each.
const KEPT: usize = 3;

/// The [`UpscalerProvider`] of the server.
pub struct UpscalerNetworks {
    runtime: Runtime,
    list: UpscalerList,
    loaded: FileCache<GraphUpscaler>,
}

impl UpscalerNetworks {
    #[must_use]
    pub fn new(runtime: Runtime, list: UpscalerList) -> Self {
        Self {
            runtime,
            list,
            loaded: FileCache::new(KEPT),
        }
    }

    /// Forgets the loaded networks; jobs that run keep theirs.
    pub fn unload_all(&self) {
        self.loaded.clear();
    }

    fn network(&self, path: &Path) -> Result<Arc<GraphUpscaler>, LoadError> {
        self.loaded.get_or_load(path, || {
            let begin = Instant::now();
            let network = Arc::new(GraphUpscaler::open(&self.runtime, path)?);
            tracing::info!(
                path = %path.display(),
                scale = network.shape.scale,
                elapsed_ms = begin.elapsed().as_millis() as u64,
                "upscaler loaded"
            );
            Ok(network)
        })
    }
}

impl UpscalerProvider for UpscalerNetworks {
    fn load(&self, name: &str) -> Result<Option<Arc<dyn UpscalerNetwork>>, Cause> {
        if let Some(file) = self.list.find(name) {
            return Ok(Some(self.network(&file.path)?));
        }
        match REALESRGAN_MODELS.iter().find(|model| model.name == name) {
            Some(model) => {
                let file = format!("{}.pth", model.file_stem);
                let url = model.url();
                Err(format!("{name} needs the file {file} ({url}) in models/RealESRGAN").into())
            }
            None => Ok(None),
        }
    }
}

/// One loaded network.
pub struct GraphUpscaler {
    graph: Arc<Graph>,
    shape: UpscalerShape,
}

impl GraphUpscaler {
    /// Builds and loads the network of a weights file.
    ///
    /// # Errors
    /// When the file cannot be read or holds no network of the ESRGAN family.
    pub fn open(runtime: &Runtime, path: &Path) -> Result<Self, LoadError> {
        let weights = Weights::new(Arc::new(open_weights(path)?), "");
        let (built, shape) =
            upscaler(&weights, BuildOptions::default()).map_err(|error| LoadError::Unusable {
                path: path.display().to_string(),
                reason: error.to_string(),
            })?;
        let graph = load_built(runtime, "upscaler", &built, &weights)?;
        Ok(Self { graph, shape })
    }

    /// How many times longer the sides become.
    #[must_use]
    pub fn scale(&self) -> usize {
        self.shape.scale
    }

    fn enlarge_tile(&self, tile: &RgbImage) -> Result<RgbImage, Cause> {
        let picture = pixels_of(tile, self.shape.multiple);
        let answer = self
            .graph
            .run(&[("picture", (&picture).into())], &["larger"])?;
        let scale = self.shape.scale as u32;
        let (width, height) = (tile.width() * scale, tile.height() * scale);
        answer
            .first()
            .and_then(|larger| picture_of(larger, width, height))
            .ok_or_else(|| Cause::from("the upscaler answered with a picture of another size"))
    }
}

impl UpscalerNetwork for GraphUpscaler {
    fn enlarge(&self, picture: &RgbImage, tiling: Tiling) -> Result<RgbImage, Cause> {
        upscale_tiled(picture, tiling.tile_px, tiling.overlap_px, |tile| {
            self.enlarge_tile(tile)
        })
    }
}

/// `[1, 3, height, width]` in the order B, G, R; both sides mirrored at the end to a multiple.
fn pixels_of(picture: &RgbImage, multiple: usize) -> Array4<f32> {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let sides = (
        height.next_multiple_of(multiple),
        width.next_multiple_of(multiple),
    );
    Array4::from_shape_fn((1, 3, sides.0, sides.1), |(_, channel, y, x)| {
        let (x, y) = (mirrored(x, width), mirrored(y, height));
        let level = picture.get_pixel(x as u32, y as u32)[2 - channel];
        (f64::from(level) / 255.0) as f32
    })
}

/// Reflection about the last pixel, which is not repeated.
fn mirrored(at: usize, side: usize) -> usize {
    if at < side {
        at
    } else {
        (2 * side).saturating_sub(at + 2)
    }
}

/// The upper left `width` by `height` of an answer as 8-bit RGB; `None` where it has another shape.
fn picture_of(answer: &ArrayD<f32>, width: u32, height: u32) -> Option<RgbImage> {
    let &[1, 3, rows, columns] = answer.shape() else {
        return None;
    };
    if rows < height as usize || columns < width as usize {
        return None;
    }
    Some(RgbImage::from_fn(width, height, |x, y| {
        let level = |channel: usize| {
            let value = answer[[0, channel, y as usize, x as usize]];
            (value.clamp(0.0, 1.0) * 255.0).round_ties_even() as u8
        };
        Rgb([level(2), level(1), level(0)])
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_go_there_and_back() {
        let picture = RgbImage::from_fn(5, 3, |x, y| Rgb([x as u8, y as u8, (x * y) as u8 + 200]));
        let pixels = pixels_of(&picture, 4);
        assert_eq!(pixels.shape(), [1, 3, 4, 8]);
        // Row 3 mirrors row 1, column 5 mirrors column 3.
        assert_eq!(pixels[[0, 2, 0, 5]], pixels[[0, 2, 0, 3]]);
        assert_eq!(pixels[[0, 1, 3, 0]], pixels[[0, 1, 1, 0]]);
        assert_eq!(picture_of(&pixels.into_dyn(), 5, 3).unwrap(), picture);
    }

    #[test]
    fn levels_are_rounded_and_bounded() {
        let values = vec![-1.0, 2.0, 0.5 / 255.0, 1.5 / 255.0, f32::NAN, 0.2];
        let answer = ArrayD::from_shape_vec(vec![1, 3, 1, 2], values).unwrap();
        let picture = picture_of(&answer, 2, 1).unwrap();
        assert_eq!(picture.get_pixel(0, 0).0, [0, 0, 0]);
        assert_eq!(picture.get_pixel(1, 0).0, [51, 2, 255]);
    }
}
