//! Walks against A1111's recorded model calls (`steps_*.npz`): the recorded guided predictions are
//! fed back, and every latent that the sampler asks about is compared with the recorded one.

use std::fs::File;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use ndarray::{Array1, Array2, Array3, Array4, s};
use ndarray_npy::NpzReader;

use super::plan::prepare;
use super::*;
use crate::rng::{ImageRng, ImageRngParams, NoiseGenerator, SeedResize};

/// A network that no test may reach.
struct NoUnet;

impl Unet for NoUnet {
    fn predict(&self, _input: &UnetInput) -> Result<Array4<f32>, Cause> {
        Err("no network here".into())
    }
}

struct Recording {
    x: Array4<f32>,
    guided: Array4<f32>,
    sigmas: Array1<f32>,
}

/// Serves recorded predictions and remembers how far the requests are off.
struct Replay {
    recording: Recording,
    call: usize,
    worst: f32,
    worst_sigma: f32,
    /// The blend that the wrapper does before the network.
    blend: Option<InpaintMask>,
}

impl Denoiser for Replay {
    fn denoise(&mut self, x: &Latent, sigma: f32) -> Result<Latent, SamplingError> {
        let call = self.call;
        if call >= self.recording.sigmas.len() {
            return Err(SamplingError::Schedule(format!(
                "call {call} was not recorded"
            )));
        }
        self.call += 1;
        let want = self.recording.x.slice(s![call..=call, .., .., ..]);
        let blended = self.blend.as_ref().map(|mask| mask.blend(x, sigma));
        let x = blended.as_ref().unwrap_or(x);
        let scale = want.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
        for (got, want) in x.iter().zip(want) {
            self.worst = self.worst.max((got - want).abs() / scale);
        }
        let want_sigma = self.recording.sigmas[call];
        self.worst_sigma = self
            .worst_sigma
            .max((sigma - want_sigma).abs() / want_sigma.max(1e-3));
        Ok(self
            .recording
            .guided
            .slice(s![call..=call, .., .., ..])
            .to_owned())
    }
}

fn archive(name: &str) -> NpzReader<File> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("compat-tests/golden/truth")
        .join(name);
    NpzReader::new(File::open(path).unwrap()).unwrap()
}

fn text_condition() -> TextCondition {
    TextCondition {
        end_at_step: 1000,
        context: Arc::new(Array2::zeros((77, 4))),
        vector: None,
    }
}

pub(super) fn plan(
    sampler: &'static Sampler,
    step_count: usize,
    noise: Latent,
    start: Start,
) -> SamplingPlan {
    SamplingPlan {
        sampler,
        scheduler: find_scheduler("Automatic").unwrap(),
        step_count,
        start,
        noise,
        model: SamplingModel {
            unet: Arc::new(NoUnet),
            prediction: Prediction::Epsilon,
            alphas_cumprod: scaled_linear_alphas_cumprod(0.00085, 0.012, 1000).into(),
            is_edit: false,
        },
        alpha_options: AlphaOptions::default(),
        quantize: false,
        schedule: ScheduleOptions::default(),
        options: SamplerOptions::default(),
        guidance: GuidanceOptions::default(),
        conditioning: ScheduledConditioning {
            pictures: vec![PictureConditioning {
                positive: vec![PromptPart {
                    weight: 1.0,
                    schedule: vec![text_condition()],
                }],
                negative: vec![text_condition()],
            }],
        },
        image_conditioning: None,
        mask: None,
        preview: Preview::Prompt,
        brownian: (NoiseGenerator::Cpu, vec![0]),
    }
}

fn image_rng(shape: (usize, usize, usize)) -> ImageRng {
    ImageRng::new(ImageRngParams {
        generator: NoiseGenerator::Cpu,
        shape,
        seeds: vec![0],
        subseeds: vec![0],
        subseed_strength: 0.0,
        seed_resize: SeedResize::default(),
        eta_noise_seed_delta: 0,
    })
}

/// Replays one sampler; `(worst latent, worst sigma)` relative differences.
fn replay(
    file: &str,
    sampler: &'static Sampler,
    step_count: usize,
    strength: Option<f64>,
) -> Option<(f32, f32)> {
    let mut archive = archive(file);
    let name = sampler.name;
    let x: Array4<f32> = archive.by_name(&format!("{name}/x")).ok()?;
    let recording = Recording {
        guided: archive.by_name(&format!("{name}/guided")).unwrap(),
        sigmas: archive.by_name(&format!("{name}/sigma_or_t")).unwrap(),
        x,
    };
    let recording_shape = recording.x.dim();
    let (_, channels, height, width) = recording_shape;
    let mut rng = image_rng((channels, height, width));
    let noise = rng.first();
    let init: Option<Array4<f32>> = archive.by_name(&format!("{name}/init_latent")).ok();
    let start = match (init.clone(), strength) {
        (Some(init), Some(denoising_strength)) => Start::Img2Img(Img2ImgStart {
            init,
            denoising_strength,
            fixed_steps: false,
            extra_noise: 0.0,
        }),
        _ => Start::Txt2Img,
    };
    let mask: Option<(Array3<f32>, Array3<f32>)> = archive
        .by_name(&format!("{name}/latent_mask_keep"))
        .ok()
        .zip(archive.by_name(&format!("{name}/latent_mask_new")).ok());
    // Timestep samplers were recorded behind the blend with the original.
    let is_timestep = matches!(sampler.kind, SamplerKind::Timestep(_));
    let blend = mask.zip(init.clone()).filter(|_| is_timestep);
    let prepared = prepare(&plan(sampler, step_count, noise, start)).unwrap();
    let mut denoiser = Replay {
        recording,
        call: 0,
        worst: 0.0,
        worst_sigma: 0.0,
        blend: blend.map(|((keep, repaint), init)| InpaintMask {
            init,
            keep,
            repaint,
            soft: None,
        }),
    };
    let mut silence = Silence(recording_shape);
    // LCM's predictions were recorded after it had added the step's noise to them in place.
    let noise: &mut dyn NoiseSource = if sampler.name == "LCM" {
        &mut silence
    } else {
        &mut rng
    };
    prepared
        .walk(&mut denoiser, noise, &mut |_| ControlFlow::Continue(()))
        .unwrap();
    assert_eq!(
        denoiser.call,
        denoiser.recording.sigmas.len(),
        "{file} {name}: calls"
    );
    Some((denoiser.worst, denoiser.worst_sigma))
}

/// No noise at all.
struct Silence((usize, usize, usize, usize));

impl NoiseSource for Silence {
    fn next(&mut self) -> Latent {
        Array4::zeros((1, self.0.1, self.0.2, self.0.3))
    }
}

#[test]
fn recorded_walks_are_met_call_by_call() {
    const FILES: [(&str, usize, Option<f64>); 5] = [
        ("steps_txt2img_tiny-sd1.npz", 5, None),
        ("steps_txt2img_tiny-sd2-v.npz", 5, None),
        ("steps_img2img_tiny-sd1.npz", 8, Some(0.6)),
        ("steps_img2img_tiny-sd2-v.npz", 8, Some(0.6)),
        ("steps_inpaint_tiny-sd2-v.npz", 8, Some(0.6)),
    ];
    let mut walk_count = 0;
    for sampler in &SAMPLERS {
        // The unconditional prediction that CFG++ follows was not recorded.
        if sampler.name == "DDIM CFG++" {
            continue;
        }
        for (file, step_count, strength) in FILES {
            let Some((latent, sigma)) = replay(file, sampler, step_count, strength) else {
                continue;
            };
            walk_count += 1;
            assert!(
                latent <= 1e-6,
                "{file} {}: latent off by {latent:e}",
                sampler.name
            );
            assert!(
                sigma <= 1e-6,
                "{file} {}: sigma off by {sigma:e}",
                sampler.name
            );
        }
    }
    assert_eq!(walk_count, 33);
}
