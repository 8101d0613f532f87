//! Heun's method (Karras et al., 2022, algorithm 2) and Restart sampling (Xu et al., 2023), which
//! walks Heun steps and jumps back up.

use ndarray::Zip;

use super::euler::churn;
use super::{add_noise, euler_move};
use crate::sampling::schedulers::karras;
use crate::sampling::{Latent, SamplingError, Walk};

/// Heun with optional churn.
pub(super) fn heun(
    walk: &mut Walk<'_>,
    mut x: Latent,
    sigmas: &[f32],
) -> Result<Latent, SamplingError> {
    for (index, pair) in sigmas.windows(2).enumerate() {
        let sigma_hat = churn(walk, &mut x, pair[0], sigmas.len() - 1);
        x = heun_step(walk, x, index, sigma_hat, pair[1])?;
    }
    Ok(x)
}

/// One step from `sigma` to `sigma_next`; a plain Euler step to 0.
fn heun_step(
    walk: &mut Walk<'_>,
    mut x: Latent,
    index: usize,
    sigma: f32,
    sigma_next: f32,
) -> Result<Latent, SamplingError> {
    let denoised = walk.denoise(&x, sigma)?;
    walk.report(index, &denoised)?;
    let dt = sigma_next - sigma;
    if sigma_next == 0.0 {
        euler_move(&mut x, &denoised, sigma, dt);
        return Ok(x);
    }
    let mut x_2 = x.clone();
    euler_move(&mut x_2, &denoised, sigma, dt);
    let denoised_2 = walk.denoise(&x_2, sigma_next)?;
    Zip::from(&mut x)
        .and(&denoised)
        .and(&x_2)
        .and(&denoised_2)
        .for_each(|x, &denoised, &x_2, &denoised_2| {
            let d = (*x - denoised) / sigma;
            let d_2 = (x_2 - denoised_2) / sigma_next;
            *x += (d + d_2) / 2.0 * dt;
        });
    Ok(x)
}

/// Heun steps with restarts from sigma 2 at sigma 0.1, from 20 steps on.
pub(super) fn restart(
    walk: &mut Walk<'_>,
    mut x: Latent,
    sigmas: &[f32],
) -> Result<Latent, SamplingError> {
    let mut last: Option<f32> = None;
    for (index, (from, to)) in restart_pairs(sigmas).into_iter().enumerate() {
        if let Some(last) = last.filter(|&last| last < from) {
            let raise = (from * from - last * last).sqrt();
            add_noise(&mut x, &walk.noise(), 1.0, raise);
        }
        x = heun_step(walk, x, index, from, to)?;
        last = Some(to);
    }
    Ok(x)
}

/// The steps of a Restart walk, `(from, to)`.
fn restart_pairs(sigmas: &[f32]) -> Vec<(f32, f32)> {
    const RESTART_SIGMA: f32 = 0.1;
    const RESTART_FROM_SIGMA: f32 = 2.0;
    const RHO: f64 = 7.0;
    let step_count = sigmas.len().saturating_sub(1);
    if step_count < 20 {
        return sigmas.windows(2).map(|pair| (pair[0], pair[1])).collect();
    }
    let (restart_steps, restart_times) = if step_count >= 36 {
        (step_count / 4, 2)
    } else {
        (9, 1)
    };
    let sigmas = karras(
        step_count - restart_steps * restart_times,
        f64::from(sigmas[step_count - 1]),
        f64::from(sigmas[0]),
        RHO,
    );
    let restart_at = nearest(&sigmas, RESTART_SIGMA);
    let mut pairs = Vec::new();
    for (index, pair) in sigmas.windows(2).enumerate() {
        pairs.push((pair[0], pair[1]));
        let from_index = nearest(&sigmas, RESTART_FROM_SIGMA);
        if index + 1 == restart_at && from_index < index + 1 {
            let low = f64::from(sigmas[index + 1]);
            let high = f64::from(sigmas[from_index]);
            let mut up = karras(restart_steps + 1, low, high, RHO);
            up.pop();
            for _ in 0..restart_times {
                pairs.extend(up.windows(2).map(|pair| (pair[0], pair[1])));
            }
        }
    }
    pairs
}

/// Index of the sigma at the least distance, the first of equals.
fn nearest(sigmas: &[f32], sigma: f32) -> usize {
    let mut best = 0;
    for (index, entry) in sigmas.iter().enumerate() {
        if (entry - sigma).abs() < (sigmas[best] - sigma).abs() {
            best = index;
        }
    }
    best
}
