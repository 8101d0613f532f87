//! Pillow 9.5.0's `Image.resize`, to the byte.
//!
//! Two passes, horizontal then vertical, each only where that size changes, with 8-bit rounding between
//! them. Weights are computed and normalised in f64 and rounded to 22 fractional bits; sums are
//! integers. Alpha is premultiplied before and taken back after, except for nearest, which copies
//! pixels. Hamming and `reducing_gap` are left out: A1111 uses neither.

use image::{DynamicImage, GrayImage, RgbImage};

use super::composite::{premultiply_in_place, unpremultiply_in_place};
use super::pixels::image_of;

const PRECISION_BITS: u32 = 32 - 8 - 2;

/// A resampling filter of Pillow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    Nearest,
    Box,
    Bilinear,
    /// a = -0.5.
    Bicubic,
    /// Three lobes.
    Lanczos,
}

impl Filter {
    fn support(self) -> f64 {
        match self {
            Self::Nearest | Self::Box => 0.5,
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        match self {
            Self::Nearest | Self::Box => f64::from(u8::from(x > -0.5 && x <= 0.5)),
            Self::Bilinear => (1.0 - x.abs()).max(0.0),
            Self::Bicubic => bicubic(x.abs()),
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Self::Lanczos => 0.0,
        }
    }
}

fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let x = x * std::f64::consts::PI;
    x.sin() / x
}

/// Resizes an 8-bit picture of any layout. A size that already fits copies the picture.
///
/// # Panics
/// When a side of the picture or of the wanted size is zero.
#[must_use]
pub fn resize(picture: &DynamicImage, width: u32, height: u32, filter: Filter) -> DynamicImage {
    if (picture.width(), picture.height()) == (width, height) {
        return picture.clone();
    }
    match picture {
        DynamicImage::ImageLuma8(grey) => resize_grey(grey, width, height, filter).into(),
        DynamicImage::ImageRgb8(rgb) => resize_rgb(rgb, width, height, filter).into(),
        DynamicImage::ImageLumaA8(p) => {
            let out = resize_alpha::<2>(p.as_raw(), p.dimensions(), (width, height), filter);
            DynamicImage::ImageLumaA8(image_of(width, height, out))
        }
        other => {
            let rgba = other.to_rgba8();
            let size = rgba.dimensions();
            let out = resize_alpha::<4>(rgba.as_raw(), size, (width, height), filter);
            DynamicImage::ImageRgba8(image_of(width, height, out))
        }
    }
}

/// [`resize`] for RGB.
///
/// # Panics
/// When a side of the picture or of the wanted size is zero.
#[must_use]
pub fn resize_rgb(picture: &RgbImage, width: u32, height: u32, filter: Filter) -> RgbImage {
    let pixels = resize_samples::<3>(picture, picture.dimensions(), (width, height), filter);
    image_of(width, height, pixels)
}

/// [`resize`] for grey.
///
/// # Panics
/// When a side of the picture or of the wanted size is zero.
#[must_use]
pub fn resize_grey(picture: &GrayImage, width: u32, height: u32, filter: Filter) -> GrayImage {
    let pixels = resize_samples::<1>(picture, picture.dimensions(), (width, height), filter);
    image_of(width, height, pixels)
}

fn resize_alpha<const C: usize>(
    pixels: &[u8],
    from: (u32, u32),
    to: (u32, u32),
    filter: Filter,
) -> Vec<u8> {
    if filter == Filter::Nearest {
        return resize_samples::<C>(pixels, from, to, filter);
    }
    let mut premultiplied = pixels.to_vec();
    premultiply_in_place::<C>(&mut premultiplied);
    let mut out = resize_samples::<C>(&premultiplied, from, to, filter);
    unpremultiply_in_place::<C>(&mut out);
    out
}

fn resize_samples<const C: usize>(
    pixels: &[u8],
    from: (u32, u32),
    to: (u32, u32),
    filter: Filter,
) -> Vec<u8> {
    if filter == Filter::Nearest {
        return nearest::<C>(pixels, from, to);
    }
    let source = [0.0, 0.0, f64::from(from.0), f64::from(from.1)];
    resample_box::<C>(pixels, from, to, source, filter)
}

/// Resamples the part `[left, top, right, bottom]` of interleaved samples; the part may be empty, and
/// then its weights extrapolate across the edge as Pillow's do.
pub(super) fn resample_box<const C: usize>(
    pixels: &[u8],
    (from_width, from_height): (u32, u32),
    (to_width, to_height): (u32, u32),
    [left, top, right, bottom]: [f64; 4],
    filter: Filter,
) -> Vec<u8> {
    assert!(
        from_width > 0 && from_height > 0 && to_width > 0 && to_height > 0,
        "height and width must be > 0"
    );
    let whole = |start: f64, end: f64, from: u32, to: u32| {
        from == to && start <= 0.0 && end >= f64::from(to)
    };
    let whole_width = whole(left, right, from_width, to_width);
    let whole_height = whole(top, bottom, from_height, to_height);

    let widened;
    let narrow = if whole_width {
        pixels
    } else {
        let taps = Taps::new(from_width as usize, left..right, to_width as usize, filter);
        widened = horizontal_pass::<C>(pixels, from_width as usize, &taps);
        &widened
    };
    if whole_height {
        return narrow.to_vec();
    }
    let taps = Taps::new(
        from_height as usize,
        top..bottom,
        to_height as usize,
        filter,
    );
    vertical_pass(narrow, to_width as usize * C, &taps)
}

/// Where each output sample begins to read, and its fixed-point weights.
struct Taps {
    starts: Vec<usize>,
    /// `stride` weights for each output, zero beyond the ones in use.
    weights: Vec<i32>,
    counts: Vec<usize>,
    stride: usize,
}

impl Taps {
    fn new(in_size: usize, part: std::ops::Range<f64>, out_size: usize, filter: Filter) -> Self {
        let scale = (part.end - part.start) / out_size as f64;
        let filter_scale = scale.max(1.0);
        let support = filter.support() * filter_scale;
        let stride = support.ceil() as usize * 2 + 1;
        let inverse = 1.0 / filter_scale;
        let mut taps = Self {
            starts: Vec::with_capacity(out_size),
            weights: vec![0; out_size * stride],
            counts: Vec::with_capacity(out_size),
            stride,
        };
        let mut exact = vec![0.0; stride];
        for output in 0..out_size {
            let centre = part.start + (output as f64 + 0.5) * scale;
            let first = ((centre - support + 0.5) as i64).max(0) as usize;
            let end = ((centre + support + 0.5) as i64).min(in_size as i64) as usize;
            let count = end.saturating_sub(first).min(stride);
            let mut sum = 0.0;
            for (tap, weight) in exact[..count].iter_mut().enumerate() {
                *weight = filter.weight(((tap + first) as f64 - centre + 0.5) * inverse);
                sum += *weight;
            }
            let fixed = &mut taps.weights[output * stride..][..count];
            for (fixed, weight) in fixed.iter_mut().zip(&exact) {
                let weight = if sum == 0.0 { *weight } else { *weight / sum };
                let rounding = if weight < 0.0 { -0.5 } else { 0.5 };
                *fixed = (rounding + weight * f64::from(1_u32 << PRECISION_BITS)) as i32;
            }
            taps.starts.push(first);
            taps.counts.push(count);
        }
        taps
    }

    fn of(&self, output: usize) -> (usize, &[i32]) {
        let weights = &self.weights[output * self.stride..];
        (self.starts[output], &weights[..self.counts[output]])
    }
}

const HALF: i32 = 1 << (PRECISION_BITS - 1);

fn clip8(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

fn horizontal_pass<const C: usize>(pixels: &[u8], in_width: usize, taps: &Taps) -> Vec<u8> {
    let out_width = taps.starts.len();
    let rows = pixels.len() / (in_width * C);
    let mut out = vec![0; rows * out_width * C];
    let row_pairs = pixels
        .chunks_exact(in_width * C)
        .zip(out.chunks_exact_mut(out_width * C));
    for (row, out_row) in row_pairs {
        for (output, out_pixel) in out_row.chunks_exact_mut(C).enumerate() {
            let (first, weights) = taps.of(output);
            let mut sums = [HALF; C];
            let sources = row[first * C..].chunks_exact(C);
            for (pixel, &weight) in sources.zip(weights) {
                for channel in 0..C {
                    sums[channel] += i32::from(pixel[channel]) * weight;
                }
            }
            for channel in 0..C {
                out_pixel[channel] = clip8(sums[channel]);
            }
        }
    }
    out
}

fn vertical_pass(pixels: &[u8], row_length: usize, taps: &Taps) -> Vec<u8> {
    let out_height = taps.starts.len();
    let mut out = vec![0; out_height * row_length];
    let mut sums = vec![HALF; row_length];
    for (output, out_row) in out.chunks_exact_mut(row_length).enumerate() {
        let (first, weights) = taps.of(output);
        sums.fill(HALF);
        let rows = pixels[first * row_length..].chunks_exact(row_length);
        for (row, &weight) in rows.zip(weights) {
            for (sum, &sample) in sums.iter_mut().zip(row) {
                *sum += i32::from(sample) * weight;
            }
        }
        for (out_sample, &sum) in out_row.iter_mut().zip(&sums) {
            *out_sample = clip8(sum);
        }
    }
    out
}

/// Pillow walks the source position by repeated addition, so that is what decides ties.
fn nearest<const C: usize>(
    pixels: &[u8],
    (from_width, from_height): (u32, u32),
    (to_width, to_height): (u32, u32),
) -> Vec<u8> {
    let columns = nearest_positions(from_width, to_width);
    let rows = nearest_positions(from_height, to_height);
    let row_length = from_width as usize * C;
    let mut out = Vec::with_capacity(columns.len() * rows.len() * C);
    for row in rows {
        let row = &pixels[row * row_length..][..row_length];
        for &column in &columns {
            out.extend_from_slice(&row[column * C..][..C]);
        }
    }
    out
}

fn nearest_positions(from: u32, to: u32) -> Vec<usize> {
    let step = f64::from(from) / f64::from(to);
    let mut position = step * 0.5;
    (0..to)
        .map(|_| {
            let index = (position as usize).min(from as usize - 1);
            position += step;
            index
        })
        .collect()
}
