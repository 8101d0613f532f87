//! Texts of requests as parts of file names.

use std::path::PathBuf;

/// `--filenames-max-length` and `--unix-filenames-sanitization`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NameRules {
    /// Characters of one part.
    pub max_length: usize,
    /// Only `/` is replaced.
    pub unix: bool,
}

impl Default for NameRules {
    fn default() -> Self {
        Self {
            max_length: 128,
            unix: false,
        }
    }
}

const FORBIDDEN: &[char] = &[
    '#', '<', '>', ':', '"', '/', '\\', '|', '?', '*', '\n', '\r', '\t',
];

/// A text as a part of a file name: forbidden characters become `_`, leading spaces and trailing
/// spaces and dots are cut.
pub(super) fn sanitize(text: &str, replace_spaces: bool, rules: NameRules) -> String {
    let forbidden: &[char] = if rules.unix { &['/'] } else { FORBIDDEN };
    let replaced: String = text
        .chars()
        .map(|letter| match letter {
            ' ' if replace_spaces => '_',
            '\0' => '_',
            letter if forbidden.contains(&letter) => '_',
            letter => letter,
        })
        .collect();
    let cut: String = replaced
        .trim_start_matches(' ')
        .chars()
        .take(rules.max_length)
        .collect();
    cut.trim_end_matches([' ', '.']).to_owned()
}

/// The folders and the name that an expanded pattern means, inside of whatever folder it is put in:
/// patterns come from requests, so parts that lead out of it are dropped.
pub(super) fn relative_path(text: &str) -> PathBuf {
    text.split(['/', '\\'])
        .map(|part| {
            part.chars()
                .filter(|letter| !letter.is_control())
                .map(|letter| match letter {
                    '<' | '>' | ':' | '"' | '|' | '?' | '*' if cfg!(windows) => '_',
                    letter => letter,
                })
                .collect::<String>()
        })
        .filter(|part| !matches!(part.trim(), "" | "." | ".."))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::saving::tokens::tests::vectors;

    #[test]
    fn texts_are_made_safe_as_a1111_does() {
        for (text, underscored, spaced) in vectors().sanitize {
            let rules = NameRules::default();
            assert_eq!(sanitize(&text, true, rules), underscored, "{text:?}");
            assert_eq!(sanitize(&text, false, rules), spaced, "{text:?}");
        }
    }

    #[test]
    fn flags_change_the_rules() {
        let rules = NameRules {
            max_length: 4,
            unix: true,
        };
        assert_eq!(sanitize("a:b/cd", false, rules), "a:b_");
    }

    #[test]
    fn no_pattern_leads_out_of_its_folder() {
        for (text, want) in [
            ("../../etc/x", "etc/x"),
            ("/etc/x", "etc/x"),
            ("a/./b", "a/b"),
            ("..\\..\\x", "x"),
            ("a/.. /b", "a/b"),
            ("x\0y", "xy"),
            ("2024-01-31", "2024-01-31"),
        ] {
            assert_eq!(relative_path(text), Path::new(want), "{text:?}");
        }
    }
}
