//! The answer of txt2img and img2img: pictures as base64, the echo of the request, the `info` text.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::early_encoder::{EarlyEncoder, encode_all};
use super::info::info_text;
use super::{ApiError, Body};
use crate::config::Options;
use crate::imaging::{ImageFormat, encode_jpeg, encode_png, encode_webp};
use crate::pipeline::{GenerationResult, Picture};

/// The body of the answer. `encoding` are the options as they are outside of the job: A1111 encodes
/// after it restored overrides, so an overridden `samples_format` does not change the answer. What
/// `early` has encoded is not encoded again.
///
/// # Errors
/// `Invalid image format` where the option names none that can be encoded.
pub fn generation_answer(
    result: &GenerationResult,
    body: &Body,
    job: &Options,
    encoding: &Options,
    early: Option<&EarlyEncoder>,
) -> Result<Value, ApiError> {
    let images = if body.bool("send_images") {
        encode_all(&result.images, job, encoding, early)?
    } else {
        Vec::new()
    };
    Ok(json!({
        "images": images,
        "parameters": body.fields(),
        "info": info_text(result, body),
    }))
}

/// One picture in the format of the option `samples_format`, as base64. PNG carries all `texts`, the
/// others the one called `parameters`.
///
/// # Errors
/// See [`generation_answer`].
pub fn encode_picture(
    picture: &Picture,
    texts: &[(&str, &str)],
    options: &Options,
) -> Result<String, ApiError> {
    let Some(format) = ImageFormat::from_option(options.text("samples_format")) else {
        return Err(ApiError::http(500, "Invalid image format"));
    };
    let comment = texts
        .iter()
        .find(|(keyword, _)| *keyword == "parameters")
        .map_or("", |(_, text)| text);
    let quality = options.i64("jpeg_quality").clamp(1, 100) as u8;
    let bytes = match format {
        ImageFormat::Png => encode_png(picture, texts),
        ImageFormat::Jpeg => encode_jpeg(picture, quality, comment),
        ImageFormat::Webp => encode_webp(picture, quality, false, comment),
    };
    let bytes = bytes.map_err(|error| ApiError::unexpected("OSError", error.to_string()))?;
    Ok(STANDARD.encode(bytes))
}

/// A picture without text as base64, or as a `data:` URL's content, in a named format.
///
/// # Errors
/// See [`generation_answer`].
pub fn preview_url(picture: &Picture, format: &str) -> Result<String, ApiError> {
    let mut options = Options::default();
    options.set("samples_format", json!(format));
    options.set("jpeg_quality", json!(80));
    let content = encode_picture(picture, &[], &options)?;
    Ok(format!("data:image/{format};base64,{content}"))
}
