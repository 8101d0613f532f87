//! What is done once nobody has asked for anything for a while.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::runtime::BackgroundWork;

/// Counts jobs, and does its work once after the last one, when none has run for a while.
pub(super) struct RestWatch {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    running: usize,
    /// Of them, those that wait for the others' memory.
    waiting: usize,
    /// When the last job ended; `None`: the work is done.
    idle_since: Option<Instant>,
    is_over: bool,
}

/// Tells how many jobs run.
pub(super) struct JobCount(Weak<Shared>);

impl JobCount {
    pub(super) fn running(&self) -> usize {
        let shared = self.0.upgrade();
        shared.map_or(0, |shared| shared.lock().running)
    }
}

/// A job that runs, until it is dropped.
#[must_use]
pub struct RunningJob(Weak<Shared>);

impl RestWatch {
    /// Does `work` on a thread of its own when no job has run for `after`. Without a thread it is never done.
    pub(super) fn start(after: Duration, work: impl Fn() + Send + 'static) -> Self {
        let shared = Arc::new(Shared::default());
        let watched = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("rest".to_owned());
        if let Err(error) = thread.spawn(move || watched.watch(after, &work)) {
            tracing::warn!(%error, "memory is not given back when idle: no thread");
        }
        Self { shared }
    }

    pub(super) fn job_count(&self) -> JobCount {
        JobCount(Arc::downgrade(&self.shared))
    }

    /// Waits until every other job has ended or waits here too; one after the other goes on then.
    pub(super) fn wait_for_others(&self) {
        let mut state = self.shared.lock();
        state.waiting += 1;
        self.shared.changed.notify_all();
        while state.running > state.waiting {
            state = self
                .shared
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.waiting -= 1;
    }

    /// A job runs until the answer is dropped.
    pub(super) fn job(&self) -> RunningJob {
        self.shared.change(|state| state.running += 1);
        RunningJob(Arc::downgrade(&self.shared))
    }
}

impl Drop for RestWatch {
    fn drop(&mut self) {
        self.shared.change(|state| state.is_over = true);
    }
}

impl Drop for RunningJob {
    fn drop(&mut self) {
        if let Some(shared) = self.0.upgrade() {
            shared.change(|state| {
                state.running -= 1;
                state.idle_since = Some(Instant::now());
            });
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    fn watch(&self, after: Duration, work: &dyn Fn()) {
        let mut state = self.lock();
        while !state.is_over {
            let left = match state.idle_since {
                Some(since) if state.running == 0 => after.saturating_sub(since.elapsed()),
                _ => {
                    state = self
                        .changed
                        .wait(state)
                        .unwrap_or_else(PoisonError::into_inner);
                    continue;
                }
            };
            if left.is_zero() {
                state.idle_since = None;
                drop(state);
                let begun = BackgroundWork::begin();
                work();
                drop(begun);
                state = self.lock();
            } else {
                state = self
                    .changed
                    .wait_timeout(state, left)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn the_work_is_done_once_after_the_last_job() {
        let (done, seen) = channel();
        let watch = RestWatch::start(Duration::ZERO, move || done.send(()).unwrap());
        let first = watch.job();
        let second = watch.job();
        drop(first);
        assert!(seen.try_recv().is_err(), "a job still runs");
        drop(second);
        seen.recv_timeout(Duration::from_mins(1)).unwrap();
        drop(watch.job());
        seen.recv_timeout(Duration::from_mins(1)).unwrap();
        drop(watch);
        assert!(seen.recv().is_err(), "its thread ends with it");
    }

    #[test]
    fn those_who_wait_for_the_others_go_on_one_by_one() {
        let watch = Arc::new(RestWatch::start(Duration::from_mins(1), || ()));
        let (told, seen) = channel();
        let drawing = watch.job();
        let waiting: Vec<_> = (0..2)
            .map(|_| {
                let (watch, told) = (Arc::clone(&watch), told.clone());
                let job = watch.job();
                let (go_on, may_end) = channel::<()>();
                let thread = std::thread::spawn(move || {
                    watch.wait_for_others();
                    told.send(()).unwrap();
                    may_end.recv().unwrap();
                    drop(job);
                });
                (thread, go_on)
            })
            .collect();
        while watch.shared.lock().waiting < 2 {
            std::thread::yield_now();
        }
        assert!(seen.try_recv().is_err(), "another job draws");
        drop(drawing);
        seen.recv_timeout(Duration::from_mins(1)).unwrap();
        assert_eq!(
            watch.shared.lock().waiting,
            1,
            "the other waits for the first"
        );
        assert!(seen.try_recv().is_err());
        for (_, go_on) in &waiting {
            go_on.send(()).unwrap();
        }
        seen.recv_timeout(Duration::from_mins(1)).unwrap();
        for (thread, _) in waiting {
            thread.join().unwrap();
        }
        watch.wait_for_others();
    }
}
