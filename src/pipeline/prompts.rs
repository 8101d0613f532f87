//! The prompts of every picture of a job: styles merged, comments cut, tags read.

use crate::prompt::{
    LoraTag, apply_styles, extract_extra_networks, parse_lora_tag, strip_comments,
};

use super::GenerationParams;

/// One prompt a picture, as the infotext prints them (tags still in).
#[derive(Debug, Clone)]
pub(super) struct JobPrompts {
    pub(super) positive: Vec<String>,
    pub(super) negative: Vec<String>,
    /// The second pass's, when there is one.
    pub(super) hires_positive: Vec<String>,
    pub(super) hires_negative: Vec<String>,
}

impl JobPrompts {
    pub(super) fn new(params: &GenerationParams) -> Self {
        let count = params.batch_size * params.batch_count;
        let finish = |prompt: &str, style: fn(&(String, String)) -> &str| {
            let styled = apply_styles(prompt, params.style_texts.iter().map(style));
            let text = if params.options.bool("enable_prompt_comments") {
                strip_comments(&styled)
            } else {
                styled
            };
            vec![text; count]
        };
        let positive = |prompt: &str| finish(prompt, |style| &style.0);
        let negative = |prompt: &str| finish(prompt, |style| &style.1);
        let or_main =
            |prompt: &str, main: &str| if prompt.is_empty() { main } else { prompt }.to_owned();
        let (hires_positive, hires_negative) = match &params.hires {
            None => (Vec::new(), Vec::new()),
            Some(hires) => (
                positive(&or_main(&hires.prompt, &params.prompt)),
                negative(&or_main(&hires.negative_prompt, &params.negative_prompt)),
            ),
        };
        Self {
            positive: positive(&params.prompt),
            negative: negative(&params.negative_prompt),
            hires_positive,
            hires_negative,
        }
    }
}

/// The prompts of one batch without their tags, and the networks that the first of them asks for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct BatchPrompts {
    pub(super) texts: Vec<String>,
    pub(super) loras: Vec<LoraTag>,
    /// Names of hypernetworks asked for, which the graphs cannot apply.
    pub(super) hypernetworks: Vec<String>,
    pub(super) comments: Vec<String>,
}

impl BatchPrompts {
    /// Cuts the tags out of `prompts`; only those of the first prompt count.
    pub(super) fn new(prompts: &[String]) -> Self {
        let mut batch = Self {
            texts: Vec::with_capacity(prompts.len()),
            loras: Vec::new(),
            hypernetworks: Vec::new(),
            comments: Vec::new(),
        };
        for (index, prompt) in prompts.iter().enumerate() {
            let (text, networks) = extract_extra_networks(prompt);
            batch.texts.push(text);
            if index > 0 {
                continue;
            }
            for network in &networks {
                match parse_lora_tag(network) {
                    Some(Ok(lora)) => batch.loras.push(lora),
                    Some(Err(error)) => batch.comments.push(error.to_string()),
                    None if network.kind == "hypernet" => {
                        batch
                            .hypernetworks
                            .extend(network.positional.first().cloned());
                    }
                    None => {}
                }
            }
        }
        batch
    }
}
