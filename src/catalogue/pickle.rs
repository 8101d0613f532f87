//! PyTorch's zip files (`.ckpt`, `.pt`, `.bin`): a reader of pickles that can build tensors, plain
//! numbers, texts and containers, and nothing else.
//!
//! Nothing in a file is ever run. The machine knows the opcodes that torch writes for tensors and
//! the globals listed in [`global`]; any other opcode or global ends the reading with its name.
//! Classes that old checkpoints carry beside the tensors (callbacks, numpy scalars) are kept as
//! inert values. Tensors stay in the file: their place is told, as for safetensors. The format
//! before torch 1.6 (no zip) and compressed members are refused.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::rc::Rc;

use indexmap::IndexMap;

use super::{StoredTensor, StoredType, TensorFile, TensorFileError};

/// The longest pickle that is read; a checkpoint's is under 1 MiB.
const MAX_PICKLE_BYTES: u64 = 64 << 20;
/// The longest zip directory that is read.
const MAX_DIRECTORY_BYTES: u64 = 64 << 20;

/// A value that a pickle builds.
#[derive(Debug, Clone)]
pub(super) enum Value {
    /// `None`, a truth value or a float: nothing that is read asks for them.
    Plain,
    Int(i64),
    Text(Rc<str>),
    Bytes,
    Tuple(Rc<Vec<Value>>),
    List(Rc<RefCell<Vec<Value>>>),
    Dict(Rc<RefCell<Vec<(Value, Value)>>>),
    Storage(Rc<Storage>),
    Tensor(Rc<StoredTensor>),
    /// A tensor whose values do not lie one after the other.
    Scattered,
    Global(Global),
    /// An instance of a class that is kept but not understood, with its state.
    Inert(Rc<RefCell<Option<Value>>>),
    /// The place on the stack from which containers collect.
    Mark,
}

#[derive(Debug)]
pub(super) struct Storage {
    stored_type: StoredType,
    offset: u64,
    length_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Global {
    RebuildTensor,
    RebuildParameter,
    OrderedDict,
    StorageType(StoredType),
    Inert,
}

/// The globals that may occur.
fn global(module: &str, name: &str) -> Option<Global> {
    let storage = |stored| Some(Global::StorageType(stored));
    match (module, name) {
        ("torch._utils", "_rebuild_tensor_v2") => Some(Global::RebuildTensor),
        ("torch._utils", "_rebuild_parameter") => Some(Global::RebuildParameter),
        ("collections", "OrderedDict") => Some(Global::OrderedDict),
        ("torch", "DoubleStorage") => storage(StoredType::F64),
        ("torch", "FloatStorage") => storage(StoredType::F32),
        ("torch", "HalfStorage") => storage(StoredType::F16),
        ("torch", "BFloat16Storage") => storage(StoredType::Bf16),
        ("torch", "LongStorage") => storage(StoredType::I64),
        ("torch", "IntStorage") => storage(StoredType::I32),
        ("torch", "ShortStorage") => storage(StoredType::I16),
        ("torch", "CharStorage") => storage(StoredType::I8),
        ("torch", "ByteStorage") => storage(StoredType::U8),
        ("torch", "BoolStorage") => storage(StoredType::Bool),
        ("torch", "Size" | "device" | "float32" | "float16" | "bfloat16")
        | ("torch.nn.modules.container", "ParameterDict")
        | ("torch.nn.parameter", "Parameter")
        | ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar" | "_reconstruct")
        | ("numpy", "dtype" | "ndarray")
        | ("_codecs", "encode")
        | ("__builtin__" | "builtins", "set")
        | ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
        | ("pytorch_lightning.callbacks", "ModelCheckpoint")
        | ("pytorch_lightning.utilities.enums", _) => Some(Global::Inert),
        _ => None,
    }
}

/// Reads a file into the value that its pickle builds.
pub(super) fn read(path: &Path) -> Result<Value, TensorFileError> {
    let io = |source| TensorFileError::Io {
        path: path.display().to_string(),
        source,
    };
    let refuse = |reason: String| TensorFileError::Pickle {
        path: path.display().to_string(),
        reason,
    };
    let mut file = fs_err::File::open(path).map_err(io)?;
    let members = zip_members(&mut file).map_err(io)?.map_err(refuse)?;
    let (name, pickle) = members
        .iter()
        .find(|(name, _)| name.ends_with("/data.pkl") || *name == "data.pkl")
        .ok_or_else(|| refuse("it has no data.pkl".to_owned()))?;
    if pickle.length > MAX_PICKLE_BYTES {
        return Err(refuse(format!("its data.pkl has {} bytes", pickle.length)));
    }
    let prefix = name.trim_end_matches("data.pkl").to_owned();
    file.seek(SeekFrom::Start(pickle.offset)).map_err(io)?;
    let mut bytes = vec![0; usize::try_from(pickle.length).unwrap_or(0)];
    file.read_exact(&mut bytes).map_err(io)?;
    let machine = Machine {
        input: &bytes,
        at: 0,
        stack: Vec::new(),
        memo: HashMap::new(),
        members: &members,
        prefix: &prefix,
    };
    machine.run().map_err(refuse)
}

impl TensorFile {
    /// Reads the table of contents of a torch zip file; a `state_dict` inside takes the place of
    /// the whole.
    ///
    /// # Errors
    /// When the file cannot be read or holds something other than tensors and plain values.
    pub fn open_pickle(path: &Path) -> Result<Self, TensorFileError> {
        let top = read(path)?;
        let inner = entry(&top, "state_dict").unwrap_or(top);
        let mut tensors = IndexMap::new();
        for (name, value) in entries(&inner) {
            match value {
                Value::Tensor(tensor) => {
                    tensors.insert(name, tensor.as_ref().clone());
                }
                Value::Scattered => {
                    tracing::warn!(tensor = %name, path = %path.display(), "this tensor's values are scattered and it is left out");
                }
                _ => {}
            }
        }
        if tensors.is_empty() {
            return Err(TensorFileError::Pickle {
                path: path.display().to_string(),
                reason: "no tensors by name were found in it".to_owned(),
            });
        }
        let real = fs_err::canonicalize(path).map_err(|source| TensorFileError::Io {
            path: path.display().to_string(),
            source,
        })?;
        Ok(Self::from_parts(real, tensors, BTreeMap::new()))
    }
}

/// The value under a text key of a dict or of an inert object's state.
pub(super) fn entry(value: &Value, key: &str) -> Option<Value> {
    entries(value)
        .into_iter()
        .find_map(|(name, value)| (name == key).then_some(value))
}

/// The entries of a dict whose keys are texts.
pub(super) fn entries(value: &Value) -> Vec<(String, Value)> {
    match value {
        Value::Dict(pairs) => pairs
            .borrow()
            .iter()
            .filter_map(|(key, value)| match key {
                Value::Text(text) => Some((text.to_string(), value.clone())),
                _ => None,
            })
            .collect(),
        Value::Inert(state) => state.borrow().as_ref().map(entries).unwrap_or_default(),
        _ => Vec::new(),
    }
}

/// A stored member of the zip.
#[derive(Debug, Clone, Copy)]
struct Member {
    offset: u64,
    length: u64,
}

type Members = HashMap<String, Member>;

/// The stored members by name, with the place of their bytes.
fn zip_members(file: &mut fs_err::File) -> std::io::Result<Result<Members, String>> {
    let size = file.metadata()?.len();
    let tail_length = size.min(66_000);
    file.seek(SeekFrom::Start(size - tail_length))?;
    let mut tail = vec![0; tail_length as usize];
    file.read_exact(&mut tail)?;
    let Some((directory, length)) = directory_place(file, &tail, size)? else {
        return Ok(Err(
            "it is no zip file as torch 1.6 and later write".to_owned()
        ));
    };
    if length > MAX_DIRECTORY_BYTES || directory.checked_add(length).is_none_or(|end| end > size) {
        return Ok(Err("its directory lies outside the file".to_owned()));
    }
    file.seek(SeekFrom::Start(directory))?;
    let mut bytes = vec![0; length as usize];
    file.read_exact(&mut bytes)?;
    let mut members = Members::new();
    let mut rest = bytes.as_slice();
    while rest.len() >= 46 && rest[..4] == *b"PK\x01\x02" {
        let Some((name, member, next)) = directory_entry(rest) else {
            return Ok(Err("its directory is damaged".to_owned()));
        };
        let (method, local, length) = member;
        if method != 0 && !name.ends_with('/') {
            return Ok(Err(format!("its member {name} is compressed")));
        }
        // The local header's name and extra field may be longer than the directory's.
        let mut header = [0_u8; 30];
        if local.checked_add(30).is_none_or(|end| end > size) {
            return Ok(Err(format!("its member {name} lies outside the file")));
        }
        file.seek(SeekFrom::Start(local))?;
        file.read_exact(&mut header)?;
        let offset = local + 30 + u64::from(u16_at(&header, 26)) + u64::from(u16_at(&header, 28));
        if offset.checked_add(length).is_none_or(|end| end > size) {
            return Ok(Err(format!("its member {name} lies outside the file")));
        }
        members.insert(name, Member { offset, length });
        rest = &rest[next..];
    }
    Ok(Ok(members))
}

/// Offset and length of the zip's directory, by its end record (the 64-bit one if there is one).
fn directory_place(
    file: &mut fs_err::File,
    tail: &[u8],
    size: u64,
) -> std::io::Result<Option<(u64, u64)>> {
    let Some(end) = tail.windows(4).rposition(|window| window == b"PK\x05\x06") else {
        return Ok(None);
    };
    if tail.len() < end + 22 {
        return Ok(None);
    }
    let length = u64::from(u32_at(tail, end + 12));
    let offset = u64::from(u32_at(tail, end + 16));
    let locator = end.checked_sub(20).map(|at| &tail[at..end]);
    if let Some(locator) = locator.filter(|bytes| bytes[..4] == *b"PK\x06\x07") {
        let record = u64_at(locator, 8);
        if record.checked_add(56).is_none_or(|end| end > size) {
            return Ok(None);
        }
        let mut bytes = [0_u8; 56];
        file.seek(SeekFrom::Start(record))?;
        file.read_exact(&mut bytes)?;
        if bytes[..4] == *b"PK\x06\x06" {
            return Ok(Some((u64_at(&bytes, 48), u64_at(&bytes, 40))));
        }
    }
    Ok(Some((offset, length)))
}

/// Name, (method, local header, length) and size of one directory entry.
fn directory_entry(bytes: &[u8]) -> Option<(String, (u16, u64, u64), usize)> {
    let method = u16_at(bytes, 10);
    let mut length = u64::from(u32_at(bytes, 24));
    let packed = u32_at(bytes, 20);
    let mut local = u64::from(u32_at(bytes, 42));
    let (name_length, extra_length, comment_length) = (
        usize::from(u16_at(bytes, 28)),
        usize::from(u16_at(bytes, 30)),
        usize::from(u16_at(bytes, 32)),
    );
    let name = bytes.get(46..46 + name_length)?;
    let mut extra = bytes.get(46 + name_length..46 + name_length + extra_length)?;
    while extra.len() >= 4 {
        let (kind, field_length) = (u16_at(extra, 0), usize::from(u16_at(extra, 2)));
        let mut field = extra.get(4..4 + field_length)?;
        if kind == 1 {
            let mut next = || {
                let value = field.get(..8).map(|bytes| u64_at(bytes, 0));
                field = field.get(8..).unwrap_or_default();
                value
            };
            if length == u64::from(u32::MAX) {
                length = next()?;
            }
            if packed == u32::MAX {
                next()?;
            }
            if local == u64::from(u32::MAX) {
                local = next()?;
            }
        }
        extra = &extra[4 + field_length..];
    }
    let size = 46 + name_length + extra_length + comment_length;
    bytes.get(..size)?;
    let name = String::from_utf8_lossy(name).into_owned();
    Some((name, (method, local, length), size))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// The pickle machine. Every step consumes input, and containers are shared, so work and memory
/// are bounded by the pickle's length.
struct Machine<'a> {
    input: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    memo: HashMap<u64, Value>,
    members: &'a Members,
    prefix: &'a str,
}

impl Machine<'_> {
    fn run(mut self) -> Result<Value, String> {
        loop {
            let opcode = self.byte()?;
            if opcode == b'.' {
                return self.pop();
            }
            self.step(opcode)?;
        }
    }

    fn step(&mut self, opcode: u8) -> Result<(), String> {
        match opcode {
            0x80 => drop(self.take(1)?),
            0x95 => drop(self.take(8)?),
            b'(' => self.stack.push(Value::Mark),
            b'0' => drop(self.pop()?),
            b'N' | 0x88 | 0x89 => self.stack.push(Value::Plain),
            b'}' => self.push_dict(Vec::new()),
            b']' => self.push_list(Vec::new()),
            b')' => self.push_tuple(Vec::new()),
            b'd' | b'l' | b't' => self.from_mark(opcode)?,
            0x85..=0x87 => {
                let count = usize::from(opcode - 0x84);
                let first = self
                    .stack
                    .len()
                    .checked_sub(count)
                    .ok_or("its stack is empty")?;
                let items = self.stack.split_off(first);
                self.push_tuple(items);
            }
            b'q' | b'r' | 0x94 => self.memoise(opcode)?,
            b'h' | b'j' => {
                let width = if opcode == b'h' { 1 } else { 4 };
                let key = self.number(width)?;
                let value = self
                    .memo
                    .get(&key)
                    .cloned()
                    .ok_or("it recalls what it never kept")?;
                self.stack.push(value);
            }
            b'a' | b'e' | b's' | b'u' => self.fill(opcode)?,
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push_global(&module, &name)?;
            }
            0x93 => {
                let (name, module) = (self.pop_text()?, self.pop_text()?);
                self.push_global(&module, &name)?;
            }
            b'R' | 0x81 => self.reduce()?,
            b'b' => self.build()?,
            b'Q' => self.persistent()?,
            _ => self.literal(opcode)?,
        }
        Ok(())
    }

    fn literal(&mut self, opcode: u8) -> Result<(), String> {
        let value = match opcode {
            b'K' => Value::Int(self.number(1)? as i64),
            b'M' => Value::Int(self.number(2)? as i64),
            b'J' => Value::Int(i64::from((self.number(4)? as u32).cast_signed())),
            0x8a => self.long()?,
            b'G' => {
                self.take(8)?;
                Value::Plain
            }
            0x8c => self.text(1)?,
            b'X' => self.text(4)?,
            0x8d => self.text(8)?,
            b'U' => self.text(1)?,
            b'T' => self.text(4)?,
            b'C' => self.skip_bytes(1)?,
            b'B' => self.skip_bytes(4)?,
            0x8e => self.skip_bytes(8)?,
            other => {
                return Err(format!(
                    "its pickle uses the opcode {other:#04x}, which tensors do not need"
                ));
            }
        };
        self.stack.push(value);
        Ok(())
    }

    fn take(&mut self, count: usize) -> Result<&[u8], String> {
        let end = self
            .at
            .checked_add(count)
            .filter(|end| *end <= self.input.len());
        let end = end.ok_or("its pickle ends early")?;
        let bytes = &self.input[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    fn byte(&mut self) -> Result<u8, String> {
        Ok(self.take(1)?[0])
    }

    /// A little-endian unsigned number of up to 8 bytes.
    fn number(&mut self, width: usize) -> Result<u64, String> {
        let bytes = self.take(width)?;
        Ok(bytes
            .iter()
            .rev()
            .fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn long(&mut self) -> Result<Value, String> {
        let width = usize::from(self.byte()?);
        let bytes = self.take(width)?;
        if width > 8 {
            return Ok(Value::Plain);
        }
        let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut full = [if negative { 0xff } else { 0 }; 8];
        full[..width].copy_from_slice(bytes);
        Ok(Value::Int(i64::from_le_bytes(full)))
    }

    fn text(&mut self, width: usize) -> Result<Value, String> {
        let length = usize::try_from(self.number(width)?).map_err(|_| "it ends early")?;
        let text = String::from_utf8_lossy(self.take(length)?);
        Ok(Value::Text(Rc::from(text.as_ref())))
    }

    fn skip_bytes(&mut self, width: usize) -> Result<Value, String> {
        let length = usize::try_from(self.number(width)?).map_err(|_| "it ends early")?;
        self.take(length)?;
        Ok(Value::Bytes)
    }

    fn line(&mut self) -> Result<String, String> {
        let rest = &self.input[self.at..];
        let length = rest
            .iter()
            .position(|byte| *byte == b'\n')
            .ok_or("its pickle ends early")?;
        let text = String::from_utf8_lossy(&rest[..length]).into_owned();
        self.at += length + 1;
        Ok(text)
    }

    fn pop(&mut self) -> Result<Value, String> {
        self.stack
            .pop()
            .ok_or_else(|| "its stack is empty".to_owned())
    }

    fn pop_text(&mut self) -> Result<String, String> {
        match self.pop()? {
            Value::Text(text) => Ok(text.to_string()),
            _ => Err("a name of it is no text".to_owned()),
        }
    }

    /// Everything above the last mark, which goes too.
    fn above_mark(&mut self) -> Result<Vec<Value>, String> {
        let mark = self
            .stack
            .iter()
            .rposition(|value| matches!(value, Value::Mark))
            .ok_or("it collects without a mark")?;
        let items = self.stack.split_off(mark + 1);
        self.stack.pop();
        Ok(items)
    }

    fn push_tuple(&mut self, items: Vec<Value>) {
        self.stack.push(Value::Tuple(Rc::new(items)));
    }

    fn push_list(&mut self, items: Vec<Value>) {
        self.stack.push(Value::List(Rc::new(RefCell::new(items))));
    }

    fn push_dict(&mut self, items: Vec<(Value, Value)>) {
        self.stack.push(Value::Dict(Rc::new(RefCell::new(items))));
    }

    fn from_mark(&mut self, opcode: u8) -> Result<(), String> {
        let items = self.above_mark()?;
        match opcode {
            b'd' => self.push_dict(pairs(items)),
            b'l' => self.push_list(items),
            _ => self.push_tuple(items),
        }
        Ok(())
    }

    fn memoise(&mut self, opcode: u8) -> Result<(), String> {
        let key = match opcode {
            b'q' => self.number(1)?,
            b'r' => self.number(4)?,
            _ => self.memo.len() as u64,
        };
        let value = self.stack.last().cloned().ok_or("its stack is empty")?;
        self.memo.insert(key, value);
        Ok(())
    }

    /// `APPEND`, `APPENDS`, `SETITEM`, `SETITEMS`.
    fn fill(&mut self, opcode: u8) -> Result<(), String> {
        let items = match opcode {
            b'a' => vec![self.pop()?],
            b's' => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            _ => self.above_mark()?,
        };
        match self.stack.last() {
            Some(Value::List(list)) => list.borrow_mut().extend(items),
            Some(Value::Dict(dict)) => dict.borrow_mut().extend(pairs(items)),
            Some(Value::Inert(_)) => {}
            _ => return Err("it fills something that is no container".to_owned()),
        }
        Ok(())
    }

    fn push_global(&mut self, module: &str, name: &str) -> Result<(), String> {
        let known = global(module, name).ok_or_else(|| {
            format!("its pickle asks for {module}.{name}, which tensors do not need")
        })?;
        self.stack.push(Value::Global(known));
        Ok(())
    }

    /// `REDUCE` and `NEWOBJ`: what a known global makes of its arguments.
    fn reduce(&mut self) -> Result<(), String> {
        let arguments = match self.pop()? {
            Value::Tuple(items) => items,
            _ => return Err("it calls with something that is no tuple".to_owned()),
        };
        let value = match self.pop()? {
            Value::Global(Global::RebuildTensor) => rebuilt(&arguments)?,
            Value::Global(Global::RebuildParameter) => arguments
                .first()
                .cloned()
                .ok_or("a parameter without data")?,
            Value::Global(Global::OrderedDict) => Value::Dict(Rc::default()),
            Value::Global(Global::Inert) | Value::Inert(_) => Value::Inert(Rc::default()),
            _ => return Err("it calls something that cannot be called".to_owned()),
        };
        self.stack.push(value);
        Ok(())
    }

    /// `BUILD`: the state of an inert object; dicts and tensors have none that matters.
    fn build(&mut self) -> Result<(), String> {
        let state = self.pop()?;
        match self.stack.last() {
            Some(Value::Inert(own)) => *own.borrow_mut() = Some(state),
            Some(Value::Dict(_) | Value::Tensor(_)) => {}
            _ => return Err("it gives a state to something that has none".to_owned()),
        }
        Ok(())
    }

    /// `('storage', type, key, location, count)` → the member that holds it.
    fn persistent(&mut self) -> Result<(), String> {
        let Value::Tuple(id) = self.pop()? else {
            return Err("a storage of it is named by something that is no tuple".to_owned());
        };
        let (Some(Value::Global(Global::StorageType(stored_type))), Some(Value::Text(key))) =
            (id.get(1), id.get(2))
        else {
            return Err("a storage of it has no known type".to_owned());
        };
        let name = format!("{}data/{key}", self.prefix);
        let member = self
            .members
            .get(&name)
            .ok_or_else(|| format!("its member {name} is missing"))?;
        self.stack.push(Value::Storage(Rc::new(Storage {
            stored_type: *stored_type,
            offset: member.offset,
            length_bytes: member.length,
        })));
        Ok(())
    }
}

fn pairs(items: Vec<Value>) -> Vec<(Value, Value)> {
    let mut pairs = Vec::with_capacity(items.len() / 2);
    let mut rest = items.into_iter();
    while let (Some(key), Some(value)) = (rest.next(), rest.next()) {
        pairs.push((key, value));
    }
    pairs
}

fn rebuilt(arguments: &[Value]) -> Result<Value, String> {
    let [
        Value::Storage(storage),
        Value::Int(offset),
        Value::Tuple(size),
        Value::Tuple(stride),
        ..,
    ] = arguments
    else {
        return Err("a tensor of it is described in a way that is not known".to_owned());
    };
    let (shape, strides) = (sizes(size)?, sizes(stride)?);
    let mut expected = 1_usize;
    for (dim, stride) in shape.iter().zip(&strides).rev() {
        if *dim > 1 && *stride != expected {
            return Ok(Value::Scattered);
        }
        expected = expected
            .checked_mul((*dim).max(1))
            .ok_or("a tensor's size overflows")?;
    }
    let width = storage.stored_type.size_bytes();
    let count: u64 = shape
        .iter()
        .try_fold(1_u64, |count, dim| count.checked_mul(*dim as u64))
        .ok_or("a tensor's size overflows")?;
    let begin = u64::try_from(*offset)
        .ok()
        .and_then(|offset| offset.checked_mul(width))
        .ok_or("a tensor begins before its storage")?;
    let length_bytes = count
        .checked_mul(width)
        .ok_or("a tensor's size overflows")?;
    if begin
        .checked_add(length_bytes)
        .is_none_or(|end| end > storage.length_bytes)
    {
        return Err("a tensor is larger than its storage".to_owned());
    }
    Ok(Value::Tensor(Rc::new(StoredTensor {
        stored_type: storage.stored_type,
        shape,
        offset: storage.offset + begin,
        length_bytes,
    })))
}

fn sizes(values: &[Value]) -> Result<Vec<usize>, String> {
    values
        .iter()
        .map(|value| match value {
            Value::Int(size) => usize::try_from(*size).map_err(|_| "a negative size".to_owned()),
            _ => Err("a size that is no number".to_owned()),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(pickle: &[u8]) -> Result<Value, String> {
        let members = HashMap::from([(
            "a/data/0".to_owned(),
            Member {
                offset: 100,
                length: 16,
            },
        )]);
        Machine {
            input: pickle,
            at: 0,
            stack: Vec::new(),
            memo: HashMap::new(),
            members: &members,
            prefix: "a/",
        }
        .run()
    }

    /// `{"w": tensor}` as torch pickles it, with the given shape byte.
    fn tensor_pickle(rows: u8) -> Vec<u8> {
        let mut bytes = b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQK\x00K".to_vec();
        bytes.push(rows);
        bytes.extend_from_slice(b"K\x02\x86K\x02K\x01\x86\x89NtRs.");
        bytes
    }

    #[test]
    fn a_tensor_is_found_in_the_file() {
        let Some(Value::Tensor(tensor)) = entry(&run(&tensor_pickle(2)).unwrap(), "w") else {
            panic!("no tensor");
        };
        assert_eq!(
            (tensor.shape.as_slice(), tensor.offset),
            ([2, 2].as_slice(), 100)
        );
        assert!(
            run(&tensor_pickle(3))
                .unwrap_err()
                .contains("larger than its storage")
        );
    }

    #[test]
    fn code_is_refused_by_name() {
        let attack = b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00id\x85R.";
        assert!(run(attack).unwrap_err().contains("os.system"));
        assert!(
            run(b"\x80\x04\x8c\x02os\x8c\x06system\x93.")
                .unwrap_err()
                .contains("os.system")
        );
        assert!(run(b"ios\nsystem\n.").unwrap_err().contains("opcode 0x69"));
        assert!(run(b"ccollections\nOrderedDict\n.").is_ok());
    }

    #[test]
    fn files_that_are_no_torch_zip_are_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for bytes in [b"".as_slice(), b"PK\x05\x06", b"\x80\x02}q\x00."] {
            fs_err::write(file.path(), bytes).unwrap();
            assert!(TensorFile::open_pickle(file.path()).is_err());
        }
    }

    proptest! {
        #[test]
        fn no_input_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = run(&bytes);
        }

        #[test]
        fn no_damage_panics(at in 0_usize..120, byte in any::<u8>()) {
            let mut bytes = tensor_pickle(2);
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = run(&bytes);
        }

        #[test]
        fn no_damaged_zip_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let file = tempfile::NamedTempFile::new().unwrap();
            let mut damaged = bytes;
            damaged.extend_from_slice(b"PK\x05\x06");
            damaged.extend_from_slice(&[1; 18]);
            fs_err::write(file.path(), damaged).unwrap();
            prop_assert!(TensorFile::open_pickle(file.path()).is_err());
        }
    }
}
