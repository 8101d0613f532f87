//! What img2img prepares before it samples: init images and mask to latents, overlays, conditioning.

use image::{GrayImage, Rgb, RgbImage, RgbaImage};
use ndarray::{Array3, Array4, Axis, concatenate};
use serde_json::json;

use crate::imaging::{
    ColorReference, InitImageOptions, LatentFilter, MaskOptions, PreparedInitImage, PreparedMask,
    Region, ResizeMode, latent_mask, parse_colour, picture_to_signed, prepare_init_image,
    prepare_mask, resize_latent, to_grey,
};
use crate::rng::{Generator, ImageRng, ImageRngParams, NoiseGenerator, SeedResize};
use crate::sampling::{InpaintMask, Latent, SoftBlend};

use super::image_conditioning::{self, MaskOfConditioning};
use super::job_text::ExtraParams;
use super::{
    FoundUpscaler, GenerateError, GenerationParams, Img2ImgParams, Model, SoftInpaintingParams,
    Tiling, UpscalerProvider, latents,
};

/// `resize_mode` 3: the latent is resized instead of the picture.
const LATENT_RESIZE: i64 = 3;

/// Everything that the batches of an img2img job share.
pub(super) struct InitState {
    /// `[batch, channels, h, w]` in the UNet's scale.
    pub(super) latent: Latent,
    pub(super) image_conditioning: Option<Latent>,
    pub(super) mask: Option<InpaintMask>,
    /// The mask at its size for overlays, for `return_mask`.
    pub(super) mask_for_overlay: Option<GrayImage>,
    /// "Only masked": where the result is pasted.
    pub(super) region: Option<Region>,
    pub(super) batch_size: usize,
    overlays: Vec<RgbaImage>,
    overlay_sources: Vec<RgbImage>,
    color_references: Vec<ColorReference>,
}

impl InitState {
    /// Prepares a job; `seeds` are all the job's.
    ///
    /// # Errors
    /// When there is no usable init image, or the VAE fails.
    pub(super) fn new(
        params: &GenerationParams,
        img2img: &Img2ImgParams,
        model: &Model,
        upscalers: &dyn UpscalerProvider,
        seeds: &[i64],
        extra: &mut ExtraParams,
    ) -> Result<Self, GenerateError> {
        check_count(params, img2img)?;
        let mut mask = prepared_mask(params, img2img, extra)?;
        let mask_of_picture = mask.as_ref().map(|mask| mask.for_latent.clone());
        if let (Some(mask), Some(own)) = (&mut mask, &img2img.latent_mask) {
            mask.for_latent = to_grey(own);
        }
        let pictures = prepared_pictures(params, img2img, mask.as_ref(), upscalers)?;
        tell_content(mask.as_ref(), img2img.inpainting_fill, extra);
        let batch_size = if pictures.len() > 1 {
            pictures.len()
        } else {
            params.batch_size
        };
        let pixels = stack_pixels(&pictures)?;
        let mut generator = Generator::new(
            NoiseGenerator::Cpu,
            seeds.first().copied().unwrap_or_default(),
        );
        let mut latent = latents::encode(model, &pixels, &mut generator)?;
        if img2img.resize_mode == LATENT_RESIZE {
            latent = resize_latent(
                &latent,
                params.height_px / 8,
                params.width_px / 8,
                LatentFilter::Bilinear { antialias: false },
            );
        }
        latent = latents::repeat(latent, batch_size);
        let repaint = mask
            .as_ref()
            .map(|mask| repaint_mask(&mask.for_latent, &latent, rounds(params, img2img)));
        if let Some(repaint) = &repaint {
            fill_latent(params, img2img, seeds, repaint, &mut latent);
        }
        let image_conditioning = image_conditioning::of_picture(
            model,
            &pixels,
            &MaskOfConditioning {
                mask: mask_of_picture.as_ref(),
                round: rounds(params, img2img),
                weight: params.options.f64("inpainting_mask_weight") as f32,
            },
            &mut generator,
        )?
        .map(|conditioning| latents::repeat(conditioning, batch_size));
        let soft = params.soft_inpainting.as_ref().map(soft_blend);
        Ok(Self {
            mask: repaint.map(|repaint| InpaintMask {
                init: latent.clone(),
                keep: repaint.mapv(|m| 1.0 - m),
                repaint,
                soft,
            }),
            latent,
            image_conditioning,
            region: mask.as_ref().and_then(|mask| mask.region),
            mask_for_overlay: mask.map(|mask| mask.for_overlay),
            batch_size,
            overlays: pictures
                .iter()
                .filter_map(|it| it.overlay.clone())
                .collect(),
            overlay_sources: pictures
                .iter()
                .filter_map(|it| it.overlay_source.clone())
                .collect(),
            color_references: color_references(img2img, pictures),
        })
    }

    /// The overlay of picture `index` of a batch.
    pub(super) fn overlay(&self, index: usize) -> Option<&RgbaImage> {
        of_batch(&self.overlays, index)
    }

    /// The picture that the overlay of picture `index` was cut from.
    pub(super) fn overlay_source(&self, index: usize) -> Option<&RgbImage> {
        of_batch(&self.overlay_sources, index)
    }

    /// The colours that picture `index` of a batch is brought back to.
    pub(super) fn color_reference(&self, index: usize) -> Option<&ColorReference> {
        of_batch(&self.color_references, index)
    }
}

/// The colours of the prepared pictures, or of the one that a script names.
fn color_references(
    img2img: &Img2ImgParams,
    pictures: Vec<PreparedInitImage>,
) -> Vec<ColorReference> {
    let own: Vec<ColorReference> = pictures
        .into_iter()
        .filter_map(|it| it.color_reference)
        .collect();
    match &img2img.color_source {
        Some(source) if !own.is_empty() => vec![ColorReference::of(&source.to_rgb8())],
        _ => own,
    }
}

/// A single init image serves the whole batch.
fn of_batch<T>(items: &[T], index: usize) -> Option<&T> {
    match items {
        [single] => Some(single),
        _ => items.get(index),
    }
}

fn check_count(params: &GenerationParams, img2img: &Img2ImgParams) -> Result<(), GenerateError> {
    match img2img.init_images.len() {
        0 => Err(GenerateError::InvalidValue(
            "init_images holds no picture".to_owned(),
        )),
        given if given > params.batch_size.max(1) => Err(GenerateError::TooManyInitImages {
            given,
            wanted: params.batch_size,
        }),
        _ => Ok(()),
    }
}

/// Soft inpainting keeps the mask's shades.
fn rounds(params: &GenerationParams, img2img: &Img2ImgParams) -> bool {
    img2img.mask_round && params.soft_inpainting.is_none()
}

fn prepared_mask(
    params: &GenerationParams,
    img2img: &Img2ImgParams,
    extra: &mut ExtraParams,
) -> Result<Option<PreparedMask>, GenerateError> {
    let Some(mask) = &img2img.mask else {
        return Ok(None);
    };
    if img2img.invert_mask {
        extra.set("Mask mode", "Inpaint not masked");
    }
    let (blur_x, blur_y) = (img2img.mask_blur_x, img2img.mask_blur_y);
    if blur_x > 0 || blur_y > 0 {
        extra.set("Mask blur", (blur_x == blur_y).then_some(blur_x));
    }
    let prepared = prepare_mask(
        mask,
        &MaskOptions {
            blur_x: img2img.mask_blur_x as f64,
            blur_y: img2img.mask_blur_y as f64,
            round: rounds(params, img2img),
            invert: img2img.invert_mask,
            only_masked_padding: img2img.only_masked.then_some(img2img.only_masked_padding),
            resize_mode: ResizeMode::from_number(img2img.resize_mode),
            width_px: params.width_px as u32,
            height_px: params.height_px as u32,
        },
    )
    .map_err(|source| GenerateError::InvalidValue(source.to_string()))?;
    if prepared.as_ref().is_some_and(|mask| mask.region.is_some()) {
        extra.set("Inpaint area", "Only masked");
        extra.set("Masked area padding", img2img.only_masked_padding);
    }
    Ok(prepared)
}

fn tell_content(mask: Option<&PreparedMask>, fill: i64, extra: &mut ExtraParams) {
    let content = match fill {
        0 => "fill",
        2 => "latent noise",
        3 => "latent nothing",
        _ => return,
    };
    if mask.is_some() {
        extra.set("Masked content", content);
    }
}

fn prepared_pictures(
    params: &GenerationParams,
    img2img: &Img2ImgParams,
    mask: Option<&PreparedMask>,
    upscalers: &dyn UpscalerProvider,
) -> Result<Vec<PreparedInitImage>, GenerateError> {
    let options = InitImageOptions {
        background: parse_colour(params.options.text("img2img_background_color"))
            .unwrap_or(Rgb([255, 255, 255])),
        resize_mode: img2img.resize_mode,
        width_px: params.width_px as u32,
        height_px: params.height_px as u32,
        fill_masked: img2img.inpainting_fill != 1,
        color_correction: params.options.bool("img2img_color_correction"),
    };
    let upscaler = match params.options.text("upscaler_for_img2img") {
        "" => FoundUpscaler::None,
        name => FoundUpscaler::find(name, upscalers)?,
    };
    let tiling = Tiling::from_options(&params.options);
    img2img
        .init_images
        .iter()
        .map(|picture| {
            upscaler
                .lend(tiling, |upscaler| {
                    prepare_init_image(picture, mask, &options, upscaler)
                })
                .map_err(|source| GenerateError::Graph {
                    graph: "upscaler",
                    source,
                })
        })
        .collect()
}

fn stack_pixels(pictures: &[PreparedInitImage]) -> Result<Array4<f32>, GenerateError> {
    let pixels: Vec<_> = pictures
        .iter()
        .map(|picture| picture_to_signed(&picture.pixels))
        .collect();
    latents::stack(&pixels)
}

/// 1 where new content is made, `[channels, h, w]`.
fn repaint_mask(mask: &GrayImage, latent: &Latent, round: bool) -> Array3<f32> {
    let (_, channels, height, width) = latent.dim();
    let plane = latent_mask(mask, width as u32, height as u32, round).insert_axis(Axis(0));
    let planes = vec![plane.view(); channels];
    concatenate(Axis(0), &planes).expect("copies of one plane")
}

/// The fills that act on the latent: 2 puts noise under the mask, 3 nothing.
fn fill_latent(
    params: &GenerationParams,
    img2img: &Img2ImgParams,
    seeds: &[i64],
    repaint: &Array3<f32>,
    latent: &mut Latent,
) {
    let keep = repaint.mapv(|m| 1.0 - m);
    match img2img.inpainting_fill {
        2 => {
            let (count, channels, height, width) = latent.dim();
            let noise = ImageRng::new(ImageRngParams {
                generator: params.noise_generator,
                shape: (channels, height, width),
                seeds: seeds.iter().copied().take(count).collect(),
                subseeds: Vec::new(),
                subseed_strength: 0.0,
                seed_resize: SeedResize::default(),
                eta_noise_seed_delta: 0,
            })
            .first();
            *latent = &*latent * &keep + noise * repaint;
        }
        3 => *latent *= &keep,
        _ => {}
    }
}

fn soft_blend(soft: &SoftInpaintingParams) -> SoftBlend {
    SoftBlend {
        schedule_bias: soft.number(0),
        preservation_strength: soft.number(1),
        transition_contrast_boost: soft.number(2),
    }
}

/// Writes soft inpainting's infotext entries, before all others.
pub(super) fn tell_soft_inpainting(soft: &SoftInpaintingParams, extra: &mut ExtraParams) {
    const KEYS: [&str; 6] = [
        "Soft inpainting schedule bias",
        "Soft inpainting preservation strength",
        "Soft inpainting transition contrast boost",
        "Soft inpainting mask influence",
        "Soft inpainting difference threshold",
        "Soft inpainting difference contrast",
    ];
    extra.set("Soft inpainting enabled", true);
    for (key, number) in KEYS.into_iter().zip(&soft.args) {
        extra.set(key, json!(number));
    }
}
