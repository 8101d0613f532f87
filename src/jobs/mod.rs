//! The queue, progress, interrupt and skip. May use pipeline.
//!
//! Requests take a place in a bounded queue, fair between clients and first come, first served within one;
//! as many threads as jobs may run at once carry them out. What A1111 keeps in its global `state` is the
//! [`Board`] of each job here.

mod board;
mod engine;
mod meter;
mod preview;
mod queue;
mod store;
mod tasks;
mod terminal;

pub use board::{Board, PreviewOptions, Progress, StateFields, TaskProgress};
pub use engine::{Engine, GraphRuns};
pub use meter::Meter;
pub use queue::{Cancelled, JobError, JobView, Jobs, QueueLimits, Ticket, Whereabouts};
pub use store::{ATTEMPT_LIMIT, Inserted, KeptState, Record, Store, StoreError, Webhook, now_ms};
pub use tasks::new_task_id;
