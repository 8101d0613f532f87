//! The twelve noise schedules of A1111 v1.10.1, in listing order. Each yields sigmas in f32 from
//! the largest down, with torch's order of operations.

use super::SamplingError;
use super::beta_quantile::beta_quantile;
use super::scalar::{atan, exp, linspace, pow, tan};
use super::sigma_table::{LcmTable, SigmaTable};

/// One noise schedule: its names and its formula.
#[derive(Debug, Clone, Copy)]
pub struct Scheduler {
    /// A1111's internal name.
    pub name: &'static str,
    /// The name that users see and infotexts carry.
    pub label: &'static str,
    /// Other names that a sampler name may end with.
    pub aliases: Option<&'static [&'static str]>,
    /// The rho that the option replaces; −1 for none.
    pub default_rho: f64,
    /// The formula asks the model's sigma table.
    pub needs_inner_model: bool,
    formula: Formula,
}

impl PartialEq for Scheduler {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

/// How a schedule is computed.
#[derive(Debug, Clone, Copy)]
enum Formula {
    /// The model's own: evenly spaced timesteps.
    Native,
    Function(fn(&Inputs<'_>) -> Result<Vec<f32>, SamplingError>),
}

/// The model's noise levels as a scheduler sees them.
#[derive(Debug, Clone, Copy)]
pub enum Levels<'a> {
    /// The 1000 training steps.
    Full(&'a SigmaTable),
    /// The LCM sampler's 50 steps.
    Lcm(&'a LcmTable),
}

impl Levels<'_> {
    /// All sigmas, ascending.
    #[must_use]
    pub fn sigmas(&self) -> &[f32] {
        match self {
            Self::Full(table) => table.sigmas(),
            Self::Lcm(table) => table.sigmas(),
        }
    }

    /// The timestep of a sigma.
    #[must_use]
    pub fn timestep(&self, sigma: f32) -> f32 {
        match self {
            Self::Full(table) => table.timestep(sigma),
            Self::Lcm(table) => table.timestep(sigma),
        }
    }

    /// The sigma of a timestep.
    #[must_use]
    pub fn sigma(&self, timestep: f32) -> f32 {
        match self {
            Self::Full(table) => table.sigma(timestep),
            Self::Lcm(table) => table.sigma(timestep),
        }
    }
}

/// Options that shape schedules, A1111's defaults.
#[derive(Debug, Clone, PartialEq)]
pub struct ScheduleOptions {
    /// `sigma_min`; 0 keeps the table's.
    pub sigma_min: f64,
    /// `sigma_max`; 0 keeps the table's.
    pub sigma_max: f64,
    /// `rho`; 0 keeps the scheduler's.
    pub rho: f64,
    /// `beta_dist_alpha`.
    pub beta_alpha: f64,
    /// `beta_dist_beta`.
    pub beta_beta: f64,
    /// `use_old_karras_scheduler_sigmas`: sigmas from 0.1 to 10.
    pub use_old_karras_sigmas: bool,
    /// `always_discard_next_to_last_sigma`.
    pub always_discard_penultimate: bool,
    /// The model is of the SDXL family (Align Your Steps has its own list).
    pub is_sdxl: bool,
}

impl Default for ScheduleOptions {
    fn default() -> Self {
        Self {
            sigma_min: 0.0,
            sigma_max: 0.0,
            rho: 0.0,
            beta_alpha: 0.6,
            beta_beta: 0.6,
            use_old_karras_sigmas: false,
            always_discard_penultimate: false,
            is_sdxl: false,
        }
    }
}

/// What a formula computes from.
struct Inputs<'a> {
    count: usize,
    sigma_min: f64,
    sigma_max: f64,
    rho: f64,
    levels: Levels<'a>,
    options: &'a ScheduleOptions,
}

const fn scheduler(name: &'static str, label: &'static str, formula: Formula) -> Scheduler {
    Scheduler {
        name,
        label,
        aliases: None,
        default_rho: -1.0,
        needs_inner_model: false,
        formula,
    }
}

/// All schedulers in A1111's order.
pub static SCHEDULERS: [Scheduler; 12] = [
    scheduler("automatic", "Automatic", Formula::Native),
    Scheduler {
        needs_inner_model: true,
        ..scheduler("uniform", "Uniform", Formula::Function(uniform))
    },
    Scheduler {
        default_rho: 7.0,
        ..scheduler("karras", "Karras", Formula::Function(karras_of_inputs))
    },
    scheduler("exponential", "Exponential", Formula::Function(exponential)),
    Scheduler {
        default_rho: 1.0,
        ..scheduler(
            "polyexponential",
            "Polyexponential",
            Formula::Function(polyexponential),
        )
    },
    Scheduler {
        aliases: Some(&["SGMUniform"]),
        needs_inner_model: true,
        ..scheduler("sgm_uniform", "SGM Uniform", Formula::Function(sgm_uniform))
    },
    scheduler("kl_optimal", "KL Optimal", Formula::Function(kl_optimal)),
    scheduler(
        "align_your_steps",
        "Align Your Steps",
        Formula::Function(align_your_steps),
    ),
    Scheduler {
        needs_inner_model: true,
        ..scheduler("simple", "Simple", Formula::Function(simple))
    },
    Scheduler {
        needs_inner_model: true,
        ..scheduler("normal", "Normal", Formula::Function(normal))
    },
    Scheduler {
        needs_inner_model: true,
        ..scheduler("ddim", "DDIM", Formula::Function(ddim))
    },
    Scheduler {
        needs_inner_model: true,
        ..scheduler("beta", "Beta", Formula::Function(beta))
    },
];

/// The scheduler whose name or label is exactly this.
#[must_use]
pub fn find_scheduler(name: &str) -> Option<&'static Scheduler> {
    SCHEDULERS
        .iter()
        .find(|scheduler| scheduler.name == name || scheduler.label == name)
}

impl Scheduler {
    /// Whether this is the placeholder for the sampler's own choice.
    #[must_use]
    pub fn is_automatic(&self) -> bool {
        matches!(self.formula, Formula::Native)
    }

    /// `count` sigmas from the largest down and a final 0 (KL Optimal: `count + 1`, without 0).
    ///
    /// # Errors
    /// When the formula has no value for `count` (Simple and DDIM for 0).
    pub fn sigmas(
        &self,
        count: usize,
        levels: Levels<'_>,
        options: &ScheduleOptions,
    ) -> Result<Vec<f32>, SamplingError> {
        let (sigma_min, sigma_max) = Self::range(levels, options);
        let mut inputs = Inputs {
            count,
            sigma_min,
            sigma_max,
            rho: self.default_rho,
            levels,
            options,
        };
        if self.uses_rho_option(options) {
            inputs.rho = options.rho;
        }
        match self.formula {
            Formula::Native => uniform(&inputs),
            Formula::Function(formula) => formula(&inputs),
        }
    }

    /// Whether the option `rho` replaces the scheduler's own.
    #[must_use]
    pub fn uses_rho_option(&self, options: &ScheduleOptions) -> bool {
        options.rho != 0.0 && self.default_rho > 0.0 && options.rho != self.default_rho
    }

    /// The sigma range of the formula, f64 as Python passes it.
    fn range(levels: Levels<'_>, options: &ScheduleOptions) -> (f64, f64) {
        let table = levels.sigmas();
        let (first, last) = (f64::from(table[0]), f64::from(table[table.len() - 1]));
        if options.use_old_karras_sigmas {
            return (0.1, 10.0);
        }
        let or_table = |option: f64, table: f64| if option == 0.0 { table } else { option };
        (
            or_table(options.sigma_min, first),
            or_table(options.sigma_max, last),
        )
    }
}

fn append_zero(mut sigmas: Vec<f32>) -> Vec<f32> {
    sigmas.push(0.0);
    sigmas
}

/// Evenly spaced timesteps from the last to the first; k-diffusion's `get_sigmas`.
#[expect(clippy::unnecessary_wraps, reason = "one signature for all formulas")]
fn uniform(inputs: &Inputs<'_>) -> Result<Vec<f32>, SamplingError> {
    let levels = inputs.levels;
    let (first, last) = match levels {
        Levels::Full(table) => ((table.sigmas().len() - 1) as f64, 0.0),
        Levels::Lcm(table) => {
            let sigmas = table.sigmas();
            (
                f64::from(table.timestep(sigmas[sigmas.len() - 1])),
                f64::from(table.timestep(sigmas[0])),
            )
        }
    };
    let timesteps = linspace(first, last, inputs.count);
    Ok(append_zero(
        timesteps.into_iter().map(|t| levels.sigma(t)).collect(),
    ))
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "one shape for the whole table of schedulers"
)]
fn karras_of_inputs(inputs: &Inputs<'_>) -> Result<Vec<f32>, SamplingError> {
    Ok(karras(
        inputs.count,
        inputs.sigma_min,
        inputs.sigma_max,
        inputs.rho,
    ))
}

/// Karras et al. (2022), equation 5: evenly spaced in `sigma^(1/rho)`. `count` sigmas and a 0.
#[must_use]
pub fn karras(count: usize, sigma_min: f64, sigma_max: f64, rho: f64) -> Vec<f32> {
    let min_root = sigma_min.powf(1.0 / rho);
    let max_root = sigma_max.powf(1.0 / rho);
    let (base, slope) = (max_root as f32, (min_root - max_root) as f32);
    append_zero(
        linspace(0.0, 1.0, count)
            .into_iter()
            .map(|ramp| pow(base + ramp * slope, rho))
            .collect(),
    )
}

#[expect(clippy::unnecessary_wraps, reason = "one signature for all formulas")]
fn exponential(inputs: &Inputs<'_>) -> Result<Vec<f32>, SamplingError> {
    let logs = linspace(inputs.sigma_max.ln(), inputs.sigma_min.ln(), inputs.count);
    Ok(append_zero(logs.into_iter().map(exp).collect()))
}

#[expect(clippy::unnecessary_wraps, reason = "one signature for all formulas")]
fn polyexponential(inputs: &Inputs<'_>) -> Result<Vec<f32>, SamplingError> {
    let slope = (inputs.sigma_max.ln() - inputs.sigma_min.ln()) as f32;
    let base = inputs.sigma_min.ln() as f32;
    let ramp = linspace(1.0, 0.0, inputs.count);
    Ok(append_zero(
        ramp.into_iter()
            .map(|r| exp(pow(r, inputs.rho) * slope + base))
            .collect(),
    ))
}

/// The timesteps of the ends of the range.
fn timestep_range(inputs: &Inputs<'_>) -> (f64, f64) {
    (
        f64::from(inputs.levels.timestep(inputs.sigma_max as f32)),
        f64::from(inputs.levels.timestep(inputs.sigma_min as f32)),
    )
}

#[expect(clippy::unnecessary_wraps, reason = "one signature for all formulas")]
fn sgm_uniform(inputs: &Inputs<'_>) -> Result<Vec<f32>, SamplingError> {
    let (start, end) = timestep_range(inputs);
    let mut timesteps = linspace(start, end, inputs.count + 1);
    timesteps.pop();
    Ok(append_zero(
        timesteps
            .into_iter()
            .map(|t| inputs.levels.sigma(t))
            .collect(),
    ))
}

/// Sabour et al. (2024), the KL-optimal schedule: `count + 1` sigmas that end in the smallest.
#[expect(clippy::unnecessary_wraps, reason = "one signature for all formulas")]
fn kl_optimal(inputs: &Inputs<'_>) -> Result<Vec<f32>, SamplingError> {
    let alpha_min = atan(inputs.sigma_min as f32);
    let alpha_max = atan(inputs.sigma_max as f32);
    let count = inputs.count as f32;
    Ok((0..=inputs.count)
        .map(|index| {
            let part = index as f32 / count;
            tan(part * alpha_min + (1.0 - part) * alpha_max)
        })
        .collect())
}

/// Sabour et al., "Align your steps" (2024): NVIDIA's lists for 10 steps, interpolated for others.
#[expect(clippy::unnecessary_wraps, reason = "one signature for all formulas")]
fn align_your_steps(inputs: &Inputs<'_>) -> Result<Vec<f32>, SamplingError> {
    const SD: [f64; 11] = [
        14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029,
    ];
    const SDXL: [f64; 11] = [
        14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029,
    ];
    let list = if inputs.options.is_sdxl { &SDXL } else { &SD };
    let sigmas = if inputs.count == list.len() {
        list.iter().map(|&sigma| sigma as f32).collect()
    } else {
        log_linear(list, inputs.count)
    };
    Ok(append_zero(sigmas))
}

/// Log-linear interpolation over equally spaced places of the reversed list (numpy's `interp`).
fn log_linear(list: &[f64], count: usize) -> Vec<f32> {
    let logs: Vec<f64> = list.iter().rev().map(|sigma| sigma.ln()).collect();
    let last = logs.len() - 1;
    let place_of = |index: usize, count: usize| {
        if count == 1 {
            0.0
        } else if index == count - 1 {
            1.0
        } else {
            index as f64 * (1.0 / (count - 1) as f64)
        }
    };
    let knots: Vec<f64> = (0..=last)
        .map(|index| place_of(index, logs.len()))
        .collect();
    let mut sigmas: Vec<f32> = (0..count)
        .map(|index| {
            let x = place_of(index, count);
            let low = knots.partition_point(|&knot| knot <= x).saturating_sub(1);
            if low >= last {
                return logs[last].exp() as f32;
            }
            let slope = (logs[low + 1] - logs[low]) / (knots[low + 1] - knots[low]);
            (slope * (x - knots[low]) + logs[low]).exp() as f32
        })
        .collect();
    sigmas.reverse();
    sigmas
}

/// Every `1000 / count`-th training sigma, from the last.
fn simple(inputs: &Inputs<'_>) -> Result<Vec<f32>, SamplingError> {
    let sigmas = inputs.levels.sigmas();
    if inputs.count == 0 {
        return Err(no_steps("Simple"));
    }
    let stride = sigmas.len() as f64 / inputs.count as f64;
    Ok(append_zero(
        (0..inputs.count)
            .map(|index| sigmas[sigmas.len() - 1 - (index as f64 * stride) as usize])
            .collect(),
    ))
}

#[expect(clippy::unnecessary_wraps, reason = "one signature for all formulas")]
fn normal(inputs: &Inputs<'_>) -> Result<Vec<f32>, SamplingError> {
    let (start, end) = timestep_range(inputs);
    Ok(append_zero(
        linspace(start, end, inputs.count)
            .into_iter()
            .map(|t| inputs.levels.sigma(t))
            .collect(),
    ))
}

/// The training sigmas at 1, 1 + stride, …; their count may differ from `count`.
fn ddim(inputs: &Inputs<'_>) -> Result<Vec<f32>, SamplingError> {
    let sigmas = inputs.levels.sigmas();
    if inputs.count == 0 {
        return Err(no_steps("DDIM"));
    }
    let stride = (sigmas.len() / inputs.count).max(1);
    let mut picked: Vec<f32> = sigmas.iter().skip(1).step_by(stride).copied().collect();
    picked.reverse();
    Ok(append_zero(picked))
}

/// Lee et al., "Beta sampling is all you need" (2024).
#[expect(clippy::unnecessary_wraps, reason = "one signature for all formulas")]
fn beta(inputs: &Inputs<'_>) -> Result<Vec<f32>, SamplingError> {
    let last = inputs.count.saturating_sub(1);
    let step = if last == 0 { 0.0 } else { 1.0 / last as f64 };
    let range = inputs.sigma_max - inputs.sigma_min;
    Ok(append_zero(
        (0..inputs.count)
            .map(|index| {
                let place = if index == last && last > 0 {
                    1.0
                } else {
                    index as f64 * step
                };
                let quantile = beta_quantile(
                    1.0 - place,
                    inputs.options.beta_alpha,
                    inputs.options.beta_beta,
                );
                (inputs.sigma_min + quantile * range) as f32
            })
            .collect(),
    ))
}

fn no_steps(label: &str) -> SamplingError {
    SamplingError::Schedule(format!("the schedule {label} has no sigmas for 0 steps"))
}
