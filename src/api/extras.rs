//! `extra-single-image` and `extra-batch-images`: from request fields to a job and back.

use serde_json::{Value, json};

use super::answer::encode_picture;
use super::{ApiError, Body, PictureAccess};
use crate::config::Options;
use crate::pipeline::{ExtrasParams, ExtrasResult, ExtrasSize, ExtrasStage, Tiling};

/// Which of the two endpoints was called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtrasRequest {
    Single,
    Batch,
}

/// The job that a request asks for. Decodes the pictures, so it belongs on the queue's thread.
///
/// # Errors
/// A1111's answer to a picture that cannot be read.
pub fn resolve_extras(
    request: ExtrasRequest,
    body: &Body,
    options: &Options,
    access: PictureAccess<'_>,
) -> Result<ExtrasParams, ApiError> {
    let texts: Vec<&str> = match request {
        ExtrasRequest::Single => vec![body.text("image").unwrap_or("")],
        ExtrasRequest::Batch => body
            .list("imageList")
            .iter()
            .map(|file| file.get("data").and_then(Value::as_str).unwrap_or(""))
            .collect(),
    };
    let images = texts
        .into_iter()
        .map(|text| access.file(text, options))
        .collect::<Result<_, _>>()?;
    let side = |name: &str| body.int(name).unwrap_or(512).clamp(1, 65_535) as u32;
    let size = if body.int("resize_mode") == Some(1) {
        ExtrasSize::To {
            width_px: side("upscaling_resize_w"),
            height_px: side("upscaling_resize_h"),
            crop: body.bool("upscaling_crop"),
        }
    } else {
        ExtrasSize::By(body.float("upscaling_resize").unwrap_or(2.0))
    };
    let share = |name: &str| body.float(name).unwrap_or(0.0);
    let names = |key: &str| -> Vec<String> {
        options
            .get(key)
            .and_then(Value::as_array)
            .map(|names| {
                names
                    .iter()
                    .filter_map(Value::as_str)
                    .map(str::to_owned)
                    .collect()
            })
            .unwrap_or_default()
    };
    Ok(ExtrasParams {
        images,
        size,
        upscaler_1: body.text("upscaler_1").unwrap_or("None").to_owned(),
        upscaler_2: body.text("upscaler_2").unwrap_or("None").to_owned(),
        upscaler_2_visibility: share("extras_upscaler_2_visibility"),
        gfpgan_visibility: share("gfpgan_visibility"),
        codeformer_visibility: share("codeformer_visibility"),
        codeformer_weight: share("codeformer_weight"),
        stages: ExtrasStage::from_options(
            &names("postprocessing_operation_order"),
            &names("postprocessing_disable_in_extras"),
        ),
        tiling: Tiling::from_options(options),
    })
}

/// The body of the answer.
///
/// # Errors
/// `Invalid image format` where the option names none that can be encoded.
pub fn extras_answer(
    request: ExtrasRequest,
    result: &ExtrasResult,
    options: &Options,
) -> Result<Value, ApiError> {
    let with_text = options.bool("enable_pnginfo");
    let images = result
        .images
        .iter()
        .map(|image| {
            let texts: Vec<(&str, &str)> = image
                .texts
                .iter()
                .filter(|_| with_text)
                .map(|(keyword, text)| (keyword.as_str(), text.as_str()))
                .collect();
            encode_picture(&image.image, &texts, options)
        })
        .collect::<Result<Vec<_>, _>>()?;
    let html_info = html_paragraph(&result.infotext);
    Ok(match request {
        ExtrasRequest::Single => {
            json!({"html_info": html_info, "image": images.into_iter().next()})
        }
        ExtrasRequest::Batch => json!({"html_info": html_info, "images": images}),
    })
}

/// A1111's `plaintext_to_html`: escaped, with `<br>` at line ends, in a paragraph.
fn html_paragraph(text: &str) -> String {
    let escaped = text
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#x27;");
    format!("<p>{}</p>", escaped.replace('\n', "<br>\n"))
}
