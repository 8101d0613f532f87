//! A checkpoint that does not fit into the memory budget as a whole: its parts take turns.
//!
//! The text towers are loaded when a prompt is encoded that was not before, and let go of at the first step; the UNet is
//! loaded at the first step. Before and after a picture is decoded or encoded, what UNet and VAE worked in is given back.

use std::sync::Arc;

use ndarray::Array4;

use super::networks::{GraphTextEncoder, GraphUnet, GraphVae};
use crate::pipeline::{Posterior, Vae};
use crate::sampling::{Cause, Unet, UnetInput};

/// A UNet for whose steps the text towers make room.
pub(super) struct FrugalUnet {
    pub(super) unet: Arc<dyn Unet>,
    pub(super) text_encoders: Vec<Arc<GraphTextEncoder>>,
}

impl Unet for FrugalUnet {
    fn predict(&self, input: &UnetInput) -> Result<Array4<f32>, Cause> {
        for encoder in &self.text_encoders {
            encoder.release();
        }
        self.unet.predict(input)
    }

    fn terminate(&self) {
        self.unet.terminate();
    }
}

/// A VAE that works in memory that the UNet gives back, and gives it back.
pub(super) struct FrugalVae {
    pub(super) vae: GraphVae,
    pub(super) unet: Arc<GraphUnet>,
}

impl FrugalVae {
    fn alone<T>(&self, work: impl FnOnce(&GraphVae) -> T) -> T {
        self.unet.shrink();
        let answer = work(&self.vae);
        self.vae.shrink();
        answer
    }
}

impl Vae for FrugalVae {
    fn encode(&self, pixels: &Array4<f32>) -> Result<Posterior, Cause> {
        self.alone(|vae| vae.encode(pixels))
    }

    fn decode(&self, latent: &Array4<f32>) -> Result<Array4<f32>, Cause> {
        self.alone(|vae| vae.decode(latent))
    }
}
