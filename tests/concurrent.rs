//! Eight clients at once over HTTP at the built binary: every picture is the one drawn alone, to the byte,
//! and what ends one job ends no other.

#[path = "support/golden_models.rs"]
mod golden_models;
#[path = "support/http_client.rs"]
#[allow(dead_code, reason = "headers are other tests' business")]
mod http_client;
#[path = "support/server.rs"]
#[allow(dead_code, reason = "how the process ends is other tests' business")]
mod server;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use server::Server;

const TXT2IMG: &str = "/sdapi/v1/txt2img";

/// The answer's pictures, as base64.
fn draw(port: u16, body: &Value) -> Vec<Value> {
    let answer = http_client::post_json(port, TXT2IMG, body).expect("an answer");
    let json = answer.json().unwrap_or_default();
    assert_eq!(answer.status, 200, "{json}");
    json["images"].as_array().expect("pictures").clone()
}

/// All at once, in the order of the requests.
fn draw_together(port: u16, bodies: &[Value]) -> Vec<Vec<Value>> {
    std::thread::scope(|scope| {
        let clients: Vec<_> = bodies
            .iter()
            .map(|body| scope.spawn(move || draw(port, body)))
            .collect();
        clients
            .into_iter()
            .map(|client| client.join().expect("drawn"))
            .collect()
    })
}

fn assert_same_alone_and_together(server: &Server, bodies: &[Value]) {
    let alone: Vec<_> = bodies.iter().map(|body| draw(server.port, body)).collect();
    let distinct: BTreeSet<String> = alone.iter().map(|images| images[0].to_string()).collect();
    assert_eq!(distinct.len(), bodies.len(), "the requests differ");
    for round in 0..2 {
        let together = draw_together(server.port, bodies);
        for (at, (alone, together)) in alone.iter().zip(&together).enumerate() {
            assert!(alone == together, "round {round}: {}", bodies[at]);
        }
    }
}

fn small(changes: &Value) -> Value {
    let mut body = json!({
        "prompt": "a red heart", "negative_prompt": "blue", "seed": 7, "steps": 5,
        "width": 64, "height": 64, "cfg_scale": 6,
    });
    for (key, value) in changes.as_object().expect("an object") {
        body[key] = value.clone();
    }
    body
}

#[test]
fn eight_requests_of_one_size_are_the_pictures_drawn_alone() {
    let server = Server::start(&["--max-concurrent-jobs", "8"], |_| {});
    let bodies: Vec<Value> = [
        json!({"prompt": "a red heart", "seed": 1}),
        json!({"prompt": "a blue star", "seed": 2, "steps": 2}),
        json!({"prompt": "a green tree", "seed": 3, "cfg_scale": 12.5}),
        json!({"prompt": "a yellow sun", "seed": 4, "sampler_name": "Euler a"}),
        json!({"prompt": "a house", "seed": 5, "sampler_name": "DPM++ 2M", "steps": 9}),
        json!({"prompt": "a fish", "seed": 6, "sampler_name": "DPM++ 2M SDE", "steps": 4}),
        json!({"prompt": "a boat", "seed": 7, "sampler_name": "DDIM", "n_iter": 2}),
        json!({"prompt": "a cat", "seed": 8, "sampler_name": "UniPC", "batch_size": 2}),
    ]
    .iter()
    .map(small)
    .collect();
    assert_same_alone_and_together(&server, &bodies);
}

#[test]
fn eight_requests_of_other_sizes_networks_and_checkpoints_are_the_pictures_drawn_alone() {
    let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("compat-tests/golden/models");
    let server = Server::start(&["--max-concurrent-jobs", "8"], |data| {
        golden_models::write_data_folder(data, &recipes);
        // What jobs draw at random comes from their seeds, not from one another.
        let wildcards = data.join("wildcards");
        std::fs::create_dir_all(&wildcards).expect("a writable folder");
        std::fs::write(wildcards.join("color.txt"), "red\nblue\ngreen\n").expect("written");
    });
    let sd1 = json!({"sd_model_checkpoint": "tiny-sd1"});
    let sd2 = json!({"sd_model_checkpoint": "tiny-sd2-v"});
    let lora = |weight: f64| format!("a castle <lora:tiny-sd1-lora:{weight}>");
    let bodies: Vec<Value> = [
        json!({"override_settings": sd1, "prompt": lora(1.0), "save_images": true}),
        json!({"override_settings": sd1, "prompt": lora(0.5), "save_images": true}),
        json!({"override_settings": sd1, "width": 96, "save_images": true}),
        json!({"override_settings": sd1, "tiling": true, "sampler_name": "Heun"}),
        json!({"override_settings": sd2, "prompt": "a __color__ castle"}),
        json!({"override_settings": sd2, "prompt": "a castle <lora:tiny-sd2-v-lora:1>"}),
        json!({"override_settings": sd2, "steps": 12, "sampler_name": "LCM"}),
        json!({
            "override_settings": {"sd_model_checkpoint": "tiny-sd1", "CLIP_stop_at_last_layers": 2},
            "enable_hr": true, "hr_scale": 1.5, "denoising_strength": 0.6,
        }),
    ]
    .iter()
    .map(small)
    .collect();
    assert_same_alone_and_together(&server, &bodies);
    // Three rounds of three pictures with the same seed and pattern: no file took another's name.
    let saved = files_below(&server.data().join("outputs"));
    assert_eq!(saved.len(), 9, "{saved:?}");
    let numbers: BTreeSet<&str> = saved
        .iter()
        .filter_map(|name| name.split('-').next())
        .collect();
    assert_eq!(numbers.len(), 9, "{saved:?}");
}

fn files_below(folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            names.extend(files_below(&entry.path()));
        } else {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names
}

fn delete(port: u16, path: &str) -> u16 {
    let request = http_client::Request {
        method: "DELETE",
        path,
        headers: Vec::new(),
        body: None,
    };
    let answer = http_client::send(port, &request, Duration::from_mins(1));
    answer.expect("an answer").status
}

/// Waits until the job is in one of these states, and answers it.
fn wait_for(port: u16, id: &str, states: &[&str]) -> Value {
    let deadline = Instant::now() + Duration::from_mins(5);
    loop {
        let answer = http_client::get(port, &format!("/v1/jobs/{id}")).expect("an answer");
        let job = answer.json().expect("a job");
        if states.iter().any(|state| job["state"] == *state) {
            return job;
        }
        assert!(Instant::now() < deadline, "{job}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Eight jobs run at once, of which `end` ends the oldest; the seven others give the pictures drawn alone.
fn assert_ending_one_of_eight_touches_no_other(end: impl Fn(u16, &str)) {
    let server = Server::start(&["--max-concurrent-jobs", "8"], |_| {});
    let port = server.port;
    let long = |seed: i64| small(&json!({"seed": seed, "steps": 40, "width": 96, "height": 96}));
    let alone: Vec<_> = (0..7).map(|seed| draw(port, &long(seed))).collect();
    let submit = |body: &Value| -> String {
        let answer = http_client::post_json(port, "/v1/jobs/txt2img", body).expect("an answer");
        assert_eq!(answer.status, 202);
        let job = answer.json().expect("a job");
        job["id"].as_str().expect("an id").to_owned()
    };
    // The victim would never end by itself within the test.
    let mut endless = long(99);
    endless["steps"] = json!(1000);
    let victim = submit(&endless);
    wait_for(port, &victim, &["running"]);
    let others: Vec<String> = (0..7).map(|seed| submit(&long(seed))).collect();
    for id in &others {
        wait_for(port, id, &["running", "done"]);
    }
    end(port, &victim);
    wait_for(port, &victim, &["cancelled"]);
    for (id, alone) in others.iter().zip(&alone) {
        wait_for(port, id, &["done"]);
        let result = http_client::get(port, &format!("/v1/jobs/{id}/result")).expect("an answer");
        let result = result.json().expect("a result");
        assert_eq!(result["images"].as_array(), Some(alone), "job {id}");
    }
}

#[test]
fn cancelling_one_of_eight_jobs_touches_no_other() {
    assert_ending_one_of_eight_touches_no_other(|port, id| {
        assert_eq!(delete(port, &format!("/v1/jobs/{id}")), 200);
    });
}

/// A1111's route ends the job that has run longest.
#[test]
fn interrupting_one_of_eight_jobs_touches_no_other() {
    assert_ending_one_of_eight_touches_no_other(|port, _| {
        let answer = http_client::post_json(port, "/sdapi/v1/interrupt", &json!({}));
        assert_eq!(answer.expect("an answer").status, 200);
    });
}
