//! ONNX exports in the layout of diffusers and optimum: `unet/model.onnx`, `text_encoder/…`,
//! `text_encoder_2/…`, `vae_encoder/…`, `vae_decoder/…`, each with a `config.json`, and
//! `scheduler/scheduler_config.json`.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::checkpoint::LoadError;
use super::networks::{GraphTextEncoder, GraphUnet, GraphVae, LazyGraph, RunSharing};
use crate::pipeline::{Family, Prediction};
use crate::runtime::{Graph, GraphSource, Runtime};
use crate::sampling::scaled_linear_alphas_cumprod;

/// What the configuration files of an export say.
#[derive(Debug, Clone)]
pub(super) struct FolderFacts {
    pub(super) family: Family,
    pub(super) prediction: Prediction,
    pub(super) vae_scale: f32,
    pub(super) alphas_cumprod: Arc<[f32]>,
    pub(super) size_embedding_width: usize,
    /// Layers at the end that the export's first text tower lacks.
    dropped_layers: usize,
}

pub(super) fn read_facts(folder: &Path) -> FolderFacts {
    let unet = read_json(&folder.join("unet/config.json"));
    let text = read_json(&folder.join("text_encoder/config.json"));
    let scheduler = read_json(&folder.join("scheduler/scheduler_config.json"));
    let ours = read_json(&folder.join("a1111.json"));
    let has = |part: &str| folder.join(part).join("model.onnx").is_file();
    let family = if has("text_encoder_2") {
        if has("text_encoder") {
            Family::Sdxl
        } else {
            Family::SdxlRefiner
        }
    } else if text["hidden_act"].as_str() == Some("gelu") || unet["cross_attention_dim"] == 1024 {
        Family::Sd2
    } else {
        Family::Sd1
    };
    let prediction = match scheduler["prediction_type"].as_str() {
        Some("v_prediction") => Prediction::Velocity,
        _ => Prediction::Epsilon,
    };
    let usual = match family {
        Family::Sd1 | Family::Sd2 => 0.18215,
        Family::Sdxl | Family::SdxlRefiner => 0.13025,
    };
    let scale = ["vae_decoder/config.json", "vae_encoder/config.json"]
        .iter()
        .find_map(|file| read_json(&folder.join(file))["scaling_factor"].as_f64())
        .unwrap_or(usual);
    FolderFacts {
        family,
        prediction,
        vae_scale: scale as f32,
        alphas_cumprod: scaled_linear_alphas_cumprod(
            scheduler["beta_start"].as_f64().unwrap_or(0.00085),
            scheduler["beta_end"].as_f64().unwrap_or(0.012),
            usize::try_from(scheduler["num_train_timesteps"].as_u64().unwrap_or(1000))
                .unwrap_or(1000)
                .clamp(1, 100_000),
        )
        .into(),
        size_embedding_width: unet["addition_time_embed_dim"]
            .as_u64()
            .and_then(|width| usize::try_from(width).ok())
            .unwrap_or(256),
        // diffusers leaves out the last layer of SD 2.x, which is never used.
        dropped_layers: ours["dropped_text_layers"]
            .as_u64()
            .and_then(|count| usize::try_from(count).ok())
            .unwrap_or(usize::from(family == Family::Sd2)),
    }
}

/// A missing or broken file is an empty object.
fn read_json(path: &Path) -> Value {
    let Ok(bytes) = fs_err::read(path) else {
        return Value::Null;
    };
    serde_json::from_slice(&bytes).unwrap_or_else(|error| {
        tracing::warn!(path = %path.display(), %error, "this configuration cannot be read and is ignored");
        Value::Null
    })
}

pub(super) fn load_unet(
    runtime: &Runtime,
    folder: &Path,
    sharing: RunSharing,
) -> Result<GraphUnet, LoadError> {
    let graph = load_part(runtime, folder, "unet")?;
    Ok(GraphUnet::shared(graph, sharing)?)
}

pub(super) fn load_text_encoders(
    runtime: &Runtime,
    folder: &Path,
    facts: &FolderFacts,
) -> Result<Vec<Arc<GraphTextEncoder>>, LoadError> {
    text_parts(facts.family)
        .iter()
        .map(|part| {
            let graph = load_part(runtime, folder, part)?;
            let dropped = match facts.family {
                Family::Sd1 | Family::Sd2 => facts.dropped_layers,
                Family::Sdxl | Family::SdxlRefiner => 0,
            };
            Ok(Arc::new(GraphTextEncoder::new(graph, dropped)?))
        })
        .collect()
}

fn text_parts(family: Family) -> &'static [&'static str] {
    match family {
        Family::Sd1 | Family::Sd2 => &["text_encoder"],
        Family::Sdxl => &["text_encoder", "text_encoder_2"],
        Family::SdxlRefiner => &["text_encoder_2"],
    }
}

/// The graphs that the family needs and the folder lacks.
pub(super) fn missing_parts(folder: &Path, family: Family) -> Vec<String> {
    let others = ["unet", "vae_encoder", "vae_decoder"];
    let needed = text_parts(family).iter().chain(&others);
    needed
        .map(|part| format!("{part}/model.onnx"))
        .filter(|file| !folder.join(file).is_file())
        .collect()
}

pub(super) fn load_vae(runtime: &Runtime, folder: &Path) -> Result<Arc<GraphVae>, LoadError> {
    Ok(Arc::new(GraphVae::new(
        LazyGraph::loaded(load_part(runtime, folder, "vae_encoder")?),
        LazyGraph::loaded(load_part(runtime, folder, "vae_decoder")?),
    )))
}

fn load_part(runtime: &Runtime, folder: &Path, part: &str) -> Result<Arc<Graph>, LoadError> {
    let path = folder.join(part).join("model.onnx");
    if !path.is_file() {
        return Err(LoadError::Unusable {
            path: folder.display().to_string(),
            reason: format!("it has no {part}/model.onnx"),
        });
    }
    let graph = Graph::load(runtime, part, GraphSource::File(&path))?;
    Ok(Arc::new(graph))
}
