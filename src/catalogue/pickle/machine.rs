//! The pickle machine: carries out the few operations that build tensors, dictionaries, lists,
//! tuples, numbers and text, and refuses everything else by name. Nothing is ever called: a global
//! is one entry of a closed list, and "calling" it fills in one of our own nodes.
//!
//! Follows the description in Python's `pickletools` (protocols 0 to 5). Left out: extension
//! registries, out-of-band buffers, protocol 0 strings and instances.
//!
//! Nodes live in one vector and name each other by number, so that cycles and deep nesting cost
//! neither stack nor leaks. One budget counts nodes and copied items.

use std::collections::HashMap;

use super::PickleError;
use crate::catalogue::StoredType;

/// Nodes and copied items of one pickle; a checkpoint with its optimiser has under a million.
const MAX_ITEMS: usize = 4_000_000;
/// torch's own limit is 64.
const MAX_RANK: usize = 64;

/// A node's number.
pub(super) type NodeId = u32;

/// One value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    None,
    Bool(bool),
    Int(i64),
    /// An integer beyond 64 bits; little-endian two's complement.
    LongInt(Vec<u8>),
    Float(f64),
    Text(String),
    Bytes(Vec<u8>),
    /// Lists, tuples and sets.
    Sequence(Vec<NodeId>),
    /// In the order of insertion; of equal keys the last counts.
    Dict(Vec<(NodeId, NodeId)>),
    Global(Global),
    /// Index into [`Program::storages`].
    Storage(usize),
    Tensor(Box<TensorSpec>),
    /// An object of a class that is known to be harmless and is not looked into.
    Opaque {
        class: String,
        state: Option<NodeId>,
    },
}

/// Everything that a pickle may name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Global {
    OrderedDict,
    DefaultDict,
    Set,
    Size,
    RebuildTensor,
    RebuildTensorV3,
    RebuildParameter,
    RebuildFromType,
    Storage(StoredType),
    UntypedStorage,
    ElementType(StoredType),
    Opaque(String),
}

impl Global {
    /// The allow-list.
    fn named(module: &str, name: &str) -> Result<Self, PickleError> {
        // Python 2 wrote the first of these.
        let module = match module {
            "__builtin__" => "builtins",
            other => other,
        };
        let known = match (module, name) {
            ("collections", "OrderedDict") => Some(Self::OrderedDict),
            ("collections", "defaultdict") => Some(Self::DefaultDict),
            ("builtins", "set" | "frozenset") => Some(Self::Set),
            ("torch", "Size") => Some(Self::Size),
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Some(Self::RebuildTensor),
            ("torch._utils", "_rebuild_tensor_v3") => Some(Self::RebuildTensorV3),
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => {
                Some(Self::RebuildParameter)
            }
            ("torch._tensor", "_rebuild_from_type_v2") => Some(Self::RebuildFromType),
            ("torch" | "torch.storage", "UntypedStorage") => Some(Self::UntypedStorage),
            ("torch", _) => name
                .strip_suffix("Storage")
                .and_then(storage_type)
                .map(Self::Storage)
                .or_else(|| element_type(name).map(Self::ElementType)),
            _ => None,
        };
        let full = || format!("{module}.{name}");
        match known {
            Some(known) => Ok(known),
            None if is_harmless(module, name) => Ok(Self::Opaque(full())),
            None => Err(PickleError::Global(full())),
        }
    }
}

fn storage_type(name: &str) -> Option<StoredType> {
    Some(match name {
        "Double" => StoredType::F64,
        "Float" => StoredType::F32,
        "Half" => StoredType::F16,
        "BFloat16" => StoredType::Bf16,
        "Long" => StoredType::I64,
        "Int" => StoredType::I32,
        "Short" => StoredType::I16,
        "Char" => StoredType::I8,
        "Byte" => StoredType::U8,
        "Bool" => StoredType::Bool,
        _ => return None,
    })
}

fn element_type(name: &str) -> Option<StoredType> {
    Some(match name {
        "float64" => StoredType::F64,
        "float32" => StoredType::F32,
        "float16" => StoredType::F16,
        "bfloat16" => StoredType::Bf16,
        "int64" => StoredType::I64,
        "int32" => StoredType::I32,
        "int16" => StoredType::I16,
        "int8" => StoredType::I8,
        "uint8" => StoredType::U8,
        "bool" => StoredType::Bool,
        "float8_e4m3fn" | "float8_e5m2" => StoredType::Other { size_bytes: 1 },
        "uint16" => StoredType::Other { size_bytes: 2 },
        "uint32" => StoredType::Other { size_bytes: 4 },
        "uint64" => StoredType::Other { size_bytes: 8 },
        _ => return None,
    })
}

/// What trainers leave in checkpoints beside the weights. It becomes an empty shell.
fn is_harmless(module: &str, name: &str) -> bool {
    let trainer = ["pytorch_lightning.", "lightning.pytorch."];
    trainer.iter().any(|prefix| module.starts_with(prefix))
        || matches!(
            (module, name),
            ("torch.nn.modules.container", "ParameterDict")
                | (
                    "numpy.core.multiarray" | "numpy._core.multiarray",
                    "scalar" | "_reconstruct"
                )
                | ("numpy.core.numeric" | "numpy._core.numeric", "_frombuffer")
                | ("numpy", "dtype" | "ndarray")
                | ("_codecs", "encode")
                | ("torch", "device")
                | ("torch.nn.parameter", "Parameter")
                | ("torch.serialization", "_get_layout")
                | ("builtins", "int" | "float" | "list" | "dict")
        )
}

/// A storage as a persistent id names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StorageSpec {
    pub(super) key: String,
    pub(super) stored_type: StoredType,
    /// The first element, of a view into a storage.
    pub(super) first: u64,
    /// Elements.
    pub(super) count: u64,
    /// Elements of the whole storage.
    pub(super) whole_count: u64,
}

/// A tensor over a storage; it lies within it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TensorSpec {
    pub(super) storage: usize,
    pub(super) stored_type: StoredType,
    /// In elements of `stored_type`.
    pub(super) offset: u64,
    pub(super) shape: Vec<u64>,
    /// In elements.
    pub(super) strides: Vec<u64>,
}

impl TensorSpec {
    /// The number of elements.
    pub(super) fn count(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Whether the elements lie one after the other, in row-major order.
    pub(super) fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.shape
            .iter()
            .zip(&self.strides)
            .rev()
            .all(|(dim, stride)| {
                let fits = *dim == 1 || *stride == expected;
                expected *= dim;
                fits
            })
            || self.count() == 0
    }
}

/// What a pickle built.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) nodes: Vec<Node>,
    pub(super) root: NodeId,
    pub(super) storages: Vec<StorageSpec>,
}

/// Carries out one pickle and answers how many bytes it took.
pub(super) fn run(pickle: &[u8]) -> Result<(Program, usize), PickleError> {
    let mut machine = Machine {
        input: pickle,
        at: 0,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        budget: MAX_ITEMS,
        nodes: Vec::new(),
        storages: Vec::new(),
    };
    while machine.step()? {}
    let root = machine.pop()?;
    let program = Program {
        nodes: machine.nodes,
        root,
        storages: machine.storages,
    };
    Ok((program, machine.at))
}

struct Machine<'p> {
    input: &'p [u8],
    at: usize,
    stack: Vec<NodeId>,
    /// Stack heights.
    marks: Vec<usize>,
    memo: HashMap<u32, NodeId>,
    budget: usize,
    nodes: Vec<Node>,
    storages: Vec<StorageSpec>,
}

impl Machine<'_> {
    /// One operation; false after the last.
    fn step(&mut self) -> Result<bool, PickleError> {
        let operation = self.byte()?;
        match operation {
            b'.' => return Ok(false),
            // PROTO and FRAME say nothing that is needed.
            0x80 => drop(self.bytes(1)?),
            0x95 => drop(self.bytes(8)?),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_to_mark()?),
            b'2' => {
                let top = self.top()?;
                self.push_id(top)?;
            }
            b'q' | b'r' | b'p' | 0x94 | b'h' | b'j' | b'g' => self.remember(operation)?,
            b'N' | 0x88 | 0x89 | b'K' | b'M' | b'J' | b'I' | b'L' | 0x8a | 0x8b | b'G' | b'F' => {
                self.number(operation)?;
            }
            b'X' | 0x8c | 0x8d | b'V' | b'U' | b'T' | b'C' | b'B' | 0x8e | 0x96 => {
                self.text(operation)?;
            }
            b']' | b')' | 0x8f => self.push(Node::Sequence(Vec::new()))?,
            b'}' => self.push(Node::Dict(Vec::new()))?,
            b'l' | b't' | 0x91 => {
                let items = self.pop_to_mark()?;
                self.push(Node::Sequence(items))?;
            }
            0x85..=0x87 => {
                let length = usize::from(operation - 0x84);
                let items = self.pop_many(length)?;
                self.push(Node::Sequence(items))?;
            }
            b'd' => {
                let items = self.pop_to_mark()?;
                let pairs = pairs(&items)?;
                self.push(Node::Dict(pairs))?;
            }
            b'a' => {
                let item = self.pop()?;
                self.extend_sequence(&[item])?;
            }
            b'e' | 0x90 => {
                let items = self.pop_to_mark()?;
                self.extend_sequence(&items)?;
            }
            b's' => {
                let items = self.pop_many(2)?;
                self.extend_dict(&items)?;
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.extend_dict(&items)?;
            }
            b'c' => {
                let (module, name) = (self.line()?.to_owned(), self.line()?.to_owned());
                let global = Global::named(&module, &name)?;
                self.push(Node::Global(global))?;
            }
            0x93 => {
                let names = self.pop_many(2)?;
                let (Node::Text(module), Node::Text(name)) =
                    (self.node(names[0]), self.node(names[1]))
                else {
                    return Err(damaged("a global without a name"));
                };
                let global = Global::named(module, name)?;
                self.push(Node::Global(global))?;
            }
            b'Q' => {
                let id = self.pop()?;
                self.persistent(id)?;
            }
            b'R' | 0x81 => {
                let parts = self.pop_many(2)?;
                let made = self.call(parts[0], parts[1], 0)?;
                self.push(made)?;
            }
            b'b' => {
                let parts = self.pop_many(2)?;
                self.build(parts[0], parts[1])?;
            }
            other => return Err(PickleError::Operation(operation_name(other))),
        }
        Ok(true)
    }

    // ---- reading --------------------------------------------------------------------------

    fn byte(&mut self) -> Result<u8, PickleError> {
        let byte = *self.input.get(self.at).ok_or(PickleError::Truncated)?;
        self.at += 1;
        Ok(byte)
    }

    fn bytes(&mut self, length: u64) -> Result<&[u8], PickleError> {
        let end = usize::try_from(length)
            .ok()
            .and_then(|length| self.at.checked_add(length))
            .ok_or(PickleError::Truncated)?;
        let bytes = self.input.get(self.at..end).ok_or(PickleError::Truncated)?;
        self.at = end;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], PickleError> {
        let bytes = self.bytes(N as u64)?;
        bytes.try_into().map_err(|_| PickleError::Truncated)
    }

    fn line(&mut self) -> Result<&str, PickleError> {
        let rest = &self.input[self.at..];
        let length = rest
            .iter()
            .position(|byte| *byte == b'\n')
            .ok_or(PickleError::Truncated)?;
        self.at += length + 1;
        std::str::from_utf8(&rest[..length]).map_err(|_| damaged("a line that is no text"))
    }

    // ---- the stack ------------------------------------------------------------------------

    fn charge(&mut self, items: usize) -> Result<(), PickleError> {
        self.budget = self
            .budget
            .checked_sub(items)
            .ok_or(PickleError::TooManyItems { limit: MAX_ITEMS })?;
        Ok(())
    }

    fn push_id(&mut self, id: NodeId) -> Result<(), PickleError> {
        self.charge(1)?;
        self.stack.push(id);
        Ok(())
    }

    fn push(&mut self, node: Node) -> Result<(), PickleError> {
        let id = self.nodes.len() as NodeId;
        self.push_id(id)?;
        self.nodes.push(node);
        Ok(())
    }

    fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id as usize]
    }

    /// The height below which the current mark forbids to reach.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<NodeId, PickleError> {
        if self.stack.len() <= self.floor() {
            return Err(damaged("an operation without a value"));
        }
        Ok(self.stack[self.stack.len() - 1])
    }

    fn pop(&mut self) -> Result<NodeId, PickleError> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_many(&mut self, count: usize) -> Result<Vec<NodeId>, PickleError> {
        match self.stack.len().checked_sub(count) {
            Some(begin) if begin >= self.floor() => Ok(self.stack.split_off(begin)),
            _ => Err(damaged("an operation without a value")),
        }
    }

    fn pop_to_mark(&mut self) -> Result<Vec<NodeId>, PickleError> {
        let begin = self
            .marks
            .pop()
            .ok_or_else(|| damaged("an operation without a mark"))?;
        Ok(self.stack.split_off(begin))
    }

    fn remember(&mut self, operation: u8) -> Result<(), PickleError> {
        let index = match operation {
            b'q' | b'h' => u32::from(self.byte()?),
            b'r' | b'j' => u32::from_le_bytes(self.array()?),
            0x94 => self.memo.len() as u32,
            _ => self
                .line()?
                .parse()
                .map_err(|_| damaged("a memo without a number"))?,
        };
        if matches!(operation, b'h' | b'j' | b'g') {
            let id = self.memo.get(&index).copied();
            return self.push_id(id.ok_or_else(|| damaged("a memo that was never written"))?);
        }
        let top = self.top()?;
        self.charge(1)?;
        self.memo.insert(index, top);
        Ok(())
    }

    // ---- values ---------------------------------------------------------------------------

    fn number(&mut self, operation: u8) -> Result<(), PickleError> {
        let node = match operation {
            b'N' => Node::None,
            0x88 => Node::Bool(true),
            0x89 => Node::Bool(false),
            b'K' => Node::Int(i64::from(self.byte()?)),
            b'M' => Node::Int(i64::from(u16::from_le_bytes(self.array()?))),
            b'J' => Node::Int(i64::from(i32::from_le_bytes(self.array()?))),
            b'G' => Node::Float(f64::from_be_bytes(self.array()?)),
            0x8a => {
                let length = u64::from(self.byte()?);
                long(self.bytes(length)?)
            }
            0x8b => {
                let length = u64::from(u32::from_le_bytes(self.array()?));
                long(self.bytes(length)?)
            }
            b'F' => Node::Float(self.parsed("a float")?),
            _ => match self.line()? {
                "01" => Node::Bool(true),
                "00" => Node::Bool(false),
                text => Node::Int(
                    text.trim_end_matches('L')
                        .parse()
                        .map_err(|_| damaged("an integer that is none"))?,
                ),
            },
        };
        self.push(node)
    }

    fn parsed<T: std::str::FromStr>(&mut self, what: &str) -> Result<T, PickleError> {
        self.line()?
            .parse()
            .map_err(|_| damaged(&format!("{what} that is none")))
    }

    fn text(&mut self, operation: u8) -> Result<(), PickleError> {
        if operation == b'V' {
            let line = self.line()?.to_owned();
            return self.push(Node::Text(line));
        }
        let length = match operation {
            0x8c | b'U' | b'C' => u64::from(self.byte()?),
            b'X' | b'T' | b'B' => u64::from(u32::from_le_bytes(self.array()?)),
            _ => u64::from_le_bytes(self.array()?),
        };
        let bytes = self.bytes(length)?;
        let node = match operation {
            b'C' | b'B' | 0x8e | 0x96 => Node::Bytes(bytes.to_vec()),
            // Lone surrogates and Python 2's byte strings are no UTF-8; names never hold them.
            _ => Node::Text(String::from_utf8_lossy(bytes).into_owned()),
        };
        self.push(node)
    }

    fn extend_sequence(&mut self, items: &[NodeId]) -> Result<(), PickleError> {
        self.charge(items.len())?;
        let target = self.top()?;
        match &mut self.nodes[target as usize] {
            Node::Sequence(sequence) => sequence.extend_from_slice(items),
            Node::Opaque { .. } => {}
            _ => return Err(damaged("items for something that is no list")),
        }
        Ok(())
    }

    fn extend_dict(&mut self, items: &[NodeId]) -> Result<(), PickleError> {
        self.charge(items.len())?;
        let new = pairs(items)?;
        let target = self.top()?;
        match &mut self.nodes[target as usize] {
            Node::Dict(dict) => dict.extend(new),
            Node::Opaque { .. } => {}
            _ => return Err(damaged("entries for something that is no dictionary")),
        }
        Ok(())
    }

    // ---- what stands for calls --------------------------------------------------------------

    fn sequence(&self, id: NodeId) -> Result<&[NodeId], PickleError> {
        match self.node(id) {
            Node::Sequence(items) => Ok(items),
            _ => Err(damaged("a value that should be a tuple is none")),
        }
    }

    /// What `callee(*arguments)` stands for.
    fn call(
        &mut self,
        callee: NodeId,
        arguments: NodeId,
        depth: usize,
    ) -> Result<Node, PickleError> {
        let Node::Global(global) = self.node(callee) else {
            return Err(damaged("something is called that is no class"));
        };
        let global = global.clone();
        let arguments = self.sequence(arguments)?;
        let first = arguments.first().copied();
        let needs = |what: &str| damaged(&format!("{what} without its arguments"));
        match global {
            Global::RebuildTensor => {
                let arguments = arguments
                    .get(..4)
                    .ok_or_else(|| needs("a tensor"))?
                    .to_vec();
                self.tensor(&arguments, None)
            }
            Global::RebuildTensorV3 => {
                let arguments = arguments
                    .get(..7)
                    .ok_or_else(|| needs("a tensor"))?
                    .to_vec();
                let Node::Global(Global::ElementType(element)) = self.node(arguments[6]) else {
                    return Err(needs("a tensor"));
                };
                let element = *element;
                self.tensor(&arguments[..4], Some(element))
            }
            Global::RebuildParameter => {
                let inner = first.ok_or_else(|| needs("a parameter"))?;
                match self.node(inner) {
                    tensor @ Node::Tensor(_) => Ok(tensor.clone()),
                    _ => Err(needs("a parameter")),
                }
            }
            Global::RebuildFromType => {
                let [function, _class, inner, ..] = *arguments else {
                    return Err(needs("a tensor"));
                };
                if depth > 4 {
                    return Err(damaged("tensors within tensors"));
                }
                self.call(function, inner, depth + 1)
            }
            Global::OrderedDict => match first {
                None => Ok(Node::Dict(Vec::new())),
                Some(items) => self.dict_of(items),
            },
            Global::DefaultDict => Ok(Node::Dict(Vec::new())),
            Global::Set | Global::Size => {
                let items = match first {
                    None => Vec::new(),
                    Some(items) => self.sequence(items)?.to_vec(),
                };
                self.charge(items.len())?;
                Ok(Node::Sequence(items))
            }
            Global::Opaque(class) => Ok(Node::Opaque { class, state: None }),
            Global::Storage(_) | Global::UntypedStorage | Global::ElementType(_) => {
                Err(damaged("a storage that is not named by an id"))
            }
        }
    }

    /// `OrderedDict([[key, value], …])`, as Python 2 wrote it.
    fn dict_of(&mut self, items: NodeId) -> Result<Node, PickleError> {
        let mut dict = Vec::new();
        for item in self.sequence(items)? {
            let [key, value] = self.sequence(*item)? else {
                return Err(damaged("a dictionary entry that is no pair"));
            };
            dict.push((*key, *value));
        }
        self.charge(dict.len())?;
        Ok(Node::Dict(dict))
    }

    /// `_rebuild_tensor_v2(storage, offset, size, stride, …)`; `element` where the storage is
    /// untyped.
    fn tensor(
        &mut self,
        arguments: &[NodeId],
        element: Option<StoredType>,
    ) -> Result<Node, PickleError> {
        let Node::Storage(storage) = *self.node(arguments[0]) else {
            return Err(damaged("a tensor without a storage"));
        };
        let spec = &self.storages[storage];
        let stored_type = element.unwrap_or(spec.stored_type);
        let tensor = TensorSpec {
            storage,
            stored_type,
            offset: self.whole(arguments[1])?,
            shape: self.dims(arguments[2])?,
            strides: self.dims(arguments[3])?,
        };
        let available = spec.count * spec.stored_type.size_bytes() / stored_type.size_bytes();
        let inside = tensor.shape.len() == tensor.strides.len()
            && elements_reached(&tensor).is_some_and(|reached| reached <= available);
        if !inside {
            return Err(damaged("a tensor lies outside its storage"));
        }
        Ok(Node::Tensor(Box::new(tensor)))
    }

    fn dims(&self, id: NodeId) -> Result<Vec<u64>, PickleError> {
        let items = self.sequence(id)?;
        if items.len() > MAX_RANK {
            return Err(damaged("a tensor with too many dimensions"));
        }
        items.iter().map(|item| self.whole(*item)).collect()
    }

    fn whole(&self, id: NodeId) -> Result<u64, PickleError> {
        match self.node(id) {
            Node::Int(number) => u64::try_from(*number).ok(),
            _ => None,
        }
        .ok_or_else(|| damaged("a size that is no whole number"))
    }

    /// `('storage', type, key, location, count)`, in old files followed by a view.
    fn persistent(&mut self, id: NodeId) -> Result<(), PickleError> {
        let unknown = || damaged("a reference that is no storage");
        let items = self.sequence(id)?;
        let [kind, class, key, _location, count, rest @ ..] = items else {
            return Err(unknown());
        };
        let (Node::Text(kind), Node::Global(class), Node::Text(key)) =
            (self.node(*kind), self.node(*class), self.node(*key))
        else {
            return Err(unknown());
        };
        let stored_type = match class {
            Global::Storage(stored_type) => *stored_type,
            Global::UntypedStorage => StoredType::U8,
            _ => return Err(unknown()),
        };
        let whole_count = self.whole(*count)?;
        let (mut first, mut view_count) = (0, whole_count);
        if let Some(view) = rest.first().filter(|view| *self.node(**view) != Node::None) {
            let [_key, offset, length] = self.sequence(*view)? else {
                return Err(unknown());
            };
            first = self.whole(*offset)?;
            view_count = self.whole(*length)?;
        }
        let fits = first
            .checked_add(view_count)
            .is_some_and(|end| end <= whole_count);
        // The size in bytes must not overflow.
        if kind != "storage" || !fits || whole_count > u64::MAX / 64 {
            return Err(unknown());
        }
        let spec = StorageSpec {
            key: key.clone(),
            stored_type,
            first,
            count: view_count,
            whole_count,
        };
        self.storages.push(spec);
        self.push(Node::Storage(self.storages.len() - 1))
    }

    /// The state of an object; a dictionary's attributes (`_metadata`) and a tensor's are not kept.
    fn build(&mut self, target: NodeId, new_state: NodeId) -> Result<(), PickleError> {
        match &mut self.nodes[target as usize] {
            Node::Opaque { state, .. } => *state = Some(new_state),
            Node::Dict(_) | Node::Tensor(_) => {}
            _ => return Err(damaged("a state for something that has none")),
        }
        self.push_id(target)
    }
}

/// One past the last element that a tensor touches; `None` on overflow.
fn elements_reached(tensor: &TensorSpec) -> Option<u64> {
    let count = tensor
        .shape
        .iter()
        .try_fold(1_u64, |count, dim| count.checked_mul(*dim));
    if tensor.shape.contains(&0) {
        return Some(0);
    }
    count?;
    let mut last = tensor.offset;
    for (dim, stride) in tensor.shape.iter().zip(&tensor.strides) {
        last = last.checked_add((dim - 1).checked_mul(*stride)?)?;
    }
    last.checked_add(1)
}

fn pairs(items: &[NodeId]) -> Result<Vec<(NodeId, NodeId)>, PickleError> {
    let (pairs, rest) = items.as_chunks::<2>();
    if rest.is_empty() {
        Ok(pairs.iter().map(|[key, value]| (*key, *value)).collect())
    } else {
        Err(damaged("a key without a value"))
    }
}

/// A little-endian two's complement integer of any length.
fn long(bytes: &[u8]) -> Node {
    let sign = bytes
        .last()
        .map_or(0, |last| if *last > 0x7f { 0xff } else { 0 });
    if bytes.len() > 8 {
        return Node::LongInt(bytes.to_vec());
    }
    let mut whole = [sign; 8];
    whole[..bytes.len()].copy_from_slice(bytes);
    Node::Int(i64::from_le_bytes(whole))
}

fn damaged(reason: &str) -> PickleError {
    PickleError::Damaged(format!("it has {reason}"))
}

/// The name in `pickletools` of an operation that is refused.
fn operation_name(operation: u8) -> String {
    let name = match operation {
        b'P' => "PERSID",
        b'S' => "STRING",
        b'i' => "INST",
        b'o' => "OBJ",
        0x82 => "EXT1",
        0x83 => "EXT2",
        0x84 => "EXT4",
        0x92 => "NEWOBJ_EX",
        0x97 => "NEXT_BUFFER",
        0x98 => "READONLY_BUFFER",
        other => return format!("{other:#04x}"),
    };
    name.to_owned()
}
