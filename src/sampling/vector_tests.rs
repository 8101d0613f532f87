//! Samplers against the original functions over synthetic models
//! (`tests/golden/samplers_vectors.json`), and properties of every sampler.
//!
//! The synthetic sigma model is `0.8 tanh(x / sqrt(1 + sigma²)) + 0.05`, the timestep model
//! `0.9 tanh(x) (0.2 + 0.8 t / 999) + 0.1 sin(0.01 t)` with half of itself as unconditional.

use std::ops::ControlFlow;

use ndarray::{Axis, s};
use serde_json::Value;

use super::golden_tests::{floats, read_json};
use super::samplers::{SamplerKind, TimestepGrid};
use super::*;
use crate::rng::{BrownianNoise, Generator, ImageRng, ImageRngParams, NoiseGenerator, SeedResize};

const SHAPE: (usize, usize, usize) = (4, 8, 8);

/// The synthetic models, with a record of where they were asked.
struct Synthetic {
    is_timestep: bool,
    asked: Vec<f32>,
    unconditional: Option<Latent>,
}

impl Synthetic {
    fn new(is_timestep: bool) -> Self {
        Self {
            is_timestep,
            asked: Vec::new(),
            unconditional: None,
        }
    }
}

impl Denoiser for Synthetic {
    fn denoise(&mut self, x: &Latent, sigma: f32) -> Result<Latent, SamplingError> {
        self.asked.push(sigma);
        if self.is_timestep {
            let eps = x.mapv(|x| {
                0.9 * x.tanh() * (0.2 + 0.8 * sigma / 999.0) + 0.1 * (0.01 * sigma).sin()
            });
            self.unconditional = Some(&eps * 0.5);
            Ok(eps)
        } else {
            let scale = (1.0 + sigma * sigma).sqrt();
            Ok(x.mapv(|x| 0.8 * (x / scale).tanh() + 0.05))
        }
    }

    fn unconditional(&self) -> Option<&Latent> {
        self.unconditional.as_ref()
    }
}

/// Counts the draws of an [`ImageRng`].
struct Counted {
    rng: ImageRng,
    draws: usize,
}

impl NoiseSource for Counted {
    fn next(&mut self) -> Latent {
        self.draws += 1;
        self.rng.next()
    }
}

fn image_rng(seeds: &[i64], eta_noise_seed_delta: i64) -> ImageRng {
    ImageRng::new(ImageRngParams {
        generator: NoiseGenerator::Nv,
        shape: SHAPE,
        seeds: seeds.to_vec(),
        subseeds: vec![0; seeds.len()],
        subseed_strength: 0.0,
        seed_resize: SeedResize::default(),
        eta_noise_seed_delta,
    })
}

/// One walk of a sampler over a synthetic model.
struct Trial<'a> {
    sampler: &'a Sampler,
    seeds: &'a [i64],
    ensd: i64,
    options: SolverOptions,
    /// Sigmas of a k-diffusion sampler.
    sigmas: &'a [f32],
    /// Timesteps of a timestep sampler.
    timesteps: &'a [usize],
    /// `(init, signal, noise)` of an img2img start.
    img2img: Option<(Latent, f32, f32)>,
}

/// `(x, where the model was asked, draws)`.
fn walk(trial: &Trial<'_>) -> (Latent, Vec<f32>, usize) {
    let mut noise = Counted {
        rng: image_rng(trial.seeds, trial.ensd),
        draws: 0,
    };
    let start = noise.rng.first();
    let is_timestep = matches!(trial.sampler.kind, SamplerKind::Timestep(_));
    let mut denoiser = Synthetic::new(is_timestep);
    let positive = trial.sigmas.iter().copied().filter(|&sigma| sigma > 0.0);
    let low = positive.clone().fold(f32::INFINITY, f32::min);
    let high = positive.fold(0.0, f32::max);
    let mut brownian = trial
        .sampler
        .brownian
        .then(|| BrownianNoise::new(NoiseGenerator::Nv, SHAPE, low, high, trial.seeds));
    let mut on_step = |_: Step<'_>| ControlFlow::Continue(());
    let mut walk = Walk {
        denoiser: &mut denoiser,
        noise: &mut noise,
        brownian: brownian.as_mut().map(|b| b as &mut dyn BrownianSource),
        on_step: &mut on_step,
        options: trial.options.clone(),
    };
    let alphas_cumprod = scaled_linear_alphas_cumprod(0.00085, 0.012, 1000);
    let x = match trial.sampler.kind {
        SamplerKind::Sigma(walker) | SamplerKind::Lcm(walker) => {
            walker(&mut walk, start * trial.sigmas[0], trial.sigmas)
        }
        SamplerKind::Timestep(walker) => {
            let grid = TimestepGrid {
                timesteps: trial.timesteps,
                alphas_cumprod: &alphas_cumprod,
            };
            let x = match &trial.img2img {
                Some((init, signal, noise)) => init * *signal + start * *noise,
                None => start,
            };
            walker(&mut walk, x, &grid)
        }
    };
    (x.unwrap(), denoiser.asked, noise.draws)
}

fn sigma_options(case: &Value, step_count: usize) -> SolverOptions {
    let table = SigmaTable::new(
        &scaled_linear_alphas_cumprod(0.00085, 0.012, 1000),
        AlphaOptions::default(),
        false,
    );
    let mut options = SolverOptions {
        eta: case["eta"].as_f64().unwrap(),
        call_count: step_count,
        sigma_range: (table.sigma_min(), table.sigma_max()),
        ..SolverOptions::default()
    };
    for (name, value) in case["params"].as_object().unwrap() {
        let value = value.as_f64().unwrap();
        match name.as_str() {
            "s_churn" => options.s_churn = value,
            "s_tmin" => options.s_tmin = value,
            "s_tmax" => options.s_tmax = value,
            "s_noise" => options.s_noise = value,
            other => panic!("unknown parameter {other}"),
        }
    }
    options
}

fn assert_case(
    case: &Value,
    x: &Latent,
    asked: &[f32],
    asked_key: &str,
    draws: usize,
    tolerance: f32,
) {
    let name = format!("{} {}", case["sampler"], case["params"]);
    let want_asked = floats(&case[asked_key]);
    assert_eq!(asked.len(), want_asked.len(), "{name}: model calls");
    for (got, want) in asked.iter().zip(&want_asked) {
        assert!(
            (got - want).abs() <= 1e-5 * want.abs().max(1.0),
            "{name}: asked at {got}, not {want}"
        );
    }
    assert_eq!(
        draws as u64,
        case["noise_draws"].as_u64().unwrap(),
        "{name}: draws"
    );
    for (index, (got, want)) in x.iter().zip(floats(&case["x"])).enumerate() {
        assert!(
            (got - want).abs() <= tolerance,
            "{name}: x[{index}] is {got}, not {want}"
        );
    }
}

#[test]
fn sigma_samplers_meet_the_original_functions() {
    let vectors = read_json("tests/golden/samplers_vectors.json");
    for case in vectors["kdiffusion"].as_array().unwrap() {
        let sampler = find_sampler(case["sampler"].as_str().unwrap()).unwrap();
        let sigmas = floats(&case["sigmas"]);
        let step_count = case["steps"].as_u64().unwrap() as usize;
        let (x, asked, draws) = walk(&Trial {
            sampler,
            seeds: &[1234],
            ensd: case["ensd"].as_i64().unwrap(),
            options: sigma_options(case, step_count),
            sigmas: &sigmas,
            timesteps: &[],
            img2img: None,
        });
        assert_case(case, &x, &asked, "model_sigmas", draws, 5e-5);
    }
}

#[test]
fn timestep_samplers_meet_the_original_functions() {
    let vectors = read_json("tests/golden/samplers_vectors.json");
    let alphas = scaled_linear_alphas_cumprod(0.00085, 0.012, 1000);
    for case in vectors["timesteps"].as_array().unwrap() {
        let sampler = find_sampler(case["sampler"].as_str().unwrap()).unwrap();
        let timesteps: Vec<usize> = floats(&case["timesteps"])
            .into_iter()
            .map(|t| t as usize)
            .collect();
        let mut options = SolverOptions {
            eta: case["eta"].as_f64().unwrap(),
            ..SolverOptions::default()
        };
        options.uni_pc.variant = match case["uni_pc_variant"].as_str() {
            Some("bh2") => UniPcVariant::Bh2,
            Some("vary_coeff") => UniPcVariant::VaryCoeff,
            _ => UniPcVariant::Bh1,
        };
        options.uni_pc.skip = match case["uni_pc_skip_type"].as_str() {
            Some("time_quadratic") => UniPcSkip::TimeQuadratic,
            Some("logSNR") => UniPcSkip::LogSnr,
            _ => UniPcSkip::TimeUniform,
        };
        let img2img = case["img2img_t_enc"].as_u64().map(|t_enc| {
            let values = Generator::new(NoiseGenerator::Nv, 99).normal(4 * 8 * 8);
            let init = Latent::from_shape_vec((1, 4, 8, 8), values).unwrap() * 0.5;
            let full = discretised_timesteps(case["steps"].as_u64().unwrap() as usize).unwrap();
            let alpha = alphas[full[t_enc as usize]];
            (init, alpha.sqrt(), (1.0 - alpha).sqrt())
        });
        options.is_img2img = img2img.is_some();
        let (x, asked, draws) = walk(&Trial {
            sampler,
            seeds: &[1234],
            ensd: 0,
            options,
            sigmas: &[],
            timesteps: &timesteps,
            img2img,
        });
        assert_case(case, &x, &asked, "model_t", draws, 5e-5);
    }
}

#[test]
fn a_batch_equals_its_pictures_to_the_bit() {
    let table = SigmaTable::new(
        &scaled_linear_alphas_cumprod(0.00085, 0.012, 1000),
        AlphaOptions::default(),
        false,
    );
    let seeds = [5, 6, 77];
    let timesteps = discretised_timesteps(6).unwrap();
    // DPM adaptive measures its error over the whole batch, as the original does.
    for sampler in SAMPLERS
        .iter()
        .filter(|sampler| sampler.name != "DPM adaptive")
    {
        let scheduler = effective_scheduler(sampler, &SCHEDULERS[0]);
        let sigmas = scheduler
            .sigmas(
                6,
                schedulers::Levels::Full(&table),
                &ScheduleOptions::default(),
            )
            .unwrap();
        let trial = |seeds| Trial {
            sampler,
            seeds,
            ensd: 0,
            options: SolverOptions {
                call_count: 6,
                sigma_range: (table.sigma_min(), table.sigma_max()),
                ..SolverOptions::default()
            },
            sigmas: &sigmas,
            timesteps: &timesteps,
            img2img: None,
        };
        let (batch, ..) = walk(&trial(&seeds));
        for (index, seed) in seeds.iter().enumerate() {
            let (single, ..) = walk(&trial(std::slice::from_ref(seed)));
            assert_eq!(
                batch.index_axis(Axis(0), index),
                single.slice(s![0, .., .., ..]),
                "{}, picture {index}",
                sampler.name
            );
        }
    }
}
