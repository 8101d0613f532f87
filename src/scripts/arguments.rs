//! The positional arguments of a script, read as Python reads them.

use serde_json::Value;

use crate::pipeline::GenerateError;

/// `script_args`, filled up with the script's defaults.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Arguments(Vec<Value>);

impl Arguments {
    /// What a request sent, and behind it the defaults of those that it left out. More than there are
    /// defaults is cut off.
    #[must_use]
    pub fn new(mut sent: Vec<Value>, defaults: &[Value]) -> Self {
        sent.truncate(defaults.len());
        let missing = &defaults[sent.len()..];
        sent.extend_from_slice(missing);
        Self(sent)
    }

    pub(super) fn value(&self, index: usize) -> &Value {
        self.0.get(index).unwrap_or(&Value::Null)
    }

    /// Python's truth of a value.
    #[must_use]
    pub fn bool(&self, index: usize) -> bool {
        match self.value(index) {
            Value::Null => false,
            Value::Bool(flag) => *flag,
            Value::Number(number) => number.as_f64() != Some(0.0),
            Value::String(text) => !text.is_empty(),
            Value::Array(items) => !items.is_empty(),
            Value::Object(fields) => !fields.is_empty(),
        }
    }

    /// A number, also one that is written as text.
    ///
    /// # Errors
    /// When the argument is something else.
    pub fn float(&self, index: usize) -> Result<f64, GenerateError> {
        let number = match self.value(index) {
            Value::Number(number) => number.as_f64(),
            Value::Bool(flag) => Some(f64::from(u8::from(*flag))),
            Value::String(text) => text.trim().parse().ok(),
            Value::Null | Value::Array(_) | Value::Object(_) => None,
        };
        number.filter(|number| number.is_finite()).ok_or_else(|| {
            raised(
                "TypeError",
                format!(
                    "script argument {index} must be a number, not {}",
                    self.value(index)
                ),
            )
        })
    }

    /// A number without its fraction.
    ///
    /// # Errors
    /// When the argument is no number.
    pub fn int(&self, index: usize) -> Result<i64, GenerateError> {
        Ok(self.float(index)?.trunc() as i64)
    }

    /// A number that counts pixels, at most 16384.
    pub(super) fn pixels(&self, index: usize) -> Result<u32, GenerateError> {
        Ok(self.int(index)?.clamp(0, 16_384) as u32)
    }

    /// A text; a number as it is written, null as nothing.
    pub(super) fn text(&self, index: usize) -> String {
        match self.value(index) {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            other => crate::infotext::python_str(other),
        }
    }

    /// A list of texts; a single text stands for a list of one.
    pub(super) fn list(&self, index: usize) -> Vec<String> {
        match self.value(index) {
            Value::Array(items) => items
                .iter()
                .map(|item| match item {
                    Value::String(text) => text.clone(),
                    other => crate::infotext::python_str(other),
                })
                .collect(),
            Value::String(text) if !text.is_empty() => vec![text.clone()],
            _ => Vec::new(),
        }
    }
}

/// What the script of A1111's raises.
pub(super) fn raised(class: &'static str, text: impl Into<String>) -> GenerateError {
    GenerateError::Raised {
        class,
        text: text.into(),
    }
}
