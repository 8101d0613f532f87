//! Which layer of a checkpoint a tensor of a network file belongs to.
//!
//! Network files name layers in the layout of diffusers (`lora_unet_down_blocks_…`) or of ldm
//! (`lora_unet_input_blocks_…`), text towers in that of transformers; dots are written as `_`, so
//! names are compared after turning the dots of the checkpoint's names into `_` too.

use std::collections::HashMap;

use super::ModelPart;
use crate::models::checkpoint::CheckpointPlan;
use crate::models::graphs::{TextTower, Weights};

/// A layer of a part of the checkpoint, named as the graph builder names its adapters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Place {
    pub(super) part: ModelPart,
    pub(super) layer: String,
}

/// Where a layer's values are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StoredLayer {
    pub(super) weight: String,
    pub(super) bias: Option<String>,
    /// First value of the weight that belongs to the layer.
    pub(super) first: usize,
    /// Shape of the layer's own part of the weight, as the graph uses it.
    pub(super) shape: Vec<usize>,
}

const JOINED: &str = ".attn.in_proj.";

impl Place {
    /// The attention that a projection of a joined weight belongs to.
    pub(super) fn joined_base(&self) -> Option<&str> {
        if let Some((base, _)) = self.layer.split_once(JOINED) {
            return Some(base);
        }
        self.layer
            .strip_suffix(".attn.out_proj")
            .filter(|base| base.starts_with("transformer.resblocks."))
    }

    pub(super) fn stored(&self, weights: &Weights) -> Result<StoredLayer, String> {
        let words = |error: crate::models::graphs::BuildError| error.to_string();
        if let Some((base, row)) = self.layer.split_once(JOINED) {
            let weight = format!("{base}.attn.in_proj_weight");
            let shape = weights.shape(&weight).map_err(words)?;
            let (out, width) = (shape[0] / 3, shape.get(1).copied().unwrap_or(1));
            let index = ["q", "k", "v"].iter().position(|name| *name == row);
            return Ok(StoredLayer {
                weight,
                bias: Some(format!("{base}.attn.in_proj_bias")),
                first: index.unwrap_or(0) * out * width,
                shape: vec![out, width],
            });
        }
        let weight = format!("{}.weight", self.layer);
        let mut shape = weights.shape(&weight).map_err(words)?.to_vec();
        // The builder makes linear layers of the 1x1 convolutions around a transformer.
        let is_projection = self.layer.ends_with(".proj_in") || self.layer.ends_with(".proj_out");
        if is_projection && shape.len() == 4 {
            shape.truncate(2);
        }
        let bias = format!("{}.bias", self.layer);
        Ok(StoredLayer {
            weight,
            bias: weights.has(&bias).then_some(bias),
            first: 0,
            shape,
        })
    }
}

/// The layers of a checkpoint by the names that networks have for them.
pub(super) struct LayerTable {
    layers: HashMap<String, Place>,
}

impl LayerTable {
    pub(super) fn new(plan: &CheckpointPlan) -> Self {
        let mut layers = HashMap::new();
        let unet = plan.unet_weights();
        for layer in modules(&unet) {
            let name = format!("diffusion_model_{}", layer.replace('.', "_"));
            let place = Place {
                part: ModelPart::Unet,
                layer: layer.to_owned(),
            };
            layers.insert(name, place);
        }
        let is_double = plan.towers.len() > 1;
        for (index, shape) in plan.towers.iter().enumerate() {
            let number = if is_double {
                format!("{index}_")
            } else {
                String::new()
            };
            let weights = plan.text_weights(index);
            let part = ModelPart::Text(index);
            for layer in modules(&weights) {
                let flat = layer.replace('.', "_");
                let name = match shape.tower {
                    TextTower::Transformers => format!("{number}transformer_text_model_{flat}"),
                    TextTower::OpenClip => format!("{number}model_{flat}"),
                };
                let layer = layer.to_owned();
                layers.insert(name, Place { part, layer });
            }
            add_joined(&mut layers, &weights, part, &number);
        }
        Self { layers }
    }

    /// The layer that a network file's key names.
    pub(super) fn find(&self, key: &str) -> Option<Place> {
        candidates(key)
            .iter()
            .find_map(|name| self.layers.get(name))
            .cloned()
    }

    /// The four projections of an attention with a joined weight.
    pub(super) fn joined_siblings(&self, base: &str) -> Option<[String; 4]> {
        let exists = self
            .layers
            .values()
            .any(|place| place.layer == format!("{base}{JOINED}q"));
        exists.then(|| {
            [
                format!("{base}{JOINED}q"),
                format!("{base}{JOINED}k"),
                format!("{base}{JOINED}v"),
                format!("{base}.attn.out_proj"),
            ]
        })
    }
}

/// Names of the modules that have a weight.
fn modules(weights: &Weights) -> impl Iterator<Item = &str> {
    weights
        .names()
        .filter_map(|name| name.strip_suffix(".weight"))
}

/// open_clip keeps the rows of q, k and v in one weight; networks name them one by one.
fn add_joined(
    layers: &mut HashMap<String, Place>,
    weights: &Weights,
    part: ModelPart,
    number: &str,
) {
    for name in weights.names() {
        let Some(base) = name.strip_suffix(".attn.in_proj_weight") else {
            continue;
        };
        for row in ["q", "k", "v"] {
            let place = Place {
                part,
                layer: format!("{base}{JOINED}{row}"),
            };
            let flat = base.replace('.', "_");
            layers.insert(format!("{number}model_{flat}_attn_{row}_proj"), place);
        }
    }
}

/// The internal names that a key may mean, the likeliest first.
fn candidates(key: &str) -> Vec<String> {
    if let Some(rest) = key
        .strip_prefix("lora_unet_")
        .or_else(|| key.strip_prefix("oft_unet_"))
    {
        let mut names = Vec::new();
        if let Some(name) = unet_from_diffusers(rest) {
            names.push(format!("diffusion_model_{name}"));
        }
        names.push(format!("diffusion_model_{rest}"));
        return names;
    }
    for (prefix, numbers) in [
        ("lora_te_", ["", "0_"].as_slice()),
        ("lora_te1_", ["0_", ""].as_slice()),
        ("lora_te2_", ["1_", ""].as_slice()),
        ("oft_te_", ["", "0_"].as_slice()),
    ] {
        if let Some(rest) = key.strip_prefix(prefix) {
            return text_names(rest, numbers);
        }
    }
    vec![key.to_owned()]
}

fn text_names(rest: &str, numbers: &[&str]) -> Vec<String> {
    let mut names = Vec::new();
    for number in numbers {
        if let Some(layer) = rest.strip_prefix("text_model_encoder_layers_") {
            let renamed = layer
                .replace("mlp_fc1", "mlp_c_fc")
                .replace("mlp_fc2", "mlp_c_proj")
                .replace("self_attn", "attn");
            names.push(format!("{number}model_transformer_resblocks_{renamed}"));
        }
        names.push(format!("{number}transformer_{rest}"));
        names.push(format!("{number}model_{rest}"));
    }
    names
}

/// A UNet layer of the diffusers layout in ldm's, for two resnets a level, as A1111 converts it.
fn unet_from_diffusers(name: &str) -> Option<String> {
    match name {
        "conv_in" => return Some("input_blocks_0_0".to_owned()),
        "conv_out" => return Some("out_2".to_owned()),
        "conv_norm_out" => return Some("out_0".to_owned()),
        "time_embedding_linear_1" => return Some("time_embed_0".to_owned()),
        "time_embedding_linear_2" => return Some("time_embed_2".to_owned()),
        "add_embedding_linear_1" => return Some("label_emb_0_0".to_owned()),
        "add_embedding_linear_2" => return Some("label_emb_0_2".to_owned()),
        _ => {}
    }
    if let Some(rest) = name.strip_prefix("mid_block_") {
        if let Some(inner) = rest.strip_prefix("attentions_0_") {
            return Some(format!("middle_block_1_{inner}"));
        }
        let (number, inner) = number_and_rest(rest.strip_prefix("resnets_")?)?;
        return Some(format!(
            "middle_block_{}_{}",
            number * 2,
            resnet_name(inner)
        ));
    }
    let (is_down, rest) = match name.strip_prefix("down_blocks_") {
        Some(rest) => (true, rest),
        None => (false, name.strip_prefix("up_blocks_")?),
    };
    let (level, rest) = number_and_rest(rest)?;
    if is_down && rest == "downsamplers_0_conv" {
        return Some(format!("input_blocks_{}_0_op", 3 + 3 * level));
    }
    if !is_down && rest == "upsamplers_0_conv" {
        let index = if level > 0 { 2 } else { 1 };
        return Some(format!("output_blocks_{}_{index}_conv", 2 + 3 * level));
    }
    let (index, rest) = match rest.strip_prefix("attentions_") {
        Some(rest) => (1, rest),
        None => (0, rest.strip_prefix("resnets_")?),
    };
    let (number, inner) = number_and_rest(rest)?;
    let inner = if index == 0 {
        resnet_name(inner)
    } else {
        inner
    };
    Some(if is_down {
        format!("input_blocks_{}_{index}_{inner}", 1 + 3 * level + number)
    } else {
        format!("output_blocks_{}_{index}_{inner}", 3 * level + number)
    })
}

fn number_and_rest(text: &str) -> Option<(usize, &str)> {
    let (number, rest) = text.split_once('_')?;
    Some((number.parse().ok().filter(|n| *n < 1000)?, rest))
}

fn resnet_name(inner: &str) -> &str {
    match inner {
        "norm1" => "in_layers_0",
        "conv1" => "in_layers_2",
        "time_emb_proj" => "emb_layers_1",
        "norm2" => "out_layers_0",
        "conv2" => "out_layers_3",
        "conv_shortcut" => "skip_connection",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn diffusers_names_become_ldms() {
        for (key, want) in [
            (
                "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
                "diffusion_model_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
            ),
            (
                "lora_unet_mid_block_resnets_1_conv1",
                "diffusion_model_middle_block_2_in_layers_2",
            ),
            (
                "lora_unet_up_blocks_0_upsamplers_0_conv",
                "diffusion_model_output_blocks_2_1_conv",
            ),
            (
                "lora_unet_up_blocks_1_upsamplers_0_conv",
                "diffusion_model_output_blocks_5_2_conv",
            ),
            (
                "lora_unet_down_blocks_2_resnets_1_time_emb_proj",
                "diffusion_model_input_blocks_8_0_emb_layers_1",
            ),
            (
                "lora_unet_input_blocks_4_1_proj_in",
                "diffusion_model_input_blocks_4_1_proj_in",
            ),
            (
                "lora_te_text_model_encoder_layers_3_mlp_fc1",
                "model_transformer_resblocks_3_mlp_c_fc",
            ),
            (
                "lora_te2_text_model_encoder_layers_30_mlp_fc2",
                "1_model_transformer_resblocks_30_mlp_c_proj",
            ),
            (
                "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
                "0_transformer_text_model_encoder_layers_0_self_attn_q_proj",
            ),
        ] {
            let names = candidates(key);
            assert!(names.iter().any(|name| name == want), "{key}: {names:?}");
        }
    }
}
