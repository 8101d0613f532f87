//! The CLIP, UNet and VAE graphs behind the traits of the rooms below. Nobody but `app.rs` calls it.
//!
//! [`Provider`] answers `pipeline::ModelProvider`: it looks a checkpoint up in the catalogue, builds
//! its graphs from the weights file ([`graphs`]) or takes them from an ONNX folder, and keeps the
//! sessions that were used last.

mod adapted;
mod checkpoint;
mod denoise;
mod describe;
mod embeddings;
mod export;
mod faces;
mod file_cache;
mod frugal;
pub mod graphs;
mod hypernetwork;
mod late_hash;
mod load_strategy;
pub mod lora;
mod networks;
mod onnx_folder;
mod provider;
mod rest;
mod row_pieces;
mod safety;
mod upscalers;
mod vae_planes;
mod vae_strips;

pub use checkpoint::{CheckpointPlan, LoadError, open_weights};
pub use describe::describe;
pub use export::{ExportError, export};
pub use faces::{DetectedFace, FaceRestorers, detected_faces, find_faces};
pub use load_strategy::LoadStrategy;
pub use networks::{GraphTextEncoder, GraphUnet, GraphVae, NetworkError, RunSharing};
pub use provider::{Provider, ProviderConfig};
pub use rest::RunningJob;
pub use safety::GraphSafetyChecker;
pub use upscalers::{GraphUpscaler, UpscalerNetworks};
