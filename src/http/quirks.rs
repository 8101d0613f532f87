//! Oddities kept for clients: one named function each, with who needs it.

use actix_web::HttpRequest;
use actix_web::http::header::CONTENT_TYPE;

use crate::api::{ApiError, Body, Schema, read_body};

/// A body without any Content-Type is JSON: Dify and bots written in Go send none (recorded traffic).
pub(super) fn read_json_without_content_type(
    request: &HttpRequest,
    bytes: &[u8],
    schema: Schema,
) -> Result<Body, ApiError> {
    read_body(content_type(request), bytes, schema)
}

pub(super) fn content_type(request: &HttpRequest) -> Option<&str> {
    request
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
}
