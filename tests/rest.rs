//! Memory after pictures. A process of its own, since what is measured is the whole process.
#![cfg(all(target_os = "linux", target_env = "gnu"))]

#[path = "support/golden_models.rs"]
mod golden_models;
#[path = "support/onnx_runtime.rs"]
mod onnx_runtime;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ancestral::catalogue::{Catalogue, CatalogueConfig};
use ancestral::models::{Provider, ProviderConfig};
use ancestral::pipeline::{ModelProvider as _, ModelRequest};
use ancestral::runtime::give_back_free_memory;
use ndarray::Array4;

fn resident_mib() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    kib.unwrap().parse::<u64>().unwrap() / 1024
}

#[test]
fn what_graphs_worked_in_is_given_back_once_no_job_has_run_for_a_while() {
    let folder = tempfile::tempdir().unwrap();
    let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("compat-tests/golden/models");
    golden_models::write_data_folder(folder.path(), &recipes);
    let models = folder.path().join("models");
    let catalogue = Catalogue::new(CatalogueConfig {
        models_dir: models.clone(),
        no_hashing: true,
        ..CatalogueConfig::default()
    });
    let config = ProviderConfig {
        tower_folders: vec![models],
        decode_memory_bytes: Some(u64::MAX),
        rest_after: Duration::from_millis(100),
        ..ProviderConfig::default()
    };
    let provider = Provider::new(onnx_runtime::runtime(), Arc::new(catalogue), config);
    let request = ModelRequest {
        checkpoint: "tiny-sd1.safetensors".to_owned(),
        ..ModelRequest::default()
    };
    let small = Array4::zeros((1, 4, 8, 8));
    let large = Array4::zeros((1, 4, 96, 96));

    let job = provider.job();
    let model = provider.load(&request).unwrap();
    let first = model.vae.decode(&small).unwrap();
    give_back_free_memory();
    let before = resident_mib();
    model.vae.decode(&large).unwrap();
    give_back_free_memory();
    let worked_in = resident_mib() - before;
    assert!(worked_in > 30, "{worked_in} MiB");
    drop(job);

    let begin = Instant::now();
    while resident_mib() > before + worked_in / 3 {
        let left = resident_mib() - before;
        assert!(begin.elapsed().as_secs() < 60, "{left} of {worked_in} MiB");
        std::thread::yield_now();
    }
    assert_eq!(model.vae.decode(&small).unwrap(), first);
}
