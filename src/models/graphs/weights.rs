//! One part's view of a weights file: names without the part's prefix.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use super::{BuildError, HypernetworkModules};
use crate::catalogue::{StoredTensor, TensorFile};

/// The tensors under one prefix of a weights file, with replacements for the ones that a merged
/// network changes.
#[derive(Debug, Clone)]
pub struct Weights {
    file: Arc<TensorFile>,
    prefix: String,
    replaced: Arc<HashMap<String, Vec<f32>>>,
    adapted: Arc<BTreeSet<String>>,
    hypernetworks: Arc<[Arc<HypernetworkModules>]>,
}

impl Weights {
    /// The tensors of `file` whose names begin with `prefix`.
    #[must_use]
    pub fn new(file: Arc<TensorFile>, prefix: &str) -> Self {
        Self {
            file,
            prefix: prefix.to_owned(),
            replaced: Arc::default(),
            adapted: Arc::default(),
            hypernetworks: Arc::default(),
        }
    }

    /// The same with other values for some tensors (names without prefix, row-major, same shape).
    #[must_use]
    pub fn with_replaced(mut self, replaced: HashMap<String, Vec<f32>>) -> Self {
        self.replaced = Arc::new(replaced);
        self
    }

    /// The same with two inputs for a low-rank addition at each of these layers.
    #[must_use]
    pub fn with_adapted(mut self, layers: BTreeSet<String>) -> Self {
        self.adapted = Arc::new(layers);
        self
    }

    /// The same with hypernetworks before the keys and values of attention, in this order.
    #[must_use]
    pub fn with_hypernetworks(mut self, hypernetworks: Vec<Arc<HypernetworkModules>>) -> Self {
        self.hypernetworks = hypernetworks.into();
        self
    }

    /// The hypernetworks of the graph.
    #[must_use]
    pub fn hypernetworks(&self) -> &Arc<[Arc<HypernetworkModules>]> {
        &self.hypernetworks
    }

    /// Whether a layer gets adapter inputs.
    #[must_use]
    pub fn is_adapted(&self, layer: &str) -> bool {
        self.adapted.contains(layer)
    }

    /// The same file under another prefix, without replacements.
    #[must_use]
    pub fn under(&self, prefix: &str) -> Self {
        Self::new(Arc::clone(&self.file), prefix)
    }

    /// Names without the prefix, in file order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.file
            .names()
            .filter_map(|name| name.strip_prefix(self.prefix.as_str()))
    }

    /// Whether the file is still the one whose table of contents this is.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.file.is_current()
    }

    /// Memory that all of them take as float32.
    #[must_use]
    pub fn float_bytes(&self) -> u64 {
        self.file
            .iter()
            .filter(|(name, _)| name.starts_with(&self.prefix))
            .map(|(_, tensor)| 4 * tensor.shape.iter().product::<usize>() as u64)
            .sum()
    }

    /// The file that holds the tensors.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Whether a tensor exists.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.file.get(&self.full(name)).is_some()
    }

    /// Whether any tensor's name begins so.
    #[must_use]
    pub fn has_any(&self, beginning: &str) -> bool {
        let full = self.full(beginning);
        self.file.names().any(|name| name.starts_with(&full))
    }

    /// A tensor's place.
    ///
    /// # Errors
    /// [`BuildError::Missing`].
    pub fn get(&self, name: &str) -> Result<&StoredTensor, BuildError> {
        let full = self.full(name);
        self.file
            .get(&full)
            .ok_or(BuildError::Missing { name: full })
    }

    /// A tensor's shape.
    ///
    /// # Errors
    /// [`BuildError::Missing`].
    pub fn shape(&self, name: &str) -> Result<&[usize], BuildError> {
        Ok(&self.get(name)?.shape)
    }

    /// The length of one axis.
    ///
    /// # Errors
    /// [`BuildError::Missing`], or [`BuildError::Shape`] when there is no such axis.
    pub fn dim(&self, name: &str, axis: usize) -> Result<usize, BuildError> {
        let shape = self.shape(name)?;
        shape.get(axis).copied().ok_or_else(|| BuildError::Shape {
            name: self.full(name),
            shape: shape.to_vec(),
            wanted: format!("more than {axis} axes"),
        })
    }

    /// The values that a merged network gave a tensor.
    #[must_use]
    pub fn replacement(&self, name: &str) -> Option<&[f32]> {
        self.replaced.get(name).map(Vec::as_slice)
    }

    /// The row-major bytes of a tensor that does not lie in the file as it is.
    #[must_use]
    pub fn inline(&self, name: &str) -> Option<&[u8]> {
        self.file.inline(&self.full(name))
    }

    /// `length` stored bytes of a tensor from `first` on.
    ///
    /// # Errors
    /// When the tensor is missing or cannot be read.
    pub fn read_range(&self, name: &str, first: u64, length: u64) -> Result<Vec<u8>, BuildError> {
        Ok(self.file.read_range(&self.full(name), first, length)?)
    }

    /// A tensor's values as float32, replacements included.
    ///
    /// # Errors
    /// When the tensor is missing or cannot be read.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, BuildError> {
        match self.replaced.get(name) {
            Some(values) => Ok(values.clone()),
            None => Ok(self.file.read_f32(&self.full(name))?),
        }
    }

    /// The name with the prefix, as it stands in the file.
    #[must_use]
    pub fn full(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}
