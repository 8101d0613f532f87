//! The table of contents of a weights file: which tensor lies where.
//!
//! Follows the safetensors format: eight bytes of little-endian header length, a JSON object of
//! `name → {dtype, shape, data_offsets}` with offsets counted from the end of the header, then the
//! data. Headers need not be aligned. What a file claims is checked against its real size before
//! anything is allocated for it. Files that torch saved are read by [`super::TorchFile`].

use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use half::{bf16, f16};
use indexmap::IndexMap;
use serde_json::Value;

use super::averaged;
use super::pickle::{PickleError, TorchFile};

/// The longest header that is read; real ones are under 1 MiB.
const MAX_HEADER_BYTES: u64 = 100 << 20;

/// Why a weights file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TensorFileError {
    #[error("{path} cannot be read: {source}")]
    Io {
        path: String,
        source: std::io::Error,
    },
    #[error("{path} is no valid safetensors file: {reason}")]
    Malformed { path: String, reason: String },
    #[error("{path} cannot be used: {source}")]
    Pickle { path: String, source: PickleError },
    #[error("{path} has no tensor \"{name}\"")]
    Missing { path: String, name: String },
}

/// Element types of stored tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StoredType {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
    /// Types that no part of a checkpoint's graphs uses (8-bit floats, unsigned words).
    Other {
        size_bytes: u8,
    },
}

impl StoredType {
    fn from_safetensors(name: &str) -> Option<Self> {
        Some(match name {
            "F64" => Self::F64,
            "F32" => Self::F32,
            "F16" => Self::F16,
            "BF16" => Self::Bf16,
            "I64" => Self::I64,
            "I32" => Self::I32,
            "I16" => Self::I16,
            "I8" => Self::I8,
            "U8" => Self::U8,
            "BOOL" => Self::Bool,
            "F8_E4M3" | "F8_E5M2" => Self::Other { size_bytes: 1 },
            "U16" => Self::Other { size_bytes: 2 },
            "U32" => Self::Other { size_bytes: 4 },
            "U64" => Self::Other { size_bytes: 8 },
            _ => return None,
        })
    }

    /// Bytes an element.
    #[must_use]
    pub fn size_bytes(self) -> u64 {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
            Self::Other { size_bytes } => u64::from(size_bytes),
        }
    }
}

/// One tensor's place in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTensor {
    pub stored_type: StoredType,
    pub shape: Vec<usize>,
    /// From the start of the file; 0 for tensors that are held in memory
    /// ([`TensorFile::inline`]).
    pub offset: u64,
    pub length_bytes: u64,
}

/// Length and modification time, by which a file is told from what took its place.
pub type FileState = (u64, SystemTime);

/// A weights file's table of contents. The data stays in the file, but for the few tensors that do
/// not lie there in row-major order.
#[derive(Debug, Clone)]
pub struct TensorFile {
    path: PathBuf,
    /// Length and modification time when the table was read.
    state: Option<FileState>,
    tensors: IndexMap<String, StoredTensor>,
    metadata: BTreeMap<String, String>,
    /// Row-major bytes of the tensors that the file has only packed or in another order.
    inline: HashMap<String, Vec<u8>>,
}

impl TensorFile {
    /// Reads the table of contents of a `.safetensors` file or of one that torch saved. The content
    /// decides, not the name.
    ///
    /// # Errors
    /// When the file cannot be read or does not describe itself truthfully.
    pub fn open(path: &Path) -> Result<Self, TensorFileError> {
        let io = |source| TensorFileError::Io {
            path: path.display().to_string(),
            source,
        };
        let mut beginning = Vec::new();
        fs_err::File::open(path)
            .and_then(|file| file.take(16).read_to_end(&mut beginning))
            .map_err(io)?;
        let is_safetensors = beginning.get(8) == Some(&b'{')
            || path
                .extension()
                .is_some_and(|extension| extension.eq_ignore_ascii_case("safetensors"));
        let table = if is_safetensors && !TorchFile::is_torch(&beginning) {
            Self::open_safetensors(path)
        } else {
            TorchFile::open(path)?.weights().tensor_table()
        };
        table.map(averaged::with_plain_names)
    }

    /// Reads the header of a `.safetensors` file.
    ///
    /// # Errors
    /// When the file cannot be read or its header does not describe it.
    pub fn open_safetensors(path: &Path) -> Result<Self, TensorFileError> {
        let io = |source| TensorFileError::Io {
            path: path.display().to_string(),
            source,
        };
        // Links are resolved so that external data of a graph is found beside the real file.
        let path_real = fs_err::canonicalize(path).map_err(io)?;
        let mut file = fs_err::File::open(&path_real).map_err(io)?;
        let size = file.metadata().map_err(io)?.len();
        let malformed = |reason: String| TensorFileError::Malformed {
            path: path.display().to_string(),
            reason,
        };
        let mut length = [0_u8; 8];
        if size < 8 {
            return Err(malformed(format!("it has only {size} bytes")));
        }
        file.read_exact(&mut length).map_err(io)?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER_BYTES || length > size - 8 {
            return Err(malformed(format!(
                "its header claims {length} bytes, the file has {size}"
            )));
        }
        let mut header = vec![0_u8; usize::try_from(length).unwrap_or(usize::MAX)];
        file.read_exact(&mut header).map_err(io)?;
        let (tensors, metadata) = parse_header(&header, 8 + length, size).map_err(malformed)?;
        Ok(Self {
            state: state_of(&path_real),
            path: path_real,
            tensors,
            metadata,
            inline: HashMap::new(),
        })
    }

    /// A table of contents that another format's reader made.
    #[must_use]
    pub fn from_parts(
        path: PathBuf,
        tensors: IndexMap<String, StoredTensor>,
        metadata: BTreeMap<String, String>,
    ) -> Self {
        Self {
            state: state_of(&path),
            path,
            tensors,
            metadata,
            inline: HashMap::new(),
        }
    }

    /// The same with the bytes of tensors that had to be copied out of the file.
    #[must_use]
    pub(super) fn with_inline(mut self, inline: HashMap<String, Vec<u8>>) -> Self {
        self.inline = inline;
        self
    }

    /// The same with other names; `None` keeps one.
    #[must_use]
    pub(super) fn renamed(mut self, new_name: impl Fn(&str) -> Option<String>) -> Self {
        let renamed = |name: String| new_name(&name).unwrap_or(name);
        let tensors = std::mem::take(&mut self.tensors).into_iter();
        self.tensors = tensors.map(|(name, it)| (renamed(name), it)).collect();
        let inline = std::mem::take(&mut self.inline).into_iter();
        self.inline = inline.map(|(name, it)| (renamed(name), it)).collect();
        self
    }

    /// The row-major bytes of a tensor that is held in memory instead of the file.
    #[must_use]
    pub fn inline(&self, name: &str) -> Option<&[u8]> {
        self.inline.get(name).map(Vec::as_slice)
    }

    /// Whether the file is still the one whose table of contents this is.
    #[must_use]
    pub fn is_current(&self) -> bool {
        state_of(&self.path) == self.state
    }

    /// Length and modification time when the table was read; `None` where the system told none.
    #[must_use]
    pub fn state(&self) -> Option<FileState> {
        self.state
    }

    /// The file itself, links resolved.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The text metadata of the header.
    #[must_use]
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The place of a tensor.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&StoredTensor> {
        self.tensors.get(name)
    }

    /// All names in file order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// All tensors in file order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &StoredTensor)> {
        self.tensors
            .iter()
            .map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// The stored bytes of a tensor.
    ///
    /// # Errors
    /// When there is no such tensor or the file cannot be read.
    pub fn read_bytes(&self, name: &str) -> Result<Vec<u8>, TensorFileError> {
        let tensor = self.tensors.get(name).ok_or_else(|| self.missing(name))?;
        self.read_range(name, 0, tensor.length_bytes)
    }

    /// `length` stored bytes of a tensor from `first` on.
    ///
    /// # Errors
    /// When there is no such tensor, it is shorter, or the file cannot be read.
    pub fn read_range(
        &self,
        name: &str,
        first: u64,
        length: u64,
    ) -> Result<Vec<u8>, TensorFileError> {
        let tensor = self.tensors.get(name).ok_or_else(|| self.missing(name))?;
        let end = first.checked_add(length);
        if end.is_none_or(|end| end > tensor.length_bytes) {
            return Err(TensorFileError::Malformed {
                path: self.path.display().to_string(),
                reason: format!("\"{name}\" has only {} bytes", tensor.length_bytes),
            });
        }
        if let Some(bytes) = self.inline(name) {
            return Ok(bytes[first as usize..(first + length) as usize].to_vec());
        }
        let io = |source| TensorFileError::Io {
            path: self.path.display().to_string(),
            source,
        };
        let mut file = self.handle().map_err(io)?;
        file.seek(SeekFrom::Start(tensor.offset + first))
            .map_err(io)?;
        let mut bytes = vec![0_u8; usize::try_from(length).unwrap_or(usize::MAX)];
        file.read_exact(&mut bytes).map_err(io)?;
        Ok(bytes)
    }

    fn handle(&self) -> std::io::Result<fs_err::File> {
        fs_err::File::open(&self.path)
    }

    /// A tensor's values as float32, row-major.
    ///
    /// # Errors
    /// When there is no such tensor, it has no numbers, or the file cannot be read.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, TensorFileError> {
        let stored_type = self
            .tensors
            .get(name)
            .ok_or_else(|| self.missing(name))?
            .stored_type;
        let bytes = self.read_bytes(name)?;
        to_f32(&bytes, stored_type).ok_or_else(|| TensorFileError::Malformed {
            path: self.path.display().to_string(),
            reason: format!("\"{name}\" has an element type that is not understood"),
        })
    }

    fn missing(&self, name: &str) -> TensorFileError {
        TensorFileError::Missing {
            path: self.path.display().to_string(),
            name: name.to_owned(),
        }
    }
}

/// How the file is now; `None` where the system does not tell.
pub(super) fn state_of(path: &Path) -> Option<FileState> {
    let metadata = fs_err::metadata(path).ok()?;
    Some((metadata.len(), metadata.modified().ok()?))
}

/// Stored bytes as float32; `None` for types without numbers of ours.
pub(super) fn to_f32(bytes: &[u8], stored_type: StoredType) -> Option<Vec<f32>> {
    fn each<const N: usize>(bytes: &[u8], convert: impl Fn([u8; N]) -> f32) -> Vec<f32> {
        bytes
            .as_chunks::<N>()
            .0
            .iter()
            .map(|c| convert(*c))
            .collect()
    }
    Some(match stored_type {
        StoredType::F64 => each(bytes, |b| f64::from_le_bytes(b) as f32),
        StoredType::F32 => each(bytes, f32::from_le_bytes),
        StoredType::F16 => each(bytes, |b| f16::from_le_bytes(b).to_f32()),
        StoredType::Bf16 => each(bytes, |b| bf16::from_le_bytes(b).to_f32()),
        StoredType::I64 => each(bytes, |b| i64::from_le_bytes(b) as f32),
        StoredType::I32 => each(bytes, |b| i32::from_le_bytes(b) as f32),
        StoredType::I16 => each(bytes, |b| f32::from(i16::from_le_bytes(b))),
        StoredType::I8 => each(bytes, |b: [u8; 1]| f32::from(b[0].cast_signed())),
        StoredType::U8 | StoredType::Bool => each(bytes, |b: [u8; 1]| f32::from(b[0])),
        StoredType::Other { .. } => return None,
    })
}

type Contents = (IndexMap<String, StoredTensor>, BTreeMap<String, String>);

/// Reads the JSON of a header whose data begins at `data_start` in a file of `file_size` bytes.
fn parse_header(header: &[u8], data_start: u64, file_size: u64) -> Result<Contents, String> {
    let json: Value = serde_json::from_slice(header).map_err(|error| error.to_string())?;
    let Value::Object(entries) = json else {
        return Err("its header is no JSON object".to_owned());
    };
    let mut metadata = BTreeMap::new();
    let mut tensors = IndexMap::with_capacity(entries.len());
    for (name, entry) in entries {
        if name == "__metadata__" {
            if let Value::Object(pairs) = entry {
                for (key, value) in pairs {
                    if let Value::String(text) = value {
                        metadata.insert(key, text);
                    }
                }
            }
            continue;
        }
        let tensor = parse_entry(&entry, data_start, file_size)
            .map_err(|reason| format!("tensor \"{name}\": {reason}"))?;
        tensors.insert(name, tensor);
    }
    Ok((tensors, metadata))
}

fn parse_entry(entry: &Value, data_start: u64, file_size: u64) -> Result<StoredTensor, String> {
    let type_name = entry["dtype"].as_str().ok_or("no dtype")?;
    let stored_type = StoredType::from_safetensors(type_name)
        .ok_or_else(|| format!("unknown dtype {type_name}"))?;
    let shape = entry["shape"]
        .as_array()
        .ok_or("no shape")?
        .iter()
        .map(|dim| dim.as_u64().and_then(|dim| usize::try_from(dim).ok()))
        .collect::<Option<Vec<usize>>>()
        .ok_or("a dimension is no whole number")?;
    let offsets = entry["data_offsets"].as_array().ok_or("no data_offsets")?;
    let [begin, end] = offsets.as_slice() else {
        return Err("data_offsets has not two numbers".to_owned());
    };
    let (Some(begin), Some(end)) = (begin.as_u64(), end.as_u64()) else {
        return Err("an offset is no whole number".to_owned());
    };
    let length_bytes = end.checked_sub(begin).ok_or("it ends before it begins")?;
    let expected = shape
        .iter()
        .try_fold(stored_type.size_bytes(), |size, dim| {
            size.checked_mul(u64::try_from(*dim).ok()?)
        })
        .ok_or("its size overflows")?;
    if expected != length_bytes {
        return Err(format!(
            "its shape needs {expected} bytes, it has {length_bytes}"
        ));
    }
    let past_end = end
        .checked_add(data_start)
        .is_none_or(|absolute| absolute > file_size);
    if past_end {
        return Err("it lies past the end of the file (is the download complete?)".to_owned());
    }
    Ok(StoredTensor {
        stored_type,
        shape,
        offset: data_start + begin,
        length_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_with(header: &[u8], claimed: u64, data: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut bytes = claimed.to_le_bytes().to_vec();
        bytes.extend_from_slice(header);
        bytes.extend_from_slice(data);
        fs_err::write(file.path(), bytes).unwrap();
        file
    }

    fn reason(header: &str, data: &[u8]) -> String {
        let file = file_with(header.as_bytes(), header.len() as u64, data);
        TensorFile::open_safetensors(file.path())
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn an_unaligned_header_and_every_float_type_are_read() {
        let header = br#"{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},"b":{"dtype":"BF16","shape":[],"data_offsets":[4,6]},"__metadata__":{"k":"v"}} "#;
        let mut data = Vec::new();
        data.extend_from_slice(&f16::from_f32(1.5).to_le_bytes());
        data.extend_from_slice(&f16::from_f32(-2.0).to_le_bytes());
        data.extend_from_slice(&bf16::from_f32(3.0).to_le_bytes());
        let file = file_with(header, header.len() as u64, &data);
        let tensors = TensorFile::open_safetensors(file.path()).unwrap();
        assert_eq!(tensors.read_f32("a").unwrap(), [1.5, -2.0]);
        assert_eq!(tensors.read_f32("b").unwrap(), [3.0]);
        assert_eq!(tensors.metadata()["k"], "v");
        assert!(tensors.read_f32("c").is_err());
    }

    #[test]
    fn headers_that_lie_are_refused_with_their_reason() {
        let claim = |claimed| {
            let file = file_with(b"{}", claimed, b"");
            TensorFile::open_safetensors(file.path())
                .unwrap_err()
                .to_string()
        };
        assert!(claim(u64::MAX).contains("claims"));
        assert!(claim(3).contains("claims"));
        assert!(
            reason(
                r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#,
                b"1234"
            )
            .contains("past the end")
        );
        assert!(
            reason(
                r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,4]}}"#,
                b"1234"
            )
            .contains("needs 12 bytes")
        );
        assert!(
            reason(
                r#"{"a":{"dtype":"F32","shape":[9223372036854775807,9],"data_offsets":[0,4]}}"#,
                b"1234"
            )
            .contains("overflows")
        );
        assert!(
            reason(
                r#"{"a":{"dtype":"Q4","shape":[1],"data_offsets":[0,4]}}"#,
                b"1234"
            )
            .contains("unknown dtype Q4")
        );
        assert!(
            reason(
                r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#,
                b"1234"
            )
            .contains("ends before")
        );
        assert!(reason("[]", b"").contains("no JSON object"));
        assert!(reason("{", b"").contains("safetensors"));
    }
}
