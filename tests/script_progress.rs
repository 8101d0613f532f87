//! What a script tells while it runs, and how it stops: the real pipeline over toy networks.

#[path = "support/in_process.rs"]
mod in_process;
#[path = "support/toy_models.rs"]
mod toy_models;

use std::sync::{Arc, Mutex};

use ancestral::api::{
    DynamicPromptsSetting, IMG2IMG, NoStyles, ResolveContext, Resolved, TXT2IMG, read_body,
    resolve_img2img, resolve_txt2img,
};
use ancestral::config::Settings;
use ancestral::jobs::Engine as _;
use ancestral::pipeline::{
    Family, GeneratedImage, GenerationResult, JobControl, NoSaver, PictureListener,
};
use ancestral::sampling::Latent;
use in_process::{InProcess, picture};
use serde_json::{Value, json};
use toy_models::ToyEngine;

/// Remembers what it is told; interrupts or skips at a step of the whole run.
#[derive(Debug, Default)]
struct Watcher {
    told: Mutex<Told>,
    interrupt_at: Option<usize>,
    skip_at: Option<usize>,
}

#[derive(Debug, Default)]
struct Told {
    counts: Vec<i64>,
    jobs: Vec<String>,
    done: usize,
    steps: usize,
    interrupted: bool,
    skipped: bool,
}

impl JobControl for Watcher {
    fn interrupted(&self) -> bool {
        self.told.lock().expect("a lock").interrupted
    }
    fn skipped(&self) -> bool {
        self.told.lock().expect("a lock").skipped
    }
    fn clear_skip(&self) {
        self.told.lock().expect("a lock").skipped = false;
    }
    fn set_job_count(&self, count: i64) {
        self.told.lock().expect("a lock").counts.push(count);
    }
    fn set_job(&self, job: &str) {
        self.told.lock().expect("a lock").jobs.push(job.to_owned());
    }
    fn next_job(&self) {
        self.told.lock().expect("a lock").done += 1;
    }
    fn set_sampling_steps(&self, _step_count: usize) {}
    fn step(&self, _index: usize, _preview: &Latent, _family: Family) {
        let mut told = self.told.lock().expect("a lock");
        told.steps += 1;
        told.interrupted |= Some(told.steps) == self.interrupt_at;
        told.skipped |= Some(told.steps) == self.skip_at;
    }
    fn stop_with(&self, _stop: Option<Arc<dyn Fn() + Send + Sync>>) {}
    fn set_text(&self, _text: Option<&str>) {}
    fn random_seed(&self) -> i64 {
        5
    }
    fn timestamp(&self) -> String {
        "20240131120000".to_owned()
    }
}

fn resolved(is_img2img: bool, changes: Value) -> Resolved {
    struct AnyCheckpoint;
    impl ancestral::api::CheckpointNames for AnyCheckpoint {
        fn is_alias(&self, _name: &str) -> bool {
            true
        }
    }
    let mut body = json!({"prompt": "a", "seed": 1, "steps": 2, "width": 64, "height": 64});
    for (key, value) in changes.as_object().expect("an object") {
        body[key] = value.clone();
    }
    let context = ResolveContext {
        options: Settings::in_memory().snapshot(),
        checkpoints: &AnyCheckpoint,
        styles: &NoStyles,
        saver: Arc::new(NoSaver),
        upscalers: ["None", "Lanczos"].map(str::to_owned).to_vec(),
        dynamic_prompts: DynamicPromptsSetting::default(),
        noise_on_cpu: true,
    };
    let read = |schema| read_body(None, body.to_string().as_bytes(), schema).expect("a body");
    if is_img2img {
        resolve_img2img(read(IMG2IMG), &context).expect("resolves")
    } else {
        resolve_txt2img(read(TXT2IMG), &context).expect("resolves")
    }
}

fn run(is_img2img: bool, changes: Value, watcher: &Watcher) -> GenerationResult {
    let mut resolved = resolved(is_img2img, changes);
    if let Some(img2img) = &mut resolved.params.img2img {
        let picture = image::RgbImage::from_fn(64, 64, |x, y| image::Rgb([x as u8, y as u8, 9]));
        img2img.init_images = vec![picture.into()];
    }
    let script = resolved.script.as_ref().expect("a script");
    ToyEngine
        .run_script(script, &resolved.params, watcher)
        .expect("a result")
}

fn xyz(flags: &[(usize, Value)]) -> Value {
    let mut arguments = json!([
        1,
        "1,2,3",
        [],
        0,
        "",
        [],
        0,
        "",
        [],
        false,
        true,
        false,
        false,
        false,
        false,
        false,
        0,
        false
    ]);
    for (index, value) in flags {
        arguments[*index] = value.clone();
    }
    json!({"script_name": "X/Y/Z plot", "script_args": arguments})
}

#[test]
fn a_plot_counts_all_its_batches_and_says_which_cell_it_is_at() {
    let watcher = Watcher::default();
    let mut request = xyz(&[]);
    request["n_iter"] = json!(2);
    let result = run(false, request, &watcher);
    assert_eq!(result.images.len(), 4);
    let told = watcher.told.into_inner().expect("a lock");
    assert_eq!(told.counts, [6]);
    assert_eq!(told.done, 6);
    let cells: Vec<&String> = told
        .jobs
        .iter()
        .filter(|job| !job.starts_with("Batch"))
        .collect();
    assert_eq!(cells, ["1 out of 3", "2 out of 3", "3 out of 3"]);
}

#[test]
fn hires_fix_doubles_the_count_once() {
    let watcher = Watcher::default();
    let mut request = xyz(&[]);
    request["enable_hr"] = json!(true);
    request["denoising_strength"] = json!(0.5);
    run(false, request, &watcher);
    let told = watcher.told.into_inner().expect("a lock");
    assert_eq!(told.counts, [6]);
    assert_eq!(told.done, 6);
}

#[test]
fn every_picture_is_told_of_before_the_next_batch_is_drawn() {
    /// Steps of the job so far with every picture.
    #[derive(Debug, Default)]
    struct Listener {
        watcher: Watcher,
        pictures: Mutex<Vec<(usize, GeneratedImage)>>,
    }
    impl PictureListener for Listener {
        fn finished(&self, picture: &GeneratedImage) {
            let steps = self.watcher.told.lock().expect("a lock").steps;
            let mut pictures = self.pictures.lock().expect("a lock");
            pictures.push((steps, picture.clone()));
        }
    }
    let listener = Arc::new(Listener::default());
    let mut resolved = resolved(false, json!({"batch_size": 2, "n_iter": 2}));
    resolved.params.listener = Some(Arc::clone(&listener) as _);
    let result = ToyEngine
        .generate(&resolved.params, &listener.watcher)
        .expect("a result");
    let told = listener.pictures.lock().expect("a lock");
    let steps: Vec<usize> = told.iter().map(|(steps, _)| *steps).collect();
    assert_eq!(steps, [2, 2, 4, 4]);
    let answered = &result.images[result.index_of_first_image..];
    assert_eq!(answered.len(), told.len());
    for (answered, (_, told)) in answered.iter().zip(&*told) {
        assert!(Arc::ptr_eq(&answered.image, &told.image));
        assert_eq!(answered.infotext, told.infotext);
    }
}

#[test]
fn an_interrupted_plot_answers_with_what_it_has() {
    let watcher = Watcher {
        interrupt_at: Some(3),
        ..Watcher::default()
    };
    let result = run(false, xyz(&[]), &watcher);
    assert_eq!(result.images.len(), 4);
    let black = |index: usize| {
        result.images[index]
            .image
            .to_rgb8()
            .pixels()
            .all(|it| it.0 == [0; 3])
    };
    assert!(!black(1) && black(3));
    assert_eq!(watcher.told.into_inner().expect("a lock").steps, 3);
}

#[test]
fn a_skipped_batch_of_a_plot_is_followed_by_the_next() {
    let watcher = Watcher {
        skip_at: Some(3),
        ..Watcher::default()
    };
    let result = run(false, xyz(&[]), &watcher);
    assert_eq!(result.images.len(), 4);
    assert_eq!(watcher.told.into_inner().expect("a lock").steps, 5);
}

#[test]
fn loops_tiles_and_lines_are_counted() {
    let cases = [
        (
            true,
            "Loopback",
            json!([3, 0.5, "Lazy", "None"]),
            6,
            "Iteration 1/3, batch 1/2",
        ),
        (
            true,
            "SD upscale",
            json!(["", 32, 1, 2.0]),
            18,
            "Batch 1 out of 18",
        ),
        (
            true,
            "Poor man's outpainting",
            json!([32, 2, 0, ["left"]]),
            0,
            "Batch 1 out of",
        ),
        (
            true,
            "Outpainting mk2",
            json!(["", 32, 2, ["left", "up"], 1.0, 0.05]),
            4,
            "Batch 1 out of 2",
        ),
        (
            false,
            "Prompts from file or textbox",
            json!([false, false, "start", "a\nb\nc"]),
            6,
            "1 out of 6",
        ),
    ];
    for (is_img2img, name, arguments, count, first) in cases {
        let watcher = Watcher::default();
        let request = json!({
            "script_name": name, "script_args": arguments, "n_iter": 2,
            "init_images": [picture(64, 64)],
        });
        run(is_img2img, request, &watcher);
        let told = watcher.told.into_inner().expect("a lock");
        assert_eq!(told.counts.len(), 1, "{name}");
        assert_eq!(told.counts[0], told.done as i64, "{name}");
        assert!(
            count == 0 || told.counts[0] == count,
            "{name}: {:?}",
            told.counts
        );
        assert!(told.jobs[0].starts_with(first), "{name}: {}", told.jobs[0]);
    }
}

#[actix_web::test]
async fn scripts_and_templates_keep_to_the_servers_limits() {
    let server = InProcess::new(&[
        "--max-pictures",
        "4",
        "--max-steps",
        "10",
        "--max-megapixels",
        "1",
        "--dynamic-prompts",
        "on",
    ]);
    let plot = |axis: u8, values: &str| {
        let flags = [(0, json!(axis)), (1, json!(values))];
        xyz(&flags)
    };
    for (request, flag) in [
        (plot(1, "1-5"), "--max-pictures"),
        (plot(4, "11"), "--max-steps"),
        (plot(41, "2048x2048"), "--max-megapixels"),
        (
            json!({"script_name": "Prompt matrix", "prompt": "a|b|c|d"}),
            "--max-pictures",
        ),
        (
            json!({
                "prompt": "{a|b|c|d|e}",
                "alwayson_scripts": {"Dynamic Prompts v2.17.1": {"args": [true, true]}},
            }),
            "--max-pictures",
        ),
    ] {
        let reply = server.txt2img(&request).await;
        assert_eq!(reply.status, 500, "{request}");
        let text = reply.json()["errors"].to_string();
        assert!(text.contains(flag), "{request}: {text}");
    }
    let reply = server.txt2img(&plot(1, "1-4")).await;
    assert_eq!(reply.status, 200);
}
