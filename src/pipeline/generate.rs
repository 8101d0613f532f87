//! One job from parameters to pictures: batches, seeds, conditioning, sampling, decoding, infotext.
//!
//! The order of draws and of infotext entries is A1111's `process_images`.

use std::sync::Arc;

use image::{DynamicImage, RgbImage};
use ndarray::{Axis, s};
use serde_json::json;

use crate::conditioning::PictureSize;
use crate::imaging::{GridRows, SoftOverlay, apply_overlay, image_grid, overlay_of, uncrop};
use crate::prompt::{PassSteps, PromptNetworks};
use crate::rng::{
    Generator, ImageRng, ImageRngParams, JobSeeds, NoiseGenerator, SeedChoice, SeedOptions,
    SeedResize, job_seeds,
};
use crate::sampling::{
    self, Img2ImgStart, Latent, Sampler, SamplerKind, ScheduledConditioning, Scheduler, Start,
};

use super::conditions::BatchConditioning;
use super::hires::{self, HiresPass};
use super::init_images::{self, InitState};
use super::job_text::{ExtraParams, InfotextDraft, JobText};
use super::pass::{self, Pass};
use super::prompts::{BatchPrompts, JobPrompts};
use super::saving::save_init_images;
use super::{
    Cause, GenerateError, GeneratedImage, GenerationParams, GenerationResult, JobControl, Model,
    ModelProvider, ModelRequest, Picture, dynamic_prompts, image_conditioning, latents, refusals,
    token_merging,
};

/// Carries out one txt2img or img2img job.
///
/// # Errors
/// See [`GenerateError`].
pub fn generate(
    params: &GenerationParams,
    models: &dyn ModelProvider,
    control: &dyn JobControl,
) -> Result<GenerationResult, GenerateError> {
    let expanded = dynamic_prompts::expand(params, control)?;
    Job::new(expanded.as_ref().unwrap_or(params), models, control)?.run()
}

/// The sampler and scheduler of a pass.
#[derive(Clone, Copy)]
pub(super) struct Route {
    pub(super) sampler: &'static Sampler,
    pub(super) scheduler: &'static Scheduler,
}

impl Route {
    /// Looks both up by their canonical names; an unknown scheduler is the automatic one.
    pub(super) fn find(sampler: &str, scheduler: &str) -> Result<Self, GenerateError> {
        let found =
            sampling::find_sampler(sampler).ok_or_else(|| GenerateError::UnknownSampler {
                name: sampler.to_owned(),
            })?;
        Ok(Self {
            sampler: found,
            scheduler: sampling::find_scheduler(scheduler).unwrap_or_else(automatic),
        })
    }

    /// Whether the sampler walks a scheduler's sigmas.
    fn takes_schedules(self) -> bool {
        !matches!(self.sampler.kind, SamplerKind::Timestep(_))
    }

    /// Label of the schedule that is really used.
    pub(super) fn label(self) -> &'static str {
        sampling::effective_scheduler(self.sampler, self.scheduler).label
    }
}

/// Label of the model's own schedule.
const AUTOMATIC: &str = "Automatic";

fn automatic() -> &'static Scheduler {
    &sampling::SCHEDULERS[0]
}

/// One job while it runs.
pub(super) struct Job<'a> {
    pub(super) params: &'a GenerationParams,
    pub(super) models: &'a dyn ModelProvider,
    pub(super) control: &'a dyn JobControl,
    pub(super) route: Route,
    pub(super) prompts: JobPrompts,
    pub(super) seeds: JobSeeds,
    pub(super) batch_size: usize,
    /// `(width, height)` of the first pass in pixels.
    pub(super) size_px: (usize, usize),
    pub(super) hires: Option<HiresPass>,
    pub(super) extra: ExtraParams,
    /// With the option `save_init_img`: the name of the last init image.
    init_image_hash: Option<String>,
    pub(super) comments: Vec<String>,
}

/// One batch's share of the job.
pub(super) struct Batch {
    /// Index of its first picture in the job.
    pub(super) first: usize,
    pub(super) seeds: Vec<i64>,
    pub(super) subseeds: Vec<i64>,
}

/// Finished latents, and the model whose VAE decodes them.
pub(super) struct Sampled {
    pub(super) latent: Latent,
    pub(super) model: Arc<Model>,
}

impl<'a> Job<'a> {
    fn new(
        params: &'a GenerationParams,
        models: &'a dyn ModelProvider,
        control: &'a dyn JobControl,
    ) -> Result<Self, GenerateError> {
        refusals::check(params)?;
        let hires = params
            .hires
            .as_ref()
            .map(|hires| HiresPass::new(params, hires, models))
            .transpose()?;
        let size_px = hires
            .as_ref()
            .map_or((params.width_px, params.height_px), |hires| {
                hires.target.first_pass_px
            });
        check_size(size_px)?;
        if let Some(name) = refiner_name(params)
            && !models.knows(name)
        {
            return Err(GenerateError::UnknownCheckpoint {
                name: name.to_owned(),
            });
        }
        let choice = |listed: &[i64], seed: Option<i64>| match (listed, seed) {
            ([], None) => SeedChoice::Random,
            ([], Some(seed)) => SeedChoice::Fixed(seed),
            (listed, _) => SeedChoice::List(listed.to_vec()),
        };
        let mut prompts = JobPrompts::new(params);
        if !params.disable_extra_networks {
            prompts.add_default_hypernetwork(&params.options, models);
        }
        let seeds = job_seeds(
            &SeedOptions {
                seed: choice(&params.lists.seeds, params.seed),
                subseed: choice(&params.lists.subseeds, params.subseed),
                subseed_strength: params.subseed_strength,
                picture_count: params.batch_size * params.batch_count,
            },
            || control.random_seed(),
        );
        Ok(Self {
            params,
            models,
            control,
            route: Route::find(&params.sampler, &params.scheduler)?,
            prompts,
            seeds,
            batch_size: params.batch_size,
            size_px,
            hires,
            extra: ExtraParams::starting_with(&params.first_entries),
            init_image_hash: None,
            comments: Vec::new(),
        })
    }

    fn run(mut self) -> Result<GenerationResult, GenerateError> {
        let passes = 1 + i64::from(self.hires.is_some());
        self.control
            .set_job_count(self.params.batch_count as i64 * passes);
        let first = BatchPrompts::new(self.prompts.positive.get(..1).unwrap_or_default());
        // What the job asks of the UNet is announced with its first load.
        let planned = planned_latent_pixels(self.params, self.route, self.hires.as_ref());
        let mut model = self.load_for(
            self.checkpoint(),
            self.networks(&first),
            token_merging::ratio(self.params).0,
            Work {
                planned_latent_pixels: planned,
                ..Work::default()
            },
        )?;
        refusals::check_family(&self.params.options, model.family)?;
        let init = self.prepare(&model)?;
        let mut images = Vec::new();
        let mut label = self.route.label();
        for index in 0..self.params.batch_count {
            self.control.clear_skip();
            if self.control.interrupted() {
                break;
            }
            if self.params.batch_count > 1 {
                self.control.set_job(&format!(
                    "Batch {} out of {}",
                    index + 1,
                    self.params.batch_count
                ));
            }
            let batch = self.batch(index);
            let prompts = self.batch_prompts(&batch, false);
            model = self.load_for(
                self.checkpoint(),
                self.networks(&prompts),
                token_merging::ratio(self.params).0,
                Work {
                    latent_pixels_without_text: self.without_text(index, planned),
                    ..Work::default()
                },
            )?;
            self.tell_networks(&model);
            let (sampled, used) = self.sample(&batch, &prompts, &model, init.as_ref())?;
            label = used;
            let pictures = latents::decode(&sampled.model, &sampled.latent)?;
            let pictures = self.blacked_out(pictures)?;
            let text = self.job_text(&model, label);
            for (offset, picture) in pictures.into_iter().enumerate() {
                let picture = self.with_restored_faces(&text, batch.first + offset, picture)?;
                self.finish(
                    &text,
                    batch.first + offset,
                    (offset, picture),
                    init.as_ref(),
                    &sampled.latent,
                    &mut images,
                )?;
            }
            self.control.next_job();
        }
        self.result(&model, label, images)
    }

    /// How much of the work of a job that is `planned` in all follows from a batch on, if no later one and no second pass
    /// has another text to encode; else 0.
    fn without_text(&self, index: usize, planned: u64) -> u64 {
        let (count, size) = (self.params.batch_count, self.params.batch_size);
        let prompts = &self.prompts;
        let is_known = |texts: &[String], later: &[String], skipped: usize| {
            let known: Vec<_> = texts.iter().skip(index * size).take(size).collect();
            later.iter().skip(skipped).all(|text| known.contains(&text))
        };
        let (this, next) = (index * size, (index + 1) * size);
        let no_other = is_known(&prompts.positive, &prompts.positive, next)
            && is_known(&prompts.negative, &prompts.negative, next)
            && is_known(&prompts.positive, &prompts.hires_positive, this)
            && is_known(&prompts.negative, &prompts.hires_negative, this);
        let batch = planned / count.max(1) as u64;
        match (no_other, self.params.options.bool("persistent_cond_cache")) {
            (false, _) => 0,
            (true, true) => batch * (count - index) as u64,
            // The next batch encodes the same text again.
            (true, false) => batch,
        }
    }

    /// The job's checkpoint.
    pub(super) fn checkpoint(&self) -> &str {
        self.params.options.text("sd_model_checkpoint")
    }

    /// Loads the checkpoint of this name with the job's VAE choice and these networks.
    pub(super) fn load_named(
        &self,
        checkpoint: &str,
        networks: &PromptNetworks,
        token_merging_ratio: f64,
    ) -> Result<Arc<Model>, GenerateError> {
        self.load_for(checkpoint, networks, token_merging_ratio, Work::default())
    }

    /// [`Self::load_named`] for so much work.
    fn load_for(
        &self,
        checkpoint: &str,
        networks: &PromptNetworks,
        token_merging_ratio: f64,
        work: Work,
    ) -> Result<Arc<Model>, GenerateError> {
        self.models
            .load(&ModelRequest {
                checkpoint: checkpoint.to_owned(),
                vae: self.params.options.text("sd_vae").to_owned(),
                prefers_checkpoints_vae: !self
                    .params
                    .options
                    .bool("sd_vae_overrides_per_model_preferences"),
                tiling: self.params.tiling,
                token_merging_ratio,
                upcast_attention: self.params.options.bool("upcast_attn"),
                keeps_vae_precision: !self.params.options.bool("auto_vae_precision")
                    && !self.params.options.bool("auto_vae_precision_bfloat16"),
                networks: networks.clone(),
                planned_latent_pixels: work.planned_latent_pixels,
                latent_pixels_without_text: work.latent_pixels_without_text,
            })
            .map_err(GenerateError::Load)
    }

    /// The part of the job that comes before the first batch.
    fn prepare(&mut self, model: &Model) -> Result<Option<InitState>, GenerateError> {
        if let Some(soft) = &self.params.soft_inpainting
            && self
                .params
                .img2img
                .as_ref()
                .is_some_and(|it| it.mask.is_some())
        {
            init_images::tell_soft_inpainting(soft, &mut self.extra);
        }
        if let Some(hires) = &self.hires {
            hires.tell(self.params, &self.prompts, &mut self.extra);
        }
        let Some(img2img) = &self.params.img2img else {
            return Ok(None);
        };
        self.extra
            .set("Denoising strength", json!(self.params.denoising_strength));
        self.init_image_hash = save_init_images(self.params, img2img)?;
        let init = InitState::new(
            self.params,
            img2img,
            model,
            self.models.upscalers(),
            &self.seeds.seeds,
            &mut self.extra,
        )?;
        self.batch_size = init.batch_size;
        Ok(Some(init))
    }

    fn batch(&self, index: usize) -> Batch {
        let first = index * self.params.batch_size;
        let of = |list: &[i64]| {
            list.iter()
                .copied()
                .skip(first)
                .take(self.batch_size)
                .collect()
        };
        Batch {
            first,
            seeds: of(&self.seeds.seeds),
            subseeds: of(&self.seeds.subseeds),
        }
    }

    pub(super) fn batch_prompts(&mut self, batch: &Batch, hires: bool) -> BatchPrompts {
        let prompts = if hires {
            &self.prompts.hires_positive
        } else {
            &self.prompts.positive
        };
        let end = (batch.first + self.batch_size).min(prompts.len());
        let mut prompts = BatchPrompts::new(&prompts[batch.first.min(end)..end]);
        self.comments.append(&mut prompts.comments);
        prompts
    }

    /// The networks that a batch asks for.
    pub(super) fn networks<'b>(&self, prompts: &'b BatchPrompts) -> &'b PromptNetworks {
        static NONE: PromptNetworks = PromptNetworks::NONE;
        if self.params.disable_extra_networks {
            &NONE
        } else {
            &prompts.networks
        }
    }

    fn tell_networks(&mut self, model: &Model) {
        for name in &model.missing_networks {
            self.comments.push(format!("Lora not found: {name}"));
        }
        if !model.networks.is_empty() && self.params.options.bool("lora_add_hashes_to_infotext") {
            let hashes: Vec<String> = model
                .networks
                .iter()
                .filter(|(_, hash)| !hash.is_empty())
                .map(|(name, hash)| format!("{}: {hash}", name.replace([':', ','], "")))
                .collect();
            if !hashes.is_empty() {
                self.extra.set("Lora hashes", hashes.join(", "));
            }
        }
    }

    pub(super) fn rng(&self, batch: &Batch, latent_size: (usize, usize)) -> ImageRng {
        ImageRng::new(ImageRngParams {
            generator: self.params.noise_generator,
            shape: (4, latent_size.0, latent_size.1),
            seeds: batch.seeds.clone(),
            subseeds: batch.subseeds.clone(),
            subseed_strength: self.params.subseed_strength,
            seed_resize: SeedResize {
                height_px: self.params.seed_resize_from.0,
                width_px: self.params.seed_resize_from.1,
            },
            eta_noise_seed_delta: self.params.options.i64("eta_noise_seed_delta"),
        })
    }

    /// Encodes a batch's prompts for one pass.
    pub(super) fn condition(
        &self,
        model: &Model,
        batch: &Batch,
        prompts: &BatchPrompts,
        steps: PassSteps,
        size_px: (usize, usize),
    ) -> Result<BatchConditioning, GenerateError> {
        let negative = if steps.hires.is_some() {
            &self.prompts.hires_negative
        } else {
            &self.prompts.negative
        };
        let end = (batch.first + self.batch_size).min(negative.len());
        BatchConditioning::new(
            model,
            &self.params.options,
            self.networks(prompts),
            (&prompts.texts, &negative[batch.first.min(end)..end]),
            steps,
            PictureSize {
                width_px: size_px.0,
                height_px: size_px.1,
            },
        )
    }

    /// The call counts that a first pass lays its prompts out over.
    pub(super) fn first_pass_steps(&self) -> PassSteps {
        PassSteps {
            old_scheduling: self.params.options.bool("use_old_scheduling"),
            ..PassSteps::first_pass(sampling::planned_calls(
                self.route.sampler,
                self.params.step_count,
            ))
        }
    }

    /// Samples one batch, both passes; the label is the first pass's schedule.
    fn sample(
        &mut self,
        batch: &Batch,
        prompts: &BatchPrompts,
        model: &Arc<Model>,
        init: Option<&InitState>,
    ) -> Result<(Sampled, &'static str), GenerateError> {
        let latent_size = init.map_or((self.size_px.1 / 8, self.size_px.0 / 8), |init| {
            (init.latent.shape()[2], init.latent.shape()[3])
        });
        let mut rng = self.rng(batch, latent_size);
        let steps = self.first_pass_steps();
        let conditions = self.condition(model, batch, prompts, steps, self.size_px)?;
        conditions.tell(&mut self.extra);
        self.tell_old_scheduling(prompts);
        pass::tell_alphas(&self.params.options, &mut self.extra);
        let drawn = rng.first();
        let mut noise = drawn.clone();
        let start = match init {
            None => Start::Txt2Img,
            Some(init) => {
                noise = self.scaled_start_noise(noise);
                Start::Img2Img(Img2ImgStart {
                    init: init.latent.clone(),
                    denoising_strength: self.params.denoising_strength.unwrap_or(0.75),
                    fixed_steps: self.params.options.bool("img2img_fix_steps"),
                    extra_noise: self.params.options.f64("img2img_extra_noise"),
                })
            }
        };
        let image_conditioning = if let Some(init) = init {
            init.image_conditioning.clone()
        } else {
            let mut generator = vae_generator(batch);
            let size = (latent_size.1 * 8, latent_size.0 * 8);
            image_conditioning::of_nothing(model, size, batch.seeds.len(), &mut generator)?
        };
        let finder = self.params.img2img.as_ref();
        if let (Some(finder), Some(init)) = (finder.and_then(|it| it.noise_finder.as_ref()), init) {
            let conditioning = image_conditioning.as_ref();
            let with = (&drawn, &mut rng);
            let of_batch = (batch, self.networks(prompts));
            noise = self.found_noise(finder, model, of_batch, &init.latent, conditioning, with)?;
        }
        let pass = Pass {
            sampler: self.route.sampler,
            scheduler: self.route.scheduler,
            step_count: self.params.step_count,
            start,
            noise,
            conditioning: conditions.conditioning,
            padding: conditions.padding,
            image_conditioning,
            mask: init.and_then(|init| init.mask.clone()),
            seeds: batch.seeds.clone(),
        };
        let refines = self.refines_first_pass();
        let (outcome, refiner) = self.walk(
            model,
            pass,
            &mut rng,
            batch,
            prompts,
            (steps, self.size_px),
            refines,
        )?;
        let label = outcome.schedule_label;
        let schedule_key =
            (self.route.takes_schedules() && label != AUTOMATIC).then_some("Schedule type");
        pass::tell(
            &outcome,
            &self.params.options,
            schedule_key,
            &mut self.extra,
        );
        self.tell_refiner(refiner.as_deref());
        let mut latent = outcome.latent;
        if let Some(mask) = init.and_then(|init| init.mask.as_ref())
            && mask.soft.is_none()
        {
            latent = latent * &mask.repaint + &mask.init * &mask.keep;
        }
        let sampled = Sampled {
            latent,
            model: refiner.unwrap_or_else(|| Arc::clone(model)),
        };
        if self.hires.is_none() || self.control.interrupted() {
            return Ok((sampled, label));
        }
        Ok((hires::second_pass(self, batch, sampled, &rng)?, label))
    }

    /// Walks one pass, with the refiner if `refines`.
    #[expect(
        clippy::too_many_arguments,
        reason = "a pass and all that a refiner repeats of it"
    )]
    pub(super) fn walk(
        &self,
        model: &Model,
        pass: Pass,
        rng: &mut ImageRng,
        batch: &Batch,
        prompts: &BatchPrompts,
        (steps, size_px): (PassSteps, (usize, usize)),
        refines: bool,
    ) -> Result<(sampling::Outcome, Option<Arc<Model>>), GenerateError> {
        let mut load = || -> Result<(Arc<Model>, ScheduledConditioning), Cause> {
            let name = refiner_name(self.params).unwrap_or_default();
            let (ratio, _) = if steps.hires.is_some() {
                token_merging::hires_ratio(self.params)
            } else {
                token_merging::ratio(self.params)
            };
            let refiner = self.load_named(name, self.networks(prompts), ratio)?;
            let conditions = self.condition(&refiner, batch, prompts, steps, size_px)?;
            Ok((refiner, conditions.conditioning))
        };
        let refiner: Option<&mut pass::LoadRefiner<'_>> =
            if refines { Some(&mut load) } else { None };
        pass::run(self.params, model, pass, rng, self.control, refiner)
    }

    /// Whether a refiner may take over in the first pass (`hires_fix_refiner_pass`).
    fn refines_first_pass(&self) -> bool {
        refiner_name(self.params).is_some()
            && (self.hires.is_none() || matches!(self.refiner_pass(), "first pass" | "both passes"))
    }

    /// Whether a refiner may take over in the second pass.
    pub(super) fn refines_second_pass(&self) -> bool {
        refiner_name(self.params).is_some() && self.refiner_pass() != "first pass"
    }

    fn refiner_pass(&self) -> &str {
        self.params.options.text("hires_fix_refiner_pass")
    }

    /// Writes what a refiner that took over leaves in the infotext.
    pub(super) fn tell_refiner(&mut self, refiner: Option<&Model>) {
        let Some(refiner) = refiner else {
            return;
        };
        if self.params.options.bool("refiner_switch_by_sample_steps") {
            self.extra.set("Refiner switch by sampling steps", true);
        }
        if self.params.hires.is_some() && self.refiner_pass() != "second pass" {
            let pass = self.refiner_pass().to_owned();
            self.extra.set("Hires refiner", pass);
        }
        self.extra.set("Refiner", refiner.short_title());
        self.extra
            .set("Refiner switch at", json!(self.params.refiner_switch_at));
    }

    fn tell_old_scheduling(&mut self, prompts: &BatchPrompts) {
        if !self.params.options.bool("use_old_scheduling") {
            return;
        }
        let steps = self.first_pass_steps();
        let today = PassSteps {
            old_scheduling: false,
            ..steps
        };
        let differs = |prompt: &String| {
            crate::prompt::expand_schedule(prompt, steps)
                != crate::prompt::expand_schedule(prompt, today)
        };
        if prompts
            .texts
            .iter()
            .chain(&self.prompts.negative)
            .any(differs)
        {
            self.extra.set("Old prompt editing timelines", true);
        }
    }

    fn scaled_start_noise(&mut self, noise: Latent) -> Latent {
        let multiplier = self
            .params
            .img2img
            .as_ref()
            .and_then(|img2img| img2img.initial_noise_multiplier)
            .unwrap_or_else(|| self.params.options.f64("initial_noise_multiplier"));
        if (multiplier - 1.0).abs() < f64::EPSILON {
            return noise;
        }
        self.extra.set("Noise multiplier", json!(multiplier));
        noise * multiplier as f32
    }

    pub(super) fn job_text<'b>(&self, model: &'b Model, label: &'b str) -> JobText<'b>
    where
        'a: 'b,
    {
        let sampler = self.route.sampler;
        let eta = self
            .params
            .eta
            .unwrap_or_else(|| self.params.options.f64("eta_ancestral"));
        JobText {
            params: self.params,
            model,
            size_px: self.size_px,
            schedule_label: label,
            ensd_matters: sampler.uses_ensd && eta != 0.0,
            inpainting_conditioning: uses_image_conditioning(model),
            init_image_hash: self.init_image_hash.clone(),
        }
    }

    pub(super) fn write_text(&self, text: &JobText<'_>, image: usize) -> String {
        self.draft_text(text, image).write()
    }

    fn draft_text(&self, text: &JobText<'_>, image: usize) -> InfotextDraft {
        let of = |list: &[i64]| list.get(image).copied().unwrap_or_default();
        let prompt = |list: &[String]| list.get(image).cloned().unwrap_or_default();
        text.draft(
            image,
            &prompt(&self.prompts.positive),
            &prompt(&self.prompts.negative),
            (of(&self.seeds.seeds), of(&self.seeds.subseeds)),
            &self.extra,
        )
    }

    /// What happens to a decoded picture before it is answered, and the pictures that go with it.
    fn finish(
        &self,
        text: &JobText<'_>,
        index: usize,
        (offset, picture): (usize, RgbImage),
        init: Option<&InitState>,
        latent: &Latent,
        images: &mut Vec<GeneratedImage>,
    ) -> Result<(), GenerateError> {
        let infotext = self.write_text(text, index);
        let Some(init) = init else {
            let image = self.finished(picture.into(), Some(&infotext));
            self.save_sample(text, index, &image.image, &infotext, "")?;
            images.push(image);
            return Ok(());
        };
        let corrected = match init.color_reference(offset) {
            Some(reference) => {
                if self
                    .params
                    .options
                    .bool("save_images_before_color_correction")
                {
                    let before = self.lay_over(&picture, init, offset, latent)?;
                    let before = before.unwrap_or_else(|| picture.clone()).into();
                    self.save_sample(text, index, &before, &infotext, "-before-color-correction")?;
                }
                reference.apply(&picture)
            }
            None => picture,
        };
        let finished = self.lay_over(&corrected, init, offset, latent)?;
        let image = finished.unwrap_or_else(|| corrected.clone()).into();
        let image = self.finished(image, Some(&infotext));
        self.save_sample(text, index, &image.image, &infotext, "")?;
        images.push(image);
        self.push_masks((text, index, &infotext), &corrected, init, images)
    }

    /// A picture as it is answered; whoever listens is told.
    fn finished(&self, image: Picture, infotext: Option<&str>) -> GeneratedImage {
        let finished = GeneratedImage {
            image: Arc::new(image),
            infotext: infotext.map(str::to_owned),
        };
        if let Some(listener) = &self.params.listener {
            listener.finished(&finished);
        }
        finished
    }

    /// The original laid over the repainted picture; `None` where nothing is to be laid over.
    fn lay_over(
        &self,
        picture: &RgbImage,
        init: &InitState,
        offset: usize,
        latent: &Latent,
    ) -> Result<Option<RgbImage>, GenerateError> {
        let Some(overlay) = init.overlay(offset) else {
            return Ok(None);
        };
        if !self.params.options.bool("overlay_inpaint") {
            return Ok(None);
        }
        let soft = match (&self.params.soft_inpainting, &init.mask) {
            (Some(soft), Some(mask)) => {
                let number = |index| soft.number(index);
                let source = init.overlay_source(offset).ok_or_else(|| {
                    GenerateError::InvalidValue("the init image has no overlay".to_owned())
                })?;
                let levels = SoftOverlay {
                    scale: number(1),
                    mask_influence: number(3),
                    difference_threshold: number(4),
                    difference_contrast: number(5),
                }
                .mask(
                    &mask.init.index_axis(Axis(0), offset),
                    &latent.index_axis(Axis(0), offset),
                    &mask.repaint.slice(s![0, .., ..]),
                    (self.params.width_px as u32, self.params.height_px as u32),
                    init.region.map(|region| (region, source.dimensions())),
                )
                .map_err(overlay_failure)?;
                Some(overlay_of(source, &levels).map_err(overlay_failure)?)
            }
            _ => None,
        };
        apply_overlay(picture, soft.as_ref().unwrap_or(overlay), init.region)
            .map(Some)
            .map_err(overlay_failure)
    }

    /// The options `return_mask` and `return_mask_composite`, `save_mask` and `save_mask_composite`.
    fn push_masks(
        &self,
        (text, index, infotext): (&JobText<'_>, usize, &str),
        picture: &RgbImage,
        init: &InitState,
        images: &mut Vec<GeneratedImage>,
    ) -> Result<(), GenerateError> {
        let options = &self.params.options;
        let Some(mask) = &init.mask_for_overlay else {
            return Ok(());
        };
        let (returns, saves) = (options.bool("return_mask"), options.bool("save_mask"));
        if returns || saves {
            let image = DynamicImage::ImageLuma8(mask.clone()).to_rgb8().into();
            if saves {
                self.save_sample(text, index, &image, infotext, "-mask")?;
            }
            if returns {
                images.push(self.finished(image, None));
            }
        }
        let returns = options.bool("return_mask_composite");
        let saves = options.bool("save_mask_composite");
        if returns || saves {
            let whole = match init.region {
                Some(region) => {
                    uncrop(picture, mask.dimensions(), region).map_err(overlay_failure)?
                }
                None => DynamicImage::ImageRgb8(picture.clone()).to_rgba8(),
            };
            let image = super::mask_composite::compose(&whole, mask)
                .map_err(overlay_failure)?
                .into();
            if saves {
                self.save_sample(text, index, &image, infotext, "-mask-composite")?;
            }
            if returns {
                images.push(self.finished(image, None));
            }
        }
        Ok(())
    }

    fn result(
        self,
        model: &Model,
        label: &str,
        mut images: Vec<GeneratedImage>,
    ) -> Result<GenerationResult, GenerateError> {
        let params = self.params;
        let options = &params.options;
        let text = self.job_text(model, label);
        let mut index_of_first_image = 0;
        let (returns, saves) = (options.bool("return_grid"), options.bool("grid_save"));
        let makes_grid = params.makes_grid
            && (returns || saves)
            && (images.len() > 1 || !options.bool("grid_only_if_multiple"));
        if makes_grid && !images.is_empty() {
            let pictures: Vec<DynamicImage> =
                images.iter().map(|image| (*image.image).clone()).collect();
            let rows = GridRows::from_options(
                options.i64("n_rows"),
                options.bool("grid_prevent_empty_spots"),
                params.batch_size,
            );
            let grid = GeneratedImage {
                image: Arc::new(image_grid(&pictures, rows).into()),
                infotext: Some(self.write_text(&text, 0)),
            };
            if saves {
                self.save_grid(&text, &grid)?;
            }
            if returns {
                images.insert(0, grid);
                index_of_first_image = 1;
            }
        }
        let mut infotexts: Vec<String> = images
            .iter()
            .filter_map(|image| image.infotext.clone())
            .collect();
        if infotexts.is_empty() {
            infotexts.push(self.write_text(&text, 0));
        }
        let first = |list: &[i64]| list.first().copied().unwrap_or(-1);
        Ok(GenerationResult {
            first_text: self.draft_text(&text, 0),
            seed: first(&self.seeds.seeds),
            subseed: first(&self.seeds.subseeds),
            images,
            all_prompts: self.prompts.positive,
            all_negative_prompts: self.prompts.negative,
            all_seeds: self.seeds.seeds,
            all_subseeds: self.seeds.subseeds,
            subseed_strength: params.subseed_strength,
            width_px: self.size_px.0,
            height_px: self.size_px.1,
            sampler: params.sampler.clone(),
            cfg_scale: params.cfg_scale,
            step_count: params.step_count,
            batch_size: self.batch_size,
            restore_faces: params.restore_faces,
            face_restoration_model: params
                .restore_faces
                .then(|| options.text("face_restoration_model").to_owned()),
            model_name: model.name.clone(),
            model_short_hash: model.short_hash.wait().to_owned(),
            vae_file: model.vae_file.clone(),
            seed_resize_from: (params.seed_resize_from.1, params.seed_resize_from.0),
            denoising_strength: params.denoising_strength,
            extra_generation_params: self.extra.to_info(),
            index_of_first_image,
            infotexts,
            styles: params.styles.clone(),
            job_timestamp: self.control.timestamp(),
            clip_skip: options.i64("CLIP_stop_at_last_layers"),
            is_using_inpainting_conditioning: uses_image_conditioning(model),
            version: super::A1111_VERSION.to_owned(),
            comments: self.comments,
        })
    }
}

/// What a load announces of the work that follows; see the fields of [`ModelRequest`].
#[derive(Debug, Clone, Copy, Default)]
struct Work {
    planned_latent_pixels: u64,
    latent_pixels_without_text: u64,
}

/// About how much a job asks of its UNet: latent pixels of all rows (both prompts) of all steps, with a second pass on
/// the same checkpoint. A part of img2img's steps is left out by its denoising strength.
fn planned_latent_pixels(
    params: &GenerationParams,
    route: Route,
    hires: Option<&HiresPass>,
) -> u64 {
    let rows = 2 * params.batch_size * params.batch_count;
    let pixels = |(width_px, height_px): (usize, usize)| (width_px / 8) * (height_px / 8);
    let strength = params.denoising_strength.unwrap_or(1.0).clamp(0.0, 1.0);
    let part = |steps: usize| (steps as f64 * strength).ceil() as usize;
    let steps = |count: usize| sampling::planned_calls(route.sampler, count);
    let first = match (&params.img2img, hires) {
        (Some(_), _) => {
            steps(part(params.step_count)) * pixels((params.width_px, params.height_px))
        }
        (None, Some(hires)) => steps(params.step_count) * pixels(hires.target.first_pass_px),
        (None, None) => steps(params.step_count) * pixels((params.width_px, params.height_px)),
    };
    let second = match (hires, &params.hires) {
        (Some(pass), Some(asked)) if asked.checkpoint.is_none() => {
            let count = match asked.second_pass_steps {
                0 => params.step_count,
                count => count,
            };
            steps(part(count)) * pixels(pass.target.upscale_px)
        }
        _ => 0,
    };
    (rows * (first + second)) as u64
}

/// torch's global generator as it stands after the start noise: seeded with the batch's last seed.
/// The VAE encoder draws from it.
pub(super) fn vae_generator(batch: &Batch) -> Generator {
    Generator::new(
        NoiseGenerator::Cpu,
        batch.seeds.last().copied().unwrap_or_default(),
    )
}

/// The refiner's name, if the request names one.
fn refiner_name(params: &GenerationParams) -> Option<&str> {
    params
        .refiner_checkpoint
        .as_deref()
        .filter(|name| !matches!(*name, "" | "None" | "none"))
}

fn uses_image_conditioning(model: &Model) -> bool {
    matches!(
        model.unet_channels,
        image_conditioning::INPAINTING_CHANNELS | image_conditioning::EDIT_CHANNELS
    )
}

fn overlay_failure(source: Cause) -> GenerateError {
    GenerateError::InvalidValue(source.to_string())
}

fn check_size((width, height): (usize, usize)) -> Result<(), GenerateError> {
    if width < 8 || height < 8 {
        return Err(GenerateError::InvalidValue(format!(
            "width and height must be at least 8, not {width}x{height}"
        )));
    }
    Ok(())
}
