//! Extras, `png-info` and `interrogate`.

use actix_web::{HttpRequest, web};
use serde_json::Value;

use super::Server;
use super::job_request::{RequestKind, answer};
use super::quirks::read_json_without_content_type;
use super::respond::{Answer, json};
use crate::api::{
    ApiError, Body, ExtrasRequest, INTERROGATE, PNG_INFO, check_extras_limits, extras_answer,
    png_info_answer, resolve_extras,
};
use crate::config::Options;
use crate::jobs::Board;
use crate::pipeline::{GenerateError, JobControl as _};

/// `POST /sdapi/v1/extra-single-image`
pub(super) async fn single(
    server: web::Data<Server>,
    request: HttpRequest,
    bytes: web::Bytes,
) -> Answer {
    answer(server, request, bytes, RequestKind::ExtraSingleImage).await
}

/// `POST /sdapi/v1/extra-batch-images`
pub(super) async fn batch(
    server: web::Data<Server>,
    request: HttpRequest,
    bytes: web::Bytes,
) -> Answer {
    answer(server, request, bytes, RequestKind::ExtraBatchImages).await
}

/// The job on the queue's thread: decode, upscale, encode.
pub(super) fn carry_out(
    server: &Server,
    kind: ExtrasRequest,
    body: &Body,
    options: &Options,
    board: &Board,
) -> Result<Value, ApiError> {
    board.set_job_count(1);
    let params = resolve_extras(kind, body, options, server.pictures())?;
    check_extras_limits(&params, &server.config.limits)?;
    let result = server.engine.extras(&params, board).map_err(extras_error)?;
    for comment in &result.comments {
        tracing::warn!(comment, "extras");
    }
    extras_answer(kind, &result, options)
}

/// The same misfit has another class here than in hires fix.
fn extras_error(error: GenerateError) -> ApiError {
    match error {
        GenerateError::UnknownUpscaler { .. } => {
            ApiError::unexpected("AssertionError", error.to_string())
        }
        other => other.into(),
    }
}

/// `POST /sdapi/v1/png-info`
pub(super) async fn png_info(
    server: web::Data<Server>,
    request: HttpRequest,
    bytes: web::Bytes,
) -> Answer {
    let body = read_json_without_content_type(&request, &bytes, PNG_INFO)?;
    let work = move || {
        let options = server.settings.snapshot();
        png_info_answer(&body, &options, server.styles.as_ref(), server.pictures())
    };
    let answer = web::block(work)
        .await
        .map_err(|error| ApiError::unexpected("RuntimeError", error.to_string()))??;
    Ok(json(&answer))
}

/// `POST /sdapi/v1/interrogate`: no captioning model is there, which A1111 tells in its own ways.
pub(super) async fn interrogate(
    server: web::Data<Server>,
    request: HttpRequest,
    bytes: web::Bytes,
) -> Answer {
    let body = read_json_without_content_type(&request, &bytes, INTERROGATE)?;
    let options = server.settings.snapshot();
    let image = body.text("image").unwrap_or("");
    if image.is_empty() {
        return Err(ApiError::invalid_image());
    }
    server.pictures().file(image, &options)?;
    match body.text("model") {
        // A failure inside the captioner answers 200 there, with this as the caption.
        Some("clip") => Ok(json(&serde_json::json!({"caption": "<error>"}))),
        Some("deepdanbooru") => Err(ApiError::unexpected(
            "IndexError",
            "there is no tagger in models/torch_deepdanbooru",
        )),
        _ => Err(ApiError::http(404, "Model not found")),
    }
}
