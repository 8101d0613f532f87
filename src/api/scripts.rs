//! Which scripts a request may name.
//!
//! Follows A1111 v1.10.1's checks before a job is queued. Titles match in any letter case.

use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use super::dynamic_prompts::{self, DynamicPromptsSetting};
use super::{ApiError, Body, ResolveContext};
use crate::scripts::{
    Arguments, SCRIPTS, ScriptCall, ScriptLimits, Surroundings, Tab, find_script,
};

/// Titles of the always-on scripts of txt2img.
const TXT2IMG_ALWAYS_ON: &[&str] = &[
    "Extra options",
    "Hypertile",
    "Comments",
    "Refiner",
    "Sampler",
    "Seed",
];

/// Titles of the always-on scripts of img2img.
const IMG2IMG_ALWAYS_ON: &[&str] = &[
    "Extra options",
    "Hypertile",
    "Comments",
    "Soft Inpainting",
    "Refiner",
    "Sampler",
    "Seed",
];

fn always_on(tab: Tab) -> &'static [&'static str] {
    match tab {
        Tab::Txt2Img => TXT2IMG_ALWAYS_ON,
        Tab::Img2Img => IMG2IMG_ALWAYS_ON,
    }
}

/// Every script of A1111 with its arguments, txt2img first; `title` is for looking up here.
static SCRIPT_INFO: LazyLock<Vec<Map<String, Value>>> = LazyLock::new(|| {
    serde_json::from_str(include_str!("script-info.json"))
        .expect("the embedded table is well formed")
});

/// Names that stand in the choices of scripts.
#[derive(Debug, Clone, Default)]
pub struct ScriptChoices {
    /// Dynamic prompts are in force and so are listed.
    pub dynamic_prompts: bool,
    pub checkpoints: Vec<String>,
    pub upscalers: Vec<String>,
}

/// The body of `GET /sdapi/v1/script-info`: the scripts that this server has.
#[must_use]
pub fn script_info(choices: &ScriptChoices) -> Value {
    let extension = choices
        .dynamic_prompts
        .then(|| [false, true].map(dynamic_prompts::info));
    SCRIPT_INFO
        .iter()
        .filter(|script| {
            let tab = tab_of(script);
            let name = name_of(script);
            find_script(name, tab).is_some() || holds(always_on(tab), name)
        })
        .map(|script| {
            let mut shown = script.clone();
            shown.shift_remove("title");
            for argument in shown
                .get_mut("args")
                .and_then(Value::as_array_mut)
                .into_iter()
                .flatten()
            {
                let label = argument.get("label").and_then(Value::as_str).unwrap_or("");
                let names = match (name_of(script), label) {
                    ("refiner", "Checkpoint") => &choices.checkpoints,
                    ("sd upscale", "Upscaler") => &choices.upscalers,
                    _ => continue,
                };
                argument["choices"] = json!(names);
            }
            Value::Object(shown)
        })
        .chain(extension.into_iter().flatten())
        .collect()
}

fn tab_of(script: &Map<String, Value>) -> Tab {
    if script.get("is_img2img") == Some(&Value::Bool(true)) {
        Tab::Img2Img
    } else {
        Tab::Txt2Img
    }
}

fn name_of(script: &Map<String, Value>) -> &str {
    script.get("name").and_then(Value::as_str).unwrap_or("")
}

/// The body of `GET /sdapi/v1/scripts`: selectable scripts, then always-on ones. A1111 writes the
/// names in lower case, but for `Hypertile`, and does not list `Comments`.
#[must_use]
pub fn script_names(dynamic_prompts: bool) -> Value {
    let names = |tab: Tab| -> Vec<String> {
        let selectable = SCRIPTS
            .iter()
            .filter(|script| script.serves(tab))
            .map(|script| script.title());
        let listed = always_on(tab)
            .iter()
            .copied()
            .filter(|title| *title != "Comments")
            .chain(dynamic_prompts.then_some(dynamic_prompts::NAME));
        selectable
            .chain(listed)
            .map(|title| match title {
                "Hypertile" => "Hypertile".to_owned(),
                other => other.to_lowercase(),
            })
            .collect()
    };
    json!({"txt2img": names(Tab::Txt2Img), "img2img": names(Tab::Img2Img)})
}

fn holds(titles: &[&str], title: &str) -> bool {
    let title = title.to_lowercase();
    titles.iter().any(|known| known.to_lowercase() == title)
}

fn not_found(title: &str) -> ApiError {
    ApiError::http(422, format!("Script '{title}' not found"))
}

/// The script that `script_name` asks for, with `script_args`; empty and null name no script.
///
/// A1111 needs every argument; here those left out have the page's values.
///
/// # Errors
/// 422 for an unknown or always-on title.
pub(super) fn chosen_script(
    tab: Tab,
    body: &Body,
    context: &ResolveContext<'_>,
) -> Result<Option<ScriptCall>, ApiError> {
    let Some(name) = body.nonempty_text("script_name") else {
        return Ok(None);
    };
    let script = find_script(name, tab).ok_or_else(|| not_found(name))?;
    let info = SCRIPT_INFO
        .iter()
        .find(|info| tab_of(info) == tab && name_of(info) == script.title().to_lowercase());
    let defaults: Vec<Value> = info
        .and_then(|info| info.get("args"))
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .map(|argument| argument.get("value").cloned().unwrap_or(Value::Null))
        .collect();
    let styles = context
        .styles
        .styles()
        .into_iter()
        .filter(|row| !row.divider)
        .map(|row| (row.name, row.prompt, row.negative_prompt))
        .collect();
    Ok(Some(ScriptCall {
        script,
        tab,
        arguments: Arguments::new(body.list("script_args").to_vec(), &defaults),
        surroundings: Surroundings {
            styles,
            upscalers: context.upscalers.clone(),
            limits: ScriptLimits::default(),
        },
    }))
}

/// Checks `alwayson_scripts` and answers the entries by lower-case title.
///
/// Clients send ControlNet and ADetailer entries that are empty or switched off whether the extension
/// is there or not; those are accepted.
///
/// # Errors
/// 422 for an unknown or selectable title, A1111's TypeError for an entry that holds nothing.
pub(super) fn check_alwayson(
    tab: Tab,
    entries: &Map<String, Value>,
    dynamic_prompts: &DynamicPromptsSetting,
) -> Result<Map<String, Value>, ApiError> {
    let mut arguments = Map::new();
    for (title, entry) in entries {
        if find_script(title, tab).is_some() {
            let detail = "Cannot have a selectable script in the always on scripts params";
            return Err(ApiError::http(422, detail));
        }
        if !holds(always_on(tab), title) && !dynamic_prompts.is_meant(title) {
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
