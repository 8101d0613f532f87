//! OpenCV's 8-bit `GaussianBlur` as A1111 softens masks with it: one axis at a time, 8-bit fixed-point
//! kernel whose rounding error is carried from tap to tap, borders reflected without the edge pixel.

use image::GrayImage;

use super::pixels::image_of;

/// Blurs along x with `blur_x`, then along y with `blur_y` (standard deviations in pixels; 0 or less:
/// not at all), with the kernel `2 * int(2.5 * blur + 0.5) + 1`.
#[must_use]
pub fn blur_mask(mask: &GrayImage, blur_x: f64, blur_y: f64) -> GrayImage {
    let (width, height) = (mask.width() as usize, mask.height() as usize);
    let mut levels = mask.as_raw().clone();
    if blur_x > 0.0 && !levels.is_empty() {
        blur_along_x(&mut levels, width, &kernel(blur_x));
    }
    if blur_y > 0.0 && !levels.is_empty() {
        levels = blur_along_y(&levels, width, height, &kernel(blur_y));
    }
    image_of(mask.width(), mask.height(), levels)
}

/// The kernel in units of 1/256; its sum is 256.
fn kernel(sigma: f64) -> Vec<u32> {
    let size = 2 * (2.5 * sigma + 0.5) as usize + 1;
    let middle = size / 2;
    let exact = |tap: usize| (-0.5 * (tap as f64 - middle as f64).powi(2) / (sigma * sigma)).exp();
    let sum: f64 = (0..size).map(exact).sum();
    let mut fixed = vec![0_u32; size];
    let mut error = 0.0;
    for tap in 0..middle {
        let wanted = 256.0 * exact(tap) / sum + error;
        let rounded = wanted.round_ties_even();
        error = wanted - rounded;
        fixed[tap] = rounded as u32;
        fixed[size - 1 - tap] = rounded as u32;
    }
    fixed[middle] = 256 - fixed.iter().sum::<u32>();
    fixed
}

/// Position `at` of a reflected line (`dcb|abcd|cba`).
pub(super) fn reflected(at: isize, length: usize) -> usize {
    if length == 1 {
        return 0;
    }
    let period = 2 * (length as isize - 1);
    let at = at.rem_euclid(period);
    at.min(period - at) as usize
}

fn blur_along_x(levels: &mut [u8], width: usize, kernel: &[u32]) {
    let reach = kernel.len() / 2;
    let source: Vec<usize> = (0..width + 2 * reach)
        .map(|at| reflected(at as isize - reach as isize, width))
        .collect();
    let mut line = vec![0_u8; source.len()];
    for row in levels.chunks_exact_mut(width) {
        for (level, &from) in line.iter_mut().zip(&source) {
            *level = row[from];
        }
        for (level, window) in row.iter_mut().zip(line.windows(kernel.len())) {
            let products = window.iter().zip(kernel).map(|(&p, q)| u32::from(p) * q);
            *level = ((products.sum::<u32>() + 128) >> 8) as u8;
        }
    }
}

fn blur_along_y(levels: &[u8], width: usize, height: usize, kernel: &[u32]) -> Vec<u8> {
    let reach = (kernel.len() / 2) as isize;
    let mut out = Vec::with_capacity(levels.len());
    let mut sums = vec![0_u32; width];
    for y in 0..height as isize {
        sums.fill(128);
        for (tap, weight) in kernel.iter().enumerate() {
            let from = reflected(y + tap as isize - reach, height);
            for (sum, &level) in sums.iter_mut().zip(&levels[from * width..][..width]) {
                *sum += u32::from(level) * weight;
            }
        }
        out.extend(sums.iter().map(|sum| (sum >> 8) as u8));
    }
    out
}
