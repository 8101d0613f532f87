//! What exists: samplers, schedulers, checkpoints and other models, styles, scripts; and the requests to
//! look again.

use std::sync::Arc;

use actix_web::{HttpResponse, web};
use serde_json::{Map, Value, json};

use super::Server;
use super::generation::dynamic_prompts;
use super::respond::{Answer, json as json_answer, null};
use crate::api;
use crate::catalogue::EmbeddingFile;
use crate::catalogue::REALESRGAN_MODELS;
use crate::imaging::LATENT_UPSCALE_MODES;
use crate::jobs::Ticket;
use crate::pipeline::{SAMPLERS, SCHEDULERS};

fn list(items: impl Iterator<Item = Value>) -> HttpResponse {
    json_answer(&items.collect())
}

/// `GET /sdapi/v1/samplers`
pub(super) async fn samplers() -> HttpResponse {
    list(SAMPLERS.iter().map(|sampler| {
        let options: Map<String, Value> = sampler
            .listed_options()
            .into_iter()
            .map(|(key, value)| (key.to_owned(), json!(value)))
            .collect();
        json!({"name": sampler.name, "aliases": sampler.aliases, "options": options})
    }))
}

/// `GET /sdapi/v1/schedulers`
pub(super) async fn schedulers() -> HttpResponse {
    list(SCHEDULERS.iter().map(|scheduler| {
        json!({
            "name": scheduler.name,
            "label": scheduler.label,
            "aliases": scheduler.aliases,
            "default_rho": scheduler.default_rho,
            "need_inner_model": scheduler.needs_inner_model,
        })
    }))
}

/// `GET /sdapi/v1/upscalers`: those that work here.
pub(super) async fn upscalers(server: web::Data<Server>) -> HttpResponse {
    let built_in = ["None", "Lanczos", "Nearest"].map(|name| {
        json!({
            "name": name,
            "model_name": null,
            "model_path": null,
            "model_url": null,
            "scale": 4.0,
        })
    });
    let networks = server.catalogue.upscalers().files();
    let networks = networks.into_iter().map(|file| {
        json!({
            "name": file.name,
            "model_name": file.model_name,
            "model_path": file.model_path,
            "model_url": null,
            "scale": file.scale,
        })
    });
    list(built_in.into_iter().chain(networks))
}

/// The names that `upscalers` lists, in its order.
pub(super) fn upscaler_names(server: &Server) -> Vec<String> {
    let networks = server.catalogue.upscalers().files();
    ["None", "Lanczos", "Nearest"]
        .map(str::to_owned)
        .into_iter()
        .chain(networks.into_iter().map(|file| file.name))
        .collect()
}

/// `GET /sdapi/v1/latent-upscale-modes`
pub(super) async fn latent_upscale_modes() -> HttpResponse {
    list(
        LATENT_UPSCALE_MODES
            .iter()
            .map(|(name, _)| json!({"name": name})),
    )
}

/// `GET /sdapi/v1/sd-models`
pub(super) async fn checkpoints(server: web::Data<Server>) -> HttpResponse {
    list(server.catalogue.checkpoints().iter().map(|checkpoint| {
        json!({
            "title": checkpoint.title(),
            "model_name": checkpoint.model_name,
            "hash": checkpoint.short_hash(),
            "sha256": checkpoint.sha256,
            "filename": checkpoint.path.display().to_string(),
            "config": checkpoint.config_file().map(|path| path.display().to_string()),
        })
    }))
}

/// `GET /sdapi/v1/sd-vae`
pub(super) async fn vaes(server: web::Data<Server>) -> HttpResponse {
    list(
        server
            .catalogue
            .vaes()
            .iter()
            .map(|vae| json!({"model_name": vae.name, "filename": vae.path.display().to_string()})),
    )
}

/// `GET /sdapi/v1/hypernetworks`
pub(super) async fn hypernetworks(server: web::Data<Server>) -> HttpResponse {
    list(
        server
            .catalogue
            .hypernetworks()
            .files()
            .iter()
            .map(|file| json!({"name": file.name, "path": file.path.display().to_string()})),
    )
}

/// `GET /sdapi/v1/face-restorers`
pub(super) async fn face_restorers() -> HttpResponse {
    let item = |name: &str| json!({"name": name, "cmd_dir": null});
    list(["CodeFormer", "GFPGAN"].into_iter().map(item))
}

/// `GET /sdapi/v1/realesrgan-models`: the models A1111 knows, with where their authors offer them.
pub(super) async fn realesrgan_models() -> HttpResponse {
    list(
        REALESRGAN_MODELS
            .iter()
            .map(|model| json!({"name": model.name, "path": model.url(), "scale": model.scale})),
    )
}

/// `GET /sdapi/v1/prompt-styles`
pub(super) async fn styles(server: web::Data<Server>) -> HttpResponse {
    list(server.styles.styles().into_iter().map(|row| {
        let text = |text: String| {
            if row.divider {
                Value::Null
            } else {
                json!(text)
            }
        };
        json!({
            "name": row.name,
            "prompt": text(row.prompt),
            "negative_prompt": text(row.negative_prompt),
        })
    }))
}

/// `GET /sdapi/v1/embeddings`: loaded are those that fit the text towers of the loaded checkpoint.
pub(super) async fn embeddings(server: web::Data<Server>) -> HttpResponse {
    let embeddings = server.catalogue.embeddings();
    let widths = server.engine.tower_widths();
    let (loaded, skipped) = if widths.is_empty() {
        (embeddings.files(), Vec::new())
    } else {
        embeddings.split(&widths)
    };
    json_answer(&json!({
        "loaded": embedding_items(&loaded),
        "skipped": embedding_items(&skipped),
    }))
}

fn embedding_items(files: &[EmbeddingFile]) -> Map<String, Value> {
    let item = |file: &EmbeddingFile| {
        json!({
            "step": file.step,
            "sd_checkpoint": file.checkpoint_hash,
            "sd_checkpoint_name": file.checkpoint_name,
            "shape": file.width(),
            "vectors": file.vector_count(),
        })
    };
    files
        .iter()
        .map(|file| (file.name.clone(), item(file)))
        .collect()
}

/// `GET /sdapi/v1/scripts`
pub(super) async fn scripts(server: web::Data<Server>) -> HttpResponse {
    json_answer(&api::script_names(dynamic_prompts(&server).active()))
}

/// `GET /sdapi/v1/script-info`
pub(super) async fn script_info(server: web::Data<Server>) -> HttpResponse {
    let checkpoints = server.catalogue.checkpoints();
    json_answer(&api::script_info(&api::ScriptChoices {
        dynamic_prompts: dynamic_prompts(&server).active(),
        checkpoints: checkpoints
            .iter()
            .map(crate::catalogue::Checkpoint::title)
            .collect(),
        upscalers: upscaler_names(&server),
    }))
}

/// `GET /sdapi/v1/extensions`: there are none.
pub(super) async fn extensions() -> HttpResponse {
    list(std::iter::empty())
}

/// `GET /sdapi/v1/loras`
pub(super) async fn loras(server: web::Data<Server>) -> HttpResponse {
    list(server.catalogue.networks().files().iter().map(|file| {
        let metadata: Map<String, Value> = file
            .metadata
            .iter()
            .filter(|(key, _)| *key != "ssmd_cover_images")
            .map(|(key, text)| (key.clone(), metadata_value(text)))
            .collect();
        json!({
            "name": file.name,
            "alias": file.alias,
            "path": file.path.display().to_string(),
            "metadata": metadata,
        })
    }))
}

/// Metadata is text; what looks like an object is shown as one, as in A1111.
fn metadata_value(text: &str) -> Value {
    let object = text
        .starts_with('{')
        .then(|| serde_json::from_str(text).ok());
    object.flatten().unwrap_or_else(|| json!(text))
}

/// `POST /sdapi/v1/refresh-checkpoints`
pub(super) async fn refresh_checkpoints(server: web::Data<Server>) -> Answer {
    in_turn(&server, |server| {
        server.catalogue.refresh_checkpoints();
        server.catalogue.check_checkpoints();
    })
    .await
}

/// `POST /sdapi/v1/refresh-vae`
pub(super) async fn refresh_vaes(server: web::Data<Server>) -> Answer {
    in_turn(&server, |server| server.catalogue.refresh_vaes()).await
}

/// `POST /sdapi/v1/refresh-embeddings`
pub(super) async fn refresh_embeddings(server: web::Data<Server>) -> Answer {
    in_turn(&server, |server| server.catalogue.embeddings().refresh()).await
}

/// `POST /sdapi/v1/refresh-loras`
pub(super) async fn refresh_loras(server: web::Data<Server>) -> HttpResponse {
    server.catalogue.networks().refresh();
    null()
}

/// Looks again when the queue allows, as A1111 does.
async fn in_turn(
    server: &web::Data<Server>,
    look: impl FnOnce(&Server) + Send + 'static,
) -> Answer {
    let for_job = Arc::clone(server);
    let work = move |_: &crate::jobs::Board| {
        look(&for_job);
        Ok::<_, api::ApiError>(())
    };
    server.jobs.run(Ticket::default(), work).await??;
    Ok(null())
}
