//! The stochastic DPM-Solver++ samplers of k-diffusion: DPM++ SDE, 2M SDE (midpoint and Heun) and
//! 3M SDE. Their noise comes from one Brownian path a picture.

use ndarray::Zip;

use super::{ancestral_step, combination, euler_move};
use crate::sampling::scalar::{exp, expm1, ln};
use crate::sampling::{Latent, SamplingError, Walk};

/// DPM++ SDE with the middle point at half the step (r = 1/2).
pub(super) fn dpmpp_sde(
    walk: &mut Walk<'_>,
    mut x: Latent,
    sigmas: &[f32],
) -> Result<Latent, SamplingError> {
    const R: f32 = 0.5;
    /// Weight of the second prediction, `1 / (2 r)`.
    const FACTOR: f32 = 1.0;
    let eta = walk.options.eta;
    for (index, pair) in sigmas.windows(2).enumerate() {
        let denoised = walk.denoise(&x, pair[0])?;
        walk.report(index, &denoised)?;
        if pair[1] == 0.0 {
            euler_move(&mut x, &denoised, pair[0], pair[1] - pair[0]);
            continue;
        }
        let (t, t_next) = (-ln(pair[0]), -ln(pair[1]));
        let h = t_next - t;
        let s = t + h * R;
        // The original derives the sigmas anew from their logarithms.
        let (sigma, sigma_s, sigma_next) = (exp(-t), exp(-s), exp(-t_next));

        let (down, up) = ancestral_step(sigma, sigma_s, eta);
        let t_down = -ln(down);
        let mut x_2 = combination(exp(-t_down) / sigma, &x, -expm1(t - t_down), &denoised);
        add_brownian(walk, &mut x_2, sigma, sigma_s, up)?;
        let denoised_2 = walk.denoise(&x_2, sigma_s)?;

        let (down, up) = ancestral_step(sigma, sigma_next, eta);
        let t_down = -ln(down);
        let mixed = combination(1.0 - FACTOR, &denoised, FACTOR, &denoised_2);
        x = combination(exp(-t_down) / sigma, &x, -expm1(t - t_down), &mixed);
        add_brownian(walk, &mut x, sigma, sigma_next, up)?;
    }
    Ok(x)
}

/// `x += noise * s_noise * scale`.
fn add_brownian(
    walk: &mut Walk<'_>,
    x: &mut Latent,
    sigma: f32,
    sigma_next: f32,
    scale: f32,
) -> Result<(), SamplingError> {
    let noise = walk.brownian(sigma, sigma_next)?;
    super::add_noise(x, &noise, walk.options.s_noise, scale);
    Ok(())
}

/// `x += noise * sigma_next * scale * s_noise`, in the order of the multistep samplers.
fn add_step_noise(
    walk: &mut Walk<'_>,
    x: &mut Latent,
    (sigma, sigma_next): (f32, f32),
    scale: f32,
) -> Result<(), SamplingError> {
    let noise = walk.brownian(sigma, sigma_next)?;
    let s_noise = walk.options.s_noise as f32;
    Zip::from(x)
        .and(&noise)
        .for_each(|x, &noise| *x += noise * sigma_next * scale * s_noise);
    Ok(())
}

/// How 2M SDE uses the previous prediction.
#[derive(Clone, Copy)]
enum Correction {
    Midpoint,
    Heun,
}

/// DPM++ 2M SDE.
pub(super) fn dpmpp_2m_sde_midpoint(
    walk: &mut Walk<'_>,
    x: Latent,
    sigmas: &[f32],
) -> Result<Latent, SamplingError> {
    dpmpp_2m_sde(walk, x, sigmas, Correction::Midpoint)
}

/// DPM++ 2M SDE Heun.
pub(super) fn dpmpp_2m_sde_heun(
    walk: &mut Walk<'_>,
    x: Latent,
    sigmas: &[f32],
) -> Result<Latent, SamplingError> {
    dpmpp_2m_sde(walk, x, sigmas, Correction::Heun)
}

fn dpmpp_2m_sde(
    walk: &mut Walk<'_>,
    mut x: Latent,
    sigmas: &[f32],
    correction: Correction,
) -> Result<Latent, SamplingError> {
    let eta = walk.options.eta;
    let mut previous: Option<(Latent, f32)> = None;
    for (index, pair) in sigmas.windows(2).enumerate() {
        let (sigma, sigma_next) = (pair[0], pair[1]);
        let denoised = walk.denoise(&x, sigma)?;
        walk.report(index, &denoised)?;
        if sigma_next == 0.0 {
            x.assign(&denoised);
            continue;
        }
        let (t, s) = (-ln(sigma), -ln(sigma_next));
        let h = s - t;
        let eta_h = eta as f32 * h;
        let decay = -expm1(-h - eta_h);
        x = combination(sigma_next / sigma * exp(-eta_h), &x, decay, &denoised);
        if let Some((previous, h_last)) = &previous {
            let r = h_last / h;
            let weight = match correction {
                Correction::Heun => (decay / (-h - eta_h) + 1.0) * (1.0 / r),
                Correction::Midpoint => 0.5 * decay * (1.0 / r),
            };
            Zip::from(&mut x)
                .and(&denoised)
                .and(previous)
                .for_each(|x, &new, &old| *x += weight * (new - old));
        }
        if eta != 0.0 {
            let scale = (-expm1(-2.0 * eta_h)).sqrt();
            add_step_noise(walk, &mut x, (sigma, sigma_next), scale)?;
        }
        previous = Some((denoised, h));
    }
    Ok(x)
}

/// DPM++ 3M SDE.
pub(super) fn dpmpp_3m_sde(
    walk: &mut Walk<'_>,
    mut x: Latent,
    sigmas: &[f32],
) -> Result<Latent, SamplingError> {
    let eta = walk.options.eta;
    // Predictions and steps, newest first.
    let mut history: Vec<(Latent, f32)> = Vec::new();
    for (index, pair) in sigmas.windows(2).enumerate() {
        let (sigma, sigma_next) = (pair[0], pair[1]);
        let denoised = walk.denoise(&x, sigma)?;
        walk.report(index, &denoised)?;
        if sigma_next == 0.0 {
            x.assign(&denoised);
            continue;
        }
        let h = ln(sigma) - ln(sigma_next);
        let h_eta = h * (eta + 1.0) as f32;
        x = combination(exp(-h_eta), &x, -expm1(-h_eta), &denoised);
        add_multistep_terms(&mut x, &denoised, &history, h, h_eta);
        if eta != 0.0 {
            let scale = (-expm1(-2.0 * h * eta as f32)).sqrt();
            add_step_noise(walk, &mut x, (sigma, sigma_next), scale)?;
        }
        history.insert(0, (denoised, h));
        history.truncate(2);
    }
    Ok(x)
}

/// The first and second differences of the predictions.
fn add_multistep_terms(
    x: &mut Latent,
    denoised: &Latent,
    history: &[(Latent, f32)],
    h: f32,
    h_eta: f32,
) {
    let phi_2 = expm1(-h_eta) / h_eta + 1.0;
    match history {
        [] => {}
        [(denoised_1, h_1)] => {
            let r = h_1 / h;
            Zip::from(x)
                .and(denoised)
                .and(denoised_1)
                .for_each(|x, &new, &old| *x += phi_2 * ((new - old) / r));
        }
        [(denoised_1, h_1), (denoised_2, h_2), ..] => {
            let (r0, r1) = (h_1 / h, h_2 / h);
            let phi_3 = phi_2 / h_eta - 0.5;
            Zip::from(x)
                .and(denoised)
                .and(denoised_1)
                .and(denoised_2)
                .for_each(|x, &new, &old, &older| {
                    let d1_0 = (new - old) / r0;
                    let d1_1 = (old - older) / r1;
                    let d1 = d1_0 + (d1_0 - d1_1) * r0 / (r0 + r1);
                    let d2 = (d1_0 - d1_1) / (r0 + r1);
                    *x = *x + phi_2 * d1 - phi_3 * d2;
                });
        }
    }
}
