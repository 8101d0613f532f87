//! Sigmas, schedulers, samplers, classifier-free guidance and the eps and v parameterisations.
//! May use rng. Never reads a file, a clock, an environment variable or a global.

mod beta_quantile;
pub mod guidance;
mod plan;
pub mod samplers;
pub mod scalar;
pub mod schedulers;
mod sigma_table;
mod soft_blend;
mod steps;
mod timesteps;
mod walk;

pub use guidance::{
    ContextPadding, GuidanceOptions, GuidedDenoiser, InpaintMask, PictureConditioning, Preview,
    PromptPart, RefinerSwitch, ScheduledConditioning, SwappedModel, TextCondition,
};
pub use plan::{
    ChurnOptions, Img2ImgStart, InfotextEntry, InfotextValue, Outcome, RunContext, SamplerOptions,
    SamplingModel, SamplingPlan, Start, StepReport, check_nan, effective_scheduler, planned_calls,
    run,
};
pub use samplers::{
    ADJUSTED_NOISE_FINDER, NOISE_FINDER, SAMPLERS, Sampler, SamplerKind, find_sampler,
    resolve_names,
};
pub use schedulers::{SCHEDULERS, ScheduleOptions, Scheduler, find_scheduler};
pub use sigma_table::{AlphaOptions, Prediction, SigmaTable, scaled_linear_alphas_cumprod};
pub use soft_blend::SoftBlend;
pub use steps::{Img2ImgSteps, img2img_steps};
pub use timesteps::discretised_timesteps;
pub use walk::{BrownianSource, SolverOptions, Step, UniPcOptions, UniPcSkip, UniPcVariant, Walk};

#[cfg(test)]
mod golden_tests;
#[cfg(test)]
mod guidance_tests;
#[cfg(test)]
mod replay_tests;
#[cfg(test)]
mod vector_tests;

use ndarray::{Array2, Array3, Array4};

/// A batch of latents, `[batch, channels, height / 8, width / 8]`, f32.
pub type Latent = Array4<f32>;

/// The cause of a failure below a trait of this room.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Predicts the noise-free latent (`denoised`, x0) of `x` at noise level `sigma`; for the timestep
/// samplers (DDIM, PLMS, UniPC) `sigma` is the timestep and the answer is `eps`.
pub trait Denoiser {
    /// # Errors
    /// When the network below fails, or the job was interrupted or skipped.
    fn denoise(&mut self, x: &Latent, sigma: f32) -> Result<Latent, SamplingError>;

    /// The unconditional half of the last answer, which DDIM CFG++ walks along. The answer itself
    /// where there is no guidance.
    fn unconditional(&self) -> Option<&Latent> {
        None
    }

    /// The latest picture worth showing, in the latent's noise-free form.
    fn preview(&self) -> Option<&Latent> {
        None
    }
}

/// The noise that a sampler adds between steps: A1111's `ImageRNG.next()`, one generator an image.
pub trait NoiseSource {
    /// Standard normal noise in the shape of the batch, the next draw of every image's generator.
    fn next(&mut self) -> Latent;
}

impl NoiseSource for crate::rng::ImageRng {
    fn next(&mut self) -> Latent {
        Self::next(self)
    }
}

/// What one call of the UNet takes. Rows of the batch belong together across the fields.
#[derive(Debug, Clone)]
pub struct UnetInput {
    /// `[rows, in_channels, h, w]`: the scaled latent (`x * c_in`) with any concatenated
    /// inpainting conditioning already appended along the channels.
    pub sample: Array4<f32>,
    /// One fractional timestep a row, 0 to 999.
    pub timestep: Vec<f32>,
    /// `[rows, tokens, width]`: the text conditioning.
    pub context: Array3<f32>,
    /// `[rows, width]`: SDXL's pooled text and size embedding (`y`).
    pub vector: Option<Array2<f32>>,
}

/// The raw network of one checkpoint, with the networks (LoRA) of the job already chosen.
pub trait Unet: Send + Sync {
    /// The network's output in its own parameterisation (eps or v), `[rows, 4, h, w]`.
    ///
    /// # Errors
    /// When the graph fails or was terminated.
    fn predict(&self, input: &UnetInput) -> Result<Array4<f32>, Cause>;

    /// Stops the calls in flight, which then answer with an error; later calls are not touched.
    fn terminate(&self) {}
}

/// Why a walk along the sigmas ended early.
#[derive(Debug, thiserror::Error)]
pub enum SamplingError {
    /// The job was interrupted or skipped; the guided denoiser holds the last prediction.
    #[error("interrupted")]
    Interrupted,
    /// The network failed.
    #[error("the UNet failed: {0}")]
    Unet(#[source] Cause),
    /// The refiner could not be loaded or its conditioning not be made.
    #[error("the switch to the refiner failed: {0}")]
    Refiner(#[source] Cause),
    /// The schedule does not fit the sampler or the number of steps.
    #[error("{0}")]
    Schedule(String),
    /// The network answered with something that is not a number.
    #[error("A tensor with NaNs was produced in Unet.")]
    NotANumber,
    /// The conditioning does not fit the batch or the model.
    #[error("{0}")]
    Conditioning(String),
}
