//! Reads what `torch.save` wrote (`.pt`, `.pth`, `.ckpt`, `.bin`) without running any of it.
//!
//! Both formats of torch are understood: the zip archive (`data.pkl`, `data/KEY`, `byteorder`) and
//! the older sequence of pickles followed by raw storages. The pickle machine knows the operations
//! and the globals that tensors, dictionaries, lists, numbers and text need; what trainers leave
//! beside them becomes empty shells; anything else is refused by its name. Sizes that a file claims
//! are checked against its real size before anything is allocated.
//!
//! Storages that lie in the file as they are stay there; only packed (deflated) ones and tensors in
//! another than row-major order are read into memory. Left out: TorchScript, torch's tar files from
//! before 2017, sparse and quantised tensors.

mod machine;
mod zip_directory;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indexmap::IndexMap;
use parking_lot::Mutex;

use self::machine::{Node, NodeId, Program, StorageSpec, TensorSpec};
use self::zip_directory::{Member, ZipDirectory, read_at};
use super::tensor_file::{self, StoredTensor, StoredType, TensorFile, TensorFileError};

/// The longest pickle that is read. Real ones have a few megabytes.
const MAX_PICKLE_BYTES: u64 = 64 << 20;
/// What a file may become once unpacked: this, and so many times its own size.
const MAX_UNPACKED_BYTES: u64 = 64 << 20;
const MAX_UNPACKED_TIMES: u64 = 16;
/// `torch.serialization.MAGIC_NUMBER`, as the first pickle of the older format has it.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
/// Where a saved dictionary may keep the tensors that matter, in the order of preference.
const WRAPPERS: [&str; 6] = [
    "state_dict",
    "params_ema",
    "params-ema",
    "params",
    "model",
    "net",
];

/// Why a torch file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PickleError {
    #[error("it cannot be read: {0}")]
    Io(#[from] std::io::Error),
    #[error("it is no file that torch saved")]
    NotTorch,
    #[error("it is a TorchScript program; only files of weights can be used")]
    TorchScript,
    #[error("it ends early (is the download complete?)")]
    Truncated,
    #[error("it asks for {0}, which weights do not need; nothing of the file was run")]
    Global(String),
    #[error(
        "it uses the pickle operation {0}, which weights do not need; nothing of the file was run"
    )]
    Operation(String),
    #[error("it needs more than {limit} values, which is more than any checkpoint has")]
    TooManyItems { limit: usize },
    #[error("a part of it needs more than {limit} bytes of memory")]
    TooLarge { limit: u64 },
    #[error("it is damaged: {0}")]
    Damaged(String),
}

/// Where a storage's bytes are.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// From this offset of the file on.
    Plain(u64),
    /// In a deflated member of the archive.
    Packed(Member),
}

/// A file that torch saved, with everything in it but the tensors' values.
#[derive(Debug)]
pub struct TorchFile {
    path: PathBuf,
    program: Program,
    /// One a storage of the program.
    places: Vec<Place>,
    archive: Option<ZipDirectory>,
    file_size: u64,
    /// Storages that had to be unpacked, by key.
    unpacked: Mutex<HashMap<String, Arc<[u8]>>>,
}

impl TorchFile {
    /// Reads the structure of a file.
    ///
    /// # Errors
    /// When the file cannot be read, is damaged, or asks for more than tensors need.
    pub fn open(path: &Path) -> Result<Self, TensorFileError> {
        Self::read(path).map_err(|source| TensorFileError::Pickle {
            path: path.display().to_string(),
            source,
        })
    }

    /// Whether a file that begins with these (at least 16) bytes was saved by torch.
    #[must_use]
    pub fn is_torch(beginning: &[u8]) -> bool {
        beginning.starts_with(b"PK\x03\x04") || is_pickle_sequence(beginning)
    }

    fn read(path: &Path) -> Result<Self, PickleError> {
        // Links are resolved so that external data of a graph is found beside the real file.
        let path = fs_err::canonicalize(path)?;
        let mut file = fs_err::File::open(&path)?;
        let file_size = file.metadata()?.len();
        let beginning = read_at(&mut file, 0, file_size.min(32))?;
        let (program, places, archive) = if beginning.starts_with(b"PK\x03\x04") {
            let archive = ZipDirectory::read(&mut file, file_size)?;
            let (program, places) = open_archive(&mut file, &archive)?;
            (program, places, Some(archive))
        } else if is_pickle_sequence(&beginning) {
            let (program, places) = open_sequence(&mut file, file_size)?;
            (program, places, None)
        } else {
            return Err(PickleError::NotTorch);
        };
        Ok(Self {
            path,
            program,
            places,
            archive,
            file_size,
            unpacked: Mutex::default(),
        })
    }

    /// What was saved.
    #[must_use]
    pub fn root(&self) -> Item<'_> {
        Item {
            file: self,
            id: self.program.root,
        }
    }

    /// The dictionary of weights: what was saved, or what is under a known key of it.
    #[must_use]
    pub fn weights(&self) -> Item<'_> {
        let root = self.root();
        WRAPPERS
            .into_iter()
            .filter_map(|key| root.get(key))
            .find(Item::is_dict)
            .unwrap_or(root)
    }

    fn table_of(&self, dict: Item<'_>) -> Result<TensorFile, PickleError> {
        let mut tensors = IndexMap::new();
        let mut inline = HashMap::new();
        let mut copied_bytes = 0;
        for (key, value) in dict.entries() {
            let (Some(name), Some(spec)) = (key.as_text(), value.tensor()) else {
                continue;
            };
            let mut tensor = stored(spec)?;
            if let Some(offset) = self.offset_in_file(spec) {
                tensor.offset = offset;
                inline.remove(name);
            } else {
                copied_bytes += tensor.length_bytes;
                self.check_memory(copied_bytes)?;
                inline.insert(name.to_owned(), self.values(spec)?);
            }
            tensors.insert(name.to_owned(), tensor);
        }
        self.unpacked.lock().clear();
        if tensors.is_empty() {
            return Err(PickleError::Damaged("it holds no named tensors".to_owned()));
        }
        let table = TensorFile::from_parts(self.path.clone(), tensors, BTreeMap::new());
        Ok(table.with_inline(inline))
    }

    fn named(&self, source: PickleError) -> TensorFileError {
        TensorFileError::Pickle {
            path: self.path.display().to_string(),
            source,
        }
    }

    /// Where a tensor lies in the file in row-major order, if it does.
    fn offset_in_file(&self, spec: &TensorSpec) -> Option<u64> {
        let Place::Plain(begin) = self.places[spec.storage] else {
            return None;
        };
        let storage = &self.program.storages[spec.storage];
        let first = storage.first * storage.stored_type.size_bytes();
        spec.is_contiguous()
            .then(|| begin + first + spec.offset * spec.stored_type.size_bytes())
    }

    fn check_memory(&self, needed: u64) -> Result<(), PickleError> {
        let limit = MAX_UNPACKED_BYTES.saturating_add(self.file_size * MAX_UNPACKED_TIMES);
        if needed > limit {
            return Err(PickleError::TooLarge { limit });
        }
        Ok(())
    }

    /// A tensor's stored bytes in row-major order.
    fn values(&self, spec: &TensorSpec) -> Result<Vec<u8>, PickleError> {
        let storage = &self.program.storages[spec.storage];
        let first = storage.first * storage.stored_type.size_bytes();
        let size = spec.stored_type.size_bytes();
        let length = stored(spec)?.length_bytes;
        // Only an expanded tensor, which repeats its elements, is larger than its storage.
        let limit = MAX_UNPACKED_BYTES.max(storage.count * storage.stored_type.size_bytes());
        if length > limit {
            return Err(PickleError::TooLarge { limit });
        }
        if spec.is_contiguous()
            && let Place::Plain(begin) = self.places[spec.storage]
        {
            let mut file = fs_err::File::open(&self.path)?;
            return read_at(&mut file, begin + first + spec.offset * size, length);
        }
        let whole = self.storage_bytes(spec.storage)?;
        let size = size as usize;
        let begin = first as usize + spec.offset as usize * size;
        if spec.is_contiguous() {
            return Ok(whole[begin..begin + length as usize].to_vec());
        }
        let mut bytes = Vec::with_capacity(length as usize);
        let mut index = vec![0_u64; spec.shape.len()];
        for _ in 0..spec.count() {
            let steps: u64 = index.iter().zip(&spec.strides).map(|(i, s)| i * s).sum();
            let at = begin + steps as usize * size;
            bytes.extend_from_slice(&whole[at..at + size]);
            for (place, dim) in index.iter_mut().zip(&spec.shape).rev() {
                *place += 1;
                if *place < *dim {
                    break;
                }
                *place = 0;
            }
        }
        Ok(bytes)
    }

    fn storage_bytes(&self, index: usize) -> Result<Arc<[u8]>, PickleError> {
        let storage = &self.program.storages[index];
        let length = storage.whole_count * storage.stored_type.size_bytes();
        if let Some(known) = self.unpacked.lock().get(&storage.key) {
            return if known.len() as u64 >= length {
                Ok(Arc::clone(known))
            } else {
                Err(PickleError::Truncated)
            };
        }
        self.check_memory(length)?;
        let mut file = fs_err::File::open(&self.path)?;
        let bytes = match (self.places[index], &self.archive) {
            (Place::Packed(member), Some(archive)) => {
                let already: usize = self.unpacked.lock().values().map(|b| b.len()).sum();
                self.check_memory(already as u64 + member.size_bytes)?;
                archive.read_member(&mut file, member, member.size_bytes.max(self.file_size))?
            }
            (Place::Plain(begin), _) => read_at(&mut file, begin, length)?,
            (Place::Packed(_), None) => return Err(PickleError::NotTorch),
        };
        let bytes: Arc<[u8]> = bytes.into();
        let mut unpacked = self.unpacked.lock();
        unpacked.insert(storage.key.clone(), Arc::clone(&bytes));
        Ok(bytes)
    }
}

/// Type, shape and length of a tensor; the offset is 0.
fn stored(spec: &TensorSpec) -> Result<StoredTensor, PickleError> {
    let too_large = || PickleError::Damaged("a tensor's size overflows".to_owned());
    let shape = spec
        .shape
        .iter()
        .map(|dim| usize::try_from(*dim))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| too_large())?;
    let length_bytes = spec
        .shape
        .iter()
        .try_fold(spec.stored_type.size_bytes(), |size, dim| {
            size.checked_mul(*dim)
        })
        .ok_or_else(too_large)?;
    Ok(StoredTensor {
        stored_type: spec.stored_type,
        shape,
        offset: 0,
        length_bytes,
    })
}

fn is_pickle_sequence(beginning: &[u8]) -> bool {
    let [0x80, protocol, rest @ ..] = beginning else {
        return false;
    };
    // From protocol 4 on, FRAME and its length come first.
    let first = if *protocol >= 4 && rest.first() == Some(&0x95) {
        rest.get(9..).unwrap_or_default()
    } else {
        rest
    };
    // LONG1 of ten bytes, as far as they are at hand.
    let [0x8a, 10, number @ ..] = first else {
        return false;
    };
    number.len() >= 3 && number.iter().zip(&MAGIC).all(|(got, want)| got == want)
}

/// The zip archive of torch 1.6 and later.
fn open_archive(
    file: &mut fs_err::File,
    archive: &ZipDirectory,
) -> Result<(Program, Vec<Place>), PickleError> {
    let prefix = archive
        .names()
        .filter_map(|name| name.strip_suffix("data.pkl"))
        .filter(|prefix| prefix.is_empty() || prefix.ends_with('/'))
        .min_by_key(|prefix| prefix.len())
        .ok_or(PickleError::NotTorch)?
        .to_owned();
    if archive.get(&format!("{prefix}constants.pkl")).is_some() {
        return Err(PickleError::TorchScript);
    }
    if let Some(order) = archive.get(&format!("{prefix}byteorder"))
        && archive.read_member(file, order, 64)? != b"little"
    {
        return Err(PickleError::Damaged(
            "its numbers are big-endian".to_owned(),
        ));
    }
    let pickle = archive
        .get(&format!("{prefix}data.pkl"))
        .ok_or(PickleError::NotTorch)?;
    let pickle = archive.read_member(file, pickle, MAX_PICKLE_BYTES)?;
    let (program, _) = machine::run(&pickle)?;
    let mut places = Vec::with_capacity(program.storages.len());
    for storage in &program.storages {
        let name = format!("{prefix}data/{}", storage.key);
        let member = archive
            .get(&name)
            .ok_or_else(|| PickleError::Damaged(format!("it has no member {name}")))?;
        if storage.whole_count * storage.stored_type.size_bytes() > member.size_bytes {
            return Err(PickleError::Truncated);
        }
        let stored = archive.stored_at(file, member)?;
        places.push(stored.map_or(Place::Packed(member), Place::Plain));
    }
    Ok((program, places))
}

/// The older format: magic number, version, facts about the machine, what was saved, the keys of
/// the storages, and for each key its length and its bytes.
fn open_sequence(
    file: &mut fs_err::File,
    file_size: u64,
) -> Result<(Program, Vec<Place>), PickleError> {
    let head = read_at(file, 0, file_size.min(MAX_PICKLE_BYTES))?;
    let mut at = 0;
    let mut next = || {
        let (program, length) = machine::run(&head[at..])?;
        at += length;
        Ok::<_, PickleError>(program)
    };
    let (_magic, _version) = (next()?, next()?);
    let facts = next()?;
    let (program, keys) = (next()?, next()?);
    let little = Item::find(&facts, facts.root, "little_endian");
    if little.is_some_and(|id| facts.nodes[id as usize] == Node::Bool(false)) {
        return Err(PickleError::Damaged(
            "its numbers are big-endian".to_owned(),
        ));
    }
    let mut by_key: HashMap<&str, &StorageSpec> = HashMap::new();
    for storage in &program.storages {
        by_key.insert(&storage.key, storage);
    }
    let Node::Sequence(order) = &keys.nodes[keys.root as usize] else {
        return Err(PickleError::Damaged(
            "it has no list of storages".to_owned(),
        ));
    };
    let mut offset = at as u64;
    let mut found = HashMap::new();
    for key in order {
        let Node::Text(key) = &keys.nodes[*key as usize] else {
            return Err(PickleError::Damaged("a storage without a name".to_owned()));
        };
        let storage = by_key
            .get(key.as_str())
            .ok_or_else(|| PickleError::Damaged(format!("storage {key} belongs to nothing")))?;
        let count = read_at(file, offset, 8)?;
        let count = u64::from_le_bytes(count.try_into().unwrap_or_default());
        let length = count.checked_mul(storage.stored_type.size_bytes());
        let end = length.and_then(|length| (offset + 8).checked_add(length));
        let Some(end) = end.filter(|end| *end <= file_size) else {
            return Err(PickleError::Truncated);
        };
        found.insert(key.clone(), (offset + 8, count));
        offset = end;
    }
    let places = program.storages.iter().map(|storage| {
        let (begin, count) = found
            .get(&storage.key)
            .ok_or_else(|| PickleError::Damaged(format!("it has no storage {}", storage.key)))?;
        if storage.whole_count > *count {
            return Err(PickleError::Truncated);
        }
        Ok(Place::Plain(*begin))
    });
    let places = places.collect::<Result<Vec<_>, _>>()?;
    Ok((program, places))
}

/// One value of a [`TorchFile`].
#[derive(Debug, Clone, Copy)]
pub struct Item<'f> {
    file: &'f TorchFile,
    id: NodeId,
}

impl<'f> Item<'f> {
    fn node(&self) -> &'f Node {
        &self.file.program.nodes[self.id as usize]
    }

    fn at(&self, id: NodeId) -> Self {
        Self {
            file: self.file,
            id,
        }
    }

    #[must_use]
    pub fn as_text(&self) -> Option<&'f str> {
        match self.node() {
            Node::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A whole number, or what stands for one.
    #[must_use]
    pub fn as_int(&self) -> Option<i64> {
        match self.node() {
            Node::Int(number) => Some(*number),
            Node::Bool(value) => Some(i64::from(*value)),
            _ => None,
        }
    }

    /// Any number.
    #[must_use]
    pub fn as_float(&self) -> Option<f64> {
        match self.node() {
            Node::Float(number) => Some(*number),
            _ => self.as_int().map(|number| number as f64),
        }
    }

    #[must_use]
    pub fn as_bool(&self) -> Option<bool> {
        match self.node() {
            Node::Bool(value) => Some(*value),
            _ => None,
        }
    }

    #[must_use]
    pub fn is_none(&self) -> bool {
        matches!(self.node(), Node::None)
    }

    #[must_use]
    pub fn is_dict(&self) -> bool {
        matches!(self.node(), Node::Dict(_))
    }

    /// The class of an object that was not looked into.
    #[must_use]
    pub fn class(&self) -> Option<&'f str> {
        match self.node() {
            Node::Opaque { class, .. } => Some(class),
            _ => None,
        }
    }

    /// The items of a list, tuple or set; nothing for other values.
    pub fn items(&self) -> impl Iterator<Item = Item<'f>> + use<'f> {
        let here = *self;
        let items: &[NodeId] = match self.node() {
            Node::Sequence(items) => items,
            _ => &[],
        };
        items.iter().map(move |id| here.at(*id))
    }

    /// The entries of a dictionary or a torch `ParameterDict`; nothing for other values.
    pub fn entries(&self) -> impl Iterator<Item = (Item<'f>, Item<'f>)> + use<'f> {
        let here = *self;
        dict_entries(&self.file.program, self.id)
            .iter()
            .map(move |(key, value)| (here.at(*key), here.at(*value)))
    }

    /// The value under a text key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Item<'f>> {
        Self::find(&self.file.program, self.id, key).map(|id| self.at(id))
    }

    fn find(program: &Program, dict: NodeId, key: &str) -> Option<NodeId> {
        let is_it = |id: NodeId| matches!(&program.nodes[id as usize], Node::Text(t) if t == key);
        dict_entries(program, dict)
            .iter()
            .rev()
            .find(|(id, _)| is_it(*id))
            .map(|(_, value)| *value)
    }

    fn tensor(&self) -> Option<&'f TensorSpec> {
        match self.node() {
            Node::Tensor(spec) => Some(spec),
            _ => None,
        }
    }

    #[must_use]
    pub fn is_tensor(&self) -> bool {
        self.tensor().is_some()
    }

    /// The table of contents of a dictionary of tensors. Other entries are left out.
    ///
    /// # Errors
    /// When there is no tensor, or one that must be copied cannot be.
    pub fn tensor_table(&self) -> Result<TensorFile, TensorFileError> {
        self.file
            .table_of(*self)
            .map_err(|source| self.file.named(source))
    }

    /// A tensor's shape.
    #[must_use]
    pub fn shape(&self) -> Option<Vec<usize>> {
        let stored = stored(self.tensor()?).ok()?;
        Some(stored.shape)
    }

    /// A tensor's strides, in elements.
    #[must_use]
    pub fn strides(&self) -> Option<&'f [u64]> {
        Some(&self.tensor()?.strides)
    }

    /// A tensor's element type.
    #[must_use]
    pub fn stored_type(&self) -> Option<StoredType> {
        Some(self.tensor()?.stored_type)
    }

    /// A tensor's values as float32, row-major.
    ///
    /// # Errors
    /// When it is no tensor of numbers or the file cannot be read.
    pub fn read_f32(&self) -> Result<Vec<f32>, TensorFileError> {
        let values = self
            .tensor()
            .ok_or_else(|| PickleError::Damaged("a value is no tensor".to_owned()))
            .and_then(|spec| {
                let length = stored(spec)?.length_bytes;
                self.file.check_memory(length)?;
                let bytes = self.file.values(spec)?;
                tensor_file::to_f32(&bytes, spec.stored_type).ok_or_else(|| {
                    PickleError::Damaged("an element type is not understood".to_owned())
                })
            });
        values.map_err(|source| self.file.named(source))
    }
}

/// The entries of a dictionary, or of the `_parameters` in the state of a `ParameterDict`.
fn dict_entries(program: &Program, id: NodeId) -> &[(NodeId, NodeId)] {
    let node = |id: NodeId| &program.nodes[id as usize];
    match node(id) {
        Node::Dict(entries) => entries,
        Node::Opaque {
            state: Some(state), ..
        } => {
            let Node::Dict(state) = node(*state) else {
                return &[];
            };
            let parameters = state
                .iter()
                .find(|(key, _)| matches!(node(*key), Node::Text(text) if text == "_parameters"));
            match parameters.map(|(_, value)| node(*value)) {
                Some(Node::Dict(entries)) => entries,
                _ => &[],
            }
        }
        _ => &[],
    }
}

#[cfg(test)]
mod tests;
