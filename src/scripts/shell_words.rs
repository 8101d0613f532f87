//! Words of a line as a POSIX shell splits them (Python's `shlex.split`): quotes and backslashes.

/// The words of `line`; `None` where a quotation does not end.
pub(super) fn split(line: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match letters.next()? {
                        '\'' => break,
                        other => word.push(other),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match letters.next()? {
                        '"' => break,
                        '\\' => match letters.next()? {
                            escaped @ ('"' | '\\') => word.push(escaped),
                            other => word.extend(['\\', other]),
                        },
                        other => word.push(other),
                    }
                }
            }
            '\\' => word.get_or_insert_default().push(letters.next()?),
            blank if blank.is_ascii_whitespace() => words.extend(word.take()),
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_as_by_shlex() {
        let cases: [(&str, Option<&[&str]>); 6] = [
            ("a  b", Some(&["a", "b"])),
            (r#"x "a b" 'c "d'"#, Some(&["x", "a b", "c \"d"])),
            (r#"a\ b "\"\n""#, Some(&["a b", "\"\\n"])),
            (r#"a"b"c"#, Some(&["abc"])),
            ("''", Some(&[""])),
            ("don't", None),
        ];
        for (line, want) in cases {
            let have = split(line);
            let have: Option<Vec<&str>> = have
                .as_ref()
                .map(|words| words.iter().map(String::as_str).collect());
            assert_eq!(have.as_deref(), want, "{line}");
        }
    }
}
