//! The size that hires fix aims at: A1111's rules for scale, one side, both sides and the old
//! behaviour (`use_old_hires_fix_width_height`).

use super::{GenerateError, GenerationParams, HiresParams};

/// Sizes of both passes, in pixels, and what is cut from the upscaled latent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HiresTarget {
    /// `(width, height)` of the first pass.
    pub(super) first_pass_px: (usize, usize),
    /// `(width, height)` that the picture or latent is enlarged to.
    pub(super) upscale_px: (usize, usize),
    /// `(columns, rows)` of the latent that are cut away, split between both sides.
    pub(super) truncate_latent: (usize, usize),
}

impl HiresTarget {
    /// What a job with hires fix aims at.
    ///
    /// # Errors
    /// See [`HiresTarget::resolve`].
    pub(super) fn of_job(
        params: &GenerationParams,
        hires: &HiresParams,
    ) -> Result<Self, GenerateError> {
        Self::resolve(
            params.width_px,
            params.height_px,
            hires,
            params.options.bool("use_old_hires_fix_width_height"),
        )
    }

    /// Works out both passes for a picture of `width` × `height` pixels.
    ///
    /// # Errors
    /// When the target would be empty.
    fn resolve(
        width: usize,
        height: usize,
        hires: &HiresParams,
        old_behaviour: bool,
    ) -> Result<Self, GenerateError> {
        let (mut width, mut height) = (width, height);
        let (mut resize_x, mut resize_y) = (hires.resize_x, hires.resize_y);
        if hires.first_phase != (0, 0) {
            (width, height) = hires.first_phase;
        }
        if old_behaviour && resize_x == 0 && resize_y == 0 {
            (resize_x, resize_y) = (width, height);
            (width, height) = old_first_pass(width, height);
        }
        if width == 0 || height == 0 {
            return Err(GenerateError::InvalidValue(format!(
                "width and height must be above 0, not {width}x{height}"
            )));
        }
        let target = Self::new(width, height, hires.scale, resize_x, resize_y);
        if target.upscale_px.0 < 8 || target.upscale_px.1 < 8 {
            return Err(GenerateError::InvalidValue(format!(
                "Input and output sizes should be greater than 0, but hires fix would make {}x{} of {width}x{height}",
                target.upscale_px.0, target.upscale_px.1
            )));
        }
        Ok(target)
    }

    fn new(width: usize, height: usize, scale: f64, resize_x: usize, resize_y: usize) -> Self {
        let mut truncate_latent = (0, 0);
        let upscale_px = match (resize_x, resize_y) {
            (0, 0) => (scaled(width, scale), scaled(height, scale)),
            (x, 0) => (x, x.saturating_mul(height) / width),
            (0, y) => (y.saturating_mul(width) / height, y),
            (x, y) => {
                let upscale = if (width as f64 / height as f64) < (x as f64 / y as f64) {
                    (x, x.saturating_mul(height) / width)
                } else {
                    (y.saturating_mul(width) / height, y)
                };
                truncate_latent = (
                    upscale.0.saturating_sub(x) / 8,
                    upscale.1.saturating_sub(y) / 8,
                );
                upscale
            }
        };
        Self {
            first_pass_px: (width, height),
            upscale_px,
            truncate_latent,
        }
    }
}

/// `(width, height)` that a job's pictures are enlarged to before anything is cut away; `None` without
/// hires fix, and where the job will say that its sizes make no picture.
#[must_use]
pub fn hires_upscale_px(params: &GenerationParams) -> Option<(usize, usize)> {
    let hires = params.hires.as_ref()?;
    let target = HiresTarget::of_job(params, hires).ok()?;
    Some(target.upscale_px)
}

/// Python's `int(size * scale)`; 0 for a scale that is negative or no number.
fn scaled(size: usize, scale: f64) -> usize {
    (size as f64 * scale) as usize
}

/// The first pass that A1111 used before hires fix had a scale: about 512² pixels, sides rounded up
/// to multiples of 64.
fn old_first_pass(width: usize, height: usize) -> (usize, usize) {
    let scale = (512.0 * 512.0 / (width.max(1) as f64 * height.max(1) as f64)).sqrt();
    let side = |size: usize| (scale * size as f64 / 64.0).ceil() as usize * 64;
    (side(width), side(height))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn targets_match_a1111() {
        let golden: Value =
            serde_json::from_str(include_str!("../../tests/golden/hires.json")).unwrap();
        let size = |case: &Value, key: &str| case[key].as_u64().unwrap() as usize;
        for case in golden["hires_resolution"].as_array().unwrap() {
            let target = HiresTarget::new(
                size(case, "width"),
                size(case, "height"),
                case["hr_scale"].as_f64().unwrap(),
                size(case, "hr_resize_x"),
                size(case, "hr_resize_y"),
            );
            let pair = |key: &str| {
                (
                    case[key][0].as_u64().unwrap() as usize,
                    case[key][1].as_u64().unwrap() as usize,
                )
            };
            assert_eq!(target.upscale_px, pair("upscale_to"), "{case}");
            assert_eq!(target.truncate_latent, pair("truncate_latent"), "{case}");
        }
    }
}
