//! One job from parameters to pictures: batches, seeds, conditioning, sampling, decoding, infotext.

use super::{GenerateError, GenerationParams, GenerationResult, JobControl, ModelProvider};

/// Carries out one txt2img or img2img job.
///
/// # Errors
/// See [`GenerateError`].
pub fn generate(
    params: &GenerationParams,
    models: &dyn ModelProvider,
    control: &dyn JobControl,
) -> Result<GenerationResult, GenerateError> {
    let _ = (params, models, control);
    Err(GenerateError::Unsupported("not connected".to_owned()))
}
