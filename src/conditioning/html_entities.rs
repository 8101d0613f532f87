//! HTML character references, as Python's `html.unescape` reads them (WHATWG's rules).

use std::collections::HashMap;
use std::sync::LazyLock;

use regex::{Captures, Regex};

/// Every name of HTML 5, with its closing semicolon where it needs one, and its code points.
const NAMES: &str = include_str!("html_entities.txt");

static ENTITIES: LazyLock<HashMap<&str, String>> = LazyLock::new(|| {
    NAMES
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(name, code_points)| {
            let text = code_points
                .split(' ')
                .filter_map(|hex| char::from_u32(u32::from_str_radix(hex, 16).ok()?))
                .collect();
            (name, text)
        })
        .collect()
});
static REFERENCE: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"&(#[0-9]+;?|#[xX][0-9a-fA-F]+;?|[^\t\n\x0c <&#;]{1,32};?)")
        .expect("the pattern is constant")
});
static CLOSED_REFERENCE: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"&#?[0-9A-Za-z]{1,24};").expect("the pattern is constant"));

/// Python's `html.unescape`.
pub(super) fn unescape_html(text: &str) -> String {
    REFERENCE
        .replace_all(text, |found: &Captures<'_>| resolve(&found[1]))
        .into_owned()
}

/// ftfy's more careful reading: only references that are closed, and names in capitals too.
pub(super) fn unescape_closed_html(text: &str) -> String {
    CLOSED_REFERENCE
        .replace_all(text, |found: &Captures<'_>| {
            let reference = &found[0];
            let body = &reference[1..];
            if body.starts_with('#') {
                let resolved = unescape_html(reference);
                if resolved.contains(';') {
                    reference.to_owned()
                } else {
                    resolved
                }
            } else if let Some(text) = ENTITIES.get(body) {
                text.clone()
            } else if let Some(text) = capital_entity(body) {
                text
            } else {
                reference.to_owned()
            }
        })
        .into_owned()
}

fn capital_entity(body: &str) -> Option<String> {
    let is_capital = body == body.to_uppercase();
    let text = ENTITIES.get(body.to_lowercase().as_str())?;
    is_capital.then(|| text.to_uppercase())
}

/// What stands for a reference, given without its ampersand.
fn resolve(body: &str) -> String {
    if let Some(number) = body.strip_prefix('#') {
        let number = number.trim_end_matches(';');
        let code_point = match number.strip_prefix(['x', 'X']) {
            Some(hex) => u32::from_str_radix(hex, 16),
            None => number.parse(),
        };
        // A number too large for the type is far outside Unicode.
        return resolve_code_point(code_point.unwrap_or(u32::MAX));
    }
    if let Some(text) = ENTITIES.get(body) {
        return text.clone();
    }
    let longest_prefix = body
        .char_indices()
        .rev()
        .map(|(index, _)| body.split_at(index))
        .filter(|(name, _)| name.len() > 1)
        .find_map(|(name, rest)| Some(format!("{}{rest}", ENTITIES.get(name)?)));
    longest_prefix.unwrap_or_else(|| format!("&{body}"))
}

fn resolve_code_point(code_point: u32) -> String {
    match code_point {
        0 => '\u{fffd}'.to_string(),
        0x0d => '\r'.to_string(),
        0x80..=0x9f => windows_1252(code_point as u8).to_string(),
        0x01..=0x08 | 0x0b | 0x0e..=0x1f | 0x7f | 0xfdd0..=0xfdef => String::new(),
        _ if code_point <= 0x0010_ffff && code_point & 0xfffe == 0xfffe => String::new(),
        _ => char::from_u32(code_point)
            .unwrap_or(char::REPLACEMENT_CHARACTER)
            .to_string(),
    }
}

/// The character of a byte 0x80 to 0x9f in windows-1252; the five that are undefined are control
/// characters.
pub(super) fn windows_1252(byte: u8) -> char {
    const HIGH: [char; 32] = [
        '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž',
        '\u{8f}', '\u{90}', '‘', '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}',
        'ž', 'Ÿ',
    ];
    match byte {
        0x80..=0x9f => HIGH[usize::from(byte - 0x80)],
        _ => char::from(byte),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_read_as_python_reads_them() {
        for (text, want) in [
            ("&lt;b&gt; &amp;", "<b> &"),
            ("&ampx; &eacute &notit; &notin;", "&x; é ¬it; ∉"),
            (
                "&#233; &#xe9 &#128; &#xD800; &#0; &#1;",
                "é é € \u{fffd} \u{fffd} ",
            ),
            ("&nosuch; & &#; &#99999999999;", "&nosuch; & &#; \u{fffd}"),
            ("&ThickSpace;", "\u{205f}\u{200a}"),
        ] {
            assert_eq!(unescape_html(text), want, "{text}");
        }
    }

    #[test]
    fn only_closed_references_are_certain() {
        for (text, want) in [
            ("&EACUTE; &eacute &eacute;", "É &eacute é"),
            ("&#233; &#233 &nosuch;", "é &#233 &nosuch;"),
        ] {
            assert_eq!(unescape_closed_html(text), want, "{text}");
        }
    }
}
