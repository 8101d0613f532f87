//! DPM-Solver-2-like midpoint samplers of k-diffusion: DPM2 and DPM2 ancestral.

use super::euler::churn;
use super::{add_noise, ancestral_step, euler_move};
use crate::sampling::scalar::{exp, ln, midpoint};
use crate::sampling::{Latent, SamplingError, Walk};

/// DPM2 with optional churn.
pub(super) fn dpm2(
    walk: &mut Walk<'_>,
    mut x: Latent,
    sigmas: &[f32],
) -> Result<Latent, SamplingError> {
    for (index, pair) in sigmas.windows(2).enumerate() {
        let sigma_hat = churn(walk, &mut x, pair[0], sigmas.len() - 1);
        midpoint_step(walk, &mut x, index, sigma_hat, pair[1])?;
    }
    Ok(x)
}

/// DPM2 with fresh noise after every step.
pub(super) fn dpm2_ancestral(
    walk: &mut Walk<'_>,
    mut x: Latent,
    sigmas: &[f32],
) -> Result<Latent, SamplingError> {
    for (index, pair) in sigmas.windows(2).enumerate() {
        let (sigma_down, sigma_up) = ancestral_step(pair[0], pair[1], walk.options.eta);
        midpoint_step(walk, &mut x, index, pair[0], sigma_down)?;
        if sigma_down != 0.0 {
            let noise = walk.noise();
            add_noise(&mut x, &noise, walk.options.s_noise, sigma_up);
        }
    }
    Ok(x)
}

/// One step with the slope at the geometric middle of the two sigmas; plain Euler to 0.
fn midpoint_step(
    walk: &mut Walk<'_>,
    x: &mut Latent,
    index: usize,
    sigma: f32,
    sigma_next: f32,
) -> Result<(), SamplingError> {
    let denoised = walk.denoise(x, sigma)?;
    walk.report(index, &denoised)?;
    if sigma_next == 0.0 {
        euler_move(x, &denoised, sigma, sigma_next - sigma);
        return Ok(());
    }
    let sigma_mid = exp(midpoint(ln(sigma), ln(sigma_next)));
    let mut x_2 = x.clone();
    euler_move(&mut x_2, &denoised, sigma, sigma_mid - sigma);
    let denoised_2 = walk.denoise(&x_2, sigma_mid)?;
    let dt = sigma_next - sigma;
    ndarray::Zip::from(x)
        .and(&x_2)
        .and(&denoised_2)
        .for_each(|x, &x_2, &denoised_2| *x += (x_2 - denoised_2) / sigma_mid * dt);
    Ok(())
}
