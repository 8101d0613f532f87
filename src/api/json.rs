//! Reading JSON as Python's `json.loads` does, with its error texts and positions.
//!
//! Follows CPython 3.10's `json.decoder` and `json.scanner`. The fast reader is serde's; this one runs
//! only where that one refuses, to say why in Python's words or to accept what Python accepts (`NaN`,
//! `Infinity`, lone surrogates). Not-a-number values become texts (`"NaN"`), which no number field takes.

use serde_json::{Map, Number, Value};

/// Nesting beyond this is refused; serde's own limit is the same.
const DEPTH_LIMIT: usize = 128;

/// A `json.JSONDecodeError`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}: line {line} column {column} (char {position})")]
pub struct JsonError {
    pub message: &'static str,
    /// In characters from the start of the document.
    pub position: usize,
    pub line: usize,
    pub column: usize,
}

/// Reads a document.
///
/// # Errors
/// Where Python's reader raises.
pub fn parse_json(text: &str) -> Result<Value, JsonError> {
    if let Ok(value) = serde_json::from_str(text) {
        return Ok(value);
    }
    let mut reader = Reader {
        characters: text.chars().collect(),
        position: 0,
    };
    reader.document()
}

struct Reader {
    characters: Vec<char>,
    position: usize,
}

impl Reader {
    fn document(&mut self) -> Result<Value, JsonError> {
        self.skip_blanks();
        let value = self.value(0)?;
        self.skip_blanks();
        if self.position < self.characters.len() {
            return Err(self.error("Extra data", self.position));
        }
        Ok(value)
    }

    fn error(&self, message: &'static str, position: usize) -> JsonError {
        let before = &self.characters[..position.min(self.characters.len())];
        let line = before
            .iter()
            .filter(|&&character| character == '\n')
            .count()
            + 1;
        let line_start = before
            .iter()
            .rposition(|&character| character == '\n')
            .map_or(0, |at| at + 1);
        JsonError {
            message,
            position,
            line,
            column: position - line_start + 1,
        }
    }

    fn peek(&self) -> Option<char> {
        self.characters.get(self.position).copied()
    }

    fn skip_blanks(&mut self) {
        while matches!(self.peek(), Some(' ' | '\t' | '\n' | '\r')) {
            self.position += 1;
        }
    }

    fn take(&mut self, word: &str) -> bool {
        let end = self.position + word.len();
        let found = self.characters.len() >= end
            && word
                .chars()
                .eq(self.characters[self.position..end].iter().copied());
        if found {
            self.position = end;
        }
        found
    }

    fn value(&mut self, depth: usize) -> Result<Value, JsonError> {
        if depth > DEPTH_LIMIT {
            return Err(self.error("Nesting is too deep", self.position));
        }
        match self.peek() {
            Some('"') => {
                self.position += 1;
                self.string().map(Value::String)
            }
            Some('{') => {
                self.position += 1;
                self.object(depth)
            }
            Some('[') => {
                self.position += 1;
                self.array(depth)
            }
            Some('-' | '0'..='9') => self.number(),
            _ => {
                let words = [
                    ("null", Value::Null),
                    ("true", Value::Bool(true)),
                    ("false", Value::Bool(false)),
                    ("NaN", Value::from("NaN")),
                    ("Infinity", Value::from("Infinity")),
                ];
                for (word, value) in words {
                    if self.take(word) {
                        return Ok(value);
                    }
                }
                Err(self.error("Expecting value", self.position))
            }
        }
    }

    fn object(&mut self, depth: usize) -> Result<Value, JsonError> {
        let mut fields = Map::new();
        self.skip_blanks();
        if self.peek() == Some('}') {
            self.position += 1;
            return Ok(Value::Object(fields));
        }
        loop {
            if self.peek() != Some('"') {
                let message = "Expecting property name enclosed in double quotes";
                return Err(self.error(message, self.position));
            }
            self.position += 1;
            let key = self.string()?;
            self.skip_blanks();
            if self.peek() != Some(':') {
                return Err(self.error("Expecting ':' delimiter", self.position));
            }
            self.position += 1;
            self.skip_blanks();
            let value = self.value(depth + 1)?;
            fields.insert(key, value);
            self.skip_blanks();
            match self.peek() {
                Some('}') => {
                    self.position += 1;
                    return Ok(Value::Object(fields));
                }
                Some(',') => {
                    self.position += 1;
                    self.skip_blanks();
                }
                _ => return Err(self.error("Expecting ',' delimiter", self.position)),
            }
        }
    }

    fn array(&mut self, depth: usize) -> Result<Value, JsonError> {
        let mut items = Vec::new();
        self.skip_blanks();
        if self.peek() == Some(']') {
            self.position += 1;
            return Ok(Value::Array(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            self.skip_blanks();
            match self.peek() {
                Some(']') => {
                    self.position += 1;
                    return Ok(Value::Array(items));
                }
                Some(',') => {
                    self.position += 1;
                    self.skip_blanks();
                }
                _ => return Err(self.error("Expecting ',' delimiter", self.position)),
            }
        }
    }

    /// The rest of a string whose opening quote was taken.
    fn string(&mut self) -> Result<String, JsonError> {
        let begin = self.position - 1;
        let mut text = String::new();
        loop {
            let at = self.position;
            let Some(character) = self.peek() else {
                return Err(self.error("Unterminated string starting at", begin));
            };
            self.position += 1;
            match character {
                '"' => return Ok(text),
                '\\' => text.push(self.escape(begin)?),
                '\0'..='\u{1f}' => return Err(self.error("Invalid control character at", at)),
                _ => text.push(character),
            }
        }
    }

    /// The rest of an escape whose backslash was taken. A lone surrogate becomes U+FFFD.
    fn escape(&mut self, begin: usize) -> Result<char, JsonError> {
        let at = self.position;
        let Some(kind) = self.peek() else {
            return Err(self.error("Unterminated string starting at", begin));
        };
        self.position += 1;
        Ok(match kind {
            '"' | '\\' | '/' => kind,
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => {
                let high = self.hexadecimal(at)?;
                if !(0xd800..0xdc00).contains(&high) {
                    return Ok(char::from_u32(high).unwrap_or('\u{fffd}'));
                }
                let after_high = self.position;
                if self.take("\\u") {
                    let low = self.hexadecimal(after_high + 1)?;
                    if (0xdc00..0xe000).contains(&low) {
                        let joined = 0x1_0000 + ((high - 0xd800) << 10) + (low - 0xdc00);
                        return Ok(char::from_u32(joined).unwrap_or('\u{fffd}'));
                    }
                    self.position = after_high;
                }
                '\u{fffd}'
            }
            _ => return Err(self.error("Invalid \\escape", at - 1)),
        })
    }

    fn hexadecimal(&mut self, at: usize) -> Result<u32, JsonError> {
        let digits: Option<u32> = self
            .characters
            .get(self.position..self.position + 4)
            .and_then(|digits| {
                digits
                    .iter()
                    .try_fold(0, |sum, digit| Some(sum * 16 + digit.to_digit(16)?))
            });
        match digits {
            Some(value) => {
                self.position += 4;
                Ok(value)
            }
            None => Err(self.error("Invalid \\uXXXX escape", at)),
        }
    }

    fn number(&mut self) -> Result<Value, JsonError> {
        let begin = self.position;
        if self.take("-Infinity") {
            return Ok(Value::from("-Infinity"));
        }
        if self.peek() == Some('-') {
            self.position += 1;
        }
        match self.peek() {
            Some('0') => self.position += 1,
            Some('1'..='9') => self.digits(),
            _ => return Err(self.error("Expecting value", begin)),
        }
        let mut whole = true;
        if self.peek() == Some('.') && self.digit_at(self.position + 1) {
            whole = false;
            self.position += 1;
            self.digits();
        }
        if matches!(self.peek(), Some('e' | 'E')) {
            let sign = usize::from(matches!(
                self.characters.get(self.position + 1),
                Some('+' | '-')
            ));
            if self.digit_at(self.position + 1 + sign) {
                whole = false;
                self.position += 1 + sign;
                self.digits();
            }
        }
        let text: String = self.characters[begin..self.position].iter().collect();
        if whole && let Ok(value) = text.parse::<i64>() {
            return Ok(Value::from(value));
        }
        let value: f64 = text.parse().unwrap_or(f64::NAN);
        Ok(Number::from_f64(value).map_or_else(|| Value::from("Infinity"), Value::Number))
    }

    fn digit_at(&self, position: usize) -> bool {
        self.characters
            .get(position)
            .is_some_and(char::is_ascii_digit)
    }

    fn digits(&mut self) {
        while self.digit_at(self.position) {
            self.position += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    /// The texts of CPython 3.10's `json.loads` for these documents.
    #[test]
    fn errors_read_as_python_writes_them() {
        let cases = [
            (
                "{not json",
                "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
            ),
            ("{\"a\": }", "Expecting value: line 1 column 7 (char 6)"),
            (
                "{\"a\" 1}",
                "Expecting ':' delimiter: line 1 column 6 (char 5)",
            ),
            ("[1 2]", "Expecting ',' delimiter: line 1 column 4 (char 3)"),
            ("{\"a\": 1} x", "Extra data: line 1 column 10 (char 9)"),
            (
                "\"abc",
                "Unterminated string starting at: line 1 column 1 (char 0)",
            ),
            (
                "{\n \"a\": 1,\n}",
                "Expecting property name enclosed in double quotes: line 3 column 1 (char 11)",
            ),
            (
                "\"a\nb\"",
                "Invalid control character at: line 1 column 3 (char 2)",
            ),
            ("\"\\x\"", "Invalid \\escape: line 1 column 2 (char 1)"),
            ("hello", "Expecting value: line 1 column 1 (char 0)"),
            ("prompt=cat", "Expecting value: line 1 column 1 (char 0)"),
            ("  ", "Expecting value: line 1 column 3 (char 2)"),
            ("[1,]", "Expecting value: line 1 column 4 (char 3)"),
            ("01", "Extra data: line 1 column 2 (char 1)"),
        ];
        for (text, want) in cases {
            assert_eq!(parse_json(text).unwrap_err().to_string(), want, "{text}");
        }
    }

    #[test]
    fn what_python_takes_is_taken() {
        assert_eq!(
            parse_json("[NaN, -Infinity]"),
            Ok(json!(["NaN", "-Infinity"]))
        );
        assert_eq!(parse_json(r#""\ud800""#), Ok(json!("\u{fffd}")));
        assert_eq!(parse_json("1e999"), Ok(json!("Infinity")));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,60}") {
            let _ = parse_json(&text);
        }

        #[test]
        fn brackets_and_quotes_never_panic(text in "[\\[\\]{}\",:\\\\u0-9a-f. \n-]{0,40}") {
            let _ = parse_json(&text);
        }
    }
}
