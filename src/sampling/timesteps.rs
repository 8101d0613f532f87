//! The timestep grid of DDIM, PLMS and UniPC.

use super::SamplingError;
use super::sigma_table::TRAINING_STEPS;

/// Ascending timesteps for a number of steps: every `1000 div steps`-th, shifted by one. The count
/// may exceed `step_count` (28 steps give 29 entries).
///
/// # Errors
/// For 0 steps and for more than 1000.
pub fn discretised_timesteps(step_count: usize) -> Result<Vec<usize>, SamplingError> {
    let stride = TRAINING_STEPS.checked_div(step_count).unwrap_or(0);
    if stride == 0 {
        return Err(SamplingError::Schedule(format!(
            "timestep samplers take 1 to {TRAINING_STEPS} steps, not {step_count}"
        )));
    }
    Ok((0..TRAINING_STEPS)
        .step_by(stride)
        .map(|timestep| (timestep + 1).min(TRAINING_STEPS - 1))
        .collect())
}
