//! The tokens of name patterns.

use jiff::Zoned;
use jiff::tz::TimeZone;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::pattern::{Replacement, expand};
use super::sanitize::{NameRules, sanitize};
use crate::infotext::python_str;
use crate::pipeline::{NameFacts, Picture};

/// Everything that a token of one picture may stand for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Names<'a> {
    pub(super) facts: NameFacts<'a>,
    pub(super) picture: &'a Picture,
    pub(super) basename: &'a str,
    pub(super) rules: NameRules,
}

impl Names<'_> {
    /// The pattern with its tokens replaced.
    pub(super) fn expand(&self, pattern: &str) -> String {
        expand(pattern, |name, arguments| self.replace(name, arguments))
    }

    fn replace(&self, name: &str, arguments: &[&str]) -> Replacement {
        let facts = &self.facts;
        let params = facts.params;
        let options = &params.options;
        let text = |text: String| Replacement::Text(text);
        let part = |text: &str| Replacement::Text(sanitize(text, false, self.rules));
        let number = |value: serde_json::Value| Replacement::Text(python_str(&value));
        match name {
            "seed" => text(facts.seed.to_string()),
            "seed_first" if facts.batch_size == 1 => text(facts.seed.to_string()),
            "seed_first" => text(facts.all_seeds.first().unwrap_or(&facts.seed).to_string()),
            "seed_last" | "batch_number" if facts.batch_size == 1 => {
                Replacement::NothingAndNoTextBefore
            }
            "seed_last" => text(facts.all_seeds.last().unwrap_or(&facts.seed).to_string()),
            "steps" => text(params.step_count.to_string()),
            "cfg" => number(json!(params.cfg_scale)),
            "width" => text(self.picture.width().to_string()),
            "height" => text(self.picture.height().to_string()),
            "styles" => part(&self.styles()),
            "sampler" => part(&params.sampler),
            "scheduler" => part(&params.scheduler),
            "sampler_scheduler" => part(&format!("{} {}", params.sampler, params.scheduler)),
            "model_hash" => text(facts.model_hash.to_owned()),
            "model_name" => part(facts.model_name),
            "date" => text(Zoned::now().strftime("%Y-%m-%d").to_string()),
            "datetime" => text(self.date_time(arguments)),
            "job_timestamp" => text(facts.job_timestamp.to_owned()),
            "prompt_hash" => text(hash(facts.prompt.as_bytes(), arguments, 8)),
            "negative_prompt_hash" => text(hash(params.negative_prompt.as_bytes(), arguments, 8)),
            "full_prompt_hash" => {
                let full = format!("{} {}", params.prompt, params.negative_prompt);
                text(hash(full.as_bytes(), arguments, 8))
            }
            "image_hash" => text(hash(self.picture.as_bytes(), arguments, usize::MAX)),
            "prompt" => text(sanitize(facts.prompt, true, self.rules)),
            "prompt_no_styles" => part(&self.prompt_without_styles()),
            "prompt_spaces" => part(facts.prompt),
            "prompt_words" => part(&self.prompt_words()),
            "hasprompt" if arguments.is_empty() => Replacement::Unknown,
            "hasprompt" => text(self.parts_of_prompt(arguments)),
            "batch_size" => text(facts.batch_size.to_string()),
            "batch_number" => text((facts.index_in_batch + 1).to_string()),
            "generation_number" if facts.batch_size == 1 && params.batch_count == 1 => {
                Replacement::NothingAndNoTextBefore
            }
            "generation_number" => text((facts.index_in_job + 1).to_string()),
            "clip_skip" => number(options.get("CLIP_stop_at_last_layers").cloned().into()),
            "denoising" => match params.denoising_strength {
                Some(strength) if strength != 0.0 => number(json!(strength)),
                _ => Replacement::NothingAndNoTextBefore,
            },
            "vae_filename" => part(facts.vae_file.map_or("NoneType", first_part)),
            "basename" if self.basename.is_empty() => text("img".to_owned()),
            "basename" => text(self.basename.to_owned()),
            "none" => text(String::new()),
            // `user` too: requests of the API have none.
            _ => Replacement::Unknown,
        }
    }

    fn styles(&self) -> String {
        let styles = self.facts.params.styles.iter();
        let named: Vec<&str> = styles
            .map(String::as_str)
            .filter(|it| *it != "None")
            .collect();
        if named.is_empty() {
            return "None".to_owned();
        }
        named.join(", ")
    }

    /// `[datetime<format><time zone>]`; what cannot be understood is the default format and local time.
    fn date_time(&self, arguments: &[&str]) -> String {
        const DEFAULT: &str = "%Y%m%d%H%M%S";
        let mut now = Zoned::now();
        if let Some(zone) = arguments.get(1).and_then(|name| TimeZone::get(name).ok()) {
            now = now.with_time_zone(zone);
        }
        // Python's %f is microseconds.
        let format = arguments
            .first()
            .copied()
            .unwrap_or("")
            .replace("%f", "%6f");
        let format = if format.is_empty() { DEFAULT } else { &format };
        let written = jiff::fmt::strtime::format(format, &now);
        let text = written.unwrap_or_else(|_| now.strftime(DEFAULT).to_string());
        sanitize(&text, false, self.rules)
    }

    fn prompt_words(&self) -> String {
        let limit = self
            .facts
            .params
            .options
            .i64("directories_max_prompt_words")
            .max(0) as usize;
        let words: Vec<&str> = self
            .facts
            .prompt
            .split(|letter: char| letter.is_whitespace() || letter.is_ascii_punctuation())
            .filter(|word| !word.is_empty())
            .collect();
        if words.is_empty() {
            return "empty".to_owned();
        }
        words.into_iter().take(limit).collect::<Vec<_>>().join(" ")
    }

    fn prompt_without_styles(&self) -> String {
        let mut prompt = self.facts.prompt.to_owned();
        let tidy = |prompt: String| {
            let prompt = prompt.replace(", ,", ",");
            prompt.trim().trim_matches(',').trim().to_owned()
        };
        for (style, _) in &self.facts.params.style_texts {
            for part in style.split("{prompt}").filter(|part| !part.is_empty()) {
                prompt = tidy(prompt.replace(part, ""));
            }
        }
        prompt
    }

    /// `[hasprompt<text|default>…]`: each text that the prompt holds, or its default.
    fn parts_of_prompt(&self, arguments: &[&str]) -> String {
        let prompt = self.facts.prompt.to_lowercase();
        let found: String = arguments
            .iter()
            .map(|argument| {
                let mut division = argument.split('|');
                let wanted = division.next().unwrap_or("").to_lowercase();
                if prompt.contains(&wanted) {
                    return wanted;
                }
                division.next().unwrap_or("").to_owned()
            })
            .collect();
        sanitize(&found, true, self.rules)
    }
}

/// SHA-256 in hex, cut to the length that the first argument names.
fn hash(bytes: &[u8], arguments: &[&str], default_length: usize) -> String {
    let length = arguments
        .first()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(default_length);
    let hex = format!("{:x}", Sha256::digest(bytes));
    hex[..length.min(hex.len())].to_owned()
}

/// A file name up to its first dot that is not its first letter.
fn first_part(name: &str) -> &str {
    let name = name.trim_start_matches('.');
    name.split('.').next().unwrap_or(name)
}

#[cfg(test)]
pub(super) mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::api::{
        CheckpointNames, NoStyles, ResolveContext, TXT2IMG, read_body, resolve_txt2img,
    };
    use crate::config::Settings;
    use crate::pipeline::GenerationParams;

    /// Recorded from A1111's own functions.
    #[derive(Deserialize)]
    pub(in super::super) struct Vectors {
        pub(in super::super) sanitize: Vec<(String, String, String)>,
        patterns: Vec<(String, String)>,
    }

    pub(in super::super) fn vectors() -> Vectors {
        serde_json::from_str(include_str!("../../tests/golden/file_names.json"))
            .expect("the vectors have their shape")
    }

    struct AnyCheckpoint;

    impl CheckpointNames for AnyCheckpoint {
        fn is_alias(&self, _name: &str) -> bool {
            true
        }
    }

    pub(in super::super) fn params(request: &serde_json::Value) -> GenerationParams {
        let body = read_body(None, request.to_string().as_bytes(), TXT2IMG).expect("valid");
        let context = ResolveContext {
            options: Settings::in_memory().snapshot(),
            checkpoints: &AnyCheckpoint,
            upscalers: Vec::new(),
            dynamic_prompts: crate::api::DynamicPromptsSetting::default(),
            styles: &NoStyles,
            noise_on_cpu: false,
            saver: std::sync::Arc::new(crate::pipeline::NoSaver),
        };
        resolve_txt2img(body, &context).expect("resolves").params
    }

    pub(in super::super) fn facts(params: &GenerationParams) -> NameFacts<'_> {
        NameFacts {
            params,
            model_name: "my-model",
            model_hash: "abcdef0123",
            vae_file: None,
            seed: 1234,
            prompt: &params.prompt,
            all_seeds: &[1234],
            batch_size: params.batch_size,
            index_in_batch: 0,
            index_in_job: 0,
            job_timestamp: "20240101120000",
        }
    }

    fn recorded_request() -> serde_json::Value {
        json!({
            "prompt": "a castle, on a hill", "negative_prompt": "lowres", "seed": 1234,
            "steps": 20, "cfg_scale": 7, "sampler_name": "Euler a", "width": 512, "height": 768,
            "styles": ["Ink"], "denoising_strength": 0.7,
        })
    }

    fn expanded(facts: NameFacts<'_>, pattern: &str) -> String {
        let picture = Picture::new_rgb8(512, 768);
        Names {
            facts,
            picture: &picture,
            basename: "",
            rules: NameRules::default(),
        }
        .expand(pattern)
    }

    #[test]
    fn patterns_are_expanded_as_a1111_does() {
        let params = params(&recorded_request());
        for (pattern, want) in vectors().patterns {
            assert_eq!(expanded(facts(&params), &pattern), want, "{pattern}");
        }
    }

    #[test]
    fn batches_have_numbers_and_several_seeds() {
        let mut request = recorded_request();
        request["batch_size"] = json!(2);
        request["n_iter"] = json!(2);
        let params = params(&request);
        let facts = NameFacts {
            seed: 12,
            all_seeds: &[10, 11, 12, 13],
            vae_file: Some("nice.vae.safetensors"),
            index_in_batch: 0,
            index_in_job: 2,
            ..facts(&params)
        };
        for (pattern, want) in [
            ("[seed]-[seed_first]-[seed_last]", "12-10-13"),
            (
                "[batch_number]of[batch_size], [generation_number]",
                "1of2, 3",
            ),
            ("[vae_filename]", "nice"),
            ("[image_hash<6>]", "5fd72f"),
        ] {
            let have = expanded(facts, pattern);
            if pattern.contains("image_hash") {
                assert_eq!(have.len(), want.len());
            } else {
                assert_eq!(have, want, "{pattern}");
            }
        }
    }

    #[test]
    fn dates_take_a_format_and_a_zone() {
        let params = params(&recorded_request());
        let facts = facts(&params);
        let year = Zoned::now().year().to_string();
        assert!(expanded(facts, "[date]").starts_with(&year));
        assert_eq!(expanded(facts, "[datetime]").len(), 14);
        assert_eq!(expanded(facts, "[datetime<%H:%M><UTC>]").len(), 5);
        assert!(!expanded(facts, "[datetime<%H:%M><UTC>]").contains(':'));
        assert_eq!(expanded(facts, "[datetime<%Q%&><Nowhere/Land>]").len(), 14);
    }

    #[test]
    fn style_texts_are_cut_out_of_the_prompt() {
        let mut params = params(&recorded_request());
        params.style_texts = vec![
            ("ink drawing, monochrome".to_owned(), String::new()),
            ("a photo of {prompt}, sharp".to_owned(), String::new()),
        ];
        let facts = NameFacts {
            prompt: "a photo of a castle, ink drawing, monochrome, sharp",
            ..facts(&params)
        };
        assert_eq!(expanded(facts, "[prompt_no_styles]"), "a castle");
    }
}
