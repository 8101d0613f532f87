//! One walk from start noise to a finished latent: what it needs decided ([`SamplingPlan`]), the
//! starts of txt2img and img2img, and what the infotext tells of it (A1111's sampler classes).

use std::ops::ControlFlow;
use std::sync::Arc;

use super::guidance::{
    GuidanceOptions, GuidedDenoiser, GuidedDenoiserParams, InpaintMask, NoiseSpace, Preview,
    RefinerSwitch, ScheduledConditioning,
};
use super::samplers::{Sampler, SamplerKind, SigmaWalker, TimestepGrid, TimestepWalker};
use super::schedulers::{Levels, ScheduleOptions, Scheduler, find_scheduler};
use super::sigma_table::{AlphaOptions, Prediction, SigmaTable};
use super::steps::img2img_steps;
use super::timesteps::discretised_timesteps;
use super::walk::{BrownianSource, SolverOptions, Step, UniPcOptions, Walk};
use super::{Denoiser, Latent, NoiseSource, SamplingError, Unet};
use crate::rng::{BrownianNoise, NoiseGenerator};

/// A UNet and what its numbers mean.
#[derive(Clone)]
pub struct SamplingModel {
    pub unet: Arc<dyn Unet>,
    pub prediction: Prediction,
    /// `alphas_cumprod` of the training schedule, 1000 values.
    pub alphas_cumprod: Arc<[f32]>,
    /// An instruct-pix2pix checkpoint.
    pub is_edit: bool,
}

/// Where a walk starts.
#[derive(Debug, Clone)]
pub enum Start {
    /// From noise alone.
    Txt2Img,
    /// From a latent with noise over it.
    Img2Img(Img2ImgStart),
}

/// The start of img2img and of the hires pass.
#[derive(Debug, Clone)]
pub struct Img2ImgStart {
    /// The encoded picture, `[batch, channels, h, w]`.
    pub init: Latent,
    pub denoising_strength: f64,
    /// The hires pass, or the option `img2img_fix_steps`: run as many steps as asked for.
    pub fixed_steps: bool,
    /// The option `img2img_extra_noise`.
    pub extra_noise: f64,
}

/// `s_churn`, `s_tmin`, `s_tmax` and `s_noise` of the request and of the options.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChurnOptions {
    pub s_churn: Option<f64>,
    pub s_tmin: Option<f64>,
    pub s_tmax: Option<f64>,
    pub s_noise: Option<f64>,
}

/// Requests and options that reach the samplers.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplerOptions {
    /// The request's `eta`.
    pub eta: Option<f64>,
    /// The option `eta_ancestral`.
    pub eta_ancestral: f64,
    /// The option `eta_ddim`.
    pub eta_ddim: f64,
    /// The request's fields; `None` takes the option's.
    pub churn_request: ChurnOptions,
    /// The options; `None` is neutral (0, 0, 0 for no limit, 1).
    pub churn_option: ChurnOptions,
    /// The option `sgm_noise_multiplier`.
    pub sgm_noise_multiplier: bool,
    /// The options of UniPC.
    pub uni_pc: UniPcOptions,
}

impl Default for SamplerOptions {
    fn default() -> Self {
        Self {
            eta: None,
            eta_ancestral: 1.0,
            eta_ddim: 0.0,
            churn_request: ChurnOptions::default(),
            churn_option: ChurnOptions::default(),
            sgm_noise_multiplier: false,
            uni_pc: UniPcOptions::default(),
        }
    }
}

/// One walk with everything decided.
pub struct SamplingPlan {
    pub sampler: &'static Sampler,
    /// `Automatic` takes the sampler's own.
    pub scheduler: &'static Scheduler,
    pub step_count: usize,
    pub start: Start,
    /// The start noise, `[batch, channels, h, w]`: `ImageRng::first()`, times
    /// `initial_noise_multiplier` for img2img.
    pub noise: Latent,
    pub model: SamplingModel,
    pub alpha_options: AlphaOptions,
    /// The option `enable_quantization`.
    pub quantize: bool,
    pub schedule: ScheduleOptions,
    pub options: SamplerOptions,
    pub guidance: GuidanceOptions,
    pub conditioning: ScheduledConditioning,
    /// Channels beside the latent for inpainting and instruct-pix2pix models,
    /// `[batch, channels, h, w]`.
    pub image_conditioning: Option<Latent>,
    pub mask: Option<InpaintMask>,
    pub preview: Preview,
    /// Generator and seeds (one a picture) of the Brownian paths.
    pub brownian: (NoiseGenerator, Vec<i64>),
}

/// What a walk meets on its way.
pub struct RunContext<'a> {
    /// Noise of the steps: the `ImageRng` whose first draw was the plan's start noise.
    pub noise: &'a mut dyn NoiseSource,
    /// Whether the job was interrupted or skipped; asked before every model call.
    pub interrupted: &'a dyn Fn() -> bool,
    /// Told of every step; `Break` ends the walk like an interrupt.
    pub on_step: &'a mut dyn FnMut(StepReport<'_>) -> ControlFlow<()>,
    pub refiner: Option<RefinerSwitch<'a>>,
}

/// One step of a walk.
#[derive(Debug)]
pub struct StepReport<'a> {
    /// Counts from 0 (`sampling_step`).
    pub index: usize,
    /// Steps of this walk (`sampling_steps`).
    pub step_count: usize,
    /// The latent of a preview, noise-free.
    pub preview: &'a Latent,
}

/// A key of the infotext and where its value comes from.
#[derive(Debug, Clone, PartialEq)]
pub struct InfotextEntry {
    pub key: &'static str,
    pub value: InfotextValue,
}

/// The value of an infotext key.
#[derive(Debug, Clone, PartialEq)]
pub enum InfotextValue {
    True,
    Number(f64),
    /// The A1111 option of this name, printed as it is stored (whole numbers stay whole).
    Option(&'static str),
}

/// The end of a walk.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The finished latent, or the last prediction of an interrupted walk.
    pub latent: Latent,
    pub interrupted: bool,
    /// Label of the schedule really used (`Schedule type`).
    pub schedule_label: &'static str,
    /// The sampler's infotext entries in A1111's order.
    pub infotext: Vec<InfotextEntry>,
}

/// Walks the plan.
///
/// # Errors
/// When the schedule does not fit, the network fails or the conditioning does not fit the batch.
/// An interrupt is no error: the outcome says so.
pub fn run(plan: SamplingPlan, context: RunContext<'_>) -> Result<Outcome, SamplingError> {
    let prepared = prepare(&plan)?;
    let calls_per_step = if plan.sampler.second_order { 2 } else { 1 };
    let fallback = match plan.start {
        Start::Txt2Img => prepared.x.clone(),
        Start::Img2Img(start) => start.init,
    };
    let mut denoiser = GuidedDenoiser::new(GuidedDenoiserParams {
        model: plan.model,
        space: prepared.space.clone(),
        alpha_options: plan.alpha_options,
        quantize: plan.quantize,
        conditioning: plan.conditioning,
        options: plan.guidance,
        scale_multiplier: plan.sampler.guidance_multiplier,
        total_steps: prepared.step_count * calls_per_step,
        image_conditioning: plan.image_conditioning,
        mask: plan.mask,
        preview: plan.preview,
        refiner: context.refiner,
        interrupted: context.interrupted,
    });
    let schedule_label = prepared.label;
    let mut infotext = prepared.infotext.clone();
    let result = prepared.walk(&mut denoiser, context.noise, context.on_step);
    infotext.extend_from_slice(denoiser.notes());
    let (latent, interrupted) = match result {
        Ok(latent) => (latent, false),
        Err(SamplingError::Interrupted) => {
            (denoiser.last_latent().cloned().unwrap_or(fallback), true)
        }
        Err(error) => return Err(error),
    };
    Ok(Outcome {
        latent,
        interrupted,
        schedule_label,
        infotext,
    })
}

/// Fails where the first number of a latent is none, as A1111 tests a batch.
///
/// # Errors
/// [`SamplingError::NotANumber`].
pub fn check_nan(latent: &Latent) -> Result<(), SamplingError> {
    match latent.first() {
        Some(value) if value.is_nan() => Err(SamplingError::NotANumber),
        _ => Ok(()),
    }
}

/// Calls that a walk of `step_count` steps plans to make; prompt schedules are laid out over it.
#[must_use]
pub fn planned_calls(sampler: &Sampler, step_count: usize) -> usize {
    if sampler.second_order {
        2 * step_count
    } else {
        step_count
    }
}

/// The scheduler that a sampler really uses.
#[must_use]
pub fn effective_scheduler(sampler: &Sampler, scheduler: &'static Scheduler) -> &'static Scheduler {
    let takes_schedules = !matches!(sampler.kind, SamplerKind::Timestep(_));
    if takes_schedules && scheduler.is_automatic() {
        sampler
            .default_scheduler
            .and_then(find_scheduler)
            .unwrap_or(scheduler)
    } else {
        scheduler
    }
}

/// A walk that is decided up to its denoiser.
pub(super) struct Prepared {
    /// The latent that the walk starts from.
    pub(super) x: Latent,
    path: Path,
    label: &'static str,
    infotext: Vec<InfotextEntry>,
    solver: SolverOptions,
    space: NoiseSpace,
    step_count: usize,
    brownian: Option<BrownianNoise>,
}

/// What a walk goes along, and how.
enum Path {
    Sigmas(SigmaWalker, Vec<f32>),
    Timesteps(TimestepWalker, Vec<usize>, Vec<f32>),
}

/// Computes the schedule, the start and the numbers of a plan.
pub(super) fn prepare(plan: &SamplingPlan) -> Result<Prepared, SamplingError> {
    let table = SigmaTable::new(
        &plan.model.alphas_cumprod,
        plan.alpha_options,
        plan.quantize,
    );
    match plan.sampler.kind {
        SamplerKind::Sigma(walker) => prepare_sigmas(plan, walker, &table, NoiseSpace::Sigma),
        SamplerKind::Lcm(walker) => {
            prepare_sigmas(plan, walker, &table, NoiseSpace::Lcm(table.lcm()))
        }
        SamplerKind::Timestep(walker) => prepare_timesteps(plan, walker, &table),
    }
}

impl Prepared {
    /// Walks to the end.
    pub(super) fn walk(
        mut self,
        denoiser: &mut dyn Denoiser,
        noise: &mut dyn NoiseSource,
        on_step: &mut dyn FnMut(StepReport<'_>) -> ControlFlow<()>,
    ) -> Result<Latent, SamplingError> {
        let step_count = self.step_count;
        let mut report = |step: Step<'_>| {
            on_step(StepReport {
                index: step.index,
                step_count,
                preview: step.denoised,
            })
        };
        let mut walk = Walk {
            denoiser,
            noise,
            brownian: self
                .brownian
                .as_mut()
                .map(|noise| noise as &mut dyn BrownianSource),
            on_step: &mut report,
            options: self.solver,
        };
        match &self.path {
            Path::Sigmas(walker, sigmas) => walker(&mut walk, self.x, sigmas),
            Path::Timesteps(walker, timesteps, alphas_cumprod) => {
                let grid = TimestepGrid {
                    timesteps,
                    alphas_cumprod,
                };
                walker(&mut walk, self.x, &grid)
            }
        }
    }
}

fn prepare_sigmas(
    plan: &SamplingPlan,
    walker: SigmaWalker,
    table: &SigmaTable,
    space: NoiseSpace,
) -> Result<Prepared, SamplingError> {
    let levels = match &space {
        NoiseSpace::Lcm(lcm) => Levels::Lcm(lcm),
        NoiseSpace::Sigma | NoiseSpace::Timestep => Levels::Full(table),
    };
    let scheduler = effective_scheduler(plan.sampler, plan.scheduler);
    let mut infotext = Vec::new();
    let start = match &plan.start {
        Start::Txt2Img => txt2img_start(plan, scheduler, levels, &mut infotext)?,
        Start::Img2Img(start) => img2img_start(plan, start, scheduler, levels, &mut infotext)?,
    };
    let solver = SolverOptions {
        call_count: start.step_count,
        sigma_range: start.sigma_range,
        ..solver_options(plan, &mut infotext)
    };
    let brownian = match (plan.sampler.brownian, start.path_bounds) {
        (true, Some((low, high))) => Some(brownian_noise(plan, low, high)),
        (true, None) => return Err(no_steps()),
        (false, _) => None,
    };
    Ok(Prepared {
        x: start.x,
        path: Path::Sigmas(walker, start.sigmas),
        label: scheduler.label,
        infotext,
        solver,
        step_count: start.step_count,
        brownian,
        space,
    })
}

/// The start of a walk along sigmas.
struct SigmaStart {
    x: Latent,
    sigmas: Vec<f32>,
    /// Ends of the whole schedule, before img2img cuts it.
    path_bounds: Option<(f32, f32)>,
    /// Range of the samplers that make their own steps.
    sigma_range: (f32, f32),
    step_count: usize,
}

fn txt2img_start(
    plan: &SamplingPlan,
    scheduler: &Scheduler,
    levels: Levels<'_>,
    infotext: &mut Vec<InfotextEntry>,
) -> Result<SigmaStart, SamplingError> {
    let sigmas = schedule(plan, scheduler, plan.step_count, levels, infotext)?;
    let first = sigmas[0];
    let scale = if plan.options.sgm_noise_multiplier {
        infotext.push(entry("SGM noise multiplier", InfotextValue::True));
        (1.0 + first * first).sqrt()
    } else {
        first
    };
    let table = levels.sigmas();
    Ok(SigmaStart {
        x: &plan.noise * scale,
        path_bounds: path_bounds(&sigmas),
        sigmas,
        sigma_range: (table[0], table[table.len() - 1]),
        step_count: plan.step_count,
    })
}

fn img2img_start(
    plan: &SamplingPlan,
    start: &Img2ImgStart,
    scheduler: &Scheduler,
    levels: Levels<'_>,
    infotext: &mut Vec<InfotextEntry>,
) -> Result<SigmaStart, SamplingError> {
    let steps = img2img_steps(plan.step_count, start.denoising_strength, start.fixed_steps);
    let full = schedule(plan, scheduler, steps.schedule_steps, levels, infotext)?;
    // A negative strength far below 0 leaves the range of integers, of which Python has no end.
    let from = (steps.schedule_steps as i64)
        .saturating_sub(steps.t_enc)
        .saturating_sub(1);
    let sigmas = python_tail(&full, from);
    let Some(&first) = sigmas.first() else {
        return Err(no_steps());
    };
    let mut x = &start.init + &plan.noise * first;
    if start.extra_noise > 0.0 {
        infotext.push(entry(
            "Extra noise",
            InfotextValue::Option("img2img_extra_noise"),
        ));
        x += &(&plan.noise * start.extra_noise as f32);
    }
    let last_positive = sigmas.len().saturating_sub(2);
    Ok(SigmaStart {
        x,
        path_bounds: path_bounds(&full),
        sigma_range: (sigmas[last_positive], first),
        step_count: sigmas.len() - 1,
        sigmas,
    })
}

fn prepare_timesteps(
    plan: &SamplingPlan,
    walker: TimestepWalker,
    table: &SigmaTable,
) -> Result<Prepared, SamplingError> {
    let alphas = table.alphas_cumprod().to_vec();
    let mut infotext = Vec::new();
    let (x, timesteps, step_count) = match &plan.start {
        Start::Txt2Img => {
            let timesteps = timestep_schedule(plan, plan.step_count, &mut infotext)?;
            (plan.noise.clone(), timesteps, plan.step_count)
        }
        Start::Img2Img(start) => {
            let steps = img2img_steps(plan.step_count, start.denoising_strength, start.fixed_steps);
            let full = timestep_schedule(plan, steps.schedule_steps, &mut infotext)?;
            let t_enc = usize::try_from(steps.t_enc).unwrap_or(0);
            let Some(&above) = full.get(t_enc).filter(|_| t_enc > 0) else {
                return Err(no_steps());
            };
            let alpha = alphas[above];
            let (signal, noise) = (alpha.sqrt(), (1.0 - alpha).sqrt());
            let mut x = &start.init * signal + &plan.noise * noise;
            if start.extra_noise > 0.0 {
                infotext.push(entry(
                    "Extra noise",
                    InfotextValue::Option("img2img_extra_noise"),
                ));
                x += &(&plan.noise * start.extra_noise as f32 * signal);
            }
            (x, full[..t_enc].to_vec(), t_enc + 1)
        }
    };
    let solver = SolverOptions {
        is_img2img: matches!(plan.start, Start::Img2Img(_)),
        ..solver_options(plan, &mut infotext)
    };
    Ok(Prepared {
        x,
        path: Path::Timesteps(walker, timesteps, alphas),
        label: plan.scheduler.label,
        infotext,
        solver,
        space: NoiseSpace::Timestep,
        step_count,
        brownian: None,
    })
}

/// The sigmas of a walk, with the options that shape them noted for the infotext.
fn schedule(
    plan: &SamplingPlan,
    scheduler: &Scheduler,
    step_count: usize,
    levels: Levels<'_>,
    infotext: &mut Vec<InfotextEntry>,
) -> Result<Vec<f32>, SamplingError> {
    let options = &plan.schedule;
    let discards = discards_penultimate(plan, infotext);
    if !scheduler.is_automatic() {
        note_schedule(scheduler, options, levels, infotext);
    }
    let count = step_count + usize::from(discards);
    let mut sigmas = scheduler.sigmas(count, levels, options)?;
    if discards && sigmas.len() >= 2 {
        sigmas.remove(sigmas.len() - 2);
    }
    Ok(sigmas)
}

fn timestep_schedule(
    plan: &SamplingPlan,
    step_count: usize,
    infotext: &mut Vec<InfotextEntry>,
) -> Result<Vec<usize>, SamplingError> {
    let discards = discards_penultimate(plan, infotext);
    discretised_timesteps(step_count + usize::from(discards))
}

fn discards_penultimate(plan: &SamplingPlan, infotext: &mut Vec<InfotextEntry>) -> bool {
    if plan.schedule.always_discard_penultimate && !plan.sampler.discards_penultimate {
        infotext.push(entry("Discard penultimate sigma", InfotextValue::True));
    }
    plan.sampler.discards_penultimate || plan.schedule.always_discard_penultimate
}

fn note_schedule(
    scheduler: &Scheduler,
    options: &ScheduleOptions,
    levels: Levels<'_>,
    infotext: &mut Vec<InfotextEntry>,
) {
    let table = levels.sigmas();
    let differs = |option: f64, table: f32| option != 0.0 && option != f64::from(table);
    if differs(options.sigma_min, table[0]) {
        infotext.push(entry(
            "Schedule min sigma",
            InfotextValue::Option("sigma_min"),
        ));
    }
    if differs(options.sigma_max, table[table.len() - 1]) {
        infotext.push(entry(
            "Schedule max sigma",
            InfotextValue::Option("sigma_max"),
        ));
    }
    if scheduler.uses_rho_option(options) {
        infotext.push(entry("Schedule rho", InfotextValue::Option("rho")));
    }
    if scheduler.name == "beta" {
        infotext.push(entry(
            "Beta schedule alpha",
            InfotextValue::Option("beta_dist_alpha"),
        ));
        infotext.push(entry(
            "Beta schedule beta",
            InfotextValue::Option("beta_dist_beta"),
        ));
    }
}

/// Resolves eta and churn from request and options, each only for a sampler that takes it.
fn solver_options(plan: &SamplingPlan, infotext: &mut Vec<InfotextEntry>) -> SolverOptions {
    let sampler = plan.sampler;
    let options = &plan.options;
    let mut solver = SolverOptions {
        uni_pc: options.uni_pc,
        ..SolverOptions::default()
    };
    if sampler.takes_eta {
        let (key, option_name, option, neutral) = match sampler.kind {
            SamplerKind::Timestep(_) => ("Eta DDIM", "eta_ddim", options.eta_ddim, 0.0),
            SamplerKind::Sigma(_) | SamplerKind::Lcm(_) => {
                ("Eta", "eta_ancestral", options.eta_ancestral, 1.0)
            }
        };
        let (eta, value) = match options.eta {
            Some(eta) => (eta, InfotextValue::Number(eta)),
            None => (option, InfotextValue::Option(option_name)),
        };
        solver.eta = eta;
        if eta != neutral {
            infotext.push(entry(key, value));
        }
    }
    let (request, option) = (&options.churn_request, &options.churn_option);
    if sampler.takes_churn {
        solver.s_churn = churn_value(request.s_churn, option.s_churn, &[0.0]);
        solver.s_tmin = churn_value(request.s_tmin, option.s_tmin, &[0.0]);
        let s_tmax = churn_value(request.s_tmax, option.s_tmax, &[0.0, f64::INFINITY]);
        solver.s_tmax = if s_tmax == 0.0 { f64::INFINITY } else { s_tmax };
    }
    if sampler.takes_s_noise {
        solver.s_noise = churn_value(request.s_noise, option.s_noise, &[1.0]);
    }
    #[expect(
        clippy::type_complexity,
        reason = "a table that is read once, right below"
    )]
    let notes: [(&'static str, &'static str, bool, Option<f64>, &[f64]); 4] = [
        (
            "Sigma churn",
            "s_churn",
            sampler.takes_churn,
            option.s_churn,
            &[0.0],
        ),
        (
            "Sigma tmin",
            "s_tmin",
            sampler.takes_churn,
            option.s_tmin,
            &[0.0],
        ),
        (
            "Sigma tmax",
            "s_tmax",
            sampler.takes_churn,
            option.s_tmax,
            &[0.0, f64::INFINITY],
        ),
        (
            "Sigma noise",
            "s_noise",
            sampler.takes_s_noise,
            option.s_noise,
            &[1.0],
        ),
    ];
    for (key, name, taken, option, neutral) in notes {
        if taken && option.is_some_and(|value| !neutral.contains(&value)) {
            infotext.push(entry(key, InfotextValue::Option(name)));
        }
    }
    solver
}

/// An option that is not neutral wins over the request, which wins over the neutral value.
fn churn_value(request: Option<f64>, option: Option<f64>, neutral: &[f64]) -> f64 {
    match option {
        Some(value) if !neutral.contains(&value) => value,
        _ => request.or(option).unwrap_or(neutral[0]),
    }
}

/// Smallest positive and largest sigma: the interval of the Brownian paths.
fn path_bounds(sigmas: &[f32]) -> Option<(f32, f32)> {
    let positive = sigmas.iter().copied().filter(|&sigma| sigma > 0.0);
    let low = positive.clone().reduce(f32::min)?;
    let high = positive.reduce(f32::max)?;
    Some((low, high))
}

fn brownian_noise(plan: &SamplingPlan, low: f32, high: f32) -> BrownianNoise {
    let (_, channels, height, width) = plan.noise.dim();
    let (generator, seeds) = &plan.brownian;
    BrownianNoise::new(*generator, (channels, height, width), low, high, seeds)
}

/// `list[start:]` with Python's reading of negative starts.
fn python_tail(list: &[f32], start: i64) -> Vec<f32> {
    let len = list.len() as i64;
    let start = if start < 0 {
        (start + len).max(0)
    } else {
        start.min(len)
    };
    list[start as usize..].to_vec()
}

fn entry(key: &'static str, value: InfotextValue) -> InfotextEntry {
    InfotextEntry { key, value }
}

fn no_steps() -> SamplingError {
    SamplingError::Schedule("the schedule has no steps for this sampler".to_owned())
}
