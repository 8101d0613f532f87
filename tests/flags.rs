//! Flags of the command line whose effect shows over HTTP, in process.

#[path = "support/in_process.rs"]
mod in_process;
#[path = "support/toy_models.rs"]
mod toy_models;

use actix_web::http::header;
use actix_web::test::TestRequest;
use in_process::InProcess;
use serde_json::json;

#[actix_web::test]
async fn a_subpath_is_in_the_document_and_in_redirects() {
    let server = InProcess::new(&["--subpath", "/sd/webui/"]);
    // The proxy cuts the path off; the routes are where they are without it.
    assert_eq!(server.get("/sdapi/v1/samplers").await.status, 200);
    let document = server.get("/openapi.json").await.json();
    assert_eq!(document["servers"], json!([{"url": "/sd/webui"}]));
    assert!(document["paths"].get("/sdapi/v1/txt2img").is_some());
    let request = TestRequest::get()
        .uri("/sdapi/v1/samplers/?a=b")
        .insert_header((header::HOST, "localhost"));
    let reply = server.send(request).await;
    assert_eq!(reply.status, 307);
    assert_eq!(
        reply
            .headers
            .get("location")
            .and_then(|to| to.to_str().ok()),
        Some("http://localhost/sd/webui/sdapi/v1/samplers?a=b")
    );
    let plain = InProcess::new(&[]).get("/openapi.json").await.json();
    assert!(plain.get("servers").is_none());
}

#[actix_web::test]
async fn frozen_settings_say_so_and_change_nothing() {
    for (flags, key, says) in [
        (
            vec!["--freeze-settings"],
            "jpeg_quality",
            "changing settings is disabled",
        ),
        (
            vec!["--freeze-settings-in-sections", "sd,saving-images"],
            "jpeg_quality",
            "not possible to set 'jpeg_quality' because settings in section 'Saving images/grids' (saving-images) are frozen with --freeze-settings-in-sections",
        ),
        (
            vec!["--freeze-specific-settings", "jpeg_quality"],
            "jpeg_quality",
            "not possible to set 'jpeg_quality' because this setting is frozen with --freeze-specific-settings",
        ),
    ] {
        let server = InProcess::new(&flags);
        let reply = server.post("/sdapi/v1/options", &json!({key: 50})).await;
        assert_eq!(reply.status, 500);
        assert_eq!(reply.json()["error"], "AssertionError");
        assert_eq!(reply.json()["errors"], says);
        let options = server.get("/sdapi/v1/options").await.json();
        assert_eq!(options[key], 80);
        // The rest can be changed, unless everything is frozen.
        let reply = server
            .post("/sdapi/v1/options", &json!({"eta_ancestral": 0.5}))
            .await;
        assert_eq!(reply.status == 200, !flags.contains(&"--freeze-settings"));
    }
}

#[actix_web::test]
async fn hidden_folders_cannot_be_changed() {
    let server = InProcess::new(&["--hide-ui-dir-config"]);
    let changes = json!({"outdir_txt2img_samples": "outputs/x", "samples_filename_pattern": "x", "n_rows": 2});
    server.set(&changes).await;
    let options = server.get("/sdapi/v1/options").await.json();
    assert_eq!(options["outdir_txt2img_samples"], "outputs/txt2img-images");
    assert_eq!(options["samples_filename_pattern"], "");
    assert_eq!(options["n_rows"], 2.0);
}

#[actix_web::test]
async fn files_are_where_the_flags_say() {
    let elsewhere = tempfile::tempdir().expect("a temporary folder");
    let at = |name: &str| elsewhere.path().join(name).display().to_string();
    let header = "name,prompt,negative_prompt\n";
    std::fs::write(at("a.csv"), format!("{header}One,first,\n")).expect("written");
    std::fs::write(at("b.csv"), format!("{header}Two,second,\n")).expect("written");
    let server = InProcess::new(&[
        "--styles-file",
        &at("*.csv"),
        "--ui-settings-file",
        &at("settings.json"),
        "--no-prompt-history",
    ]);
    let styles = server.get("/sdapi/v1/prompt-styles").await.json();
    let names: Vec<&str> = styles
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|style| style["name"].as_str())
        .collect();
    assert_eq!(names.len(), 4, "{names:?}");
    assert!(names.contains(&"One") && names.contains(&"Two"));
    server.set(&json!({"jpeg_quality": 50})).await;
    let saved = std::fs::read_to_string(at("settings.json")).expect("saved");
    assert!(saved.contains("\"jpeg_quality\": 50"), "{saved}");
    server.txt2img(&json!({})).await;
    assert_eq!(server.files(""), Vec::<String>::new());
    // Without the flags the data folder holds both.
    let server = InProcess::new(&[]);
    server.set(&json!({"jpeg_quality": 50})).await;
    server.txt2img(&json!({})).await;
    assert_eq!(server.files(""), ["config.json", "params.txt"]);
}

#[actix_web::test]
async fn file_names_follow_their_flags() {
    let flags = [
        "--filenames-max-length",
        "8",
        "--unix-filenames-sanitization",
    ];
    let server = InProcess::new(&flags);
    server.set(&json!({"save_to_dirs": false})).await;
    let request = json!({"save_images": true, "prompt": "a: b/c and more"});
    server.txt2img(&request).await;
    assert_eq!(
        server.files("outputs/txt2img-images"),
        ["00000-1234-a: b_c a.png"]
    );
}

#[actix_web::test]
async fn no_numbers_are_an_error_or_a_black_picture() {
    let server = InProcess::new(&[]);
    let with_vae = |name: &str| json!({"override_settings": {"sd_vae": name}});
    let reply = server.txt2img(&with_vae(toy_models::BROKEN_VAE)).await;
    assert_eq!(reply.status, 500);
    assert_eq!(reply.json()["error"], "NansException");
    let unchecked = with_vae(toy_models::BROKEN_VAE_UNCHECKED);
    let reply = server.txt2img(&unchecked).await;
    let picture = ancestral::imaging::decode(&reply.images()[0]).expect("a picture");
    assert!(picture.picture.as_bytes().iter().all(|level| *level == 0));
}

#[actix_web::test]
async fn logins_are_not_echoed() {
    let flags = ["--api-auth", "u:secret", "--gradio-auth", "g:hidden"];
    let server = InProcess::new(&flags);
    let request = TestRequest::get()
        .uri("/sdapi/v1/cmd-flags")
        .insert_header((header::AUTHORIZATION, "Basic dTpzZWNyZXQ="));
    let reply = server.send(request).await;
    assert_eq!(reply.status, 200);
    let text = String::from_utf8_lossy(&reply.body).into_owned();
    assert!(
        !text.contains("secret") && !text.contains("hidden"),
        "{text}"
    );
    assert_eq!(server.get("/sdapi/v1/cmd-flags").await.status, 401);
}
