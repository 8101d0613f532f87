//! What wildcards stand for.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value;

use crate::prompt::python_random::PythonRandom;

/// One value of a wildcard. It is a template itself.
#[derive(Debug, Clone, PartialEq)]
pub struct WildcardValue {
    pub text: String,
    /// 1 unless the file says otherwise.
    pub weight: f64,
}

/// Whoever knows the wildcards.
pub trait WildcardSource {
    /// Names of all wildcards: the path below the wildcards folder with `/` and without extension,
    /// for structured files followed by the keys.
    fn names(&self) -> Vec<String>;

    /// The values of one wildcard, in the order of its file.
    fn values(&self, name: &str) -> Vec<WildcardValue>;
}

/// Wildcards by name.
pub type WildcardMap = BTreeMap<String, Vec<WildcardValue>>;

impl WildcardSource for WildcardMap {
    fn names(&self) -> Vec<String> {
        self.keys().cloned().collect()
    }

    fn values(&self, name: &str) -> Vec<WildcardValue> {
        self.get(name).cloned().unwrap_or_default()
    }
}

/// The values of a `.txt` file: its lines, without blank ones and those that begin with `#`.
#[must_use]
pub fn wildcards_in_text(text: &str) -> Vec<WildcardValue> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(plain)
        .collect()
}

/// The wildcards of a structured file (JSON or YAML): lists under nested keys, whose items are
/// texts, `"2::text"` or `{"text": …, "weight": 2}`.
#[must_use]
pub fn structured_wildcards(file: &Value) -> Vec<(String, Vec<WildcardValue>)> {
    let mut found = Vec::new();
    collect_structured("", file, &mut found);
    found
}

fn collect_structured(prefix: &str, value: &Value, found: &mut Vec<(String, Vec<WildcardValue>)>) {
    let Value::Object(fields) = value else {
        return;
    };
    for (key, value) in fields {
        let name = if prefix.is_empty() {
            key.clone()
        } else {
            format!("{prefix}/{key}")
        };
        match value {
            Value::String(text) if !text.is_empty() => found.push((name, vec![weighted(text)])),
            Value::Array(items) if !items.is_empty() => {
                found.push((name, items.iter().filter_map(structured_item).collect()));
            }
            Value::Object(_) => collect_structured(&name, value, found),
            _ => {}
        }
    }
}

fn structured_item(item: &Value) -> Option<WildcardValue> {
    match item {
        Value::String(text) if !text.is_empty() => Some(weighted(text)),
        Value::Object(fields) => {
            let text = fields.get("text").or_else(|| fields.get("content"))?;
            Some(WildcardValue {
                text: text.as_str().filter(|text| !text.is_empty())?.to_owned(),
                weight: fields.get("weight").map_or(Some(1.0), Value::as_f64)?,
            })
        }
        _ => None,
    }
}

fn plain(text: &str) -> WildcardValue {
    WildcardValue {
        text: text.to_owned(),
        weight: 1.0,
    }
}

fn weighted(text: &str) -> WildcardValue {
    text.rsplit_once("::")
        .filter(|_| text.starts_with(|first: char| first.is_ascii_digit()))
        .and_then(|(weight, content)| {
            Some(WildcardValue {
                text: content.to_owned(),
                weight: weight.trim().parse().ok()?,
            })
        })
        .unwrap_or_else(|| plain(text))
}

/// All values of the wildcards that `pattern` matches, without repetitions, sorted. A pattern that
/// matches none is looked for in every folder.
pub(super) fn look_up(source: &dyn WildcardSource, pattern: &str) -> Vec<WildcardValue> {
    let mut values = matching(source, pattern);
    if values.is_empty() && !pattern.starts_with("**") {
        values = matching(source, &format!("**/{pattern}"));
    }
    let mut distinct: Vec<WildcardValue> = Vec::with_capacity(values.len());
    values.sort_by(|left, right| left.text.cmp(&right.text));
    for value in values {
        let known = distinct
            .iter()
            .rev()
            .take_while(|known| known.text == value.text)
            .any(|known| *known == value);
        if !known {
            distinct.push(value);
        }
    }
    distinct
}

fn matching(source: &dyn WildcardSource, pattern: &str) -> Vec<WildcardValue> {
    let pattern = pattern.strip_prefix("__").unwrap_or(pattern);
    let pattern = pattern.strip_suffix("__").unwrap_or(pattern);
    let parts: Vec<&str> = pattern
        .split(['/', '\\'])
        .filter(|part| !part.is_empty())
        .collect();
    let pattern = parts.join("/");
    if pattern.contains("..") {
        return Vec::new();
    }
    let Some(pattern) = glob(&pattern) else {
        return Vec::new();
    };
    source
        .names()
        .into_iter()
        .filter(|name| pattern.is_match(name))
        .flat_map(|name| source.values(&name))
        .collect()
}

/// Python's `fnmatch`: `*` matches slashes too.
fn glob(pattern: &str) -> Option<Regex> {
    static SET: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"^\[(!?)(\]?[^\]]*)\]").expect("the pattern is constant"));
    let mut out = String::from(r"(?s)\A");
    let mut rest = pattern;
    while let Some(character) = rest.chars().next() {
        if let Some(set) = SET.captures(rest) {
            let negated = if set[1].is_empty() { "" } else { "^" };
            let members: String = set[2]
                .chars()
                .map(|member| match member {
                    '-' => "-".to_owned(),
                    other => regex::escape(&other.to_string()),
                })
                .collect();
            for part in ["[", negated, &members, "]"] {
                out.push_str(part);
            }
            rest = &rest[set[0].len()..];
            continue;
        }
        match character {
            '*' => out.push_str(".*"),
            '?' => out.push('.'),
            other => out.push_str(&regex::escape(&other.to_string())),
        }
        rest = &rest[character.len_utf8()..];
    }
    out.push_str(r"\z");
    Regex::new(&out).ok()
}

/// The extension "Simple wildcards": `prompt` cut at `__`; every piece without a blank that names a
/// file becomes one of its lines, drawn from `seed`. The underscores are lost either way. `lines`
/// gives all lines of the file of a name, blank ones and comments too.
pub fn replace_simple_wildcards(
    prompt: &str,
    seed: i64,
    lines: impl Fn(&str) -> Option<Vec<String>>,
) -> String {
    let mut random = PythonRandom::new(seed);
    prompt
        .split("__")
        .map(|piece| {
            let found = if piece.is_empty() || piece.contains(' ') {
                None
            } else {
                lines(piece).filter(|lines| !lines.is_empty())
            };
            match found {
                Some(mut lines) => {
                    let index = random.below(lines.len());
                    lines.swap_remove(index)
                }
                None => piece.to_owned(),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::prompt::vectors;

    #[derive(Deserialize)]
    struct Case {
        prompt: String,
        seed: i64,
        result: String,
    }

    #[test]
    fn simple_wildcards_draw_as_the_extension_does() {
        let vectors: Value = vectors::read_api("simple_wildcards");
        let colours: Vec<String> =
            serde_json::from_value(vectors["file_color_txt"].clone()).expect("lines");
        let cases: Vec<Case> = serde_json::from_value(vectors["cases"].clone()).expect("cases");
        for case in cases {
            let have = replace_simple_wildcards(&case.prompt, case.seed, |name| {
                (name == "color").then(|| colours.clone())
            });
            assert_eq!(have, case.result, "{} with {}", case.prompt, case.seed);
        }
    }

    #[test]
    fn patterns_match_as_fnmatch_does() {
        for (pattern, name, want) in [
            ("a*", "a/b", true),
            ("a?", "ab", true),
            ("[ab]c", "bc", true),
            ("[!ab]c", "bc", false),
            ("[a", "[a", true),
            ("**/x", "d/x", true),
            ("x.y", "xzy", false),
        ] {
            let found = glob(pattern).is_some_and(|glob| glob.is_match(name));
            assert_eq!(found, want, "{pattern} on {name}");
        }
    }
}
