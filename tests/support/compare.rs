//! Comparing an answer's JSON with A1111's, value by value, under the rules of
//! `compat-tests/golden/README.md`, "What to compare".

use std::cell::Cell;
use std::path::Path;
use std::sync::LazyLock;

use base64::Engine;
use regex::Regex;
use serde_json::Value;

use super::picture::{self, Bar, Distance};

/// What the comparison needs to know of the case.
pub(crate) struct Context<'a> {
    /// `compat-tests/golden`.
    pub(crate) golden: &'a Path,
    /// The server's data folder, `/webui` in the recorded answers.
    pub(crate) data: &'a Path,
    pub(crate) bar: Bar,
    /// The server picked the seed.
    pub(crate) random_seed: bool,
    /// The server picked the subseed.
    pub(crate) random_subseed: bool,
    /// Compare keys and types only.
    pub(crate) shape_only: bool,
    /// How far the pictures compared so far are apart, those over the bar too.
    pub(crate) seen: &'a Cell<Distance>,
}

/// Compares `got` with `want` at `path`.
///
/// # Errors
/// The first difference, in one line.
pub(crate) fn compare(
    want: &Value,
    got: &Value,
    path: &str,
    context: &Context<'_>,
) -> Result<(), String> {
    if let Some(rule) = loose(path, context) {
        return rule(want, got)
            .then_some(())
            .ok_or_else(|| difference(path, want, got));
    }
    match (want, got) {
        (Value::Object(want), Value::Object(got)) => {
            for (key, want) in want {
                let Some(got) = got.get(key) else {
                    return Err(format!("{path}.{key} is missing"));
                };
                compare(want, got, &format!("{path}.{key}"), context)?;
            }
            match got.keys().find(|key| !want.contains_key(*key)) {
                Some(extra) => Err(format!("{path}.{extra} is not in A1111's answer")),
                None => Ok(()),
            }
        }
        (Value::Array(want_items), Value::Array(got_items)) => {
            if want_items.len() != got_items.len() {
                return Err(format!(
                    "{path} has {} elements, A1111's {}",
                    got_items.len(),
                    want_items.len()
                ));
            }
            for (index, (want, got)) in want_items.iter().zip(got_items).enumerate() {
                compare(want, got, &format!("{path}[{index}]"), context)?;
            }
            Ok(())
        }
        (Value::String(want_text), Value::String(got_text)) => {
            compare_texts(want_text, got_text, path, context)
        }
        (Value::Number(want_number), Value::Number(got_number)) => {
            let same = want_number.is_f64() == got_number.is_f64()
                && (context.shape_only || close(want_number.as_f64(), got_number.as_f64()));
            same.then_some(())
                .ok_or_else(|| difference(path, want, got))
        }
        _ if want == got => Ok(()),
        (Value::Bool(_), Value::Bool(_)) if context.shape_only => Ok(()),
        _ => Err(difference(path, want, got)),
    }
}

fn compare_texts(want: &str, got: &str, path: &str, context: &Context<'_>) -> Result<(), String> {
    if let Some(file) = want.strip_prefix("@file:") {
        return compare_picture(file, got, path, context);
    }
    if path == ".info"
        && let (Ok(want @ Value::Object(_)), Ok(got)) =
            (serde_json::from_str(want), serde_json::from_str(got))
    {
        return compare(&want, &got, path, context);
    }
    if context.shape_only {
        return Ok(());
    }
    let (want, got) = (normal_text(want, context), normal_text(got, context));
    same_text(&want, &got, path)
}

/// Shows where two texts part.
fn same_text(want: &str, got: &str, path: &str) -> Result<(), String> {
    if want == got {
        return Ok(());
    }
    let at = want
        .chars()
        .zip(got.chars())
        .take_while(|(a, b)| a == b)
        .count();
    let around = |text: &str| {
        text.chars()
            .skip(at.saturating_sub(20))
            .take(60)
            .collect::<String>()
    };
    Err(format!(
        "{path}: …{:?}, A1111's …{:?}",
        around(got),
        around(want)
    ))
}

fn compare_picture(file: &str, got: &str, path: &str, context: &Context<'_>) -> Result<(), String> {
    let want =
        std::fs::read(context.golden.join(file)).map_err(|error| format!("{file}: {error}"))?;
    let base64 = got.split_once(";base64,").map_or(got, |(_, data)| data);
    let got = base64::engine::general_purpose::STANDARD
        .decode(base64)
        .map_err(|error| format!("{path} is no base64: {error}"))?;
    if file.starts_with("inputs/") {
        return (want == got)
            .then_some(())
            .ok_or_else(|| format!("{path} is not the picture sent"));
    }
    if context.random_seed || context.shape_only {
        return Ok(());
    }
    let texts = |bytes: &[u8]| -> Vec<(String, String)> {
        let texts = picture::png_texts(bytes).into_iter();
        texts
            .map(|(keyword, text)| (keyword, normal_text(&text, context)))
            .collect()
    };
    let (want_texts, got_texts) = (texts(&want), texts(&got));
    let keywords = |texts: &[(String, String)]| -> Vec<String> {
        texts.iter().map(|(keyword, _)| keyword.clone()).collect()
    };
    if keywords(&want_texts) != keywords(&got_texts) {
        return Err(format!(
            "{path}: text chunks {:?}, A1111's {:?}",
            keywords(&got_texts),
            keywords(&want_texts)
        ));
    }
    for ((keyword, want), (_, got)) in want_texts.iter().zip(&got_texts) {
        same_text(want, got, &format!("{path} {keyword}"))?;
    }
    picture::measure(&got, &want)
        .and_then(|distance| {
            context.seen.set(context.seen.get().and(distance));
            picture::check(distance, context.bar)
        })
        .map_err(|why| format!("{path}: {why}"))
}

type Rule = fn(&Value, &Value) -> bool;

/// What is not compared by value, and how it is compared instead.
fn loose(path: &str, context: &Context<'_>) -> Option<Rule> {
    const INTEGER: Rule = |_, got| got.is_i64() || got.is_u64();
    const NUMBER: Rule = |_, got| got.is_number();
    const TEXT: Rule = |_, got| got.is_string();
    const INTEGERS: Rule = |want, got| {
        let (Some(want), Some(got)) = (want.as_array(), got.as_array()) else {
            return false;
        };
        want.len() == got.len() && got.iter().all(|item| item.is_i64() || item.is_u64())
    };
    match path {
        ".info.job_timestamp" | ".state.job_timestamp" | ".info.version" | ".port" => Some(TEXT),
        ".state.job_no" | ".state.sampling_steps" | ".app_id" => Some(INTEGER),
        ".eta_relative"
        | ".avg_event_process_time"
        | ".queue_eta"
        | ".ram.free"
        | ".ram.used"
        | ".ram.total" => Some(NUMBER),
        ".info.seed" if context.random_seed => Some(INTEGER),
        ".info.all_seeds" if context.random_seed => Some(INTEGERS),
        ".info.subseed" if context.random_subseed => Some(INTEGER),
        ".info.all_subseeds" if context.random_subseed => Some(INTEGERS),
        _ => None,
    }
}

/// `text` without what may differ: the version, seeds that the server picked, where the data lies.
fn normal_text(text: &str, context: &Context<'_>) -> String {
    static VERSION: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\bVersion: [^,\n]*").expect("a valid pattern"));
    static SEED: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\bSeed: \d+").expect("a valid pattern"));
    static SUBSEED: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\bVariation seed: \d+").expect("a valid pattern"));
    let mut text = text.replace(&*context.data.to_string_lossy(), "/webui");
    text = VERSION.replace_all(&text, "Version: *").into_owned();
    if context.random_seed {
        text = SEED.replace_all(&text, "Seed: *").into_owned();
    }
    if context.random_subseed {
        text = SUBSEED.replace_all(&text, "Variation seed: *").into_owned();
    }
    text
}

/// One difference in one line.
pub(crate) fn difference(path: &str, want: &Value, got: &Value) -> String {
    let short = |value: &Value| {
        let text = value.to_string();
        if text.chars().count() > 120 {
            format!("{}…", text.chars().take(120).collect::<String>())
        } else {
            text
        }
    };
    format!(
        "{} is {}, A1111's {}",
        if path.is_empty() { "the body" } else { path },
        short(got),
        short(want)
    )
}

fn close(want: Option<f64>, got: Option<f64>) -> bool {
    let (Some(want), Some(got)) = (want, got) else {
        return false;
    };
    (want - got).abs() <= 1e-9 * want.abs().max(1.0)
}
