//! Previews: a linear map from latent channels to colours, which costs nothing.
//!
//! The factors are those that were published for the latents of SD 1.x and SDXL (the Hugging Face forum
//! thread "Decoding latents to RGB without upscaling"), A1111's "Approx cheap". The picture is
//! brought to twice the latent's size, that of A1111's default preview.

use image::imageops::FilterType;
use image::{DynamicImage, Rgb, RgbImage};
use ndarray::{ArrayView3, Axis};

use crate::pipeline::Family;
use crate::sampling::Latent;

const FACTORS_SD: [[f32; 3]; 4] = [
    [0.298, 0.207, 0.208],
    [0.187, 0.286, 0.173],
    [-0.158, 0.189, 0.264],
    [-0.184, -0.271, -0.473],
];

const FACTORS_SDXL: [[f32; 3]; 4] = [
    [0.3448, 0.4168, 0.4395],
    [-0.1953, -0.0290, 0.0250],
    [0.1074, 0.0886, -0.0163],
    [-0.3730, -0.2499, -0.2088],
];

/// The preview of a latent `[batch, 4, h, w]`: the first picture, or all of them in a grid.
pub(super) fn preview(latent: &Latent, family: Family, grid: bool) -> Option<DynamicImage> {
    let factors = match family {
        Family::Sd1 | Family::Sd2 => &FACTORS_SD,
        Family::Sdxl | Family::SdxlRefiner => &FACTORS_SDXL,
    };
    let wanted = if grid { latent.shape()[0] } else { 1 };
    let pictures: Vec<RgbImage> = latent
        .axis_iter(Axis(0))
        .take(wanted)
        .filter(|one| one.shape()[0] >= 4)
        .map(|one| picture(&one, factors))
        .collect();
    join(pictures).map(DynamicImage::ImageRgb8)
}

fn picture(latent: &ArrayView3<'_, f32>, factors: &[[f32; 3]; 4]) -> RgbImage {
    let (height, width) = (latent.shape()[1], latent.shape()[2]);
    let small = RgbImage::from_fn(width as u32, height as u32, |x, y| {
        let mut colour = [0.0_f32; 3];
        for (channel, row) in factors.iter().enumerate() {
            let value = latent[[channel, y as usize, x as usize]];
            for (sum, factor) in colour.iter_mut().zip(row) {
                *sum += value * factor;
            }
        }
        Rgb(colour.map(|value| ((value * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0) as u8))
    });
    image::imageops::resize(
        &small,
        width as u32 * 2,
        height as u32 * 2,
        FilterType::Triangle,
    )
}

/// A grid as square as can be, filled row by row, as A1111's `image_grid` with automatic rows.
fn join(mut pictures: Vec<RgbImage>) -> Option<RgbImage> {
    if pictures.len() <= 1 {
        return pictures.pop();
    }
    let rows = (pictures.len() as f64).sqrt().round().max(1.0) as u32;
    let columns = (pictures.len() as u32).div_ceil(rows);
    let (width, height) = pictures[0].dimensions();
    let mut canvas = RgbImage::new(width * columns, height * rows);
    for (index, picture) in pictures.iter().enumerate() {
        let (column, row) = (index as u32 % columns, index as u32 / columns);
        image::imageops::replace(
            &mut canvas,
            picture,
            i64::from(column * width),
            i64::from(row * height),
        );
    }
    Some(canvas)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array4;

    #[test]
    fn a_grey_latent_gives_a_grey_picture_of_twice_its_size() {
        let latent = Array4::zeros((1, 4, 8, 12));
        let picture = preview(&latent, Family::Sd2, true)
            .expect("a picture")
            .to_rgb8();
        assert_eq!(picture.dimensions(), (24, 16));
        assert_eq!(picture.get_pixel(3, 3), &Rgb([127, 127, 127]));
    }

    #[test]
    fn three_pictures_share_a_grid() {
        let latent = Array4::zeros((3, 4, 8, 8));
        let picture = preview(&latent, Family::Sdxl, true).expect("a picture");
        assert_eq!((picture.width(), picture.height()), (32, 32));
        let first = preview(&latent, Family::Sdxl, false).expect("a picture");
        assert_eq!((first.width(), first.height()), (16, 16));
    }
}
