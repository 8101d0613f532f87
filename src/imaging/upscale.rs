//! What surrounds an upscaler's network: how often it runs, the size it ends with, and the tiles it sees.

use image::{DynamicImage, RgbImage};

use super::composite::{crop, mix, paste};
use super::resample::{Filter, resize};
use super::to_rgb;

/// The cause of a failure in an upscaler's network.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// One of A1111's upscalers, as far as this room knows them.
#[derive(Clone, Copy)]
pub enum Upscaler<'a> {
    /// The picture stays as it is.
    None,
    Lanczos,
    Nearest,
    /// A network that enlarges RGB by its own factor; [`upscale_tiled`] belongs inside it.
    Network(&'a (dyn Fn(&RgbImage) -> Result<RgbImage, Cause> + 'a)),
}

impl Upscaler<'_> {
    fn run_once(&self, picture: &DynamicImage, scale: f64) -> Result<DynamicImage, Cause> {
        let by_filter = |filter| {
            let width = (f64::from(picture.width()) * scale) as u32;
            let height = (f64::from(picture.height()) * scale) as u32;
            if width == 0 || height == 0 {
                return Err(Cause::from("height and width must be > 0"));
            }
            Ok(resize(picture, width, height, filter))
        };
        match self {
            Self::None => Ok(picture.clone()),
            Self::Lanczos => by_filter(Filter::Lanczos),
            Self::Nearest => by_filter(Filter::Nearest),
            Self::Network(network) => Ok(network(&to_rgb(picture))?.into()),
        }
    }
}

/// The size that [`upscale`] ends with: the scaled side, floored to a multiple of 8.
#[must_use]
pub fn upscaled_side(side: u32, scale: f64) -> u32 {
    ((f64::from(side) * scale / 8.0).floor() * 8.0) as u32
}

/// Runs the upscaler up to three times until both sides are long enough, then resizes with Lanczos to
/// exactly [`upscaled_side`].
///
/// # Errors
/// When the upscaler fails or a side would become zero.
pub fn upscale(
    picture: &DynamicImage,
    scale: f64,
    upscaler: &Upscaler<'_>,
) -> Result<DynamicImage, Cause> {
    let width = upscaled_side(picture.width(), scale);
    let height = upscaled_side(picture.height(), scale);
    if width == 0 || height == 0 {
        return Err("height and width must be > 0".into());
    }
    let mut larger = picture.clone();
    for _round in 0..3 {
        if larger.width() >= width && larger.height() >= height {
            break;
        }
        let before = (larger.width(), larger.height());
        larger = upscaler.run_once(&larger, scale)?;
        if before == (larger.width(), larger.height()) {
            break;
        }
    }
    Ok(resize(&larger, width, height, Filter::Lanczos))
}

/// Runs a network over overlapping square tiles and joins what comes out, as A1111 does for the ESRGAN
/// family: 8-bit tiles, joined along linear ramps, first within rows, then the rows. `tile` 0 runs the
/// network once on the whole picture. A picture smaller than a tile gets the original's dark edge, since
/// the ramp then fades in from black.
///
/// # Errors
/// When the network fails.
pub fn upscale_tiled(
    picture: &RgbImage,
    tile: u32,
    overlap: u32,
    mut network: impl FnMut(&RgbImage) -> Result<RgbImage, Cause>,
) -> Result<RgbImage, Cause> {
    if tile == 0 {
        return network(picture);
    }
    let (columns, rows) = (
        tile_positions(picture.width(), tile, overlap),
        tile_positions(picture.height(), tile, overlap),
    );
    let mut factor = None;
    let mut strips = Vec::with_capacity(rows.len());
    for &y in &rows {
        let mut tiles = Vec::with_capacity(columns.len());
        for &x in &columns {
            let larger = network(&crop(picture, x, y, tile, tile))?;
            factor.get_or_insert(larger.width() / tile);
            tiles.push((x, larger));
        }
        strips.push((y, tiles));
    }
    let factor = factor.unwrap_or(1).max(1);
    let (width, height) = (picture.width() * factor, picture.height() * factor);
    let ramp = ramp(overlap * factor);
    let mut joined = RgbImage::new(width, height);
    for (y, tiles) in strips {
        let mut strip = RgbImage::new(width, tile * factor);
        for (x, larger) in tiles {
            paste_with_ramp(
                &mut strip,
                &larger,
                x * i64::from(factor),
                0,
                &ramp,
                Axis::X,
                x == 0,
            );
        }
        paste_with_ramp(
            &mut joined,
            &strip,
            0,
            y * i64::from(factor),
            &ramp,
            Axis::Y,
            y == 0,
        );
    }
    Ok(joined)
}

/// Where the tiles of one axis begin; negative where the picture is shorter than a tile.
fn tile_positions(side: u32, tile: u32, overlap: u32) -> Vec<i64> {
    let stride = f64::from(tile.saturating_sub(overlap).max(1));
    let count = ((f64::from(side) - f64::from(overlap)) / stride)
        .ceil()
        .max(1.0) as u32;
    let room = i64::from(side) - i64::from(tile);
    let step = if count > 1 {
        room as f64 / f64::from(count - 1)
    } else {
        0.0
    };
    let position = |index: u32| ((f64::from(index) * step) as i64).min(room);
    (0..count).map(position).collect()
}

/// The mask over the first `length` lines of a tile, 0 to just under 255.
fn ramp(length: u32) -> Vec<u8> {
    let level = |at: u32| (f64::from(at) * 255.0 / f64::from(length)) as u8;
    (0..length).map(level).collect()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Axis {
    X,
    Y,
}

/// Pastes a tile, its first lines along `axis` through the ramp unless it is the first of its line.
fn paste_with_ramp(
    canvas: &mut RgbImage,
    tile: &RgbImage,
    left: i64,
    top: i64,
    ramp: &[u8],
    axis: Axis,
    first: bool,
) {
    if first || ramp.is_empty() {
        paste(canvas, tile, left, top);
        return;
    }
    let under = crop(canvas, left, top, tile.width(), tile.height());
    let mut mixed = tile.clone();
    for (x, y, pixel) in mixed.enumerate_pixels_mut() {
        let along = if axis == Axis::X { x } else { y };
        if let Some(&level) = ramp.get(along as usize) {
            let below = under.get_pixel(x, y).0;
            for (sample, below) in pixel.0.iter_mut().zip(below) {
                *sample = mix(*sample, below, level);
            }
        }
    }
    paste(canvas, &mixed, left, top);
}
