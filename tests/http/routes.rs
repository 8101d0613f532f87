//! Route by route and field by field: methods, slashes, bodies, content types, coercions, pictures as text.

use actix_web::http::{Method, header};
use actix_web::test::TestRequest;
use serde_json::{Map, Value, json};

use super::{Fixture, TXT2IMG};

const IMG2IMG: &str = "/sdapi/v1/img2img";

fn png() -> String {
    use base64::Engine as _;
    let mut bytes = std::io::Cursor::new(Vec::new());
    image::RgbImage::new(8, 8)
        .write_to(&mut bytes, image::ImageFormat::Png)
        .expect("encoded");
    base64::engine::general_purpose::STANDARD.encode(bytes.into_inner())
}

/// Method and path of every operation under `/sdapi`.
async fn operations(server: &Fixture) -> Vec<(String, String)> {
    let document = server.get("/openapi.json").await.json();
    let paths = document["paths"].as_object().expect("paths").clone();
    let mut operations = Vec::new();
    for (path, methods) in paths.iter().filter(|(path, _)| path.starts_with("/sdapi")) {
        for method in methods.as_object().expect("methods").keys() {
            operations.push((method.to_uppercase(), path.clone()));
        }
    }
    assert_eq!(operations.len(), 41);
    operations
}

fn request(method: &str, path: &str) -> TestRequest {
    let method = Method::from_bytes(method.as_bytes()).expect("a method");
    TestRequest::default().method(method).uri(path)
}

#[actix_web::test]
async fn other_methods_are_refused_and_slashes_lead_back() {
    let server = Fixture::new(&["--api-server-stop"]);
    for (method, path) in operations(&server).await {
        for wrong in ["HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"] {
            let answer = server.send(request(wrong, &path)).await;
            assert_eq!(answer.status, 405, "{wrong} {path}");
            assert!(answer.header("allow").is_some(), "{wrong} {path}");
        }
        for (slashed, target) in [
            (format!("{path}/"), path.clone()),
            (format!("{path}/?a=b&c"), format!("{path}?a=b&c")),
        ] {
            let answer = server.send(request(&method, &slashed)).await;
            assert_eq!(answer.status, 307, "{method} {slashed}");
            let location = answer.header("location").expect("a location");
            assert!(location.starts_with("http://"), "{location}");
            assert!(location.ends_with(&target), "{location}");
        }
    }
}

#[actix_web::test]
async fn routes_that_read_no_body_take_any() {
    let server = Fixture::new(&[]);
    for (path, want) in [
        ("interrupt", "{}"),
        ("skip", "null"),
        ("refresh-checkpoints", "null"),
        ("refresh-vae", "null"),
        ("refresh-embeddings", "null"),
        ("refresh-loras", "null"),
        ("unload-checkpoint", "{}"),
        ("reload-checkpoint", "{}"),
    ] {
        let path = format!("/sdapi/v1/{path}");
        for kind in [None, Some("application/json"), Some("text/plain")] {
            for body in ["", "\"\"", "{}", "{\"a\": [1]}", "no json", "null"] {
                let answer = server.post_raw(&path, kind, body).await;
                assert_eq!(answer.status, 200, "{path} {kind:?} {body}");
                assert_eq!(answer.body, want.as_bytes(), "{path} {kind:?} {body}");
                assert_eq!(answer.header("content-type"), Some("application/json"));
            }
        }
    }
}

#[actix_web::test]
async fn routes_that_read_a_body_read_json_alone() {
    let server = Fixture::new(&[]);
    for path in [
        "txt2img",
        "img2img",
        "extra-single-image",
        "extra-batch-images",
        "png-info",
        "interrogate",
        "options",
    ] {
        let path = format!("/sdapi/v1/{path}");
        let first = |answer: &Value| answer["detail"][0].clone();
        for (kind, body, loc, msg) in [
            (
                Some("application/json"),
                "",
                json!(["body"]),
                "field required",
            ),
            (None, "null", json!(["body"]), "field required"),
            (
                None,
                "\"text\"",
                json!(["body"]),
                "value is not a valid dict",
            ),
            (None, "5", json!(["body"]), "value is not a valid dict"),
            (
                Some("text/plain"),
                "{}",
                json!(["body"]),
                "value is not a valid dict",
            ),
            (
                Some("application/x-www-form-urlencoded"),
                "a=b",
                json!(["body"]),
                "value is not a valid dict",
            ),
            (
                None,
                "{\"a\":}",
                json!(["body", 5]),
                "Expecting value: line 1 column 6 (char 5)",
            ),
        ] {
            let answer = server.post_raw(&path, kind, body).await;
            assert_eq!(answer.status, 422, "{path} {kind:?} {body}");
            let told = first(&answer.json());
            assert_eq!(
                (&told["loc"], &told["msg"]),
                (&loc, &json!(msg)),
                "{path} {body}"
            );
        }
        for kind in [
            None,
            Some("application/json"),
            Some("application/json; charset=UTF-8"),
            Some("application/merge-patch+json"),
        ] {
            let answer = server.post_raw(&path, kind, "{}").await;
            let told = first(&answer.json());
            assert_ne!(told["loc"], json!(["body"]), "{path} {kind:?}: {told}");
        }
    }
}

/// What a field of one type takes: sent, and how `parameters` shows it.
fn taken(kind: &str) -> Vec<(Value, Value)> {
    match kind {
        "integer" => vec![
            (json!(8), json!(8)),
            (json!(8.9), json!(8)),
            (json!("8"), json!(8)),
            (json!(" 8 "), json!(8)),
        ],
        "number" => vec![
            (json!(0.5), json!(0.5)),
            (json!("0.5"), json!(0.5)),
            (json!(1), json!(1.0)),
            (json!(true), json!(1.0)),
        ],
        "boolean" => {
            let yes = [
                json!(true),
                json!("on"),
                json!("YES"),
                json!(1),
                json!("t"),
                json!(1.0),
            ];
            let no = [
                json!(false),
                json!("off"),
                json!("No"),
                json!(0),
                json!("f"),
                json!("0"),
            ];
            let yes = yes.into_iter().map(|sent| (sent, json!(true)));
            yes.chain(no.into_iter().map(|sent| (sent, json!(false))))
                .collect()
        }
        "string" => vec![
            (json!(5), json!("5")),
            (json!(1.5), json!("1.5")),
            (json!(true), json!("True")),
        ],
        "array" => vec![(json!([]), json!([]))],
        _ => vec![(json!({}), json!({})), (json!([]), json!({}))],
    }
}

/// What a field of one type refuses, and pydantic's words for it.
fn refused(kind: &str) -> (Vec<Value>, &'static str) {
    match kind {
        "integer" => (
            vec![json!("8.5"), json!("many"), json!(""), json!([]), json!({})],
            "value is not a valid integer",
        ),
        "number" => (
            vec![json!("many"), json!(""), json!([]), json!({})],
            "value is not a valid float",
        ),
        "boolean" => (
            vec![json!("maybe"), json!(""), json!(2), json!([]), json!({})],
            "value could not be parsed to a boolean",
        ),
        "string" => (
            vec![json!([]), json!({}), json!(["x"])],
            "str type expected",
        ),
        "array" => (
            vec![json!("x"), json!(5), json!(true)],
            "value is not a valid list",
        ),
        _ => (
            vec![json!("x"), json!(5), json!([1])],
            "value is not a valid dict",
        ),
    }
}

/// The request schema of an operation: field by field, its type and whether null is allowed.
async fn fields(server: &Fixture, name: &str) -> Vec<(String, String, bool)> {
    let document = server.get("/openapi.json").await.json();
    let schema = &document["components"]["schemas"][name]["properties"];
    let describe = |(field, schema): (&String, &Value)| {
        let kind = schema["type"].as_str().unwrap_or_default().to_owned();
        (field.clone(), kind, schema["nullable"] == true)
    };
    schema
        .as_object()
        .expect("properties")
        .iter()
        .map(describe)
        .collect()
}

/// Fields whose value means something that a made-up one does not have.
const NAMES: &[&str] = &[
    "alwayson_scripts",
    "firstpass_image",
    "force_task_id",
    "hr_checkpoint_name",
    "hr_upscaler",
    "infotext",
    "init_images",
    "latent_mask",
    "mask",
    "override_settings",
    "refiner_checkpoint",
    "sampler_index",
    "script_name",
];

async fn check_every_field(path: &str, schema: &str, base: Map<String, Value>) {
    let server = Fixture::new(&[]);
    for (field, kind, nullable) in fields(&server, schema).await {
        let with = |value: &Value| {
            let mut body = base.clone();
            body.insert(field.clone(), value.clone());
            Value::Object(body)
        };
        let (wrong, words) = refused(&kind);
        for value in wrong {
            let answer = server.post(path, &with(&value)).await;
            assert_eq!(answer.status, 422, "{field}: {value}");
            let told = &answer.json()["detail"][0];
            assert_eq!(told["loc"], json!(["body", field]), "{field}: {value}");
            assert_eq!(told["msg"], words, "{field}: {value}");
        }
        if !nullable {
            let answer = server.post(path, &with(&Value::Null)).await;
            assert_eq!(answer.status, 422, "{field}: null");
            let told = &answer.json()["detail"][0];
            assert_eq!(told["msg"], "none is not an allowed value", "{field}");
        }
        if NAMES.contains(&field.as_str()) {
            continue;
        }
        for (sent, shown) in taken(&kind) {
            let answer = server.post(path, &with(&sent)).await;
            assert_eq!(answer.status, 200, "{field}: {sent}: {}", answer.json());
            assert_eq!(
                answer.json()["parameters"][&field],
                shown,
                "{field}: {sent}"
            );
        }
    }
}

#[actix_web::test]
async fn every_field_of_txt2img_is_taken_and_refused_as_pydantic_does() {
    check_every_field(
        TXT2IMG,
        "StableDiffusionProcessingTxt2Img",
        json!({"steps": 1, "width": 64, "height": 64, "denoising_strength": 0.5})
            .as_object()
            .expect("an object")
            .clone(),
    )
    .await;
}

#[actix_web::test]
async fn every_field_of_img2img_is_taken_and_refused_as_pydantic_does() {
    check_every_field(
        IMG2IMG,
        "StableDiffusionProcessingImg2Img",
        json!({"init_images": [png()], "steps": 1, "width": 64, "height": 64})
            .as_object()
            .expect("an object")
            .clone(),
    )
    .await;
}

#[actix_web::test]
async fn null_is_taken_where_clients_send_it() {
    let server = Fixture::new(&[]);
    // The list of clients.md; null for a prompt, a size or a count is a TypeError in A1111 as well.
    let needed = [
        "prompt",
        "negative_prompt",
        "seed_resize_from_h",
        "seed_resize_from_w",
        "subseed_strength",
        "batch_size",
        "n_iter",
        "steps",
        "cfg_scale",
        "width",
        "height",
    ];
    for (field, _, nullable) in fields(&server, "StableDiffusionProcessingTxt2Img").await {
        if !nullable {
            continue;
        }
        let mut body = json!({"steps": 1, "width": 64, "height": 64});
        body[&field] = Value::Null;
        let answer = server.post(TXT2IMG, &body).await;
        if answer.status == 200 {
            assert_eq!(answer.json()["parameters"][&field], Value::Null, "{field}");
        } else {
            assert!(
                needed.contains(&field.as_str()),
                "{field}: {}",
                answer.json()
            );
            assert_eq!(answer.json()["error"], "TypeError", "{field}");
        }
    }
}

#[actix_web::test]
async fn pictures_come_as_base64_or_data_urls_and_nothing_else() {
    let server = Fixture::new(&[]);
    let png = png();
    let broken = format!("{}\n  {}", &png[..20], &png[20..]);
    let addresses = "Request to local resource not allowed";
    for (text, why) in [
        (png.clone(), None),
        (broken, None),
        (format!("data:image/png;base64,{png}"), None),
        (format!("data:image/jpeg;base64,{png}"), None),
        (
            format!("data:application/octet-stream;base64,{png}"),
            Some("Invalid encoded image"),
        ),
        (
            png[..png.len() / 2].to_owned(),
            Some("Invalid encoded image"),
        ),
        ("bm8gcGljdHVyZQ==".to_owned(), Some("Invalid encoded image")),
        ("???".to_owned(), Some("Invalid encoded image")),
        (
            "data:image/png;base64".to_owned(),
            Some("Invalid encoded image"),
        ),
        ("http://127.0.0.1/a.png".to_owned(), Some(addresses)),
        ("https://example.com/a.png".to_owned(), Some(addresses)),
    ] {
        for (path, body) in [
            (
                IMG2IMG,
                json!({"init_images": [text], "steps": 1, "width": 64, "height": 64}),
            ),
            ("/sdapi/v1/png-info", json!({"image": text})),
            ("/sdapi/v1/extra-single-image", json!({"image": text})),
        ] {
            let answer = server.post(path, &body).await;
            let start: String = text.chars().take(40).collect();
            let (status, told) = (answer.status.as_u16(), answer.json());
            match why {
                None => assert_eq!(status, 200, "{path} {start}: {told}"),
                Some(why) => assert_eq!(
                    (status, &told["detail"]),
                    (500, &json!(why)),
                    "{path} {start}"
                ),
            }
        }
    }
}

#[actix_web::test]
async fn an_open_server_takes_any_login() {
    let server = Fixture::new(&[]);
    for login in [
        "",
        "Basic",
        "Basic ",
        "Basic Og==",
        "Basic ???",
        "Bearer abc",
    ] {
        let request = TestRequest::get()
            .uri("/sdapi/v1/samplers?unknown=1")
            .insert_header((header::AUTHORIZATION, login));
        assert_eq!(server.send(request).await.status, 200, "{login:?}");
    }
}
