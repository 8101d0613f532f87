//! The table of A1111's options, `options.json`: key, type, default, place in the settings page.

use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::Value;

/// The type of an option's default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptionKind {
    Bool,
    Int,
    Float,
    Str,
    List,
    /// The option has no type until it is set.
    Null,
    /// An explanatory text of the settings page, no setting.
    Html,
}

/// One row of the table.
#[derive(Debug, Clone, Deserialize)]
pub struct OptionEntry {
    pub key: String,
    #[serde(rename = "type")]
    pub kind: OptionKind,
    pub default: Value,
    /// The type `GET options` declares: `any`, `bool`, `str`, `float` or `list`.
    pub response_type: String,
    /// `generation`, `output`, `api`, `runtime`, `ui`, `training`, `internal` or `html`.
    pub effect: String,
    /// One sentence on what the option does.
    pub meaning: String,
    pub section_id: Option<String>,
    pub section: Option<String>,
    pub category: Option<String>,
    /// The key of the infotext that sets this option.
    pub infotext_key: Option<String>,
    #[serde(default)]
    pub choices: Vec<Value>,
    /// Whether a client may change it.
    #[serde(default = "yes")]
    pub api_writable: bool,
    /// The flag that makes changes have no effect.
    pub locked_by: Option<String>,
}

fn yes() -> bool {
    true
}

static OPTIONS: LazyLock<Vec<OptionEntry>> = LazyLock::new(|| {
    serde_json::from_str(include_str!("options.json")).expect("the embedded table is well formed")
});

/// All 329 options in the order of `GET /sdapi/v1/options`.
#[must_use]
pub fn option_table() -> &'static [OptionEntry] {
    &OPTIONS
}
