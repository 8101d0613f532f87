//! A request body after validation: every field of the endpoint with its value, in the endpoint's
//! order, and which of them the client sent.

use serde_json::{Map, Value, json};

use super::field::Preset;
use super::json::parse_json;
use super::{ApiError, Field, FieldError, Kind};

/// A validated body. The fields serve as the `parameters` of the answer as they are.
#[derive(Debug, Clone, PartialEq)]
pub struct Body {
    fields: Map<String, Value>,
    sent: Vec<&'static str>,
    schema: &'static [Field],
}

impl Body {
    /// All fields, in the endpoint's order.
    #[must_use]
    pub fn fields(&self) -> &Map<String, Value> {
        &self.fields
    }

    /// Whether the client sent the field, null included.
    #[must_use]
    pub fn sent(&self, name: &str) -> bool {
        self.sent.contains(&name)
    }

    /// Replaces a value, for example with one from an infotext.
    pub fn set(&mut self, name: &str, value: Value) {
        if let Some(slot) = self.fields.get_mut(name) {
            *slot = value;
        }
    }

    /// Replaces a value after fitting it to the field's type. A name that is no field is passed over.
    ///
    /// # Errors
    /// A validation answer where the value does not fit.
    pub fn set_coerced(&mut self, name: &str, value: Value) -> Result<(), ApiError> {
        let Some(field) = self.schema.iter().find(|field| field.name == name) else {
            return Ok(());
        };
        let place = [json!("body"), json!(name)];
        let value = field.coerce(value, &place).map_err(ApiError::Validation)?;
        self.set(name, value);
        Ok(())
    }

    /// The value of a field, null where it is missing.
    #[must_use]
    pub fn value(&self, name: &str) -> &Value {
        self.fields.get(name).unwrap_or(&Value::Null)
    }

    /// A text; `None` for null.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.value(name).as_str()
    }

    /// A text that is neither null nor empty.
    #[must_use]
    pub fn nonempty_text(&self, name: &str) -> Option<&str> {
        self.text(name).filter(|text| !text.is_empty())
    }

    /// A whole number; `None` for null.
    #[must_use]
    pub fn int(&self, name: &str) -> Option<i64> {
        self.value(name).as_i64()
    }

    /// A float; `None` for null.
    #[must_use]
    pub fn float(&self, name: &str) -> Option<f64> {
        self.value(name).as_f64()
    }

    /// A truth value; false for null.
    #[must_use]
    pub fn bool(&self, name: &str) -> bool {
        self.value(name).as_bool().unwrap_or(false)
    }

    /// A list; empty for null.
    #[must_use]
    pub fn list(&self, name: &str) -> &[Value] {
        self.value(name).as_array().map_or(&[], Vec::as_slice)
    }

    /// An object, if there is one.
    #[must_use]
    pub fn object(&self, name: &str) -> Option<&Map<String, Value>> {
        self.value(name).as_object()
    }
}

/// Reads a body as FastAPI does: JSON where the content type says so or is missing, else a text that
/// fits no endpoint.
///
/// # Errors
/// A validation answer, or status 400 where the bytes are no UTF-8.
pub fn read_body(
    content_type: Option<&str>,
    bytes: &[u8],
    schema: &'static [Field],
) -> Result<Body, ApiError> {
    let place = [json!("body")];
    let value = read_json(content_type, bytes)?;
    if value.is_null() {
        let error = FieldError::new(place.to_vec(), "field required", "value_error.missing");
        return Err(ApiError::Validation(vec![error]));
    }
    let (fields, sent) = coerce_object(value, schema, &place).map_err(ApiError::Validation)?;
    Ok(Body {
        fields,
        sent,
        schema,
    })
}

/// The JSON value of a body; null where there is none.
///
/// # Errors
/// See [`read_body`].
pub fn read_json(content_type: Option<&str>, bytes: &[u8]) -> Result<Value, ApiError> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    if !content_type.is_none_or(is_json) {
        return Ok(Value::String("no JSON".to_owned()));
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|_| ApiError::http(400, "There was an error parsing the body"))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    parse_json(text).map_err(|error| {
        ApiError::Validation(vec![FieldError {
            location: vec![json!("body"), json!(error.position)],
            message: error.to_string(),
            kind: "value_error.jsondecode",
            context: Some(json!({
                "msg": error.message,
                "doc": text,
                "pos": error.position,
                "lineno": error.line,
                "colno": error.column,
            })),
        }])
    })
}

/// `application/json` and `application/…+json`, whatever the parameters.
fn is_json(content_type: &str) -> bool {
    let essence = content_type
        .split(';')
        .next()
        .unwrap_or("")
        .trim()
        .to_lowercase();
    match essence.split_once('/') {
        Some(("application", kind)) => kind == "json" || kind.ends_with("+json"),
        _ => essence.is_empty(),
    }
}

/// A query parameter of type bool, false where it is missing.
///
/// # Errors
/// A validation answer where the text is no truth value.
pub fn query_bool(query: &str, name: &'static str) -> Result<bool, ApiError> {
    let given = query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .filter(|(key, _)| *key == name)
        .map(|(_, value)| value)
        .next_back();
    let Some(text) = given else {
        return Ok(false);
    };
    let field = Field {
        name,
        kind: Kind::Bool,
        default: Preset::Bool(false),
        nullable: false,
    };
    let place = [json!("query"), json!(name)];
    let value = field
        .coerce(Value::from(text), &place)
        .map_err(ApiError::Validation)?;
    Ok(value == Value::Bool(true))
}

type Coerced = (Map<String, Value>, Vec<&'static str>);

/// Fits a JSON value to a list of fields. Unknown keys are passed over.
pub(crate) fn coerce_object(
    value: Value,
    schema: &[Field],
    location: &[Value],
) -> Result<Coerced, Vec<FieldError>> {
    let mut given = match value {
        Value::Object(fields) => fields,
        // Python's `dict(value)` takes these two.
        Value::Array(items) if items.is_empty() => Map::new(),
        Value::String(text) if text.is_empty() => Map::new(),
        _ => {
            let message = "value is not a valid dict";
            return Err(vec![FieldError::new(
                location.to_vec(),
                message,
                "type_error.dict",
            )]);
        }
    };
    let mut fields = Map::with_capacity(schema.len());
    let mut sent = Vec::new();
    let mut errors = Vec::new();
    for field in schema {
        let mut place = location.to_vec();
        place.push(json!(field.name));
        match given.get_mut(field.name).map(Value::take) {
            None if field.default == Preset::Required => {
                errors.push(FieldError::new(
                    place,
                    "field required",
                    "value_error.missing",
                ));
            }
            None => {
                fields.insert(field.name.to_owned(), field.default.to_json());
            }
            Some(value) => match field.coerce(value, &place) {
                Ok(value) => {
                    fields.insert(field.name.to_owned(), value);
                    sent.push(field.name);
                }
                Err(more) => errors.extend(more),
            },
        }
    }
    if errors.is_empty() {
        Ok((fields, sent))
    } else {
        Err(errors)
    }
}
