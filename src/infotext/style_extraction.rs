//! Styles found again in the prompts of an infotext.

/// A style to look for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownStyle<'a> {
    pub name: &'a str,
    pub prompt: &'a str,
    pub negative_prompt: &'a str,
}

/// Cuts the texts of styles out of a pair of prompts. A style counts when both its sides match; each
/// counts once. The answer is the names in the order they were applied in, and both prompts without
/// them.
#[must_use]
pub fn extract_styles(
    prompt: &str,
    negative_prompt: &str,
    styles: &[KnownStyle<'_>],
) -> (Vec<String>, String, String) {
    let mut candidates: Vec<KnownStyle<'_>> = styles
        .iter()
        .filter(|style| !(style.prompt.is_empty() && style.negative_prompt.is_empty()))
        .copied()
        .collect();
    let (mut prompt, mut negative_prompt) = (prompt, negative_prompt);
    let mut names = Vec::new();
    while let Some((index, rest)) = candidates.iter().enumerate().find_map(|(index, style)| {
        let positive = cut_style(style.prompt, prompt)?;
        let negative = cut_style(style.negative_prompt, negative_prompt)?;
        Some((index, (positive, negative)))
    }) {
        (prompt, negative_prompt) = rest;
        names.push(candidates.remove(index).name.to_owned());
    }
    names.reverse();
    (names, prompt.to_owned(), negative_prompt.to_owned())
}

/// What is left of `prompt` without the style; `None` if the style is not in it.
fn cut_style<'a>(style: &str, prompt: &'a str) -> Option<&'a str> {
    let style = style.trim();
    let prompt = prompt.trim();
    if let Some((before, after)) = style.split_once("{prompt}") {
        return prompt.strip_prefix(before)?.strip_suffix(after);
    }
    let rest = prompt.strip_suffix(style)?;
    Some(rest.strip_suffix(", ").unwrap_or(rest))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::infotext::vectors;

    #[derive(Deserialize)]
    struct Case {
        prompt: String,
        negative: String,
        result: (Vec<String>, String, String),
    }

    #[test]
    fn styles_are_found_as_a1111_finds_them() {
        for case in
            vectors::read_from::<Vec<Case>>("style_and_wildcard_vectors.json", "styles_extract")
        {
            assert_eq!(
                extract_styles(&case.prompt, &case.negative, &vectors::STYLES),
                case.result,
                "{:?}",
                case.prompt
            );
        }
    }
}
