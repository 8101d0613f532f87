//! DPM-Solver++(2M) (Lu et al., 2022, algorithm 2).

use ndarray::Zip;

use super::combination;
use crate::sampling::scalar::{exp, expm1, ln};
use crate::sampling::{Latent, SamplingError, Walk};

/// DPM++ 2M.
pub(super) fn dpmpp_2m(
    walk: &mut Walk<'_>,
    mut x: Latent,
    sigmas: &[f32],
) -> Result<Latent, SamplingError> {
    let mut previous: Option<Latent> = None;
    for index in 0..sigmas.len().saturating_sub(1) {
        let denoised = walk.denoise(&x, sigmas[index])?;
        walk.report(index, &denoised)?;
        let t = -ln(sigmas[index]);
        let t_next = -ln(sigmas[index + 1]);
        let h = t_next - t;
        let ratio = exp(-t_next) / exp(-t);
        let weight = expm1(-h);
        match &previous {
            Some(previous) if sigmas[index + 1] != 0.0 => {
                let h_last = t + ln(sigmas[index - 1]);
                let r = h_last / h;
                let part = 1.0 / (2.0 * r);
                let whole = 1.0 + part;
                Zip::from(&mut x)
                    .and(&denoised)
                    .and(previous)
                    .for_each(|x, &new, &old| {
                        *x = ratio * *x - weight * (whole * new - part * old);
                    });
            }
            _ => x = combination(ratio, &x, -weight, &denoised),
        }
        previous = Some(denoised);
    }
    Ok(x)
}
