//! Nodes, constants and initializers of one graph, and the layers that all parts share.

use std::collections::HashMap;
use std::rc::Rc;

use half::f16;
use ndarray::{ArrayD, IxDyn};
use prost::Message as _;

use super::proto::{
    AttributeProto, Dimension, GraphProto, ModelProto, NodeProto, OperatorSetId, StringPair,
    TensorProto, TensorShape, TensorType, TypeProto, ValueInfo, data_type, dimension,
};
use super::{BuildError, Weights};
use crate::catalogue::StoredType;
use crate::runtime::{Input, matrix_operators};

/// Where the weights of a graph are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// In the checkpoint file, as external data.
    External,
    /// In the model itself, rounded to half precision where the checkpoint has more.
    InlineHalf,
}

/// What a graph computes in. Inputs and outputs are float32 either way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// Float32, whatever the weights are stored in.
    #[default]
    Float,
    /// Half precision, as A1111 computes on a GPU: weights, convolutions and linear layers. Group
    /// normalisation, the sinusoids of the timestep, the similarities of token merging and the
    /// attention of VAE and text encoder stay float32.
    Half {
        /// The UNet's attention in float32 too: SD 2.x overflows in half (not on CUDA), and the option `upcast_attn`.
        float_attention: bool,
    },
}

/// Variants of a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BuildOptions {
    pub storage: Storage,
    pub precision: Precision,
    /// Circular padding in every 3x3 convolution with padding 1 (A1111's "tiling").
    pub tiling: bool,
    /// Token merging in a UNet's self-attention at the latent's full size.
    pub token_merging: bool,
    /// Layers of float32 are the operators of [`matrix_operators`] where these can compute them.
    pub matrix_unit: bool,
}

impl Default for BuildOptions {
    fn default() -> Self {
        Self {
            storage: Storage::External,
            precision: Precision::Float,
            tiling: false,
            token_merging: false,
            matrix_unit: false,
        }
    }
}

/// One layer that low-rank networks can change: `y += B (A x)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterPort {
    /// The layer's name in the checkpoint, without the part's prefix; rows of a joined attention
    /// projection end in `.q`, `.k` or `.v`.
    pub layer: String,
    /// Shape of A with the rank left out: `[in]` or `[in, kh, kw]`.
    pub down_shape: Vec<usize>,
    /// Output features.
    pub out: usize,
}

impl AdapterPort {
    /// The graph input that takes A, `[rank, ...down_shape]`.
    #[must_use]
    pub fn down_input(&self) -> String {
        format!("lora_down.{}", self.layer)
    }

    /// The graph input that takes B, `[out, rank]`, followed by two unit axes for a convolution.
    #[must_use]
    pub fn up_input(&self) -> String {
        format!("lora_up.{}", self.layer)
    }
}

/// A finished graph.
#[derive(Debug, Clone)]
pub struct BuiltGraph {
    /// The serialised `ModelProto`.
    pub model: Vec<u8>,
    /// Its inputs, with those that may be left out, and its outputs.
    pub inputs: Vec<(String, Input)>,
    pub outputs: Vec<(String, Input)>,
    /// The layers with adapter inputs, if the graph was built with them.
    pub adapters: Vec<AdapterPort>,
    /// Large weights that are neither in the model nor in the checkpoint file, by the name of the
    /// initializer; not in exports.
    pub values: Vec<(String, ArrayD<f32>)>,
    /// Weights that do not fit into the model, which names them [`SIDE_FILE`]; exports only.
    pub side_data: Vec<u8>,
}

/// The file beside an exported model that holds weights past what one protobuf message may hold.
pub const SIDE_FILE: &str = "model.onnx_data";

/// Inline weights of an export above this go to the side file; a message may have at most 2 GiB.
const INLINE_LIMIT_BYTES: usize = 1 << 30;

/// Weights up to this size are read into the model instead of being left in the checkpoint file. The
/// runtime repacks large ones, but keeps the others where they are, and reading a mapped file that
/// somebody has cut short since ends the process.
const RESIDENT_BYTES: u64 = 128 << 10;

/// Float32 weights from this size on that are not in the checkpoint file are handed to the runtime by
/// value, since a message may have at most 2 GiB.
const BY_VALUE_BYTES: usize = 1 << 20;

/// What a value's elements are, as far as the builder has to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Float,
    Half,
    Other,
}

impl Kind {
    fn of(element: i32) -> Self {
        match element {
            data_type::FLOAT => Self::Float,
            data_type::FLOAT16 => Self::Half,
            _ => Self::Other,
        }
    }
}

/// The output of a node, an input or an initializer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Value {
    name: Rc<str>,
    kind: Kind,
}

impl Value {
    fn new(name: &str, kind: Kind) -> Self {
        Self {
            name: Rc::from(name),
            kind,
        }
    }
}

/// A dimension of an input or output.
#[derive(Debug, Clone, Copy)]
pub(super) enum Dim {
    Free(&'static str),
    Fixed(usize),
}

#[derive(Debug, Clone)]
pub(super) enum Attribute {
    Int(i64),
    Float(f32),
    Text(&'static str),
    Ints(Vec<i64>),
}

pub(super) const ONNX: &str = "";
pub(super) const MICROSOFT: &str = "com.microsoft";

/// Collects one graph.
pub(super) struct GraphBuilder<'w> {
    weights: &'w Weights,
    options: BuildOptions,
    graph: GraphProto,
    adapters: Vec<AdapterPort>,
    initializers: HashMap<String, Value>,
    /// Values that were cast, by the value and what it was cast to.
    casts: HashMap<(Value, Kind), Value>,
    next_value: usize,
}

impl<'w> GraphBuilder<'w> {
    pub(super) fn new(name: &str, weights: &'w Weights, options: BuildOptions) -> Self {
        Self {
            weights,
            options,
            graph: GraphProto {
                name: name.to_owned(),
                ..GraphProto::default()
            },
            adapters: Vec::new(),
            initializers: HashMap::new(),
            casts: HashMap::new(),
            next_value: 0,
        }
    }

    pub(super) fn weights(&self) -> &'w Weights {
        self.weights
    }

    pub(super) fn finish(mut self) -> BuiltGraph {
        let initializers = &mut self.graph.initializer;
        let (values, side_data) = match self.options.storage {
            Storage::External => (take_large(initializers, self.weights), Vec::new()),
            Storage::InlineHalf => (Vec::new(), spill(initializers)),
        };
        let inputs = self.graph.input.iter().map(port).collect();
        let outputs = self.graph.output.iter().map(port).collect();
        let own = (matrix_operators::DOMAIN, matrix_operators::VERSION);
        let imports = [(ONNX, 19), (MICROSOFT, 1)]
            .into_iter()
            .chain(self.options.matrix_unit.then_some(own));
        let model = ModelProto {
            ir_version: 9,
            opset_import: imports
                .map(|(domain, version)| OperatorSetId {
                    domain: domain.to_owned(),
                    version,
                })
                .collect(),
            producer_name: "ancestral".to_owned(),
            graph: Some(self.graph),
        };
        BuiltGraph {
            inputs,
            outputs,
            model: model.encode_to_vec(),
            adapters: self.adapters,
            values,
            side_data,
        }
    }

    // ---- inputs, outputs, nodes -------------------------------------------------------------

    pub(super) fn input(&mut self, name: &str, element: i32, dims: &[Dim]) -> Value {
        self.graph.input.push(value_info(name, element, dims));
        Value::new(name, Kind::of(element))
    }

    /// An input that may be left out, with its default.
    pub(super) fn optional_input(
        &mut self,
        name: &str,
        dims: &[Dim],
        default: &[f32],
        default_dims: &[usize],
    ) -> Value {
        let value = self.input(name, data_type::FLOAT, dims);
        self.graph.initializer.push(TensorProto {
            dims: signed(default_dims),
            data_type: data_type::FLOAT,
            name: name.to_owned(),
            raw_data: Some(default.iter().flat_map(|v| v.to_le_bytes()).collect()),
            ..TensorProto::default()
        });
        value
    }

    pub(super) fn output(&mut self, value: &Value, name: &str, dims: &[Dim]) {
        let value = self.cast_float(value);
        self.graph.node.push(NodeProto {
            input: vec![value.name.to_string()],
            output: vec![name.to_owned()],
            name: format!("output/{name}"),
            op_type: "Identity".to_owned(),
            ..NodeProto::default()
        });
        self.graph
            .output
            .push(value_info(name, data_type::FLOAT, dims));
    }

    /// A node with one output. `None` inputs are left out ones. Where half and float32 meet, it computes in
    /// half; use [`Self::cast_float`] before to keep a part in float32.
    pub(super) fn node_in(
        &mut self,
        domain: &'static str,
        op: &str,
        inputs: &[Option<&Value>],
        attributes: &[(&str, Attribute)],
    ) -> Value {
        // Resize takes its scales in float32 always.
        let is_half = inputs
            .iter()
            .flatten()
            .any(|value| value.kind == Kind::Half);
        let inputs: Vec<Option<Value>> = inputs
            .iter()
            .map(|value| match value {
                Some(value) if is_half && op != "Resize" && value.kind == Kind::Float => {
                    Some(self.cast(value, Kind::Half))
                }
                value => value.cloned(),
            })
            .collect();
        let kind = match op {
            "Shape" | "ArgMax" => Kind::Other,
            // A node whose data are whole numbers takes no floats; a gathered table is the first input.
            "Gather" | "GatherND" | "GatherElements" => inputs
                .first()
                .and_then(Option::as_ref)
                .map_or(Kind::Other, |value| value.kind),
            _ if is_half => Kind::Half,
            _ if inputs
                .iter()
                .flatten()
                .any(|value| value.kind == Kind::Float) =>
            {
                Kind::Float
            }
            _ => Kind::Other,
        };
        self.next_value += 1;
        let name = format!("{op}_{}", self.next_value);
        self.graph.node.push(NodeProto {
            input: inputs
                .iter()
                .map(|value| {
                    value
                        .as_ref()
                        .map_or_else(String::new, |value| value.name.to_string())
                })
                .collect(),
            output: vec![name.clone()],
            name: name.clone(),
            op_type: op.to_owned(),
            attribute: attributes
                .iter()
                .map(|(name, value)| attribute(name, value))
                .collect(),
            domain: domain.to_owned(),
        });
        Value::new(&name, kind)
    }

    pub(super) fn node(
        &mut self,
        op: &str,
        inputs: &[&Value],
        attributes: &[(&str, Attribute)],
    ) -> Value {
        let inputs: Vec<Option<&Value>> = inputs.iter().copied().map(Some).collect();
        self.node_in(ONNX, op, &inputs, attributes)
    }

    /// Positions of the `count` largest values along the last axis, largest first; of equal ones the
    /// first comes first.
    pub(super) fn top_indices(&mut self, x: &Value, count: &Value) -> Value {
        self.next_value += 1;
        let name = format!("TopK_{}", self.next_value);
        let indices = format!("{name}/indices");
        self.graph.node.push(NodeProto {
            input: vec![x.name.to_string(), count.name.to_string()],
            output: vec![format!("{name}/values"), indices.clone()],
            name,
            op_type: "TopK".to_owned(),
            ..NodeProto::default()
        });
        Value::new(&indices, Kind::Other)
    }

    // ---- constants and weights ----------------------------------------------------------------

    pub(super) fn ints(&mut self, values: &[i64]) -> Value {
        let name = format!("ints{values:?}");
        let raw = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(name, data_type::INT64, &[values.len()], raw)
    }

    /// A float constant; equal names mean equal values.
    pub(super) fn floats(&mut self, name: &str, values: &[f32], dims: &[usize]) -> Value {
        let raw = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(name.to_owned(), data_type::FLOAT, dims, raw)
    }

    /// A 32-bit integer constant.
    pub(super) fn short_ints(&mut self, name: &str, values: &[i32], dims: &[usize]) -> Value {
        let raw = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(name.to_owned(), data_type::INT32, dims, raw)
    }

    /// A half-precision constant in the model itself.
    pub(super) fn halves(&mut self, name: &str, values: &[f32], dims: &[usize]) -> Value {
        self.constant(
            name.to_owned(),
            data_type::FLOAT16,
            dims,
            half_bytes(values),
        )
    }

    fn constant(&mut self, name: String, element: i32, dims: &[usize], raw: Vec<u8>) -> Value {
        if let Some(known) = self.initializers.get(&name) {
            return known.clone();
        }
        let value = Value::new(&name, Kind::of(element));
        self.graph.initializer.push(TensorProto {
            dims: signed(dims),
            data_type: element,
            name: name.clone(),
            raw_data: Some(raw),
            ..TensorProto::default()
        });
        self.initializers.insert(name, value.clone());
        value
    }

    /// A weight in the precision that the graph computes in, with the dimensions `dims`, which may differ
    /// from the stored ones as long as the number of values is the same.
    pub(super) fn weight(&mut self, name: &str, dims: &[usize]) -> Result<Value, BuildError> {
        let count = dims.iter().product();
        let value = self.weight_part(name, name, 0, count, dims)?;
        Ok(self.in_precision(&value))
    }

    /// The same as float32 whatever the graph computes in.
    fn float_weight(&mut self, name: &str, dims: &[usize]) -> Result<Value, BuildError> {
        let count = dims.iter().product();
        let value = self.weight_part(name, name, 0, count, dims)?;
        Ok(self.cast_float(&value))
    }

    /// `rows` rows of a weight from `first_row` on, in the precision that the graph computes in; `part` names
    /// the piece.
    pub(super) fn weight_rows(
        &mut self,
        name: &str,
        part: &str,
        first_row: usize,
        dims: &[usize],
    ) -> Result<Value, BuildError> {
        let shape = self.weights.shape(name)?;
        let row: usize = shape.iter().skip(1).product();
        let total: usize = shape.iter().product();
        let unique = format!("{name}/{part}");
        let value = self.weight_part(name, &unique, first_row * row, total, dims)?;
        Ok(self.in_precision(&value))
    }

    /// A weight in its stored type, read into memory, for weights that the runtime uses as they are.
    pub(super) fn resident_weight(
        &mut self,
        name: &str,
        dims: &[usize],
    ) -> Result<Value, BuildError> {
        let count = dims.iter().product();
        self.initializer(name, name, 0, count, dims, u64::MAX)
    }

    fn weight_part(
        &mut self,
        name: &str,
        unique: &str,
        first: usize,
        total: usize,
        dims: &[usize],
    ) -> Result<Value, BuildError> {
        if let Some(known) = self.initializers.get(unique) {
            return Ok(known.clone());
        }
        let value = self.initializer(name, unique, first, total, dims, RESIDENT_BYTES)?;
        self.initializers.insert(unique.to_owned(), value.clone());
        Ok(value)
    }

    /// As float32; nothing is added where it is that already.
    pub(super) fn cast_float(&mut self, value: &Value) -> Value {
        self.cast(value, Kind::Float)
    }

    /// In the precision that the graph computes in.
    pub(super) fn in_precision(&mut self, value: &Value) -> Value {
        match self.options.precision {
            Precision::Float => self.cast(value, Kind::Float),
            Precision::Half { .. } => self.cast(value, Kind::Half),
        }
    }

    fn cast(&mut self, value: &Value, kind: Kind) -> Value {
        if value.kind == kind {
            return value.clone();
        }
        let key = (value.clone(), kind);
        if let Some(known) = self.casts.get(&key) {
            return known.clone();
        }
        let element = if kind == Kind::Half {
            data_type::FLOAT16
        } else {
            data_type::FLOAT
        };
        let to = [("to", Attribute::Int(i64::from(element)))];
        let mut cast = self.node("Cast", &[value], &to);
        cast.kind = kind;
        self.casts.insert(key, cast.clone());
        cast
    }

    /// The initializer for values `first..` of a stored tensor of `total` values, in its stored type. Up to
    /// `resident_bytes` are read from the file.
    fn initializer(
        &mut self,
        name: &str,
        unique: &str,
        first: usize,
        total: usize,
        dims: &[usize],
        resident_bytes: u64,
    ) -> Result<Value, BuildError> {
        let stored = self.weights.get(name)?;
        let count: usize = dims.iter().product();
        let stored_count: usize = stored.shape.iter().product();
        if count == 0 || stored_count != total || first + count > total {
            return Err(BuildError::Shape {
                name: self.weights.full(name),
                shape: stored.shape.clone(),
                wanted: format!("{total} values for {dims:?}"),
            });
        }
        let mut tensor = TensorProto {
            dims: signed(dims),
            name: unique.to_owned(),
            ..TensorProto::default()
        };
        if let Some(values) = self.weights.replacement(name) {
            tensor.data_type = data_type::FLOAT;
            let part = &values[first..first + count];
            tensor.raw_data = Some(part.iter().flat_map(|v| v.to_le_bytes()).collect());
        } else {
            match (self.options.storage, self.weights.inline(name)) {
                (Storage::External, Some(bytes)) => {
                    let size = stored.stored_type.size_bytes() as usize;
                    tensor.data_type = element_of(stored.stored_type, name)?;
                    tensor.raw_data = Some(bytes[first * size..(first + count) * size].to_vec());
                }
                (Storage::External, None)
                    if count as u64 * stored.stored_type.size_bytes() <= resident_bytes =>
                {
                    let size = stored.stored_type.size_bytes();
                    let bytes =
                        self.weights
                            .read_range(name, first as u64 * size, count as u64 * size)?;
                    tensor.data_type = element_of(stored.stored_type, name)?;
                    tensor.raw_data = Some(bytes);
                }
                (Storage::External, None) => {
                    let size = stored.stored_type.size_bytes();
                    tensor.data_type = element_of(stored.stored_type, name)?;
                    tensor.data_location = Some(1);
                    let file = self.weights.path().file_name().unwrap_or_default();
                    tensor.external_data = [
                        ("location", file.to_string_lossy().into_owned()),
                        ("offset", (stored.offset + first as u64 * size).to_string()),
                        ("length", (count as u64 * size).to_string()),
                    ]
                    .map(|(key, value)| StringPair {
                        key: key.to_owned(),
                        value,
                    })
                    .into();
                }
                (Storage::InlineHalf, _) => {
                    let values = self.weights.read_f32(name)?;
                    tensor.data_type = data_type::FLOAT16;
                    tensor.raw_data = Some(half_bytes(&values[first..first + count]));
                }
            }
        }
        let kind = Kind::of(tensor.data_type);
        self.graph.initializer.push(tensor);
        Ok(Value::new(unique, kind))
    }

    // ---- arithmetic ----------------------------------------------------------------------------

    pub(super) fn add(&mut self, a: &Value, b: &Value) -> Value {
        self.node("Add", &[a, b], &[])
    }

    pub(super) fn mul(&mut self, a: &Value, b: &Value) -> Value {
        self.node("Mul", &[a, b], &[])
    }

    pub(super) fn concat(&mut self, values: &[&Value], axis: i64) -> Value {
        self.node("Concat", values, &[("axis", Attribute::Int(axis))])
    }

    pub(super) fn transpose(&mut self, value: &Value, order: &[i64]) -> Value {
        let order = Attribute::Ints(order.to_vec());
        self.node("Transpose", &[value], &[("perm", order)])
    }

    pub(super) fn reshape(&mut self, value: &Value, shape: &Value) -> Value {
        self.node("Reshape", &[value, shape], &[])
    }

    /// Reshape to constant dimensions; 0 keeps one, -1 is inferred.
    pub(super) fn reshape_to(&mut self, value: &Value, shape: &[i64]) -> Value {
        let shape = self.ints(shape);
        self.reshape(value, &shape)
    }

    pub(super) fn shape_of(&mut self, value: &Value) -> Value {
        self.node("Shape", &[value], &[])
    }

    /// Dimensions `start..end` of a value's shape.
    pub(super) fn dims_of(&mut self, value: &Value, start: i64, end: i64) -> Value {
        let range = [
            ("start", Attribute::Int(start)),
            ("end", Attribute::Int(end)),
        ];
        self.node("Shape", &[value], &range)
    }

    /// `x * sigmoid(x)`.
    pub(super) fn silu(&mut self, x: &Value) -> Value {
        self.quick_gelu(x, 1.0)
    }

    /// `x * sigmoid(alpha x)`.
    pub(super) fn quick_gelu(&mut self, x: &Value, alpha: f32) -> Value {
        let alpha = [("alpha", Attribute::Float(alpha))];
        self.node_in(MICROSOFT, "QuickGelu", &[Some(x)], &alpha)
    }

    /// The exact Gaussian error linear unit.
    pub(super) fn gelu(&mut self, x: &Value) -> Value {
        self.node_in(MICROSOFT, "Gelu", &[Some(x)], &[])
    }

    // ---- layers --------------------------------------------------------------------------------

    /// `x [n, in]` → `[n, out]`. The stored weight is `[out, in]` or a 1x1 kernel.
    pub(super) fn linear(&mut self, x: &Value, layer: &str) -> Result<Value, BuildError> {
        let name = format!("{layer}.weight");
        let (out, width) = (self.weights.dim(&name, 0)?, self.weights.dim(&name, 1)?);
        let weight = self.weight(&name, &[out, width])?;
        let bias = self.optional_bias(layer, out)?;
        let y = self.linear_node(x, &weight, bias.as_ref(), [out, width]);
        Ok(self.adapted_linear(x, y, layer, width, out))
    }

    /// Rows `first..first + out` of a joined projection, as a linear layer of its own.
    /// `weight` and `bias` are full names; `part` is appended to `layer` in the adapter's name.
    pub(super) fn linear_rows(
        &mut self,
        x: &Value,
        joined: &JoinedLinear<'_>,
        part: &str,
        first: usize,
        out: usize,
    ) -> Result<Value, BuildError> {
        let width = self.weights.dim(joined.weight, 1)?;
        let weight = self.weight_rows(joined.weight, part, first, &[out, width])?;
        let bias = if self.weights.has(joined.bias) {
            Some(self.weight_rows(joined.bias, part, first, &[out])?)
        } else {
            None
        };
        let y = self.linear_node(x, &weight, bias.as_ref(), [out, width]);
        let layer = format!("{}.{part}", joined.layer);
        Ok(self.adapted_linear(x, y, &layer, width, out))
    }

    fn linear_node(
        &mut self,
        x: &Value,
        weight: &Value,
        bias: Option<&Value>,
        [out, width]: [usize; 2],
    ) -> Value {
        if self.suits_matrix_unit(out, width) {
            let inputs = [Some(x), Some(weight), bias];
            return self.node_in(
                matrix_operators::DOMAIN,
                matrix_operators::LINEAR,
                &inputs,
                &[],
            );
        }
        self.gemm(x, weight, bias)
    }

    /// Whether a layer of so many outputs and inputs is one for the matrix unit.
    fn suits_matrix_unit(&self, out: usize, width: usize) -> bool {
        self.options.matrix_unit
            && self.options.precision == Precision::Float
            && matrix_operators::fits(out, width)
    }

    pub(super) fn gemm(&mut self, x: &Value, weight: &Value, bias: Option<&Value>) -> Value {
        let transposed = [("transB", Attribute::Int(1))];
        self.node_in(ONNX, "Gemm", &[Some(x), Some(weight), bias], &transposed)
    }

    fn optional_bias(&mut self, layer: &str, out: usize) -> Result<Option<Value>, BuildError> {
        let name = format!("{layer}.bias");
        if self.weights.has(&name) {
            Ok(Some(self.weight(&name, &[out])?))
        } else {
            Ok(None)
        }
    }

    fn adapted_linear(
        &mut self,
        x: &Value,
        y: Value,
        layer: &str,
        width: usize,
        out: usize,
    ) -> Value {
        if !self.weights.is_adapted(layer) {
            return y;
        }
        let port = AdapterPort {
            layer: layer.to_owned(),
            down_shape: vec![width],
            out,
        };
        let float = data_type::FLOAT;
        let rank = Dim::Free("rank");
        let down = self.input(&port.down_input(), float, &[rank, Dim::Fixed(width)]);
        let up = self.input(&port.up_input(), float, &[Dim::Fixed(out), rank]);
        self.adapters.push(port);
        let inner = self.gemm(x, &down, None);
        self.gemm(&inner, &up, Some(&y))
    }

    /// A convolution with the stored kernel; `padding` on all four sides.
    pub(super) fn conv(
        &mut self,
        x: &Value,
        layer: &str,
        stride: i64,
        padding: i64,
    ) -> Result<Value, BuildError> {
        if self.options.tiling && padding > 0 {
            let wrapped = self.wrap(x, padding);
            return self.conv_with_pads(&wrapped, layer, stride, [0; 4]);
        }
        self.conv_with_pads(x, layer, stride, [padding; 4])
    }

    /// A convolution with the stored kernel; `pads` are zeros at the top, left, bottom and right.
    pub(super) fn conv_with_pads(
        &mut self,
        x: &Value,
        layer: &str,
        stride: i64,
        pads: [i64; 4],
    ) -> Result<Value, BuildError> {
        let name = format!("{layer}.weight");
        let shape = self.weights.shape(&name)?.to_vec();
        let [out, width, kh, kw] = shape[..] else {
            return Err(BuildError::Shape {
                name: self.weights.full(&name),
                shape,
                wanted: "[out, in, height, width]".to_owned(),
            });
        };
        let weight = self.weight(&name, &shape)?;
        let bias = self.optional_bias(layer, out)?;
        let sizes = [
            ("kernel_shape", Attribute::Ints(vec![kh as i64, kw as i64])),
            ("pads", Attribute::Ints(pads.to_vec())),
            ("strides", Attribute::Ints(vec![stride; 2])),
        ];
        let inputs = [Some(x), Some(&weight), bias.as_ref()];
        let keeps_size = kh == kw && matches!(kh, 1 | 3) && pads == [(kh / 2) as i64; 4];
        let y = if stride == 1 && keeps_size && self.suits_matrix_unit(out, width) {
            self.node_in(
                matrix_operators::DOMAIN,
                matrix_operators::CONVOLUTION,
                &inputs,
                &[],
            )
        } else {
            self.node_in(ONNX, "Conv", &inputs, &sizes)
        };
        if !self.weights.is_adapted(layer) {
            return Ok(y);
        }
        let port = AdapterPort {
            layer: layer.to_owned(),
            down_shape: vec![width, kh, kw],
            out,
        };
        let float = data_type::FLOAT;
        let rank = Dim::Free("rank");
        let one = Dim::Fixed(1);
        let down_dims = [rank, Dim::Fixed(width), Dim::Fixed(kh), Dim::Fixed(kw)];
        let down = self.input(&port.down_input(), float, &down_dims);
        let up = self.input(&port.up_input(), float, &[Dim::Fixed(out), rank, one, one]);
        self.adapters.push(port);
        let inner = self.node("Conv", &[x, &down], &sizes);
        let unit = [("kernel_shape", Attribute::Ints(vec![1, 1]))];
        let change = self.node("Conv", &[&inner, &up], &unit);
        Ok(self.add(&y, &change))
    }

    fn wrap(&mut self, x: &Value, padding: i64) -> Value {
        let p = padding;
        let pads = self.ints(&[0, 0, p, p, 0, 0, p, p]);
        self.node("Pad", &[x, &pads], &[("mode", Attribute::Text("wrap"))])
    }

    /// Group normalisation with 32 groups: the groups become the channels of an instance
    /// normalisation, then the per-channel scale and shift. In float32 whatever the graph computes in, since
    /// sums of squares overflow half precision.
    pub(super) fn group_norm(
        &mut self,
        x: &Value,
        layer: &str,
        eps: f32,
    ) -> Result<Value, BuildError> {
        let name = format!("{layer}.weight");
        let channels = self.weights.dim(&name, 0)?;
        let x = self.cast_float(x);
        let groups = self.reshape_to(&x, &[0, 32, -1]);
        let ones = self.floats("ones_32", &[1.0; 32], &[32]);
        let zeros = self.floats("zeros_32", &[0.0; 32], &[32]);
        let eps = [("epsilon", Attribute::Float(eps))];
        let normal = self.node("InstanceNormalization", &[&groups, &ones, &zeros], &eps);
        let shape = self.shape_of(&x);
        let normal = self.reshape(&normal, &shape);
        let scale = self.float_weight(&name, &[channels, 1, 1])?;
        let shift = self.float_weight(&format!("{layer}.bias"), &[channels, 1, 1])?;
        let scaled = self.mul(&normal, &scale);
        let shifted = self.add(&scaled, &shift);
        Ok(self.in_precision(&shifted))
    }

    /// `x` less the mean of each of its 32 groups, for which [`Self::group_norm`] has the same answer,
    /// but without the digits that the runtime loses where a mean is large beside its deviation.
    pub(super) fn centred_groups(&mut self, x: &Value) -> Value {
        let x = self.cast_float(x);
        let groups = self.reshape_to(&x, &[0, 32, -1]);
        let axis = self.ints(&[2]);
        let mean = self.node("ReduceMean", &[&groups, &axis], &[]);
        let centred = self.node("Sub", &[&groups, &mean], &[]);
        let shape = self.shape_of(&x);
        self.reshape(&centred, &shape)
    }

    /// Layer normalisation over the last axis, eps 1e-5.
    pub(super) fn layer_norm(&mut self, x: &Value, layer: &str) -> Result<Value, BuildError> {
        let name = format!("{layer}.weight");
        let width = self.weights.dim(&name, 0)?;
        let scale = self.weight(&name, &[width])?;
        let shift = self.weight(&format!("{layer}.bias"), &[width])?;
        let options = [
            ("axis", Attribute::Int(-1)),
            ("epsilon", Attribute::Float(1e-5)),
        ];
        Ok(self.node("LayerNormalization", &[x, &scale, &shift], &options))
    }

    /// [`Self::attention`] in float32 whatever the graph computes in.
    pub(super) fn float_attention(
        &mut self,
        q: &Value,
        k: &Value,
        v: &Value,
        heads: usize,
        bias: Option<&Value>,
    ) -> Value {
        let [q, k, v] = [q, k, v].map(|value| self.cast_float(value));
        let h = self.attention(&q, &k, &v, heads, bias);
        self.in_precision(&h)
    }

    /// Whether attention that could be computed in half is wanted in float32.
    pub(super) fn wants_float_attention(&self) -> bool {
        self.options.precision
            == Precision::Half {
                float_attention: true,
            }
    }

    /// Scaled dot-product attention, `[batch, tokens, heads * size]` each, scale `size^-0.5`.
    pub(super) fn attention(
        &mut self,
        q: &Value,
        k: &Value,
        v: &Value,
        heads: usize,
        bias: Option<&Value>,
    ) -> Value {
        let heads = [("num_heads", Attribute::Int(heads as i64))];
        let mut inputs = vec![Some(q), Some(k), Some(v)];
        if bias.is_some() {
            inputs.extend([None, None, bias]);
        }
        self.node_in(MICROSOFT, "MultiHeadAttention", &inputs, &heads)
    }

    /// `[b, c, h, w]` → `[b * h * w, c]`.
    pub(super) fn rows_of(&mut self, x: &Value, channels: usize) -> Value {
        let flat = self.reshape_to(x, &[0, channels as i64, -1]);
        let tokens = self.transpose(&flat, &[0, 2, 1]);
        self.reshape_to(&tokens, &[-1, channels as i64])
    }

    /// `[b * n, c]` → `[b, n, c]`; `batch` is a one-value shape.
    pub(super) fn tokens_of(&mut self, rows: &Value, batch: &Value, channels: usize) -> Value {
        let rest = self.ints(&[-1, channels as i64]);
        let shape = self.concat(&[batch, &rest], 0);
        self.reshape(rows, &shape)
    }

    /// `[b * h * w, c]` → the shape of `like`.
    pub(super) fn picture_of(
        &mut self,
        rows: &Value,
        batch: &Value,
        channels: usize,
        like: &Value,
    ) -> Value {
        let tokens = self.tokens_of(rows, batch, channels);
        let flat = self.transpose(&tokens, &[0, 2, 1]);
        let shape = self.shape_of(like);
        self.reshape(&flat, &shape)
    }

    /// Nearest-neighbour enlargement by two.
    pub(super) fn upsample(&mut self, x: &Value) -> Value {
        let scales = self.floats("upsample_scales", &[1.0, 1.0, 2.0, 2.0], &[4]);
        let options = [
            ("mode", Attribute::Text("nearest")),
            (
                "coordinate_transformation_mode",
                Attribute::Text("asymmetric"),
            ),
            ("nearest_mode", Attribute::Text("floor")),
        ];
        self.node_in(ONNX, "Resize", &[Some(x), None, Some(&scales)], &options)
    }
}

/// A projection whose rows belong to several layers (open_clip's `in_proj`).
pub(super) struct JoinedLinear<'n> {
    pub(super) weight: &'n str,
    pub(super) bias: &'n str,
    pub(super) layer: &'n str,
}

/// The `external_data` entries of a tensor.
fn external(location: &str, offset: u64, length: u64) -> Vec<StringPair> {
    [
        ("location", location.to_owned()),
        ("offset", offset.to_string()),
        ("length", length.to_string()),
    ]
    .map(|(key, value)| StringPair {
        key: key.to_owned(),
        value,
    })
    .into()
}

/// Takes large float32 weights out of the model, which says that they are in the checkpoint file: the
/// runtime wants initializers that it gets by value to be external data.
fn take_large(initializers: &mut [TensorProto], weights: &Weights) -> Vec<(String, ArrayD<f32>)> {
    let file = weights.path().file_name().unwrap_or_default();
    let mut taken = Vec::new();
    for tensor in initializers {
        let length = tensor.raw_data.as_ref().map_or(0, Vec::len);
        if tensor.data_type != data_type::FLOAT || length < BY_VALUE_BYTES {
            continue;
        }
        let raw = tensor.raw_data.take().unwrap_or_default();
        let values = raw
            .as_chunks::<4>()
            .0
            .iter()
            .map(|b| f32::from_le_bytes(*b));
        let dims: Vec<usize> = tensor.dims.iter().map(|dim| *dim as usize).collect();
        let values = ArrayD::from_shape_vec(IxDyn(&dims), values.collect());
        tensor.external_data = external(&file.to_string_lossy(), 0, length as u64);
        tensor.data_location = Some(1);
        taken.push((
            tensor.name.clone(),
            values.expect("the model has the values' shape"),
        ));
    }
    taken
}

/// Moves large inline weights to the side file when all together are too many for one message.
fn spill(initializers: &mut [TensorProto]) -> Vec<u8> {
    let inline = |tensor: &TensorProto| tensor.raw_data.as_ref().map_or(0, Vec::len);
    let total: usize = initializers.iter().map(inline).sum();
    let mut side_data = Vec::new();
    if total <= INLINE_LIMIT_BYTES {
        return side_data;
    }
    for tensor in initializers.iter_mut().filter(|t| inline(t) > 4096) {
        let raw = tensor.raw_data.take().unwrap_or_default();
        // Runtimes map the file, so pieces begin at page boundaries.
        side_data.resize(side_data.len().next_multiple_of(4096), 0);
        tensor.external_data = external(SIDE_FILE, side_data.len() as u64, raw.len() as u64);
        tensor.data_location = Some(1);
        side_data.extend_from_slice(&raw);
    }
    side_data
}

fn value_info(name: &str, element: i32, dims: &[Dim]) -> ValueInfo {
    let dims = dims
        .iter()
        .map(|dim| Dimension {
            value: Some(match dim {
                Dim::Free(name) => dimension::Value::Free((*name).to_owned()),
                Dim::Fixed(size) => dimension::Value::Fixed(*size as i64),
            }),
        })
        .collect();
    ValueInfo {
        name: name.to_owned(),
        kind: Some(TypeProto {
            tensor: Some(TensorType {
                element,
                shape: Some(TensorShape { dims }),
            }),
        }),
    }
}

/// An input or output as a session tells it.
fn port(value: &ValueInfo) -> (String, Input) {
    let tensor = value.kind.as_ref().and_then(|kind| kind.tensor.as_ref());
    let shape = tensor.and_then(|tensor| tensor.shape.as_ref());
    let dims = shape.map_or(&[][..], |shape| &shape.dims);
    let port = Input {
        is_integer: tensor.is_some_and(|tensor| tensor.element == data_type::INT64),
        dims: dims
            .iter()
            .map(|dim| match &dim.value {
                Some(dimension::Value::Fixed(size)) => usize::try_from(*size).ok(),
                Some(dimension::Value::Free(_)) | None => None,
            })
            .collect(),
    };
    (value.name.clone(), port)
}

fn attribute(name: &str, value: &Attribute) -> AttributeProto {
    let mut proto = AttributeProto {
        name: name.to_owned(),
        ..AttributeProto::default()
    };
    match value {
        Attribute::Float(number) => {
            proto.f = Some(*number);
            proto.kind = 1;
        }
        Attribute::Int(number) => {
            proto.i = Some(*number);
            proto.kind = 2;
        }
        Attribute::Text(text) => {
            proto.s = Some(text.as_bytes().to_vec());
            proto.kind = 3;
        }
        Attribute::Ints(numbers) => {
            proto.ints.clone_from(numbers);
            proto.kind = 7;
        }
    }
    proto
}

fn signed(dims: &[usize]) -> Vec<i64> {
    dims.iter().map(|dim| *dim as i64).collect()
}

fn half_bytes(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| f16::from_f32(*value).to_le_bytes())
        .collect()
}

fn element_of(stored: StoredType, name: &str) -> Result<i32, BuildError> {
    Ok(match stored {
        StoredType::F64 => data_type::DOUBLE,
        StoredType::F32 => data_type::FLOAT,
        StoredType::F16 => data_type::FLOAT16,
        StoredType::Bf16 => data_type::BFLOAT16,
        StoredType::I64 => data_type::INT64,
        StoredType::I32 => data_type::INT32,
        StoredType::I16 => data_type::INT16,
        StoredType::I8 => data_type::INT8,
        StoredType::U8 => data_type::UINT8,
        StoredType::Bool => data_type::BOOL,
        StoredType::Other { .. } => {
            return Err(BuildError::Unsupported {
                part: "weights",
                reason: format!(
                    "\"{name}\" is stored in an element type without a graph equivalent"
                ),
            });
        }
    })
}
