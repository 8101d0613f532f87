//! The requests that become jobs: one way from a body to the queue for A1111's routes and for `/v1/jobs`.

use actix_web::http::header::{HeaderName, HeaderValue};
use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::Value;

use super::client::{client_of, waiting_limit_of};
use super::quirks::content_type;
use super::respond::{Answer, json};
use super::{Server, extras, generation};
use crate::api::{
    ApiError, Body, EXTRAS_BATCH, EXTRAS_SINGLE, ExtrasRequest, IMG2IMG, Resolved, Schema, TXT2IMG,
    check_limits, read_body, resolve_img2img, resolve_txt2img, set_script_limits,
};
use crate::config::Options;
use crate::jobs::{Board, Ticket, new_task_id};

/// Which route a body belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RequestKind {
    Txt2img,
    Img2img,
    ExtraSingleImage,
    ExtraBatchImages,
}

impl RequestKind {
    /// The last part of the route in `/sdapi/v1`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Txt2img => "txt2img",
            Self::Img2img => "img2img",
            Self::ExtraSingleImage => "extra-single-image",
            Self::ExtraBatchImages => "extra-batch-images",
        }
    }

    pub(super) fn named(name: &str) -> Option<Self> {
        [
            Self::Txt2img,
            Self::Img2img,
            Self::ExtraSingleImage,
            Self::ExtraBatchImages,
        ]
        .into_iter()
        .find(|kind| kind.name() == name)
    }

    /// A1111's first text for such a job.
    pub(super) fn job(self) -> &'static str {
        match self {
            Self::Txt2img => "scripts_txt2img",
            Self::Img2img => "scripts_img2img",
            Self::ExtraSingleImage | Self::ExtraBatchImages => "extras",
        }
    }

    fn schema(self) -> Schema {
        match self {
            Self::Txt2img => TXT2IMG,
            Self::Img2img => IMG2IMG,
            Self::ExtraSingleImage => EXTRAS_SINGLE,
            Self::ExtraBatchImages => EXTRAS_BATCH,
        }
    }

    /// Checks a body, with the options of this moment. Pictures are decoded later, on the queue's thread.
    pub(super) fn read(
        self,
        content_type: Option<&str>,
        bytes: &[u8],
        server: &Server,
        options: Options,
    ) -> Result<JobRequest, ApiError> {
        let body = read_body(content_type, bytes, self.schema())?;
        let context = |options| generation::context(server, options);
        let mut work = match self {
            Self::Txt2img => Work::Generate(Box::new(resolve_txt2img(body, &context(options))?)),
            Self::Img2img => Work::Generate(Box::new(resolve_img2img(body, &context(options))?)),
            Self::ExtraSingleImage => Work::Extras(ExtrasRequest::Single, body, options),
            Self::ExtraBatchImages => Work::Extras(ExtrasRequest::Batch, body, options),
        };
        if let Work::Generate(resolved) = &mut work {
            check_limits(&resolved.params, &server.config.limits)?;
            set_script_limits(resolved, &server.config.limits);
        }
        Ok(JobRequest { kind: self, work })
    }
}

/// A checked body.
pub(super) struct JobRequest {
    kind: RequestKind,
    work: Work,
}

enum Work {
    Generate(Box<Resolved>),
    Extras(ExtrasRequest, Body, Options),
}

impl JobRequest {
    /// The id that the client chose, or a new one.
    pub(super) fn task_id(&self) -> String {
        let chosen = match &self.work {
            Work::Generate(resolved) => resolved.body.nonempty_text("force_task_id"),
            Work::Extras(..) => None,
        };
        chosen.map_or_else(|| new_task_id(self.kind.name(), entropy()), str::to_owned)
    }

    /// The job on the queue's thread: decode, generate, encode. Answers the body of the answer.
    pub(super) fn carry_out(self, server: &Server, board: &Board) -> Result<Value, ApiError> {
        match self.work {
            Work::Generate(resolved) => generation::carry_out(server, *resolved, board),
            Work::Extras(kind, body, options) => {
                extras::carry_out(server, kind, &body, &options, board)
            }
        }
    }
}

/// Answers one of A1111's routes: the client waits for the job. The answer names the job.
pub(super) async fn answer(
    server: web::Data<Server>,
    request: HttpRequest,
    bytes: web::Bytes,
    kind: RequestKind,
) -> Answer {
    let options = generation::current_options(&server);
    let job = kind.read(content_type(&request), &bytes, &server, options)?;
    drop(bytes);
    let task = job.task_id();
    let ticket = Ticket {
        job: Some(kind.job()),
        task: Some(task.clone()),
        client: client_of(&request),
        waiting_limit: waiting_limit_of(&request),
    };
    let for_job = server.clone();
    let work = move |board: &Board| job.carry_out(&for_job, board);
    let result = server.jobs.run(ticket, work).await?;
    let mut answer = match result {
        Ok(answer) => json(&answer),
        Err(error) => HttpResponse::from_error(error),
    };
    // An id that is no header stays out of it.
    if let Ok(value) = HeaderValue::from_str(&task) {
        let name = HeaderName::from_static("x-job-id");
        answer.headers_mut().insert(name, value);
    }
    Ok(answer)
}

/// Bits for a task id; they need to differ, not to be secret.
fn entropy() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0_u8)
}
