//! The state of one job, as `/progress`, `/interrupt` and `/skip` see it.
//!
//! Follows A1111 v1.10.1's `shared.state`: idle, everything but `job` and `job_count` keeps its last
//! value. Previews are made when somebody asks for progress, not before.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::Instant;

use image::DynamicImage;
use parking_lot::Mutex;

use super::meter::Meter;
use super::preview::preview;
use super::terminal::Terminal;
use crate::pipeline::{Family, JobControl, MAX_RANDOM_SEED, Stop};
use crate::sampling::Latent;

/// The fields of `state` in A1111's order.
#[derive(Debug, Clone, PartialEq)]
pub struct StateFields {
    pub skipped: bool,
    pub interrupted: bool,
    pub stopping_generation: bool,
    pub job: String,
    pub job_count: i64,
    /// `YYYYMMDDHHMMSS` in local time; `0` before the first job.
    pub job_timestamp: String,
    pub job_no: i64,
    pub sampling_step: i64,
    pub sampling_steps: i64,
}

/// The options that say whether and how previews are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PreviewOptions {
    /// `live_previews_enable`
    pub enabled: bool,
    /// `show_progress_every_n_steps`; -1: after each finished batch only.
    pub every_steps: i64,
    /// `show_progress_grid`
    pub grid: bool,
}

/// The answer of `/sdapi/v1/progress`.
#[derive(Debug, Clone)]
pub struct Progress {
    pub progress: f64,
    pub eta_relative: f64,
    pub state: StateFields,
    pub preview: Option<Arc<DynamicImage>>,
    pub text: Option<String>,
}

/// The answer of `/internal/progress`.
#[derive(Debug, Clone)]
pub struct TaskProgress {
    pub active: bool,
    pub queued: bool,
    pub completed: bool,
    pub progress: Option<f64>,
    pub eta_s: Option<f64>,
    /// A preview that the caller does not have yet.
    pub preview: Option<Arc<DynamicImage>>,
    pub preview_id: i64,
    pub text: Option<String>,
}

/// What ends the work in flight.
#[derive(Default)]
struct StopSlot(Mutex<Option<Stop>>);

impl StopSlot {
    fn call(&self) {
        // Called without the lock: the work that ends may empty the slot.
        let stop = self.0.lock().clone();
        if let Some(stop) = stop {
            stop();
        }
    }
}

impl std::fmt::Debug for StopSlot {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("StopSlot")
    }
}

/// A1111's `state`, of one job.
#[derive(Debug)]
pub struct Board {
    inner: Mutex<Inner>,
    stop: StopSlot,
    terminal: Arc<Terminal>,
    meter: Meter,
    /// The job's id, if it has one.
    task: Option<String>,
}

#[derive(Debug)]
struct Inner {
    state: StateFields,
    begin: Instant,
    /// When the last step, or the sampler call, was noted.
    step_begin: Instant,
    text: Option<String>,
    latest: Option<(Latent, Family)>,
    preview: Option<Arc<DynamicImage>>,
    preview_id: i64,
    preview_step: i64,
    /// With `show_progress_every_n_steps` -1 a finished batch leaves a preview.
    preview_options: PreviewOptions,
}

impl Board {
    /// An idle board; `terminal_bars` draws progress bars where standard error is a terminal.
    #[must_use]
    pub fn new(terminal_bars: bool) -> Self {
        Self {
            inner: Mutex::new(Inner::new(
                StateFields {
                    skipped: false,
                    interrupted: false,
                    stopping_generation: false,
                    job: String::new(),
                    job_count: 0,
                    job_timestamp: "0".to_owned(),
                    job_no: 0,
                    sampling_step: 0,
                    sampling_steps: 0,
                },
                PreviewOptions {
                    enabled: true,
                    every_steps: 10,
                    grid: true,
                },
            )),
            stop: StopSlot::default(),
            terminal: Arc::new(Terminal::new(terminal_bars)),
            meter: Meter::default(),
            task: None,
        }
    }

    /// The id of the job.
    pub(super) fn task(&self) -> Option<&str> {
        self.task.as_deref()
    }

    /// The board of a job that begins after this one: what A1111 keeps from job to job is carried over.
    /// `job` is A1111's first text for it, for example `scripts_txt2img`.
    pub(super) fn following(&self, job: &str, task: Option<String>, meter: Meter) -> Self {
        let previous = self.inner.lock();
        Self {
            inner: Mutex::new(Inner::new(
                StateFields {
                    skipped: false,
                    interrupted: false,
                    stopping_generation: false,
                    job: job.to_owned(),
                    job_count: -1,
                    job_timestamp: local_timestamp(),
                    job_no: 0,
                    sampling_step: 0,
                    sampling_steps: previous.state.sampling_steps,
                },
                previous.preview_options,
            )),
            stop: StopSlot::default(),
            terminal: Arc::clone(&self.terminal),
            meter,
            task,
        }
    }

    /// Stops the running job; without one only the flag shows it, until the next job begins.
    pub fn interrupt(&self) {
        self.inner.lock().state.interrupted = true;
        self.stop.call();
    }

    /// Ends the running batch.
    pub fn skip(&self) {
        self.inner.lock().state.skipped = true;
        self.stop.call();
    }

    /// The options that the running job makes previews by while nobody asks: with
    /// `show_progress_every_n_steps` -1 every finished batch leaves one.
    pub fn set_preview_options(&self, options: PreviewOptions) {
        self.inner.lock().preview_options = options;
    }

    /// The progress of the running job. `options` decide whether a new preview is made.
    #[must_use]
    pub fn progress(&self, options: PreviewOptions, want_preview: bool) -> Progress {
        let mut inner = self.inner.lock();
        if inner.state.job_count == 0 {
            return Progress {
                progress: 0.0,
                eta_relative: 0.0,
                state: inner.state.clone(),
                preview: None,
                text: None,
            };
        }
        let progress = 0.01 + inner.fraction();
        let elapsed_s = inner.begin.elapsed().as_secs_f64();
        inner.preview_options = options;
        inner.refresh_preview();
        Progress {
            progress: progress.min(1.0),
            eta_relative: elapsed_s / progress - elapsed_s,
            state: inner.state.clone(),
            preview: inner.preview.clone().filter(|_| want_preview),
            text: inner.text.clone(),
        }
    }

    /// The progress of the running job for `/internal/progress`; `known_preview` is the id of the preview
    /// that the caller has.
    pub(super) fn task_progress(
        &self,
        completed: bool,
        options: PreviewOptions,
        known_preview: i64,
        want_preview: bool,
    ) -> TaskProgress {
        let mut inner = self.inner.lock();
        let progress = inner.fraction().min(1.0);
        let elapsed_s = inner.begin.elapsed().as_secs_f64();
        let mut answer = TaskProgress {
            active: true,
            queued: false,
            completed,
            progress: Some(progress),
            eta_s: (progress > 0.0).then(|| elapsed_s / progress - elapsed_s),
            preview: None,
            preview_id: known_preview,
            text: inner.text.clone(),
        };
        if want_preview {
            inner.preview_options = options;
            inner.refresh_preview();
            if inner.preview_id != known_preview {
                answer.preview.clone_from(&inner.preview);
                if answer.preview.is_some() {
                    answer.preview_id = inner.preview_id;
                }
            }
        }
        answer
    }

    /// The job is over; what A1111 shows while idle stays.
    pub(super) fn end(&self) {
        self.terminal.finish();
        let mut inner = self.inner.lock();
        inner.state.job.clear();
        inner.state.job_count = 0;
        inner.latest = None;
    }
}

impl TaskProgress {
    /// A job that does not run: it waits at `place` (from 0) of `pending`, or nobody knows it.
    pub(super) fn waiting(completed: bool, place: Option<usize>, pending: usize) -> Self {
        Self {
            active: false,
            queued: place.is_some(),
            completed,
            progress: None,
            eta_s: None,
            preview: None,
            preview_id: -1,
            text: Some(match place {
                Some(place) => format!("In queue: {}/{pending}", place + 1),
                None => "Waiting...".to_owned(),
            }),
        }
    }
}

impl Inner {
    fn new(state: StateFields, preview_options: PreviewOptions) -> Self {
        Self {
            state,
            begin: Instant::now(),
            step_begin: Instant::now(),
            text: None,
            latest: None,
            preview: None,
            preview_id: 0,
            preview_step: 0,
            preview_options,
        }
    }

    /// A1111's arithmetic, uncapped: with a job count of -1 the second term is negative.
    fn fraction(&self) -> f64 {
        let state = &self.state;
        let job_count = state.job_count as f64;
        let mut progress = 0.0;
        if state.job_count > 0 {
            progress += state.job_no as f64 / job_count;
        }
        if state.sampling_steps > 0 && state.job_count != 0 {
            progress += 1.0 / job_count * state.sampling_step as f64 / state.sampling_steps as f64;
        }
        progress
    }

    /// Makes a new preview if enough steps went by since the last one.
    fn refresh_preview(&mut self) {
        let options = self.preview_options;
        let due = options.every_steps != -1
            && self.state.sampling_step - self.preview_step >= options.every_steps;
        if options.enabled && due {
            self.make_preview();
        }
    }

    fn make_preview(&mut self) {
        let Some((latent, family)) = &self.latest else {
            return;
        };
        if let Some(picture) = preview(latent, *family, self.preview_options.grid) {
            self.preview = Some(Arc::new(picture));
            self.preview_id += 1;
            self.preview_step = self.state.sampling_step;
        }
    }
}

impl JobControl for Board {
    fn interrupted(&self) -> bool {
        self.inner.lock().state.interrupted
    }

    fn skipped(&self) -> bool {
        self.inner.lock().state.skipped
    }

    fn clear_skip(&self) {
        self.inner.lock().state.skipped = false;
    }

    fn set_job_count(&self, count: i64) {
        self.inner.lock().state.job_count = count;
    }

    fn set_job(&self, job: &str) {
        job.clone_into(&mut self.inner.lock().state.job);
    }

    fn next_job(&self) {
        let mut inner = self.inner.lock();
        if inner.preview_options.enabled && inner.preview_options.every_steps == -1 {
            inner.make_preview();
        }
        inner.state.job_no += 1;
        inner.state.sampling_step = 0;
        inner.preview_step = 0;
    }

    fn set_sampling_steps(&self, step_count: usize) {
        let mut inner = self.inner.lock();
        inner.state.sampling_steps = step_count as i64;
        inner.step_begin = Instant::now();
        drop(inner);
        self.terminal.begin(step_count);
    }

    fn step(&self, index: usize, preview: &Latent, family: Family) {
        let mut inner = self.inner.lock();
        inner.state.sampling_step = index as i64;
        inner.latest = Some((preview.clone(), family));
        self.meter.step(inner.step_begin.elapsed());
        inner.step_begin = Instant::now();
        drop(inner);
        self.terminal.step(index);
    }

    fn stop_with(&self, stop: Option<Stop>) {
        *self.stop.0.lock() = stop;
    }

    fn set_text(&self, text: Option<&str>) {
        self.inner.lock().text = text.map(str::to_owned);
    }

    fn random_seed(&self) -> i64 {
        // Every `RandomState` has its own keys, drawn from the operating system's randomness.
        let drawn = RandomState::new().build_hasher().finish();
        (drawn % (MAX_RANDOM_SEED as u64 + 1)) as i64
    }

    fn timestamp(&self) -> String {
        self.inner.lock().state.job_timestamp.clone()
    }
}

fn local_timestamp() -> String {
    jiff::Zoned::now().strftime("%Y%m%d%H%M%S").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array4;

    const DEFAULTS: PreviewOptions = PreviewOptions {
        enabled: true,
        every_steps: 10,
        grid: true,
    };

    fn running() -> Board {
        Board::new(false).following("scripts_txt2img", None, Meter::default())
    }

    fn latent() -> Latent {
        Array4::zeros((1, 4, 8, 8))
    }

    #[test]
    fn an_idle_board_reports_zeros_and_keeps_the_last_job() {
        let board = Board::new(false);
        assert_eq!(board.progress(DEFAULTS, true).state.job_timestamp, "0");
        let board = running();
        board.set_job_count(2);
        board.next_job();
        board.set_sampling_steps(20);
        board.interrupt();
        board.end();
        let idle = board.progress(DEFAULTS, true);
        assert!(idle.progress.abs() < f64::EPSILON);
        assert_eq!(idle.state.job, "");
        assert_eq!(idle.state.job_count, 0);
        assert_eq!((idle.state.job_no, idle.state.sampling_steps), (1, 20));
        assert!(idle.state.interrupted);
    }

    #[test]
    fn progress_follows_a1111s_arithmetic() {
        let board = running();
        assert!((board.progress(DEFAULTS, false).progress - 0.01).abs() < 1e-12);
        board.set_job_count(2);
        board.set_sampling_steps(60);
        board.step(6, &latent(), Family::Sd2);
        // The recorded value of this very situation.
        assert!(
            (board.progress(DEFAULTS, false).progress - 0.060_000_000_000_000_005).abs() < 1e-15
        );
        board.next_job();
        assert!((board.progress(DEFAULTS, false).progress - 0.51).abs() < 1e-12);
        board.next_job();
        assert!((board.progress(DEFAULTS, false).progress - 1.0).abs() < 1e-12);
    }

    #[test]
    fn a_finished_batch_leaves_a_preview_that_nobody_asked_for() {
        let board = Board::new(false).following("scripts_txt2img", None, Meter::default());
        let finished_only = PreviewOptions {
            every_steps: -1,
            ..DEFAULTS
        };
        board.set_preview_options(finished_only);
        board.set_job_count(2);
        board.set_sampling_steps(20);
        board.step(19, &latent(), Family::Sd1);
        board.next_job();
        assert!(board.progress(finished_only, true).preview.is_some());
    }

    #[test]
    fn a_preview_appears_after_ten_steps_and_only_on_a_poll() {
        let board = running();
        board.set_job_count(1);
        board.set_sampling_steps(20);
        board.step(9, &latent(), Family::Sd1);
        assert!(board.progress(DEFAULTS, true).preview.is_none());
        board.step(10, &latent(), Family::Sd1);
        assert!(board.progress(DEFAULTS, true).preview.is_some());
        assert!(board.progress(DEFAULTS, false).preview.is_none());
        let task = board.task_progress(false, DEFAULTS, -1, true);
        assert_eq!(task.preview_id, 1);
        assert!(task.preview.is_some());
        let task = board.task_progress(false, DEFAULTS, 1, true);
        assert_eq!(task.preview_id, 1);
        assert!(task.preview.is_none());
    }

    #[test]
    fn a_new_job_clears_the_flags() {
        let board = Board::new(false);
        board.interrupt();
        board.skip();
        let board = board.following("scripts_img2img", None, Meter::default());
        assert!(!board.interrupted() && !board.skipped());
    }
}
