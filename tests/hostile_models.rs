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
