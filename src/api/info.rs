//! The `info` text of an answer: JSON as Python's `json.dumps` writes it.

use serde_json::{Map, Value, json};

use super::Body;
use crate::infotext::json_dumps;
use crate::pipeline::GenerationResult;

/// The `info` of a finished job, keys in A1111's order.
#[must_use]
pub(super) fn info_text(result: &GenerationResult, body: &Body) -> String {
    // The default 0 is no float in A1111, and typed clients tell `0` from `0.0`.
    let strength = if body.sent("subseed_strength") || result.subseed_strength != 0.0 {
        json!(result.subseed_strength)
    } else {
        body.value("subseed_strength").clone()
    };
    let (vae_name, vae_hash) = match &result.vae_file {
        Some((name, hash)) => (json!(name), known(hash)),
        None => (Value::Null, Value::Null),
    };
    let first_text = |values: &[String]| values.first().cloned().unwrap_or_default();
    let mut info = Map::new();
    let mut put = |key: &str, value: Value| info.insert(key.to_owned(), value);
    put("prompt", json!(first_text(&result.all_prompts)));
    put("all_prompts", json!(result.all_prompts));
    put(
        "negative_prompt",
        json!(first_text(&result.all_negative_prompts)),
    );
    put("all_negative_prompts", json!(result.all_negative_prompts));
    put("seed", json!(result.seed));
    put("all_seeds", json!(result.all_seeds));
    put("subseed", json!(result.subseed));
    put("all_subseeds", json!(result.all_subseeds));
    put("subseed_strength", strength);
    put("width", json!(result.width_px));
    put("height", json!(result.height_px));
    put("sampler_name", json!(result.sampler));
    put("cfg_scale", json!(result.cfg_scale));
    put("steps", json!(result.step_count));
    put("batch_size", json!(result.batch_size));
    put("restore_faces", json!(result.restore_faces));
    put(
        "face_restoration_model",
        json!(result.face_restoration_model),
    );
    put("sd_model_name", json!(result.model_name));
    // Python's None where the hash is not known.
    put("sd_model_hash", known(&result.model_short_hash));
    put("sd_vae_name", vae_name);
    put("sd_vae_hash", vae_hash);
    put("seed_resize_from_w", json!(result.seed_resize_from.0));
    put("seed_resize_from_h", json!(result.seed_resize_from.1));
    put("denoising_strength", json!(result.denoising_strength));
    put(
        "extra_generation_params",
        Value::Object(result.extra_generation_params.clone()),
    );
    put("index_of_first_image", json!(result.index_of_first_image));
    put("infotexts", json!(result.infotexts));
    put("styles", json!(result.styles));
    put("job_timestamp", json!(result.job_timestamp));
    put("clip_skip", json!(result.clip_skip));
    put(
        "is_using_inpainting_conditioning",
        json!(result.is_using_inpainting_conditioning),
    );
    put("version", json!(result.version));
    json_dumps(&Value::Object(info))
}

fn known(hash: &str) -> Value {
    if hash.is_empty() {
        Value::Null
    } else {
        json!(hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dumps_as_python_does() {
        let value =
            json!({"a": [1, 2.0, null, true], "é": "x\n\"😀", "small": 1e-5, "large": 1e22});
        assert_eq!(
            json_dumps(&value),
            r#"{"a": [1, 2.0, null, true], "\u00e9": "x\n\"\ud83d\ude00", "small": 1e-05, "large": 1e+22}"#
        );
    }
}
