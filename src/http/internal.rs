//! The routes of A1111's web page that programs use as well.

use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::{Map, Value, json};

use super::Server;
use super::quirks::read_json_without_content_type;
use super::respond::{Answer, empty_object, json as json_answer};
use super::state::preview_options;
use crate::api::{ApiError, INTERNAL_PROGRESS, preview_url};
use crate::config::{OptionEntry, OptionKind, option_table};

/// `GET /internal/ping`
pub(super) async fn ping() -> HttpResponse {
    empty_object()
}

/// `POST /internal/progress`
pub(super) async fn progress(
    server: web::Data<Server>,
    request: HttpRequest,
    bytes: web::Bytes,
) -> Answer {
    let body = read_json_without_content_type(&request, &bytes, INTERNAL_PROGRESS)?;
    let options = server.settings.snapshot();
    let progress = server.jobs.task_progress(
        body.text("id_task"),
        preview_options(&options),
        body.int("id_live_preview").unwrap_or(-1),
        body.bool("live_preview"),
    );
    let format = options.text("live_previews_image_format");
    let preview = progress
        .preview
        .and_then(|picture| preview_url(&picture, format).ok());
    Ok(json_answer(&json!({
        "active": progress.active,
        "queued": progress.queued,
        "completed": progress.completed,
        "progress": progress.progress,
        "eta": progress.eta_s,
        "live_preview": preview,
        "id_live_preview": progress.preview_id,
        "textinfo": progress.text,
    })))
}

/// `GET /internal/pending-tasks`
pub(super) async fn pending_tasks(server: web::Data<Server>) -> HttpResponse {
    let tasks = server.jobs.pending_tasks();
    json_answer(&json!({"size": tasks.len(), "tasks": tasks}))
}

/// `GET /internal/quicksettings-hint`: every setting with a sentence on it, in the order of A1111's
/// settings page. Explanations have no label there either.
pub(super) async fn quicksettings_hint() -> HttpResponse {
    let mut settings: Vec<&OptionEntry> = option_table().iter().collect();
    settings.sort_by_key(|entry| place_on_page(entry));
    let label = |entry: &OptionEntry| match entry.kind {
        OptionKind::Html => String::new(),
        OptionKind::Bool
        | OptionKind::Int
        | OptionKind::Float
        | OptionKind::Str
        | OptionKind::List
        | OptionKind::Null => entry.meaning.clone(),
    };
    let hints = settings
        .into_iter()
        .map(|entry| json!({"name": entry.key, "label": label(entry)}))
        .collect();
    json_answer(&hints)
}

/// The sections of A1111's settings page from top to bottom; one explanation stands by itself.
const PAGE: &[&str] = &[
    "Paths for saving",
    "Saving images/grids",
    "Saving to a directory",
    "Compatibility",
    "Extra Networks",
    "Optimizations",
    "Sampler parameters",
    "Stable Diffusion",
    "Stable Diffusion 3",
    "Stable Diffusion XL",
    "VAE",
    "img2img",
    "Gallery",
    "Infotext",
    "Live previews",
    "Prompt editing",
    "Settings in UI",
    "UI alternatives",
    "User interface",
    "API",
    "VAE, explained",
    "Profiler",
    "System",
    "Face restoration",
    "Postprocessing",
    "Upscaling",
    "Training",
    "Canvas Hotkeys",
    "Hidden options",
    "Hypertile",
    "Interrogate",
];

fn place_on_page(entry: &OptionEntry) -> Option<usize> {
    let section = match entry.key.as_str() {
        "sd_vae_explanation" => "VAE, explained",
        _ => entry.section.as_deref().unwrap_or(""),
    };
    PAGE.iter().position(|known| *known == section)
}

/// `GET /internal/profile-startup`
pub(super) async fn profile_startup() -> HttpResponse {
    json_answer(&json!({"total": 0.0, "records": {}}))
}

/// `GET /internal/sysinfo`
pub(super) async fn sysinfo(server: web::Data<Server>, request: HttpRequest) -> HttpResponse {
    let attachment = request
        .query_string()
        .split('&')
        .any(|pair| pair == "attachment=true");
    sysinfo_file(&server, if attachment { "attachment" } else { "inline" })
}

/// `GET /internal/sysinfo-download`
pub(super) async fn sysinfo_download(server: web::Data<Server>) -> HttpResponse {
    sysinfo_file(&server, "attachment")
}

fn sysinfo_file(server: &Server, disposition: &str) -> HttpResponse {
    let mut info = Map::new();
    let mut put = |key: &str, value: Value| info.insert(key.to_owned(), value);
    put(
        "Platform",
        json!(format!(
            "{}-{}",
            std::env::consts::OS,
            std::env::consts::ARCH
        )),
    );
    put(
        "Version",
        json!(format!("ancestral {}", env!("CARGO_PKG_VERSION"))),
    );
    put(
        "Data path",
        json!(server.config.folders.data.display().to_string()),
    );
    put(
        "Commandline",
        Value::Object(server.config.flag_echo.clone()),
    );
    put("Extensions", json!([]));
    put("Inactive extensions", json!([]));
    put("Config", Value::Object(server.settings.answer()));
    let text = serde_json::to_string_pretty(&info).unwrap_or_default();
    let name = jiff::Zoned::now()
        .strftime("sysinfo-%Y-%m-%d-%H-%M.json")
        .to_string();
    HttpResponse::Ok()
        .content_type("text/plain; charset=utf-8")
        .insert_header((
            "content-disposition",
            format!("{disposition}; filename=\"{name}\""),
        ))
        .body(text)
}

/// `GET /sd_extra_networks/thumb` and `cover-images`: there are no preview pictures.
pub(super) async fn no_file() -> Answer {
    Err(ApiError::http(404, "File not found"))
}

/// `GET /sd_extra_networks/metadata`
pub(super) async fn no_metadata() -> HttpResponse {
    empty_object()
}

/// `GET /sd_extra_networks/get-single-card`
pub(super) async fn no_card() -> HttpResponse {
    empty_object()
}
