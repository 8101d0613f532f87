//! Files that generations leave on disk: the real pipeline over toy networks, in process.

#[path = "support/in_process.rs"]
mod in_process;
#[path = "support/toy_models.rs"]
mod toy_models;

use ancestral::imaging::decode;
use in_process::{InProcess, picture};
use serde_json::{Value, json};

/// `DATE/` of the default sub-folder.
fn today() -> String {
    jiff::Zoned::now().strftime("%Y-%m-%d").to_string()
}

/// `names` below today's folder.
fn dated(names: &[&str]) -> Vec<String> {
    let today = today();
    names.iter().map(|name| format!("{today}/{name}")).collect()
}

const SAMPLES: &str = "outputs/txt2img-images";
const GRIDS: &str = "outputs/txt2img-grids";

#[actix_web::test]
async fn nothing_is_written_unless_asked() {
    let server = InProcess::new(&[]);
    assert_eq!(server.txt2img(&json!({"n_iter": 2})).await.status, 200);
    server
        .set(&json!({"samples_save": false, "grid_save": false}))
        .await;
    let reply = server
        .txt2img(&json!({"n_iter": 2, "save_images": true}))
        .await;
    // The grid is made for the answer all the same.
    assert_eq!(reply.images().len(), 3);
    assert_eq!(server.files("outputs"), Vec::<String>::new());
}

#[actix_web::test]
async fn results_and_grid_go_into_folders_of_the_day() {
    let server = InProcess::new(&[]);
    let request = json!({"n_iter": 2, "batch_size": 2, "save_images": true});
    let reply = server.txt2img(&request).await;
    let images = reply.images();
    assert_eq!(images.len(), 5);
    let names = [
        "00000-1234.png",
        "00001-1235.png",
        "00002-1236.png",
        "00003-1237.png",
    ];
    assert_eq!(server.files(SAMPLES), dated(&names));
    assert_eq!(server.files(GRIDS), dated(&["grid-0000.png"]));
    let info = reply.info();
    assert_eq!(info["index_of_first_image"], 1);
    for (index, name) in names.iter().enumerate() {
        let path = server.data.path().join(SAMPLES).join(today()).join(name);
        let saved = decode(&std::fs::read(path).expect("saved")).expect("a picture");
        let answered = decode(&images[index + 1]).expect("a picture");
        assert_eq!(saved.picture, answered.picture);
        assert_eq!(saved.metadata.infotext, answered.metadata.infotext);
        assert_eq!(
            saved.metadata.infotext.as_deref(),
            info["infotexts"][index + 1].as_str()
        );
    }
    let grid = server
        .data
        .path()
        .join(GRIDS)
        .join(today())
        .join("grid-0000.png");
    let grid = decode(&std::fs::read(grid).expect("saved")).expect("a picture");
    assert_eq!(grid.picture, decode(&images[0]).expect("a picture").picture);
    // The next job counts on.
    server.txt2img(&json!({"save_images": true})).await;
    assert!(
        server
            .files(SAMPLES)
            .contains(&format!("{}/00004-1234.png", today()))
    );
}

#[actix_web::test]
async fn patterns_and_numbers_follow_the_options() {
    let server = InProcess::new(&[]);
    let cases: [(Value, &[&str]); 6] = [
        (
            json!({"save_to_dirs": false}),
            &["00000-1234-a castle, on a hill.png"],
        ),
        (
            json!({"directories_filename_pattern": "[model_name]/[sampler]", "samples_filename_pattern": "[seed]-[steps]"}),
            &["toy/Euler/00000-1234-3.png"],
        ),
        (
            json!({"directories_filename_pattern": "", "directories_max_prompt_words": 2}),
            &["a castle/00000-1234.png"],
        ),
        (
            json!({"save_to_dirs": false, "save_images_add_number": false, "samples_filename_pattern": "same"}),
            &["same.png"],
        ),
        (
            json!({"save_to_dirs": false, "save_images_add_number": false, "samples_filename_pattern": "same", "save_images_replace_action": "Add number suffix"}),
            &["same-1.png", "same.png"],
        ),
        (
            json!({"save_to_dirs": false, "samples_filename_pattern": "[none]", "samples_format": "jpg"}),
            &["00000.jpg"],
        ),
    ];
    for (index, (options, want)) in cases.iter().enumerate() {
        // Of saving, overrides change names and formats, and never the folder.
        let mut options = options.clone();
        let folder = format!("outputs/case{index}");
        server.set(&json!({"outdir_txt2img_samples": folder})).await;
        options["outdir_txt2img_samples"] = json!("outputs/elsewhere");
        let request = json!({"save_images": true, "override_settings": options});
        for _ in 0..if want.len() > 1 { 2 } else { 1 } {
            assert_eq!(server.txt2img(&request).await.status, 200);
        }
        assert_eq!(server.files(&folder), *want, "{options}");
    }
    assert_eq!(server.files("outputs/elsewhere"), Vec::<String>::new());
}

#[actix_web::test]
async fn no_request_writes_out_of_the_output_folders() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let outside = tempfile::tempdir().expect("a temporary folder");
    let folder = outside.path().display().to_string();
    let server = InProcess::over(data, &[]);
    for value in [
        folder.as_str(),
        "..",
        "outputs/../models",
        "models/Lora",
        "/",
    ] {
        server.set(&json!({"outdir_txt2img_samples": value})).await;
        let options = server.get("/sdapi/v1/options").await.json();
        assert_eq!(options["outdir_txt2img_samples"], "outputs/txt2img-images");
    }
    let request = json!({
        "save_images": true, "prompt": "../../../x", "override_settings_restore_afterwards": false,
        "override_settings": {
            "outdir_txt2img_samples": folder,
            "directories_filename_pattern": format!("../../..{folder}/[prompt]"),
            "samples_filename_pattern": "../../[prompt]/..\\..\\[seed]",
        },
    });
    assert_eq!(server.txt2img(&request).await.status, 200);
    assert_eq!(
        std::fs::read_dir(outside.path()).expect("readable").count(),
        0
    );
    let saved = server.files(SAMPLES);
    assert_eq!(saved.len(), 1, "{saved:?}");
    assert!(saved[0].ends_with("/1234.png"), "{saved:?}");
}

#[actix_web::test]
async fn who_runs_the_server_may_name_other_folders() {
    let outside = tempfile::tempdir().expect("a temporary folder");
    let other = tempfile::tempdir().expect("a temporary folder");
    let data = tempfile::tempdir().expect("a temporary folder");
    let config = json!({"outdir_txt2img_samples": outside.path(), "save_to_dirs": false});
    std::fs::write(data.path().join("config.json"), config.to_string()).expect("written");
    let flag = other.path().display().to_string();
    let server = InProcess::over(data, &["--gradio-allowed-path", &flag]);
    server.txt2img(&json!({"save_images": true})).await;
    assert_eq!(
        std::fs::read_dir(outside.path()).expect("readable").count(),
        1
    );
    server
        .set(&json!({"outdir_txt2img_samples": other.path().join("deep")}))
        .await;
    server.txt2img(&json!({"save_images": true})).await;
    assert!(
        other
            .path()
            .join("deep/00000-1234-a castle, on a hill.png")
            .exists()
    );
}

#[actix_web::test]
async fn formats_carry_the_infotext_where_a1111_puts_it() {
    let server = InProcess::new(&[]);
    let options = json!({"save_to_dirs": false, "save_txt": true, "grid_format": "webp"});
    server.set(&options).await;
    for (format, extra) in [
        ("png", json!({})),
        ("jpg", json!({})),
        ("webp", json!({})),
        ("webp", json!({"webp_lossless": true})),
        ("png", json!({"enable_pnginfo": false})),
    ] {
        let folder = format!("outputs/{format}{}", extra.to_string().len());
        server.set(&json!({"outdir_txt2img_samples": folder})).await;
        let mut overrides = extra.clone();
        overrides["samples_format"] = json!(format);
        let request = json!({"save_images": true, "override_settings": overrides});
        let reply = server.txt2img(&request).await;
        let info = reply.info();
        let text = info["infotexts"][0].as_str().expect("a text");
        let stem = server
            .data
            .path()
            .join(&folder)
            .join("00000-1234-a castle, on a hill");
        let bytes = std::fs::read(stem.with_extension(format)).expect("saved");
        let saved = decode(&bytes).expect("a picture");
        let named = extra.get("enable_pnginfo").is_none().then_some(text);
        assert_eq!(
            saved.metadata.infotext.as_deref(),
            named,
            "{format} {extra}"
        );
        let beside = std::fs::read_to_string(stem.with_extension("txt")).expect("saved");
        assert_eq!(beside, format!("{text}\n"));
        // Restored before the answer is encoded, as in A1111.
        let answered = decode(&reply.images()[0]).expect("a picture").picture;
        let exact = format == "png" || extra.get("webp_lossless").is_some();
        assert_eq!(saved.picture == answered, exact, "{format} {extra}");
    }
    let request = json!({"save_images": true, "override_settings": {"samples_format": "tga"}});
    assert_eq!(server.txt2img(&request).await.status, 500);
}

#[actix_web::test]
async fn pictures_on_the_way_are_kept_on_request() {
    let server = InProcess::new(&[]);
    let options = json!({
        "save_to_dirs": false, "save_images_before_highres_fix": true, "save_mask": true,
        "save_mask_composite": true, "img2img_color_correction": true, "save_init_img": true,
        "save_images_before_color_correction": true, "samples_filename_pattern": "[seed]",
    });
    server.set(&options).await;
    let hires = json!({
        "save_images": true, "enable_hr": true, "denoising_strength": 0.5, "batch_size": 2,
        "hr_upscaler": "Latent", "hr_scale": 2,
    });
    assert_eq!(server.txt2img(&hires).await.status, 200);
    let saved = [
        "00000-1234-before-highres-fix.png",
        "00001-1235-before-highres-fix.png",
        "00002-1234.png",
        "00003-1235.png",
    ];
    assert_eq!(server.files(SAMPLES), saved);
    let side = |name: &str| {
        let bytes = std::fs::read(server.data.path().join(SAMPLES).join(name)).expect("saved");
        decode(&bytes).expect("a picture").picture.width()
    };
    assert_eq!((side(saved[0]), side(saved[2])), (64, 128));
    let inpaint = json!({"mask": picture(64, 64), "save_images": true, "inpaint_full_res": false});
    let reply = server.img2img(&inpaint).await;
    assert_eq!(
        server.files("outputs/img2img-images"),
        [
            "00000-1234-before-color-correction.png",
            "00001-1234.png",
            "00002-1234-mask.png",
            "00003-1234-mask-composite.png"
        ]
    );
    // The option returns no masks.
    assert_eq!(reply.images().len(), 1);
    let init = server.files("outputs/init-images");
    let name = init[0].strip_suffix(".png").expect("a PNG");
    let info = reply.info();
    assert!(
        info["infotexts"][0]
            .as_str()
            .is_some_and(|text| text.contains(&format!("Init image hash: {name}, "))),
        "{info}"
    );
    assert!(
        info["extra_generation_params"]
            .get("Init image hash")
            .is_none()
    );
}

#[actix_web::test]
async fn interrupted_pictures_are_kept_on_request_only() {
    let server = InProcess::new(&[]);
    let request = json!({"save_images": true, "n_iter": 2, "prompt": toy_models::STOPPED});
    let reply = server.txt2img(&request).await;
    assert_eq!(reply.images().len(), 1);
    assert_eq!(server.files("outputs"), Vec::<String>::new());
    server.set(&json!({"save_incomplete_images": true})).await;
    server.txt2img(&request).await;
    assert_eq!(server.files(SAMPLES), dated(&["00000-1234.png"]));
}

#[actix_web::test]
async fn large_pictures_get_a_small_copy() {
    let server = InProcess::new(&[]);
    let options = json!({"save_to_dirs": false, "target_side_length": 48, "samples_filename_pattern": "[seed]"});
    server.set(&options).await;
    let request = json!({"save_images": true, "width": 128});
    server.txt2img(&request).await;
    assert_eq!(server.files(SAMPLES), ["00000-1234.jpg", "00000-1234.png"]);
    let copy = std::fs::read(server.data.path().join(SAMPLES).join("00000-1234.jpg"));
    let copy = decode(&copy.expect("saved")).expect("a picture");
    assert_eq!((copy.picture.width(), copy.picture.height()), (48, 24));
    assert!(copy.metadata.infotext.is_some());
    server.set(&json!({"export_for_4chan": false})).await;
    server.txt2img(&request).await;
    assert_eq!(server.files(SAMPLES).len(), 3);
}

#[actix_web::test]
async fn grids_follow_their_options() {
    let server = InProcess::new(&[]);
    let size = |reply: &in_process::Reply| {
        let grid = decode(&reply.images()[0]).expect("a picture").picture;
        (grid.width() / 64, grid.height() / 64)
    };
    for (options, want) in [
        (json!({}), (3, 2)),
        (json!({"n_rows": 1}), (6, 1)),
        (json!({"n_rows": 0}), (3, 2)),
        (json!({"n_rows": 4}), (2, 4)),
    ] {
        let request = json!({
            "n_iter": 3, "batch_size": 2, "steps": 1, "save_images": true,
            "override_settings": options,
        });
        assert_eq!(size(&server.txt2img(&request).await), want, "{options}");
    }
    let request = |options: Value| json!({"save_images": true, "override_settings": options});
    let single = server
        .txt2img(&request(json!({"grid_only_if_multiple": false})))
        .await;
    assert_eq!(single.images().len(), 2);
    let before = server.files(GRIDS).len();
    // Saved without being answered.
    let options =
        json!({"return_grid": false, "grid_extended_filename": true, "grid_save_to_dirs": false});
    let mut pair = request(options);
    pair["n_iter"] = json!(2);
    let reply = server.txt2img(&pair).await;
    assert_eq!(
        (
            reply.images().len(),
            reply.info()["index_of_first_image"].clone()
        ),
        (2, json!(0))
    );
    assert_eq!(server.files(GRIDS).len(), before + 1);
    assert!(
        server
            .files(GRIDS)
            .contains(&"grid-0000-1234.png".to_owned())
    );
}
