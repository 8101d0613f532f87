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
    0.036_267_638_885_473_74,
    0.036_118_081_824_091_79,
    0.035_673_100_853_239_43,
    0.034_943_615_273_263_3,
    0.033_947_328_118_408_344,
    0.032_708_012_150_193_21,
    0.031_254_567_400_538_55,
    0.029_619_902_408_648_664,
    0.027_839_699_538_831_027,
    0.025_951_128_836_180_695,
    0.023_991_574_648_540_03,
    0.021_997_434_939_425_946,
    0.020_003_045_372_438_775,
    0.018_039_769_645_568_065,
    0.016_135_285_140_601_946,
    0.014_313_079_746_253_959,
    0.012_592_162_709_256_933,
    0.010_986_980_455_753_841,
    0.009_507_518_224_672_305,
    0.008_159_560_569_167_18,
    0.006_945_078_581_095_172,
    0.005_862_709_116_402_581,
    0.004_908_291_180_888_777_4,
    0.004_075_426_646_236_009,
    0.003_356_036_161_219_431_6,
    0.002_740_885_997_269_324,
    0.002_220_067_105_535_921,
    0.001_783_413_382_620_984_3,
    0.001_420_851_630_188_574_6,
    0.001_122_680_625_559_754_9,
    0.000_879_780_872_038_873,
    0.000_683_759_844_688_976_4,
    0.000_527_039_855_703_564_1,
    0.000_402_897_074_828_949_7,
    0.000_305_460_852_419_666,
    0.000_229_682_440_361_411_28,
    0.000_171_281_642_030_273_71,
    0.000_126_679_001_362_891_12,
    9.292_000_698_924_642e-05,
    6.759_656_478_300_703e-05,
    4.876_978_122_922_349e-05,
    3.489_697_468_281_698e-05,
    2.476_484_069_947_942e-05,
    1.742_986_761_233_045e-05,
    1.216_643_744_834_034_7e-05,
    8.422_549_192_096_288e-06,
    5.782_750_756_982_786_5e-06,
    3.937_641_572_108_928e-06,
    2.659_185_771_128_590_7e-06,
    1.781_032_992_025_310_6e-06,
    1.183_058_009_220_905_3e-06,
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
