//! The options in force: the table's defaults, `config.json`, and what clients posted since.
//!
//! Follows A1111 v1.10.1's `shared.opts`. Left out on purpose: a value of the wrong type is not
//! stored (A1111 stores it and then fails to answer `GET options`), and overrides never touch what
//! other requests see.

use std::path::{Path, PathBuf};

use parking_lot::RwLock;
use serde_json::{Map, Number, Value};

use super::output_folders::is_folder_option;
use super::table::{OptionEntry, OptionKind, option_table};
use super::{Freeze, Options, OutputFolders};

/// Why options could not be read, changed or saved. The first four messages are A1111's.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("'{0}'")]
    UnknownKey(String),
    #[error("changing settings is disabled")]
    Frozen,
    #[error(
        "not possible to set '{key}' because settings in section '{section}' ({section_id}) are frozen with --freeze-settings-in-sections"
    )]
    SectionFrozen {
        key: String,
        section: String,
        section_id: String,
    },
    #[error(
        "not possible to set '{0}' because this setting is frozen with --freeze-specific-settings"
    )]
    KeyFrozen(String),
    #[error("saving settings is disabled")]
    SavingFrozen,
    #[error("the options file {path} cannot be written: {source}")]
    Write {
        path: PathBuf,
        source: std::io::Error,
    },
}

/// The store behind `GET` and `POST /sdapi/v1/options`.
#[derive(Debug)]
pub struct Settings {
    path: PathBuf,
    freeze: Freeze,
    /// Where the folder options may point; anywhere while nobody set it.
    outputs: Option<OutputFolders>,
    /// Keys that were set, unknown ones of the file among them.
    stored: RwLock<Map<String, Value>>,
}

impl Settings {
    /// Options that live in memory only, all at their defaults until set.
    #[must_use]
    pub fn in_memory() -> Self {
        Self {
            path: PathBuf::new(),
            freeze: Freeze::default(),
            outputs: None,
            stored: RwLock::new(Map::new()),
        }
    }

    /// Reads the file at `path`. A missing file means all defaults; a broken one is moved to `tmp/`
    /// beside it, as A1111 does, and the second value says so.
    #[must_use]
    pub fn load(path: &Path, freeze: Freeze) -> (Self, Option<String>) {
        let (stored, warning) = match fs_err::read_to_string(path) {
            Err(_) => (Map::new(), None),
            Ok(text) => match serde_json::from_str(text.trim_start_matches('\u{feff}')) {
                Ok(stored) => (stored, None),
                Err(error) => (Map::new(), Some(set_aside(path, &error))),
            },
        };
        let settings = Self {
            path: path.to_owned(),
            freeze,
            outputs: None,
            stored: RwLock::new(stored),
        };
        (settings, warning)
    }

    /// Folder options can be changed to these folders only.
    #[must_use]
    pub fn with_outputs(mut self, outputs: OutputFolders) -> Self {
        self.outputs = Some(outputs);
        self
    }

    /// All options as they stand now, with defaults where nothing was set.
    #[must_use]
    pub fn snapshot(&self) -> Options {
        let stored = self.stored.read();
        let mut values: Map<String, Value> = option_table()
            .iter()
            .map(|entry| {
                let value = stored.get(&entry.key).unwrap_or(&entry.default);
                (entry.key.clone(), value.clone())
            })
            .collect();
        for (key, value) in stored.iter() {
            if !values.contains_key(key) {
                values.insert(key.clone(), value.clone());
            }
        }
        Options::new(values)
    }

    /// The body of `GET options`: the table's keys only; a whole number whose option is declared as
    /// float is written as one once it was set.
    #[must_use]
    pub fn answer(&self) -> Map<String, Value> {
        let stored = self.stored.read();
        option_table()
            .iter()
            .map(|entry| {
                let value = match stored.get(&entry.key) {
                    None => entry.default.clone(),
                    Some(value) if entry.response_type == "float" => as_float(value),
                    Some(value) => value.clone(),
                };
                (entry.key.clone(), value)
            })
            .collect()
    }

    /// The value of one option.
    #[must_use]
    pub fn get(&self, key: &str) -> Value {
        let stored = self.stored.read();
        stored
            .get(key)
            .cloned()
            .unwrap_or_else(|| find(key).map_or(Value::Null, |entry| entry.default.clone()))
    }

    /// Sets a value from inside the server, with no checks.
    pub fn set_internal(&self, key: &str, value: Value) {
        self.stored.write().insert(key.to_owned(), value);
    }

    /// Carries out `POST options`: pairs in order, until one is refused; then saves the file.
    /// Values of the wrong type are left out and named in the answer.
    ///
    /// # Errors
    /// As A1111: an unknown key with a value, or a frozen one. Keys before it stay changed.
    pub fn change(&self, changes: &Map<String, Value>) -> Result<Vec<String>, SettingsError> {
        let ignored = self.change_in_memory(changes)?;
        if self.freeze.all {
            return Err(SettingsError::SavingFrozen);
        }
        self.save()?;
        Ok(ignored)
    }

    /// As [`Self::change`], but nothing is written to the file.
    ///
    /// # Errors
    /// See [`Self::change`].
    pub fn change_in_memory(
        &self,
        changes: &Map<String, Value>,
    ) -> Result<Vec<String>, SettingsError> {
        let mut ignored = Vec::new();
        for (key, value) in changes {
            let known = find(key);
            let current = self.stored.read().get(key).cloned().unwrap_or(Value::Null);
            if current == *value {
                continue;
            }
            let Some(entry) = known else {
                if value.is_null() {
                    continue;
                }
                return Err(SettingsError::UnknownKey(key.clone()));
            };
            if !self.may_change(entry)? {
                continue;
            }
            if !self.may_point_to(entry, value) {
                ignored.push(key.clone());
                continue;
            }
            match coerce(entry, value) {
                Some(value) => self.set_internal(key, value),
                None => ignored.push(key.clone()),
            }
        }
        Ok(ignored)
    }

    /// `Ok(false)`: the change is silently ignored.
    fn may_change(&self, entry: &OptionEntry) -> Result<bool, SettingsError> {
        if !entry.api_writable || entry.kind == OptionKind::Html {
            return Ok(false);
        }
        if self.freeze.all {
            return Err(SettingsError::Frozen);
        }
        let section_id = entry.section_id.clone().unwrap_or_default();
        if self.freeze.sections.contains(&section_id) {
            return Err(SettingsError::SectionFrozen {
                key: entry.key.clone(),
                section: entry.section.clone().unwrap_or_default(),
                section_id,
            });
        }
        if self.freeze.keys.contains(&entry.key) {
            return Err(SettingsError::KeyFrozen(entry.key.clone()));
        }
        Ok(!(self.freeze.folders && entry.locked_by.is_some()))
    }

    /// Whether a folder option may have this value: no client sends pictures out of the output folders.
    fn may_point_to(&self, entry: &OptionEntry, value: &Value) -> bool {
        let (Some(outputs), Some(folder)) = (&self.outputs, value.as_str()) else {
            return true;
        };
        // Two of them are empty by default and not read.
        !is_folder_option(&entry.key)
            || *value == entry.default
            || outputs.resolve(folder).is_some()
    }

    /// Applies a request's `override_settings` to a snapshot. Returns the keys that do not exist and
    /// those whose value has the wrong type; the request runs without both.
    #[must_use]
    pub fn apply_overrides(options: &mut Options, overrides: &Map<String, Value>) -> Vec<String> {
        let mut ignored = Vec::new();
        for (key, value) in overrides {
            match find(key) {
                None if value.is_null() => {}
                None => ignored.push(key.clone()),
                Some(entry) if !entry.api_writable || entry.kind == OptionKind::Html => {}
                Some(entry) => match coerce(entry, value) {
                    Some(value) => options.set(key, value),
                    None => ignored.push(key.clone()),
                },
            }
        }
        ignored
    }

    /// Writes everything that was set, with an indent of 4, as A1111 does. The old file is replaced
    /// in one step.
    fn save(&self) -> Result<(), SettingsError> {
        if self.path.as_os_str().is_empty() {
            return Ok(());
        }
        let mut text = Vec::new();
        let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
        let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
        serde::Serialize::serialize(&*self.stored.read(), &mut serializer)
            .expect("a map of JSON values serialises");
        let temporary = self.path.with_extension("json.tmp");
        fs_err::write(&temporary, &text)
            .and_then(|()| fs_err::rename(&temporary, &self.path))
            .map_err(|source| SettingsError::Write {
                path: self.path.clone(),
                source,
            })
    }
}

fn find(key: &str) -> Option<&'static OptionEntry> {
    option_table().iter().find(|entry| entry.key == key)
}

fn set_aside(path: &Path, error: &serde_json::Error) -> String {
    let folder = path.parent().unwrap_or(Path::new(".")).join("tmp");
    let target = folder.join("config.json");
    let moved = fs_err::create_dir_all(&folder).and_then(|()| fs_err::rename(path, &target));
    match moved {
        Ok(()) => format!(
            "{} is no JSON object ({error}); it was moved to {} and the defaults are in force",
            path.display(),
            target.display()
        ),
        Err(_) => format!(
            "{} is no JSON object ({error}); the defaults are in force",
            path.display()
        ),
    }
}

fn as_float(value: &Value) -> Value {
    match value.as_f64().and_then(Number::from_f64) {
        Some(number) => Value::Number(number),
        None => value.clone(),
    }
}

/// The value in the option's own type, or `None` where it has another. Follows pydantic's
/// conversions, with whole numbers kept whole.
fn coerce(entry: &OptionEntry, value: &Value) -> Option<Value> {
    match entry.kind {
        OptionKind::Null | OptionKind::Html => Some(value.clone()),
        OptionKind::Bool => as_bool(value).map(Value::Bool),
        OptionKind::Int => {
            let number = as_number(value)?;
            if number.fract() == 0.0 && number.abs() < 9e15 {
                return Some(Value::from(number as i64));
            }
            Number::from_f64(number).map(Value::Number)
        }
        // A number stays as it was written, since infotexts show it that way (`10`, not `10.0`).
        OptionKind::Float if value.is_number() => Some(value.clone()),
        OptionKind::Float => as_number(value)
            .and_then(Number::from_f64)
            .map(Value::Number),
        OptionKind::Str => match value {
            Value::String(_) => Some(value.clone()),
            Value::Number(number) => Some(Value::String(number.to_string())),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
        },
        OptionKind::List => value.is_array().then(|| value.clone()),
    }
}

fn as_number(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::Bool(flag) => Some(f64::from(u8::from(*flag))),
        Value::String(text) => text
            .trim()
            .parse()
            .ok()
            .filter(|number: &f64| number.is_finite()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

fn as_bool(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(flag) => Some(*flag),
        Value::Number(number) => match number.as_f64() {
            Some(0.0) => Some(false),
            Some(1.0) => Some(true),
            _ => None,
        },
        Value::String(text) => match text.to_lowercase().as_str() {
            "1" | "on" | "t" | "true" | "y" | "yes" => Some(true),
            "0" | "off" | "f" | "false" | "n" | "no" => Some(false),
            _ => None,
        },
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().cloned().expect("an object")
    }

    #[test]
    fn the_answer_has_every_key_in_order() {
        let answer = Settings::in_memory().answer();
        assert_eq!(answer.len(), 329);
        assert_eq!(
            answer.keys().next().map(String::as_str),
            Some("samples_save")
        );
        assert_eq!(answer["jpeg_quality"].to_string(), "80");
    }

    #[test]
    fn a_set_whole_number_is_answered_as_float_and_kept_whole() {
        let settings = Settings::in_memory();
        settings
            .change(&object(json!({"CLIP_stop_at_last_layers": 2.0})))
            .expect("accepted");
        assert_eq!(
            settings.answer()["CLIP_stop_at_last_layers"].to_string(),
            "2.0"
        );
        assert_eq!(settings.get("CLIP_stop_at_last_layers").to_string(), "2");
    }

    #[test]
    fn the_whole_answer_can_be_posted_back() {
        let settings = Settings::in_memory();
        let before = settings.snapshot();
        let ignored = settings.change(&settings.answer()).expect("accepted");
        assert!(ignored.is_empty(), "{ignored:?}");
        assert_eq!(settings.snapshot(), before);
    }

    #[test]
    fn unknown_keys_are_refused_unless_null() {
        let settings = Settings::in_memory();
        let error = settings
            .change(&object(json!({"no_such_option": 1})))
            .unwrap_err();
        assert_eq!(error.to_string(), "'no_such_option'");
        assert!(
            settings
                .change(&object(json!({"no_such_option": null})))
                .is_ok()
        );
    }

    #[test]
    fn a_wrong_type_changes_nothing() {
        let settings = Settings::in_memory();
        let ignored = settings
            .change(&object(json!({"CLIP_stop_at_last_layers": "two"})))
            .expect("A1111 answers 200 too");
        assert_eq!(ignored, ["CLIP_stop_at_last_layers"]);
        assert_eq!(settings.get("CLIP_stop_at_last_layers"), 1);
    }

    #[test]
    fn request_options_cannot_be_opened_to_requests() {
        let settings = Settings::in_memory();
        settings
            .change(&object(json!({"api_forbid_local_requests": false})))
            .expect("silently ignored");
        assert_eq!(settings.get("api_forbid_local_requests"), true);
    }

    #[test]
    fn frozen_sections_say_so() {
        let mut settings = Settings::in_memory();
        settings.freeze.sections = vec!["saving-images".to_owned()];
        let error = settings
            .change(&object(json!({"samples_save": false})))
            .unwrap_err();
        assert!(
            error
                .to_string()
                .contains("frozen with --freeze-settings-in-sections")
        );
    }

    #[test]
    fn the_file_survives_a_restart_with_unknown_keys() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("config.json");
        fs_err::write(&path, r#"{"some_extension": 3, "samples_format": "jpg"}"#).expect("written");
        let (settings, warning) = Settings::load(&path, Freeze::default());
        assert_eq!(warning, None);
        settings
            .change(&object(json!({"eta_noise_seed_delta": 31340})))
            .expect("accepted");
        let (again, _) = Settings::load(&path, Freeze::default());
        assert_eq!(again.get("eta_noise_seed_delta"), 31340);
        assert_eq!(again.get("samples_format"), "jpg");
        let text = fs_err::read_to_string(&path).expect("readable");
        assert!(text.contains("    \"some_extension\": 3"), "{text}");
        assert!(!again.answer().contains_key("some_extension"));
    }

    #[test]
    fn a_broken_file_is_set_aside() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("config.json");
        fs_err::write(&path, "{broken").expect("written");
        let (_, warning) = Settings::load(&path, Freeze::default());
        assert!(warning.is_some_and(|text| text.contains("was moved to")));
        assert!(folder.path().join("tmp/config.json").exists());
    }

    #[test]
    fn overrides_change_the_snapshot_alone() {
        let settings = Settings::in_memory();
        let mut options = settings.snapshot();
        let overrides = object(json!({"randn_source": "NV", "nonsense": 1, "api_useragent": "x"}));
        let ignored = Settings::apply_overrides(&mut options, &overrides);
        assert_eq!(ignored, ["nonsense"]);
        assert_eq!(options.text("randn_source"), "NV");
        assert_eq!(options.text("api_useragent"), "");
        assert_eq!(settings.get("randn_source"), "GPU");
    }
}
