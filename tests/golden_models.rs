//! The generated test checkpoints and ONNX exports are the recorded ones, byte for byte.

use std::path::Path;

#[path = "support/golden_models.rs"]
mod golden_models;

#[test]
fn every_checkpoint_and_export_has_its_recorded_sha256() {
    let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("compat-tests/golden/models");
    let data = tempfile::tempdir().expect("a temporary folder");
    golden_models::write_data_folder(data.path(), &recipes);
    for model in ["tiny-sd1", "tiny-sd1-inpaint", "tiny-sd2-v", "tiny-sdxl"] {
        let export = data.path().join("onnx").join(model);
        golden_models::write_onnx_folder(model, &recipes, &export);
        assert!(
            export.join("unet/model.onnx").is_file(),
            "{model} has no UNet"
        );
        assert!(
            data.path()
                .join(format!("models/Stable-diffusion/{model}.yaml"))
                .is_file()
        );
    }
}
