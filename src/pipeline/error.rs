//! Why a generation could not be carried out. Knows nothing of HTTP.

use super::Cause;

/// A device has no memory left, in torch's words; what fulfils the traits says it as the cause of its error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct OutOfMemory(pub String);

/// Every way in which a job can fail. The messages are A1111's own where clients show them.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    #[error("Could not find checkpoint with name {name}")]
    UnknownCheckpoint { name: String },
    #[error("could not find upscaler named {name}")]
    UnknownUpscaler { name: String },
    #[error("bad sampler name: {name}")]
    UnknownSampler { name: String },
    #[error("bad number of images passed: {given}; expecting {wanted} or less")]
    TooManyInitImages { given: usize, wanted: usize },
    /// A value that no picture can be made with, for example a width of 0.
    #[error("{0}")]
    InvalidValue(String),
    /// What a script of A1111's raises, with its exception's class.
    #[error("{text}")]
    Raised { class: &'static str, text: String },
    /// Something A1111 can do and this server cannot.
    #[error("{0}")]
    Unsupported(String),
    #[error("A tensor with NaNs was produced in {part}.")]
    NotANumber { part: &'static str },
    #[error("the checkpoint could not be loaded: {0}")]
    Load(#[source] Cause),
    #[error("the picture could not be saved: {0}")]
    Save(#[source] Cause),
    #[error("the {graph} graph failed: {source}")]
    Graph { graph: &'static str, source: Cause },
}

impl GenerateError {
    /// What the device without memory said, if that was the cause.
    #[must_use]
    pub fn out_of_memory(&self) -> Option<&OutOfMemory> {
        let mut next: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = next {
            if let Some(found) = error.downcast_ref() {
                return Some(found);
            }
            next = error.source();
        }
        None
    }
}
