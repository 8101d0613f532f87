//! Builds the ONNX graph of each part of a checkpoint as protobuf bytes, from the names and shapes
//! in the checkpoint. Weights stay where they are: every initializer points into the checkpoint
//! file (ONNX external data), or, for an export, is written into the model in half precision.
//!
//! The graphs compute in float32 in the order of operations of the original modules
//! (ldm `openaimodel.py`, `model.py`, open_clip and transformers CLIP text towers); for GPUs those of a
//! checkpoint can be built in half precision ([`Precision`]). Every size is free, but that of the face networks. The contracts are in `onnx/README.md`.

mod builder;
mod esrgan;
mod faces;
mod hypernetwork;
mod proto;
mod text;
mod token_merging;
mod unet;
mod vae;
mod vae_strips;
mod weights;

pub use builder::{AdapterPort, BuildOptions, BuiltGraph, Precision, SIDE_FILE, Storage};
pub use esrgan::{UpscalerShape, upscaler};
pub use faces::{FaceShape, codeformer, gfpgan, parsenet, retinaface};
pub use hypernetwork::{Activation, HypernetworkLayer, HypernetworkModules, multiplier_input};
pub use text::{TextTower, TextTowerShape, text_encoder};
pub use token_merging::{MERGE_COUNT, MERGE_SOURCES, MERGE_TARGETS, TokenMerge};
pub(crate) use unet::context_width;
pub use unet::{Heads, UnetShape, VectorInput, unet};
pub use vae::{vae_decoder, vae_encoder};
pub use vae_strips::{StripInputs, StripPart, decoder_head, streamed_blocks, strip_graph};
pub use weights::Weights;

/// Why a graph cannot be built from a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The checkpoint lacks a tensor that its own layout needs.
    #[error("the checkpoint has no tensor \"{name}\"")]
    Missing { name: String },
    /// A tensor has another shape than its place needs.
    #[error("tensor \"{name}\" has the shape {shape:?}, {wanted} was expected")]
    Shape {
        name: String,
        shape: Vec<usize>,
        wanted: String,
    },
    /// The layout is none that the builder knows.
    #[error("this checkpoint's {part} cannot be built: {reason}")]
    Unsupported { part: &'static str, reason: String },
    /// The weights cannot be read (exports and merged networks only).
    #[error(transparent)]
    Weights(#[from] crate::catalogue::TensorFileError),
}
