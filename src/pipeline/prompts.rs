//! The prompts of every picture of a job: styles merged, comments cut, tags read.

use serde_json::json;

use crate::config::Options;
use crate::infotext::python_str;
use crate::prompt::{PromptNetworks, apply_styles, extract_extra_networks, strip_comments};

use super::{GenerationParams, ModelProvider, NetworkKind};

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
        let positive = |listed: &[String], prompt: &str| finish(params, listed, prompt, |it| &it.0);
        let negative = |listed: &[String], prompt: &str| finish(params, listed, prompt, |it| &it.1);
        let lists = &params.lists;
        let (hires_positive, hires_negative) = match &params.hires {
            None => (Vec::new(), Vec::new()),
            Some(hires) => {
                let second_pass = |own: &str, listed: &'_ [String], main: &'_ [String]| {
                    if own.is_empty() && listed.is_empty() {
                        main.to_vec()
                    } else {
                        listed.to_vec()
                    }
                };
                let or_main = |prompt: &str, main: &str| {
                    if prompt.is_empty() { main } else { prompt }.to_owned()
                };
                (
                    positive(
                        &second_pass(&hires.prompt, &lists.hires_prompts, &lists.prompts),
                        &or_main(&hires.prompt, &params.prompt),
                    ),
                    negative(
                        &second_pass(
                            &hires.negative_prompt,
                            &lists.hires_negative_prompts,
                            &lists.negative_prompts,
                        ),
                        &or_main(&hires.negative_prompt, &params.negative_prompt),
                    ),
                )
            }
        };
        Self {
            positive: with_default_lora(params, positive(&lists.prompts, &params.prompt)),
            negative: negative(&lists.negative_prompts, &params.negative_prompt),
            hires_positive: with_default_lora(params, hires_positive),
            hires_negative,
        }
    }

    /// Adds the hypernetwork of the option `sd_hypernetwork` to every prompt whose first has no tag for
    /// it, with the option `extra_networks_default_multiplier`.
    pub(super) fn add_default_hypernetwork(
        &mut self,
        options: &Options,
        models: &dyn ModelProvider,
    ) {
        let name = options.text("sd_hypernetwork");
        if matches!(name, "" | "None") || !models.knows_network(NetworkKind::Hypernetwork, name) {
            return;
        }
        let multiplier = python_str(&json!(options.f64("extra_networks_default_multiplier")));
        for prompts in [&mut self.positive, &mut self.hires_positive] {
            let tags = prompts.first().map(|first| extract_extra_networks(first).1);
            let is_there = tags.unwrap_or_default().iter().any(|tag| {
                tag.kind == "hypernet" && tag.positional.first().is_some_and(|it| it == name)
            });
            if !is_there {
                for prompt in prompts.iter_mut() {
                    *prompt = format!("{prompt}<hypernet:{name}:{multiplier}>");
                }
            }
        }
    }
}

/// The prompts with a tag for the network that the option `sd_lora` names, where they have none for it.
fn with_default_lora(params: &GenerationParams, prompts: Vec<String>) -> Vec<String> {
    let name = params.options.text("sd_lora");
    if matches!(name, "" | "None") || params.disable_extra_networks {
        return prompts;
    }
    let multiplier = params.options.f64("extra_networks_default_multiplier");
    let is_named = |prompt: &String| {
        let (_, networks) = extract_extra_networks(prompt);
        networks.iter().any(|network| {
            network.kind == "lora" && network.positional.first().is_some_and(|it| it == name)
        })
    };
    prompts
        .into_iter()
        .map(|prompt| {
            if is_named(&prompt) {
                prompt
            } else {
                format!("{prompt}<lora:{name}:{multiplier:?}>")
            }
        })
        .collect()
}

/// One finished prompt a picture: those listed, or the same for all.
fn finish(
    params: &GenerationParams,
    listed: &[String],
    prompt: &str,
    style: fn(&(String, String)) -> &str,
) -> Vec<String> {
    if params.lists.finished && !listed.is_empty() {
        return listed.to_vec();
    }
    let finished = |prompt: &str| {
        let styled = apply_styles(prompt, params.style_texts.iter().map(style));
        if params.options.bool("enable_prompt_comments") {
            strip_comments(&styled)
        } else {
            styled
        }
    };
    if listed.is_empty() {
        // A list of one kind of prompt says how many pictures there are.
        let count = match params
            .lists
            .prompts
            .len()
            .max(params.lists.negative_prompts.len())
        {
            0 => params.batch_size * params.batch_count,
            count => count,
        };
        return vec![finished(prompt); count];
    }
    listed.iter().map(|prompt| finished(prompt)).collect()
}

/// The prompts of one batch without their tags, and the networks that the first of them asks for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct BatchPrompts {
    pub(super) texts: Vec<String>,
    pub(super) networks: PromptNetworks,
    pub(super) comments: Vec<String>,
}

impl BatchPrompts {
    /// Cuts the tags out of `prompts`; only those of the first prompt count.
    pub(super) fn new(prompts: &[String]) -> Self {
        let mut batch = Self {
            texts: Vec::with_capacity(prompts.len()),
            networks: PromptNetworks::default(),
            comments: Vec::new(),
        };
        for (index, prompt) in prompts.iter().enumerate() {
            let (text, networks) = extract_extra_networks(prompt);
            batch.texts.push(text);
            if index > 0 {
                continue;
            }
            for network in &networks {
                if let Err(error) = batch.networks.add(network) {
                    batch.comments.push(error.to_string());
                }
            }
        }
        batch
    }
}
