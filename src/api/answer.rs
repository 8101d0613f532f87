//! The answer of txt2img and img2img: pictures as base64, the echo of the request, the `info` text.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::info::info_text;
use super::{ApiError, Body};
use crate::config::Options;
use crate::pipeline::{GenerationResult, Picture};

/// The body of the answer. `encoding` are the options as they are outside of the job: A1111 encodes
/// after it restored overrides, so an overridden `samples_format` does not change the answer.
///
/// # Errors
/// `Invalid image format` where the option names none that can be encoded.
pub fn generation_answer(
    result: &GenerationResult,
    body: &Body,
    job: &Options,
    encoding: &Options,
) -> Result<Value, ApiError> {
    let images = if body.bool("send_images") {
        encode_images(result, job, encoding)?
    } else {
        Vec::new()
    };
    Ok(json!({
        "images": images,
        "parameters": body.fields(),
        "info": info_text(result, body),
    }))
}

/// Every picture as base64, with its infotext where pictures carry one.
///
/// # Errors
/// See [`generation_answer`].
pub fn encode_images(
    result: &GenerationResult,
    job: &Options,
    encoding: &Options,
) -> Result<Vec<String>, ApiError> {
    let with_text = job.bool("enable_pnginfo");
    result
        .images
        .iter()
        .map(|image| {
            let text = image.infotext.as_deref().filter(|_| with_text);
            let texts: Vec<(&str, &str)> =
                text.into_iter().map(|text| ("parameters", text)).collect();
            encode_picture(&image.image, &texts, encoding)
        })
        .collect()
}

/// One picture in the format of the option `samples_format`, as base64.
///
/// # Errors
/// See [`generation_answer`].
pub fn encode_picture(
    picture: &Picture,
    texts: &[(&str, &str)],
    options: &Options,
) -> Result<String, ApiError> {
    let _ = options;
    let mut bytes = Vec::new();
    let rgba = picture.to_rgb8();
    let mut encoder = png::Encoder::new(&mut bytes, rgba.width(), rgba.height());
    encoder.set_color(png::ColorType::Rgb);
    for (keyword, text) in texts {
        let _ = encoder.add_itxt_chunk((*keyword).to_owned(), (*text).to_owned());
    }
    let written = encoder
        .write_header()
        .and_then(|mut writer| writer.write_image_data(&rgba));
    written.map_err(|error| ApiError::unexpected("ValueError", error.to_string()))?;
    Ok(STANDARD.encode(bytes))
}

/// Decodes a picture of a request.
///
/// # Errors
/// A1111's `Invalid encoded image`, or its refusals of addresses.
pub fn decode_picture(text: &str, options: &Options) -> Result<Picture, ApiError> {
    if text.starts_with("http://") || text.starts_with("https://") {
        return Err(refuse_address(options));
    }
    let bytes = STANDARD
        .decode(text.trim())
        .map_err(|_| ApiError::invalid_image())?;
    image::load_from_memory(&bytes).map_err(|_| ApiError::invalid_image())
}

fn refuse_address(options: &Options) -> ApiError {
    if options.bool("api_enable_requests") {
        ApiError::http(500, "Request to local resource not allowed")
    } else {
        ApiError::http(500, "Requests not allowed")
    }
}
