//! Whoever carries out generations; the server's is in `app`, tests bring their own.

use std::sync::Arc;

use crate::pipeline::{
    GenerateError, GenerationParams, GenerationResult, JobControl, ModelProvider, generate,
};

/// Carries out jobs, on the queue's thread only.
pub trait Engine: Send + Sync {
    /// Carries out one txt2img or img2img job.
    ///
    /// # Errors
    /// See [`GenerateError`].
    fn generate(
        &self,
        params: &GenerationParams,
        control: &dyn JobControl,
    ) -> Result<GenerationResult, GenerateError>;
}

/// The pipeline over loaded checkpoints.
impl Engine for Arc<dyn ModelProvider> {
    fn generate(
        &self,
        params: &GenerationParams,
        control: &dyn JobControl,
    ) -> Result<GenerationResult, GenerateError> {
        generate(params, self.as_ref(), control)
    }
}
