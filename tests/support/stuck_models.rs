//! The toy networks with a UNet that hangs in one of its calls until it is told to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ancestral::jobs::Engine;
use ancestral::pipeline::{
    BuiltInUpscalers, Cause, ExtrasParams, ExtrasResult, Family, GenerateError, GenerationParams,
    GenerationResult, JobControl, Model, ModelProvider, ModelRequest, NoFaceNetworks, ShortHash,
    Stop, extras, generate,
};
use ancestral::sampling::{Latent, Unet, UnetInput};
use ancestral::scripts::{ScriptCall, run_script};
use ndarray::Array4;
use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::toy_models::ToyModels;

/// Hangs in the call after `free_calls`, once.
pub(crate) struct StuckEngine {
    unet: Arc<StuckUnet>,
    /// Instead of hanging, the job's control says that it is interrupted after this many steps.
    interrupt_after: Option<usize>,
}

struct StuckUnet {
    free_calls: usize,
    calls: AtomicUsize,
    hangs: Mutex<Option<oneshot::Sender<()>>>,
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl StuckEngine {
    /// An engine that hangs, and what tells that it does.
    pub(crate) fn hanging(free_calls: usize) -> (Self, oneshot::Receiver<()>) {
        let (sender, receiver) = oneshot::channel();
        (Self::new(free_calls, Some(sender), None), receiver)
    }

    /// An engine whose jobs are interrupted between two calls.
    pub(crate) fn interrupted_after(steps: usize) -> Self {
        Self::new(usize::MAX, None, Some(steps))
    }

    fn new(
        free_calls: usize,
        hangs: Option<oneshot::Sender<()>>,
        interrupt_after: Option<usize>,
    ) -> Self {
        Self {
            unet: Arc::new(StuckUnet {
                free_calls,
                calls: AtomicUsize::new(0),
                hangs: Mutex::new(hangs),
                stopped: Mutex::new(false),
                changed: Condvar::new(),
            }),
            interrupt_after,
        }
    }
}

impl Unet for StuckUnet {
    fn predict(&self, input: &UnetInput) -> Result<Array4<f32>, Cause> {
        if self.calls.fetch_add(1, Ordering::Relaxed) == self.free_calls {
            if let Some(hangs) = self.hangs.lock().take() {
                let _ = hangs.send(());
            }
            let mut stopped = self.stopped.lock();
            while !*stopped {
                self.changed.wait(&mut stopped);
            }
            return Err("stopped".into());
        }
        let model = ToyModels.load(&ModelRequest::default())?;
        model.unet.predict(input)
    }

    fn terminate(&self) {
        *self.stopped.lock() = true;
        self.changed.notify_all();
    }
}

struct StuckModels(Arc<StuckUnet>);

impl ModelProvider for StuckModels {
    fn load(&self, request: &ModelRequest) -> Result<Arc<Model>, Cause> {
        let model = ToyModels.load(request)?;
        Ok(Arc::new(Model {
            unet: Arc::clone(&self.0) as Arc<dyn Unet>,
            ..(*model).clone()
        }))
    }

    fn knows(&self, _checkpoint: &str) -> bool {
        true
    }
}

/// Says that the job is interrupted after some steps.
struct InterruptedAfter<'a> {
    inner: &'a dyn JobControl,
    steps: usize,
    seen: AtomicUsize,
}

#[rustfmt::skip]
impl JobControl for InterruptedAfter<'_> {
    fn interrupted(&self) -> bool { self.seen.load(Ordering::Relaxed) >= self.steps }
    fn skipped(&self) -> bool { self.inner.skipped() }
    fn clear_skip(&self) { self.inner.clear_skip(); }
    fn set_job_count(&self, count: i64) { self.inner.set_job_count(count); }
    fn set_job(&self, job: &str) { self.inner.set_job(job); }
    fn next_job(&self) { self.inner.next_job(); }
    fn set_sampling_steps(&self, step_count: usize) { self.inner.set_sampling_steps(step_count); }
    fn step(&self, index: usize, preview: &Latent, family: Family) {
        self.seen.fetch_add(1, Ordering::Relaxed);
        self.inner.step(index, preview, family);
    }
    fn stop_with(&self, stop: Option<Stop>) { self.inner.stop_with(stop); }
    fn set_text(&self, text: Option<&str>) { self.inner.set_text(text); }
    fn random_seed(&self) -> i64 { self.inner.random_seed() }
    fn timestamp(&self) -> String { self.inner.timestamp() }
}

impl Engine for StuckEngine {
    fn generate(
        &self,
        params: &GenerationParams,
        control: &dyn JobControl,
    ) -> Result<GenerationResult, GenerateError> {
        let models = StuckModels(Arc::clone(&self.unet));
        match self.interrupt_after {
            None => generate(params, &models, control),
            Some(steps) => {
                let control = InterruptedAfter {
                    inner: control,
                    steps,
                    seen: AtomicUsize::new(0),
                };
                generate(params, &models, &control)
            }
        }
    }

    fn run_script(
        &self,
        script: &ScriptCall,
        params: &GenerationParams,
        control: &dyn JobControl,
    ) -> Result<GenerationResult, GenerateError> {
        run_script(
            script,
            params,
            &StuckModels(Arc::clone(&self.unet)),
            control,
        )
    }

    fn extras(
        &self,
        params: &ExtrasParams,
        control: &dyn JobControl,
    ) -> Result<ExtrasResult, GenerateError> {
        extras(params, &BuiltInUpscalers, &NoFaceNetworks, control)
    }

    fn load(&self, _request: &ModelRequest) -> Result<ShortHash, GenerateError> {
        Ok(ShortHash::known(""))
    }

    fn unload(&self) {}
}
