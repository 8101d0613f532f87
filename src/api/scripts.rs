//! Which scripts a request may name.
//!
//! Follows A1111 v1.10.1's checks before a job is queued. Titles match in any letter case.

use serde_json::{Map, Value};

use super::ApiError;

/// The titles of the scripts of one tab (txt2img or img2img).
#[derive(Debug, Clone, Copy)]
pub struct ScriptTitles {
    pub selectable: &'static [&'static str],
    pub always_on: &'static [&'static str],
}

/// Scripts of txt2img that this server has.
pub const TXT2IMG_SCRIPTS: ScriptTitles = ScriptTitles {
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
pub const IMG2IMG_SCRIPTS: ScriptTitles = ScriptTitles {
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
pub fn check_script_name(titles: ScriptTitles, name: Option<&str>) -> Result<(), ApiError> {
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
pub fn check_alwayson(
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
