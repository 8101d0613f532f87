//! The soft mask with which a face is laid over a picture, as facexlib makes it from the parts of the face.
//!
//! Where a face covers the picture whole, the mask is 1 but for rounding, and levels are cut afterwards: so the
//! sums are OpenCV's: in its order (`RowFilter`, `SymmColumnFilter` of filter.simd.hpp), in f64, with fused
//! multiplication and addition, as on every processor with AVX2.

use image::GrayImage;
use ndarray::Array2;

use super::mask_blur::reflected;

/// ParseNet's classes that do not belong to the face: background, hat, necklace, neck and cloth. Those that
/// do are skin, nose, glasses, eyes, brows, ears, mouth, lips, hair (13) and earrings (15).
const OUTSIDE: [u8; 5] = [0, 14, 16, 17, 18];
/// Taps of the blur on each side of the middle.
const REACH: usize = 50;
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
    for _ in 0..2 {
        mask = blurred_along_y(&blurred_along_x(&mask));
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

/// Along x, the taps from left to right.
fn blurred_along_x(mask: &Array2<f64>) -> Array2<f64> {
    let (height, width) = mask.dim();
    let mut line = vec![0.0; width + 2 * REACH];
    let mut blurred = Array2::zeros((height, width));
    for (row, mut sums) in mask.rows().into_iter().zip(blurred.rows_mut()) {
        for (at, level) in line.iter_mut().enumerate() {
            *level = row[reflected(at as isize - REACH as isize, width)];
        }
        for tap in 0..=2 * REACH {
            let share = KERNEL[tap.abs_diff(REACH)];
            for (sum, level) in sums.iter_mut().zip(&line[tap..]) {
                *sum = level.mul_add(share, *sum);
            }
        }
    }
    blurred
}

/// Along y, from the middle outwards, the two taps of a distance together.
fn blurred_along_y(mask: &Array2<f64>) -> Array2<f64> {
    let height = mask.nrows();
    let mut blurred = mask * KERNEL[0];
    for (y, mut sums) in blurred.rows_mut().into_iter().enumerate() {
        for (tap, &share) in KERNEL.iter().enumerate().skip(1) {
            let row = |at: isize| mask.row(reflected(at, height));
            let (above, below) = (row(y as isize - tap as isize), row((y + tap) as isize));
            for ((sum, a), b) in sums.iter_mut().zip(above).zip(below) {
                *sum = (a + b).mul_add(share, *sum);
            }
        }
    }
    blurred
}

/// `getGaussianKernel(101, 11)` from the middle outwards, in the digits of OpenCV's own exponential.
const KERNEL: [f64; REACH + 1] = [
    0.03626763888547374,
    0.03611808182409179,
    0.03567310085323943,
    0.0349436152732633,
    0.033947328118408344,
    0.03270801215019321,
    0.03125456740053855,
    0.029619902408648664,
    0.027839699538831027,
    0.025951128836180695,
    0.02399157464854003,
    0.021997434939425946,
    0.020003045372438775,
    0.018039769645568065,
    0.016135285140601946,
    0.014313079746253959,
    0.012592162709256933,
    0.010986980455753841,
    0.009507518224672305,
    0.00815956056916718,
    0.006945078581095172,
    0.005862709116402581,
    0.0049082911808887774,
    0.004075426646236009,
    0.0033560361612194316,
    0.002740885997269324,
    0.002220067105535921,
    0.0017834133826209843,
    0.0014208516301885746,
    0.0011226806255597549,
    0.000879780872038873,
    0.0006837598446889764,
    0.0005270398557035641,
    0.0004028970748289497,
    0.000305460852419666,
    0.00022968244036141128,
    0.00017128164203027371,
    0.00012667900136289112,
    9.292000698924642e-05,
    6.759656478300703e-05,
    4.876978122922349e-05,
    3.489697468281698e-05,
    2.476484069947942e-05,
    1.742986761233045e-05,
    1.2166437448340347e-05,
    8.422549192096288e-06,
    5.7827507569827865e-06,
    3.937641572108928e-06,
    2.6591857711285907e-06,
    1.7810329920253106e-06,
    1.1830580092209053e-06,
];

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
