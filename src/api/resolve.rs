//! What txt2img and img2img share on the way from a request to pipeline parameters.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::dynamic_prompts;
use super::scripts::{check_alwayson, chosen_script};
use super::{ApiError, Body, DynamicPromptsSetting, PictureAccess};
use crate::config::{Options, Settings};
use crate::pipeline::{GenerationParams, PictureLists, PictureSaver, Saving, noise_source};
use crate::scripts::{ScriptCall, Tab};

/// Knows the aliases of checkpoints.
pub trait CheckpointNames: Send + Sync {
    /// Whether `name` is an exact alias of a checkpoint.
    fn is_alias(&self, name: &str) -> bool;
}

/// One row of the styles files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StyleRow {
    pub name: String,
    pub prompt: String,
    pub negative_prompt: String,
    /// A heading between two files, which is no style.
    pub divider: bool,
}

/// Knows the styles.
pub trait StyleBook: Send + Sync {
    /// All rows, headings included, in A1111's order.
    fn styles(&self) -> Vec<StyleRow>;
}

/// No style exists.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoStyles;

impl StyleBook for NoStyles {
    fn styles(&self) -> Vec<StyleRow> {
        Vec::new()
    }
}

/// What the server knows when a request arrives.
pub struct ResolveContext<'a> {
    /// The options at this moment.
    pub options: Options,
    pub checkpoints: &'a dyn CheckpointNames,
    pub styles: &'a dyn StyleBook,
    pub saver: Arc<dyn PictureSaver>,
    pub dynamic_prompts: DynamicPromptsSetting,
    /// Names of the upscalers in the order in which they are listed.
    pub upscalers: Vec<String>,
    /// The noise source `GPU` means the CPU generator (`--use-cpu all`).
    pub noise_on_cpu: bool,
}

/// A request that is ready for its turn.
#[derive(Debug)]
pub struct Resolved {
    /// Pictures are not decoded yet, see [`Resolved::decode_pictures`].
    pub params: GenerationParams,
    /// The selectable script that takes the place of the plain job.
    pub script: Option<ScriptCall>,
    /// The request's fields as the answer echoes them.
    pub body: Body,
    /// Override keys that were left out.
    pub ignored_overrides: Vec<String>,
    /// `init_images`, still as text.
    pub init_images: Vec<Value>,
    /// `mask`, still as text.
    pub mask: Option<String>,
}

impl Resolved {
    /// Decodes the request's pictures; to be called when the job has its turn.
    ///
    /// # Errors
    /// A1111's answer to a picture that cannot be used.
    pub fn decode_pictures(&mut self, access: PictureAccess<'_>) -> Result<(), ApiError> {
        let Some(img2img) = &mut self.params.img2img else {
            return Ok(());
        };
        if let Some(mask) = self.mask.take() {
            img2img.mask = Some(access.picture(&mask, &self.params.options)?);
        }
        for text in std::mem::take(&mut self.init_images) {
            let Some(text) = text.as_str() else {
                return Err(ApiError::invalid_image());
            };
            let picture = access.picture(text, &self.params.options)?;
            img2img.init_images.push(picture);
        }
        Ok(())
    }

    /// Overrides that stay in force after the request, if it asked for that.
    #[must_use]
    pub fn lasting_overrides(&self) -> Option<Map<String, Value>> {
        let restore = self.body.value("override_settings_restore_afterwards");
        if restore == &Value::Bool(true) {
            return None;
        }
        let mut overrides = self.body.object("override_settings")?.clone();
        overrides.retain(|key, _| !self.ignored_overrides.contains(key));
        Some(overrides)
    }
}

/// Largest side of a picture. A1111 has no limit and runs out of memory.
const SIDE_LIMIT_PX: i64 = 16_384;
/// Largest number of steps, batches and pictures of a batch.
const STEP_LIMIT: i64 = 10_000;
const BATCH_LIMIT: i64 = 1_000;

/// What both endpoints read alike.
pub(super) struct CommonPart {
    pub script: Option<ScriptCall>,
    /// Arguments of always-on scripts, by lower-case title.
    pub arguments: Map<String, Value>,
    pub params: GenerationParams,
    pub ignored_overrides: Vec<String>,
}

/// Reads the scripts and the fields that both endpoints have, in the order in which A1111 checks them.
///
/// # Errors
/// A1111's answer to an unknown script or an unusable value.
pub(super) fn read_common(
    tab: Tab,
    body: &mut Body,
    context: &ResolveContext<'_>,
) -> Result<CommonPart, ApiError> {
    let script = chosen_script(tab, body, context)?;
    let arguments = match body.object("alwayson_scripts") {
        Some(entries) => check_alwayson(tab, entries, &context.dynamic_prompts)?,
        None => Map::new(),
    };
    let mut ignored_overrides = Vec::new();
    let mut params = common_params(body, context, &mut ignored_overrides)?;
    dynamic_prompts::set(
        &mut params,
        body,
        context,
        &arguments,
        &mut ignored_overrides,
    )?;
    Ok(CommonPart {
        script,
        arguments,
        params,
        ignored_overrides,
    })
}

/// The fields of a job that both endpoints have. `sampler` and `scheduler` must be set by
/// [`super::choose_sampler`] before.
fn common_params(
    body: &mut Body,
    context: &ResolveContext<'_>,
    ignored: &mut Vec<String>,
) -> Result<GenerationParams, ApiError> {
    let options = overridden_options(body, context, ignored);
    let name = body
        .nonempty_text("sampler_name")
        .or(body.text("sampler_index"))
        .unwrap_or("Euler");
    let choice = super::choose_sampler(name, body.text("scheduler"));
    let styles: Vec<String> = body
        .list("styles")
        .iter()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    let style_texts = style_texts(&styles, context.styles);
    Ok(GenerationParams {
        prompt: required_text(body, "prompt")?,
        negative_prompt: required_text(body, "negative_prompt")?,
        styles,
        style_texts,
        seed: seed(body, "seed"),
        subseed: seed(body, "subseed"),
        subseed_strength: body.float("subseed_strength").unwrap_or(0.0),
        seed_resize_from: (
            body.int("seed_resize_from_h").unwrap_or(0),
            body.int("seed_resize_from_w").unwrap_or(0),
        ),
        sampler: choice.sampler,
        scheduler: choice.scheduler,
        batch_size: count(body, "batch_size", BATCH_LIMIT)?,
        batch_count: count(body, "n_iter", BATCH_LIMIT)?,
        step_count: count(body, "steps", STEP_LIMIT)?,
        cfg_scale: required_float(body, "cfg_scale")?,
        width_px: side(body, "width")?,
        height_px: side(body, "height")?,
        restore_faces: bool_or_option(body, "restore_faces", &options, "face_restoration"),
        tiling: bool_or_option(body, "tiling", &options, "tiling"),
        eta: body.float("eta"),
        denoising_strength: body.float("denoising_strength"),
        s_min_uncond: body.float("s_min_uncond"),
        s_churn: body.float("s_churn"),
        s_tmax: body.float("s_tmax"),
        s_tmin: body.float("s_tmin"),
        s_noise: body.float("s_noise"),
        disable_extra_networks: body.bool("disable_extra_networks"),
        refiner_checkpoint: refiner(body),
        refiner_switch_at: body.float("refiner_switch_at"),
        hires: None,
        img2img: None,
        soft_inpainting: None,
        save_images: body.bool("save_images"),
        makes_grid: body.bool("save_images"),
        send_images: body.bool("send_images"),
        listener: None,
        saving: saving(body, context),
        token_merging_overridden: body
            .object("override_settings")
            .is_some_and(|overrides| overrides.contains_key("token_merging_ratio")),
        noise_generator: noise_source(&options, context.noise_on_cpu),
        noise_on_cpu: context.noise_on_cpu,
        lists: PictureLists::default(),
        dynamic_prompts: None,
        first_entries: Map::new(),
        options: Arc::new(options),
    })
}

/// The folders stand in the options before overrides, as in A1111. img2img alone has init images.
fn saving(body: &Body, context: &ResolveContext<'_>) -> Saving {
    let kind = if body.fields().contains_key("init_images") {
        "img2img"
    } else {
        "txt2img"
    };
    let folder = |key: &str| context.options.text(key).to_owned();
    Saving {
        saver: Arc::clone(&context.saver),
        samples_folder: folder(&format!("outdir_{kind}_samples")),
        grids_folder: folder(&format!("outdir_{kind}_grids")),
        init_images_folder: folder("outdir_init_images"),
    }
}

/// Prompt and negative prompt of every style; an unknown one has none.
fn style_texts(names: &[String], book: &dyn StyleBook) -> Vec<(String, String)> {
    if names.is_empty() {
        return Vec::new();
    }
    let rows = book.styles();
    let texts = |name: &String| {
        rows.iter()
            .find(|row| row.name == *name && !row.divider)
            .map(|row| (row.prompt.clone(), row.negative_prompt.clone()))
            .unwrap_or_default()
    };
    names.iter().map(texts).collect()
}

/// The options of this job. A checkpoint that does not exist changes nothing, as in A1111.
fn overridden_options(
    body: &Body,
    context: &ResolveContext<'_>,
    ignored: &mut Vec<String>,
) -> Options {
    const CHECKPOINT: &str = "sd_model_checkpoint";
    let mut options = context.options.clone();
    let Some(overrides) = body.object("override_settings") else {
        return options;
    };
    let mut overrides = overrides.clone();
    let unknown = overrides.get(CHECKPOINT).is_some_and(|name| {
        !name
            .as_str()
            .is_some_and(|name| context.checkpoints.is_alias(name))
    });
    if unknown {
        overrides.shift_remove(CHECKPOINT);
        ignored.push(CHECKPOINT.to_owned());
    }
    ignored.extend(Settings::apply_overrides(&mut options, &overrides));
    options
}

/// A1111 fails with a TypeError where a number or text that it needs is null.
fn missing(name: &str) -> ApiError {
    ApiError::unexpected("TypeError", format!("'{name}' must not be NoneType"))
}

fn required_text(body: &Body, name: &str) -> Result<String, ApiError> {
    body.text(name)
        .map(str::to_owned)
        .ok_or_else(|| missing(name))
}

fn required_float(body: &Body, name: &str) -> Result<f64, ApiError> {
    body.float(name).ok_or_else(|| missing(name))
}

fn count(body: &Body, name: &str, limit: i64) -> Result<usize, ApiError> {
    let number = body.int(name).ok_or_else(|| missing(name))?;
    if (1..=limit).contains(&number) {
        return Ok(number as usize);
    }
    let text = format!("{name} is {number}, and must be from 1 to {limit}");
    // What A1111 stumbles over first where the number is 0.
    let class = match name {
        "steps" => "ZeroDivisionError",
        _ => "IndexError",
    };
    Err(ApiError::unexpected(class, text))
}

fn side(body: &Body, name: &str) -> Result<usize, ApiError> {
    let number = body.int(name).ok_or_else(|| missing(name))?;
    if (8..=SIDE_LIMIT_PX).contains(&number) {
        return Ok(number as usize);
    }
    let text = format!("{name} is {number}, and must be from 8 to {SIDE_LIMIT_PX}");
    Err(ApiError::unexpected("RuntimeError", text))
}

fn seed(body: &Body, name: &str) -> Option<i64> {
    body.int(name).filter(|seed| *seed != -1)
}

fn bool_or_option(body: &Body, name: &str, options: &Options, key: &str) -> bool {
    match body.value(name) {
        Value::Bool(flag) => *flag,
        _ => options.bool(key),
    }
}

fn refiner(body: &Body) -> Option<String> {
    body.nonempty_text("refiner_checkpoint")
        .filter(|name| !["None", "none"].contains(name))
        .map(str::to_owned)
}
