//! The state of the running job, as `/progress`, `/interrupt` and `/skip` see it.
//!
//! Follows A1111 v1.10.1's `shared.state`: idle, everything but `job` and `job_count` keeps its last
//! value. Previews are made when somebody asks for progress, not before.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::Instant;

use image::DynamicImage;
use parking_lot::Mutex;

use super::preview::preview;
use super::tasks::Tasks;
use super::terminal::Terminal;
use crate::pipeline::{Family, JobControl, MAX_RANDOM_SEED};
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

/// A1111's `state` and its task ids.
#[derive(Debug)]
pub struct Board {
    inner: Mutex<Inner>,
    terminal: Terminal,
}

#[derive(Debug)]
struct Inner {
    state: StateFields,
    tasks: Tasks,
    begin: Instant,
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
            inner: Mutex::new(Inner {
                state: StateFields {
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
                tasks: Tasks::default(),
                begin: Instant::now(),
                text: None,
                latest: None,
                preview: None,
                preview_id: 0,
                preview_step: 0,
                preview_options: PreviewOptions {
                    enabled: true,
                    every_steps: 10,
                    grid: true,
                },
            }),
            terminal: Terminal::new(terminal_bars),
        }
    }

    /// Stops the running job; without one only the flag shows it, until the next job begins.
    pub fn interrupt(&self) {
        self.inner.lock().state.interrupted = true;
    }

    /// Ends the running batch.
    pub fn skip(&self) {
        self.inner.lock().state.skipped = true;
    }

    /// The ids of waiting tasks, in their order.
    #[must_use]
    pub fn pending_tasks(&self) -> Vec<String> {
        self.inner.lock().tasks.pending().to_vec()
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

    /// The progress of one task; `known_preview` is the id of the preview that the caller has.
    #[must_use]
    pub fn task_progress(
        &self,
        id: Option<&str>,
        options: PreviewOptions,
        known_preview: i64,
        want_preview: bool,
    ) -> TaskProgress {
        let mut inner = self.inner.lock();
        let active = inner.tasks.is_active(id);
        let place = inner.tasks.place(id);
        let mut answer = TaskProgress {
            active,
            queued: place.is_some(),
            completed: inner.tasks.is_finished(id),
            progress: None,
            eta_s: None,
            preview: None,
            preview_id: -1,
            text: None,
        };
        if !active {
            answer.text = Some(match place {
                Some(place) => format!("In queue: {}/{}", place + 1, inner.tasks.pending().len()),
                None => "Waiting...".to_owned(),
            });
            return answer;
        }
        let progress = inner.fraction().min(1.0);
        let elapsed_s = inner.begin.elapsed().as_secs_f64();
        answer.progress = Some(progress);
        answer.eta_s = (progress > 0.0).then(|| elapsed_s / progress - elapsed_s);
        answer.preview_id = known_preview;
        answer.text.clone_from(&inner.text);
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

    pub(super) fn add_task(&self, id: &str) {
        self.inner.lock().tasks.add(id);
    }

    pub(super) fn remove_task(&self, id: &str) {
        self.inner.lock().tasks.remove(id);
    }

    /// A job begins: `job` is A1111's first text for it, for example `scripts_txt2img`.
    pub(super) fn begin(&self, job: &str, task: Option<&str>) {
        let mut inner = self.inner.lock();
        let state = &mut inner.state;
        state.skipped = false;
        state.interrupted = false;
        state.stopping_generation = false;
        job.clone_into(&mut state.job);
        state.job_count = -1;
        state.job_no = 0;
        state.job_timestamp = local_timestamp();
        state.sampling_step = 0;
        inner.begin = Instant::now();
        inner.text = None;
        inner.latest = None;
        inner.preview = None;
        inner.preview_id = 0;
        inner.preview_step = 0;
        inner.tasks.start(task);
    }

    pub(super) fn end(&self, succeeded: bool) {
        self.terminal.finish();
        let mut inner = self.inner.lock();
        inner.state.job.clear();
        inner.state.job_count = 0;
        inner.latest = None;
        inner.tasks.finish(succeeded);
    }
}

impl Inner {
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
        self.inner.lock().state.sampling_steps = step_count as i64;
        self.terminal.begin(step_count);
    }

    fn step(&self, index: usize, preview: &Latent, family: Family) {
        let mut inner = self.inner.lock();
        inner.state.sampling_step = index as i64;
        inner.latest = Some((preview.clone(), family));
        drop(inner);
        self.terminal.step(index);
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

    fn latent() -> Latent {
        Array4::zeros((1, 4, 8, 8))
    }

    #[test]
    fn an_idle_board_reports_zeros_and_keeps_the_last_job() {
        let board = Board::new(false);
        assert_eq!(board.progress(DEFAULTS, true).state.job_timestamp, "0");
        board.begin("scripts_txt2img", None);
        board.set_job_count(2);
        board.next_job();
        board.set_sampling_steps(20);
        board.interrupt();
        board.end(true);
        let idle = board.progress(DEFAULTS, true);
        assert!(idle.progress.abs() < f64::EPSILON);
        assert_eq!(idle.state.job, "");
        assert_eq!(idle.state.job_count, 0);
        assert_eq!((idle.state.job_no, idle.state.sampling_steps), (1, 20));
        assert!(idle.state.interrupted);
    }

    #[test]
    fn progress_follows_a1111s_arithmetic() {
        let board = Board::new(false);
        board.begin("scripts_txt2img", None);
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
    fn a_preview_appears_after_ten_steps_and_only_on_a_poll() {
        let board = Board::new(false);
        board.begin("scripts_txt2img", Some("a"));
        board.set_job_count(1);
        board.set_sampling_steps(20);
        board.step(9, &latent(), Family::Sd1);
        assert!(board.progress(DEFAULTS, true).preview.is_none());
        board.step(10, &latent(), Family::Sd1);
        assert!(board.progress(DEFAULTS, true).preview.is_some());
        assert!(board.progress(DEFAULTS, false).preview.is_none());
        let task = board.task_progress(Some("a"), DEFAULTS, -1, true);
        assert_eq!(task.preview_id, 1);
        assert!(task.preview.is_some());
        let task = board.task_progress(Some("a"), DEFAULTS, 1, true);
        assert_eq!(task.preview_id, 1);
        assert!(task.preview.is_none());
    }

    #[test]
    fn a_new_job_clears_the_flags() {
        let board = Board::new(false);
        board.interrupt();
        board.skip();
        board.begin("scripts_img2img", None);
        assert!(!board.interrupted() && !board.skipped());
    }

    #[test]
    fn task_progress_tells_waiting_from_unknown() {
        let board = Board::new(false);
        board.add_task("a");
        board.add_task("b");
        let queued = board.task_progress(Some("b"), DEFAULTS, -1, false);
        assert_eq!(queued.text.as_deref(), Some("In queue: 2/2"));
        let unknown = board.task_progress(Some("c"), DEFAULTS, -1, false);
        assert_eq!(unknown.text.as_deref(), Some("Waiting..."));
        assert!(board.task_progress(None, DEFAULTS, -1, false).active);
    }
}
