//! Recorded values of the original for the tests of this room.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::KnownStyle;

/// The styles that the vectors were recorded with.
pub(super) const STYLES: [KnownStyle<'static>; 4] = [
    style("Ink", "ink drawing, monochrome", "color"),
    style(
        "Wrap",
        "a photo of {prompt}, sharp focus",
        "blurry, {prompt}",
    ),
    style("Empty", "", ""),
    style("NegOnly", "", "lowres, bad anatomy"),
];

pub(super) const fn style<'a>(
    name: &'a str,
    prompt: &'a str,
    negative_prompt: &'a str,
) -> KnownStyle<'a> {
    KnownStyle {
        name,
        prompt,
        negative_prompt,
    }
}

/// The JSON file at `path` below the repository's root.
pub(super) fn read_file(path: &str) -> Value {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let text = fs_err::read_to_string(path).expect("the golden file exists");
    serde_json::from_str(&text).expect("the golden file is JSON")
}

/// The vectors called `name` in a file of `tests/golden`.
pub(super) fn read_from<T: DeserializeOwned>(file: &str, name: &str) -> T {
    let mut vectors = read_file(&format!("tests/golden/{file}"));
    serde_json::from_value(vectors[name].take()).expect("the vectors have this shape")
}

/// The vectors of infotexts called `name`.
pub(super) fn read<T: DeserializeOwned>(name: &str) -> T {
    read_from("infotext_vectors.json", name)
}
