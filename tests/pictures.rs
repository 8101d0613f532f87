//! Whole requests over the golden models, in process: what options do to the pictures where no recording
//! of AUTOMATIC1111 exists, and relations between pictures that hold for every model.

#[path = "support/golden_models.rs"]
mod golden_models;
#[path = "support/onnx_runtime.rs"]
mod onnx_runtime;
#[path = "support/stuck_models.rs"]
mod stuck_models;
#[path = "support/torch_file.rs"]
mod torch_file;
#[path = "support/toy_models.rs"]
mod toy_models;

use std::io::Cursor;
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use actix_web::App as ActixApp;
use actix_web::body::MessageBody as _;
use actix_web::http::StatusCode;
use actix_web::middleware::from_fn;
use actix_web::test::{TestRequest, call_service, init_service};
use ancestral::app::App;
use ancestral::catalogue::{Catalogue, CatalogueConfig, TensorFile};
use ancestral::config::Config;
use ancestral::http;
use ancestral::imaging::{Filter, resize_rgb};
use ancestral::jobs::Engine;
use base64::Engine as _;
use image::RgbImage;
use serde_json::{Value, json};
use stuck_models::StuckEngine;
use torch_file::{TorchFormat, torch_file};

/// A server over a data folder with the golden models; `tiny-sd2-v` is its checkpoint.
struct Studio {
    app: App,
    data: tempfile::TempDir,
}

impl Studio {
    fn new() -> Self {
        Self::with_flags(&[])
    }

    fn with_flags(further: &[&str]) -> Self {
        let data = tempfile::tempdir().expect("a temporary folder");
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("compat-tests/golden/models");
        golden_models::write_data_folder(data.path(), &golden);
        write_attentive(&data.path().join("models/Stable-diffusion"));
        write_editors(&data.path().join("models/Stable-diffusion"));
        let folder = data.path().display().to_string();
        let checkpoint = format!("{folder}/models/Stable-diffusion/tiny-sd2-v.safetensors");
        let mut flags = vec![
            "--data-dir",
            &folder,
            "--ckpt",
            &checkpoint,
            "--use-cpu",
            "all",
        ];
        flags.extend(further);
        let safety = data.path().join("models/safety_checker");
        std::fs::create_dir_all(&safety).expect("made");
        let checker = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/safety_checker.onnx");
        std::fs::copy(checker, safety.join("model.onnx")).expect("copied");
        let library = onnx_runtime::library().display().to_string();
        flags.extend(["--ort-library", &library]);
        let config = Config::from_arguments(&flags).expect("the flags are accepted");
        let app = App::build(config).expect("the app is built");
        Self { app, data }
    }

    /// A server over an engine of the test's own.
    fn over(engine: impl Engine + 'static) -> Self {
        let data = tempfile::tempdir().expect("a temporary folder");
        let folder = data.path().display().to_string();
        let config =
            Config::from_arguments(&["--data-dir", &folder]).expect("the flags are accepted");
        let catalogue = Arc::new(Catalogue::new(CatalogueConfig {
            models_dir: config.folders.models.clone(),
            ..CatalogueConfig::default()
        }));
        let app = App::with_engine(config, Arc::new(engine), catalogue).expect("the app is built");
        Self { app, data }
    }

    /// The server that the tests share whose requests stand on their own.
    fn shared() -> &'static Self {
        static SHARED: OnceLock<Studio> = OnceLock::new();
        SHARED.get_or_init(Self::new)
    }

    async fn get(&self, path: &str) -> String {
        let service = init_service(
            ActixApp::new().configure(|config| http::configure(self.app.server(), config)),
        )
        .await;
        let answer = call_service(&service, TestRequest::get().uri(path).to_request()).await;
        let bytes = answer.into_body().try_into_bytes().unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    async fn post(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        let service = init_service(
            ActixApp::new()
                .wrap(from_fn(http::surround))
                .configure(|config| http::configure(self.app.server(), config)),
        )
        .await;
        let request = TestRequest::post().uri(path).set_json(body).to_request();
        let answer = call_service(&service, request).await;
        let status = answer.status();
        let bytes = answer.into_body().try_into_bytes().unwrap_or_default();
        (status, serde_json::from_slice(&bytes).unwrap_or_default())
    }

    /// What a request that must succeed gives.
    async fn draw(&self, path: &str, body: &Value) -> Drawn {
        let (status, answer) = self.post(path, body).await;
        assert_eq!(status, StatusCode::OK, "{body}: {answer}");
        let texts = |value: &Value| -> Vec<String> {
            let items = value.as_array().into_iter().flatten();
            items
                .map(|item| item.as_str().unwrap_or_default().to_owned())
                .collect()
        };
        let info: Value =
            serde_json::from_str(answer["info"].as_str().unwrap_or_default()).unwrap_or_default();
        Drawn {
            pictures: texts(&answer["images"])
                .iter()
                .map(|it| decoded(it))
                .collect(),
            infotexts: texts(&info["infotexts"]),
        }
    }

    async fn txt2img(&self, changes: Value) -> Drawn {
        self.draw("/sdapi/v1/txt2img", &request(changes)).await
    }
}

/// `attentive.safetensors`: tiny-sd1 with a transformer at the latent's full size, which the golden
/// checkpoints do not have.
fn write_attentive(folder: &Path) {
    const WIDTH: usize = 32;
    const CONTEXT: usize = 128;
    let file = std::fs::read(folder.join("tiny-sd1.safetensors")).expect("a golden checkpoint");
    let length = u64::from_le_bytes(file[..8].try_into().expect("eight bytes")) as usize;
    let mut header: serde_json::Map<String, Value> =
        serde_json::from_slice(&file[8..8 + length]).expect("a safetensors header");
    let mut data = file[8 + length..].to_vec();
    let mut state = 1_u32;
    let mut add = |name: &str, shape: &[usize]| {
        let begin = data.len();
        for _ in 0..shape.iter().product() {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let noise = (state >> 8) as f32 / 8_388_608.0 - 1.0;
            let value = match shape {
                [_] if name.ends_with("weight") => 1.0,
                _ => noise / 4.0,
            };
            data.extend(half::f16::from_f32(value).to_le_bytes());
        }
        let entry = json!({"dtype": "F16", "shape": shape, "data_offsets": [begin, data.len()]});
        header.insert(
            format!("model.diffusion_model.input_blocks.1.1.{name}"),
            entry,
        );
    };
    let block = "transformer_blocks.0";
    for norm in ["norm", "norm1", "norm2", "norm3"] {
        let place = if norm == "norm" {
            norm.to_owned()
        } else {
            format!("{block}.{norm}")
        };
        add(&format!("{place}.weight"), &[WIDTH]);
        add(&format!("{place}.bias"), &[WIDTH]);
    }
    for (layer, out, width) in [
        ("proj_in", WIDTH, WIDTH),
        ("proj_out", WIDTH, WIDTH),
        ("transformer_blocks.0.ff.net.0.proj", 8 * WIDTH, WIDTH),
        ("transformer_blocks.0.ff.net.2", WIDTH, 4 * WIDTH),
        ("transformer_blocks.0.attn1.to_out.0", WIDTH, WIDTH),
        ("transformer_blocks.0.attn2.to_out.0", WIDTH, WIDTH),
    ] {
        add(&format!("{layer}.weight"), &[out, width]);
        add(&format!("{layer}.bias"), &[out]);
    }
    for (attention, context) in [("attn1", WIDTH), ("attn2", CONTEXT)] {
        add(&format!("{block}.{attention}.to_q.weight"), &[WIDTH, WIDTH]);
        add(
            &format!("{block}.{attention}.to_k.weight"),
            &[WIDTH, context],
        );
        add(
            &format!("{block}.{attention}.to_v.weight"),
            &[WIDTH, context],
        );
    }
    let header = Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(&data);
    std::fs::write(folder.join("attentive.safetensors"), bytes).expect("a writable folder");
    std::fs::copy(folder.join("tiny-sd1.yaml"), folder.join("attentive.yaml")).expect("a yaml");
}

/// `edit.safetensors` and `edit-blind.safetensors`: tiny-sd1 with the four input channels more that an
/// instruct-pix2pix UNet has for the picture; the blind one's have no weight.
fn write_editors(folder: &Path) {
    let file = std::fs::read(folder.join("tiny-sd1.safetensors")).expect("a golden checkpoint");
    let length = u64::from_le_bytes(file[..8].try_into().expect("eight bytes")) as usize;
    let name = "model.diffusion_model.input_blocks.0.0.weight";
    for (stem, weight) in [("edit", 0.5), ("edit-blind", 0.0)] {
        let mut header: Value =
            serde_json::from_slice(&file[8..8 + length]).expect("a safetensors header");
        let mut data = file[8 + length..].to_vec();
        let entry = &mut header[name];
        assert_eq!(entry["dtype"], "F16");
        let place = |index: usize| entry["data_offsets"][index].as_u64().expect("a place") as usize;
        let old = data[place(0)..place(1)].to_vec();
        let begin = data.len();
        // Two bytes a value, nine values a channel, four channels an output.
        for output in old.chunks(2 * 9 * 4) {
            data.extend_from_slice(output);
            data.extend(half::f16::from_f32(weight).to_le_bytes().repeat(9 * 4));
        }
        entry["shape"][1] = json!(8);
        entry["data_offsets"] = json!([begin, data.len()]);
        let header = header.to_string();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(&data);
        std::fs::write(folder.join(format!("{stem}.safetensors")), bytes).expect("writable");
        let yaml = folder.join(format!("{stem}.yaml"));
        std::fs::copy(folder.join("tiny-sd1.yaml"), yaml).expect("a yaml");
    }
}

/// Options of a request that draws with `attentive`.
fn attentive(mut options: Value) -> Value {
    options["sd_model_checkpoint"] = json!("attentive.safetensors");
    options
}

/// Pictures and their texts.
struct Drawn {
    pictures: Vec<RgbImage>,
    infotexts: Vec<String>,
}

fn decoded(base64: &str) -> RgbImage {
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(base64)
        .expect("base64");
    image::load_from_memory(&bytes)
        .expect("a picture")
        .to_rgb8()
}

/// A small request with these fields on top.
fn request(changes: Value) -> Value {
    let mut body = json!({
        "prompt": "a red cube on a table, (blue sky:1.2)",
        "negative_prompt": "blurry, lowres",
        "seed": 7,
        "steps": 3,
        "width": 64,
        "height": 48,
    });
    for (key, value) in changes.as_object().into_iter().flatten() {
        body[key] = value.clone();
    }
    body
}

/// The text of a picture's PNG as a request sends it.
fn as_base64(picture: &RgbImage) -> String {
    let mut bytes = Cursor::new(Vec::new());
    picture
        .write_to(&mut bytes, image::ImageFormat::Png)
        .expect("a PNG");
    base64::engine::general_purpose::STANDARD.encode(bytes.into_inner())
}

#[actix_web::test]
async fn token_merging_acts_in_the_pass_that_its_option_names() {
    let studio = Studio::shared();
    let with = |options: Value| json!({ "override_settings": attentive(options) });
    let plain = studio.txt2img(with(json!({}))).await;
    let merged = studio
        .txt2img(with(json!({"token_merging_ratio": 0.5})))
        .await;
    assert!(merged.pictures != plain.pictures, "{:?}", merged.infotexts);
    assert!(merged.infotexts[0].contains("Token merging ratio: 0.5,"));
    // txt2img knows nothing of img2img's ratio, and without hires fix nothing of its ratio.
    let others = json!({"token_merging_ratio_img2img": 0.5, "token_merging_ratio_hr": 0.5});
    let untouched = studio.txt2img(with(others)).await;
    assert!(untouched.pictures == plain.pictures);
    assert!(!untouched.infotexts[0].contains("Token merging"));
    let hires = |options: Value| {
        json!({
            "enable_hr": true, "hr_scale": 1.5, "denoising_strength": 0.6,
            "override_settings": attentive(options),
        })
    };
    let base = studio.txt2img(hires(json!({}))).await;
    let second = studio
        .txt2img(hires(json!({"token_merging_ratio_hr": 0.4})))
        .await;
    assert!(second.pictures != base.pictures);
    assert!(second.infotexts[0].contains("Token merging ratio hr: 0.4,"));
    assert!(!second.infotexts[0].contains("Token merging ratio: "));
    let both = studio
        .txt2img(hires(json!({"token_merging_ratio": 0.4})))
        .await;
    assert!(both.infotexts[0].contains("Token merging ratio: 0.4, Token merging ratio hr: 0.4,"));
    assert!(both.pictures != second.pictures);
}

#[actix_web::test]
async fn img2img_has_a_token_merging_ratio_of_its_own() {
    let studio = Studio::shared();
    let init = RgbImage::from_fn(64, 48, |x, y| image::Rgb([x as u8 * 4, y as u8 * 5, 90]));
    let draw = async |options: Value| {
        let body = request(
            json!({"init_images": [as_base64(&init)], "override_settings": attentive(options)}),
        );
        studio.draw("/sdapi/v1/img2img", &body).await
    };
    let plain = draw(json!({})).await;
    let own = draw(json!({"token_merging_ratio_img2img": 0.5})).await;
    assert!(own.pictures != plain.pictures);
    assert!(own.infotexts[0].contains("Token merging ratio: 0.5,"));
    // The request's own `token_merging_ratio` comes first, the stored one last.
    let named = draw(json!({"token_merging_ratio": 0.5, "token_merging_ratio_img2img": 0.2})).await;
    assert!(named.pictures == own.pictures);
}

#[actix_web::test]
async fn token_merging_takes_odd_latents_and_says_which_it_cannot() {
    let studio = Studio::shared();
    let size = |width: usize, height: usize| json!({"width": width, "height": height, "override_settings": {"token_merging_ratio": 0.75}});
    let odd = studio.txt2img(size(72, 40)).await;
    assert_eq!(odd.pictures[0].dimensions(), (72, 40));
    let (status, answer) = studio
        .post("/sdapi/v1/txt2img", &request(size(64, 8)))
        .await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(
        answer["errors"].as_str().unwrap().contains("token merging"),
        "{answer}"
    );
}

#[actix_web::test]
async fn hypertile_is_refused_where_it_would_act() {
    let studio = Studio::shared();
    let refused = async |body: Value| {
        let (status, answer) = studio.post("/sdapi/v1/txt2img", &request(body)).await;
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR, "{answer}");
        assert_eq!(answer["error"], "NotImplementedError");
        assert!(
            answer["errors"]
                .as_str()
                .unwrap()
                .contains("hypertile_enable_unet")
        );
    };
    for option in ["hypertile_enable_unet", "hypertile_enable_vae"] {
        refused(json!({"override_settings": {option: true}})).await;
    }
    let second = json!({"hypertile_enable_unet_secondpass": true});
    let hires = json!({"enable_hr": true, "denoising_strength": 0.5, "override_settings": second});
    refused(hires).await;
    let without = studio.txt2img(json!({"override_settings": second})).await;
    assert_eq!(without.pictures.len(), 1);
}

/// A batch of n, and n batches of one, are to the bit the n single pictures with the following seeds.
#[actix_web::test]
async fn a_batch_equals_its_pictures_drawn_alone() {
    const COUNT: usize = 2;
    let studio = Studio::shared();
    for sampler in ancestral::sampling::SAMPLERS {
        let with = |changes: Value| {
            let mut body = json!({
                "sampler_name": sampler.name,
                "steps": 3,
                "height": 32,
                "override_settings": {"sd_model_checkpoint": "tiny-sd1.safetensors"},
            });
            for (key, value) in changes.as_object().into_iter().flatten() {
                body[key] = value.clone();
            }
            body
        };
        let mut alone = Vec::new();
        for seed in 7..7 + COUNT {
            alone.extend(studio.txt2img(with(json!({"seed": seed}))).await.pictures);
        }
        let in_turn = studio.txt2img(with(json!({"n_iter": COUNT}))).await;
        assert!(in_turn.pictures == alone, "{}: n_iter", sampler.name);
        // DPM adaptive measures its error over the whole batch, as A1111's does: its pictures depend on
        // their neighbours.
        if sampler.name != "DPM adaptive" {
            let together = studio.txt2img(with(json!({"batch_size": COUNT}))).await;
            assert!(together.pictures == alone, "{}: batch_size", sampler.name);
        }
    }
}

/// Interrupt and skip do not wait for the step to end: they answer with the last prediction that was
/// complete, as A1111 does when the flag is seen before a call.
#[actix_web::test]
async fn interrupt_and_skip_end_a_call_in_flight() {
    const FREE_CALLS: usize = 2;
    let body = request(json!({"steps": 6, "n_iter": 2}));
    let expected = Studio::over(StuckEngine::interrupted_after(FREE_CALLS));
    let expected = expected.draw("/sdapi/v1/txt2img", &body).await;
    assert_eq!(expected.pictures.len(), 1);
    for (path, pictures) in [("/sdapi/v1/interrupt", 1), ("/sdapi/v1/skip", 2)] {
        let (engine, hangs) = StuckEngine::hanging(FREE_CALLS);
        let studio = Rc::new(Studio::over(engine));
        let (for_job, body) = (Rc::clone(&studio), body.clone());
        let job =
            actix_web::rt::spawn(async move { for_job.draw("/sdapi/v1/txt2img", &body).await });
        hangs.await.expect("the third call is made");
        let (status, _) = studio.post(path, &Value::Null).await;
        assert_eq!(status, StatusCode::OK);
        let drawn = tokio::time::timeout(Duration::from_mins(1), job).await;
        let drawn = drawn.expect("the call ends").expect("the job answers");
        assert_eq!(drawn.pictures.len(), pictures, "{path}");
        assert!(drawn.pictures[0] == expected.pictures[0], "{path}");
        assert!(
            drawn.pictures.last() != expected.pictures.first() || pictures == 1,
            "{path}"
        );
    }
}

/// Options that A1111 obeys and this server does not must not be ignored.
#[actix_web::test]
async fn options_that_would_change_the_picture_are_refused() {
    let studio = Studio::over(toy_models::ToyEngine);
    let init = as_base64(&RgbImage::from_pixel(64, 48, image::Rgb([90, 120, 150])));
    let ask = async |path: &str, changes: Value| {
        let (status, answer) = studio.post(path, &request(changes)).await;
        (
            status,
            answer["errors"].as_str().unwrap_or_default().to_owned(),
        )
    };
    let sde = json!({
        "sampler_name": "DPM++ SDE",
        "override_settings": {"no_dpmpp_sde_batch_determinism": true},
    });
    for (option, path, changes) in [
        (
            "use_old_emphasis_implementation",
            "txt2img",
            json!({"override_settings": {"use_old_emphasis_implementation": true}}),
        ),
        ("no_dpmpp_sde_batch_determinism", "txt2img", sde),
        (
            "sd_vae_decode_method",
            "txt2img",
            json!({"override_settings": {"sd_vae_decode_method": "TAESD"}}),
        ),
        (
            "sd_vae_encode_method",
            "img2img",
            json!({"init_images": [init], "override_settings": {"sd_vae_encode_method": "TAESD"}}),
        ),
        (
            "fp8_storage",
            "txt2img",
            json!({"override_settings": {"fp8_storage": "Enable"}}),
        ),
    ] {
        let (status, errors) = ask(&format!("/sdapi/v1/{path}"), changes).await;
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR, "{option}");
        assert!(errors.contains(option), "{option}: {errors}");
    }
    // Where they would change nothing they do not stand in the way.
    let harmless = json!({
        "no_dpmpp_sde_batch_determinism": true,
        "sd_vae_encode_method": "TAESD",
        "fp8_storage": "Enable for SDXL",
        "upcast_attn": true,
    });
    let (status, errors) = ask("/sdapi/v1/txt2img", json!({"override_settings": harmless})).await;
    assert_eq!(status, StatusCode::OK, "{errors}");
}

/// Compatibility options: each changes the picture of a request that it concerns.
#[actix_web::test]
async fn compatibility_options_change_what_they_concern() {
    let studio = Studio::over(toy_models::ToyEngine);
    let hires = json!({"enable_hr": true, "denoising_strength": 0.5, "width": 704, "height": 576, "hr_scale": 1.0});
    for (option, value, changes) in [
        (
            "use_old_karras_scheduler_sigmas",
            json!(true),
            json!({"scheduler": "karras"}),
        ),
        (
            "use_old_scheduling",
            json!(true),
            json!({"prompt": "a [red:blue:1.0] cube"}),
        ),
        ("use_downcasted_alpha_bar", json!(true), json!({})),
        ("use_old_hires_fix_width_height", json!(true), hires),
        ("always_discard_next_to_last_sigma", json!(true), json!({})),
        ("sgm_noise_multiplier", json!(true), json!({})),
        ("sd_noise_schedule", json!("Zero Terminal SNR"), json!({})),
        ("emphasis", json!("No norm"), json!({})),
        ("randn_source", json!("CPU"), json!({})),
        (
            "eta_noise_seed_delta",
            json!(31337),
            json!({"sampler_name": "Euler a"}),
        ),
        (
            "eta_ancestral",
            json!(0.5),
            json!({"sampler_name": "Euler a"}),
        ),
        ("eta_ddim", json!(0.5), json!({"sampler_name": "DDIM"})),
        ("s_churn", json!(5.0), json!({})),
        ("sigma_max", json!(10.0), json!({"scheduler": "karras"})),
        ("rho", json!(3.0), json!({"scheduler": "karras"})),
        (
            "uni_pc_order",
            json!(2),
            json!({"sampler_name": "UniPC", "steps": 6}),
        ),
        ("skip_early_cond", json!(0.5), json!({})),
        ("s_min_uncond", json!(20.0), json!({"steps": 6})),
        ("CLIP_stop_at_last_layers", json!(2), json!({})),
        (
            "enable_prompt_comments",
            json!(false),
            json!({"prompt": "a cube # red"}),
        ),
        (
            "comma_padding_backtrack",
            json!(0),
            json!({"prompt": format!("{}, {}", "cat ".repeat(70), "dog ".repeat(9))}),
        ),
    ] {
        let mut changed = changes.clone();
        changed["override_settings"] = json!({option: value});
        let plain = studio.txt2img(changes).await;
        let changed = studio.txt2img(changed).await;
        assert!(changed.pictures != plain.pictures, "{option}");
    }
}

/// The option `sd_lora` adds a network to every prompt that does not name it.
#[actix_web::test]
async fn the_default_lora_is_added_once() {
    let studio = Studio::shared();
    let draw = async |prompt: &str, options: Value| {
        studio
            .txt2img(json!({"prompt": prompt, "override_settings": options}))
            .await
    };
    let tag = "<lora:tiny-sd2-v-lora:0.75>";
    let options = json!({"sd_lora": "tiny-sd2-v-lora", "extra_networks_default_multiplier": 0.75});
    let added = draw("a cube", options.clone()).await;
    let named = draw(&format!("a cube{tag}"), json!({})).await;
    assert!(added.pictures == named.pictures);
    assert_eq!(added.infotexts, named.infotexts);
    let own = draw("a cube<lora:tiny-sd2-v-lora:0.2>", options).await;
    assert!(!own.infotexts[0].contains(tag));
    assert!(own.pictures != added.pictures);
}

/// A picture of `tests/golden/upscalers/upscalers.json`, `scale` times as large as its case says.
fn recorded(case: &Value, key: &str, scale: u32) -> RgbImage {
    let side = |key: &str| case[key].as_u64().expect("a number") as u32 * scale;
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(case[key].as_str().expect("base64"))
        .expect("base64");
    RgbImage::from_raw(side("width"), side("height"), bytes).expect("a whole picture")
}

/// At most one grey level on at most one sample in a hundred.
fn assert_near(got: &RgbImage, want: &RgbImage, what: &str) {
    assert_eq!(got.dimensions(), want.dimensions(), "{what}");
    let apart = || got.iter().zip(want.iter()).map(|(a, b)| a.abs_diff(*b));
    let differing = apart().filter(|difference| *difference > 0).count();
    assert!(
        apart().all(|difference| difference <= 1) && differing * 100 <= got.len(),
        "{what}: {differing} of {} samples, up to {:?}",
        got.len(),
        apart().max()
    );
}

#[actix_web::test]
async fn networks_enlarge_in_extras_hires_fix_and_img2img() {
    let studio = Studio::new();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/upscalers");
    let folder = studio.data.path().join("models/ESRGAN");
    std::fs::create_dir_all(&folder).expect("a writable folder");
    let text = std::fs::read_to_string(golden.join("upscalers.json")).expect("the vectors");
    let document: Value = serde_json::from_str(&text).expect("JSON");
    // What torch made was made of the whole picture.
    let whole = json!({"ESRGAN_tile": 0});
    let (status, _) = studio.post("/sdapi/v1/options", &whole).await;
    assert_eq!(status, StatusCode::OK);
    // An RRDBNet of ESRGAN and Real-ESRGAN's compact SRVGG.
    for file in ["plus_4x.pth", "compact_2x.pth"] {
        std::fs::copy(golden.join(file), folder.join(file)).expect("the file can be copied");
        let name = file.trim_end_matches(".pth");
        let cases = document["cases"].as_array().expect("cases");
        let case = cases
            .iter()
            .find(|case| case["file"] == file)
            .expect("the case");
        let scale = case["scale"].as_u64().expect("a number") as u32;
        let small = recorded(case, "picture", 1);
        let larger = recorded(case, "larger", scale);
        let (width, height) = (larger.width() / 8 * 8, larger.height() / 8 * 8);
        let want = resize_rgb(&larger, width, height, Filter::Lanczos);
        let extras = json!({"upscaling_resize": scale, "upscaler_1": name});

        let mut body = extras.clone();
        body["image"] = json!(as_base64(&small));
        let (status, answer) = studio.post("/sdapi/v1/extra-single-image", &body).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        assert_near(
            &decoded(answer["image"].as_str().expect("base64")),
            &want,
            name,
        );

        let mut body = extras;
        let item = |name: &str| json!({"data": as_base64(&small), "name": name});
        body["imageList"] = json!([item("a.png"), item("b.png")]);
        let (status, answer) = studio.post("/sdapi/v1/extra-batch-images", &body).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        let images = answer["images"].as_array().expect("a list");
        assert_eq!(images.len(), 2);
        for image in images {
            assert_near(&decoded(image.as_str().expect("base64")), &want, name);
        }

        let hires = async |upscaler: &str| {
            let body = json!({"enable_hr": true, "hr_scale": 2.0, "denoising_strength": 0.3, "hr_upscaler": upscaler});
            studio.txt2img(body).await
        };
        let (drawn, lanczos) = (hires(name).await, hires("Lanczos").await);
        assert_eq!(drawn.pictures[0].dimensions(), (128, 96));
        assert!(drawn.pictures != lanczos.pictures, "{name}");
        assert!(drawn.infotexts[0].contains(&format!("Hires upscaler: {name},")));

        let img2img = async |upscaler: &str| {
            let options = json!({"upscaler_for_img2img": upscaler});
            let init = json!([as_base64(&small)]);
            let body = request(json!({"init_images": init, "override_settings": options}));
            studio.draw("/sdapi/v1/img2img", &body).await
        };
        let (drawn, plain) = (img2img(name).await, img2img("None").await);
        assert!(drawn.pictures != plain.pictures, "{name}");
    }
}

/// The checker of these tests flags bright pictures.
#[actix_web::test]
async fn flagged_pictures_are_black_and_say_so_and_the_others_are_left_alone() {
    let (plain, checked) = (Studio::shared(), Studio::with_flags(&["--safety-checker"]));
    let mut flagged = 0;
    for seed in 0..8 {
        let body = json!({"seed": seed, "prompt": format!("picture {seed}")});
        let (before, after) = (
            plain.txt2img(body.clone()).await,
            checked.txt2img(body).await,
        );
        let black = after.pictures[0].pixels().all(|pixel| pixel.0 == [0; 3]);
        assert_eq!(
            after.infotexts[0].contains("Safety checker: blacked out"),
            black
        );
        let sum: u64 = before.pictures[0]
            .iter()
            .map(|level| u64::from(*level))
            .sum();
        let mean = sum as f64 / before.pictures[0].as_raw().len() as f64;
        assert_eq!(black, mean > 127.5, "seed {seed} has a mean of {mean}");
        if !black {
            assert!(after.pictures == before.pictures, "seed {seed}");
        }
        flagged += usize::from(black);
    }
    assert!(flagged > 0, "no picture was bright");
}

/// With hires fix the refiner takes over in the pass that the option names.
#[actix_web::test]
async fn the_refiner_takes_over_in_the_chosen_pass() {
    let studio = Studio::shared();
    let draw = async |pass: &str, refiner: &str| {
        studio
            .txt2img(json!({
                "steps": 4, "enable_hr": true, "hr_scale": 1.5, "denoising_strength": 0.7,
                "refiner_checkpoint": refiner, "refiner_switch_at": 0.5,
                "override_settings": {"hires_fix_refiner_pass": pass},
            }))
            .await
    };
    let mut seen = vec![draw("second pass", "").await];
    assert!(!seen[0].infotexts[0].contains("Refiner"));
    for pass in ["first pass", "second pass", "both passes"] {
        let drawn = draw(pass, "tiny-sd1").await;
        assert!(drawn.infotexts[0].contains("Refiner: tiny-sd1 ["), "{pass}");
        for other in &seen {
            assert!(drawn.pictures != other.pictures, "{pass}");
        }
        seen.push(drawn);
    }
    // By steps instead of noise it takes over elsewhere.
    let switch = async |by_steps: bool| {
        let options = json!({"refiner_switch_by_sample_steps": by_steps});
        let body = json!({
            "steps": 6, "refiner_checkpoint": "tiny-sd1", "refiner_switch_at": 0.8,
            "scheduler": "karras", "override_settings": options,
        });
        studio.txt2img(body).await
    };
    let (by_noise, by_steps) = (switch(false).await, switch(true).await);
    assert!(by_noise.pictures != by_steps.pictures);
    assert!(by_steps.infotexts[0].contains("Refiner switch by sampling steps: True"));
}

/// Several init images are a batch: each with its own seed, as if drawn alone.
#[actix_web::test]
async fn a_batch_of_init_images_equals_each_drawn_alone() {
    let studio = Studio::shared();
    let init = |shade: u8| {
        let picture =
            RgbImage::from_fn(64, 48, |x, y| image::Rgb([x as u8 * 4, y as u8 * 5, shade]));
        as_base64(&picture)
    };
    let draw = async |images: Value, seed: i64, size: usize| {
        let body = request(json!({
            "init_images": images, "seed": seed, "batch_size": size, "denoising_strength": 0.6,
        }));
        studio.draw("/sdapi/v1/img2img", &body).await.pictures
    };
    let together = draw(json!([init(30), init(200)]), 7, 2).await;
    let first = draw(json!([init(30)]), 7, 1).await;
    let second = draw(json!([init(200)]), 8, 1).await;
    assert_eq!(together.len(), 2);
    // The VAE samples both from one generator, whose numbers are all but without weight.
    assert_near(&together[0], &first[0], "first");
    assert_near(&together[1], &second[0], "second");
    let (status, answer) = studio
        .post(
            "/sdapi/v1/img2img",
            &request(json!({"init_images": [init(1), init(2), init(3)], "batch_size": 2})),
        )
        .await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(
        answer["errors"]
            .as_str()
            .unwrap_or_default()
            .contains("bad number of images passed: 3"),
        "{answer}"
    );
}

/// What `scripts/bench_overhead.py` divides by.
#[actix_web::test]
async fn metrics_tell_how_often_and_how_long_graphs_ran() {
    let studio = Studio::new();
    studio.txt2img(json!({"steps": 3})).await;
    let text = studio.get("/metrics").await;
    for line in [
        "ancestral_graph_runs_total{graph=\"UNet\"} 3",
        "ancestral_graph_runs_total{graph=\"VAE decoder\"} 1",
        "ancestral_graph_runs_total{graph=\"text encoder\"} 2",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    let seconds = text
        .lines()
        .find_map(|line| line.strip_prefix("ancestral_graph_run_seconds_total{graph=\"UNet\"} "));
    let seconds: f64 = seconds.expect("a counter").parse().expect("a number");
    assert!(seconds > 0.0);
}

/// instruct-pix2pix: the picture is conditioning, with a scale of its own. A UNet that gives it no
/// weight draws what the plain checkpoint draws.
#[actix_web::test]
async fn an_instruct_pix2pix_checkpoint_sees_the_picture_it_edits() {
    let studio = Studio::shared();
    let init = RgbImage::from_fn(64, 48, |x, y| image::Rgb([x as u8 * 4, y as u8 * 5, 90]));
    let draw = async |checkpoint: &str, scale: f64| {
        let body = request(json!({
            "init_images": [as_base64(&init)], "denoising_strength": 0.9, "image_cfg_scale": scale,
            "override_settings": {"sd_model_checkpoint": checkpoint},
        }));
        studio.draw("/sdapi/v1/img2img", &body).await
    };
    let plain = draw("tiny-sd1.safetensors", 1.5).await;
    let blind = draw("edit-blind.safetensors", 3.0).await;
    assert_near(&blind.pictures[0], &plain.pictures[0], "blind");
    let (weak, strong) = (
        draw("edit.safetensors", 1.5).await,
        draw("edit.safetensors", 3.0).await,
    );
    assert!(weak.pictures != plain.pictures && weak.pictures != strong.pictures);
    assert!(
        strong.infotexts[0].contains("Image CFG scale: 3"),
        "{:?}",
        strong.infotexts
    );
    let body = request(json!({"override_settings": {"sd_model_checkpoint": "edit.safetensors"}}));
    let (status, answer) = studio.post("/sdapi/v1/txt2img", &body).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    let sentence = answer["errors"].as_str().unwrap_or_default();
    assert!(sentence.contains("edits pictures: use img2img"), "{answer}");
}

/// A checkpoint as `torch.save` writes it, in either of its formats, draws what the same weights draw as safetensors.
#[actix_web::test]
async fn a_ckpt_draws_what_its_safetensors_twin_draws() {
    let studio = Studio::shared();
    let folder = studio.data.path().join("models/Stable-diffusion");
    let twin = TensorFile::open(&folder.join("tiny-sd1.safetensors")).expect("a checkpoint");
    for (name, format) in [
        ("archive", TorchFormat::Archive),
        ("sequence", TorchFormat::Sequence),
    ] {
        let file = folder.join(format!("{name}.ckpt"));
        std::fs::write(file, torch_file(&twin, format)).expect("written");
        let yaml = folder.join(format!("{name}.yaml"));
        std::fs::copy(folder.join("tiny-sd1.yaml"), yaml).expect("copied");
    }
    let (status, _) = studio
        .post("/sdapi/v1/refresh-checkpoints", &json!(null))
        .await;
    assert_eq!(status, StatusCode::OK);
    let draw = async |checkpoint: &str| {
        let options = json!({"sd_model_checkpoint": checkpoint});
        studio.txt2img(json!({"override_settings": options})).await
    };
    let want = draw("tiny-sd1.safetensors").await;
    for name in ["archive.ckpt", "sequence.ckpt"] {
        let got = draw(name).await;
        assert!(got.pictures == want.pictures, "{name}");
        let model = format!("Model: {}", name.trim_end_matches(".ckpt"));
        assert!(
            got.infotexts[0].contains(&model),
            "{}: {model}",
            got.infotexts[0]
        );
    }
}

/// A cell of an X/Y/Z plot over checkpoints is what a request with that checkpoint draws.
#[actix_web::test]
async fn an_xyz_plot_switches_checkpoints() {
    const CHECKPOINT_NAME: usize = 11;
    let studio = Studio::shared();
    let names = ["tiny-sd1.safetensors", "tiny-sd2-v.safetensors"];
    let mut arguments = vec![json!(false); 18];
    for axis in [0, 3, 6] {
        arguments[axis] = json!(0);
        arguments[axis + 1] = json!("");
        arguments[axis + 2] = json!([]);
    }
    arguments[0] = json!(CHECKPOINT_NAME);
    arguments[2] = json!(names);
    arguments[10] = json!(true);
    arguments[16] = json!(0);
    let plot = studio
        .txt2img(json!({"script_name": "X/Y/Z plot", "script_args": arguments}))
        .await;
    for (index, name) in names.iter().enumerate() {
        let alone = studio
            .txt2img(json!({"override_settings": {"sd_model_checkpoint": name}}))
            .await;
        assert!(plot.pictures[index + 1] == alone.pictures[0], "{name}");
        assert!(plot.pictures[0] != alone.pictures[0]);
    }
    assert!(plot.pictures[1] != plot.pictures[2]);
}
