//! What both of CLIP's tokenizers do to text first: ftfy's `fix_text` with its defaults.
//!
//! Follows the documented steps of ftfy 6.3: HTML references (unless the text has a `<`), terminal
//! escapes, misread encodings (see `mojibake`), C1 controls, Latin ligatures, full and half width,
//! curly quotes, line breaks, control characters, NFC; repeated until nothing changes.

use std::sync::LazyLock;

use regex::Regex;
use tokenizers::NormalizedString;

use super::html_entities::{unescape_closed_html, windows_1252};
use super::mojibake::undo_mojibake;

/// More rounds than any text needs whose references are not nested on purpose.
const MAX_ROUNDS: usize = 16;

static TERMINAL_ESCAPE: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\x1b\[[0-9;]*[a-zA-Z]").expect("the pattern is constant"));

/// `text` repaired, line by line: from the first line with a `<` on, references stay.
pub(super) fn repair_text(text: &str) -> String {
    let mut has_markup = false;
    text.split_inclusive('\n')
        .map(|line| {
            has_markup |= line.contains('<');
            repair_line(line, !has_markup)
        })
        .collect()
}

fn repair_line(line: &str, unescape: bool) -> String {
    // The common case: nothing of what is repaired below is in plain ASCII.
    if line
        .bytes()
        .all(|byte| matches!(byte, b' '..=b'~' | b'\n' | b'\t') && !(unescape && byte == b'&'))
    {
        return line.to_owned();
    }
    let mut text = line.to_owned();
    for _ in 0..MAX_ROUNDS {
        let unescaped = if unescape {
            unescape_closed_html(&text)
        } else {
            text.clone()
        };
        let plain = TERMINAL_ESCAPE.replace_all(&unescaped, "");
        let repaired = compose(&repair_characters(&undo_mojibake(&plain)));
        if repaired == text {
            break;
        }
        text = repaired;
    }
    text
}

/// The repairs of single characters, each of which sees the result of those before it.
fn repair_characters(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut after_return = false;
    for character in text.chars() {
        if after_return && character == '\n' {
            after_return = false;
            continue;
        }
        after_return = character == '\r';
        let character = match character {
            '\u{80}'..='\u{9f}' => windows_1252(character as u8),
            _ => character,
        };
        match character {
            '\r' | '\u{2028}' | '\u{2029}' => out.push('\n'),
            '‘' | '’' | '‚' | '‛' | 'ʼ' => out.push('\''),
            '“' | '”' | '„' | '‟' => out.push('"'),
            '\0'..='\x08'
            | '\x0b'
            | '\x0e'..='\x1f'
            | '\x7f'
            | '\u{206a}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffc}' => {}
            '\u{3000}' => out.push(' '),
            '\u{ff01}'..='\u{ffef}' => out.push_str(&compatible(character)),
            _ => match ligature(character) {
                Some(letters) => out.push_str(letters),
                None => out.push(character),
            },
        }
    }
    out
}

fn ligature(character: char) -> Option<&'static str> {
    Some(match character {
        'Ĳ' => "IJ",
        'ĳ' => "ij",
        'ŉ' => "'n",
        'Ǆ' => "DŽ",
        'ǅ' => "Dž",
        'ǆ' => "dž",
        'Ǉ' => "LJ",
        'ǈ' => "Lj",
        'ǉ' => "lj",
        'Ǌ' => "NJ",
        'ǋ' => "Nj",
        'ǌ' => "nj",
        'Ǳ' => "DZ",
        'ǲ' => "Dz",
        'ǳ' => "dz",
        'ﬀ' => "ff",
        'ﬁ' => "fi",
        'ﬂ' => "fl",
        'ﬃ' => "ffi",
        'ﬄ' => "ffl",
        'ﬅ' => "ſt",
        'ﬆ' => "st",
        _ => return None,
    })
}

/// Unicode's NFC.
fn compose(text: &str) -> String {
    let mut normalised = NormalizedString::from(text);
    normalised.nfc();
    normalised.get().to_owned()
}

/// A full- or half-width character in its ordinary width (NFKC).
fn compatible(character: char) -> String {
    let mut normalised = NormalizedString::from(character.to_string());
    normalised.nfkc();
    normalised.get().to_owned()
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Golden {
        /// `(code point, what ftfy makes of the character)` where that is not its NFC.
        characters: Vec<(u32, String)>,
        texts: Vec<(String, String)>,
    }

    fn golden() -> Golden {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/golden/text_repair_vectors.json");
        let text = fs_err::read_to_string(path).expect("the golden file exists");
        serde_json::from_str(&text).expect("the golden file is JSON")
    }

    #[test]
    fn every_character_is_repaired_as_ftfy_does() {
        let want: std::collections::HashMap<u32, String> =
            golden().characters.into_iter().collect();
        for character in '\0'..'\u{20000}' {
            let have = repair_text(&format!("x{character}y"));
            let want = want.get(&u32::from(character)).map_or_else(
                || compose(&format!("x{character}y")),
                |text| format!("x{text}y"),
            );
            assert_eq!(have, want, "U+{:04X}", u32::from(character));
        }
    }

    #[test]
    fn texts_are_repaired_as_ftfy_does() {
        for (text, want) in golden().texts {
            assert_eq!(repair_text(&text), want, "{text:?}");
        }
    }
}
