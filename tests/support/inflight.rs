//! The cases that are watched, interrupted, skipped or queued while they run. Their timing is the
//! machine's, so what is compared is the shape of every answer, the number of pictures and the
//! values that do not depend on the moment.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::case::Case;
use super::compare::{Context, compare, difference};
use super::http_client::{self, Answer};

const PATIENCE: Duration = Duration::from_mins(1);

/// Runs the case on the server at `port`; the error is the first difference.
pub(crate) fn run(case: &Case, port: u16, context: &Context<'_>) -> Result<(), String> {
    match case.name.as_str() {
        "inflight-interrupt" => stopped(case, port, context, "/sdapi/v1/interrupt", "interrupted"),
        "inflight-skip" => stopped(case, port, context, "/sdapi/v1/skip", "skipped"),
        "inflight-progress" => watched(case, port, context),
        "inflight-queue" => queued(case, port, context),
        other => Err(format!("the runner does not know how to play {other}")),
    }
}

/// Interrupt or skip at the step where it was recorded, then the finished answer.
fn stopped(
    case: &Case,
    port: u16,
    context: &Context<'_>,
    control: &str,
    flag: &str,
) -> Result<(), String> {
    let at_step = case.extra[0]["at_step"].as_i64().unwrap_or(1);
    let job = start(case, port);
    wait_for(
        port,
        "/sdapi/v1/progress?skip_current_image=true",
        |progress| {
            progress["state"]["sampling_step"].as_i64() >= Some(at_step)
                && progress["state"]["job_count"] == json!(2)
        },
    )?;
    let answer = http_client::post_json(port, control, &Value::Null)
        .map_err(|error| format!("{control}: {error}"))?;
    let got = answer.json().unwrap_or(Value::Null);
    if answer.status != 200 || got != case.extra[0]["response"] {
        return Err(format!(
            "{control}: {}",
            difference("", &case.extra[0]["response"], &got)
        ));
    }
    let progress = progress(port, "/sdapi/v1/progress?skip_current_image=true")?;
    let shape = Context {
        shape_only: true,
        ..*context
    };
    compare(&case.extra[1]["response"], &progress, "", &shape)
        .map_err(|why| format!("progress afterwards: {why}"))?;
    // A skipped batch ends at once, and the next one clears the flag when it begins.
    let went_on = flag == "skipped" && progress["state"]["job_no"].as_i64() >= Some(1);
    if progress["state"][flag] != json!(true) && !went_on {
        return Err(format!(
            "progress afterwards: .state.{flag} is {}",
            progress["state"][flag]
        ));
    }
    finished(case, job, &shape)
}

/// Progress while the job runs: A1111's and that of its web page.
fn watched(case: &Case, port: u16, context: &Context<'_>) -> Result<(), String> {
    let job = start(case, port);
    let shape = Context {
        shape_only: true,
        ..*context
    };
    let recorded = |url: &str, wanted: fn(&Value) -> bool| {
        let poll = case
            .extra
            .iter()
            .find(|poll| poll["url"] == json!(url) && wanted(&poll["response"]));
        poll.map_or(Value::Null, |poll| poll["response"].clone())
    };
    let early = "/sdapi/v1/progress?skip_current_image=true";
    let got = wait_for(port, early, |progress| {
        progress["state"]["sampling_step"].as_i64() >= Some(1)
    })?;
    compare(&recorded(early, |_| true), &got, "", &shape)
        .map_err(|why| format!("progress: {why}"))?;
    for (key, want) in [
        ("job", json!("scripts_txt2img")),
        ("job_count", json!(1)),
        ("sampling_steps", json!(40)),
    ] {
        if got["state"][key] != want {
            return Err(format!(
                "progress: {}",
                difference(&format!(".state.{key}"), &want, &got["state"][key])
            ));
        }
    }
    let fraction = got["progress"].as_f64().unwrap_or(-1.0);
    let step = got["state"]["sampling_step"].as_f64().unwrap_or(-1.0);
    if (fraction - (0.01 + step / 40.0)).abs() > 1e-6 {
        return Err(format!("progress: {fraction} at step {step} of 40"));
    }
    let task = json!({"id_task": "task(golden-1)", "live_preview": true});
    let internal = http_client::post_json(port, "/internal/progress", &task)
        .map_err(|error| error.to_string())?;
    let internal = internal.json().unwrap_or(Value::Null);
    if internal["active"] != json!(true)
        || internal["queued"] != json!(false)
        || internal["completed"] != json!(false)
    {
        return Err(format!(
            "/internal/progress of the running task: {internal}"
        ));
    }
    let preview = wait_for(port, "/sdapi/v1/progress", |progress| {
        !progress["current_image"].is_null()
    })?;
    if preview["state"]["sampling_step"].as_i64() < Some(10) {
        return Err(format!(
            "a preview at step {}; A1111 makes one every 10 steps",
            preview["state"]["sampling_step"]
        ));
    }
    finished(case, job, context)?;
    let after = http_client::post_json(port, "/internal/progress", &task)
        .map_err(|error| error.to_string())?;
    let after = after.json().unwrap_or(Value::Null);
    if after["completed"] != json!(true) || after["active"] != json!(false) {
        return Err(format!("/internal/progress of the finished task: {after}"));
    }
    Ok(())
}

/// A named task behind others: how it is listed and what the queue says of it.
fn queued(case: &Case, port: u16, context: &Context<'_>) -> Result<(), String> {
    let long = || {
        let mut request = case.request.clone();
        request["steps"] = json!(60);
        request
    };
    let ahead: Vec<_> = (0..2)
        .map(|_| spawn(port, case.path.clone(), long()))
        .collect();
    wait_for(port, "/internal/pending-tasks", |pending| {
        pending["size"].as_i64() >= Some(1)
    })?;
    let first = start(case, port);
    let mut last = case.request.clone();
    last["force_task_id"] = json!("task(golden-queued)");
    (last["seed"], last["steps"]) = (json!(1), json!(3));
    let second = spawn(port, case.path.clone(), last);
    let listed = |pending: &Value| {
        pending["tasks"]
            .as_array()
            .is_some_and(|tasks| tasks.contains(&json!("task(golden-queued)")))
    };
    let pending = wait_for(port, "/internal/pending-tasks", listed)?;
    let size = pending["size"].as_i64().unwrap_or(0);
    if pending["tasks"].as_array().map(Vec::len) != usize::try_from(size).ok() {
        return Err(format!("/internal/pending-tasks: {pending}"));
    }
    let task = json!({"id_task": "task(golden-queued)", "live_preview": false});
    let got = http_client::post_json(port, "/internal/progress", &task)
        .map_err(|error| error.to_string())?;
    let got = got.json().unwrap_or(Value::Null);
    let shape = Context {
        shape_only: true,
        ..*context
    };
    compare(&case.extra[1]["response"], &got, "", &shape)
        .map_err(|why| format!("/internal/progress: {why}"))?;
    let text = got["textinfo"].as_str().unwrap_or_default();
    if got["queued"] != json!(true) || !text.starts_with("In queue: ") {
        return Err(format!("/internal/progress of the queued task: {got}"));
    }
    finished(case, first, context)?;
    for job in ahead.into_iter().chain([second]) {
        let answer = join(job)?;
        if answer.status != 200 {
            return Err(format!("a job of the queue answers {}", answer.status));
        }
    }
    Ok(())
}

type Job = thread::JoinHandle<io::Result<Answer>>;

fn start(case: &Case, port: u16) -> Job {
    spawn(port, case.path.clone(), case.request.clone())
}

fn spawn(port: u16, path: String, request: Value) -> Job {
    thread::spawn(move || http_client::post_json(port, &path, &request))
}

fn join(job: Job) -> Result<Answer, String> {
    job.join()
        .map_err(|_| "the client panicked".to_owned())?
        .map_err(|error| format!("no answer: {error}"))
}

fn finished(case: &Case, job: Job, context: &Context<'_>) -> Result<(), String> {
    let answer = join(job)?;
    if Some(answer.status) != case.status {
        return Err(format!(
            "status {}, A1111's {:?}",
            answer.status, case.status
        ));
    }
    let got = answer.json().ok_or("the answer is no JSON")?;
    compare(&case.response, &got, "", context)
}

fn progress(port: u16, path: &str) -> Result<Value, String> {
    let answer = http_client::get(port, path).map_err(|error| format!("{path}: {error}"))?;
    if answer.status != 200 {
        return Err(format!("{path} answers {}", answer.status));
    }
    answer
        .json()
        .ok_or_else(|| format!("{path} answers no JSON"))
}

fn wait_for(port: u16, path: &str, reached: impl Fn(&Value) -> bool) -> Result<Value, String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let got = progress(port, path)?;
        if reached(&got) {
            return Ok(got);
        }
        if Instant::now() > deadline {
            return Err(format!("{path} never said what was waited for; last {got}"));
        }
        thread::sleep(Duration::from_millis(3));
    }
}
