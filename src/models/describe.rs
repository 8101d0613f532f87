//! What a model file or folder is, in words: `ancestral inspect`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::checkpoint::{CheckpointPlan, LoadError};
use super::onnx_folder;
use crate::catalogue::{TensorFile, sha256_of};
use crate::pipeline::Prediction;

/// Prefix of the averaged copy of a UNet that trainers keep beside it.
const AVERAGED_PREFIX: &str = "model_ema.";

/// A line per fact: family, prediction, what is inside and what is missing. `tower_folders` are
/// searched for text tower configurations.
///
/// # Errors
/// When it cannot be read or is no checkpoint; the sentence says what it is instead.
pub fn describe(path: &Path, tower_folders: &[PathBuf]) -> Result<String, LoadError> {
    let facts = if path.is_dir() {
        onnx_folder_facts(path)?
    } else {
        weights_facts(path, tower_folders)?
    };
    let mut text = format!("{}\n", path.display());
    for (name, value) in facts {
        // Writing into a String does not fail.
        let _ = writeln!(text, "  {name:<13}{value}");
    }
    Ok(text)
}

type Facts = Vec<(&'static str, String)>;

fn weights_facts(path: &Path, tower_folders: &[PathBuf]) -> Result<Facts, LoadError> {
    let plan = CheckpointPlan::open(path, tower_folders)?;
    let mut facts: Facts = vec![
        ("family", format!("{:?}", plan.family())),
        ("UNet", unet_kind(plan.layout.unet_channels)),
        ("prediction", predicts(plan.stated_prediction()).to_owned()),
    ];
    for (index, tower) in plan.towers.iter().enumerate() {
        let heads = if plan.guessed_towers.contains(&index) {
            "heads (a guess: its configuration was not found)"
        } else {
            "heads"
        };
        facts.push(("text encoder", format!("{} {heads}", tower.heads)));
    }
    let vae = if plan.has_vae() {
        "inside"
    } else {
        "missing; put one into models/VAE"
    };
    facts.push(("VAE", vae.to_owned()));
    facts.push(("numbers", element_types(&plan.file)));
    if plan
        .file
        .names()
        .any(|name| name.starts_with(AVERAGED_PREFIX))
    {
        let averaged = "averaged weights (model_ema) beside the plain ones; they are not used";
        facts.push(("also", averaged.to_owned()));
    }
    facts.extend(plan.faults().into_iter().map(|fault| ("broken", fault)));
    let sha256 = sha256_of(path).map_err(|source| LoadError::Io {
        path: path.display().to_string(),
        source,
    })?;
    facts.push(("SHA-256", sha256));
    Ok(facts)
}

fn unet_kind(channels: usize) -> String {
    match channels {
        4 => "text to picture".to_owned(),
        8 => "instruct-pix2pix (edits pictures)".to_owned(),
        9 => "inpainting".to_owned(),
        other => format!("{other} input channels, which no known kind has"),
    }
}

fn predicts(prediction: Option<Prediction>) -> &'static str {
    match prediction {
        Some(Prediction::Epsilon) => "noise (epsilon)",
        Some(Prediction::Velocity) => "velocity (v)",
        None => "not stated; found by a test run when it is loaded",
    }
}

/// The element types by their number of tensors.
fn element_types(file: &TensorFile) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for (_, tensor) in file.iter() {
        *counts
            .entry(format!("{:?}", tensor.stored_type))
            .or_default() += 1;
    }
    let counts = counts
        .iter()
        .map(|(kind, count)| format!("{kind} in {count} tensors"));
    counts.collect::<Vec<_>>().join(", ")
}

fn onnx_folder_facts(folder: &Path) -> Result<Facts, LoadError> {
    if !folder.join("unet/model.onnx").is_file() {
        return Err(LoadError::Unusable {
            path: folder.display().to_string(),
            reason: "it is a folder without unet/model.onnx".to_owned(),
        });
    }
    let facts = onnx_folder::read_facts(folder);
    let missing = onnx_folder::missing_parts(folder, facts.family);
    let mut lines = vec![
        ("kind", "a folder of ONNX graphs".to_owned()),
        ("family", format!("{:?}", facts.family)),
        ("prediction", predicts(Some(facts.prediction)).to_owned()),
    ];
    lines.extend(missing.into_iter().map(|part| ("missing", part)));
    Ok(lines)
}
