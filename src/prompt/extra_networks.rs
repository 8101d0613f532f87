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

/// What a hypernetwork tag asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct HypernetworkTag {
    pub name: String,
    pub multiplier: f64,
}

/// The networks that a prompt asks for, in order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PromptNetworks {
    pub loras: Vec<LoraTag>,
    pub hypernetworks: Vec<HypernetworkTag>,
}

impl PromptNetworks {
    /// No networks.
    pub const NONE: Self = Self {
        loras: Vec::new(),
        hypernetworks: Vec::new(),
    };

    /// Adds what a tag asks for; kinds that are not known are nothing.
    ///
    /// # Errors
    /// When a number of the tag cannot be read, or it has no name.
    pub fn add(&mut self, network: &ExtraNetwork) -> Result<(), NetworkTagError> {
        match network.kind.as_str() {
            "lora" | "lyco" => self.loras.push(read_lora(network)?),
            "hypernet" => self.hypernetworks.push(read_hypernetwork(network)?),
            _ => {}
        }
        Ok(())
    }
}

/// Why a tag cannot be read; A1111 logs it and applies no network of the prompt's kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetworkTagError {
    #[error("could not convert string to float: '{text}'")]
    Multiplier { text: String },
    #[error("invalid literal for int() with base 10: '{text}'")]
    Rank { text: String },
    #[error("a {kind} tag without a name")]
    NoName { kind: String },
}

fn read_lora(network: &ExtraNetwork) -> Result<LoraTag, NetworkTagError> {
    let item = |key: &str, position: usize| {
        network
            .named
            .get(key)
            .or_else(|| network.positional.get(position))
            .map(String::as_str)
    };
    let name = name_of(network)?;
    let text_encoder_multiplier = item("te", 1).map_or(Ok(1.0), number)?;
    let unet_multiplier = item("unet", 2).map_or(Ok(text_encoder_multiplier), number)?;
    let dynamic_rank = item("dyn", 3)
        .map(|text| {
            text.trim().parse().map_err(|_| NetworkTagError::Rank {
                text: text.to_owned(),
            })
        })
        .transpose()?;
    Ok(LoraTag {
        name,
        text_encoder_multiplier,
        unet_multiplier,
        dynamic_rank,
    })
}

fn read_hypernetwork(network: &ExtraNetwork) -> Result<HypernetworkTag, NetworkTagError> {
    let multiplier = network.positional.get(1);
    Ok(HypernetworkTag {
        name: name_of(network)?,
        multiplier: multiplier.map_or(Ok(1.0), |text| number(text))?,
    })
}

fn name_of(network: &ExtraNetwork) -> Result<String, NetworkTagError> {
    let name = network.positional.first();
    name.cloned().ok_or_else(|| NetworkTagError::NoName {
        kind: network.kind.clone(),
    })
}

fn number(text: &str) -> Result<f64, NetworkTagError> {
    text.trim()
        .parse()
        .map_err(|_| NetworkTagError::Multiplier {
            text: text.to_owned(),
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

    fn lora(prompt: &str) -> Result<LoraTag, NetworkTagError> {
        let (_, tags) = extract_extra_networks(prompt);
        read_lora(&tags[0])
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
    }

    #[test]
    fn hypernetworks_have_a_name_and_a_multiplier() {
        let (_, tags) = extract_extra_networks("<hypernet:h:0.3> <hypernet:i> <other:x:y>");
        let mut networks = PromptNetworks::default();
        for tag in &tags {
            networks.add(tag).expect("legal");
        }
        let want = [("h", 0.3), ("i", 1.0)].map(|(name, multiplier)| HypernetworkTag {
            name: name.to_owned(),
            multiplier,
        });
        assert_eq!(networks.hypernetworks, want);
        let (_, tags) = extract_extra_networks("<hypernet:h:much>");
        assert!(networks.add(&tags[0]).is_err());
    }
}
