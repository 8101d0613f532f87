//! What a sampler walks with: the denoiser, the noise, the report of every step and the options.

use std::ops::ControlFlow;

use super::{Denoiser, Latent, NoiseSource, SamplingError};
use crate::rng::BrownianNoise;

/// Noise between two sigmas from one Brownian path a picture.
pub trait BrownianSource {
    /// Unit-variance noise of the step from `sigma` to `sigma_next`.
    fn between(&mut self, sigma: f32, sigma_next: f32) -> Latent;
}

impl BrownianSource for BrownianNoise {
    fn between(&mut self, sigma: f32, sigma_next: f32) -> Latent {
        Self::between(self, sigma, sigma_next)
    }
}

/// One step as a sampler reports it, after the step's first model call.
#[derive(Debug)]
pub struct Step<'a> {
    /// Counts from 0.
    pub index: usize,
    /// The latest preview of the denoiser, else the step's noise-free prediction.
    pub denoised: &'a Latent,
}

/// UniPC's variants of the update.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum UniPcVariant {
    /// `B(h) = h`.
    #[default]
    Bh1,
    /// `B(h) = exp(h) - 1`.
    Bh2,
    /// Coefficients that vary with the step.
    VaryCoeff,
}

/// UniPC's spacing of the times.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum UniPcSkip {
    /// Evenly in time.
    #[default]
    TimeUniform,
    /// Evenly in the root of time.
    TimeQuadratic,
    /// Evenly in the half log signal-to-noise ratio.
    LogSnr,
}

/// A1111's options of UniPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UniPcOptions {
    /// `uni_pc_variant`.
    pub variant: UniPcVariant,
    /// `uni_pc_skip_type`.
    pub skip: UniPcSkip,
    /// `uni_pc_order`.
    pub order: usize,
    /// `uni_pc_lower_order_final`.
    pub lower_order_final: bool,
}

impl Default for UniPcOptions {
    fn default() -> Self {
        Self {
            variant: UniPcVariant::default(),
            skip: UniPcSkip::default(),
            order: 3,
            lower_order_final: true,
        }
    }
}

/// Numbers that samplers take beside the schedule, with everything decided: a sampler that does
/// not take one of them never sees another value than the neutral one.
#[derive(Debug, Clone, PartialEq)]
pub struct SolverOptions {
    /// Amount of fresh noise of ancestral steps, 0 to 1.
    pub eta: f64,
    /// Added noise of Karras' stochastic sampler.
    pub s_churn: f64,
    /// Smallest sigma that churns.
    pub s_tmin: f64,
    /// Largest sigma that churns.
    pub s_tmax: f64,
    /// Scale of added noise.
    pub s_noise: f64,
    /// Range of DPM fast and DPM adaptive.
    pub sigma_range: (f32, f32),
    /// Calls that DPM fast may make.
    pub call_count: usize,
    /// UniPC's options.
    pub uni_pc: UniPcOptions,
    /// The walk starts from a picture (UniPC's start time depends on it).
    pub is_img2img: bool,
}

impl Default for SolverOptions {
    fn default() -> Self {
        Self {
            eta: 1.0,
            s_churn: 0.0,
            s_tmin: 0.0,
            s_tmax: f64::INFINITY,
            s_noise: 1.0,
            sigma_range: (0.0, 0.0),
            call_count: 0,
            uni_pc: UniPcOptions::default(),
            is_img2img: false,
        }
    }
}

/// The surroundings of one walk along a schedule.
pub struct Walk<'a> {
    /// The guided model.
    pub denoiser: &'a mut dyn Denoiser,
    /// Noise of ancestral steps and churn.
    pub noise: &'a mut dyn NoiseSource,
    /// Noise of the SDE samplers; present for those that the table marks.
    pub brownian: Option<&'a mut dyn BrownianSource>,
    /// Told of every step; `Break` ends the walk like an interrupt.
    pub on_step: &'a mut dyn FnMut(Step<'_>) -> ControlFlow<()>,
    /// The numbers.
    pub options: SolverOptions,
}

impl Walk<'_> {
    /// The model's prediction.
    ///
    /// # Errors
    /// As [`Denoiser::denoise`].
    pub fn denoise(&mut self, x: &Latent, sigma: f32) -> Result<Latent, SamplingError> {
        self.denoiser.denoise(x, sigma)
    }

    /// Reports a step.
    ///
    /// # Errors
    /// [`SamplingError::Interrupted`] when the listener wants no more.
    pub fn report(&mut self, index: usize, denoised: &Latent) -> Result<(), SamplingError> {
        let denoised = self.denoiser.preview().unwrap_or(denoised);
        match (self.on_step)(Step { index, denoised }) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(SamplingError::Interrupted),
        }
    }

    /// The next noise of every picture's generator.
    pub fn noise(&mut self) -> Latent {
        self.noise.next()
    }

    /// Brownian noise of the step from `sigma` to `sigma_next`.
    ///
    /// # Errors
    /// When the walk has no Brownian path, which the schedule of 0 steps cannot have.
    pub fn brownian(&mut self, sigma: f32, sigma_next: f32) -> Result<Latent, SamplingError> {
        match &mut self.brownian {
            Some(source) => Ok(source.between(sigma, sigma_next)),
            None => Err(SamplingError::Schedule(
                "this sampler needs a Brownian path".to_owned(),
            )),
        }
    }
}
