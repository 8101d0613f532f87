//! Pictures of answers: PNG with text chunks, JPEG and WebP with the infotext as EXIF user comment.
//!
//! JPEG and WebP come from the C libraries that Pillow uses, with Pillow's settings, so that lossy
//! pictures agree too: the same bytes as Pillow 9.5.0's from quality 24 up (below it, Pillow clips the
//! quantisation tables to a byte, which the binding here cannot ask for). PNG is lossless and uses the fast compression of the `png` crate.

use std::panic::{AssertUnwindSafe, catch_unwind};

use image::DynamicImage;

use super::{exif, png_text};

/// Why a picture could not be written.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    #[error("the PNG cannot be written")]
    Png(#[from] png::EncodingError),
    /// A JPEG side is limited to 65535 pixels, a WebP side to 16383.
    #[error("the {format} cannot be written: {reason}")]
    Lossy {
        format: &'static str,
        reason: String,
    },
}

/// The formats an answer may have: A1111's `samples_format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageFormat {
    Png,
    Jpeg,
    Webp,
}

impl ImageFormat {
    /// Reads `samples_format`, in any case; anything but png, jpg, jpeg and webp is `None`
    /// (A1111: `Invalid image format`).
    #[must_use]
    pub fn from_option(samples_format: &str) -> Option<Self> {
        match samples_format.to_lowercase().as_str() {
            "png" => Some(Self::Png),
            "jpg" | "jpeg" => Some(Self::Jpeg),
            "webp" => Some(Self::Webp),
            _ => None,
        }
    }
}

/// A PNG with the given text chunks, fast to write (A1111's keyword for the infotext is `parameters`).
///
/// # Errors
/// When the picture has no pixels.
pub fn encode_png(picture: &DynamicImage, texts: &[(&str, &str)]) -> Result<Vec<u8>, EncodeError> {
    encode_png_with_compression(picture, texts, png::Compression::Fast)
}

/// [`encode_png`] with a chosen trade of size against time.
///
/// # Errors
/// When the picture has no pixels.
pub fn encode_png_with_compression(
    picture: &DynamicImage,
    texts: &[(&str, &str)],
    compression: png::Compression,
) -> Result<Vec<u8>, EncodeError> {
    let converted;
    let (colour, pixels) = match picture {
        DynamicImage::ImageLuma8(p) => (png::ColorType::Grayscale, p.as_raw()),
        DynamicImage::ImageLumaA8(p) => (png::ColorType::GrayscaleAlpha, p.as_raw()),
        DynamicImage::ImageRgb8(p) => (png::ColorType::Rgb, p.as_raw()),
        DynamicImage::ImageRgba8(p) => (png::ColorType::Rgba, p.as_raw()),
        deep => {
            converted = deep.to_rgba8();
            (png::ColorType::Rgba, converted.as_raw())
        }
    };
    let mut file = Vec::with_capacity(pixels.len() / 2 + 1024);
    let mut encoder = png::Encoder::new(&mut file, picture.width(), picture.height());
    encoder.set_color(colour);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(compression);
    let mut writer = encoder.write_header()?;
    for (keyword, text) in texts {
        let (kind, data) = png_text::text_chunk(keyword, text);
        writer.write_chunk(kind, &data)?;
    }
    writer.write_image_data(pixels)?;
    writer.finish()?;
    Ok(file)
}

/// A JPEG of `quality` 1 to 100, 4:2:0, with `comment` (empty: none to tell) as EXIF user comment.
/// Alpha is dropped.
///
/// # Errors
/// When a side is longer than 65535 pixels or zero.
pub fn encode_jpeg(
    picture: &DynamicImage,
    quality: u8,
    comment: &str,
) -> Result<Vec<u8>, EncodeError> {
    let failed = |reason: String| EncodeError::Lossy {
        format: "JPEG",
        reason,
    };
    // libjpeg reports errors by unwinding, without a panic message.
    catch_unwind(AssertUnwindSafe(|| write_jpeg(picture, quality, comment)))
        .map_err(|_| failed("libjpeg refuses the picture".into()))?
        .map_err(|error| failed(error.to_string()))
}

fn write_jpeg(picture: &DynamicImage, quality: u8, comment: &str) -> std::io::Result<Vec<u8>> {
    let rgb = super::to_rgb(picture);
    let mut encoder = mozjpeg::Compress::new(mozjpeg::ColorSpace::JCS_RGB);
    encoder.set_fastest_defaults();
    encoder.set_size(rgb.width() as usize, rgb.height() as usize);
    encoder.set_quality(f32::from(quality));
    let mut started = encoder.start_compress(Vec::new())?;
    let block = [b"Exif\0\0".as_slice(), &exif::user_comment_block(comment)].concat();
    if block.len() <= 65533 {
        started.write_marker(mozjpeg::Marker::APP(1), &block);
    }
    started.write_scanlines(&rgb)?;
    started.finish()
}

/// A WebP of `quality` 0 to 100 (for lossless: effort), with `comment` as EXIF user comment. Alpha is
/// dropped.
///
/// # Errors
/// When a side is longer than 16383 pixels or zero.
pub fn encode_webp(
    picture: &DynamicImage,
    quality: u8,
    lossless: bool,
    comment: &str,
) -> Result<Vec<u8>, EncodeError> {
    let rgb = super::to_rgb(picture);
    let (width, height) = rgb.dimensions();
    let failed = |reason: String| EncodeError::Lossy {
        format: "WebP",
        reason,
    };
    let encoder = webp::Encoder::from_rgb(&rgb, width, height);
    let file = encoder
        .encode_simple(lossless, f32::from(quality))
        .map_err(|error| failed(format!("{error:?}")))?;
    Ok(with_webp_exif(&file, width, height, comment))
}

/// Wraps a simple WebP file into the extended format with an EXIF chunk.
fn with_webp_exif(file: &[u8], width: u32, height: u32, comment: &str) -> Vec<u8> {
    let mut body = b"WEBPVP8X\x0a\0\0\0\x08\0\0\0".to_vec();
    body.extend(&(width - 1).to_le_bytes()[..3]);
    body.extend(&(height - 1).to_le_bytes()[..3]);
    body.extend(&file[12..]);
    let block = exif::user_comment_block(comment);
    body.extend(b"EXIF");
    body.extend((block.len() as u32).to_le_bytes());
    body.extend(&block);
    body.resize(body.len() + block.len() % 2, 0);
    let mut wrapped = b"RIFF".to_vec();
    wrapped.extend((body.len() as u32).to_le_bytes());
    wrapped.extend(body);
    wrapped
}

#[cfg(test)]
mod tests {
    use image::RgbImage;

    use super::*;
    use crate::imaging::decode;

    fn gradient(width: u32, height: u32) -> DynamicImage {
        RgbImage::from_fn(width, height, |x, y| {
            image::Rgb([(x * 5) as u8, (y * 7) as u8, (x * y) as u8])
        })
        .into()
    }

    #[test]
    fn png_text_comes_back_and_pixels_are_kept() {
        let picture = gradient(33, 17);
        for text in ["plain\nSteps: 20", "café", "☕ unicode"] {
            let file = encode_png(&picture, &[("parameters", text), ("other", "x")]).unwrap();
            let decoded = decode(&file).unwrap();
            assert_eq!(decoded.picture, picture);
            assert_eq!(decoded.metadata.infotext.as_deref(), Some(text));
            assert_eq!(decoded.metadata.items["other"], "x");
        }
    }

    #[test]
    fn every_layout_survives_png() {
        let picture = gradient(5, 4);
        let layouts: [DynamicImage; 4] = [
            picture.to_luma8().into(),
            picture.to_luma_alpha8().into(),
            picture.to_rgb8().into(),
            picture.to_rgba8().into(),
        ];
        for layout in layouts {
            let file = encode_png(&layout, &[]).unwrap();
            assert_eq!(decode(&file).unwrap().picture, layout);
        }
    }

    #[test]
    fn lossy_pictures_carry_the_comment() {
        let picture = gradient(40, 24);
        let jpeg = encode_jpeg(&picture, 80, "aé€").unwrap();
        let webp = encode_webp(&picture, 80, false, "aé€").unwrap();
        for file in [jpeg, webp] {
            let decoded = decode(&file).unwrap();
            assert_eq!(decoded.metadata.infotext.as_deref(), Some("aé€"));
            assert_eq!(decoded.picture.width(), 40);
        }
        let webp = encode_webp(&picture, 80, true, "").unwrap();
        assert_eq!(decode(&webp).unwrap().picture, picture);
    }

    #[test]
    fn impossible_sizes_are_errors() {
        let empty = DynamicImage::new_rgb8(0, 0);
        assert!(encode_png(&empty, &[]).is_err());
        assert!(encode_jpeg(&empty, 80, "").is_err());
        assert!(encode_webp(&empty, 80, false, "").is_err());
        assert!(encode_jpeg(&DynamicImage::new_rgb8(70_000, 1), 80, "").is_err());
        assert!(encode_webp(&DynamicImage::new_rgb8(17_000, 1), 80, false, "").is_err());
    }
}
