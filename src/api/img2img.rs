//! From the fields of `POST /sdapi/v1/img2img` to pipeline parameters.

use serde_json::{Number, Value};

use super::infotext_field::{Target, apply_infotext};
use super::resolve::{CommonPart, read_common};
use super::{ApiError, Body, ResolveContext, Resolved};
use crate::config::Options;
use crate::pipeline::{Img2ImgParams, SoftInpaintingParams};
use crate::scripts::Tab;

/// Resolves a request; every check that A1111 makes before it queues the job.
///
/// # Errors
/// A1111's answer to a missing picture, an unknown script or an unusable value.
pub fn resolve_img2img(mut body: Body, context: &ResolveContext<'_>) -> Result<Resolved, ApiError> {
    if body.value("init_images").is_null() {
        return Err(ApiError::http(404, "Init image not found"));
    }
    apply_infotext(&mut body, context, Target::Img2Img)?;
    let CommonPart {
        script,
        arguments,
        mut params,
        ignored_overrides,
    } = read_common(Tab::Img2Img, &mut body, context)?;
    params.img2img = Some(img2img(&body, &context.options));
    params.soft_inpainting = arguments.get("soft inpainting").and_then(soft_inpainting);
    let init_images = body.list("init_images").to_vec();
    if init_images.is_empty() {
        let text =
            "Expected 3D (unbatched) or 4D (batched) input to conv2d, but got input of size: [0]";
        return Err(ApiError::unexpected("RuntimeError", text));
    }
    let mask = body.nonempty_text("mask").map(str::to_owned);
    if !body.bool("include_init_images") {
        body.set("init_images", Value::Null);
        body.set("mask", Value::Null);
    }
    Ok(Resolved {
        params,
        script,
        body,
        ignored_overrides,
        init_images,
        mask,
    })
}

/// `options` are those before the request's overrides: A1111 reads its noise multiplier there.
fn img2img(body: &Body, options: &Options) -> Img2ImgParams {
    let both = body.int("mask_blur");
    let blur = |name: &str| both.or(body.int(name)).unwrap_or(4);
    Img2ImgParams {
        init_images: Vec::new(),
        resize_mode: body.int("resize_mode").unwrap_or(0),
        image_cfg_scale: body.float("image_cfg_scale"),
        mask: None,
        latent_mask: None,
        mask_blur_x: blur("mask_blur_x"),
        mask_blur_y: blur("mask_blur_y"),
        mask_round: body.bool("mask_round"),
        inpainting_fill: body.int("inpainting_fill").unwrap_or(0),
        only_masked: body.bool("inpaint_full_res"),
        only_masked_padding: body.int("inpaint_full_res_padding").unwrap_or(0),
        invert_mask: body.int("inpainting_mask_invert").unwrap_or(0) != 0,
        initial_noise_multiplier: body
            .float("initial_noise_multiplier")
            .or_else(|| Some(options.f64("initial_noise_multiplier"))),
        color_source: None,
        noise_finder: None,
    }
}

/// The arguments of Soft Inpainting, if its first one switches it on. Left out ones keep A1111's
/// defaults.
fn soft_inpainting(args: &Value) -> Option<SoftInpaintingParams> {
    let args = args.as_array()?;
    if !args.first().is_some_and(is_true) {
        return None;
    }
    let number = |index: usize, default: f64| {
        args.get(index + 1)
            .and_then(Value::as_number)
            .cloned()
            .or_else(|| whole_or_float(default))
    };
    let numbers = [
        number(0, 1.0)?,
        number(1, 0.5)?,
        number(2, 4.0)?,
        number(3, 0.0)?,
        number(4, 0.5)?,
        number(5, 2.0)?,
    ];
    Some(SoftInpaintingParams { args: numbers })
}

/// The page's defaults are written `1`, `4`, `0` and `2` where they are whole.
fn whole_or_float(number: f64) -> Option<Number> {
    if number.fract() == 0.0 {
        return Some(Number::from(number as i64));
    }
    Number::from_f64(number)
}

fn is_true(value: &Value) -> bool {
    match value {
        Value::Bool(flag) => *flag,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Null | Value::Array(_) | Value::Object(_) => false,
    }
}
