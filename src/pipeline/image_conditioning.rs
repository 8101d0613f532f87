//! The channels beside the latent that inpainting and instruct-pix2pix checkpoints take.

use image::GrayImage;
use ndarray::{Array4, Axis, concatenate, s};

use crate::rng::Generator;
use crate::sampling::Latent;

use super::{Family, GenerateError, Model, latents};

/// Input channels of an inpainting UNet: latent, mask, masked latent.
pub(super) const INPAINTING_CHANNELS: usize = 9;
/// Input channels of an instruct-pix2pix UNet: latent, picture's latent.
pub(super) const EDIT_CHANNELS: usize = 8;

/// Conditioning of txt2img: everything masked, the picture grey.
///
/// # Errors
/// When the VAE fails, or the checkpoint only edits pictures.
pub(super) fn of_nothing(
    model: &Model,
    (width_px, height_px): (usize, usize),
    batch_size: usize,
    generator: &mut Generator,
) -> Result<Option<Latent>, GenerateError> {
    match model.unet_channels {
        INPAINTING_CHANNELS => {
            let grey = Array4::zeros((1, 3, height_px, width_px));
            let latent = latents::encode(model, &grey, generator)?;
            Ok(Some(latents::repeat(with_mask(&latent, None), batch_size)))
        }
        EDIT_CHANNELS => Err(GenerateError::Unsupported(
            "an instruct-pix2pix checkpoint edits pictures: use img2img".to_owned(),
        )),
        _ => Ok(None),
    }
}

/// How a picture's mask reaches the conditioning.
pub(super) struct MaskOfConditioning<'a> {
    /// White is repainted; `None` masks everything.
    pub(super) mask: Option<&'a GrayImage>,
    pub(super) round: bool,
    /// The option `inpainting_mask_weight`.
    pub(super) weight: f32,
}

/// Conditioning of img2img: `pixels` is `[n, 3, height, width]` in -1..1.
///
/// # Errors
/// When the VAE fails.
pub(super) fn of_picture(
    model: &Model,
    pixels: &Array4<f32>,
    mask: &MaskOfConditioning<'_>,
    generator: &mut Generator,
) -> Result<Option<Latent>, GenerateError> {
    match model.unet_channels {
        INPAINTING_CHANNELS => {
            let (_, _, height, width) = pixels.dim();
            // SDXL's inpainting checkpoints take whole masks whatever the request says.
            let round = mask.round || model.family == Family::Sdxl;
            let mask_pixels = mask_pixels(mask.mask, round, height, width);
            let mut masked = pixels.clone();
            for mut plane in masked.outer_iter_mut() {
                for mut channel in plane.outer_iter_mut() {
                    channel.zip_mut_with(&mask_pixels, |pixel, &m| {
                        let covered = *pixel * (1.0 - m);
                        *pixel += mask.weight * (covered - *pixel);
                    });
                }
            }
            let latent = latents::encode(model, &masked, generator)?;
            Ok(Some(with_mask(&latent, Some(&mask_pixels))))
        }
        EDIT_CHANNELS => {
            let modes = pixels
                .axis_iter(Axis(0))
                .map(|picture| {
                    latents::posterior(model, &picture.insert_axis(Axis(0)).to_owned())
                        .map(|posterior| posterior.mean)
                })
                .collect::<Result<Vec<_>, _>>()?;
            latents::stack(&modes).map(Some)
        }
        _ => Ok(None),
    }
}

fn mask_pixels(
    mask: Option<&GrayImage>,
    round: bool,
    height: usize,
    width: usize,
) -> ndarray::Array2<f32> {
    let Some(picture) = mask else {
        return ndarray::Array2::ones((height, width));
    };
    let (mask_width, mask_height) = picture.dimensions();
    ndarray::Array2::from_shape_fn((height, width), |(y, x)| {
        let column = (x * mask_width as usize / width) as u32;
        let row = (y * mask_height as usize / height) as u32;
        let value = f32::from(picture.get_pixel(column, row).0[0]) / 255.0;
        if round {
            value.round_ties_even()
        } else {
            value
        }
    })
}

/// `latent` with its mask before it: the mask is resized to the latent by nearest neighbour.
fn with_mask(latent: &Latent, mask: Option<&ndarray::Array2<f32>>) -> Latent {
    let (count, _, height, width) = latent.dim();
    let mut plane = Array4::ones((count, 1, height, width));
    if let Some(mask) = mask {
        let (mask_height, mask_width) = mask.dim();
        let small = ndarray::Array2::from_shape_fn((height, width), |(y, x)| {
            mask[[y * mask_height / height, x * mask_width / width]]
        });
        for row in 0..count {
            plane.slice_mut(s![row, 0, .., ..]).assign(&small);
        }
    }
    concatenate(Axis(1), &[plane.view(), latent.view()]).expect("both have the latent's size")
}

#[cfg(test)]
mod tests {
    use image::{GrayImage, Luma};

    use super::mask_pixels;

    #[test]
    fn masks_are_rounded_half_to_even_where_asked() {
        let mask = GrayImage::from_fn(4, 1, |x, _| Luma([[0, 100, 128, 255][x as usize]]));
        let round = mask_pixels(Some(&mask), true, 1, 4);
        assert_eq!(round.as_slice().unwrap(), [0.0, 0.0, 1.0, 1.0]);
        let soft = mask_pixels(Some(&mask), false, 1, 2);
        assert_eq!(soft.as_slice().unwrap(), [0.0, 128.0 / 255.0]);
        assert_eq!(mask_pixels(None, false, 1, 1)[[0, 0]], 1.0);
    }
}
