//! `/progress` as it stands after every step of jobs of several batches and passes: the real pipeline
//! over toy networks, in process.

#[path = "support/in_process.rs"]
mod in_process;
#[path = "support/toy_models.rs"]
mod toy_models;

use std::sync::{Arc, Mutex, OnceLock};

use ancestral::app::App;
use ancestral::jobs::{Engine, PreviewOptions, Progress};
use ancestral::pipeline::{
    ExtrasParams, ExtrasResult, GenerateError, GenerationParams, GenerationResult, JobControl,
    ModelRequest, ShortHash, generate,
};
use ancestral::scripts::ScriptCall;
use in_process::InProcess;
use serde_json::{Value, json};
use toy_models::{Observed, ToyEngine, ToyModels};

/// Asks for the progress after every step.
#[derive(Default)]
struct Watching {
    app: OnceLock<App>,
    /// Makes no previews of its own: those that the job leaves show.
    seen: Mutex<Vec<Progress>>,
}

impl Engine for Watching {
    fn generate(
        &self,
        params: &GenerationParams,
        control: &dyn JobControl,
    ) -> Result<GenerationResult, GenerateError> {
        let look = || {
            let options = PreviewOptions {
                enabled: true,
                every_steps: params.options.i64("show_progress_every_n_steps"),
                grid: params.options.bool("show_progress_grid"),
            };
            let board = self.app.get().expect("set").server().jobs.board();
            let progress = board.progress(options, true);
            self.seen.lock().expect("no panic").push(progress);
        };
        generate(params, &ToyModels, &Observed::over(control, &look))
    }

    fn extras(
        &self,
        params: &ExtrasParams,
        control: &dyn JobControl,
    ) -> Result<ExtrasResult, GenerateError> {
        ToyEngine.extras(params, control)
    }

    fn run_script(
        &self,
        script: &ScriptCall,
        params: &GenerationParams,
        control: &dyn JobControl,
    ) -> Result<GenerationResult, GenerateError> {
        ToyEngine.run_script(script, params, control)
    }

    fn load(&self, _request: &ModelRequest) -> Result<ShortHash, GenerateError> {
        Ok(ShortHash::known(""))
    }

    fn unload(&self) {}
}

/// What `/progress` said after every step of one request.
async fn watch(path: &str, request: Value) -> Vec<Progress> {
    let engine = Arc::new(Watching::default());
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = InProcess::with_engine(data, &[], Arc::clone(&engine) as Arc<dyn Engine>);
    assert!(engine.app.set(server.app.clone()).is_ok());
    let reply = match path {
        "txt2img" => server.txt2img(&request).await,
        _ => server.img2img(&request).await,
    };
    assert_eq!(reply.status, 200, "{}", reply.json());
    let idle = server.get("/sdapi/v1/progress").await.json();
    assert_eq!(idle["progress"], 0.0);
    assert_eq!(idle["state"]["job"], "");
    assert_eq!(idle["current_image"], Value::Null);
    std::mem::take(&mut *engine.seen.lock().expect("no panic"))
}

/// `(job, job_count, job_no, sampling_step, sampling_steps)`
fn states(seen: &[Progress]) -> Vec<(&str, i64, i64, i64, i64)> {
    seen.iter()
        .map(|progress| &progress.state)
        .map(|state| {
            (
                state.job.as_str(),
                state.job_count,
                state.job_no,
                state.sampling_step,
                state.sampling_steps,
            )
        })
        .collect()
}

/// A1111's arithmetic.
fn assert_arithmetic(seen: &[Progress]) {
    for progress in seen {
        let state = &progress.state;
        let count = state.job_count as f64;
        let share = state.sampling_step as f64 / state.sampling_steps as f64;
        let want = 0.01 + state.job_no as f64 / count + share / count;
        assert!(
            (progress.progress - want.min(1.0)).abs() < 1e-12,
            "{state:?}"
        );
    }
}

#[actix_web::test]
async fn batches_count_one_after_the_other() {
    let seen = watch("txt2img", json!({"n_iter": 2, "steps": 2})).await;
    assert_eq!(
        states(&seen),
        [
            ("Batch 1 out of 2", 2, 0, 0, 2),
            ("Batch 1 out of 2", 2, 0, 1, 2),
            ("Batch 2 out of 2", 2, 1, 0, 2),
            ("Batch 2 out of 2", 2, 1, 1, 2),
        ]
    );
    assert_arithmetic(&seen);
}

#[actix_web::test]
async fn hires_fix_doubles_the_jobs() {
    let request = json!({
        "enable_hr": true, "denoising_strength": 0.5, "hr_scale": 1.5, "hr_upscaler": "Latent",
        "hr_second_pass_steps": 3, "steps": 2,
    });
    let seen = watch("txt2img", request).await;
    let first_pass = seen.iter().filter(|it| it.state.job_no == 0).count();
    assert_eq!((first_pass, seen.len()), (2, 5));
    assert!(seen.iter().all(|it| it.state.job_count == 2));
    assert_eq!(seen[0].state.sampling_steps, 2);
    assert_eq!(seen[2].state.sampling_steps, 3);
    assert_eq!(seen[2].state.sampling_step, 0);
    assert_arithmetic(&seen);
}

#[actix_web::test]
async fn img2img_counts_the_steps_that_it_runs() {
    let request = json!({"steps": 6, "denoising_strength": 0.5});
    let seen = watch("img2img", request).await;
    let steps: Vec<i64> = seen.iter().map(|it| it.state.sampling_step).collect();
    assert_eq!(steps, [0, 1, 2, 3]);
    assert!(seen.iter().all(|it| it.state.sampling_steps == 4));
    assert_arithmetic(&seen);
}

#[actix_web::test]
async fn previews_follow_their_options() {
    let shown =
        |seen: &[Progress]| -> Vec<bool> { seen.iter().map(|it| it.preview.is_some()).collect() };
    let request = |every: i64| {
        json!({
            "n_iter": 2, "steps": 3, "batch_size": 2,
            "override_settings": {"show_progress_every_n_steps": every},
        })
    };
    // After two steps, and the same picture until a newer one is made.
    let seen = watch("txt2img", request(2)).await;
    assert_eq!(shown(&seen), [false, false, true, true, true, true]);
    let size = |grid: bool| async move {
        let mut request = request(1);
        request["override_settings"]["show_progress_grid"] = json!(grid);
        let seen = watch("txt2img", request).await;
        let preview = seen[1].preview.clone().expect("a preview");
        (preview.width(), preview.height())
    };
    let (single, grid) = (size(false).await, size(true).await);
    assert_eq!(grid.0 * grid.1, 2 * single.0 * single.1);
    // Finished batches leave one without being asked.
    let seen = watch("txt2img", request(-1)).await;
    assert_eq!(shown(&seen), [false, false, false, true, true, true]);
}
