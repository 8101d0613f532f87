//! Comments in prompts (`#` to the end of the line), A1111's option `enable_prompt_comments`.

use std::sync::LazyLock;

use regex::Regex;

/// A whole line that is a comment. `^` is the start of the text, as in Python without `re.MULTILINE`.
static COMMENT_LINE: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(?:^|\n)#[^\n]*(?:\n|$)").expect("the pattern is constant"));
static COMMENT: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"#[^\n]*(?:\n|$)").expect("the pattern is constant"));

/// `text` without its comments. Where a comment ended a line (or the text) a newline stays.
#[must_use]
pub fn strip_comments(text: &str) -> String {
    let without_lines = COMMENT_LINE.replace_all(text, "\n");
    COMMENT.replace_all(&without_lines, "\n").into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompt::vectors;

    #[test]
    fn comments_are_cut_as_a1111_does() {
        for (text, want) in vectors::read::<Vec<(String, String)>>("comments") {
            assert_eq!(strip_comments(&text), want, "{text:?}");
        }
    }
}
