//! Options and command line flags.

use std::sync::Arc;

use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::{Map, Value, json};

use super::Server;
use super::current_model::CurrentModel;
use super::quirks::content_type;
use super::respond::{Answer, json as json_answer, null};
use crate::api::{ApiError, FieldError, read_json};
use crate::config::SettingsError;
use crate::jobs::Ticket;

const CHECKPOINT: &str = "sd_model_checkpoint";

/// `GET /sdapi/v1/options`
pub(super) async fn get(server: web::Data<Server>) -> HttpResponse {
    let mut answer = server.settings.answer();
    CurrentModel(&server).show(&mut answer);
    json_answer(&Value::Object(answer))
}

/// `GET /sdapi/v1/cmd-flags`
pub(super) async fn cmd_flags(server: web::Data<Server>) -> HttpResponse {
    json_answer(&Value::Object(server.config.flag_echo.clone()))
}

/// `POST /sdapi/v1/options`: answers after a newly chosen checkpoint is loaded.
pub(super) async fn post(
    server: web::Data<Server>,
    request: HttpRequest,
    bytes: web::Bytes,
) -> Answer {
    let changes = read_object(&request, &bytes)?;
    let wanted = changes.get(CHECKPOINT).filter(|value| !value.is_null());
    if let Some(wanted) = wanted {
        require_alias(&server, wanted)?;
    }
    let previous = server.settings.get(CHECKPOINT);
    let before = CurrentModel(&server)
        .checkpoint()
        .map(|checkpoint| checkpoint.path);
    let ignored = server
        .settings
        .change(&changes)
        .map_err(|error| refusal(&error))?;
    if !ignored.is_empty() {
        tracing::warn!(
            keys = ignored.join(", "),
            "options of another type are left as they were"
        );
    }
    let after = CurrentModel(&server)
        .checkpoint()
        .map(|checkpoint| checkpoint.path);
    if before != after {
        switch(&server, previous).await?;
    }
    Ok(null())
}

fn read_object(request: &HttpRequest, bytes: &[u8]) -> Result<Map<String, Value>, ApiError> {
    let invalid = |message: &str, kind: &'static str| {
        let error = FieldError::new(vec![json!("body")], message, kind);
        ApiError::Validation(vec![error])
    };
    match read_json(content_type(request), bytes)? {
        Value::Object(changes) => Ok(changes),
        Value::Array(items) if items.is_empty() => Ok(Map::new()),
        Value::Null => Err(invalid("field required", "value_error.missing")),
        _ => Err(invalid("value is not a valid dict", "type_error.dict")),
    }
}

fn require_alias(server: &Server, wanted: &Value) -> Result<(), ApiError> {
    let known = wanted
        .as_str()
        .is_some_and(|name| server.catalogue.find_exact(name).is_some());
    if known {
        return Ok(());
    }
    let text = format!("model {} not found", crate::infotext::python_repr(wanted));
    Err(ApiError::unexpected("RuntimeError", text))
}

fn refusal(error: &SettingsError) -> ApiError {
    let class = match error {
        SettingsError::UnknownKey(_) => "KeyError",
        SettingsError::Frozen
        | SettingsError::SectionFrozen { .. }
        | SettingsError::KeyFrozen(_)
        | SettingsError::SavingFrozen => "AssertionError",
        SettingsError::Write { .. } => "OSError",
    };
    ApiError::unexpected(class, error.to_string())
}

/// Loads the newly selected checkpoint in the queue's turn. Where that fails the previous one is
/// selected again and the answer is 200 all the same, as in A1111.
async fn switch(server: &web::Data<Server>, previous: Value) -> Result<(), ApiError> {
    let for_job = Arc::clone(server);
    let loaded = server
        .jobs
        .run(Ticket::default(), move |_| {
            let loaded = CurrentModel(&for_job).load();
            // The hash is part of the title that the options show from now on.
            loaded.inspect(|hash| {
                hash.wait();
            })
        })
        .await?;
    if let Err(error) = loaded {
        tracing::error!(%error, "the checkpoint cannot be loaded; the previous one stays");
        server.settings.set_internal(CHECKPOINT, previous);
    }
    Ok(())
}
