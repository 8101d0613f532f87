//! Everything an endpoint can answer instead of a result, in A1111's three shapes.

use serde_json::{Map, Value, json};

use crate::pipeline::GenerateError;

/// One entry of a validation answer, as pydantic v1 writes it.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldError {
    pub location: Vec<Value>,
    pub message: String,
    pub kind: &'static str,
    pub context: Option<Value>,
}

impl FieldError {
    /// An error at `location` without context.
    #[must_use]
    pub fn new(location: Vec<Value>, message: &str, kind: &'static str) -> Self {
        Self {
            location,
            message: message.to_owned(),
            kind,
            context: None,
        }
    }

    /// The JSON of the entry: loc, msg, type and, if there is one, ctx.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut entry = Map::new();
        entry.insert("loc".to_owned(), Value::Array(self.location.clone()));
        entry.insert("msg".to_owned(), Value::String(self.message.clone()));
        entry.insert("type".to_owned(), Value::String(self.kind.to_owned()));
        if let Some(context) = &self.context {
            entry.insert("ctx".to_owned(), context.clone());
        }
        Value::Object(entry)
    }
}

/// Why an endpoint does not answer with a result.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The request does not fit the endpoint's fields: status 422 with every misfit.
    #[error("the request has {} invalid fields", .0.len())]
    Validation(Vec<FieldError>),
    /// What A1111 raises on purpose, with `detail`.
    #[error("{detail}")]
    Http { status: u16, detail: String },
    /// What A1111 answers when an exception escapes: status 500, the exception's class and text.
    #[error("{class}: {text}")]
    Unexpected { class: &'static str, text: String },
}

impl ApiError {
    /// A deliberate error.
    #[must_use]
    pub fn http(status: u16, detail: impl Into<String>) -> Self {
        Self::Http {
            status,
            detail: detail.into(),
        }
    }

    /// An exception of A1111's.
    #[must_use]
    pub fn unexpected(class: &'static str, text: impl Into<String>) -> Self {
        Self::Unexpected {
            class,
            text: text.into(),
        }
    }

    /// `Invalid encoded image`, which A1111 answers with status 500.
    #[must_use]
    pub fn invalid_image() -> Self {
        Self::http(500, "Invalid encoded image")
    }

    /// The status code.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self {
            Self::Validation(_) => 422,
            Self::Http { status, .. } => *status,
            Self::Unexpected { .. } => 500,
        }
    }

    /// The body.
    #[must_use]
    pub fn body(&self) -> Value {
        match self {
            Self::Validation(errors) => {
                json!({"detail": errors.iter().map(FieldError::to_json).collect::<Vec<_>>()})
            }
            Self::Http { detail, .. } => {
                json!({"error": "HTTPException", "detail": detail, "body": "", "errors": ""})
            }
            Self::Unexpected { class, text } => {
                json!({"error": class, "detail": "", "body": "", "errors": text})
            }
        }
    }
}

impl From<GenerateError> for ApiError {
    fn from(error: GenerateError) -> Self {
        if let Some(full) = error.out_of_memory() {
            return Self::unexpected("OutOfMemoryError", full.to_string());
        }
        let class = match &error {
            GenerateError::UnknownCheckpoint { .. } | GenerateError::UnknownUpscaler { .. } => {
                "Exception"
            }
            GenerateError::UnknownSampler { .. } => "AssertionError",
            GenerateError::Raised { class, .. } => *class,
            GenerateError::Unsupported(_) => "NotImplementedError",
            GenerateError::Save(_) => "OSError",
            GenerateError::NotANumber { .. } => "NansException",
            GenerateError::TooManyInitImages { .. }
            | GenerateError::InvalidValue(_)
            | GenerateError::Load(_)
            | GenerateError::Graph { .. } => "RuntimeError",
        };
        Self::unexpected(class, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::OutOfMemory;

    #[test]
    fn a_device_without_memory_is_told_in_torchs_words() {
        let error = GenerateError::Graph {
            graph: "UNet",
            source: Box::new(OutOfMemory("CUDA out of memory. The UNet".to_owned())),
        };
        assert_eq!(
            ApiError::from(error).body(),
            json!({
                "error": "OutOfMemoryError", "detail": "", "body": "", "errors": "CUDA out of memory. The UNet"
            })
        );
    }
}
