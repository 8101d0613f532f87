//! Start noise that leads back to the init image, for the script "img2img alternative test".

use serde_json::json;

use crate::conditioning::PictureSize;
use crate::prompt::{PassSteps, PromptNetworks};
use crate::rng::ImageRng;
use crate::sampling::{ADJUSTED_NOISE_FINDER, Latent, NOISE_FINDER, SCHEDULERS, SigmaTable, Start};

use super::conditions::BatchConditioning;
use super::generate::{Batch, Job};
use super::pass::{self, Pass};
use super::{GenerateError, Model};

/// How noise is found from a picture.
#[derive(Debug, Clone, PartialEq)]
pub struct NoiseFinder {
    /// What the picture is said to show.
    pub prompt: String,
    pub negative_prompt: String,
    pub step_count: usize,
    pub cfg_scale: f64,
    /// Share of ordinary noise, 0 to 1.
    pub randomness: f64,
    /// The variant that evaluates each step at its lower level.
    pub sigma_adjustment: bool,
}

impl Job<'_> {
    /// The start noise of a batch: what leads to `init`, mixed with `drawn`. The picture itself is
    /// taken off, since img2img adds it.
    ///
    /// # Errors
    /// When the prompts cannot be encoded or the walk fails.
    pub(super) fn found_noise(
        &self,
        finder: &NoiseFinder,
        model: &Model,
        (batch, networks): (&Batch, &PromptNetworks),
        init: &Latent,
        image_conditioning: Option<&Latent>,
        (drawn, rng): (&Latent, &mut ImageRng),
    ) -> Result<Latent, GenerateError> {
        let sampler = if finder.sigma_adjustment {
            &ADJUSTED_NOISE_FINDER
        } else {
            &NOISE_FINDER
        };
        let mut params = self.params.clone();
        params.cfg_scale = finder.cfg_scale;
        for (key, value) in [
            ("sgm_noise_multiplier", json!(false)),
            ("always_discard_next_to_last_sigma", json!(false)),
            ("skip_early_cond", json!(0.0)),
        ] {
            params.override_option(key, value);
        }
        let texts = |text: &String| vec![text.clone(); batch.seeds.len()];
        let conditions = BatchConditioning::new(
            model,
            &params.options,
            networks,
            (&texts(&finder.prompt), &texts(&finder.negative_prompt)),
            PassSteps::first_pass(finder.step_count),
            PictureSize {
                width_px: self.size_px.0,
                height_px: self.size_px.1,
            },
        )?;
        let highest = SigmaTable::new(
            &model.alphas_cumprod,
            pass::alpha_options(&params.options),
            params.options.bool("enable_quantization"),
        )
        .sigma_max();
        let pass = Pass {
            sampler,
            scheduler: &SCHEDULERS[0],
            step_count: finder.step_count,
            start: Start::Txt2Img,
            noise: init / highest,
            conditioning: conditions.conditioning,
            padding: conditions.padding,
            image_conditioning: image_conditioning.cloned(),
            mask: None,
            seeds: batch.seeds.clone(),
        };
        let (outcome, _) = pass::run(&params, model, pass, rng, self.control, None)?;
        let (random, found) = (finder.randomness, 1.0 - finder.randomness);
        let length = (random * random + found * found).sqrt();
        let mixed = (outcome.latent * found as f32 + drawn * random as f32) / length as f32;
        Ok(mixed - init / highest)
    }
}
