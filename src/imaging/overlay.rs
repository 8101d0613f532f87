//! What stays of the original picture after inpainting, and A1111's *fill* of the masked part.

use image::{GrayImage, RgbImage, RgbaImage};

use super::composite::{alpha_composite, multiply, paste, unpremultiply_in_place};
use super::gaussian_blur::gaussian_blur;
use super::mask::Region;
use super::pixels::image_of;
use super::resize_mode::{ResizeMode, resize_image};
use super::to_rgb;
use super::upscale::{Cause, Upscaler};

/// The original picture with the masked part cut out: alpha is `255 - mask`.
///
/// # Errors
/// When mask and picture differ in size.
pub fn overlay_of(picture: &RgbImage, mask: &GrayImage) -> Result<RgbaImage, Cause> {
    let mut samples = cut_out(picture, mask)?;
    unpremultiply_in_place::<4>(&mut samples);
    Ok(rgba(picture, samples))
}

/// Premultiplied RGBA of the picture pasted through the inverted mask.
fn cut_out(picture: &RgbImage, mask: &GrayImage) -> Result<Vec<u8>, Cause> {
    if picture.dimensions() != mask.dimensions() {
        return Err("images do not match".into());
    }
    let pixels = picture.pixels().zip(mask.as_raw());
    let samples = pixels
        .flat_map(|(pixel, &level)| {
            let kept = 255 - level;
            let [r, g, b] = pixel.0.map(|sample| multiply(sample, kept));
            [r, g, b, kept]
        })
        .collect();
    Ok(samples)
}

fn rgba(like: &RgbImage, samples: Vec<u8>) -> RgbaImage {
    image_of(like.width(), like.height(), samples)
}

/// Fills the masked part with ever finer blurs of its surroundings (the *fill* of `inpainting_fill`).
///
/// # Errors
/// When mask and picture differ in size.
pub fn fill_masked(picture: &RgbImage, mask: &GrayImage) -> Result<RgbImage, Cause> {
    const ROUNDS: [(f32, usize); 6] = [
        (256.0, 1),
        (64.0, 1),
        (16.0, 2),
        (4.0, 4),
        (2.0, 2),
        (0.0, 1),
    ];
    let masked = cut_out(picture, mask)?;
    let mut filled = RgbaImage::new(picture.width(), picture.height());
    for (radius, repeats) in ROUNDS {
        let mut blurred = masked.clone();
        gaussian_blur::<4>(&mut blurred, picture.width() as usize, radius);
        unpremultiply_in_place::<4>(&mut blurred);
        let blurred = rgba(picture, blurred);
        for _ in 0..repeats {
            alpha_composite(&mut filled, &blurred);
        }
    }
    Ok(drop_alpha(&filled))
}

fn drop_alpha(picture: &RgbaImage) -> RgbImage {
    let samples = picture.pixels().flat_map(|p| [p.0[0], p.0[1], p.0[2]]);
    image_of(picture.width(), picture.height(), samples.collect())
}

/// Puts a painted part back to its place on a transparent canvas of the overlay's size.
///
/// # Errors
/// When the region is empty.
pub fn uncrop(painted: &RgbImage, size: (u32, u32), region: Region) -> Result<RgbaImage, Cause> {
    let (width, height) = (region.width() as u32, region.height() as u32);
    let resized = resize_image(
        ResizeMode::Crop,
        &painted.clone().into(),
        width,
        height,
        &Upscaler::None,
    )?;
    let opaque = resized.to_rgba8();
    let mut canvas = RgbaImage::new(size.0, size.1);
    paste(&mut canvas, &opaque, region.left, region.top);
    Ok(canvas)
}

/// Lays the overlay over a painted picture; with a region the picture is first put back to its place.
/// Option `overlay_inpaint` off means not to call this.
///
/// # Errors
/// When the region is empty, or without a region picture and overlay differ in size.
pub fn apply_overlay(
    painted: &RgbImage,
    overlay: &RgbaImage,
    region: Option<Region>,
) -> Result<RgbImage, Cause> {
    let mut canvas = match region {
        Some(region) => uncrop(painted, overlay.dimensions(), region)?,
        None => image::DynamicImage::ImageRgb8(painted.clone()).to_rgba8(),
    };
    if canvas.dimensions() != overlay.dimensions() {
        return Err("images do not match".into());
    }
    alpha_composite(&mut canvas, overlay);
    Ok(to_rgb(&canvas.into()))
}
