//! Name patterns: literal text with `[token]` and `[token<argument><argument>]`.

/// What a token stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Replacement {
    Text(String),
    /// Nothing, and the literal text before the token goes too.
    NothingAndNoTextBefore,
    /// The token is not known: it stays as it is, without its arguments.
    Unknown,
}

/// Replaces the tokens of `pattern`; `replace` is given a token's name in lower case and its arguments.
pub(super) fn expand(
    pattern: &str,
    mut replace: impl FnMut(&str, &[&str]) -> Replacement,
) -> String {
    let mut expanded = String::new();
    let mut rest = pattern;
    while let Some((before, token, after)) = next_token(rest) {
        let (name, arguments) = split_arguments(token);
        match replace(&name.to_lowercase(), &arguments) {
            Replacement::Text(text) => {
                expanded.push_str(before);
                expanded.push_str(&text);
            }
            Replacement::NothingAndNoTextBefore => {}
            Replacement::Unknown => {
                expanded.push_str(before);
                expanded.push('[');
                expanded.push_str(name);
                expanded.push(']');
            }
        }
        rest = after;
    }
    expanded.push_str(rest);
    expanded
}

/// The first `[…]` that holds neither bracket nor nothing: text before, content, text after.
fn next_token(text: &str) -> Option<(&str, &str, &str)> {
    let mut open = None;
    for (index, letter) in text.char_indices() {
        match (letter, open) {
            ('[', _) => open = Some(index),
            (']', Some(start)) if index > start + 1 => {
                return Some((&text[..start], &text[start + 1..index], &text[index + 1..]));
            }
            (']', _) => open = None,
            _ => {}
        }
    }
    None
}

/// `name<a><b>` as its name and arguments.
fn split_arguments(token: &str) -> (&str, Vec<&str>) {
    let mut name = token;
    let mut arguments = Vec::new();
    while let Some(open) = name.strip_suffix('>').and_then(|inner| inner.rfind('<')) {
        arguments.insert(0, &name[open + 1..name.len() - 1]);
        name = &name[..open];
    }
    (name, arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(pattern: &str) -> String {
        expand(pattern, |name, arguments| match name {
            "gone" => Replacement::NothingAndNoTextBefore,
            "what" => Replacement::Unknown,
            _ => Replacement::Text(format!("{name}{arguments:?}")),
        })
    }

    #[test]
    fn tokens_take_arguments_and_the_text_before_them() {
        assert_eq!(shown("a[x<1><2|3>]b"), r#"ax["1", "2|3"]b"#);
        assert_eq!(shown("a-[X]-b[gone]-c"), "a-x[]-c");
        assert_eq!(shown("a[what<1>]b"), "a[what]b");
        assert_eq!(shown("plain [] ] [x"), "plain [] ] [x");
        assert_eq!(shown("[[x]"), "[x[]");
    }
}
