//! The text that a picture carries.

use serde_json::Value;

use super::python::{python_str, strip};

/// The infotext of one picture: prompt, negative prompt and a line of `key: value` pairs. Pairs
/// whose value is null are left out.
#[must_use]
pub fn write(prompt: &str, negative_prompt: &str, pairs: &[(String, Value)]) -> String {
    let pairs: Vec<String> = pairs
        .iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(key, value)| {
            if value.as_str() == Some(key) {
                key.clone()
            } else {
                format!("{key}: {}", quote(value))
            }
        })
        .collect();
    let negative_line = if negative_prompt.is_empty() {
        String::new()
    } else {
        format!("\nNegative prompt: {negative_prompt}")
    };
    let text = format!("{prompt}{negative_line}\n{}", pairs.join(", "));
    strip(&text).to_owned()
}

/// A value as the line of pairs holds it: in JSON's quotes if it has a comma, colon or newline.
#[must_use]
pub fn quote(value: &Value) -> String {
    let text = python_str(value);
    if text.contains([',', ':', '\n']) {
        Value::String(text).to_string()
    } else {
        text
    }
}

/// The text that [`quote`] was given. What only looks quoted stays as it is.
#[must_use]
pub fn unquote(text: &str) -> String {
    if text.starts_with('"') && text.ends_with('"') {
        serde_json::from_str(text).unwrap_or_else(|_| text.to_owned())
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::infotext::vectors;

    #[test]
    fn values_are_quoted_as_a1111_does() {
        for (value, want) in vectors::read::<Vec<(Value, Value)>>("quote") {
            assert_eq!(quote(&value), python_str(&want), "{value}");
        }
        for (text, want) in vectors::read::<Vec<(String, String)>>("unquote") {
            assert_eq!(unquote(&text), want, "{text}");
        }
    }

    #[test]
    fn the_lines_are_a1111s() {
        let pairs: Vec<(String, Value)> = [
            ("Steps", json!(20)),
            ("CFG scale", json!(7.0)),
            ("VAE", json!(null)),
            ("Tiling", json!("Tiling")),
            ("Hires prompt", json!("hr a, b")),
            ("RNG", json!("")),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into();
        let line = "Steps: 20, CFG scale: 7.0, Tiling, Hires prompt: \"hr a, b\", RNG:";
        assert_eq!(write("", "", &pairs), line);
        assert_eq!(
            write("a\nb", "n", &pairs),
            format!("a\nb\nNegative prompt: n\n{line}")
        );
    }
}
