//! The whole app in process, over an engine that draws one grey picture without any graph: routes, error
//! bodies, coercion, options, login, CORS, the queue.

#[path = "http/guards.rs"]
mod guards;
#[path = "http/jobs.rs"]
mod jobs;
#[path = "http/login.rs"]
mod login;
#[path = "http/routes.rs"]
mod routes;
#[path = "http/sockets.rs"]
mod sockets;

use std::sync::Arc;

use actix_web::App as ActixApp;
use actix_web::body::MessageBody;
use actix_web::http::{Method, StatusCode, header};
use actix_web::middleware::from_fn;
use actix_web::test::{TestRequest, call_service, init_service};
use ancestral::app::App;
use ancestral::catalogue::{Catalogue, CatalogueConfig};
use ancestral::config::Config;
use ancestral::http;
use ancestral::jobs::Engine;
use ancestral::pipeline::{
    BuiltInUpscalers, ExtrasParams, ExtrasResult, GenerateError, GeneratedImage, GenerationParams,
    GenerationResult, InfotextDraft, JobControl, ModelRequest, NoFaceNetworks, ShortHash, extras,
};
use ancestral::scripts::ScriptCall;
use serde_json::{Value, json};

/// Draws grey pictures and tells what it was asked for in the infotext.
struct GreyEngine {
    /// Of the checkpoint that it loads.
    hash: ShortHash,
}

impl Engine for GreyEngine {
    fn generate(
        &self,
        params: &GenerationParams,
        control: &dyn JobControl,
    ) -> Result<GenerationResult, GenerateError> {
        assert_ne!(params.prompt, "panic", "the prompt asks for it");
        if params.prompt == "fail" {
            return Err(GenerateError::InvalidValue("asked for".to_owned()));
        }
        while params.prompt == "wait" && !control.interrupted() {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        control.set_job_count(params.batch_count as i64);
        let infotext = format!("{}\nSteps: {}", params.prompt, params.step_count);
        let picture = image::RgbImage::from_pixel(
            params.width_px as u32 / 8 * 8,
            params.height_px as u32 / 8 * 8,
            image::Rgb([128; 3]),
        );
        let image = GeneratedImage {
            image: Arc::new(picture.into()),
            infotext: Some(infotext.clone()),
        };
        Ok(GenerationResult {
            images: vec![image],
            all_prompts: vec![params.prompt.clone()],
            all_negative_prompts: vec![params.negative_prompt.clone()],
            all_seeds: vec![params.seed.unwrap_or(1)],
            all_subseeds: vec![params.subseed.unwrap_or(2)],
            seed: params.seed.unwrap_or(1),
            subseed: params.subseed.unwrap_or(2),
            subseed_strength: params.subseed_strength,
            width_px: params.width_px,
            height_px: params.height_px,
            sampler: params.sampler.clone(),
            cfg_scale: params.cfg_scale,
            step_count: params.step_count,
            batch_size: params.batch_size,
            restore_faces: params.restore_faces,
            face_restoration_model: None,
            model_name: "grey".to_owned(),
            model_short_hash: "0123456789".to_owned(),
            vae_file: None,
            seed_resize_from: (-1, -1),
            denoising_strength: params.denoising_strength,
            extra_generation_params: serde_json::Map::new(),
            index_of_first_image: 0,
            infotexts: vec![infotext],
            styles: params.styles.clone(),
            job_timestamp: "20240131120000".to_owned(),
            clip_skip: params.options.i64("CLIP_stop_at_last_layers"),
            is_using_inpainting_conditioning: false,
            version: "v1.10.1".to_owned(),
            first_text: InfotextDraft::default(),
            comments: Vec::new(),
        })
    }

    fn run_script(
        &self,
        script: &ScriptCall,
        params: &GenerationParams,
        control: &dyn JobControl,
    ) -> Result<GenerationResult, GenerateError> {
        let mut result = self.generate(params, control)?;
        result.infotexts = vec![format!("{:?}", script.script)];
        Ok(result)
    }

    fn extras(
        &self,
        params: &ExtrasParams,
        control: &dyn JobControl,
    ) -> Result<ExtrasResult, GenerateError> {
        extras(params, &BuiltInUpscalers, &NoFaceNetworks, control)
    }

    fn load(&self, _request: &ModelRequest) -> Result<ShortHash, GenerateError> {
        Ok(self.hash.clone())
    }

    fn unload(&self) {}
}

/// An answer: status, headers, body.
struct Reply {
    status: StatusCode,
    headers: header::HeaderMap,
    body: Vec<u8>,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| {
            panic!("no JSON: {}", String::from_utf8_lossy(&self.body));
        })
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// A server over a fresh data folder.
struct Fixture {
    app: App,
    _data: tempfile::TempDir,
}

impl Fixture {
    fn new(flags: &[&str]) -> Self {
        Self::with_secret(flags, "")
    }

    /// With the key that signs messages to webhooks.
    fn with_secret(flags: &[&str], secret: &str) -> Self {
        Self::with_hash(flags, secret, ShortHash::known(""))
    }

    /// With a hash of the checkpoint that may come later.
    fn with_hash(flags: &[&str], secret: &str, hash: ShortHash) -> Self {
        let data = tempfile::tempdir().expect("a temporary folder");
        let path = data.path().display().to_string();
        let mut all = vec!["--data-dir", path.as_str()];
        all.extend(flags);
        let mut config = Config::from_arguments(&all).expect("the flags are accepted");
        secret.clone_into(&mut config.webhook.secret);
        let catalogue = Arc::new(Catalogue::new(CatalogueConfig {
            models_dir: config.folders.models.clone(),
            ..CatalogueConfig::default()
        }));
        let engine = Arc::new(GreyEngine { hash });
        let app = App::with_engine(config, engine, catalogue).expect("builds");
        Self { app, _data: data }
    }

    async fn send(&self, request: TestRequest) -> Reply {
        let service = init_service(
            ActixApp::new()
                .wrap(from_fn(http::surround))
                .configure(|config| http::configure(self.app.server(), config)),
        )
        .await;
        let answer = call_service(&service, request.to_request()).await;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let body = answer
            .into_body()
            .try_into_bytes()
            .unwrap_or_default()
            .to_vec();
        Reply {
            status,
            headers,
            body,
        }
    }

    async fn get(&self, path: &str) -> Reply {
        self.send(TestRequest::get().uri(path)).await
    }

    async fn post(&self, path: &str, body: &Value) -> Reply {
        self.send(TestRequest::post().uri(path).set_json(body))
            .await
    }

    /// A body that is sent as it is.
    async fn post_raw(&self, path: &str, kind: Option<&str>, body: &'static str) -> Reply {
        let mut request = TestRequest::post().uri(path).set_payload(body);
        if let Some(kind) = kind {
            request = request.insert_header((header::CONTENT_TYPE, kind));
        }
        self.send(request).await
    }
}

const TXT2IMG: &str = "/sdapi/v1/txt2img";

#[actix_web::test]
async fn txt2img_answers_picture_echo_and_info() {
    let server = Fixture::new(&[]);
    let request =
        json!({"prompt": "a cube", "steps": 3.7, "width": 65, "height": "64", "cfg_scale": 7});
    let answer = server.post(TXT2IMG, &request).await;
    assert_eq!(answer.status, 200);
    let body = answer.json();
    assert_eq!(body["parameters"]["steps"], 3);
    assert_eq!(body["parameters"]["height"], 64);
    assert_eq!(body["parameters"]["sampler_index"], "Euler");
    assert_eq!(
        body["parameters"].as_object().map(serde_json::Map::len),
        Some(55)
    );
    let info: Value = serde_json::from_str(body["info"].as_str().expect("text")).expect("JSON");
    assert_eq!(info["width"], 65);
    assert_eq!(info["subseed_strength"].to_string(), "0");
    assert_eq!(info["cfg_scale"].to_string(), "7.0");
    let image = body["images"][0].as_str().expect("base64");
    let decoded = ancestral::imaging::decode_base64(image).expect("a picture");
    assert_eq!(decoded.picture.width(), 64);
    assert_eq!(
        decoded.metadata.infotext.as_deref(),
        Some("a cube\nSteps: 3")
    );
}

#[actix_web::test]
async fn overrides_last_for_one_request_unless_asked_otherwise() {
    let server = Fixture::new(&[]);
    let clip_skip = |answer: &Reply| -> Value {
        let body = answer.json();
        let info: Value = serde_json::from_str(body["info"].as_str().expect("text")).expect("JSON");
        info["clip_skip"].clone()
    };
    let mut request = json!({
        "width": 64, "height": 64,
        "override_settings": {
            "CLIP_stop_at_last_layers": 2.0,
            "no_such_option": 1,
            "sd_model_checkpoint": "no-such-model",
        },
    });
    let answer = server.post(TXT2IMG, &request).await;
    assert_eq!(clip_skip(&answer).to_string(), "2");
    let echo = &answer.json()["parameters"]["override_settings"];
    assert_eq!(echo, &request["override_settings"]);
    let options = server.get("/sdapi/v1/options").await.json();
    assert_eq!(options["CLIP_stop_at_last_layers"], 1);
    request["override_settings_restore_afterwards"] = json!(false);
    server.post(TXT2IMG, &request).await;
    let options = server.get("/sdapi/v1/options").await.json();
    assert_eq!(options["CLIP_stop_at_last_layers"], 2.0);
    assert_eq!(options["sd_model_checkpoint"], Value::Null);
}

#[actix_web::test]
async fn misfits_are_told_as_pydantic_tells_them() {
    let server = Fixture::new(&[]);
    let request = json!({"prompt": ["a"], "steps": "many", "styles": [["x"]], "send_images": null});
    let answer = server.post(TXT2IMG, &request).await;
    assert_eq!(answer.status, 422);
    assert_eq!(
        answer.json(),
        json!({"detail": [
            {"loc": ["body", "prompt"], "msg": "str type expected", "type": "type_error.str"},
            {"loc": ["body", "styles", 0], "msg": "str type expected", "type": "type_error.str"},
            {"loc": ["body", "steps"], "msg": "value is not a valid integer", "type": "type_error.integer"},
            {"loc": ["body", "send_images"], "msg": "none is not an allowed value", "type": "type_error.none.not_allowed"},
        ]})
    );
}

#[actix_web::test]
async fn ranges_of_extras_are_checked() {
    let server = Fixture::new(&[]);
    let request = json!({"resize_mode": 2, "gfpgan_visibility": 1.5, "upscaling_resize": 0});
    let answer = server.post("/sdapi/v1/extra-single-image", &request).await;
    let detail = &answer.json()["detail"];
    assert_eq!(detail[0]["ctx"], json!({"given": 2, "permitted": [0, 1]}));
    assert_eq!(detail[1]["type"], "value_error.number.not_le");
    assert_eq!(detail[2]["msg"], "ensure this value is greater than 0");
    let request = json!({"imageList": [{"data": "x"}]});
    let answer = server.post("/sdapi/v1/extra-batch-images", &request).await;
    assert_eq!(
        answer.json()["detail"][0]["loc"],
        json!(["body", "imageList", 0, "name"])
    );
}

#[actix_web::test]
async fn the_content_type_decides_whether_a_body_is_json() {
    let server = Fixture::new(&[]);
    let body = r#"{"width": 64, "height": 64}"#;
    for kind in [
        None,
        Some("application/json; charset=UTF-8"),
        Some("application/x+json"),
    ] {
        assert_eq!(
            server.post_raw(TXT2IMG, kind, body).await.status,
            200,
            "{kind:?}"
        );
    }
    let answer = server.post_raw(TXT2IMG, Some("text/plain"), body).await;
    assert_eq!(answer.status, 422);
    assert_eq!(
        answer.json()["detail"][0]["msg"],
        "value is not a valid dict"
    );
    let answer = server.post_raw(TXT2IMG, None, "").await;
    assert_eq!(answer.json()["detail"][0]["loc"], json!(["body"]));
    let answer = server.post_raw(TXT2IMG, None, "{not json").await;
    assert_eq!(answer.json()["detail"][0]["ctx"]["pos"], 1);
}

#[actix_web::test]
async fn scripts_that_are_missing_are_refused_and_idle_ones_accepted() {
    let server = Fixture::new(&[]);
    let refused = |answer: &Reply, name: &str| {
        assert_eq!(answer.status, 422);
        assert_eq!(
            answer.json()["detail"],
            format!("Script '{name}' not found")
        );
    };
    refused(
        &server.post(TXT2IMG, &json!({"script_name": "nope"})).await,
        "nope",
    );
    let request = json!({"alwayson_scripts": {"Nope": {"args": []}}});
    refused(&server.post(TXT2IMG, &request).await, "Nope");
    let request = json!({"alwayson_scripts": {"ControlNet": {"args": [{"enabled": true}]}}});
    refused(&server.post(TXT2IMG, &request).await, "ControlNet");
    for args in [
        json!([]),
        json!([false]),
        json!([{"enabled": false, "model": "x"}]),
    ] {
        let request = json!({
            "width": 64, "height": 64,
            "alwayson_scripts": {"controlnet": {"args": args}, "Seed": {}},
        });
        assert_eq!(server.post(TXT2IMG, &request).await.status, 200);
    }
}

#[actix_web::test]
async fn img2img_needs_a_picture_and_hides_it_in_the_echo() {
    let server = Fixture::new(&[]);
    let path = "/sdapi/v1/img2img";
    let answer = server.post(path, &json!({})).await;
    assert_eq!(
        (answer.status.as_u16(), &answer.json()["detail"]),
        (404, &json!("Init image not found"))
    );
    let answer = server.post(path, &json!({"init_images": ["%%%"]})).await;
    assert_eq!(
        answer.json(),
        json!({"error": "HTTPException", "detail": "Invalid encoded image", "body": "", "errors": ""})
    );
    let drawn = server
        .post(TXT2IMG, &json!({"width": 64, "height": 64}))
        .await
        .json();
    let image = format!(
        "data:image/jpeg;base64,{}",
        drawn["images"][0].as_str().expect("base64")
    );
    let mut request = json!({"init_images": [image], "width": 64, "height": 64, "mask": null});
    let answer = server.post(path, &request).await.json();
    assert!(answer["parameters"]["init_images"].is_null());
    request["include_init_images"] = json!(true);
    let answer = server.post(path, &request).await.json();
    assert!(answer["parameters"]["init_images"].is_array());
}

#[actix_web::test]
async fn a_job_that_panics_answers_and_the_next_one_runs() {
    let server = Fixture::new(&[]);
    let answer = server.post(TXT2IMG, &json!({"prompt": "panic"})).await;
    assert_eq!(
        (answer.status.as_u16(), &answer.json()["error"]),
        (500, &json!("RuntimeError"))
    );
    let answer = server
        .post(TXT2IMG, &json!({"width": 64, "height": 64}))
        .await;
    assert_eq!(answer.status, 200);
}

#[actix_web::test]
async fn requests_that_match_no_route_are_answered_as_fastapi_does() {
    let server = Fixture::new(&[]);
    let answer = server.get("/nope").await;
    assert_eq!(
        (answer.status.as_u16(), answer.json()),
        (404, json!({"detail": "Not Found"}))
    );
    assert_eq!(server.get("//sdapi/v1/samplers").await.status, 404);
    let answer = server.get(TXT2IMG).await;
    assert_eq!(
        (answer.status.as_u16(), answer.header("allow")),
        (405, Some("POST"))
    );
    let request = TestRequest::default()
        .method(Method::PUT)
        .uri("/sdapi/v1/options");
    assert_eq!(server.send(request).await.header("allow"), Some("GET"));
    let answer = server.get("/sdapi/v1/samplers/?a=b").await;
    assert_eq!(answer.status, 307);
    assert!(
        answer
            .header("location")
            .is_some_and(|to| to.ends_with("/sdapi/v1/samplers?a=b"))
    );
}

#[actix_web::test]
async fn large_answers_are_compressed_and_all_carry_their_time() {
    let server = Fixture::new(&[]);
    let gzip = |path| {
        TestRequest::get()
            .uri(path)
            .insert_header((header::ACCEPT_ENCODING, "gzip"))
    };
    let answer = server.send(gzip("/sdapi/v1/options")).await;
    assert_eq!(answer.header("content-encoding"), Some("gzip"));
    assert_eq!(answer.header("vary"), Some("Accept-Encoding"));
    let answer = server.send(gzip("/sdapi/v1/progress")).await;
    assert_eq!(answer.header("content-encoding"), None);
    assert!(answer.header("x-process-time").is_some());
}

#[actix_web::test]
async fn pages_of_other_origins_need_a_flag() {
    let preflight = || {
        TestRequest::default()
            .method(Method::OPTIONS)
            .uri(TXT2IMG)
            .insert_header((header::ORIGIN, "http://example.com"))
            .insert_header((header::ACCESS_CONTROL_REQUEST_METHOD, "POST"))
            .insert_header((header::ACCESS_CONTROL_REQUEST_HEADERS, "content-type"))
    };
    let closed = Fixture::new(&[]);
    let answer = closed.send(preflight()).await;
    assert_eq!(
        (answer.status.as_u16(), answer.body.as_slice()),
        (400, &b"Disallowed CORS origin"[..])
    );
    let open = Fixture::new(&[
        "--cors-allow-origins",
        "http://example.com",
        "--api-auth",
        "a:b",
    ]);
    let answer = open.send(preflight()).await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.header("access-control-allow-origin"),
        Some("http://example.com")
    );
    let request = TestRequest::get()
        .uri("/nope")
        .insert_header((header::ORIGIN, "http://example.com"));
    let answer = open.send(request).await;
    assert_eq!(
        answer.header("access-control-allow-origin"),
        Some("http://example.com")
    );
    assert_eq!(answer.header("vary"), Some("Origin"));
}

#[actix_web::test]
async fn an_idle_server_says_so() {
    let server = Fixture::new(&[]);
    let answer = server.get("/sdapi/v1/progress").await.json();
    assert_eq!(answer["progress"], 0.0);
    assert_eq!(answer["state"]["job_timestamp"], "0");
    assert_eq!(answer["current_image"], Value::Null);
    let answer = server
        .get("/sdapi/v1/progress?skip_current_image=maybe")
        .await;
    assert_eq!(
        answer.json()["detail"][0]["loc"],
        json!(["query", "skip_current_image"])
    );
    let interrupt = server.post_raw("/sdapi/v1/interrupt", None, "").await;
    assert_eq!(interrupt.body, b"{}");
    let skip = server.post_raw("/sdapi/v1/skip", None, "\"\"").await;
    assert_eq!(skip.body, b"null");
}

#[actix_web::test]
async fn server_control_needs_its_flag() {
    let closed = Fixture::new(&[]);
    assert_eq!(
        closed
            .post("/sdapi/v1/server-stop", &json!({}))
            .await
            .status,
        404
    );
    let open = Fixture::new(&["--api-server-stop"]);
    assert_eq!(
        open.post("/sdapi/v1/server-restart", &json!({}))
            .await
            .status,
        501
    );
    assert_eq!(
        open.post("/sdapi/v1/server-stop", &json!({})).await.body,
        b"Stopping."
    );
}

#[actix_web::test]
async fn the_page_and_its_routes_go_away_with_nowebui() {
    let page = Fixture::new(&[]);
    assert_eq!(page.get("/internal/ping").await.body, b"{}");
    assert_eq!(page.get("/").await.status, 200);
    let api = Fixture::new(&["--nowebui"]);
    assert_eq!(api.get("/internal/ping").await.status, 404);
    assert_eq!(api.get("/").await.status, 404);
    assert_eq!(api.get("/sdapi/v1/samplers").await.status, 200);
}

#[actix_web::test]
async fn every_documented_operation_exists() {
    let server = Fixture::new(&["--api-server-stop"]);
    let document = server.get("/openapi.json").await.json();
    let paths = document["paths"].as_object().expect("paths");
    let known = paths
        .keys()
        .filter(|path| path.starts_with("/sdapi/"))
        .count();
    assert_eq!(known, 40, "41 operations, of which options has two");
    for path in paths.keys() {
        let request = TestRequest::default().method(Method::PATCH).uri(path);
        assert_eq!(server.send(request).await.status, 405, "{path}");
    }
    let reference = "#/components/schemas/StableDiffusionProcessingTxt2Img";
    let schema = &paths[TXT2IMG]["post"]["requestBody"]["content"]["application/json"]["schema"];
    assert_eq!(schema["$ref"], reference);
}

#[actix_web::test]
async fn hints_are_a1111s_settings_in_its_order() {
    let recorded = include_str!("../compat-tests/golden/cases/internal-quicksettings-hint.json");
    let recorded: Value = serde_json::from_str(recorded).expect("JSON");
    let names = |hints: &Value| -> Vec<String> {
        let hints = hints.as_array().expect("a list").iter();
        hints
            .filter_map(|hint| hint["name"].as_str().map(str::to_owned))
            .collect()
    };
    let mut want = names(&recorded["response"]);
    // There are no callbacks here whose priority could be set.
    want.retain(|name| !name.starts_with("prioritized_callbacks_"));
    let server = Fixture::new(&[]);
    let hints = server.get("/internal/quicksettings-hint").await.json();
    assert_eq!(names(&hints), want);
}
