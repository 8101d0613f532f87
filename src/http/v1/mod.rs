//! `/v1/jobs`: the queue as one can see it. Beside A1111's routes, which stay as they are.
//!
//! A job is submitted with the body of the A1111 route of the same name and answered at once; it is kept
//! on disk until its result is old, so that neither a client that leaves nor a restart loses it. Requests to
//! A1111's own routes are listed too, as long as they wait or run.

mod events;
mod kept;
mod view;
mod webhook;

use actix_web::http::StatusCode;
use actix_web::http::header::LOCATION;
use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::{Value, json};

use super::Server;
use super::client::{client_of, waiting_limit_of};
use super::quirks::content_type;
use super::respond::{Answer, json as json_answer};
use crate::api::ApiError;
use crate::jobs::{Cancelled, KeptState, Record, StoreError};

pub(super) use events::events;
pub use kept::Kept;

/// `POST /v1/jobs/{kind}`
pub(super) async fn submit(
    server: web::Data<Server>,
    request: HttpRequest,
    kind: web::Path<String>,
    bytes: web::Bytes,
) -> Answer {
    let submission = kept::Submission {
        kind: kind.into_inner(),
        client: client_of(&request),
        waiting_limit: waiting_limit_of(&request),
        content_type: content_type(&request).map(str::to_owned),
        idempotency_key: header(&request, "idempotency-key"),
        body: bytes,
    };
    let for_block = server.clone();
    let (record, repeated) = web::block(move || kept::submit(&for_block, submission))
        .await
        .map_err(|error| ApiError::unexpected("RuntimeError", error.to_string()))??;
    let status = if repeated {
        StatusCode::OK
    } else {
        StatusCode::ACCEPTED
    };
    let body = view::of_record(&server, &record, &server.jobs.list());
    Ok(HttpResponse::build(status)
        .insert_header((LOCATION, view::path_of(&record.id)))
        .insert_header(("x-job-id", record.id))
        .content_type("application/json")
        .body(body.to_string()))
}

/// `GET /v1/jobs`: what runs, what waits in the order of its turns, what ended lately.
pub(super) async fn list(server: web::Data<Server>, request: HttpRequest) -> Answer {
    let records = match server.kept.store() {
        Some(store) => store.list().map_err(store_error)?,
        None => Vec::new(),
    };
    let mut jobs: Vec<Value> = Vec::new();
    let queued = server.jobs.list();
    for job in queued
        .iter()
        .filter(|job| may_see(&server, &request, &job.client))
    {
        let record = records.iter().find(|record| record.id == job.task);
        jobs.push(match record {
            Some(record) => view::of_record(&server, record, &queued),
            None => view::of_job(&server, job),
        });
    }
    for record in records.iter().rev() {
        let shown = queued.iter().any(|job| job.task == record.id);
        if !shown && may_see(&server, &request, &record.client) {
            jobs.push(view::of_record(&server, record, &queued));
        }
    }
    Ok(json_answer(&json!({"jobs": jobs})))
}

/// `GET /v1/jobs/{id}`
pub(super) async fn show(
    server: web::Data<Server>,
    request: HttpRequest,
    id: web::Path<String>,
) -> Answer {
    view::of_id(&server, &request, &id)?
        .map(|view| json_answer(&view))
        .ok_or_else(|| unknown(&id))
}

/// `GET /v1/jobs/{id}/result`: the answer that A1111's route would have given, with its status.
pub(super) async fn result(
    server: web::Data<Server>,
    request: HttpRequest,
    id: web::Path<String>,
) -> Answer {
    let record = find(&server, &request, &id)?.ok_or_else(|| unknown(&id))?;
    if let Some((status, body)) = &record.error {
        let status = StatusCode::from_u16(*status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        return Ok(HttpResponse::build(status)
            .content_type("application/json")
            .body(body.to_string()));
    }
    if !record.has_result {
        let text = match record.state {
            KeptState::Cancelled => "The job was cancelled before it ran",
            _ => "The job has no result yet",
        };
        return Err(ApiError::http(409, text));
    }
    let for_block = server.clone();
    let bytes = web::block(move || match for_block.kept.store() {
        Some(store) => store.result(&record.id).map_err(store_error),
        None => Err(unknown(&record.id)),
    })
    .await
    .map_err(|error| ApiError::unexpected("RuntimeError", error.to_string()))??;
    Ok(HttpResponse::Ok()
        .content_type("application/json")
        .body(bytes))
}

/// `DELETE /v1/jobs/{id}`: ends this job and no other. One that ended already stays as it is.
pub(super) async fn cancel(
    server: web::Data<Server>,
    request: HttpRequest,
    id: web::Path<String>,
) -> Answer {
    if view::of_id(&server, &request, &id)?.is_none() {
        return Err(unknown(&id));
    }
    if server.jobs.cancel(&id) == Cancelled::Waiting {
        kept::note_cancelled(&server, &id);
    }
    let view = view::of_id(&server, &request, &id)?;
    Ok(json_answer(&view.unwrap_or_else(|| view::cancelled(&id))))
}

/// Without logins everybody sees every job, as with A1111's progress; with them, everybody their own.
fn may_see(server: &Server, request: &HttpRequest, owner: &str) -> bool {
    !server.config.server.asks_for_login() || client_of(request) == owner
}

fn find(server: &Server, request: &HttpRequest, id: &str) -> Result<Option<Record>, ApiError> {
    let Some(store) = server.kept.store() else {
        return Ok(None);
    };
    let record = store.get(id).map_err(store_error)?;
    Ok(record.filter(|record| may_see(server, request, &record.client)))
}

fn unknown(id: &str) -> ApiError {
    ApiError::http(404, format!("There is no job {id}"))
}

fn store_error(error: StoreError) -> ApiError {
    tracing::error!(%error, "kept jobs");
    ApiError::unexpected(
        "OSError",
        "the job could not be kept or found; the log says why",
    )
}

fn header(request: &HttpRequest, name: &str) -> Option<String> {
    let value = request.headers().get(name)?.to_str().ok()?;
    (!value.is_empty()).then(|| value.to_owned())
}
