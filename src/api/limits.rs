//! What one request may ask for, beyond A1111, which tries until memory runs out.

use super::ApiError;
use crate::config::RequestLimits;
use crate::pipeline::{ExtrasParams, ExtrasSize, GenerationParams, HiresParams};

/// Refuses a job that is larger than the server's flags allow.
///
/// # Errors
/// Status 400 with the limit and the flag that changes it.
pub fn check_limits(params: &GenerationParams, limits: &RequestLimits) -> Result<(), ApiError> {
    let (width_px, height_px) = (params.width_px as u64, params.height_px as u64);
    check_pixels(width_px, height_px, limits)?;
    let mut steps = params.step_count;
    if let Some(hires) = &params.hires {
        let (width_px, height_px) = hires_size(hires, width_px, height_px);
        check_pixels(width_px, height_px, limits)?;
        steps = steps.max(hires.second_pass_steps);
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

/// [`check_limits`] for pictures that are made larger.
///
/// # Errors
/// Status 400 with the limit and the flag that changes it.
pub fn check_extras_limits(params: &ExtrasParams, limits: &RequestLimits) -> Result<(), ApiError> {
    match &params.size {
        ExtrasSize::To {
            width_px,
            height_px,
            ..
        } => check_pixels(u64::from(*width_px), u64::from(*height_px), limits),
        ExtrasSize::By(factor) => params.images.iter().try_for_each(|file| {
            let scaled = |side: u32| (f64::from(side) * factor.max(0.0)) as u64;
            let picture = &file.picture;
            check_pixels(scaled(picture.width()), scaled(picture.height()), limits)
        }),
    }
}

/// The size after hires fix, cut to the longer side where only one is given.
fn hires_size(hires: &HiresParams, width_px: u64, height_px: u64) -> (u64, u64) {
    match (hires.resize_x as u64, hires.resize_y as u64) {
        (0, 0) => {
            let scaled = |side: u64| (side as f64 * hires.scale.max(0.0)) as u64;
            (scaled(width_px), scaled(height_px))
        }
        (0, height) => (width_px * height / height_px.max(1), height),
        (width, 0) => (width, height_px * width / width_px.max(1)),
        sides => sides,
    }
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
