//! One script's job: what it works with, and how its many generations look like one job from outside.

use std::sync::Arc;

use serde_json::Value;

use image::RgbImage;

use crate::imaging::{GridRows, LegendColours, flatten, image_grid, parse_colour};
use crate::pipeline::{
    Family, GenerateError, GeneratedImage, GenerationParams, GenerationResult, JobControl,
    ModelProvider, Picture, Stop, generate, save_script_grid,
};
use crate::sampling::Latent;

use super::{Arguments, ScriptCall, StyleTexts};

/// What a script works with.
pub struct ScriptJob<'a> {
    /// The request's own parameters.
    pub(super) params: GenerationParams,
    pub(super) call: &'a ScriptCall,
    pub(super) models: &'a dyn ModelProvider,
    pub(super) control: &'a dyn JobControl,
}

impl ScriptJob<'_> {
    pub(super) fn arguments(&self) -> &Arguments {
        &self.call.arguments
    }

    /// Draws seed and subseed now, so that they are the same for everything that follows.
    pub(super) fn fix_seeds(&mut self) {
        for seed in [&mut self.params.seed, &mut self.params.subseed] {
            seed.get_or_insert_with(|| self.control.random_seed());
        }
    }

    /// Tells how many batches the script's generations have together.
    ///
    /// # Errors
    /// When they are more pictures than the server draws for one request.
    pub(super) fn set_job_count(&self, batches: usize) -> Result<(), GenerateError> {
        self.check_pictures(batches.saturating_mul(self.params.batch_size))?;
        let passes = 1 + usize::from(self.params.hires.is_some());
        self.control.set_job_count((batches * passes) as i64);
        Ok(())
    }

    /// Refuses more pictures than the server draws for one request.
    pub(super) fn check_pictures(&self, count: usize) -> Result<(), GenerateError> {
        let limit = self.call.surroundings.limits.pictures;
        within(
            "pictures of a script",
            count as u64,
            limit,
            "--max-pictures",
        )
    }

    /// Refuses more steps than a plain request could ask for.
    pub(super) fn check_steps(&self, count: usize) -> Result<(), GenerateError> {
        within(
            "steps",
            count as u64,
            self.call.surroundings.limits.steps,
            "--max-steps",
        )
    }

    /// Refuses a generation that a plain request could not ask for either.
    fn check_limits(&self, params: &GenerationParams) -> Result<(), GenerateError> {
        let limits = self.call.surroundings.limits;
        let pixels = (params.width_px as u64).saturating_mul(params.height_px as u64);
        within(
            "pixels of a picture",
            pixels,
            limits.pixels,
            "--max-megapixels",
        )?;
        let second_pass = params.hires.as_ref().map_or(0, |it| it.second_pass_steps);
        let steps = params.step_count.max(second_pass) as u64;
        within("steps", steps, limits.steps, "--max-steps")
    }

    pub(super) fn set_job(&self, text: &str) {
        self.control.set_job(text);
    }

    /// Whether the user ended the whole job.
    pub(super) fn interrupted(&self) -> bool {
        self.control.interrupted()
    }

    /// The first init image, put on the background colour where it has alpha.
    pub(super) fn flat_init_image(&self) -> Result<RgbImage, GenerateError> {
        let images = self.params.img2img.as_ref().map(|it| &it.init_images);
        let picture = images
            .and_then(|images| images.first())
            .ok_or_else(|| super::arguments::raised("IndexError", "list index out of range"))?;
        let background = parse_colour(self.params.options.text("img2img_background_color"))
            .unwrap_or(image::Rgb([255; 3]));
        Ok(flatten(picture, background))
    }

    /// One generation among those that [`Self::set_job_count`] counted.
    pub(super) fn generate(
        &self,
        params: &GenerationParams,
    ) -> Result<GenerationResult, GenerateError> {
        self.check_limits(params)?;
        generate(params, self.models, &Counted(self.control))
    }

    /// A generation that is all that the script does.
    pub(super) fn generate_alone(
        &self,
        params: &GenerationParams,
    ) -> Result<GenerationResult, GenerateError> {
        self.check_limits(params)?;
        generate(params, self.models, self.control)
    }

    /// Names and texts of every style.
    pub(super) fn styles(&self) -> &[StyleTexts] {
        &self.call.surroundings.styles
    }

    /// Adds styles to `params` by their names.
    pub(super) fn add_styles<'n>(
        &self,
        params: &mut GenerationParams,
        names: impl IntoIterator<Item = &'n str>,
    ) {
        for name in names {
            let found = self.styles().iter().find(|(known, ..)| known == name);
            let texts = found.map(|(_, prompt, negative)| (prompt.clone(), negative.clone()));
            params.styles.push(name.to_owned());
            params.style_texts.push(texts.unwrap_or_default());
        }
    }

    pub(super) fn legend_colours(&self) -> LegendColours {
        let colour = |key: &str, default: [u8; 3]| {
            parse_colour(self.params.options.text(key)).unwrap_or(image::Rgb(default))
        };
        LegendColours {
            active: colour("grid_text_active_color", [0; 3]),
            inactive: colour("grid_text_inactive_color", [0x99; 3]),
            background: colour("grid_background_color", [255; 3]),
        }
    }
}

fn within(what: &str, asked: u64, limit: u64, flag: &str) -> Result<(), GenerateError> {
    if asked <= limit {
        return Ok(());
    }
    let text = format!("{asked} {what} are more than {limit}; {flag} changes this");
    Err(super::arguments::raised("ValueError", text))
}

/// A1111's way to the next seed.
pub(super) fn add_to_seed(params: &mut GenerationParams, offset: i64) {
    params.seed = params.seed.map(|seed| seed.wrapping_add(offset));
}

/// Puts several pictures in a row before themselves, as the options `return_grid` and `grid_save` say.
pub(super) fn with_row(
    params: &GenerationParams,
    result: &GenerationResult,
    images: &mut Vec<GeneratedImage>,
    infotext: &str,
) -> Result<(), GenerateError> {
    if images.len() < 2 {
        return Ok(());
    }
    let pictures: Vec<Picture> = images.iter().map(|it| (*it.image).clone()).collect();
    let grid = Picture::from(image_grid(&pictures, GridRows::Fixed(1)));
    save_script_grid(params, result, "grid", &grid, infotext)?;
    if params.options.bool("return_grid") {
        images.insert(0, without_text(grid));
    }
    Ok(())
}

/// A picture that carries no infotext, as A1111's grids and joined pictures.
pub(super) fn without_text(image: Picture) -> GeneratedImage {
    GeneratedImage {
        image: Arc::new(image),
        infotext: None,
    }
}

/// Makes the answer of a script that repeats img2img: pictures of the whole run with the infotext and
/// the seed of its first generation, everything else from its `last`.
pub(super) fn repeated(
    mut last: GenerationResult,
    images: Vec<GeneratedImage>,
    first_seed: i64,
    first_infotext: &str,
) -> GenerationResult {
    last.infotexts = vec![first_infotext.to_owned(); images.len().max(1)];
    last.images = images;
    last.seed = first_seed;
    last.subseed = -1;
    last.index_of_first_image = 0;
    last
}

/// The first infotext of a result.
pub(super) fn infotext_of(result: &GenerationResult) -> String {
    result.infotexts.first().cloned().unwrap_or_default()
}

/// A JSON text.
pub(super) fn text(value: impl Into<String>) -> Value {
    Value::String(value.into())
}

/// A generation within a script: its own number of batches is not the job's.
struct Counted<'a>(&'a dyn JobControl);

impl JobControl for Counted<'_> {
    fn interrupted(&self) -> bool {
        self.0.interrupted()
    }
    fn skipped(&self) -> bool {
        self.0.skipped()
    }
    fn clear_skip(&self) {
        self.0.clear_skip();
    }
    fn set_job_count(&self, _count: i64) {}
    fn set_job(&self, job: &str) {
        self.0.set_job(job);
    }
    fn next_job(&self) {
        self.0.next_job();
    }
    fn set_sampling_steps(&self, step_count: usize) {
        self.0.set_sampling_steps(step_count);
    }
    fn step(&self, index: usize, preview: &Latent, family: Family) {
        self.0.step(index, preview, family);
    }
    fn stop_with(&self, stop: Option<Stop>) {
        self.0.stop_with(stop);
    }
    fn set_text(&self, text: Option<&str>) {
        self.0.set_text(text);
    }
    fn random_seed(&self) -> i64 {
        self.0.random_seed()
    }
    fn timestamp(&self) -> String {
        self.0.timestamp()
    }
}
