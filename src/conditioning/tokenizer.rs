//! CLIP's byte-pair tokenizer, with the two ways of cleaning text that A1111's towers use.
//!
//! The vocabulary follows from the merges alone: 256 byte symbols, the same at the end of a word,
//! one symbol a merge in order, and the two special tokens. Every emphasis segment is tokenised by
//! itself, so a word cut by a bracket is two words.

use std::ops::Range;
use std::sync::LazyLock;

use regex::Regex;
use tokenizers::Model as _;
use tokenizers::models::bpe::{BPE, Vocab};

use super::html_entities::unescape_html;
use super::text_repair::repair_text;

/// `<|startoftext|>`
pub(super) const START_TOKEN: u32 = 49406;
/// `<|endoftext|>`
pub(super) const END_TOKEN: u32 = 49407;
/// `,` at the end of a word.
pub(super) const COMMA_TOKEN: u32 = 267;

const MERGES: &str = include_str!("../../onnx/tokenizer/merges.txt");
const END_OF_WORD: &str = "</w>";

/// Built at the first prompt: about 50 ms that a server start need not wait for.
static BYTE_PAIRS: LazyLock<BPE> = LazyLock::new(build_byte_pairs);
static BYTE_SYMBOLS: LazyLock<[char; 256]> = LazyLock::new(byte_symbols);

static CLIP_L_WORDS: LazyLock<Regex> =
    LazyLock::new(|| word_pattern(r"<\|startoftext\|>|<\|endoftext\|>"));
static OPEN_CLIP_WORDS: LazyLock<Regex> =
    LazyLock::new(|| word_pattern(r"<start_of_text>|<end_of_text>"));
static CLIP_L_SPECIAL: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"<\|startoftext\|>|<\|endoftext\|>").expect("the pattern is constant")
});

fn word_pattern(special: &str) -> Regex {
    Regex::new(&format!(
        r"(?i){special}|'s|'t|'re|'ve|'m|'ll|'d|\p{{L}}+|\p{{N}}|[^\s\p{{L}}\p{{N}}]+"
    ))
    .expect("the pattern is constant")
}

/// How text becomes words, and what fills a chunk after its end token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tokenizer {
    /// CLIP ViT-L/14 (SD 1.x, SDXL's first tower), as Hugging Face's slow tokenizer with ftfy.
    ClipL,
    /// OpenCLIP (SD 2.x, SDXL's second tower, the refiner).
    OpenClip,
}

impl Tokenizer {
    /// Token ids of a text, without start, end or padding.
    #[must_use]
    pub fn tokens(self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        match self {
            Self::OpenClip => {
                let cleaned = unescape_html(&unescape_html(&repair_text(text)));
                push_words(&OPEN_CLIP_WORDS, &normalise(&cleaned), &mut ids);
            }
            Self::ClipL => {
                for piece in split_special(text) {
                    match special_token(&text[piece.clone()]) {
                        Some(id) => ids.push(id),
                        None => push_words(
                            &CLIP_L_WORDS,
                            &normalise(&repair_text(&text[piece])),
                            &mut ids,
                        ),
                    }
                }
            }
        }
        ids
    }

    /// Rewrites what follows the first end token of a chunk the way the tower was trained.
    pub(super) fn pad(self, chunk: &mut [u32]) {
        if self == Self::OpenClip
            && let Some(end) = chunk.iter().position(|&id| id == END_TOKEN)
        {
            chunk[end + 1..].fill(0);
        }
    }
}

/// The special tokens, which CLIP-L's tokenizer cuts out before it cleans, and what is between them.
fn split_special(text: &str) -> Vec<Range<usize>> {
    let mut pieces = Vec::new();
    let mut start = 0;
    for found in CLIP_L_SPECIAL.find_iter(text) {
        pieces.push(start..found.start());
        pieces.push(found.range());
        start = found.end();
    }
    pieces.push(start..text.len());
    pieces
}

fn special_token(word: &str) -> Option<u32> {
    match word {
        "<|startoftext|>" | "<start_of_text>" => Some(START_TOKEN),
        "<|endoftext|>" | "<end_of_text>" => Some(END_TOKEN),
        _ => None,
    }
}

/// White space runs to one space, trimmed, in lower case.
fn normalise(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").to_lowercase()
}

fn push_words(pattern: &Regex, text: &str, ids: &mut Vec<u32>) {
    for word in pattern.find_iter(text) {
        if let Some(id) = special_token(word.as_str()) {
            ids.push(id);
            continue;
        }
        let symbols: String = word
            .as_str()
            .bytes()
            .map(|byte| BYTE_SYMBOLS[usize::from(byte)])
            .collect();
        // Every byte symbol is in the vocabulary, so no word can fail.
        if let Ok(tokens) = BYTE_PAIRS.tokenize(&symbols) {
            ids.extend(tokens.into_iter().map(|token| token.id));
        }
    }
}

/// GPT-2's printable stand-in for every byte.
fn byte_symbols() -> [char; 256] {
    let mut symbols = ['\0'; 256];
    let mut next = 256;
    for (byte, symbol) in (0_u8..=255).zip(symbols.iter_mut()) {
        *symbol = if is_printable(byte) {
            char::from(byte)
        } else {
            next += 1;
            char::from_u32(next - 1).expect("below the surrogates")
        };
    }
    symbols
}

fn is_printable(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff)
}

fn build_byte_pairs() -> BPE {
    let symbols = byte_symbols();
    let (printable, other): (Vec<u8>, Vec<u8>) = (0..=255).partition(|&byte| is_printable(byte));
    let alphabet: Vec<String> = printable
        .into_iter()
        .chain(other)
        .map(|byte| symbols[usize::from(byte)].to_string())
        .collect();
    let merges: Vec<(String, String)> = MERGES
        .lines()
        .skip(1)
        .filter_map(|line| line.split_once(' '))
        .map(|(left, right)| (left.to_owned(), right.to_owned()))
        .collect();
    let vocabulary: Vocab = alphabet
        .iter()
        .cloned()
        .chain(alphabet.iter().map(|symbol| symbol.clone() + END_OF_WORD))
        .chain(merges.iter().map(|(left, right)| left.clone() + right))
        .chain(["<|startoftext|>".to_owned(), "<|endoftext|>".to_owned()])
        .zip(0..)
        .collect();
    BPE::builder()
        .vocab_and_merges(vocabulary, merges)
        .end_of_word_suffix(END_OF_WORD.to_owned())
        .build()
        .expect("the embedded merges name only symbols of their own vocabulary")
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::prompt::vectors;

    #[test]
    fn the_vocabulary_follows_from_the_merges() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("compat-tests/golden/models/tokenizer/vocab.json");
        let text = fs_err::read_to_string(path).expect("the golden vocabulary exists");
        let want: HashMap<String, u32> = serde_json::from_str(&text).expect("a vocabulary");
        let have: HashMap<String, u32> = BYTE_PAIRS.get_vocab().into_iter().collect();
        assert_eq!(have, want);
        assert_eq!(Tokenizer::ClipL.tokens(","), [COMMA_TOKEN]);
    }

    #[test]
    fn open_clip_tokens_are_the_recorded_ones() {
        for (text, want) in vectors::read::<Vec<(String, Vec<u32>)>>("tokens") {
            assert_eq!(Tokenizer::OpenClip.tokens(&text), want, "{text:?}");
        }
    }

    #[test]
    fn the_two_cleanings_differ_in_special_tokens_and_entities() {
        let cases: [(&str, &[u32], &[u32]); 4] = [
            (
                "<|endoftext|> x",
                &[49407, 343],
                &[27, 347, 40786, 4160, 91, 285, 343],
            ),
            (
                "<|startoftext|>x",
                &[49406, 343],
                &[27, 347, 993, 6659, 4160, 91, 285, 343],
            ),
            (
                "<end_of_text> x",
                &[283, 806, 318, 539, 318, 4160, 285, 343],
                &[49407, 343],
            ),
            (
                "&amp; <b> &eacute;",
                &[261, 6259, 282, 283, 321, 285, 261, 68, 19734, 282],
                &[261, 283, 321, 285, 4166],
            ),
        ];
        for (text, clip_l, open_clip) in cases {
            assert_eq!(Tokenizer::ClipL.tokens(text), clip_l, "{text:?}");
            assert_eq!(Tokenizer::OpenClip.tokens(text), open_clip, "{text:?}");
        }
    }

    #[test]
    fn unusual_text_is_cleaned_before_it_is_tokenised() {
        let cases: [(&str, &[u32]); 6] = [
            ("&amp;amp;", &[261]),
            ("İstanbul", &[328, 16384, 11231]),
            ("½", &[33613]),
            ("x²", &[343, 41175]),
            ("ﾊﾝｶｸ", &[2429, 237, 17671, 37367, 3909, 363]),
            ("n\u{303}", &[127, 365]),
        ];
        for (text, want) in cases {
            for tokenizer in [Tokenizer::ClipL, Tokenizer::OpenClip] {
                assert_eq!(tokenizer.tokens(text), want, "{text:?}");
            }
        }
    }
}
