//! What surrounds every answer: preflights, compression, CORS headers, the request's time, the line of
//! `--api-log`. The login stands at each route, see `login.rs`.
//!
//! The order follows A1111's middleware. Unlike there, answers with status 500 carry the headers too,
//! since pages could not read the error otherwise.

use std::io::Write;
use std::time::Instant;

use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, HeaderName, HeaderValue};
use actix_web::middleware::Next;
use actix_web::{Error, HttpResponse, web};
use flate2::Compression;
use flate2::write::GzEncoder;

use super::Server;
use super::cors::{Cors, add_vary, is_preflight};

/// Smaller bodies are not compressed.
const GZIP_FROM_BYTES: usize = 1000;

/// The middleware around all routes.
///
/// # Errors
/// Never: errors of the routes become answers.
///
/// # Panics
/// When the routes were registered without [`super::configure`].
pub async fn surround(
    request: ServiceRequest,
    next: Next<BoxBody>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let begin = Instant::now();
    let server = request
        .app_data::<web::Data<Server>>()
        .cloned()
        .expect("the server's state is registered with its routes");
    let cors = Cors::new(&server.config.server);
    // No clone of the request may live across the call: the router changes it in place.
    let mut answer = if is_preflight(request.method(), request.headers()) {
        let preflight = cors.preflight(request.headers());
        request.into_response(preflight)
    } else {
        finish(next.call(request).await?, &cors)
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
