//! Dynamic prompts: `{a|b}`, `{2$$ and $$a|b|c}`, `{3::often|rare}`, `__wildcard__`, variables and
//! wraps, drawn from the picture's seed or listed in full.
//!
//! Follows the library dynamicprompts 0.31 (as sd-dynamic-prompts 2.17 uses it), draw for draw. Left
//! out: Jinja templates, magic prompts, attention grabbing. Where the library would run for ever (a
//! wildcard that names itself, a missing wildcard in a list of all prompts) this ends.

mod combinatorial;
mod random;
mod template;
mod wildcards;

pub use wildcards::{
    WildcardMap, WildcardSource, WildcardValue, replace_simple_wildcards, structured_wildcards,
    wildcards_in_text,
};

use super::python_random::PythonRandom;
use random::{Context, Environment, Generator, Method};

/// Why a template cannot be expanded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DynamicPromptError {
    #[error("the prompt template cannot be read from character {position} on")]
    Syntax { position: usize },
    #[error("the prompt template uses the variable {name}, which has no value")]
    UnknownVariable { name: String },
    #[error("the prompt template is nested too deeply; a wildcard or variable may name itself")]
    TooDeep,
    #[error("the prompt template stands for too much text")]
    TooLarge,
    #[error("the prompt template offers a choice whose weights are all 0")]
    NoWeight,
}

/// One prompt for each seed, drawn at random. State that outlives a picture, such as the position of
/// a cyclic choice `{@a|b}`, goes from one to the next.
///
/// # Errors
/// When the template or a wildcard's value is outside the grammar.
pub fn expand_random(
    template: &str,
    seeds: &[i64],
    wildcards: &dyn WildcardSource,
) -> Result<Vec<String>, DynamicPromptError> {
    let command = template::parse(template)?;
    let mut generator = Generator::new(command.into(), &Context::new(Method::Random))?;
    let mut prompts = Vec::with_capacity(seeds.len());
    let mut environment = Environment::new(0, wildcards);
    for &seed in seeds {
        environment.random = PythonRandom::new(seed);
        prompts.push(generator.next(&mut environment)?.unwrap_or_default());
    }
    Ok(prompts)
}

/// Every prompt that the template stands for, up to `limit`, the leftmost choice changing slowest.
/// Choices marked random (`{~a|b}`) are drawn from `seed`.
///
/// # Errors
/// When the template or a wildcard's value is outside the grammar.
pub fn expand_all(
    template: &str,
    limit: usize,
    seed: i64,
    wildcards: &dyn WildcardSource,
) -> Result<Vec<String>, DynamicPromptError> {
    let command = template::parse(template)?;
    let mut environment = Environment::new(seed, wildcards);
    combinatorial::list(&command.into(), limit, &mut environment)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;
    use serde_json::Value;

    use super::*;
    use crate::prompt::vectors;

    #[derive(Deserialize)]
    struct RandomCase {
        template: String,
        seeds: Vec<i64>,
        prompts: Value,
    }

    #[derive(Deserialize)]
    struct ListCase {
        template: String,
        prompts: Vec<String>,
    }

    fn wildcards() -> (Value, WildcardMap) {
        let vectors: Value = vectors::read_api("dynamic_prompts");
        let files = vectors["files"].as_object().expect("files").clone();
        let map = files
            .iter()
            .map(|(name, lines)| {
                let lines: Vec<String> = serde_json::from_value(lines.clone()).expect("lines");
                let name = name.trim_end_matches(".txt").to_owned();
                (name, wildcards_in_text(&lines.join("\n")))
            })
            .collect();
        (vectors, map)
    }

    fn check_random(cases: Value, wildcards: &WildcardMap) {
        let cases: Vec<RandomCase> = serde_json::from_value(cases).expect("cases");
        for case in cases {
            let have = expand_random(&case.template, &case.seeds, wildcards);
            if case.prompts.is_object() {
                assert!(have.is_err(), "{}: {have:?}", case.template);
            } else {
                let want: Vec<String> = serde_json::from_value(case.prompts).expect("prompts");
                assert_eq!(have.as_ref(), Ok(&want), "{}", case.template);
            }
        }
    }

    #[test]
    fn random_prompts_are_the_librarys() {
        let (vectors, wildcards) = wildcards();
        check_random(vectors["random"].clone(), &wildcards);
    }

    #[test]
    fn all_prompts_are_the_librarys_in_order() {
        let (vectors, wildcards) = wildcards();
        let cases: Vec<ListCase> =
            serde_json::from_value(vectors["combinatorial_max20"].clone()).expect("cases");
        for case in cases {
            let have = expand_all(&case.template, 20, 0, &wildcards);
            assert_eq!(have, Ok(case.prompts), "{}", case.template);
        }
    }

    #[test]
    fn more_templates_give_what_the_library_gives() {
        let wildcards: WildcardMap = [
            ("colours/warm", "red\norange\n# no\n\ngold"),
            ("colours/cold", "blue\nteal\nred"),
            ("nested", "a __colours/warm__ one\n{2$$x|y|z}"),
            ("pair", "${n} and ${m:none}"),
        ]
        .into_iter()
        .map(|(name, text)| (name.to_owned(), wildcards_in_text(text)))
        .chain(structured_wildcards(&serde_json::json!({
            "weighted": ["3::often", "rare", {"text": "never", "weight": 0.0}],
        })))
        .collect();
        let mut golden: Value = vectors::read_file("tests/golden/dynamic_prompt_vectors.json");
        check_random(golden["random"].take(), &wildcards);
        let cases: Vec<ListCase> =
            serde_json::from_value(golden["combinatorial"].take()).expect("cases");
        for case in cases {
            let have = expand_all(&case.template, 30, 0, &wildcards);
            assert_eq!(have, Ok(case.prompts), "{}", case.template);
        }
    }

    #[test]
    fn templates_that_never_end_are_refused() {
        let wildcards: WildcardMap = [("loop".to_owned(), wildcards_in_text("a __loop__"))].into();
        for template in ["__loop__", "${v={${v}}} ${v}"] {
            assert_eq!(
                expand_random(template, &[1], &wildcards),
                Err(DynamicPromptError::TooDeep),
                "{template}"
            );
            assert_eq!(
                expand_all(template, 9, 1, &wildcards),
                Err(DynamicPromptError::TooDeep),
                "{template}"
            );
        }
        assert!(expand_random(&"{".repeat(100_000), &[1], &wildcards).is_err());
        assert_eq!(
            expand_all("__none__ {a|b}", 9, 1, &wildcards),
            Ok(vec!["__none__ a".to_owned(), "__none__ b".to_owned()])
        );
        let mut doubling = "${a=x}".to_owned();
        for pair in [
            "ab", "bc", "cd", "de", "ef", "fg", "gh", "hi", "ij", "jk", "kl", "lm", "mn",
        ] {
            let (from, to) = pair.split_at(1);
            let value = format!("${{{from}}}").repeat(4);
            doubling = format!("{doubling}${{{to}={value}}}");
        }
        doubling += "${n}";
        for outcome in [
            expand_random(&doubling, &[1], &wildcards),
            expand_all(&doubling, 9, 1, &wildcards),
        ] {
            assert_eq!(outcome, Err(DynamicPromptError::TooLarge));
        }
        let options = vec!["x"; 40].join("|");
        assert!(expand_all(&format!("{{40$${options}}}"), 9, 1, &wildcards).is_ok());
    }

    proptest! {
        #[test]
        fn any_text_is_expanded_or_refused(template in r"[{}|$%:_~!@#/a0-9. \n]{0,24}") {
            let none = WildcardMap::new();
            let _ = expand_random(&template, &[1, 2], &none);
            let _ = expand_all(&template, 5, 1, &none);
        }
    }
}
