//! Euler (Karras et al., 2022, algorithm 2 without its second half) and Euler ancestral.

use super::{add_noise, ancestral_step, euler_move};
use crate::sampling::{Latent, SamplingError, SolverOptions, Walk};

/// Euler with optional churn.
pub(super) fn euler(
    walk: &mut Walk<'_>,
    mut x: Latent,
    sigmas: &[f32],
) -> Result<Latent, SamplingError> {
    for (index, pair) in sigmas.windows(2).enumerate() {
        let sigma_hat = churn(walk, &mut x, pair[0], sigmas.len() - 1);
        let denoised = walk.denoise(&x, sigma_hat)?;
        walk.report(index, &denoised)?;
        euler_move(&mut x, &denoised, sigma_hat, pair[1] - sigma_hat);
    }
    Ok(x)
}

/// Euler ancestral. `s_noise` does not reach it.
pub(super) fn euler_ancestral(
    walk: &mut Walk<'_>,
    mut x: Latent,
    sigmas: &[f32],
) -> Result<Latent, SamplingError> {
    for (index, pair) in sigmas.windows(2).enumerate() {
        let (sigma, sigma_next) = (pair[0], pair[1]);
        let denoised = walk.denoise(&x, sigma)?;
        walk.report(index, &denoised)?;
        let (sigma_down, sigma_up) = ancestral_step(sigma, sigma_next, walk.options.eta);
        euler_move(&mut x, &denoised, sigma, sigma_down - sigma);
        if sigma_next > 0.0 {
            add_noise(&mut x, &walk.noise(), 1.0, sigma_up);
        }
    }
    Ok(x)
}

/// Raises the noise level of `x` where the options churn and returns the raised sigma. The noise is
/// drawn in every step, used or not: the draws are the seed.
pub(super) fn churn(walk: &mut Walk<'_>, x: &mut Latent, sigma: f32, step_count: usize) -> f32 {
    let noise = walk.noise();
    let options = &walk.options;
    let gamma = churn_gamma(options, sigma, step_count);
    let sigma_hat = sigma * (gamma + 1.0) as f32;
    if gamma > 0.0 {
        let raise = (sigma_hat * sigma_hat - sigma * sigma).sqrt();
        add_noise(x, &noise, options.s_noise, raise);
    }
    sigma_hat
}

/// The churn of one step, f64 as Python computes it.
fn churn_gamma(options: &SolverOptions, sigma: f32, step_count: usize) -> f64 {
    let sigma = f64::from(sigma);
    if options.s_tmin <= sigma && sigma <= options.s_tmax {
        (options.s_churn / step_count as f64).min(std::f64::consts::SQRT_2 - 1.0)
    } else {
        0.0
    }
}
