//! Hires fix: the first pass's latent enlarged, and the second pass over it.

use std::sync::Arc;

use image::RgbImage;
use ndarray::s;
use serde_json::{Value, json};

use crate::imaging::{
    ResizeMode, latent_filter, picture_to_signed, resize_image, resize_latent, to_rgb,
};
use crate::prompt::PassSteps;
use crate::rng::{Generator, ImageRng};
use crate::sampling::{self, Img2ImgStart, Latent, Start};

use super::generate::{Batch, Job, Route, Sampled, vae_generator};
use super::hires_target::HiresTarget;
use super::image_conditioning::{self, MaskOfConditioning};
use super::job_text::ExtraParams;
use super::pass::{self, Pass};
use super::prompts::JobPrompts;
use super::{
    FoundUpscaler, GenerateError, GenerationParams, HiresParams, Model, ModelProvider, Tiling,
    latents, token_merging,
};
use crate::imaging::LatentFilter;

/// How the first pass is enlarged.
pub(super) enum Enlarger {
    Latent(LatentFilter),
    Picture(FoundUpscaler),
}

/// The second pass with everything looked up.
pub(super) struct HiresPass {
    pub(super) target: HiresTarget,
    enlarger: Enlarger,
    route: Route,
    step_count: usize,
    /// Another checkpoint for the second pass.
    checkpoint: Option<String>,
}

impl HiresPass {
    /// Looks up what `hires` names.
    ///
    /// # Errors
    /// When an upscaler, sampler or checkpoint is unknown, or the target is empty.
    pub(super) fn new(
        params: &GenerationParams,
        hires: &HiresParams,
        models: &dyn ModelProvider,
    ) -> Result<Self, GenerateError> {
        let checkpoint = hires
            .checkpoint
            .clone()
            .filter(|name| !matches!(name.as_str(), "" | "Use same checkpoint"));
        if let Some(name) = &checkpoint
            && !models.knows(name)
        {
            return Err(GenerateError::UnknownCheckpoint { name: name.clone() });
        }
        let upscaler = hires.upscaler.as_deref().unwrap_or("Latent");
        let enlarger = match latent_filter(upscaler) {
            Some(filter) => Enlarger::Latent(filter),
            None => Enlarger::Picture(FoundUpscaler::find(upscaler, models.upscalers())?),
        };
        let sampler = hires.sampler.as_deref().filter(|name| !name.is_empty());
        Ok(Self {
            target: HiresTarget::of_job(params, hires)?,
            enlarger,
            route: Route::find(
                sampler.unwrap_or(&params.sampler),
                hires
                    .scheduler
                    .as_deref()
                    .filter(|name| !name.is_empty())
                    .unwrap_or(&params.scheduler),
            )?,
            step_count: if hires.second_pass_steps > 0 {
                hires.second_pass_steps
            } else {
                params.step_count
            },
            checkpoint,
        })
    }

    /// Writes hires fix's infotext entries.
    pub(super) fn tell(
        &self,
        params: &GenerationParams,
        prompts: &JobPrompts,
        extra: &mut ExtraParams,
    ) {
        let Some(hires) = &params.hires else {
            return;
        };
        extra.set("Denoising strength", json!(params.denoising_strength));
        if let Some(checkpoint) = &self.checkpoint {
            extra.set("Hires checkpoint", checkpoint.as_str());
        }
        if let Some(sampler) = hires.sampler.as_deref()
            && !sampler.is_empty()
            && sampler != params.sampler
        {
            extra.set("Hires sampler", sampler);
        }
        extra.set_per_image(
            "Hires prompt",
            where_different(&prompts.hires_positive, &prompts.positive),
        );
        extra.set_per_image(
            "Hires negative prompt",
            where_different(&prompts.hires_negative, &prompts.negative),
        );
        extra.set_per_image("Hires schedule type", Vec::new());
        if hires.resize_x == 0 && hires.resize_y == 0 {
            extra.set("Hires upscale", json!(hires.scale));
        } else {
            extra.set(
                "Hires resize",
                format!("{}x{}", hires.resize_x, hires.resize_y),
            );
        }
        if hires.second_pass_steps != 0 {
            extra.set("Hires steps", json!(hires.second_pass_steps));
        }
        if let Some(upscaler) = &hires.upscaler {
            extra.set("Hires upscaler", upscaler.as_str());
        }
    }
}

fn where_different(hires: &[String], main: &[String]) -> Vec<Value> {
    hires
        .iter()
        .zip(main)
        .map(|(hires, main)| {
            if hires == main {
                Value::Null
            } else {
                json!(hires)
            }
        })
        .collect()
}

/// Enlarges `first` and walks the second pass over it. `first_rng` drew the first pass's noise.
///
/// # Errors
/// When a graph fails.
pub(super) fn second_pass(
    job: &mut Job<'_>,
    batch: &Batch,
    first: Sampled,
    first_rng: &ImageRng,
) -> Result<Sampled, GenerateError> {
    save_first_pass(job, batch, &first)?;
    let Some(hires) = job.hires.take() else {
        return Ok(first);
    };
    let result = walk_second_pass(job, &hires, batch, &first, first_rng);
    job.hires = Some(hires);
    result
}

/// The option `save_images_before_highres_fix`.
fn save_first_pass(job: &Job<'_>, batch: &Batch, first: &Sampled) -> Result<(), GenerateError> {
    let wanted = job.params.options.bool("save_images_before_highres_fix");
    if !wanted || !job.saves_samples() {
        return Ok(());
    }
    let text = job.job_text(&first.model, job.route.label());
    for (offset, picture) in latents::decode(&first.model, &first.latent)?
        .into_iter()
        .enumerate()
    {
        let index = batch.first + offset;
        let infotext = job.write_text(&text, index);
        job.save_sample(
            &text,
            index,
            &picture.into(),
            &infotext,
            "-before-highres-fix",
        )?;
    }
    Ok(())
}

fn walk_second_pass(
    job: &mut Job<'_>,
    hires: &HiresPass,
    batch: &Batch,
    first: &Sampled,
    first_rng: &ImageRng,
) -> Result<Sampled, GenerateError> {
    let params = job.params;
    let mut prompts = job.batch_prompts(batch, true);
    if params.options.bool("hires_fix_use_firstpass_conds") {
        // The texts are the second pass's all the same; the networks stay.
        prompts.networks = job.batch_prompts(batch, false).networks;
    }
    let networks = job.networks(&prompts).clone();
    let checkpoint = hires.checkpoint.as_deref().unwrap_or(job.checkpoint());
    let (ratio, _) = token_merging::hires_ratio(params);
    let model = job.load_named(checkpoint, &networks, ratio)?;
    let mut generator = match first_rng.global_seed() {
        Some(seed) => Generator::new(crate::rng::NoiseGenerator::Cpu, seed),
        None => vae_generator(batch),
    };
    let (init, image_conditioning) = enlarge(job, hires, first, &model, &mut generator)?;
    job.control.next_job();
    let init = truncate(&init, hires.target.truncate_latent);
    let image_conditioning =
        image_conditioning.map(|latent| truncate(&latent, hires.target.truncate_latent));
    let mut rng = job.rng(batch, (init.shape()[2], init.shape()[3]));
    let noise = rng.first();
    let base = job.first_pass_steps();
    let steps = PassSteps {
        hires: Some(sampling::planned_calls(
            hires.route.sampler,
            hires.step_count,
        )),
        ..base
    };
    let conditions = job.condition(&model, batch, &prompts, steps, hires.target.upscale_px)?;
    let pass = Pass {
        sampler: hires.route.sampler,
        scheduler: hires.route.scheduler,
        step_count: hires.step_count,
        start: Start::Img2Img(Img2ImgStart {
            init,
            denoising_strength: params.denoising_strength.unwrap_or(0.75),
            fixed_steps: true,
            extra_noise: params.options.f64("img2img_extra_noise"),
        }),
        noise,
        conditioning: conditions.conditioning,
        padding: conditions.padding,
        image_conditioning,
        mask: None,
        seeds: batch.seeds.clone(),
    };
    let refines = job.refines_second_pass();
    let (outcome, refiner) = job.walk(
        &model,
        pass,
        &mut rng,
        batch,
        &prompts,
        (steps, hires.target.upscale_px),
        refines,
    )?;
    let schedule_key =
        (outcome.schedule_label != job.route.label()).then_some("Hires schedule type");
    pass::tell(&outcome, &params.options, schedule_key, &mut job.extra);
    job.tell_refiner(refiner.as_deref());
    if hires.checkpoint.is_some() {
        job.extra.set("Hires checkpoint", model.short_title());
    }
    Ok(Sampled {
        latent: outcome.latent,
        model: refiner.unwrap_or(model),
    })
}

/// The first pass's latents at the target size, and the conditioning of inpainting checkpoints.
fn enlarge(
    job: &Job<'_>,
    hires: &HiresPass,
    first: &Sampled,
    model: &Arc<Model>,
    generator: &mut Generator,
) -> Result<(Latent, Option<Latent>), GenerateError> {
    let (width_px, height_px) = hires.target.upscale_px;
    let weight = job.params.options.f64("inpainting_mask_weight") as f32;
    let unmasked = MaskOfConditioning {
        mask: None,
        round: true,
        weight,
    };
    match &hires.enlarger {
        Enlarger::Latent(filter) => {
            let latent = resize_latent(&first.latent, height_px / 8, width_px / 8, *filter);
            let conditioning = if weight < 1.0 {
                let decoded = latents::decode_tensors(model, &latent)?;
                let views: Vec<_> = decoded.iter().map(|it| it.view()).collect();
                let pixels = ndarray::stack(ndarray::Axis(0), &views)
                    .expect("pictures of one batch have one size");
                image_conditioning::of_picture(model, &pixels, &unmasked, generator)?
            } else {
                let size = (width_px / 8 * 8, height_px / 8 * 8);
                image_conditioning::of_nothing(model, size, latent.shape()[0], generator)?
            };
            Ok((latent, conditioning))
        }
        Enlarger::Picture(upscaler) => {
            let pictures = latents::decode(&first.model, &first.latent)?;
            let tiling = Tiling::from_options(&job.params.options);
            let pixels = pictures
                .into_iter()
                .map(|picture| {
                    enlarge_picture(picture, (width_px, height_px), upscaler, tiling)
                        .map(|picture| picture_to_signed(&picture))
                })
                .collect::<Result<Vec<_>, _>>()?;
            let pixels = latents::stack(&pixels)?;
            let latent = latents::encode(model, &pixels, generator)?;
            // A1111 hands the picture over in 0..1 here.
            let unit = pixels.mapv(|value| value * 0.5 + 0.5);
            let conditioning = image_conditioning::of_picture(model, &unit, &unmasked, generator)?;
            Ok((latent, conditioning))
        }
    }
}

fn enlarge_picture(
    picture: RgbImage,
    (width_px, height_px): (usize, usize),
    upscaler: &FoundUpscaler,
    tiling: Tiling,
) -> Result<RgbImage, GenerateError> {
    let picture = picture.into();
    upscaler
        .lend(tiling, |upscaler| {
            resize_image(
                ResizeMode::from_number(0),
                &picture,
                width_px as u32,
                height_px as u32,
                upscaler,
            )
        })
        .map(|picture| to_rgb(&picture))
        .map_err(|source| GenerateError::Graph {
            graph: "upscaler",
            source,
        })
}

/// Cuts `(columns, rows)` away, half of them from the top and the left.
fn truncate(latent: &Latent, (columns, rows): (usize, usize)) -> Latent {
    let (_, _, height, width) = latent.dim();
    latent
        .slice(s![
            ..,
            ..,
            rows / 2..height - rows.div_ceil(2),
            columns / 2..width - columns.div_ceil(2)
        ])
        .to_owned()
}
