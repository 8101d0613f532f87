//! The request field `infotext`: which fields of a request a parsed infotext fills.
//!
//! Of two defects of the original, one is kept in the echo alone: its "Use same …" texts, which it then
//! refuses as sampler names, mean what they say here. Styles that were found are a list.

use serde_json::{Map, Number, Value, json};

/// The type of a request's field.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    Integer,
    Float,
    /// A list of texts.
    List,
}

const STEPS_AND_SEEDS: &[(&str, &str, Kind)] = &[
    ("Steps", "steps", Kind::Integer),
    ("Sampler", "sampler_name", Kind::Text),
    ("Schedule type", "scheduler", Kind::Text),
    ("Seed", "seed", Kind::Integer),
    ("Variation seed", "subseed", Kind::Integer),
    ("Variation seed strength", "subseed_strength", Kind::Float),
    // Width and height are swapped in the original.
    ("Seed resize from-1", "seed_resize_from_h", Kind::Integer),
    ("Seed resize from-2", "seed_resize_from_w", Kind::Integer),
    ("Refiner", "refiner_checkpoint", Kind::Text),
    ("Refiner switch at", "refiner_switch_at", Kind::Float),
];

const TXT2IMG: &[(&str, &str, Kind)] = &[
    ("Prompt", "prompt", Kind::Text),
    ("Negative prompt", "negative_prompt", Kind::Text),
    ("CFG scale", "cfg_scale", Kind::Float),
    ("Size-1", "width", Kind::Integer),
    ("Size-2", "height", Kind::Integer),
    ("Batch size", "batch_size", Kind::Integer),
    ("Styles array", "styles", Kind::List),
    ("Denoising strength", "denoising_strength", Kind::Float),
    ("Hires upscale", "hr_scale", Kind::Float),
    ("Hires upscaler", "hr_upscaler", Kind::Text),
    ("Hires steps", "hr_second_pass_steps", Kind::Integer),
    ("Hires resize-1", "hr_resize_x", Kind::Integer),
    ("Hires resize-2", "hr_resize_y", Kind::Integer),
    ("Hires checkpoint", "hr_checkpoint_name", Kind::Text),
    ("Hires sampler", "hr_sampler_name", Kind::Text),
    ("Hires schedule type", "hr_scheduler", Kind::Text),
    ("Hires prompt", "hr_prompt", Kind::Text),
    ("Hires negative prompt", "hr_negative_prompt", Kind::Text),
];

/// The fields of a `txt2img` request that a parsed infotext fills, by their wire names. Fields the
/// client sent itself win over these. Any `Denoising strength` turns hires fix on.
#[must_use]
pub fn txt2img_fields(fields: &Map<String, Value>) -> Map<String, Value> {
    let mut request = map_fields(TXT2IMG, fields);
    let hires = fields.contains_key("Denoising strength")
        && ["Hires upscale", "Hires upscaler", "Hires resize-1"]
            .iter()
            .any(|key| fields.contains_key(*key));
    request.insert("enable_hr".to_owned(), json!(hires));
    request.extend(map_fields(STEPS_AND_SEEDS, fields));
    request
}

/// The fields of an `img2img` request that a parsed infotext fills: steps, sampler, seeds and
/// refiner, but neither prompts nor size nor denoising strength.
#[must_use]
pub fn img2img_fields(fields: &Map<String, Value>) -> Map<String, Value> {
    map_fields(STEPS_AND_SEEDS, fields)
}

fn map_fields(table: &[(&str, &str, Kind)], fields: &Map<String, Value>) -> Map<String, Value> {
    table
        .iter()
        .filter_map(|&(key, field, kind)| {
            let value = convert(fields.get(key)?, kind)?;
            Some((field.to_owned(), value))
        })
        .collect()
}

/// `None` where the text is no such value; the field then keeps its default.
fn convert(value: &Value, kind: Kind) -> Option<Value> {
    match kind {
        Kind::Text => Some(json!(value.as_str()?)),
        Kind::Integer => Some(json!(as_integer(value)?)),
        Kind::Float => Number::from_f64(as_float(value)?).map(Value::Number),
        Kind::List => value.is_array().then(|| value.clone()),
    }
}

fn as_float(value: &Value) -> Option<f64> {
    match value {
        Value::String(text) => text.trim().parse().ok(),
        Value::Bool(truth) => Some(f64::from(u8::from(*truth))),
        other => other.as_f64(),
    }
}

/// Whole numbers, exactly where they are written as such.
fn as_integer(value: &Value) -> Option<i64> {
    match value {
        Value::String(text) => text.trim().parse().ok(),
        other => other.as_i64(),
    }
    .or_else(|| Some(as_float(value)?.trunc() as i64))
}

/// The type of an option, which is its default's.
#[derive(Debug, Clone, Copy, PartialEq)]
enum OptionDefault {
    Null,
    Text(&'static str),
    Integer(i64),
    Float(f64),
    Bool(bool),
}

/// An option that has a key in infotexts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OverrideKey {
    /// The key in the infotext.
    pub label: &'static str,
    /// The option's name.
    pub option: &'static str,
    default: OptionDefault,
}

impl OverrideKey {
    const fn new(label: &'static str, option: &'static str, default: OptionDefault) -> Self {
        Self {
            label,
            option,
            default,
        }
    }

    /// The option's default.
    #[must_use]
    pub fn default_value(&self) -> Value {
        match self.default {
            OptionDefault::Null => Value::Null,
            OptionDefault::Text(text) => json!(text),
            OptionDefault::Integer(number) => json!(number),
            OptionDefault::Float(number) => json!(number),
            OptionDefault::Bool(truth) => json!(truth),
        }
    }

    /// `value` in the type of the option; `None` where Python could not convert it.
    fn cast(&self, value: &Value) -> Option<Value> {
        match self.default {
            OptionDefault::Null => Some(value.clone()),
            OptionDefault::Text(_) => Some(json!(super::python_str(value))),
            OptionDefault::Integer(_) => match value {
                Value::String(text) => text.trim().parse::<i64>().ok().map(Value::from),
                _ => Some(json!(as_integer(value)?)),
            },
            OptionDefault::Float(_) => Number::from_f64(as_float(value)?).map(Value::Number),
            OptionDefault::Bool(_) => Some(json!(match value {
                Value::String(text) => !text.is_empty() && text != "False",
                Value::Bool(truth) => *truth,
                other => as_float(other)? != 0.0,
            })),
        }
    }
}

/// The options a parsed infotext overrides, in the order of the options table: those whose value,
/// in the option's type, differs from the current one. `current` answers an option's value, `None`
/// meaning its default. `Model hash` is left out while the option `disable_weights_auto_swap`,
/// `keep_checkpoint` here, is on.
pub fn override_settings(
    fields: &Map<String, Value>,
    current: impl Fn(&str) -> Option<Value>,
    keep_checkpoint: bool,
) -> Vec<(&'static OverrideKey, Value)> {
    OVERRIDE_KEYS
        .iter()
        .filter(|key| !(keep_checkpoint && key.option == "sd_model_checkpoint"))
        .filter_map(|key| {
            let value = key.cast(fields.get(key.label)?)?;
            let current = current(key.option).unwrap_or_else(|| key.default_value());
            (!python_equal(&value, &current)).then_some((key, value))
        })
        .collect()
}

/// Python's `==`: 0, 0.0 and `False` are equal.
#[expect(clippy::float_cmp, reason = "Python compares exactly")]
fn python_equal(left: &Value, right: &Value) -> bool {
    let number = |value: &Value| match value {
        Value::String(_) => None,
        other => as_float(other),
    };
    match (number(left), number(right)) {
        (Some(left), Some(right)) => left == right,
        _ => left == right,
    }
}

/// Every option with a key in infotexts, in the order of the options table.
pub static OVERRIDE_KEYS: &[OverrideKey] = {
    use OptionDefault::{Bool, Float, Integer, Null, Text};
    const fn key(label: &'static str, option: &'static str, default: OptionDefault) -> OverrideKey {
        OverrideKey::new(label, option, default)
    }
    &[
        key("Face restoration", "face_restoration", Bool(false)),
        key("Model hash", "sd_model_checkpoint", Null),
        key("Emphasis", "emphasis", Text("Original")),
        key("Clip skip", "CLIP_stop_at_last_layers", Integer(1)),
        key("RNG", "randn_source", Text("GPU")),
        key("Tiling", "tiling", Bool(false)),
        key(
            "Hires refiner",
            "hires_fix_refiner_pass",
            Text("second pass"),
        ),
        key("VAE", "sd_vae", Text("Automatic")),
        key("VAE Encoder", "sd_vae_encode_method", Text("Full")),
        key("VAE Decoder", "sd_vae_decode_method", Text("Full")),
        key(
            "Conditional mask weight",
            "inpainting_mask_weight",
            Float(1.0),
        ),
        key("Noise multiplier", "initial_noise_multiplier", Float(1.0)),
        key("Extra noise", "img2img_extra_noise", Float(0.0)),
        key("NGMS", "s_min_uncond", Float(0.0)),
        key("NGMS all steps", "s_min_uncond_all", Bool(false)),
        key("Token merging ratio", "token_merging_ratio", Float(0.0)),
        key(
            "Token merging ratio hr",
            "token_merging_ratio_hr",
            Float(0.0),
        ),
        key("Pad conds", "pad_cond_uncond", Bool(false)),
        key("Pad conds v0", "pad_cond_uncond_v0", Bool(false)),
        key(
            "Old prompt editing timelines",
            "use_old_scheduling",
            Bool(false),
        ),
        key(
            "Downcast alphas_cumprod",
            "use_downcasted_alpha_bar",
            Bool(false),
        ),
        key(
            "Refiner switch by sampling steps",
            "refiner_switch_by_sample_steps",
            Bool(false),
        ),
        key("Eta DDIM", "eta_ddim", Float(0.0)),
        key("Eta", "eta_ancestral", Float(1.0)),
        key("Sigma churn", "s_churn", Float(0.0)),
        key("Sigma tmin", "s_tmin", Float(0.0)),
        key("Sigma tmax", "s_tmax", Float(0.0)),
        key("Sigma noise", "s_noise", Float(1.0)),
        key("Schedule min sigma", "sigma_min", Float(0.0)),
        key("Schedule max sigma", "sigma_max", Float(0.0)),
        key("Schedule rho", "rho", Float(0.0)),
        key("ENSD", "eta_noise_seed_delta", Integer(0)),
        key(
            "Discard penultimate sigma",
            "always_discard_next_to_last_sigma",
            Bool(false),
        ),
        key("SGM noise multiplier", "sgm_noise_multiplier", Bool(false)),
        key("UniPC variant", "uni_pc_variant", Text("bh1")),
        key("UniPC skip type", "uni_pc_skip_type", Text("time_uniform")),
        key("UniPC order", "uni_pc_order", Integer(3)),
        key(
            "UniPC lower order final",
            "uni_pc_lower_order_final",
            Bool(true),
        ),
        key("Noise Schedule", "sd_noise_schedule", Text("Default")),
        key("Skip Early CFG", "skip_early_cond", Float(0.0)),
        key("Beta scheduler alpha", "beta_dist_alpha", Float(0.6)),
        key("Beta scheduler beta", "beta_dist_beta", Float(0.6)),
        key("Hypertile U-Net", "hypertile_enable_unet", Bool(false)),
        key(
            "Hypertile U-Net second pass",
            "hypertile_enable_unet_secondpass",
            Bool(false),
        ),
        key(
            "Hypertile U-Net max depth",
            "hypertile_max_depth_unet",
            Integer(3),
        ),
        key(
            "Hypertile U-Net max tile size",
            "hypertile_max_tile_unet",
            Integer(256),
        ),
        key(
            "Hypertile U-Net swap size",
            "hypertile_swap_size_unet",
            Integer(3),
        ),
        key("Hypertile VAE", "hypertile_enable_vae", Bool(false)),
        key(
            "Hypertile VAE max depth",
            "hypertile_max_depth_vae",
            Integer(3),
        ),
        key(
            "Hypertile VAE max tile size",
            "hypertile_max_tile_vae",
            Integer(128),
        ),
        key(
            "Hypertile VAE swap size",
            "hypertile_swap_size_vae",
            Integer(3),
        ),
    ]
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::infotext::{ParseSettings, parse};

    fn fields(text: &str) -> Map<String, Value> {
        parse(text, &ParseSettings::default())
    }

    #[test]
    fn txt2img_takes_everything_and_turns_hires_on() {
        let request = txt2img_fields(&fields(
            "a\nNegative prompt: b\nSteps: 4, Sampler: Euler, CFG scale: 6, Seed: 3, Size: 64x96, \
             Denoising strength: 0.5, Seed resize from: 32x48, Hires sampler: DPM++ 2M",
        ));
        for (field, want) in [
            ("prompt", json!("a")),
            ("negative_prompt", json!("b")),
            ("steps", json!(4)),
            ("cfg_scale", json!(6.0)),
            ("seed", json!(3)),
            ("width", json!(64)),
            ("height", json!(96)),
            ("enable_hr", json!(true)),
            ("seed_resize_from_h", json!(32)),
            ("seed_resize_from_w", json!(48)),
            ("hr_sampler_name", json!("DPM++ 2M")),
            ("hr_scheduler", json!("Use same scheduler")),
            ("hr_checkpoint_name", json!("Use same checkpoint")),
        ] {
            assert_eq!(request[field], want, "{field}");
        }
        assert_eq!(request.get("subseed"), None);
    }

    #[test]
    fn img2img_takes_neither_prompt_nor_size_nor_strength() {
        let request = img2img_fields(&fields(
            "a\nSteps: 5, Sampler: Euler, CFG scale: 5.5, Seed: 77, Size: 96x64, Denoising strength: 0.4",
        ));
        let names: Vec<&str> = request.keys().map(String::as_str).collect();
        assert_eq!(names, ["steps", "sampler_name", "scheduler", "seed"]);
    }

    #[test]
    fn an_override_is_what_differs_from_the_option_now() {
        let fields =
            fields("a\nSteps: 5, Sampler: Euler, Seed: 1, Clip skip: 2, ENSD: 1.5, Model hash: ab");
        let options = |keep| {
            override_settings(
                &fields,
                |option| (option == "randn_source").then(|| json!("CPU")),
                keep,
            )
            .into_iter()
            .map(|(key, value)| (key.option, value))
            .collect::<Vec<_>>()
        };
        // ENSD 1.5 is no whole number and is passed over.
        assert_eq!(
            options(true),
            [
                ("CLIP_stop_at_last_layers", json!(2)),
                ("randn_source", json!("GPU")),
            ]
        );
        assert_eq!(options(false)[0], ("sd_model_checkpoint", json!("ab")));
    }
}
