use std::path::PathBuf;

use serde_json::Value;

use super::*;

fn golden(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join("tests/golden/pickles").join(name)
}

fn listing() -> Value {
    let text = fs_err::read_to_string(golden("pickles.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn open_bytes(bytes: &[u8]) -> Result<TensorFile, TensorFileError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs_err::write(file.path(), bytes).unwrap();
    TorchFile::open(file.path())?.weights().tensor_table()
}

fn type_name(stored_type: StoredType) -> &'static str {
    match stored_type {
        StoredType::F64 => "float64",
        StoredType::F32 => "float32",
        StoredType::F16 => "float16",
        StoredType::Bf16 => "bfloat16",
        StoredType::I64 => "int64",
        StoredType::I32 => "int32",
        StoredType::I16 => "int16",
        StoredType::I8 => "int8",
        StoredType::U8 => "uint8",
        StoredType::Bool => "bool",
        StoredType::Other { .. } => "other",
    }
}

#[test]
fn what_torch_saved_is_read_to_the_last_value() {
    let listing = listing();
    for (name, tensors) in listing["files"].as_object().unwrap() {
        let file = TensorFile::open(&golden(name)).unwrap();
        let same_as = tensors.as_str().map(|other| &listing["files"][other]);
        let tensors = same_as.unwrap_or(tensors).as_object().unwrap();
        assert!(
            file.names().eq(tensors.keys().map(String::as_str)),
            "{name}"
        );
        for (tensor, want) in tensors {
            let stored = file.get(tensor).unwrap();
            assert_eq!(
                type_name(stored.stored_type),
                want["type"],
                "{name}: {tensor}"
            );
            assert_eq!(
                serde_json::json!(stored.shape),
                want["shape"],
                "{name}: {tensor}"
            );
            let got = file.read_f32(tensor).unwrap();
            assert_eq!(serde_json::json!(got), want["values"], "{name}: {tensor}");
        }
    }
}

#[test]
fn row_major_tensors_stay_in_the_file() {
    for (name, strange_only) in [
        ("zip.pt", true),
        ("sequence.pt", true),
        ("deflated.pt", false),
    ] {
        let file = TensorFile::open(&golden(name)).unwrap();
        for (tensor, _) in file.iter() {
            let strange = ["rows", "transposed", "channels_last"].contains(&tensor);
            let copied = file.inline(tensor).is_some();
            assert_eq!(copied, strange || !strange_only, "{name}: {tensor}");
        }
    }
}

#[test]
fn hostile_files_are_refused_and_named() {
    for (name, reason) in listing()["refused"].as_object().unwrap() {
        let error = TensorFile::open(&golden(name)).unwrap_err().to_string();
        assert!(error.contains(reason.as_str().unwrap()), "{name}: {error}");
        assert!(error.contains(name), "{error}");
    }
}

#[test]
fn the_parts_of_an_embedding_are_found() {
    let file = TorchFile::open(&golden("embedding.pt")).unwrap();
    let root = file.root();
    assert_eq!(
        root.get("name").and_then(|name| name.as_text()),
        Some("tiny")
    );
    assert_eq!(root.get("step").and_then(|step| step.as_int()), Some(499));
    assert!(root.get("sd_checkpoint").unwrap().is_none());
    let parameters = root.get("string_to_param").unwrap();
    let (key, vectors) = parameters.entries().next().unwrap();
    assert_eq!(key.as_text(), Some("*"));
    assert_eq!(vectors.shape().unwrap(), [2, 2]);
    assert_eq!(vectors.read_f32().unwrap(), [0.25, -0.5, 1.0, 2.0]);
}

#[test]
fn what_a_trainer_left_is_an_empty_shell() {
    let file = TorchFile::open(&golden("trainer.ckpt")).unwrap();
    let callbacks = file.root().get("callbacks").unwrap();
    let (_, left) = callbacks.entries().next().unwrap();
    assert_eq!(
        left.class(),
        Some("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")
    );
}

#[test]
fn files_cut_off_anywhere_are_refused() {
    for name in ["zip.pt", "sequence.pt", "deflated.pt"] {
        let whole = fs_err::read(golden(name)).unwrap();
        for length in (0..whole.len()).step_by(7) {
            assert!(
                open_bytes(&whole[..length]).is_err(),
                "{name} cut to {length}"
            );
        }
    }
}

#[test]
fn changed_bytes_never_panic() {
    for name in ["zip.pt", "sequence.pt", "deflated.pt", "trainer.ckpt"] {
        let whole = fs_err::read(golden(name)).unwrap();
        for at in (0..whole.len()).step_by(7) {
            let mut bytes = whole.clone();
            bytes[at] = [0x00, 0xff, bytes[at] ^ 0x01][at % 3];
            if let Ok(file) = open_bytes(&bytes) {
                for (tensor, stored) in file.iter() {
                    assert!(stored.length_bytes <= whole.len() as u64 * 64, "{tensor}");
                }
            }
        }
    }
}

/// A file in the older format around one pickle.
fn sequence(pickle: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x80\x02\x8a\x0a".to_vec();
    bytes.extend(MAGIC);
    bytes.extend(b".\x80\x02M\xe9\x03.\x80\x02}.");
    bytes.extend(pickle);
    bytes.extend(b"\x80\x02].");
    bytes
}

fn refusal(pickle: &[u8]) -> String {
    open_bytes(&sequence(pickle)).unwrap_err().to_string()
}

#[test]
fn deep_nesting_and_cycles_cost_neither_stack_nor_memory() {
    let mut deep = b"\x80\x02]".to_vec();
    deep.extend(std::iter::repeat_n(0x85, 1_000_000));
    deep.push(b'.');
    assert!(refusal(&deep).contains("no named tensors"));
    // A list that contains itself.
    assert!(refusal(b"\x80\x02]q\x00h\x00a.").contains("no named tensors"));
    // A dictionary under its own key.
    assert!(refusal(b"\x80\x02}q\x00X\x05\x00\x00\x00modelh\x00s.").contains("no named tensors"));
}

#[test]
fn pickles_that_build_too_much_are_stopped() {
    let many = vec![b']'; 5_000_000];
    assert!(refusal(&many).contains("more than 4000000 values"));
    // Copies of one long tuple.
    let mut copies = b"\x80\x02(".to_vec();
    copies.extend(std::iter::repeat_n(b'N', 100_000));
    copies.extend(b"tq\x00ccollections\nOrderedDict\nq\x01");
    copies.extend(b"0cbuiltins\nset\nq\x02");
    for _ in 0..100 {
        copies.extend(b"h\x02h\x00\x85R");
    }
    assert!(refusal(&copies).contains("more than 4000000 values"));
    // A text that claims to be four gigabytes long.
    assert!(refusal(b"\x80\x02X\xff\xff\xff\xff").contains("ends early"));
    assert!(refusal(b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xff").contains("ends early"));
}

#[test]
fn operations_without_values_are_damage() {
    for pickle in [
        &b"\x80\x02."[..],
        b"\x80\x02R.",
        b"\x80\x02t.",
        b"\x80\x02Nb.",
        b"\x80\x02(N1.",
        b"\x80\x02h\x05.",
        b"\x80\x02N(a.",
        b"\x80\x02}(Nu.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"\x80\x02ctorch\nFloatStorage\n)R.",
        b"\x80\x02NQ.",
        b"\x80\x02I1x\n.",
    ] {
        let error = refusal(pickle);
        assert!(error.contains("damaged"), "{pickle:?}: {error}");
    }
}

#[test]
fn numbers_of_every_width_are_read() {
    let pickle = b"\x80\x02(K\xffM\xff\xffJ\xff\xff\xff\xff\x8a\x00\x8a\x01\x80\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x80\x00G\x3f\xf8\x00\x00\x00\x00\x00\x00F2.5\nI7\nI01\nL8L\n\x88Nt.";
    let (program, length) = machine::run(pickle).unwrap();
    assert_eq!(length, pickle.len());
    let Node::Sequence(items) = &program.nodes[program.root as usize] else {
        panic!("a tuple");
    };
    let got: Vec<&Node> = items
        .iter()
        .map(|id| &program.nodes[*id as usize])
        .collect();
    let want = [
        Node::Int(255),
        Node::Int(65535),
        Node::Int(-1),
        Node::Int(0),
        Node::Int(-128),
        Node::LongInt(vec![0, 0, 0, 0, 0, 0, 0, 0x80, 0]),
        Node::Float(1.5),
        Node::Float(2.5),
        Node::Int(7),
        Node::Bool(true),
        Node::Int(8),
        Node::Bool(true),
        Node::None,
    ];
    assert!(got.into_iter().eq(&want));
}

#[test]
fn a_zip_bomb_stays_small() {
    // A member of 256 MiB of zeros that claims to be four floats long, and one that says so.
    use std::io::Write as _;
    let zeros = vec![0_u8; 1 << 20];
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    for _ in 0..256 {
        encoder.write_all(&zeros).unwrap();
    }
    let packed = encoder.finish().unwrap();
    let pickle = |count: &[u8]| {
        let mut pickle = b"\x80\x02}U\x01actorch._utils\n_rebuild_tensor_v2\n((U\x07storagectorch\nFloatStorage\nU\x010U\x03cpu".to_vec();
        pickle.extend(count);
        pickle.extend(b"tQK\x00");
        pickle.extend(count);
        pickle.extend(b"\x85K\x01\x85\x89}tRs.");
        pickle
    };
    let lies = archive(&pickle(b"K\x04"), &packed, 16);
    let error = open_bytes(&lies).unwrap_err().to_string();
    assert!(error.contains("another size than it claims"), "{error}");
    let honest = archive(&pickle(b"J\x00\x00\x00\x04"), &packed, 256 << 20);
    let error = open_bytes(&honest).unwrap_err().to_string();
    assert!(error.contains("bytes of memory"), "{error}");
}

/// An archive of `data.pkl`, stored, and `data/0`, deflated, which claims `size` bytes.
fn archive(pickle: &[u8], packed: &[u8], size: u32) -> Vec<u8> {
    let members = [
        ("a/data.pkl", pickle, 0_u16, pickle.len() as u32),
        ("a/data/0", packed, 8, size),
    ];
    let mut bytes = Vec::new();
    let mut directory = Vec::new();
    for (name, content, method, size) in members {
        let offset = bytes.len() as u32;
        // Version, flags, method, time, date, checksum, sizes, lengths of name and extra field.
        let mut facts = vec![20, 0, 0, 0];
        facts.extend(method.to_le_bytes());
        facts.extend([0; 8]);
        facts.extend((content.len() as u32).to_le_bytes());
        facts.extend(size.to_le_bytes());
        facts.extend((name.len() as u16).to_le_bytes());
        facts.extend([0; 2]);
        bytes.extend(b"PK\x03\x04");
        bytes.extend(&facts);
        bytes.extend(name.bytes());
        bytes.extend(content);
        directory.extend(b"PK\x01\x02\x14\x00");
        directory.extend(&facts);
        directory.extend([0; 10]);
        directory.extend(offset.to_le_bytes());
        directory.extend(name.bytes());
    }
    let begin = bytes.len() as u32;
    bytes.extend(&directory);
    bytes.extend(b"PK\x05\x06\0\0\0\0\x02\0\x02\0");
    bytes.extend((directory.len() as u32).to_le_bytes());
    bytes.extend(begin.to_le_bytes());
    bytes.extend([0; 2]);
    bytes
}
