//! torch's `interpolate` on latents, with `align_corners` off, in f32.
//!
//! Bilinear and bicubic (A = -0.75) clamp indices at the edges; the antialiased forms (bicubic with
//! A = -0.5) widen the kernel when shrinking and drop what lies outside.

use ndarray::{Array4, ArrayView2, ArrayViewMut2};

/// A mode of hires fix for latents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LatentFilter {
    Nearest,
    NearestExact,
    Bilinear { antialias: bool },
    Bicubic { antialias: bool },
}

/// A1111's names of the latent upscale modes, in the order of `/sdapi/v1/latent-upscale-modes`.
pub static LATENT_UPSCALE_MODES: [(&str, LatentFilter); 6] = [
    ("Latent", LatentFilter::Bilinear { antialias: false }),
    (
        "Latent (antialiased)",
        LatentFilter::Bilinear { antialias: true },
    ),
    (
        "Latent (bicubic)",
        LatentFilter::Bicubic { antialias: false },
    ),
    (
        "Latent (bicubic antialiased)",
        LatentFilter::Bicubic { antialias: true },
    ),
    ("Latent (nearest)", LatentFilter::Nearest),
    ("Latent (nearest-exact)", LatentFilter::NearestExact),
];

/// The filter of a latent upscale mode, by A1111's exact name.
#[must_use]
pub fn latent_filter(name: &str) -> Option<LatentFilter> {
    let found = LATENT_UPSCALE_MODES
        .iter()
        .find(|(known, _)| *known == name);
    found.map(|&(_, filter)| filter)
}

/// Resizes every plane of `[batch, channels, h, w]` to `height` x `width`.
#[must_use]
pub fn resize_latent(
    latent: &Array4<f32>,
    height: usize,
    width: usize,
    filter: LatentFilter,
) -> Array4<f32> {
    let (batch, channels, from_height, from_width) = latent.dim();
    let down = AxisTaps::new(from_height, height, filter);
    let across = AxisTaps::new(from_width, width, filter);
    let mut out = Array4::zeros((batch, channels, height, width));
    for (planes, mut out_planes) in latent.outer_iter().zip(out.outer_iter_mut()) {
        for (plane, mut out_plane) in planes.outer_iter().zip(out_planes.outer_iter_mut()) {
            resize_plane(&plane, &down, &across, &mut out_plane);
        }
    }
    out
}

fn resize_plane(
    plane: &ArrayView2<'_, f32>,
    down: &AxisTaps,
    across: &AxisTaps,
    out: &mut ArrayViewMut2<'_, f32>,
) {
    let rows: Vec<Vec<f32>> = plane
        .outer_iter()
        .map(|row| across.0.iter().map(|taps| taps.sum(|at| row[at])).collect())
        .collect();
    for (taps, mut out_row) in down.0.iter().zip(out.outer_iter_mut()) {
        for (x, value) in out_row.iter_mut().enumerate() {
            *value = taps.sum(|at| rows[at][x]);
        }
    }
}

/// Index and weight of every sample that one output sample reads.
struct Taps(Vec<(usize, f32)>);

impl Taps {
    fn sum(&self, sample: impl Fn(usize) -> f32) -> f32 {
        let mut products = self.0.iter().map(|&(at, weight)| sample(at) * weight);
        let first = products.next().unwrap_or(0.0);
        products.fold(first, |sum, product| sum + product)
    }
}

struct AxisTaps(Vec<Taps>);

impl AxisTaps {
    fn new(in_size: usize, out_size: usize, filter: LatentFilter) -> Self {
        let scale = in_size as f32 / out_size as f32;
        let last = in_size.saturating_sub(1);
        let one = |at: f32| Taps(vec![((at.floor() as usize).min(last), 1.0)]);
        let taps = |output: usize| {
            let output = output as f32;
            match filter {
                LatentFilter::Nearest => one(output * scale),
                LatentFilter::NearestExact => one((output + 0.5) * scale),
                LatentFilter::Bilinear { antialias: false } => bilinear(output, scale, last),
                LatentFilter::Bicubic { antialias: false } => bicubic(output, scale, last),
                LatentFilter::Bilinear { antialias: true } => {
                    antialiased(output, scale, in_size, 1.0, |x| (1.0 - x.abs()).max(0.0))
                }
                LatentFilter::Bicubic { antialias: true } => {
                    antialiased(output, scale, in_size, 2.0, |x| keys(x.abs(), -0.5))
                }
            }
        };
        Self((0..out_size).map(taps).collect())
    }
}

fn bilinear(output: f32, scale: f32, last: usize) -> Taps {
    let centre = (scale * (output + 0.5) - 0.5).max(0.0);
    let first = (centre as usize).min(last);
    let share = (centre - first as f32).clamp(0.0, 1.0);
    Taps(vec![(first, 1.0 - share), ((first + 1).min(last), share)])
}

fn bicubic(output: f32, scale: f32, last: usize) -> Taps {
    let centre = scale * (output + 0.5) - 0.5;
    let first = centre.floor();
    let share = centre - first;
    let tap = |offset: i64| {
        let at = (first as i64 + offset).clamp(0, last as i64) as usize;
        (at, keys((share - offset as f32).abs(), -0.75))
    };
    Taps((-1..=2).map(tap).collect())
}

/// Keys' cubic convolution kernel at distance `x >= 0`.
fn keys(x: f32, a: f32) -> f32 {
    if x < 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a
    } else {
        0.0
    }
}

fn antialiased(
    output: f32,
    scale: f32,
    in_size: usize,
    reach: f32,
    kernel: impl Fn(f32) -> f32,
) -> Taps {
    let filter_scale = scale.max(1.0);
    let support = reach * filter_scale;
    let centre = scale * (output + 0.5);
    let first = ((centre - support + 0.5) as i64).max(0) as usize;
    let end = ((centre + support + 0.5) as i64).min(in_size as i64) as usize;
    let weight = |at: usize| kernel((at as f32 - centre + 0.5) / filter_scale);
    let weights: Vec<f32> = (first..end).map(weight).collect();
    let sum: f32 = weights.iter().sum();
    let normalised = weights.iter().map(|weight| weight / sum);
    Taps((first..end).zip(normalised).collect())
}
