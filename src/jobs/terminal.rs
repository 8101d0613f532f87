//! The progress bar of a sampler on the terminal.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use parking_lot::Mutex;

/// Draws one bar a sampler call on standard error; silent where that is no terminal.
#[derive(Debug)]
pub(super) struct Terminal {
    active: bool,
    bar: Mutex<Option<ProgressBar>>,
}

impl Terminal {
    pub(super) fn new(wanted: bool) -> Self {
        Self {
            active: wanted && std::io::stderr().is_terminal(),
            bar: Mutex::new(None),
        }
    }

    pub(super) fn begin(&self, step_count: usize) {
        if !self.active {
            return;
        }
        let bar =
            ProgressBar::with_draw_target(Some(step_count as u64), ProgressDrawTarget::stderr());
        let template = "{bar:30} {pos}/{len} steps, {per_sec}, {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        if let Some(previous) = self.bar.lock().replace(bar) {
            previous.finish();
        }
    }

    pub(super) fn step(&self, index: usize) {
        if let Some(bar) = self.bar.lock().as_ref() {
            bar.set_position(index as u64 + 1);
        }
    }

    pub(super) fn finish(&self) {
        if let Some(bar) = self.bar.lock().take() {
            bar.finish();
        }
    }
}
