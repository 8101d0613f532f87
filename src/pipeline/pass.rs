//! One sampler pass of a batch: options to plan, plan to latent, and what the infotext tells of it.

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::config::Options;
use crate::rng::ImageRng;
use crate::sampling::{
    self, AlphaOptions, ChurnOptions, ContextPadding, GuidanceOptions, InfotextValue, InpaintMask,
    Latent, Outcome, Preview, RefinerSwitch, RunContext, Sampler, SamplerOptions, SamplingError,
    SamplingModel, SamplingPlan, ScheduleOptions, ScheduledConditioning, Scheduler, Start,
    SwappedModel, UniPcOptions, UniPcSkip, UniPcVariant,
};

use super::job_text::ExtraParams;
use super::{Cause, Family, GenerateError, GenerationParams, JobControl, Model, Stop};

/// What one pass walks with.
pub(super) struct Pass {
    pub(super) sampler: &'static Sampler,
    pub(super) scheduler: &'static Scheduler,
    pub(super) step_count: usize,
    pub(super) start: Start,
    /// The start noise.
    pub(super) noise: Latent,
    pub(super) conditioning: ScheduledConditioning,
    pub(super) padding: ContextPadding,
    pub(super) image_conditioning: Option<Latent>,
    pub(super) mask: Option<InpaintMask>,
    /// One seed a picture, for Brownian noise.
    pub(super) seeds: Vec<i64>,
}

/// Makes the refiner and its conditioning when its turn comes.
pub(super) type LoadRefiner<'a> =
    dyn FnMut() -> Result<(Arc<Model>, ScheduledConditioning), Cause> + 'a;

/// Walks `pass`. The refiner that took over, if one did, is the second answer.
pub(super) fn run(
    params: &GenerationParams,
    model: &Model,
    pass: Pass,
    rng: &mut ImageRng,
    control: &dyn JobControl,
    refiner: Option<&mut LoadRefiner<'_>>,
) -> Result<(Outcome, Option<Arc<Model>>), GenerateError> {
    let options = &params.options;
    control.set_sampling_steps(walked_steps(&pass));
    let taken_over = RefCell::new(None);
    // The first call is always finished, so that there is a prediction to answer with.
    let has_prediction = Arc::new(AtomicBool::new(false));
    let stop_of = |model: &Model| -> Stop {
        let (unet, has_prediction) = (Arc::clone(&model.unet), Arc::clone(&has_prediction));
        Arc::new(move || {
            if has_prediction.load(Ordering::Acquire) {
                unet.terminate();
            }
        })
    };
    control.stop_with(Some(stop_of(model)));
    let mut load = refiner.map(|make| {
        let (taken_over, stop_of) = (&taken_over, &stop_of);
        move || {
            let (model, conditioning) = make()?;
            control.stop_with(Some(stop_of(&model)));
            let swapped = SwappedModel {
                model: sampling_model(&model),
                conditioning,
            };
            taken_over.replace(Some(model));
            Ok(swapped)
        }
    });
    let plan = SamplingPlan {
        sampler: pass.sampler,
        scheduler: pass.scheduler,
        step_count: pass.step_count,
        start: pass.start,
        noise: pass.noise,
        model: sampling_model(model),
        alpha_options: alpha_options(options),
        quantize: options.bool("enable_quantization"),
        schedule: schedule_options(options, model.family),
        options: sampler_options(params),
        guidance: guidance_options(params, pass.padding),
        conditioning: pass.conditioning,
        image_conditioning: pass.image_conditioning,
        mask: pass.mask,
        preview: preview(options),
        brownian: (params.noise_generator, pass.seeds),
    };
    let interrupted = || control.interrupted() || control.skipped();
    let context = RunContext {
        noise: rng,
        interrupted: &interrupted,
        on_step: &mut |report| {
            has_prediction.store(true, Ordering::Release);
            control.step(report.index, report.preview, model.family);
            ControlFlow::Continue(())
        },
        refiner: load.as_mut().map(|load| RefinerSwitch {
            switch_at: params.refiner_switch_at,
            by_sample_steps: options.bool("refiner_switch_by_sample_steps"),
            load,
        }),
    };
    let outcome = sampling::run(plan, context);
    control.stop_with(None);
    let outcome = outcome.map_err(sampling_failure)?;
    if model.checks_nan {
        sampling::check_nan(&outcome.latent).map_err(sampling_failure)?;
    }
    Ok((outcome, taken_over.into_inner()))
}

/// Writes the sampler's infotext entries; `schedule_key` is the key of a schedule that is not the
/// model's own.
pub(super) fn tell(
    outcome: &Outcome,
    options: &Options,
    schedule_key: Option<&str>,
    extra: &mut ExtraParams,
) {
    if let Some(key) = schedule_key {
        extra.set(key, outcome.schedule_label);
    }
    for entry in &outcome.infotext {
        let value = match &entry.value {
            InfotextValue::True => json!(true),
            InfotextValue::Number(number) => json!(number),
            InfotextValue::Option(name) => options.get(name).cloned().unwrap_or(Value::Null),
        };
        extra.set(entry.key, value);
    }
}

/// Writes the options that change `alphas_cumprod`.
pub(super) fn tell_alphas(options: &Options, extra: &mut ExtraParams) {
    if options.bool("use_downcasted_alpha_bar") {
        extra.set("Downcast alphas_cumprod", true);
    }
    let schedule = options.text("sd_noise_schedule");
    if !matches!(schedule, "" | "Default") {
        extra.set("Noise Schedule", schedule);
    }
}

fn walked_steps(pass: &Pass) -> usize {
    match &pass.start {
        Start::Txt2Img => pass.step_count,
        Start::Img2Img(start) => {
            let steps = sampling::img2img_steps(
                pass.step_count,
                start.denoising_strength,
                start.fixed_steps,
            );
            usize::try_from(steps.t_enc + 1).unwrap_or(0)
        }
    }
}

fn sampling_model(model: &Model) -> SamplingModel {
    SamplingModel {
        unet: Arc::clone(&model.unet),
        prediction: model.prediction,
        alphas_cumprod: Arc::clone(&model.alphas_cumprod),
        is_edit: model.unet_channels == 8,
    }
}

pub(super) fn alpha_options(options: &Options) -> AlphaOptions {
    AlphaOptions {
        downcast: options.bool("use_downcasted_alpha_bar"),
        zero_terminal_snr: options.text("sd_noise_schedule") == "Zero Terminal SNR",
    }
}

fn schedule_options(options: &Options, family: Family) -> ScheduleOptions {
    ScheduleOptions {
        sigma_min: options.f64("sigma_min"),
        sigma_max: options.f64("sigma_max"),
        rho: options.f64("rho"),
        beta_alpha: options.f64("beta_dist_alpha"),
        beta_beta: options.f64("beta_dist_beta"),
        use_old_karras_sigmas: options.bool("use_old_karras_scheduler_sigmas"),
        always_discard_penultimate: options.bool("always_discard_next_to_last_sigma"),
        is_sdxl: matches!(family, Family::Sdxl | Family::SdxlRefiner),
    }
}

fn sampler_options(params: &GenerationParams) -> SamplerOptions {
    let options = &params.options;
    SamplerOptions {
        eta: params.eta,
        eta_ancestral: options.f64("eta_ancestral"),
        eta_ddim: options.f64("eta_ddim"),
        churn_request: ChurnOptions {
            s_churn: params.s_churn,
            s_tmin: params.s_tmin,
            s_tmax: params.s_tmax,
            s_noise: params.s_noise,
        },
        churn_option: ChurnOptions {
            s_churn: Some(options.f64("s_churn")),
            s_tmin: Some(options.f64("s_tmin")),
            s_tmax: Some(options.f64("s_tmax")),
            s_noise: Some(options.f64("s_noise")),
        },
        sgm_noise_multiplier: options.bool("sgm_noise_multiplier"),
        uni_pc: UniPcOptions {
            variant: match options.text("uni_pc_variant") {
                "bh2" => UniPcVariant::Bh2,
                "vary_coeff" => UniPcVariant::VaryCoeff,
                _ => UniPcVariant::Bh1,
            },
            skip: match options.text("uni_pc_skip_type") {
                "time_quadratic" => UniPcSkip::TimeQuadratic,
                "logSNR" => UniPcSkip::LogSnr,
                _ => UniPcSkip::TimeUniform,
            },
            order: usize::try_from(options.i64("uni_pc_order")).unwrap_or(3),
            lower_order_final: options.bool("uni_pc_lower_order_final"),
        },
    }
}

fn guidance_options(params: &GenerationParams, padding: ContextPadding) -> GuidanceOptions {
    let options = &params.options;
    GuidanceOptions {
        cfg_scale: params.cfg_scale,
        image_cfg_scale: params.img2img.as_ref().and_then(|it| it.image_cfg_scale),
        s_min_uncond: params.s_min_uncond,
        s_min_uncond_option: options.f64("s_min_uncond"),
        s_min_uncond_all: options.bool("s_min_uncond_all"),
        skip_early_cond: options.f64("skip_early_cond"),
        batch_cond_uncond: options.bool("batch_cond_uncond"),
        padding,
    }
}

fn preview(options: &Options) -> Preview {
    match options.text("live_preview_content") {
        "Negative prompt" => Preview::NegativePrompt,
        "Combined" => Preview::Combined,
        _ => Preview::Prompt,
    }
}

fn sampling_failure(error: SamplingError) -> GenerateError {
    match error {
        SamplingError::Unet(source) => GenerateError::Graph {
            graph: "UNet",
            source,
        },
        SamplingError::Refiner(source) => GenerateError::Load(source),
        SamplingError::NotANumber => GenerateError::NotANumber { part: "Unet" },
        SamplingError::Interrupted
        | SamplingError::Schedule(_)
        | SamplingError::Conditioning(_) => GenerateError::InvalidValue(error.to_string()),
    }
}
