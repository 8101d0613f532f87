//! Answers: JSON bodies and A1111's error bodies.

use actix_web::http::StatusCode;
use actix_web::http::header::RETRY_AFTER;
use actix_web::{HttpResponse, ResponseError};
use serde_json::Value;

use crate::api::ApiError;
use crate::jobs::JobError;

/// When a client whom the queue refused may ask again.
const RETRY_AFTER_S: u64 = 5;

/// What handlers answer.
pub(super) type Answer = Result<HttpResponse, ApiError>;

/// Status 200 with a JSON body.
pub(super) fn json(value: &Value) -> HttpResponse {
    HttpResponse::Ok()
        .content_type("application/json")
        .body(value.to_string())
}

/// Status 200 with the body `null`.
pub(super) fn null() -> HttpResponse {
    json(&Value::Null)
}

/// Status 200 with the body `{}`.
pub(super) fn empty_object() -> HttpResponse {
    json(&Value::Object(serde_json::Map::new()))
}

/// FastAPI's body for what its router refuses, for example `Not Found`.
pub(super) fn detail(status: StatusCode, text: &str) -> HttpResponse {
    HttpResponse::build(status)
        .content_type("application/json")
        .body(serde_json::json!({"detail": text}).to_string())
}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    fn error_response(&self) -> HttpResponse {
        if self.status() >= 500 {
            tracing::warn!(error = %self, "a request failed");
        }
        let mut answer = HttpResponse::build(self.status_code());
        if self.status() == 503 {
            answer.insert_header((RETRY_AFTER, RETRY_AFTER_S));
        }
        answer
            .content_type("application/json")
            .body(self.body().to_string())
    }
}

/// A full or closing queue is no fault of the request: status 503 in the shape of a deliberate error.
impl From<JobError> for ApiError {
    fn from(error: JobError) -> Self {
        match error {
            JobError::QueueFull { .. }
            | JobError::ClientFull { .. }
            | JobError::ShuttingDown
            | JobError::Cancelled => Self::http(503, error.to_string()),
            JobError::Panicked => Self::unexpected("RuntimeError", error.to_string()),
        }
    }
}
