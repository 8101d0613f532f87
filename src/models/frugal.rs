//! Parts of a checkpoint that make room for each other.
//!
//! Where a checkpoint does not fit into the memory budget as a whole, or is a large one on a CPU, the text towers are
//! loaded when a prompt is encoded that was not before, and the UNet at the first step. For that the towers are let go of:
//! always where the budget is too small, else where the steps outweigh loading them again. Before and after a picture is
//! decoded or encoded, what UNet and VAE worked in is given back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ndarray::Array4;

use super::networks::{GraphTextEncoder, GraphUnet, GraphVae};
use super::rest::JobCount;
use crate::pipeline::{Posterior, Vae};
use crate::runtime::give_back_free_memory;
use crate::sampling::{Cause, Unet, UnetInput};

/// When the text towers make room for a UNet.
pub(super) enum Room {
    /// Before every step: there is none for both.
    EveryStep,
    /// Before the first step, unless other jobs run, which may need them.
    Once { jobs: JobCount, made: AtomicBool },
}

impl Room {
    pub(super) fn once(jobs: JobCount) -> Self {
        Self::Once {
            jobs,
            made: AtomicBool::new(false),
        }
    }

    fn is_wanted(&self) -> bool {
        match self {
            Self::EveryStep => true,
            Self::Once { jobs, made } => !made.swap(true, Ordering::Relaxed) && jobs.running() <= 1,
        }
    }
}

/// A UNet for whose steps the text towers make room.
pub(super) struct FrugalUnet {
    pub(super) unet: Arc<dyn Unet>,
    pub(super) text_encoders: Vec<Arc<GraphTextEncoder>>,
    pub(super) room: Room,
}

impl Unet for FrugalUnet {
    fn predict(&self, input: &UnetInput) -> Result<Array4<f32>, Cause> {
        if self.room.is_wanted() {
            for encoder in &self.text_encoders {
                encoder.release();
            }
            if matches!(self.room, Room::Once { .. }) {
                give_back_free_memory();
            }
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
    /// Memory that decoding in one piece may take where no flag says so; `None`: what is free.
    pub(super) piece_bytes: Option<u64>,
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
        self.alone(|vae| vae.decode_within(latent, self.piece_bytes))
    }
}
