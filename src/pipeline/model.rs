//! What the pipeline needs of a loaded checkpoint, and of whoever loads it.

use std::sync::{Arc, OnceLock};

use ndarray::Array4;

use crate::conditioning::{ConditioningCache, EmbeddingSource, TextEncoder};
use crate::prompt::PromptNetworks;
use crate::sampling::Unet;

use super::{
    BuiltInUpscalers, FaceNetworkProvider, NoFaceNetworks, SafetyChecker, UpscalerProvider,
};

/// The cause of a failure below a trait of this room.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

pub use crate::conditioning::Family;

pub use crate::sampling::Prediction;

/// Mean and log variance of the latent distribution, unscaled, `[1, 4, h, w]` each.
#[derive(Debug, Clone)]
pub struct Posterior {
    pub mean: Array4<f32>,
    pub logvar: Array4<f32>,
}

/// The picture ↔ latent network.
pub trait Vae: Send + Sync {
    /// `pixels` is `[1, 3, height, width]` in -1..1.
    ///
    /// # Errors
    /// When the graph fails.
    fn encode(&self, pixels: &Array4<f32>) -> Result<Posterior, Cause>;

    /// `latent` is `[1, 4, h, w]`, already divided by the scale factor; the answer is
    /// `[1, 3, 8h, 8w]` around -1..1, not clamped.
    ///
    /// # Errors
    /// When the graph fails.
    fn decode(&self, latent: &Array4<f32>) -> Result<Array4<f32>, Cause>;
}

/// First 10 hex digits of a file's SHA-256, empty where it is not known. It may come later than the model: only what
/// tells of a picture needs it.
#[derive(Debug, Clone)]
pub struct ShortHash(Arc<OnceLock<String>>);

/// Gives a [`ShortHash`] its text; an empty one when it is dropped before.
#[derive(Debug)]
pub struct ShortHashPromise(Arc<OnceLock<String>>);

impl ShortHash {
    /// One that is known, from the whole hash or its beginning.
    #[must_use]
    pub fn known(sha256: &str) -> Self {
        let (hash, promise) = Self::promised();
        promise.keep(sha256);
        hash
    }

    /// One that comes later.
    #[must_use]
    pub fn promised() -> (Self, ShortHashPromise) {
        let shared = Arc::default();
        (Self(Arc::clone(&shared)), ShortHashPromise(shared))
    }

    /// The text, as soon as it is there.
    #[expect(clippy::must_use_candidate, reason = "some callers only wait")]
    pub fn wait(&self) -> &str {
        self.0.wait()
    }
}

impl ShortHashPromise {
    /// `sha256` is the whole hash or its beginning.
    pub fn keep(self, sha256: &str) {
        let _ = self.0.set(sha256.chars().take(10).collect());
    }
}

impl Drop for ShortHashPromise {
    fn drop(&mut self) {
        // Fails where the promise was kept.
        let _ = self.0.set(String::new());
    }
}

/// One checkpoint, loaded, with the VAE, the networks and the variant that a job asked for.
#[derive(Clone)]
pub struct Model {
    /// The file's stem, A1111's "Model".
    pub name: String,
    pub short_hash: ShortHash,
    pub family: Family,
    pub prediction: Prediction,
    /// Channels of the UNet's input: 4, or 9 for inpainting.
    pub unet_channels: usize,
    /// Factor between VAE and UNet latents (0.18215, SDXL 0.13025).
    pub vae_scale: f32,
    /// `alphas_cumprod`, 1000 values, of the training schedule.
    pub alphas_cumprod: Arc<[f32]>,
    pub unet: Arc<dyn Unet>,
    /// One tower, or CLIP-L and bigG for SDXL.
    pub text_encoders: Vec<Arc<dyn TextEncoder>>,
    pub vae: Arc<dyn Vae>,
    /// File name and short hash of a separate VAE file, if one is in use.
    pub vae_file: Option<(String, String)>,
    /// Textual inversions that fit the checkpoint.
    pub embeddings: Option<Arc<dyn EmbeddingSource>>,
    /// Encoded prompts, kept for as long as the checkpoint is.
    pub text_cache: Arc<ConditioningCache>,
    /// Changes with everything beside the tags that decides what a prompt is encoded to: the load of
    /// the checkpoint, the files of networks and textual inversions.
    pub text_state: u64,
    /// Values of SDXL's embedding of one size or crop number; 256 in every published checkpoint.
    pub size_embedding_width: usize,
    /// `(name as in the prompt, short hash)` of the networks that are applied.
    pub networks: Vec<(String, String)>,
    /// Networks asked for and not found.
    pub missing_networks: Vec<String>,
    /// Results that are no numbers are errors.
    pub checks_nan: bool,
}

impl Model {
    /// A1111's short title, `name [hash]`.
    #[must_use]
    pub fn short_title(&self) -> String {
        match self.short_hash.wait() {
            "" => self.name.clone(),
            hash => format!("{} [{hash}]", self.name),
        }
    }
}

/// Which checkpoint a job needs, and how.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ModelRequest {
    /// Title, name or hash as A1111 looks them up; empty: the configured default.
    pub checkpoint: String,
    /// The option `sd_vae`: `Automatic`, `None` or a file name.
    pub vae: String,
    /// A VAE that the checkpoint's own `.json` names wins over `vae`: the option
    /// `sd_vae_overrides_per_model_preferences` is off.
    pub prefers_checkpoints_vae: bool,
    /// Circular padding in every convolution.
    pub tiling: bool,
    /// Share of the tokens that self-attention at the latent's full size merges; 0: none.
    pub token_merging_ratio: f64,
    /// The option `upcast_attn`: a UNet in half precision has its attention in float32.
    pub upcast_attention: bool,
    /// A VAE in half precision that answers no number is not tried again in float32: the options
    /// `auto_vae_precision` and `auto_vae_precision_bfloat16` are off.
    pub keeps_vae_precision: bool,
    /// The networks that the prompt's tags ask for.
    pub networks: PromptNetworks,
    /// Work that the UNet is about to be asked for and was not announced before: latent pixels of all rows of all
    /// steps. 0: unknown.
    pub planned_latent_pixels: u64,
    /// Latent pixels of all rows of all steps that come before another text has to be encoded. 0: unknown.
    pub latent_pixels_without_text: u64,
}

/// Kinds of networks that a prompt may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkKind {
    /// LoRA and its relatives.
    Lora,
    Hypernetwork,
}

/// Whoever loads checkpoints and keeps them.
pub trait ModelProvider: Send + Sync {
    /// # Errors
    /// When no such checkpoint exists or it cannot be loaded.
    fn load(&self, request: &ModelRequest) -> Result<Arc<Model>, Cause>;

    /// Whether a checkpoint is found under this title, name or hash, as A1111 looks them up.
    fn knows(&self, checkpoint: &str) -> bool;

    /// Whether there is a network file of exactly this name.
    fn knows_network(&self, _kind: NetworkKind, _name: &str) -> bool {
        false
    }

    /// Upscaler networks beside the built-in upscalers.
    fn upscalers(&self) -> &dyn UpscalerProvider {
        &BuiltInUpscalers
    }

    /// Looks at finished pictures; `None`: nobody does.
    fn safety_checker(&self) -> Option<&dyn SafetyChecker> {
        None
    }

    /// Networks that restore faces.
    fn faces(&self) -> &dyn FaceNetworkProvider {
        &NoFaceNetworks
    }
}

#[cfg(test)]
mod tests {
    use super::ShortHash;

    #[test]
    fn a_promised_hash_is_waited_for_and_is_empty_where_it_never_comes() {
        let (hash, promise) = ShortHash::promised();
        let waiting = std::thread::spawn(move || hash.wait().to_owned());
        promise.keep("0123456789abcdef");
        assert_eq!(waiting.join().unwrap(), "0123456789");
        let (hash, promise) = ShortHash::promised();
        drop(promise);
        assert_eq!(hash.wait(), "");
    }
}
