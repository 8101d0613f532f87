//! Hypernetwork files as A1111 trains them: for each width of a context two small networks, whose
//! output is added to what an attention layer makes its keys and values of.
//!
//! A file is a pickled dictionary: integer keys are widths with a pair of weight dictionaries;
//! `activation_func`, `activate_output` and others say what lies between the linear layers. Where
//! the dropout layers were is not needed: names of weights are numbered, and the numbers only have
//! to be in order.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::checkpoint::LoadError;
use super::graphs::{Activation, HypernetworkLayer, HypernetworkModules};
use crate::catalogue::{Item, TensorFileError, TorchFile};

/// Reads a file.
///
/// # Errors
/// When the file cannot be read or is no hypernetwork that the graphs can apply.
pub(super) fn open_hypernetwork(path: &Path) -> Result<Arc<HypernetworkModules>, LoadError> {
    let file = TorchFile::open(path)?;
    read(file.root())
        .map(Arc::new)
        .map_err(|error| match error {
            ReadError::File(source) => LoadError::Weights(source),
            ReadError::Shape(reason) => LoadError::Unusable {
                path: path.display().to_string(),
                reason,
            },
        })
}

enum ReadError {
    File(TensorFileError),
    Shape(String),
}

impl From<TensorFileError> for ReadError {
    fn from(error: TensorFileError) -> Self {
        Self::File(error)
    }
}

fn read(root: Item<'_>) -> Result<HypernetworkModules, ReadError> {
    let shape = |reason: &str| ReadError::Shape(reason.to_owned());
    let activation = match root.get("activation_func").and_then(|name| name.as_text()) {
        None => None,
        Some(name) => {
            Activation::named(name).map_err(|error| ReadError::Shape(error.to_string()))?
        }
    };
    let activates_output = root
        .get("activate_output")
        .and_then(|value| value.as_bool())
        .unwrap_or(true);
    let mut modules = BTreeMap::new();
    for (key, value) in root.entries() {
        let Some(width) = key.as_int().and_then(|width| usize::try_from(width).ok()) else {
            continue;
        };
        let pair: Vec<Item<'_>> = value.items().collect();
        let [keys, values] = pair.as_slice() else {
            return Err(shape("a width of it has no pair of networks"));
        };
        let both = [
            module(*keys, width, activation, activates_output)?,
            module(*values, width, activation, activates_output)?,
        ];
        modules.insert(width, both);
    }
    if modules.is_empty() {
        return Err(shape("it is no hypernetwork"));
    }
    Ok(modules)
}

/// The layers of one network in order: linear, activation, layer normalisation.
fn module(
    weights: Item<'_>,
    width: usize,
    activation: Option<Activation>,
    activates_output: bool,
) -> Result<Vec<HypernetworkLayer>, ReadError> {
    let mut numbered: BTreeMap<usize, [Option<Item<'_>>; 2]> = BTreeMap::new();
    for (key, value) in weights.entries() {
        let (Some(name), true) = (key.as_text(), value.is_tensor()) else {
            continue;
        };
        let Some((number, is_bias)) = numbered_name(name) else {
            return Err(ReadError::Shape(format!("its weight {name} is not known")));
        };
        numbered.entry(number).or_default()[usize::from(is_bias)] = Some(value);
    }
    let is_linear = |entry: &[Option<Item<'_>>; 2]| {
        entry[0].and_then(|weight| weight.shape()).map(|s| s.len()) == Some(2)
    };
    let linear_count = numbered.values().filter(|entry| is_linear(entry)).count();
    if linear_count == 0 {
        return Err(ReadError::Shape("a network of it has no layers".to_owned()));
    }
    let (mut layers, mut seen, mut current) = (Vec::new(), 0, width);
    for entry in numbered.values() {
        let [Some(weight), Some(bias)] = *entry else {
            return Err(ReadError::Shape("a layer of it lacks a weight".to_owned()));
        };
        let shape = weight.shape().unwrap_or_default();
        let misfit = || ReadError::Shape(format!("a layer for width {width} does not fit"));
        let (values, shift) = (weight.read_f32()?, bias.read_f32()?);
        match shape[..] {
            [outputs, inputs] if inputs == current && shift.len() == outputs => {
                layers.push(HypernetworkLayer::Linear {
                    weight: values,
                    bias: shift,
                });
                current = outputs;
                seen += 1;
                if let Some(activation) =
                    activation.filter(|_| seen < linear_count || activates_output)
                {
                    layers.push(HypernetworkLayer::Activation(activation));
                }
            }
            [features] if features == current && shift.len() == features => {
                layers.push(HypernetworkLayer::Norm {
                    scale: values,
                    shift,
                });
            }
            _ => return Err(misfit()),
        }
    }
    if current != width {
        return Err(ReadError::Shape(format!(
            "a network for width {width} ends with width {current}"
        )));
    }
    Ok(layers)
}

/// `linear.<n>.weight`, or of the first files `linear1.weight` and `linear2.weight`.
fn numbered_name(name: &str) -> Option<(usize, bool)> {
    let (layer, part) = name.rsplit_once('.')?;
    let number = match layer {
        "linear1" => 0,
        "linear2" => 1,
        other => other.strip_prefix("linear.")?.parse().ok()?,
    };
    match part {
        "weight" => Some((number, false)),
        "bias" => Some((number, true)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_numbered_in_both_ways_of_naming() {
        assert_eq!(numbered_name("linear.3.bias"), Some((3, true)));
        assert_eq!(numbered_name("linear2.weight"), Some((1, false)));
        assert_eq!(numbered_name("linear.x.weight"), None);
        assert_eq!(numbered_name("other"), None);
    }
}
