//! Emphasis: `(more)`, `[less]`, `(exactly:1.3)`, `\(literal\)` and `BREAK`.
//!
//! Weights are f64 throughout, in A1111's order of multiplications; they become f32 only as the
//! multipliers of token states.

use std::sync::LazyLock;

use regex::Regex;

const ROUND: f64 = 1.1;
const SQUARE: f64 = 1.0 / 1.1;
/// The weight that makes a segment `BREAK` the end of a chunk.
const BREAK_MARK: f64 = -1.0;

/// The lexer; the first alternative that matches wins. `\x1c-\x1f` are white space to Python.
static LEXEME: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r"(?x)
        \\\( | \\\) | \\\[ | \\\] | \\\\ | \\
        | \( | \[
        | :[\s\x1c-\x1f]*([+-]?[.\d]+)[\s\x1c-\x1f]*\)
        | \) | \]
        | [^\\()\[\]:]+
        | :",
    )
    .expect("the pattern is constant")
});
static BREAK: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"[\s\x1c-\x1f]*\bBREAK\b[\s\x1c-\x1f]*").expect("the pattern is constant")
});

/// A stretch of text with one weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Segment {
    pub text: String,
    pub weight: f64,
}

impl Segment {
    /// Whether this is a `BREAK` that ends the chunk. One whose weight was changed by brackets
    /// around it is an ordinary word.
    #[must_use]
    pub fn is_break(&self) -> bool {
        self.text == "BREAK" && self.weight == BREAK_MARK
    }
}

/// Why a prompt's emphasis cannot be read.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum EmphasisError {
    /// `(text:1.2.3)` looks like a weight and is none. Python's wording.
    #[error("could not convert string to float: '{text}'")]
    Weight { text: String },
}

/// The segments of a prompt with their weights; never empty.
///
/// # Errors
/// When the text between `:` and `)` is made of digits and dots but is no number.
pub fn parse_emphasis(prompt: &str) -> Result<Vec<Segment>, EmphasisError> {
    let mut parser = Parser::default();
    for lexeme in LEXEME.captures_iter(prompt) {
        parser.take(&lexeme[0], lexeme.get(1).map(|number| number.as_str()))?;
    }
    Ok(parser.finish())
}

/// The two kinds of brackets are independent stacks, so `(a [b) c]` is legal and its ranges overlap.
#[derive(Default)]
struct Parser {
    segments: Vec<Segment>,
    round: Vec<usize>,
    square: Vec<usize>,
}

impl Parser {
    fn take(&mut self, lexeme: &str, number: Option<&str>) -> Result<(), EmphasisError> {
        if let Some(literal) = lexeme.strip_prefix('\\') {
            self.push(literal, 1.0);
        } else if lexeme == "(" {
            self.round.push(self.segments.len());
        } else if lexeme == "[" {
            self.square.push(self.segments.len());
        } else if let (Some(number), Some(start)) = (number, self.round.last().copied()) {
            let weight = parse_weight(number)?;
            self.round.pop();
            self.multiply_from(start, weight);
        } else if let (")", Some(start)) = (lexeme, self.round.last().copied()) {
            self.round.pop();
            self.multiply_from(start, ROUND);
        } else if let ("]", Some(start)) = (lexeme, self.square.last().copied()) {
            self.square.pop();
            self.multiply_from(start, SQUARE);
        } else {
            for (index, part) in BREAK.split(lexeme).enumerate() {
                if index > 0 {
                    self.push("BREAK", BREAK_MARK);
                }
                self.push(part, 1.0);
            }
        }
        Ok(())
    }

    fn push(&mut self, text: &str, weight: f64) {
        self.segments.push(Segment {
            text: text.to_owned(),
            weight,
        });
    }

    fn multiply_from(&mut self, start: usize, factor: f64) {
        for segment in &mut self.segments[start..] {
            segment.weight *= factor;
        }
    }

    #[expect(clippy::float_cmp, reason = "only exactly equal weights merge")]
    fn finish(mut self) -> Vec<Segment> {
        for start in std::mem::take(&mut self.round) {
            self.multiply_from(start, ROUND);
        }
        for start in std::mem::take(&mut self.square) {
            self.multiply_from(start, SQUARE);
        }
        let mut merged: Vec<Segment> = Vec::with_capacity(self.segments.len().max(1));
        for segment in self.segments {
            match merged.last_mut() {
                Some(last) if last.weight == segment.weight => last.text.push_str(&segment.text),
                _ => merged.push(segment),
            }
        }
        if merged.is_empty() {
            merged.push(Segment {
                text: String::new(),
                weight: 1.0,
            });
        }
        merged
    }
}

/// Python's `float` on a text of an optional sign, digits (of any script) and dots.
fn parse_weight(text: &str) -> Result<f64, EmphasisError> {
    text.parse().map_err(|_| EmphasisError::Weight {
        text: text.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::prompt::vectors;

    fn pairs(value: &Value) -> Vec<Segment> {
        let pairs: Vec<(String, f64)> =
            serde_json::from_value(value.clone()).expect("a list of pairs");
        pairs
            .into_iter()
            .map(|(text, weight)| Segment { text, weight })
            .collect()
    }

    #[test]
    fn segments_are_a1111s_to_the_last_bit() {
        for (prompt, want) in vectors::read::<Vec<(String, Value)>>("attention") {
            if let Value::String(error) = &want {
                let message = parse_emphasis(&prompt).expect_err(&prompt).to_string();
                assert!(error.ends_with(&message), "{prompt:?}: {message}");
            } else {
                assert_eq!(parse_emphasis(&prompt), Ok(pairs(&want)), "{prompt:?}");
            }
        }
    }

    #[test]
    fn recorded_prompts_give_the_recorded_segments() {
        for (name, case) in vectors::recorded_prompts("tiny-sd1") {
            let prompt = case["prompt"].as_str().expect("a text");
            assert_eq!(
                parse_emphasis(prompt),
                Ok(pairs(&case["attention"])),
                "{name}"
            );
        }
    }

    #[test]
    fn a_break_inside_weighted_brackets_is_a_word() {
        let segments = parse_emphasis("(a BREAK b:1.5)").expect("legal");
        assert!(!segments[1].is_break());
        assert!(parse_emphasis("a BREAK b").expect("legal")[1].is_break());
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(prompt in r"[()\[\]:.0-9a BREAK\\,\n]{0,60}") {
            let _ = parse_emphasis(&prompt);
        }
    }
}
