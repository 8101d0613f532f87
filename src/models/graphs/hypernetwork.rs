//! Hypernetworks in front of the key and value projections of a UNet: `x + multiplier * module(x)`,
//! one after the other, in every attention whose context has a width that the file knows.
//!
//! The multiplier is a graph input, so that another one needs no other session.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Weights;
use super::builder::{Attribute, Dim, GraphBuilder, Value};
use super::proto::data_type;

/// A layer of a hypernetwork's module. A linear layer's inputs are as many as the layer before it
/// gives, its outputs as many as its bias has values.
#[derive(Debug, Clone, PartialEq)]
pub enum HypernetworkLayer {
    /// `[out, in]`, row-major, and `[out]`.
    Linear {
        weight: Vec<f32>,
        bias: Vec<f32>,
    },
    Activation(Activation),
    /// Layer normalisation, eps 1e-5.
    Norm {
        scale: Vec<f32>,
        shift: Vec<f32>,
    },
}

/// Activation functions under the names that hypernetwork files have for them: torch's modules in
/// lower case, with their default parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    Relu,
    LeakyRelu,
    Elu,
    HardSwish,
    Tanh,
    Sigmoid,
    Gelu,
    Silu,
    Selu,
    Celu,
    Mish,
    HardSigmoid,
    HardTanh,
    Relu6,
    Softplus,
    Softsign,
}

/// An activation function that is not among [`Activation`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("its activation {name} is not known")]
pub struct UnknownActivation {
    name: String,
}

impl Activation {
    /// `None` for no activation.
    ///
    /// # Errors
    /// When the name is not known.
    pub fn named(name: &str) -> Result<Option<Self>, UnknownActivation> {
        Ok(Some(match name {
            "linear" => return Ok(None),
            "relu" => Self::Relu,
            "leakyrelu" => Self::LeakyRelu,
            "elu" => Self::Elu,
            // A1111's "swish" is torch's Hardswish.
            "swish" | "hardswish" => Self::HardSwish,
            "tanh" => Self::Tanh,
            "sigmoid" => Self::Sigmoid,
            "gelu" => Self::Gelu,
            "silu" => Self::Silu,
            "selu" => Self::Selu,
            "celu" => Self::Celu,
            "mish" => Self::Mish,
            "hardsigmoid" => Self::HardSigmoid,
            "hardtanh" => Self::HardTanh,
            "relu6" => Self::Relu6,
            "softplus" => Self::Softplus,
            "softsign" => Self::Softsign,
            _ => {
                return Err(UnknownActivation {
                    name: name.to_owned(),
                });
            }
        }))
    }

    fn apply(self, g: &mut GraphBuilder<'_>, x: &Value) -> Value {
        let clip = |g: &mut GraphBuilder<'_>, low: f32, high: f32| {
            let low = g.floats(&format!("clip_{low}"), &[low], &[]);
            let high = g.floats(&format!("clip_{high}"), &[high], &[]);
            g.node("Clip", &[x, &low, &high], &[])
        };
        let sixth = [
            ("alpha", Attribute::Float(1.0 / 6.0)),
            ("beta", Attribute::Float(0.5)),
        ];
        match self {
            Self::Relu => g.node("Relu", &[x], &[]),
            Self::LeakyRelu => g.node("LeakyRelu", &[x], &[("alpha", Attribute::Float(0.01))]),
            Self::Elu => g.node("Elu", &[x], &[]),
            Self::HardSwish => g.node("HardSwish", &[x], &[]),
            Self::Tanh => g.node("Tanh", &[x], &[]),
            Self::Sigmoid => g.node("Sigmoid", &[x], &[]),
            Self::Gelu => g.gelu(x),
            Self::Silu => g.silu(x),
            Self::Selu => g.node("Selu", &[x], &[]),
            Self::Celu => g.node("Celu", &[x], &[]),
            Self::Mish => g.node("Mish", &[x], &[]),
            Self::HardSigmoid => g.node("HardSigmoid", &[x], &sixth),
            Self::HardTanh => clip(g, -1.0, 1.0),
            Self::Relu6 => clip(g, 0.0, 6.0),
            Self::Softplus => g.node("Softplus", &[x], &[]),
            Self::Softsign => g.node("Softsign", &[x], &[]),
        }
    }
}

/// The modules of a hypernetwork by context width: before the keys, before the values.
pub type HypernetworkModules = BTreeMap<usize, [Vec<HypernetworkLayer>; 2]>;

/// The graph input with the multiplier of the hypernetwork at this place, `[1]`.
#[must_use]
pub fn multiplier_input(index: usize) -> String {
    format!("hypernetwork_multiplier.{index}")
}

/// The hypernetworks of a graph.
pub(super) struct Hypernetworks {
    modules: Arc<[Arc<HypernetworkModules>]>,
    multipliers: Vec<Value>,
}

impl Hypernetworks {
    /// Declares the inputs; `None` when the graph has no hypernetworks.
    pub(super) fn new(g: &mut GraphBuilder<'_>, weights: &Weights) -> Option<Self> {
        let modules = weights.hypernetworks();
        if modules.is_empty() {
            return None;
        }
        let multipliers = (0..modules.len())
            .map(|index| g.input(&multiplier_input(index), data_type::FLOAT, &[Dim::Fixed(1)]))
            .collect();
        Some(Self {
            modules: Arc::clone(modules),
            multipliers,
        })
    }

    /// What keys and values are made of, from the rows `[n, width]` of a context.
    pub(super) fn apply(
        &self,
        g: &mut GraphBuilder<'_>,
        context: &Value,
        width: usize,
    ) -> [Value; 2] {
        let mut rows = [context.clone(), context.clone()];
        for (index, (modules, multiplier)) in self.modules.iter().zip(&self.multipliers).enumerate()
        {
            let Some(both) = modules.get(&width) else {
                continue;
            };
            for (side, layers) in both.iter().enumerate() {
                let name = format!("hypernetwork.{index}.{width}.{side}");
                let change = module(g, &rows[side], layers, width, &name);
                let change = g.mul(&change, multiplier);
                rows[side] = g.add(&rows[side], &change);
            }
        }
        rows
    }
}

fn module(
    g: &mut GraphBuilder<'_>,
    x: &Value,
    layers: &[HypernetworkLayer],
    width: usize,
    name: &str,
) -> Value {
    let (mut h, mut inputs) = (x.clone(), width);
    for (at, layer) in layers.iter().enumerate() {
        h = match layer {
            HypernetworkLayer::Linear { weight, bias } => {
                let outputs = bias.len();
                let weight = g.floats(&format!("{name}.{at}.weight"), weight, &[outputs, inputs]);
                let bias = g.floats(&format!("{name}.{at}.bias"), bias, &[outputs]);
                inputs = outputs;
                g.gemm(&h, &weight, Some(&bias))
            }
            HypernetworkLayer::Activation(activation) => activation.apply(g, &h),
            HypernetworkLayer::Norm { scale, shift } => {
                let scale = g.floats(&format!("{name}.{at}.scale"), scale, &[inputs]);
                let shift = g.floats(&format!("{name}.{at}.shift"), shift, &[inputs]);
                let options = [
                    ("axis", Attribute::Int(-1)),
                    ("epsilon", Attribute::Float(1e-5)),
                ];
                g.node("LayerNormalization", &[&h, &scale, &shift], &options)
            }
        };
    }
    h
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use indexmap::IndexMap;
    use ndarray::Array2;

    use super::*;
    use crate::catalogue::TensorFile;
    use crate::models::graphs::BuildOptions;
    use crate::models::hypernetwork::open_hypernetwork;
    use crate::runtime::{
        Graph, GraphSource, LibrarySearch, Runtime, RuntimeOptions, find_library,
    };

    fn runtime() -> Runtime {
        let search = LibrarySearch {
            explicit: std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from),
            data_dir: PathBuf::from(env!("CARGO_MANIFEST_DIR")),
            python_prefixes: Vec::new(),
        };
        let library = find_library(&search).expect("scripts/fetch_runtime has fetched the library");
        Runtime::load(&library, RuntimeOptions::default()).unwrap()
    }

    /// What one file's modules make of `x`.
    fn sides(runtime: &Runtime, path: &Path, x: &Array2<f32>, multiplier: f32) -> [Vec<f32>; 2] {
        let file = TensorFile::from_parts(PathBuf::new(), IndexMap::new(), BTreeMap::default());
        let modules = open_hypernetwork(path).unwrap();
        let weights = Weights::new(Arc::new(file), "").with_hypernetworks(vec![modules]);
        let mut g = GraphBuilder::new("test", &weights, BuildOptions::default());
        let width = x.ncols();
        let dims = [Dim::Free("n"), Dim::Fixed(width)];
        let rows = g.input("x", data_type::FLOAT, &dims);
        let hypernetworks = Hypernetworks::new(&mut g, &weights).unwrap();
        let [keys, values] = hypernetworks.apply(&mut g, &rows, width);
        g.output(&keys, "keys", &dims);
        g.output(&values, "values", &dims);
        let built = g.finish();
        let source = GraphSource::Bytes {
            model: &built.model,
            external_folder: None,
            values: &built.values,
        };
        let graph = Graph::load(runtime, "hypernetwork", source).unwrap();
        let multiplier = ndarray::arr1(&[multiplier]);
        let inputs = [
            ("x", x.into()),
            (&*multiplier_input(0), (&multiplier).into()),
        ];
        let outputs = graph.run(&inputs, &["keys", "values"]).unwrap();
        [0, 1].map(|side: usize| outputs[side].iter().copied().collect())
    }

    #[test]
    fn modules_answer_as_torchs_do() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/hypernetworks");
        let text = fs_err::read_to_string(folder.join("hypernetworks.json")).unwrap();
        let golden: serde_json::Value = serde_json::from_str(&text).unwrap();
        let floats = |value: &serde_json::Value| -> Vec<f32> {
            let list = value.as_array().unwrap().iter();
            list.map(|v| v.as_f64().unwrap() as f32).collect()
        };
        let width = golden["width"].as_u64().unwrap() as usize;
        let x = floats(&golden["x"]);
        let x = Array2::from_shape_vec((x.len() / width, width), x).unwrap();
        let multiplier = golden["multiplier"].as_f64().unwrap() as f32;
        let tolerance = golden["tolerance"].as_f64().unwrap() as f32;
        let runtime = runtime();
        for case in golden["cases"].as_array().unwrap() {
            let name = case["name"].as_str().unwrap();
            let path = folder.join(format!("{name}.pt"));
            let got = sides(&runtime, &path, &x, multiplier);
            for (side, got) in got.iter().enumerate() {
                for (got, want) in got.iter().zip(floats(&case["want"][side])) {
                    let allowed = tolerance * want.abs().max(1.0);
                    assert!(
                        (got - want).abs() <= allowed,
                        "{name} {side}: {got} is not {want}"
                    );
                }
            }
        }
    }

    #[test]
    fn an_unknown_activation_is_refused() {
        assert!(Activation::named("threshold").is_err());
        assert_eq!(Activation::named("linear"), Ok(None));
    }
}
