//! Golden parity: every request that was recorded from AUTOMATIC1111 v1.10.1 is sent to this server and
//! the answers are compared, under the rules of `compat-tests/golden/README.md`.
//!
//! `GOLDEN=text cargo test --test golden -- --nocapture` runs the cases whose names contain the text;
//! `GOLDEN_SERVER` names another binary than this build's. What is known to differ stands in `compat-tests/known-differences.toml`. The outcome of every case is
//! written to `target/tmp/golden-report.tsv`.

#[path = "support/case.rs"]
mod case;
#[path = "support/compare.rs"]
mod compare;
#[path = "support/golden_models.rs"]
mod golden_models;
#[path = "support/http_client.rs"]
mod http_client;
#[path = "support/inflight.rs"]
mod inflight;
#[path = "support/ledger.rs"]
mod ledger;
#[path = "support/picture.rs"]
mod picture;
#[path = "support/server.rs"]
mod server;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use case::Case;
use compare::Context;
use http_client::Answer;
use ledger::Ledger;
use picture::{Bar, Distance};
use server::Server;

/// The flags of the instance that answered the cases without flags of their own.
const FLAGS: &[&str] = &[
    "--skip-torch-cuda-test",
    "--skip-prepare-environment",
    "--skip-version-check",
    "--do-not-download-clip",
    "--no-download-sd-model",
    "--no-prompt-history",
    "--disable-console-progressbars",
    "--api",
    "--use-cpu",
    "all",
    "--no-half",
    "--precision",
    "full",
    "--ui-config-file",
    "config.json.ui",
    "--ui-settings-file",
    "config.json",
    "--ckpt",
    "{data}/models/Stable-diffusion/tiny-sd2-v.safetensors",
];

/// Cases that show what others did before them. They run together, in this order; all else stands on its own.
const SEQUENCES: &[&[&str]] = &[
    &[
        "options-set",
        "options-after-set",
        "t2i-options-in-effect",
        "options-restore",
    ],
    &["options-set-badtype", "options-restore-2"],
    &["t2i-override-model-keep"],
    &[
        "options-set-model-sd1",
        "t2i-after-model-switch",
        "options-set-model-back",
    ],
    &["post-unload-checkpoint", "post-reload-checkpoint"],
];

/// How one case ended.
struct Outcome {
    name: String,
    result: Result<(), String>,
    /// How far its pictures were from A1111's, and how far they may be.
    seen: Distance,
    bar: Bar,
}

#[test]
fn every_recorded_request_is_answered_as_a1111_answered_it() {
    let golden = case::golden_folder();
    let cases = case::read_all(&golden);
    let names: Vec<(String, Vec<String>)> = cases
        .iter()
        .map(|case| (case.name.clone(), case.tags.clone()))
        .collect();
    let ledger = Ledger::read(&golden.join("../known-differences.toml"), &names);
    let filter = std::env::var("GOLDEN").unwrap_or_default();
    let wanted = |case: &Case| case.name.contains(&filter);

    let mut outcomes = Vec::new();
    let (flagged, plain): (Vec<&Case>, Vec<&Case>) =
        cases.iter().partition(|case| case.server_flags.is_some());
    let (kill, plain): (Vec<&Case>, Vec<&Case>) = plain
        .into_iter()
        .partition(|case| case.name == "server-kill");
    run_plain(&golden, &plain, &wanted, &mut outcomes);
    if flagged.iter().any(|case| wanted(case)) {
        run_flagged(&golden, &flagged, &mut outcomes);
    }
    for case in kill.into_iter().filter(|case| wanted(case)) {
        outcomes.push(Outcome {
            name: case.name.clone(),
            result: killed(),
            seen: Distance::default(),
            bar: case.bar(),
        });
    }

    let problems = report(&outcomes, &ledger);
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// The cases of the instance with the usual flags.
fn run_plain(
    golden: &Path,
    cases: &[&Case],
    wanted: &impl Fn(&Case) -> bool,
    outcomes: &mut Vec<Outcome>,
) {
    let units: Vec<Vec<&Case>> = in_units(cases)
        .into_iter()
        .filter(|unit| unit.iter().any(|case| wanted(case)))
        .collect();
    if units.is_empty() {
        return;
    }
    let mut instance = Instance::start(golden);
    for case in units.into_iter().flatten() {
        let seen = Cell::default();
        let result = instance.run(case, golden, &seen);
        if instance.server.exit_within(Duration::ZERO).is_some() {
            let log = instance.server.log_tail();
            let _ = writeln!(
                std::io::stderr(),
                "the server ended during {}:\n{log}",
                case.name
            );
            instance = Instance::start(golden);
        }
        let shown = result.as_ref().err().map_or("ok", String::as_str);
        let _ = writeln!(std::io::stderr(), "{:40} {shown}", case.name);
        outcomes.push(Outcome {
            name: case.name.clone(),
            result,
            seen: seen.get(),
            bar: case.bar(),
        });
    }
}

/// Cases in index order, those that belong to a sequence together at the end.
fn in_units<'a>(cases: &[&'a Case]) -> Vec<Vec<&'a Case>> {
    let in_sequence = |case: &Case| {
        SEQUENCES
            .iter()
            .any(|names| names.contains(&case.name.as_str()))
    };
    let mut units: Vec<Vec<&Case>> = cases
        .iter()
        .filter(|case| !in_sequence(case))
        .map(|case| vec![*case])
        .collect();
    for names in SEQUENCES {
        units.push(
            names
                .iter()
                .filter_map(|name| cases.iter().find(|case| case.name == *name).copied())
                .collect(),
        );
    }
    units
}

/// A server and the checkpoint that was last loaded on it.
struct Instance {
    server: Server,
    model: Option<String>,
}

impl Instance {
    fn start(golden: &Path) -> Self {
        let server = Server::start(FLAGS, |data| write_data_folder(data, golden));
        Self {
            server,
            model: None,
        }
    }

    fn run(&mut self, case: &Case, golden: &Path, seen: &Cell<Distance>) -> Result<(), String> {
        let port = self.server.port;
        self.prepare(case)?;
        let context = Context {
            golden,
            data: self.server.data(),
            bar: case.bar(),
            random_seed: case.has_random_seed(),
            random_subseed: case.has_random_subseed(),
            shape_only: case.status == Some(500),
            seen,
        };
        let result = if case.extra.is_empty() {
            run_case(case, port, &context)
        } else {
            inflight::run(case, port, &context)
        };
        match case.name.as_str() {
            "t2i-override-model-keep" => {
                post_options(port, &json!({"CLIP_stop_at_last_layers": 1}))?;
            }
            "options-set-model-sd1" => self.model = Some("tiny-sd1".to_owned()),
            "options-set-model-back" => self.model = Some("tiny-sd2-v".to_owned()),
            _ => {}
        }
        result
    }

    /// Loads the case's checkpoint and does what the recording had done before it.
    fn prepare(&mut self, case: &Case) -> Result<(), String> {
        let port = self.server.port;
        if case.name == "get-sd-models" {
            self.load("tiny-sd1")?; // so that its hash is known
        }
        if let Some(model) = &case.model {
            self.load(model)?;
        }
        if case.name.starts_with("get-progress") || case.name == "http-get-gzip-small" {
            let short =
                json!({"prompt": "a cube", "seed": 0, "steps": 3, "width": 64, "height": 64});
            http_client::post_json(port, "/sdapi/v1/txt2img", &short)
                .map_err(|error| format!("preparing: {error}"))?;
        }
        Ok(())
    }

    fn load(&mut self, model: &str) -> Result<(), String> {
        if self.model.as_deref() != Some(model) {
            self.model = None;
            post_options(
                self.server.port,
                &json!({"sd_model_checkpoint": format!("{model}.safetensors")}),
            )?;
            self.model = Some(model.to_owned());
        }
        Ok(())
    }
}

fn post_options(port: u16, options: &Value) -> Result<(), String> {
    let answer = http_client::post_json(port, "/sdapi/v1/options", options)
        .map_err(|error| format!("POST options: {error}"))?;
    if answer.status == 200 {
        Ok(())
    } else {
        Err(format!("POST options {options} answers {}", answer.status))
    }
}

/// The cases of the instance that was started with authentication, CORS and server control.
fn run_flagged(golden: &Path, cases: &[&Case], outcomes: &mut Vec<Outcome>) {
    let flags: Vec<&str> = cases[0]
        .server_flags
        .as_deref()
        .unwrap_or_default()
        .split(' ')
        .collect();
    let all: Vec<&str> = FLAGS
        .iter()
        .copied()
        .filter(|flag| *flag != "--api")
        .chain(flags)
        .collect();
    let mut server = Server::start(&all, |data| write_data_folder(data, golden));
    for case in cases {
        assert_eq!(
            case.server_flags, cases[0].server_flags,
            "one instance serves every case with flags"
        );
        let seen = Cell::default();
        let context = Context {
            golden,
            data: server.data(),
            bar: case.bar(),
            random_seed: false,
            random_subseed: true,
            shape_only: case.status == Some(500),
            seen: &seen,
        };
        let mut result = run_case(case, server.port, &context);
        if case.name == "server-stop"
            && result.is_ok()
            && server.exit_within(Duration::from_secs(20)).is_none()
        {
            result = Err("the server goes on running".to_owned());
        }
        let shown = result.as_ref().err().map_or("ok", String::as_str);
        let _ = writeln!(std::io::stderr(), "{:40} {shown}", case.name);
        outcomes.push(Outcome {
            name: case.name.clone(),
            result,
            seen: seen.get(),
            bar: case.bar(),
        });
    }
}

/// `POST /sdapi/v1/server-kill`: the connection breaks and the process is gone.
fn killed() -> Result<(), String> {
    let golden = case::golden_folder();
    let flags: Vec<&str> = FLAGS.iter().copied().chain(["--api-server-stop"]).collect();
    let mut server = Server::start(&flags, |data| write_data_folder(data, &golden));
    let answer = http_client::post_json(server.port, "/sdapi/v1/server-kill", &Value::Null);
    match (server.exit_within(Duration::from_secs(5)), answer) {
        (Some(_), _) => Ok(()),
        (None, Ok(answer)) => Err(format!(
            "the server answers {} and goes on running",
            answer.status
        )),
        (None, Err(error)) => Err(format!("the server goes on running ({error})")),
    }
}

/// Sends one case and compares everything; a picture with a seed of the server's choice is drawn once
/// more with the recorded one.
fn run_case(case: &Case, port: u16, context: &Context<'_>) -> Result<(), String> {
    let answer = send(case, port, context.golden)?;
    compare_head(case, &answer, port)?;
    compare_body(case, &answer, context)?;
    if !context.random_seed {
        return Ok(());
    }
    let mut again = case.request.clone();
    let recorded: Value = serde_json::from_str(case.response["info"].as_str().unwrap_or_default())
        .unwrap_or_default();
    again["seed"] = recorded["seed"].clone();
    let answer = http_client::post_json(port, &case.path, &again)
        .map_err(|error| format!("drawn again: {error}"))?;
    let mut got = answer.json().ok_or("drawn again: the answer is no JSON")?;
    got["parameters"] = case.response["parameters"].clone();
    let context = Context {
        random_seed: false,
        ..*context
    };
    compare::compare(&case.response, &got, "", &context)
        .map_err(|why| format!("drawn again: {why}"))
}

fn send(case: &Case, port: u16, golden: &Path) -> Result<Answer, String> {
    http_client::send(port, &case.request(golden), Duration::from_mins(5))
        .map_err(|error| format!("no answer: {error}"))
}

/// Status, content type and the headers that clients act on.
fn compare_head(case: &Case, answer: &Answer, port: u16) -> Result<(), String> {
    if Some(answer.status) != case.status {
        let body: String = String::from_utf8_lossy(&answer.body)
            .chars()
            .take(160)
            .collect();
        return Err(format!(
            "status {}, A1111's {:?}: {body}",
            answer.status,
            case.status.unwrap_or(0)
        ));
    }
    let got_type = answer
        .header("content-type")
        .map(|text| text.replace(' ', ""));
    let want_type = case
        .content_type
        .as_deref()
        .map(|text| text.replace(' ', ""));
    if got_type != want_type {
        return Err(format!("content type {got_type:?}, A1111's {want_type:?}"));
    }
    let Some(headers) = &case.response_headers else {
        return Ok(());
    };
    let words = |text: &str| -> Vec<String> {
        let mut words: Vec<String> = text
            .split(',')
            .map(|word| word.trim().to_ascii_lowercase())
            .collect();
        words.sort();
        words
    };
    let is_json = got_type.is_some_and(|text| text.starts_with("application/json"));
    let matter = |name: &str| {
        // Pages are this server's own, so another length may or may not be worth compressing.
        (is_json && ["vary", "content-encoding"].contains(&name))
            || ["allow", "location"].contains(&name)
            || name.starts_with("access-control-")
    };
    for (name, want) in headers.iter().filter(|(name, _)| matter(name)) {
        let want = want
            .as_str()
            .unwrap_or_default()
            .replace(":7860", &format!(":{port}"));
        match answer.header(name) {
            Some(got) if words(got) == words(&want) => {}
            got => return Err(format!("header {name}: {got:?}, A1111's {want:?}")),
        }
    }
    match answer
        .headers
        .iter()
        .find(|(name, _)| matter(name) && !headers.contains_key(name))
    {
        Some((name, value)) => Err(format!(
            "header {name}: {value:?}, which A1111 does not send"
        )),
        None => Ok(()),
    }
}

fn compare_body(case: &Case, answer: &Answer, context: &Context<'_>) -> Result<(), String> {
    if case.method == "HEAD" {
        return Ok(());
    }
    if case.name == "get-openapi" {
        return compare_openapi(&case.response, answer);
    }
    if !case
        .content_type
        .as_deref()
        .unwrap_or_default()
        .starts_with("application/json")
    {
        // Pages are recorded cut short and are the server's own; short texts are compared.
        let want = case.response.as_str().unwrap_or_default();
        let got = String::from_utf8_lossy(&answer.body);
        let page = want.contains("<html") || want.contains("<svg");
        return if page || got == want {
            Ok(())
        } else {
            Err(format!("the body is {got:?}, A1111's {want:?}"))
        };
    }
    let got = answer.json().ok_or("the answer is no JSON")?;
    compare::compare(&case.response, &got, "", context)
}

/// Every operation of the API exists, and every named schema that it leads to.
fn compare_openapi(want: &Value, answer: &Answer) -> Result<(), String> {
    let got = answer.json().ok_or("the answer is no JSON")?;
    let mut schemas = BTreeSet::new();
    for (path, operations) in want["paths"].as_object().into_iter().flatten() {
        if !path.starts_with("/sdapi/") {
            continue;
        }
        for (method, operation) in operations.as_object().into_iter().flatten() {
            if got["paths"][path][method].is_null() {
                return Err(format!("no operation {method} {path}"));
            }
            collect_schemas(operation, want, &mut schemas);
        }
    }
    match schemas
        .iter()
        .find(|name| got["components"]["schemas"][name.as_str()].is_null())
    {
        Some(name) => Err(format!("no schema {name}")),
        None => Ok(()),
    }
}

/// Adds the names of the schemas that `value` refers to, and those that these refer to.
fn collect_schemas(value: &Value, document: &Value, names: &mut BTreeSet<String>) {
    match value {
        Value::String(text) => {
            if let Some(name) = text.strip_prefix("#/components/schemas/")
                && names.insert(name.to_owned())
            {
                collect_schemas(&document["components"]["schemas"][name], document, names);
            }
        }
        Value::Array(items) => items
            .iter()
            .for_each(|item| collect_schemas(item, document, names)),
        Value::Object(map) => map
            .values()
            .for_each(|item| collect_schemas(item, document, names)),
        _ => {}
    }
}

/// A1111's folder as it was recorded: the generated checkpoints and the small files beside them.
fn write_data_folder(data: &Path, golden: &Path) {
    golden_models::write_data_folder(data, &golden.join("models"));
    // The recorded instance's settings file held every option at its default.
    let table: Vec<Value> = serde_json::from_str(include_str!("../src/config/options.json"))
        .expect("the options table is JSON");
    let defaults: serde_json::Map<String, Value> = table
        .into_iter()
        .filter(|option| option["type"] != "html")
        .filter_map(|option| {
            Some((
                option["key"].as_str()?.to_owned(),
                option["default"].clone(),
            ))
        })
        .collect();
    std::fs::write(
        data.join("config.json"),
        Value::Object(defaults).to_string(),
    )
    .expect("the data folder can be written");
}

/// Writes the report and returns what must not be: unlisted failures, and listed cases that pass.
fn report(outcomes: &[Outcome], ledger: &Ledger) -> Vec<String> {
    let mut table =
        String::from("case\tstate\tpictures\tmax\tmean\tpercent\tbar max\tbar percent\twhat\n");
    let (mut problems, mut passed, mut known) = (Vec::new(), 0, 0);
    for Outcome {
        name,
        result,
        seen,
        bar,
    } in outcomes
    {
        let (state, what) = match (result, ledger.reason(name)) {
            (Ok(()), None) => {
                passed += 1;
                ("pass", String::new())
            }
            (Ok(()), Some(reason)) => {
                problems.push(format!("PASSES though listed: {name} ({reason})"));
                ("unexpected pass", reason.to_owned())
            }
            (Err(why), Some(reason)) => {
                known += 1;
                ("known", format!("{why} [{reason}]"))
            }
            (Err(why), None) => {
                problems.push(format!("FAILS: {name}: {why}"));
                ("fail", why.clone())
            }
        };
        let what = what.replace(['\n', '\t'], " ");
        let _ = writeln!(
            table,
            "{name}\t{state}\t{}\t{}\t{:.6}\t{:.4}\t{}\t{:.4}\t{what}",
            seen.pictures, seen.max, seen.mean, seen.percent, bar.max, bar.percent
        );
    }
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("golden-report.tsv");
    std::fs::write(&path, table).expect("the report can be written");
    let summary = format!(
        "golden: {passed} pass, {known} are known to differ, {} are wrong; {}",
        problems.len(),
        path.display()
    );
    let _ = writeln!(std::io::stderr(), "{summary}");
    if !problems.is_empty() {
        problems.push(summary);
    }
    problems
}
