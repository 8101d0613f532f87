//! LMS: a linear multistep method of order 4 on k-diffusion's derivative.
//!
//! The coefficients are integrals of Lagrange polynomials. The original integrates numerically to
//! a relative 1e-4 bound (and in practice to 1e-15, the integrand being a cubic); this integrates
//! exactly, in f64 over f32 differences.

use std::collections::VecDeque;

use crate::sampling::{Latent, SamplingError, Walk};

const ORDER: usize = 4;

/// Linear multistep.
pub(super) fn lms(
    walk: &mut Walk<'_>,
    mut x: Latent,
    sigmas: &[f32],
) -> Result<Latent, SamplingError> {
    // Newest derivative first.
    let mut derivatives: VecDeque<Latent> = VecDeque::with_capacity(ORDER + 1);
    for index in 0..sigmas.len().saturating_sub(1) {
        let denoised = walk.denoise(&x, sigmas[index])?;
        walk.report(index, &denoised)?;
        derivatives.push_front((&x - &denoised) / sigmas[index]);
        derivatives.truncate(ORDER);
        let order = (index + 1).min(ORDER);
        let mut sum: Option<Latent> = None;
        for (j, derivative) in derivatives.iter().take(order).enumerate() {
            let term = derivative * coefficient(order, sigmas, index, j) as f32;
            match &mut sum {
                None => sum = Some(term),
                Some(sum) => *sum += &term,
            }
        }
        if let Some(sum) = sum {
            x += &sum;
        }
    }
    Ok(x)
}

/// Integral from `t[i]` to `t[i+1]` of the Lagrange polynomial of node `j`.
fn coefficient(order: usize, t: &[f32], i: usize, j: usize) -> f64 {
    // Two Gauss-Legendre points are exact for the cubic.
    let (start, end) = (f64::from(t[i]), f64::from(t[i + 1]));
    let (centre, half) = (f64::midpoint(start, end), (end - start) / 2.0);
    let node = 1.0 / 3.0_f64.sqrt();
    let polynomial = |tau: f64| {
        (0..order)
            .filter(|&k| k != j)
            .map(|k| (tau - f64::from(t[i - k])) / f64::from(t[i - j] - t[i - k]))
            .product::<f64>()
    };
    half * (polynomial(centre - half * node) + polynomial(centre + half * node))
}
