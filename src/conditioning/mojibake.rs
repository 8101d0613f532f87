//! Text that was UTF-8 and was read in another encoding: `cafÃ©` for `café`.
//!
//! Does what ftfy's documentation promises of its `fix_encoding`, by a simpler rule of our own:
//! characters that spell a valid UTF-8 sequence in windows-1252 are that sequence, unless they
//! could as well be a letter followed by punctuation. Text in other single-byte encodings is
//! repaired as a whole. Left out are sequences with a lost or replaced byte.

use encoding_rs::{
    Encoding, ISO_8859_2, MACINTOSH, WINDOWS_1250, WINDOWS_1251, WINDOWS_1253, WINDOWS_1254,
    WINDOWS_1257,
};

use super::html_entities::windows_1252;

/// Encodings tried on a whole text, the likelier first.
static ENCODINGS: [&Encoding; 7] = [
    WINDOWS_1251,
    WINDOWS_1250,
    WINDOWS_1253,
    WINDOWS_1254,
    WINDOWS_1257,
    ISO_8859_2,
    MACINTOSH,
];

/// What stands after a capital at the end of a quotation or a sentence.
const PUNCTUATION: [char; 13] = [
    '…', '‘', '’', '“', '”', '–', '—', '™', '•', '›', '»', '®', '\u{a0}',
];

/// `text` with one layer of misread UTF-8 undone.
pub(super) fn undo_mojibake(text: &str) -> String {
    if text.is_ascii() {
        return text.to_owned();
    }
    let repaired = repair_sequences(text);
    if repaired != text {
        return repaired;
    }
    ENCODINGS
        .iter()
        .find_map(|encoding| reread(text, encoding))
        .unwrap_or(repaired)
}

/// The byte that windows-1252 (or, below 0x100, Latin-1) has for a character.
fn byte_of(character: char) -> Option<u8> {
    u8::try_from(u32::from(character))
        .ok()
        .or_else(|| (0x80..=0x9f).find(|&byte| windows_1252(byte) == character))
}

fn repair_sequences(text: &str) -> String {
    let characters: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut position = 0;
    while position < characters.len() {
        if let Some((repaired, length)) = sequence_at(&characters[position..]) {
            out.push(repaired);
            position += length;
        } else {
            out.push(characters[position]);
            position += 1;
        }
    }
    out
}

/// The character that the next few spell as UTF-8, and how many they are.
fn sequence_at(characters: &[char]) -> Option<(char, usize)> {
    let length = match byte_of(*characters.first()?)? {
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => return None,
    };
    let spelling = characters.get(..length)?;
    if length == 2 && is_plausible(spelling[0], spelling[1]) {
        return None;
    }
    let bytes: Vec<u8> = spelling
        .iter()
        .map(|&character| byte_of(character))
        .collect::<Option<_>>()?;
    let repaired = std::str::from_utf8(&bytes).ok()?.chars().next()?;
    Some((repaired, length))
}

/// Whether somebody may have meant these two characters.
fn is_plausible(letter: char, follower: char) -> bool {
    match letter {
        'Â' => false,
        'Ã' => follower == '…',
        _ => PUNCTUATION.contains(&follower),
    }
}

/// The text whose UTF-8 bytes `encoding` reads as `text`, if there are at least two sequences in it.
fn reread(text: &str, encoding: &'static Encoding) -> Option<String> {
    let (bytes, _, unmappable) = encoding.encode(text);
    if unmappable {
        return None;
    }
    let repaired = std::str::from_utf8(&bytes).ok()?;
    let sequences = repaired
        .chars()
        .filter(|character| !character.is_ascii())
        .count();
    (sequences >= 2).then(|| repaired.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misread_text_comes_back() {
        for (text, want) in [
            ("cafÃ© à la carte", "café à la carte"),
            ("itâ€™s 100Â°", "it’s 100°"),
            ("ðŸ˜€", "😀"),
            ("РџСЂРёРІРµС‚", "Привет"),
            ("ÐŸÑ€Ð¸Ð²ÐµÑ‚", "Привет"),
        ] {
            assert_eq!(undo_mojibake(text), want, "{text}");
        }
    }

    #[test]
    fn what_was_read_right_stays() {
        for text in [
            "naïve café",
            "„CAFÉ“",
            "GROẞ…",
            "Привет",
            "MAÇÃ…",
            "NOËL™",
            "½ × 2",
            "日本",
        ] {
            assert_eq!(undo_mojibake(text), text);
        }
    }
}
