//! The training schedule's `alphas_cumprod` as ldm computes it: betas are the squares of evenly
//! spaced roots, products in float64, the result rounded to float32.

use std::sync::Arc;

/// `alphas_cumprod` of ldm's "linear" schedule.
#[must_use]
pub fn alphas_cumprod(linear_start: f64, linear_end: f64, timesteps: usize) -> Arc<[f32]> {
    let (from, to) = (linear_start.sqrt(), linear_end.sqrt());
    let step = (to - from) / (timesteps.max(2) - 1) as f64;
    let mut product = 1.0_f64;
    (0..timesteps)
        .map(|index| {
            // torch.linspace counts from the nearer end.
            let root = if index < timesteps / 2 {
                from + step * index as f64
            } else {
                to - step * (timesteps - index - 1) as f64
            };
            product *= 1.0 - root * root;
            product as f32
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_schedule_is_a1111s_to_the_bit() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/compat-tests/golden/truth/sigmas.json"
        );
        let truth: serde_json::Value =
            serde_json::from_slice(&fs_err::read(path).unwrap()).unwrap();
        let want: Vec<f32> = truth["alphas_cumprod"]
            .as_array()
            .unwrap()
            .iter()
            .map(|value| value.as_f64().unwrap() as f32)
            .collect();
        assert_eq!(*alphas_cumprod(0.00085, 0.012, 1000), want[..]);
    }
}
