//! What a picture costs beside its graphs: conversion from the VAE's output, PNG, base64, resizing,
//! mask blur.

use std::hint::black_box;
use std::io::Cursor;

use ancestral::imaging::{
    Filter, blur_mask, decode_base64, encode_jpeg, encode_png, encode_webp, latent_filter,
    resize_grey, resize_latent, resize_rgb, tensor_to_picture,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use image::{DynamicImage, GrayImage, Luma, Rgb, RgbImage};
use ndarray::{Array3, Array4};

const SIZES: [(u32, u32); 3] = [(512, 512), (640, 896), (1280, 1792)];
const INFOTEXT: &str = "a red apple\nNegative prompt: lowres\nSteps: 20, Sampler: Euler a, Schedule type: Automatic, \
    CFG scale: 7, Seed: 1, Size: 512x512, Model hash: 0123456789, Model: model, Version: v1.10.1";

/// Smooth shapes under a little noise, about as hard to compress as a photograph.
fn picture(width: u32, height: u32) -> RgbImage {
    let mut state = 1_u32;
    RgbImage::from_fn(width, height, |x, y| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let grain = (state >> 29) as f32;
        let (u, v) = (x as f32 / width as f32, y as f32 / height as f32);
        let level = |phase: f32| 120.0 + 100.0 * (7.0 * u + 5.0 * v * v + phase).sin() + grain;
        Rgb([level(0.0) as u8, level(1.0) as u8, level(2.0) as u8])
    })
}

fn encoding(c: &mut Criterion) {
    let mut group = c.benchmark_group("encode");
    for (width, height) in SIZES {
        let size = format!("{width}x{height}");
        let rgb = picture(width, height);
        group.throughput(Throughput::Bytes(rgb.as_raw().len() as u64));
        let tensor = Array3::from_shape_fn((3, height as usize, width as usize), |(c, y, x)| {
            f32::from(rgb.get_pixel(x as u32, y as u32)[c]) / 127.5 - 1.0
        });
        group.bench_function(BenchmarkId::new("tensor to pixels", &size), |b| {
            b.iter(|| tensor_to_picture(black_box(tensor.view())));
        });
        let picture = DynamicImage::ImageRgb8(rgb);
        let texts = [("parameters", INFOTEXT)];
        group.bench_function(BenchmarkId::new("PNG", &size), |b| {
            b.iter(|| encode_png(black_box(&picture), &texts));
        });
        let file = encode_png(&picture, &texts).expect("it has pixels");
        group.bench_function(BenchmarkId::new("base64", &size), |b| {
            b.iter(|| STANDARD.encode(black_box(&file)));
        });
        if width == 512 {
            group.bench_function(BenchmarkId::new("JPEG", &size), |b| {
                b.iter(|| encode_jpeg(black_box(&picture), 80, INFOTEXT));
            });
            group.bench_function(BenchmarkId::new("WebP", &size), |b| {
                b.iter(|| encode_webp(black_box(&picture), 80, false, INFOTEXT));
            });
        }
    }
    group.finish();
}

fn decoding(c: &mut Criterion) {
    let mut file = Cursor::new(Vec::new());
    DynamicImage::ImageRgb8(picture(512, 512))
        .write_to(&mut file, image::ImageFormat::Png)
        .expect("it has pixels");
    let text = STANDARD.encode(file.get_ref());
    c.bench_function("decode/init image 512x512", |b| {
        b.iter(|| decode_base64(black_box(&text)));
    });
}

fn resizing(c: &mut Criterion) {
    let mut group = c.benchmark_group("resize");
    let small = picture(512, 512);
    for (name, filter) in [("lanczos", Filter::Lanczos), ("nearest", Filter::Nearest)] {
        group.bench_function(BenchmarkId::new(name, "512x512 to 1024x1024"), |b| {
            b.iter(|| resize_rgb(black_box(&small), 1024, 1024, filter));
        });
    }
    let mask = GrayImage::from_fn(512, 512, |x, _| Luma([if x < 200 { 0 } else { 255 }]));
    group.bench_function("mask to latent", |b| {
        b.iter(|| resize_grey(black_box(&mask), 64, 64, Filter::Lanczos));
    });
    let latent = Array4::from_elem((1, 4, 64, 64), 0.5_f32);
    let filter = latent_filter("Latent").expect("it is in the table");
    group.bench_function("latent 64x64 to 128x128", |b| {
        b.iter(|| resize_latent(black_box(&latent), 128, 128, filter));
    });
    group.bench_function("mask blur 4", |b| {
        b.iter(|| blur_mask(black_box(&mask), 4.0, 4.0));
    });
    group.finish();
}

criterion_group!(benches, encoding, decoding, resizing);
criterion_main!(benches);
