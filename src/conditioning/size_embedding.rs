//! SDXL's vector conditioning: sinusoidal embeddings of numbers.
//!
//! Follows `timestep_embedding` of generative-models in f32: the first half cosines, the second
//! half sines, `freq_i = exp(-ln(10000) · i / half)`.

/// Appends the embedding of `number`, `width` values, to `out`.
pub(super) fn push_sinusoidal(number: f32, width: usize, out: &mut Vec<f32>) {
    let half = width / 2;
    let log_period = -10_000_f64.ln() as f32;
    let angles: Vec<f32> = (0..half)
        .map(|index| number * (log_period * index as f32 / half as f32).exp())
        .collect();
    out.extend(angles.iter().map(|angle| angle.cos()));
    out.extend(angles.iter().map(|angle| angle.sin()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosines_come_first_and_frequencies_fall() {
        let mut out = Vec::new();
        push_sinusoidal(2.0, 4, &mut out);
        let want = [2_f32.cos(), 0.02_f32.cos(), 2_f32.sin(), 0.02_f32.sin()];
        for (have, want) in out.iter().zip(want) {
            assert!((have - want).abs() < 1e-6, "{out:?}");
        }
    }
}
