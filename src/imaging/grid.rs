//! The grid of all pictures of a job.

use image::{DynamicImage, RgbImage};

use super::composite::paste;
use super::to_rgb;

/// How many rows a grid has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GridRows {
    /// The rounded square root of the count; `prevent_empty_spots` goes down to a divisor of it.
    Auto {
        prevent_empty_spots: bool,
    },
    /// As many as the batch size.
    BatchSize(usize),
    Fixed(usize),
}

impl GridRows {
    /// From the options `n_rows` (-1 auto, 0 batch size) and `grid_prevent_empty_spots`.
    #[must_use]
    pub fn from_options(n_rows: i64, prevent_empty_spots: bool, batch_size: usize) -> Self {
        match n_rows {
            1.. => Self::Fixed(n_rows as usize),
            0 => Self::BatchSize(batch_size),
            _ => Self::Auto {
                prevent_empty_spots,
            },
        }
    }
}

/// `(rows, columns)` of a grid of `count` pictures.
#[must_use]
pub fn grid_shape(count: usize, rows: GridRows) -> (usize, usize) {
    let count = count.max(1);
    let root = (count as f64).sqrt();
    let rows = match rows {
        GridRows::Fixed(rows) | GridRows::BatchSize(rows) => rows,
        GridRows::Auto {
            prevent_empty_spots: false,
        } => root.round_ties_even() as usize,
        GridRows::Auto {
            prevent_empty_spots: true,
        } => (1..=root as usize)
            .rev()
            .find(|rows| count.is_multiple_of(*rows))
            .unwrap_or(1),
    };
    let rows = rows.clamp(1, count);
    (rows, count.div_ceil(rows))
}

/// Pictures side by side on black, each in the middle of a cell of the greatest width and height.
#[must_use]
pub fn image_grid(pictures: &[DynamicImage], rows: GridRows) -> RgbImage {
    let (rows, columns) = grid_shape(pictures.len(), rows);
    let width = pictures.iter().map(DynamicImage::width).max().unwrap_or(0);
    let height = pictures.iter().map(DynamicImage::height).max().unwrap_or(0);
    let mut grid = RgbImage::new(width * columns as u32, height * rows as u32);
    for (index, picture) in pictures.iter().enumerate() {
        let (row, column) = ((index / columns) as u32, (index % columns) as u32);
        let left = column * width + (width - picture.width()) / 2;
        let top = row * height + (height - picture.height()) / 2;
        paste(&mut grid, &to_rgb(picture), i64::from(left), i64::from(top));
    }
    grid
}
