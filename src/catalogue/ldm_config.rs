//! The `.yaml` that may lie beside a checkpoint: ldm's and sgm's model configuration, of which only
//! what the tensors cannot tell is read.

use std::path::{Component, Path, PathBuf};

use serde_yaml_ng::Value;

/// Attention heads as a configuration gives them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadRule {
    /// `num_heads`.
    Count(usize),
    /// `num_head_channels`.
    Width(usize),
}

/// A text tower as a configuration names it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TextTowerConfig {
    /// `arch`: a file of `open_clip_model_configs`.
    pub arch: Option<String>,
    /// `version`: a folder with a `config.json` of transformers.
    pub version: Option<String>,
}

/// What is read of a configuration. Everything is optional, as in A1111, which falls back to the
/// constructors' defaults.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LdmConfig {
    /// `Some(true)`: the network predicts v (`parameterization: "v"`, sgm's `VScaling`).
    pub predicts_velocity: Option<bool>,
    pub linear_start: Option<f64>,
    pub linear_end: Option<f64>,
    pub timesteps: Option<usize>,
    pub scale_factor: Option<f64>,
    pub heads: Option<HeadRule>,
    /// The text towers in order; those of sgm's conditioner that embed text.
    pub text_towers: Vec<TextTowerConfig>,
}

impl LdmConfig {
    /// Reads a configuration.
    ///
    /// # Errors
    /// The YAML parser's words when the text is no YAML.
    pub fn parse(text: &str) -> Result<Self, String> {
        let yaml: Value = serde_yaml_ng::from_str(text).map_err(|error| error.to_string())?;
        let model = &yaml["model"]["params"];
        let unet = [&model["unet_config"], &model["network_config"]]
            .into_iter()
            .find(|config| !config.is_null())
            .map_or(&Value::Null, |config| &config["params"]);
        let scaling = &model["denoiser_config"]["params"]["scaling_config"]["target"];
        let predicts_velocity = match (model["parameterization"].as_str(), scaling.as_str()) {
            (Some(kind), _) => Some(kind == "v"),
            (None, Some(target)) => Some(target.contains(".VScaling")),
            (None, None) => None,
        };
        Ok(Self {
            predicts_velocity,
            linear_start: model["linear_start"].as_f64(),
            linear_end: model["linear_end"].as_f64(),
            timesteps: count(&model["timesteps"]),
            scale_factor: model["scale_factor"].as_f64(),
            heads: heads(unet),
            text_towers: text_towers(model),
        })
    }
}

fn count(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|count| usize::try_from(count).ok())
}

/// `num_head_channels` wins; -1 means unset, as in the UNet's constructor.
fn heads(unet: &Value) -> Option<HeadRule> {
    let positive = |key: &str| count(&unet[key]).filter(|count| *count > 0);
    positive("num_head_channels")
        .map(HeadRule::Width)
        .or_else(|| positive("num_heads").map(HeadRule::Count))
}

fn text_towers(model: &Value) -> Vec<TextTowerConfig> {
    let single = &model["cond_stage_config"];
    let embedders: Vec<&Value> = if single.is_null() {
        model["conditioner_config"]["params"]["emb_models"]
            .as_sequence()
            .map(|list| list.iter().collect())
            .unwrap_or_default()
    } else {
        vec![single]
    };
    embedders
        .into_iter()
        .filter(|embedder| {
            embedder["target"]
                .as_str()
                .is_some_and(|target| target.contains("CLIP"))
        })
        .map(|embedder| TextTowerConfig {
            arch: embedder["params"]["arch"].as_str().map(str::to_owned),
            version: embedder["params"]["version"].as_str().map(str::to_owned),
        })
        .collect()
}

/// Heads and activation of a text tower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TowerFacts {
    pub heads: Option<usize>,
    pub quick_gelu: Option<bool>,
}

/// Looks up the configuration that `tower` names, in each of `folders` (the checkpoint's own, then
/// the data folder's `models`): `open_clip_model_configs/<arch>.json` and `<version>/config.json`.
/// Names that would leave the folder are not followed.
#[must_use]
pub fn find_tower_facts(tower: &TextTowerConfig, folders: &[PathBuf]) -> Option<TowerFacts> {
    let open_clip = tower
        .arch
        .as_ref()
        .map(|arch| PathBuf::from("open_clip_model_configs").join(format!("{arch}.json")));
    let transformers = tower
        .version
        .as_ref()
        .map(|version| PathBuf::from(version).join("config.json"));
    for relative in [open_clip, transformers].into_iter().flatten() {
        if !stays_inside(&relative) {
            tracing::warn!(path = %relative.display(), "this text tower's name leaves its folder and is ignored");
            continue;
        }
        for folder in folders {
            let Ok(text) = fs_err::read_to_string(folder.join(&relative)) else {
                continue;
            };
            match serde_json::from_str(&text) {
                Ok(json) => return Some(tower_facts(&json)),
                Err(error) => tracing::warn!(
                    path = %folder.join(&relative).display(),
                    %error,
                    "this text tower configuration cannot be read"
                ),
            }
        }
    }
    None
}

fn stays_inside(path: &Path) -> bool {
    path.components()
        .all(|part| matches!(part, Component::Normal(_)))
}

fn tower_facts(json: &serde_json::Value) -> TowerFacts {
    let number = |value: &serde_json::Value| value.as_u64().and_then(|n| usize::try_from(n).ok());
    let text = &json["text_cfg"];
    if text.is_object() {
        return TowerFacts {
            heads: number(&text["heads"]),
            quick_gelu: json["quick_gelu"].as_bool(),
        };
    }
    TowerFacts {
        heads: number(&json["num_attention_heads"]),
        quick_gelu: json["hidden_act"].as_str().map(|act| act == "quick_gelu"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_sd2_v_configuration_is_read() {
        let config = LdmConfig::parse(
            "model:\n  target: ldm.models.diffusion.ddpm.LatentDiffusion\n  params:\n    parameterization: \"v\"\n    linear_start: 0.00085\n    linear_end: 0.0120\n    timesteps: 1000\n    scale_factor: 0.18215\n    unet_config:\n      params:\n        num_head_channels: 64 # need to fix for flash-attn\n    cond_stage_config:\n      target: ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder\n      params:\n        freeze: True\n        layer: \"penultimate\"\n",
        )
        .unwrap();
        assert_eq!(config.predicts_velocity, Some(true));
        assert_eq!(config.heads, Some(HeadRule::Width(64)));
        assert_eq!(config.text_towers, [TextTowerConfig::default()]);
        assert_eq!(config.linear_end, Some(0.012));
    }

    #[test]
    fn an_sgm_configuration_lists_its_text_towers_only() {
        let config = LdmConfig::parse(
            "model:\n  params:\n    scale_factor: 0.13025\n    denoiser_config:\n      params:\n        scaling_config:\n          target: sgm.modules.diffusionmodules.denoiser_scaling.VScaling\n    network_config:\n      params:\n        num_heads: 8\n    conditioner_config:\n      params:\n        emb_models:\n          - target: sgm.modules.encoders.modules.FrozenCLIPEmbedder\n            params: {version: clip_tiny_xl}\n          - target: sgm.modules.encoders.modules.FrozenOpenCLIPEmbedder2\n            params: {arch: tiny-text-96, version: laion}\n          - target: sgm.modules.encoders.modules.ConcatTimestepEmbedderND\n            params: {outdim: 32}\n",
        )
        .unwrap();
        assert_eq!(config.predicts_velocity, Some(true));
        assert_eq!(config.heads, Some(HeadRule::Count(8)));
        assert_eq!(config.text_towers.len(), 2);
        assert_eq!(config.text_towers[1].arch.as_deref(), Some("tiny-text-96"));
    }

    #[test]
    fn a_tower_name_cannot_leave_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        fs_err::create_dir(folder.path().join("models")).unwrap();
        fs_err::write(
            folder.path().join("config.json"),
            r#"{"num_attention_heads": 3}"#,
        )
        .unwrap();
        let tower = TextTowerConfig {
            arch: None,
            version: Some("..".to_owned()),
        };
        assert_eq!(
            find_tower_facts(&tower, &[folder.path().join("models")]),
            None
        );
    }

    #[test]
    fn text_that_is_no_yaml_is_an_error() {
        assert!(LdmConfig::parse("a: [").is_err());
        assert_eq!(LdmConfig::parse("just text").unwrap(), LdmConfig::default());
    }
}
