//! Prompts encoded with the golden checkpoints, against the conditioning recorded inside
//! AUTOMATIC1111: chunks, emphasis, schedules, AND, textual inversion, clip skip, SDXL's vectors.

#[path = "support/golden_models.rs"]
mod golden_models;
#[path = "support/onnx_runtime.rs"]
mod onnx_runtime;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use ancestral::catalogue::{Catalogue, CatalogueConfig};
use ancestral::conditioning::{
    CacheLimits, Conditioner, Conditioning, ConditioningCache, ConditioningSettings, Embedding,
    EmbeddingSource, Emphasis, PictureSize,
};
use ancestral::models::{Provider, ProviderConfig};
use ancestral::pipeline::{Model, ModelProvider, ModelRequest};
use ancestral::prompt::PassSteps;
use ndarray::{Array1, Array2, ArrayD};
use ndarray_npy::NpzReader;
use serde_json::{Map, Value};

/// Largest difference relative to the largest value. The towers agree to 1e-6; the mean that emphasis
/// restores is near 0 and makes up to 3e-5 of that.
const TOLERANCE: f32 = 1e-4;
/// The picture that SDXL's recorded vectors were told of.
const SIZE: PictureSize = PictureSize {
    width_px: 96,
    height_px: 64,
};
const STEPS: usize = 6;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn model(name: &str) -> Arc<Model> {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        golden_models::write_data_folder(folder.path(), &root().join("compat-tests/golden/models"));
        folder
    });
    let runtime = onnx_runtime::runtime();
    let models = folder.path().join("models");
    let catalogue = Catalogue::new(CatalogueConfig {
        models_dir: models.clone(),
        ..CatalogueConfig::default()
    });
    let config = ProviderConfig {
        tower_folders: vec![models],
        ..ProviderConfig::default()
    };
    let request = ModelRequest {
        checkpoint: format!("{name}.safetensors"),
        vae: "None".to_owned(),
        ..ModelRequest::default()
    };
    Provider::new(runtime, Arc::new(catalogue), config)
        .load(&request)
        .unwrap()
}

fn read_json(path: &str) -> Map<String, Value> {
    let text = fs_err::read_to_string(root().join(path)).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The recorded conditionings by key.
fn recorded(model: &str) -> BTreeMap<String, ArrayD<f32>> {
    let path = format!("compat-tests/golden/truth/cond_{model}.npz");
    let mut file = NpzReader::new(File::open(root().join(path)).unwrap()).unwrap();
    let names = file.names().unwrap();
    names
        .into_iter()
        .map(|name| {
            let array = file.by_name(&name).unwrap();
            (name.trim_end_matches(".npy").to_owned(), array)
        })
        .collect()
}

fn prompt(cases: &Map<String, Value>, name: &str) -> String {
    cases[name]["prompt"].as_str().unwrap().to_owned()
}

/// The two textual inversions that were present.
struct Inversions;

impl EmbeddingSource for Inversions {
    fn names(&self) -> Vec<String> {
        vec!["bad-tiny".to_owned(), "tinyti".to_owned()]
    }

    fn load(&self, name: &str) -> Option<Arc<Embedding>> {
        let vectors = read_json("tests/golden/textual_inversions.json");
        let rows: Vec<Vec<f32>> = serde_json::from_value(vectors.get(name)?.clone()).unwrap();
        let shape = (rows.len(), rows[0].len());
        Some(Arc::new(Embedding {
            name: name.to_owned(),
            short_hash: String::new(),
            vectors: vec![Array2::from_shape_vec(shape, rows.concat()).unwrap()],
        }))
    }
}

fn conditioner(model: &Model, settings: ConditioningSettings) -> Conditioner<'static> {
    let fits = model.text_encoders.len() == 1;
    let source: Option<Arc<dyn EmbeddingSource>> = fits.then(|| Arc::new(Inversions) as _);
    Conditioner::new(model.family, &model.text_encoders, settings, source).unwrap()
}

fn assert_close<'a>(have: impl ExactSizeIterator<Item = &'a f32>, want: &ArrayD<f32>, what: &str) {
    assert_eq!(have.len(), want.len(), "{what}: number of values");
    let scale = want.iter().fold(0.0_f32, |max, value| max.max(value.abs()));
    let worst = have
        .zip(want)
        .fold(0.0_f32, |max, (have, want)| max.max((have - want).abs()));
    assert!(
        worst <= TOLERANCE * scale,
        "{what}: off by {worst} of {scale}"
    );
}

fn first(parts: &[ancestral::conditioning::AndPart]) -> &Conditioning {
    &parts[0].schedule[0].conditioning
}

/// `NAME/and0/until6`: every part of every prompt at every step.
fn check_schedules(name: &str) {
    let model = model(name);
    let conditioner = conditioner(&model, ConditioningSettings::default());
    let cases = read_json(&format!("compat-tests/golden/truth/prompts_{name}.json"));
    let mut checked = 0;
    for (key, want) in recorded(name) {
        let [case, and, until] = key.split('/').collect::<Vec<_>>()[..] else {
            continue;
        };
        let prompts = [prompt(&cases, case)];
        let parts = conditioner
            .positive(&prompts, PassSteps::first_pass(STEPS), SIZE)
            .unwrap()
            .remove(0);
        let index: usize = and.strip_prefix("and").unwrap().parse().unwrap();
        let until: usize = until.strip_prefix("until").unwrap().parse().unwrap();
        let entry = parts[index]
            .schedule
            .iter()
            .find(|entry| entry.end_at_step == until)
            .unwrap_or_else(|| panic!("{key}: no entry ends there"));
        assert_close(entry.conditioning.context.iter(), &want, &key);
        assert_eq!(entry.conditioning.vector, None);
        let structure = &cases[case]["cond"][index];
        assert_eq!(structure["weight"].as_f64(), Some(parts[index].weight));
        checked += 1;
    }
    assert!(checked > 20, "only {checked} recorded conditionings");
}

#[test]
fn sd1_prompts_become_the_recorded_conditionings() {
    check_schedules("tiny-sd1");
}

#[test]
fn sd2_prompts_become_the_recorded_conditionings() {
    check_schedules("tiny-sd2-v");
}

#[test]
fn emphasis_modes_and_clip_skip_give_the_recorded_conditionings() {
    for name in ["tiny-sd1", "tiny-sd2-v"] {
        let model = model(name);
        let cases = read_json(&format!("compat-tests/golden/truth/prompts_{name}.json"));
        let mut checked = 0;
        for (key, want) in recorded(name) {
            let [case, variant] = key.split('/').collect::<Vec<_>>()[..] else {
                continue;
            };
            let mut settings = ConditioningSettings::default();
            if let Some(mode) = variant.strip_prefix("emphasis=") {
                settings.emphasis = Emphasis::from_option(mode);
            } else if let Some(skip) = variant.strip_prefix("clip_skip") {
                settings.clip_skip = skip.parse().unwrap();
            }
            // These were recorded without prompt editing; only such prompts are in the set.
            let parts = conditioner(&model, settings)
                .positive(&[prompt(&cases, case)], PassSteps::first_pass(STEPS), SIZE)
                .unwrap();
            assert_close(first(&parts[0]).context.iter(), &want, &key);
            checked += 1;
        }
        assert!(checked >= 4, "{name}: only {checked} recorded variants");
    }
}

#[test]
fn sdxl_prompts_become_the_recorded_contexts_and_vectors() {
    let model = model("tiny-sdxl");
    let settings = ConditioningSettings {
        size_embedding_width: 32,
        ..ConditioningSettings::default()
    };
    let conditioner = conditioner(&model, settings);
    // The prompts are the same for every model.
    let cases = read_json("compat-tests/golden/truth/prompts_tiny-sd2-v.json");
    let steps = PassSteps::first_pass(STEPS);
    for (key, want) in recorded("tiny-sdxl") {
        let [case, side, what] = key.split('/').collect::<Vec<_>>()[..] else {
            panic!("an unknown key {key}");
        };
        let prompts = [prompt(&cases, case)];
        let conditioning = if side == "negative=True" {
            let negative = conditioner.negative(&prompts, steps, SIZE).unwrap();
            Arc::clone(&negative[0][0].conditioning)
        } else {
            let positive = conditioner.positive(&prompts, steps, SIZE).unwrap();
            Arc::clone(&positive[0][0].schedule[0].conditioning)
        };
        if what == "vector" {
            let vector: &Array1<f32> = conditioning.vector.as_ref().expect("a vector");
            assert_close(vector.iter(), &want, &key);
        } else {
            assert_close(conditioning.context.iter(), &want, &key);
        }
    }
}

#[test]
fn a_cached_prompt_is_the_same_and_still_names_its_embeddings() {
    let model = model("tiny-sd1");
    let cache = ConditioningCache::new(CacheLimits {
        entries: 8,
        bytes: 1 << 20,
    });
    let steps = PassSteps::first_pass(STEPS);
    let prompts = ["a tinyti cube".to_owned()];
    let encode = || {
        let conditioner = conditioner(&model, ConditioningSettings::default())
            .with_cache(&cache, "tiny-sd1".to_owned());
        let positive = conditioner.positive(&prompts, steps, SIZE).unwrap();
        let used: Vec<String> = conditioner
            .used_embeddings()
            .iter()
            .map(|embedding| embedding.name.clone())
            .collect();
        (Arc::clone(&positive[0][0].schedule[0].conditioning), used)
    };
    let (fresh, cached) = (encode(), encode());
    assert!(Arc::ptr_eq(&fresh.0, &cached.0), "the second is the first");
    assert_eq!(fresh.1, ["tinyti"]);
    assert_eq!(cached.1, ["tinyti"]);
}

/// The first stretch of one positive prompt's schedule.
fn encoded_with(
    cache: &ConditioningCache,
    scope: &str,
    settings: &ConditioningSettings,
    prompt: &str,
) -> Arc<Conditioning> {
    let model = model("tiny-sd1");
    let conditioner = conditioner(&model, settings.clone()).with_cache(cache, scope.to_owned());
    let steps = PassSteps::first_pass(STEPS);
    let positive = conditioner.positive(&[prompt.to_owned()], steps, SIZE);
    Arc::clone(&positive.unwrap()[0][0].schedule[0].conditioning)
}

#[test]
fn whatever_changes_an_encoding_is_another_entry_of_the_cache() {
    let cache = ConditioningCache::new(CacheLimits {
        entries: 64,
        bytes: 1 << 26,
    });
    let plain = ConditioningSettings::default();
    let prompt = "a (red:1.2) cube";
    let first = encoded_with(&cache, "one", &plain, prompt);
    let changed = |change: fn(&mut ConditioningSettings)| {
        let mut settings = ConditioningSettings::default();
        change(&mut settings);
        settings
    };
    for settings in [
        changed(|it| it.emphasis = Emphasis::Ignore),
        changed(|it| it.comma_backtrack = 0),
        changed(|it| it.clip_skip = 2),
        changed(|it| it.sdxl_clip_l_skip = true),
        changed(|it| it.crop_px = (8, 0)),
        changed(|it| it.high_aesthetic_score = 7.0),
        changed(|it| it.low_aesthetic_score = 1.0),
        changed(|it| it.size_embedding_width = 128),
    ] {
        let other = encoded_with(&cache, "one", &settings, prompt);
        assert!(!Arc::ptr_eq(&first, &other), "{settings:?}");
    }
    for (scope, text) in [("two", prompt), ("one", "a (red:1.3) cube")] {
        let other = encoded_with(&cache, scope, &plain, text);
        assert!(!Arc::ptr_eq(&first, &other), "{scope}: {text}");
    }
    let again = encoded_with(&cache, "one", &plain, prompt);
    assert!(Arc::ptr_eq(&first, &again));
}

#[test]
fn the_cache_keeps_what_was_used_last_within_its_limits() {
    let plain = ConditioningSettings::default();
    let size = |conditioning: &Conditioning| conditioning.context.len() * size_of::<f32>();
    let one = encoded_with(
        &ConditioningCache::new(CacheLimits {
            entries: 1,
            bytes: 1 << 20,
        }),
        "",
        &plain,
        "a",
    );
    for limits in [
        CacheLimits {
            entries: 2,
            bytes: 1 << 26,
        },
        CacheLimits {
            entries: 64,
            bytes: size(&one) * 5 / 2,
        },
    ] {
        let cache = ConditioningCache::new(limits);
        let encode = |prompt: &str| encoded_with(&cache, "", &plain, prompt);
        let (first, second) = (encode("a"), encode("b"));
        assert!(Arc::ptr_eq(&first, &encode("a")), "{limits:?}");
        encode("c");
        assert!(Arc::ptr_eq(&first, &encode("a")), "{limits:?}");
        assert!(!Arc::ptr_eq(&second, &encode("b")), "{limits:?}");
    }
}
