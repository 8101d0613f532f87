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

/// How far pictures are apart; of several the largest of each number.
#[derive(Clone, Copy, Default)]
pub(crate) struct Distance {
    /// Pictures that were compared.
    pub(crate) pictures: usize,
    /// Grey levels.
    pub(crate) max: u8,
    /// Grey levels, over all samples.
    pub(crate) mean: f64,
    /// Pixels that differ.
    pub(crate) percent: f64,
}

impl Distance {
    /// This one and another picture's.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            pictures: self.pictures + other.pictures,
            max: self.max.max(other.max),
            mean: self.mean.max(other.mean),
            percent: self.percent.max(other.percent),
        }
    }
}

/// Measures the files `got` and `want`; says in one line what cannot be compared.
pub(crate) fn measure(got: &[u8], want: &[u8]) -> Result<Distance, String> {
    let (got_format, want_format) = (format_of(got)?, format_of(want)?);
    if got_format != want_format {
        return Err(format!(
            "the picture is {got_format:?}, A1111's is {want_format:?}"
        ));
    }
    distance(&decode(got)?, &decode(want)?)
}

/// Says in one line by how much a distance is over the bar.
pub(crate) fn check(distance: Distance, bar: Bar) -> Result<(), String> {
    if distance.max > bar.max || distance.percent > bar.percent {
        let mut line = format!("pixels: max {} on {:.3} %", distance.max, distance.percent);
        let _ = write!(line, " (bar: {} on {:.3} %)", bar.max, bar.percent);
        return Err(line);
    }
    Ok(())
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
    let channels: u8 = if got.color().has_alpha() { 4 } else { 3 };
    let (got, want) = (got.to_rgba8(), want.to_rgba8());
    let (mut max, mut sum, mut differing) = (0, 0_u64, 0_u32);
    for (a, b) in got.pixels().zip(want.pixels()) {
        let worst =
            a.0.iter()
                .zip(b.0)
                .map(|(a, b)| a.abs_diff(b))
                .max()
                .unwrap_or(0);
        max = max.max(worst);
        sum +=
            a.0.iter()
                .zip(b.0)
                .map(|(a, b)| u64::from(a.abs_diff(b)))
                .sum::<u64>();
        differing += u32::from(worst > 0);
    }
    let pixels = f64::from((size.0 * size.1).max(1));
    Ok(Distance {
        pictures: 1,
        max,
        mean: sum as f64 / (pixels * f64::from(channels)),
        percent: 100.0 * f64::from(differing) / pixels,
    })
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
