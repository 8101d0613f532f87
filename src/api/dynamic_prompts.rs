//! The always-on script of dynamic prompts, as the A1111 extension sd-dynamic-prompts 2.17.1 has it: its
//! title, its arguments, and when it is in force.

use std::sync::{Arc, LazyLock};

use serde_json::{Map, Value, json};

use super::{ApiError, Body, ResolveContext};
use crate::catalogue::WildcardFolders;
use crate::config::DynamicPromptsMode;
use crate::pipeline::{DynamicPrompts, GenerationParams};
use crate::scripts::Arguments;

/// The title in lower case. Requests may name another version.
pub(super) const NAME: &str = "dynamic prompts v2.17.1";
const ANY_VERSION: &str = "dynamic prompts";

/// The extension's arguments with its page's values.
static ARGUMENTS: LazyLock<Vec<Map<String, Value>>> = LazyLock::new(|| {
    serde_json::from_str(include_str!("dynamic-prompts-info.json"))
        .expect("the embedded table is well formed")
});

/// What cannot be done here: argument and name.
const REFUSED: [(usize, &str); 4] = [
    (3, "magic prompts"),
    (4, "\"I'm feeling lucky\""),
    (5, "the attention grabber"),
    (13, "Jinja templates"),
];

/// Options of the extension that act here. They are not listed, since A1111 alone has none of them.
const OPTIONS: [&str; 2] = ["dp_write_raw_template", "dp_ignore_whitespace"];

/// Whether and from which folders prompts are expanded.
#[derive(Debug, Clone, Default)]
pub struct DynamicPromptsSetting {
    pub mode: DynamicPromptsMode,
    pub wildcards: Arc<WildcardFolders>,
}

impl DynamicPromptsSetting {
    /// Whether prompts are expanded without being asked to.
    #[must_use]
    pub fn active(&self) -> bool {
        match self.mode {
            DynamicPromptsMode::On => true,
            DynamicPromptsMode::Off => false,
            DynamicPromptsMode::Auto => self.wildcards.exist(),
        }
    }

    /// Whether an entry of `alwayson_scripts` means this script.
    pub(super) fn is_meant(&self, title: &str) -> bool {
        self.mode != DynamicPromptsMode::Off && title.to_lowercase().starts_with(ANY_VERSION)
    }
}

/// The entry of `script-info` for one page.
pub(super) fn info(is_img2img: bool) -> Value {
    json!({
        "name": NAME,
        "is_alwayson": true,
        "is_img2img": is_img2img,
        "args": *ARGUMENTS,
    })
}

/// Puts the script into the job. `sent` are the arguments of the request, by lower-case title.
///
/// # Errors
/// A sentence for what the extension can do and this server cannot.
pub(super) fn set(
    params: &mut GenerationParams,
    body: &Body,
    context: &ResolveContext<'_>,
    sent: &Map<String, Value>,
    ignored: &mut Vec<String>,
) -> Result<(), ApiError> {
    let setting = &context.dynamic_prompts;
    let sent = sent.iter().find(|(title, _)| setting.is_meant(title));
    let sent = sent.and_then(|(_, arguments)| arguments.as_array());
    if sent.is_none() && !setting.active() {
        return Ok(());
    }
    let defaults: Vec<Value> = ARGUMENTS
        .iter()
        .map(|argument| argument.get("value").cloned().unwrap_or(Value::Null))
        .collect();
    let arguments = Arguments::new(sent.cloned().unwrap_or_default(), &defaults);
    if !arguments.bool(0) {
        return Ok(());
    }
    if let Some((_, name)) = REFUSED.iter().find(|(index, _)| arguments.bool(*index)) {
        let text = format!("dynamic prompts cannot do {name} here: switch it off");
        return Err(ApiError::unexpected("NotImplementedError", text));
    }
    let count = |index: usize| -> Result<usize, ApiError> {
        Ok(usize::try_from(arguments.int(index)?).unwrap_or(0))
    };
    params.dynamic_prompts = Some(DynamicPrompts {
        combinatorial: arguments.bool(1),
        combinatorial_batches: count(2)?.clamp(1, 1000),
        fixed_seed: arguments.bool(10),
        unlink_seed: arguments.bool(11),
        first_only: arguments.bool(14),
        max_generations: count(15)?,
        ..DynamicPrompts::new(Arc::clone(&setting.wildcards))
    });
    let overrides = body.object("override_settings");
    for key in OPTIONS {
        if let Some(value) = overrides.and_then(|overrides| overrides.get(key)) {
            params.override_option(key, value.clone());
            ignored.retain(|ignored| ignored != key);
        }
    }
    Ok(())
}
