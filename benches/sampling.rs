//! What a walk costs beside its UNet: samplers, schedules, guidance and noise, at the latent sizes of
//! 512x512 and 640x896. The network is a copy of its input.

use std::hint::black_box;
use std::ops::ControlFlow;
use std::sync::Arc;

use ancestral::rng::{
    BrownianNoise, ImageRng, ImageRngParams, NoiseGenerator, Philox, SeedResize, TorchCpu,
};
use ancestral::sampling::guidance::{GuidedDenoiser, GuidedDenoiserParams, NoiseSpace};
use ancestral::sampling::schedulers::Levels;
use ancestral::sampling::{
    AlphaOptions, Cause, ContextPadding, Denoiser, GuidanceOptions, Latent, PictureConditioning,
    Prediction, Preview, PromptPart, RunContext, SAMPLERS, SCHEDULERS, Sampler, SamplerOptions,
    SamplingModel, SamplingPlan, ScheduleOptions, ScheduledConditioning, SigmaTable, Start,
    TextCondition, Unet, UnetInput, find_sampler, find_scheduler, run,
    scaled_linear_alphas_cumprod,
};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use ndarray::{Array2, Array4};

/// Height and width of the latents of 512x512 and 640x896.
const LATENT_SIZES: [(usize, usize); 2] = [(64, 64), (112, 80)];
const STEP_COUNT: usize = 20;

/// Answers with what it is asked about.
struct Echo;

impl Unet for Echo {
    fn predict(&self, input: &UnetInput) -> Result<Array4<f32>, Cause> {
        Ok(input.sample.clone())
    }
}

fn alphas() -> Arc<[f32]> {
    scaled_linear_alphas_cumprod(0.00085, 0.012, 1000).into()
}

fn model() -> SamplingModel {
    SamplingModel {
        unet: Arc::new(Echo),
        prediction: Prediction::Velocity,
        alphas_cumprod: alphas(),
        is_edit: false,
    }
}

/// A prompt of one chunk, as wide as SD 2.x's.
fn text() -> TextCondition {
    TextCondition {
        end_at_step: 1000,
        context: Arc::new(Array2::zeros((77, 1024))),
        vector: None,
    }
}

fn conditioning(picture_count: usize) -> ScheduledConditioning {
    let picture = PictureConditioning {
        positive: vec![PromptPart {
            weight: 1.0,
            schedule: vec![text()],
        }],
        negative: vec![text()],
    };
    ScheduledConditioning {
        pictures: vec![picture; picture_count],
    }
}

fn image_rng(shape: (usize, usize, usize)) -> ImageRng {
    ImageRng::new(ImageRngParams {
        generator: NoiseGenerator::Cpu,
        shape,
        seeds: vec![1],
        subseeds: vec![0],
        subseed_strength: 0.0,
        seed_resize: SeedResize::default(),
        eta_noise_seed_delta: 31337,
    })
}

fn plan(sampler: &'static Sampler, noise: Latent) -> SamplingPlan {
    SamplingPlan {
        sampler,
        scheduler: find_scheduler("Automatic").expect("it is in the table"),
        step_count: STEP_COUNT,
        start: Start::Txt2Img,
        noise,
        model: model(),
        alpha_options: AlphaOptions::default(),
        quantize: false,
        schedule: ScheduleOptions::default(),
        options: SamplerOptions::default(),
        guidance: GuidanceOptions::default(),
        conditioning: conditioning(1),
        image_conditioning: None,
        mask: None,
        preview: Preview::Prompt,
        brownian: (NoiseGenerator::Cpu, vec![1]),
    }
}

fn samplers(c: &mut Criterion) {
    let mut group = c.benchmark_group("20 steps without UNet");
    for sampler in &SAMPLERS {
        group.bench_function(BenchmarkId::new(sampler.name, "64x64"), |b| {
            b.iter(|| {
                let mut rng = image_rng((4, 64, 64));
                let context = RunContext {
                    noise: &mut rng,
                    interrupted: &|| false,
                    on_step: &mut |_| ControlFlow::Continue(()),
                    refiner: None,
                };
                // The start noise costs the same for all and has a benchmark of its own.
                let noise = Array4::from_elem((1, 4, 64, 64), 0.5);
                run(plan(sampler, noise), context).expect("the walk ends")
            });
        });
    }
    let euler_a = find_sampler("Euler a").expect("it is in the table");
    group.bench_function(BenchmarkId::new("Euler a", "112x80"), |b| {
        b.iter(|| {
            let mut rng = image_rng((4, 112, 80));
            let noise = rng.first();
            let context = RunContext {
                noise: &mut rng,
                interrupted: &|| false,
                on_step: &mut |_| ControlFlow::Continue(()),
                refiner: None,
            };
            run(plan(euler_a, noise), context).expect("the walk ends")
        });
    });
    group.finish();
}

fn schedules(c: &mut Criterion) {
    let table = SigmaTable::new(&alphas(), AlphaOptions::default(), false);
    let options = ScheduleOptions::default();
    let mut group = c.benchmark_group("schedule of 28");
    for scheduler in SCHEDULERS.iter().filter(|one| !one.is_automatic()) {
        group.bench_function(scheduler.label, |b| {
            b.iter(|| scheduler.sigmas(black_box(28), Levels::Full(&table), &options));
        });
    }
    group.bench_function("table", |b| {
        let alphas = alphas();
        b.iter(|| SigmaTable::new(black_box(&alphas), AlphaOptions::default(), false));
    });
    group.finish();
}

fn guidance(c: &mut Criterion) {
    let mut group = c.benchmark_group("guided call without UNet");
    for (height, width) in LATENT_SIZES {
        for batch in [1, 4] {
            let name = format!("{batch} of {height}x{width}");
            group.bench_function(name, |b| {
                let mut denoiser = GuidedDenoiser::new(GuidedDenoiserParams {
                    model: model(),
                    space: NoiseSpace::Sigma,
                    alpha_options: AlphaOptions::default(),
                    quantize: false,
                    conditioning: conditioning(batch),
                    options: GuidanceOptions {
                        padding: ContextPadding::Separate,
                        ..GuidanceOptions::default()
                    },
                    scale_multiplier: 1.0,
                    total_steps: STEP_COUNT,
                    image_conditioning: None,
                    mask: None,
                    preview: Preview::Prompt,
                    refiner: None,
                    interrupted: &|| false,
                });
                let x = Array4::from_elem((batch, 4, height, width), 0.5);
                b.iter(|| denoiser.denoise(black_box(&x), 3.0).expect("the call ends"));
            });
        }
    }
    group.finish();
}

fn noise(c: &mut Criterion) {
    let mut group = c.benchmark_group("noise");
    for (height, width) in LATENT_SIZES {
        let count = 4 * height * width;
        group.bench_function(BenchmarkId::new("torch CPU", count), |b| {
            b.iter(|| TorchCpu::new(1).normal(black_box(count)));
        });
        group.bench_function(BenchmarkId::new("Philox", count), |b| {
            b.iter(|| Philox::new(1).normal(black_box(count)));
        });
        group.bench_function(BenchmarkId::new("Brownian, 20 steps", count), |b| {
            let table = SigmaTable::new(&alphas(), AlphaOptions::default(), false);
            let karras = find_scheduler("Karras").expect("it is in the table");
            let sigmas = karras
                .sigmas(
                    STEP_COUNT,
                    Levels::Full(&table),
                    &ScheduleOptions::default(),
                )
                .expect("twenty steps can be laid out");
            let last = sigmas[STEP_COUNT - 1];
            b.iter(|| {
                let shape = (4, height, width);
                let mut path =
                    BrownianNoise::new(NoiseGenerator::Cpu, shape, last, sigmas[0], &[1]);
                for pair in sigmas[..STEP_COUNT].windows(2) {
                    black_box(path.between(pair[0], pair[1]));
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, samplers, schedules, guidance, noise);
criterion_main!(benches);
