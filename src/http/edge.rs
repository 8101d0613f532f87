//! What surrounds every answer: preflights, compression, CORS headers, the request's time, the line of
//! `--api-log`. The login stands at each route, see `login.rs`.
//!
//! The order follows A1111's middleware. Unlike there, answers with status 500 carry the headers too,
//! since pages could not read the error otherwise.

use std::io::{ErrorKind, Write};
use std::time::{Duration, Instant};

use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::error::PayloadError;
use actix_web::http::StatusCode;
use actix_web::http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, HeaderName, HeaderValue};
use actix_web::middleware::Next;
use actix_web::{Error, HttpResponse, ResponseError as _, web};
use flate2::Compression;
use flate2::write::GzEncoder;

use super::cors::{Cors, add_vary, is_preflight};
use super::respond::detail;
use super::{Server, body, host};
use crate::api::ApiError;

/// Smaller bodies are not compressed.
const GZIP_FROM_BYTES: usize = 1000;

/// The answer to a name that is not this server's.
const FOREIGN_HOST: &str = "this server answers to local names only; --allow-hosts names others";

/// The middleware around all routes.
///
/// # Errors
/// Never: errors of the routes become answers.
///
/// # Panics
/// When the routes were registered without [`super::configure`].
pub async fn surround(
    mut request: ServiceRequest,
    next: Next<BoxBody>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let begin = Instant::now();
    let server = request
        .app_data::<web::Data<Server>>()
        .cloned()
        .expect("the server's state is registered with its routes");
    let cors = Cors::new(&server.config.server);
    // No clone of the request may live across the call: the router changes it in place.
    let bound = &server.config.server.binding.host;
    let mut answer = if !host::is_ours(&request, bound, &server.config.server.hosts) {
        request.into_response(detail(StatusCode::FORBIDDEN, FOREIGN_HOST))
    } else if is_preflight(request.method(), request.headers()) {
        let preflight = cors.preflight(request.headers());
        request.into_response(preflight)
    } else {
        let pause = Duration::from_secs(server.config.limits.body_timeout_s);
        body::limit_pauses(&mut request, pause);
        finish(unread_body(next.call(request).await?), &cors)
    };
    let elapsed_s = begin.elapsed().as_secs_f64();
    if let Ok(value) = HeaderValue::from_str(&format!("{elapsed_s:.4}")) {
        let name = HeaderName::from_static("x-process-time");
        answer.headers_mut().insert(name, value);
    }
    server.jobs.meter().answered(answer.status().as_u16());
    log(
        &server,
        answer.request(),
        answer.status().as_u16(),
        elapsed_s,
    );
    Ok(answer)
}

/// A body that could not be read is answered in A1111's shape instead of the web server's.
fn unread_body(answer: ServiceResponse<BoxBody>) -> ServiceResponse<BoxBody> {
    let cause = answer
        .response()
        .error()
        .and_then(|error| error.as_error::<PayloadError>());
    let refusal = match cause {
        None => return answer,
        Some(PayloadError::Overflow) => ApiError::http(
            413,
            "The body is too large; --max-body-size changes the limit",
        ),
        Some(PayloadError::Incomplete(Some(error))) if error.kind() == ErrorKind::TimedOut => {
            ApiError::http(408, "The client paused for too long while it sent the body")
        }
        Some(_) => ApiError::http(400, "The body could not be read"),
    };
    answer.into_response(refusal.error_response())
}

fn finish(answer: ServiceResponse<BoxBody>, cors: &Cors) -> ServiceResponse<BoxBody> {
    let (request, answer) = answer.into_parts();
    let wanted = request
        .headers()
        .get(ACCEPT_ENCODING)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|codings| codings.contains("gzip"));
    let mut answer = if wanted { compress(answer) } else { answer };
    cors.mark(request.headers(), answer.headers_mut());
    ServiceResponse::new(request, answer)
}

fn compress(answer: HttpResponse) -> HttpResponse {
    let (mut answer, body) = answer.into_parts();
    let bytes = match body.try_into_bytes() {
        Ok(bytes) => bytes,
        Err(body) => return answer.set_body(body),
    };
    if bytes.len() < GZIP_FROM_BYTES || answer.headers().contains_key(CONTENT_ENCODING) {
        return answer.set_body(BoxBody::new(bytes));
    }
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 2), Compression::fast());
    match encoder.write_all(&bytes).and_then(|()| encoder.finish()) {
        Ok(small) => {
            let headers = answer.headers_mut();
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            add_vary(headers, "Accept-Encoding");
            answer.set_body(BoxBody::new(small))
        }
        Err(_) => answer.set_body(BoxBody::new(bytes)),
    }
}

/// A1111's line for `--api-log`, as fields.
fn log(server: &Server, request: &actix_web::HttpRequest, status: u16, elapsed_s: f64) {
    if !server.config.server.api_log || !request.path().starts_with("/sdapi") {
        return;
    }
    let peer = request
        .peer_addr()
        .map(|address| address.ip().to_string())
        .unwrap_or_default();
    tracing::info!(
        target: "ancestral::api",
        status,
        method = %request.method(),
        path = request.path(),
        peer,
        elapsed_ms = (elapsed_s * 1000.0) as u64,
        "API"
    );
}
