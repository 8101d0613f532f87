//! What kind of checkpoint a file holds, told by its tensor names, in the order of tests of A1111's
//! configuration choice.

use super::TensorFile;

/// Families by conditioning, and with them the names of their parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckpointFamily {
    Sd1,
    Sd2,
    Sdxl,
    SdxlRefiner,
}

/// What the tensor names tell about a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointLayout {
    pub family: CheckpointFamily,
    /// Channels of the UNet's input: 4, 9 inpainting, 8 instruct-pix2pix.
    pub unet_channels: usize,
    /// Prefixes of the text towers, in the order of the conditioning.
    pub text_prefixes: Vec<String>,
}

/// Prefix of the UNet in every family.
pub const UNET_PREFIX: &str = "model.diffusion_model.";
/// Prefix of the VAE in every family.
pub const VAE_PREFIX: &str = "first_stage_model.";

/// Tells the family, or says why the file cannot be used.
///
/// # Errors
/// One sentence naming what the file is or what it lacks.
pub fn detect(file: &TensorFile) -> Result<CheckpointLayout, String> {
    let has = |name: &str| file.get(name).is_some();
    let begins = |prefix: &str| file.names().any(|name| name.starts_with(prefix));
    if has("model.diffusion_model.x_embedder.proj.weight") {
        return Err("it is a Stable Diffusion 3 checkpoint, which is not supported".to_owned());
    }
    if has("depth_model.model.pretrained.act_postprocess3.0.project.0.bias") {
        return Err("it is a depth-to-image checkpoint, which is not supported".to_owned());
    }
    if has("embedder.model.ln_final.weight") {
        return Err("it is an unCLIP checkpoint, which is not supported".to_owned());
    }
    if begins("cond_stage_model.roberta.") {
        return Err("it is an AltDiffusion checkpoint, which is not supported".to_owned());
    }
    let Some(input) = file.get("model.diffusion_model.input_blocks.0.0.weight") else {
        return Err(what_else(file));
    };
    let unet_channels = input.shape.get(1).copied().unwrap_or(0);
    let (family, text_prefixes) = text_towers(file)?;
    Ok(CheckpointLayout {
        family,
        unet_channels,
        text_prefixes,
    })
}

fn text_towers(file: &TensorFile) -> Result<(CheckpointFamily, Vec<String>), String> {
    let has = |name: &str| file.get(name).is_some();
    if has("conditioner.embedders.1.model.ln_final.weight") {
        let first = transformers_prefix(file, "conditioner.embedders.0.transformer.")
            .ok_or("its first text encoder is missing")?;
        let second = "conditioner.embedders.1.model.".to_owned();
        return Ok((CheckpointFamily::Sdxl, vec![first, second]));
    }
    if let Some(norm) = file.get("conditioner.embedders.0.model.ln_final.weight") {
        let prefix = vec!["conditioner.embedders.0.model.".to_owned()];
        // SD 2.1 turbo is stored in sgm's layout; its tower is 1024 wide, the refiner's 1280.
        let family = if norm.shape == [1024] {
            CheckpointFamily::Sd2
        } else {
            CheckpointFamily::SdxlRefiner
        };
        return Ok((family, prefix));
    }
    if has("cond_stage_model.model.ln_final.weight") {
        let prefix = vec!["cond_stage_model.model.".to_owned()];
        return Ok((CheckpointFamily::Sd2, prefix));
    }
    transformers_prefix(file, "cond_stage_model.transformer.")
        .map(|prefix| (CheckpointFamily::Sd1, vec![prefix]))
        .ok_or_else(|| "it has no text encoder".to_owned())
}

/// Files from before transformers 4.27 have `text_model.` in front of the names, older ones not.
fn transformers_prefix(file: &TensorFile, prefix: &str) -> Option<String> {
    [format!("{prefix}text_model."), prefix.to_owned()]
        .into_iter()
        .find(|prefix| {
            file.get(&format!("{prefix}embeddings.token_embedding.weight"))
                .is_some()
        })
}

/// A name for a file that is no checkpoint.
fn what_else(file: &TensorFile) -> String {
    let begins = |prefix: &str| file.names().any(|name| name.starts_with(prefix));
    let contains = |part: &str| file.names().any(|name| name.contains(part));
    if contains("lora_") || contains(".lora") || contains("hada_") || contains("lokr_") {
        return "it is a LoRA or a relative of it; such files belong into models/Lora".to_owned();
    }
    if begins("decoder.") && begins("encoder.") {
        return "it is a VAE; such files belong into models/VAE".to_owned();
    }
    if begins("control_model.") || begins("input_hint_block") {
        return "it is a ControlNet".to_owned();
    }
    if begins("double_blocks.") || begins("model.diffusion_model.double_blocks.") {
        return "it is a Flux checkpoint, which is not supported".to_owned();
    }
    if begins("down_blocks.") || begins("conv_in.") {
        return "it holds a UNet alone, in the layout of diffusers; a whole checkpoint is needed"
            .to_owned();
    }
    "it has no UNet".to_owned()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use indexmap::IndexMap;

    use super::*;
    use crate::catalogue::{StoredTensor, StoredType};

    fn file(entries: &[(&str, &[usize])]) -> TensorFile {
        let tensors: IndexMap<String, StoredTensor> = entries
            .iter()
            .map(|(name, shape)| {
                let tensor = StoredTensor {
                    stored_type: StoredType::F16,
                    shape: shape.to_vec(),
                    offset: 0,
                    length_bytes: 0,
                };
                ((*name).to_owned(), tensor)
            })
            .collect();
        TensorFile::from_parts(
            PathBuf::from("x"),
            tensors,
            std::collections::BTreeMap::new(),
        )
    }

    const INPUT: (&str, &[usize]) = (
        "model.diffusion_model.input_blocks.0.0.weight",
        &[320, 4, 3, 3],
    );

    fn family(entries: &[(&str, &[usize])]) -> Result<CheckpointFamily, String> {
        detect(&file(entries)).map(|layout| layout.family)
    }

    #[test]
    fn families_are_told_by_their_text_towers() {
        let embedding = "cond_stage_model.transformer.embeddings.token_embedding.weight";
        assert_eq!(
            family(&[INPUT, (embedding, &[49408, 768])]),
            Ok(CheckpointFamily::Sd1)
        );
        assert_eq!(
            family(&[INPUT, ("cond_stage_model.model.ln_final.weight", &[1024])]),
            Ok(CheckpointFamily::Sd2)
        );
        assert_eq!(
            family(&[
                INPUT,
                ("conditioner.embedders.0.model.ln_final.weight", &[1024])
            ]),
            Ok(CheckpointFamily::Sd2)
        );
        assert_eq!(
            family(&[
                INPUT,
                ("conditioner.embedders.0.model.ln_final.weight", &[1280])
            ]),
            Ok(CheckpointFamily::SdxlRefiner)
        );
    }

    #[test]
    fn kinds_that_need_more_than_text_are_refused_by_name() {
        let tower = ("cond_stage_model.model.ln_final.weight", &[1024][..]);
        for (tensor, kind) in [
            (
                "depth_model.model.pretrained.act_postprocess3.0.project.0.bias",
                "depth-to-image",
            ),
            ("embedder.model.ln_final.weight", "unCLIP"),
            (
                "model.diffusion_model.x_embedder.proj.weight",
                "Stable Diffusion 3",
            ),
            (
                "cond_stage_model.roberta.embeddings.word_embeddings.weight",
                "AltDiffusion",
            ),
        ] {
            let reason = family(&[INPUT, tower, (tensor, &[768])]).unwrap_err();
            assert!(reason.contains(kind), "{reason}");
            assert!(reason.contains("not supported"), "{reason}");
        }
    }

    #[test]
    fn files_that_are_no_checkpoints_are_named() {
        assert!(
            family(&[("lora_unet_x.lora_up.weight", &[1])])
                .unwrap_err()
                .contains("LoRA")
        );
        assert!(
            family(&[("encoder.a", &[1]), ("decoder.a", &[1])])
                .unwrap_err()
                .contains("VAE")
        );
        assert!(family(&[]).unwrap_err().contains("no UNet"));
        assert!(family(&[INPUT]).unwrap_err().contains("text encoder"));
    }
}
