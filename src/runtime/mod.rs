//! Loading the ONNX Runtime library, execution providers, sessions and tensors. The only room that
//! names `ort`, and the only one that may hold `unsafe` code.
//!
//! The library is looked for at run time ([`find_library`]) and loaded once a process
//! ([`Runtime::load`]). A [`Graph`] is one session; it takes and gives `ndarray` arrays. On a GPU what it takes is
//! bound, so that what stays the same from call to call is brought there once.

mod effort;
mod external_data;
mod graph;
mod input_binding;
mod library;
pub mod matrix_operators;
mod memory;
mod providers;
mod run_times;
mod upgrade;

pub use effort::{LoadEffort, LoadStop, lower_priority};
pub use graph::{Graph, GraphSource, Input, Invocation, RunStop, Tensor};
pub use library::{LibrarySearch, Runtime, RuntimeOptions, find_library};
pub use memory::{available_memory_bytes, exit_at_once, give_back_free_memory, total_memory_bytes};
pub use providers::{ConvSearch, ExecutionProvider};
pub use run_times::GraphTime;
pub use upgrade::{BackgroundWork, has_background_work};

/// Why the runtime could not be loaded or a graph could not be run.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// No library in any of the places.
    #[error(
        "no ONNX Runtime library was found (looked at {looked_at}); run scripts/fetch_runtime, or name the library with --ort-library or ORT_DYLIB_PATH"
    )]
    LibraryMissing { looked_at: String },
    /// The file is no library, or one that is too old.
    #[error(
        "the ONNX Runtime library {path} cannot be used: {reason}; version 1.24 or newer is needed, scripts/fetch_runtime fetches one"
    )]
    LibraryUnusable { path: String, reason: String },
    /// The runtime refused a graph.
    #[error("the {graph} graph cannot be loaded: {reason}")]
    Load { graph: String, reason: String },
    /// A run failed.
    #[error("the {graph} graph failed: {reason}")]
    Run { graph: String, reason: String },
    /// The device has no memory left, also after what nobody needs was let go of. Torch's first words, by
    /// which clients know it.
    #[error("{device} out of memory. The {graph} graph failed: {reason}")]
    OutOfMemory {
        device: &'static str,
        graph: String,
        reason: String,
    },
    /// A run was stopped by [`RunStop::stop`].
    #[error("the {graph} graph was stopped")]
    Terminated { graph: String },
    /// The graph has no such input or output, or one of another type.
    #[error("the {graph} graph has no usable {what}")]
    Contract { graph: String, what: String },
}
