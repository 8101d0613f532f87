//! DDIM (Song et al., 2020) and its CFG++ variant (Chung et al., 2024), whose direction follows the
//! unconditional prediction.
//!
//! The first timestep of the grid is never evaluated: the result stays at its noise level.

use ndarray::Zip;

use super::TimestepGrid;
use crate::sampling::{Latent, SamplingError, Walk};

/// DDIM.
pub(super) fn ddim(
    walk: &mut Walk<'_>,
    x: Latent,
    grid: &TimestepGrid<'_>,
) -> Result<Latent, SamplingError> {
    ddim_walk(walk, x, grid, false)
}

/// DDIM CFG++; the table scales the guidance by 1/12.5.
pub(super) fn ddim_cfgpp(
    walk: &mut Walk<'_>,
    x: Latent,
    grid: &TimestepGrid<'_>,
) -> Result<Latent, SamplingError> {
    ddim_walk(walk, x, grid, true)
}

fn ddim_walk(
    walk: &mut Walk<'_>,
    mut x: Latent,
    grid: &TimestepGrid<'_>,
    follows_unconditional: bool,
) -> Result<Latent, SamplingError> {
    let step_count = grid.timesteps.len().saturating_sub(1);
    for step in 0..step_count {
        let position = step_count - step;
        let eps = walk.denoise(&x, grid.timesteps[position] as f32)?;
        let direction = match walk.denoiser.unconditional() {
            Some(unconditional) if follows_unconditional => unconditional.clone(),
            _ => eps.clone(),
        };
        let coefficients = Coefficients::new(grid, position, walk.options.eta);
        let noise = walk.noise();
        let mut predicted = x.clone();
        Zip::from(&mut predicted).and(&eps).for_each(|x, &eps| {
            *x = (*x - coefficients.noise_part * eps) / coefficients.signal_root;
        });
        Zip::from(&mut x)
            .and(&predicted)
            .and(&direction)
            .and(&noise)
            .for_each(|x, &x0, &direction, &noise| {
                let towards = coefficients.direction * direction;
                *x = coefficients.signal_root_below * x0 + towards + coefficients.sigma * noise;
            });
        walk.report(step, &predicted)?;
    }
    Ok(x)
}

/// The numbers of one step, f32 of what the original keeps per picture.
struct Coefficients {
    signal_root: f32,
    noise_part: f32,
    signal_root_below: f32,
    direction: f32,
    sigma: f32,
}

impl Coefficients {
    fn new(grid: &TimestepGrid<'_>, position: usize, eta: f64) -> Self {
        let alpha = grid.alpha(position);
        let below = grid.alpha_below(position);
        let alpha_wide = f64::from(alpha);
        let sigma = eta * ((1.0 - below) / (1.0 - alpha_wide) * (1.0 - alpha_wide / below)).sqrt();
        let (below, sigma) = (below as f32, sigma as f32);
        Self {
            signal_root: alpha.sqrt(),
            noise_part: (1.0 - alpha).sqrt(),
            signal_root_below: below.sqrt(),
            direction: (1.0 - below - sigma * sigma).sqrt(),
            sigma,
        }
    }
}
