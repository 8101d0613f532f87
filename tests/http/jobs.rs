//! `/v1/jobs`: submitted jobs are listed, watched, cancelled by id, found again after a restart and told to
//! webhooks; the queue is bounded and fair.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::time::Duration;

use actix_web::App as ActixApp;
use actix_web::http::{Method, StatusCode};
use actix_web::middleware::from_fn;
use actix_web::test::{TestRequest, call_service, init_service, read_body};
use ancestral::http::{self, Kept};
use ancestral::jobs::{KeptState, Record, Store};
use serde_json::{Value, json};

use super::{Fixture, Reply, TXT2IMG};

const SUBMIT: &str = "/v1/jobs/txt2img";

/// The engine of these tests draws `wait` until it is interrupted.
fn waiting_body() -> Value {
    json!({"prompt": "wait"})
}

async fn until(fixture: &Fixture, id: &str, state: &str) -> Value {
    for _ in 0..400 {
        let view = fixture.get(&path(id)).await.json();
        if view["state"] == state {
            return view;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!(
        "{id} is not {state}: {}",
        fixture.get(&path(id)).await.json()
    );
}

fn path(id: &str) -> String {
    format!("/v1/jobs/{id}")
}

async fn delete(fixture: &Fixture, id: &str) -> Reply {
    let request = TestRequest::default().method(Method::DELETE).uri(&path(id));
    fixture.send(request).await
}

async fn submit(fixture: &Fixture, body: &Value) -> String {
    let answer = fixture.post(SUBMIT, body).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.json());
    answer.json()["id"].as_str().expect("an id").to_owned()
}

#[actix_web::test]
async fn a_submitted_job_is_answered_at_once_and_its_result_is_a1111s() {
    let fixture = Fixture::new(&[]);
    let body = json!({"prompt": "a hill", "steps": 3, "seed": 7, "width": 64, "height": 64});
    let answer = fixture.post(SUBMIT, &body).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED);
    let id = answer.json()["id"].as_str().expect("an id").to_owned();
    assert_eq!(answer.header("x-job-id"), Some(id.as_str()));
    assert_eq!(answer.header("location"), Some(path(&id).as_str()));
    let view = until(&fixture, &id, "done").await;
    assert_eq!(view["kind"], "txt2img");
    assert!(view["ended_at"].is_string());
    let result = fixture.get(&format!("{}/result", path(&id))).await;
    let direct = fixture.post(TXT2IMG, &body).await;
    assert_eq!(result.status, StatusCode::OK);
    assert_eq!(result.json(), direct.json());
    assert!(
        direct
            .header("x-job-id")
            .is_some_and(|id| id.starts_with("task(txt2img-"))
    );
}

#[actix_web::test]
async fn a_bad_body_is_refused_before_it_is_kept() {
    let fixture = Fixture::new(&[]);
    let misfit = fixture.post(SUBMIT, &json!({"steps": "many"})).await;
    assert_eq!(misfit.status, StatusCode::UNPROCESSABLE_ENTITY);
    let unknown = fixture.post("/v1/jobs/sculpture", &json!({})).await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
    assert_eq!(fixture.get("/v1/jobs").await.json()["jobs"], json!([]));
    assert_eq!(
        fixture.get("/v1/jobs/nobody").await.status,
        StatusCode::NOT_FOUND
    );
    assert_eq!(
        delete(&fixture, "nobody").await.status,
        StatusCode::NOT_FOUND
    );
}

#[actix_web::test]
async fn a_failed_job_keeps_the_answer_that_its_route_would_have_given() {
    let fixture = Fixture::new(&[]);
    for prompt in ["panic", "fail"] {
        let id = submit(&fixture, &json!({"prompt": prompt})).await;
        let view = until(&fixture, &id, "failed").await;
        assert!(view["error"]["errors"].is_string(), "{view}");
        let result = fixture.get(&format!("{}/result", path(&id))).await;
        assert_eq!(result.status, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(result.json(), view["error"]);
    }
}

#[actix_web::test]
async fn cancelling_one_job_leaves_the_others_alone() {
    let fixture = Fixture::new(&["--max-concurrent-jobs", "2"]);
    let first = submit(&fixture, &waiting_body()).await;
    let second = submit(&fixture, &waiting_body()).await;
    until(&fixture, &first, "running").await;
    until(&fixture, &second, "running").await;
    let third = submit(&fixture, &json!({"prompt": "later"})).await;
    let waiting = fixture.get(&path(&third)).await.json();
    assert_eq!(
        (&waiting["state"], &waiting["position"]),
        (&json!("queued"), &json!(0))
    );
    assert_eq!(delete(&fixture, &third).await.json()["state"], "cancelled");
    let nothing = fixture.get(&format!("{}/result", path(&third))).await;
    assert_eq!(nothing.status, StatusCode::CONFLICT);
    delete(&fixture, &second).await;
    let ended = until(&fixture, &second, "cancelled").await;
    assert_eq!(ended["has_result"], true, "it keeps what it had");
    assert_eq!(fixture.get(&path(&first)).await.json()["state"], "running");
    let listed = fixture.get("/v1/jobs").await.json();
    let ids: Vec<&str> = listed["jobs"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|job| job["id"].as_str())
        .collect();
    assert_eq!(ids, [first.as_str(), third.as_str(), second.as_str()]);
    delete(&fixture, &first).await;
    until(&fixture, &first, "cancelled").await;
}

#[actix_web::test]
async fn an_idempotency_key_submits_once() {
    let fixture = Fixture::new(&[]);
    let send = |prompt: &str| {
        TestRequest::post()
            .uri(SUBMIT)
            .insert_header(("idempotency-key", "order-1"))
            .set_json(json!({ "prompt": prompt }))
    };
    let first = fixture.send(send("a hill")).await;
    assert_eq!(first.status, StatusCode::ACCEPTED);
    let again = fixture.send(send("a hill")).await;
    assert_eq!(again.status, StatusCode::OK);
    assert_eq!(again.json()["id"], first.json()["id"]);
    let other = fixture.send(send("a lake")).await;
    assert_eq!(other.status, StatusCode::CONFLICT);
}

#[actix_web::test]
async fn the_chosen_task_id_is_the_jobs_id_and_is_taken_once() {
    let fixture = Fixture::new(&[]);
    let body = json!({"prompt": "wait", "force_task_id": "mine"});
    assert_eq!(submit(&fixture, &body).await, "mine");
    until(&fixture, "mine", "running").await;
    assert_eq!(
        fixture.post(SUBMIT, &body).await.status,
        StatusCode::CONFLICT
    );
    let progress = fixture
        .post("/internal/progress", &json!({"id_task": "mine"}))
        .await;
    assert_eq!(progress.json()["active"], true);
    delete(&fixture, "mine").await;
    until(&fixture, "mine", "cancelled").await;
    assert_eq!(
        fixture.post(SUBMIT, &body).await.status,
        StatusCode::CONFLICT
    );
}

#[actix_web::test]
async fn a_full_queue_says_when_to_come_back() {
    let fixture = Fixture::new(&["--queue-size", "1", "--queue-size-per-client", "1"]);
    let running = submit(&fixture, &waiting_body()).await;
    until(&fixture, &running, "running").await;
    let waiting = submit(&fixture, &json!({"prompt": "b"})).await;
    for path in [SUBMIT, TXT2IMG] {
        let refused = fixture.post(path, &json!({"prompt": "c"})).await;
        assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(refused.header("retry-after").is_some());
        assert_eq!(refused.json()["error"], "HTTPException");
    }
    let listed = fixture.get("/v1/jobs").await.json();
    assert_eq!(listed["jobs"].as_array().map(Vec::len), Some(2));
    delete(&fixture, &running).await;
    until(&fixture, &waiting, "done").await;
}

#[actix_web::test]
async fn what_a_former_process_left_is_finished_or_given_up() {
    let fixture = Fixture::new(&[]);
    let folder = fixture.app.server().config.folders.data.join("jobs");
    let options = fixture.app.server().settings.snapshot().values().clone();
    {
        let store = Store::open(&folder).expect("opened");
        let keep = |id: &str, state: KeptState, attempts: u32| {
            let record = Record {
                state,
                attempts,
                ..Record::queued(id.to_owned(), "txt2img", "address:", String::new())
            };
            let head = json!({"content_type": "application/json", "options": options});
            let body = format!("{head}\n{}", json!({"prompt": id}));
            store.insert(record, body.as_bytes()).expect("kept");
        };
        keep("queued", KeptState::Queued, 0);
        keep("running", KeptState::Running, 1);
        keep("deadly", KeptState::Running, 5);
    }
    Kept::resume(&fixture.app.server().clone().into());
    for id in ["queued", "running"] {
        until(&fixture, id, "done").await;
        let result = fixture.get(&format!("{}/result", path(id))).await;
        assert_eq!(result.json()["parameters"]["prompt"], id);
    }
    let given_up = until(&fixture, "deadly", "failed").await;
    let why = given_up["error"]["errors"].as_str().expect("a reason");
    assert!(why.contains("5 times"), "{why}");
}

#[actix_web::test]
async fn results_are_kept_for_a_while_only() {
    let fixture = Fixture::new(&["--keep-results", "0"]);
    let id = submit(&fixture, &json!({"prompt": "a"})).await;
    for _ in 0..400 {
        if fixture.get(&path(&id)).await.status == StatusCode::NOT_FOUND {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the result is still there");
}

#[actix_web::test]
async fn events_tell_the_way_of_a_job() {
    let fixture = Fixture::new(&[]);
    let id = submit(&fixture, &waiting_body()).await;
    until(&fixture, &id, "running").await;
    let service = init_service(
        ActixApp::new()
            .wrap(from_fn(http::surround))
            .configure(|config| http::configure(fixture.app.server(), config)),
    )
    .await;
    let request = TestRequest::get()
        .uri(&format!("{}/events", path(&id)))
        .to_request();
    let answer = call_service(&service, request).await;
    let kind = answer.headers().get("content-type");
    assert_eq!(
        kind.and_then(|kind| kind.to_str().ok()),
        Some("text/event-stream")
    );
    delete(&fixture, &id).await;
    let text = String::from_utf8(read_body(answer).await.to_vec()).expect("text");
    let events: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("event: "))
        .collect();
    assert_eq!(events.last(), Some(&"end"), "{text}");
    let last = text
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .next_back();
    let last: Value = serde_json::from_str(last.expect("data")).expect("JSON");
    assert_eq!(
        (&last["id"], &last["state"]),
        (&json!(id), &json!("cancelled"))
    );
}

#[actix_web::test]
async fn users_see_and_cancel_their_own_jobs_only() {
    let fixture = Fixture::new(&["--api-auth", "one:1,two:2"]);
    // `one:1` and `two:2` in base64.
    let as_user = |request: TestRequest, user: &str| {
        let login = if user == "one" {
            "Basic b25lOjE="
        } else {
            "Basic dHdvOjI="
        };
        request.insert_header(("authorization", login))
    };
    let body = json!({"prompt": "wait", "force_task_id": "ones"});
    let sent = fixture
        .send(as_user(
            TestRequest::post().uri(SUBMIT).set_json(&body),
            "one",
        ))
        .await;
    assert_eq!(sent.status, StatusCode::ACCEPTED);
    let get = |path: &'static str, user| as_user(TestRequest::get().uri(path), user);
    let cancel = |user| {
        let request = TestRequest::default()
            .method(Method::DELETE)
            .uri("/v1/jobs/ones");
        as_user(request, user)
    };
    assert_eq!(
        fixture.send(get("/v1/jobs/ones", "two")).await.status,
        StatusCode::NOT_FOUND
    );
    assert_eq!(
        fixture.send(get("/v1/jobs", "two")).await.json()["jobs"],
        json!([])
    );
    assert_eq!(
        fixture.send(cancel("two")).await.status,
        StatusCode::NOT_FOUND
    );
    assert_eq!(
        fixture.send(get("/v1/jobs/ones", "one")).await.status,
        StatusCode::OK
    );
    assert_eq!(fixture.send(cancel("one")).await.status, StatusCode::OK);
}

#[actix_web::test]
async fn the_end_of_a_job_is_told_to_an_allowed_origin() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let origin = format!("http://{}", listener.local_addr().expect("bound"));
    let heard = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a call");
        let mut bytes = vec![0; 65536];
        let mut length = 0;
        // The head, then as many bytes as it says.
        loop {
            length += stream.read(&mut bytes[length..]).expect("read");
            let text = String::from_utf8_lossy(&bytes[..length]).to_lowercase();
            let Some(head) = text.find("\r\n\r\n") else {
                continue;
            };
            let expected: usize = text
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "))
                .and_then(|number| number.trim().parse().ok())
                .expect("a length");
            if length >= head + 4 + expected {
                break;
            }
        }
        stream
            .write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
            .expect("answered");
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    });
    let fixture = Fixture::with_secret(&["--webhook-origins", &origin], "key");
    let body = json!({"prompt": "a", "webhook_url": format!("{origin}/ended")});
    let id = submit(&fixture, &body).await;
    let heard = actix_web::rt::task::spawn_blocking(move || heard.join()).await;
    let heard = heard.expect("joined").expect("heard");
    assert!(heard.starts_with("POST /ended "), "{heard}");
    assert!(
        heard
            .to_lowercase()
            .contains("x-ancestral-signature: sha256=")
    );
    assert!(heard.contains(&format!("\"id\":\"{id}\"")));
    let elsewhere = json!({"prompt": "a", "webhook_url": "http://127.0.0.1:1/"});
    assert_eq!(
        fixture.post(SUBMIT, &elsewhere).await.status,
        StatusCode::BAD_REQUEST
    );
}

#[actix_web::test]
async fn health_needs_no_login_and_metrics_do() {
    let fixture = Fixture::new(&["--api-auth", "one:1", "--skip-load-model-at-start"]);
    assert_eq!(fixture.get("/healthz").await.status, StatusCode::OK);
    assert_eq!(fixture.get("/readyz").await.status, StatusCode::OK);
    assert_eq!(
        fixture.get("/metrics").await.status,
        StatusCode::UNAUTHORIZED
    );
    fixture.app.server().jobs.close();
    assert_eq!(
        fixture.get("/readyz").await.status,
        StatusCode::SERVICE_UNAVAILABLE
    );
}

#[actix_web::test]
async fn metrics_count_what_happened() {
    let fixture = Fixture::new(&[]);
    fixture.post(TXT2IMG, &json!({"prompt": "a"})).await;
    fixture.post(TXT2IMG, &json!({"prompt": "panic"})).await;
    // The caller of a job that panicked hears of it while it is being counted.
    let mut text = String::new();
    for _ in 0..200 {
        text = String::from_utf8(fixture.get("/metrics").await.body).expect("text");
        if text.contains("Panicked") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for line in [
        "ancestral_pictures_total 1",
        "ancestral_jobs_total{outcome=\"Done\"} 1",
        "ancestral_jobs_total{outcome=\"Panicked\"} 1",
        "ancestral_answers_total{status=\"500\"} 1",
        "ancestral_queue_length 0.0",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}
