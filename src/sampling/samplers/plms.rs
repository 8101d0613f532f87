//! PLMS: pseudo linear multistep (Liu et al., 2022) over DDIM's steps.

use std::collections::VecDeque;

use ndarray::Zip;

use super::TimestepGrid;
use crate::sampling::{Latent, SamplingError, Walk};

/// PLMS, without noise.
pub(super) fn plms(
    walk: &mut Walk<'_>,
    mut x: Latent,
    grid: &TimestepGrid<'_>,
) -> Result<Latent, SamplingError> {
    // Newest noise prediction first.
    let mut history: VecDeque<Latent> = VecDeque::new();
    let step_count = grid.timesteps.len().saturating_sub(1);
    for step in 0..step_count {
        let position = step_count - step;
        let eps = walk.denoise(&x, grid.timesteps[position] as f32)?;
        let mixed = match (history.front(), history.get(1), history.get(2)) {
            (None, ..) => {
                let (guess, _) = ddim_step(&x, &eps, grid, position);
                let below = grid.timesteps[position - 1] as f32;
                let eps_next = walk.denoise(&guess, below)?;
                (&eps + &eps_next) / 2.0
            }
            (Some(e1), None, _) => (&eps * 3.0 - e1) / 2.0,
            (Some(e1), Some(e2), None) => (&eps * 23.0 - e1 * 16.0 + e2 * 5.0) / 12.0,
            (Some(e1), Some(e2), Some(e3)) => {
                (&eps * 55.0 - e1 * 59.0 + e2 * 37.0 - e3 * 9.0) / 24.0
            }
        };
        let (next, predicted) = ddim_step(&x, &mixed, grid, position);
        history.push_front(eps);
        history.truncate(3);
        x = next;
        walk.report(step, &predicted)?;
    }
    Ok(x)
}

/// `(x one position below, the noise-free prediction)`.
fn ddim_step(
    x: &Latent,
    eps: &Latent,
    grid: &TimestepGrid<'_>,
    position: usize,
) -> (Latent, Latent) {
    let alpha = grid.alpha(position);
    let below = grid.alpha_below(position) as f32;
    let (signal, noise) = (alpha.sqrt(), (1.0 - alpha).sqrt());
    let mut predicted = x.clone();
    Zip::from(&mut predicted)
        .and(eps)
        .for_each(|x, &eps| *x = (*x - noise * eps) / signal);
    let next = super::combination(below.sqrt(), &predicted, (1.0 - below).sqrt(), eps);
    (next, predicted)
}
