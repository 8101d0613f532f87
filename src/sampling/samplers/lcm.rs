//! Latent consistency sampling (Luo et al., 2023): jump to the prediction, add noise, repeat.

use super::add_noise;
use crate::sampling::{Latent, SamplingError, Walk};

/// LCM. `s_noise` does not reach it.
pub(super) fn lcm(
    walk: &mut Walk<'_>,
    mut x: Latent,
    sigmas: &[f32],
) -> Result<Latent, SamplingError> {
    for (index, pair) in sigmas.windows(2).enumerate() {
        x = walk.denoise(&x, pair[0])?;
        walk.report(index, &x)?;
        if pair[1] > 0.0 {
            let noise = walk.noise();
            add_noise(&mut x, &noise, 1.0, pair[1]);
        }
    }
    Ok(x)
}
