//! Pillow 9.5.0's integer compositing, to the byte: premultiplied alpha, masked paste, alpha
//! composite, blend; and A1111's flattening of alpha.

use image::{DynamicImage, ImageBuffer, Pixel, Rgb, RgbImage, RgbaImage};

use super::pixels::image_of;

/// `a * b / 255`, rounded, as Pillow's `MULDIV255`.
pub(super) fn multiply(a: u8, b: u8) -> u8 {
    let t = u32::from(a) * u32::from(b) + 128;
    (((t >> 8) + t) >> 8) as u8
}

/// Pillow's paste of `source` over `under` through a mask level.
pub(super) fn mix(source: u8, under: u8, mask: u8) -> u8 {
    let mask = u32::from(mask);
    let t = u32::from(source) * mask + u32::from(under) * (255 - mask) + 128;
    (((t >> 8) + t) >> 8) as u8
}

/// Multiplies colour with alpha, the last of `C` samples of a pixel.
pub(super) fn premultiply_in_place<const C: usize>(samples: &mut [u8]) {
    for pixel in samples.chunks_exact_mut(C) {
        let alpha = pixel[C - 1];
        for sample in &mut pixel[..C - 1] {
            *sample = multiply(*sample, alpha);
        }
    }
}

/// Divides colour by alpha, the last of `C` samples of a pixel; transparent pixels keep their colour.
pub(super) fn unpremultiply_in_place<const C: usize>(samples: &mut [u8]) {
    for pixel in samples.chunks_exact_mut(C) {
        let alpha = u32::from(pixel[C - 1]);
        if alpha == 0 || alpha == 255 {
            continue;
        }
        for sample in &mut pixel[..C - 1] {
            *sample = (255 * u32::from(*sample) / alpha).min(255) as u8;
        }
    }
}

/// `Image.alpha_composite`: `over` on top of `under`, in place.
///
/// # Panics
/// When the sizes differ.
pub fn alpha_composite(under: &mut RgbaImage, over: &RgbaImage) {
    assert_eq!(under.dimensions(), over.dimensions(), "images do not match");
    for (below, above) in under.pixels_mut().zip(over.pixels()) {
        composite_pixel(&mut below.0, above.0);
    }
}

fn composite_pixel(below: &mut [u8; 4], above: [u8; 4]) {
    const PRECISION_BITS: u32 = 7;
    let divide_by_255 = |value: u32| ((value >> 8) + value) >> 8;
    let alpha = u32::from(above[3]);
    if alpha == 0 {
        return;
    }
    if alpha == 255 {
        // The general formula gives the same.
        *below = above;
        return;
    }
    let blend = u32::from(below[3]) * (255 - alpha);
    let alpha_255 = alpha * 255 + blend;
    let above_share = ((alpha * 255 * 255) << PRECISION_BITS) / alpha_255;
    let below_share = (255 << PRECISION_BITS) - above_share;
    for channel in 0..3 {
        let sum = u32::from(above[channel]) * above_share + u32::from(below[channel]) * below_share;
        below[channel] = (divide_by_255(sum + (0x80 << PRECISION_BITS)) >> PRECISION_BITS) as u8;
    }
    below[3] = divide_by_255(alpha_255 + 0x80) as u8;
}

/// `Image.paste` of one picture into another of the same layout, at a position that may lie outside.
pub fn paste<P: Pixel<Subpixel = u8>>(
    canvas: &mut ImageBuffer<P, Vec<u8>>,
    picture: &ImageBuffer<P, Vec<u8>>,
    left: i64,
    top: i64,
) {
    let channels = usize::from(P::CHANNEL_COUNT);
    let across = Overlap::new(left, picture.width(), canvas.width());
    let down = Overlap::new(top, picture.height(), canvas.height());
    let canvas_stride = canvas.width() as usize * channels;
    let stride = picture.width() as usize * channels;
    let length = across.count * channels;
    for row in 0..down.count {
        let from = (down.in_picture + row) * stride + across.in_picture * channels;
        let to = (down.on_canvas + row) * canvas_stride + across.on_canvas * channels;
        canvas.as_mut()[to..to + length].copy_from_slice(&picture.as_raw()[from..from + length]);
    }
}

/// The part of one axis of a picture that falls onto a canvas.
struct Overlap {
    in_picture: usize,
    on_canvas: usize,
    count: usize,
}

impl Overlap {
    fn new(offset: i64, length: u32, canvas_length: u32) -> Self {
        let in_picture = (-offset).max(0);
        let on_canvas = offset.max(0);
        let count = (i64::from(length) - in_picture).min(i64::from(canvas_length) - on_canvas);
        if count <= 0 {
            return Self {
                in_picture: 0,
                on_canvas: 0,
                count: 0,
            };
        }
        Self {
            in_picture: in_picture as usize,
            on_canvas: on_canvas as usize,
            count: count as usize,
        }
    }
}

/// `Image.crop`: what lies outside the picture is zero.
#[must_use]
pub fn crop<P: Pixel<Subpixel = u8>>(
    picture: &ImageBuffer<P, Vec<u8>>,
    left: i64,
    top: i64,
    width: u32,
    height: u32,
) -> ImageBuffer<P, Vec<u8>> {
    let mut out = ImageBuffer::new(width, height);
    paste(&mut out, picture, -left, -top);
    out
}

/// `Image.blend`: `first * (1 - share) + second * share`, in f32, truncated.
///
/// # Panics
/// When the sizes differ.
#[must_use]
pub fn blend(first: &DynamicImage, second: &DynamicImage, share: f64) -> DynamicImage {
    let share = share as f32;
    let mixed = |a: &[u8], b: &[u8]| -> Vec<u8> {
        assert_eq!(a.len(), b.len(), "images do not match");
        let mix = |(&a, &b): (&u8, &u8)| {
            let value = f32::from(a) + share * (f32::from(b) - f32::from(a));
            value as u8
        };
        a.iter().zip(b).map(mix).collect()
    };
    let (width, height) = (first.width(), first.height());
    if let (DynamicImage::ImageRgba8(a), DynamicImage::ImageRgba8(b)) = (first, second) {
        let pixels = mixed(a, b);
        DynamicImage::ImageRgba8(image_of(width, height, pixels))
    } else {
        let pixels = mixed(&first.to_rgb8(), &second.to_rgb8());
        DynamicImage::ImageRgb8(image_of(width, height, pixels))
    }
}

/// Puts a picture with alpha on a plain background; others become RGB.
#[must_use]
pub fn flatten(picture: &DynamicImage, background: Rgb<u8>) -> RgbImage {
    if !picture.color().has_alpha() {
        return super::to_rgb(picture);
    }
    let rgba = picture.to_rgba8();
    let mut flat = RgbImage::from_pixel(rgba.width(), rgba.height(), background);
    for (under, over) in flat.pixels_mut().zip(rgba.pixels()) {
        for channel in 0..3 {
            under.0[channel] = mix(over.0[channel], under.0[channel], over.0[3]);
        }
    }
    flat
}

/// Reads a colour as it stands in options: `#rgb`, `#rrggbb` (an alpha after it is ignored) or one of
/// the names a user plausibly writes. `None` for anything else.
#[must_use]
pub fn parse_colour(text: &str) -> Option<Rgb<u8>> {
    let text = text.trim().to_lowercase();
    let named = match text.as_str() {
        "white" => Some([255, 255, 255]),
        "black" => Some([0, 0, 0]),
        "red" => Some([255, 0, 0]),
        "green" => Some([0, 128, 0]),
        "lime" => Some([0, 255, 0]),
        "blue" => Some([0, 0, 255]),
        "yellow" => Some([255, 255, 0]),
        "gray" | "grey" => Some([128, 128, 128]),
        _ => None,
    };
    if let Some(named) = named {
        return Some(Rgb(named));
    }
    let digits = text.strip_prefix('#')?;
    let nibble = |at: usize| u8::from_str_radix(digits.get(at..=at)?, 16).ok();
    let byte = |at: usize| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
    match digits.len() {
        3 | 4 => Some(Rgb([nibble(0)? * 17, nibble(1)? * 17, nibble(2)? * 17])),
        6 | 8 => Some(Rgb([byte(0)?, byte(2)?, byte(4)?])),
        _ => None,
    }
}
