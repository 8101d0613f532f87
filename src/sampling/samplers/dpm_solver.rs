//! DPM-Solver (Lu et al., 2022) with a fixed number of calls (DPM fast) and with adaptive steps
//! (DPM adaptive), both after k-diffusion's `DPMSolver`. Time is `t = -ln sigma`.

use ndarray::Zip;

use super::{add_noise, ancestral_step};
use crate::sampling::scalar::{exp, expm1, linspace, ln};
use crate::sampling::{Latent, SamplingError, Walk};

/// The sigma of a time.
fn sigma_of(t: f32) -> f32 {
    exp(-t)
}

/// The noise prediction at a time.
fn eps_at(walk: &mut Walk<'_>, x: &Latent, t: f32) -> Result<Latent, SamplingError> {
    let sigma = sigma_of(t);
    let denoised = walk.denoise(x, sigma)?;
    Ok((x - &denoised) / sigma)
}

/// Reports the noise-free prediction that `eps` stands for.
fn report(
    walk: &mut Walk<'_>,
    index: usize,
    x: &Latent,
    eps: &Latent,
    t: f32,
) -> Result<(), SamplingError> {
    let denoised = x - &(eps * sigma_of(t));
    walk.report(index, &denoised)
}

/// `x - scale * eps`.
fn first_order(x: &Latent, eps: &Latent, scale: f32) -> Latent {
    let mut result = x.clone();
    Zip::from(&mut result)
        .and(eps)
        .for_each(|x, &eps| *x -= scale * eps);
    result
}

/// `x - scale * eps - correction * (eps_r - eps)`.
fn second_order(x: &Latent, eps: &Latent, scale: f32, eps_r: &Latent, correction: f32) -> Latent {
    let mut result = x.clone();
    Zip::from(&mut result)
        .and(eps)
        .and(eps_r)
        .for_each(|x, &eps, &eps_r| *x = *x - scale * eps - correction * (eps_r - eps));
    result
}

/// The noise prediction at `t + r h` after a first-order step.
fn intermediate(
    walk: &mut Walk<'_>,
    x: &Latent,
    eps: &Latent,
    t: f32,
    h: f32,
    r: f64,
) -> Result<Latent, SamplingError> {
    let part = r as f32 * h;
    let s = t + part;
    let u = first_order(x, eps, sigma_of(s) * expm1(part));
    eps_at(walk, &u, s)
}

/// The second-order step from the prediction at `t + r1 h`.
fn step_2(x: &Latent, eps: &Latent, eps_r1: &Latent, t: f32, t_next: f32, r1: f64) -> Latent {
    let growth = expm1(t_next - t);
    let sigma = sigma_of(t_next);
    second_order(
        x,
        eps,
        sigma * growth,
        eps_r1,
        sigma / (2.0 * r1) as f32 * growth,
    )
}

/// The third-order step with `r1 = 1/3` and `r2 = 2/3`.
fn step_3(
    walk: &mut Walk<'_>,
    x: &Latent,
    eps: &Latent,
    eps_r1: &Latent,
    t: f32,
    t_next: f32,
) -> Result<Latent, SamplingError> {
    let (r1, r2) = (1.0 / 3.0, 2.0 / 3.0);
    let h = t_next - t;
    let part = r2 as f32 * h;
    let s2 = t + part;
    let growth = expm1(part);
    let sigma = sigma_of(s2);
    let correction = sigma * (r2 / r1) as f32 * (growth / part - 1.0);
    let u2 = second_order(x, eps, sigma * growth, eps_r1, correction);
    let eps_r2 = eps_at(walk, &u2, s2)?;
    let growth = expm1(h);
    let sigma = sigma_of(t_next);
    let correction = sigma / r2 as f32 * (growth / h - 1.0);
    Ok(second_order(x, eps, sigma * growth, &eps_r2, correction))
}

/// `(t that the solver goes to, noise added after)` of a step to `t_next`.
fn ancestral_time(t: f32, t_next: f32, t_end: f32, eta: f64) -> (f32, f32) {
    if eta == 0.0 {
        return (t_next, 0.0);
    }
    let (down, _) = ancestral_step(sigma_of(t), sigma_of(t_next), eta);
    let t_down = t_end.min(-ln(down));
    let (sigma, sigma_down) = (sigma_of(t_next), sigma_of(t_down));
    (t_down, (sigma * sigma - sigma_down * sigma_down).sqrt())
}

/// DPM fast: as many third-order steps as the calls allow, then lower orders.
pub(super) fn dpm_fast(
    walk: &mut Walk<'_>,
    mut x: Latent,
    _sigmas: &[f32],
) -> Result<Latent, SamplingError> {
    let call_count = walk.options.call_count;
    let (t_start, t_end) = time_range(walk)?;
    let interval_count = call_count / 3 + 1;
    let times = linspace(f64::from(t_start), f64::from(t_end), interval_count + 1);
    for (index, &order) in fast_orders(call_count).iter().enumerate() {
        let (t, t_next) = (times[index], times[index + 1]);
        let (t_down, up) = ancestral_time(t, t_next, t_end, walk.options.eta);
        let eps = eps_at(walk, &x, t)?;
        report(walk, index, &x, &eps, t)?;
        let h = t_down - t;
        x = match order {
            1 => first_order(&x, &eps, sigma_of(t_down) * expm1(h)),
            2 => {
                let eps_r1 = intermediate(walk, &x, &eps, t, h, 0.5)?;
                step_2(&x, &eps, &eps_r1, t, t_down, 0.5)
            }
            _ => {
                let eps_r1 = intermediate(walk, &x, &eps, t, h, 1.0 / 3.0)?;
                step_3(walk, &x, &eps, &eps_r1, t, t_down)?
            }
        };
        let noise = walk.noise();
        add_noise(&mut x, &noise, 1.0, up * walk.options.s_noise as f32);
    }
    Ok(x)
}

/// Orders of DPM fast's steps; their sum is the number of calls.
fn fast_orders(call_count: usize) -> Vec<usize> {
    let interval_count = call_count / 3 + 1;
    match call_count % 3 {
        0 => {
            let mut orders = vec![3; interval_count.saturating_sub(2)];
            orders.extend([2, 1]);
            orders
        }
        rest => {
            let mut orders = vec![3; interval_count - 1];
            orders.push(rest);
            orders
        }
    }
}

fn time_range(walk: &Walk<'_>) -> Result<(f32, f32), SamplingError> {
    let (sigma_min, sigma_max) = walk.options.sigma_range;
    if sigma_min > 0.0 && sigma_max > 0.0 && walk.options.call_count > 0 {
        Ok((-ln(sigma_max), -ln(sigma_min)))
    } else {
        Err(SamplingError::Schedule(
            "sigma_min and sigma_max must not be 0".to_owned(),
        ))
    }
}

/// DPM adaptive, order 3. The error is measured over the whole batch, so that a picture depends on
/// its neighbours, as in the original.
pub(super) fn dpm_adaptive(
    walk: &mut Walk<'_>,
    mut x: Latent,
    _sigmas: &[f32],
) -> Result<Latent, SamplingError> {
    const R1: f64 = 1.0 / 3.0;
    /// How near to the end a walk stops.
    const TIME_EPSILON: f32 = 1e-5;
    let eta = walk.options.eta;
    let (mut s, t_end) = time_range(walk)?;
    let mut control = StepControl::new(if eta == 0.0 { 3.0 } else { 1.5 });
    let mut x_prev = x.clone();
    let mut index = 0;
    while s < t_end - TIME_EPSILON {
        let t = t_end.min(s + control.h as f32);
        let (t_down, up) = ancestral_time(s, t, t_end, eta);
        let eps = eps_at(walk, &x, s)?;
        let eps_r1 = intermediate(walk, &x, &eps, s, t_down - s, R1)?;
        let x_low = step_2(&x, &eps, &eps_r1, s, t_down, R1);
        let x_high = step_3(walk, &x, &eps, &eps_r1, s, t_down)?;
        let report_x = x.clone();
        let report_s = s;
        if control.accepts(step_error(&x_low, &x_high, &x_prev)) {
            let noise = walk.noise();
            x = x_high;
            add_noise(&mut x, &noise, 1.0, up * walk.options.s_noise as f32);
            x_prev = x_low;
            s = t;
        }
        report(walk, index, &report_x, &eps, report_s)?;
        index += 1;
    }
    Ok(x)
}

/// Root mean square of the difference between the orders, relative to the tolerances.
fn step_error(x_low: &Latent, x_high: &Latent, x_prev: &Latent) -> f32 {
    const RELATIVE: f32 = 0.05;
    const ABSOLUTE: f32 = 0.0078;
    let mut square_sum = 0.0_f64;
    Zip::from(x_low)
        .and(x_high)
        .and(x_prev)
        .for_each(|&low, &high, &prev| {
            let delta = ABSOLUTE.max(RELATIVE * low.abs().max(prev.abs()));
            square_sum += f64::from((low - high) / delta).powi(2);
        });
    square_sum.sqrt() as f32 / (x_low.len() as f64).sqrt() as f32
}

/// k-diffusion's PID controller with its default gains (integral only); f64 as in Python.
struct StepControl {
    h: f64,
    order: f64,
}

impl StepControl {
    fn new(order: f64) -> Self {
        Self { h: 0.05, order }
    }

    /// Judges a step by its error and sets the length of the next.
    fn accepts(&mut self, error: f32) -> bool {
        const ACCEPT_SAFETY: f64 = 0.81;
        let inverse = 1.0 / (f64::from(error) + 1e-8);
        let factor = inverse.powf(1.0 / self.order);
        let factor = 1.0 + (factor - 1.0).atan();
        self.h *= factor;
        factor >= ACCEPT_SAFETY
    }
}
