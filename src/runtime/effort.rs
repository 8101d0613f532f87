//! How much a session's load does for the sake of its runs.
//!
//! On a CPU most of a large UNet's load is one thread that lays the weights of convolutions out anew (ONNX Runtime's
//! NCHWc transformation, an optimisation of its last level). Without it the load takes a sixth of the time and a run
//! about 8 % more (docs/PERFORMANCE.md).

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use ort::environment::ThreadManager;
use ort::session::builder::{GraphOptimizationLevel, LoadCanceler, SessionBuilder};
use parking_lot::Mutex;

use super::external_data::InPlace;

/// How a session is loaded.
#[derive(Clone, Copy, Default)]
pub enum LoadEffort<'a> {
    /// With every optimisation.
    #[default]
    Full,
    /// Without what takes long. Weights that the runtime then leaves where they are are read into memory.
    Quick,
    /// As `Full`, but so that what else runs has the processor first, and until it is told to stop.
    Background(&'a LoadStop),
}

/// Ends a load in the background, also one that has not begun.
#[derive(Default)]
pub struct LoadStop {
    is_stopped: AtomicBool,
    canceler: Mutex<Option<LoadCanceler>>,
}

impl LoadStop {
    /// The load fails as soon as the runtime looks.
    pub fn stop(&self) {
        self.is_stopped.store(true, Ordering::SeqCst);
        if let Some(canceler) = &*self.canceler.lock()
            && let Err(error) = canceler.cancel()
        {
            tracing::debug!(%error, "a load could not be stopped");
        }
    }

    /// Whether [`Self::stop`] was called.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.is_stopped.load(Ordering::SeqCst)
    }
}

impl LoadEffort<'_> {
    /// Which of a graph's weights the runtime uses where they are.
    pub(super) fn left_in_place(self, has_matrix_unit: bool) -> InPlace {
        InPlace {
            convolutions: matches!(self, Self::Quick),
            own_layers: has_matrix_unit,
        }
    }

    /// The builder of a session that is loaded with this effort; `threads` are those of one operator.
    pub(super) fn apply(
        self,
        builder: SessionBuilder,
        threads: usize,
    ) -> Result<SessionBuilder, String> {
        let words = |error: ort::Error<SessionBuilder>| error.to_string();
        match self {
            Self::Full => Ok(builder),
            Self::Quick => builder
                .with_optimization_level(GraphOptimizationLevel::Level2)
                .map_err(words),
            Self::Background(stop) => {
                *stop.canceler.lock() = Some(builder.canceler());
                if stop.is_stopped() {
                    return Err("its load was stopped".to_owned());
                }
                let workers = threads.saturating_sub(1);
                if workers == 0 {
                    lower_priority();
                }
                builder
                    .with_thread_manager(Workers {
                        missing: AtomicUsize::new(workers),
                    })
                    .map_err(words)
            }
        }
    }
}

/// Starts the workers of a session that is loaded in the background. A thread inherits its priority, so that the
/// loading thread lowers its own only once the workers are there.
struct Workers {
    missing: AtomicUsize,
}

impl ThreadManager for Workers {
    type Thread = JoinHandle<()>;

    fn create(&self, work: impl FnOnce() + Send + 'static) -> ort::Result<Self::Thread> {
        /// What threads of the C library have, by which the runtime's kernels are written.
        const STACK_BYTES: usize = 8 << 20;
        let worker = std::thread::Builder::new()
            .name("graph".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(work)
            .map_err(|error| ort::Error::new(error.to_string()))?;
        if self.missing.fetch_sub(1, Ordering::SeqCst) == 1 {
            lower_priority();
        }
        Ok(worker)
    }

    fn join(thread: Self::Thread) -> ort::Result<()> {
        thread
            .join()
            .map_err(|_| ort::Error::new("a worker of a session panicked"))
    }
}

/// The calling thread gets what the others leave. Elsewhere than on Linux priorities belong to processes, and this
/// does nothing.
pub fn lower_priority() {
    #[cfg(target_os = "linux")]
    #[expect(
        unsafe_code,
        reason = "the standard library knows no priorities; the call takes no pointer"
    )]
    // SAFETY: on Linux `setpriority` with the number 0 changes the calling thread alone, and may be called at any time.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, 19);
    }
}
