//! OpenCV 4's `warpAffine` with bilinear interpolation (imgwarp.cpp of the versions before 4.11): places in
//! units of 1/32 pixel, found with 10 bits of fixed point; 8-bit levels are weighted in whole numbers.

use image::{Rgb, RgbImage};
use ndarray::Array2;

use super::Affine;

/// Fractional bits of a place while it is found, and of the place itself.
const FINE_BITS: i32 = 10;
const PLACE_BITS: i32 = 5;
const PLACE_UNITS: i32 = 1 << PLACE_BITS;

/// The picture under a map, `width` by `height` pixels; what lies outside has the colour `border`.
#[must_use]
pub fn warp_picture(
    picture: &RgbImage,
    map: Affine,
    (width, height): (u32, u32),
    border: Rgb<u8>,
) -> RgbImage {
    let mut warped = RgbImage::from_pixel(width, height, border);
    let at = |x: i32, y: i32| match (u32::try_from(x), u32::try_from(y)) {
        (Ok(x), Ok(y)) if x < picture.width() && y < picture.height() => *picture.get_pixel(x, y),
        _ => border,
    };
    let sides = (picture.width(), picture.height());
    for_each_place(map, (width, height), sides, |x, y, place| {
        let corners = [
            at(place.x, place.y),
            at(place.x + 1, place.y),
            at(place.x, place.y + 1),
            at(place.x + 1, place.y + 1),
        ];
        let shares = place.shares();
        let level = |channel: usize| {
            let sum: i32 = corners
                .iter()
                .zip(shares)
                .map(|(corner, share)| i32::from(corner[channel]) * share)
                .sum();
            ((sum + (1 << 9)) >> 10) as u8
        };
        warped.put_pixel(x, y, Rgb([level(0), level(1), level(2)]));
    });
    warped
}

/// A mask under a map, `[height, width]`; 0 outside.
#[must_use]
pub fn warp_mask(mask: &Array2<f64>, map: Affine, (width, height): (u32, u32)) -> Array2<f64> {
    let mut warped = Array2::zeros((height as usize, width as usize));
    let at = |x: i32, y: i32| {
        let place = (usize::try_from(y).ok()?, usize::try_from(x).ok()?);
        mask.get(place).copied()
    };
    let sides = (mask.ncols() as u32, mask.nrows() as u32);
    for_each_place(map, (width, height), sides, |x, y, place| {
        let corners = [
            at(place.x, place.y),
            at(place.x + 1, place.y),
            at(place.x, place.y + 1),
            at(place.x + 1, place.y + 1),
        ];
        let sum: f64 = corners
            .iter()
            .zip(place.shares())
            .map(|(corner, share)| corner.unwrap_or(0.0) * f64::from(share) / 1024.0)
            .sum();
        warped[[y as usize, x as usize]] = sum;
    });
    warped
}

/// A place in the source.
struct Place {
    x: i32,
    y: i32,
    /// Units right of `x` and below `y`.
    right: i32,
    below: i32,
}

impl Place {
    /// Shares of the four pixels around, in 1/1024.
    fn shares(&self) -> [i32; 4] {
        let (left, above) = (PLACE_UNITS - self.right, PLACE_UNITS - self.below);
        [
            left * above,
            self.right * above,
            left * self.below,
            self.right * self.below,
        ]
    }
}

/// Calls `visit` for each pixel whose place touches a source of these sides.
fn for_each_place(
    map: Affine,
    (width, height): (u32, u32),
    (source_width, source_height): (u32, u32),
    mut visit: impl FnMut(u32, u32, &Place),
) {
    let Affine([a, b, c, d, e, f]) = map.inverse();
    let fine = |value: f64| (value * f64::from(1 << FINE_BITS)).round_ties_even() as i32;
    let half = 1 << (FINE_BITS - PLACE_BITS - 1);
    let columns: Vec<(i32, i32)> = (0..width)
        .map(|x| (fine(a * f64::from(x)), fine(d * f64::from(x))))
        .collect();
    for y in 0..height {
        let row = f64::from(y);
        let (x0, y0) = (fine(b * row + c), fine(e * row + f));
        for (x, (right, down)) in columns.iter().enumerate() {
            let along = |start: i32, step: i32| {
                start.saturating_add(half).saturating_add(step) >> (FINE_BITS - PLACE_BITS)
            };
            let (across, down) = (along(x0, *right), along(y0, *down));
            let place = Place {
                x: across >> PLACE_BITS,
                y: down >> PLACE_BITS,
                right: across & (PLACE_UNITS - 1),
                below: down & (PLACE_UNITS - 1),
            };
            let touches = |at: i32, side: u32| at >= -1 && at < side as i32;
            if touches(place.x, source_width) && touches(place.y, source_height) {
                visit(x as u32, y, &place);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_changes_under_the_identity() {
        let picture = RgbImage::from_fn(7, 5, |x, y| Rgb([x as u8 * 9, y as u8 * 11, 255]));
        let same = Affine([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]);
        let border = Rgb([1, 2, 3]);
        assert_eq!(warp_picture(&picture, same, (7, 5), border), picture);
        let wider = warp_picture(&picture, same, (9, 5), border);
        assert_eq!(wider.get_pixel(8, 4), &border);
    }

    #[test]
    fn half_a_pixel_mixes_two() {
        let mask = Array2::from_shape_vec((1, 2), vec![1.0, 0.5]).unwrap();
        let moved = Affine([1.0, 0.0, 0.5, 0.0, 1.0, 0.0]);
        let warped = warp_mask(&mask, moved, (3, 1));
        assert_eq!(warped.into_raw_vec_and_offset().0, [0.5, 0.75, 0.25]);
    }
}
