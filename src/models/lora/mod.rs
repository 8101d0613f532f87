//! Low-rank networks (LoRA) and their relatives, applied to the graphs of a checkpoint.
//!
//! Plain LoRA become inputs of the graph ([`PartChanges::adapters`]): several are joined along the
//! rank, multiplier and scale folded into the second factor. Kinds that are no low-rank sum change
//! the weights themselves ([`PartChanges::replaced`]), in prompt order, each from the weight that
//! the ones before it left. Layers and formulas follow LyCORIS and A1111's built-in extension as
//! the specification of A1111's behaviour states them.

mod bundled;
mod change;
mod keys;
mod names;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use ndarray::{ArrayD, IxDyn};

use super::checkpoint::CheckpointPlan;
use super::graphs::Weights;
use crate::catalogue::TensorFile;
pub use bundled::bundled_embeddings;
use change::{LowRank, Parts};
use keys::{LayerTable, Place};

/// One network file with its multipliers.
#[derive(Debug, Clone)]
pub struct AppliedNetwork {
    /// What logs call it.
    pub name: String,
    pub file: Arc<TensorFile>,
    pub text_multiplier: f32,
    pub unet_multiplier: f32,
    /// Ranks beyond this are cut off.
    pub dynamic_rank: Option<usize>,
}

/// A part of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ModelPart {
    Unet,
    Text(usize),
}

/// What the networks of a request do to one part.
#[derive(Debug, Clone, Default)]
pub struct PartChanges {
    /// Layers with adapter inputs.
    pub adapted: BTreeSet<String>,
    /// Values of the adapter inputs.
    pub adapters: Vec<(String, ArrayD<f32>)>,
    /// New values of weights, by name without the part's prefix.
    pub replaced: HashMap<String, Vec<f32>>,
}

/// What the networks do to every part they touch. Errors in single layers are logged and the rest
/// goes on, as in A1111.
#[must_use]
pub fn changes(
    plan: &CheckpointPlan,
    networks: &[AppliedNetwork],
) -> BTreeMap<ModelPart, PartChanges> {
    let table = LayerTable::new(plan);
    let mut layers: BTreeMap<Place, Vec<LayerNetwork>> = BTreeMap::new();
    for network in networks {
        let mut unmatched = 0;
        for (place, parts) in grouped(&network.file, &table, &mut unmatched) {
            let multiplier = match place.part {
                ModelPart::Unet => network.unet_multiplier,
                ModelPart::Text(_) => network.text_multiplier,
            };
            layers.entry(place).or_default().push(LayerNetwork {
                parts,
                multiplier,
                dynamic_rank: network.dynamic_rank,
            });
        }
        if unmatched > 0 {
            tracing::debug!(network = %network.name, unmatched, "layers of this network are not in the checkpoint");
        }
    }
    let mut outcome: BTreeMap<ModelPart, PartChanges> = BTreeMap::new();
    for (place, networks) in layers {
        let weights = weights_of(plan, place.part);
        let changes = outcome.entry(place.part).or_default();
        if let Err(reason) = apply(&weights, &place, &networks, changes) {
            tracing::warn!(layer = %place.layer, %reason, "a network cannot be applied to this layer");
        }
    }
    outcome
}

/// The weights of one part of a checkpoint.
#[must_use]
pub fn weights_of(plan: &CheckpointPlan, part: ModelPart) -> Weights {
    match part {
        ModelPart::Unet => plan.unet_weights(),
        ModelPart::Text(tower) => plan.text_weights(tower),
    }
}

/// One network's tensors for one layer.
struct LayerNetwork {
    parts: Parts,
    multiplier: f32,
    dynamic_rank: Option<usize>,
}

/// A file's tensors by the layer that they change.
fn grouped(file: &TensorFile, table: &LayerTable, unmatched: &mut usize) -> Vec<(Place, Parts)> {
    let mut by_key: BTreeMap<String, Vec<(&str, &str)>> = BTreeMap::new();
    for name in file.names() {
        if let Some((key, part)) = names::split(name).filter(|(key, _)| key != bundled::KEY) {
            by_key.entry(key).or_default().push((part, name));
        }
    }
    let joined_is_whole = |place: &Place| {
        // An open_clip attention is changed only if the network has all four of its projections.
        let Some(base) = place.joined_base() else {
            return true;
        };
        table.joined_siblings(base).is_some_and(|siblings| {
            siblings.iter().all(|sibling| {
                by_key
                    .keys()
                    .any(|key| table.find(key).is_some_and(|found| found.layer == *sibling))
            })
        })
    };
    let mut found = Vec::new();
    for (key, names) in &by_key {
        let Some(place) = table.find(key).filter(&joined_is_whole) else {
            *unmatched += 1;
            continue;
        };
        match Parts::read(file, names) {
            Ok(parts) => found.push((place, parts)),
            Err(error) => tracing::warn!(key, %error, "tensors of this network cannot be read"),
        }
    }
    found
}

fn apply(
    weights: &Weights,
    place: &Place,
    networks: &[LayerNetwork],
    changes: &mut PartChanges,
) -> Result<(), String> {
    let stored = place.stored(weights)?;
    let low_rank: Option<Vec<LowRank>> = if stored.shape.len() < 2 {
        None
    } else {
        networks
            .iter()
            .map(|network| {
                let found = network
                    .parts
                    .low_rank(&stored.shape, network.dynamic_rank)?;
                Some(found.scaled(network.multiplier))
            })
            .collect()
    };
    match low_rank {
        Some(factors) => {
            let (down, up) = joined(&factors, &stored.shape);
            changes.adapted.insert(place.layer.clone());
            changes
                .adapters
                .push((format!("lora_down.{}", place.layer), down));
            changes
                .adapters
                .push((format!("lora_up.{}", place.layer), up));
            Ok(())
        }
        None => merge(weights, place, networks, changes),
    }
}

/// The factors of several networks as one: A stacked along the rank, B side by side.
fn joined(factors: &[LowRank], shape: &[usize]) -> (ArrayD<f32>, ArrayD<f32>) {
    let rank: usize = factors.iter().map(|factor| factor.rank).sum();
    let (out, width) = (shape[0], shape[1..].iter().product::<usize>());
    let mut down = Vec::with_capacity(rank * width);
    let mut up = vec![0.0; out * rank];
    let mut first = 0;
    for factor in factors {
        down.extend_from_slice(&factor.down);
        for row in 0..out {
            let source = &factor.up[row * factor.rank..(row + 1) * factor.rank];
            up[row * rank + first..row * rank + first + factor.rank].copy_from_slice(source);
        }
        first += factor.rank;
    }
    let mut down_shape = vec![rank];
    down_shape.extend_from_slice(&shape[1..]);
    let mut up_shape = vec![out, rank];
    up_shape.extend(std::iter::repeat_n(1, shape.len() - 2));
    (
        ArrayD::from_shape_vec(IxDyn(&down_shape), down).unwrap_or_default(),
        ArrayD::from_shape_vec(IxDyn(&up_shape), up).unwrap_or_default(),
    )
}

/// Changes the weight itself, network after network.
fn merge(
    weights: &Weights,
    place: &Place,
    networks: &[LayerNetwork],
    changes: &mut PartChanges,
) -> Result<(), String> {
    let stored = place.stored(weights)?;
    let read = |name: &str| weights.read_f32(name).map_err(|error| error.to_string());
    let mut whole = match changes.replaced.get(&stored.weight) {
        Some(values) => values.clone(),
        None => read(&stored.weight)?,
    };
    let count: usize = stored.shape.iter().product();
    let mut bias = match &stored.bias {
        Some(name) => match changes.replaced.get(name) {
            Some(values) => Some(values.clone()),
            None => Some(read(name)?),
        },
        None => None,
    };
    let mut changed_bias = false;
    for network in networks {
        let slice = &mut whole[stored.first..stored.first + count];
        let change = network
            .parts
            .change(slice, &stored.shape, network.dynamic_rank)?;
        for (value, delta) in slice.iter_mut().zip(&change.weight) {
            *value += network.multiplier * delta;
        }
        if let (Some(delta), Some(bias)) = (&change.bias, &mut bias) {
            let out = stored.shape[0];
            let first = stored.first / (count / out.max(1)).max(1);
            for (value, delta) in bias.iter_mut().skip(first).zip(delta) {
                *value += network.multiplier * delta;
            }
            changed_bias = true;
        }
    }
    changes.replaced.insert(stored.weight, whole);
    if let (true, Some(name), Some(values)) = (changed_bias, stored.bias, bias) {
        changes.replaced.insert(name, values);
    }
    Ok(())
}
