//! Recorded values of the original for the tests of this room.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// The JSON file at `path` below the repository's root.
pub(crate) fn read_file(path: &str) -> Value {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let text = fs_err::read_to_string(path).expect("the golden file exists");
    serde_json::from_str(&text).expect("the golden file is JSON")
}

fn entry<T: DeserializeOwned>(file: &str, name: &str) -> T {
    serde_json::from_value(read_file(file)[name].take()).expect("the vectors have this shape")
}

/// The vectors called `name` that were taken from A1111's prompt functions.
pub(crate) fn read<T: DeserializeOwned>(name: &str) -> T {
    entry("tests/golden/prompt_vectors.json", name)
}

/// The vectors called `name` on styles, wildcards and dynamic prompts.
pub(crate) fn read_api<T: DeserializeOwned>(name: &str) -> T {
    entry("tests/golden/style_and_wildcard_vectors.json", name)
}

/// What A1111 made of a set of prompts with `model` loaded.
pub(crate) fn recorded_prompts(model: &str) -> Map<String, Value> {
    match read_file(&format!("compat-tests/golden/truth/prompts_{model}.json")) {
        Value::Object(cases) => cases,
        _ => panic!("the recorded prompts are an object"),
    }
}
