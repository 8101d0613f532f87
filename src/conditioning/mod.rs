//! Chunks, token weights and prompt schedules → conditioning tensors; trait [`TextEncoder`].
//! May use prompt.

mod cache;
mod chunks;
mod conditioner;
mod embeddings;
mod emphasis_modes;
mod html_entities;
mod mojibake;
mod size_embedding;
mod text_repair;
mod tokenizer;
mod torch_mean;

pub use cache::{CacheLimits, ConditioningCache};
pub use chunks::{CHUNK_LENGTH, Chunk, Chunks, Fix, split_chunks};
pub use conditioner::{
    AndPart, Conditioner, Conditioning, ConditioningError, ConditioningSettings, Family,
    PictureSize, ScheduledConditioning,
};
pub use embeddings::{Embedding, EmbeddingIndex, EmbeddingSource};
pub use emphasis_modes::Emphasis;
pub use tokenizer::Tokenizer;

use ndarray::{Array1, Array2, Array3};

/// The cause of a failure below a trait of this room.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Which hidden state of a text tower is the conditioning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HiddenState {
    /// The final layer norm applied to the state `from_end` layers before the end: 1 is the last
    /// layer (A1111's clip skip 1), 2 the penultimate.
    Normalised { from_end: usize },
    /// The same state without the final layer norm (SDXL).
    Raw { from_end: usize },
}

/// A textual inversion vector that takes the place of one token's embedding.
#[derive(Debug, Clone)]
pub struct EmbeddingOverride {
    pub row: usize,
    pub position: usize,
    /// `[width]`
    pub vector: Array1<f32>,
}

/// The input of one text encoder call.
#[derive(Debug, Clone)]
pub struct TokenBatch {
    /// `[chunks, 77]` CLIP token ids.
    pub ids: Array2<i64>,
    pub overrides: Vec<EmbeddingOverride>,
}

/// The output of one text encoder call.
#[derive(Debug, Clone)]
pub struct EncodedText {
    /// `[chunks, 77, width]`
    pub hidden: Array3<f32>,
    /// `[chunks, projection]`: the projected end-token state, where the tower has a projection.
    pub pooled: Option<Array2<f32>>,
}

/// One text tower of a checkpoint, with the networks (LoRA) of the job already chosen.
pub trait TextEncoder: Send + Sync {
    /// # Errors
    /// When the graph fails, or cannot give the asked-for hidden state.
    fn encode(&self, batch: &TokenBatch, state: HiddenState) -> Result<EncodedText, Cause>;

    /// Width of a token embedding.
    fn width(&self) -> usize;
}
