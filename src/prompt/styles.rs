//! Prompt styles: the table of `styles.csv` and how a style joins a prompt.

/// A named pair of texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Style {
    pub name: String,
    pub prompt: String,
    pub negative_prompt: String,
}

/// Why a styles table cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum StylesError {
    #[error("the styles table is no CSV: {0}")]
    Csv(#[from] csv::Error),
    #[error("the styles table has no column \"name\"")]
    NoNames,
}

/// The styles of a `styles.csv`, in order. `text` is the old name of the column `prompt`; rows whose
/// name starts with `#` are comments.
///
/// # Errors
/// When `text` is no CSV or has no `name` column.
pub fn parse_styles_csv(text: &str) -> Result<Vec<Style>, StylesError> {
    let text = skip_initial_space(text.strip_prefix('\u{feff}').unwrap_or(text));
    let mut reader = csv::ReaderBuilder::new()
        .flexible(true)
        .from_reader(text.as_bytes());
    let headers = reader.headers()?.clone();
    let column = |name: &str| headers.iter().position(|header| header == name);
    let name_column = column("name").ok_or(StylesError::NoNames)?;
    let prompt_column = column("prompt").or_else(|| column("text"));
    let negative_column = column("negative_prompt");
    let mut styles = Vec::new();
    for row in reader.records() {
        let row = row?;
        let field = |column: Option<usize>| {
            column
                .and_then(|index| row.get(index))
                .unwrap_or("")
                .to_owned()
        };
        let name = field(Some(name_column));
        if name.is_empty() && row.iter().all(str::is_empty) || name.starts_with('#') {
            continue;
        }
        styles.push(Style {
            name,
            prompt: field(prompt_column),
            negative_prompt: field(negative_column),
        });
    }
    Ok(styles)
}

/// Python's `skipinitialspace`: blanks after a comma that separates fields vanish, so that a quote
/// after them still quotes.
fn skip_initial_space(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let (mut at_field_start, mut quoted_field, mut inside_quotes) = (true, false, false);
    for character in text.chars() {
        if at_field_start && character == ' ' {
            continue;
        }
        if at_field_start {
            quoted_field = character == '"';
        }
        if quoted_field && character == '"' {
            inside_quotes = !inside_quotes;
        }
        at_field_start = !inside_quotes && matches!(character, ',' | '\n' | '\r');
        out.push(character);
    }
    out
}

/// `prompt` in one style's text: put in place of `{prompt}`, or followed by it.
#[must_use]
pub fn merge_style(style: &str, prompt: &str) -> String {
    if style.contains("{prompt}") {
        return style.replace("{prompt}", prompt);
    }
    let parts: Vec<&str> = [prompt.trim(), style.trim()]
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect();
    parts.join(", ")
}

/// `prompt` with the texts of styles applied left to right. The text of an unknown style is `""`,
/// which trims the prompt.
#[must_use]
pub fn apply_styles<'a>(prompt: &str, style_texts: impl IntoIterator<Item = &'a str>) -> String {
    style_texts
        .into_iter()
        .fold(prompt.to_owned(), |merged, style| {
            merge_style(style, &merged)
        })
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::prompt::vectors;

    #[test]
    fn a_style_merges_as_a1111_does() {
        for (style, prompt, want) in vectors::read::<Vec<(String, String, String)>>("styles") {
            assert_eq!(
                merge_style(&style, &prompt),
                want,
                "{style:?} on {prompt:?}"
            );
        }
    }

    #[derive(Deserialize)]
    struct ApplyCase {
        prompt: String,
        negative: String,
        styles: Vec<String>,
        result: (String, String),
    }

    #[test]
    fn several_styles_apply_left_to_right() {
        let table = parse_styles_csv(&vectors::read_api::<String>("styles_csv")).expect("a table");
        assert_eq!(table.len(), 4);
        for case in vectors::read_api::<Vec<ApplyCase>>("styles_apply") {
            let texts: Vec<(&str, &str)> = case
                .styles
                .iter()
                .map(|name| {
                    table
                        .iter()
                        .find(|style| style.name == *name)
                        .map_or(("", ""), |style| (&style.prompt, &style.negative_prompt))
                })
                .collect();
            let prompt = apply_styles(&case.prompt, texts.iter().map(|text| text.0));
            let negative = apply_styles(&case.negative, texts.iter().map(|text| text.1));
            assert_eq!((prompt, negative), case.result, "{:?}", case.styles);
        }
    }

    #[test]
    fn blanks_after_commas_do_not_hide_quotes() {
        let table = parse_styles_csv("\u{feff}name, text\nink, \"a \"\"b\"\", c\"\n").expect("ok");
        assert_eq!(table[0].prompt, "a \"b\", c");
        assert!(matches!(
            parse_styles_csv("title\nx\n"),
            Err(StylesError::NoNames)
        ));
    }
}
