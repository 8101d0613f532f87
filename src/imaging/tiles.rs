//! Overlapping tiles of a picture, and the picture that they make again: A1111's `split_grid` and
//! `combine_grid`.

use image::RgbImage;

use super::composite::{crop, mix, paste};

/// Where the tiles of a picture lie. A picture smaller than a tile gets the original's dark edge, since
/// what lies outside is black and the first lines of a tile fade in from black.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TileGrid {
    size: (u32, u32),
    tile: (u32, u32),
    overlap: u32,
    columns: Vec<i64>,
    rows: Vec<i64>,
}

impl TileGrid {
    /// Tiles of `tile` pixels (width, height) over a picture of `size`, `overlap` pixels in common.
    #[must_use]
    pub fn new(size: (u32, u32), tile: (u32, u32), overlap: u32) -> Self {
        Self {
            size,
            tile,
            overlap,
            columns: positions(size.0, tile.0, overlap),
            rows: positions(size.1, tile.1, overlap),
        }
    }

    /// Left and top of every tile, row by row; negative where the picture is shorter than a tile.
    pub fn places(&self) -> impl Iterator<Item = (i64, i64)> {
        self.rows
            .iter()
            .flat_map(|&y| self.columns.iter().map(move |&x| (x, y)))
    }

    /// The tiles of a picture, row by row.
    #[must_use]
    pub fn split(&self, picture: &RgbImage) -> Vec<RgbImage> {
        self.places()
            .map(|(x, y)| crop(picture, x, y, self.tile.0, self.tile.1))
            .collect()
    }

    /// Joins tiles that are `factor` times as large along linear ramps: first within rows, then the rows.
    /// Missing tiles leave black.
    #[must_use]
    pub fn join(&self, tiles: &[RgbImage], factor: u32) -> RgbImage {
        let scaled = |position: i64| position * i64::from(factor);
        let (width, height) = (self.size.0 * factor, self.size.1 * factor);
        let ramp = ramp(self.overlap * factor);
        let mut joined = RgbImage::new(width, height);
        for (&y, tiles) in self.rows.iter().zip(tiles.chunks(self.columns.len())) {
            let mut strip = RgbImage::new(width, self.tile.1 * factor);
            for (&x, tile) in self.columns.iter().zip(tiles) {
                paste_with_ramp(&mut strip, tile, (scaled(x), 0), &ramp, Axis::X, x == 0);
            }
            paste_with_ramp(&mut joined, &strip, (0, scaled(y)), &ramp, Axis::Y, y == 0);
        }
        joined
    }
}

/// Where the tiles of one axis begin.
fn positions(side: u32, tile: u32, overlap: u32) -> Vec<i64> {
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
    (left, top): (i64, i64),
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
