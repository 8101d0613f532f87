//! What an infotext says.

use std::sync::LazyLock;

use regex::Regex;
use serde_json::{Map, Value, json};

use super::python::strip;
use super::style_extraction::{KnownStyle, extract_styles};
use super::version::Version;
use super::write::unquote;

const NEGATIVE_PROMPT: &str = "Negative prompt:";

static PAIR: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r#"\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)"#)
        .expect("the pattern is constant")
});

/// The option `infotext_styles`: what becomes of styles whose texts are found in the prompts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StyleHandling {
    /// Styles are not looked for.
    Ignore,
    /// `Styles array` is set, even if empty.
    Apply,
    /// Style texts are cut out and forgotten.
    Discard,
    /// `Styles array` is set when a style was found.
    #[default]
    ApplyIfAny,
}

impl StyleHandling {
    /// The handling by A1111's name; an unknown name is its default.
    #[must_use]
    pub fn from_option(name: &str) -> Self {
        match name {
            "Ignore" => Self::Ignore,
            "Apply" => Self::Apply,
            "Discard" => Self::Discard,
            _ => Self::ApplyIfAny,
        }
    }
}

/// The options and the styles that reading depends on.
#[derive(Debug, Clone, Copy)]
pub struct ParseSettings<'a> {
    /// The styles to look for, in the order of `styles.csv`.
    pub styles: &'a [KnownStyle<'a>],
    /// `infotext_styles`
    pub style_handling: StyleHandling,
    /// `auto_backcompat`: keys that make an old version's pictures come out again.
    pub auto_backcompat: bool,
    /// `infotext_skip_pasting`: keys to leave out.
    pub skipped_keys: &'a [&'a str],
}

impl Default for ParseSettings<'_> {
    fn default() -> Self {
        Self {
            styles: &[],
            style_handling: StyleHandling::default(),
            auto_backcompat: true,
            skipped_keys: &[],
        }
    }
}

/// Reads an infotext: the keys of its last line as texts, prompts, and A1111's defaults for keys
/// that are not there. Any text can be read; one without a line of pairs is a prompt.
#[must_use]
pub fn parse(text: &str, settings: &ParseSettings<'_>) -> Map<String, Value> {
    let (prompt, negative_prompt, mut fields) = split(text);
    let version = text_of(&fields, "Version").map(Version::parse_infotext);
    let (mut prompt, negative_prompt) = take_styles(
        prompt,
        negative_prompt,
        &mut fields,
        version.as_ref(),
        settings,
    );
    if let Some(name) = text_of(&fields, "Hypernet") {
        let strength = text_of(&fields, "Hypernet strength").unwrap_or("1.0");
        prompt = format!("{prompt}<hypernet:{name}:{strength}>");
    }
    fields.insert("Prompt".to_owned(), json!(prompt));
    fields.insert("Negative prompt".to_owned(), json!(negative_prompt));
    add_defaults(&mut fields, &prompt, &negative_prompt);
    if settings.auto_backcompat
        && let Some(Some(version)) = &version
    {
        add_compatibility(&mut fields, version, &prompt);
    }
    fields.retain(|key, _| !settings.skipped_keys.contains(&key.as_str()));
    fields
}

fn text_of<'a>(fields: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    fields.get(key)?.as_str()
}

/// Prompt, negative prompt and the pairs of the last line, if that is a line of pairs.
fn split(text: &str) -> (String, String, Map<String, Value>) {
    let mut lines: Vec<&str> = strip(text).split('\n').collect();
    let last = lines.last().copied().unwrap_or("");
    let mut fields = Map::new();
    if PAIR.find_iter(last).count() >= 3 {
        for pair in PAIR.captures_iter(last) {
            take_pair(&mut fields, &pair[1], &pair[2]);
        }
        lines.pop();
    }
    let mut prompts = [String::new(), String::new()];
    let mut which = 0;
    for line in lines {
        let mut line = strip(line);
        if let Some(rest) = line.strip_prefix(NEGATIVE_PROMPT) {
            which = 1;
            line = strip(rest);
        }
        let prompt = &mut prompts[which];
        if !prompt.is_empty() {
            prompt.push('\n');
        }
        prompt.push_str(line);
    }
    let [prompt, negative_prompt] = prompts;
    (prompt, negative_prompt, fields)
}

/// Stores one pair; `640x896` becomes two.
fn take_pair(fields: &mut Map<String, Value>, key: &str, value: &str) {
    if value.is_empty() {
        return;
    }
    let value = unquote(value);
    let is_number =
        |side: &str| !side.is_empty() && side.chars().all(|digit| digit.is_ascii_digit());
    match value.split_once('x') {
        Some((first, second)) if is_number(first) && is_number(second) => {
            fields.insert(format!("{key}-1"), json!(first));
            fields.insert(format!("{key}-2"), json!(second));
        }
        _ => {
            fields.insert(key.to_owned(), json!(value));
        }
    }
}

/// Cuts styles out of the prompts, and out of the hires prompts if those have the same ones.
fn take_styles(
    prompt: String,
    negative_prompt: String,
    fields: &mut Map<String, Value>,
    version: Option<&Option<Version>>,
    settings: &ParseSettings<'_>,
) -> (String, String) {
    if settings.style_handling == StyleHandling::Ignore {
        return (prompt, negative_prompt);
    }
    let found = extract_styles(&prompt, &negative_prompt, settings.styles);
    let has_hires =
        fields.contains_key("Hires prompt") || fields.contains_key("Hires negative prompt");
    let hires_has_styles = match version {
        Some(Some(version)) => Version::parse("1.8.0-139").is_some_and(|since| *version > since),
        _ => true,
    };
    if has_hires && hires_has_styles {
        let hires_prompt = text_of(fields, "Hires prompt").unwrap_or(&prompt);
        let hires_negative = text_of(fields, "Hires negative prompt").unwrap_or(&negative_prompt);
        let hires = extract_styles(hires_prompt, hires_negative, settings.styles);
        if hires.0 != found.0 {
            return (prompt, negative_prompt);
        }
        for (key, hires_text, text) in [
            ("Hires prompt", hires.1, &found.1),
            ("Hires negative prompt", hires.2, &found.2),
        ] {
            let own = if hires_text == *text {
                String::new()
            } else {
                hires_text
            };
            fields.insert(key.to_owned(), json!(own));
        }
    }
    let (names, prompt, negative_prompt) = found;
    let stated = match settings.style_handling {
        StyleHandling::Apply => true,
        StyleHandling::ApplyIfAny => !names.is_empty(),
        StyleHandling::Discard | StyleHandling::Ignore => false,
    };
    if stated {
        fields.insert("Styles array".to_owned(), json!(names));
    }
    (prompt, negative_prompt)
}

fn add_defaults(fields: &mut Map<String, Value>, prompt: &str, negative_prompt: &str) {
    let mut add = |key: &str, value: Value| {
        fields.entry(key).or_insert(value);
    };
    add("Clip skip", json!("1"));
    add("Hires resize-1", json!(0));
    add("Hires resize-2", json!(0));
    add("Hires sampler", json!("Use same sampler"));
    add("Hires schedule type", json!("Use same scheduler"));
    add("Hires checkpoint", json!("Use same checkpoint"));
    add("Hires prompt", json!(""));
    add("Hires negative prompt", json!(""));
    add("Mask mode", json!("Inpaint masked"));
    add("Masked content", json!("original"));
    add("Inpaint area", json!("Whole picture"));
    add("Masked area padding", json!(32));
    add("RNG", json!("GPU"));
    add("Schedule type", json!("Automatic"));
    add("Schedule max sigma", json!(0));
    add("Schedule min sigma", json!(0));
    add("Schedule rho", json!(0));
    add("VAE Encoder", json!("Full"));
    add("VAE Decoder", json!("Full"));
    add("FP8 weight", json!("Disable"));
    if [prompt, negative_prompt]
        .iter()
        .any(|text| text.contains(['(', '[']))
    {
        add("Emphasis", json!("Original"));
    }
    add("Refiner switch by sampling steps", json!(false));
    restore_first_pass_size(fields);
}

/// Old infotexts state the final size as `Size` and the first pass apart.
fn restore_first_pass_size(fields: &mut Map<String, Value>) {
    let number = |key: &str| -> Option<u64> {
        match fields.get(key)? {
            Value::String(text) => text.parse().ok(),
            other => other.as_u64(),
        }
    };
    let (Some(mut first_width), Some(mut first_height)) =
        (number("First pass size-1"), number("First pass size-2"))
    else {
        return;
    };
    let width = number("Size-1").unwrap_or(512);
    let height = number("Size-2").unwrap_or(512);
    if first_width == 0 || first_height == 0 {
        let scale = (512.0 * 512.0 / (width as f64 * height as f64)).sqrt();
        let side = |side: u64| (scale * side as f64 / 64.0).ceil() as u64 * 64;
        (first_width, first_height) = (side(width), side(height));
    }
    for (key, value) in [
        ("Size-1", first_width),
        ("Size-2", first_height),
        ("Hires resize-1", width),
        ("Hires resize-2", height),
    ] {
        fields.insert(key.to_owned(), json!(value));
    }
}

/// The options under which `version` made its pictures.
fn add_compatibility(fields: &mut Map<String, Value>, version: &Version, prompt: &str) {
    let before = |text: &str| Version::parse(text).is_some_and(|since| *version < since);
    let mut flags = Vec::new();
    if before("1.6.0") {
        if prompt.contains('[') {
            flags.push("Old prompt editing timelines");
        }
        if matches!(text_of(fields, "Sampler"), Some("DDIM" | "PLMS")) {
            flags.push("Pad conds v0");
        }
    }
    if before("1.7.0-225") {
        flags.push("Downcast alphas_cumprod");
    }
    if before("1.8.0") && fields.contains_key("Refiner") {
        flags.push("Refiner switch by sampling steps");
    }
    for flag in flags {
        fields.insert(flag.to_owned(), json!(true));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;
    use crate::infotext::vectors::{self, STYLES, style};
    use crate::infotext::{override_settings, write};

    #[derive(Deserialize)]
    struct Case {
        text: String,
        result: Map<String, Value>,
        override_settings: Vec<(String, String, Value)>,
    }

    fn settings<'a>(styles: &'a [KnownStyle<'a>]) -> ParseSettings<'a> {
        ParseSettings {
            styles,
            ..ParseSettings::default()
        }
    }

    fn assert_same(have: &Map<String, Value>, want: &Map<String, Value>, text: &str) {
        assert_eq!(have, want, "{text}");
        let keys = |map: &Map<String, Value>| map.keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(have), keys(want), "order of keys of {text}");
    }

    #[test]
    fn infotexts_are_read_as_a1111_reads_them() {
        for case in vectors::read::<Vec<Case>>("parse") {
            let fields = parse(&case.text, &settings(&STYLES));
            assert_same(&fields, &case.result, &case.text);
            let overrides: Vec<_> = override_settings(&fields, |_| None, true)
                .into_iter()
                .map(|(key, value)| (key.label.to_owned(), key.option.to_owned(), value))
                .collect();
            assert_eq!(overrides, case.override_settings, "{}", case.text);
        }
    }

    #[test]
    fn recorded_png_infos_are_read_as_recorded() {
        let styles = [
            style("plain", "flat colours, simple shapes", ""),
            style(
                "wrapped",
                "a poster of {prompt}, bold outline",
                "blurry, noise",
            ),
            style("noir", "black and white, film grain", "colour"),
            style("negonly", "", "low contrast, jpeg artefacts"),
        ];
        for name in [
            "pnginfo-hires",
            "pnginfo-lora",
            "pnginfo-ensd",
            "pnginfo-styles",
            "pnginfo-t2i-sampler-euler-a",
        ] {
            let case = vectors::read_file(&format!("compat-tests/golden/cases/{name}.json"));
            let text = case["response"]["info"].as_str().expect("an infotext");
            let want = case["response"]["parameters"].as_object().expect("fields");
            assert_same(&parse(text, &settings(&styles)), want, name);
        }
    }

    #[test]
    fn hires_prompts_must_have_the_styles_too() {
        let line = "Steps: 1, Sampler: Euler, Seed: 1, Hires prompt: ";
        let text = format!("a, ink drawing, monochrome\nNegative prompt: color\n{line}b");
        let fields = parse(&text, &settings(&STYLES));
        assert_eq!(fields["Prompt"], "a, ink drawing, monochrome");
        assert_eq!(fields.get("Styles array"), None);
        let text = format!(
            "a, ink drawing, monochrome\nNegative prompt: color\n{line}\"b, ink drawing, monochrome\""
        );
        let fields = parse(&text, &settings(&STYLES));
        assert_eq!(fields["Prompt"], "a");
        assert_eq!(fields["Hires prompt"], "b");
        assert_eq!(fields["Styles array"], json!(["Ink"]));
    }

    #[test]
    fn options_decide_over_styles_and_keys() {
        let text =
            "a, ink drawing, monochrome\nNegative prompt: color\nSteps: 1, Sampler: Euler, Seed: 1";
        let with = |style_handling, skipped_keys| {
            parse(
                text,
                &ParseSettings {
                    style_handling,
                    skipped_keys,
                    ..settings(&STYLES)
                },
            )
        };
        let ignored = with(StyleHandling::Ignore, &[]);
        assert_eq!(ignored["Prompt"], "a, ink drawing, monochrome");
        let discarded = with(StyleHandling::Discard, &["Seed"]);
        assert_eq!(discarded["Prompt"], "a");
        assert_eq!(discarded.get("Styles array"), None);
        assert_eq!(discarded.get("Seed"), None);
    }

    fn value() -> impl Strategy<Value = Value> {
        prop_oneof![
            any::<i64>().prop_map(Value::from),
            any::<bool>().prop_map(Value::from),
            (-1e9..1e9).prop_map(|number: f64| json!(number)),
            // Texts that mean something else when unquoted are left to the tests above.
            "[a-zA-Z:,\\\\é☃\n][a-wyzA-Z0-9:,\\\\ é☃\n]{0,12}[a-zA-Z:,\\\\é☃\n]"
                .prop_map(Value::from),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            prompt in "([a-z(]([a-z,()\\[ \n]{0,30}[a-z)])?)?",
            negative in "([a-z(]([a-z,()\\[ \n]{0,30}[a-z)])?)?",
            values in prop::collection::vec(value(), 3..8),
        ) {
            let pairs: Vec<(String, Value)> = values
                .into_iter()
                .enumerate()
                .map(|(index, value)| (format!("Key {index}"), value))
                .collect();
            let fields = parse(&write(&prompt, &negative, &pairs), &ParseSettings::default());
            let trimmed = |text: &str| text.split('\n').map(str::trim).collect::<Vec<_>>().join("\n");
            prop_assert_eq!(&fields["Prompt"], &json!(trimmed(&prompt)));
            prop_assert_eq!(&fields["Negative prompt"], &json!(trimmed(&negative)));
            for (key, value) in pairs {
                let want = super::super::python_str(&value);
                prop_assert_eq!(&fields[&key], &json!(want), "{}", key);
            }
        }

        #[test]
        fn any_text_can_be_read(text in "\\PC{0,80}|[\"\\\\a:, x0-9\n-]{0,80}") {
            let _ = parse(&text, &settings(&STYLES));
        }
    }
}
