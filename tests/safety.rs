//! The safety checker of a models folder, over a graph that flags bright pictures (`scripts/golden_safety_checker.py`).

#[path = "support/onnx_runtime.rs"]
mod onnx_runtime;

use std::path::Path;

use ancestral::models::GraphSafetyChecker;
use ancestral::pipeline::SafetyChecker as _;
use image::{Rgb, RgbImage};
use onnx_runtime::runtime;

#[test]
fn a_checker_sees_the_whole_picture_and_its_middle_as_clip_does() {
    let models = tempfile::tempdir().expect("a folder");
    let folder = models.path().join("safety_checker");
    std::fs::create_dir(&folder).expect("made");
    let graph = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/safety_checker.onnx");
    std::fs::copy(graph, folder.join("model.onnx")).expect("copied");
    let checker = GraphSafetyChecker::new(runtime(), models.path());
    let plain = |level| RgbImage::from_pixel(96, 40, Rgb([level; 3]));
    assert!(checker.is_flagged(&plain(250)).expect("checked"));
    assert!(!checker.is_flagged(&plain(5)).expect("checked"));
    // Bright as a whole, dark in the middle square that CLIP sees.
    let mut framed = plain(255);
    for (x, _, pixel) in framed.enumerate_pixels_mut() {
        if (28..68).contains(&x) {
            *pixel = Rgb([0; 3]);
        }
    }
    assert!(!checker.is_flagged(&framed).expect("checked"));
}

#[test]
fn a_checker_that_is_not_there_says_which_file_is_missing() {
    let models = tempfile::tempdir().expect("a folder");
    let checker = GraphSafetyChecker::new(runtime(), models.path());
    let error = checker.is_flagged(&RgbImage::new(8, 8)).unwrap_err();
    assert!(error.to_string().contains("safety_checker"), "{error}");
}
