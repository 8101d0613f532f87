//! Backwards along Euler's path: from a picture to noise that leads to it ("img2img alternative test").
//! No samplers of the list: scripts use them.

use crate::sampling::{Latent, SamplingError, Walk};

use super::{Sampler, SamplerKind, sampler};

/// Evaluates the model at the level that each step goes to; ends with unit variance.
pub static NOISE_FINDER: Sampler = sampler("noise finder", &[], SamplerKind::Sigma(find_noise));

/// Evaluates the model at the level that each step comes from; ends divided by the highest sigma.
pub static ADJUSTED_NOISE_FINDER: Sampler = sampler(
    "adjusted noise finder",
    &[],
    SamplerKind::Sigma(find_noise_adjusted),
);

/// The walk's start is a picture times the highest sigma over itself: the clean latent.
fn find_noise(walk: &mut Walk<'_>, mut x: Latent, sigmas: &[f32]) -> Result<Latent, SamplingError> {
    for (index, pair) in sigmas.windows(2).rev().enumerate() {
        let (sigma, below) = (pair[0], pair[1]);
        let denoised = walk.denoise(&x, sigma)?;
        walk.report(index, &denoised)?;
        let derivative = (&x - &denoised) / sigma;
        x.scaled_add(sigma - below, &derivative);
    }
    let deviation = deviation(&x);
    if deviation > 0.0 {
        x /= deviation;
    }
    Ok(x)
}

fn find_noise_adjusted(
    walk: &mut Walk<'_>,
    mut x: Latent,
    sigmas: &[f32],
) -> Result<Latent, SamplingError> {
    for (index, pair) in sigmas.windows(2).rev().enumerate() {
        let (sigma, below) = (pair[0], pair[1]);
        // At level 0 the model's share is nothing.
        if below <= 0.0 {
            continue;
        }
        let denoised = walk.denoise(&x, below)?;
        walk.report(index, &denoised)?;
        let derivative = (&x - &denoised) / below;
        x.scaled_add(sigma - below, &derivative);
    }
    let highest = sigmas.first().copied().unwrap_or(1.0);
    Ok(x / highest)
}

/// torch's `std`: over all values, with one degree of freedom less.
fn deviation(x: &Latent) -> f32 {
    let count = x.len() as f64;
    let mean = x.iter().map(|&value| f64::from(value)).sum::<f64>() / count;
    let squares: f64 = x
        .iter()
        .map(|&value| (f64::from(value) - mean).powi(2))
        .sum();
    (squares / (count - 1.0).max(1.0)).sqrt() as f32
}
