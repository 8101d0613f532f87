//! The values of an axis: CSV, ranges, permutations.

use std::sync::LazyLock;

use regex::{Captures, Regex};

use crate::infotext::python_str;
use crate::pipeline::GenerateError;
use crate::scripts::arguments::raised;

/// Values that one axis may have.
const MAX_VALUES: usize = 10_000;
/// Items whose orders are all tried: 7! = 5040.
const MAX_PERMUTED: usize = 7;

const INT: &str = r"[+-]?\s*\d+";
const FLOAT: &str = r"[+-]?\s*\d+(?:\.\d*)?";

fn pattern(number: &str, ending: &str) -> Regex {
    let text = format!(r"^\s*({number})\s*-\s*({number}){ending}\s*$");
    Regex::new(&text).expect("the pattern is constant")
}

static INT_RANGE: LazyLock<Regex> =
    LazyLock::new(|| pattern(INT, r"(?:\s*\(\s*([+-]\s*\d+)\s*\))?"));
static INT_COUNT: LazyLock<Regex> = LazyLock::new(|| pattern(INT, r"\s*\[\s*(\d+)\s*\]"));
static FLOAT_RANGE: LazyLock<Regex> =
    LazyLock::new(|| pattern(FLOAT, r"(?:\s*\(\s*([+-]\s*\d+(?:\.\d*)?)\s*\))?"));
static FLOAT_COUNT: LazyLock<Regex> = LazyLock::new(|| pattern(FLOAT, r"\s*\[\s*(\d+)\s*\]"));

/// One value of an axis.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum AxisValue {
    Int(i64),
    Float(f64),
    Text(String),
    /// An order of items.
    List(Vec<String>),
}

impl AxisValue {
    /// The value in a title; floats are rounded to 8 digits.
    pub(super) fn title(&self) -> String {
        match self {
            Self::Int(number) => number.to_string(),
            Self::Float(number) => python_str(&serde_json::json!(
                format!("{number:.8}").parse().unwrap_or(*number)
            )),
            Self::Text(text) => text.clone(),
            Self::List(items) => items.join(", "),
        }
    }

    pub(super) fn int(&self) -> i64 {
        match self {
            Self::Int(number) => *number,
            Self::Float(number) => *number as i64,
            Self::Text(_) | Self::List(_) => 0,
        }
    }

    pub(super) fn float(&self) -> f64 {
        match self {
            Self::Int(number) => *number as f64,
            Self::Float(number) => *number,
            Self::Text(_) | Self::List(_) => 0.0,
        }
    }

    pub(super) fn text(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::Int(_) | Self::Float(_) | Self::List(_) => "",
        }
    }

    pub(super) fn list(&self) -> &[String] {
        match self {
            Self::List(items) => items,
            Self::Int(_) | Self::Float(_) | Self::Text(_) => &[],
        }
    }
}

/// The fields of all lines, as Python's `csv.reader` reads them with blanks after commas skipped; then
/// stripped.
pub(super) fn from_csv(text: &str) -> Vec<String> {
    let mut fields = Vec::new();
    let mut letters = text.chars().peekable();
    while letters.peek().is_some() {
        fields.push(csv_field(&mut letters).trim().to_owned());
    }
    // A comma at the very end stands before one more, empty field.
    if text.ends_with(',') {
        fields.push(String::new());
    }
    fields
}

/// One field with the comma or the ends of lines behind it.
fn csv_field(letters: &mut std::iter::Peekable<std::str::Chars<'_>>) -> String {
    let mut field = String::new();
    while letters.next_if_eq(&' ').is_some() {}
    if letters.next_if_eq(&'"').is_some() {
        while let Some(letter) = letters.next() {
            if letter != '"' {
                field.push(letter);
            } else if letters.next_if_eq(&'"').is_some() {
                field.push('"');
            } else {
                break;
            }
        }
    }
    while let Some(letter) = letters.next_if(|letter| !matches!(letter, ',' | '\n' | '\r')) {
        field.push(letter);
    }
    if letters.next_if_eq(&',').is_none() {
        while letters
            .next_if(|letter| matches!(letter, '\n' | '\r'))
            .is_some()
        {}
    }
    field
}

/// Items on one line, quoted where they need it.
pub(super) fn to_csv(items: &[String]) -> String {
    let quoted: Vec<String> = items
        .iter()
        .map(|item| {
            if item.contains([',', '"', '\n', '\r']) {
                format!("\"{}\"", item.replace('"', "\"\""))
            } else {
                item.clone()
            }
        })
        .collect();
    quoted.join(",")
}

/// Whole numbers and ranges of them: `1-5`, `1-10 (+2)`, `10-5 (-1)`, `1-100 [4]`.
pub(super) fn ints(items: &[String]) -> Result<Vec<AxisValue>, GenerateError> {
    let mut values = Vec::new();
    for item in items.iter().filter(|item| !item.trim().is_empty()) {
        if let Some(range) = INT_COUNT.captures(item) {
            let spaced = spaced(&range, item)?;
            values.extend(spaced.map(|number| AxisValue::Int(number as i64)));
        } else if let Some(range) = INT_RANGE.captures(item) {
            let step = range
                .get(3)
                .map_or(Ok(1), |step| int(step.as_str(), item))?;
            let (from, to) = (int(&range[1], item)?, int(&range[2], item)?);
            // Python's `range(from, to + 1, step)`, downwards too.
            let end = to.saturating_add(1);
            let count = steps_between(from, end, step).ok_or_else(|| bad_number("int", item))?;
            values.extend((0..count).map(|index| AxisValue::Int(from + step * index as i64)));
        } else {
            values.push(AxisValue::Int(int(item, item)?));
        }
        check_count(values.len())?;
    }
    Ok(values)
}

fn steps_between(from: i64, end: i64, step: i64) -> Option<usize> {
    let distance = end.checked_sub(from)?;
    let count = match step {
        0 => return None,
        1.. => distance.checked_add(step - 1)?.max(0) / step,
        _ => (-distance).checked_add(-step - 1)?.max(0) / -step,
    };
    usize::try_from(count)
        .ok()
        .filter(|count| *count <= MAX_VALUES)
}

/// Numbers and ranges of them; the end of a range is part of it.
pub(super) fn floats(items: &[String]) -> Result<Vec<AxisValue>, GenerateError> {
    let mut values = Vec::new();
    for item in items.iter().filter(|item| !item.trim().is_empty()) {
        if let Some(range) = FLOAT_COUNT.captures(item) {
            values.extend(spaced(&range, item)?.map(AxisValue::Float));
        } else if let Some(range) = FLOAT_RANGE.captures(item) {
            let step = range
                .get(3)
                .map_or(Ok(1.0), |step| float(step.as_str(), item))?;
            let (from, to) = (float(&range[1], item)?, float(&range[2], item)?);
            // numpy's `arange(from, to + step, step)`.
            let count = ((to + step - from) / step).ceil();
            if count.is_nan() || count > MAX_VALUES as f64 {
                return Err(bad_number("float", item));
            }
            let number = |index: usize| AxisValue::Float(from + step * index as f64);
            values.extend((0..count.max(0.0) as usize).map(number));
        } else {
            values.push(AxisValue::Float(float(item, item)?));
        }
        check_count(values.len())?;
    }
    Ok(values)
}

/// numpy's `linspace` for `from-to [count]`.
fn spaced(
    range: &Captures<'_>,
    item: &str,
) -> Result<impl Iterator<Item = f64> + use<>, GenerateError> {
    let (from, to) = (float(&range[1], item)?, float(&range[2], item)?);
    let count: usize = range[3].parse().unwrap_or(usize::MAX);
    check_count(count)?;
    let step = (to - from) / count.saturating_sub(1).max(1) as f64;
    Ok((0..count).map(move |index| {
        if index > 0 && index + 1 == count {
            to
        } else {
            from + step * index as f64
        }
    }))
}

fn check_count(count: usize) -> Result<(), GenerateError> {
    if count <= MAX_VALUES {
        return Ok(());
    }
    let text = format!("an axis may have {MAX_VALUES} values, not {count}");
    Err(raised("ValueError", text))
}

fn int(text: &str, item: &str) -> Result<i64, GenerateError> {
    let number: String = text.split_whitespace().collect();
    number.parse().map_err(|_| bad_number("int", item))
}

fn float(text: &str, item: &str) -> Result<f64, GenerateError> {
    let number: String = text.split_whitespace().collect();
    number
        .parse::<f64>()
        .ok()
        .filter(|number| number.is_finite())
        .ok_or_else(|| bad_number("float", item))
}

fn bad_number(kind: &str, item: &str) -> GenerateError {
    let text = match kind {
        "int" => format!("invalid literal for int() with base 10: '{item}'"),
        _ => format!("could not convert string to float: '{item}'"),
    };
    raised("ValueError", text)
}

/// Every order of the items, as Python's `permutations` lists them.
pub(super) fn permutations(items: &[String]) -> Result<Vec<AxisValue>, GenerateError> {
    if items.len() > MAX_PERMUTED {
        let text = format!("{} items have too many orders", items.len());
        return Err(raised("ValueError", text));
    }
    let mut orders = vec![Vec::new()];
    for _ in items {
        orders = orders
            .into_iter()
            .flat_map(|order: Vec<usize>| {
                let free: Vec<usize> = (0..items.len()).filter(|it| !order.contains(it)).collect();
                free.into_iter().map(move |next| {
                    let mut longer = order.clone();
                    longer.push(next);
                    longer
                })
            })
            .collect();
    }
    let value = |order: Vec<usize>| {
        AxisValue::List(order.into_iter().map(|at| items[at].clone()).collect())
    };
    Ok(orders.into_iter().map(value).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_ints(text: &str) -> Vec<i64> {
        let values = ints(&from_csv(text)).expect("whole numbers");
        values.iter().map(AxisValue::int).collect()
    }

    fn read_floats(text: &str) -> Vec<f64> {
        let values = floats(&from_csv(text)).expect("numbers");
        values.iter().map(AxisValue::float).collect()
    }

    #[test]
    fn whole_numbers_and_their_ranges() {
        assert_eq!(read_ints("1, 2,,-3"), [1, 2, -3]);
        assert_eq!(read_ints("1-4"), [1, 2, 3, 4]);
        assert_eq!(read_ints("1-10 (+2)"), [1, 3, 5, 7, 9]);
        assert_eq!(read_ints("10-5 (-1)"), [10, 9, 8, 7]);
        assert_eq!(read_ints("1-10 [5]"), [1, 3, 5, 7, 10]);
        assert_eq!(read_ints("-5--3"), [-5, -4, -3]);
        for wrong in ["x", "1.5", "1-5 (+0)", "1-99999999", "1-5 [99999]"] {
            assert!(ints(&from_csv(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn numbers_and_their_ranges() {
        assert_eq!(read_floats("0.5, 7"), [0.5, 7.0]);
        assert_eq!(read_floats("1-2 (+0.5)"), [1.0, 1.5, 2.0]);
        assert_eq!(read_floats("0-1 [3]"), [0.0, 0.5, 1.0]);
        assert_eq!(read_floats("3-1 (-1)"), [3.0, 2.0, 1.0]);
        assert_eq!(read_floats("5-7 [1]"), [5.0]);
        for wrong in ["x", "nan", "1-2 (+0)"] {
            assert!(floats(&from_csv(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn fields_are_split_at_commas_outside_of_quotes() {
        assert_eq!(from_csv(r#"a, "b, c" ,d"#), ["a", "b, c", "d"]);
        assert_eq!(from_csv("a\nb,c\r\n"), ["a", "b", "c"]);
        assert_eq!(from_csv(r#""say ""hi""",x"#), ["say \"hi\"", "x"]);
        assert_eq!(from_csv("a,,"), ["a", "", ""]);
        assert!(from_csv("").is_empty());
        let items = ["a, b".to_owned(), "c\"".to_owned(), "d".to_owned()];
        assert_eq!(to_csv(&items), r#""a, b","c""",d"#);
        assert_eq!(from_csv(&to_csv(&items)), items);
    }

    #[test]
    fn orders_are_pythons() {
        let items = ["a", "b", "c"].map(str::to_owned);
        let orders = permutations(&items).expect("few items");
        let texts: Vec<String> = orders.iter().map(AxisValue::title).collect();
        assert_eq!(
            texts,
            [
                "a, b, c", "a, c, b", "b, a, c", "b, c, a", "c, a, b", "c, b, a"
            ]
        );
    }

    #[test]
    fn titles_round_floats() {
        assert_eq!(AxisValue::Float(0.1 + 0.2).title(), "0.3");
        assert_eq!(AxisValue::Float(7.0).title(), "7.0");
    }
}
