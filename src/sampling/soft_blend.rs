//! The blend of A1111's built-in script Soft Inpainting: original and current latent are mixed, and
//! every position gets back the magnitude that mixing loses.
//!
//! `t = repaint^(sigma^bias * strength)`, `v = a (1 - t) + b t`, and `v` is scaled to the length
//! `(|a|^boost (1 - t) + |b|^boost t)^(1 / boost)`; f64 for powers and lengths, f32 for the latents.

use ndarray::{Array3, s};

use super::Latent;

/// The blend of the script Soft Inpainting.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SoftBlend {
    /// "Schedule bias": power of sigma in the mask's exponent.
    pub schedule_bias: f64,
    /// "Preservation strength": scale of the mask's exponent.
    pub preservation_strength: f64,
    /// "Transition contrast boost": exponent of the magnitudes.
    pub transition_contrast_boost: f64,
}

impl SoftBlend {
    /// Mixes the latents and restores the magnitude that mixing loses.
    pub(super) fn blend(
        self,
        init: &Latent,
        current: &Latent,
        repaint: &Array3<f32>,
        sigma: f32,
    ) -> Latent {
        let exponent = f64::from(sigma).powf(self.schedule_bias) * self.preservation_strength;
        let weight = repaint.mapv(|m| f64::from(m).powf(exponent) as f32);
        let complement = weight.mapv(|t| 1.0 - t);
        let mut mixed = init * &complement + current * &weight;
        let detail = self.transition_contrast_boost;
        let (batch, _, height, width) = mixed.dim();
        for picture in 0..batch {
            for y in 0..height {
                for x in 0..width {
                    let norm = |latent: &Latent| {
                        let column = latent.slice(s![picture, .., y, x]);
                        column
                            .iter()
                            .map(|&v| f64::from(v).powi(2))
                            .sum::<f64>()
                            .sqrt()
                    };
                    let current_norm = norm(&mixed) + 1e-5;
                    // The weights may differ between channels in principle; A1111 takes the first.
                    let t = f64::from(weight[[0, y, x]]);
                    let want = (norm(init).powf(detail) * (1.0 - t)
                        + norm(current).powf(detail) * t)
                        .powf(1.0 / detail);
                    let scale = want / current_norm;
                    mixed
                        .slice_mut(s![picture, .., y, x])
                        .mapv_inplace(|v| (f64::from(v) * scale) as f32);
                }
            }
        }
        mixed
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array3, Array4};

    use super::SoftBlend;

    #[test]
    fn the_blend_keeps_the_ends_and_the_magnitude_between() {
        let original = Array4::from_shape_fn((1, 4, 1, 3), |(_, c, _, _)| c as f32 - 1.0);
        let current = Array4::from_shape_fn((1, 4, 1, 3), |(_, c, _, _)| 1.0 - c as f32);
        let nmask = [0.0, 1.0, 0.25];
        let nmask = Array3::from_shape_fn((4, 1, 3), |(_, _, x)| nmask[x]);
        let soft = SoftBlend {
            schedule_bias: 1.0,
            preservation_strength: 0.5,
            transition_contrast_boost: 4.0,
        };
        let out = soft.blend(&original, &current, &nmask, 1.0);
        let length = |latent: &Array4<f32>, x: usize| {
            (0..4)
                .map(|channel| latent[[0, channel, 0, x]].powi(2))
                .sum::<f32>()
                .sqrt()
        };
        for channel in 0..4 {
            assert!((out[[0, channel, 0, 0]] - original[[0, channel, 0, 0]]).abs() < 1e-4);
            assert!((out[[0, channel, 0, 1]] - current[[0, channel, 0, 1]]).abs() < 1e-4);
        }
        // Half of each would be nothing at all; both are equally long, and so is what lies between.
        let nmask = Array3::from_elem((4, 1, 3), 0.16);
        let out = soft.blend(&original, &current, &nmask, 1.0);
        assert!((length(&out, 2) - length(&original, 2)).abs() < 1e-3);
    }
}
