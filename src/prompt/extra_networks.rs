//! Extra-network tags: `<lora:name:0.8>` and their like, cut out of the prompt.

use std::sync::LazyLock;

use indexmap::IndexMap;
use regex::Regex;

static TAG: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"<(\w+):([^>]+)>").expect("the pattern is constant"));

/// One tag, its items split at `:`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtraNetwork {
    /// The word before the first colon: `lora`, `lyco`, `hypernet` …
    pub kind: String,
    pub positional: Vec<String>,
    /// Items of the form `key=value`.
    pub named: IndexMap<String, String>,
}

/// `prompt` without its tags, and the tags in order. Blanks around a tag stay.
#[must_use]
pub fn extract_extra_networks(prompt: &str) -> (String, Vec<ExtraNetwork>) {
    let networks = TAG
        .captures_iter(prompt)
        .map(|tag| read_items(&tag[1], &tag[2]))
        .collect();
    (TAG.replace_all(prompt, "").into_owned(), networks)
}

fn read_items(kind: &str, items: &str) -> ExtraNetwork {
    let mut network = ExtraNetwork {
        kind: kind.to_owned(),
        positional: Vec::new(),
        named: IndexMap::new(),
    };
    for item in items.split(':') {
        match item.split_once('=') {
            Some((key, value)) if !value.contains('=') => {
                network.named.insert(key.to_owned(), value.to_owned());
            }
            _ => network.positional.push(item.to_owned()),
        }
    }
    network
}

/// What a LoRA tag asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraTag {
    pub name: String,
    pub text_encoder_multiplier: f64,
    pub unet_multiplier: f64,
    pub dynamic_rank: Option<usize>,
}

/// Why a LoRA tag cannot be read; A1111 logs it and applies no network of the prompt's kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoraTagError {
    #[error("could not convert string to float: '{text}'")]
    Multiplier { text: String },
    #[error("invalid literal for int() with base 10: '{text}'")]
    Rank { text: String },
    #[error("a {kind} tag without a name")]
    NoName { kind: String },
}

/// Reads a tag of the LoRA family (`lora`, `lyco`); `None` for other kinds.
///
/// # Errors
/// When a multiplier or the rank is no number, or every item is named.
#[must_use]
pub fn parse_lora_tag(network: &ExtraNetwork) -> Option<Result<LoraTag, LoraTagError>> {
    matches!(network.kind.as_str(), "lora" | "lyco").then(|| read_lora(network))
}

fn read_lora(network: &ExtraNetwork) -> Result<LoraTag, LoraTagError> {
    let item = |key: &str, position: usize| {
        network
            .named
            .get(key)
            .or_else(|| network.positional.get(position))
            .map(String::as_str)
    };
    let number = |text: &str| {
        text.trim()
            .parse::<f64>()
            .map_err(|_| LoraTagError::Multiplier {
                text: text.to_owned(),
            })
    };
    let name = network
        .positional
        .first()
        .ok_or_else(|| LoraTagError::NoName {
            kind: network.kind.clone(),
        })?;
    let text_encoder_multiplier = item("te", 1).map_or(Ok(1.0), number)?;
    let unet_multiplier = item("unet", 2).map_or(Ok(text_encoder_multiplier), number)?;
    let dynamic_rank = item("dyn", 3)
        .map(|text| {
            text.trim().parse().map_err(|_| LoraTagError::Rank {
                text: text.to_owned(),
            })
        })
        .transpose()?;
    Ok(LoraTag {
        name: name.clone(),
        text_encoder_multiplier,
        unet_multiplier,
        dynamic_rank,
    })
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::prompt::vectors;

    #[derive(Deserialize)]
    struct Items {
        positional: Vec<String>,
        named: IndexMap<String, String>,
    }

    #[test]
    fn tags_are_cut_out_and_read() {
        type Case = (String, String, IndexMap<String, Vec<Items>>);
        for (prompt, text, by_kind) in vectors::read::<Vec<Case>>("extra_networks") {
            let want: Vec<ExtraNetwork> = by_kind
                .into_iter()
                .flat_map(|(kind, tags)| {
                    tags.into_iter().map(move |tag| ExtraNetwork {
                        kind: kind.clone(),
                        positional: tag.positional,
                        named: tag.named,
                    })
                })
                .collect();
            assert_eq!(extract_extra_networks(&prompt), (text, want), "{prompt:?}");
        }
    }

    fn lora(prompt: &str) -> Result<LoraTag, LoraTagError> {
        let (_, tags) = extract_extra_networks(prompt);
        parse_lora_tag(&tags[0]).expect("a LoRA tag")
    }

    #[test]
    fn named_multipliers_win_and_the_unet_follows_the_text_encoder() {
        let tag = lora("<lora:foo:0.5:unet=0.7:dyn=8>").expect("legal");
        assert_eq!(
            (tag.text_encoder_multiplier, tag.unet_multiplier),
            (0.5, 0.7)
        );
        assert_eq!(tag.dynamic_rank, Some(8));
        let tag = lora("<lyco:foo:te=0.25>").expect("legal");
        assert_eq!(
            (tag.text_encoder_multiplier, tag.unet_multiplier),
            (0.25, 0.25)
        );
        let tag = lora("<lora:foo>").expect("legal");
        assert_eq!(
            (tag.text_encoder_multiplier, tag.unet_multiplier),
            (1.0, 1.0)
        );
    }

    #[test]
    fn a_multiplier_that_is_no_number_is_refused() {
        assert_eq!(
            lora("<lora:foo:strong>")
                .expect_err("no number")
                .to_string(),
            "could not convert string to float: 'strong'"
        );
        let (_, tags) = extract_extra_networks("<hypernet:h:0.3>");
        assert_eq!(parse_lora_tag(&tags[0]), None);
    }
}
