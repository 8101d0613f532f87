//! The page, its documents, and the small routes of A1111's web page that programs probe.

use actix_web::{HttpResponse, web};
use serde_json::{Value, json};

use super::Server;
use super::respond::{Answer, json as json_answer, null};
use crate::api::{ApiError, openapi_document};

const HTML: &str = "text/html; charset=utf-8";

/// `GET /`
pub(super) async fn index() -> HttpResponse {
    HttpResponse::Ok()
        .content_type(HTML)
        .body(include_str!("index.html"))
}

/// `GET /docs` and `/redoc`: reads `openapi.json`; needs nothing from elsewhere.
pub(super) async fn docs() -> HttpResponse {
    HttpResponse::Ok()
        .content_type(HTML)
        .body(include_str!("docs.html"))
}

/// `GET /openapi.json`; with `--subpath` it names the path that clients see.
pub(super) async fn openapi(server: web::Data<Server>) -> HttpResponse {
    let config = &server.config.server;
    let mut document = openapi_document(config.web_routes, config.server_stop);
    if let (false, Value::Object(parts)) = (config.subpath.is_empty(), &mut document) {
        // Behind `openapi` and `info`, where FastAPI puts it.
        let servers = json!([{"url": format!("/{}", config.subpath)}]);
        parts.shift_insert(2, "servers".to_owned(), servers);
    }
    json_answer(&document)
}

/// `GET /app_id`: a number that differs from start to start.
pub(super) async fn app_id(server: web::Data<Server>) -> HttpResponse {
    let address = std::ptr::from_ref(server.as_ref()) as u64;
    let id = address.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    json_answer(&json!({"app_id": id}))
}

/// `GET /user`: nobody logs in to a page here.
pub(super) async fn user() -> HttpResponse {
    null()
}

/// `GET /token`
pub(super) async fn token() -> HttpResponse {
    json_answer(&json!({"token": null, "user": null}))
}

/// `GET /login_check`
pub(super) async fn login_check() -> HttpResponse {
    null()
}

/// `GET /queue/status`
pub(super) async fn queue_status(server: web::Data<Server>) -> HttpResponse {
    json_answer(&json!({
        "msg": "estimation",
        "rank": null,
        "queue_size": server.jobs.waiting(),
        "avg_event_process_time": 0.0,
        "avg_event_concurrent_process_time": null,
        "rank_eta": null,
        "queue_eta": 1.0,
    }))
}

/// `GET /startup-events`
pub(super) async fn startup_events() -> HttpResponse {
    json_answer(&Value::Bool(true))
}

/// `GET /theme.css`
pub(super) async fn theme() -> HttpResponse {
    HttpResponse::Ok()
        .content_type("text/css; charset=utf-8")
        .body("")
}

/// `GET /robots.txt`
pub(super) async fn robots() -> HttpResponse {
    HttpResponse::Ok()
        .content_type("text/plain; charset=utf-8")
        .body("User-agent: *\nDisallow: ")
}

/// `GET /favicon.ico`
pub(super) async fn favicon() -> HttpResponse {
    HttpResponse::Ok()
        .content_type("image/svg+xml")
        .body(include_str!("favicon.svg"))
}

/// `GET /file=PATH`: files are not handed out.
pub(super) async fn file(path: web::Path<String>) -> Answer {
    Err(ApiError::http(403, format!("File not allowed: {path}.")))
}
