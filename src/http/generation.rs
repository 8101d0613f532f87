//! `txt2img` and `img2img`.

use std::sync::Arc;

use actix_web::{HttpRequest, web};
use serde_json::Value;

use super::Server;
use super::current_model::CurrentModel;
use super::quirks::read_json_without_content_type;
use super::respond::{Answer, json};
use crate::api::{
    ApiError, CheckpointNames, IMG2IMG, ResolveContext, Resolved, TXT2IMG, generation_answer,
    resolve_img2img, resolve_txt2img,
};
use crate::catalogue::Catalogue;
use crate::config::Options;
use crate::jobs::{Board, Ticket, new_task_id};

/// `POST /sdapi/v1/txt2img`
pub(super) async fn txt2img(
    server: web::Data<Server>,
    request: HttpRequest,
    bytes: web::Bytes,
) -> Answer {
    let body = read_json_without_content_type(&request, &bytes, TXT2IMG)?;
    drop(bytes);
    let resolved = resolve_txt2img(body, &context(&server))?;
    generate(server, resolved, "txt2img", "scripts_txt2img").await
}

/// `POST /sdapi/v1/img2img`
pub(super) async fn img2img(
    server: web::Data<Server>,
    request: HttpRequest,
    bytes: web::Bytes,
) -> Answer {
    let body = read_json_without_content_type(&request, &bytes, IMG2IMG)?;
    drop(bytes);
    let resolved = resolve_img2img(body, &context(&server))?;
    generate(server, resolved, "img2img", "scripts_img2img").await
}

impl CheckpointNames for Catalogue {
    fn is_alias(&self, name: &str) -> bool {
        self.find_exact(name).is_some()
    }
}

fn context(server: &Server) -> ResolveContext<'_> {
    ResolveContext {
        options: current_options(server),
        checkpoints: server.catalogue.as_ref(),
        styles: server.styles.as_ref(),
        noise_on_cpu: server.config.noise_on_cpu,
    }
}

/// The options now, with the selected checkpoint by its title.
pub(super) fn current_options(server: &Server) -> Options {
    let mut values = server.settings.snapshot().values().clone();
    CurrentModel(server).show(&mut values);
    Options::new(values)
}

async fn generate(
    server: web::Data<Server>,
    resolved: Resolved,
    kind: &str,
    job: &'static str,
) -> Answer {
    if !resolved.ignored_overrides.is_empty() {
        let keys = resolved.ignored_overrides.join(", ");
        tracing::warn!(
            keys,
            "override_settings: unknown options or values of another type are ignored"
        );
    }
    let task = resolved
        .body
        .nonempty_text("force_task_id")
        .map_or_else(|| new_task_id(kind, entropy()), str::to_owned);
    let ticket = Ticket {
        job: Some(job),
        task: Some(task),
        client: String::new(),
    };
    let for_job = Arc::clone(&server);
    let answer = server
        .jobs
        .run(ticket, move |board| carry_out(&for_job, resolved, board))
        .await??;
    Ok(json(&answer))
}

/// The job on the queue's thread: decode, generate, encode.
fn carry_out(server: &Server, mut resolved: Resolved, board: &Board) -> Result<Value, ApiError> {
    resolved.decode_pictures()?;
    if let Some(overrides) = resolved.lasting_overrides() {
        let known = server.settings.snapshot();
        let lasting = overrides
            .iter()
            .filter(|(key, _)| known.get(key).is_some())
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        if let Err(error) = server.settings.change_in_memory(&lasting) {
            tracing::warn!(%error, "override_settings are not kept");
        }
    }
    let result = server.engine.generate(&resolved.params, board)?;
    for comment in &result.comments {
        tracing::warn!(comment, "generation");
    }
    if let (Some(path), Some(text)) = (
        &server.config.folders.prompt_history,
        result.infotexts.first(),
    ) && let Err(error) = fs_err::write(path, text)
    {
        tracing::warn!(%error, "params.txt cannot be written");
    }
    let encoding = server.settings.snapshot();
    generation_answer(&result, &resolved.body, &resolved.params.options, &encoding)
}

/// Bits for a task id; they need to differ, not to be secret.
fn entropy() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0_u8)
}
