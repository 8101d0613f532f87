//! Progress, interrupt, skip, memory, and what becomes of the loaded checkpoint.

use std::sync::Arc;

use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::{Value, json};

use super::Server;
use super::current_model::CurrentModel;
use super::respond::{Answer, empty_object, json as json_answer, null};
use crate::api::{encode_picture, query_bool};
use crate::config::Options;
use crate::jobs::{PreviewOptions, StateFields, Ticket};

/// `GET /sdapi/v1/progress`
pub(super) async fn progress(server: web::Data<Server>, request: HttpRequest) -> Answer {
    let skip_image = query_bool(request.query_string(), "skip_current_image")?;
    let options = server.settings.snapshot();
    let progress = server
        .jobs
        .board()
        .progress(preview_options(&options), !skip_image);
    // A preview that cannot be encoded is no reason to fail, as in A1111.
    let image = progress
        .preview
        .and_then(|picture| encode_picture(&picture, &[], &options).ok());
    Ok(json_answer(&json!({
        "progress": progress.progress,
        "eta_relative": progress.eta_relative,
        "state": state_json(&progress.state),
        "current_image": image,
        "textinfo": progress.text,
    })))
}

pub(super) fn preview_options(options: &Options) -> PreviewOptions {
    PreviewOptions {
        enabled: options.bool("live_previews_enable"),
        every_steps: options.i64("show_progress_every_n_steps"),
        grid: options.bool("show_progress_grid"),
    }
}

fn state_json(state: &StateFields) -> Value {
    json!({
        "skipped": state.skipped,
        "interrupted": state.interrupted,
        "stopping_generation": state.stopping_generation,
        "job": state.job,
        "job_count": state.job_count,
        "job_timestamp": state.job_timestamp,
        "job_no": state.job_no,
        "sampling_step": state.sampling_step,
        "sampling_steps": state.sampling_steps,
    })
}

/// `POST /sdapi/v1/interrupt`
pub(super) async fn interrupt(server: web::Data<Server>) -> HttpResponse {
    server.jobs.board().interrupt();
    empty_object()
}

/// `POST /sdapi/v1/skip`
pub(super) async fn skip(server: web::Data<Server>) -> HttpResponse {
    server.jobs.board().skip();
    null()
}

/// `POST /sdapi/v1/unload-checkpoint`: the next job loads it again.
pub(super) async fn unload_checkpoint(server: web::Data<Server>) -> HttpResponse {
    server.engine.unload();
    empty_object()
}

/// `POST /sdapi/v1/reload-checkpoint`: loads it when the queue allows; answers at once.
pub(super) async fn reload_checkpoint(server: web::Data<Server>) -> HttpResponse {
    let for_job = Arc::clone(&server);
    actix_web::rt::spawn(async move {
        let loading = Arc::clone(&for_job);
        let loaded = for_job
            .jobs
            .run(Ticket::default(), move |_| CurrentModel(&loading).load())
            .await;
        if let Ok(Err(error)) = loaded {
            tracing::warn!(%error, "the checkpoint is not loaded");
        }
    });
    empty_object()
}

/// `GET /sdapi/v1/memory`
pub(super) async fn memory() -> HttpResponse {
    let ram = match ram_bytes() {
        Some((used, total)) => json!({"free": total - used, "used": used, "total": total}),
        None => json!({"error": "unavailable"}),
    };
    json_answer(&json!({"ram": ram, "cuda": {"error": "unavailable"}}))
}

/// Bytes of this process and of the machine, where the system tells through `/proc`.
pub(super) fn ram_bytes() -> Option<(f64, f64)> {
    const BYTES_PER_KIB: f64 = 1024.0;
    let kib = |file: &str, key: &str| -> Option<f64> {
        let text = fs_err::read_to_string(file).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_whitespace().next()?.parse().ok()
    };
    let used = kib("/proc/self/status", "VmRSS:")?;
    let total = kib("/proc/meminfo", "MemTotal:")?;
    Some((used * BYTES_PER_KIB, total * BYTES_PER_KIB))
}
