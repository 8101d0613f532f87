//! Submitting, carrying out and resuming kept jobs.

use std::path::PathBuf;
use std::sync::OnceLock;

use actix_web::web;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::{store_error, webhook};
use crate::api::ApiError;
use crate::config::Options;
use crate::http::Server;
use crate::http::generation::current_options;
use crate::http::job_request::RequestKind;
use crate::jobs::{
    ATTEMPT_LIMIT, Board, Inserted, KeptState, Record, Store, Ticket, Webhook, now_ms,
};
use crate::pipeline::JobControl as _;

/// The most characters of an id or an idempotency key.
const NAME_LIMIT: usize = 256;

/// The kept jobs of a server: opened by the first that is submitted, or at the start if some are there.
pub struct Kept {
    folder: PathBuf,
    store: OnceLock<Store>,
    opening: parking_lot::Mutex<()>,
}

impl Kept {
    /// The jobs of this folder.
    #[must_use]
    pub fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            store: OnceLock::new(),
            opening: parking_lot::Mutex::new(()),
        }
    }

    /// The store, if it is open.
    pub(super) fn store(&self) -> Option<&Store> {
        self.store.get()
    }

    fn open(&self) -> Result<&Store, ApiError> {
        let _one_at_a_time = self.opening.lock();
        if let Some(store) = self.store.get() {
            return Ok(store);
        }
        let store = Store::open(&self.folder).map_err(store_error)?;
        Ok(self.store.get_or_init(|| store))
    }

    /// Takes up the jobs that a former process left, in their order. A job that was running so often that it
    /// may be what ends the process is given up.
    pub fn resume(server: &web::Data<Server>) {
        if !server.kept.folder.join("jobs.redb").exists() {
            return;
        }
        let records = server
            .kept
            .open()
            .and_then(|store| store.list().map_err(store_error));
        let Ok(records) = records else {
            return;
        };
        for record in records {
            if record.state.is_final() {
                webhook::tell(server, &record);
                continue;
            }
            if record.attempts >= ATTEMPT_LIMIT {
                let text = format!("the server ended {ATTEMPT_LIMIT} times while this job ran");
                end(
                    server,
                    &record.id,
                    Err(ApiError::unexpected("RuntimeError", text)),
                    false,
                );
                continue;
            }
            tracing::info!(job = record.id, "taken up again");
            if let Err(error) = enqueue(server, &record, false, None) {
                tracing::error!(job = record.id, %error, "not taken up again");
            }
        }
        sweep(server);
    }
}

/// A request to keep a job.
pub(super) struct Submission {
    pub kind: String,
    pub client: String,
    pub waiting_limit: Option<usize>,
    pub content_type: Option<String>,
    pub idempotency_key: Option<String>,
    pub body: web::Bytes,
}

/// Checks, keeps and queues a job. Answers its record, and whether it was there before.
pub(super) fn submit(
    server: &web::Data<Server>,
    submission: Submission,
) -> Result<(Record, bool), ApiError> {
    let kind = RequestKind::named(&submission.kind).ok_or_else(|| {
        ApiError::http(404, format!("There is no kind of job {}", submission.kind))
    })?;
    let options = current_options(server);
    let request = kind.read(
        submission.content_type.as_deref(),
        &submission.body,
        server,
        options.clone(),
    )?;
    let mut record = Record::queued(
        request.task_id(),
        kind.name(),
        &submission.client,
        format!("{:x}", Sha256::digest(&submission.body)),
    );
    drop(request);
    record.webhook =
        webhook::asked_for(&server.config.webhook, &submission.body)?.map(|url| Webhook {
            url,
            settled: false,
        });
    record
        .idempotency_key
        .clone_from(&submission.idempotency_key);
    let too_long = |text: &str| text.chars().count() > NAME_LIMIT;
    if too_long(&record.id) || record.idempotency_key.as_deref().is_some_and(too_long) {
        let text = format!("A job's id and idempotency key have at most {NAME_LIMIT} characters");
        return Err(ApiError::http(400, text));
    }
    let taken = || ApiError::http(409, format!("There is a job {} already", record.id));
    if server.jobs.list().iter().any(|job| job.task == record.id) {
        return Err(taken());
    }
    let body = kept_body(
        submission.content_type.as_deref(),
        options.values(),
        &submission.body,
    );
    match server
        .kept
        .open()?
        .insert(record.clone(), &body)
        .map_err(store_error)?
    {
        Inserted::Taken => Err(taken()),
        Inserted::Repeated(known) if known.body_sha256 != record.body_sha256 => {
            let text = "This idempotency key was used with another body";
            Err(ApiError::http(409, text))
        }
        Inserted::Repeated(known) => Ok((*known, true)),
        Inserted::New => {
            if let Err(error) = enqueue(server, &record, true, submission.waiting_limit) {
                forget(server, &record.id);
                return Err(error);
            }
            Ok((record, false))
        }
    }
}

/// The options of this moment and the body, so that the job means the same after a restart.
fn kept_body(content_type: Option<&str>, options: &Map<String, Value>, body: &[u8]) -> Vec<u8> {
    let head = serde_json::json!({"content_type": content_type, "options": options}).to_string();
    let mut bytes = Vec::with_capacity(head.len() + 1 + body.len());
    bytes.extend_from_slice(head.as_bytes());
    bytes.push(b'\n');
    bytes.extend_from_slice(body);
    bytes
}

fn enqueue(
    server: &web::Data<Server>,
    record: &Record,
    bounded: bool,
    waiting_limit: Option<usize>,
) -> Result<(), ApiError> {
    let kind = RequestKind::named(&record.kind)
        .ok_or_else(|| ApiError::http(404, format!("There is no kind of job {}", record.kind)))?;
    let ticket = Ticket {
        job: Some(kind.job()),
        task: Some(record.id.clone()),
        client: record.client.clone(),
        waiting_limit,
    };
    let (server_of_job, id) = (server.clone(), record.id.clone());
    let work = move |board: &Board| carry_out(&server_of_job, kind, &id, board);
    server
        .jobs
        .submit(ticket, bounded, work)
        .map_err(Into::into)
}

/// The job on the queue's thread; answers whether it succeeded.
fn carry_out(server: &web::Data<Server>, kind: RequestKind, id: &str, board: &Board) -> bool {
    let ending = Ending { server, id };
    let result = begin(server, kind, id, board);
    std::mem::forget(ending);
    let succeeded = result.is_ok();
    end(server, id, result, board.interrupted());
    succeeded
}

fn begin(
    server: &web::Data<Server>,
    kind: RequestKind,
    id: &str,
    board: &Board,
) -> Result<Value, ApiError> {
    let store = server.kept.open()?;
    let begun = store.update(id, |record| {
        record.state = KeptState::Running;
        record.attempts += 1;
        record.started_ms = Some(now_ms());
    });
    begun.map_err(store_error)?;
    let bytes = store.body(id).map_err(store_error)?;
    let unreadable = || ApiError::unexpected("RuntimeError", "the kept body is not readable");
    let line = bytes
        .iter()
        .position(|byte| *byte == b'\n')
        .ok_or_else(unreadable)?;
    let head: Value = serde_json::from_slice(&bytes[..line]).map_err(|_| unreadable())?;
    let options = head["options"]
        .as_object()
        .cloned()
        .ok_or_else(unreadable)?;
    let content_type = head["content_type"].as_str();
    let request = kind.read(
        content_type,
        &bytes[line + 1..],
        server,
        Options::new(options),
    )?;
    drop(bytes);
    request.carry_out(server, board)
}

/// Notes the end of a job that panicked, on the way up.
struct Ending<'a> {
    server: &'a web::Data<Server>,
    id: &'a str,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        let error = ApiError::unexpected(
            "RuntimeError",
            "the job stopped unexpectedly; the log says why",
        );
        end(self.server, self.id, Err(error), false);
    }
}

fn end(server: &web::Data<Server>, id: &str, result: Result<Value, ApiError>, interrupted: bool) {
    let Ok(store) = server.kept.open() else {
        return;
    };
    let result = result.and_then(|answer| {
        let text = answer.to_string();
        store.write_result(id, text.as_bytes()).map_err(store_error)
    });
    settle(server, store, id, |record| match &result {
        Ok(()) => {
            record.has_result = true;
            record.state = if interrupted {
                KeptState::Cancelled
            } else {
                KeptState::Done
            };
        }
        Err(error) => {
            record.error = Some((error.status(), error.body()));
            record.state = KeptState::Failed;
        }
    });
    sweep(server);
}

/// A waiting job was cancelled.
pub(super) fn note_cancelled(server: &web::Data<Server>, id: &str) {
    let Some(store) = server.kept.store() else {
        return;
    };
    settle(server, store, id, |record| {
        record.state = KeptState::Cancelled;
    });
}

/// Notes how a job ended, and tells whoever asked to be told.
fn settle(server: &web::Data<Server>, store: &Store, id: &str, note: impl FnOnce(&mut Record)) {
    let settled = store.update(id, |record| {
        record.ended_ms = Some(now_ms());
        note(record);
    });
    match settled {
        Ok(Some(record)) => {
            store.discard_body(id);
            webhook::tell(server, &record);
        }
        Ok(None) => {}
        Err(error) => tracing::error!(job = id, %error, "the end of the job is not noted"),
    }
}

/// The queue refused a job that was kept already.
fn forget(server: &Server, id: &str) {
    let Some(store) = server.kept.store() else {
        return;
    };
    if let Err(error) = store.remove(id) {
        tracing::error!(job = id, %error, "a refused job is not forgotten");
    }
}

fn sweep(server: &Server) {
    let Some(store) = server.kept.store() else {
        return;
    };
    if let Err(error) = store.forget_older_than(server.config.queue.keep_results_s) {
        tracing::warn!(%error, "old results stay");
    }
}
