//! Counters of what the queue did, for `/metrics`.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// Seconds; from a step of the embedded model to a queue of hours.
const WAIT_BUCKETS_S: [f64; 10] = [0.01, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0];
/// Seconds; from a GPU's step to a large picture on a CPU.
const STEP_BUCKETS_S: [f64; 10] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0];

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
enum Outcome {
    Done,
    Failed,
    Panicked,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StatusLabel {
    status: u16,
}

/// The counters; clones count together.
#[derive(Debug, Clone)]
pub struct Meter {
    wait: Histogram,
    step: Histogram,
    jobs: Family<OutcomeLabel, Counter>,
    pictures: Counter,
    answers: Family<StatusLabel, Counter>,
    model_switches: Counter,
    /// The checkpoint of the last job.
    checkpoint: Arc<Mutex<Option<String>>>,
    refused: Counter,
}

impl Default for Meter {
    fn default() -> Self {
        Self {
            wait: Histogram::new(WAIT_BUCKETS_S),
            step: Histogram::new(STEP_BUCKETS_S),
            jobs: Family::default(),
            pictures: Counter::default(),
            answers: Family::default(),
            model_switches: Counter::default(),
            checkpoint: Arc::default(),
            refused: Counter::default(),
        }
    }
}

impl Meter {
    /// A job began after waiting so long.
    pub(super) fn started(&self, waited: Duration) {
        self.wait.observe(waited.as_secs_f64());
    }

    /// A job ended; `None`: it panicked.
    pub(super) fn ended(&self, succeeded: Option<bool>) {
        let outcome = match succeeded {
            Some(true) => Outcome::Done,
            Some(false) => Outcome::Failed,
            None => Outcome::Panicked,
        };
        self.jobs.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    /// A sampling step took so long.
    pub(super) fn step(&self, took: Duration) {
        self.step.observe(took.as_secs_f64());
    }

    /// A job was refused because the queue was full.
    pub(super) fn refused(&self) {
        self.refused.inc();
    }

    /// Pictures were handed out.
    pub fn pictures(&self, count: usize) {
        self.pictures.inc_by(count as u64);
    }

    /// A request was answered with this status.
    pub fn answered(&self, status: u16) {
        self.answers.get_or_create(&StatusLabel { status }).inc();
    }

    /// A job was drawn with this checkpoint; another one than the last is a switch.
    pub fn drawn_with(&self, checkpoint: &str) {
        let mut last = self.checkpoint.lock();
        if last.as_deref() != Some(checkpoint) {
            if last.is_some() {
                self.model_switches.inc();
            }
            *last = Some(checkpoint.to_owned());
        }
    }

    /// Puts every counter into `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "queue_wait",
            "Time from the arrival of a job to its begin",
            Unit::Seconds,
            self.wait.clone(),
        );
        registry.register_with_unit(
            "step",
            "Time of one sampling step",
            Unit::Seconds,
            self.step.clone(),
        );
        registry.register("jobs", "Jobs that ended", self.jobs.clone());
        registry.register("pictures", "Pictures handed out", self.pictures.clone());
        registry.register("answers", "Answers by their status", self.answers.clone());
        registry.register(
            "model_switches",
            "Times that a job used another checkpoint than the one before",
            self.model_switches.clone(),
        );
        registry.register(
            "jobs_refused",
            "Jobs refused because too many waited",
            self.refused.clone(),
        );
    }
}
