//! Composable diffusion: a prompt split at `AND` into parts with weights.

use std::sync::LazyLock;

use regex::Regex;

static AND: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\bAND\b").expect("the pattern is constant"));
static WEIGHTED: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?s)^(.*?)(?:\s*:\s*([-+]?(?:[0-9]+\.?|[0-9]*\.[0-9]+)))?\s*$")
        .expect("the pattern is constant")
});

/// One side of an `AND`.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptPart {
    /// The text without its weight and trailing blanks; leading blanks stay.
    pub text: String,
    /// The number after a closing colon, 1 where there is none.
    pub weight: f64,
}

/// The parts of a positive prompt. A prompt without `AND` has one part, whose closing `:number` is
/// its weight all the same. Negative prompts are never split.
#[must_use]
pub fn split_composition(prompt: &str) -> Vec<PromptPart> {
    AND.split(prompt).map(parse_part).collect()
}

fn parse_part(text: &str) -> PromptPart {
    let Some(found) = WEIGHTED.captures(text) else {
        return PromptPart {
            text: text.to_owned(),
            weight: 1.0,
        };
    };
    PromptPart {
        text: found[1].to_owned(),
        weight: found
            .get(2)
            .and_then(|number| number.as_str().parse().ok())
            .unwrap_or(1.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompt::vectors;

    type Case = (String, Vec<String>, Vec<(usize, f64)>);

    #[test]
    fn parts_and_weights_are_a1111s() {
        for (prompt, texts, parts) in vectors::read::<Vec<Case>>("AND") {
            let want: Vec<PromptPart> = parts
                .into_iter()
                .map(|(index, weight)| PromptPart {
                    text: texts[index].clone(),
                    weight,
                })
                .collect();
            assert_eq!(split_composition(&prompt), want, "{prompt:?}");
        }
    }
}
