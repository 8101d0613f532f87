//! Face restoration against torch and facexlib (`scripts/golden_faces.py`): each network with few channels, the
//! detector, and the way of a picture with two faces. Weights and pictures come from the script's formula.

#[path = "support/onnx_runtime.rs"]
mod onnx_runtime;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ancestral::catalogue::FaceFiles;
use ancestral::imaging::{Affine, similarity};
use ancestral::models::graphs::{BuiltGraph, Weights, codeformer, gfpgan, parsenet, retinaface};
use ancestral::models::{FaceRestorers, find_faces};
use ancestral::pipeline::{
    Cause, FaceModel, FaceNetworkProvider, FaceNetworks, Landmarks, restore_faces,
};
use ancestral::runtime::{Graph, GraphSource, Runtime};
use image::{GrayImage, Luma, Rgb, RgbImage};
use ndarray::{Array1, ArrayD};
use onnx_runtime::runtime;
use serde_json::{Value, json};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/faces")
}

fn document(name: &str) -> Value {
    let text = fs_err::read_to_string(golden().join(name)).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn recorded_picture(name: &str) -> RgbImage {
    image::open(golden().join(name)).unwrap().to_rgb8()
}

// ---- the script's formula -----------------------------------------------------------------------

/// FNV-1a, 32 bit.
fn fnv(name: &str) -> u32 {
    name.bytes().fold(0x811c_9dc5, |value, byte| {
        (value ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

/// Numbers in -1..1: murmur3's finalizer of a counter.
fn hashed(name: &str, count: usize) -> impl Iterator<Item = f64> {
    let seed = fnv(name);
    (0..count as u32).map(move |n| {
        let mut x = n.wrapping_mul(0x9e37_79b1).wrapping_add(seed);
        x = (x ^ (x >> 16)).wrapping_mul(0x85eb_ca6b);
        x = (x ^ (x >> 13)).wrapping_mul(0xc2b2_ae35);
        x ^= x >> 16;
        f64::from(x) / 2_147_483_648.0 - 1.0
    })
}

fn weight(name: &str, shape: &[usize]) -> Vec<f32> {
    let fan_in: usize = shape.iter().skip(1).product();
    let shrink = if name.contains("Head.") { 0.02 } else { 1.0 };
    hashed(name, shape.iter().product())
        .map(|value| value * shrink)
        .map(|value| {
            if name.ends_with("running_var") {
                1.0 + 0.5 * value
            } else if name.contains(".noises.") {
                1.7 * value
            } else if shape.len() >= 2 {
                value * (3.0 / fan_in as f64).sqrt()
            } else if name.ends_with("weight") {
                1.0 + 0.1 * value
            } else {
                0.1 * value
            }
        })
        .map(|value| value as f32)
        .collect()
}

fn formula_picture(width: u32, height: u32) -> RgbImage {
    let noise: Vec<f64> = hashed("noise", (width * height) as usize).collect();
    RgbImage::from_fn(width, height, |x, y| {
        let shift = (noise[(y * width + x) as usize] * 20.0).trunc() as i64;
        let level = |base: u32| (i64::from(base) + shift).clamp(0, 255) as u8;
        Rgb([
            level(x * 255 / width),
            level(y * 255 / height),
            level((x + y) * 255 / (width + height)),
        ])
    })
}

fn shape_of(value: &Value) -> Vec<usize> {
    let sides = value.as_array().unwrap();
    sides
        .iter()
        .map(|side| side.as_u64().unwrap() as usize)
        .collect()
}

/// Writes a case's weights as a `.safetensors` file.
fn write_weights(path: &Path, tensors: &Value) {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, shape) in tensors.as_object().unwrap() {
        let shape = shape_of(shape);
        let start = data.len();
        data.extend(
            weight(name, &shape)
                .iter()
                .flat_map(|value| value.to_le_bytes()),
        );
        let offsets = [start, data.len()];
        header.insert(
            name.clone(),
            json!({"dtype": "F32", "shape": shape, "data_offsets": offsets}),
        );
    }
    let header = Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    fs_err::write(path, bytes).unwrap();
}

// ---- networks -----------------------------------------------------------------------------------

struct Network {
    graph: Graph,
    _folder: tempfile::TempDir,
}

fn network(runtime: &Runtime, case: &Value) -> Network {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.safetensors");
    write_weights(&path, &case["tensors"]);
    let file = ancestral::models::open_weights(&path).unwrap();
    let weights = Weights::new(Arc::new(file), "");
    let side = case["input"]["shape"][2].as_u64().unwrap() as usize;
    let built: BuiltGraph = match case["network"].as_str().unwrap() {
        "retinaface" => retinaface(&weights).unwrap(),
        "parsenet" => parsenet(&weights).unwrap(),
        "gfpgan" => {
            let (built, shape) = gfpgan(&weights).unwrap();
            assert_eq!(shape.side_px, side);
            built
        }
        "codeformer" => {
            let (built, shape) = codeformer(&weights).unwrap();
            assert_eq!(shape.side_px, side);
            built
        }
        other => panic!("no such network: {other}"),
    };
    let source = GraphSource::Bytes {
        model: &built.model,
        external_folder: weights.path().parent(),
        values: &built.values,
    };
    Network {
        graph: Graph::load(runtime, "network", source).unwrap(),
        _folder: folder,
    }
}

fn assert_close(got: &ArrayD<f32>, want: &Value, tolerance: f32, name: &str) {
    assert_eq!(got.shape(), shape_of(&want["shape"]), "{name}");
    let step = want["step"].as_u64().unwrap() as usize;
    let want: Vec<f32> = serde_json::from_value(want["values"].clone()).unwrap();
    let got: Vec<f32> = got.iter().copied().step_by(step).collect();
    assert_eq!(got.len(), want.len(), "{name}");
    let largest = want
        .iter()
        .fold(0.0_f32, |most, value| most.max(value.abs()));
    for (at, (got, want)) in got.iter().zip(&want).enumerate() {
        assert!(
            (got - want).abs() <= tolerance * largest,
            "{name}[{}]: {got}, not {want} (largest {largest})",
            at * step
        );
    }
}

#[test]
fn every_network_answers_as_in_torch() {
    let document = document("networks.json");
    let tolerance = document["tolerance"].as_f64().unwrap() as f32;
    let runtime = runtime();
    for case in document["cases"].as_array().unwrap() {
        let name = case["network"].as_str().unwrap();
        let network = network(&runtime, case);
        let shape = shape_of(&case["input"]["shape"]);
        let scale = case["input"]["scale"].as_f64().unwrap();
        let values = hashed("picture", shape.iter().product()).map(|value| (value * scale) as f32);
        let picture = ArrayD::from_shape_vec(shape, values.collect()).unwrap();
        let input = if name == "retinaface" {
            "picture"
        } else {
            "face"
        };
        let mut inputs = vec![(input, (&picture).into())];
        let fidelity = case["fidelity"]
            .as_f64()
            .map(|value| Array1::from_elem(1, value as f32));
        if let Some(fidelity) = &fidelity {
            inputs.push(("fidelity", fidelity.into()));
        }
        for (output, want) in case["outputs"].as_object().unwrap() {
            let wanted = if output == "face" { "restored" } else { output };
            let got = network.graph.run(&inputs, &[wanted]).unwrap();
            assert_close(&got[0], want, tolerance, &format!("{name} {output}"));
        }
    }
}

#[test]
fn the_detector_finds_the_faces_of_facexlib() {
    let networks = document("networks.json");
    let want = &document("faces.json")["detection"];
    let network = network(&runtime(), &networks["cases"][0]);
    let picture = formula_picture(100, 75);
    let least = want["threshold"].as_f64().unwrap() as f32;
    let faces = find_faces(&network.graph, &picture, least).unwrap();
    let want: Vec<Vec<f32>> = serde_json::from_value(want["faces"].clone()).unwrap();
    assert_eq!(faces.len(), want.len());
    for (face, want) in faces.iter().zip(&want) {
        let mut got = face.corners.to_vec();
        got.push(face.score);
        got.extend(face.landmarks.iter().flatten());
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() < 0.01, "{face:?} is not {want:?}");
        }
    }
}

#[test]
fn landmarks_lie_on_the_template_as_opencv_lays_them() {
    let cases = document("faces.json")["alignments"].clone();
    let template: Landmarks = [
        [192.98138, 239.94708],
        [318.90277, 240.1936],
        [256.63416, 314.01935],
        [201.26117, 371.41043],
        [313.08905, 371.15118],
    ];
    for (number, case) in cases.as_array().unwrap().iter().enumerate() {
        let landmarks: Landmarks = serde_json::from_value(case["landmarks"].clone()).unwrap();
        let want: [f64; 6] = serde_json::from_value(case["matrix"].clone()).unwrap();
        let Affine(got) = similarity(&landmarks, &template).unwrap();
        for (got, want) in got.iter().zip(want) {
            let close = (got - want).abs() <= 1e-7 * want.abs().max(1.0);
            assert!(close, "case {number}: {got}, not {want}");
        }
    }
}

// ---- the way of a picture -----------------------------------------------------------------------

/// The detector, the restorer and the parser of the script.
#[derive(Clone)]
struct Scripted {
    faces: Vec<Landmarks>,
}

impl FaceNetworks for Scripted {
    fn find_faces(&self, picture: &RgbImage) -> Result<Vec<Landmarks>, Cause> {
        let seen = recorded_picture("seen.png");
        let thinned = RgbImage::from_fn(seen.width(), seen.height(), |x, y| {
            *picture.get_pixel(5 * x, 5 * y)
        });
        assert_eq!(picture.dimensions(), (853, 640));
        assert!(
            thinned == seen,
            "the copy for the detector has other pixels"
        );
        let scale = (150.0_f64 / 640.0) as f32;
        Ok(self
            .faces
            .iter()
            .map(|face| face.map(|point| point.map(|at| at / scale)))
            .collect())
    }

    fn redraw(&self, face: &RgbImage, fidelity: f64) -> Result<RgbImage, Cause> {
        assert_eq!((face.dimensions(), fidelity), ((512, 512), 0.25));
        let crop = recorded_picture("crop.png");
        if face.get_pixel(500, 500) == &Rgb([132, 133, 135]) {
            let thinned = RgbImage::from_fn(128, 128, |x, y| *face.get_pixel(4 * x, 4 * y));
            assert!(thinned == crop, "the face at the border has other pixels");
        }
        let mut turned = face.clone();
        image::imageops::invert(&mut turned);
        Ok(turned)
    }

    fn parse(&self, _face: &RgbImage) -> Result<GrayImage, Cause> {
        Ok(GrayImage::from_fn(512, 512, |x, y| {
            let (x, y) = (i64::from(x), i64::from(y));
            let inside = (x - 256).pow(2) * 4 + (y - 280).pow(2) * 2 < 360 * 360;
            Luma([if y < 90 { 17 } else { u8::from(inside) }])
        }))
    }
}

impl FaceNetworkProvider for Scripted {
    fn load(&self, _model: FaceModel) -> Result<Arc<dyn FaceNetworks>, Cause> {
        Ok(Arc::new(self.clone()))
    }
}

#[test]
fn faces_are_cut_out_and_pasted_back_as_facexlib_does() {
    let document = document("faces.json");
    let faces: Vec<Landmarks> =
        serde_json::from_value(document["pass"]["landmarks"].clone()).unwrap();
    let small = faces[0].map(|[x, y]| [x / 10.0, y / 10.0]);
    let faces = Scripted { faces };
    let picture = formula_picture(200, 150);
    let mut comments = Vec::new();
    let got = restore_faces(&picture, FaceModel::Gfpgan, 0.25, &faces, &mut comments).unwrap();
    let want = recorded_picture("pasted.png");
    let differing = got.iter().zip(want.iter()).filter(|(a, b)| a != b);
    let worst = differing.clone().map(|(a, b)| a.abs_diff(*b)).max();
    assert_eq!((differing.count(), worst), (0, None));
    assert!(comments.is_empty());

    // Eyes 4 pixels apart belong to no face worth restoring.
    let small = Scripted { faces: vec![small] };
    let same = restore_faces(&picture, FaceModel::Gfpgan, 0.25, &small, &mut comments);
    assert!(same.unwrap() == picture);
}

// ---- files --------------------------------------------------------------------------------------

/// The recorded GFPGAN's tensors, with its last level repeated until faces have 512 pixels.
fn enlarged_gfpgan(case: &Value) -> Value {
    let mut tensors = case["tensors"].as_object().unwrap().clone();
    let known = tensors.clone();
    for level in 4..7 {
        for (name, shape) in &known {
            let is_level = ["conv_body_", "condition_", "stylegan_decoder.to_rgbs."]
                .iter()
                .any(|part| name.starts_with(part));
            let decoder = "stylegan_decoder.style_convs.";
            let renamed = if is_level && name.contains(".3.") {
                name.replacen(".3.", &format!(".{level}."), 1)
            } else if let Some(rest) = name.strip_prefix(&format!("{decoder}6.")) {
                format!("{decoder}{}.{rest}", 2 * level)
            } else if let Some(rest) = name.strip_prefix(&format!("{decoder}7.")) {
                format!("{decoder}{}.{rest}", 2 * level + 1)
            } else {
                continue;
            };
            tensors.insert(renamed, shape.clone());
        }
        let side = 8 << level;
        for layer in [2 * level + 1, 2 * level + 2] {
            let name = format!("stylegan_decoder.noises.noise{layer}");
            tensors.insert(name, json!([1, 1, side, side]));
        }
    }
    tensors["final_linear.weight"][0] = json!(16 * 16);
    tensors["final_linear.bias"][0] = json!(16 * 16);
    Value::Object(tensors)
}

#[test]
fn networks_are_loaded_from_the_data_folder() {
    let document = document("networks.json");
    let cases = document["cases"].as_array().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let codeformer = folder.path().join("Codeformer");
    let gfpgan = folder.path().join("GFPGAN");
    fs_err::create_dir_all(&codeformer).unwrap();
    fs_err::create_dir_all(&gfpgan).unwrap();
    let files = FaceFiles::new(Some(codeformer.clone()), Some(gfpgan.clone()), None);
    let restorers = FaceRestorers::new(runtime(), files);
    let reason = |model| restorers.load(model).err().unwrap().to_string();

    assert!(
        reason(FaceModel::CodeFormer).contains("codeformer-v0.1.0.pth is not in models/Codeformer")
    );
    write_weights(
        &codeformer.join("codeformer-v0.1.0.pth"),
        &cases[4]["tensors"],
    );
    assert!(reason(FaceModel::CodeFormer).contains("it takes faces of 64 pixels, not 512"));
    write_weights(
        &codeformer.join("codeformer-v0.1.0.pth"),
        &cases[2]["tensors"],
    );
    assert!(reason(FaceModel::CodeFormer).contains("it is no CodeFormer"));

    write_weights(&gfpgan.join("GFPGANv1.4.pth"), &enlarged_gfpgan(&cases[3]));
    assert!(reason(FaceModel::Gfpgan).contains("detection_Resnet50_Final.pth is not in"));
    write_weights(
        &gfpgan.join("detection_Resnet50_Final.pth"),
        &cases[0]["tensors"],
    );
    write_weights(&gfpgan.join("parsing_parsenet.pth"), &cases[2]["tensors"]);
    let networks = restorers.load(FaceModel::Gfpgan).unwrap();
    let face = formula_picture(512, 512);
    let restored = networks.redraw(&face, 0.5).unwrap();
    assert_eq!(restored.dimensions(), (512, 512));
    assert!(restored != face);
    // The noise is the file's, so the answer is the same again, at whatever fidelity.
    assert!(networks.redraw(&face, 0.0).unwrap() == restored);
    let classes = networks.parse(&face).unwrap();
    assert!(
        classes
            .pixels()
            .any(|class| class != classes.get_pixel(0, 0))
    );
    // Nothing is sure enough to be a face.
    assert!(networks.find_faces(&face).unwrap().is_empty());
    let mut comments = Vec::new();
    let same = restore_faces(&face, FaceModel::Gfpgan, 0.5, &restorers, &mut comments);
    assert!(same.unwrap() == face && comments.is_empty());
}
