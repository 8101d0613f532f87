//! Classifier-free guidance (Ho and Salimans, 2022) as A1111's denoiser wrapper does it: AND
//! parts with weights, prompt schedules, skipping of the negative pass, mask blending, the
//! two-way guidance of instruct-pix2pix, the switch to a refiner, and the latent of previews.
//!
//! k-diffusion samplers guide the noise-free prediction, timestep samplers the noise; since both
//! are affine in the network's output this is the same guidance. No shortcut exists for scale 1.

use std::ops::Range;
use std::sync::Arc;

use ndarray::{Array1, Array2, Array3, Array4, ArrayView3, Axis, Zip, concatenate, s, stack};

use super::plan::{InfotextEntry, InfotextValue, SamplingModel};
use super::sigma_table::{AlphaOptions, LcmTable, Prediction, SigmaTable, TRAINING_STEPS};
use super::{Cause, Denoiser, Latent, SamplingError, SoftBlend, UnetInput};

/// The text conditioning of one stretch of a prompt's schedule.
#[derive(Debug, Clone)]
pub struct TextCondition {
    /// The last call counter at which this entry is in use.
    pub end_at_step: usize,
    /// `[tokens, width]`
    pub context: Arc<Array2<f32>>,
    /// `[width]`: SDXL's pooled text and size embedding.
    pub vector: Option<Arc<Array1<f32>>>,
}

/// One AND part of a prompt.
#[derive(Debug, Clone)]
pub struct PromptPart {
    /// The number behind the part's last colon, else 1.
    pub weight: f64,
    /// In order of `end_at_step`; not empty.
    pub schedule: Vec<TextCondition>,
}

/// What one picture of a batch is guided by.
#[derive(Debug, Clone)]
pub struct PictureConditioning {
    /// The AND parts; not empty.
    pub positive: Vec<PromptPart>,
    /// The negative prompt's schedule; not empty.
    pub negative: Vec<TextCondition>,
}

/// What a batch is guided by, one entry a picture.
#[derive(Debug, Clone)]
pub struct ScheduledConditioning {
    pub pictures: Vec<PictureConditioning>,
}

/// How positive and negative conditionings of different lengths are brought together.
#[derive(Debug, Clone, Default)]
pub enum ContextPadding {
    /// They are not: each runs with its own length.
    #[default]
    Separate,
    /// `pad_cond_uncond`: the shorter one gets copies of the encoded empty prompt, `[77, width]`.
    Pad(Arc<Array2<f32>>),
    /// `pad_cond_uncond_v0`: the negative one repeats its last row or is cut.
    PadV0,
}

/// The numbers and switches of guidance.
#[derive(Debug, Clone)]
pub struct GuidanceOptions {
    /// `cfg_scale`.
    pub cfg_scale: f64,
    /// `image_cfg_scale`, for instruct-pix2pix models.
    pub image_cfg_scale: Option<f64>,
    /// `s_min_uncond` of the request; `None` takes the option's.
    pub s_min_uncond: Option<f64>,
    /// The option `s_min_uncond`.
    pub s_min_uncond_option: f64,
    /// The option `s_min_uncond_all`.
    pub s_min_uncond_all: bool,
    /// The option `skip_early_cond`: share of the steps without negative pass.
    pub skip_early_cond: f64,
    /// The option `batch_cond_uncond`.
    pub batch_cond_uncond: bool,
    /// The options `pad_cond_uncond` and `pad_cond_uncond_v0`.
    pub padding: ContextPadding,
}

impl Default for GuidanceOptions {
    fn default() -> Self {
        Self {
            cfg_scale: 7.0,
            image_cfg_scale: None,
            s_min_uncond: None,
            s_min_uncond_option: 0.0,
            s_min_uncond_all: false,
            skip_early_cond: 0.0,
            batch_cond_uncond: true,
            padding: ContextPadding::Separate,
        }
    }
}

/// Where an inpainting job keeps the original.
#[derive(Debug, Clone)]
pub struct InpaintMask {
    /// The encoded original, `[batch, channels, h, w]`, without noise.
    pub init: Latent,
    /// 1 where the original is kept, `[channels, h, w]`.
    pub keep: Array3<f32>,
    /// 1 where new content is made, `[channels, h, w]`.
    pub repaint: Array3<f32>,
    /// Soft inpainting takes the place of the plain blend.
    pub soft: Option<SoftBlend>,
}

impl InpaintMask {
    /// `current` where the mask repaints, the original elsewhere.
    #[must_use]
    pub fn blend(&self, current: &Latent, sigma: f32) -> Latent {
        match &self.soft {
            Some(soft) => soft.blend(&self.init, current, &self.repaint, sigma),
            None => current * &self.repaint + &self.init * &self.keep,
        }
    }
}

/// Which latent a preview shows (`live_preview_content`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Preview {
    /// The positive prediction.
    #[default]
    Prompt,
    /// The negative prediction.
    NegativePrompt,
    /// The guided result.
    Combined,
}

/// The refiner of a job.
pub struct RefinerSwitch<'a> {
    /// Share of the way at which the refiner takes over; `None`: at once.
    pub switch_at: Option<f64>,
    /// `refiner_switch_by_sample_steps`: measure the way in steps, not in noise.
    pub by_sample_steps: bool,
    /// Loads the refiner and makes its conditioning; called once.
    pub load: &'a mut dyn FnMut() -> Result<SwappedModel, Cause>,
}

/// A model that takes over in the middle of a walk.
pub struct SwappedModel {
    pub model: SamplingModel,
    pub conditioning: ScheduledConditioning,
}

/// How the walk's numbers speak of noise.
#[derive(Debug, Clone)]
pub enum NoiseSpace {
    /// k-diffusion: sigmas, answers are noise-free predictions.
    Sigma,
    /// The LCM sampler: sigmas with its own 50-step table.
    Lcm(LcmTable),
    /// Timestep samplers: timesteps, answers are noise predictions.
    Timestep,
}

/// What a [`GuidedDenoiser`] is made from.
pub struct GuidedDenoiserParams<'a> {
    pub model: SamplingModel,
    pub space: NoiseSpace,
    pub alpha_options: AlphaOptions,
    /// `enable_quantization`.
    pub quantize: bool,
    pub conditioning: ScheduledConditioning,
    pub options: GuidanceOptions,
    /// 1, or 1/12.5 for DDIM CFG++.
    pub scale_multiplier: f64,
    /// Planned number of calls.
    pub total_steps: usize,
    /// `[batch, channels, h, w]`, concatenated to the scaled latent.
    pub image_conditioning: Option<Latent>,
    pub mask: Option<InpaintMask>,
    pub preview: Preview,
    pub refiner: Option<RefinerSwitch<'a>>,
    /// Whether the job was interrupted or skipped; asked before every call.
    pub interrupted: &'a dyn Fn() -> bool,
}

/// A UNet under guidance: the [`Denoiser`] of one walk.
pub struct GuidedDenoiser<'a> {
    params: GuidedDenoiserParams<'a>,
    table: SigmaTable,
    /// Calls made.
    step: usize,
    last_latent: Option<Latent>,
    /// Of another row than the positive, whose prediction `last_latent` is.
    preview: Option<Latent>,
    unconditional: Option<Latent>,
    notes: Vec<InfotextEntry>,
    /// What the last call was made of; the next one is mostly made of the same.
    made: Option<MadeCall>,
}

/// What the inputs of a call depend on, besides its latent and sigma.
#[derive(PartialEq)]
struct CallKey {
    /// Shape of the walk's latent.
    shape: (usize, usize, usize, usize),
    /// Places in the schedules of all parts of all pictures, then of their negative prompts.
    entries: Vec<usize>,
    skips_negative: bool,
    is_edit: bool,
}

/// The network's inputs with everything that stays the same from call to call.
struct MadeCall {
    key: CallKey,
    /// Weights of every picture's parts.
    weights: Vec<Vec<f64>>,
    /// In A1111's batches.
    batches: Vec<MadeBatch>,
}

/// One run of the network.
struct MadeBatch {
    /// The picture of every row.
    pictures: Vec<usize>,
    /// Its timesteps, and the channels of the latent at the front of its sample, are written for every call.
    input: UnetInput,
}

/// The conditioning of one call, stacked.
struct CallConditioning {
    /// `[rows, tokens, width]`, all parts of all pictures.
    positive: Array3<f32>,
    positive_vectors: Option<Array2<f32>>,
    /// `[batch, tokens, width]`
    negative: Array3<f32>,
    negative_vectors: Option<Array2<f32>>,
    /// Weights of every picture's parts; rows follow in order.
    weights: Vec<Vec<f64>>,
}

impl<'a> GuidedDenoiser<'a> {
    /// A denoiser that has made no call yet.
    #[must_use]
    pub fn new(params: GuidedDenoiserParams<'a>) -> Self {
        let table = SigmaTable::new(
            &params.model.alphas_cumprod,
            params.alpha_options,
            params.quantize,
        );
        Self {
            params,
            table,
            step: 0,
            last_latent: None,
            preview: None,
            unconditional: None,
            notes: Vec::new(),
            made: None,
        }
    }

    /// The noise-free prediction of the last call's positive pass, which an interrupted job ends
    /// with.
    #[must_use]
    pub fn last_latent(&self) -> Option<&Latent> {
        self.last_latent.as_ref()
    }

    /// What the calls did that an infotext tells.
    #[must_use]
    pub fn notes(&self) -> &[InfotextEntry] {
        &self.notes
    }

    fn note(&mut self, key: &'static str, value: InfotextValue) {
        if self.notes.iter().all(|entry| entry.key != key) {
            self.notes.push(InfotextEntry { key, value });
        }
    }

    /// Whether the walk is under instruct-pix2pix's two-way guidance.
    fn is_edit(&self) -> bool {
        self.params.model.is_edit
            && self
                .params
                .options
                .image_cfg_scale
                .is_some_and(|s| s != 1.0)
    }

    fn is_timestep_space(&self) -> bool {
        matches!(self.params.space, NoiseSpace::Timestep)
    }

    fn switch_to_refiner_if_due(&mut self, sigma: f32) -> Result<(), SamplingError> {
        let Some(refiner) = &mut self.params.refiner else {
            return Ok(());
        };
        let ratio = if refiner.by_sample_steps {
            self.step as f64 / self.params.total_steps as f64
        } else {
            let place = match self.params.space {
                NoiseSpace::Timestep => f64::from(sigma.trunc()),
                NoiseSpace::Sigma | NoiseSpace::Lcm(_) => {
                    nearest_entry(self.table.sigmas(), sigma) as f64
                }
            };
            (TRAINING_STEPS as f64 - 1.0 - place) / TRAINING_STEPS as f64
        };
        if refiner.switch_at.is_some_and(|switch_at| ratio < switch_at) {
            return Ok(());
        }
        let swapped = (refiner.load)().map_err(SamplingError::Refiner)?;
        self.params.refiner = None;
        self.params.model = swapped.model;
        self.params.conditioning = swapped.conditioning;
        self.made = None;
        self.table = SigmaTable::new(
            &self.params.model.alphas_cumprod,
            self.params.alpha_options,
            self.params.quantize,
        );
        Ok(())
    }

    /// Whether this call leaves the negative pass out.
    fn skips_negative(&mut self, sigma: f32, is_edit: bool) -> bool {
        let options = &self.params.options;
        let share = self.step as f64 / self.params.total_steps as f64;
        if options.skip_early_cond != 0.0 && share <= options.skip_early_cond {
            self.note("Skip Early CFG", InfotextValue::Option("skip_early_cond"));
            return true;
        }
        let (minimum, value) = match options.s_min_uncond {
            Some(minimum) => (minimum, InfotextValue::Number(minimum)),
            None => (
                options.s_min_uncond_option,
                InfotextValue::Option("s_min_uncond"),
            ),
        };
        let all = options.s_min_uncond_all;
        let is_candidate = self.step % 2 == 1 || all;
        if is_candidate && minimum > 0.0 && f64::from(sigma) < minimum && !is_edit {
            self.note("NGMS", value);
            if all {
                self.note("NGMS all steps", InfotextValue::Option("s_min_uncond_all"));
            }
            return true;
        }
        false
    }

    /// The places of this call's entries in their schedules, as [`CallKey`] has them.
    fn chosen_entries(&self, batch: usize) -> Result<Vec<usize>, SamplingError> {
        let pictures = &self.params.conditioning.pictures;
        if pictures.len() != batch {
            return Err(SamplingError::Conditioning(format!(
                "{} conditionings for a batch of {batch}",
                pictures.len()
            )));
        }
        let parts = pictures.iter().flat_map(|picture| &picture.positive);
        parts
            .map(|part| &part.schedule)
            .chain(pictures.iter().map(|picture| &picture.negative))
            .map(|schedule| entry_at(schedule, self.step))
            .collect()
    }

    /// Stacks the chosen entries.
    fn call_conditioning(&self, entries: &[usize]) -> Result<CallConditioning, SamplingError> {
        let pictures = &self.params.conditioning.pictures;
        let mut entries = entries.iter();
        let mut chosen = |schedule: &'_ [TextCondition]| {
            entries
                .next()
                .and_then(|&entry| schedule.get(entry).cloned())
        };
        let positive: Vec<_> = pictures
            .iter()
            .flat_map(|picture| &picture.positive)
            .filter_map(|part| chosen(&part.schedule))
            .collect();
        let negative: Vec<_> = pictures
            .iter()
            .filter_map(|picture| chosen(&picture.negative))
            .collect();
        let weights = pictures.iter().map(|picture| {
            let weights = picture.positive.iter().map(|part| part.weight);
            weights.collect()
        });
        Ok(CallConditioning {
            positive: stack_contexts(&positive)?,
            positive_vectors: stack_vectors(&positive)?,
            negative: stack_contexts(&negative)?,
            negative_vectors: stack_vectors(&negative)?,
            weights: weights.collect(),
        })
    }

    /// Brings positive and negative to one length where an option says so.
    fn pad(
        &mut self,
        mut conditioning: CallConditioning,
    ) -> Result<CallConditioning, SamplingError> {
        let positive_len = conditioning.positive.dim().1;
        let negative_len = conditioning.negative.dim().1;
        if positive_len == negative_len {
            return Ok(conditioning);
        }
        match self.params.options.padding.clone() {
            ContextPadding::Separate => {}
            ContextPadding::PadV0 => {
                if negative_len < positive_len {
                    conditioning.negative = repeat_last_row(&conditioning.negative, positive_len);
                } else {
                    conditioning.negative = conditioning
                        .negative
                        .slice(s![.., ..positive_len, ..])
                        .to_owned();
                }
                self.note("Pad conds v0", InfotextValue::True);
            }
            ContextPadding::Pad(empty) => {
                let copies = positive_len.abs_diff(negative_len) / empty.nrows().max(1);
                let shorter = if positive_len < negative_len {
                    &mut conditioning.positive
                } else {
                    &mut conditioning.negative
                };
                *shorter = append_copies(shorter, &empty, copies)?;
                self.note("Pad conds", InfotextValue::True);
            }
        }
        Ok(conditioning)
    }

    /// Makes the inputs of a call in A1111's batches, all but latent and timestep.
    fn make(&mut self, key: CallKey) -> Result<MadeCall, SamplingError> {
        let conditioning = self.call_conditioning(&key.entries)?;
        let mut conditioning = self.pad(conditioning)?;
        let (skips_negative, is_edit) = (key.skips_negative, key.is_edit);
        let mut pictures = Self::call_rows(&conditioning.weights, skips_negative);
        let image_conditioning = self.params.image_conditioning.as_ref();
        let mut images = image_conditioning.map(|image| image.select(Axis(0), &pictures));
        if is_edit {
            let batch = key.shape.0;
            pictures.extend(0..batch);
            conditioning = with_second_negative(&conditioning)?;
            if let Some(images) = &mut images {
                let (_, channels, height, width) = images.dim();
                let zeros = Array4::zeros((batch, channels, height, width));
                *images =
                    concatenate(Axis(0), &[images.view(), zeros.view()]).map_err(shape_error)?;
            }
        }
        let make = |rows: Range<usize>,
                    context: ArrayView3<'_, f32>,
                    vectors: Option<Array2<f32>>| {
            let (_, channels, height, width) = key.shape;
            let image_channels = images.as_ref().map_or(0, |images| images.dim().1);
            let mut sample = Array4::zeros((rows.len(), channels + image_channels, height, width));
            if let Some(images) = &images {
                let images = images.slice(s![rows.clone(), .., .., ..]);
                let mut place = sample.slice_mut(s![.., channels.., .., ..]);
                if images.dim() != place.dim() {
                    return Err(SamplingError::Conditioning(format!(
                        "an image conditioning of {:?} for latents of {:?}",
                        images.dim(),
                        key.shape
                    )));
                }
                place.assign(&images);
            }
            if context.dim().0 != rows.len() {
                return Err(SamplingError::Conditioning(format!(
                    "{} conditionings for {} rows",
                    context.dim().0,
                    rows.len()
                )));
            }
            Ok(MadeBatch {
                pictures: pictures[rows.clone()].to_vec(),
                input: UnetInput {
                    timestep: vec![0.0; rows.len()],
                    sample,
                    context: context.to_owned(),
                    vector: vectors,
                },
            })
        };
        let batch = conditioning.negative.dim().0;
        let positive_count = conditioning.positive.dim().0;
        let same_len = conditioning.positive.dim().1 == conditioning.negative.dim().1;
        let batch_cond_uncond = self.params.options.batch_cond_uncond;
        let rows = pictures.len();
        let mut batches = Vec::new();
        let mut cut = |size: usize,
                       rows: usize,
                       context: &Array3<f32>,
                       vectors: Option<&Array2<f32>>|
         -> Result<(), SamplingError> {
            for start in (0..rows).step_by(size.max(1)) {
                let end = (start + size).min(rows);
                let last = end.min(context.dim().0);
                let vectors = vectors.map(|v| v.slice(s![start.min(last)..last, ..]).to_owned());
                let context = context.slice(s![start.min(last)..last, .., ..]);
                batches.push(make(start..end, context, vectors)?);
            }
            Ok(())
        };
        if same_len || skips_negative {
            let size = if batch_cond_uncond { rows } else { batch };
            if skips_negative {
                let vectors = conditioning.positive_vectors.as_ref();
                cut(size, rows, &conditioning.positive, vectors)?;
            } else {
                let (context, vectors) = joined(&conditioning)?;
                cut(size, rows, &context, vectors.as_ref())?;
            }
        } else {
            let size = if batch_cond_uncond { 2 * batch } else { batch };
            let vectors = conditioning.positive_vectors.as_ref();
            cut(size, positive_count, &conditioning.positive, vectors)?;
            batches.push(make(
                positive_count..rows,
                conditioning.negative.view(),
                conditioning.negative_vectors.clone(),
            )?);
        }
        Ok(MadeCall {
            key,
            weights: conditioning.weights,
            batches,
        })
    }

    /// Runs the rows through the UNet and converts its output.
    fn predict(
        &self,
        x: &Latent,
        sigma: f32,
        made: &mut MadeCall,
    ) -> Result<Latent, SamplingError> {
        let mut outputs = Vec::with_capacity(made.batches.len());
        for batch in &mut made.batches {
            outputs.push(self.unet_rows(x, sigma, batch)?);
        }
        if outputs.len() == 1 {
            return Ok(outputs.remove(0));
        }
        let views: Vec<_> = outputs.iter().map(|output| output.view()).collect();
        concatenate(Axis(0), &views).map_err(shape_error)
    }

    /// One UNet call, from the walk's latent to rows of its prediction.
    fn unet_rows(
        &self,
        x: &Latent,
        sigma: f32,
        batch: &mut MadeBatch,
    ) -> Result<Latent, SamplingError> {
        let (scale, timestep) = self.input_scaling(sigma);
        let (_, channels, height, width) = x.dim();
        let MadeBatch { pictures, input } = batch;
        input.timestep.fill(timestep);
        for (mut row, &picture) in input.sample.outer_iter_mut().zip(&*pictures) {
            let latent = x.index_axis(Axis(0), picture);
            let place = Zip::from(row.slice_mut(s![..channels, .., ..])).and(latent);
            match scale {
                Some(c_in) => place.for_each(|scaled, &v| *scaled = v * c_in),
                None => place.for_each(|copy, &v| *copy = v),
            }
        }
        let output = self.params.model.unet.predict(input).map_err(|cause| {
            if (self.params.interrupted)() {
                SamplingError::Interrupted
            } else {
                SamplingError::Unet(cause)
            }
        })?;
        let wanted = (pictures.len(), channels, height, width);
        if output.dim() != wanted {
            return Err(SamplingError::Conditioning(format!(
                "the UNet answered {:?} for latents {wanted:?}",
                output.dim(),
            )));
        }
        Ok(self.converted(x, pictures, sigma, output))
    }

    /// `c_in` and the timestep that the network sees.
    fn input_scaling(&self, sigma: f32) -> (Option<f32>, f32) {
        let c_in = 1.0 / (sigma * sigma + 1.0).sqrt();
        match &self.params.space {
            NoiseSpace::Sigma => (Some(c_in), self.table.timestep(sigma)),
            NoiseSpace::Lcm(table) => (Some(c_in), table.timestep(sigma)),
            NoiseSpace::Timestep => (None, sigma),
        }
    }

    /// The network's output, one row for each of `pictures`, as the walk's prediction: noise-free latent or noise.
    fn converted(&self, x: &Latent, pictures: &[usize], sigma: f32, output: Latent) -> Latent {
        let pictures = pictures.iter().copied();
        let prediction = self.params.model.prediction;
        match (&self.params.space, prediction) {
            (NoiseSpace::Sigma, Prediction::Epsilon) => {
                affine(x, pictures, output, |x, eps| x + eps * -sigma)
            }
            (NoiseSpace::Sigma, Prediction::Velocity) => {
                let variance = sigma * sigma + 1.0;
                let c_skip = 1.0 / variance;
                let c_out = -sigma / variance.sqrt();
                affine(x, pictures, output, |x, v| v * c_out + x * c_skip)
            }
            (NoiseSpace::Lcm(table), _) => {
                let scaled_timestep = table.timestep(sigma) * 10.0;
                let square = scaled_timestep * scaled_timestep + 0.25;
                let c_skip = 0.25 / square;
                let c_out = scaled_timestep / square.sqrt();
                affine(x, pictures, output, |x, eps| {
                    c_out * (x + eps * -sigma) + c_skip * x
                })
            }
            (NoiseSpace::Timestep, Prediction::Epsilon) => output,
            (NoiseSpace::Timestep, Prediction::Velocity) => {
                let alpha = self.alpha_at(sigma);
                let (signal, noise) = (alpha.sqrt(), (1.0 - alpha).sqrt());
                affine(x, pictures, output, |x, v| signal * v + noise * x)
            }
        }
    }

    /// `alphas_cumprod` at a timestep, cut to a whole one.
    fn alpha_at(&self, timestep: f32) -> f32 {
        let alphas = self.table.alphas_cumprod();
        alphas[(timestep.max(0.0) as usize).min(alphas.len() - 1)]
    }

    /// The noise-free latent of some rows of the call's output.
    fn noise_free(&self, x: &Latent, output: Latent, sigma: f32) -> Latent {
        if !self.is_timestep_space() {
            return output;
        }
        let alpha = self.alpha_at(sigma);
        let (signal, noise) = (alpha.sqrt(), (1.0 - alpha).sqrt());
        affine(x, 0..x.dim().0, output, |x, eps| (x - noise * eps) / signal)
    }

    /// Combines positive and negative rows.
    fn combine(outputs: &Latent, weights: &[Vec<f64>], scale: f64) -> Latent {
        let batch = weights.len();
        let negative_start = outputs.dim().0 - batch;
        let mut combined = outputs.slice(s![negative_start.., .., .., ..]).to_owned();
        let mut row = 0;
        for (picture, part_weights) in weights.iter().enumerate() {
            let negative = outputs.slice(s![negative_start + picture, .., .., ..]);
            for weight in part_weights {
                let factor = (weight * scale) as f32;
                Zip::from(combined.index_axis_mut(Axis(0), picture))
                    .and(outputs.index_axis(Axis(0), row))
                    .and(negative)
                    .for_each(|out, &positive, &negative| *out += (positive - negative) * factor);
                row += 1;
            }
        }
        combined
    }

    /// instruct-pix2pix (Brooks et al., 2022): text and image guidance apart.
    fn combine_edit(&self, outputs: &Latent, batch: usize) -> Latent {
        let text_scale = (self.params.options.cfg_scale * self.params.scale_multiplier) as f32;
        let image_scale = self.params.options.image_cfg_scale.unwrap_or(1.0) as f32;
        let positive = outputs.slice(s![..batch, .., .., ..]);
        let image_only = outputs.slice(s![batch..2 * batch, .., .., ..]);
        let negative = outputs.slice(s![2 * batch.., .., .., ..]);
        let mut combined = negative.to_owned();
        Zip::from(&mut combined)
            .and(positive)
            .and(image_only)
            .for_each(|out, &c, &m| {
                let u = *out;
                *out = u + text_scale * (c - m) + image_scale * (m - u);
            });
        combined
    }

    /// The picture of every row of a call: each as often as it has parts, then all pictures again.
    fn call_rows(weights: &[Vec<f64>], skips_negative: bool) -> Vec<usize> {
        let mut order = Vec::new();
        for (picture, parts) in weights.iter().enumerate() {
            order.extend(std::iter::repeat_n(picture, parts.len()));
        }
        if !skips_negative {
            order.extend(0..weights.len());
        }
        order
    }

    fn guided(&mut self, x: &Latent, sigma: f32) -> Result<Latent, SamplingError> {
        let batch = x.dim().0;
        let is_edit = self.is_edit();
        let entries = self.chosen_entries(batch)?;
        let mut pictures = self.params.conditioning.pictures.iter();
        if is_edit && pictures.any(|picture| picture.positive.len() != 1) {
            return Err(SamplingError::Conditioning(
                "AND is not supported for InstructPix2Pix checkpoint (unless using Image CFG scale = 1.0)"
                    .to_owned(),
            ));
        }
        let skips_negative = self.skips_negative(sigma, is_edit);
        let key = CallKey {
            shape: x.dim(),
            entries,
            skips_negative,
            is_edit,
        };
        let mut made = match self.made.take() {
            Some(made) if made.key == key => made,
            _ => self.make(key)?,
        };
        let combined = self.guided_by(&mut made, x, sigma);
        self.made = Some(made);
        combined
    }

    fn guided_by(
        &mut self,
        made: &mut MadeCall,
        x: &Latent,
        sigma: f32,
    ) -> Result<Latent, SamplingError> {
        let mut outputs = self.predict(x, sigma, made)?;
        let (batch, weights) = (x.dim().0, &made.weights);
        let (skip_negative, is_edit) = (made.key.skips_negative, made.key.is_edit);
        let first_rows = first_rows(weights);
        let first_positive = outputs.select(Axis(0), &first_rows);
        if skip_negative {
            outputs = concatenate(Axis(0), &[outputs.view(), first_positive.view()])
                .map_err(shape_error)?;
        }
        let negative = outputs
            .slice(s![outputs.dim().0 - batch.., .., .., ..])
            .to_owned();
        let combined = if is_edit {
            self.combine_edit(&outputs, batch)
        } else {
            let scale = if skip_negative {
                1.0
            } else {
                self.params.options.cfg_scale * self.params.scale_multiplier
            };
            Self::combine(&outputs, weights, scale)
        };
        self.remember(x, sigma, first_positive, &negative, &combined);
        self.unconditional = Some(negative);
        Ok(combined)
    }

    fn remember(
        &mut self,
        x: &Latent,
        sigma: f32,
        positive: Latent,
        negative: &Latent,
        combined: &Latent,
    ) {
        let last_latent = self.noise_free(x, positive, sigma);
        self.preview = match self.params.preview {
            Preview::Prompt => None,
            Preview::NegativePrompt => Some(self.noise_free(x, negative.clone(), sigma)),
            Preview::Combined => Some(self.noise_free(x, combined.clone(), sigma)),
        };
        self.last_latent = Some(last_latent);
    }
}

impl Denoiser for GuidedDenoiser<'_> {
    fn denoise(&mut self, x: &Latent, sigma: f32) -> Result<Latent, SamplingError> {
        if (self.params.interrupted)() {
            return Err(SamplingError::Interrupted);
        }
        self.switch_to_refiner_if_due(sigma)?;
        let result = if self.is_timestep_space() {
            match &self.params.mask {
                Some(mask) => {
                    let blended = mask.blend(x, sigma);
                    self.guided(&blended, sigma)?
                }
                None => self.guided(x, sigma)?,
            }
        } else {
            let denoised = self.guided(x, sigma)?;
            match &self.params.mask {
                Some(mask) => mask.blend(&denoised, sigma),
                None => denoised,
            }
        };
        self.step += 1;
        Ok(result)
    }

    fn unconditional(&self) -> Option<&Latent> {
        self.unconditional.as_ref()
    }

    fn preview(&self) -> Option<&Latent> {
        self.preview.as_ref().or(self.last_latent.as_ref())
    }
}

/// `f(x, output)` of every row of `output` with the row of `x` that `pictures` names.
fn affine(
    x: &Latent,
    pictures: impl IntoIterator<Item = usize>,
    mut output: Latent,
    f: impl Fn(f32, f32) -> f32,
) -> Latent {
    for (row, picture) in output.outer_iter_mut().zip(pictures) {
        Zip::from(row)
            .and(x.index_axis(Axis(0), picture))
            .for_each(|out, &x| *out = f(x, *out));
    }
    output
}

fn nearest_entry(sigmas: &[f32], sigma: f32) -> usize {
    let mut best = 0;
    for (index, entry) in sigmas.iter().enumerate() {
        if (entry - sigma).abs() < (sigmas[best] - sigma).abs() {
            best = index;
        }
    }
    best
}

/// The place of the first entry that is still in use at a call counter, else of the first of all.
fn entry_at(schedule: &[TextCondition], step: usize) -> Result<usize, SamplingError> {
    schedule
        .iter()
        .position(|entry| step <= entry.end_at_step)
        .or((!schedule.is_empty()).then_some(0))
        .ok_or_else(|| SamplingError::Conditioning("a prompt without any conditioning".to_owned()))
}

/// Contexts of different lengths are extended by their last row.
fn stack_contexts(entries: &[TextCondition]) -> Result<Array3<f32>, SamplingError> {
    let longest = entries
        .iter()
        .map(|entry| entry.context.nrows())
        .max()
        .unwrap_or(0);
    let padded: Vec<_> = entries
        .iter()
        .map(|entry| {
            let context = entry.context.view().insert_axis(Axis(0)).to_owned();
            repeat_last_row(&context, longest)
        })
        .collect();
    let views: Vec<_> = padded.iter().map(|context| context.view()).collect();
    concatenate(Axis(0), &views).map_err(shape_error)
}

fn stack_vectors(entries: &[TextCondition]) -> Result<Option<Array2<f32>>, SamplingError> {
    let vectors: Option<Vec<_>> = entries
        .iter()
        .map(|entry| entry.vector.as_ref().map(|vector| vector.view()))
        .collect();
    match vectors {
        Some(vectors) if !vectors.is_empty() => {
            stack(Axis(0), &vectors).map(Some).map_err(shape_error)
        }
        _ => Ok(None),
    }
}

fn repeat_last_row(contexts: &Array3<f32>, len: usize) -> Array3<f32> {
    let present = contexts.dim().1;
    let order: Vec<usize> = (0..len).map(|row| row.min(present - 1)).collect();
    contexts.select(Axis(1), &order)
}

fn append_copies(
    contexts: &Array3<f32>,
    empty: &Array2<f32>,
    copies: usize,
) -> Result<Array3<f32>, SamplingError> {
    let (rows, _, width) = contexts.dim();
    let filler = empty
        .broadcast((rows, empty.nrows(), empty.ncols()))
        .filter(|_| empty.ncols() == width)
        .ok_or_else(|| {
            SamplingError::Conditioning("the empty prompt is of another width".to_owned())
        })?;
    let mut parts = vec![contexts.view()];
    parts.extend(std::iter::repeat_n(filler, copies));
    concatenate(Axis(1), &parts).map_err(shape_error)
}

/// Positive and negative rows one after the other.
fn joined(
    conditioning: &CallConditioning,
) -> Result<(Array3<f32>, Option<Array2<f32>>), SamplingError> {
    let context = concatenate(
        Axis(0),
        &[conditioning.positive.view(), conditioning.negative.view()],
    )
    .map_err(shape_error)?;
    let vectors = match (
        &conditioning.positive_vectors,
        &conditioning.negative_vectors,
    ) {
        (Some(positive), Some(negative)) => {
            Some(concatenate(Axis(0), &[positive.view(), negative.view()]).map_err(shape_error)?)
        }
        _ => None,
    };
    Ok((context, vectors))
}

/// The negative conditioning twice: with the picture and without.
fn with_second_negative(
    conditioning: &CallConditioning,
) -> Result<CallConditioning, SamplingError> {
    let negative = concatenate(
        Axis(0),
        &[conditioning.negative.view(), conditioning.negative.view()],
    )
    .map_err(shape_error)?;
    let negative_vectors = match &conditioning.negative_vectors {
        Some(vectors) => {
            Some(concatenate(Axis(0), &[vectors.view(), vectors.view()]).map_err(shape_error)?)
        }
        None => None,
    };
    Ok(CallConditioning {
        positive: conditioning.positive.clone(),
        positive_vectors: conditioning.positive_vectors.clone(),
        negative,
        negative_vectors,
        weights: conditioning.weights.clone(),
    })
}

/// The row of every picture's first part.
fn first_rows(weights: &[Vec<f64>]) -> Vec<usize> {
    weights
        .iter()
        .scan(0, |next, parts| {
            let row = *next;
            *next += parts.len();
            Some(row)
        })
        .collect()
}

fn shape_error(error: ndarray::ShapeError) -> SamplingError {
    SamplingError::Conditioning(format!("conditionings do not fit together: {error}"))
}
