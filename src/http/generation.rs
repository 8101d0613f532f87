//! `txt2img` and `img2img`.

use std::sync::Arc;

use actix_web::{HttpRequest, web};
use serde_json::Value;

use super::Server;
use super::current_model::CurrentModel;
use super::job_request::{RequestKind, answer};
use super::respond::Answer;
use super::state::preview_options;
use crate::api::{
    ApiError, CheckpointNames, DynamicPromptsSetting, EarlyEncoder, ResolveContext, Resolved,
    generation_answer,
};
use crate::catalogue::{Catalogue, WildcardFolders};
use crate::config::Options;
use crate::jobs::Board;

/// `POST /sdapi/v1/txt2img`
pub(super) async fn txt2img(
    server: web::Data<Server>,
    request: HttpRequest,
    bytes: web::Bytes,
) -> Answer {
    answer(server, request, bytes, RequestKind::Txt2img).await
}

/// `POST /sdapi/v1/img2img`
pub(super) async fn img2img(
    server: web::Data<Server>,
    request: HttpRequest,
    bytes: web::Bytes,
) -> Answer {
    answer(server, request, bytes, RequestKind::Img2img).await
}

impl CheckpointNames for Catalogue {
    fn is_alias(&self, name: &str) -> bool {
        self.find_exact(name).is_some()
    }
}

/// What a request is read with.
pub(super) fn context(server: &Server, options: Options) -> ResolveContext<'_> {
    ResolveContext {
        options,
        checkpoints: server.catalogue.as_ref(),
        styles: server.styles.as_ref(),
        saver: Arc::clone(&server.saver),
        dynamic_prompts: dynamic_prompts(server),
        upscalers: super::lists::upscaler_names(server),
        noise_on_cpu: server.config.noise_on_cpu,
    }
}

/// The options now, with the selected checkpoint by its title.
pub(super) fn current_options(server: &Server) -> Options {
    let mut values = server.settings.snapshot().values().clone();
    CurrentModel(server).show(&mut values);
    Options::new(values)
}

/// Whether prompts are expanded, and where wildcards are.
pub(super) fn dynamic_prompts(server: &Server) -> DynamicPromptsSetting {
    DynamicPromptsSetting {
        mode: server.config.dynamic_prompts,
        wildcards: Arc::new(WildcardFolders::new(
            server.config.folders.wildcards.clone(),
        )),
    }
}

/// The job on the queue's thread: decode, generate, encode.
pub(super) fn carry_out(
    server: &Server,
    mut resolved: Resolved,
    board: &Board,
) -> Result<Value, ApiError> {
    if !resolved.ignored_overrides.is_empty() {
        let keys = resolved.ignored_overrides.join(", ");
        tracing::warn!(
            keys,
            "override_settings: unknown options and checkpoints, and values of another type, are ignored"
        );
    }
    board.set_preview_options(preview_options(&resolved.params.options));
    resolved.decode_pictures(server.pictures())?;
    if let Some(overrides) = resolved.lasting_overrides()
        && let Err(error) = server.settings.change_in_memory(&overrides)
    {
        tracing::warn!(%error, "override_settings are not kept");
    }
    let early = EarlyEncoder::of_job(&mut resolved, &server.settings.snapshot());
    let result = match &resolved.script {
        None => server.engine.generate(&resolved.params, board)?,
        Some(script) => server.engine.run_script(script, &resolved.params, board)?,
    };
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
    server.jobs.meter().drawn_with(&result.model_name);
    server.jobs.meter().pictures(result.images.len());
    let encoding = server.settings.snapshot();
    generation_answer(
        &result,
        &resolved.body,
        &resolved.params.options,
        &encoding,
        early.as_deref(),
    )
}
