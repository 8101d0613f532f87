//! `img2img alternative test`: finds the noise that leads to the init image under one prompt and draws
//! from it under another.

use serde_json::{Map, json};

use crate::pipeline::{GenerateError, GenerationResult, NoiseFinder};

use super::job::{ScriptJob, text};
use super::{Script, Tab};

pub(super) struct Img2ImgAlternative;

impl Script for Img2ImgAlternative {
    fn title(&self) -> &'static str {
        "img2img alternative test"
    }

    fn serves(&self, tab: Tab) -> bool {
        tab == Tab::Img2Img
    }

    fn run(&self, mut job: ScriptJob<'_>) -> Result<GenerationResult, GenerateError> {
        let arguments = job.arguments();
        let (euler, same_prompt) = (arguments.bool(1), arguments.bool(2));
        let (same_steps, full_strength) = (arguments.bool(5), arguments.bool(7));
        let finder = NoiseFinder {
            prompt: arguments.text(3),
            negative_prompt: arguments.text(4),
            step_count: arguments.int(6)?.clamp(1, 10_000) as usize,
            cfg_scale: arguments.float(8)?,
            randomness: arguments.float(9)?.clamp(0.0, 1.0),
            sigma_adjustment: arguments.bool(10),
        };
        let params = &mut job.params;
        if euler {
            "Euler".clone_into(&mut params.sampler);
        }
        if same_prompt {
            params.prompt.clone_from(&finder.prompt);
            params.negative_prompt.clone_from(&finder.negative_prompt);
        }
        if same_steps {
            params.step_count = finder.step_count;
        }
        if full_strength {
            params.denoising_strength = Some(1.0);
        }
        params.first_entries = Map::from_iter([
            ("Decode prompt".to_owned(), text(finder.prompt.clone())),
            (
                "Decode negative prompt".to_owned(),
                text(finder.negative_prompt.clone()),
            ),
            ("Decode CFG scale".to_owned(), json!(finder.cfg_scale)),
            ("Decode steps".to_owned(), json!(finder.step_count)),
            ("Randomness".to_owned(), json!(finder.randomness)),
            (
                "Sigma Adjustment".to_owned(),
                json!(finder.sigma_adjustment),
            ),
        ]);
        job.check_steps(finder.step_count)?;
        if let Some(img2img) = &mut job.params.img2img {
            img2img.noise_finder = Some(finder);
        }
        job.generate_alone(&job.params)
    }
}
