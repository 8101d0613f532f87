//! Between 8-bit pictures and the float tensors of the VAE.
//!
//! A1111 divides and multiplies in float32 and truncates (never rounds) on the way back to 8 bit.

use image::{DynamicImage, ImageBuffer, Pixel, RgbImage};
use ndarray::{Array4, ArrayView3};

/// One decoded picture, `[3, height, width]` around -1..1, as 8-bit RGB:
/// `clamp((d + 1) / 2, 0, 1) * 255`, truncated. NaN becomes 0, as numpy's cast gives on x86-64.
///
/// # Panics
/// When the tensor has other than three channels.
#[must_use]
#[expect(
    clippy::needless_pass_by_value,
    reason = "a view is a reference already"
)]
pub fn tensor_to_picture(decoded: ArrayView3<'_, f32>) -> RgbImage {
    let (channels, height, width) = decoded.dim();
    assert_eq!(channels, 3, "a decoded picture has three channels");
    let mut pixels = vec![0_u8; width * height * 3];
    for (channel, plane) in decoded.outer_iter().enumerate() {
        for (row, out_row) in plane
            .outer_iter()
            .zip(pixels.chunks_exact_mut(width.max(1) * 3))
        {
            for (value, out) in row.iter().zip(out_row[channel..].iter_mut().step_by(3)) {
                let unit = ((value + 1.0) / 2.0).clamp(0.0, 1.0);
                *out = (unit * 255.0) as u8;
            }
        }
    }
    image_of(width as u32, height as u32, pixels)
}

/// A picture as `[1, 3, height, width]` in 0..1 (`p / 255`).
#[must_use]
pub fn picture_to_unit(picture: &RgbImage) -> Array4<f32> {
    map_pixels(picture, |value| value / 255.0)
}

/// A picture as the VAE encoder takes it, `[1, 3, height, width]` in -1..1 (`p / 255 * 2 - 1`).
#[must_use]
pub fn picture_to_signed(picture: &RgbImage) -> Array4<f32> {
    map_pixels(picture, |value| value / 255.0 * 2.0 - 1.0)
}

/// A picture as the ESRGAN family takes it, `[1, 3, height, width]` in 0..1 with the planes in the order
/// blue, green, red: A1111 divides in f64 and then casts.
#[must_use]
pub fn picture_to_bgr(picture: &RgbImage) -> Array4<f32> {
    let mut tensor = map_pixels(picture, |level| (f64::from(level) / 255.0) as f32);
    tensor.invert_axis(ndarray::Axis(1));
    tensor.as_standard_layout().into_owned()
}

/// The way back of [`picture_to_bgr`]: `[3, height, width]`, clamped, times 255, rounded half to even.
///
/// # Panics
/// When the tensor has other than three channels.
#[must_use]
#[expect(
    clippy::needless_pass_by_value,
    reason = "a view is a reference already"
)]
pub fn bgr_to_picture(tensor: ArrayView3<'_, f32>) -> RgbImage {
    let (channels, height, width) = tensor.dim();
    assert_eq!(channels, 3, "an enlarged picture has three channels");
    RgbImage::from_fn(width as u32, height as u32, |x, y| {
        let level = |plane: usize| {
            let unit = tensor[[plane, y as usize, x as usize]].clamp(0.0, 1.0);
            (unit * 255.0).round_ties_even() as u8
        };
        image::Rgb([level(2), level(1), level(0)])
    })
}

fn map_pixels(picture: &RgbImage, value_of: impl Fn(f32) -> f32) -> Array4<f32> {
    let table: [f32; 256] = std::array::from_fn(|level| value_of(level as f32));
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let mut planes = Vec::with_capacity(3 * width * height);
    for channel in 0..3 {
        let samples = picture.as_raw().iter().skip(channel).step_by(3);
        planes.extend(samples.map(|&level| table[usize::from(level)]));
    }
    Array4::from_shape_vec((1, 3, height, width), planes).expect("three planes of this size")
}

/// The picture of these samples, which the caller made for this size.
pub(super) fn image_of<P: Pixel<Subpixel = u8>>(
    width: u32,
    height: u32,
    samples: Vec<u8>,
) -> ImageBuffer<P, Vec<u8>> {
    ImageBuffer::from_raw(width, height, samples).expect("the samples were made for this size")
}

/// Pillow's `convert("RGB")`: grey is replicated, alpha is dropped without compositing.
#[must_use]
pub fn to_rgb(picture: &DynamicImage) -> RgbImage {
    picture.to_rgb8()
}

#[cfg(test)]
mod tests {
    use ndarray::Array3;

    use super::*;

    #[test]
    fn decoded_values_are_clamped_and_truncated() {
        let mut decoded = Array3::zeros((3, 1, 2));
        decoded[[0, 0, 0]] = -3.0;
        decoded[[1, 0, 0]] = 0.0; // 127.5
        decoded[[2, 0, 0]] = 1.0;
        decoded[[0, 0, 1]] = 7.0;
        decoded[[1, 0, 1]] = 0.999; // 254.87
        decoded[[2, 0, 1]] = f32::NAN;
        let picture = tensor_to_picture(decoded.view());
        assert_eq!(picture.as_raw(), &[0, 127, 255, 255, 254, 0]);
    }

    #[test]
    fn pictures_become_planes() {
        let picture = RgbImage::from_raw(2, 1, vec![0, 255, 51, 102, 204, 3]).unwrap();
        let unit = picture_to_unit(&picture);
        assert_eq!(unit.dim(), (1, 3, 1, 2));
        assert_eq!(unit[[0, 1, 0, 0]].to_bits(), 1.0_f32.to_bits());
        assert_eq!(unit[[0, 2, 0, 0]].to_bits(), (51.0_f32 / 255.0).to_bits());
        let signed = picture_to_signed(&picture);
        assert_eq!(signed[[0, 0, 0, 0]].to_bits(), (-1.0_f32).to_bits());
        assert_eq!(
            signed[[0, 0, 0, 1]].to_bits(),
            (102.0_f32 / 255.0 * 2.0 - 1.0).to_bits()
        );
    }

    #[test]
    fn the_way_through_blue_green_red_is_lossless() {
        let levels = (0..=255).flat_map(|level| [level, 255 - level, level / 2]);
        let picture = RgbImage::from_raw(16, 16, levels.collect()).unwrap();
        let tensor = picture_to_bgr(&picture);
        assert_eq!(tensor[[0, 2, 0, 1]].to_bits(), (1.0_f32 / 255.0).to_bits());
        assert_eq!(
            bgr_to_picture(tensor.index_axis(ndarray::Axis(0), 0)),
            picture
        );
    }

    #[test]
    fn grey_is_replicated_and_alpha_dropped() {
        let grey = image::GrayAlphaImage::from_raw(1, 1, vec![9, 0]).unwrap();
        assert_eq!(to_rgb(&grey.into()).as_raw(), &[9, 9, 9]);
    }
}
