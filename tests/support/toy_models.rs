//! An engine over the real pipeline with networks of a few lines: whatever a request or an option
//! changes on the way to the UNet, the text encoder or the VAE shows in the pixels.

#![allow(
    dead_code,
    reason = "every test crate that includes this module uses its own part of it"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ancestral::conditioning::{
    CacheLimits, ConditioningCache, EncodedText, HiddenState, TextEncoder, TokenBatch,
};
use ancestral::jobs::Engine;
use ancestral::pipeline::{
    BuiltInUpscalers, Cause, ExtrasParams, ExtrasResult, FaceModel, FaceNetworkProvider,
    FaceNetworks, Family, GenerateError, GenerationParams, GenerationResult, JobControl, Landmarks,
    Model, ModelProvider, ModelRequest, Posterior, Prediction, ShortHash, Stop, Vae, extras,
    generate,
};
use ancestral::sampling::{Latent, Unet, UnetInput};
use ancestral::scripts::{ScriptCall, run_script};
use image::{GrayImage, Luma, Rgb, RgbImage};
use ndarray::{Array3, Array4, Axis};

const WIDTH: usize = 8;

/// Vectors made of the token ids, the position and the hidden state asked for.
struct ToyText;

impl TextEncoder for ToyText {
    fn encode(&self, batch: &TokenBatch, state: HiddenState) -> Result<EncodedText, Cause> {
        let (from_end, shift) = match state {
            HiddenState::Normalised { from_end } => (from_end, 0.0),
            HiddenState::Raw { from_end } => (from_end, 0.5),
        };
        let (chunks, tokens) = batch.ids.dim();
        let hidden = Array3::from_shape_fn((chunks, tokens, WIDTH), |(chunk, token, at)| {
            let id = batch.ids[[chunk, token]] as f32;
            (id * 0.37 + token as f32 * 0.11 + at as f32 + from_end as f32 + shift).sin()
        });
        Ok(EncodedText {
            hidden,
            pooled: None,
        })
    }

    fn width(&self) -> usize {
        WIDTH
    }
}

/// Noise that depends on the picture, its neighbours, the time and the text.
struct ToyUnet {
    tiling: bool,
    shift: f32,
}

impl Unet for ToyUnet {
    fn predict(&self, input: &UnetInput) -> Result<Array4<f32>, Cause> {
        let (rows, _, height, width) = input.sample.dim();
        let texts: Vec<Vec<f32>> = input
            .context
            .axis_iter(Axis(0))
            .map(|tokens| {
                let count = tokens.shape()[0] as f32;
                tokens
                    .sum_axis(Axis(0))
                    .iter()
                    .map(|sum| sum / count)
                    .collect()
            })
            .collect();
        Ok(Array4::from_shape_fn(
            (rows, 4, height, width),
            |(row, channel, y, x)| {
                let here = input.sample[[row, channel, y, x]];
                let beside = if self.tiling {
                    (x + 1) % width
                } else {
                    (x + 1).min(width - 1)
                };
                let beside = input.sample[[row, channel, y, beside]];
                let time = input.timestep[row] / 1000.0;
                let place = (x as f32 * 0.9 + y as f32 * 0.7 + channel as f32).sin();
                0.7 * here
                    + 0.2 * beside
                    + texts[row][channel] * place * 0.8
                    + time * 0.05
                    + self.shift
            },
        ))
    }
}

/// Three of the latent's channels as colours, every value a square of 8 pixels.
struct ToyVae {
    /// Decodes everything to no numbers.
    broken: bool,
}

/// VAE names that [`ToyModels`] knows beside `toy.vae.pt`: both decode to no numbers.
pub(crate) const BROKEN_VAE: &str = "broken.pt";
/// As with `--disable-nan-check`.
pub(crate) const BROKEN_VAE_UNCHECKED: &str = "broken-unchecked.pt";

impl Vae for ToyVae {
    fn encode(&self, pixels: &Array4<f32>) -> Result<Posterior, Cause> {
        let (rows, _, height, width) = pixels.dim();
        let mean = Array4::from_shape_fn((rows, 4, height / 8, width / 8), |(row, c, y, x)| {
            pixels[[row, c.min(2), y * 8 + 4, x * 8 + 4]]
        });
        let logvar = Array4::from_elem(mean.raw_dim(), -30.0);
        Ok(Posterior { mean, logvar })
    }

    fn decode(&self, latent: &Array4<f32>) -> Result<Array4<f32>, Cause> {
        let (rows, _, height, width) = latent.dim();
        Ok(Array4::from_shape_fn(
            (rows, 3, height * 8, width * 8),
            |(row, c, y, x)| {
                if self.broken {
                    f32::NAN
                } else {
                    (latent[[row, c, y / 8, x / 8]] * 0.2).tanh()
                }
            },
        ))
    }
}

/// Answers every request with the toy networks.
pub(crate) struct ToyModels;

impl ModelProvider for ToyModels {
    fn load(&self, request: &ModelRequest) -> Result<Arc<Model>, Cause> {
        let beta = |step: usize| {
            let root =
                0.00085_f64.sqrt() + (0.012_f64.sqrt() - 0.00085_f64.sqrt()) * step as f64 / 999.0;
            root * root
        };
        let mut product = 1.0;
        let alphas_cumprod: Arc<[f32]> = (0..1000)
            .map(|step| {
                product *= 1.0 - beta(step);
                product as f32
            })
            .collect();
        Ok(Arc::new(Model {
            name: "toy".to_owned(),
            short_hash: ShortHash::known("0123456789"),
            family: Family::Sd1,
            prediction: Prediction::Epsilon,
            unet_channels: 4,
            vae_scale: 0.18215,
            alphas_cumprod,
            unet: Arc::new(ToyUnet {
                tiling: request.tiling,
                // A refiner by this name is another network.
                shift: if request.checkpoint == "other" {
                    0.2
                } else {
                    0.0
                },
            }),
            text_encoders: vec![Arc::new(ToyText)],
            vae: Arc::new(ToyVae {
                broken: [BROKEN_VAE, BROKEN_VAE_UNCHECKED].contains(&request.vae.as_str()),
            }),
            vae_file: (request.vae == "toy.vae.pt")
                .then(|| ("toy.vae.pt".to_owned(), "abcdef0123".to_owned())),
            embeddings: None,
            text_cache: Arc::new(ConditioningCache::new(CacheLimits {
                entries: 0,
                bytes: 0,
            })),
            text_state: 0,
            size_embedding_width: 256,
            networks: Vec::new(),
            missing_networks: Vec::new(),
            checks_nan: request.vae != BROKEN_VAE_UNCHECKED,
        }))
    }

    fn knows(&self, _checkpoint: &str) -> bool {
        true
    }

    fn faces(&self) -> &dyn FaceNetworkProvider {
        &ToyFaces
    }
}

/// Every picture is one face; CodeFormer paints it a grey of 200 times the fidelity, GFPGAN has no files.
pub(crate) struct ToyFaces;

impl FaceNetworkProvider for ToyFaces {
    fn load(&self, model: FaceModel) -> Result<Arc<dyn FaceNetworks>, Cause> {
        match model {
            FaceModel::CodeFormer => Ok(Arc::new(ToyFaces)),
            FaceModel::Gfpgan => Err("the toy has no such file".into()),
        }
    }
}

impl FaceNetworks for ToyFaces {
    fn find_faces(&self, picture: &RgbImage) -> Result<Vec<Landmarks>, Cause> {
        let scale = picture.width() as f32 / 512.0;
        let face = [
            [193.0, 240.0],
            [319.0, 240.0],
            [257.0, 314.0],
            [201.0, 371.0],
            [313.0, 371.0],
        ];
        Ok(vec![face.map(|point| point.map(|at: f32| at * scale))])
    }

    fn redraw(&self, face: &RgbImage, fidelity: f64) -> Result<RgbImage, Cause> {
        let level = (fidelity * 200.0) as u8;
        Ok(RgbImage::from_pixel(
            face.width(),
            face.height(),
            Rgb([level; 3]),
        ))
    }

    fn parse(&self, face: &RgbImage) -> Result<GrayImage, Cause> {
        Ok(GrayImage::from_pixel(
            face.width(),
            face.height(),
            Luma([1]),
        ))
    }
}

/// A prompt whose job is interrupted in its first step.
pub(crate) const STOPPED: &str = "stopped";

/// A job that somebody looks at after every step, and that may be stopped after its first.
pub(crate) struct Observed<'a> {
    inner: &'a dyn JobControl,
    on_step: &'a (dyn Fn() + Sync),
    stops: bool,
    stepped: AtomicBool,
}

impl<'a> Observed<'a> {
    pub(crate) fn over(inner: &'a dyn JobControl, on_step: &'a (dyn Fn() + Sync)) -> Self {
        Self {
            inner,
            on_step,
            stops: false,
            stepped: AtomicBool::new(false),
        }
    }
}

#[rustfmt::skip]
impl JobControl for Observed<'_> {
    fn interrupted(&self) -> bool {
        self.inner.interrupted() || self.stops && self.stepped.load(Ordering::Relaxed)
    }
    fn skipped(&self) -> bool { self.inner.skipped() }
    fn clear_skip(&self) { self.inner.clear_skip(); }
    fn set_job_count(&self, count: i64) { self.inner.set_job_count(count); }
    fn set_job(&self, job: &str) { self.inner.set_job(job); }
    fn next_job(&self) { self.inner.next_job(); }
    fn set_sampling_steps(&self, step_count: usize) { self.inner.set_sampling_steps(step_count); }
    fn step(&self, index: usize, preview: &Latent, family: Family) {
        self.stepped.store(true, Ordering::Relaxed);
        self.inner.step(index, preview, family);
        (self.on_step)();
    }
    fn stop_with(&self, stop: Option<Stop>) { self.inner.stop_with(stop); }
    fn set_text(&self, text: Option<&str>) { self.inner.set_text(text); }
    fn random_seed(&self) -> i64 { self.inner.random_seed() }
    fn timestamp(&self) -> String { self.inner.timestamp() }
}

/// The pipeline over [`ToyModels`].
pub(crate) struct ToyEngine;

impl Engine for ToyEngine {
    fn generate(
        &self,
        params: &GenerationParams,
        control: &dyn JobControl,
    ) -> Result<GenerationResult, GenerateError> {
        if params.prompt == STOPPED {
            let stopped = Observed {
                stops: true,
                ..Observed::over(control, &|| {})
            };
            return generate(params, &ToyModels, &stopped);
        }
        generate(params, &ToyModels, control)
    }

    fn run_script(
        &self,
        script: &ScriptCall,
        params: &GenerationParams,
        control: &dyn JobControl,
    ) -> Result<GenerationResult, GenerateError> {
        run_script(script, params, &ToyModels, control)
    }

    fn extras(
        &self,
        params: &ExtrasParams,
        control: &dyn JobControl,
    ) -> Result<ExtrasResult, GenerateError> {
        extras(params, &BuiltInUpscalers, &ToyFaces, control)
    }

    fn load(&self, _request: &ModelRequest) -> Result<ShortHash, GenerateError> {
        Ok(ShortHash::known(""))
    }

    fn unload(&self) {}
}
