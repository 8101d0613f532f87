//! The names of samplers and schedulers, as `api` resolves and lists them.

/// A sampler's names and what clients are told about it.
#[derive(Debug, Clone, Copy)]
pub struct SamplerName {
    pub name: &'static str,
    pub aliases: &'static [&'static str],
    /// The `name` of the scheduler that `Automatic` means for it.
    pub default_scheduler: Option<&'static str>,
    /// A1111's option texts besides the scheduler, in its order.
    pub options: &'static [(&'static str, &'static str)],
}

/// A scheduler's names.
#[derive(Debug, Clone, Copy)]
pub struct SchedulerName {
    pub name: &'static str,
    pub label: &'static str,
    pub aliases: &'static [&'static str],
    pub default_rho: f64,
    pub need_inner_model: bool,
}

const SECOND: (&str, &str) = ("second_order", "True");
const BROWNIAN: (&str, &str) = ("brownian_noise", "True");
const DISCARD: (&str, &str) = ("discard_next_to_last_sigma", "True");
const ENSD: (&str, &str) = ("uses_ensd", "True");

const fn sampler(
    name: &'static str,
    aliases: &'static [&'static str],
    default_scheduler: Option<&'static str>,
    options: &'static [(&'static str, &'static str)],
) -> SamplerName {
    SamplerName {
        name,
        aliases,
        default_scheduler,
        options,
    }
}

const KARRAS: Option<&str> = Some("karras");
const EXPONENTIAL: Option<&str> = Some("exponential");

static SAMPLERS: &[SamplerName] = &[
    sampler("DPM++ 2M", &["k_dpmpp_2m"], KARRAS, &[]),
    sampler("DPM++ SDE", &["k_dpmpp_sde"], KARRAS, &[SECOND, BROWNIAN]),
    sampler(
        "DPM++ 2M SDE",
        &["k_dpmpp_2m_sde"],
        EXPONENTIAL,
        &[BROWNIAN],
    ),
    sampler(
        "DPM++ 2M SDE Heun",
        &["k_dpmpp_2m_sde_heun"],
        EXPONENTIAL,
        &[BROWNIAN, ("solver_type", "heun")],
    ),
    sampler("DPM++ 2S a", &["k_dpmpp_2s_a"], KARRAS, &[ENSD, SECOND]),
    sampler(
        "DPM++ 3M SDE",
        &["k_dpmpp_3m_sde"],
        EXPONENTIAL,
        &[DISCARD, BROWNIAN],
    ),
    sampler(
        "Euler a",
        &["k_euler_a", "k_euler_ancestral"],
        None,
        &[ENSD],
    ),
    sampler("Euler", &["k_euler"], None, &[]),
    sampler("LMS", &["k_lms"], None, &[]),
    sampler("Heun", &["k_heun"], None, &[SECOND]),
    sampler("DPM2", &["k_dpm_2"], KARRAS, &[DISCARD, SECOND]),
    sampler("DPM2 a", &["k_dpm_2_a"], KARRAS, &[DISCARD, ENSD, SECOND]),
    sampler("DPM fast", &["k_dpm_fast"], None, &[ENSD]),
    sampler("DPM adaptive", &["k_dpm_ad"], None, &[ENSD]),
    sampler("Restart", &["restart"], KARRAS, &[SECOND]),
    sampler("DDIM", &["ddim"], None, &[]),
    sampler("DDIM CFG++", &["ddim_cfgpp"], None, &[]),
    sampler("PLMS", &["plms"], None, &[]),
    sampler("UniPC", &["unipc"], None, &[]),
    sampler("LCM", &["k_lcm"], None, &[]),
];

const fn scheduler(
    name: &'static str,
    label: &'static str,
    aliases: &'static [&'static str],
    default_rho: f64,
    need_inner_model: bool,
) -> SchedulerName {
    SchedulerName {
        name,
        label,
        aliases,
        default_rho,
        need_inner_model,
    }
}

static SCHEDULERS: &[SchedulerName] = &[
    scheduler("automatic", "Automatic", &[], -1.0, false),
    scheduler("uniform", "Uniform", &[], -1.0, true),
    scheduler("karras", "Karras", &[], 7.0, false),
    scheduler("exponential", "Exponential", &[], -1.0, false),
    scheduler("polyexponential", "Polyexponential", &[], 1.0, false),
    scheduler("sgm_uniform", "SGM Uniform", &["SGMUniform"], -1.0, true),
    scheduler("kl_optimal", "KL Optimal", &[], -1.0, false),
    scheduler("align_your_steps", "Align Your Steps", &[], -1.0, false),
    scheduler("simple", "Simple", &[], -1.0, true),
    scheduler("normal", "Normal", &[], -1.0, true),
    scheduler("ddim", "DDIM", &[], -1.0, true),
    scheduler("beta", "Beta", &[], -1.0, true),
];

/// All samplers in A1111's order.
pub fn sampler_names() -> impl Iterator<Item = &'static SamplerName> {
    SAMPLERS.iter()
}

/// All schedulers in A1111's order.
pub fn scheduler_names() -> impl Iterator<Item = &'static SchedulerName> {
    SCHEDULERS.iter()
}
