//! A1111's colour correction of img2img: the result takes the histogram of the original picture in
//! L*a*b*, then gets its own luminosity back.
//!
//! Follows OpenCV (conversion), scikit-image 0.21 (`match_histograms`) and blendmodes 2022
//! (luminosity); f64 in their order of operations, since the last step truncates.

use image::RgbImage;

use super::interpolation::interpolated;
use super::lab::{lab_of_rgb, rgb_of_lab};

/// What colour correction keeps of the original picture.
#[derive(Debug, Clone)]
pub struct ColorReference {
    /// For L*, a* and b*: the share of samples up to each level that occurs, and the level.
    quantiles: [Vec<(f64, f64)>; 3],
}

impl ColorReference {
    /// Takes the histograms of a picture.
    #[must_use]
    pub fn of(picture: &RgbImage) -> Self {
        let counts = histograms(&lab_of_rgb(picture));
        let quantiles = counts.map(|counts| {
            let shares = cumulated(&counts).into_iter().enumerate();
            shares
                .filter(|&(level, _)| counts[level] != 0)
                .map(|(level, share)| (share, level as f64))
                .collect()
        });
        Self { quantiles }
    }

    /// Corrects the colours of a picture.
    #[must_use]
    pub fn apply(&self, picture: &RgbImage) -> RgbImage {
        let mut matched = self.matched(picture);
        for (pixel, original) in matched.pixels_mut().zip(picture.pixels()) {
            pixel.0 = with_luminosity_of(pixel.0, original.0);
        }
        matched
    }

    pub(super) fn matched(&self, picture: &RgbImage) -> RgbImage {
        let mut lab = lab_of_rgb(picture);
        let counts = histograms(&lab);
        let tables: [[u8; 256]; 3] = std::array::from_fn(|channel| {
            let mut table = [0; 256];
            for (level, share) in table.iter_mut().zip(cumulated(&counts[channel])) {
                *level = interpolated(&self.quantiles[channel], share) as u8;
            }
            table
        });
        for pixel in lab.pixels_mut() {
            for (level, table) in pixel.0.iter_mut().zip(&tables) {
                *level = table[usize::from(*level)];
            }
        }
        rgb_of_lab(&lab)
    }
}

fn histograms(picture: &RgbImage) -> [[u64; 256]; 3] {
    let mut counts = [[0; 256]; 3];
    for pixel in picture.pixels() {
        for (counts, &level) in counts.iter_mut().zip(&pixel.0) {
            counts[usize::from(level)] += 1;
        }
    }
    counts
}

/// The share of samples up to each level.
fn cumulated(counts: &[u64; 256]) -> Vec<f64> {
    let total: u64 = counts.iter().sum();
    let mut sum = 0;
    let share = |&count: &u64| {
        sum += count;
        sum as f64 / total as f64
    };
    counts.iter().map(share).collect()
}

fn luminosity(colour: [f64; 3]) -> f64 {
    colour[0] * 0.299 + colour[1] * 0.587 + colour[2] * 0.114
}

/// The colour with the luminosity of `original`, drawn towards grey where it leaves 0..1.
fn with_luminosity_of(colour: [u8; 3], original: [u8; 3]) -> [u8; 3] {
    let unit = |pixel: [u8; 3]| pixel.map(|level| f64::from(level) / 255.0);
    let mut colour = unit(colour);
    let difference = luminosity(unit(original)) - luminosity(colour);
    colour = colour.map(|level| level + difference);
    let grey = luminosity(colour);
    let lowest = colour.into_iter().fold(f64::INFINITY, f64::min);
    let highest = colour.into_iter().fold(f64::NEG_INFINITY, f64::max);
    if lowest < 0.0 {
        colour = colour.map(|level| grey + ((level - grey) * grey) / (grey - lowest));
    }
    if highest > 1.0 {
        colour = colour.map(|level| grey + ((level - grey) * (1.0 - grey)) / (highest - grey));
    }
    colour.map(|level| (level.clamp(0.0, 1.0) * 255.0) as u8)
}
