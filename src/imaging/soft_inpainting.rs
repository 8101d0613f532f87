//! The overlay's mask of A1111's built-in script Soft Inpainting, drawn from how far the latent moved.
//! The script's blend of latents is `sampling::SoftBlend`.
//!
//! f32 where torch has it, f64 for magnitudes and percentiles.

use image::{DynamicImage, GrayImage};
use ndarray::{Array2, ArrayView2, ArrayView3, Axis};

use super::composite::paste;
use super::gaussian_blur::gaussian_blur;
use super::mask::{Region, to_grey};
use super::pixels::image_of;
use super::resize_mode::{ResizeMode, resize_image};
use super::upscale::{Cause, Upscaler};

/// Euclidean length, summed in f32.
fn norm<'a>(values: impl Iterator<Item = &'a f32>) -> f64 {
    f64::from(values.map(|value| value * value).sum::<f32>().sqrt())
}

/// How the overlay's mask follows from the change of the latent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SoftOverlay {
    /// "Preservation strength".
    pub scale: f64,
    pub mask_influence: f64,
    pub difference_threshold: f64,
    pub difference_contrast: f64,
}

impl SoftOverlay {
    /// The mask of one picture's overlay, of `overlay_size` (with a region) or `size`: white where the
    /// painted picture shows. `original` and `painted` are `[channels, h, w]`, `nmask` is `[h, w]`.
    ///
    /// # Errors
    /// When a side is zero.
    pub fn mask(
        self,
        original: &ArrayView3<'_, f32>,
        painted: &ArrayView3<'_, f32>,
        nmask: &ArrayView2<'_, f32>,
        size: (u32, u32),
        region: Option<(Region, (u32, u32))>,
    ) -> Result<GrayImage, Cause> {
        let levels = self.latent_levels(original, painted, nmask);
        let (height, width) = levels.dim();
        let small: GrayImage = image_of(width as u32, height as u32, levels.into_iter().collect());
        let grown = resize_image(
            ResizeMode::Fill,
            &DynamicImage::ImageLuma8(small),
            size.0,
            size.1,
            &Upscaler::None,
        )?;
        let mut mask = to_grey(&grown);
        gaussian_blur::<1>(&mut mask, size.0 as usize, 4.0);
        let Some((region, overlay_size)) = region else {
            return Ok(mask);
        };
        let (width, height) = (region.width() as u32, region.height() as u32);
        let mask = DynamicImage::ImageLuma8(mask);
        let part = resize_image(ResizeMode::Crop, &mask, width, height, &Upscaler::None)?;
        let mut whole = GrayImage::new(overlay_size.0, overlay_size.1);
        paste(&mut whole, &to_grey(&part), region.left, region.top);
        Ok(whole)
    }

    /// One level a latent position.
    fn latent_levels(
        self,
        original: &ArrayView3<'_, f32>,
        painted: &ArrayView3<'_, f32>,
        nmask: &ArrayView2<'_, f32>,
    ) -> Array2<u8> {
        let change = painted - original;
        let distance = change.map_axis(Axis(0), |values| norm(values.iter()));
        let distance = percentile_mean(&distance.view(), 0.9, 1.0);
        let mut distance = percentile_mean(&distance.view(), 0.25, 0.75);
        distance.zip_mut_with(nmask, |distance, &level| {
            *distance /= self.difference_threshold * f64::from(self.tolerance(level));
        });
        distance.mapv(|distance| {
            let kept = 1.0 / (1.0 + distance.powf(self.difference_contrast));
            let smooth = kept * kept * kept * (kept * (kept * 6.0 - 15.0) + 10.0);
            ((1.0 - smooth) * 255.0) as u8
        })
    }

    /// How much the latent may differ before the painted picture shows, by its mask level.
    fn tolerance(self, nmask: f32) -> f32 {
        let influence = self.mask_influence as f32;
        let kept = 1.0 - nmask.clamp(0.0, 1.0).powf(self.scale as f32 / 2.0);
        let kept = 0.5 * (1.0 - influence) + kept * influence;
        kept / (1.00001 - kept)
    }
}

const REACH: usize = 2;

/// The weight of a neighbour at a squared distance.
fn kernel(squared_distance: f64) -> f64 {
    let edge = (-9.0_f64 / 2.25).exp();
    (((-squared_distance / 2.25).exp() - edge) / (1.0 - edge)).max(0.0)
}

/// For each position, stacks the 5 x 5 neighbours by value, each as high as its weight, and takes the
/// mean of the part between two shares of the stack, which is at least one unit of weight high.
fn percentile_mean(values: &ArrayView2<'_, f64>, from: f64, to: f64) -> Array2<f64> {
    let (height, width) = values.dim();
    let mut stack: Vec<(f64, f64)> = Vec::with_capacity(25);
    Array2::from_shape_fn((height, width), |(y, x)| {
        stack.clear();
        for near_y in y.saturating_sub(REACH)..(y + REACH + 1).min(height) {
            for near_x in x.saturating_sub(REACH)..(x + REACH + 1).min(width) {
                let (dy, dx) = (near_y.abs_diff(y), near_x.abs_diff(x));
                let weight = kernel((dy * dy + dx * dx) as f64);
                stack.push((values[[near_y, near_x]], weight));
            }
        }
        stack.sort_by(|a, b| a.0.total_cmp(&b.0));
        mean_of_part(&stack, from, to)
    })
}

fn mean_of_part(stack: &[(f64, f64)], from: f64, to: f64) -> f64 {
    const LEAST: f64 = 1.0;
    let total: f64 = stack.iter().map(|(_, weight)| weight).sum();
    let (mut bottom, mut top) = (total * from, total * to);
    if top - bottom < LEAST {
        let centre =
            f64::midpoint(bottom, top).clamp(LEAST / 2.0, (total - LEAST / 2.0).max(LEAST / 2.0));
        (bottom, top) = (centre - LEAST / 2.0, centre + LEAST / 2.0);
    }
    let (mut height, mut sum, mut weights) = (0.0_f64, 0.0, 0.0);
    for &(value, weight) in stack {
        let inside = (height + weight).min(top) - height.max(bottom);
        height += weight;
        if inside > 0.0 {
            sum += value * inside;
            weights += inside;
        }
    }
    sum / weights
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_field_keeps_its_value() {
        let values = Array2::from_elem((6, 7), 0.3);
        let out = percentile_mean(&values.view(), 0.9, 1.0);
        assert!(out.iter().all(|value| (value - 0.3).abs() < 1e-12));
    }

    #[test]
    fn unchanged_latents_show_the_original_and_changed_ones_the_painting() {
        let soft = SoftOverlay {
            scale: 0.5,
            mask_influence: 0.0,
            difference_threshold: 0.5,
            difference_contrast: 2.0,
        };
        let original = ndarray::Array3::<f32>::zeros((4, 8, 8));
        let painted = &original + 5.0;
        let nmask = Array2::ones((8, 8));
        let size = (64, 64);
        let view = original.view();
        let same = soft.mask(&view, &view, &nmask.view(), size, None).unwrap();
        assert!(same.iter().all(|&level| level == 0));
        let changed = soft.mask(&view, &painted.view(), &nmask.view(), size, None);
        assert!(changed.unwrap().iter().all(|&level| level >= 253));
    }
}
