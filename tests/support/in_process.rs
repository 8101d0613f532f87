//! The whole app in process over the toy engine, with a temporary data folder.

#![allow(
    dead_code,
    reason = "every test crate that includes this module uses its own part of it"
)]

use std::path::Path;
use std::sync::Arc;

use actix_web::App as ActixApp;
use actix_web::body::MessageBody;
use actix_web::http::StatusCode;
use actix_web::http::header::HeaderMap;
use actix_web::middleware::from_fn;
use actix_web::test::{TestRequest, call_service, init_service};
use ancestral::app::App;
use ancestral::catalogue::{Catalogue, CatalogueConfig};
use ancestral::config::Config;
use ancestral::http;
use ancestral::jobs::Engine;
use serde_json::{Value, json};

use crate::toy_models::ToyEngine;

/// An answer: status, headers, body.
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|_| panic!("no JSON: {}", String::from_utf8_lossy(&self.body)))
    }

    /// The `info` of a generation.
    pub(crate) fn info(&self) -> Value {
        let body = self.json();
        let text = body["info"].as_str().unwrap_or_else(|| panic!("{body}"));
        serde_json::from_str(text).expect("info is JSON")
    }

    /// The pictures' bytes.
    pub(crate) fn images(&self) -> Vec<Vec<u8>> {
        let body = self.json();
        let images = body["images"]
            .as_array()
            .unwrap_or_else(|| panic!("{body}"));
        images
            .iter()
            .map(|image| ancestral::imaging::base64_decode_lenient(image.as_str().unwrap_or("")))
            .map(|bytes| bytes.expect("base64"))
            .collect()
    }
}

/// A server over a data folder of its own.
pub(crate) struct InProcess {
    pub(crate) app: App,
    pub(crate) data: tempfile::TempDir,
}

impl InProcess {
    pub(crate) fn new(flags: &[&str]) -> Self {
        Self::over(tempfile::tempdir().expect("a temporary folder"), flags)
    }

    /// Starts over a data folder that is there already.
    pub(crate) fn over(data: tempfile::TempDir, flags: &[&str]) -> Self {
        Self::with_engine(data, flags, Arc::new(ToyEngine))
    }

    /// Starts with an engine of the test's own.
    pub(crate) fn with_engine(
        data: tempfile::TempDir,
        flags: &[&str],
        engine: Arc<dyn Engine>,
    ) -> Self {
        let path = data.path().display().to_string();
        let mut all = vec!["--data-dir", path.as_str()];
        all.extend(flags);
        let config = Config::from_arguments(&all).expect("the flags are accepted");
        let catalogue = Arc::new(Catalogue::new(CatalogueConfig {
            models_dir: config.folders.models.clone(),
            ..CatalogueConfig::default()
        }));
        let app = App::with_engine(config, engine, catalogue).expect("builds");
        Self { app, data }
    }

    pub(crate) async fn send(&self, request: TestRequest) -> Reply {
        let service = init_service(
            ActixApp::new()
                .wrap(from_fn(http::surround))
                .configure(|config| http::configure(self.app.server(), config)),
        )
        .await;
        let answer = call_service(&service, request.to_request()).await;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let body = answer.into_body().try_into_bytes().unwrap_or_default();
        Reply {
            status,
            headers,
            body: body.to_vec(),
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.send(TestRequest::get().uri(path)).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Reply {
        self.send(TestRequest::post().uri(path).set_json(body))
            .await
    }

    /// `POST options`, which must be accepted.
    pub(crate) async fn set(&self, options: &Value) {
        let reply = self.post("/sdapi/v1/options", options).await;
        assert_eq!(reply.status, 200, "{options}");
    }

    /// A small picture with `changes` to the request.
    pub(crate) async fn txt2img(&self, changes: &Value) -> Reply {
        self.generate("/sdapi/v1/txt2img", changes).await
    }

    /// As [`Self::txt2img`], from a picture of two colours.
    pub(crate) async fn img2img(&self, changes: &Value) -> Reply {
        let mut all = json!({"init_images": [picture(64, 64)], "denoising_strength": 0.6});
        merge(&mut all, changes);
        self.generate("/sdapi/v1/img2img", &all).await
    }

    async fn generate(&self, path: &str, changes: &Value) -> Reply {
        let mut request = json!({
            "prompt": "a castle, on a hill", "negative_prompt": "lowres", "seed": 1234,
            "steps": 3, "width": 64, "height": 64,
        });
        merge(&mut request, changes);
        self.post(path, &request).await
    }

    /// Every file below a folder of the data folder, relative to it, sorted.
    pub(crate) fn files(&self, folder: &str) -> Vec<String> {
        let mut files = Vec::new();
        let root = self.data.path().join(folder);
        collect(&root, &root, &mut files);
        files.sort();
        files
    }
}

fn collect(root: &Path, folder: &Path, files: &mut Vec<String>) {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return;
    };
    for entry in entries.filter_map(Result::ok) {
        let path = entry.path();
        if path.is_dir() {
            collect(root, &path, files);
        } else if let Ok(inside) = path.strip_prefix(root) {
            files.push(inside.display().to_string().replace('\\', "/"));
        }
    }
}

fn merge(request: &mut Value, changes: &Value) {
    for (key, value) in changes.as_object().expect("an object") {
        request[key] = value.clone();
    }
}

/// A picture as base64: a light square on a dark ground, so that it is a mask too.
pub(crate) fn picture(width: u32, height: u32) -> String {
    use base64::Engine as _;
    let inside = |x, y| x > width / 4 && x < width / 2 && y > height / 4 && y < height / 2;
    let picture = image::RgbImage::from_fn(width, height, |x, y| {
        image::Rgb(if inside(x, y) { [255; 3] } else { [0; 3] })
    });
    let png = ancestral::imaging::encode_png(&picture.into(), &[]).expect("encodes");
    base64::engine::general_purpose::STANDARD.encode(png)
}
