//! Graphs built from the golden checkpoints, against values recorded inside AUTOMATIC1111 and
//! against ONNX exports of the same weights that torch made.

#[path = "support/golden_models.rs"]
mod golden_models;
#[path = "support/onnx_runtime.rs"]
mod onnx_runtime;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use ancestral::catalogue::{Catalogue, CatalogueConfig, TensorFile};
use ancestral::conditioning::{HiddenState, TokenBatch};
use ancestral::models::graphs::{
    BuildOptions, BuiltGraph, Heads, Precision, Storage, UnetShape, VectorInput, Weights,
    text_encoder, unet, vae_decoder, vae_encoder,
};
use ancestral::models::{CheckpointPlan, GraphUnet, LoadStrategy, Provider, ProviderConfig};
use ancestral::pipeline::{Family, Model, ModelProvider, ModelRequest, Prediction};
use ancestral::prompt::{HypernetworkTag, LoraTag, PromptNetworks};
use ancestral::runtime::{Graph, GraphSource, Runtime};
use ancestral::sampling::{Unet as _, UnetInput};
use ndarray::{Array, Array2, Array3, Array4, ArrayD, Axis, Dimension, concatenate, s};
use ndarray_npy::NpzReader;
use onnx_runtime::{runtime, runtime_without_matrix_unit};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("compat-tests/golden")
}

/// The data folder with the golden models, written once a process.
fn data_folder() -> &'static Path {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    FOLDER
        .get_or_init(|| {
            let folder = tempfile::tempdir().unwrap();
            let recipes = golden().join("models");
            golden_models::write_data_folder(folder.path(), &recipes);
            for model in ["tiny-sd1", "tiny-sd1-inpaint", "tiny-sd2-v", "tiny-sdxl"] {
                let target = folder.path().join("exports").join(model);
                golden_models::write_onnx_folder(model, &recipes, &target);
            }
            folder
        })
        .path()
}

fn provider(extra: &[PathBuf]) -> Provider {
    provider_with(extra, ProviderConfig::default())
}

/// A provider of the golden models and `extra`; `config` says all but the folder of the text towers.
fn provider_with(extra: &[PathBuf], config: ProviderConfig) -> Provider {
    provider_on(runtime(), extra, config)
}

/// [`provider_with`] on another runtime.
fn provider_on(runtime: Runtime, extra: &[PathBuf], config: ProviderConfig) -> Provider {
    let models = data_folder().join("models");
    let catalogue = Catalogue::new(CatalogueConfig {
        models_dir: models.clone(),
        extra_checkpoints: extra.to_vec(),
        ..CatalogueConfig::default()
    });
    let config = ProviderConfig {
        tower_folders: vec![models],
        ..config
    };
    Provider::new(runtime, Arc::new(catalogue), config)
}

fn built(name: &str) -> Arc<Model> {
    built_with(&provider(&[]), name)
}

/// [`built`] of the library's own operators, which an export and a quick load have too.
fn built_of_onnx(name: &str) -> Arc<Model> {
    let runtime = runtime_without_matrix_unit();
    built_with(&provider_on(runtime, &[], ProviderConfig::default()), name)
}

fn built_with(provider: &Provider, name: &str) -> Arc<Model> {
    let request = ModelRequest {
        checkpoint: format!("{name}.safetensors"),
        vae: "None".to_owned(),
        ..ModelRequest::default()
    };
    provider.load(&request).unwrap()
}

/// The export of the same weights that torch made. Its title is that of the checkpoint, so it is
/// listed alone.
fn exported(name: &str) -> Arc<Model> {
    let catalogue = Catalogue::new(CatalogueConfig {
        extra_checkpoints: vec![data_folder().join("exports").join(name)],
        ..CatalogueConfig::default()
    });
    let provider = Provider::new(runtime(), Arc::new(catalogue), ProviderConfig::default());
    provider.load(&ModelRequest::default()).unwrap()
}

struct Truth(NpzReader<File>);

impl Truth {
    fn open(name: &str) -> Self {
        let path = golden().join("truth").join(name);
        Self(NpzReader::new(File::open(path).unwrap()).unwrap())
    }

    fn array<D: Dimension>(&mut self, key: &str) -> Array<f32, D> {
        let names = self.0.names().unwrap();
        let name = names
            .iter()
            .find(|name| name.trim_end_matches(".npy") == key)
            .unwrap_or_else(|| panic!("no {key} in {names:?}"))
            .clone();
        let array: ArrayD<f32> = self.0.by_name(&name).unwrap();
        array.into_dimensionality().unwrap()
    }
}

/// The largest difference relative to the largest value.
fn difference<D: Dimension>(got: &Array<f32, D>, want: &Array<f32, D>) -> f32 {
    assert_eq!(got.shape(), want.shape());
    let scale = want.iter().fold(0.0_f32, |max, v| max.max(v.abs()));
    let worst = (got - want).iter().fold(0.0_f32, |max, v| max.max(v.abs()));
    assert!(worst.is_finite());
    worst / scale
}

fn assert_close<D: Dimension>(
    got: &Array<f32, D>,
    want: &Array<f32, D>,
    tolerance: f32,
    what: &str,
) {
    let found = difference(got, want);
    assert!(
        found <= tolerance,
        "{what}: relative difference {found}, allowed {tolerance}"
    );
}

/// Deterministic values in -1..1 that look like noise.
fn noise() -> impl FnMut() -> f32 {
    let mut state = 12345_u32;
    move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    }
}

fn pattern<D: Dimension, S: ndarray::ShapeBuilder<Dim = D>>(shape: S, scale: f32) -> Array<f32, D> {
    let mut noise = noise();
    Array::from_shape_simple_fn(shape, || scale * noise())
}

#[test]
fn the_vae_gives_the_recorded_posterior_and_picture() {
    for name in ["tiny-sd1", "tiny-sd2-v"] {
        let model = built(name);
        let mut truth = Truth::open(&format!("vae_{name}.npz"));
        let latent: Array4<f32> = truth.array("b_96x96/latent_scaled");
        let decoded: Array4<f32> = truth.array("b_96x96/decoded");
        let got = model.vae.decode(&(latent / model.vae_scale)).unwrap();
        assert_close(&got, &decoded, 1e-5, name);
        let mean: Array4<f32> = truth.array("b_96x96/mean");
        let logvar: Array4<f32> = truth.array("b_96x96/logvar");
        let path = golden().join("inputs/b_96x96.png");
        let picture = image::open(path).unwrap().to_rgb8();
        let pixels = Array4::from_shape_fn((1, 3, 96, 96), |(_, c, y, x)| {
            f32::from(picture.get_pixel(x as u32, y as u32)[c]) / 255.0 * 2.0 - 1.0
        });
        let posterior = model.vae.encode(&pixels).unwrap();
        assert_close(&posterior.mean, &mean, 1e-5, name);
        assert_close(&posterior.logvar, &logvar, 1e-5, name);
    }
}

/// A provider that allows decoding so much memory, and its model `name`.
fn decoding_within(name: &str, allowed_bytes: u64) -> (Provider, Arc<Model>) {
    let config = ProviderConfig {
        decode_memory_bytes: Some(allowed_bytes),
        ..ProviderConfig::default()
    };
    let provider = provider_with(&[], config);
    let request = ModelRequest {
        checkpoint: format!("{name}.safetensors"),
        vae: "None".to_owned(),
        ..ModelRequest::default()
    };
    let model = provider.load(&request).unwrap();
    (provider, model)
}

/// How often graphs of the decoder ran.
fn decoder_runs(provider: &Provider) -> u64 {
    let times = provider.runtime().graph_times();
    let decoder = times.iter().find(|time| time.graph == "VAE decoder");
    decoder.map_or(0, |time| time.runs)
}

/// Where no memory at all is allowed strips are of 16 rows and computed anew; where one piece would just not fit, all
/// blocks keep what their convolutions give.
#[test]
fn a_picture_decoded_strip_by_strip_is_the_picture_decoded_in_one_piece() {
    // One piece takes four times the 32 channels of the last level, eight times as high and wide as the latent.
    let piece_bytes = |(height, width)| 4 * 32 * 64 * 4 * (height * width) as u64;
    let (large, small) = ((13, 9), (21, 5));
    for name in ["tiny-sd1", "tiny-sd2-v", "tiny-sdxl"] {
        let (provider, whole) = decoding_within(name, piece_bytes(large));
        let (_, computing) = decoding_within(name, 0);
        for size @ (height, width) in [large, small, (2, 16), (1, 1)] {
            let latent: Array4<f32> = pattern((1, 4, height, width), 4.0);
            let before = decoder_runs(&provider);
            let want = whole.vae.decode(&latent).unwrap();
            assert_eq!(decoder_runs(&provider) - before, 1, "in one piece");
            let got = computing.vae.decode(&latent).unwrap();
            assert_close(&got, &want, 1e-5, &format!("{name} {height}x{width}"));
            if height > 2 {
                let (provider, keeping) = decoding_within(name, piece_bytes(size) - 1);
                let got = keeping.vae.decode(&latent).unwrap();
                assert_close(&got, &want, 1e-5, &format!("{name} {height}x{width}, kept"));
                // The head, the picture and fifteen sweeps.
                assert!(decoder_runs(&provider) > 17, "several strips");
            }
        }
    }
}

/// The grey that stands for a wholly masked picture: a group norm whose deviation is a thousandth of
/// its mean. Torch's own rounding is 1.4e-4 from the exact answer there.
#[test]
fn a_flat_grey_keeps_its_digits_in_the_encoder() {
    let model = built("tiny-sd1-inpaint");
    let mut truth = Truth::open("inpaint_tiny-sd1-inpaint.npz");
    let recorded: Array4<f32> = truth.array("nomask/image_conditioning");
    let want = recorded.slice_axis(Axis(1), ndarray::Slice::from(1..));
    let grey = Array4::zeros((1, 3, 96, 128));
    let got = model.vae.encode(&grey).unwrap().mean * model.vae_scale;
    assert_close(&got, &want.to_owned(), 1.8e-4, "grey");
}

/// Token ids of the first recorded chunk of a prompt.
fn chunk(model: &str, prompt: &str) -> Array2<i64> {
    let path = golden().join(format!("truth/prompts_{model}.json"));
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let tokens = json[prompt]["chunks"][0]["tokens"].as_array().unwrap();
    let mut ids: Vec<i64> = tokens.iter().map(|id| id.as_i64().unwrap()).collect();
    if model == "tiny-sd2-v" {
        let end = ids.iter().position(|id| *id == 49407).unwrap();
        ids[end + 1..].fill(0);
    }
    Array2::from_shape_vec((1, ids.len()), ids).unwrap()
}

#[test]
fn the_text_encoders_give_the_recorded_conditioning() {
    for (name, state) in [
        ("tiny-sd1", HiddenState::Normalised { from_end: 1 }),
        ("tiny-sd2-v", HiddenState::Normalised { from_end: 2 }),
    ] {
        let model = built(name);
        let batch = TokenBatch {
            ids: chunk(name, "plain"),
            overrides: Vec::new(),
        };
        let got = model.text_encoders[0].encode(&batch, state).unwrap().hidden;
        let mut truth = Truth::open(&format!("cond_{name}.npz"));
        let want: Array2<f32> = truth.array("plain/and0/until6");
        assert_close(&got.index_axis_move(Axis(0), 0), &want, 1e-5, name);
    }
}

#[test]
fn clip_skip_states_are_the_recorded_ones() {
    let model = built("tiny-sd1");
    let mut truth = Truth::open("cond_tiny-sd1.npz");
    for from_end in 2..=3 {
        let key = format!("plain/clip_skip{from_end}");
        let batch = TokenBatch {
            ids: chunk("tiny-sd1", "plain"),
            overrides: Vec::new(),
        };
        let state = HiddenState::Normalised { from_end };
        let got = model.text_encoders[0].encode(&batch, state).unwrap().hidden;
        let want: Array3<f32> = truth.array(&key);
        assert_close(&got, &want, 1e-5, &key);
    }
}

/// What A1111's denoiser and classifier-free guidance make of the UNet at one recorded step.
fn guided(
    model: &Model,
    x: &Array4<f32>,
    sigma: f32,
    conds: [&Array2<f32>; 2],
    scale: f32,
) -> Array4<f32> {
    let sigmas: Vec<f32> = model
        .alphas_cumprod
        .iter()
        .map(|a| ((1.0 - a) / a).sqrt())
        .collect();
    let log_sigma = sigma.ln();
    let high = sigmas
        .iter()
        .position(|s| s.ln() > log_sigma)
        .unwrap_or(sigmas.len() - 1)
        .max(1);
    let (low_log, high_log) = (sigmas[high - 1].ln(), sigmas[high].ln());
    let w = ((low_log - log_sigma) / (low_log - high_log)).clamp(0.0, 1.0);
    let timestep = (1.0 - w) * (high - 1) as f32 + w * high as f32;
    let c_in = 1.0 / (sigma * sigma + 1.0).sqrt();
    let sample = concatenate(Axis(0), &[x.view(), x.view()]).unwrap() * c_in;
    let context =
        concatenate(Axis(0), &conds.map(|cond| cond.view().insert_axis(Axis(0)))).unwrap();
    let input = UnetInput {
        sample,
        timestep: vec![timestep; 2],
        context,
        vector: None,
    };
    let out = model.unet.predict(&input).unwrap();
    let denoised = |row: usize| {
        let out = out.slice(s![row..=row, .., .., ..]);
        match model.prediction {
            Prediction::Epsilon => x - &(&out * sigma),
            Prediction::Velocity => {
                let c_skip = 1.0 / (sigma * sigma + 1.0);
                let c_out = -sigma / (sigma * sigma + 1.0).sqrt();
                &out * c_out + x * c_skip
            }
        }
    };
    let (cond, uncond) = (denoised(0), denoised(1));
    &uncond + &((&cond - &uncond) * scale)
}

/// `a red cube on a table, (blue sky:1.2)` as ids with weights.
const POSITIVE: &[(i64, f32)] = &[
    (320, 1.0),
    (736, 1.0),
    (11353, 1.0),
    (525, 1.0),
    (320, 1.0),
    (2175, 1.0),
    (267, 1.0),
    (1746, 1.2),
    (2390, 1.2),
];
/// `blurry, lowres`.
const NEGATIVE: &[(i64, f32)] = &[(21977, 1.0), (267, 1.0), (1049, 1.0), (934, 1.0)];

#[test]
fn every_recorded_euler_step_is_reproduced() {
    for name in ["tiny-sd1", "tiny-sd2-v"] {
        let model = built(name);
        let conds = [POSITIVE, NEGATIVE].map(|ids| conditioning(&model, ids));
        let mut truth = Truth::open(&format!("steps_txt2img_{name}.npz"));
        let xs: Array4<f32> = truth.array("Euler/x");
        let sigmas: ndarray::Array1<f32> = truth.array("Euler/sigma_or_t");
        let wants: Array4<f32> = truth.array("Euler/guided");
        for step in 0..sigmas.len() {
            let x = xs.slice(s![step..=step, .., .., ..]).to_owned();
            let want = wants.slice(s![step..=step, .., .., ..]).to_owned();
            let got = guided(&model, &x, sigmas[step], [&conds[0], &conds[1]], 7.0);
            assert_close(&got, &want, 3e-5, &format!("{name} step {step}"));
        }
    }
}

/// The conditioning of one chunk without textual inversions, emphasised as A1111 does by default:
/// weighted, then scaled back to the mean that it had.
fn conditioning(model: &Model, ids: &[(i64, f32)]) -> Array2<f32> {
    let is_sd1 = model.family == Family::Sd1;
    let pad = if is_sd1 { 49407 } else { 0 };
    let from_end = if is_sd1 { 1 } else { 2 };
    let mut tokens = vec![49406];
    tokens.extend(ids.iter().map(|(id, _)| *id));
    tokens.push(49407);
    tokens.resize(77, pad);
    let mut weights = vec![1.0];
    weights.extend(ids.iter().map(|(_, weight)| *weight));
    weights.resize(77, 1.0);
    let batch = TokenBatch {
        ids: Array2::from_shape_vec((1, 77), tokens).unwrap(),
        overrides: Vec::new(),
    };
    let state = HiddenState::Normalised { from_end };
    let hidden = model.text_encoders[0].encode(&batch, state).unwrap().hidden;
    let hidden = hidden.index_axis_move(Axis(0), 0);
    let mean = hidden.mean().unwrap();
    let weighted = &hidden * &Array2::from_shape_vec((77, 1), weights).unwrap();
    let scale = mean / weighted.mean().unwrap();
    weighted * scale
}

/// The embedded model draws `a heart on a (blue:W) background` with a bluer backdrop the larger W is.
#[test]
fn attention_weights_reach_the_embedded_model() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("onnx/embedded");
    let catalogue = Catalogue::new(CatalogueConfig {
        extra_checkpoints: vec![folder],
        ..CatalogueConfig::default()
    });
    let provider = Provider::new(runtime(), Arc::new(catalogue), ProviderConfig::default());
    let model = provider.load(&ModelRequest::default()).unwrap();
    let sigma = 5.0;
    // Uniform noise in -1..1 has a standard deviation of 1/sqrt(3).
    let x = pattern((1, 4, 32, 32), sigma * 3.0_f32.sqrt());
    let nothing = conditioning(&model, &[]);
    let blueness = [0.4, 1.0, 1.5].map(|weight| {
        let mut ids = [320, 1936, 525, 320, 1746, 5994].map(|id| (id, 1.0));
        ids[4].1 = weight;
        let wanted = conditioning(&model, &ids);
        let latent = guided(&model, &x, sigma, [&wanted, &nothing], 1.0);
        let picture = model.vae.decode(&(latent / model.vae_scale)).unwrap();
        let edge = picture.slice(s![0, .., ..16, ..]);
        let mean = |channel| edge.index_axis(Axis(0), channel).mean().unwrap();
        mean(2) - f32::midpoint(mean(0), mean(1))
    });
    let [light, plain, heavy] = blueness;
    assert!(
        light + 0.2 < plain && plain + 0.1 < heavy,
        "{blueness:?} for weights 0.4, 1 and 1.5"
    );
}

#[test]
fn built_unets_equal_torchs_exports() {
    for name in ["tiny-sd1", "tiny-sd2-v", "tiny-sd1-inpaint"] {
        let (ours, theirs) = (built(name), exported(name));
        assert_eq!(ours.family, theirs.family, "{name}");
        assert_eq!(ours.prediction, theirs.prediction, "{name}");
        assert_eq!(ours.unet_channels, theirs.unet_channels, "{name}");
        // Multiples of 8, where both ways up agree, and a fractional timestep.
        let input = UnetInput {
            sample: pattern((2, ours.unet_channels, 8, 16), 1.0),
            timestep: vec![913.25, 400.5],
            context: pattern((2, 154, 128), 1.0),
            vector: None,
        };
        let (got, want) = (
            ours.unet.predict(&input).unwrap(),
            theirs.unet.predict(&input).unwrap(),
        );
        assert_close(&got, &want, 1e-5, name);
    }
}

#[test]
fn built_vaes_and_text_encoders_equal_torchs_exports() {
    for name in ["tiny-sd1", "tiny-sd2-v"] {
        let (ours, theirs) = (built(name), exported(name));
        let latent = pattern((1, 4, 9, 7), 4.0);
        let (got, want) = (
            ours.vae.decode(&latent).unwrap(),
            theirs.vae.decode(&latent).unwrap(),
        );
        assert_close(&got, &want, 1e-5, name);
        let pixels = pattern((1, 3, 72, 56), 1.0);
        let (got, want) = (
            ours.vae.encode(&pixels).unwrap(),
            theirs.vae.encode(&pixels).unwrap(),
        );
        assert_close(&got.mean, &want.mean, 1e-5, name);
        let mut batch = TokenBatch {
            ids: chunk(name, "emph"),
            overrides: Vec::new(),
        };
        batch
            .overrides
            .push(ancestral::conditioning::EmbeddingOverride {
                row: 0,
                position: 2,
                vector: pattern(128, 0.05),
            });
        for from_end in 2..=4 {
            for state in [
                HiddenState::Normalised { from_end },
                HiddenState::Raw { from_end },
            ] {
                let got = ours.text_encoders[0].encode(&batch, state).unwrap();
                let want = theirs.text_encoders[0].encode(&batch, state).unwrap();
                assert_close(
                    &got.hidden,
                    &want.hidden,
                    1e-5,
                    &format!("{name} {state:?}"),
                );
            }
        }
    }
}

/// sgm's vector conditioning: the pooled text and the embedded sizes.
fn vector(pooled: &Array2<f32>, sizes: &[f32]) -> Array2<f32> {
    let mut columns = pooled.row(0).to_vec();
    for size in sizes {
        let angles: Vec<f32> = (0..16)
            .map(|i| size * (-(10000_f32.ln()) * i as f32 / 16.0).exp())
            .collect();
        columns.extend(angles.iter().map(|angle| angle.cos()));
        columns.extend(angles.iter().map(|angle| angle.sin()));
    }
    Array2::from_shape_vec((1, columns.len()), columns).unwrap()
}

#[test]
fn sdxl_towers_give_the_recorded_conditioning() {
    let model = built("tiny-sdxl");
    let mut truth = Truth::open("cond_tiny-sdxl.npz");
    let want: Array3<f32> = truth.array("plain/negative=False/crossattn");
    let want_vector: Array2<f32> = truth.array("plain/negative=False/vector");
    let mut ids = chunk("tiny-sd1", "plain");
    let state = HiddenState::Raw { from_end: 2 };
    let batch = |ids: &Array2<i64>| TokenBatch {
        ids: ids.clone(),
        overrides: Vec::new(),
    };
    let first = model.text_encoders[0].encode(&batch(&ids), state).unwrap();
    let end = ids.iter().position(|id| *id == 49407).unwrap();
    ids.slice_mut(s![0, end + 1..]).fill(0);
    let second = model.text_encoders[1].encode(&batch(&ids), state).unwrap();
    let got = concatenate(Axis(2), &[first.hidden.view(), second.hidden.view()]).unwrap();
    assert_close(&got, &want, 1e-5, "cross attention");
    let pooled = second.pooled.unwrap();
    let want_pooled = want_vector.slice(s![.., ..96]).to_owned();
    assert_close(&pooled, &want_pooled, 1e-5, "pooled");
}

#[test]
fn the_sdxl_unet_equals_torchs_export_and_reads_sizes_back() {
    let (ours, theirs) = (built("tiny-sdxl"), exported("tiny-sdxl"));
    assert_eq!(theirs.family, Family::Sdxl);
    let input = UnetInput {
        sample: pattern((1, 4, 8, 12), 1.0),
        timestep: vec![501.0],
        context: pattern((1, 77, 160), 1.0),
        vector: Some(vector(
            &pattern((1, 96), 1.0),
            &[1024.0, 768.0, 0.0, 128.0, 4096.0, 8.0],
        )),
    };
    let got = ours.unet.predict(&input).unwrap();
    let want = theirs.unet.predict(&input).unwrap();
    assert_close(&got, &want, 1e-5, "UNet");
}

#[test]
fn sizes_off_the_grid_are_cut_as_the_original_resizes() {
    // 96x72 pixels: the latent is no multiple of 8, so up and skip sizes differ on the way.
    let model = built("tiny-sd1");
    let sample: Array4<f32> = pattern((1, 4, 9, 13), 1.0);
    let input = UnetInput {
        sample: sample.clone(),
        timestep: vec![10.0],
        context: pattern((1, 77, 128), 1.0),
        vector: None,
    };
    assert_eq!(model.unet.predict(&input).unwrap().dim(), sample.dim());
}

#[test]
fn a_tiling_model_is_equivariant_under_rolling() {
    let request = ModelRequest {
        checkpoint: "tiny-sd1.safetensors".to_owned(),
        vae: "None".to_owned(),
        tiling: true,
        ..ModelRequest::default()
    };
    let model = provider(&[]).load(&request).unwrap();
    // Rolling by 8 latent columns commutes with a network whose padding is circular.
    let roll = |x: &Array4<f32>, by: usize| {
        let (left, right) = x.view().split_at(Axis(3), by);
        concatenate(Axis(3), &[right, left]).unwrap()
    };
    let latent: Array4<f32> = pattern((1, 4, 8, 16), 1.0);
    let input = |sample: Array4<f32>| UnetInput {
        sample,
        timestep: vec![300.0],
        context: pattern((1, 77, 128), 1.0),
        vector: None,
    };
    let plain = model.unet.predict(&input(latent.clone())).unwrap();
    let rolled = model.unet.predict(&input(roll(&latent, 8))).unwrap();
    assert_close(&rolled, &roll(&plain, 8), 1e-4, "UNet");
    let plain = model.vae.decode(&latent).unwrap();
    let rolled = model.vae.decode(&roll(&latent, 8)).unwrap();
    assert_close(&rolled, &roll(&plain, 64), 1e-4, "VAE decoder");
    let untiled = built("tiny-sd1").vae.decode(&latent).unwrap();
    assert!(difference(&plain, &untiled) > 1e-3);
}

/// The network of `scripts/golden_token_merging.py`, built with and without token merging.
fn merging_networks(document: &serde_json::Value) -> [GraphUnet; 2] {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("unet.safetensors");
    let mut noise = noise();
    let mut tensors = Vec::new();
    for tensor in document["tensors"].as_array().unwrap() {
        let dims = tensor["shape"].as_array().unwrap().iter();
        let shape: Vec<usize> = dims.map(|dim| dim.as_u64().unwrap() as usize).collect();
        let number = |key: &str| tensor[key].as_f64().unwrap() as f32;
        let (offset, scale) = (number("offset"), number("scale"));
        let values = ArrayD::from_shape_simple_fn(shape, || offset + scale * noise());
        tensors.push((tensor["name"].as_str().unwrap().to_owned(), values));
    }
    write_tensors(&path, &tensors);
    let file = Arc::new(TensorFile::open_safetensors(&path).unwrap());
    let weights = Weights::new(file, "");
    let shape = UnetShape {
        heads: Heads::Count(document["heads"].as_u64().unwrap() as usize),
        vector: VectorInput::Whole,
    };
    [false, true].map(|token_merging| {
        let options = BuildOptions {
            token_merging,
            ..BuildOptions::default()
        };
        let built = unet(&weights, shape, options).unwrap();
        let source = GraphSource::Bytes {
            model: &built.model,
            external_folder: Some(folder.path()),
            values: &built.values,
        };
        let graph = Graph::load(&runtime(), "UNet", source).unwrap();
        GraphUnet::new(Arc::new(graph)).unwrap()
    })
}

#[test]
fn tokens_are_merged_as_tomesd_merges_them() {
    let text = include_str!("golden/token_merging.json");
    let document: serde_json::Value = serde_json::from_str(text).unwrap();
    let [plain, merging] = merging_networks(&document);
    for case in document["cases"].as_array().unwrap() {
        let shape = (2, 4, side_of(case, "height"), side_of(case, "width"));
        let recorded = |key: &str| -> Array4<f32> {
            let values = case[key].as_array().unwrap().iter();
            let values = values.map(|value| value.as_f64().unwrap() as f32).collect();
            Array4::from_shape_vec(shape, values).unwrap()
        };
        let input = UnetInput {
            sample: pattern(shape, 1.0),
            timestep: vec![500.0, 81.5],
            context: pattern((2, 7, side_of(&document, "context")), 1.0),
            vector: None,
        };
        let what = format!("{}x{} {}", shape.2, shape.3, case["ratio"]);
        let got = plain.predict(&input).unwrap();
        assert_close(&got, &recorded("plain"), 1e-5, &what);
        let ratio = case["ratio"].as_f64().unwrap();
        let got = merging.with_merge_ratio(ratio).predict(&input).unwrap();
        assert_close(&got, &recorded("merged"), 1e-5, &what);
        let got = merging.predict(&input).unwrap();
        assert_close(&got, &recorded("plain"), 1e-5, &what);
    }
}

fn side_of(document: &serde_json::Value, key: &str) -> usize {
    document[key].as_u64().unwrap() as usize
}

#[test]
fn a_separate_vae_file_is_chosen_by_name() {
    let request = ModelRequest {
        checkpoint: "tiny-sd2-v.safetensors".to_owned(),
        vae: "tiny-sd1-vae.safetensors".to_owned(),
        ..ModelRequest::default()
    };
    let model = provider(&[]).load(&request).unwrap();
    let (name, hash) = model.vae_file.clone().unwrap();
    assert_eq!(
        (name.as_str(), hash.len()),
        ("tiny-sd1-vae.safetensors", 10)
    );
    let latent: Array4<f32> = pattern((1, 4, 6, 6), 4.0);
    let want = built("tiny-sd1").vae.decode(&latent).unwrap();
    assert_close(&model.vae.decode(&latent).unwrap(), &want, 1e-6, "VAE");
}

/// An export in a temporary folder, loaded as the only checkpoint.
fn export_and_load(name: &str) -> (tempfile::TempDir, Arc<Model>) {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join(name);
    let models = data_folder().join("models");
    let checkpoint = models.join(format!("Stable-diffusion/{name}.safetensors"));
    ancestral::models::export(None, &checkpoint, &target, &[models]).unwrap();
    let again = ancestral::models::export(None, &checkpoint, &target, &[]);
    assert!(again.unwrap_err().to_string().contains("exists already"));
    let catalogue = Catalogue::new(CatalogueConfig {
        extra_checkpoints: vec![target],
        ..CatalogueConfig::default()
    });
    let provider = Provider::new(runtime(), Arc::new(catalogue), ProviderConfig::default());
    let model = provider.load(&ModelRequest::default()).unwrap();
    (folder, model)
}

#[test]
fn exports_keep_the_name_the_hash_and_the_values() {
    for name in ["tiny-sd1", "tiny-sd2-v", "tiny-sdxl"] {
        let (_folder, theirs) = export_and_load(name);
        let ours = built_of_onnx(name);
        assert_eq!(theirs.short_title(), ours.short_title());
        assert_eq!(
            (theirs.family, theirs.prediction),
            (ours.family, ours.prediction)
        );
        assert_eq!(theirs.vae_scale.to_bits(), ours.vae_scale.to_bits());
        let batch = TokenBatch {
            ids: chunk("tiny-sd1", "plain"),
            overrides: Vec::new(),
        };
        for (got, want) in theirs.text_encoders.iter().zip(&ours.text_encoders) {
            let state = HiddenState::Raw { from_end: 2 };
            let (got, want) = (
                got.encode(&batch, state).unwrap(),
                want.encode(&batch, state).unwrap(),
            );
            assert_close(&got.hidden, &want.hidden, 1e-6, name);
            assert_eq!(got.pooled.is_some(), want.pooled.is_some());
        }
        let is_xl = ours.family == Family::Sdxl;
        let input = UnetInput {
            sample: pattern((1, 4, 9, 7), 1.0),
            timestep: vec![77.75],
            context: pattern((1, 77, if is_xl { 160 } else { 128 }), 1.0),
            vector: is_xl.then(|| {
                vector(
                    &pattern((1, 96), 1.0),
                    &[512.0, 640.0, 0.0, 0.0, 512.0, 512.0],
                )
            }),
        };
        let (got, want) = (
            theirs.unet.predict(&input).unwrap(),
            ours.unet.predict(&input).unwrap(),
        );
        assert_close(&got, &want, 1e-5, name);
        let latent: Array4<f32> = pattern((1, 4, 5, 6), 4.0);
        let (got, want) = (
            theirs.vae.decode(&latent).unwrap(),
            ours.vae.decode(&latent).unwrap(),
        );
        assert_close(&got, &want, 1e-6, name);
    }
}

/// A safetensors file of float32 tensors.
fn write_tensors(path: &Path, tensors: &[(String, ArrayD<f32>)]) {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, values) in tensors {
        let begin = data.len();
        data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        let entry = serde_json::json!({"dtype": "F32", "shape": values.shape(), "data_offsets": [begin, data.len()]});
        header.insert(name.clone(), entry);
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(&data);
    std::fs::write(path, bytes).unwrap();
}

fn with_networks(provider: &Provider, checkpoint: &str, names: &[(&str, f64, f64)]) -> Arc<Model> {
    let request = ModelRequest {
        checkpoint: format!("{checkpoint}.safetensors"),
        vae: "None".to_owned(),
        networks: PromptNetworks {
            loras: names
                .iter()
                .map(|(name, te, unet)| LoraTag {
                    name: (*name).to_owned(),
                    text_encoder_multiplier: *te,
                    unet_multiplier: *unet,
                    dynamic_rank: None,
                })
                .collect(),
            ..PromptNetworks::default()
        },
        ..ModelRequest::default()
    };
    provider.load(&request).unwrap()
}

/// UNet output and text state for one fixed input.
fn fingerprint(model: &Model) -> (Array4<f32>, Array3<f32>) {
    let input = UnetInput {
        sample: pattern((1, 4, 8, 8), 1.0),
        timestep: vec![500.0],
        context: pattern((1, 77, 128), 1.0),
        vector: None,
    };
    let batch = TokenBatch {
        ids: chunk("tiny-sd1", "plain"),
        overrides: Vec::new(),
    };
    let state = HiddenState::Normalised { from_end: 2 };
    let text = model.text_encoders[0].encode(&batch, state).unwrap().hidden;
    (model.unet.predict(&input).unwrap(), text)
}

#[test]
fn a_lora_as_graph_inputs_equals_the_merged_difference() {
    let folder = tempfile::tempdir().unwrap();
    for (name, target) in [("tiny-sd1", 2.0_f32), ("tiny-sd2-v", 4.0)] {
        // The same network once more, as whole differences, which are merged into the weights.
        let path = data_folder().join(format!("models/Lora/{name}-lora.safetensors"));
        let file = TensorFile::open_safetensors(&path).unwrap();
        let mut whole = Vec::new();
        for tensor in file
            .names()
            .filter(|name| name.ends_with(".lora_up.weight"))
        {
            let key = tensor.trim_end_matches(".lora_up.weight");
            let matrix = |part: &str| {
                let name = format!("{key}.{part}.weight");
                let shape = file.get(&name).unwrap().shape.clone();
                let columns = shape[1..].iter().product();
                Array2::from_shape_vec((shape[0], columns), file.read_f32(&name).unwrap()).unwrap()
            };
            let alpha = file.read_f32(&format!("{key}.alpha")).unwrap()[0];
            let difference = matrix("lora_up").dot(&matrix("lora_down")) * (alpha / target);
            whole.push((format!("{key}.diff"), difference.into_dyn()));
        }
        write_tensors(
            &folder.path().join(format!("{name}-whole.safetensors")),
            &whole,
        );
    }
    let models = data_folder().join("models");
    let catalogue = Catalogue::new(CatalogueConfig {
        models_dir: models.clone(),
        network_dirs: vec![models.join("Lora"), folder.path().to_owned()],
        ..CatalogueConfig::default()
    });
    let config = ProviderConfig {
        tower_folders: vec![models],
        ..ProviderConfig::default()
    };
    let provider = Provider::new(runtime(), Arc::new(catalogue), config);
    for name in ["tiny-sd1", "tiny-sd2-v"] {
        let (lora, whole) = (format!("{name}-lora"), format!("{name}-whole"));
        let plain = fingerprint(&with_networks(&provider, name, &[]));
        let model = with_networks(&provider, name, &[(&lora, 0.5, 0.8)]);
        assert_eq!(model.networks[0].0, lora);
        assert_eq!(model.networks[0].1.len(), 12);
        let adapted = fingerprint(&model);
        let merged = fingerprint(&with_networks(&provider, name, &[(&whole, 0.5, 0.8)]));
        assert_close(&adapted.0, &merged.0, 1e-5, name);
        assert_close(&adapted.1, &merged.1, 1e-5, name);
        assert!(difference(&adapted.0, &plain.0) > 1e-4, "{name}");
        assert!(difference(&adapted.1, &plain.1) > 1e-4, "{name}");
        // Twice half is once, and the same session serves both.
        let twice = with_networks(&provider, name, &[(&lora, 0.25, 0.4), (&lora, 0.25, 0.4)]);
        assert_close(&fingerprint(&twice).0, &adapted.0, 1e-5, name);
        let again = fingerprint(&with_networks(&provider, name, &[]));
        assert_eq!(again.0, plain.0);
    }
    let missing = with_networks(&provider, "tiny-sd1", &[("nowhere", 1.0, 1.0)]);
    assert_eq!(missing.missing_networks, ["nowhere"]);
}

/// A checkpoint once more with every tensor in another element type and an odd header length.
fn restored(source: &Path, target: &Path, element: &str) {
    let file = TensorFile::open_safetensors(source).unwrap();
    let (mut header, mut data) = (serde_json::Map::new(), Vec::<u8>::new());
    for (index, (name, tensor)) in file.iter().enumerate() {
        let begin = data.len();
        let values = file.read_f32(name).unwrap();
        let element = match element {
            "mixed" => ["F32", "F16", "BF16"][index % 3],
            other => other,
        };
        for value in values {
            match element {
                "F32" => data.extend(value.to_le_bytes()),
                "BF16" => data.extend(half::bf16::from_f32(value).to_le_bytes()),
                _ => data.extend(half::f16::from_f32(value).to_le_bytes()),
            }
        }
        let entry = serde_json::json!({"dtype": element, "shape": tensor.shape, "data_offsets": [begin, data.len()]});
        header.insert(name.to_owned(), entry);
    }
    let mut header = serde_json::Value::Object(header).to_string();
    while header.len().is_multiple_of(2) {
        header.push(' ');
    }
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(&data);
    std::fs::write(target, bytes).unwrap();
    let yaml = source.with_extension("yaml");
    std::fs::copy(yaml, target.with_extension("yaml")).unwrap();
}

#[test]
fn every_stored_type_and_unaligned_headers_give_the_same_values() {
    let models = data_folder().join("models");
    let source = models.join("Stable-diffusion/tiny-sd1.safetensors");
    let want = fingerprint(&built("tiny-sd1"));
    let folder = tempfile::tempdir().unwrap();
    for (element, tolerance) in [("F32", 1e-6), ("F16", 1e-6), ("BF16", 0.1), ("mixed", 0.1)] {
        let target = folder.path().join(format!("{element}.safetensors"));
        restored(&source, &target, element);
        let catalogue = Catalogue::new(CatalogueConfig {
            extra_checkpoints: vec![target],
            ..CatalogueConfig::default()
        });
        let config = ProviderConfig {
            tower_folders: vec![models.clone()],
            ..ProviderConfig::default()
        };
        let provider = Provider::new(runtime(), Arc::new(catalogue), config);
        let model = provider.load(&ModelRequest::default()).unwrap();
        let got = fingerprint(&model);
        assert_close(&got.0, &want.0, tolerance, element);
        assert_close(&got.1, &want.1, tolerance, element);
        model.vae.decode(&pattern((1, 4, 4, 4), 1.0)).unwrap();
    }
}

/// A picture does not depend on how many others are in its batch: the runtime's CPU provider computes
/// every row alike, whatever the number of rows.
#[test]
fn every_row_of_a_batch_has_the_bits_that_it_has_alone() {
    for (name, width) in [("tiny-sd1", 128), ("tiny-sdxl", 160)] {
        let model = built(name);
        for (rows, height, columns) in [(2, 16, 24), (5, 9, 13)] {
            let input = UnetInput {
                sample: pattern((rows, 4, height, columns), 1.0),
                timestep: vec![913.25; rows],
                context: pattern((rows, 77, width), 1.0),
                vector: (model.family == Family::Sdxl).then(|| pattern((rows, 288), 1.0)),
            };
            let together = model.unet.predict(&input).unwrap();
            for row in 0..rows {
                let alone = model.unet.predict(&one_row(&input, row)).unwrap();
                let bits = |values: ndarray::ArrayView3<'_, f32>| -> Vec<u32> {
                    values.iter().map(|value| value.to_bits()).collect()
                };
                assert!(
                    bits(together.index_axis(Axis(0), row)) == bits(alone.index_axis(Axis(0), 0)),
                    "{name}: row {row} of {rows}"
                );
            }
        }
    }
}

fn one_row(input: &UnetInput, row: usize) -> UnetInput {
    UnetInput {
        sample: input.sample.slice(s![row..=row, .., .., ..]).to_owned(),
        timestep: vec![input.timestep[row]],
        context: input.context.slice(s![row..=row, .., ..]).to_owned(),
        vector: input
            .vector
            .as_ref()
            .map(|vector| vector.slice(s![row..=row, ..]).to_owned()),
    }
}

#[test]
fn a_call_in_flight_is_stopped_and_the_next_one_runs() {
    let model = built("tiny-sd1");
    let input = |side: usize| UnetInput {
        sample: pattern((2, 4, side, side), 1.0),
        timestep: vec![500.0; 2],
        context: pattern((2, 77, 128), 1.0),
        vector: None,
    };
    let (large, small) = (input(128), input(8));
    let ended = std::sync::atomic::AtomicBool::new(false);
    let result = std::thread::scope(|scope| {
        let call = scope.spawn(|| {
            let result = model.unet.predict(&large);
            ended.store(true, std::sync::atomic::Ordering::Release);
            result
        });
        // Only calls that have begun are stopped, so it is asked until this one has.
        while !ended.load(std::sync::atomic::Ordering::Acquire) {
            model.unet.terminate();
            std::thread::yield_now();
        }
        call.join().unwrap()
    });
    let message = result.unwrap_err().to_string();
    assert!(message.contains("stopped"), "{message}");
    model.unet.predict(&small).unwrap();
}

/// A provider over a copy of one golden checkpoint, with further folders for networks.
fn provider_of_copy(folder: &Path, name: &str) -> Provider {
    provider_of_copy_with(folder, name, |config| config)
}

/// [`provider_of_copy`] with another configuration.
fn provider_of_copy_with(
    folder: &Path,
    name: &str,
    change: impl FnOnce(ProviderConfig) -> ProviderConfig,
) -> Provider {
    provider_of_copy_on(runtime(), folder, name, change)
}

/// [`provider_of_copy_with`] where a load can be quick: the matrix unit has no use for another one.
fn provider_of_quick_loads(
    folder: &Path,
    name: &str,
    change: impl FnOnce(ProviderConfig) -> ProviderConfig,
) -> Provider {
    provider_of_copy_on(runtime_without_matrix_unit(), folder, name, change)
}

/// [`provider_of_copy_with`] on another runtime.
fn provider_of_copy_on(
    runtime: Runtime,
    folder: &Path,
    name: &str,
    change: impl FnOnce(ProviderConfig) -> ProviderConfig,
) -> Provider {
    let models = data_folder().join("models");
    let target = folder.join("models/Stable-diffusion");
    std::fs::create_dir_all(&target).unwrap();
    for ending in ["safetensors", "yaml"] {
        let file = format!("{name}.{ending}");
        std::fs::copy(
            models.join("Stable-diffusion").join(&file),
            target.join(&file),
        )
        .unwrap();
    }
    let catalogue = Catalogue::new(CatalogueConfig {
        models_dir: folder.join("models"),
        network_dirs: vec![folder.join("models/Lora")],
        embeddings_dir: Some(folder.join("embeddings")),
        no_hashing: true,
        ..CatalogueConfig::default()
    });
    let config = ProviderConfig {
        tower_folders: vec![models],
        ..ProviderConfig::default()
    };
    Provider::new(runtime, Arc::new(catalogue), change(config))
}

/// On a processor without one both are the same.
#[test]
fn a_checkpoint_on_the_matrix_unit_gives_what_the_library_alone_gives() {
    let folder = tempfile::tempdir().unwrap();
    let latent: Array4<f32> = pattern((1, 4, 12, 9), 4.0);
    let drawn = |runtime: Runtime, decode_memory_bytes| {
        let provider = provider_of_copy_on(runtime, folder.path(), "tiny-sd1", |config| {
            ProviderConfig {
                decode_memory_bytes,
                ..config
            }
        });
        let model = provider.load(&ModelRequest::default()).unwrap();
        let (noise, text) = fingerprint(&model);
        (noise, text, model.vae.decode(&latent).unwrap())
    };
    for decode_memory_bytes in [None, Some(0)] {
        let (noise, text, picture) = drawn(runtime(), decode_memory_bytes);
        let wanted = drawn(runtime_without_matrix_unit(), decode_memory_bytes);
        assert_close(&noise, &wanted.0, 1e-4, "noise");
        assert_close(&text, &wanted.1, 1e-4, "text");
        assert_close(&picture, &wanted.2, 1e-4, "picture");
        let is_same = noise == wanted.0;
        assert_eq!(is_same, !runtime().has_matrix_unit());
    }
}

#[test]
fn a_checkpoint_cut_short_while_loaded_goes_on_working_and_is_refused_when_loaded_again() {
    let folder = tempfile::tempdir().unwrap();
    let provider = provider_of_copy(folder.path(), "tiny-sd1");
    let request = ModelRequest::default();
    let model = provider.load(&request).unwrap();
    let latent: Array4<f32> = pattern((1, 4, 6, 6), 4.0);
    let before = (fingerprint(&model), model.vae.decode(&latent).unwrap());
    // Nothing of the file may stay mapped: reading a page that is gone would end the process.
    let path = folder
        .path()
        .join("models/Stable-diffusion/tiny-sd1.safetensors");
    if cfg!(target_os = "linux") {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        assert!(!maps.contains(path.to_str().unwrap()), "{maps}");
    }
    std::fs::write(&path, b"too short").unwrap();
    let after = (fingerprint(&model), model.vae.decode(&latent).unwrap());
    assert_eq!(before, after);
    let error = provider.load(&request).err().unwrap().to_string();
    assert!(error.contains("tiny-sd1.safetensors"), "{error}");
}

/// Whether something of a file is mapped into this process.
fn is_mapped(path: &Path) -> bool {
    cfg!(target_os = "linux")
        && std::fs::read_to_string("/proc/self/maps")
            .unwrap()
            .contains(path.to_str().unwrap())
}

#[test]
fn a_session_of_a_quick_load_gives_about_the_same_and_needs_no_file() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["tiny-sd1", "tiny-sd2-v"] {
        let quick = provider_of_quick_loads(folder.path(), name, |config| ProviderConfig {
            load_strategy: LoadStrategy::Quick,
            ..config
        });
        let request = ModelRequest {
            checkpoint: name.to_owned(),
            planned_latent_pixels: u64::MAX,
            ..ModelRequest::default()
        };
        let model = quick.load(&request).unwrap();
        assert_eq!(quick.quick_unet_count(), 1);
        let before = fingerprint(&model);
        let path = folder
            .path()
            .join(format!("models/Stable-diffusion/{name}.safetensors"));
        assert!(!is_mapped(&path));
        std::fs::write(&path, b"too short").unwrap();
        assert_eq!(fingerprint(&model), before);
        let fast = built_of_onnx(name);
        assert_close(&before.0, &fingerprint(&fast).0, 1e-5, name);
    }
}

#[test]
fn a_large_unet_is_loaded_quickly_and_upgraded_once_that_pays() {
    let folder = tempfile::tempdir().unwrap();
    let large = |config| ProviderConfig {
        load_strategy: LoadStrategy::Auto,
        large_unet_bytes: 1,
        ..config
    };
    let provider = provider_of_quick_loads(folder.path(), "tiny-sd1", large);
    let asked = |planned_latent_pixels| ModelRequest {
        planned_latent_pixels,
        ..ModelRequest::default()
    };
    // Half of what pays, and the other half.
    let half = 13 * 2 * 64 * 64;
    let model = provider.load(&asked(half)).unwrap();
    let quick = fingerprint(&model);
    assert_eq!(provider.quick_unet_count(), 1);
    let again = provider.load(&asked(half)).unwrap();
    let begin = std::time::Instant::now();
    while provider.quick_unet_count() > 0 {
        assert!(begin.elapsed().as_secs() < 60);
        fingerprint(&again);
    }
    let fast = fingerprint(&built_of_onnx("tiny-sd1"));
    assert_eq!(fingerprint(&model), fast, "jobs that run get it too");
    assert_close(&quick.0, &fast.0, 1e-5, "quick");
    assert!(!is_mapped(
        &folder
            .path()
            .join("models/Stable-diffusion/tiny-sd1.safetensors")
    ));

    // A first request for which fast steps pay waits for them; a small network always has them.
    provider.unload_all();
    provider.load(&asked(2 * half)).unwrap();
    assert_eq!(provider.quick_unet_count(), 0);
    let small = provider_of_copy(folder.path(), "tiny-sd1");
    small.load(&asked(0)).unwrap();
    assert_eq!(small.quick_unet_count(), 0);
}

#[test]
fn the_parts_of_a_checkpoint_that_does_not_fit_take_turns_and_give_the_same_values() {
    let folder = tempfile::tempdir().unwrap();
    let request = ModelRequest::default();
    let latent: Array4<f32> = pattern((1, 4, 6, 6), 4.0);
    let values = |model: &Model| {
        let first = fingerprint(model);
        let picture = model.vae.decode(&latent).unwrap();
        // The text tower made room for the step before, and is there again for the next prompt.
        (first, picture, fingerprint(model))
    };
    let whole = provider_of_copy(folder.path(), "tiny-sd1");
    let wanted = values(&whole.load(&request).unwrap());
    assert_eq!(whole.present_session_count(), 2);
    let frugal = provider_of_copy_with(folder.path(), "tiny-sd1", |config| ProviderConfig {
        memory_budget_bytes: 1,
        ..config
    });
    let model = frugal.load(&request).unwrap();
    assert_eq!(frugal.present_session_count(), 0);
    assert_eq!(values(&model), wanted);
    assert_eq!(frugal.present_session_count(), 1, "the UNet alone");
}

#[test]
fn the_text_tower_of_a_large_checkpoint_makes_room_for_steps_that_outweigh_its_load() {
    let folder = tempfile::tempdir().unwrap();
    let request = |steps: u64| ModelRequest {
        latent_pixels_without_text: steps * 2 * 64 * 64,
        ..ModelRequest::default()
    };
    let sparing = |config| ProviderConfig {
        text_makes_room: true,
        load_strategy: LoadStrategy::Fast,
        ..config
    };
    let small = provider_of_copy_with(folder.path(), "tiny-sd1", sparing);
    let model = small.load(&request(8)).unwrap();
    assert_eq!(small.present_session_count(), 2);
    let wanted = fingerprint(&model);
    let latent: Array4<f32> = pattern((1, 4, 32, 32), 4.0);
    let picture = model.vae.decode(&latent).unwrap();
    assert_eq!(small.present_session_count(), 2);

    let large = |config| ProviderConfig {
        large_unet_bytes: 1,
        ..sparing(config)
    };
    let provider = provider_of_copy_with(folder.path(), "tiny-sd1", large);
    let draw = |steps| {
        assert_eq!(
            fingerprint(&provider.load(&request(steps)).unwrap()),
            wanted
        );
        provider.present_session_count()
    };
    let model = provider.load(&request(7)).unwrap();
    assert_eq!(provider.present_session_count(), 0, "the text comes first");
    assert_eq!(draw(7), 2, "these steps do not outweigh it");
    assert_eq!(draw(0), 2, "another text follows");
    let jobs = [provider.job(), provider.job()];
    assert_eq!(draw(8), 2, "another job may need it");
    drop(jobs);
    let job = provider.job();
    assert_eq!(draw(8), 1, "the UNet alone");
    assert_eq!(draw(8), 1, "... and the tower was there for the text");
    drop(job);
    let decoded = model.vae.decode(&latent).unwrap();
    assert_ne!(decoded, picture, "in strips");
    assert_close(&decoded, &picture, 1e-4, "picture");
}

#[test]
fn a_unet_for_a_few_steps_is_loaded_while_the_prompt_is_encoded() {
    let folder = tempfile::tempdir().unwrap();
    let large = |config| ProviderConfig {
        text_makes_room: true,
        large_unet_bytes: 1,
        ..config
    };
    let provider = provider_of_copy_with(folder.path(), "tiny-sd1", large);
    let request = |planned_latent_pixels, latent_pixels_without_text| ModelRequest {
        planned_latent_pixels,
        latent_pixels_without_text,
        ..ModelRequest::default()
    };
    // What a job asks for before its first batch, and for one whose text makes room.
    drop(provider.load(&request(u64::MAX, 0)).unwrap());
    drop(provider.load(&request(0, u64::MAX)).unwrap());
    assert_eq!(provider.present_session_count(), 0, "its text comes first");
    let model = provider.load(&request(1, 1)).unwrap();
    let begin = Instant::now();
    while provider.present_session_count() == 0 {
        assert!(begin.elapsed() < Duration::from_mins(1));
        std::thread::yield_now();
    }
    let ahead = fingerprint(&model);
    let other = provider_of_copy(folder.path(), "tiny-sd1");
    assert_eq!(
        ahead,
        fingerprint(&other.load(&ModelRequest::default()).unwrap())
    );
}

#[test]
fn a_checkpoints_hash_comes_to_the_model_and_to_the_list() {
    let folder = tempfile::tempdir().unwrap();
    provider_of_copy(folder.path(), "tiny-sd1");
    let models = folder.path().join("models");
    let catalogue = Catalogue::new(CatalogueConfig {
        models_dir: models.clone(),
        ..CatalogueConfig::default()
    });
    let path = models.join("Stable-diffusion/tiny-sd1.safetensors");
    let sha256 = ancestral::catalogue::sha256_of(&path).unwrap();
    let config = ProviderConfig {
        tower_folders: vec![models],
        ..ProviderConfig::default()
    };
    let provider = Provider::new(runtime(), Arc::new(catalogue), config);
    let listed = || provider.catalogue().checkpoints()[0].sha256.clone();
    assert_eq!(listed(), None);
    for load in ["computed", "known"] {
        let model = provider.load(&ModelRequest::default()).unwrap();
        assert_eq!(model.short_hash.wait(), &sha256[..10], "{load}");
        assert_eq!(listed().as_ref(), Some(&sha256));
    }
}

/// A tower that came back between two steps, for another job, stays.
#[test]
fn a_job_has_the_text_tower_make_room_once() {
    let folder = tempfile::tempdir().unwrap();
    let large = |config| ProviderConfig {
        text_makes_room: true,
        large_unet_bytes: 1,
        ..config
    };
    let provider = provider_of_quick_loads(folder.path(), "tiny-sd1", large);
    let request = ModelRequest {
        latent_pixels_without_text: u64::MAX,
        ..ModelRequest::default()
    };
    drop(provider.load(&request).unwrap());
    assert_eq!(provider.quick_unet_count(), 1);
    let long = ModelRequest {
        planned_latent_pixels: u64::MAX,
        ..request.clone()
    };
    drop(provider.load(&long).unwrap());
    let counts = (provider.quick_unet_count(), provider.upgrading_unet_count());
    assert_eq!(counts, (0, 0), "it was never loaded quickly");
    let model = provider.load(&request).unwrap();
    fingerprint(&model);
    assert_eq!(provider.present_session_count(), 1);
    fingerprint(&model);
    assert_eq!(provider.present_session_count(), 2);
}

#[test]
fn no_faster_session_is_built_where_both_do_not_fit_into_the_budget() {
    let folder = tempfile::tempdir().unwrap();
    // As much as all its weights are in float32.
    let path = data_folder().join("models/Stable-diffusion/tiny-sd1.safetensors");
    let file = TensorFile::open(&path).unwrap();
    let values: usize = file
        .iter()
        .map(|(_, tensor)| tensor.shape.iter().product::<usize>())
        .sum();
    let provider = provider_of_quick_loads(folder.path(), "tiny-sd1", |config| ProviderConfig {
        large_unet_bytes: 1,
        memory_budget_bytes: 4 * values as u64,
        ..config
    });
    let request = |planned_latent_pixels| ModelRequest {
        planned_latent_pixels,
        ..ModelRequest::default()
    };
    let model = provider.load(&request(0)).unwrap();
    let before = fingerprint(&model);
    let model = provider.load(&request(1 << 40)).unwrap();
    let counts = (provider.quick_unet_count(), provider.upgrading_unet_count());
    assert_eq!(counts, (1, 0));
    assert_eq!(fingerprint(&model), before);
}

#[test]
fn a_file_that_took_another_ones_place_is_never_served_from_memory() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["models/Lora", "embeddings"] {
        std::fs::create_dir_all(folder.path().join(name)).unwrap();
    }
    let provider = provider_of_copy(folder.path(), "tiny-sd1");
    let recorded = data_folder().join("models/Lora/tiny-sd1-lora.safetensors");
    let recorded = TensorFile::open_safetensors(&recorded).unwrap();
    let write_network = |factor: f32| {
        let tensors: Vec<(String, ArrayD<f32>)> = recorded
            .names()
            .map(|name| {
                let values = recorded.read_f32(name).unwrap();
                let shape = recorded.get(name).unwrap().shape.clone();
                let tensor = ArrayD::from_shape_vec(shape, values).unwrap();
                let is_alpha = name.rsplit('.').next() == Some("alpha");
                (
                    name.to_owned(),
                    if is_alpha { tensor * factor } else { tensor },
                )
            })
            .collect();
        write_tensors(
            &folder.path().join("models/Lora/style.safetensors"),
            &tensors,
        );
        provider.catalogue().networks().refresh();
    };
    let drawn = |names: &[(&str, f64, f64)]| {
        let model = with_networks(&provider, "tiny-sd1", names);
        (model.text_state, fingerprint(&model), model)
    };
    let style = [("style", 1.0, 1.0)];
    write_network(1.0);
    let (state, values, _) = drawn(&style);
    let (again, _, _) = drawn(&style);
    assert_eq!(state, again, "nothing changed");
    write_network(3.0);
    let (replaced, other, _) = drawn(&style);
    assert_ne!(state, replaced, "the network's file was replaced");
    assert_ne!(values.0, other.0, "the UNet");
    assert_ne!(values.1, other.1, "the text encoder");

    let (bare, _, model) = drawn(&[]);
    let width = model.text_encoders[0].width();
    let mut known = vec![bare];
    for value in [0.5, 0.25] {
        let path = folder.path().join("embeddings/word.safetensors");
        let vectors = ArrayD::from_elem(vec![1, width], value);
        write_tensors(&path, &[("emb_params".to_owned(), vectors)]);
        provider.catalogue().embeddings().refresh();
        let (state, _, model) = drawn(&[]);
        assert!(!known.contains(&state), "the embedding is {value}");
        known.push(state);
        let embedding = model.embeddings.as_ref().unwrap().load("word").unwrap();
        assert_eq!(embedding.vectors[0][[0, 0]], value);
    }

    let (state, _, model) = drawn(&[]);
    let path = folder
        .path()
        .join("models/Stable-diffusion/tiny-sd1.safetensors");
    std::fs::write(&path, std::fs::read(&path).unwrap()).unwrap();
    let (loaded_again, _, now) = drawn(&[]);
    assert_ne!(state, loaded_again, "the checkpoint was replaced");
    assert!(!Arc::ptr_eq(&model.text_cache, &now.text_cache));
}

/// A pickle of a hypernetwork with one layer and no bias a side, as `torch.save` writes it, is what
/// `scripts/golden_hypernetworks.py` makes; here the same network stands as merged differences.
#[test]
fn a_hypernetwork_of_one_linear_layer_equals_the_merged_difference() {
    let folder = tempfile::tempdir().unwrap();
    let provider = provider_of_copy(folder.path(), "tiny-sd1");
    let models = folder.path().join("models");
    std::fs::create_dir_all(models.join("hypernetworks")).unwrap();
    std::fs::create_dir_all(models.join("Lora")).unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/hypernetworks/merged");
    std::fs::copy(
        golden.join("one_layer.pt"),
        models.join("hypernetworks/one.pt"),
    )
    .unwrap();
    let checkpoint = models.join("Stable-diffusion/tiny-sd1.safetensors");
    let file = TensorFile::open_safetensors(&checkpoint).unwrap();
    let layers = TensorFile::open(&golden.join("layers.pt")).unwrap();
    let matrix = |file: &TensorFile, name: &str| {
        let shape = file.get(name).unwrap().shape.clone();
        Array2::from_shape_vec((shape[0], shape[1]), file.read_f32(name).unwrap()).unwrap()
    };
    // W (x + H x) = (W + W H) x.
    let mut differences = Vec::new();
    for name in file
        .names()
        .filter(|name| name.starts_with("model.diffusion_model."))
    {
        let Some((side, layer)) = ["to_k", "to_v"]
            .iter()
            .enumerate()
            .find_map(|(side, ending)| {
                Some((side, name.strip_suffix(&format!(".{ending}.weight"))?))
            })
        else {
            continue;
        };
        let weight = matrix(&file, name);
        let Some(_) = layers.get(&format!("{}.{side}", weight.ncols())) else {
            continue;
        };
        let change = weight.dot(&matrix(&layers, &format!("{}.{side}", weight.ncols())));
        let layer = layer
            .trim_start_matches("model.diffusion_model.")
            .replace('.', "_");
        let key = format!("lora_unet_{layer}_{}.diff", ["to_k", "to_v"][side]);
        differences.push((key, change.into_dyn()));
    }
    assert!(differences.len() > 8, "attention of both kinds is changed");
    write_tensors(&models.join("Lora/whole.safetensors"), &differences);
    provider.catalogue().hypernetworks().refresh();
    provider.catalogue().networks().refresh();
    let with_hypernetwork = |multiplier: f64| {
        let request = ModelRequest {
            networks: PromptNetworks {
                hypernetworks: vec![HypernetworkTag {
                    name: "one".to_owned(),
                    multiplier,
                }],
                ..PromptNetworks::default()
            },
            ..ModelRequest::default()
        };
        fingerprint(&provider.load(&request).unwrap())
    };
    let plain = fingerprint(&provider.load(&ModelRequest::default()).unwrap());
    for multiplier in [0.5, 1.0] {
        let merged = fingerprint(&with_networks(
            &provider,
            "tiny-sd1",
            &[("whole", 0.0, multiplier)],
        ));
        let got = with_hypernetwork(multiplier);
        // Changed keys go through the softmax, which enlarges the rounding of both ways; one layer
        // left out would be a hundred times as much.
        assert_close(&got.0, &merged.0, 1e-4, "UNet");
        assert_eq!(got.1, plain.1, "the text encoder has no part in it");
        assert!(difference(&got.0, &plain.0) > 1e-3);
    }
    assert_close(&with_hypernetwork(0.0).0, &plain.0, 1e-5, "multiplier 0");
}

#[test]
fn a_small_memory_budget_keeps_one_unet_and_gives_the_same_values() {
    let config = ProviderConfig {
        memory_budget_bytes: 1,
        ..ProviderConfig::default()
    };
    let provider = provider_with(&[], config);
    let adapted =
        |provider: &Provider| with_networks(provider, "tiny-sd1", &[("tiny-sd1-lora", 1.0, 1.0)]);
    let first = fingerprint(&adapted(&provider));
    let plain = fingerprint(&with_networks(&provider, "tiny-sd1", &[]));
    let other = fingerprint(&with_networks(&provider, "tiny-sd2-v", &[]));
    assert_ne!(plain.0, other.0);
    assert_eq!(
        fingerprint(&with_networks(&provider, "tiny-sd1", &[])),
        plain
    );
    assert_eq!(fingerprint(&adapted(&provider)), first);
    assert_ne!(plain.0, first.0);
}

/// `changed.safetensors`: a golden checkpoint with its tensors changed. It is the first of the
/// provider's list, before the golden ones.
fn provider_of_changed(
    folder: &Path,
    name: &str,
    change: impl Fn(&mut Vec<(String, ArrayD<f32>)>),
) -> Provider {
    let source = data_folder().join(format!("models/Stable-diffusion/{name}.safetensors"));
    let file = TensorFile::open_safetensors(&source).unwrap();
    let mut tensors = file
        .iter()
        .map(|(name, tensor)| {
            let values = file.read_f32(name).unwrap();
            let array = ArrayD::from_shape_vec(tensor.shape.clone(), values).unwrap();
            (name.to_owned(), array)
        })
        .collect();
    change(&mut tensors);
    let target = folder.join("changed.safetensors");
    write_tensors(&target, &tensors);
    std::fs::copy(source.with_extension("yaml"), target.with_extension("yaml")).unwrap();
    provider(&[target])
}

#[test]
fn averaged_weights_beside_the_plain_ones_are_left_alone_and_alone_take_their_place() {
    let folder = tempfile::tempdir().unwrap();
    let with_averaged = |tensors: &mut Vec<(String, ArrayD<f32>)>| {
        let averaged: Vec<_> = tensors
            .iter()
            .filter(|(name, _)| name.starts_with("model."))
            .map(|(name, values)| {
                let name = name.trim_start_matches("model.").replace('.', "");
                (format!("model_ema.{name}"), values * 0.5)
            })
            .collect();
        assert!(averaged.len() > 100);
        tensors.extend(averaged);
    };
    let provider = provider_of_changed(folder.path(), "tiny-sd1", with_averaged);
    let got = fingerprint(&provider.load(&ModelRequest::default()).unwrap());
    let want = fingerprint(&built("tiny-sd1"));
    assert_close(&got.0, &want.0, 1e-6, "UNet");
    assert_close(&got.1, &want.1, 1e-6, "text");
    let provider = provider_of_changed(folder.path(), "tiny-sd1", |tensors| {
        with_averaged(tensors);
        tensors.retain(|(name, _)| !name.starts_with("model."));
    });
    let got = fingerprint(&provider.load(&ModelRequest::default()).unwrap());
    let halved = provider_of_changed(folder.path(), "tiny-sd1", |tensors| {
        for (name, values) in tensors {
            if name.starts_with("model.") {
                *values *= 0.5;
            }
        }
    });
    let want = fingerprint(&halved.load(&ModelRequest::default()).unwrap());
    assert_eq!(got, want);
}

#[test]
fn a_checkpoint_without_a_vae_draws_with_a_file_of_the_users_choice() {
    let folder = tempfile::tempdir().unwrap();
    let provider = provider_of_changed(folder.path(), "tiny-sd1", |tensors| {
        tensors.retain(|(name, _)| !name.starts_with("first_stage_model."));
    });
    let error = provider.load(&ModelRequest::default()).err().unwrap();
    assert!(
        error
            .to_string()
            .contains("choose one with the option sd_vae"),
        "{error}"
    );
    let request = ModelRequest {
        vae: "tiny-sd1-vae.safetensors".to_owned(),
        ..ModelRequest::default()
    };
    let model = provider.load(&request).unwrap();
    assert_eq!(
        model.vae_file.as_ref().unwrap().0,
        "tiny-sd1-vae.safetensors"
    );
    model.vae.decode(&pattern((1, 4, 4, 4), 1.0)).unwrap();
    let path = folder.path().join("changed.safetensors");
    let told = ancestral::models::describe(&path, &[]).unwrap();
    for part in [
        "Sd1",
        "missing; put one into models/VAE",
        "2 heads (a guess",
        "F32 in ",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    let told = ancestral::models::describe(&path, &[data_folder().join("models")]).unwrap();
    assert!(told.contains("4 heads\n"), "{told}");
}

#[test]
fn inspection_names_what_keeps_a_part_from_being_built() {
    let folder = tempfile::tempdir().unwrap();
    let lost = "model.diffusion_model.middle_block.0.in_layers.2.weight";
    provider_of_changed(folder.path(), "tiny-sd2-v", |tensors| {
        tensors.retain(|(name, _)| name != lost);
    });
    let told =
        ancestral::models::describe(&folder.path().join("changed.safetensors"), &[]).unwrap();
    let broken = told
        .lines()
        .find(|line| line.contains("broken"))
        .expect(&told);
    assert!(
        broken.contains("middle_block.0.in_layers.2.weight"),
        "{told}"
    );
    assert!(
        told.contains("Sd2") && told.contains("velocity (v)"),
        "{told}"
    );
    let export = data_folder().join("exports/tiny-sdxl");
    let told = ancestral::models::describe(&export, &[]).unwrap();
    assert!(told.contains("Sdxl") && !told.contains("missing"), "{told}");
    let lora = data_folder().join("models/Lora/tiny-sd1-lora.safetensors");
    let error = ancestral::models::describe(&lora, &[])
        .unwrap_err()
        .to_string();
    assert!(error.contains("belong into models/Lora"), "{error}");
}

/// The content tells the format; the ending only says that it is a checkpoint.
#[test]
fn a_checkpoint_called_pt_is_found_by_a_refresh_and_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let provider = provider_of_copy(folder.path(), "tiny-sd1");
    let models = folder.path().join("models/Stable-diffusion");
    for ending in ["safetensors", "yaml"] {
        let target = if ending == "yaml" {
            "old.yaml"
        } else {
            "old.pt"
        };
        std::fs::rename(
            models.join(format!("tiny-sd1.{ending}")),
            models.join(target),
        )
        .unwrap();
    }
    provider.catalogue().refresh_checkpoints();
    let request = ModelRequest {
        checkpoint: "old.pt".to_owned(),
        ..ModelRequest::default()
    };
    let got = fingerprint(&provider.load(&request).unwrap());
    assert_eq!(got, fingerprint(&built("tiny-sd1")));
}

/// A LoRA for both text towers of SDXL equals weights that were changed by hand, tower by tower.
#[test]
fn a_lora_reaches_each_text_tower_of_sdxl_by_its_own_names() {
    const TOWERS: [(&str, &str); 2] = [
        (
            "lora_te1_text_model_encoder_layers_0_mlp_fc1",
            "conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.weight",
        ),
        (
            "lora_te2_text_model_encoder_layers_0_mlp_fc2",
            "conditioner.embedders.1.model.transformer.resblocks.0.mlp.c_proj.weight",
        ),
    ];
    let folder = tempfile::tempdir().unwrap();
    let source = data_folder().join("models/Stable-diffusion/tiny-sdxl.safetensors");
    let file = TensorFile::open_safetensors(&source).unwrap();
    let factors = TOWERS.map(|(_, tensor)| {
        let shape = &file.get(tensor).unwrap().shape;
        let (up, down): (Array2<f32>, Array2<f32>) =
            (pattern((shape[0], 1), 0.5), pattern((1, shape[1]), 0.5));
        (up, down)
    });
    for (file, chosen) in [("both", &[0, 1][..]), ("first", &[0]), ("second", &[1])] {
        let mut tensors = Vec::new();
        for &tower in chosen {
            let (up, down) = factors[tower].clone();
            let key = TOWERS[tower].0;
            tensors.push((format!("{key}.lora_up.weight"), up.into_dyn()));
            tensors.push((format!("{key}.lora_down.weight"), down.into_dyn()));
        }
        write_tensors(&folder.path().join(format!("{file}.safetensors")), &tensors);
    }
    let models = data_folder().join("models");
    let catalogue = Catalogue::new(CatalogueConfig {
        models_dir: models.clone(),
        network_dirs: vec![folder.path().to_owned()],
        ..CatalogueConfig::default()
    });
    let config = ProviderConfig {
        tower_folders: vec![models],
        ..ProviderConfig::default()
    };
    let with_lora = Provider::new(runtime(), Arc::new(catalogue), config);
    let states = |model: &Model| {
        [0, 1].map(|tower: usize| {
            let batch = TokenBatch {
                ids: chunk("tiny-sd1", "plain"),
                overrides: Vec::new(),
            };
            let state = HiddenState::Raw { from_end: 1 };
            model.text_encoders[tower]
                .encode(&batch, state)
                .unwrap()
                .hidden
        })
    };
    let merged = tempfile::tempdir().unwrap();
    let merged = provider_of_changed(merged.path(), "tiny-sdxl", |tensors| {
        for (tower, (_, tensor)) in TOWERS.iter().enumerate() {
            let (_, values) = tensors.iter_mut().find(|(name, _)| name == tensor).unwrap();
            *values += &(factors[tower].0.dot(&factors[tower].1) * 0.5).into_dyn();
        }
    });
    let want = states(&merged.load(&ModelRequest::default()).unwrap());
    let plain = states(&built("tiny-sdxl"));
    for (name, changed) in [
        ("both", [true, true]),
        ("first", [true, false]),
        ("second", [false, true]),
    ] {
        let got = states(&with_networks(&with_lora, "tiny-sdxl", &[(name, 0.5, 1.0)]));
        for tower in 0..2 {
            let expected = if changed[tower] { &want } else { &plain };
            assert_close(&got[tower], &expected[tower], 1e-5, name);
            assert!(difference(&want[tower], &plain[tower]) > 1e-3);
        }
    }
}

#[test]
fn embeddings_bundled_in_a_lora_are_known_while_it_is_applied() {
    let folder = tempfile::tempdir().unwrap();
    let provider = provider_of_copy(folder.path(), "tiny-sd1");
    let loras = folder.path().join("models/Lora");
    std::fs::create_dir_all(&loras).unwrap();
    let vectors: Array2<f32> = pattern((2, 128), 1.0);
    let wide: Array2<f32> = pattern((2, 96), 1.0);
    let tensors = [
        (
            "bundle_emb.mark.string_to_param.*".to_owned(),
            vectors.into_dyn(),
        ),
        (
            "bundle_emb.wide.string_to_param.*".to_owned(),
            wide.into_dyn(),
        ),
    ];
    write_tensors(&loras.join("bundle.safetensors"), &tensors);
    provider.catalogue().networks().refresh();
    let names = |networks: &[(&str, f64, f64)]| {
        let model = with_networks(&provider, "tiny-sd1", networks);
        model.embeddings.as_ref().unwrap().names()
    };
    assert_eq!(names(&[("bundle", 1.0, 1.0)]), ["mark"]);
    assert!(names(&[]).is_empty());
}

/// The golden models with networks in half precision, the VAE too if `half_vae`.
fn half_provider(extra: &[PathBuf], half_vae: bool) -> Provider {
    let models = data_folder().join("models");
    let catalogue = Catalogue::new(CatalogueConfig {
        models_dir: models.clone(),
        extra_checkpoints: extra.to_vec(),
        ..CatalogueConfig::default()
    });
    let config = ProviderConfig {
        tower_folders: vec![models],
        half: true,
        half_vae,
        ..ProviderConfig::default()
    };
    Provider::new(runtime(), Arc::new(catalogue), config)
}

/// Half precision has 11 bits, so that a single rounding is 5e-4 of a value; a whole network stays within a
/// hundredth of its largest one. The CPU provider computes some operators in float32 between the casts.
#[test]
fn networks_in_half_precision_answer_about_the_same_as_in_float32() {
    for (name, width) in [("tiny-sd1", 128), ("tiny-sd2-v", 128), ("tiny-sdxl", 160)] {
        let float = built(name);
        let request = ModelRequest {
            checkpoint: format!("{name}.safetensors"),
            vae: "None".to_owned(),
            ..ModelRequest::default()
        };
        let vector_width = (name == "tiny-sdxl").then_some(float.size_embedding_width * 6);
        for (upcast_attention, token_merging_ratio) in [(false, 0.0), (true, 0.0), (false, 0.5)] {
            let request = ModelRequest {
                upcast_attention,
                token_merging_ratio,
                ..request.clone()
            };
            let half = half_provider(&[], true).load(&request).unwrap();
            let float = provider(&[]).load(&request).unwrap();
            let pooled = float.text_encoders.last().unwrap().width();
            let input = UnetInput {
                sample: pattern((2, 4, 8, 8), 1.0),
                timestep: vec![500.0, 81.5],
                context: pattern((2, 77, width), 1.0),
                vector: vector_width.map(|sizes| pattern((2, pooled + sizes), 1.0)),
            };
            let what = format!("{name}, upcast {upcast_attention}, merged {token_merging_ratio}");
            let (got, want) = (half.unet.predict(&input), float.unet.predict(&input));
            let (got, want) = (got.unwrap(), want.unwrap());
            let found = difference(&got, &want);
            assert!(found > 0.0, "{what}: this is float32");
            assert!(found <= 0.01, "{what}: relative difference {found}");

            let latent = pattern((1, 4, 8, 8), 1.0);
            let (got, want) = (half.vae.decode(&latent), float.vae.decode(&latent));
            assert_close(&got.unwrap(), &want.unwrap(), 0.02, &what);
            let pixels = pattern((1, 3, 64, 64), 1.0);
            let (got, want) = (half.vae.encode(&pixels), float.vae.encode(&pixels));
            assert_close(&got.unwrap().mean, &want.unwrap().mean, 0.02, &what);

            let ids = Array2::from_shape_fn((1, 77), |(_, at)| match at {
                0 => 49406,
                1..9 => 300 + at as i64,
                _ => 49407,
            });
            let batch = TokenBatch {
                ids,
                overrides: Vec::new(),
            };
            let state = HiddenState::Normalised { from_end: 1 };
            for (half, float) in half.text_encoders.iter().zip(&float.text_encoders) {
                let (got, want) = (half.encode(&batch, state), float.encode(&batch, state));
                assert_close(&got.unwrap().hidden, &want.unwrap().hidden, 0.01, &what);
            }
        }
    }
}

/// A copy of tiny-sd1 in which what enters UNet and decoder is a million times as large: past what half
/// precision holds, and brought back by the first normalisation.
fn overflowing(folder: &Path) -> PathBuf {
    let source = data_folder().join("models/Stable-diffusion/tiny-sd1.safetensors");
    let file = TensorFile::open_safetensors(&source).unwrap();
    let tensors: Vec<(String, ArrayD<f32>)> = file
        .iter()
        .map(|(name, tensor)| {
            let mut values = file.read_f32(name).unwrap();
            let large = [
                "model.diffusion_model.input_blocks.0.0.weight",
                "first_stage_model.decoder.conv_in.weight",
            ];
            if large.contains(&name) {
                for value in &mut values {
                    *value *= 1e6;
                }
            }
            let values = ArrayD::from_shape_vec(tensor.shape.clone(), values).unwrap();
            (name.to_owned(), values)
        })
        .collect();
    let target = folder.join("overflowing.safetensors");
    write_tensors(&target, &tensors);
    std::fs::copy(source.with_extension("yaml"), target.with_extension("yaml")).unwrap();
    target
}

#[test]
fn what_overflows_in_half_precision_is_computed_in_float32() {
    let folder = tempfile::tempdir().unwrap();
    let file = overflowing(folder.path());
    let request = ModelRequest {
        checkpoint: "overflowing.safetensors".to_owned(),
        vae: "None".to_owned(),
        ..ModelRequest::default()
    };
    let float = provider(std::slice::from_ref(&file))
        .load(&request)
        .unwrap();
    let provider = half_provider(&[file], true);
    let half = provider.load(&request).unwrap();
    let input = UnetInput {
        sample: pattern((1, 4, 8, 8), 1.0),
        timestep: vec![500.0],
        context: pattern((1, 77, 128), 1.0),
        vector: None,
    };
    let want = float.unet.predict(&input).unwrap();
    assert!(want.iter().all(|value| value.is_finite()));
    assert_eq!(half.unet.predict(&input).unwrap(), want);

    let latent = pattern((1, 4, 8, 8), 1.0);
    let want = float.vae.decode(&latent).unwrap();
    assert!(want.iter().all(|value| value.is_finite()));
    assert_eq!(half.vae.decode(&latent).unwrap(), want);

    // auto_vae_precision off: the picture is what it is.
    let kept = ModelRequest {
        keeps_vae_precision: true,
        ..request
    };
    let kept = provider.load(&kept).unwrap().vae.decode(&latent).unwrap();
    assert!(kept.iter().any(|value| value.is_nan()));
}

/// Jobs at one UNet, each with calls of its own: whatever is computed together, everybody gets the bits that
/// the call has alone.
#[test]
fn calls_of_many_jobs_get_the_bits_that_they_have_alone() {
    const STEPS: usize = 6;
    let provider = provider(&[]);
    let load = |name: &str, lora: Option<&str>| {
        let names: Vec<_> = lora.map(|lora| (lora, 1.0, 0.7)).into_iter().collect();
        with_networks(&provider, name, &names)
    };
    for (name, lora) in [
        ("tiny-sd1", None),
        ("tiny-sd1", Some("tiny-sd1-lora")),
        ("tiny-sd2-v", None),
        ("tiny-sd1-inpaint", None),
        ("tiny-sdxl", None),
    ] {
        let model = load(name, lora);
        let channels = model.unet_channels;
        let width: usize = model
            .text_encoders
            .iter()
            .map(|encoder| encoder.width())
            .sum();
        let is_xl = model.family == Family::Sdxl;
        let input = |job: usize, step: usize| {
            let mut noise = noise();
            let (shift, time) = (
                job as f32 * 0.1 + step as f32 * 0.01,
                (job * 90 + step) as f32,
            );
            let mut random =
                |len: usize| -> Vec<f32> { (0..len).map(|_| noise() + shift).collect() };
            UnetInput {
                sample: Array4::from_shape_vec((2, channels, 8, 8), random(2 * channels * 64))
                    .unwrap(),
                timestep: vec![time + 0.5; 2],
                context: Array3::from_shape_vec((2, 77, width), random(2 * 77 * width)).unwrap(),
                vector: is_xl.then(|| {
                    let vector_width = model.size_embedding_width * 6
                        + model.text_encoders.last().unwrap().width();
                    Array2::from_shape_vec((2, vector_width), random(2 * vector_width)).unwrap()
                }),
            }
        };
        let alone: Vec<Vec<Array4<f32>>> = (0..8)
            .map(|job| {
                (0..STEPS)
                    .map(|step| model.unet.predict(&input(job, step)).unwrap())
                    .collect()
            })
            .collect();
        std::thread::scope(|scope| {
            for (job, alone) in alone.iter().enumerate() {
                let (load, input) = (&load, &input);
                scope.spawn(move || {
                    let own = load(name, lora);
                    for (step, alone) in alone.iter().enumerate() {
                        let answer = own.unet.predict(&input(job, step)).unwrap();
                        let same = answer
                            .iter()
                            .zip(alone)
                            .all(|(a, b)| a.to_bits() == b.to_bits());
                        assert!(same, "{name}, {lora:?}: job {job}, step {step}");
                    }
                });
            }
        });
    }
}

/// A checkpoint that a job uses stays the one that others get, however small the memory is.
#[test]
fn what_a_job_uses_is_not_loaded_again_for_others() {
    let models = data_folder().join("models");
    let catalogue = Catalogue::new(CatalogueConfig {
        models_dir: models.clone(),
        ..CatalogueConfig::default()
    });
    let config = ProviderConfig {
        tower_folders: vec![models],
        memory_budget_bytes: 1,
        ..ProviderConfig::default()
    };
    let provider = Provider::new(runtime(), Arc::new(catalogue), config);
    let first = with_networks(&provider, "tiny-sd1", &[]);
    let other = with_networks(&provider, "tiny-sd2-v", &[]);
    let again = with_networks(&provider, "tiny-sd1", &[]);
    assert!(Arc::ptr_eq(&first.text_cache, &again.text_cache));
    drop((first, other, again));
    // With nobody left, the budget counts again: each takes the other's place.
    let kept = Arc::downgrade(&with_networks(&provider, "tiny-sd1", &[]).text_cache);
    with_networks(&provider, "tiny-sd2-v", &[]);
    assert!(kept.upgrade().is_none());
}

/// Every graph of the golden checkpoints, in both precisions, for ONNX's own checker (scripts/check_graphs.py),
/// in target/tmp/graphs. That they load and what they compute is told by other tests.
#[test]
#[ignore = "scripts/test runs it and then the checker"]
fn graphs_are_written_for_onnxs_checker() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("graphs");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    for name in ["tiny-sd1", "tiny-sd1-inpaint", "tiny-sd2-v", "tiny-sdxl"] {
        let models = data_folder().join("models");
        let path = models.join(format!("Stable-diffusion/{name}.safetensors"));
        let plan = CheckpointPlan::open(&path, &[models]).unwrap();
        let half = |float_attention| Precision::Half { float_attention };
        for (kind, precision) in [
            ("float", Precision::Float),
            ("half", half(false)),
            ("half-float-attention", half(true)),
        ] {
            let options = BuildOptions {
                storage: Storage::InlineHalf,
                precision,
                ..BuildOptions::default()
            };
            let write = |part: &str, built: Result<BuiltGraph, _>| {
                let built = built.unwrap();
                assert!(built.side_data.is_empty());
                let file = format!("{name}.{part}.{kind}.onnx");
                std::fs::write(folder.join(file), &built.model).unwrap();
            };
            let (weights, vae) = (plan.unet_weights(), plan.vae_weights());
            write("unet", unet(&weights, plan.unet_shape(), options));
            let tiling = BuildOptions {
                tiling: true,
                ..options
            };
            write("unet-tiling", unet(&weights, plan.unet_shape(), tiling));
            let merging = BuildOptions {
                token_merging: true,
                ..options
            };
            write("unet-merging", unet(&weights, plan.unet_shape(), merging));
            write("vae-encoder", vae_encoder(&vae, options));
            write("vae-decoder", vae_decoder(&vae, options));
            for (tower, shape) in plan.towers.iter().enumerate() {
                let built = text_encoder(&plan.text_weights(tower), *shape, options);
                write(&format!("text-{tower}"), built);
            }
        }
    }
}

/// In half precision attention of the UNet has half inputs, unless it is wanted in float32: then queries, keys, values and
/// the answer are cast, and nothing else changes.
#[test]
fn attention_is_in_half_precision_unless_it_is_wanted_in_float32() {
    let models = data_folder().join("models");
    let path = models.join("Stable-diffusion/tiny-sd2-v.safetensors");
    let plan = CheckpointPlan::open(&path, &[models]).unwrap();
    let built = |float_attention| {
        let options = BuildOptions {
            storage: Storage::InlineHalf,
            precision: Precision::Half { float_attention },
            ..BuildOptions::default()
        };
        unet(&plan.unet_weights(), plan.unet_shape(), options)
            .unwrap()
            .model
    };
    let (half, float) = (built(false), built(true));
    // The field `op_type` of a node.
    let count = |model: &[u8], operator: &str| {
        let mut field = vec![0x22, operator.len() as u8];
        field.extend_from_slice(operator.as_bytes());
        let windows = model.windows(field.len());
        windows.filter(|bytes| *bytes == field).count()
    };
    let attentions = count(&half, "MultiHeadAttention");
    assert!(attentions > 0);
    assert_eq!(count(&float, "MultiHeadAttention"), attentions);
    assert_eq!(count(&float, "Cast"), count(&half, "Cast") + 4 * attentions);
}
