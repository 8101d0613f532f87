//! Noise that has the spectrum and the colours of a picture, for the new parts of a larger canvas.
//!
//! Follows the method that parlance-zz published with g-diffuser-bot (MIT): white noise, its spectrum
//! squared and multiplied with the picture's, then scikit-image's
//! `match_histograms` to the known part. All in f64, as there.

use std::f64::consts::PI;

use image::{GrayImage, RgbImage};

use super::interpolation::interpolated;

/// A complex number.
type Complex = (f64, f64);

/// `picture` with its white-masked part replaced by noise. `exponent` is the fall-off (lower keeps more
/// detail), `colour_variation` the share of the noise that differs between channels. `random` gives
/// numbers from 0 to 1, three for each pixel in turn.
///
/// # Panics
/// When the sizes differ.
#[must_use]
pub fn matched_noise(
    picture: &RgbImage,
    mask: &GrayImage,
    exponent: f64,
    colour_variation: f64,
    random: impl FnMut() -> f64,
) -> RgbImage {
    assert_eq!(
        picture.dimensions(),
        mask.dimensions(),
        "the mask has another size"
    );
    let size = Size {
        rows: picture.height() as usize,
        columns: picture.width() as usize,
    };
    let source: [Vec<f64>; 3] = [0, 1, 2].map(|channel| {
        let level = |pixel: &image::Rgb<u8>| f64::from(pixel.0[channel]) / 255.0;
        picture.pixels().map(level).collect()
    });
    let masked: Vec<f64> = mask.pixels().map(|it| f64::from(it.0[0]) / 255.0).collect();
    let windowed = windowed(&source, &masked);
    let noise = window_noise(size, colour_variation, random);
    let mut shaped: Vec<Vec<f64>> = windowed
        .iter()
        .zip(&noise)
        .map(|(windowed, noise)| shape(size, windowed, noise, exponent))
        .collect();
    normalise(&mut shaped);
    let drawn: Vec<usize> = (0..masked.len()).filter(|&it| masked[it] > 1e-6).collect();
    let known: Vec<usize> = (0..masked.len()).filter(|&it| masked[it] < 1e-3).collect();
    let mut result = picture.clone();
    for (channel, (shaped, source)) in shaped.iter_mut().zip(&source).enumerate() {
        match_histogram(shaped, &drawn, source, &known);
        let pixels = result
            .pixels_mut()
            .zip(source.iter().zip(shaped.iter().zip(&masked)));
        for (pixel, (&source, (&noise, &mask))) in pixels {
            let level = source * (1.0 - mask) + noise * mask;
            pixel.0[channel] = (level.clamp(0.0, 1.0) * 255.0) as u8;
        }
    }
    result
}

#[derive(Debug, Clone, Copy)]
struct Size {
    rows: usize,
    columns: usize,
}

/// The known part, as bright as it gets, with the picture's average in the place of the rest.
fn windowed(source: &[Vec<f64>; 3], masked: &[f64]) -> Vec<Vec<f64>> {
    let mut windowed: Vec<Vec<f64>> = source
        .iter()
        .map(|plane| {
            plane
                .iter()
                .zip(masked)
                .map(|(a, m)| a * (1.0 - m))
                .collect()
        })
        .collect();
    let brightest = windowed.iter().flatten().copied().fold(0.0, f64::max);
    let count = (masked.len() * 3).max(1) as f64;
    let average = source.iter().flatten().sum::<f64>() / count;
    for plane in &mut windowed {
        for (level, mask) in plane.iter_mut().zip(masked) {
            if brightest > 0.0 {
                *level /= brightest;
            }
            *level += average * mask;
        }
    }
    windowed
}

/// White noise, mostly grey, with its high frequencies lowered.
fn window_noise(
    size: Size,
    colour_variation: f64,
    mut random: impl FnMut() -> f64,
) -> Vec<Vec<f64>> {
    let count = size.rows * size.columns;
    let mut planes = vec![vec![0.0; count]; 3];
    for index in 0..count {
        let colour = [random(), random(), random()];
        let grey = (colour[0] + colour[1] + colour[2]) / 3.0;
        for (plane, level) in planes.iter_mut().zip(colour) {
            plane[index] = level * colour_variation + (1.0 - colour_variation) * grey;
        }
    }
    let window = window(size);
    for plane in &mut planes {
        let mut spectrum = spectrum_of(size, plane);
        for (value, weight) in spectrum.iter_mut().zip(&window) {
            *value = (value.0 * weight, value.1 * weight);
        }
        *plane = picture_of(size, spectrum);
    }
    planes
}

/// `1 / ((x² + 1) (y² + 1))` over coordinates from -1 to 1, longer along the longer side.
fn window(size: Size) -> Vec<f64> {
    let shorter = size.rows.min(size.columns) as f64;
    let axis = |count: usize| -> Vec<f64> {
        let scale = count as f64 / shorter;
        (0..count)
            .map(|at| (at as f64 / count as f64 * 2.0 - 1.0) * scale)
            .collect()
    };
    let (down, across) = (axis(size.rows), axis(size.columns));
    down.iter()
        .flat_map(|y| {
            across
                .iter()
                .map(move |x| 1.0 / ((y * y + 1.0) * (x * x + 1.0)))
        })
        .collect()
}

/// The noise with the picture's spectrum and phase.
fn shape(size: Size, windowed: &[f64], noise: &[f64], exponent: f64) -> Vec<f64> {
    let source = spectrum_of(size, windowed);
    let noise = spectrum_of(size, noise);
    let shaped = source
        .into_iter()
        .zip(noise)
        .map(|(source, noise)| {
            let strength = source.0.hypot(source.1);
            let power = noise.0.hypot(noise.1).powi(2);
            // Where the spectrum is empty it has no phase.
            let phase = if strength > 0.0 {
                (source.0 / strength, source.1 / strength)
            } else {
                (0.0, 0.0)
            };
            let factor = power * strength.powf(exponent);
            (factor * phase.0, factor * phase.1)
        })
        .collect();
    picture_of(size, shaped)
}

/// Brings all planes together to 0..1.
fn normalise(planes: &mut [Vec<f64>]) {
    let least = planes
        .iter()
        .flatten()
        .copied()
        .fold(f64::INFINITY, f64::min);
    let most = planes
        .iter()
        .flatten()
        .copied()
        .fold(f64::NEG_INFINITY, f64::max)
        - least;
    for level in planes.iter_mut().flatten() {
        *level -= least;
        if most > 0.0 {
            *level /= most;
        }
    }
}

/// scikit-image's `match_histograms` on one channel: `plane` at `drawn` gets the distribution that
/// `template` has at `known`.
fn match_histogram(plane: &mut [f64], drawn: &[usize], template: &[f64], known: &[usize]) {
    let mut levels: Vec<f64> = known.iter().map(|&it| template[it]).collect();
    if levels.is_empty() {
        return;
    }
    levels.sort_by(f64::total_cmp);
    let count = levels.len() as f64;
    let mut steps: Vec<(f64, f64)> = Vec::new();
    for (index, &level) in levels.iter().enumerate() {
        let share = (index + 1) as f64 / count;
        match steps.last_mut() {
            Some(last) if last.1 == level => last.0 = share,
            _ => steps.push((share, level)),
        }
    }
    let mut order = drawn.to_vec();
    order.sort_by(|left, right| plane[*left].total_cmp(&plane[*right]));
    let total = order.len() as f64;
    let mut start = 0;
    while start < order.len() {
        let level = plane[order[start]];
        let equal = order[start..]
            .iter()
            .take_while(|&&it| plane[it] == level)
            .count();
        let matched = interpolated(&steps, (start + equal) as f64 / total);
        for &index in &order[start..start + equal] {
            plane[index] = matched;
        }
        start += equal;
    }
}

/// The orthonormal spectrum with the lowest frequency in the middle.
fn spectrum_of(size: Size, plane: &[f64]) -> Vec<Complex> {
    let values = plane.iter().map(|&level| (level, 0.0)).collect();
    transform(size, values, -1.0)
}

/// The real part of what a spectrum stands for.
fn picture_of(size: Size, spectrum: Vec<Complex>) -> Vec<f64> {
    let values = transform(size, spectrum, 1.0);
    values.into_iter().map(|(real, _)| real).collect()
}

/// Shifted by half, transformed along both axes, shifted back; sides are even.
fn transform(size: Size, values: Vec<Complex>, sign: f64) -> Vec<Complex> {
    let mut values = rolled(size, &values);
    let roots = roots(size.columns, sign);
    for row in values.chunks_exact_mut(size.columns) {
        let changed = fourier(row, 0, 1, size.columns, &roots);
        row.copy_from_slice(&changed);
    }
    let roots = self::roots(size.rows, sign);
    for column in 0..size.columns {
        let line: Vec<Complex> = values
            .iter()
            .skip(column)
            .step_by(size.columns)
            .copied()
            .collect();
        let changed = fourier(&line, 0, 1, size.rows, &roots);
        for (row, value) in changed.into_iter().enumerate() {
            values[row * size.columns + column] = value;
        }
    }
    let scale = 1.0 / ((size.rows * size.columns) as f64).sqrt();
    for value in &mut values {
        *value = (value.0 * scale, value.1 * scale);
    }
    rolled(size, &values)
}

fn rolled(size: Size, values: &[Complex]) -> Vec<Complex> {
    let mut out = Vec::with_capacity(values.len());
    for row in 0..size.rows {
        let from = (row + size.rows / 2) % size.rows * size.columns;
        let line = &values[from..from + size.columns];
        let (first, second) = line.split_at(size.columns / 2);
        out.extend_from_slice(second);
        out.extend_from_slice(first);
    }
    out
}

fn roots(count: usize, sign: f64) -> Vec<Complex> {
    (0..count)
        .map(|index| {
            let angle = sign * 2.0 * PI * index as f64 / count as f64;
            (angle.cos(), angle.sin())
        })
        .collect()
}

/// The discrete Fourier transform of `count` values from `start` on, `stride` apart, by the smallest
/// prime factor of their count. `roots` are those of the whole line.
fn fourier(
    values: &[Complex],
    start: usize,
    stride: usize,
    count: usize,
    roots: &[Complex],
) -> Vec<Complex> {
    if count == 1 {
        return vec![values[start]];
    }
    let factor = (2..=count)
        .find(|factor| count.is_multiple_of(*factor))
        .unwrap_or(count);
    let part = count / factor;
    let parts: Vec<Vec<Complex>> = (0..factor)
        .map(|offset| {
            fourier(
                values,
                start + offset * stride,
                stride * factor,
                part,
                roots,
            )
        })
        .collect();
    let step = roots.len() / count;
    (0..count)
        .map(|frequency| {
            let mut sum = (0.0, 0.0);
            for (offset, values) in parts.iter().enumerate() {
                let (re, im) = values[frequency % part];
                let (cos, sin) = roots[offset * frequency % count * step];
                sum.0 += re * cos - im * sin;
                sum.1 += re * sin + im * cos;
            }
            sum
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Case {
        rows: u32,
        columns: u32,
        masked_columns: u32,
        exponent: f64,
        colour_variation: f64,
        rgb: String,
    }

    #[test]
    fn the_noise_is_numpys() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/golden/images_matched_noise.json"
        );
        let text = fs_err::read_to_string(path).expect("the recording");
        let recorded: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let cases: Vec<Case> = serde_json::from_value(recorded["cases"].clone()).expect("cases");
        for case in cases {
            let (rows, columns) = (case.rows, case.columns);
            let picture = RgbImage::from_fn(columns, rows, |x, y| {
                let levels = [
                    (x * x * 7 + y * x * 3) % 253,
                    (x * y + y * y * 5) % 251,
                    (x * x + 5 * y * y * x) % 241,
                ];
                image::Rgb(levels.map(|level| level as u8))
            });
            let mask = GrayImage::from_fn(columns, rows, |x, _| {
                image::Luma([if x < case.masked_columns { 255 } else { 0 }])
            });
            let mut random = crate::rng::Pcg64::new(0);
            let (exponent, variation) = (case.exponent, case.colour_variation);
            let have = matched_noise(&picture, &mask, exponent, variation, || random.next_f64());
            let want = crate::imaging::base64_decode_lenient(&case.rgb).expect("base64");
            let off = have
                .as_raw()
                .iter()
                .zip(&want)
                .filter(|(a, b)| a != b)
                .count();
            let most = have
                .as_raw()
                .iter()
                .zip(&want)
                .map(|(a, b)| a.abs_diff(*b))
                .max();
            assert!(
                off * 1000 <= want.len() && most <= Some(1),
                "{off} levels differ by up to {most:?}"
            );
        }
    }

    #[test]
    fn the_transform_is_its_own_inverse_and_finds_a_wave() {
        let size = Size {
            rows: 12,
            columns: 10,
        };
        let plane: Vec<f64> = (0..120).map(|it| f64::from(it * 37 % 11)).collect();
        let back = picture_of(size, spectrum_of(size, &plane));
        for (left, right) in plane.iter().zip(back) {
            assert!((left - right).abs() < 1e-9);
        }
        let wave: Vec<f64> = (0..120)
            .map(|it| (2.0 * PI * f64::from(it % 10) * 2.0 / 10.0).cos())
            .collect();
        let spectrum = spectrum_of(size, &wave);
        let strongest = (0..120).max_by(|a, b| {
            spectrum[*a]
                .0
                .hypot(spectrum[*a].1)
                .total_cmp(&spectrum[*b].0.hypot(spectrum[*b].1))
        });
        let column = strongest.map(|at| at % 10);
        assert!(matches!(column, Some(3 | 7)), "{column:?}");
    }
}
