//! The training schedule of a model as sigmas, and the way between sigmas and timesteps
//! (k-diffusion's `DiscreteSchedule`), with A1111's two options that change the schedule.

use half::f16;

use super::scalar::{exp, ln};

/// Timesteps of every Stable Diffusion training schedule.
pub(super) const TRAINING_STEPS: usize = 1000;

/// What the UNet's output means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prediction {
    /// The noise.
    Epsilon,
    /// The velocity, `alpha * eps - sigma * x0` (Salimans and Ho, 2022).
    Velocity,
}

/// Options that change `alphas_cumprod` before a batch, applied in this order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AlphaOptions {
    /// `use_downcasted_alpha_bar`: round to half precision.
    pub downcast: bool,
    /// `sd_noise_schedule` = `Zero Terminal SNR`.
    pub zero_terminal_snr: bool,
}

/// Sigmas of the 1000 training steps, ascending, with their logarithms.
#[derive(Debug, Clone, PartialEq)]
pub struct SigmaTable {
    alphas_cumprod: Vec<f32>,
    sigmas: Vec<f32>,
    log_sigmas: Vec<f32>,
    /// The tables are half precision, and so are differences between their entries.
    is_half: bool,
    /// `enable_quantization`: timesteps are whole.
    quantize: bool,
}

impl SigmaTable {
    /// The table of a model with these `alphas_cumprod` (ascending time).
    #[must_use]
    pub fn new(alphas_cumprod: &[f32], options: AlphaOptions, quantize: bool) -> Self {
        let mut alphas = alphas_cumprod.to_vec();
        if options.downcast {
            for alpha in &mut alphas {
                *alpha = round_half(*alpha);
            }
        }
        if options.zero_terminal_snr {
            alphas = zero_terminal_snr(&alphas, options.downcast);
        }
        let rounded = |value: f32| {
            if options.downcast {
                round_half(value)
            } else {
                value
            }
        };
        let sigmas: Vec<f32> = alphas
            .iter()
            .map(|&a| rounded(rounded(rounded(1.0 - a) / a).sqrt()))
            .collect();
        let log_sigmas = sigmas.iter().map(|&s| rounded(ln(s))).collect();
        Self {
            alphas_cumprod: alphas,
            sigmas,
            log_sigmas,
            is_half: options.downcast,
            quantize,
        }
    }

    /// The 50-step table of the LCM sampler: every twentieth training step, counted from the last.
    #[must_use]
    pub fn lcm(&self) -> LcmTable {
        LcmTable::new(&self.alphas_cumprod, self.quantize)
    }

    /// `alphas_cumprod` after the options.
    #[must_use]
    pub fn alphas_cumprod(&self) -> &[f32] {
        &self.alphas_cumprod
    }

    /// All sigmas, ascending.
    #[must_use]
    pub fn sigmas(&self) -> &[f32] {
        &self.sigmas
    }

    /// The smallest sigma.
    #[must_use]
    pub fn sigma_min(&self) -> f32 {
        self.sigmas[0]
    }

    /// The largest sigma.
    #[must_use]
    pub fn sigma_max(&self) -> f32 {
        self.sigmas[self.sigmas.len() - 1]
    }

    /// The timestep of a sigma, fractional unless quantised.
    #[must_use]
    pub fn timestep(&self, sigma: f32) -> f32 {
        let log_sigma = ln(sigma);
        if self.quantize {
            return nearest(&self.log_sigmas, log_sigma) as f32;
        }
        let last_pair = self.log_sigmas.len() - 2;
        // The table ascends, so the last entry at or below is the count of such entries less one.
        let at_or_below = self.log_sigmas.partition_point(|&entry| entry <= log_sigma);
        let low_index = at_or_below.saturating_sub(1).min(last_pair);
        let (low, high) = (self.log_sigmas[low_index], self.log_sigmas[low_index + 1]);
        let span = if self.is_half {
            round_half(low - high)
        } else {
            low - high
        };
        let weight = ((low - log_sigma) / span).clamp(0.0, 1.0);
        (1.0 - weight) * low_index as f32 + weight * (low_index + 1) as f32
    }

    /// The sigma of a fractional timestep.
    #[must_use]
    pub fn sigma(&self, timestep: f32) -> f32 {
        interpolated_sigma(&self.log_sigmas, timestep)
    }
}

/// The reduced table of the LCM sampler (Luo et al., 2023).
#[derive(Debug, Clone, PartialEq)]
pub struct LcmTable {
    sigmas: Vec<f32>,
    log_sigmas: Vec<f32>,
}

/// Training steps between two entries of the LCM table.
const LCM_STRIDE: usize = 20;

/// The logarithms of the LCM table for the usual training schedule, as torch 2.1.2 computes them on
/// a CPU, whose square root and logarithm are not the nearest float32. With an odd number of steps
/// the schedule halves the way between two entries, and which of them is the nearest hangs on that
/// last digit: another timestep gives another picture.
#[expect(
    clippy::unreadable_literal,
    reason = "a table as it was computed, not numbers to read"
)]
const TORCH_LCM_LOG_SIGMAS: [f32; 50] = [
    -2.0065587,
    -1.6280977,
    -1.3934379,
    -1.2175927,
    -1.0738986,
    -0.9504546,
    -0.8408905,
    -0.7413834,
    -0.6494491,
    -0.5633742,
    -0.48192072,
    -0.40415826,
    -0.3293661,
    -0.25696945,
    -0.1864988,
    -0.117562175,
    -0.049825538,
    0.017001009,
    0.08317264,
    0.14891848,
    0.21444649,
    0.279948,
    0.3456012,
    0.41157386,
    0.47802526,
    0.54510766,
    0.6129679,
    0.6817487,
    0.7515885,
    0.82262295,
    0.8949852,
    0.9688057,
    1.0442128,
    1.1213331,
    1.2002909,
    1.2812084,
    1.3642055,
    1.4493998,
    1.5369066,
    1.6268382,
    1.7193043,
    1.8144112,
    1.9122622,
    2.0129573,
    2.1165934,
    2.223263,
    2.3330562,
    2.4460595,
    2.5623553,
    2.682024,
];

impl LcmTable {
    fn new(alphas_cumprod: &[f32], _quantize: bool) -> Self {
        let count = alphas_cumprod.len() / LCM_STRIDE;
        let sigmas: Vec<f32> = (0..count)
            .map(|index| {
                let a = alphas_cumprod[alphas_cumprod.len() - 1 - LCM_STRIDE * (count - 1 - index)];
                ((1.0 - a) / a).sqrt()
            })
            .collect();
        let mut log_sigmas: Vec<f32> = sigmas.iter().map(|&s| ln(s)).collect();
        let is_usual = log_sigmas.len() == TORCH_LCM_LOG_SIGMAS.len()
            && log_sigmas
                .iter()
                .zip(TORCH_LCM_LOG_SIGMAS)
                .all(|(exact, torch)| (exact - torch).abs() < 5e-7);
        if is_usual {
            log_sigmas = TORCH_LCM_LOG_SIGMAS.to_vec();
        }
        Self { sigmas, log_sigmas }
    }

    /// All sigmas, ascending.
    #[must_use]
    pub fn sigmas(&self) -> &[f32] {
        &self.sigmas
    }

    /// The whole timestep of the entry nearest to a sigma.
    #[must_use]
    pub fn timestep(&self, sigma: f32) -> f32 {
        (nearest(&self.log_sigmas, ln(sigma)) * LCM_STRIDE + LCM_STRIDE - 1) as f32
    }

    /// The sigma of a timestep.
    #[must_use]
    pub fn sigma(&self, timestep: f32) -> f32 {
        let last = (self.sigmas.len() - 1) as f32;
        let offset = (LCM_STRIDE - 1) as f32;
        let place = ((timestep - offset) / LCM_STRIDE as f32).clamp(0.0, last);
        interpolated_sigma(&self.log_sigmas, place)
    }
}

fn interpolated_sigma(log_sigmas: &[f32], place: f32) -> f32 {
    let last = log_sigmas.len() - 1;
    let low = log_sigmas[(place.floor() as usize).min(last)];
    let high = log_sigmas[(place.ceil() as usize).min(last)];
    let weight = place.fract();
    exp((1.0 - weight) * low + weight * high)
}

/// Index of the first entry at the least distance.
fn nearest(log_sigmas: &[f32], log_sigma: f32) -> usize {
    let mut best = 0;
    let mut best_distance = f32::INFINITY;
    for (index, entry) in log_sigmas.iter().enumerate() {
        let distance = (log_sigma - entry).abs();
        if distance < best_distance {
            best = index;
            best_distance = distance;
        }
    }
    best
}

/// Shifts and scales `sqrt(abar)` so that the last step has (almost) no signal left (Lin et al.,
/// "Common diffusion noise schedules and sample steps are flawed", 2023).
fn zero_terminal_snr(alphas_cumprod: &[f32], is_half: bool) -> Vec<f32> {
    const LAST: f32 = 4.897_345_2e-8;
    let rounded = |value: f32| if is_half { round_half(value) } else { value };
    let roots: Vec<f32> = alphas_cumprod.iter().map(|&a| rounded(a.sqrt())).collect();
    let (first, last) = (roots[0], roots[roots.len() - 1]);
    let scale = rounded(first / rounded(first - last));
    let mut alphas: Vec<f32> = roots
        .iter()
        .map(|&root| {
            let shifted = rounded(rounded(root - last) * scale);
            rounded(shifted * shifted)
        })
        .collect();
    let end = alphas.len() - 1;
    alphas[end] = rounded(LAST);
    alphas
}

fn round_half(value: f32) -> f32 {
    f16::from_f32(value).to_f32()
}

/// `alphas_cumprod` of the training schedule that ldm calls "linear" and diffusers "scaled linear":
/// betas are the squares of evenly spaced roots; f64 throughout, rounded to f32 at the end.
#[must_use]
pub fn scaled_linear_alphas_cumprod(
    linear_start: f64,
    linear_end: f64,
    timesteps: usize,
) -> Vec<f32> {
    let (from, to) = (linear_start.sqrt(), linear_end.sqrt());
    let step = (to - from) / (timesteps.max(2) - 1) as f64;
    let mut product = 1.0_f64;
    (0..timesteps)
        .map(|index| {
            // torch.linspace counts the second half from the end.
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
