//! `Loopback`: img2img over its own result, with a denoising strength that changes on the way.

use std::f64::consts::FRAC_PI_2;

use serde_json::{Map, json};

use crate::pipeline::{GenerateError, GeneratedImage, GenerationResult};

use super::arguments::raised;
use super::job::{ScriptJob, add_to_seed, infotext_of, repeated, text, with_row};
use super::{Script, Tab};

pub(super) struct Loopback;

/// Loops that one request may ask for; A1111's page stops at 32.
const MAX_LOOPS: i64 = 1000;

impl Script for Loopback {
    fn title(&self) -> &'static str {
        "Loopback"
    }

    fn serves(&self, tab: Tab) -> bool {
        tab == Tab::Img2Img
    }

    fn run(&self, mut job: ScriptJob<'_>) -> Result<GenerationResult, GenerateError> {
        let arguments = job.arguments();
        let loops = arguments.int(0)?.clamp(1, MAX_LOOPS) as usize;
        let final_strength = arguments.float(1)?;
        let curve = Curve::from_name(&arguments.text(2))?;
        if !matches!(arguments.text(3).as_str(), "None" | "") {
            let text =
                "Loopback cannot append an interrogated prompt: set append_interrogation to None";
            return Err(GenerateError::Unsupported(text.to_owned()));
        }
        job.fix_seeds();
        let chains = job.params.batch_count;
        job.set_job_count(loops * chains)?;
        let first_strength = job.params.denoising_strength.unwrap_or(0.75);
        let mut params = job.params.clone();
        params.batch_size = 1;
        params.batch_count = 1;
        params.makes_grid = false;
        params.first_entries = Map::from_iter([
            ("Final denoising strength".to_owned(), json!(final_strength)),
            ("Denoising curve".to_owned(), text(curve.name())),
        ]);
        if let Some(img2img) = &mut params.img2img {
            img2img.color_source = img2img.init_images.first().cloned();
            img2img.init_images.truncate(1);
        }
        let original = params.img2img.clone();
        let mut first: Option<(i64, String)> = None;
        let mut last = None;
        let mut images: Vec<GeneratedImage> = Vec::new();
        'chains: for chain in 0..chains {
            params.img2img.clone_from(&original);
            params.denoising_strength = Some(first_strength);
            let mut end_of_chain = None;
            for index in 0..loops {
                job.set_job(&format!(
                    "Iteration {}/{loops}, batch {}/{chains}",
                    index + 1,
                    chain + 1
                ));
                let mut result = job.generate(&params)?;
                let (seed, infotext) = (result.seed, infotext_of(&result));
                first.get_or_insert((seed, infotext));
                let picture = (!result.images.is_empty()).then(|| result.images.remove(0));
                last = Some(result);
                if job.interrupted() {
                    break 'chains;
                }
                add_to_seed(&mut params, 1);
                params.denoising_strength =
                    Some(curve.strength(first_strength, final_strength, index + 1, loops));
                let Some(picture) = picture else { break };
                if let Some(img2img) = &mut params.img2img {
                    img2img.init_images = vec![(*picture.image).clone()];
                    img2img.inpainting_fill = 1;
                }
                if chains == 1 {
                    images.push(picture);
                } else {
                    end_of_chain = Some(picture);
                }
                if job.control.skipped() {
                    break;
                }
            }
            images.extend(end_of_chain);
        }
        let Some(mut last) = last else {
            return job.generate_alone(&params);
        };
        last.denoising_strength = params.denoising_strength;
        let (seed, infotext) = first.unwrap_or_default();
        with_row(&params, &last, &mut images, &infotext)?;
        Ok(repeated(last, images, seed, &infotext))
    }
}

/// How the strength goes from the first to the final one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Curve {
    Aggressive,
    Linear,
    Lazy,
}

impl Curve {
    fn from_name(name: &str) -> Result<Self, GenerateError> {
        match name {
            "Aggressive" => Ok(Self::Aggressive),
            "Linear" => Ok(Self::Linear),
            "Lazy" => Ok(Self::Lazy),
            other => Err(raised(
                "ValueError",
                format!("Unknown denoising curve {other}"),
            )),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Aggressive => "Aggressive",
            Self::Linear => "Linear",
            Self::Lazy => "Lazy",
        }
    }

    /// The strength behind `done` of `loops` iterations.
    fn strength(self, first: f64, last: f64, done: usize, loops: usize) -> f64 {
        if loops == 1 {
            return first;
        }
        let progress = done as f64 / (loops - 1) as f64;
        let share = match self {
            Self::Aggressive => (progress * FRAC_PI_2).sin(),
            Self::Linear => progress,
            Self::Lazy => 1.0 - (progress * FRAC_PI_2).cos(),
        };
        first + (last - first) * share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strengths_go_from_the_first_to_the_final_one() {
        for curve in [Curve::Aggressive, Curve::Linear, Curve::Lazy] {
            let last = curve.strength(0.8, 0.2, 3, 4);
            assert!((last - 0.2).abs() < 1e-12, "{curve:?}: {last}");
            assert_eq!(curve.strength(0.8, 0.2, 1, 1), 0.8);
        }
        assert!(Curve::Aggressive.strength(0.0, 1.0, 1, 3) > 0.7);
        assert!(Curve::Lazy.strength(0.0, 1.0, 1, 3) < 0.3);
    }
}
