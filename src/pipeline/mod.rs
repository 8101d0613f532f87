//! txt2img, img2img, inpainting, hires fix and extras over the traits of the rooms below.
//! May use every room below but runtime.

mod control;
mod error;
mod generate;
mod model;
mod params;

pub use control::{JobControl, Unattended};
pub use error::GenerateError;
pub use generate::generate;
pub use model::{Cause, Family, Model, ModelProvider, ModelRequest, Posterior, Prediction, Vae};
pub use params::*;
