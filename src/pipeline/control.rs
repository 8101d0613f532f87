//! How a running job reports its progress and learns that it should stop.

use std::sync::Arc;

use crate::sampling::Latent;

use super::{Family, GeneratedImage};

/// Ends the work in flight; may be called from any thread and at any time.
pub type Stop = Arc<dyn Fn() + Send + Sync>;

/// The owner of a running job: `jobs` fulfils it with A1111's `state`, tests with [`Unattended`].
pub trait JobControl: Send + Sync {
    /// Whether the whole job should end with what it has.
    fn interrupted(&self) -> bool;
    /// Whether the current batch should end with what it has.
    fn skipped(&self) -> bool;
    /// A new batch begins: the skip flag is cleared.
    fn clear_skip(&self);
    /// A1111's `state.job_count`, the number of batches (doubled by hires fix).
    fn set_job_count(&self, count: i64);
    /// A1111's `state.job`, shown while the batch runs.
    fn set_job(&self, job: &str);
    /// A1111's `state.nextjob()`: one more batch or first pass is done.
    fn next_job(&self);
    /// The number of steps of the sampler call that begins.
    fn set_sampling_steps(&self, step_count: usize);
    /// Step `index` (from 0) was evaluated; `preview` is the latent to show, in the UNet's scale.
    fn step(&self, index: usize, preview: &Latent, family: Family);
    /// What ends the work in flight when the job is interrupted or skipped, on top of what
    /// [`Self::interrupted`] and [`Self::skipped`] say; `None`: that work is over.
    fn stop_with(&self, stop: Option<Stop>);
    /// A1111's `state.textinfo`.
    fn set_text(&self, text: Option<&str>);
    /// A random seed, 0 to 4294967293.
    fn random_seed(&self) -> i64;
    /// When the job began, `YYYYMMDDHHMMSS` in local time.
    fn timestamp(&self) -> String;
}

/// Learns of a job's pictures before the job is over, so that they can be worked on while the next are drawn.
pub trait PictureListener: std::fmt::Debug + Send + Sync {
    /// A picture is as the job will answer it. Told on the job's own thread, which waits: long work belongs elsewhere.
    fn finished(&self, picture: &GeneratedImage);
}

/// A job that nobody watches and nobody stops.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unattended;

impl JobControl for Unattended {
    fn interrupted(&self) -> bool {
        false
    }
    fn skipped(&self) -> bool {
        false
    }
    fn clear_skip(&self) {}
    fn set_job_count(&self, _count: i64) {}
    fn set_job(&self, _job: &str) {}
    fn next_job(&self) {}
    fn set_sampling_steps(&self, _step_count: usize) {}
    fn step(&self, _index: usize, _preview: &Latent, _family: Family) {}
    fn stop_with(&self, _stop: Option<Stop>) {}
    fn set_text(&self, _text: Option<&str>) {}
    fn random_seed(&self) -> i64 {
        0
    }
    fn timestamp(&self) -> String {
        "0".to_owned()
    }
}
