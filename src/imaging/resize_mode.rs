//! A1111's `resize_image`: stretch, crop or fill to a size, with an upscaler where the picture grows.

use image::{DynamicImage, RgbImage};

use super::composite::paste;
use super::pixels::image_of;
use super::resample::{Filter, resample_box, resize};
use super::to_rgb;
use super::upscale::{Cause, Upscaler, upscale};

/// How a picture is brought to a size of another shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResizeMode {
    /// Both sides to the wanted size.
    Stretch,
    /// Keep the shape, cover the size, cut off what hangs over.
    Crop,
    /// Keep the shape, fit into the size, fill the bars with the edge's colour.
    Fill,
}

impl ResizeMode {
    /// A1111's number: 0 stretch, 1 crop, anything else fill (3, latent upscale, too where it is asked
    /// of a mask).
    #[must_use]
    pub fn from_number(number: i64) -> Self {
        match number {
            0 => Self::Stretch,
            1 => Self::Crop,
            _ => Self::Fill,
        }
    }
}

/// Resizes as A1111 does. Crop and fill answer RGB.
///
/// # Errors
/// When a side is or becomes zero, or the upscaler fails.
pub fn resize_image(
    mode: ResizeMode,
    picture: &DynamicImage,
    width: u32,
    height: u32,
    upscaler: &Upscaler<'_>,
) -> Result<DynamicImage, Cause> {
    if width == 0 || height == 0 {
        return Err("height and width must be > 0".into());
    }
    match mode {
        ResizeMode::Stretch => enlarge(picture, width, height, upscaler),
        ResizeMode::Crop => crop_to(picture, width, height, upscaler),
        ResizeMode::Fill => fill_to(picture, width, height, upscaler),
    }
}

/// The upscaler while the picture grows, then Lanczos for what is missing.
fn enlarge(
    picture: &DynamicImage,
    width: u32,
    height: u32,
    upscaler: &Upscaler<'_>,
) -> Result<DynamicImage, Cause> {
    let (from_width, from_height) = (picture.width(), picture.height());
    // Keeping the shape of a thin picture can leave nothing of a side.
    if width == 0 || height == 0 || from_width == 0 || from_height == 0 {
        return Err("height and width must be > 0".into());
    }
    let grey = matches!(picture, DynamicImage::ImageLuma8(_));
    let scale =
        (f64::from(width) / f64::from(from_width)).max(f64::from(height) / f64::from(from_height));
    if grey || scale <= 1.0 || matches!(upscaler, Upscaler::None) {
        return Ok(resize(picture, width, height, Filter::Lanczos));
    }
    let larger = upscale(picture, scale, upscaler)?;
    Ok(resize(&larger, width, height, Filter::Lanczos))
}

/// `W / H` against `w / h`, as Python's floats compare them.
fn wider(width: u32, height: u32, picture: &DynamicImage) -> std::cmp::Ordering {
    let wanted = f64::from(width) / f64::from(height);
    let given = f64::from(picture.width()) / f64::from(picture.height());
    wanted.total_cmp(&given)
}

/// `side * of / by`, floored.
fn scaled(side: u32, of: u32, by: u32) -> u32 {
    u32::try_from(u64::from(side) * u64::from(of) / u64::from(by.max(1))).unwrap_or(u32::MAX)
}

fn crop_to(
    picture: &DynamicImage,
    width: u32,
    height: u32,
    upscaler: &Upscaler<'_>,
) -> Result<DynamicImage, Cause> {
    let (inner_width, inner_height) = if wider(width, height, picture).is_gt() {
        (width, scaled(picture.height(), width, picture.width()))
    } else {
        (scaled(picture.width(), height, picture.height()), height)
    };
    let inner = to_rgb(&enlarge(picture, inner_width, inner_height, upscaler)?);
    let mut canvas = RgbImage::new(width, height);
    paste_centred(&mut canvas, &inner);
    Ok(canvas.into())
}

fn paste_centred(canvas: &mut RgbImage, inner: &RgbImage) {
    let middle = |side: u32| i64::from(side / 2);
    let left = middle(canvas.width()) - middle(inner.width());
    let top = middle(canvas.height()) - middle(inner.height());
    paste(canvas, inner, left, top);
}

fn fill_to(
    picture: &DynamicImage,
    width: u32,
    height: u32,
    upscaler: &Upscaler<'_>,
) -> Result<DynamicImage, Cause> {
    let shape = wider(width, height, picture);
    let inner_width = if shape.is_lt() {
        width
    } else {
        scaled(picture.width(), height, picture.height())
    };
    let inner_height = if shape.is_ge() {
        height
    } else {
        scaled(picture.height(), width, picture.width())
    };
    let inner = to_rgb(&enlarge(picture, inner_width, inner_height, upscaler)?);
    let mut canvas = RgbImage::new(width, height);
    paste_centred(&mut canvas, &inner);
    if shape.is_lt() {
        let bar = (height / 2).saturating_sub(inner_height / 2);
        if bar > 0 {
            let edge = f64::from(inner_height);
            let sides = [0.0, f64::from(width)];
            let above = stretched_edge(&inner, (width, bar), [sides[0], 0.0, sides[1], 0.0]);
            let below = stretched_edge(&inner, (width, bar), [sides[0], edge, sides[1], edge]);
            paste(&mut canvas, &above, 0, 0);
            paste(&mut canvas, &below, 0, i64::from(bar + inner_height));
        }
    } else if shape.is_gt() {
        let bar = (width / 2).saturating_sub(inner_width / 2);
        if bar > 0 {
            let edge = f64::from(inner_width);
            let sides = [0.0, f64::from(height)];
            let before = stretched_edge(&inner, (bar, height), [0.0, sides[0], 0.0, sides[1]]);
            let after = stretched_edge(&inner, (bar, height), [edge, sides[0], edge, sides[1]]);
            paste(&mut canvas, &before, 0, 0);
            paste(&mut canvas, &after, i64::from(bar + inner_width), 0);
        }
    }
    Ok(canvas.into())
}

/// A bar made of an empty strip at the picture's edge: Pillow's bicubic weights (1.125 and -0.125 of
/// the two outermost lines) go on beyond it.
fn stretched_edge(picture: &RgbImage, size: (u32, u32), strip: [f64; 4]) -> RgbImage {
    let pixels = resample_box::<3>(picture, picture.dimensions(), size, strip, Filter::Bicubic);
    image_of(size.0, size.1, pixels)
}
