//! One request field and pydantic v1's way of turning any JSON value into its type.

use serde_json::{Number, Value, json};

use super::FieldError;

/// The type of a field.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    Text,
    Int {
        least: Option<i64>,
    },
    Float {
        range: Range,
    },
    Bool,
    /// A list of anything.
    List,
    /// A list of texts.
    TextList,
    Object,
    /// `Literal[0, 1]`.
    ZeroOrOne,
    /// A list of `{data, name}` objects.
    FileList,
}

/// The allowed values of a float field.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Range {
    Any,
    /// 0 to 1, both included.
    Unit,
    Positive,
}

/// A field of a request: its name, type, default and whether `null` is allowed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Field {
    pub name: &'static str,
    pub kind: Kind,
    pub default: Preset,
    pub nullable: bool,
}

/// The value of a field that a client left out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Preset {
    Required,
    Null,
    Text(&'static str),
    Int(i64),
    Float(f64),
    Bool(bool),
    EmptyList,
    EmptyObject,
}

impl Preset {
    /// The JSON value; null for a required field.
    #[must_use]
    pub fn to_json(self) -> Value {
        match self {
            Self::Required | Self::Null => Value::Null,
            Self::Text(text) => Value::from(text),
            Self::Int(number) => Value::from(number),
            Self::Float(number) => json!(number),
            Self::Bool(flag) => Value::from(flag),
            Self::EmptyList => json!([]),
            Self::EmptyObject => json!({}),
        }
    }
}

impl Field {
    /// The value in the field's type.
    ///
    /// # Errors
    /// Everything pydantic finds wrong, each with its place below `location`.
    pub fn coerce(&self, value: Value, location: &[Value]) -> Result<Value, Vec<FieldError>> {
        if value.is_null() {
            if self.nullable {
                return Ok(Value::Null);
            }
            let message = "none is not an allowed value";
            let kind = "type_error.none.not_allowed";
            return Err(vec![FieldError::new(location.to_vec(), message, kind)]);
        }
        let one = |result: Result<Value, Misfit>| {
            result.map_err(|misfit| vec![misfit.at(location.to_vec())])
        };
        match self.kind {
            Kind::Text => one(text(value)),
            Kind::Int { least } => one(int(&value).and_then(|number| at_least(number, least))),
            Kind::Float { range } => one(float(&value).and_then(|number| within(number, range))),
            Kind::Bool => one(boolean(&value)),
            Kind::List => one(list(value).map(Value::Array)),
            Kind::TextList => text_list(value, location),
            Kind::Object => one(object(value)),
            Kind::ZeroOrOne => one(zero_or_one(&value)),
            Kind::FileList => file_list(value, location),
        }
    }
}

/// An error that does not know its place yet.
struct Misfit {
    message: String,
    kind: &'static str,
    context: Option<Value>,
}

impl Misfit {
    fn new(message: &str, kind: &'static str) -> Self {
        Self {
            message: message.to_owned(),
            kind,
            context: None,
        }
    }

    fn limit(relation: &str, kind: &'static str, limit: i64) -> Self {
        Self {
            message: format!("ensure this value is {relation} {limit}"),
            kind,
            context: Some(json!({"limit_value": limit})),
        }
    }

    fn at(self, location: Vec<Value>) -> FieldError {
        FieldError {
            location,
            message: self.message,
            kind: self.kind,
            context: self.context,
        }
    }
}

fn text(value: Value) -> Result<Value, Misfit> {
    match value {
        Value::String(_) => Ok(value),
        Value::Bool(flag) => Ok(Value::from(if flag { "True" } else { "False" })),
        Value::Number(number) => Ok(Value::String(python_number(&number))),
        Value::Null | Value::Array(_) | Value::Object(_) => {
            Err(Misfit::new("str type expected", "type_error.str"))
        }
    }
}

/// Python's `str` of a number.
fn python_number(number: &Number) -> String {
    match number.as_f64() {
        Some(value) if number.is_f64() => python_float(value),
        _ => number.to_string(),
    }
}

/// Python's `repr` of a finite float: shortest digits, an exponent of at least two digits below 1e-4
/// and from 1e16.
#[must_use]
pub(crate) fn python_float(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude != 0.0 && !(1e-4..1e16).contains(&magnitude) {
        let text = format!("{value:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(exponent) => ('-', exponent),
            None => ('+', exponent),
        };
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    format!("{value:?}")
}

fn int(value: &Value) -> Result<i64, Misfit> {
    let misfit = || Misfit::new("value is not a valid integer", "type_error.integer");
    match value {
        Value::Bool(flag) => Ok(i64::from(*flag)),
        Value::Number(number) => match number.as_i64() {
            Some(whole) => Ok(whole),
            // Beyond 64 bits Python goes on counting; no field has a use for that.
            None => number.as_f64().map(|float| float as i64).ok_or_else(misfit),
        },
        Value::String(text) => python_digits(text).ok_or_else(misfit),
        Value::Null | Value::Array(_) | Value::Object(_) => Err(misfit()),
    }
}

/// Python's `int(text)`: blanks around, a sign, single underscores between digits.
fn python_digits(text: &str) -> Option<i64> {
    without_underscores(text.trim())?.parse().ok()
}

fn without_underscores(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    for (index, byte) in bytes.iter().enumerate() {
        let digit_at = |at: Option<usize>| {
            at.and_then(|at| bytes.get(at))
                .is_some_and(u8::is_ascii_digit)
        };
        if *byte == b'_' && !(digit_at(index.checked_sub(1)) && digit_at(Some(index + 1))) {
            return None;
        }
    }
    Some(text.replace('_', ""))
}

fn at_least(number: i64, least: Option<i64>) -> Result<Value, Misfit> {
    match least {
        Some(limit) if number < limit => Err(Misfit::limit(
            "greater than or equal to",
            "value_error.number.not_ge",
            limit,
        )),
        _ => Ok(Value::from(number)),
    }
}

fn float(value: &Value) -> Result<f64, Misfit> {
    let misfit = || Misfit::new("value is not a valid float", "type_error.float");
    let number = match value {
        Value::Bool(flag) => f64::from(u8::from(*flag)),
        Value::Number(number) => number.as_f64().ok_or_else(misfit)?,
        Value::String(text) => without_underscores(text.trim())
            .and_then(|text| text.parse().ok())
            .ok_or_else(misfit)?,
        Value::Null | Value::Array(_) | Value::Object(_) => return Err(misfit()),
    };
    // No JSON answer could echo NaN or an infinity; A1111 fails there.
    if number.is_finite() {
        Ok(number)
    } else {
        Err(misfit())
    }
}

fn within(number: f64, range: Range) -> Result<Value, Misfit> {
    match range {
        Range::Unit if number < 0.0 => Err(Misfit::limit(
            "greater than or equal to",
            "value_error.number.not_ge",
            0,
        )),
        Range::Unit if number > 1.0 => Err(Misfit::limit(
            "less than or equal to",
            "value_error.number.not_le",
            1,
        )),
        Range::Positive if number <= 0.0 => Err(Misfit::limit(
            "greater than",
            "value_error.number.not_gt",
            0,
        )),
        Range::Any | Range::Unit | Range::Positive => Ok(json!(number)),
    }
}

fn boolean(value: &Value) -> Result<Value, Misfit> {
    let misfit = || Misfit::new("value could not be parsed to a boolean", "type_error.bool");
    match value {
        Value::Bool(_) => Ok(value.clone()),
        Value::Number(number) => match number.as_f64() {
            Some(0.0) => Ok(Value::Bool(false)),
            Some(1.0) => Ok(Value::Bool(true)),
            _ => Err(misfit()),
        },
        Value::String(text) => match text.to_lowercase().as_str() {
            "1" | "on" | "t" | "true" | "y" | "yes" => Ok(Value::Bool(true)),
            "0" | "off" | "f" | "false" | "n" | "no" => Ok(Value::Bool(false)),
            _ => Err(misfit()),
        },
        Value::Null | Value::Array(_) | Value::Object(_) => Err(misfit()),
    }
}

fn list(value: Value) -> Result<Vec<Value>, Misfit> {
    match value {
        Value::Array(items) => Ok(items),
        _ => Err(Misfit::new("value is not a valid list", "type_error.list")),
    }
}

/// Python's `dict(value)` takes an empty list and an empty text too.
fn object(value: Value) -> Result<Value, Misfit> {
    match value {
        Value::Object(_) => Ok(value),
        Value::Array(items) if items.is_empty() => Ok(json!({})),
        Value::String(text) if text.is_empty() => Ok(json!({})),
        _ => Err(Misfit::new("value is not a valid dict", "type_error.dict")),
    }
}

fn zero_or_one(value: &Value) -> Result<Value, Misfit> {
    let number = match value {
        Value::Bool(flag) => Some(f64::from(u8::from(*flag))),
        Value::Number(number) => number.as_f64(),
        _ => None,
    };
    match number {
        Some(0.0) => Ok(Value::from(0)),
        Some(1.0) => Ok(Value::from(1)),
        _ => Err(Misfit {
            message: "unexpected value; permitted: 0, 1".to_owned(),
            kind: "value_error.const",
            context: Some(json!({"given": value, "permitted": [0, 1]})),
        }),
    }
}

fn text_list(value: Value, location: &[Value]) -> Result<Value, Vec<FieldError>> {
    let items = list(value).map_err(|misfit| vec![misfit.at(location.to_vec())])?;
    let element = Field {
        name: "",
        kind: Kind::Text,
        default: Preset::Required,
        nullable: false,
    };
    let mut texts = Vec::with_capacity(items.len());
    let mut errors = Vec::new();
    for (index, item) in items.into_iter().enumerate() {
        match element.coerce(item, &below(location, index)) {
            Ok(text) => texts.push(text),
            Err(more) => errors.extend(more),
        }
    }
    if errors.is_empty() {
        Ok(Value::Array(texts))
    } else {
        Err(errors)
    }
}

fn below(location: &[Value], part: impl Into<Value>) -> Vec<Value> {
    let mut place = location.to_vec();
    place.push(part.into());
    place
}

fn file_list(value: Value, location: &[Value]) -> Result<Value, Vec<FieldError>> {
    let items = list(value).map_err(|misfit| vec![misfit.at(location.to_vec())])?;
    let mut files = Vec::with_capacity(items.len());
    let mut errors = Vec::new();
    for (index, item) in items.into_iter().enumerate() {
        let place = below(location, index);
        match super::body::coerce_object(item, FILE_DATA, &place) {
            Ok((fields, _)) => files.push(Value::Object(fields)),
            Err(more) => errors.extend(more),
        }
    }
    if errors.is_empty() {
        Ok(Value::Array(files))
    } else {
        Err(errors)
    }
}

const FILE_DATA: &[Field] = &[
    Field {
        name: "data",
        kind: Kind::Text,
        default: Preset::Required,
        nullable: false,
    },
    Field {
        name: "name",
        kind: Kind::Text,
        default: Preset::Required,
        nullable: false,
    },
];
