//! DPM-Solver++(2S) with ancestral noise (Lu et al., 2022, algorithm 1).

use super::{add_noise, ancestral_step, combination, euler_move};
use crate::sampling::scalar::{exp, expm1, ln};
use crate::sampling::{Latent, SamplingError, Walk};

/// DPM++ 2S a.
pub(super) fn dpmpp_2s_ancestral(
    walk: &mut Walk<'_>,
    mut x: Latent,
    sigmas: &[f32],
) -> Result<Latent, SamplingError> {
    for (index, pair) in sigmas.windows(2).enumerate() {
        let (sigma, sigma_next) = (pair[0], pair[1]);
        let denoised = walk.denoise(&x, sigma)?;
        walk.report(index, &denoised)?;
        let (sigma_down, sigma_up) = ancestral_step(sigma, sigma_next, walk.options.eta);
        if sigma_down == 0.0 {
            euler_move(&mut x, &denoised, sigma, sigma_down - sigma);
        } else {
            let (t, t_next) = (-ln(sigma), -ln(sigma_down));
            let h = t_next - t;
            let middle = t + 0.5 * h;
            let x_2 = combination(exp(-middle) / exp(-t), &x, -expm1(-h * 0.5), &denoised);
            let denoised_2 = walk.denoise(&x_2, exp(-middle))?;
            x = combination(exp(-t_next) / exp(-t), &x, -expm1(-h), &denoised_2);
        }
        if sigma_next > 0.0 {
            let noise = walk.noise();
            add_noise(&mut x, &noise, walk.options.s_noise, sigma_up);
        }
    }
    Ok(x)
}
