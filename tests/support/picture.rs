//! Comparing pictures with the golden ones: container, size, text chunk and pixels.

use std::fmt::Write as _;

use image::{DynamicImage, ImageFormat};

/// How far two pictures may be apart.
#[derive(Clone, Copy)]
pub(crate) struct Bar {
    /// Grey levels.
    pub(crate) max: u8,
    /// Percent of the pixels that may differ at all.
    pub(crate) percent: f64,
}

/// How far two pictures are apart.
#[derive(Clone, Copy, Default)]
pub(crate) struct Distance {
    pub(crate) max: u8,
    pub(crate) percent: f64,
}

/// Compares the files `got` and `want`; says in one line what is wrong.
pub(crate) fn compare_files(got: &[u8], want: &[u8], bar: Bar) -> Result<Distance, String> {
    let (got_format, want_format) = (format_of(got)?, format_of(want)?);
    if got_format != want_format {
        return Err(format!(
            "the picture is {got_format:?}, A1111's is {want_format:?}"
        ));
    }
    let (got, want) = (decode(got)?, decode(want)?);
    let distance = distance(&got, &want)?;
    if distance.max > bar.max || distance.percent > bar.percent {
        let mut line = format!("pixels: max {} on {:.3} %", distance.max, distance.percent);
        let _ = write!(line, " (bar: {} on {:.3} %)", bar.max, bar.percent);
        return Err(line);
    }
    Ok(distance)
}

fn format_of(bytes: &[u8]) -> Result<ImageFormat, String> {
    image::guess_format(bytes).map_err(|error| format!("no picture: {error}"))
}

fn decode(bytes: &[u8]) -> Result<DynamicImage, String> {
    image::load_from_memory(bytes).map_err(|error| format!("no readable picture: {error}"))
}

fn distance(got: &DynamicImage, want: &DynamicImage) -> Result<Distance, String> {
    if got.color() != want.color() {
        return Err(format!(
            "the picture is {:?}, A1111's is {:?}",
            got.color(),
            want.color()
        ));
    }
    let (size, want_size) = ((got.width(), got.height()), (want.width(), want.height()));
    if size != want_size {
        return Err(format!("the picture is {size:?}, A1111's is {want_size:?}"));
    }
    let (got, want) = (got.to_rgba8(), want.to_rgba8());
    let (mut max, mut differing) = (0, 0_u32);
    for (a, b) in got.pixels().zip(want.pixels()) {
        let worst =
            a.0.iter()
                .zip(b.0)
                .map(|(a, b)| a.abs_diff(b))
                .max()
                .unwrap_or(0);
        max = max.max(worst);
        differing += u32::from(worst > 0);
    }
    let percent = 100.0 * f64::from(differing) / f64::from((size.0 * size.1).max(1));
    Ok(Distance { max, percent })
}

/// The text chunks of a PNG, keyword and text, in file order; empty for other files.
pub(crate) fn png_texts(bytes: &[u8]) -> Vec<(String, String)> {
    let decoder = png::Decoder::new(std::io::Cursor::new(bytes));
    let Ok(mut reader) = decoder.read_info() else {
        return Vec::new();
    };
    let _ = reader.finish();
    let info = reader.info();
    let latin1 = info
        .uncompressed_latin1_text
        .iter()
        .map(|text| (text.keyword.clone(), text.text.clone()));
    let compressed = info
        .compressed_latin1_text
        .iter()
        .map(|text| (text.keyword.clone(), text.get_text().unwrap_or_default()));
    let utf8 = info
        .utf8_text
        .iter()
        .map(|text| (text.keyword.clone(), text.get_text().unwrap_or_default()));
    latin1.chain(compressed).chain(utf8).collect()
}
