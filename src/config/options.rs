//! A snapshot of A1111's options, typed where a reader asks for one.

use serde_json::{Map, Value};

/// Every option by its key, with the table's default where nothing else was set.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Options {
    values: Map<String, Value>,
}

impl Options {
    /// Options with these values.
    #[must_use]
    pub fn new(values: Map<String, Value>) -> Self {
        Self { values }
    }

    /// All values by key, in the table's order.
    #[must_use]
    pub fn values(&self) -> &Map<String, Value> {
        &self.values
    }

    /// The value of `key`, if the option exists.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// Sets `key`, whatever its type: A1111 checks none.
    pub fn set(&mut self, key: &str, value: Value) {
        self.values.insert(key.to_owned(), value);
    }

    /// The truth of an option as Python sees it: false for null, 0, `false`, `""` and a missing key.
    #[must_use]
    pub fn bool(&self, key: &str) -> bool {
        match self.values.get(key) {
            None | Some(Value::Null) => false,
            Some(Value::Bool(value)) => *value,
            Some(Value::Number(number)) => number.as_f64() != Some(0.0),
            Some(Value::String(text)) => !text.is_empty(),
            Some(Value::Array(items)) => !items.is_empty(),
            Some(Value::Object(fields)) => !fields.is_empty(),
        }
    }

    /// A number, or 0 where the option is none. `inf` may be stored as text.
    #[must_use]
    pub fn f64(&self, key: &str) -> f64 {
        match self.values.get(key) {
            Some(Value::Number(number)) => number.as_f64().unwrap_or(0.0),
            Some(Value::String(text)) => text.trim().parse().unwrap_or(0.0),
            Some(Value::Bool(true)) => 1.0,
            _ => 0.0,
        }
    }

    /// A whole number, cut off as Python's `int` does.
    #[must_use]
    pub fn i64(&self, key: &str) -> i64 {
        self.f64(key) as i64
    }

    /// A text; empty where the option is none.
    #[must_use]
    pub fn text(&self, key: &str) -> &str {
        self.values.get(key).and_then(Value::as_str).unwrap_or("")
    }
}
