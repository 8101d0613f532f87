//! txt2img, img2img, inpainting, hires fix and extras over the traits of the rooms below.
//! May use every room below but runtime.

mod conditions;
mod control;
mod dynamic_prompts;
mod error;
mod extras;
mod faces;
mod generate;
mod hires;
mod hires_target;
mod image_conditioning;
mod init_images;
mod job_text;
mod latents;
mod mask_composite;
mod model;
mod noise_finder;
mod params;
mod pass;
mod prompts;
mod refusals;
mod safety;
mod saving;
mod token_merging;
mod upscalers;

pub use crate::rng::MAX_RANDOM_SEED;
pub use crate::sampling::{SAMPLERS, SCHEDULERS};
pub use control::{JobControl, PictureListener, Stop, Unattended};
pub use dynamic_prompts::DynamicPrompts;
pub use error::{GenerateError, OutOfMemory};
pub use extras::{ExtrasImage, ExtrasParams, ExtrasResult, ExtrasSize, ExtrasStage, extras};
pub use faces::{
    FACE_SIDE_PX, FaceModel, FaceNetworkProvider, FaceNetworks, Landmarks, NoFaceNetworks,
    restore_faces,
};
pub use generate::generate;
pub use hires_target::hires_upscale_px;
pub use model::{
    Cause, Family, Model, ModelProvider, ModelRequest, NetworkKind, Posterior, Prediction,
    ShortHash, ShortHashPromise, Vae,
};
pub use noise_finder::NoiseFinder;
pub use params::*;
pub use safety::SafetyChecker;
pub use saving::{
    NameFacts, NoSaver, PictureSaver, SavedAs, SavedPicture, Saving, save_script_grid,
    save_script_sample,
};
pub use upscalers::{BuiltInUpscalers, FoundUpscaler, Tiling, UpscalerNetwork, UpscalerProvider};

/// The version that answers and infotexts name: the one whose behaviour is mirrored.
pub const A1111_VERSION: &str = "v1.10.1";
