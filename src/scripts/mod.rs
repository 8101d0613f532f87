//! The selectable scripts of txt2img and img2img: X/Y/Z plot, prompt matrix, loopback and the others.
//! May use the pipeline and what is below it.
//!
//! Follows AUTOMATIC1111 v1.10.1. A script is a loop over the pipeline with changed parameters; it is
//! found by its title in [`SCRIPTS`]. Left out: `Custom code`, which is Python.

mod arguments;
mod canvas;
mod img2img_alternative;
mod job;
mod loopback;
mod outpainting_mk2;
mod poor_mans_outpainting;
mod prompt_matrix;
mod prompts_from_file;
mod sd_upscale;
mod shell_words;
mod xyz;

use std::fmt;

use crate::pipeline::{
    GenerateError, GenerationParams, GenerationResult, JobControl, ModelProvider,
};

pub use arguments::Arguments;
pub use xyz::axis_labels;

use job::ScriptJob;

/// The page of A1111's that a request stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tab {
    Txt2Img,
    Img2Img,
}

/// One selectable script.
pub trait Script: Sync {
    /// A1111's title, which requests name in any letter case.
    fn title(&self) -> &'static str;

    /// Whether the script is one of this page.
    fn serves(&self, tab: Tab) -> bool;

    /// Whether pictures of its generations are among those of its answer, as they are.
    fn answers_generations(&self, _arguments: &Arguments) -> bool {
        true
    }

    /// Carries out the whole job.
    ///
    /// # Errors
    /// What the pipeline answers, or that an argument is of no use.
    fn run(&self, job: ScriptJob<'_>) -> Result<GenerationResult, GenerateError>;
}

impl fmt::Debug for dyn Script {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.title())
    }
}

/// Every script, in the order in which A1111 lists them.
pub static SCRIPTS: [&dyn Script; 8] = [
    &img2img_alternative::Img2ImgAlternative,
    &loopback::Loopback,
    &outpainting_mk2::OutpaintingMk2,
    &poor_mans_outpainting::PoorMansOutpainting,
    &prompt_matrix::PromptMatrix,
    &prompts_from_file::PromptsFromFile,
    &sd_upscale::SdUpscale,
    &xyz::XyzPlot,
];

/// The script of this title on this page.
#[must_use]
pub fn find_script(title: &str, tab: Tab) -> Option<&'static dyn Script> {
    let title = title.to_lowercase();
    SCRIPTS
        .iter()
        .copied()
        .find(|script| script.serves(tab) && script.title().to_lowercase() == title)
}

/// Name, prompt and negative prompt of a style.
pub type StyleTexts = (String, String, String);

/// What one generation of a script, and all of them together, may ask for.
#[derive(Debug, Clone, Copy)]
pub struct ScriptLimits {
    /// Width times height.
    pub pixels: u64,
    pub steps: u64,
    pub pictures: u64,
}

impl Default for ScriptLimits {
    fn default() -> Self {
        Self {
            pixels: u64::MAX,
            steps: u64::MAX,
            pictures: u64::MAX,
        }
    }
}

/// What scripts look up by name besides the models, and how far they may go.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    pub styles: Vec<StyleTexts>,
    /// Names of the upscalers in the order in which the server lists them.
    pub upscalers: Vec<String>,
    pub limits: ScriptLimits,
}

/// A script that a request asks for.
#[derive(Debug, Clone)]
pub struct ScriptCall {
    pub script: &'static dyn Script,
    pub tab: Tab,
    pub arguments: Arguments,
    pub surroundings: Surroundings,
}

/// Carries out a script in the place of the plain job that `params` describe.
///
/// # Errors
/// See [`Script::run`].
pub fn run_script(
    call: &ScriptCall,
    params: &GenerationParams,
    models: &dyn ModelProvider,
    control: &dyn JobControl,
) -> Result<GenerationResult, GenerateError> {
    call.script.run(ScriptJob {
        params: params.clone(),
        call,
        models,
        control,
    })
}
