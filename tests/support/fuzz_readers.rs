//! What the fuzz targets feed: every reader of text and files that strangers write. The mutation tests
//! and the targets of `fuzz/` share these, so that both try the same code.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use ancestral::api::{
    self, ApiError, CheckpointNames, DynamicPromptsSetting, ExtrasRequest, NoStyles, PictureAccess,
    PictureFetcher, ResolveContext, check_limits, read_body,
};
use ancestral::catalogue::{self, TensorFile, TorchFile, read_embedding};
use ancestral::conditioning::{EmbeddingIndex, Emphasis, Tokenizer, split_chunks};
use ancestral::config::{Config, Options, RequestLimits, Settings};
use ancestral::imaging::{decode_base64_within, decode_within};
use ancestral::infotext::{self, KnownStyle, ParseSettings, StyleHandling};
use ancestral::pipeline::NoSaver;
use ancestral::prompt::{
    self, PassSteps, PromptNetworks, WildcardMap, expand_all, expand_random, expand_schedule,
    wildcards_in_text,
};

/// Pixels of the largest picture that a target unpacks: a fuzzer looks for faults, not for patience.
const MAX_PIXELS: u64 = 1 << 16;

/// The prompt language, from comments to tokens; also styles files and both wildcard extensions.
pub(crate) fn prompt(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (text, networks) = prompt::extract_extra_networks(&prompt::strip_comments(&text));
    let mut wanted = PromptNetworks::NONE;
    for network in &networks {
        let _ = wanted.add(network);
    }
    for part in prompt::split_composition(&text) {
        for steps in [PassSteps::first_pass(20), PassSteps::hires_pass(20, 7)] {
            for piece in expand_schedule(&part.text, steps).iter().take(8) {
                for emphasis in [Emphasis::Original, Emphasis::None] {
                    let embeddings = EmbeddingIndex::default();
                    let _ = split_chunks(&piece.text, Tokenizer::ClipL, emphasis, 20, &embeddings);
                }
            }
        }
    }
    let wildcards: WildcardMap = BTreeMap::from([
        (
            "color".to_owned(),
            wildcards_in_text("red\n# no\n{blue|__deep__}"),
        ),
        ("deep".to_owned(), wildcards_in_text(&text)),
    ]);
    let _ = expand_random(&text, &[0, 1], &wildcards);
    let _ = expand_all(&text, 20, 1, &wildcards);
    let lines = |_: &str| Some(vec!["red".to_owned(), "blue".to_owned()]);
    let _ = prompt::replace_simple_wildcards(&text, 1, lines);
    if let Ok(styles) = prompt::parse_styles_csv(&text) {
        let texts = styles.iter().map(|style| style.prompt.as_str());
        let _ = prompt::apply_styles("a", texts);
    }
}

/// Generation parameters pasted from anywhere, and what a request makes of them.
pub(crate) fn infotext(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let styles = [KnownStyle {
        name: "Ink",
        prompt: "{prompt}, ink",
        negative_prompt: "photo",
    }];
    let settings = ParseSettings {
        styles: &styles,
        style_handling: StyleHandling::Apply,
        ..ParseSettings::default()
    };
    let fields = infotext::parse(&text, &settings);
    let _ = infotext::txt2img_fields(&fields);
    let _ = infotext::img2img_fields(&fields);
    for value in fields.values() {
        let _ = infotext::unquote(&infotext::quote(value));
    }
}

/// A picture of a request, as bytes and as base64.
pub(crate) fn picture(data: &[u8]) {
    let _ = decode_within(data, MAX_PIXELS);
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = decode_base64_within(text, MAX_PIXELS);
    }
}

/// The body of every endpoint that takes one with fields, resolved as far as a job's place in the queue.
pub(crate) fn request(data: &[u8]) {
    let access = PictureAccess {
        fetcher: &Offline,
        max_pixels: MAX_PIXELS,
    };
    let options = SETTINGS.snapshot();
    if let Ok(body) = read_body(None, data, api::TXT2IMG) {
        let _ = api::resolve_txt2img(body, &context()).map(|mut resolved| {
            api::set_script_limits(&mut resolved, &LIMITS);
            check_limits(&resolved.params, &LIMITS)
        });
    }
    if let Ok(body) = read_body(None, data, api::IMG2IMG) {
        let _ = api::resolve_img2img(body, &context()).map(|mut resolved| {
            let _ = resolved.decode_pictures(access);
            check_limits(&resolved.params, &LIMITS)
        });
    }
    for (kind, schema) in [
        (ExtrasRequest::Single, api::EXTRAS_SINGLE),
        (ExtrasRequest::Batch, api::EXTRAS_BATCH),
    ] {
        if let Ok(body) = read_body(None, data, schema) {
            let _ = api::resolve_extras(kind, &body, &options, access);
        }
    }
    if let Ok(body) = read_body(None, data, api::PNG_INFO) {
        let _ = api::png_info_answer(&body, &options, &NoStyles, access);
    }
    if let Ok(value) = api::read_json(None, data)
        && let Some(changes) = value.as_object()
    {
        let _ = SETTINGS.change_in_memory(changes);
    }
}

/// The table of contents of a `.safetensors` file, its tensors, and the test of what it is.
pub(crate) fn safetensors(path: &Path) {
    if let Ok(file) = TensorFile::open_safetensors(path) {
        for (name, _) in file.iter() {
            let _ = file.read_f32(name);
        }
        let _ = catalogue::detect(&file);
    }
}

/// What torch saved, in both of its formats.
pub(crate) fn torch_pickle(path: &Path) {
    if let Ok(file) = TorchFile::open(path) {
        let embedding = file.root().get("string_to_param");
        let _ = embedding.map(|item| item.tensor_table().is_ok());
        if let Ok(table) = file.weights().tensor_table() {
            for (name, _) in table.iter() {
                let _ = table.read_f32(name);
            }
        }
    }
}

/// A picture that carries a textual inversion.
pub(crate) fn embedding_picture(path: &Path) {
    let _ = read_embedding(path);
}

static SETTINGS: LazyLock<Settings> = LazyLock::new(Settings::in_memory);
static LIMITS: LazyLock<RequestLimits> = LazyLock::new(|| {
    let config = Config::from_arguments(&[]).expect("no flag is wrong");
    config.limits
});

fn context() -> ResolveContext<'static> {
    ResolveContext {
        options: SETTINGS.snapshot(),
        checkpoints: &NoCheckpoint,
        styles: &NoStyles,
        saver: Arc::new(NoSaver),
        upscalers: ["None", "Lanczos", "Nearest"].map(str::to_owned).to_vec(),
        dynamic_prompts: DynamicPromptsSetting::default(),
        noise_on_cpu: true,
    }
}

struct NoCheckpoint;

impl CheckpointNames for NoCheckpoint {
    fn is_alias(&self, name: &str) -> bool {
        name.starts_with('m')
    }
}

struct Offline;

impl PictureFetcher for Offline {
    fn fetch(&self, _url: &str, _options: &Options) -> Result<Vec<u8>, ApiError> {
        Err(ApiError::invalid_image())
    }
}
