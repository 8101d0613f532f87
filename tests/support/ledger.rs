//! `compat-tests/known-differences.toml`: which cases fail, why, and since when. It fails in both
//! directions: a listed case that passes is as wrong as an unlisted one that does not.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    golden: Vec<Entry>,
    /// Read by `compat-tests/run.py`.
    #[serde(default, rename = "client")]
    _client: Vec<toml::Value>,
}

/// Cases that share one reason.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// Names of cases.
    #[serde(default)]
    cases: Vec<String>,
    /// A tag: every case that has it, except those in `except`.
    tag: Option<String>,
    #[serde(default)]
    except: Vec<String>,
    reason: String,
    /// `YYYY-MM-DD`.
    since: String,
}

/// Why a case may fail, by its name.
pub(crate) struct Ledger {
    reasons: HashMap<String, String>,
}

impl Ledger {
    /// Reads the ledger for these cases (name and tags).
    ///
    /// # Panics
    /// When the file cannot be read, or names a case or a tag that does not exist.
    pub(crate) fn read(path: &Path, cases: &[(String, Vec<String>)]) -> Self {
        let text = std::fs::read_to_string(path).expect("the ledger can be read");
        let file: File =
            toml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut reasons = HashMap::new();
        for entry in &file.golden {
            let known = |name: &String| cases.iter().any(|(case, _)| case == name);
            for name in entry.cases.iter().chain(&entry.except) {
                assert!(
                    known(name),
                    "the ledger names the case {name}, which does not exist"
                );
            }
            let tagged: Vec<&String> = cases
                .iter()
                .filter(|(name, tags)| {
                    entry.tag.as_ref().is_some_and(|tag| tags.contains(tag))
                        && !entry.except.contains(name)
                })
                .map(|(name, _)| name)
                .collect();
            if let Some(tag) = &entry.tag {
                assert!(
                    !tagged.is_empty(),
                    "the ledger names the tag {tag}, which no case has"
                );
            }
            for name in entry.cases.iter().chain(tagged) {
                let reason = format!("{} (since {})", entry.reason, entry.since);
                reasons.insert(name.clone(), reason);
            }
        }
        Self { reasons }
    }

    /// Why `case` is known to fail.
    pub(crate) fn reason(&self, case: &str) -> Option<&str> {
        self.reasons.get(case).map(String::as_str)
    }
}
