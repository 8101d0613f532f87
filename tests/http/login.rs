//! The login of `--api-auth`: over every route, however the path is written, and over nothing else.

use actix_web::http::{Method, header};
use actix_web::test::TestRequest;
use serde_json::json;

use super::Fixture;

const FLAGS: &[&str] = &["--api-auth", "user:pass", "--api-server-stop"];
/// `user:pass`.
const RIGHT: &str = "Basic dXNlcjpwYXNz";

/// The routes that `/openapi.json` leaves out.
const UNDOCUMENTED: &[(&str, &str)] = &[
    ("GET", "/openapi.json"),
    ("GET", "/docs"),
    ("GET", "/redoc"),
    ("GET", "/"),
    ("HEAD", "/"),
    ("GET", "/app_id"),
    ("GET", "/user"),
    ("GET", "/token"),
    ("GET", "/login_check"),
    ("GET", "/queue/status"),
    ("GET", "/startup-events"),
    ("GET", "/theme.css"),
    ("GET", "/robots.txt"),
    ("GET", "/favicon.ico"),
    ("GET", "/file=config.json"),
    ("GET", "/internal/sysinfo"),
    ("GET", "/internal/sysinfo-download"),
    ("GET", "/internal/profile-startup"),
    ("GET", "/internal/pending-tasks"),
    ("POST", "/internal/progress"),
    ("GET", "/sd_extra_networks/thumb"),
    ("GET", "/v1/jobs"),
    ("POST", "/v1/jobs/txt2img"),
    ("GET", "/v1/jobs/some-id"),
    ("DELETE", "/v1/jobs/some-id"),
    ("GET", "/v1/jobs/some-id/result"),
    ("GET", "/v1/jobs/some-id/events"),
    ("GET", "/metrics"),
];

fn request(method: &str, path: &str, login: Option<&str>) -> TestRequest {
    let method = Method::from_bytes(method.as_bytes()).expect("a method");
    let request = TestRequest::default().method(method).uri(path);
    match login {
        Some(login) => request.insert_header((header::AUTHORIZATION, login)),
        None => request,
    }
}

/// The path with one letter percent-encoded; to a router it is the same path.
fn encoded(path: &str) -> Option<String> {
    let at = path.rfind(|letter: char| letter.is_ascii_alphabetic())?;
    let letter = path.as_bytes()[at];
    Some(format!("{}%{letter:02x}{}", &path[..at], &path[at + 1..]))
}

async fn every_route(server: &Fixture) -> Vec<(String, String)> {
    let document = server.send(request("GET", "/openapi.json", Some(RIGHT)));
    let document = document.await.json();
    let mut routes: Vec<(String, String)> = UNDOCUMENTED
        .iter()
        .map(|(method, path)| ((*method).to_owned(), (*path).to_owned()))
        .collect();
    for (path, operations) in document["paths"].as_object().expect("paths") {
        for method in operations.as_object().expect("operations").keys() {
            routes.push((method.to_uppercase(), path.clone()));
        }
    }
    routes
}

#[actix_web::test]
async fn no_route_runs_without_it_however_its_path_is_written() {
    let server = Fixture::new(FLAGS);
    let routes = every_route(&server).await;
    assert!(routes.len() > 70, "{} routes", routes.len());
    for (method, path) in &routes {
        let mut spellings = vec![path.clone(), format!("{path}?a=b"), format!("{path}?")];
        spellings.extend(encoded(path));
        for spelling in spellings {
            for login in [None, Some(""), Some("Basic Og=="), Some("Bearer abc")] {
                let answer = server.send(request(method, &spelling, login)).await;
                assert_eq!(answer.status, 401, "{method} {spelling} {login:?}");
                assert_eq!(answer.header("www-authenticate"), None);
            }
        }
    }
}

#[actix_web::test]
async fn detours_lead_nowhere() {
    let server = Fixture::new(FLAGS);
    for (method, path, status) in [
        ("GET", "/sdapi/v1/samplers/", 307),
        ("GET", "/sdapi/v1/s%61mplers/", 307),
        ("POST", "/sdapi/v1/txt2img/", 307),
        ("GET", "//sdapi/v1/samplers", 404),
        ("GET", "/sdapi//v1/samplers", 404),
        ("GET", "/x/../sdapi/v1/samplers", 404),
        ("GET", "/sdapi/v1/samplers%2f", 404),
        ("GET", "/sdapi%2fv1%2fsamplers", 404),
        ("GET", "/SDAPI/v1/samplers", 404),
        ("HEAD", "/sdapi/v1/samplers", 405),
        ("OPTIONS", "/sdapi/v1/samplers", 405),
        ("PUT", "/sdapi/v1/options", 405),
        ("DELETE", "/sdapi/v1/opti%6fns", 405),
        ("GET", "/nope", 404),
    ] {
        let answer = server.send(request(method, path, None)).await;
        assert_eq!(answer.status, status, "{method} {path}");
        assert!(answer.body.len() < 40, "{method} {path}");
    }
}

#[actix_web::test]
async fn it_is_asked_before_the_body_is_read() {
    let server = Fixture::new(FLAGS);
    let request = TestRequest::post()
        .uri("/sdapi/v1/txt2img")
        .set_json(json!({"steps": "many"}));
    assert_eq!(server.send(request).await.status, 401);
}

#[actix_web::test]
async fn the_right_one_opens_every_kind_of_route() {
    let server = Fixture::new(FLAGS);
    for path in [
        "/sdapi/v1/samplers",
        "/sdapi/v1/loras",
        "/internal/ping",
        "/docs",
        "/",
    ] {
        for login in [RIGHT, "basic dXNlcjpwYXNz"] {
            let answer = server.send(request("GET", path, Some(login))).await;
            assert_eq!(answer.status, 200, "{path} {login}");
        }
    }
}

#[actix_web::test]
async fn several_logins_are_told_apart() {
    let server = Fixture::new(&["--api-auth", "user:pass,other:word"]);
    for (login, status) in [
        (RIGHT, 200),
        ("Basic b3RoZXI6d29yZA==", 200), // other:word
        ("Basic dXNlcjp3b3Jk", 401),     // user:word
        ("Basic b3RoZXI6cGFzcw==", 401), // other:pass
        ("Basic dXNlcg==", 401),         // user
    ] {
        let request = request("GET", "/sdapi/v1/samplers", Some(login));
        assert_eq!(server.send(request).await.status, status, "{login}");
    }
}

#[actix_web::test]
async fn a_preflight_passes_without_it_only_as_cors_needs_it() {
    let mut flags = FLAGS.to_vec();
    flags.extend(["--cors-allow-origins", "http://example.com"]);
    let server = Fixture::new(&flags);
    let preflight = |origin: &'static str| {
        request("OPTIONS", "/sdapi/v1/options", None)
            .insert_header((header::ORIGIN, origin))
            .insert_header((header::ACCESS_CONTROL_REQUEST_METHOD, "POST"))
    };
    let allowed = server.send(preflight("http://example.com")).await;
    assert_eq!(
        (allowed.status.as_u16(), &allowed.body[..]),
        (200, &b"OK"[..])
    );
    assert_eq!(
        server.send(preflight("http://example.org")).await.status,
        400
    );
    // Without the header that makes it a preflight it is an unknown method.
    let plain = request("OPTIONS", "/sdapi/v1/options", None)
        .insert_header((header::ORIGIN, "http://example.com"));
    assert_eq!(server.send(plain).await.status, 405);
    // A page may read why it was refused.
    let refused = request("GET", "/sdapi/v1/options", None)
        .insert_header((header::ORIGIN, "http://example.com"));
    let refused = server.send(refused).await;
    assert_eq!(refused.status, 401);
    assert_eq!(
        refused.header("access-control-allow-origin"),
        Some("http://example.com")
    );
}
