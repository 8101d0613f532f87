//! Model files that lie: each gives one clear error, nothing in them is run, and nothing outside their
//! folder is read. `tests/mutations.rs` feeds the readers with mutated files.

#[path = "support/golden_models.rs"]
mod golden_models;
#[path = "support/onnx_runtime.rs"]
mod onnx_runtime;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use ancestral::catalogue::{Catalogue, CatalogueConfig, TensorFile, read_embedding};
use ancestral::models::{CheckpointPlan, Provider, ProviderConfig};
use ancestral::pipeline::{ModelProvider as _, ModelRequest};
use ancestral::runtime::{Graph, GraphSource};
use onnx_runtime::runtime;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(data);
    bytes
}

/// Files that are no weights, with a part of the sentence that each gives.
fn lying_weights() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let entry = |text: &str| safetensors(&format!("{{\"a\":{text}}}"), &[0; 16]);
    let mut huge = safetensors("{}", b"");
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let mut half = safetensors("{}", b"");
    half[..8].copy_from_slice(&(1_u64 << 40).to_le_bytes());
    let deep = format!("{{\"a\":{}", "[".repeat(100_000));
    vec![
        ("empty.safetensors", Vec::new(), "only 0 bytes"),
        ("short.safetensors", vec![1, 2, 3], "only 3 bytes"),
        (
            "huge.safetensors",
            huge,
            "claims 18446744073709551615 bytes",
        ),
        ("half.safetensors", half, "claims 1099511627776 bytes"),
        (
            "no-json.safetensors",
            safetensors("{]", b""),
            "no valid safetensors",
        ),
        (
            "list.safetensors",
            safetensors("[1, 2]", b""),
            "no JSON object",
        ),
        (
            "deep.safetensors",
            safetensors(&deep, b""),
            "recursion limit",
        ),
        (
            "past-end.safetensors",
            entry(r#"{"dtype":"F32","shape":[8],"data_offsets":[0,32]}"#),
            "past the end of the file",
        ),
        (
            "backwards.safetensors",
            entry(r#"{"dtype":"F32","shape":[1],"data_offsets":[8,4]}"#),
            "ends before it begins",
        ),
        (
            "shape.safetensors",
            entry(r#"{"dtype":"F32","shape":[3],"data_offsets":[0,16]}"#),
            "its shape needs 12 bytes, it has 16",
        ),
        (
            "overflow.safetensors",
            entry(r#"{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,16]}"#),
            "overflows",
        ),
        (
            "negative.safetensors",
            entry(r#"{"dtype":"F32","shape":[-1],"data_offsets":[0,16]}"#),
            "no whole number",
        ),
        (
            "wrap.safetensors",
            entry(
                r#"{"dtype":"U8","shape":[1],"data_offsets":[18446744073709551614,18446744073709551615]}"#,
            ),
            "past the end of the file",
        ),
        (
            "type.safetensors",
            entry(r#"{"dtype":"F128","shape":[1],"data_offsets":[0,16]}"#),
            "unknown dtype F128",
        ),
        (
            "text.ckpt",
            b"<html>404 Not Found</html>".to_vec(),
            "no file that torch saved",
        ),
        (
            "zip.ckpt",
            b"PK\x03\x04 and nothing else".to_vec(),
            "cannot be used",
        ),
    ]
}

fn assert_one_sentence(error: &str, name: &str, part: &str) {
    assert!(error.contains(part), "{name}: {error}");
    assert!(error.contains(name), "{error} names no file");
    assert!(
        !error.contains('\n') && error.len() < 400,
        "{name}: {error}"
    );
}

#[test]
fn files_that_lie_about_themselves_give_one_sentence() {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes, part) in lying_weights() {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        let error = TensorFile::open(&path).unwrap_err().to_string();
        assert_one_sentence(&error, name, part);
        let error = CheckpointPlan::open(&path, &[]).unwrap_err().to_string();
        assert_one_sentence(&error, name, part);
    }
    let path = folder.path().join("folder.safetensors");
    fs::create_dir(&path).unwrap();
    assert!(TensorFile::open(&path).is_err());
}

#[test]
fn a_folder_full_of_broken_files_is_listed_and_harms_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let models = folder.path().join("models");
    let pickles = root().join("tests/golden/pickles");
    let hostile: Vec<PathBuf> = ["command.pt", "global.pt", "script.pt", "instance.pt"]
        .iter()
        .map(|name| pickles.join(name))
        .collect();
    for (kind, ending) in [
        ("Stable-diffusion", "ckpt"),
        ("VAE", "pt"),
        ("Lora", "pt"),
        ("hypernetworks", "pt"),
        ("../embeddings", "pt"),
    ] {
        let target = models.join(kind);
        fs::create_dir_all(&target).unwrap();
        for (name, bytes, _) in lying_weights() {
            fs::write(target.join(name), bytes).unwrap();
        }
        for path in &hostile {
            let stem = path.file_stem().unwrap().to_string_lossy();
            fs::copy(path, target.join(format!("{stem}.{ending}"))).unwrap();
        }
    }
    let catalogue = Catalogue::new(CatalogueConfig {
        models_dir: models,
        embeddings_dir: Some(folder.path().join("embeddings")),
        ..CatalogueConfig::default()
    });
    let checkpoints = catalogue.checkpoints();
    assert_eq!(checkpoints.len(), lying_weights().len() + hostile.len());
    for checkpoint in &checkpoints {
        let error = CheckpointPlan::open(&checkpoint.path, &[])
            .unwrap_err()
            .to_string();
        assert!(!error.contains('\n'), "{error}");
    }
    // The log tells each with its reason, and the list keeps it.
    assert_eq!(catalogue.check_checkpoints().len(), checkpoints.len());
    assert_eq!(catalogue.checkpoints().len(), checkpoints.len());
    assert!(catalogue.embeddings().files().is_empty());
    assert_eq!(catalogue.networks().files().len(), checkpoints.len());
    // Names lead nowhere but to files of the lists.
    for name in [
        "../../etc/passwd",
        "..",
        "/etc/passwd",
        "../models/VAE/x",
        "a\0b",
    ] {
        assert_eq!(catalogue.find(name), None, "{name}");
        assert_eq!(catalogue.networks().find(name), None, "{name}");
        assert_eq!(catalogue.hypernetworks().find(name), None, "{name}");
        assert_eq!(
            catalogue.choose_vae(name, false, &checkpoints[0]),
            None,
            "{name}"
        );
    }
}

/// A tiny real checkpoint with one tensor declared in another shape.
#[test]
fn wrong_shapes_are_refused_with_the_tensors_name() {
    let folder = tempfile::tempdir().unwrap();
    golden_models::write_data_folder(folder.path(), &root().join("compat-tests/golden/models"));
    let models = folder.path().join("models");
    let source = models.join("Stable-diffusion/tiny-sd1.safetensors");
    let bytes = fs::read(&source).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let data = &bytes[8 + length..];
    let unet = "model.diffusion_model.";
    for (tensor, shape) in [
        ("input_blocks.0.0.weight", vec![1_u64]),
        ("time_embed.0.weight", vec![]),
        (
            "middle_block.1.transformer_blocks.0.attn2.to_k.weight",
            vec![0, 0],
        ),
        ("out.2.weight", vec![1, 1, 1]),
        ("input_blocks.1.0.in_layers.0.weight", vec![1, 1]),
        ("middle_block.1.proj_in.weight", vec![1]),
    ] {
        let mut changed = header.clone();
        let name = format!("{unet}{tensor}");
        let entry = &mut changed[&name];
        assert!(entry.is_object(), "{name}");
        let begin = entry["data_offsets"][0].as_u64().unwrap();
        let count: u64 = shape.iter().product();
        entry["shape"] = serde_json::json!(shape);
        entry["data_offsets"] = serde_json::json!([begin, begin + 2 * count]);
        entry["dtype"] = "F16".into();
        let path = folder.path().join("wrong.safetensors");
        fs::write(&path, safetensors(&changed.to_string(), data)).unwrap();
        fs::copy(source.with_extension("yaml"), path.with_extension("yaml")).unwrap();
        let catalogue = Catalogue::new(CatalogueConfig {
            extra_checkpoints: vec![path],
            ..CatalogueConfig::default()
        });
        let config = ProviderConfig {
            tower_folders: vec![models.clone()],
            ..ProviderConfig::default()
        };
        let provider = Provider::new(runtime(), Arc::new(catalogue), config);
        let loaded = provider.load(&ModelRequest::default());
        let error = loaded.err().expect(tensor).to_string();
        assert!(
            !error.contains('\n') && error.len() < 600,
            "{tensor}: {error}"
        );
    }
}

#[test]
fn a_small_picture_does_not_unpack_to_gigabytes() {
    use std::io::Write as _;
    // 64 KiB of zlib data that would unpack to 64 MiB and more of JSON blanks.
    let mut packer = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    let blanks = vec![b' '; 1 << 20];
    for _ in 0..80 {
        packer.write_all(&blanks).unwrap();
    }
    let packed = packer.finish().unwrap();
    let mut bytes = Vec::new();
    let encoder = png::Encoder::new(&mut bytes, 1, 1);
    let mut writer = encoder.write_header().unwrap();
    let mut chunk = b"sd-ti-embedding\0\0".to_vec();
    chunk.extend_from_slice(&packed);
    writer.write_chunk(png::chunk::zTXt, &chunk).unwrap();
    writer.write_image_data(&[0]).unwrap();
    writer.finish().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bomb.png");
    fs::write(&path, bytes).unwrap();
    let error = read_embedding(&path).unwrap_err();
    assert!(error.contains("embedding"), "{error}");
}

/// One length-delimited field of a protobuf message.
fn field(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag << 3 | 2];
    let mut length = content.len();
    while length > 127 {
        bytes.push((length & 127) as u8 | 128);
        length >>= 7;
    }
    bytes.push(length as u8);
    bytes.extend_from_slice(content);
    bytes
}

/// One small number of a protobuf message.
fn number(tag: u8, value: u8) -> Vec<u8> {
    vec![tag << 3, value]
}

const EXTERNAL_VALUES: u8 = 64;

/// An ONNX model that adds 64 values, which lie at `location`, to its input.
fn adds_external(location: &str) -> Vec<u8> {
    let pair = |key: &str, value: &str| {
        field(
            13,
            &[field(1, key.as_bytes()), field(2, value.as_bytes())].concat(),
        )
    };
    let tensor = [
        number(1, EXTERNAL_VALUES),
        number(2, 1),
        field(8, b"w"),
        pair("location", location),
        pair("length", &(4 * u32::from(EXTERNAL_VALUES)).to_string()),
        number(14, 1),
    ]
    .concat();
    let port = |name: &[u8]| {
        let dims = field(1, &number(1, EXTERNAL_VALUES));
        let kind = [number(1, 1), field(2, &dims)].concat();
        [field(1, name), field(2, &field(1, &kind))].concat()
    };
    let node = [
        field(1, b"x"),
        field(1, b"w"),
        field(2, b"y"),
        field(4, b"Add"),
    ]
    .concat();
    let graph = [
        field(1, &node),
        field(2, b"g"),
        field(5, &tensor),
        field(11, &port(b"x")),
        field(12, &port(b"y")),
    ]
    .concat();
    [number(1, 9), field(7, &graph), field(8, &number(2, 17))].concat()
}

/// Where an ONNX file may keep its weights: in its own folder, nowhere else. What was loaded from
/// there does not depend on the file any more, which may be replaced in place.
#[test]
fn external_data_stays_in_its_folder_and_may_be_cut_short_while_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let (model, secret) = (
        folder.path().join("in/m.onnx"),
        folder.path().join("secret.bin"),
    );
    fs::create_dir_all(folder.path().join("in/sub")).unwrap();
    let values: Vec<u8> = (0..EXTERNAL_VALUES)
        .flat_map(|n| f32::from(n).to_le_bytes())
        .collect();
    let own = folder.path().join("in/sub/own.bin");
    for path in [&secret, &own] {
        fs::write(path, &values).unwrap();
    }
    #[cfg(unix)]
    std::os::unix::fs::symlink(&secret, folder.path().join("in/link.bin")).unwrap();
    let load = |location: &str| {
        fs::write(&model, adds_external(location)).unwrap();
        Graph::load(&runtime(), "test", GraphSource::File(&model))
    };
    let graph = load("sub/own.bin").unwrap();
    let input: ndarray::Array1<f32> = ndarray::Array1::zeros(usize::from(EXTERNAL_VALUES));
    let run = || graph.run(&[("x", (&input).into())], &["y"]).unwrap();
    assert_eq!(run()[0].as_slice().unwrap()[5], 5.0);
    fs::write(&own, b"").unwrap();
    assert_eq!(run()[0].as_slice().unwrap()[63], 63.0);
    let absolute = secret.display().to_string();
    let mut outside = vec!["../secret.bin", "sub/../../secret.bin", absolute.as_str()];
    if cfg!(unix) {
        outside.push("link.bin");
    }
    for location in outside {
        let error = load(location).err().expect(location).to_string();
        assert!(
            error.contains("lies outside its folder"),
            "{location}: {error}"
        );
    }
    for (location, part) in [("nowhere.bin", "missing"), ("sub/own.bin", "past the end")] {
        let error = load(location).err().expect(location).to_string();
        assert!(error.contains(part), "{location}: {error}");
    }
}

/// Links that the user placed in a models folder are followed, as in A1111; names of requests are
/// looked up in the lists and lead nowhere else.
#[cfg(unix)]
#[test]
fn links_in_a_models_folder_are_followed_and_names_do_not_leave_it() {
    use std::os::unix::fs::symlink;
    let folder = tempfile::tempdir().unwrap();
    let golden = folder.path().join("golden");
    golden_models::write_data_folder(&golden, &root().join("compat-tests/golden/models"));
    let far = golden.join("models/Stable-diffusion");
    let models = folder.path().join("data/models");
    let own = models.join("Stable-diffusion");
    fs::create_dir_all(&own).unwrap();
    symlink(
        far.join("tiny-sd1.safetensors"),
        own.join("near.safetensors"),
    )
    .unwrap();
    fs::copy(far.join("tiny-sd1.yaml"), own.join("near.yaml")).unwrap();
    symlink(&far, own.join("shared")).unwrap();
    symlink(folder.path().join("gone"), own.join("dangling.safetensors")).unwrap();
    let catalogue = Arc::new(Catalogue::new(CatalogueConfig {
        models_dir: models,
        ..CatalogueConfig::default()
    }));
    let names: Vec<String> = catalogue
        .checkpoints()
        .into_iter()
        .map(|it| it.name)
        .collect();
    assert_eq!(names[0], "near.safetensors");
    assert!(
        names.contains(&"shared/tiny-sd1.safetensors".to_owned()),
        "{names:?}"
    );
    assert!(
        !names.iter().any(|name| name.contains("dangling")),
        "{names:?}"
    );
    for name in [
        "../golden/models/Stable-diffusion/tiny-sd1.safetensors",
        "shared/../near.safetensors",
        "shared/../../VAE/tiny-sd1-vae.safetensors",
    ] {
        assert_eq!(catalogue.find(name), None, "{name}");
    }
    let config = ProviderConfig {
        tower_folders: vec![golden.join("models")],
        ..ProviderConfig::default()
    };
    let provider = Provider::new(runtime(), catalogue, config);
    let request = ModelRequest {
        checkpoint: "near".to_owned(),
        ..ModelRequest::default()
    };
    assert_eq!(provider.load(&request).unwrap().name, "near");
}

/// A zip archive of one member that claims a size of its own.
fn archive(name: &str, content: &[u8], claimed: u32) -> Vec<u8> {
    use std::io::Write as _;
    let mut packer = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    packer.write_all(content).unwrap();
    let packed = packer.finish().unwrap();
    let facts = |bytes: &mut Vec<u8>| {
        bytes.extend([20, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend((packed.len() as u32).to_le_bytes());
        bytes.extend(claimed.to_le_bytes());
        bytes.extend((name.len() as u16).to_le_bytes());
        bytes.extend([0, 0]);
    };
    let mut bytes = b"PK\x03\x04".to_vec();
    facts(&mut bytes);
    bytes.extend(name.as_bytes());
    bytes.extend(&packed);
    let begin = bytes.len() as u32;
    bytes.extend(b"PK\x01\x02\x14\x00");
    facts(&mut bytes);
    bytes.extend([0; 14]);
    bytes.extend(name.as_bytes());
    let length = bytes.len() as u32 - begin;
    bytes.extend(b"PK\x05\x06\x00\x00\x00\x00\x01\x00\x01\x00");
    bytes.extend(length.to_le_bytes());
    bytes.extend(begin.to_le_bytes());
    bytes.extend([0, 0]);
    bytes
}

#[test]
fn zip_bombs_and_members_outside_the_archive_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let zeros = vec![0; 100 << 20];
    let size = zeros.len() as u32;
    for (name, bytes, part) in [
        // A hundred mebibytes in a hundred kibibytes, told and not told.
        (
            "honest.ckpt",
            archive("a/data.pkl", &zeros, size),
            "needs more than",
        ),
        (
            "lying.ckpt",
            archive("a/data.pkl", &zeros, 1000),
            "another size than it claims",
        ),
        // The member's name is a key, never a path.
        (
            "up.ckpt",
            archive("../../a/data.pkl", b"cos\nsystem\n.", 12),
            "system",
        ),
    ] {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        let error = CheckpointPlan::open(&path, &[]).unwrap_err().to_string();
        assert_one_sentence(&error, name, part);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "{name}");
        fs::remove_file(&path).unwrap();
    }
}
