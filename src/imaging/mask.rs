//! Inpainting masks: from the request's picture to what the latent and the overlay need.
//!
//! White (255) is what is painted anew.

use image::{DynamicImage, GrayImage};
use ndarray::Array2;

use super::composite::crop;
use super::mask_blur::blur_mask;
use super::pixels::image_of;
use super::resample::{Filter, resize_grey};
use super::resize_mode::{ResizeMode, resize_image};
use super::upscale::{Cause, Upscaler};

/// A rectangle in pixels; right and bottom are outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    pub left: i64,
    pub top: i64,
    pub right: i64,
    pub bottom: i64,
}

impl Region {
    #[must_use]
    pub fn width(self) -> i64 {
        self.right - self.left
    }

    #[must_use]
    pub fn height(self) -> i64 {
        self.bottom - self.top
    }
}

/// How a mask is prepared.
#[derive(Debug, Clone, PartialEq)]
pub struct MaskOptions {
    /// Standard deviations of the blur in pixels.
    pub blur_x: f64,
    pub blur_y: f64,
    /// Alpha becomes black or white (above 128).
    pub round: bool,
    pub invert: bool,
    /// "Only masked": the padding around the masked part. `None`: "whole picture".
    pub only_masked_padding: Option<i64>,
    pub resize_mode: ResizeMode,
    /// The size of the generation.
    pub width_px: u32,
    pub height_px: u32,
}

/// A mask in the shapes that img2img needs.
#[derive(Debug, Clone)]
pub struct PreparedMask {
    /// At the size of the generation; [`latent_mask`] and [`super::fill_masked`] take it.
    pub for_latent: GrayImage,
    /// For the overlay; "only masked": at the mask's own size.
    pub for_overlay: GrayImage,
    /// "Only masked": the part of the picture that is painted.
    pub region: Option<Region>,
}

/// Prepares the mask of a request. `None` when only the masked part is wanted and nothing is masked:
/// then A1111 goes on without a mask.
///
/// # Errors
/// When a side of the mask is or becomes zero.
pub fn prepare_mask(
    picture: &DynamicImage,
    options: &MaskOptions,
) -> Result<Option<PreparedMask>, Cause> {
    let mut mask = mask_of_picture(picture, options.round);
    if options.invert {
        mask = invert_mask(&mask);
    }
    let mask = blur_mask(&mask, options.blur_x, options.blur_y);
    let (width, height) = (options.width_px, options.height_px);
    let Some(padding) = options.only_masked_padding else {
        let for_latent = resize_mask(options.resize_mode, &mask, width, height)?;
        let for_overlay = doubled(&for_latent);
        return Ok(Some(PreparedMask {
            for_latent,
            for_overlay,
            region: None,
        }));
    };
    let Some(region) = masked_region(&mask, padding) else {
        return Ok(None);
    };
    if region.left >= region.right || region.top >= region.bottom {
        return Err("a padding below 0 leaves nothing of the masked area".into());
    }
    let region = expand_region(region, (width, height), mask.dimensions());
    let part = crop(
        &mask,
        region.left,
        region.top,
        region.width() as u32,
        region.height() as u32,
    );
    Ok(Some(PreparedMask {
        for_latent: resize_mask(ResizeMode::Fill, &part, width, height)?,
        for_overlay: mask,
        region: Some(region),
    }))
}

/// The mask in a picture: its alpha channel where that says anything, else its brightness.
#[must_use]
pub fn mask_of_picture(picture: &DynamicImage, round: bool) -> GrayImage {
    if let DynamicImage::ImageRgba8(rgba) = picture
        && rgba.pixels().any(|pixel| pixel.0[3] != 255)
    {
        let level = |alpha: u8| match (round, alpha > 128) {
            (false, _) => alpha,
            (true, true) => 255,
            (true, false) => 0,
        };
        let levels = rgba.pixels().map(|pixel| level(pixel.0[3])).collect();
        return image_of(rgba.width(), rgba.height(), levels);
    }
    to_grey(picture)
}

/// Pillow's `convert("L")`: ITU-R 601 luma in 16-bit fixed point; alpha is dropped.
#[must_use]
pub fn to_grey(picture: &DynamicImage) -> GrayImage {
    let luma = |r: u8, g: u8, b: u8| {
        let sum = u32::from(r) * 19595 + u32::from(g) * 38470 + u32::from(b) * 7471 + 0x8000;
        (sum >> 16) as u8
    };
    let levels = match picture {
        DynamicImage::ImageLuma8(grey) => return grey.clone(),
        DynamicImage::ImageLumaA8(p) => p.pixels().map(|pixel| pixel.0[0]).collect(),
        other => {
            let rgb = super::to_rgb(other);
            rgb.pixels().map(|p| luma(p.0[0], p.0[1], p.0[2])).collect()
        }
    };
    image_of(picture.width(), picture.height(), levels)
}

/// `255 - level`.
#[must_use]
pub fn invert_mask(mask: &GrayImage) -> GrayImage {
    map_levels(mask, |level| 255 - level)
}

/// Twice the level, at most 255: the overlay of a whole picture reaches as far as the blur's middle.
fn doubled(mask: &GrayImage) -> GrayImage {
    map_levels(mask, |level| level.saturating_mul(2))
}

fn map_levels(mask: &GrayImage, of: impl Fn(u8) -> u8) -> GrayImage {
    let levels = mask.as_raw().iter().map(|&level| of(level)).collect();
    image_of(mask.width(), mask.height(), levels)
}

/// [`resize_image`] of a mask.
///
/// # Errors
/// When a side is or becomes zero.
pub fn resize_mask(
    mode: ResizeMode,
    mask: &GrayImage,
    width: u32,
    height: u32,
) -> Result<GrayImage, Cause> {
    let picture = DynamicImage::ImageLuma8(mask.clone());
    let resized = resize_image(mode, &picture, width, height, &Upscaler::None)?;
    Ok(to_grey(&resized))
}

/// The box around everything that is not black, `padding` wider within the picture.
#[must_use]
pub fn masked_region(mask: &GrayImage, padding: i64) -> Option<Region> {
    let (width, height) = (i64::from(mask.width()), i64::from(mask.height()));
    let mut region: Option<Region> = None;
    for (y, row) in mask
        .as_raw()
        .chunks_exact(width.max(1) as usize)
        .enumerate()
    {
        let Some(first) = row.iter().position(|&level| level != 0) else {
            continue;
        };
        let last = row.iter().rposition(|&level| level != 0).unwrap_or(first);
        let (first, after, y) = (first as i64, last as i64 + 1, y as i64);
        let found = region.get_or_insert(Region {
            left: first,
            top: y,
            right: after,
            bottom: y + 1,
        });
        found.left = found.left.min(first);
        found.right = found.right.max(after);
        found.bottom = y + 1;
    }
    region.map(|found| Region {
        left: found.left.saturating_sub(padding).max(0),
        top: found.top.saturating_sub(padding).max(0),
        right: found.right.saturating_add(padding).min(width),
        bottom: found.bottom.saturating_add(padding).min(height),
    })
}

/// Widens a region to the shape of the generation, as far as the picture allows.
#[must_use]
pub fn expand_region(region: Region, generation: (u32, u32), picture: (u32, u32)) -> Region {
    let region_shape = region.width() as f64 / region.height() as f64;
    let generation_shape = f64::from(generation.0) / f64::from(generation.1);
    let mut out = region;
    if region_shape > generation_shape {
        let wanted = region.width() as f64 / generation_shape;
        let more = (wanted - region.height() as f64) as i64;
        (out.top, out.bottom) = widened(region.top, region.bottom, more, i64::from(picture.1));
    } else {
        let wanted = region.height() as f64 * generation_shape;
        let more = (wanted - region.width() as f64) as i64;
        (out.left, out.right) = widened(region.left, region.right, more, i64::from(picture.0));
    }
    out
}

fn widened(start: i64, end: i64, more: i64, limit: i64) -> (i64, i64) {
    let mut start = start - more.div_euclid(2);
    let mut end = end + more - more.div_euclid(2);
    if end >= limit {
        start -= end - limit;
        end = limit;
    }
    if start < 0 {
        end -= start;
        start = 0;
    }
    (start, end.min(limit))
}

/// The mask at latent size, `[h, w]` in 0..1, 1 where noise is wanted (A1111's `nmask`); rounded half to
/// even when `round`.
#[must_use]
pub fn latent_mask(mask: &GrayImage, width: u32, height: u32, round: bool) -> Array2<f32> {
    let small = if mask.dimensions() == (width, height) {
        mask.clone()
    } else {
        resize_grey(mask, width, height, Filter::Bicubic)
    };
    let value = |level: f32| {
        let value = level / 255.0;
        if round {
            value.round_ties_even()
        } else {
            value
        }
    };
    let table: [f32; 256] = std::array::from_fn(|level| value(level as f32));
    Array2::from_shape_fn((height as usize, width as usize), |(y, x)| {
        table[usize::from(small.get_pixel(x as u32, y as u32).0[0])]
    })
}
