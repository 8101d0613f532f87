//! The soft mask with which a face is laid over a picture, as facexlib makes it from the parts of the face.

use image::GrayImage;
use ndarray::Array2;

use super::mask_blur::reflected;

/// ParseNet's classes that do not belong to the face: background, hat, necklace, neck and cloth. Those that
/// do are skin, nose, glasses, eyes, brows, ears, mouth, lips, hair (13) and earrings (15).
const OUTSIDE: [u8; 5] = [0, 14, 16, 17, 18];
/// OpenCV's kernel for the blur: its side and its standard deviation.
const REACH: usize = 50;
const SIGMA: f64 = 11.0;
/// Pixels along the border that are left out.
const BORDER: usize = 10;

/// 0 to 1, `[height, width]`, from the class of every pixel: blurred twice, then cut at the border.
#[must_use]
pub fn face_mask(classes: &GrayImage) -> Array2<f64> {
    let (width, height) = (classes.width() as usize, classes.height() as usize);
    let mut mask = Array2::from_shape_fn((height, width), |(y, x)| {
        let class = classes.get_pixel(x as u32, y as u32)[0];
        // Classes past the last known one are outside too.
        if class > 18 || OUTSIDE.contains(&class) {
            0.0
        } else {
            255.0
        }
    });
    let kernel = kernel();
    for _ in 0..2 {
        mask = blurred_rows(&mask, &kernel);
        mask = blurred_rows(&mask.reversed_axes(), &kernel).reversed_axes();
    }
    Array2::from_shape_fn((height, width), |(y, x)| {
        let inside = |at: usize, side: usize| at >= BORDER && at + BORDER < side;
        if inside(x, width) && inside(y, height) {
            mask[[y, x]] / 255.0
        } else {
            0.0
        }
    })
}

/// From the middle outwards; the whole kernel's sum is 1.
fn kernel() -> Vec<f64> {
    let exact = |tap: usize| (-0.5 / (SIGMA * SIGMA) * (tap * tap) as f64).exp();
    let sum = exact(0) + 2.0 * (1..=REACH).map(exact).sum::<f64>();
    (0..=REACH).map(|tap| exact(tap) / sum).collect()
}

/// Along the last axis; the answer is in the standard order.
fn blurred_rows(mask: &Array2<f64>, kernel: &[f64]) -> Array2<f64> {
    let (height, width) = mask.dim();
    let sources: Vec<usize> = (0..width + 2 * REACH)
        .map(|at| reflected(at as isize - REACH as isize, width))
        .collect();
    let mut line = vec![0.0; sources.len()];
    let mut levels = Vec::with_capacity(width * height);
    let mut sums = vec![0.0; width];
    for row in mask.rows() {
        for (level, &from) in line.iter_mut().zip(&sources) {
            *level = row[from];
        }
        for (sum, level) in sums.iter_mut().zip(&line[REACH..]) {
            *sum = level * kernel[0];
        }
        for (tap, share) in kernel.iter().enumerate().skip(1) {
            let (before, after) = (&line[REACH - tap..], &line[REACH + tap..]);
            for ((sum, a), b) in sums.iter_mut().zip(before).zip(after) {
                *sum += (a + b) * share;
            }
        }
        levels.extend_from_slice(&sums);
    }
    Array2::from_shape_vec((height, width), levels).expect("a value for every pixel")
}

#[cfg(test)]
mod tests {
    use image::Luma;

    use super::*;

    #[test]
    fn skin_is_inside_and_the_neck_outside() {
        let classes = GrayImage::from_fn(64, 40, |x, _| Luma([if x < 32 { 1 } else { 17 }]));
        let mask = face_mask(&classes);
        assert_eq!(mask.dim(), (40, 64));
        assert!(mask[[20, 12]] > mask[[20, 30]] && mask[[20, 30]] > mask[[20, 50]]);
        assert_eq!(mask[[9, 30]], 0.0);
        assert!(mask[[10, 30]] > 0.0);
        assert_eq!(mask[[20, 54]], 0.0);
    }

    #[test]
    fn a_face_everywhere_is_whole_inside_the_border() {
        let mask = face_mask(&GrayImage::from_pixel(40, 40, Luma([13])));
        assert!((mask[[10, 29]] - 1.0).abs() < 1e-12);
    }
}
