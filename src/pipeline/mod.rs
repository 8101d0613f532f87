//! txt2img, img2img, inpainting, hires fix and extras over the traits of the rooms below.
//! May use every room below but runtime.

mod model;
mod params;

pub use model::{Cause, Family, Model, ModelProvider, ModelRequest, Posterior, Prediction, Vae};
pub use params::*;
