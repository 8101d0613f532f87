//! [`GenerationParams`]: one request with every default decided and nothing left to check.

use std::sync::Arc;

/// A decoded picture in 8-bit RGB or RGBA.
pub type Picture = image::DynamicImage;

pub use crate::rng::NoiseGenerator;

pub use crate::conditioning::Emphasis;

pub use super::job_text::InfotextDraft;

/// Everything one txt2img or img2img job needs. Field names follow the domain; the wire names are
/// in `api`.
#[derive(Debug, Clone)]
pub struct GenerationParams {
    pub prompt: String,
    pub negative_prompt: String,
    /// Style names as sent; their texts are in `style_texts`, in the same order.
    pub styles: Vec<String>,
    /// `(prompt, negative prompt)` of every style that exists; unknown ones are empty.
    pub style_texts: Vec<(String, String)>,
    /// `None`: random.
    pub seed: Option<i64>,
    pub subseed: Option<i64>,
    pub subseed_strength: f64,
    /// `(height, width)` in pixels; in use when both are above 0.
    pub seed_resize_from: (i64, i64),
    /// Canonical sampler name, one of the table in `sampling`.
    pub sampler: String,
    /// Canonical scheduler label, or `Automatic`.
    pub scheduler: String,
    pub batch_size: usize,
    pub batch_count: usize,
    pub step_count: usize,
    pub cfg_scale: f64,
    pub width_px: usize,
    pub height_px: usize,
    pub restore_faces: bool,
    pub tiling: bool,
    pub eta: Option<f64>,
    /// As sent: null stays `None`, img2img defaults to 0.75.
    pub denoising_strength: Option<f64>,
    pub s_min_uncond: Option<f64>,
    pub s_churn: Option<f64>,
    pub s_tmax: Option<f64>,
    pub s_tmin: Option<f64>,
    pub s_noise: Option<f64>,
    pub disable_extra_networks: bool,
    pub refiner_checkpoint: Option<String>,
    pub refiner_switch_at: Option<f64>,
    pub hires: Option<HiresParams>,
    pub img2img: Option<Img2ImgParams>,
    pub soft_inpainting: Option<SoftInpaintingParams>,
    /// Whether files are saved (`save_images`).
    pub save_images: bool,
    /// Whether a grid of the job's pictures may be made.
    pub makes_grid: bool,
    pub send_images: bool,
    /// Told of the job's pictures while it goes on.
    pub listener: Option<Arc<dyn super::PictureListener>>,
    /// Where pictures are written, if they are.
    pub saving: super::Saving,
    /// Where the noise comes from.
    pub noise_generator: NoiseGenerator,
    /// Whether the request's own `override_settings` name `token_merging_ratio`.
    pub token_merging_overridden: bool,
    /// The noise source `GPU` means the CPU generator (`--use-cpu all`).
    pub noise_on_cpu: bool,
    /// Prompts and seeds picture by picture, where a script sets them.
    pub lists: PictureLists,
    /// How templates in the prompts are expanded; `None`: not at all.
    pub dynamic_prompts: Option<super::DynamicPrompts>,
    /// Infotext entries that stand before all others of the job, as a script sets them.
    pub first_entries: serde_json::Map<String, serde_json::Value>,
    /// Every option of A1111's settings as it stands for this job, overrides applied.
    pub options: Arc<crate::config::Options>,
}

impl GenerationParams {
    /// Changes one option of this job, as `override_settings` does.
    pub fn override_option(&mut self, key: &str, value: serde_json::Value) {
        Arc::make_mut(&mut self.options).set(key, value);
        if key == "randn_source" {
            self.noise_generator = noise_source(&self.options, self.noise_on_cpu);
        }
        if key == "token_merging_ratio" {
            self.token_merging_overridden = true;
        }
    }
}

/// The noise source that the option `randn_source` names.
#[must_use]
pub fn noise_source(options: &crate::config::Options, noise_on_cpu: bool) -> NoiseGenerator {
    match options.text("randn_source") {
        "CPU" => NoiseGenerator::Cpu,
        "GPU" if noise_on_cpu => NoiseGenerator::Cpu,
        _ => NoiseGenerator::Nv,
    }
}

/// What a script decides picture by picture. An empty list leaves the job's own value in force.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PictureLists {
    pub prompts: Vec<String>,
    pub negative_prompts: Vec<String>,
    /// The second pass's.
    pub hires_prompts: Vec<String>,
    pub hires_negative_prompts: Vec<String>,
    pub seeds: Vec<i64>,
    pub subseeds: Vec<i64>,
    /// Styles are merged into the prompts already and comments are cut.
    pub finished: bool,
}

/// The second pass of txt2img.
#[derive(Debug, Clone)]
pub struct HiresParams {
    /// Legacy `firstphase_width`, `firstphase_height`.
    pub first_phase: (usize, usize),
    pub scale: f64,
    /// `None`: `Latent`.
    pub upscaler: Option<String>,
    pub second_pass_steps: usize,
    pub resize_x: usize,
    pub resize_y: usize,
    pub checkpoint: Option<String>,
    pub sampler: Option<String>,
    pub scheduler: Option<String>,
    pub prompt: String,
    pub negative_prompt: String,
}

/// What img2img adds.
#[derive(Debug, Clone)]
pub struct Img2ImgParams {
    pub init_images: Vec<Picture>,
    /// 0 stretch, 1 crop, 2 fill, 3 latent.
    pub resize_mode: i64,
    pub image_cfg_scale: Option<f64>,
    pub mask: Option<Picture>,
    /// What is repainted, where that is not the blurred mask; of the generation's size.
    pub latent_mask: Option<Picture>,
    pub mask_blur_x: i64,
    pub mask_blur_y: i64,
    pub mask_round: bool,
    /// 0 fill, 1 original, 2 latent noise, 3 latent nothing.
    pub inpainting_fill: i64,
    pub only_masked: bool,
    pub only_masked_padding: i64,
    pub invert_mask: bool,
    pub initial_noise_multiplier: Option<f64>,
    /// The start noise is found from the init image.
    pub noise_finder: Option<super::NoiseFinder>,
    /// The picture whose colours results are brought back to (`img2img_color_correction`), where it is
    /// not the init image.
    pub color_source: Option<Picture>,
}

/// Arguments of the built-in script Soft Inpainting, as sent: the infotext shows `1` and `1.0` as
/// they came. In order: schedule bias, preservation strength, transition contrast boost, mask
/// influence, difference threshold, difference contrast.
#[derive(Debug, Clone, PartialEq)]
pub struct SoftInpaintingParams {
    pub args: [serde_json::Number; 6],
}

impl SoftInpaintingParams {
    /// Argument `index` as a number; 0 beyond the last.
    #[must_use]
    pub fn number(&self, index: usize) -> f64 {
        self.args
            .get(index)
            .and_then(serde_json::Number::as_f64)
            .unwrap_or(0.0)
    }
}

/// One finished picture.
#[derive(Debug, Clone)]
pub struct GeneratedImage {
    /// Shared with whoever was told of it ([`super::PictureListener`]).
    pub image: Arc<Picture>,
    /// The `parameters` text; `None` for mask pictures, which carry no text.
    pub infotext: Option<String>,
}

/// The outcome of one job, from which `api` writes the answer and `info`.
#[derive(Debug, Clone)]
pub struct GenerationResult {
    pub images: Vec<GeneratedImage>,
    pub all_prompts: Vec<String>,
    pub all_negative_prompts: Vec<String>,
    pub all_seeds: Vec<i64>,
    pub all_subseeds: Vec<i64>,
    /// The job's seed and subseed as `info` shows them; scripts leave a subseed of -1.
    pub seed: i64,
    pub subseed: i64,
    pub subseed_strength: f64,
    pub width_px: usize,
    pub height_px: usize,
    pub sampler: String,
    pub cfg_scale: f64,
    pub step_count: usize,
    pub batch_size: usize,
    pub restore_faces: bool,
    pub face_restoration_model: Option<String>,
    pub model_name: String,
    pub model_short_hash: String,
    pub vae_file: Option<(String, String)>,
    /// `(width, height)` as sent.
    pub seed_resize_from: (i64, i64),
    pub denoising_strength: Option<f64>,
    /// In insertion order; `Null` values are kept.
    pub extra_generation_params: serde_json::Map<String, serde_json::Value>,
    pub index_of_first_image: usize,
    pub infotexts: Vec<String>,
    pub styles: Vec<String>,
    /// `YYYYMMDDHHMMSS`, local time of the job's begin.
    pub job_timestamp: String,
    pub clip_skip: i64,
    pub is_using_inpainting_conditioning: bool,
    pub version: String,
    /// The infotext of the job's first picture, for pictures that are made of several.
    pub first_text: InfotextDraft,
    /// Warnings for the log or the answer's comments.
    pub comments: Vec<String>,
}
