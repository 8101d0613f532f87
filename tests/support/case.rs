//! The recorded cases: reading them, and writing their requests.

use std::path::{Path, PathBuf};

use base64::Engine;
use serde::Deserialize;
use serde_json::Value;

use super::http_client::Request;
use super::picture::Bar;

/// One line of `index.json`.
#[derive(Deserialize)]
struct IndexEntry {
    name: String,
    a1111_other_threads: Option<NoiseFloor>,
}

/// How far A1111 is from itself with another number of threads.
#[derive(Clone, Copy, Deserialize)]
struct NoiseFloor {
    max: u8,
    percent_differing: f64,
}

/// One recorded request and A1111's answer.
#[derive(Deserialize)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) method: String,
    pub(crate) path: String,
    /// The checkpoint to load first.
    pub(crate) model: Option<String>,
    pub(crate) tags: Vec<String>,
    pub(crate) request: Value,
    pub(crate) raw_request: Option<String>,
    pub(crate) request_headers: Option<serde_json::Map<String, Value>>,
    pub(crate) request_basic_auth: Option<(String, String)>,
    pub(crate) server_flags: Option<String>,
    pub(crate) status: Option<u16>,
    pub(crate) content_type: Option<String>,
    pub(crate) response: Value,
    pub(crate) response_headers: Option<serde_json::Map<String, Value>>,
    /// What was polled and called while the job ran.
    #[serde(default)]
    pub(crate) extra: Vec<Value>,
    #[serde(skip)]
    floor: Option<NoiseFloor>,
}

impl Case {
    /// How far this case's pictures may be from A1111's.
    pub(crate) fn bar(&self) -> Bar {
        let percent = if self.tags.iter().any(|tag| tag == "sdxl") {
            2.0
        } else {
            1.0
        };
        match self.floor {
            Some(floor) if !self.has_random_seed() => Bar {
                max: if floor.max > 1 {
                    floor.max.saturating_mul(2)
                } else {
                    1
                },
                percent: f64::max(percent, 2.0 * floor.percent_differing),
            },
            _ => Bar { max: 1, percent },
        }
    }

    /// Whether the server picks the seed.
    pub(crate) fn has_random_seed(&self) -> bool {
        self.draws_pictures()
            && self.request.get("infotext").is_none_or(Value::is_null)
            && is_unset(self.request.get("seed"))
    }

    /// Whether the server picks the subseed.
    pub(crate) fn has_random_subseed(&self) -> bool {
        is_unset(self.request.get("subseed"))
    }

    fn draws_pictures(&self) -> bool {
        self.method == "POST" && self.status == Some(200) && self.path.ends_with("2img")
    }

    /// The request as it was sent.
    pub(crate) fn request<'a>(&'a self, golden: &Path) -> Request<'a> {
        let mut headers: Vec<(String, String)> = Vec::new();
        for (name, value) in self.request_headers.iter().flatten() {
            headers.push((name.clone(), value.as_str().unwrap_or_default().to_owned()));
        }
        if let Some((user, password)) = &self.request_basic_auth {
            let token =
                base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
            headers.push(("Authorization".to_owned(), format!("Basic {token}")));
        }
        let named = |headers: &[(String, String)], name: &str| {
            headers
                .iter()
                .any(|(key, _)| key.eq_ignore_ascii_case(name))
        };
        if !named(&headers, "Accept-Encoding") {
            headers.push(("Accept-Encoding".to_owned(), "gzip, deflate".to_owned()));
        }
        let body = match (&self.raw_request, &self.request) {
            (Some(raw), _) => Some(raw.clone().into_bytes()),
            (None, Value::Null) => None,
            (None, json) => {
                if !named(&headers, "Content-Type") {
                    headers.push(("Content-Type".to_owned(), "application/json".to_owned()));
                }
                Some(with_files(json, golden).to_string().into_bytes())
            }
        };
        Request {
            method: &self.method,
            path: &self.path,
            headers,
            body,
        }
    }
}

fn is_unset(value: Option<&Value>) -> bool {
    value.is_none_or(|value| value.is_null() || value.as_i64() == Some(-1))
}

/// `json` with every `@file:` and `@dataurl:` replaced by the picture that it names.
pub(crate) fn with_files(json: &Value, golden: &Path) -> Value {
    let encoded = |file: &str| {
        let bytes =
            std::fs::read(golden.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        base64::engine::general_purpose::STANDARD.encode(bytes)
    };
    match json {
        Value::String(text) => {
            match (text.strip_prefix("@file:"), text.strip_prefix("@dataurl:")) {
                (Some(file), _) => Value::String(encoded(file)),
                (_, Some(file)) => {
                    Value::String(format!("data:image/png;base64,{}", encoded(file)))
                }
                _ => json.clone(),
            }
        }
        Value::Array(items) => items.iter().map(|item| with_files(item, golden)).collect(),
        Value::Object(map) => Value::Object(
            map.iter()
                .map(|(key, value)| (key.clone(), with_files(value, golden)))
                .collect(),
        ),
        _ => json.clone(),
    }
}

/// `compat-tests/golden`.
pub(crate) fn golden_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("compat-tests/golden")
}

/// All cases, in the order of `index.json`.
///
/// # Panics
/// When a file is missing or has another shape.
pub(crate) fn read_all(golden: &Path) -> Vec<Case> {
    let read = |path: PathBuf| {
        std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    let index: Vec<IndexEntry> =
        serde_json::from_slice(&read(golden.join("index.json"))).expect("index.json has its shape");
    let case = |entry: IndexEntry| {
        let path = golden.join("cases").join(format!("{}.json", entry.name));
        let mut case: Case = serde_json::from_slice(&read(path))
            .unwrap_or_else(|error| panic!("{}: {error}", entry.name));
        case.floor = entry.a1111_other_threads;
        case
    };
    index.into_iter().map(case).collect()
}
