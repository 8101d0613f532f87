//! Whether a UNet is loaded for a quick start or for fast steps.
//!
//! On a CPU most of a large UNet's load lays the weights of its convolutions out anew, which makes its steps faster by
//! some 7 %. That pays from a certain amount of work on, which is about the same for every UNet: more weights take
//! longer to lay out and save more in a step.

use crate::runtime::LoadEffort;

/// `--load-strategy`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LoadStrategy {
    /// Small UNets for fast steps; large ones for a quick start, unless the first request alone makes fast steps pay.
    /// Once what was asked of one has come to that, the session for fast steps is built in the background.
    #[default]
    Auto,
    /// Always for a quick start.
    Quick,
    /// Always for fast steps.
    Fast,
}

/// UNets of fewer bytes in float32 are loaded for fast steps: that takes a second or two.
pub(super) const LARGE_UNET_BYTES: u64 = 1 << 30;

/// Latent pixels of all rows of all steps from which on fast steps pay: 26 steps of one 512x512 picture with both
/// prompts (docs/PERFORMANCE.md).
const PAYS_FROM_LATENT_PIXELS: u64 = 26 * 2 * 64 * 64;

/// Latent pixels of all rows of all steps that outweigh loading the text towers of a large checkpoint again: eight steps
/// of one 512x512 picture with both prompts (docs/PERFORMANCE.md).
pub(super) const OUTWEIGHS_TEXT_LATENT_PIXELS: u64 = 8 * 2 * 64 * 64;

impl LoadStrategy {
    /// How a UNet on a CPU in float32 is loaded when so many latent pixels of it are asked for.
    #[must_use]
    pub(super) fn effort(self, is_large: bool, planned_latent_pixels: u64) -> LoadEffort<'static> {
        let pays = planned_latent_pixels >= PAYS_FROM_LATENT_PIXELS;
        match self {
            Self::Fast => LoadEffort::Full,
            Self::Auto if !is_large || pays => LoadEffort::Full,
            Self::Auto | Self::Quick => LoadEffort::Quick,
        }
    }

    /// Whether a UNet of which so much was asked so far is worth another session.
    #[must_use]
    pub(super) fn upgrades(self, latent_pixels: u64) -> bool {
        match self {
            Self::Auto => latent_pixels >= PAYS_FROM_LATENT_PIXELS,
            Self::Quick | Self::Fast => false,
        }
    }
}
