//! Selectable scripts and dynamic prompts as requests to the whole app in process, over the golden models.

#[path = "support/golden_models.rs"]
mod golden_models;
#[path = "support/onnx_runtime.rs"]
mod onnx_runtime;

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use actix_web::App as ActixApp;
use actix_web::body::MessageBody as _;
use actix_web::http::StatusCode;
use actix_web::middleware::from_fn;
use actix_web::test::{TestRequest, call_service, init_service};
use ancestral::app::App;
use ancestral::config::Config;
use ancestral::http;
use base64::Engine as _;
use image::RgbImage;
use serde_json::{Value, json};

/// A server over a data folder with the golden models; `tiny-sd2-v` is its checkpoint.
struct Studio {
    app: App,
    data: tempfile::TempDir,
}

/// What a request that succeeded gave.
struct Drawn {
    pictures: Vec<RgbImage>,
    info: Value,
}

impl Drawn {
    fn texts(&self, key: &str) -> Vec<&str> {
        let items = self.info[key].as_array().into_iter().flatten();
        items
            .map(|item| item.as_str().unwrap_or_default())
            .collect()
    }

    fn sizes(&self) -> Vec<(u32, u32)> {
        self.pictures.iter().map(RgbImage::dimensions).collect()
    }
}

impl Studio {
    fn new(prepare: impl FnOnce(&Path), more_flags: &[&str]) -> Self {
        let data = tempfile::tempdir().expect("a temporary folder");
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("compat-tests/golden/models");
        golden_models::write_data_folder(data.path(), &golden);
        prepare(data.path());
        let folder = data.path().display().to_string();
        let checkpoint = format!("{folder}/models/Stable-diffusion/tiny-sd2-v.safetensors");
        let library = onnx_runtime::library().display().to_string();
        let mut flags = vec![
            "--data-dir",
            &folder,
            "--ckpt",
            &checkpoint,
            "--use-cpu",
            "all",
            "--ort-library",
            &library,
        ];
        flags.extend(more_flags);
        let config = Config::from_arguments(&flags).expect("the flags are accepted");
        let app = App::build(config).expect("the app is built");
        Self { app, data }
    }

    /// The server that tests of scripts share.
    fn shared() -> &'static Self {
        static SHARED: OnceLock<Studio> = OnceLock::new();
        SHARED.get_or_init(|| Self::new(|_| {}, &[]))
    }

    async fn send(&self, request: TestRequest) -> (StatusCode, Value) {
        let service = init_service(
            ActixApp::new()
                .wrap(from_fn(http::surround))
                .configure(|config| http::configure(self.app.server(), config)),
        )
        .await;
        let answer = call_service(&service, request.to_request()).await;
        let status = answer.status();
        let bytes = answer.into_body().try_into_bytes().unwrap_or_default();
        (status, serde_json::from_slice(&bytes).unwrap_or_default())
    }

    async fn get(&self, path: &str) -> Value {
        self.send(TestRequest::get().uri(path)).await.1
    }

    async fn post(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        self.send(TestRequest::post().uri(path).set_json(body))
            .await
    }

    async fn draw(&self, path: &str, body: &Value) -> Drawn {
        let (status, answer) = self.post(path, body).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        let images = answer["images"].as_array().into_iter().flatten();
        Drawn {
            pictures: images
                .map(|image| decoded(image.as_str().unwrap_or_default()))
                .collect(),
            info: serde_json::from_str(answer["info"].as_str().unwrap_or_default())
                .expect("info is JSON"),
        }
    }

    async fn txt2img(&self, changes: Value) -> Drawn {
        self.draw("/sdapi/v1/txt2img", &request(changes)).await
    }

    async fn img2img(&self, changes: Value) -> Drawn {
        self.draw("/sdapi/v1/img2img", &request(changes)).await
    }

    /// The text of the exception that a request ends with.
    async fn failure(&self, changes: Value) -> (String, String) {
        let (status, answer) = self.post("/sdapi/v1/txt2img", &request(changes)).await;
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR, "{answer}");
        let text = |key: &str| answer[key].as_str().unwrap_or_default().to_owned();
        (text("error"), text("errors"))
    }
}

fn decoded(base64: &str) -> RgbImage {
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(base64)
        .expect("base64");
    image::load(Cursor::new(bytes), image::ImageFormat::Png)
        .expect("a PNG")
        .to_rgb8()
}

/// A small request with changes.
fn request(changes: Value) -> Value {
    let mut body = json!({
        "prompt": "a red cube", "seed": 7, "steps": 2, "width": 64, "height": 64,
        "sampler_name": "Euler",
    });
    for (key, value) in changes.as_object().expect("an object") {
        body[key] = value.clone();
    }
    body
}

/// A picture of 96x64 pixels that is everywhere different.
fn init_image() -> String {
    let picture = RgbImage::from_fn(96, 64, |x, y| image::Rgb([x as u8 * 2, y as u8 * 3, 90]));
    let mut bytes = Cursor::new(Vec::new());
    picture
        .write_to(&mut bytes, image::ImageFormat::Png)
        .expect("a PNG");
    base64::engine::general_purpose::STANDARD.encode(bytes.into_inner())
}

/// The 18 arguments of an X/Y/Z plot: `(axis, values)` for x, y and z.
fn xyz(axes: [(Value, Value); 3], flags: &[(usize, Value)]) -> Value {
    let mut arguments = vec![json!(false); 18];
    for (index, (axis, values)) in axes.into_iter().enumerate() {
        arguments[index * 3] = axis;
        arguments[index * 3 + 1] = if values.is_string() {
            values.clone()
        } else {
            json!("")
        };
        arguments[index * 3 + 2] = if values.is_array() { values } else { json!([]) };
    }
    arguments[16] = json!(0);
    for (index, value) in flags {
        arguments[*index] = value.clone();
    }
    json!(arguments)
}

const NOTHING: fn() -> (Value, Value) = || (json!(0), json!(""));

#[actix_web::test]
async fn an_xyz_plot_draws_what_single_requests_draw() {
    let studio = Studio::shared();
    let arguments = xyz(
        [
            (json!(4), json!("1-3 (+2)")),
            (json!(9), json!(["Euler", "DDIM"])),
            NOTHING(),
        ],
        &[(10, json!(true))],
    );
    let plot = studio
        .txt2img(json!({"script_name": "x/y/z plot", "script_args": arguments}))
        .await;
    assert_eq!(
        plot.sizes(),
        [(128, 128), (64, 64), (64, 64), (64, 64), (64, 64)]
    );
    assert_eq!(plot.info["index_of_first_image"], 1);
    assert_eq!(plot.info["all_seeds"], json!([7, 7, 7, 7, 7]));
    for (at, (steps, sampler)) in [(1, "Euler"), (3, "Euler"), (1, "DDIM"), (3, "DDIM")]
        .into_iter()
        .enumerate()
    {
        let single = studio
            .txt2img(json!({"steps": steps, "sampler_name": sampler}))
            .await;
        assert_eq!(
            plot.pictures[at + 1],
            single.pictures[0],
            "{steps} {sampler}"
        );
        assert_eq!(
            plot.texts("infotexts")[at + 1],
            single.texts("infotexts")[0]
        );
        let (x, y) = (at as u32 % 2 * 64, at as u32 / 2 * 64);
        let cell = image::imageops::crop_imm(&plot.pictures[0], x, y, 64, 64).to_image();
        assert_eq!(cell, single.pictures[0], "{steps} {sampler} in the grid");
    }
    let grid_text = plot.texts("infotexts")[0];
    assert!(
        grid_text.ends_with(
            "Script: X/Y/Z plot, X Type: Steps, X Values: 1-3 (+2), Y Type: Sampler, \
             Y Values: \"Euler,DDIM\", Version: v1.10.1"
        ),
        "{grid_text}"
    );
}

#[actix_web::test]
async fn an_xyz_plot_has_titles_margins_and_a_grid_for_each_z() {
    let studio = Studio::shared();
    let axes = || {
        [
            (json!(1), json!("1,-1")),
            (json!(6), json!("1-2 [2]")),
            (json!(7), json!("red, \"dark blue\"")),
        ]
    };
    let with = |flags: &[(usize, Value)]| json!({"script_name": "X/Y/Z plot", "script_args": xyz(axes(), flags)});
    let plot = studio
        .txt2img(with(&[
            (9, json!(true)),
            (11, json!(true)),
            (16, json!(10)),
        ]))
        .await;
    // Titles of 5 pixels: `CFG Scale: 1.0` is wrapped beside the rows, `red` stands above z.
    let plane = plot.sizes()[1];
    assert_eq!(plot.sizes()[2], plane);
    assert_eq!(plane.0, 48 + 128 + 10);
    assert_eq!(plot.sizes()[0].0, plane.0 * 2);
    assert!(plane.1 > 128 + 10 && plot.sizes()[0].1 > plane.1);
    assert_eq!(plot.sizes().len(), 3);
    // The texts of all cells are there although their pictures are not.
    assert_eq!(plot.texts("infotexts").len(), 3 + 8);
    assert_eq!(plot.texts("all_prompts")[3], "a red cube");
    assert_eq!(plot.texts("all_prompts")[10], "a dark blue cube");
    let whole = plot.texts("infotexts")[0];
    assert!(whole.contains("Fixed X Values: \"1, "), "{whole}");
    assert!(
        whole.contains("Z Type: Prompt S/R, Z Values: \"red, \\\"dark blue\\\"\""),
        "{whole}"
    );
    assert!(!plot.texts("infotexts")[1].contains("Z Type"));
    let bare = studio.txt2img(with(&[(16, json!(10))])).await;
    assert_eq!(bare.sizes(), [(256, 128)]);
}

#[actix_web::test]
async fn an_xyz_plot_varies_seeds_along_axes_and_leaves_failing_cells_empty() {
    let studio = Studio::shared();
    let arguments = xyz(
        [
            (json!("Prompt S/R"), json!("cube,ball,sphere")),
            (json!(0), json!("")),
            NOTHING(),
        ],
        &[(10, json!(true)), (13, json!(true)), (17, json!(true))],
    );
    let plot = studio
        .txt2img(json!({"script_name": "X/Y/Z plot", "script_args": arguments}))
        .await;
    assert_eq!(plot.info["all_seeds"], json!([7, 7, 8, 9]));
    let ball = studio
        .txt2img(json!({"prompt": "a red ball", "seed": 8}))
        .await;
    assert_eq!(plot.pictures[2], ball.pictures[0]);
    let sizes = xyz(
        [(json!(41), json!("64x64,4x4")), NOTHING(), NOTHING()],
        &[(10, json!(true))],
    );
    let plot = studio
        .txt2img(json!({"script_name": "X/Y/Z plot", "script_args": sizes}))
        .await;
    assert_eq!(plot.sizes(), [(128, 64), (64, 64), (64, 64)]);
    assert!(plot.pictures[2].pixels().all(|pixel| pixel.0 == [0; 3]));
}

#[actix_web::test]
async fn an_xyz_plot_changes_checkpoint_and_options_of_a_cell_alone() {
    let studio = Studio::shared();
    let titles = ["tiny-sd1.safetensors", "tiny-sd2-v.safetensors"];
    let arguments = xyz(
        [
            (json!(11), json!(titles)),
            (json!(39), json!(["CPU", "NV"])),
            NOTHING(),
        ],
        &[(10, json!(true))],
    );
    let plot = studio
        .txt2img(json!({"script_name": "X/Y/Z plot", "script_args": arguments}))
        .await;
    for (at, (checkpoint, source)) in [
        (titles[0], "CPU"),
        (titles[1], "CPU"),
        (titles[0], "NV"),
        (titles[1], "NV"),
    ]
    .into_iter()
    .enumerate()
    {
        let single = studio
            .txt2img(json!({"override_settings": {
                "sd_model_checkpoint": checkpoint, "randn_source": source,
            }}))
            .await;
        assert_eq!(
            plot.pictures[at + 1],
            single.pictures[0],
            "{checkpoint} {source}"
        );
    }
}

#[actix_web::test]
async fn an_xyz_plot_that_cannot_be_drawn_says_why() {
    let studio = Studio::shared();
    let plot = |axis: Value, values: Value| json!({"script_name": "X/Y/Z plot", "script_args": xyz([(axis, values), NOTHING(), NOTHING()], &[])});
    for (axis, values, class, text) in [
        (
            json!(9),
            json!(["Nope"]),
            "RuntimeError",
            "Unknown sampler: Nope",
        ),
        (
            json!(11),
            json!(["nope"]),
            "RuntimeError",
            "Unknown checkpoint: nope",
        ),
        (
            json!(4),
            json!("x"),
            "ValueError",
            "invalid literal for int() with base 10: 'x'",
        ),
        (
            json!(99),
            json!("x"),
            "IndexError",
            "list index out of range",
        ),
        (json!(1), json!("1-9999"), "AssertionError", ""),
    ] {
        let mut body = plot(axis, values);
        if class == "AssertionError" {
            body["width"] = json!(512);
            body["height"] = json!(512);
        }
        let failure = studio.failure(body).await;
        assert_eq!(failure.0, class, "{failure:?}");
        if text.is_empty() {
            assert_eq!(
                failure.1,
                "Error: Resulting grid would be too large (2621 MPixels) (max configured size is 200 MPixels)"
            );
        } else {
            assert_eq!(failure.1, text);
        }
    }
}

#[actix_web::test]
async fn prompts_from_a_file_are_drawn_one_after_the_other() {
    let studio = Studio::shared();
    let lines = "a blue ball\n\n--prompt a green cone --seed 3 --steps 1 --width 32\nx -- y";
    let drawn = studio
        .txt2img(json!({
            "prompt": "photo", "script_name": "Prompts from file or textbox",
            "script_args": [true, false, "end", lines],
        }))
        .await;
    assert_eq!(drawn.sizes(), [(64, 64), (32, 64), (64, 64)]);
    assert_eq!(
        drawn.texts("all_prompts"),
        ["photo a blue ball", "photo a green cone", "photo x -- y"]
    );
    assert_eq!(drawn.info["all_seeds"], json!([7, 3, 9]));
    let single = studio
        .txt2img(json!({"prompt": "photo a green cone", "seed": 3, "steps": 1, "width": 32}))
        .await;
    assert_eq!(drawn.pictures[1], single.pictures[0]);
    assert_eq!(drawn.texts("infotexts")[1], single.texts("infotexts")[0]);
}

#[actix_web::test]
async fn arguments_that_are_left_out_have_the_pages_values() {
    let studio = Studio::shared();
    let matrix = studio
        .txt2img(json!({"prompt": "a|b", "script_name": "Prompt matrix"}))
        .await;
    assert_eq!(matrix.texts("all_prompts"), ["a", "a, b"]);
    let looped = studio
        .img2img(json!({
            "init_images": [init_image()], "script_name": "LOOPBACK", "script_args": [2],
            "n_iter": 2,
        }))
        .await;
    assert_eq!(looped.sizes(), [(128, 64), (64, 64), (64, 64)]);
    let failure = studio
        .failure(
            json!({"prompt": "a|b", "script_name": "Prompt matrix", "script_args": [0, 0, "x"]}),
        )
        .await;
    assert_eq!(
        failure,
        ("ValueError".to_owned(), "Unknown prompt type x".to_owned())
    );
}

#[actix_web::test]
async fn scripts_of_the_other_page_are_not_found() {
    let studio = Studio::shared();
    for (path, name) in [
        ("/sdapi/v1/txt2img", "Loopback"),
        ("/sdapi/v1/txt2img", "Seed"),
        ("/sdapi/v1/txt2img", "Custom code"),
        ("/sdapi/v1/img2img", "Soft Inpainting"),
    ] {
        let (status, answer) = studio
            .post(
                path,
                &request(json!({"script_name": name, "init_images": [init_image()]})),
            )
            .await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(answer["detail"], format!("Script '{name}' not found"));
    }
    let body = json!({"alwayson_scripts": {"X/Y/Z plot": {"args": []}}});
    let (status, answer) = studio.post("/sdapi/v1/txt2img", &body).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(
        answer["detail"],
        "Cannot have a selectable script in the always on scripts params"
    );
}

#[actix_web::test]
async fn listed_scripts_are_those_that_requests_may_name() {
    let studio = Studio::shared();
    let names = studio.get("/sdapi/v1/scripts").await;
    let info = studio.get("/sdapi/v1/script-info").await;
    for (tab, is_img2img) in [("txt2img", false), ("img2img", true)] {
        let described: Vec<&str> = info
            .as_array()
            .into_iter()
            .flatten()
            .filter(|script| script["is_img2img"] == is_img2img)
            .map(|script| script["name"].as_str().unwrap_or_default())
            .collect();
        for name in names[tab].as_array().into_iter().flatten() {
            let name = name.as_str().unwrap_or_default();
            assert!(
                name == "Hypertile" || described.contains(&name),
                "{tab} {name}"
            );
        }
    }
    let upscaler = info
        .as_array()
        .into_iter()
        .flatten()
        .find(|script| script["name"] == "sd upscale")
        .map(|script| script["args"][2]["choices"].clone());
    assert_eq!(upscaler, Some(json!(["None", "Lanczos", "Nearest"])));
}

#[actix_web::test]
async fn sd_upscale_joins_tiles_and_writes_its_picture() {
    let studio = Studio::new(|_| {}, &[]);
    let drawn = studio
        .img2img(json!({
            "init_images": [init_image()], "script_name": "SD upscale",
            "script_args": ["", 16, "lanczos", 1.5], "denoising_strength": 0.2, "batch_size": 3,
        }))
        .await;
    assert_eq!(drawn.sizes(), [(144, 96)]);
    let saved: Vec<PathBuf> = files_below(&studio.data.path().join("outputs"));
    assert_eq!(saved.len(), 1, "{saved:?}");
    let (status, answer) = studio
        .post(
            "/sdapi/v1/img2img",
            &request(json!({
                "init_images": [init_image()], "script_name": "SD upscale",
                "script_args": ["", 16, "nope", 1.5],
            })),
        )
        .await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(answer["errors"], "'nope' is not in list");
}

#[actix_web::test]
async fn outpainting_enlarges_the_canvas_on_the_sides_asked_for() {
    let studio = Studio::shared();
    let original = decoded(&init_image());
    let with = |name: &str, arguments: Value| {
        json!({
            "init_images": [init_image()], "script_name": name, "script_args": arguments,
            "denoising_strength": 0.8, "sampler_name": "Euler a", "seed": 3,
        })
    };
    let mk2 = studio
        .img2img(with(
            "Outpainting mk2",
            json!(["", 32, 2, ["left", "down"], 1.0, 0.05]),
        ))
        .await;
    assert_eq!(mk2.sizes(), [(128, 128)]);
    let poor = studio
        .img2img(with(
            "poor man's outpainting",
            json!([32, 2, "fill", ["left", "down"]]),
        ))
        .await;
    assert_eq!(poor.sizes(), [(128, 128)]);
    for drawn in [&mk2, &poor] {
        // Far from the new parts the picture is what it was.
        for (x, y) in [(60, 10), (90, 20)] {
            let (have, want) = (
                drawn.pictures[0].get_pixel(x + 32, y),
                original.get_pixel(x, y),
            );
            let near = have.0.iter().zip(want.0).all(|(a, b)| a.abs_diff(b) <= 2);
            assert!(near, "{have:?} {want:?}");
        }
        let new: std::collections::BTreeSet<[u8; 3]> = (0..32)
            .map(|x| drawn.pictures[0].get_pixel(x, 100).0)
            .collect();
        assert!(new.len() > 4, "{new:?}");
        assert_eq!(drawn.info["seed"], 3);
        assert_eq!(drawn.info["subseed"], -1);
    }
    assert_ne!(mk2.pictures, poor.pictures);
    let again = studio
        .img2img(with(
            "Outpainting mk2",
            json!(["", 32, 2, ["left", "down"], 1.0, 0.05]),
        ))
        .await;
    assert_eq!(again.pictures, mk2.pictures);
    let (status, answer) = studio
        .post(
            "/sdapi/v1/img2img",
            &request(with("Outpainting mk2", json!(["", 32, 2, [], 1.0, 0.05]))),
        )
        .await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(answer["errors"], "no direction is given to paint in");
}

#[actix_web::test]
async fn the_alternative_test_comes_back_to_its_picture() {
    let studio = Studio::shared();
    let with = |script: Value| {
        let mut body = json!({
            "init_images": [init_image()], "cfg_scale": 1.0, "steps": 30, "denoising_strength": 1.0,
            "width": 96, "prompt": "a red cube", "override_settings": {"sd_model_checkpoint": "tiny-sd1"},
        });
        for (key, value) in script.as_object().into_iter().flatten() {
            body[key] = value.clone();
        }
        body
    };
    // The picture as the VAE gives it back: nearly no noise is added and taken away.
    let original = studio
        .img2img(with(json!({"denoising_strength": 0.01})))
        .await
        .pictures
        .remove(0);
    let distance = |picture: &RgbImage| -> u64 {
        let pairs = picture.as_raw().iter().zip(original.as_raw());
        pairs.map(|(a, b)| u64::from(a.abs_diff(*b))).sum()
    };
    let plain = studio.img2img(with(json!({}))).await;
    let arguments = |changes: &[(usize, Value)]| {
        let mut arguments = json!([
            "",
            true,
            true,
            "a red cube",
            "",
            true,
            30,
            true,
            1.0,
            0.0,
            false
        ]);
        for (index, value) in changes {
            arguments[*index] = value.clone();
        }
        json!({"script_name": "img2img alternative test", "script_args": arguments})
    };
    let found = studio.img2img(with(arguments(&[]))).await;
    let adjusted = studio.img2img(with(arguments(&[(10, json!(true))]))).await;
    let far = distance(&plain.pictures[0]);
    for result in [&found, &adjusted] {
        let near = distance(&result.pictures[0]);
        assert!(
            near * 2 < far,
            "{near} against {far}, {}",
            distance(&adjusted.pictures[0])
        );
    }
    assert_ne!(found.pictures, adjusted.pictures);
    let text = found.texts("infotexts")[0];
    assert!(
        text.contains(
            "Decode prompt: a red cube, Decode negative prompt: , Decode CFG scale: 1.0, \
             Decode steps: 30, Randomness: 0.0, Sigma Adjustment: False"
        ),
        "{text}"
    );
    let random = studio.img2img(with(arguments(&[(9, json!(1.0))]))).await;
    assert_ne!(random.pictures, found.pictures);
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files_below(&path));
        } else {
            found.push(path);
        }
    }
    found
}
