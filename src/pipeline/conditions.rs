//! The text conditioning of one batch: from prompts to what guidance takes.

use std::sync::Arc;

use serde_json::json;

use crate::conditioning::{
    self, AndPart, Conditioner, ConditioningError, ConditioningSettings, Embedding, Emphasis,
    PictureSize,
};
use crate::config::Options;
use crate::prompt::{PassSteps, PromptNetworks};
use crate::sampling::{
    ContextPadding, PictureConditioning, PromptPart, ScheduledConditioning, TextCondition,
};

use super::job_text::ExtraParams;
use super::{GenerateError, Model};

/// A batch's conditioning and what the infotext tells of it.
pub(super) struct BatchConditioning {
    pub(super) conditioning: ScheduledConditioning,
    pub(super) padding: ContextPadding,
    used_embeddings: Vec<Arc<Embedding>>,
    /// The emphasis mode, if it is not the default and a prompt has brackets.
    emphasis: Option<Emphasis>,
}

impl BatchConditioning {
    /// Encodes a batch's prompts, tags already cut out.
    ///
    /// # Errors
    /// When a prompt cannot be read or a text encoder fails.
    pub(super) fn new(
        model: &Model,
        options: &Options,
        networks: &PromptNetworks,
        (positive, negative): (&[String], &[String]),
        steps: PassSteps,
        size: PictureSize,
    ) -> Result<Self, GenerateError> {
        let settings = settings(model, options);
        let emphasis = settings.emphasis;
        let mut conditioner = Conditioner::new(
            model.family,
            &model.text_encoders,
            settings,
            model.embeddings.clone(),
        )
        .map_err(failure)?;
        if options.bool("persistent_cond_cache") {
            let scope = format!("{networks:?} {:x}", model.text_state);
            conditioner = conditioner.with_cache(&model.text_cache, scope);
        }
        let pictures = conditioner
            .positive(positive, steps, size)
            .map_err(failure)?
            .into_iter()
            .zip(
                conditioner
                    .negative(negative, steps, size)
                    .map_err(failure)?,
            )
            .map(|(positive, negative)| PictureConditioning {
                positive: positive.into_iter().map(part).collect(),
                negative: negative.into_iter().map(text_condition).collect(),
            })
            .collect();
        let padding = if options.bool("pad_cond_uncond_v0") {
            ContextPadding::PadV0
        } else if options.bool("pad_cond_uncond") {
            ContextPadding::Pad(Arc::new(conditioner.empty_context(size).map_err(failure)?))
        } else {
            ContextPadding::Separate
        };
        let has_brackets = positive
            .iter()
            .chain(negative)
            .any(|prompt| prompt.contains(['(', '[']));
        Ok(Self {
            conditioning: ScheduledConditioning { pictures },
            padding,
            used_embeddings: if options.bool("textual_inversion_add_hashes_to_infotext") {
                conditioner.used_embeddings()
            } else {
                Vec::new()
            },
            emphasis: (emphasis != Emphasis::Original && has_brackets).then_some(emphasis),
        })
    }

    /// Writes `TI hashes` and `Emphasis`.
    pub(super) fn tell(&self, extra: &mut ExtraParams) {
        if !self.used_embeddings.is_empty() {
            let hashes: Vec<String> = self
                .used_embeddings
                .iter()
                .map(|embedding| {
                    let name = embedding.name.replace([':', ','], "");
                    format!("{name}: {}", embedding.short_hash)
                })
                .collect();
            extra.set("TI hashes", json!(hashes.join(", ")));
        }
        if let Some(emphasis) = self.emphasis {
            extra.set("Emphasis", json!(emphasis.name()));
        }
    }
}

fn settings(model: &Model, options: &Options) -> ConditioningSettings {
    ConditioningSettings {
        emphasis: Emphasis::from_option(options.text("emphasis")),
        comma_backtrack: usize::try_from(options.i64("comma_padding_backtrack")).unwrap_or(0),
        clip_skip: usize::try_from(options.i64("CLIP_stop_at_last_layers"))
            .unwrap_or(1)
            .max(1),
        sdxl_clip_l_skip: options.bool("sdxl_clip_l_skip"),
        crop_px: (options.i64("sdxl_crop_top"), options.i64("sdxl_crop_left")),
        high_aesthetic_score: options.f64("sdxl_refiner_high_aesthetic_score"),
        low_aesthetic_score: options.f64("sdxl_refiner_low_aesthetic_score"),
        size_embedding_width: model.size_embedding_width,
    }
}

fn part(part: AndPart) -> PromptPart {
    PromptPart {
        weight: part.weight,
        schedule: part.schedule.into_iter().map(text_condition).collect(),
    }
}

fn text_condition(scheduled: conditioning::ScheduledConditioning) -> TextCondition {
    TextCondition {
        end_at_step: scheduled.end_at_step,
        context: Arc::new(scheduled.conditioning.context.clone()),
        vector: scheduled.conditioning.vector.clone().map(Arc::new),
    }
}

fn failure(error: ConditioningError) -> GenerateError {
    match error {
        ConditioningError::Encoder { source, .. } => GenerateError::Graph {
            graph: "text encoder",
            source,
        },
        other => GenerateError::InvalidValue(other.to_string()),
    }
}
