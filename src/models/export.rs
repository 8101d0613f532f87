//! `ancestral export`: writes a checkpoint's graphs as an ONNX folder in the layout of diffusers,
//! which plain onnxruntime, optimum and this server's folder loader can run. Weights are stored in
//! half precision and cast once at load; arithmetic stays float32.
//!
//! The last layer of an SD 2.x text tower is left out, as diffusers does. LoRA inputs, tiling and
//! clip skip 1 of SD 2.x are not part of an export.

use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde_json::{Value, json};

use super::checkpoint::{CheckpointPlan, LoadError, load_built, predicts_velocity};
use super::graphs::{
    BuildError, BuildOptions, BuiltGraph, Heads, SIDE_FILE, Storage, TextTower, TextTowerShape,
    UnetShape, VectorInput, Weights, text_encoder, unet, vae_decoder, vae_encoder,
};
use super::networks::GraphUnet;
use crate::catalogue::sha256_of;
use crate::pipeline::{Family, Prediction};
use crate::runtime::Runtime;

/// Merges of CLIP's byte-pair encoding.
const MERGES: &str = include_str!("../../onnx/tokenizer/merges.txt");

/// The versions whose configuration files are written.
const DIFFUSERS_VERSION: &str = "0.31.0";
const TRANSFORMERS_VERSION: &str = "4.44.2";

/// Why an export failed. What was begun is removed.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error("{path} exists already; an export goes into a new folder")]
    Exists { path: String },
    #[error("this checkpoint has no VAE inside; an export needs one")]
    NoVae,
    #[error("the export cannot be written: {0}")]
    Io(#[from] std::io::Error),
}

/// Writes the folder `target`, which must not exist. `tower_folders` are searched for text tower
/// configurations. `runtime` is needed only for SD 2.x checkpoints without a `.yaml`, whose
/// prediction is found by running the UNet.
///
/// # Errors
/// When the checkpoint cannot be read or built, or the folder cannot be written.
pub fn export(
    runtime: Option<&Runtime>,
    checkpoint: &Path,
    target: &Path,
    tower_folders: &[PathBuf],
) -> Result<(), ExportError> {
    if target.exists() {
        return Err(ExportError::Exists {
            path: target.display().to_string(),
        });
    }
    let plan = CheckpointPlan::open(checkpoint, tower_folders)?;
    if !plan.has_vae() {
        return Err(ExportError::NoVae);
    }
    // Written beside the target and renamed, so that a failure leaves nothing half done.
    let mut staging = target.as_os_str().to_owned();
    staging.push(".partial");
    let staging = PathBuf::from(staging);
    if staging.exists() {
        fs_err::remove_dir_all(&staging)?;
    }
    let outcome = write_all(runtime, checkpoint, &plan, &staging)
        .and_then(|()| Ok(fs_err::rename(&staging, target)?));
    if outcome.is_err() {
        // The first failure is what is reported.
        let _ = fs_err::remove_dir_all(&staging);
    }
    outcome
}

fn write_all(
    runtime: Option<&Runtime>,
    checkpoint: &Path,
    plan: &CheckpointPlan,
    folder: &Path,
) -> Result<(), ExportError> {
    let options = BuildOptions {
        storage: Storage::InlineHalf,
        ..BuildOptions::default()
    };
    let prediction = match (plan.stated_prediction(), runtime) {
        (Some(stated), _) => stated,
        (None, Some(runtime)) => tested_prediction(runtime, plan)?,
        (None, None) => Prediction::Epsilon,
    };
    let towers = exported_towers(plan);
    for (index, (part, shape)) in towers.iter().enumerate() {
        let weights = plan.text_weights(index);
        let built = text_encoder(&weights, *shape, options)?;
        write_part(folder, part, &built, &text_config(&weights, *shape)?)?;
        let tokenizer = part.replace("text_encoder", "tokenizer");
        write_tokenizer(&folder.join(tokenizer), pad_token(shape.tower))?;
    }
    let facts = UnetFacts::read(&plan.unet_weights(), plan)?;
    let shape = UnetShape {
        heads: plan.heads(),
        vector: facts.vector,
    };
    let built = unet(&plan.unet_weights(), shape, options)?;
    write_part(folder, "unet", &built, &facts.config(plan))?;
    let vae = plan.vae_weights();
    let config = vae_config(&vae, plan.vae_scale())?;
    write_part(folder, "vae_encoder", &vae_encoder(&vae, options)?, &config)?;
    write_part(folder, "vae_decoder", &vae_decoder(&vae, options)?, &config)?;
    write_json(
        &folder.join("scheduler/scheduler_config.json"),
        &scheduler_config(plan, prediction),
    )?;
    let parts: Vec<&str> = towers.iter().map(|(part, _)| *part).collect();
    write_json(
        &folder.join("model_index.json"),
        &model_index(plan.family(), &parts),
    )?;
    let identity = identity(checkpoint, plan, prediction)?;
    write_json(&folder.join("a1111.json"), &identity)?;
    Ok(())
}

fn tested_prediction(runtime: &Runtime, plan: &CheckpointPlan) -> Result<Prediction, LoadError> {
    let built = plan.build_unet(BuildOptions::default())?;
    let graph = load_built(runtime, "UNet", &built, &plan.unet_weights())?;
    predicts_velocity(&GraphUnet::new(graph)?)
}

fn exported_towers(plan: &CheckpointPlan) -> Vec<(&'static str, TextTowerShape)> {
    let names: &[&str] = match plan.family() {
        Family::Sd1 | Family::Sd2 => &["text_encoder"],
        Family::Sdxl => &["text_encoder", "text_encoder_2"],
        Family::SdxlRefiner => &["text_encoder_2"],
    };
    names
        .iter()
        .zip(&plan.towers)
        .map(|(name, shape)| {
            let drop_layers = usize::from(plan.family() == Family::Sd2);
            (
                *name,
                TextTowerShape {
                    drop_layers,
                    ..*shape
                },
            )
        })
        .collect()
}

fn write_part(
    folder: &Path,
    part: &str,
    built: &BuiltGraph,
    config: &Value,
) -> Result<(), ExportError> {
    let folder = folder.join(part);
    fs_err::create_dir_all(&folder)?;
    fs_err::write(folder.join("model.onnx"), &built.model)?;
    if !built.side_data.is_empty() {
        fs_err::write(folder.join(SIDE_FILE), &built.side_data)?;
    }
    write_json(&folder.join("config.json"), config)?;
    tracing::info!(part, "exported");
    Ok(())
}

fn write_json(path: &Path, value: &Value) -> Result<(), ExportError> {
    if let Some(folder) = path.parent() {
        fs_err::create_dir_all(folder)?;
    }
    let mut text = serde_json::to_string_pretty(value).map_err(std::io::Error::other)?;
    text.push('\n');
    fs_err::write(path, text)?;
    Ok(())
}

// ---- text encoders -----------------------------------------------------------------------------

fn text_config(weights: &Weights, shape: TextTowerShape) -> Result<Value, BuildError> {
    let (table, positions, layers, inner) = match shape.tower {
        TextTower::Transformers => (
            "embeddings.token_embedding.weight",
            "embeddings.position_embedding.weight",
            "encoder.layers",
            "mlp.fc1.weight",
        ),
        TextTower::OpenClip => (
            "token_embedding.weight",
            "positional_embedding",
            "transformer.resblocks",
            "mlp.c_fc.weight",
        ),
    };
    let width = weights.dim(table, 1)?;
    let layer_count = (0..256)
        .take_while(|n| weights.has_any(&format!("{layers}.{n}.")))
        .count();
    let projection = weights.dim("text_projection", 1).unwrap_or(width);
    let class = if shape.projection {
        "CLIPTextModelWithProjection"
    } else {
        "CLIPTextModel"
    };
    Ok(json!({
        "architectures": [class],
        "attention_dropout": 0.0,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "hidden_act": if shape.quick_gelu { "quick_gelu" } else { "gelu" },
        "hidden_size": width,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": weights.dim(&format!("{layers}.0.{inner}"), 0)?,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": weights.dim(positions, 0)?,
        "model_type": "clip_text_model",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": layer_count - shape.drop_layers.min(layer_count),
        "pad_token_id": if shape.tower == TextTower::Transformers { 49407 } else { 0 },
        "projection_dim": projection,
        "torch_dtype": "float32",
        "transformers_version": TRANSFORMERS_VERSION,
        "vocab_size": weights.dim(table, 0)?,
    }))
}

/// SD 1.x pads with the end token, open_clip with token 0, `!`.
fn pad_token(tower: TextTower) -> &'static str {
    match tower {
        TextTower::Transformers => "<|endoftext|>",
        TextTower::OpenClip => "!",
    }
}

fn write_tokenizer(folder: &Path, pad: &str) -> Result<(), ExportError> {
    fs_err::create_dir_all(folder)?;
    fs_err::write(folder.join("merges.txt"), MERGES)?;
    let vocabulary = vocabulary();
    let compact = serde_json::to_string(&vocabulary).map_err(std::io::Error::other)?;
    fs_err::write(folder.join("vocab.json"), compact)?;
    let token = |content: &str| {
        json!({
            "content": content,
            "lstrip": false,
            "normalized": true,
            "rstrip": false,
            "single_word": false,
        })
    };
    let specials = json!({
        "bos_token": token("<|startoftext|>"),
        "eos_token": token("<|endoftext|>"),
        "unk_token": token("<|endoftext|>"),
        "pad_token": pad,
    });
    write_json(&folder.join("special_tokens_map.json"), &specials)?;
    let mut config = specials;
    config["add_prefix_space"] = false.into();
    config["do_lower_case"] = true.into();
    config["errors"] = "replace".into();
    config["model_max_length"] = 77.into();
    config["tokenizer_class"] = "CLIPTokenizer".into();
    write_json(&folder.join("tokenizer_config.json"), &config)
}

/// CLIP's vocabulary in the order of its ids: 256 byte characters, the same at a word's end, the
/// joined merges, the two marks.
fn vocabulary() -> IndexMap<String, usize> {
    let printable = (0x21..=0x7e).chain(0xa1..=0xac).chain(0xae..=0xff);
    let others = (0_u32..256)
        .filter(|b| !(0x21..=0x7e).contains(b) && !(0xa1..=0xac).contains(b) && *b < 0xae);
    let bytes: Vec<String> = printable
        .chain((0x100..).take(others.count()))
        .filter_map(char::from_u32)
        .map(String::from)
        .collect();
    let ends = bytes.iter().map(|byte| format!("{byte}</w>"));
    let merges = MERGES
        .lines()
        .filter(|line| !line.starts_with("#version") && line.contains(' '))
        .map(|line| line.replacen(' ', "", 1));
    let marks = ["<|startoftext|>", "<|endoftext|>"].map(str::to_owned);
    bytes
        .iter()
        .cloned()
        .chain(ends)
        .chain(merges)
        .chain(marks)
        .enumerate()
        .map(|(id, token)| (token, id))
        .collect()
}

// ---- UNet --------------------------------------------------------------------------------------

/// A UNet's sizes in diffusers' terms.
struct UnetFacts {
    block_channels: Vec<usize>,
    /// Transformer blocks at each level, 0 where there is no attention.
    depths: Vec<usize>,
    layers_per_block: usize,
    in_channels: usize,
    out_channels: usize,
    context_width: usize,
    linear_projection: bool,
    vector: VectorInput,
    vector_width: Option<usize>,
}

impl UnetFacts {
    fn read(weights: &Weights, plan: &CheckpointPlan) -> Result<Self, BuildError> {
        let (mut block_channels, mut depths) = (Vec::new(), Vec::new());
        let (mut channels, mut depth, mut layers, mut layers_per_block) = (0, 0, 0, 1);
        let mut linear_projection = false;
        for k in 1.. {
            let block = format!("input_blocks.{k}");
            let norm = format!("{block}.0.in_layers.2.weight");
            if weights.has(&norm) {
                channels = weights.dim(&norm, 0)?;
                layers += 1;
                depth = (0..64)
                    .take_while(|n| {
                        weights.has(&format!("{block}.1.transformer_blocks.{n}.norm1.weight"))
                    })
                    .count();
                if depth > 0 {
                    let shape = weights.shape(&format!("{block}.1.proj_in.weight"))?;
                    linear_projection = shape.len() == 2;
                }
                layers_per_block = layers;
                continue;
            }
            block_channels.push(channels);
            depths.push(depth);
            if !weights.has(&format!("{block}.0.op.weight")) {
                break;
            }
            layers = 0;
        }
        let pooled = plan
            .towers
            .len()
            .checked_sub(1)
            .and_then(|last| plan.text_weights(last).dim("text_projection", 1).ok());
        let vector_width = weights.dim("label_emb.0.0.weight", 1).ok();
        let size_count = if plan.family() == Family::SdxlRefiner {
            5
        } else {
            6
        };
        let vector = match (vector_width, pooled) {
            (Some(_), Some(text_width)) => VectorInput::Parts {
                text_width,
                size_count,
            },
            _ => VectorInput::Whole,
        };
        Ok(Self {
            block_channels,
            depths,
            layers_per_block,
            in_channels: weights.dim("input_blocks.0.0.weight", 1)?,
            out_channels: weights.dim("out.2.weight", 0)?,
            context_width: super::graphs::context_width(weights).unwrap_or(0),
            linear_projection,
            vector,
            vector_width,
        })
    }

    fn config(&self, plan: &CheckpointPlan) -> Value {
        let has = |index: usize| self.depths[index] > 0;
        let levels = self.depths.len();
        let down: Vec<&str> = (0..levels)
            .map(|i| {
                if has(i) {
                    "CrossAttnDownBlock2D"
                } else {
                    "DownBlock2D"
                }
            })
            .collect();
        let up: Vec<&str> = (0..levels)
            .rev()
            .map(|i| {
                if has(i) {
                    "CrossAttnUpBlock2D"
                } else {
                    "UpBlock2D"
                }
            })
            .collect();
        // diffusers calls the number of heads `attention_head_dim`.
        let heads = match plan.heads() {
            Heads::Count(count) => json!(count),
            Heads::Width(width) => json!(
                self.block_channels
                    .iter()
                    .map(|channels| (channels / width.max(1)).max(1))
                    .collect::<Vec<_>>()
            ),
        };
        let mut config = json!({
            "_class_name": "UNet2DConditionModel",
            "_diffusers_version": DIFFUSERS_VERSION,
            "act_fn": "silu",
            "attention_head_dim": heads,
            "block_out_channels": self.block_channels,
            "center_input_sample": false,
            "class_embed_type": null,
            "cross_attention_dim": self.context_width,
            "down_block_types": down,
            "downsample_padding": 1,
            "dual_cross_attention": false,
            "flip_sin_to_cos": true,
            "freq_shift": 0,
            "in_channels": self.in_channels,
            "layers_per_block": self.layers_per_block,
            "mid_block_scale_factor": 1,
            "mid_block_type": "UNetMidBlock2DCrossAttn",
            "norm_eps": 1e-05,
            "norm_num_groups": 32,
            "out_channels": self.out_channels,
            "sample_size": 64,
            "transformer_layers_per_block": self.depths.iter().map(|d| (*d).max(1)).collect::<Vec<_>>(),
            "up_block_types": up,
            "upcast_attention": false,
            "use_linear_projection": self.linear_projection,
        });
        if let (
            VectorInput::Parts {
                text_width,
                size_count,
            },
            Some(total),
        ) = (self.vector, self.vector_width)
        {
            config["addition_embed_type"] = "text_time".into();
            config["addition_time_embed_dim"] = ((total - text_width) / size_count).into();
            config["projection_class_embeddings_input_dim"] = total.into();
        }
        config
    }
}

// ---- VAE, scheduler, index ---------------------------------------------------------------------

fn vae_config(weights: &Weights, scale: f32) -> Result<Value, BuildError> {
    let mut channels = Vec::new();
    let top = weights.dim("decoder.conv_in.weight", 0)?;
    for level in 0..16 {
        if !weights.has_any(&format!("decoder.up.{level}.")) {
            break;
        }
        let name = format!("decoder.up.{level}.block.0.conv1.weight");
        channels.push(weights.dim(&name, 0).unwrap_or(top));
    }
    let blocks = (0..16)
        .take_while(|n| weights.has(&format!("encoder.down.0.block.{n}.conv1.weight")))
        .count();
    let level_types = |name: &str| vec![name.to_owned(); channels.len()];
    Ok(json!({
        "_class_name": "AutoencoderKL",
        "_diffusers_version": DIFFUSERS_VERSION,
        "act_fn": "silu",
        "block_out_channels": channels,
        "down_block_types": level_types("DownEncoderBlock2D"),
        "force_upcast": true,
        "in_channels": weights.dim("encoder.conv_in.weight", 1)?,
        "latent_channels": weights.dim("decoder.conv_in.weight", 1)?,
        "layers_per_block": blocks,
        "norm_num_groups": 32,
        "out_channels": weights.dim("decoder.conv_out.weight", 0)?,
        "sample_size": 512,
        "scaling_factor": f64::from((scale * 1e6).round()) / 1e6,
        "up_block_types": level_types("UpDecoderBlock2D"),
    }))
}

fn scheduler_class(family: Family) -> &'static str {
    match family {
        Family::Sd1 => "PNDMScheduler",
        Family::Sd2 => "DDIMScheduler",
        Family::Sdxl | Family::SdxlRefiner => "EulerDiscreteScheduler",
    }
}

fn scheduler_config(plan: &CheckpointPlan, prediction: Prediction) -> Value {
    json!({
        "_class_name": scheduler_class(plan.family()),
        "_diffusers_version": DIFFUSERS_VERSION,
        "beta_end": plan.config.linear_end.unwrap_or(0.012),
        "beta_schedule": "scaled_linear",
        "beta_start": plan.config.linear_start.unwrap_or(0.00085),
        "clip_sample": false,
        "num_train_timesteps": plan.config.timesteps.unwrap_or(1000),
        "prediction_type": match prediction {
            Prediction::Epsilon => "epsilon",
            Prediction::Velocity => "v_prediction",
        },
        "set_alpha_to_one": false,
        "skip_prk_steps": true,
        "steps_offset": 1,
        "trained_betas": null,
    })
}

fn model_index(family: Family, text_parts: &[&str]) -> Value {
    let is_xl = matches!(family, Family::Sdxl | Family::SdxlRefiner);
    let mut index = json!({
        "_class_name": if is_xl { "ORTStableDiffusionXLPipeline" } else { "OnnxStableDiffusionPipeline" },
        "_diffusers_version": DIFFUSERS_VERSION,
        "scheduler": ["diffusers", scheduler_class(family)],
        "unet": ["diffusers", "OnnxRuntimeModel"],
        "vae_decoder": ["diffusers", "OnnxRuntimeModel"],
        "vae_encoder": ["diffusers", "OnnxRuntimeModel"],
    });
    for part in text_parts {
        index[*part] = json!(["diffusers", "OnnxRuntimeModel"]);
        index[part.replace("text_encoder", "tokenizer")] = json!(["transformers", "CLIPTokenizer"]);
    }
    if is_xl {
        index["force_zeros_for_empty_prompt"] = true.into();
    } else {
        index["feature_extractor"] = json!([null, null]);
        index["safety_checker"] = json!([null, null]);
        index["requires_safety_checker"] = false.into();
    }
    index
}

/// `a1111.json`: what A1111 calls the checkpoint, and what the graphs leave out.
fn identity(
    checkpoint: &Path,
    plan: &CheckpointPlan,
    prediction: Prediction,
) -> Result<Value, ExportError> {
    let sha256 = sha256_of(checkpoint)?;
    let short = &sha256[..10];
    let file_name = checkpoint.file_name().unwrap_or_default().to_string_lossy();
    let stem = checkpoint.file_stem().unwrap_or_default().to_string_lossy();
    Ok(json!({
        "title": format!("{file_name} [{short}]"),
        "model_name": stem,
        "hash": short,
        "sha256": sha256,
        "prediction": match prediction {
            Prediction::Epsilon => "epsilon",
            Prediction::Velocity => "v",
        },
        "dropped_text_layers": usize::from(plan.family() == Family::Sd2),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vocabulary_is_clips() {
        let vocabulary = vocabulary();
        assert_eq!(vocabulary.len(), 49408);
        for (token, id) in [
            ("!", 0),
            ("!</w>", 256),
            ("a</w>", 320),
            ("red</w>", 736),
            ("cube</w>", 11353),
            ("<|startoftext|>", 49406),
            ("<|endoftext|>", 49407),
        ] {
            assert_eq!(vocabulary[token], id, "{token}");
        }
    }
}
