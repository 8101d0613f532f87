//! Routes, extractors, authentication, CORS and error bodies. May use api, jobs, catalogue and config;
//! the only room that names actix.
//!
//! Follows A1111 v1.10.1's HTTP surface. Handlers never compute: what takes time goes through the queue.

mod body;
mod client;
mod cors;
mod current_model;
mod edge;
mod extras;
mod fallback;
mod fetch;
mod generation;
mod health;
mod host;
mod internal;
mod job_request;
mod lists;
mod login;
mod options;
mod page;
mod quirks;
mod respond;
mod routes;
mod server_control;
mod state;
mod throttle;
mod training;
mod v1;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use tokio::sync::Notify;

use crate::api::{PictureAccess, StyleBook};
use crate::catalogue::Catalogue;
use crate::config::{Config, Settings};
use crate::jobs::{Engine, Jobs};
use crate::pipeline::PictureSaver;

pub use current_model::CurrentModel;
pub use edge::surround;
pub use fetch::Fetcher;
pub use routes::{Known, configure};
pub use throttle::Throttle;
pub use v1::Kept;

/// Everything that handlers share.
pub struct Server {
    pub config: Config,
    pub settings: Settings,
    pub jobs: Jobs,
    pub engine: Arc<dyn Engine>,
    pub catalogue: Arc<Catalogue>,
    pub styles: Arc<dyn StyleBook>,
    /// The jobs that were submitted to `/v1/jobs`.
    pub kept: Kept,
    /// Brings pictures from addresses.
    pub fetcher: Fetcher,
    /// Counts wrong logins.
    pub throttle: Throttle,
    /// The first checkpoint is loaded, or was not asked for.
    pub ready: AtomicBool,
    pub saver: Arc<dyn PictureSaver>,
    /// Ends the process at once.
    pub exit: fn(i32) -> !,
    /// Somebody asked the process to end.
    pub stop: Notify,
    pub started: Instant,
}

impl Server {
    /// How pictures of requests are reached.
    fn pictures(&self) -> PictureAccess<'_> {
        PictureAccess {
            fetcher: &self.fetcher,
            max_pixels: self.config.limits.input_pixels,
        }
    }
}
