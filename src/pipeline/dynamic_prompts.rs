//! Dynamic prompts and wildcards: templates become one prompt a picture before a job begins.
//!
//! Follows the A1111 extension sd-dynamic-prompts 2.17.1: prompts are drawn from the pictures' seeds, or
//! all of them are listed. Differs on purpose: a template that cannot be read is used as it is, with a
//! warning (the extension draws the text of the error), repeated lists count once in the cross product
//! with the negative prompts, and a script's own list of prompts is expanded prompt by prompt (the
//! extension expands the first alone). Left out: magic prompts, attention grabbing, Jinja templates.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::catalogue::{WildcardFile, WildcardFolders, WildcardKind};
use crate::prompt::{
    DynamicPromptError, WildcardSource, WildcardValue, expand_all, expand_random,
    structured_wildcards, wildcards_in_text,
};

use super::prompts::JobPrompts;
use super::{GenerateError, GenerationParams, JobControl};

/// What [`DynamicPrompts::most_pictures`] is unless somebody says otherwise.
const DEFAULT_MOST_PICTURES: usize = 1000;

/// The arguments of the extension's script that change prompts.
#[derive(Debug, Clone)]
pub struct DynamicPrompts {
    pub wildcards: Arc<WildcardFolders>,
    /// All prompts are listed instead of drawn.
    pub combinatorial: bool,
    /// How often the list is repeated, each time with the next seed.
    pub combinatorial_batches: usize,
    /// Most prompts of a list; 0: all.
    pub max_generations: usize,
    /// All pictures have the first one's seed.
    pub fixed_seed: bool,
    /// Prompts are drawn at random, not from the pictures' seeds.
    pub unlink_seed: bool,
    /// Only the first picture is drawn.
    pub first_only: bool,
    /// Pictures that a template may stand for.
    pub most_pictures: usize,
}

impl DynamicPrompts {
    /// The settings of a request that does not mention the script.
    #[must_use]
    pub fn new(wildcards: Arc<WildcardFolders>) -> Self {
        Self {
            wildcards,
            combinatorial: false,
            combinatorial_batches: 1,
            max_generations: 0,
            fixed_seed: false,
            unlink_seed: false,
            first_only: false,
            most_pictures: DEFAULT_MOST_PICTURES,
        }
    }
}

/// The four prompts of a job, before or after expansion; one of each or one a picture.
#[derive(Debug, Clone, Default, PartialEq)]
struct Texts {
    positive: Vec<String>,
    negative: Vec<String>,
    hires_positive: Vec<String>,
    hires_negative: Vec<String>,
}

/// The job with its templates expanded; `None` where its prompts hold none.
///
/// # Errors
/// When a list of all prompts has no end in sight.
pub(super) fn expand(
    params: &GenerationParams,
    control: &dyn JobControl,
) -> Result<Option<GenerationParams>, GenerateError> {
    let Some(settings) = &params.dynamic_prompts else {
        return Ok(None);
    };
    let finished = JobPrompts::new(params);
    let templates = Texts {
        positive: finished.positive,
        negative: finished.negative,
        hires_positive: finished.hires_positive,
        hires_negative: finished.hires_negative,
    };
    let all = [
        &templates.positive,
        &templates.negative,
        &templates.hires_positive,
        &templates.hires_negative,
    ];
    if !all.into_iter().flatten().any(|text| is_template(text)) {
        return Ok(None);
    }
    let mut params = params.clone();
    params.dynamic_prompts = None;
    let wildcards = Wildcards::new(&settings.wildcards);
    let fix = |seed: &mut Option<i64>| *seed.get_or_insert_with(|| control.random_seed());
    let (seed, subseed) = (fix(&mut params.seed), fix(&mut params.subseed));
    let is_list = !params.lists.prompts.is_empty() || !params.lists.negative_prompts.is_empty();
    let texts = if settings.combinatorial && !is_list {
        listed(settings, &templates, seed, &wildcards)?
    } else {
        let count = templates.positive.len();
        let seeds = seeds(settings, &params, count, seed);
        let drawn_from = if settings.unlink_seed {
            (0..count).map(|_| control.random_seed()).collect()
        } else {
            seeds
        };
        drawn(&params, &templates, &drawn_from, is_list, &wildcards)
    };
    write_templates(&mut params, &templates);
    set_lists(&mut params, settings, texts, (seed, subseed));
    Ok(Some(params))
}

/// Whether a text has anything that the grammar acts on.
fn is_template(text: &str) -> bool {
    text.contains('{') || text.contains("__")
}

/// One prompt a picture, drawn from its seed.
fn drawn(
    params: &GenerationParams,
    templates: &Texts,
    seeds: &[i64],
    one_by_one: bool,
    wildcards: &Wildcards,
) -> Texts {
    let draw = |texts: &[String]| -> Vec<String> {
        let whitespace = Whitespace::of(params);
        let outcome = |template: &String, seeds: &[i64]| {
            if !is_template(template) {
                return vec![template.clone(); seeds.len()];
            }
            let expanded = expand_random(template, seeds, wildcards);
            let prompts = or_as_it_is(expanded, template, seeds.len());
            prompts.into_iter().map(|it| whitespace.apply(it)).collect()
        };
        if one_by_one {
            texts
                .iter()
                .zip(seeds)
                .flat_map(|(template, seed)| outcome(template, &[*seed]))
                .collect()
        } else {
            texts.first().map_or(Vec::new(), |it| outcome(it, seeds))
        }
    };
    Texts {
        positive: draw(&templates.positive),
        negative: draw(&templates.negative),
        hires_positive: draw(&templates.hires_positive),
        hires_negative: draw(&templates.hires_negative),
    }
}

/// Every prompt that the templates stand for.
fn listed(
    settings: &DynamicPrompts,
    templates: &Texts,
    seed: i64,
    wildcards: &Wildcards,
) -> Result<Texts, GenerateError> {
    let limit = match settings.max_generations {
        0 => settings.most_pictures.saturating_add(1),
        most => most.min(settings.most_pictures),
    };
    let list = |texts: &[String]| -> Vec<String> {
        let template = texts.first().cloned().unwrap_or_default();
        if !is_template(&template) {
            return vec![template];
        }
        let prompts = or_as_it_is(expand_all(&template, limit, seed, wildcards), &template, 1);
        if prompts.is_empty() {
            vec![String::new()]
        } else {
            prompts
        }
    };
    let (positive, negative) = (list(&templates.positive), list(&templates.negative));
    // A hires prompt of its own goes through its list in step with the pictures.
    let hires_positive = list(&templates.hires_positive);
    let hires_negative = list(&templates.hires_negative);
    let same = |hires: &[String], main: &[String]| hires.first() == main.first();
    let (same_positive, same_negative) = (
        same(&templates.hires_positive, &templates.positive),
        same(&templates.hires_negative, &templates.negative),
    );
    let pairs: Vec<(usize, usize)> = if settings.max_generations == 0 {
        let negatives = 0..negative.len();
        (0..positive.len())
            .flat_map(|first| negatives.clone().map(move |second| (first, second)))
            .take(settings.most_pictures.saturating_add(1))
            .collect()
    } else {
        (0..positive.len())
            .map(|index| (index, index % negative.len()))
            .collect()
    };
    let repeated = pairs.len().saturating_mul(settings.combinatorial_batches);
    if repeated > settings.most_pictures {
        let text = format!(
            "the prompt template stands for more than {} pictures; --max-pictures changes this",
            settings.most_pictures
        );
        return Err(GenerateError::InvalidValue(text));
    }
    let has_hires = !templates.hires_positive.is_empty();
    let mut texts = Texts::default();
    for _ in 0..settings.combinatorial_batches {
        for (index, &(first, second)) in pairs.iter().enumerate() {
            texts.positive.push(positive[first].clone());
            texts.negative.push(negative[second].clone());
            if !has_hires {
                continue;
            }
            let hires = |same: bool, main: &String, own: &[String]| {
                if same { main } else { &own[index % own.len()] }.clone()
            };
            texts
                .hires_positive
                .push(hires(same_positive, &positive[first], &hires_positive));
            texts
                .hires_negative
                .push(hires(same_negative, &negative[second], &hires_negative));
        }
    }
    Ok(texts)
}

fn or_as_it_is(
    expanded: Result<Vec<String>, DynamicPromptError>,
    template: &str,
    count: usize,
) -> Vec<String> {
    expanded.unwrap_or_else(|error| {
        tracing::warn!(%error, "a dynamic prompt is used as it is");
        vec![template.to_owned(); count]
    })
}

/// The seeds that the extension gives to `count` pictures.
fn seeds(
    settings: &DynamicPrompts,
    params: &GenerationParams,
    count: usize,
    seed: i64,
) -> Vec<i64> {
    if !params.lists.seeds.is_empty() {
        return params.lists.seeds.clone();
    }
    let varies = params.subseed_strength != 0.0;
    let of_round = count.div_ceil(settings.combinatorial_batches.max(1)).max(1);
    (0..count)
        .map(|index| {
            let offset = match (settings.fixed_seed, settings.combinatorial) {
                (true, true) => index / of_round,
                (true, false) => 0,
                (false, _) if varies => 0,
                (false, _) => index,
            };
            seed.wrapping_add(offset as i64)
        })
        .collect()
}

/// Puts the prompts into the job, with as many batches as they need.
fn set_lists(
    params: &mut GenerationParams,
    settings: &DynamicPrompts,
    mut texts: Texts,
    (seed, subseed): (i64, i64),
) {
    if settings.first_only {
        params.batch_size = 1;
        for list in [
            &mut texts.positive,
            &mut texts.negative,
            &mut texts.hires_positive,
            &mut texts.hires_negative,
        ] {
            list.truncate(1);
        }
    }
    let count = texts.positive.len();
    // The init image's latent is made for whole batches.
    if params.img2img.is_some() && !count.is_multiple_of(params.batch_size) {
        params.batch_size = 1;
    }
    params.batch_count = count.div_ceil(params.batch_size);
    let seeds = seeds(settings, params, count, seed);
    let lists = &mut params.lists;
    lists.seeds = seeds;
    if lists.subseeds.is_empty() {
        lists.subseeds = (0..count as i64)
            .map(|index| subseed.wrapping_add(if settings.fixed_seed { 0 } else { index }))
            .collect();
    }
    lists.prompts = texts.positive;
    lists.negative_prompts = texts.negative;
    lists.hires_prompts = texts.hires_positive;
    lists.hires_negative_prompts = texts.hires_negative;
    lists.finished = true;
}

/// The option `dp_write_raw_template`.
fn write_templates(params: &mut GenerationParams, templates: &Texts) {
    if !params.options.bool("dp_write_raw_template") {
        return;
    }
    let entries = [
        ("Template", &templates.positive),
        ("Negative Template", &templates.negative),
    ];
    for (key, texts) in entries {
        if let Some(text) = texts.first().filter(|text| !text.is_empty()) {
            params.first_entries.insert(key.to_owned(), json!(text));
        }
    }
}

/// The option `dp_ignore_whitespace`: whether runs of white space become one blank.
#[derive(Clone, Copy)]
struct Whitespace {
    squashed: bool,
}

impl Whitespace {
    fn of(params: &GenerationParams) -> Self {
        Self {
            squashed: params.options.bool("dp_ignore_whitespace"),
        }
    }

    fn apply(self, text: String) -> String {
        if self.squashed {
            text.split_whitespace().collect::<Vec<_>>().join(" ")
        } else {
            text
        }
    }
}

/// The wildcards of a job: files are listed once and read when they are asked for.
struct Wildcards {
    entries: BTreeMap<String, Entry>,
}

enum Entry {
    Lines {
        file: WildcardFile,
        values: OnceCell<Vec<WildcardValue>>,
    },
    Values(Vec<WildcardValue>),
}

impl Wildcards {
    fn new(folders: &WildcardFolders) -> Self {
        let mut entries = BTreeMap::new();
        for file in folders.files() {
            if file.kind == WildcardKind::Lines {
                let values = OnceCell::new();
                let name = file.name.clone();
                entries.entry(name).or_insert(Entry::Lines { file, values });
                continue;
            }
            match structured(&file) {
                Ok(tree) => {
                    for (name, values) in named_values(&file.name, &tree) {
                        entries.entry(name).or_insert(Entry::Values(values));
                    }
                }
                Err(error) => {
                    let path = file.path.display();
                    tracing::warn!(%path, error, "the wildcard file cannot be used");
                }
            }
        }
        Self { entries }
    }
}

/// The wildcards of a structured file: below its folder by their keys, or by the file's own name where
/// it holds a plain list of texts.
fn named_values(file_name: &str, tree: &Value) -> Vec<(String, Vec<WildcardValue>)> {
    if let Value::Array(items) = tree {
        let texts = items.iter().filter_map(Value::as_str);
        let values: Vec<WildcardValue> = texts
            .map(|text| WildcardValue {
                text: text.to_owned(),
                weight: 1.0,
            })
            .collect();
        return vec![(file_name.to_owned(), values)];
    }
    let folder = file_name.rsplit_once('/').map(|(folder, _)| folder);
    structured_wildcards(tree)
        .into_iter()
        .map(|(name, values)| match folder {
            Some(folder) => (format!("{folder}/{name}"), values),
            None => (name, values),
        })
        .collect()
}

/// The tree of a JSON or YAML file.
fn structured(file: &WildcardFile) -> Result<Value, String> {
    let text = file.read().map_err(|error| error.to_string())?;
    match file.kind {
        WildcardKind::Json => serde_json::from_str(&text).map_err(|error| error.to_string()),
        WildcardKind::Yaml | WildcardKind::Lines => {
            serde_yaml_ng::from_str(&text).map_err(|error| error.to_string())
        }
    }
}

impl WildcardSource for Wildcards {
    fn names(&self) -> Vec<String> {
        self.entries.keys().cloned().collect()
    }

    fn values(&self, name: &str) -> Vec<WildcardValue> {
        match self.entries.get(name) {
            None => Vec::new(),
            Some(Entry::Values(values)) => values.clone(),
            Some(Entry::Lines { file, values }) => values
                .get_or_init(|| {
                    file.read()
                        .map(|text| wildcards_in_text(&text))
                        .unwrap_or_default()
                })
                .clone(),
        }
    }
}
