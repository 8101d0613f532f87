//! The request field `infotext`: fills the fields that the client did not send.

use serde_json::{Map, Value, json};

use super::png_info::parse_infotext;
use super::{ApiError, Body, ResolveContext, choose_sampler};
use crate::infotext::{img2img_fields, override_settings, txt2img_fields};

/// Which endpoint the request is for; img2img takes fewer fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    Txt2Img,
    Img2Img,
}

/// Fills unset fields from the infotext, if the request has one.
pub(super) fn apply_infotext(
    body: &mut Body,
    context: &ResolveContext<'_>,
    target: Target,
) -> Result<(), ApiError> {
    let Some(text) = body.nonempty_text("infotext").map(str::to_owned) else {
        return Ok(());
    };
    let parsed = parse_infotext(&text, &context.options, context.styles);
    let fields = match target {
        Target::Txt2Img => txt2img_fields(&parsed),
        Target::Img2Img => img2img_fields(&parsed),
    };
    for (name, value) in canonical_sampler(fields) {
        if !body.sent(&name) {
            body.set_coerced(&name, value)?;
        }
    }
    let keep_checkpoint = context.options.bool("disable_weights_auto_swap");
    let current = |key: &str| context.options.get(key).cloned();
    let overrides = override_settings(&parsed, current, keep_checkpoint);
    let mut all: Map<String, Value> = body
        .object("override_settings")
        .cloned()
        .unwrap_or_default();
    for (key, value) in overrides {
        all.entry(key.option).or_insert(value);
    }
    body.set("override_settings", json!(all));
    Ok(())
}

/// Sampler and scheduler by their canonical names, the sampler's own scheduler as `Automatic`.
fn canonical_sampler(mut fields: Map<String, Value>) -> Map<String, Value> {
    let text = |key: &str| fields.get(key).and_then(Value::as_str);
    if let Some(sampler) = text("sampler_name") {
        let choice = choose_sampler(sampler, text("scheduler")).with_own_scheduler_automatic();
        fields.insert("sampler_name".to_owned(), json!(choice.sampler));
        fields.insert("scheduler".to_owned(), json!(choice.scheduler));
    }
    fields
}
