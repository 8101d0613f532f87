//! Upscalers by A1111's names: the built-in ones and the networks that somebody else loads.

use std::sync::Arc;

use image::RgbImage;

use crate::config::Options;
use crate::imaging::Upscaler;

use super::{Cause, GenerateError};

/// How a network sees a large picture: the options `ESRGAN_tile` and `ESRGAN_tile_overlap`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tiling {
    /// Side of a tile in pixels; 0: the whole picture at once.
    pub tile_px: u32,
    pub overlap_px: u32,
}

impl Tiling {
    #[must_use]
    pub fn from_options(options: &Options) -> Self {
        let size = |key| options.f64(key).clamp(0.0, 65_535.0) as u32;
        Self {
            tile_px: size("ESRGAN_tile"),
            overlap_px: size("ESRGAN_tile_overlap"),
        }
    }
}

/// A loaded network that enlarges pictures by its own factor.
pub trait UpscalerNetwork: Send + Sync {
    /// Enlarges an RGB picture once; [`crate::imaging::upscale_tiled`] cuts and joins the tiles.
    ///
    /// # Errors
    /// When the graph fails or was terminated.
    fn enlarge(&self, picture: &RgbImage, tiling: Tiling) -> Result<RgbImage, Cause>;
}

/// Whoever loads upscaler networks and keeps them.
pub trait UpscalerProvider: Send + Sync {
    /// The network that A1111 lists under `name`; `None` where there is none.
    ///
    /// # Errors
    /// When its file cannot be loaded.
    fn load(&self, name: &str) -> Result<Option<Arc<dyn UpscalerNetwork>>, Cause>;
}

/// No networks at all: only the built-in upscalers exist.
#[derive(Debug, Clone, Copy, Default)]
pub struct BuiltInUpscalers;

impl UpscalerProvider for BuiltInUpscalers {
    fn load(&self, _name: &str) -> Result<Option<Arc<dyn UpscalerNetwork>>, Cause> {
        Ok(None)
    }
}

/// An upscaler that was found by its name.
#[derive(Clone)]
pub enum FoundUpscaler {
    None,
    Lanczos,
    Nearest,
    Network(Arc<dyn UpscalerNetwork>),
}

impl FoundUpscaler {
    /// Looks an upscaler up by A1111's exact name.
    ///
    /// # Errors
    /// [`GenerateError::UnknownUpscaler`], or that its file cannot be loaded.
    pub fn find(name: &str, networks: &dyn UpscalerProvider) -> Result<Self, GenerateError> {
        match name {
            "None" => Ok(Self::None),
            "Lanczos" => Ok(Self::Lanczos),
            "Nearest" => Ok(Self::Nearest),
            _ => match networks.load(name).map_err(GenerateError::Load)? {
                Some(network) => Ok(Self::Network(network)),
                None => Err(GenerateError::UnknownUpscaler {
                    name: name.to_owned(),
                }),
            },
        }
    }

    /// Lends the upscaler to the functions of `imaging`.
    pub fn lend<T>(&self, tiling: Tiling, use_it: impl FnOnce(&Upscaler<'_>) -> T) -> T {
        match self {
            Self::None => use_it(&Upscaler::None),
            Self::Lanczos => use_it(&Upscaler::Lanczos),
            Self::Nearest => use_it(&Upscaler::Nearest),
            Self::Network(network) => {
                let enlarge = |picture: &RgbImage| network.enlarge(picture, tiling);
                use_it(&Upscaler::Network(&enlarge))
            }
        }
    }
}
