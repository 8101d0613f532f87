//! What surrounds an upscaler's network: how often it runs, the size it ends with, and the tiles it sees.

use image::{DynamicImage, RgbImage};

use super::resample::{Filter, resize};
use super::tiles::TileGrid;
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
/// family. `tile` 0 runs the network once on the whole picture.
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
    let grid = TileGrid::new(picture.dimensions(), (tile, tile), overlap);
    let larger = grid
        .split(picture)
        .iter()
        .map(&mut network)
        .collect::<Result<Vec<_>, _>>()?;
    let factor = larger.first().map_or(1, |first| first.width() / tile);
    Ok(grid.join(&larger, factor.max(1)))
}
