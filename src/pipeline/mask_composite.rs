//! The picture that the option `return_mask_composite` adds: the repainted part on nothing.

use image::{GrayImage, RgbaImage};

use crate::imaging::{Cause, ResizeMode, Upscaler, resize_image, to_grey};

/// `picture` where `mask` is white, transparent black elsewhere, as Pillow composites in
/// premultiplied colours.
///
/// # Errors
/// When a side is zero.
pub(super) fn compose(picture: &RgbaImage, mask: &GrayImage) -> Result<RgbaImage, Cause> {
    let (width, height) = picture.dimensions();
    let mask = if mask.dimensions() == (width, height) {
        mask.clone()
    } else {
        let resized = resize_image(
            ResizeMode::from_number(2),
            &mask.clone().into(),
            width,
            height,
            &Upscaler::None,
        )?;
        to_grey(&resized)
    };
    let mut composite = RgbaImage::new(width, height);
    for (x, y, pixel) in composite.enumerate_pixels_mut() {
        let source = picture.get_pixel(x, y).0;
        let weight = u32::from(mask.get_pixel(x, y).0[0]);
        let alpha = u32::from(source[3]);
        let premultiplied = source.map(|value| scale_byte(u32::from(value), alpha));
        let shown = [
            scale_byte(premultiplied[0], weight),
            scale_byte(premultiplied[1], weight),
            scale_byte(premultiplied[2], weight),
            scale_byte(alpha, weight),
        ];
        pixel.0 = unpremultiply(shown);
    }
    Ok(composite)
}

/// Pillow's `MULDIV255`.
fn scale_byte(value: u32, factor: u32) -> u32 {
    let product = value * factor + 128;
    ((product >> 8) + product) >> 8
}

fn unpremultiply(pixel: [u32; 4]) -> [u8; 4] {
    let alpha = pixel[3];
    let restore = |value: u32| match alpha {
        0 | 255 => value as u8,
        _ => (255 * value / alpha).min(255) as u8,
    };
    [
        restore(pixel[0]),
        restore(pixel[1]),
        restore(pixel[2]),
        alpha as u8,
    ]
}
