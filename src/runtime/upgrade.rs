//! A graph whose session was loaded quickly, and the one that takes its place: built in the background, swapped in
//! between two runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use super::effort::LoadStop;
use super::{Graph, RuntimeError, give_back_free_memory};

/// Loads the same graph with [`LoadEffort::Background`](super::LoadEffort::Background).
type Build = dyn Fn(&LoadStop) -> Result<Graph, RuntimeError> + Send + Sync;

/// Threads that use the library beside the jobs.
static AT_WORK: AtomicUsize = AtomicUsize::new(0);

/// Whether the library is used beside the jobs: a session is being built, also for a graph that has gone (the runtime
/// looks only now and then whether a load was stopped), or memory is given back. A process that ends meanwhile should do
/// so at once ([`exit_at_once`](super::exit_at_once)): the library would be torn down under that thread.
#[must_use]
pub fn has_background_work() -> bool {
    AT_WORK.load(Ordering::SeqCst) > 0
}

/// Use of the library beside the jobs, until it is dropped.
pub struct BackgroundWork(());

impl BackgroundWork {
    /// It begins.
    #[must_use]
    pub fn begin() -> Self {
        AT_WORK.fetch_add(1, Ordering::SeqCst);
        Self(())
    }
}

impl Drop for BackgroundWork {
    fn drop(&mut self) {
        AT_WORK.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What a graph needs to become one that runs faster.
pub(super) struct Upgrade {
    build: Arc<Build>,
    stop: Arc<LoadStop>,
    work: AtomicU64,
    has_begun: AtomicBool,
    /// Set at the end, whether it went well or not.
    is_over: AtomicBool,
}

impl Drop for Upgrade {
    fn drop(&mut self) {
        self.stop.stop();
    }
}

impl Graph {
    /// The same graph, which [`Self::upgrade`] replaces by what `build` gives: one of the same inputs and outputs. Its
    /// load is stopped when this graph goes.
    #[must_use]
    pub fn with_upgrade(
        mut self,
        build: impl Fn(&LoadStop) -> Result<Graph, RuntimeError> + Send + Sync + 'static,
    ) -> Self {
        self.upgrade = Some(Upgrade {
            build: Arc::new(build),
            stop: Arc::default(),
            work: AtomicU64::new(0),
            has_begun: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
        });
        self
    }

    /// Notes work that was asked for, in the caller's unit; how much it is altogether. `None`: there is nothing to
    /// upgrade, or that has begun.
    pub fn note_work(&self, work: u64) -> Option<u64> {
        let upgrade = self.upgrade.as_ref()?;
        if upgrade.has_begun.load(Ordering::SeqCst) {
            return None;
        }
        let before = upgrade.work.fetch_add(work, Ordering::SeqCst);
        Some(before.saturating_add(work))
    }

    /// Whether its session is still the one that was loaded quickly.
    #[must_use]
    pub fn is_quick(&self) -> bool {
        self.upgrade
            .as_ref()
            .is_some_and(|upgrade| !upgrade.is_over.load(Ordering::SeqCst))
    }

    /// Whether another session is being built.
    #[must_use]
    pub fn is_upgrading(&self) -> bool {
        self.is_quick()
            && self
                .upgrade
                .as_ref()
                .is_some_and(|upgrade| upgrade.has_begun.load(Ordering::SeqCst))
    }

    /// Builds the faster session on a thread of its own and puts it in place between two runs. Once only; where it
    /// fails the graph stays as it is.
    pub fn upgrade(self: &Arc<Self>) {
        let Some(upgrade) = &self.upgrade else {
            return;
        };
        if upgrade.has_begun.swap(true, Ordering::SeqCst) {
            return;
        }
        let (build, stop) = (Arc::clone(&upgrade.build), Arc::clone(&upgrade.stop));
        let graph = Arc::downgrade(self);
        let begin = Instant::now();
        let begun = BackgroundWork::begin();
        let work = move || {
            let _begun = begun;
            let built = build(&stop);
            // Whoever had the graph may have let go of it meanwhile.
            let Some(graph) = graph.upgrade() else {
                return;
            };
            let is_over = || {
                if let Some(upgrade) = &graph.upgrade {
                    upgrade.is_over.store(true, Ordering::SeqCst);
                }
            };
            match built {
                Ok(faster) => {
                    graph.take_over(faster, is_over);
                    give_back_free_memory();
                    tracing::info!(
                        graph = graph.name(),
                        elapsed_ms = begin.elapsed().as_millis() as u64,
                        "the session for fast runs has taken the place of the one for a quick load"
                    );
                }
                Err(error) => {
                    if stop.is_stopped() {
                        tracing::debug!(%error, "stopped");
                    } else {
                        tracing::warn!(%error, "the session for fast runs could not be made");
                    }
                    is_over();
                }
            }
        };
        let thread = std::thread::Builder::new().name("upgrade".to_owned());
        if let Err(error) = thread.spawn(work) {
            tracing::warn!(%error, "no thread for the session for fast runs");
            upgrade.is_over.store(true, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::super::providers::PROBE;
    use super::super::{
        GraphSource, LibrarySearch, LoadEffort, Runtime, RuntimeOptions, find_library,
    };
    use super::*;

    const LONGEST: Duration = Duration::from_mins(1);

    fn runtime(threads: usize) -> Runtime {
        let search = LibrarySearch {
            explicit: std::env::var_os("ORT_DYLIB_PATH").map(Into::into),
            ..LibrarySearch::default()
        };
        let options = RuntimeOptions {
            threads,
            ..RuntimeOptions::default()
        };
        Runtime::load(&find_library(&search).unwrap(), options).unwrap()
    }

    fn load(runtime: &Runtime, effort: LoadEffort<'_>) -> Result<Graph, RuntimeError> {
        let source = GraphSource::Bytes {
            model: PROBE,
            external_folder: None,
            values: &[],
        };
        Graph::load_with(runtime, "probe", source, effort)
    }

    fn answers(graph: &Graph) -> bool {
        let input = ndarray::arr1(&[-1.0_f32, 2.0]);
        let output = graph.run(&[("x", (&input).into())], &["y"]).unwrap();
        output[0].iter().copied().eq([0.0, 2.0])
    }

    #[test]
    fn runs_go_on_while_the_faster_session_is_built_and_after_it() {
        let runtime = runtime(1);
        let (go, wait) = channel::<()>();
        let wait = std::sync::Mutex::new(wait);
        let (background, is_there) = (runtime.clone(), channel());
        let graph = load(&runtime, LoadEffort::Quick)
            .unwrap()
            .with_upgrade(move |stop| {
                wait.lock().unwrap().recv().unwrap();
                let built = load(&background, LoadEffort::Background(stop));
                is_there.0.send(()).unwrap();
                built
            });
        let graph = Arc::new(graph);
        assert_eq!(graph.note_work(3), Some(3));
        assert_eq!(graph.note_work(4), Some(7));
        assert!(graph.is_quick() && !graph.is_upgrading());
        graph.upgrade();
        assert!(graph.is_quick() && graph.is_upgrading() && answers(&graph));
        assert_eq!(graph.note_work(1), None);
        go.send(()).unwrap();
        is_there.1.recv_timeout(LONGEST).unwrap();
        let begin = Instant::now();
        while graph.is_quick() {
            assert!(begin.elapsed() < LONGEST);
            std::thread::yield_now();
        }
        assert!(answers(&graph));
    }

    #[test]
    fn a_graph_that_goes_stops_the_load_of_its_faster_session() {
        let runtime = runtime(1);
        let (told, stopped) = channel();
        let (has_begun, begun) = channel();
        let (may_end, end) = channel::<()>();
        let end = std::sync::Mutex::new(end);
        let graph = load(&runtime, LoadEffort::Quick)
            .unwrap()
            .with_upgrade(move |stop| {
                has_begun.send(()).unwrap();
                while !stop.is_stopped() {
                    std::thread::yield_now();
                }
                let outcome = load(&runtime, LoadEffort::Background(stop));
                told.send(outcome.is_err()).unwrap();
                end.lock().unwrap().recv().unwrap();
                outcome
            });
        let graph = Arc::new(graph);
        graph.upgrade();
        begun.recv_timeout(LONGEST).unwrap();
        drop(graph);
        assert!(has_background_work());
        assert!(stopped.recv_timeout(LONGEST).unwrap());
        may_end.send(()).unwrap();
    }

    /// Name and nice value of a thread of this process; field 19 of its `stat`, proc(5).
    #[cfg(target_os = "linux")]
    fn niceness(thread: &std::path::Path) -> Option<(String, i32)> {
        let stat = fs_err::read_to_string(thread.join("stat")).ok()?;
        let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
        let nice = rest.split_whitespace().nth(16)?.parse().ok()?;
        Some((name.to_owned(), nice))
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_load_in_the_background_yields_and_its_sessions_workers_do_not() {
        let runtime = runtime(2);
        let (own, workers) = std::thread::spawn(move || {
            let graph = load(&runtime, LoadEffort::Background(&LoadStop::default())).unwrap();
            // A thread has its name, and shows in the list, only once it has run.
            let begin = Instant::now();
            let workers = loop {
                let threads = fs_err::read_dir("/proc/self/task").unwrap();
                let workers: Vec<_> = threads
                    .filter_map(|thread| niceness(&thread.ok()?.path()))
                    .filter(|(name, _)| name == "graph")
                    .map(|(_, nice)| nice)
                    .collect();
                if !workers.is_empty() {
                    break workers;
                }
                assert!(begin.elapsed() < LONGEST);
                std::thread::yield_now();
            };
            assert!(answers(&graph));
            let own = niceness(std::path::Path::new("/proc/thread-self"))
                .unwrap()
                .1;
            (own, workers)
        })
        .join()
        .unwrap();
        let usual = niceness(std::path::Path::new("/proc/thread-self"))
            .unwrap()
            .1;
        assert_eq!(own, 19);
        assert!(workers.iter().all(|nice| *nice == usual), "{workers:?}");
    }
}
