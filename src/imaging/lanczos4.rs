//! OpenCV 4's `resize` with `INTER_LANCZOS4` for 8-bit pictures (resize.cpp): eight taps a direction, not wider
//! when a picture becomes smaller, with 11 bits of fixed point; pixels at the border are repeated.

use image::RgbImage;

use super::pixels::image_of;

const TAPS: usize = 8;
const SHARE_BITS: i32 = 11;

/// The picture at another size; at its own size it is not touched.
#[must_use]
pub fn resize_lanczos4(picture: &RgbImage, (width, height): (u32, u32)) -> RgbImage {
    if picture.dimensions() == (width, height) {
        return picture.clone();
    }
    let columns = taps(picture.width(), width);
    let rows = taps(picture.height(), height);
    let source_width = picture.width() as usize;
    let mut wide = Vec::with_capacity(width as usize * 3 * picture.height() as usize);
    for row in picture.as_raw().chunks_exact(source_width * 3) {
        for column in &columns {
            for channel in 0..3 {
                let level = |tap: usize| i32::from(row[column.places[tap] * 3 + channel]);
                wide.push((0..TAPS).map(|tap| level(tap) * column.shares[tap]).sum());
            }
        }
    }
    let stride = width as usize * 3;
    let mut levels = Vec::with_capacity(stride * height as usize);
    let mut sums = vec![0_i32; stride];
    for row in &rows {
        sums.fill(1 << (2 * SHARE_BITS - 1));
        for (place, share) in row.places.iter().zip(row.shares) {
            let line: &[i32] = &wide[place * stride..][..stride];
            for (sum, value) in sums.iter_mut().zip(line) {
                *sum = sum.wrapping_add(value.wrapping_mul(share));
            }
        }
        levels.extend(
            sums.iter()
                .map(|sum| (sum >> (2 * SHARE_BITS)).clamp(0, 255) as u8),
        );
    }
    image_of(width, height, levels)
}

/// Where a pixel comes from along one axis.
struct Taps {
    places: [usize; TAPS],
    /// In 1/2048.
    shares: [i32; TAPS],
}

fn taps(source: u32, target: u32) -> Vec<Taps> {
    let scale = 1.0 / (f64::from(target) / f64::from(source));
    let of = |at: u32| {
        let place = ((f64::from(at) + 0.5) * scale - 0.5) as f32;
        let first = place.floor();
        let shares = weights(place - first)
            .map(|weight| (weight * (1 << SHARE_BITS) as f32).round_ties_even() as i32);
        let place = |tap: usize| {
            let place = first as i64 + tap as i64 - 3;
            place.clamp(0, i64::from(source) - 1) as usize
        };
        Taps {
            places: std::array::from_fn(place),
            shares,
        }
    };
    (0..target).map(of).collect()
}

/// The eight weights of a place that lies `x` (0 to 1) after the fourth tap; their sum is 1.
fn weights(x: f32) -> [f32; TAPS] {
    const DIAGONAL: f64 = std::f64::consts::FRAC_1_SQRT_2;
    const TURNS: [[f64; 2]; TAPS] = [
        [1.0, 0.0],
        [-DIAGONAL, -DIAGONAL],
        [0.0, 1.0],
        [DIAGONAL, -DIAGONAL],
        [-1.0, 0.0],
        [DIAGONAL, DIAGONAL],
        [0.0, -1.0],
        [-DIAGONAL, DIAGONAL],
    ];
    let quarter = std::f64::consts::PI * 0.25;
    let start = f64::from(-(x + 3.0)) * quarter;
    let (sine, cosine) = start.sin_cos();
    let mut weights: [f32; TAPS] = std::array::from_fn(|tap| {
        let distance = x + 3.0 - tap as f32;
        if distance.abs() < 1e-6 {
            // So large that the others vanish beside it.
            return 1e30;
        }
        let y = f64::from(-distance) * quarter;
        ((TURNS[tap][0] * sine + TURNS[tap][1] * cosine) / (y * y)) as f32
    });
    let sum: f32 = weights.iter().sum();
    let scale = 1.0 / sum;
    for weight in &mut weights {
        *weight *= scale;
    }
    weights
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_picture_stays_flat() {
        let picture = RgbImage::from_pixel(9, 4, image::Rgb([7, 130, 255]));
        let larger = resize_lanczos4(&picture, (20, 31));
        assert!(larger.pixels().all(|pixel| pixel.0 == [7, 130, 255]));
        assert_eq!(resize_lanczos4(&picture, (9, 4)), picture);
    }

    #[test]
    fn a_place_on_a_pixel_is_that_pixel() {
        let weights = weights(0.0);
        assert!((weights[3] - 1.0).abs() < 1e-6);
        assert!(weights.iter().sum::<f32>() - 1.0 < 1e-6);
    }
}
