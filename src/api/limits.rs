//! What one request may ask for, beyond A1111, which tries until memory runs out.

use super::{ApiError, Resolved};
use crate::config::RequestLimits;
use crate::pipeline::{ExtrasParams, ExtrasSize, GenerationParams, hires_upscale_px};
use crate::scripts::ScriptLimits;

/// Hands the limits to a script and to templates, which decide themselves what they draw.
pub fn set_script_limits(resolved: &mut Resolved, limits: &RequestLimits) {
    let count = |number: i64| u64::try_from(number).unwrap_or(0);
    if let Some(script) = &mut resolved.script {
        script.surroundings.limits = ScriptLimits {
            pixels: limits.pixels,
            steps: count(limits.steps),
            pictures: count(limits.pictures),
        };
    }
    if let Some(templates) = &mut resolved.params.dynamic_prompts {
        templates.most_pictures = usize::try_from(limits.pictures).unwrap_or(0);
    }
}

/// Refuses a job that is larger than the server's flags allow.
///
/// # Errors
/// Status 400 with the limit and the flag that changes it.
pub fn check_limits(params: &GenerationParams, limits: &RequestLimits) -> Result<(), ApiError> {
    let (width_px, height_px) = (params.width_px as u64, params.height_px as u64);
    check_pixels(width_px, height_px, limits)?;
    let mut steps = params.step_count;
    if let Some(hires) = &params.hires {
        let (width_px, height_px) = hires_upscale_px(params).unwrap_or_default();
        check_pixels(width_px as u64, height_px as u64, limits)?;
        let (width_px, height_px) = hires.first_phase;
        check_pixels(width_px as u64, height_px as u64, limits)?;
        steps = steps.max(hires.second_pass_steps);
    }
    // The noise of the other size is drawn whole before it is cut.
    let (height_px, width_px) = params.seed_resize_from;
    check_pixels(width_px.max(0) as u64, height_px.max(0) as u64, limits)?;
    if let Some(img2img) = &params.img2img {
        check_blur(img2img.mask_blur_x.max(img2img.mask_blur_y))?;
    }
    within("steps", steps as u64, limits.steps, "--max-steps")?;
    let pictures = (params.batch_size as u64).saturating_mul(params.batch_count as u64);
    within(
        "batch_size times n_iter",
        pictures,
        limits.pictures,
        "--max-pictures",
    )?;
    let hires = params.hires.as_ref();
    let texts = [
        ("prompt", Some(&params.prompt)),
        ("negative_prompt", Some(&params.negative_prompt)),
        ("hr_prompt", hires.map(|hires| &hires.prompt)),
        (
            "hr_negative_prompt",
            hires.map(|hires| &hires.negative_prompt),
        ),
    ];
    for (name, text) in texts {
        let characters = text.map_or(0, |text| text.chars().count());
        let what = format!("the number of characters of {name}");
        within(
            &what,
            characters as u64,
            limits.prompt_characters,
            "--max-prompt-length",
        )?;
    }
    Ok(())
}

/// The kernel is five times as wide as the number; A1111's page offers 0 to 64.
fn check_blur(blur: i64) -> Result<(), ApiError> {
    const LIMIT: i64 = 4096;
    if blur <= LIMIT {
        return Ok(());
    }
    let text = format!("mask_blur is {blur}, and may be at most {LIMIT}");
    Err(ApiError::http(400, text))
}

/// [`check_limits`] for pictures that are made larger.
///
/// # Errors
/// Status 400 with the limit and the flag that changes it.
pub fn check_extras_limits(params: &ExtrasParams, limits: &RequestLimits) -> Result<(), ApiError> {
    if let ExtrasSize::To {
        width_px,
        height_px,
        ..
    } = params.size
    {
        check_pixels(u64::from(width_px), u64::from(height_px), limits)?;
    }
    params.images.iter().try_for_each(|file| {
        let (width_px, height_px) = (file.picture.width(), file.picture.height());
        let factor = match params.size {
            ExtrasSize::By(factor) => factor,
            // Large enough for both sides; what is too much is cut afterwards.
            ExtrasSize::To {
                width_px: wanted_px,
                height_px: tall_px,
                ..
            } => {
                let across = f64::from(wanted_px) / f64::from(width_px);
                across.max(f64::from(tall_px) / f64::from(height_px))
            }
        };
        let scaled = |side: u32| (f64::from(side) * factor.max(0.0)) as u64;
        check_pixels(scaled(width_px), scaled(height_px), limits)
    })
}

fn check_pixels(width_px: u64, height_px: u64, limits: &RequestLimits) -> Result<(), ApiError> {
    if width_px.saturating_mul(height_px) <= limits.pixels {
        return Ok(());
    }
    let text = format!(
        "a picture of {width_px}x{height_px} has more than {} pixels; --max-megapixels changes this",
        limits.pixels
    );
    Err(ApiError::http(400, text))
}

fn within(what: &str, value: u64, limit: impl TryInto<u64>, flag: &str) -> Result<(), ApiError> {
    let limit = limit.try_into().unwrap_or(u64::MAX);
    if value <= limit {
        return Ok(());
    }
    let text = format!("{what} is {value}, and may be at most {limit}; {flag} changes this");
    Err(ApiError::http(400, text))
}
