//! The weights that an ONNX file keeps in other files beside it (`TensorProto.external_data`).
//!
//! The runtime maps such a file and reads from the mapping while it runs, so that a file cut short
//! while loaded would end the process. Here the values are read into memory instead. Places outside
//! the model's folder (`..`, absolute paths, links that lead out) are refused, whatever the version of
//! the runtime does with them. Only the schema's messages that can hold a tensor are read.

use std::collections::HashSet;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use bytemuck::Pod;
use half::vec::HalfBitsVecExt as _;
use half::{bf16, f16};
use ort::value::{DynValue, Tensor as OrtTensor};
use prost::Message as _;

use super::matrix_operators;

// Values are little-endian in the files, and are read as they lie there.
const _: () = assert!(cfg!(target_endian = "little"));

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// The largest model that protobuf can hold.
const MAX_MODEL_BYTES: u64 = 1 << 31;

#[derive(Clone, PartialEq, prost::Message)]
struct Model {
    #[prost(message, optional, tag = "7")]
    graph: Option<Graph>,
    #[prost(message, repeated, tag = "25")]
    functions: Vec<Function>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Graph {
    #[prost(message, repeated, tag = "1")]
    node: Vec<Node>,
    #[prost(message, repeated, tag = "5")]
    initializer: Vec<Tensor>,
    #[prost(message, repeated, tag = "15")]
    sparse_initializer: Vec<Sparse>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Function {
    #[prost(message, repeated, tag = "7")]
    node: Vec<Node>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Node {
    #[prost(string, repeated, tag = "1")]
    input: Vec<String>,
    #[prost(string, tag = "7")]
    domain: String,
    #[prost(message, repeated, tag = "5")]
    attribute: Vec<Attribute>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Attribute {
    #[prost(message, optional, tag = "5")]
    tensor: Option<Tensor>,
    #[prost(message, optional, tag = "6")]
    graph: Option<Graph>,
    #[prost(message, repeated, tag = "10")]
    tensors: Vec<Tensor>,
    #[prost(message, repeated, tag = "11")]
    graphs: Vec<Graph>,
    #[prost(message, optional, tag = "22")]
    sparse: Option<Sparse>,
    #[prost(message, repeated, tag = "23")]
    sparses: Vec<Sparse>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Sparse {
    #[prost(message, optional, tag = "1")]
    values: Option<Tensor>,
    #[prost(message, optional, tag = "2")]
    indices: Option<Tensor>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Tensor {
    #[prost(int64, repeated, tag = "1")]
    dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    data_type: i32,
    #[prost(string, tag = "8")]
    name: String,
    #[prost(message, repeated, tag = "13")]
    external_data: Vec<Pair>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Pair {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

/// The values of the graph's initializers that lie in other files, by name; those of element types
/// that graphs of ours never have are left to the runtime.
///
/// # Errors
/// One sentence: the file is no model, or names data outside its folder or past the end of a file.
pub(super) fn read(path: &Path) -> Result<Vec<(String, DynValue)>, String> {
    let size = fs_err::metadata(path)
        .map_err(|error| error.to_string())?
        .len();
    if size > MAX_MODEL_BYTES {
        return Err(format!(
            "it has {size} bytes, more than a model without external data can have"
        ));
    }
    let bytes = fs_err::read(path).map_err(|error| error.to_string())?;
    let model =
        Model::decode(bytes.as_slice()).map_err(|error| format!("it is no model: {error}"))?;
    drop(bytes);
    let folder = path.parent().unwrap_or(Path::new("."));
    let places = Places {
        folder: fs_err::canonicalize(folder).map_err(|error| error.to_string())?,
    };
    for node in model.functions.iter().flat_map(|function| &function.node) {
        places.check_node(node)?;
    }
    let Some(graph) = &model.graph else {
        return Ok(Vec::new());
    };
    places.check_graph(graph)?;
    graph
        .initializer
        .iter()
        .filter(|tensor| !tensor.external_data.is_empty())
        .filter_map(|tensor| places.value(tensor).transpose())
        .collect()
}

/// Which weights the runtime neither copies nor lays out anew.
#[derive(Debug, Clone, Copy)]
pub(super) struct InPlace {
    /// Of at least three dimensions: without a layout of its own for convolutions the runtime uses them where they lie.
    pub(super) convolutions: bool,
    /// Of the operators in [`matrix_operators`].
    pub(super) own_layers: bool,
}

/// The float32 weights of the kinds `wanted` that the graph `model` has in files of `folder`, by name. So many `threads` read
/// them.
///
/// # Errors
/// As [`read`].
pub(super) fn read_in_place(
    model: &[u8],
    folder: &Path,
    wanted: InPlace,
    threads: usize,
) -> Result<Vec<(String, DynValue)>, String> {
    /// `TensorProto.DataType.FLOAT`
    const FLOAT: i32 = 1;
    if !wanted.convolutions && !wanted.own_layers {
        return Ok(Vec::new());
    }
    let model = Model::decode(model).map_err(|error| format!("it is no model: {error}"))?;
    let places = Places {
        folder: fs_err::canonicalize(folder).map_err(|error| error.to_string())?,
    };
    let graph = model.graph.unwrap_or_default();
    let own: HashSet<&str> = graph
        .node
        .iter()
        .filter(|node| wanted.own_layers && node.domain == matrix_operators::DOMAIN)
        .flat_map(|node| node.input.iter().map(String::as_str))
        .collect();
    let is_wanted = |tensor: &&Tensor| {
        tensor.data_type == FLOAT
            && (wanted.convolutions && tensor.dims.len() > 2 || own.contains(tensor.name.as_str()))
            // What lies at no place of the file was handed over by value.
            && tensor.text("offset").is_some_and(|offset| offset != "0")
    };
    let wanted: Vec<&Tensor> = graph.initializer.iter().filter(is_wanted).collect();
    // Most of the time goes into the first touch of the memory, which threads can share.
    let next = AtomicUsize::new(0);
    let read = || -> Result<Vec<(String, DynValue)>, String> {
        let mine = std::iter::from_fn(|| wanted.get(next.fetch_add(1, Ordering::Relaxed)));
        mine.filter_map(|tensor| places.value(tensor).transpose())
            .collect()
    };
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(read)).collect();
        let mut found = Vec::new();
        for reader in readers {
            let values = reader.join();
            found.extend(values.map_err(|_| "a thread that read weights panicked".to_owned())??);
        }
        Ok(found)
    })
}

struct Places {
    /// The model's folder, links resolved.
    folder: PathBuf,
}

impl Places {
    fn check_graph(&self, graph: &Graph) -> Result<(), String> {
        for tensor in &graph.initializer {
            self.file_of(tensor)?;
        }
        for sparse in &graph.sparse_initializer {
            self.check_sparse(sparse)?;
        }
        graph.node.iter().try_for_each(|node| self.check_node(node))
    }

    fn check_node(&self, node: &Node) -> Result<(), String> {
        for attribute in &node.attribute {
            for tensor in attribute.tensor.iter().chain(&attribute.tensors) {
                self.file_of(tensor)?;
            }
            for sparse in attribute.sparse.iter().chain(&attribute.sparses) {
                self.check_sparse(sparse)?;
            }
            for graph in attribute.graph.iter().chain(&attribute.graphs) {
                self.check_graph(graph)?;
            }
        }
        Ok(())
    }

    fn check_sparse(&self, sparse: &Sparse) -> Result<(), String> {
        for tensor in sparse.values.iter().chain(&sparse.indices) {
            self.file_of(tensor)?;
        }
        Ok(())
    }

    /// The file that holds a tensor, links resolved; `None`: the model itself.
    fn file_of(&self, tensor: &Tensor) -> Result<Option<PathBuf>, String> {
        let Some(location) = tensor.text("location") else {
            return Ok(None);
        };
        let outside = || format!("its external data \"{location}\" lies outside its folder");
        let relative = Path::new(location);
        let plain = relative
            .components()
            .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        if !plain {
            return Err(outside());
        }
        let file = fs_err::canonicalize(self.folder.join(relative))
            .map_err(|error| format!("its external data is missing: {error}"))?;
        if file.starts_with(&self.folder) {
            Ok(Some(file))
        } else {
            Err(outside())
        }
    }

    fn value(&self, tensor: &Tensor) -> Result<Option<(String, DynValue)>, String> {
        let Some(path) = self.file_of(tensor)? else {
            return Ok(None);
        };
        let Some(element_bytes) = element_bytes(tensor.data_type) else {
            return Ok(None);
        };
        let told = || format!("the external data of \"{}\"", tensor.name);
        let length = tensor
            .dims
            .iter()
            .try_fold(element_bytes, |size, dim| {
                size.checked_mul(u64::try_from(*dim).ok()?)
            })
            .ok_or_else(|| format!("{} has no size that can be", told()))?;
        if length == 0 {
            return Ok(None);
        }
        let stated = tensor.number("length")?.unwrap_or(length);
        if stated != length {
            return Err(format!(
                "{} has {stated} bytes, its shape needs {length}",
                told()
            ));
        }
        let offset = tensor.number("offset")?.unwrap_or(0);
        let mut file = fs_err::File::open(&path).map_err(|error| error.to_string())?;
        let size = file.metadata().map_err(|error| error.to_string())?.len();
        if offset.checked_add(length).is_none_or(|end| end > size) {
            return Err(format!(
                "{} lies past the end of {} (is the download complete?)",
                told(),
                path.display()
            ));
        }
        file.seek(SeekFrom::Start(offset))
            .map_err(|error| error.to_string())?;
        let count = usize::try_from(length / element_bytes).unwrap_or(usize::MAX);
        let value = tensor_of(tensor.data_type, &tensor.dims, count, &mut file)
            .map_err(|error| format!("{} cannot be used: {error}", told()))?;
        Ok(value.map(|value| (tensor.name.clone(), value)))
    }
}

impl Tensor {
    fn text(&self, key: &str) -> Option<&str> {
        let pair = self.external_data.iter().find(|pair| pair.key == key)?;
        Some(&pair.value)
    }

    fn number(&self, key: &str) -> Result<Option<u64>, String> {
        self.text(key)
            .map(|text| {
                text.parse()
                    .map_err(|_| format!("the {key} of \"{}\" is no number: {text}", self.name))
            })
            .transpose()
    }
}

/// Bytes of one value of a `TensorProto.DataType`; `None` for those that are left to the runtime.
fn element_bytes(data_type: i32) -> Option<u64> {
    match data_type {
        2 | 3 => Some(1),
        10 | 16 => Some(2),
        1 | 6 => Some(4),
        7 | 11 => Some(8),
        _ => None,
    }
}

/// A tensor of the next `count` values of `file`, which are read to where they stay.
fn tensor_of(
    data_type: i32,
    dims: &[i64],
    count: usize,
    file: &mut impl Read,
) -> Result<Option<DynValue>, Cause> {
    fn values<T: Pod>(count: usize, file: &mut impl Read) -> std::io::Result<Vec<T>> {
        let mut values = bytemuck::zeroed_vec(count);
        file.read_exact(bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }
    let dims = dims.to_vec();
    Ok(Some(match data_type {
        1 => OrtTensor::from_array((dims, values::<f32>(count, file)?))?.into_dyn(),
        2 => OrtTensor::from_array((dims, values::<u8>(count, file)?))?.into_dyn(),
        3 => OrtTensor::from_array((dims, values::<i8>(count, file)?))?.into_dyn(),
        6 => OrtTensor::from_array((dims, values::<i32>(count, file)?))?.into_dyn(),
        7 => OrtTensor::from_array((dims, values::<i64>(count, file)?))?.into_dyn(),
        10 => OrtTensor::from_array((dims, values::<u16>(count, file)?.reinterpret_into::<f16>()))?
            .into_dyn(),
        11 => OrtTensor::from_array((dims, values::<f64>(count, file)?))?.into_dyn(),
        16 => {
            OrtTensor::from_array((dims, values::<u16>(count, file)?.reinterpret_into::<bf16>()))?
                .into_dyn()
        }
        _ => return Ok(None),
    }))
}
