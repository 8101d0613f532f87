//! An init image of img2img on its way to the VAE: flattened, resized, cut to the masked part, filled.

use image::{DynamicImage, Rgb, RgbImage, RgbaImage};

use super::color_correction::ColorReference;
use super::composite::{crop, flatten};
use super::mask::{PreparedMask, resize_mask};
use super::overlay::{fill_masked, overlay_of};
use super::resize_mode::{ResizeMode, resize_image};
use super::to_rgb;
use super::upscale::{Cause, Upscaler};

/// How an init image is prepared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InitImageOptions {
    /// What shows through transparent pixels: option `img2img_background_color`.
    pub background: Rgb<u8>,
    /// A1111's number; 3 (latent upscale) leaves the pixels' size alone.
    pub resize_mode: i64,
    pub width_px: u32,
    pub height_px: u32,
    /// `inpainting_fill` other than 1 (original): the masked part is filled from its surroundings.
    pub fill_masked: bool,
    /// Option `img2img_color_correction`.
    pub color_correction: bool,
}

/// An init image, ready for the VAE, and what the result will need of it.
#[derive(Debug, Clone)]
pub struct PreparedInitImage {
    pub pixels: RgbImage,
    /// With a mask: the original with the masked part cut out.
    pub overlay: Option<RgbaImage>,
    /// With a mask: the picture that the overlay was made of.
    pub overlay_source: Option<RgbImage>,
    pub color_reference: Option<ColorReference>,
}

/// Prepares one init image; `mask` comes from [`super::prepare_mask`].
///
/// # Errors
/// When a side is or becomes zero, the upscaler fails, or a mask meets a picture of another size (fill
/// with latent upscale).
pub fn prepare_init_image(
    picture: &DynamicImage,
    mask: Option<&PreparedMask>,
    options: &InitImageOptions,
    upscaler: &Upscaler<'_>,
) -> Result<PreparedInitImage, Cause> {
    let (width, height) = (options.width_px, options.height_px);
    let region = mask.and_then(|mask| mask.region);
    let mode = ResizeMode::from_number(options.resize_mode);
    let mut pixels = flatten(picture, options.background);
    if region.is_none() && options.resize_mode != 3 {
        pixels = to_rgb(&resize_image(
            mode,
            &pixels.into(),
            width,
            height,
            upscaler,
        )?);
    }
    let (mut overlay, mut overlay_source) = (None, None);
    if let Some(mask) = mask {
        let size = pixels.dimensions();
        overlay = Some(if mask.for_overlay.dimensions() == size {
            overlay_of(&pixels, &mask.for_overlay)?
        } else {
            overlay_of(
                &pixels,
                &resize_mask(mode, &mask.for_overlay, size.0, size.1)?,
            )?
        });
        overlay_source = Some(pixels.clone());
    }
    if let Some(region) = region {
        let (part_width, part_height) = (region.width() as u32, region.height() as u32);
        let part = crop(&pixels, region.left, region.top, part_width, part_height);
        pixels = to_rgb(&resize_image(
            ResizeMode::Fill,
            &part.into(),
            width,
            height,
            upscaler,
        )?);
    }
    if let Some(mask) = mask.filter(|_| options.fill_masked) {
        pixels = fill_masked(&pixels, &mask.for_latent)?;
    }
    let color_reference = options
        .color_correction
        .then(|| ColorReference::of(&pixels));
    Ok(PreparedInitImage {
        pixels,
        overlay,
        overlay_source,
        color_reference,
    })
}

#[cfg(test)]
mod tests {
    use image::{GrayImage, Luma};

    use super::*;
    use crate::imaging::{MaskOptions, apply_overlay, prepare_mask};

    const OPTIONS: InitImageOptions = InitImageOptions {
        background: Rgb([255, 255, 255]),
        resize_mode: 0,
        width_px: 64,
        height_px: 64,
        fill_masked: false,
        color_correction: false,
    };

    fn picture() -> DynamicImage {
        RgbImage::from_fn(100, 80, |x, y| {
            Rgb([(x * 2) as u8, (y * 3) as u8, (x + y) as u8])
        })
        .into()
    }

    fn box_mask() -> DynamicImage {
        let inside = |x, y| (30..50).contains(&x) && (20..40).contains(&y);
        GrayImage::from_fn(100, 80, |x, y| Luma([if inside(x, y) { 255 } else { 0 }])).into()
    }

    fn mask_options(only_masked_padding: Option<i64>) -> MaskOptions {
        MaskOptions {
            blur_x: 2.0,
            blur_y: 2.0,
            round: true,
            invert: false,
            only_masked_padding,
            resize_mode: ResizeMode::Stretch,
            width_px: 64,
            height_px: 64,
        }
    }

    #[test]
    fn without_a_mask_the_picture_is_flattened_and_resized() {
        let clear = DynamicImage::new_rgba8(10, 10);
        let prepared = prepare_init_image(&clear, None, &OPTIONS, &Upscaler::None).unwrap();
        assert_eq!(prepared.pixels, RgbImage::from_pixel(64, 64, Rgb([255; 3])));
        assert!(prepared.overlay.is_none() && prepared.color_reference.is_none());
        let latent = InitImageOptions {
            resize_mode: 3,
            ..OPTIONS
        };
        let prepared = prepare_init_image(&clear, None, &latent, &Upscaler::None).unwrap();
        assert_eq!(prepared.pixels.dimensions(), (10, 10));
    }

    #[test]
    fn only_the_masked_part_is_cut_and_goes_back_to_its_place() {
        let mask = prepare_mask(&box_mask(), &mask_options(Some(4)))
            .unwrap()
            .unwrap();
        let region = mask.region.unwrap();
        let prepared =
            prepare_init_image(&picture(), Some(&mask), &OPTIONS, &Upscaler::None).unwrap();
        assert_eq!(prepared.pixels.dimensions(), (64, 64));
        let overlay = prepared.overlay.unwrap();
        assert_eq!(overlay.dimensions(), (100, 80));
        let painted = RgbImage::from_pixel(64, 64, Rgb([1, 2, 3]));
        let whole = apply_overlay(&painted, &overlay, Some(region)).unwrap();
        let original = to_rgb(&picture());
        assert_eq!(whole.get_pixel(0, 0), original.get_pixel(0, 0));
        assert_eq!(whole.get_pixel(99, 79), original.get_pixel(99, 79));
        assert_eq!(whole.get_pixel(40, 30), &Rgb([1, 2, 3]));
    }

    #[test]
    fn nothing_masked_means_no_mask() {
        let black = DynamicImage::new_luma8(100, 80);
        assert!(
            prepare_mask(&black, &mask_options(Some(4)))
                .unwrap()
                .is_none()
        );
        assert!(prepare_mask(&black, &mask_options(None)).unwrap().is_some());
    }

    #[test]
    fn any_padding_is_taken_or_told() {
        for (padding, told) in [
            (i64::MAX, false),
            (-4, false),
            (-100, true),
            (i64::MIN, true),
        ] {
            let prepared = prepare_mask(&box_mask(), &mask_options(Some(padding)));
            assert_eq!(prepared.is_err(), told, "{padding}");
        }
    }

    #[test]
    fn filling_with_latent_upscale_is_an_error() {
        let mask = prepare_mask(&box_mask(), &mask_options(None))
            .unwrap()
            .unwrap();
        let options = InitImageOptions {
            resize_mode: 3,
            fill_masked: true,
            ..OPTIONS
        };
        let failed = prepare_init_image(&picture(), Some(&mask), &options, &Upscaler::None);
        assert_eq!(failed.unwrap_err().to_string(), "images do not match");
    }
}
