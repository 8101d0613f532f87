//! `POST /sdapi/v1/png-info`: what a picture's file says, and the infotext read into keys.

use serde_json::{Map, Value, json};

use super::{ApiError, Body, PictureAccess, StyleBook};
use crate::config::Options;
use crate::infotext::{KnownStyle, ParseSettings, StyleHandling, parse};

/// The body of the answer.
///
/// # Errors
/// A1111's answer to a picture that cannot be read.
pub fn png_info_answer(
    body: &Body,
    options: &Options,
    styles: &dyn StyleBook,
    access: PictureAccess<'_>,
) -> Result<Value, ApiError> {
    let file = access.file(body.text("image").unwrap_or("").trim(), options)?;
    let info = file.metadata.infotext.unwrap_or_default();
    let parameters = parse_infotext(&info, options, styles);
    Ok(json!({"info": info, "items": file.metadata.items, "parameters": parameters}))
}

/// Reads an infotext under the options that govern it.
pub(super) fn parse_infotext(
    text: &str,
    options: &Options,
    styles: &dyn StyleBook,
) -> Map<String, Value> {
    let rows = styles.styles();
    let known: Vec<KnownStyle<'_>> = rows
        .iter()
        .map(|row| KnownStyle {
            name: &row.name,
            prompt: &row.prompt,
            negative_prompt: &row.negative_prompt,
        })
        .collect();
    let skipped: Vec<&str> = options
        .get("infotext_skip_pasting")
        .and_then(Value::as_array)
        .map(|keys| keys.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default();
    let settings = ParseSettings {
        styles: &known,
        style_handling: StyleHandling::from_option(options.text("infotext_styles")),
        auto_backcompat: options.bool("auto_backcompat"),
        skipped_keys: &skipped,
    };
    parse(text, &settings)
}
