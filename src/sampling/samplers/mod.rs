//! The twenty samplers of A1111 v1.10.1, in listing order: one static table of names, options and
//! functions. Formulas follow k-diffusion (Katherine Crowson) and the papers named in each file;
//! all arithmetic is f32 as in torch, scalars included, unless a file says otherwise.

mod ddim;
mod dpm2;
mod dpm_solver;
mod dpmpp_2m;
mod dpmpp_2s;
mod dpmpp_sde;
mod euler;
mod heun;
mod lcm;
mod lms;
mod noise_finder;
mod plms;
mod unipc;

pub use noise_finder::{ADJUSTED_NOISE_FINDER, NOISE_FINDER};

use super::schedulers::{SCHEDULERS, Scheduler, find_scheduler};
use super::{Latent, SamplingError, Walk};

/// A walk along sigmas.
pub type SigmaWalker = fn(&mut Walk<'_>, Latent, &[f32]) -> Result<Latent, SamplingError>;

/// A walk along timesteps.
pub type TimestepWalker =
    fn(&mut Walk<'_>, Latent, &TimestepGrid<'_>) -> Result<Latent, SamplingError>;

/// The timesteps of a DDIM-like walk, ascending, with the model's `alphas_cumprod`.
#[derive(Debug, Clone, Copy)]
pub struct TimestepGrid<'a> {
    pub timesteps: &'a [usize],
    pub alphas_cumprod: &'a [f32],
}

impl TimestepGrid<'_> {
    /// `alphas_cumprod` at a position of the grid.
    fn alpha(&self, position: usize) -> f32 {
        self.alphas_cumprod[self.timesteps[position]]
    }

    /// `alphas_cumprod` one position below, at the schedule's first entry for position 0. The
    /// original keeps this list in f64.
    fn alpha_below(&self, position: usize) -> f64 {
        f64::from(match position {
            0 => self.alphas_cumprod[0],
            _ => self.alpha(position - 1),
        })
    }
}

/// What a sampler walks along.
#[derive(Debug, Clone, Copy)]
pub enum SamplerKind {
    /// Sigmas of a scheduler.
    Sigma(SigmaWalker),
    /// Sigmas, with the LCM denoiser and its 50-step table.
    Lcm(SigmaWalker),
    /// The model's timesteps; schedulers do not apply.
    Timestep(TimestepWalker),
}

/// One sampler: its names, what it takes and how it walks.
#[derive(Debug, Clone, Copy)]
pub struct Sampler {
    /// The name that users see and infotexts carry.
    pub name: &'static str,
    /// Old internal names.
    pub aliases: &'static [&'static str],
    /// Name of the scheduler behind "Automatic"; `None` is the model's own schedule.
    pub default_scheduler: Option<&'static str>,
    /// One sigma more is asked for and the last but one dropped.
    pub discards_penultimate: bool,
    /// Infotexts carry ENSD.
    pub uses_ensd: bool,
    /// Two model calls a step; prompt schedules are laid out over twice the steps.
    pub second_order: bool,
    /// Noise comes from a Brownian path.
    pub brownian: bool,
    /// `solver_type` as the API lists it.
    pub solver_type: Option<&'static str>,
    /// Takes `eta`.
    pub takes_eta: bool,
    /// Takes `s_churn`, `s_tmin` and `s_tmax`.
    pub takes_churn: bool,
    /// Takes `s_noise`.
    pub takes_s_noise: bool,
    /// Factor on the CFG scale.
    pub guidance_multiplier: f64,
    /// The function.
    pub kind: SamplerKind,
}

impl PartialEq for Sampler {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Sampler {
    /// The options as `GET /sdapi/v1/samplers` lists them, in order.
    #[must_use]
    pub fn listed_options(&self) -> Vec<(&'static str, &'static str)> {
        let flag = |set: bool, name: &'static str| set.then_some((name, "True"));
        [
            self.default_scheduler.map(|name| ("scheduler", name)),
            flag(self.discards_penultimate, "discard_next_to_last_sigma"),
            flag(self.uses_ensd, "uses_ensd"),
            flag(self.second_order, "second_order"),
            flag(self.brownian, "brownian_noise"),
            self.solver_type.map(|solver| ("solver_type", solver)),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

const fn sampler(
    name: &'static str,
    aliases: &'static [&'static str],
    kind: SamplerKind,
) -> Sampler {
    Sampler {
        name,
        aliases,
        default_scheduler: None,
        discards_penultimate: false,
        uses_ensd: false,
        second_order: false,
        brownian: false,
        solver_type: None,
        takes_eta: false,
        takes_churn: false,
        takes_s_noise: false,
        guidance_multiplier: 1.0,
        kind,
    }
}

/// All samplers in A1111's order.
pub static SAMPLERS: [Sampler; 20] = [
    Sampler {
        default_scheduler: Some("karras"),
        ..sampler(
            "DPM++ 2M",
            &["k_dpmpp_2m"],
            SamplerKind::Sigma(dpmpp_2m::dpmpp_2m),
        )
    },
    Sampler {
        default_scheduler: Some("karras"),
        second_order: true,
        brownian: true,
        takes_eta: true,
        takes_s_noise: true,
        ..sampler(
            "DPM++ SDE",
            &["k_dpmpp_sde"],
            SamplerKind::Sigma(dpmpp_sde::dpmpp_sde),
        )
    },
    Sampler {
        default_scheduler: Some("exponential"),
        brownian: true,
        takes_eta: true,
        takes_s_noise: true,
        ..sampler(
            "DPM++ 2M SDE",
            &["k_dpmpp_2m_sde"],
            SamplerKind::Sigma(dpmpp_sde::dpmpp_2m_sde_midpoint),
        )
    },
    Sampler {
        default_scheduler: Some("exponential"),
        brownian: true,
        solver_type: Some("heun"),
        takes_eta: true,
        takes_s_noise: true,
        ..sampler(
            "DPM++ 2M SDE Heun",
            &["k_dpmpp_2m_sde_heun"],
            SamplerKind::Sigma(dpmpp_sde::dpmpp_2m_sde_heun),
        )
    },
    Sampler {
        default_scheduler: Some("karras"),
        uses_ensd: true,
        second_order: true,
        takes_eta: true,
        takes_s_noise: true,
        ..sampler(
            "DPM++ 2S a",
            &["k_dpmpp_2s_a"],
            SamplerKind::Sigma(dpmpp_2s::dpmpp_2s_ancestral),
        )
    },
    Sampler {
        default_scheduler: Some("exponential"),
        discards_penultimate: true,
        brownian: true,
        takes_eta: true,
        takes_s_noise: true,
        ..sampler(
            "DPM++ 3M SDE",
            &["k_dpmpp_3m_sde"],
            SamplerKind::Sigma(dpmpp_sde::dpmpp_3m_sde),
        )
    },
    Sampler {
        uses_ensd: true,
        takes_eta: true,
        ..sampler(
            "Euler a",
            &["k_euler_a", "k_euler_ancestral"],
            SamplerKind::Sigma(euler::euler_ancestral),
        )
    },
    Sampler {
        takes_churn: true,
        takes_s_noise: true,
        ..sampler("Euler", &["k_euler"], SamplerKind::Sigma(euler::euler))
    },
    sampler("LMS", &["k_lms"], SamplerKind::Sigma(lms::lms)),
    Sampler {
        second_order: true,
        takes_churn: true,
        takes_s_noise: true,
        ..sampler("Heun", &["k_heun"], SamplerKind::Sigma(heun::heun))
    },
    Sampler {
        default_scheduler: Some("karras"),
        discards_penultimate: true,
        second_order: true,
        takes_churn: true,
        takes_s_noise: true,
        ..sampler("DPM2", &["k_dpm_2"], SamplerKind::Sigma(dpm2::dpm2))
    },
    Sampler {
        default_scheduler: Some("karras"),
        discards_penultimate: true,
        uses_ensd: true,
        second_order: true,
        takes_eta: true,
        takes_s_noise: true,
        ..sampler(
            "DPM2 a",
            &["k_dpm_2_a"],
            SamplerKind::Sigma(dpm2::dpm2_ancestral),
        )
    },
    Sampler {
        uses_ensd: true,
        takes_eta: true,
        takes_s_noise: true,
        ..sampler(
            "DPM fast",
            &["k_dpm_fast"],
            SamplerKind::Sigma(dpm_solver::dpm_fast),
        )
    },
    Sampler {
        uses_ensd: true,
        takes_eta: true,
        ..sampler(
            "DPM adaptive",
            &["k_dpm_ad"],
            SamplerKind::Sigma(dpm_solver::dpm_adaptive),
        )
    },
    Sampler {
        default_scheduler: Some("karras"),
        second_order: true,
        ..sampler("Restart", &["restart"], SamplerKind::Sigma(heun::restart))
    },
    Sampler {
        takes_eta: true,
        ..sampler("DDIM", &["ddim"], SamplerKind::Timestep(ddim::ddim))
    },
    Sampler {
        takes_eta: true,
        guidance_multiplier: 1.0 / 12.5,
        ..sampler(
            "DDIM CFG++",
            &["ddim_cfgpp"],
            SamplerKind::Timestep(ddim::ddim_cfgpp),
        )
    },
    sampler("PLMS", &["plms"], SamplerKind::Timestep(plms::plms)),
    sampler("UniPC", &["unipc"], SamplerKind::Timestep(unipc::unipc)),
    sampler("LCM", &["k_lcm"], SamplerKind::Lcm(lcm::lcm)),
];

/// The sampler of exactly this name; aliases do not count, as in A1111's API.
#[must_use]
pub fn find_sampler(name: &str) -> Option<&'static Sampler> {
    SAMPLERS.iter().find(|sampler| sampler.name == name)
}

/// Sampler and scheduler of a request: a sampler name may end with a scheduler's name ("DPM++ 2M
/// Karras"), an unknown sampler is DPM++ 2M. With `convert_automatic` the sampler's own default
/// scheduler is reported as Automatic.
#[must_use]
pub fn resolve_names(
    sampler_name: &str,
    scheduler_name: &str,
    convert_automatic: bool,
) -> (&'static Sampler, &'static Scheduler) {
    let mut scheduler = find_scheduler(scheduler_name).unwrap_or(&SCHEDULERS[0]);
    let mut name = if sampler_name.is_empty() {
        SAMPLERS[0].name
    } else {
        sampler_name
    };
    for candidate in &SCHEDULERS {
        let aliases = candidate.aliases.unwrap_or(&[]).iter().copied();
        for ending in [candidate.label, candidate.name].into_iter().chain(aliases) {
            let stripped = name
                .strip_suffix(ending)
                .and_then(|name| name.strip_suffix(' '));
            if let Some(stripped) = stripped {
                scheduler = candidate;
                name = stripped;
                break;
            }
        }
    }
    let sampler = find_sampler(name).unwrap_or(&SAMPLERS[0]);
    if convert_automatic && sampler.default_scheduler == Some(scheduler.name) {
        scheduler = &SCHEDULERS[0];
    }
    (sampler, scheduler)
}

/// `(sigma_down, sigma_up)`: how far an ancestral step goes down and how much noise it adds.
fn ancestral_step(sigma: f32, sigma_next: f32, eta: f64) -> (f32, f32) {
    if eta == 0.0 {
        return (sigma_next, 0.0);
    }
    let (square, square_next) = (sigma * sigma, sigma_next * sigma_next);
    let variance = square_next * (square - square_next) / square;
    // Python's `min` keeps the first of equal values and a NaN in second place loses.
    let fresh = eta as f32 * variance.sqrt();
    let sigma_up = if fresh < sigma_next {
        fresh
    } else {
        sigma_next
    };
    ((square_next - sigma_up * sigma_up).sqrt(), sigma_up)
}

/// `x += (x - denoised) / sigma * dt`.
fn euler_move(x: &mut Latent, denoised: &Latent, sigma: f32, dt: f32) {
    ndarray::Zip::from(x)
        .and(denoised)
        .for_each(|x, &denoised| {
            *x += (*x - denoised) / sigma * dt;
        });
}

/// `x += noise * s_noise * scale`.
fn add_noise(x: &mut Latent, noise: &Latent, s_noise: f64, scale: f32) {
    let s_noise = s_noise as f32;
    ndarray::Zip::from(x)
        .and(noise)
        .for_each(|x, &noise| *x += noise * s_noise * scale);
}

/// `a * x + b * y`, elementwise.
fn combination(a: f32, x: &Latent, b: f32, y: &Latent) -> Latent {
    let mut result = x.clone();
    ndarray::Zip::from(&mut result)
        .and(y)
        .for_each(|x, &y| *x = a * *x + b * y);
    result
}
