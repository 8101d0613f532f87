//! What keeps the server standing: limits with clear errors, names, keys, guessers.

use std::net::SocketAddr;

use actix_web::http::{StatusCode, header};
use actix_web::test::TestRequest;
use serde_json::{Value, json};

use super::{Fixture, Reply, TXT2IMG};

fn detail(reply: &Reply) -> String {
    reply.json()["detail"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

#[actix_web::test]
async fn every_limit_is_told_with_the_flag_that_changes_it() {
    let fixture = Fixture::new(&[
        "--max-megapixels",
        "1",
        "--max-steps",
        "50",
        "--max-pictures",
        "4",
        "--max-prompt-length",
        "10",
    ]);
    let cases: [(Value, &str); 11] = [
        (
            json!({"seed_resize_from_w": 4096, "seed_resize_from_h": 4096}),
            "--max-megapixels",
        ),
        (
            json!({"enable_hr": true, "firstphase_width": 4096, "firstphase_height": 4096}),
            "--max-megapixels",
        ),
        (json!({"width": 1024, "height": 1024}), "--max-megapixels"),
        (
            json!({"width": 512, "height": 512, "enable_hr": true, "hr_scale": 4}),
            "--max-megapixels",
        ),
        (
            json!({"enable_hr": true, "hr_resize_x": 4096}),
            "--max-megapixels",
        ),
        // Enlarged to 4096x4096, of which a strip is kept.
        (
            json!({"enable_hr": true, "hr_resize_x": 4096, "hr_resize_y": 8}),
            "--max-megapixels",
        ),
        (
            json!({"enable_hr": true, "hr_resize_y": i64::MAX}),
            "--max-megapixels",
        ),
        (json!({"steps": 51}), "--max-steps"),
        (json!({"batch_size": 2, "n_iter": 3}), "--max-pictures"),
        (json!({"prompt": "eleven char"}), "--max-prompt-length"),
        (
            json!({"negative_prompt": "eleven char"}),
            "--max-prompt-length",
        ),
    ];
    for (body, flag) in cases {
        for path in [TXT2IMG, "/v1/jobs/txt2img"] {
            let refused = fixture.post(path, &body).await;
            assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{body}");
            assert!(
                detail(&refused).contains(flag),
                "{body}: {}",
                refused.json()
            );
        }
    }
    let within = json!({"width": 512, "height": 512, "steps": 50, "prompt": "ten chars."});
    assert_eq!(fixture.post(TXT2IMG, &within).await.status, StatusCode::OK);
    // The last one is cut to a small picture, after it was large.
    for (width, height) in [(4096, 4096), (1, 4096)] {
        let large = json!({"image": grey_png(64, 64), "upscaling_resize": 8, "resize_mode": 1,
            "upscaling_resize_w": width, "upscaling_resize_h": height});
        let refused = fixture.post("/sdapi/v1/extra-single-image", &large).await;
        assert!(
            detail(&refused).contains("--max-megapixels"),
            "{}",
            refused.json()
        );
    }
}

#[actix_web::test]
async fn a_blur_that_would_take_for_ever_is_refused() {
    let fixture = Fixture::new(&[]);
    let picture = grey_png(64, 64);
    let body = json!({"init_images": [picture], "mask": picture, "mask_blur": 100_000_000});
    let refused = fixture.post("/sdapi/v1/img2img", &body).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    assert!(detail(&refused).contains("mask_blur is 100000000"));
}

#[actix_web::test]
async fn pictures_are_measured_before_they_are_unpacked() {
    let fixture = Fixture::new(&["--max-input-megapixels", "1"]);
    let refused = fixture
        .post(
            "/sdapi/v1/png-info",
            &json!({"image": grey_png(1100, 1000)}),
        )
        .await;
    assert_eq!(refused.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(detail(&refused), "Invalid encoded image");
    let taken = fixture
        .post("/sdapi/v1/png-info", &json!({"image": grey_png(900, 1000)}))
        .await;
    assert_eq!(taken.status, StatusCode::OK);
}

fn grey_png(width: u32, height: u32) -> String {
    use base64::Engine as _;
    let mut bytes = std::io::Cursor::new(Vec::new());
    image::GrayImage::new(width, height)
        .write_to(&mut bytes, image::ImageFormat::Png)
        .expect("encoded");
    base64::engine::general_purpose::STANDARD.encode(bytes.into_inner())
}

#[actix_web::test]
async fn large_and_deep_bodies_are_refused() {
    let fixture = Fixture::new(&["--max-body-size", "1"]);
    let large = "x".repeat((1 << 20) + 1);
    let refused = fixture.post(TXT2IMG, &json!({ "prompt": large })).await;
    assert_eq!(refused.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(detail(&refused).contains("--max-body-size"));
    let deep = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
    for path in [
        TXT2IMG,
        "/sdapi/v1/options",
        "/v1/jobs/txt2img",
        "/internal/progress",
    ] {
        let request = TestRequest::post()
            .uri(path)
            .insert_header((header::CONTENT_TYPE, "application/json"))
            .set_payload(deep.clone());
        let refused = fixture.send(request).await;
        assert!(
            refused.status.is_client_error(),
            "{path}: {}",
            refused.status
        );
    }
}

#[actix_web::test]
async fn a_foreign_name_of_the_loopback_interface_is_refused() {
    let fixture = Fixture::new(&[]);
    let ask = |host: &'static str| {
        TestRequest::get()
            .uri("/sdapi/v1/samplers")
            .insert_header((header::HOST, host))
    };
    assert_eq!(
        fixture.send(ask("localhost:7860")).await.status,
        StatusCode::OK
    );
    let refused = fixture.send(ask("rebound.example.org")).await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
    assert!(detail(&refused).contains("--allow-hosts"));
    let named = Fixture::new(&["--allow-hosts", "rebound.example.org"]);
    assert_eq!(
        named.send(ask("rebound.example.org")).await.status,
        StatusCode::OK
    );
    let open = Fixture::new(&["--listen"]);
    assert_eq!(
        open.send(ask("rebound.example.org")).await.status,
        StatusCode::OK
    );
}

#[actix_web::test]
async fn api_keys_open_the_door_and_have_limits_of_their_own() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "bot key-of-bot 0\nshop key-of-shop\n").expect("written");
    let path = file.path().display().to_string();
    let fixture = Fixture::new(&["--api-keys", &path]);
    let with = |name: &'static str, value: &'static str| {
        TestRequest::post()
            .uri(TXT2IMG)
            .insert_header((name, value))
            .set_json(json!({"prompt": "a"}))
    };
    assert_eq!(
        fixture.post(TXT2IMG, &json!({})).await.status,
        StatusCode::UNAUTHORIZED
    );
    for request in [
        with("x-api-key", "key-of-shop"),
        with("authorization", "Bearer key-of-shop"),
    ] {
        assert_eq!(fixture.send(request).await.status, StatusCode::OK);
    }
    assert_eq!(
        fixture.send(with("x-api-key", "no")).await.status,
        StatusCode::UNAUTHORIZED
    );
    let full = fixture.send(with("x-api-key", "key-of-bot")).await;
    assert_eq!(full.status, StatusCode::SERVICE_UNAVAILABLE);
}

#[actix_web::test]
async fn a_guesser_is_slowed_down_and_nobody_else() {
    let fixture = Fixture::new(&["--api-auth", "user:pass"]);
    let from = |address: &str, login: &'static str| {
        TestRequest::get()
            .uri("/sdapi/v1/samplers")
            .peer_addr(address.parse::<SocketAddr>().expect("an address"))
            .insert_header((header::AUTHORIZATION, login))
    };
    // `user:nope` and `user:pass` in base64.
    let (wrong, right) = ("Basic dXNlcjpub3Bl", "Basic dXNlcjpwYXNz");
    for _ in 0..10 {
        let refused = fixture.send(from("192.0.2.1:9", wrong)).await;
        assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    }
    for login in [wrong, right] {
        let refused = fixture.send(from("192.0.2.1:9", login)).await;
        assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
        assert!(refused.header("retry-after").is_some());
    }
    assert_eq!(
        fixture.send(from("192.0.2.2:9", right)).await.status,
        StatusCode::OK
    );
}

#[actix_web::test]
async fn secrets_are_not_echoed() {
    let fixture = Fixture::new(&["--api-auth", "user:s3cret", "--skip-load-model-at-start"]);
    for path in [
        "/sdapi/v1/cmd-flags",
        "/internal/sysinfo",
        "/sdapi/v1/options",
        "/metrics",
    ] {
        let request = TestRequest::get()
            .uri(path)
            // `user:s3cret` in base64.
            .insert_header((header::AUTHORIZATION, "Basic dXNlcjpzM2NyZXQ="));
        let reply = fixture.send(request).await;
        assert_eq!(reply.status, StatusCode::OK, "{path}");
        assert!(
            !String::from_utf8_lossy(&reply.body).contains("s3cret"),
            "{path}"
        );
    }
}

#[actix_web::test]
async fn credentials_are_never_offered_to_a_reflected_origin() {
    let fixture = Fixture::new(&["--cors-allow-origins", "*"]);
    for cookie in [None, Some("a=b")] {
        let mut request = TestRequest::get()
            .uri("/sdapi/v1/samplers")
            .insert_header((header::ORIGIN, "https://evil.test"));
        if let Some(cookie) = cookie {
            request = request.insert_header((header::COOKIE, cookie));
        }
        let reply = fixture.send(request).await;
        assert_eq!(reply.header("access-control-allow-origin"), Some("*"));
    }
}
