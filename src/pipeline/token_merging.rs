//! Which of A1111's token merging options decides in which pass.

use serde_json::Value;

use super::GenerationParams;

/// The options, and the one that an `override_settings` of the request puts above the others.
const BASE: &str = "token_merging_ratio";
const IMG2IMG: &str = "token_merging_ratio_img2img";
const HIRES: &str = "token_merging_ratio_hr";

/// The share of tokens merged in the first pass, or in an img2img job, and its option's value.
pub(super) fn ratio(params: &GenerationParams) -> (f64, Value) {
    let overridden = params.token_merging_overridden && params.options.f64(BASE) != 0.0;
    if params.img2img.is_some() && !overridden {
        first_set(params, &[IMG2IMG, BASE])
    } else {
        first_set(params, &[BASE])
    }
}

/// The share of tokens merged in the second pass of hires fix, and its option's value.
pub(super) fn hires_ratio(params: &GenerationParams) -> (f64, Value) {
    first_set(params, &[HIRES, BASE])
}

/// The first of these options that is not 0.
fn first_set(params: &GenerationParams, keys: &[&str]) -> (f64, Value) {
    keys.iter()
        .map(|key| (params.options.f64(key), params.options.get(key)))
        .find(|(ratio, _)| *ratio != 0.0)
        .map_or((0.0, Value::Null), |(ratio, value)| {
            (ratio, value.cloned().unwrap_or(Value::Null))
        })
}
