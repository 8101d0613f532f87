//! Pictures of requests: base64 or data URL → upright 8-bit picture and what its file says about it.
//!
//! Follows `Image.open` of Pillow 9.5.0 with A1111's EXIF rotation: palettes become RGB (RGBA with a
//! transparency chunk), 16-bit colour keeps the high byte, 16-bit grey is clipped at 255 (Pillow's mode
//! `I`), CMYK becomes RGB, of an animation the first frame counts. Transparency that is not in an alpha
//! channel, in grey PNG and in GIF, is dropped. AVIF and the rarer formats of Pillow are left out.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::{DynamicImage, GrayImage, RgbImage};
use serde_json::{Map, Value};

use super::pixels::image_of;
use super::{exif, gif_info, jpeg_info, png_text};

/// Pillow's decompression-bomb limit: twice its `MAX_IMAGE_PIXELS`.
const MAX_PIXELS: u64 = 178_956_970;

/// Why a picture of a request cannot be used. Every variant shows A1111's own wording.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The text is no base64, not even read leniently.
    #[error("Invalid encoded image")]
    Base64,
    /// The bytes are no picture in a known format, or a broken one.
    #[error("Invalid encoded image")]
    Picture(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// More pixels than Pillow would take.
    #[error("Invalid encoded image")]
    TooLarge { width_px: u32, height_px: u32 },
}

impl DecodeError {
    fn picture(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Picture(source.into())
    }
}

/// A picture and what its file says about it.
#[derive(Debug, Clone)]
pub struct Decoded {
    /// Upright; 8-bit grey, grey with alpha, RGB or RGBA.
    pub picture: DynamicImage,
    pub metadata: Metadata,
}

/// The file's own information, as `/sdapi/v1/png-info` shows it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metadata {
    /// The generation parameters text: PNG `parameters`, EXIF user comment or GIF comment.
    pub infotext: Option<String>,
    /// Everything else that A1111 shows, in file order.
    pub items: Map<String, Value>,
}

impl Metadata {
    /// The text entries that a picture made from this one inherits, `parameters` last.
    #[must_use]
    pub fn texts(&self) -> Vec<(String, String)> {
        let infotext = self
            .infotext
            .iter()
            .map(|text| ("parameters", text.as_str()));
        let items = self.items.iter();
        let items = items.filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)));
        let owned = |(key, text): (&str, &str)| (key.to_owned(), text.to_owned());
        items.chain(infotext).map(owned).collect()
    }
}

/// Decodes a picture as it stands in a request: a `data:image/…;base64,` URL or bare base64.
/// Fetching `http://` URLs is the caller's business.
///
/// # Errors
/// When the text is no base64 or its bytes are no picture.
pub fn decode_base64(text: &str) -> Result<Decoded, DecodeError> {
    decode_base64_within(text, MAX_PIXELS)
}

/// [`decode_base64`] with a limit of its own on width times height.
///
/// # Errors
/// See [`decode_base64`].
pub fn decode_base64_within(text: &str, max_pixels: u64) -> Result<Decoded, DecodeError> {
    let base64 = if text.starts_with("data:image/") {
        let after_type = text.split(';').nth(1);
        let after_comma = after_type.and_then(|part| part.split(',').nth(1));
        after_comma.ok_or(DecodeError::Base64)?
    } else {
        text
    };
    let bytes = base64_decode_lenient(base64).ok_or(DecodeError::Base64)?;
    decode_within(&bytes, max_pixels)
}

/// Python's `base64.b64decode`: characters outside the alphabet are passed over, what follows the
/// padding is ignored, missing padding and non-ASCII characters are errors (`None`).
#[must_use]
pub fn base64_decode_lenient(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 3);
    let (mut quad, mut filled, mut pads) = (0_u32, 0, 0);
    for character in text.bytes() {
        let value = match character {
            b'A'..=b'Z' => character - b'A',
            b'a'..=b'z' => character - b'a' + 26,
            b'0'..=b'9' => character - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' if filled >= 2 => {
                pads += 1;
                if filled + pads < 4 {
                    continue;
                }
                quad <<= 6 * (4 - filled);
                bytes.extend(&quad.to_be_bytes()[1..filled]);
                return Some(bytes);
            }
            _ => continue,
        };
        pads = 0;
        quad = quad << 6 | u32::from(value);
        filled += 1;
        if filled == 4 {
            bytes.extend(&quad.to_be_bytes()[1..]);
            (quad, filled) = (0, 0);
        }
    }
    (filled == 0).then_some(bytes)
}

/// Decodes a picture file.
///
/// # Errors
/// When the bytes are no picture in a known format, or one that is broken or too large.
pub fn decode(bytes: &[u8]) -> Result<Decoded, DecodeError> {
    decode_within(bytes, MAX_PIXELS)
}

/// [`decode`] with a limit of its own on width times height, looked at before anything is unpacked.
///
/// # Errors
/// See [`DecodeError`].
pub fn decode_within(bytes: &[u8], max_pixels: u64) -> Result<Decoded, DecodeError> {
    match image::guess_format(bytes).map_err(DecodeError::picture)? {
        image::ImageFormat::Png => decode_png(bytes, max_pixels),
        image::ImageFormat::Jpeg => decode_jpeg(bytes, max_pixels),
        image::ImageFormat::WebP => decode_webp(bytes, max_pixels),
        image::ImageFormat::Gif => decode_gif(bytes, max_pixels),
        other => decode_other(bytes, other, max_pixels),
    }
}

fn decode_png(bytes: &[u8], max_pixels: u64) -> Result<Decoded, DecodeError> {
    let limits = png::Limits { bytes: usize::MAX };
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), limits);
    decoder.set_transformations(png::Transformations::IDENTITY);
    let header = decoder.read_header_info().map_err(DecodeError::picture)?;
    check_size(header.width, header.height, max_pixels)?;
    let sixteen_bit_grey = (header.color_type, header.bit_depth)
        == (png::ColorType::Grayscale, png::BitDepth::Sixteen);
    decoder.set_transformations(if sixteen_bit_grey {
        png::Transformations::IDENTITY
    } else {
        png::Transformations::EXPAND | png::Transformations::STRIP_16
    });
    let mut reader = decoder.read_info().map_err(DecodeError::picture)?;
    let size = reader.output_buffer_size().ok_or(DecodeError::TooLarge {
        width_px: reader.info().width,
        height_px: reader.info().height,
    })?;
    // The png crate takes a palette of whole colours for granted.
    if let Some(palette) = &reader.info().palette
        && palette.len() % 3 != 0
    {
        return Err(DecodeError::picture("a palette that ends within a colour"));
    }
    let mut pixels = vec![0; size];
    let frame = reader
        .next_frame(&mut pixels)
        .map_err(DecodeError::picture)?;
    pixels.truncate(frame.buffer_size());
    let (width, height) = (frame.width, frame.height);
    let picture = match (frame.color_type, frame.bit_depth) {
        (png::ColorType::Grayscale, png::BitDepth::Sixteen) => {
            grey_of_16_bit(width, height, &pixels).into()
        }
        (png::ColorType::GrayscaleAlpha, _) if reader.info().trns.is_some() => {
            let grey = pixels.iter().copied().step_by(2).collect();
            DynamicImage::ImageLuma8(image_of(width, height, grey))
        }
        (png::ColorType::Grayscale, _) => DynamicImage::ImageLuma8(image_of(width, height, pixels)),
        (png::ColorType::GrayscaleAlpha, _) => {
            DynamicImage::ImageLumaA8(image_of(width, height, pixels))
        }
        (png::ColorType::Rgba, _) => DynamicImage::ImageRgba8(image_of(width, height, pixels)),
        (png::ColorType::Rgb | png::ColorType::Indexed, _) => {
            DynamicImage::ImageRgb8(image_of(width, height, pixels))
        }
    };
    let facts = reader.info().exif_metadata.as_deref().map(exif::read);
    let mut items = png_text::read_info(bytes);
    let parameters = match items.shift_remove("parameters") {
        Some(Value::String(text)) => Some(text),
        _ => None,
    };
    Ok(finish(
        picture,
        facts.unwrap_or_default(),
        parameters,
        items,
    ))
}

fn decode_jpeg(bytes: &[u8], max_pixels: u64) -> Result<Decoded, DecodeError> {
    if !jpeg_info::is_complete(bytes) {
        return Err(DecodeError::picture("image file is truncated"));
    }
    // libjpeg reports errors by unwinding, without a panic message.
    let picture = catch_unwind(AssertUnwindSafe(|| read_jpeg(bytes, max_pixels)))
        .map_err(|_| DecodeError::picture("libjpeg cannot read the picture"))??;
    let (block, comment) = jpeg_info::read(bytes);
    let facts = block.map(exif::read).unwrap_or_default();
    let mut items = Map::new();
    if let Some(comment) = comment {
        items.insert("comment".into(), comment.into());
    }
    Ok(finish(picture, facts, None, items))
}

fn read_jpeg(bytes: &[u8], max_pixels: u64) -> Result<DynamicImage, DecodeError> {
    use mozjpeg::ColorSpace::{JCS_CMYK, JCS_GRAYSCALE, JCS_YCCK};
    let decoder = mozjpeg::Decompress::new_mem(bytes).map_err(DecodeError::picture)?;
    let (width, height) = (decoder.width() as u32, decoder.height() as u32);
    check_size(width, height, max_pixels)?;
    let source = decoder.color_space();
    let mut started = match source {
        JCS_GRAYSCALE => decoder.grayscale(),
        JCS_CMYK | JCS_YCCK => decoder.to_colorspace(JCS_CMYK),
        _ => decoder.rgb(),
    }
    .map_err(DecodeError::picture)?;
    let pixels = started
        .read_scanlines::<u8>()
        .map_err(DecodeError::picture)?;
    started.finish().map_err(DecodeError::picture)?;
    Ok(match source {
        JCS_GRAYSCALE => DynamicImage::ImageLuma8(image_of(width, height, pixels)),
        JCS_CMYK | JCS_YCCK => rgb_of_inverted_cmyk(width, height, &pixels).into(),
        _ => DynamicImage::ImageRgb8(image_of(width, height, pixels)),
    })
}

/// Pillow takes the CMYK of a JPEG as inverted (Adobe's way) and multiplies ink with black.
fn rgb_of_inverted_cmyk(width: u32, height: u32, pixels: &[u8]) -> RgbImage {
    let rgb = pixels.chunks_exact(4).flat_map(|inverted| {
        let light = i32::from(inverted[3]);
        [0, 1, 2].map(|ink| {
            let product = (255 - i32::from(inverted[ink])) * light + 128;
            (light - (((product >> 8) + product) >> 8)).clamp(0, 255) as u8
        })
    });
    image_of(width, height, rgb.collect())
}

fn decode_webp(bytes: &[u8], max_pixels: u64) -> Result<Decoded, DecodeError> {
    let features = webp::BitstreamFeatures::new(bytes)
        .ok_or_else(|| DecodeError::picture("libwebp cannot read the picture"))?;
    check_size(features.width(), features.height(), max_pixels)?;
    let broken = || DecodeError::picture("libwebp cannot read the picture");
    let picture = if features.has_animation() {
        let frames = webp::AnimDecoder::new(bytes).decode();
        let frames = frames.map_err(DecodeError::picture)?;
        let first = frames.get_frame(0).ok_or_else(broken)?;
        let pixels = first.get_image().to_vec();
        webp_picture(
            first.width(),
            first.height(),
            pixels,
            first.get_layout().is_alpha(),
        )
    } else {
        let decoded = webp::Decoder::new(bytes).decode().ok_or_else(broken)?;
        let (width, height) = (decoded.width(), decoded.height());
        webp_picture(width, height, decoded.to_vec(), decoded.is_alpha())
    };
    let facts = webp_exif_chunk(bytes).map(exif::read).unwrap_or_default();
    Ok(finish(picture, facts, None, Map::new()))
}

fn webp_picture(width: u32, height: u32, pixels: Vec<u8>, alpha: bool) -> DynamicImage {
    if alpha {
        DynamicImage::ImageRgba8(image_of(width, height, pixels))
    } else {
        DynamicImage::ImageRgb8(image_of(width, height, pixels))
    }
}

fn webp_exif_chunk(webp: &[u8]) -> Option<&[u8]> {
    let mut rest = webp.get(12..)?;
    loop {
        let (kind, after) = rest.split_first_chunk::<4>()?;
        let (length, after) = after.split_first_chunk::<4>()?;
        let length = u32::from_le_bytes(*length) as usize;
        let data = after.get(..length)?;
        if kind == b"EXIF" {
            return Some(data);
        }
        rest = after.get(length + length % 2..)?;
    }
}

fn decode_gif(bytes: &[u8], max_pixels: u64) -> Result<Decoded, DecodeError> {
    let Decoded { picture, .. } = decode_other(bytes, image::ImageFormat::Gif, max_pixels)?;
    let (version, comment) = gif_info::read(bytes);
    let mut items = Map::new();
    let entries = [("version", version), ("comment", comment.clone())];
    for (key, value) in entries {
        if let Some(value) = value {
            items.insert(key.into(), value.into());
        }
    }
    let picture = DynamicImage::ImageRgb8(picture.to_rgb8());
    Ok(finish(picture, exif::ExifFacts::default(), comment, items))
}

fn decode_other(
    bytes: &[u8],
    format: image::ImageFormat,
    max_pixels: u64,
) -> Result<Decoded, DecodeError> {
    let reader = || image::ImageReader::with_format(Cursor::new(bytes), format);
    let (width, height) = reader().into_dimensions().map_err(DecodeError::picture)?;
    check_size(width, height, max_pixels)?;
    let mut decoder = reader().into_decoder().map_err(DecodeError::picture)?;
    let orientation = image::ImageDecoder::orientation(&mut decoder).ok();
    let picture = DynamicImage::from_decoder(decoder).map_err(DecodeError::picture)?;
    let facts = exif::ExifFacts {
        orientation,
        user_comment: None,
    };
    Ok(finish(to_eight_bit(picture), facts, None, Map::new()))
}

fn finish(
    picture: DynamicImage,
    facts: exif::ExifFacts,
    infotext: Option<String>,
    items: Map<String, Value>,
) -> Decoded {
    Decoded {
        picture: exif::transpose(picture, facts.orientation),
        metadata: Metadata {
            infotext: infotext.or(facts.user_comment),
            items,
        },
    }
}

fn check_size(width_px: u32, height_px: u32, max_pixels: u64) -> Result<(), DecodeError> {
    if u64::from(width_px) * u64::from(height_px) > max_pixels {
        return Err(DecodeError::TooLarge {
            width_px,
            height_px,
        });
    }
    Ok(())
}

fn grey_of_16_bit(width: u32, height: u32, big_endian: &[u8]) -> GrayImage {
    let clipped = big_endian
        .chunks_exact(2)
        .map(|pair| u8::try_from(u16::from_be_bytes([pair[0], pair[1]])).unwrap_or(u8::MAX));
    image_of(width, height, clipped.collect())
}

/// What Pillow makes of deep pixels: the high byte of colour, clipped grey.
fn to_eight_bit(picture: DynamicImage) -> DynamicImage {
    let high = |samples: Vec<u16>| samples.into_iter().map(|s| (s >> 8) as u8).collect();
    let (width, height) = (picture.width(), picture.height());
    match picture {
        DynamicImage::ImageLuma16(grey) => {
            let clip = |s: u16| u8::try_from(s).unwrap_or(u8::MAX);
            let clipped = grey.into_raw().into_iter().map(clip).collect();
            DynamicImage::ImageLuma8(image_of(width, height, clipped))
        }
        DynamicImage::ImageLumaA16(p) => {
            DynamicImage::ImageLumaA8(image_of(width, height, high(p.into_raw())))
        }
        DynamicImage::ImageRgb16(p) => {
            DynamicImage::ImageRgb8(image_of(width, height, high(p.into_raw())))
        }
        DynamicImage::ImageRgba16(p) => {
            DynamicImage::ImageRgba8(image_of(width, height, high(p.into_raw())))
        }
        DynamicImage::ImageRgb32F(_) => DynamicImage::ImageRgb8(picture.to_rgb8()),
        DynamicImage::ImageRgba32F(_) => DynamicImage::ImageRgba8(picture.to_rgba8()),
        eight_bit => eight_bit,
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine;

    use super::*;
    use crate::imaging::encode_png;

    fn small_png() -> Vec<u8> {
        let picture = RgbImage::from_raw(2, 1, vec![1, 2, 3, 4, 5, 6]).unwrap();
        encode_png(&picture.into(), &[]).unwrap()
    }

    #[test]
    fn a_palette_that_ends_within_a_colour_is_refused() {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, 1, 1);
        encoder.set_color(png::ColorType::Indexed);
        encoder.set_palette(vec![9_u8]);
        encoder.set_trns(vec![1_u8]);
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(&[0]).unwrap();
        writer.finish().unwrap();
        assert!(matches!(decode(&bytes), Err(DecodeError::Picture(_))));
    }

    #[test]
    fn base64_is_read_as_python_reads_it() {
        let cases: [(&str, Option<&[u8]>); 10] = [
            ("aGVsbG8=", Some(b"hello")),
            ("aGVs bG8\n=", Some(b"hello")),
            ("aGVsbG8=garbage", Some(b"hello")),
            ("aGVsbG8", None),
            ("aGVsbA==", Some(b"hell")),
            ("aGVsbA=", None),
            ("=aGVs", Some(b"hel")),
            ("a", None),
            ("", Some(b"")),
            ("aGVsé", None),
        ];
        for (text, want) in cases {
            assert_eq!(base64_decode_lenient(text).as_deref(), want, "{text:?}");
        }
    }

    #[test]
    fn data_urls_and_bare_base64_are_the_same() {
        let base64 = base64::engine::general_purpose::STANDARD.encode(small_png());
        let urls = [
            base64.clone(),
            format!("data:image/png;base64,{base64}"),
            format!("data:image/jpeg;base64, {base64}"),
        ];
        for url in urls {
            let decoded = decode_base64(&url).unwrap();
            assert_eq!(decoded.picture.as_bytes(), [1, 2, 3, 4, 5, 6]);
        }
    }

    #[test]
    fn what_is_no_picture_is_an_invalid_encoded_image() {
        let octets = "data:application/octet-stream;base64,AAAA";
        for text in ["", "zzzz", "!!!notbase64", octets, "data:image/png"] {
            let error = decode_base64(text).unwrap_err();
            assert_eq!(error.to_string(), "Invalid encoded image");
        }
        let mut png = small_png();
        png.truncate(50);
        assert!(decode(&png).is_err());
        let picture = DynamicImage::new_rgb8(64, 64);
        let mut jpeg = crate::imaging::encode_jpeg(&picture, 80, "").unwrap();
        assert!(decode(&jpeg).is_ok());
        jpeg.truncate(jpeg.len() - 2);
        assert!(decode(&jpeg).is_err());
        for length in (0..jpeg.len()).step_by(7) {
            assert!(decode(&jpeg[..length]).is_err());
        }
    }

    #[test]
    fn a_bomb_is_refused_before_it_is_unpacked() {
        let mut png = small_png();
        png[16..24].copy_from_slice(&[0, 0, 0x40, 0, 0, 0, 0x40, 0]);
        let crc = {
            let mut crc = flate2::Crc::new();
            crc.update(&png[12..29]);
            crc.sum()
        };
        png[29..33].copy_from_slice(&crc.to_be_bytes());
        assert!(matches!(decode(&png), Err(DecodeError::TooLarge { .. })));
    }
}
