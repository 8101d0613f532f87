//! Writes a dictionary of tensors as `torch.save` would, without torch.

#![allow(
    dead_code,
    reason = "every test crate that includes this module uses its own part of it"
)]

use ancestral::catalogue::{StoredType, TensorFile};

/// torch's two file formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TorchFormat {
    /// The zip archive.
    Archive,
    /// The sequence of pickles of before torch 1.6.
    Sequence,
}

/// The bytes of `torch.save({"global_step": 1, "state_dict": tensors})` for everything in `source`.
///
/// # Panics
/// When `source` holds element types other than float16 or cannot be read.
pub(crate) fn torch_file(source: &TensorFile, format: TorchFormat) -> Vec<u8> {
    let file = std::fs::read(source.path()).expect("a readable file");
    let storages: Vec<&[u8]> = source
        .iter()
        .map(|(_, tensor)| {
            let begin = tensor.offset as usize;
            &file[begin..begin + tensor.length_bytes as usize]
        })
        .collect();
    let pickle = pickled(source, format);
    match format {
        TorchFormat::Archive => {
            let names = (0..storages.len()).map(|key| format!("archive/data/{key}"));
            let mut members = vec![("archive/data.pkl".to_owned(), &pickle[..])];
            members.extend(names.zip(storages));
            archive(&members)
        }
        TorchFormat::Sequence => {
            // `MAGIC_NUMBER`, `PROTOCOL_VERSION`, facts about the machine.
            let mut bytes = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.".to_vec();
            bytes.extend(b"\x80\x02M\xe9\x03.\x80\x02}X\x0d\x00\x00\x00little_endian\x88s.");
            bytes.extend(pickle);
            bytes.extend(b"\x80\x02](");
            (0..storages.len()).for_each(|key| text(&mut bytes, &key.to_string()));
            bytes.extend(b"e.");
            for storage in storages {
                bytes.extend((storage.len() as u64 / 2).to_le_bytes());
                bytes.extend(storage);
            }
            bytes
        }
    }
}

/// `{"global_step": 1, "state_dict": OrderedDict(...)}`; every tensor has a storage of its own.
fn pickled(source: &TensorFile, format: TorchFormat) -> Vec<u8> {
    let mut out = b"\x80\x02}(".to_vec();
    text(&mut out, "global_step");
    out.extend(b"K\x01");
    text(&mut out, "state_dict");
    out.extend(b"ccollections\nOrderedDict\n)R(");
    for (key, (name, tensor)) in source.iter().enumerate() {
        assert_eq!(tensor.stored_type, StoredType::F16, "{name}");
        text(&mut out, name);
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut out, "storage");
        out.extend(b"ctorch\nHalfStorage\n");
        text(&mut out, &key.to_string());
        text(&mut out, "cpu");
        int(&mut out, tensor.length_bytes as usize / 2);
        if format == TorchFormat::Sequence {
            out.push(b'N'); // no view
        }
        out.extend(b"tQK\x00(");
        tensor.shape.iter().for_each(|dim| int(&mut out, *dim));
        out.extend(b"t(");
        for axis in 1..=tensor.shape.len() {
            int(&mut out, tensor.shape[axis..].iter().product());
        }
        out.extend(b"t\x89ccollections\nOrderedDict\n)RtR");
    }
    out.extend(b"uu.");
    out
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.as_bytes());
}

fn int(out: &mut Vec<u8>, value: usize) {
    out.push(b'J');
    out.extend((value as i32).to_le_bytes());
}

/// A zip archive of stored members; checksums are left out.
fn archive(members: &[(String, &[u8])]) -> Vec<u8> {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    for (name, content) in members {
        let offset = bytes.len() as u32;
        // Version, flags, method, time, date, checksum, sizes, lengths of name and extra field.
        let mut facts = vec![20, 0, 0, 0, 0, 0];
        facts.extend([0; 8]);
        facts.extend((content.len() as u32).to_le_bytes());
        facts.extend((content.len() as u32).to_le_bytes());
        facts.extend((name.len() as u16).to_le_bytes());
        facts.extend([0; 2]);
        bytes.extend(b"PK\x03\x04");
        bytes.extend(&facts);
        bytes.extend(name.bytes());
        bytes.extend(*content);
        directory.extend(b"PK\x01\x02\x14\x00");
        directory.extend(&facts);
        directory.extend([0; 10]);
        directory.extend(offset.to_le_bytes());
        directory.extend(name.bytes());
    }
    let begin = bytes.len() as u32;
    let count = (members.len() as u16).to_le_bytes();
    bytes.extend(&directory);
    bytes.extend(b"PK\x05\x06\0\0\0\0");
    bytes.extend(count);
    bytes.extend(count);
    bytes.extend((directory.len() as u32).to_le_bytes());
    bytes.extend(begin.to_le_bytes());
    bytes.extend([0; 2]);
    bytes
}
