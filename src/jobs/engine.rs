//! Whoever carries out generations; the server's is in `app`, tests bring their own.

use crate::pipeline::{
    ExtrasParams, ExtrasResult, GenerateError, GenerationParams, GenerationResult, JobControl,
    ModelRequest, ShortHash,
};
use crate::scripts::ScriptCall;

/// The runs of one kind of graph since the start.
#[derive(Debug, Clone, PartialEq)]
pub struct GraphRuns {
    pub graph: String,
    pub count: u64,
    pub seconds: f64,
}

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

    /// Carries out a selectable script in the place of the plain job.
    ///
    /// # Errors
    /// See [`GenerateError`].
    fn run_script(
        &self,
        script: &ScriptCall,
        params: &GenerationParams,
        control: &dyn JobControl,
    ) -> Result<GenerationResult, GenerateError>;

    /// Upscales and repairs finished pictures.
    ///
    /// # Errors
    /// See [`GenerateError`].
    fn extras(
        &self,
        params: &ExtrasParams,
        control: &dyn JobControl,
    ) -> Result<ExtrasResult, GenerateError>;

    /// Loads a checkpoint ahead of the next job. Its hash may come later.
    ///
    /// # Errors
    /// When there is none or it cannot be loaded.
    fn load(&self, request: &ModelRequest) -> Result<ShortHash, GenerateError>;

    /// Widths of the token embeddings of the checkpoint that was loaded last; empty before.
    fn tower_widths(&self) -> Vec<usize> {
        Vec::new()
    }

    /// What each kind of graph has taken so far.
    fn graph_runs(&self) -> Vec<GraphRuns> {
        Vec::new()
    }

    /// Gives the memory of loaded checkpoints back.
    fn unload(&self);
}
