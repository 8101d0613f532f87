//! The infotext of one picture of a job: which keys it carries and in which order.
//!
//! Order and conditions follow A1111 v1.10.1; the writing of keys and values is `infotext`'s.

use indexmap::IndexMap;
use serde_json::{Map, Value, json};

use super::{GenerationParams, Model, token_merging};

/// One entry of A1111's `extra_generation_params`.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Extra {
    /// The same for all pictures.
    Fixed(Value),
    /// Worked out for each picture: `info` shows null, the infotext the picture's own value.
    PerImage(Vec<Value>),
}

/// A1111's `extra_generation_params`, in insertion order.
#[derive(Debug, Clone, Default)]
pub(super) struct ExtraParams(IndexMap<String, Extra>);

impl ExtraParams {
    /// Sets `key`; a key that is there keeps its place.
    pub(super) fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.0.insert(key.to_owned(), Extra::Fixed(value.into()));
    }

    /// Sets `key` to one value a picture of the job.
    pub(super) fn set_per_image(&mut self, key: &str, values: Vec<Value>) {
        self.0.insert(key.to_owned(), Extra::PerImage(values));
    }

    /// Entries of a script, before all others.
    pub(super) fn starting_with(entries: &Map<String, Value>) -> Self {
        let entries = entries
            .iter()
            .map(|(key, value)| (key.clone(), Extra::Fixed(value.clone())));
        Self(entries.collect())
    }

    fn value(&self, key: &str, image: usize) -> Value {
        match self.0.get(key) {
            None => Value::Null,
            Some(Extra::Fixed(value)) => value.clone(),
            Some(Extra::PerImage(values)) => values.get(image).cloned().unwrap_or(Value::Null),
        }
    }

    /// What `info` shows.
    pub(super) fn to_info(&self) -> Map<String, Value> {
        self.0
            .iter()
            .map(|(key, extra)| {
                let value = match extra {
                    Extra::Fixed(value) => value.clone(),
                    Extra::PerImage(_) => Value::Null,
                };
                (key.clone(), value)
            })
            .collect()
    }
}

/// What the infotexts of a job share.
pub(super) struct JobText<'a> {
    pub(super) params: &'a GenerationParams,
    pub(super) model: &'a Model,
    /// Size of the first pass, as asked for.
    pub(super) size_px: (usize, usize),
    /// Label of the schedule really used.
    pub(super) schedule_label: &'a str,
    /// Whether the sampler draws noise that ENSD changes, with an eta that is not 0.
    pub(super) ensd_matters: bool,
    pub(super) inpainting_conditioning: bool,
    pub(super) init_image_hash: Option<String>,
}

/// An infotext to which entries may be added.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct InfotextDraft {
    pub prompt: String,
    pub negative_prompt: String,
    /// In their order; null ones are not written.
    pub entries: Vec<(String, Value)>,
    /// What stands behind all others: the version.
    pub last: Vec<(String, Value)>,
}

impl InfotextDraft {
    /// Adds an entry, or changes it where it stands.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        let value = value.into();
        match self.entries.iter_mut().find(|(known, _)| known == key) {
            Some(entry) => entry.1 = value,
            None => self.entries.push((key.to_owned(), value)),
        }
    }

    /// The text.
    #[must_use]
    pub fn write(&self) -> String {
        let pairs: Vec<(String, Value)> = self.entries.iter().chain(&self.last).cloned().collect();
        crate::infotext::write(&self.prompt, &self.negative_prompt, &pairs)
    }
}

impl JobText<'_> {
    /// The infotext of picture `image` of the job.
    pub(super) fn draft(
        &self,
        image: usize,
        prompt: &str,
        negative_prompt: &str,
        seeds: (i64, i64),
        extra: &ExtraParams,
    ) -> InfotextDraft {
        let mut draft = InfotextDraft {
            prompt: prompt.to_owned(),
            negative_prompt: negative_prompt.to_owned(),
            entries: self.base_pairs(image, seeds, extra),
            last: Vec::new(),
        };
        for key in extra.0.keys() {
            draft.set(key, extra.value(key, image));
        }
        if self.params.options.bool("add_version_to_infotext") {
            draft
                .last
                .push(("Version".to_owned(), json!(super::A1111_VERSION)));
        }
        draft
    }

    fn base_pairs(
        &self,
        image: usize,
        (seed, subseed): (i64, i64),
        extra: &ExtraParams,
    ) -> Vec<(String, Value)> {
        let params = self.params;
        let options = &params.options;
        let when = |condition: bool, value: Value| if condition { value } else { Value::Null };
        let option = |key: &str| options.get(key).cloned().unwrap_or(Value::Null);
        let (vae_name, vae_hash) = self.model.vae_file.clone().unzip();
        let vae_hash = vae_hash.filter(|hash| !hash.is_empty());
        let model_hash = self.model.short_hash.wait();
        let varied = params.subseed_strength != 0.0;
        let (resize_height, resize_width) = params.seed_resize_from;
        let image_cfg = params.img2img.as_ref().and_then(|it| it.image_cfg_scale);
        let pairs = [
            ("Steps", json!(params.step_count)),
            ("Sampler", json!(params.sampler)),
            ("Schedule type", json!(self.schedule_label)),
            ("CFG scale", json!(params.cfg_scale)),
            (
                "Image CFG scale",
                when(self.model.unet_channels == 8, json!(image_cfg)),
            ),
            ("Seed", json!(seed)),
            (
                "Face restoration",
                when(params.restore_faces, option("face_restoration_model")),
            ),
            (
                "Size",
                json!(format!("{}x{}", self.size_px.0, self.size_px.1)),
            ),
            (
                "Model hash",
                when(
                    options.bool("add_model_hash_to_info") && !model_hash.is_empty(),
                    json!(model_hash),
                ),
            ),
            (
                "Model",
                when(
                    options.bool("add_model_name_to_info"),
                    json!(self.model.name),
                ),
            ),
            (
                "VAE hash",
                when(options.bool("add_vae_hash_to_info"), json!(vae_hash)),
            ),
            (
                "VAE",
                when(options.bool("add_vae_name_to_info"), json!(vae_name)),
            ),
            ("Variation seed", when(varied, json!(subseed))),
            (
                "Variation seed strength",
                when(varied, json!(params.subseed_strength)),
            ),
            (
                "Seed resize from",
                when(
                    resize_height > 0 && resize_width > 0,
                    json!(format!("{resize_width}x{resize_height}")),
                ),
            ),
            (
                "Denoising strength",
                extra.value("Denoising strength", image),
            ),
            (
                "Conditional mask weight",
                when(
                    self.inpainting_conditioning,
                    option("inpainting_mask_weight"),
                ),
            ),
            (
                "Clip skip",
                when(
                    options.f64("CLIP_stop_at_last_layers") > 1.0,
                    option("CLIP_stop_at_last_layers"),
                ),
            ),
            (
                "ENSD",
                when(
                    options.f64("eta_noise_seed_delta") != 0.0 && self.ensd_matters,
                    option("eta_noise_seed_delta"),
                ),
            ),
            ("Token merging ratio", token_merging::ratio(params).1),
            (
                "Token merging ratio hr",
                when(params.hires.is_some(), token_merging::hires_ratio(params).1),
            ),
            ("Init image hash", json!(self.init_image_hash)),
            (
                "RNG",
                when(
                    options.text("randn_source") != "GPU",
                    option("randn_source"),
                ),
            ),
            ("Tiling", when(params.tiling, json!(true))),
        ];
        pairs
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect()
    }
}
