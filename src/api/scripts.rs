//! Which scripts a request may name.
//!
//! Follows A1111 v1.10.1's checks before a job is queued. Titles match in any letter case.

use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use super::ApiError;

/// The titles of the scripts of one tab (txt2img or img2img).
#[derive(Debug, Clone, Copy)]
pub(super) struct ScriptTitles {
    pub(super) selectable: &'static [&'static str],
    pub(super) always_on: &'static [&'static str],
}

/// Scripts of txt2img that this server has.
pub(super) const TXT2IMG_SCRIPTS: ScriptTitles = ScriptTitles {
    selectable: &[],
    always_on: &[
        "Extra options",
        "Hypertile",
        "Comments",
        "Refiner",
        "Sampler",
        "Seed",
    ],
};

/// Scripts of img2img that this server has.
pub(super) const IMG2IMG_SCRIPTS: ScriptTitles = ScriptTitles {
    selectable: &[],
    always_on: &[
        "Extra options",
        "Hypertile",
        "Comments",
        "Soft Inpainting",
        "Refiner",
        "Sampler",
        "Seed",
    ],
};

/// Every script of A1111 with its arguments, txt2img first; `title` is for looking up here.
static SCRIPT_INFO: LazyLock<Vec<Map<String, Value>>> = LazyLock::new(|| {
    serde_json::from_str(include_str!("script-info.json"))
        .expect("the embedded table is well formed")
});

/// The body of `GET /sdapi/v1/script-info`: the scripts that this server has.
#[must_use]
pub fn script_info() -> Value {
    SCRIPT_INFO
        .iter()
        .filter(|script| {
            let titles = titles_of(script.get("is_img2img") == Some(&Value::Bool(true)));
            let name = script.get("name").and_then(Value::as_str).unwrap_or("");
            holds(titles.selectable, name) || holds(titles.always_on, name)
        })
        .map(|script| {
            let mut shown = script.clone();
            shown.shift_remove("title");
            Value::Object(shown)
        })
        .collect()
}

/// The body of `GET /sdapi/v1/scripts`: selectable scripts, then always-on ones. A1111 writes the
/// names in lower case, but for `Hypertile`, and does not list `Comments`.
#[must_use]
pub fn script_names() -> Value {
    let names = |titles: ScriptTitles| -> Vec<String> {
        let listed = titles
            .always_on
            .iter()
            .filter(|title| **title != "Comments");
        titles
            .selectable
            .iter()
            .chain(listed)
            .map(|title| match *title {
                "Hypertile" => "Hypertile".to_owned(),
                other => other.to_lowercase(),
            })
            .collect()
    };
    json!({"txt2img": names(TXT2IMG_SCRIPTS), "img2img": names(IMG2IMG_SCRIPTS)})
}

fn titles_of(img2img: bool) -> ScriptTitles {
    if img2img {
        IMG2IMG_SCRIPTS
    } else {
        TXT2IMG_SCRIPTS
    }
}

fn holds(titles: &[&str], title: &str) -> bool {
    let title = title.to_lowercase();
    titles.iter().any(|known| known.to_lowercase() == title)
}

fn not_found(title: &str) -> ApiError {
    ApiError::http(422, format!("Script '{title}' not found"))
}

/// Checks `script_name`; empty and null name no script.
///
/// # Errors
/// 422 for an unknown or always-on title.
pub(super) fn check_script_name(titles: ScriptTitles, name: Option<&str>) -> Result<(), ApiError> {
    match name {
        None | Some("") => Ok(()),
        Some(name) if holds(titles.selectable, name) => Ok(()),
        Some(name) => Err(not_found(name)),
    }
}

/// Checks `alwayson_scripts` and answers the entries by lower-case title.
///
/// Clients send ControlNet and ADetailer entries that are empty or switched off whether the extension
/// is there or not; those are accepted.
///
/// # Errors
/// 422 for an unknown or selectable title, A1111's TypeError for an entry that holds nothing.
pub(super) fn check_alwayson(
    titles: ScriptTitles,
    entries: &Map<String, Value>,
) -> Result<Map<String, Value>, ApiError> {
    let mut arguments = Map::new();
    for (title, entry) in entries {
        if holds(titles.selectable, title) {
            let detail = "Cannot have a selectable script in the always on scripts params";
            return Err(ApiError::http(422, detail));
        }
        if !holds(titles.always_on, title) {
            if is_switched_off(title, entry) {
                continue;
            }
            return Err(not_found(title));
        }
        match entry {
            Value::Object(fields) => {
                if let Some(args) = fields.get("args") {
                    arguments.insert(title.to_lowercase(), args.clone());
                }
            }
            Value::Array(_) | Value::String(_) => {}
            Value::Null | Value::Bool(_) | Value::Number(_) => {
                let text = format!("argument of type '{}' is not iterable", python_type(entry));
                return Err(ApiError::unexpected("TypeError", text));
            }
        }
    }
    Ok(arguments)
}

fn python_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "NoneType",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float",
        Value::Number(_) => "int",
        Value::String(_) => "str",
        Value::Array(_) => "list",
        Value::Object(_) => "dict",
    }
}

/// An entry of ControlNet or ADetailer that asks for nothing.
fn is_switched_off(title: &str, entry: &Value) -> bool {
    let known = ["controlnet", "adetailer"].contains(&title.to_lowercase().as_str());
    let off = |argument: &Value| match argument {
        Value::Null | Value::Bool(false) => true,
        Value::Object(unit) => {
            unit.is_empty()
                || unit
                    .get("enabled")
                    .is_some_and(|enabled| enabled == &Value::Bool(false))
        }
        Value::Bool(true) | Value::Number(_) | Value::String(_) | Value::Array(_) => false,
    };
    known
        && entry.get("args").is_none_or(|args| {
            args.is_null() || args.as_array().is_some_and(|args| args.iter().all(off))
        })
}
