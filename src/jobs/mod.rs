//! The queue, progress, interrupt and skip. May use pipeline.
//!
//! Requests take a place in a bounded queue, first come, first served; one thread carries them out.
//! What A1111 keeps in its global `state` is the [`Board`] here.

mod board;
mod engine;
mod preview;
mod queue;
mod tasks;
mod terminal;

pub use board::{Board, PreviewOptions, Progress, StateFields, TaskProgress};
pub use engine::Engine;
pub use queue::{JobError, Jobs, Ticket};
pub use tasks::new_task_id;
