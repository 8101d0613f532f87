//! What a request costs in text: the prompt language, the tokenizer, infotexts, reading a body and
//! building an answer.

use std::hint::black_box;
use std::sync::Arc;

use ancestral::api::{TXT2IMG, generation_answer, read_body};
use ancestral::conditioning::{EmbeddingIndex, Emphasis, Tokenizer, split_chunks};
use ancestral::config::Options;
use ancestral::infotext::{ParseSettings, parse, write};
use ancestral::pipeline::{GeneratedImage, GenerationResult, InfotextDraft};
use ancestral::prompt::{
    PassSteps, WildcardMap, expand_random, expand_schedule, extract_extra_networks, parse_emphasis,
};
use criterion::{Criterion, criterion_group, criterion_main};
use image::{DynamicImage, RgbImage};
use serde_json::{Map, Value, json};

const PROMPT: &str = "portrait of a woman in a (red:1.2) coat, (detailed, sharp focus:1.3), autumn forest, [soft:hard:0.4] light, \
    golden hour, ((bokeh)), 85mm lens, film grain, [leaves|rain], wind in her hair, looking at viewer, masterpiece, best quality, \
    intricate, volumetric fog, warm colours, rule of thirds, cinematic <lora:film:0.7> <lora:coat:1:0.5>";
const NEGATIVE: &str =
    "(monochrome:1.3), lowres, blurry, bad anatomy, jpeg artifacts, watermark, text, cropped";

fn prompts(c: &mut Criterion) {
    let mut group = c.benchmark_group("prompt");
    group.bench_function("emphasis", |b| b.iter(|| parse_emphasis(black_box(PROMPT))));
    group.bench_function("schedule", |b| {
        b.iter(|| expand_schedule(black_box(PROMPT), PassSteps::first_pass(28)));
    });
    group.bench_function("extra networks", |b| {
        b.iter(|| extract_extra_networks(black_box(PROMPT)));
    });
    for (name, tokenizer) in [
        ("CLIP L", Tokenizer::ClipL),
        ("OpenCLIP", Tokenizer::OpenClip),
    ] {
        group.bench_function(format!("{name} tokens"), |b| {
            b.iter(|| tokenizer.tokens(black_box(PROMPT)));
        });
    }
    group.bench_function("chunks", |b| {
        let embeddings = EmbeddingIndex::default();
        b.iter(|| {
            let text = black_box(PROMPT);
            split_chunks(
                text,
                Tokenizer::OpenClip,
                Emphasis::Original,
                20,
                &embeddings,
            )
        });
    });
    group.bench_function("dynamic prompt", |b| {
        let wildcards = WildcardMap::default();
        let template =
            "a {red|green|blue} {2$$ and $$cat|dog|bird} in ${where=!{a forest|a city}} ${where}";
        b.iter(|| expand_random(black_box(template), &[7], &wildcards));
    });
    group.finish();
}

/// Keys in the order of a real answer's last line.
fn pairs() -> Vec<(String, Value)> {
    let values = json!({
        "Steps": 28, "Sampler": "Euler a", "Schedule type": "Automatic", "CFG scale": 6, "Seed": 1,
        "Size": "640x896", "Model hash": "0123456789", "Model": "fine-tune", "Clip skip": 2, "ENSD": 31340,
        "Hires upscale": 1.5, "Hires upscaler": "Latent", "Version": "v1.10.1",
    });
    let Value::Object(fields) = values else {
        unreachable!("an object was written");
    };
    fields.into_iter().collect()
}

fn infotexts(c: &mut Criterion) {
    let mut group = c.benchmark_group("infotext");
    let pairs = pairs();
    group.bench_function("write", |b| {
        b.iter(|| write(black_box(PROMPT), NEGATIVE, &pairs));
    });
    let text = write(PROMPT, NEGATIVE, &pairs);
    group.bench_function("parse", |b| {
        b.iter(|| parse(black_box(&text), &ParseSettings::default()));
    });
    group.finish();
}

fn result(picture_count: usize) -> GenerationResult {
    let picture = RgbImage::from_fn(512, 512, |x, y| {
        image::Rgb([x as u8, y as u8, (x * y / 512) as u8])
    });
    let text = write(PROMPT, NEGATIVE, &pairs());
    let image = GeneratedImage {
        image: Arc::new(DynamicImage::ImageRgb8(picture)),
        infotext: Some(text.clone()),
    };
    GenerationResult {
        images: vec![image; picture_count],
        all_prompts: vec![PROMPT.to_owned(); picture_count],
        all_negative_prompts: vec![NEGATIVE.to_owned(); picture_count],
        all_seeds: (1..=picture_count as i64).collect(),
        all_subseeds: (1..=picture_count as i64).collect(),
        seed: 1,
        subseed: 1,
        subseed_strength: 0.0,
        width_px: 512,
        height_px: 512,
        sampler: "Euler a".to_owned(),
        cfg_scale: 6.0,
        step_count: 28,
        batch_size: picture_count,
        restore_faces: false,
        face_restoration_model: None,
        model_name: "model".to_owned(),
        model_short_hash: "0123456789".to_owned(),
        vae_file: None,
        seed_resize_from: (-1, -1),
        denoising_strength: None,
        extra_generation_params: Map::new(),
        index_of_first_image: 0,
        infotexts: vec![text; picture_count],
        styles: Vec::new(),
        job_timestamp: "20240101000000".to_owned(),
        clip_skip: 1,
        is_using_inpainting_conditioning: false,
        version: "v1.10.1".to_owned(),
        first_text: InfotextDraft::default(),
        comments: Vec::new(),
    }
}

fn answers(c: &mut Criterion) {
    let mut group = c.benchmark_group("request");
    let sent = json!({
        "prompt": PROMPT, "negative_prompt": NEGATIVE, "steps": 28, "cfg_scale": 6, "width": 640, "height": 896,
        "sampler_name": "Euler a", "seed": 1, "override_settings": {"eta_noise_seed_delta": 31340},
    })
    .to_string();
    group.bench_function("read txt2img", |b| {
        b.iter(|| read_body(None, black_box(sent.as_bytes()), TXT2IMG));
    });
    let picture = json!({"prompt": "x", "script_name": "A".repeat(4 << 20)}).to_string();
    group.bench_function("read a body of 4 MiB", |b| {
        b.iter(|| read_body(None, black_box(picture.as_bytes()), TXT2IMG));
    });
    let Ok(body) = read_body(None, sent.as_bytes(), TXT2IMG) else {
        unreachable!("the request is well-formed");
    };
    let mut options = Options::default();
    options.set("samples_format", json!("png"));
    options.set("enable_pnginfo", json!(true));
    for count in [1, 4] {
        let result = result(count);
        group.bench_function(format!("answer of {count} 512x512, with PNG"), |b| {
            b.iter(|| generation_answer(black_box(&result), &body, &options, &options, None));
        });
        let Ok(answer) = generation_answer(&result, &body, &options, &options, None) else {
            unreachable!("the pictures can be encoded");
        };
        group.bench_function(format!("answer of {count} as text"), |b| {
            b.iter(|| serde_json::to_vec(black_box(&answer)));
        });
    }
    group.finish();
}

criterion_group!(benches, prompts, infotexts, answers);
criterion_main!(benches);
