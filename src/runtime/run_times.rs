//! How long graphs ran, so that what the server spends around them can be told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

/// The runs of all graphs of one name; clones count together.
#[derive(Debug, Clone, Default)]
pub(super) struct RunTime {
    runs: Arc<AtomicU64>,
    nanoseconds: Arc<AtomicU64>,
}

impl RunTime {
    /// A run, ended however it may, took so long.
    pub(super) fn add(&self, took: Duration) {
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.runs.fetch_add(1, Ordering::Relaxed);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }
}

/// The runs of every graph, by its name.
#[derive(Debug, Clone, Default)]
pub(super) struct RunTimes(Arc<Mutex<BTreeMap<String, RunTime>>>);

/// The runs of the graphs of one name.
#[derive(Debug, Clone, PartialEq)]
pub struct GraphTime {
    pub graph: String,
    pub runs: u64,
    pub seconds: f64,
}

impl RunTimes {
    pub(super) fn of(&self, graph: &str) -> RunTime {
        self.0.lock().entry(graph.to_owned()).or_default().clone()
    }

    pub(super) fn all(&self) -> Vec<GraphTime> {
        let times = self.0.lock();
        times
            .iter()
            .map(|(graph, time)| GraphTime {
                graph: graph.clone(),
                runs: time.runs.load(Ordering::Relaxed),
                seconds: time.nanoseconds.load(Ordering::Relaxed) as f64 / 1e9,
            })
            .collect()
    }
}
