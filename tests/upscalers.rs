//! Networks of the ESRGAN family, built from the files of `tests/golden/upscalers`, against what
//! torch makes of the same pictures (`scripts/golden_upscalers.py`).

#[path = "support/onnx_runtime.rs"]
mod onnx_runtime;

use std::path::{Path, PathBuf};

use ancestral::catalogue::UpscalerList;
use ancestral::models::{GraphUpscaler, UpscalerNetworks};
use ancestral::pipeline::{Tiling, UpscalerNetwork, UpscalerProvider};
use base64::Engine as _;
use image::RgbImage;
use onnx_runtime::runtime;
use serde_json::Value;

const WHOLE: Tiling = Tiling {
    tile_px: 0,
    overlap_px: 0,
};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/upscalers")
}

fn cases() -> Vec<Value> {
    let text = fs_err::read_to_string(golden().join("upscalers.json")).unwrap();
    let document: Value = serde_json::from_str(&text).unwrap();
    document["cases"].as_array().unwrap().clone()
}

fn picture(case: &Value, key: &str, scale: u32) -> RgbImage {
    let side = |key: &str| case[key].as_u64().unwrap() as u32 * scale;
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(case[key].as_str().unwrap())
        .unwrap();
    RgbImage::from_raw(side("width"), side("height"), bytes).unwrap()
}

/// At most one grey level, on at most one sample in a hundred.
fn assert_same(got: &RgbImage, want: &RgbImage, name: &str) {
    assert_eq!(got.dimensions(), want.dimensions(), "{name}");
    let differences = got.iter().zip(want.iter()).map(|(a, b)| a.abs_diff(*b));
    let worst = differences.clone().max().unwrap();
    let differing = differences.filter(|difference| *difference > 0).count();
    assert!(
        worst <= 1 && differing * 100 <= got.len(),
        "{name}: up to {worst} levels, {differing} of {} samples",
        got.len()
    );
}

#[test]
fn every_layout_gives_the_pictures_of_torch() {
    let runtime = runtime();
    for case in cases() {
        let name = case["file"].as_str().unwrap();
        let network = GraphUpscaler::open(&runtime, &golden().join(name)).unwrap();
        assert_eq!(
            Some(network.scale() as u64),
            case["scale"].as_u64(),
            "{name}"
        );
        let got = network
            .enlarge(&picture(&case, "picture", 1), WHOLE)
            .unwrap();
        assert_same(
            &got,
            &picture(&case, "larger", network.scale() as u32),
            name,
        );
    }
}

#[test]
fn tiles_cover_the_picture_and_keep_its_size() {
    let network = GraphUpscaler::open(&runtime(), &golden().join("RealESRGAN_x2plus.pth")).unwrap();
    let picture = RgbImage::from_fn(31, 17, |x, y| {
        image::Rgb([(x * 8) as u8, (y * 12) as u8, ((x + y) * 5) as u8])
    });
    let tiled = Tiling {
        tile_px: 16,
        overlap_px: 8,
    };
    let got = network.enlarge(&picture, tiled).unwrap();
    assert_eq!(got.dimensions(), (62, 34));
    // Far from seams both ways see the same surroundings.
    let whole = network.enlarge(&picture, WHOLE).unwrap();
    assert_eq!(got.get_pixel(0, 0), whole.get_pixel(0, 0));
}

#[test]
fn networks_are_found_by_name_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (esrgan, real) = (
        folder.path().join("ESRGAN"),
        folder.path().join("RealESRGAN"),
    );
    fs_err::create_dir_all(&esrgan).unwrap();
    fs_err::create_dir_all(&real).unwrap();
    fs_err::copy(golden().join("old_2x.pth"), esrgan.join("old_2x.pth")).unwrap();
    fs_err::copy(
        golden().join("RealESRGAN_x4plus.pth"),
        real.join("RealESRGAN_x4plus.pth"),
    )
    .unwrap();
    fs_err::write(esrgan.join("broken.pth"), b"<html>not found</html>").unwrap();
    fs_err::copy(
        golden().join("../pickles/state_dict.pth"),
        esrgan.join("linear.pth"),
    )
    .unwrap();
    let list = UpscalerList::new(Some(esrgan.clone()), Some(real));
    let networks = UpscalerNetworks::new(runtime(), list);

    let small = RgbImage::from_pixel(8, 8, image::Rgb([90, 120, 150]));
    let network = networks.load("old_2x").unwrap().unwrap();
    assert_eq!(network.enlarge(&small, WHOLE).unwrap().width(), 16);
    assert!(networks.load("R-ESRGAN 4x+").unwrap().is_some());
    assert!(networks.load("no such upscaler").unwrap().is_none());
    let reason = |name: &str| networks.load(name).err().unwrap().to_string();
    assert!(reason("R-ESRGAN 2x+").contains("RealESRGAN_x2plus.pth"));
    assert!(reason("broken").contains("no file that torch saved"));
    assert!(reason("linear").contains("only ESRGAN"));

    // A loaded network outlives its file's name in the list; a new file is noticed.
    let again = networks.load("old_2x").unwrap().unwrap();
    assert!(std::sync::Arc::ptr_eq(&network, &again));
    fs_err::copy(golden().join("old_4x.pth"), esrgan.join("new.pth")).unwrap();
    let network = networks.load("new").unwrap().unwrap();
    assert_eq!(network.enlarge(&small, WHOLE).unwrap().width(), 32);
}
