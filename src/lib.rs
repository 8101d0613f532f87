//! Ancestral answers AUTOMATIC1111's HTTP API with AUTOMATIC1111's pictures, from ONNX graphs.
//!
//! The rooms, outermost first; a room may use those below it as `docs/ARCHITECTURE.md` lists, never
//! those above. `tests/tidy.rs` reads the `use` lines and fails on an arrow that points up.

pub mod api;
pub mod app;
pub mod catalogue;
pub mod conditioning;
pub mod config;
pub mod http;
pub mod imaging;
pub mod infotext;
pub mod jobs;
pub mod models;
pub mod pipeline;
pub mod prompt;
pub mod rng;
pub mod runtime;
pub mod sampling;
pub mod saving;
pub mod scripts;
