//! How a job is shown.

use actix_web::{HttpRequest, web};
use serde_json::{Value, json};

use super::{find, may_see};
use crate::api::ApiError;
use crate::http::Server;
use crate::http::state::preview_options;
use crate::jobs::{JobView, KeptState, Record, TaskProgress, Whereabouts};

/// The path of a job. Ids hold parentheses at most, unless a client chose another.
pub(super) fn path_of(id: &str) -> String {
    format!("/v1/jobs/{}", encoded(id))
}

fn encoded(id: &str) -> String {
    use std::fmt::Write as _;
    id.bytes().fold(String::new(), |mut text, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~()".contains(&byte) {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
        text
    })
}

/// The job of an id, kept or not; `None`: nobody knows it, or it belongs to another client.
pub(super) fn of_id(
    server: &web::Data<Server>,
    request: &HttpRequest,
    id: &str,
) -> Result<Option<Value>, ApiError> {
    let jobs = server.jobs.list();
    if let Some(record) = find(server, request, id)? {
        return Ok(Some(of_record(server, &record, &jobs)));
    }
    let job = jobs.iter().find(|job| job.task == id);
    Ok(job
        .filter(|job| may_see(server, request, &job.client))
        .map(|job| of_job(server, job)))
}

/// A kept job; `jobs` are those of the queue.
pub(super) fn of_record(server: &Server, record: &Record, jobs: &[JobView]) -> Value {
    let job = jobs.iter().find(|job| job.task == record.id);
    let mut view = fields(
        server,
        &record.id,
        &record.kind,
        job.map(|job| job.whereabouts),
    );
    // Between the queue's thread and the record's the queue knows better, until the record is final.
    if job.is_none() || record.state.is_final() {
        view["state"] = json!(record.state);
        view["position"] = Value::Null;
        view["eta"] = Value::Null;
    }
    if record.state == KeptState::Done {
        view["progress"] = json!(1.0);
    }
    view["created_at"] = time(Some(record.created_ms));
    view["started_at"] = time(record.started_ms);
    view["ended_at"] = time(record.ended_ms);
    view["attempts"] = json!(record.attempts);
    view["error"] = json!(record.error.as_ref().map(|(_, body)| body));
    view["has_result"] = json!(record.has_result);
    let path = path_of(&record.id);
    view["links"] = json!({
        "self": path,
        "events": format!("{path}/events"),
        "result": format!("{path}/result"),
    });
    view
}

/// A request to one of A1111's routes.
pub(super) fn of_job(server: &Server, job: &JobView) -> Value {
    let kind = job.job.strip_prefix("scripts_").unwrap_or(job.job);
    let mut view = fields(server, &job.task, kind, Some(job.whereabouts));
    let path = path_of(&job.task);
    view["links"] = json!({"self": path, "events": format!("{path}/events")});
    view
}

/// A job of A1111's routes that was cancelled while it waited.
pub(super) fn cancelled(id: &str) -> Value {
    json!({"id": id, "state": KeptState::Cancelled})
}

/// The progress of a running job without a preview.
pub(super) fn progress_of(server: &Server, id: &str) -> TaskProgress {
    let options = server.settings.snapshot();
    server
        .jobs
        .task_progress(Some(id), preview_options(&options), -1, false)
}

fn fields(server: &Server, id: &str, kind: &str, whereabouts: Option<Whereabouts>) -> Value {
    let (state, position, progress, eta_s) = match whereabouts {
        Some(Whereabouts::Waiting { ahead }) => (
            KeptState::Queued,
            Some(ahead),
            None,
            server.jobs.eta_s(ahead),
        ),
        Some(Whereabouts::Running) => {
            let progress = progress_of(server, id);
            (KeptState::Running, None, progress.progress, progress.eta_s)
        }
        None => (KeptState::Queued, None, None, None),
    };
    json!({
        "id": id,
        "kind": kind,
        "state": state,
        "position": position,
        "progress": progress,
        "eta": eta_s,
    })
}

/// RFC 3339 in UTC.
fn time(milliseconds: Option<u64>) -> Value {
    let stamp = milliseconds
        .and_then(|milliseconds| jiff::Timestamp::from_millisecond(milliseconds as i64).ok());
    json!(stamp.map(|stamp| stamp.to_string()))
}
