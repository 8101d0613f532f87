//! `Outpainting mk2`: one side after the other is filled with noise that resembles the picture and then
//! repainted.

use image::RgbImage;

use crate::imaging::{GridRows, crop, image_grid, matched_noise, paste};
use crate::pipeline::{
    GenerateError, GeneratedImage, GenerationParams, GenerationResult, Picture, save_script_grid,
    save_script_sample,
};

use crate::rng::Pcg64;

use super::arguments::raised;
use super::canvas::{Sides, white_around};
use super::job::{ScriptJob, infotext_of, repeated, without_text};
use super::{Arguments, Script, Tab};

pub(super) struct OutpaintingMk2;

impl Script for OutpaintingMk2 {
    fn title(&self) -> &'static str {
        "Outpainting mk2"
    }

    fn serves(&self, tab: Tab) -> bool {
        tab == Tab::Img2Img
    }

    fn answers_generations(&self, _arguments: &Arguments) -> bool {
        false
    }

    fn run(&self, mut job: ScriptJob<'_>) -> Result<GenerationResult, GenerateError> {
        let arguments = job.arguments();
        let pixels = arguments.pixels(1)?.clamp(8, 1024);
        let blur = i64::from(arguments.pixels(2)?.min(64));
        let noise = Noise {
            exponent: arguments.float(4)?.clamp(0.0, 16.0),
            colour_variation: arguments.float(5)?.clamp(0.0, 1.0),
        };
        job.fix_seeds();
        let picture = job.flat_init_image()?;
        let sides = Sides::new(job.arguments(), 3, pixels, picture.dimensions());
        let turns: Vec<(Side, u32)> = [
            (Side::Left, sides.left),
            (Side::Right, sides.right),
            (Side::Up, sides.up),
            (Side::Down, sides.down),
        ]
        .into_iter()
        .filter(|(_, added)| *added > 0)
        .collect();
        if turns.is_empty() {
            return Err(raised("ValueError", "no direction is given to paint in"));
        }
        let rounds = job.params.batch_count;
        job.set_job_count(rounds * turns.len())?;
        let mut painter = Painter {
            job: &job,
            noise,
            blur: (
                if sides.left + sides.right > 0 {
                    blur
                } else {
                    0
                },
                if sides.up + sides.down > 0 { blur } else { 0 },
            ),
            first: None,
            last: None,
        };
        let mut images: Vec<GeneratedImage> = Vec::new();
        for round in 0..rounds {
            job.set_job(&format!("Batch {} out of {rounds}", round + 1));
            let mut pictures = vec![picture.clone(); job.params.batch_size];
            for &(side, added) in &turns {
                pictures = painter.paint(pictures, side, added)?;
            }
            images.extend(pictures.into_iter().map(|it| without_text(it.into())));
        }
        let (Some(last), Some((seed, infotext))) = (painter.last, painter.first) else {
            return Err(raised("ValueError", "nothing was painted"));
        };
        for image in &images {
            save_script_sample(&job.params, &last, &image.image, &infotext)?;
        }
        with_grid(&job.params, &last, &mut images, &infotext)?;
        Ok(repeated(last, images, seed, &infotext))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Left,
    Right,
    Up,
    Down,
}

impl Side {
    fn is_across(self) -> bool {
        matches!(self, Self::Left | Self::Right)
    }
}

#[derive(Debug, Clone, Copy)]
struct Noise {
    exponent: f64,
    colour_variation: f64,
}

/// What the turns of a run share.
struct Painter<'a> {
    job: &'a ScriptJob<'a>,
    noise: Noise,
    /// Blur of the mask across and down, 0 where nothing is added.
    blur: (i64, i64),
    /// Seed and infotext of the first generation.
    first: Option<(i64, String)>,
    last: Option<GenerationResult>,
}

impl Painter<'_> {
    /// Adds `added` pixels on one side of every picture.
    fn paint(
        &mut self,
        pictures: Vec<RgbImage>,
        side: Side,
        added: u32,
    ) -> Result<Vec<RgbImage>, GenerateError> {
        if self.last.is_some() && self.job.interrupted() {
            return Ok(pictures);
        }
        let Some(size) = pictures.first().map(RgbImage::dimensions) else {
            return Ok(pictures);
        };
        let (wide, high) = if side.is_across() {
            (added, 0)
        } else {
            (0, added)
        };
        let result_size = (size.0 + wide, size.1 + high);
        let canvas = (
            result_size.0.next_multiple_of(64),
            result_size.1.next_multiple_of(64),
        );
        let mask = self.mask(side, added, canvas, result_size);
        let mut canvases: Vec<RgbImage> = pictures
            .iter()
            .map(|picture| {
                let mut whole = RgbImage::new(canvas.0, canvas.1);
                let left = if side == Side::Left { wide } else { 0 };
                let top = if side == Side::Up { high } else { 0 };
                paste(&mut whole, picture, i64::from(left), i64::from(top));
                let (exponent, variation) = (self.noise.exponent, self.noise.colour_variation);
                let mut random = Pcg64::new(0);
                let draw = || random.next_f64();
                matched_noise(&whole, &mask.to_luma8(), exponent, variation, draw)
            })
            .collect();
        let part = self.part(side, canvas, result_size);
        let result = self.repaint(side, added, &canvases, &mask, part)?;
        let painted = result.images.iter().map(|it| it.image.to_rgb8());
        for (whole, painted) in canvases.iter_mut().zip(painted) {
            let left = if side == Side::Left {
                0
            } else {
                canvas.0 - painted.width()
            };
            let top = if side == Side::Up {
                0
            } else {
                canvas.1 - painted.height()
            };
            paste(whole, &painted, i64::from(left), i64::from(top));
        }
        self.last = Some(result);
        let cut = |whole: RgbImage| crop(&whole, 0, 0, result_size.0, result_size.1);
        Ok(canvases.into_iter().map(cut).collect())
    }

    /// Black over the picture but for a seam of the blur's width.
    fn mask(&self, side: Side, added: u32, canvas: (u32, u32), result_size: (u32, u32)) -> Picture {
        let added = i64::from(added);
        let (blur_x, blur_y) = self.blur;
        let (width, height) = (i64::from(canvas.0), i64::from(canvas.1));
        let mut inside = (0, 0, i64::from(result_size.0), i64::from(result_size.1));
        match side {
            Side::Left => inside.0 = added + blur_x,
            Side::Up => inside.1 = added + blur_y,
            Side::Right => inside.2 = width - added - blur_x,
            Side::Down => inside.3 = height - added - blur_y,
        }
        white_around(canvas, inside)
    }

    /// The part of the canvas that is repainted: left, top, width, height.
    fn part(&self, side: Side, canvas: (u32, u32), result: (u32, u32)) -> (u32, u32, u32, u32) {
        let params = &self.job.params;
        let width = if side.is_across() {
            (params.width_px as u32).min(result.0)
        } else {
            canvas.0
        };
        let height = if side.is_across() {
            canvas.1
        } else {
            (params.height_px as u32).min(result.1)
        };
        let left = if side == Side::Left {
            0
        } else {
            canvas.0 - width
        };
        let top = if side == Side::Up {
            0
        } else {
            canvas.1 - height
        };
        (left, top, width, height)
    }

    fn repaint(
        &mut self,
        side: Side,
        added: u32,
        canvases: &[RgbImage],
        mask: &Picture,
        (left, top, width, height): (u32, u32, u32, u32),
    ) -> Result<GenerationResult, GenerateError> {
        let mut params = self.job.params.clone();
        params.batch_count = 1;
        params.makes_grid = false;
        params.save_images = false;
        params.width_px = width as usize;
        params.height_px = height as usize;
        let added = i64::from(added);
        let (blur_x, blur_y) = self.blur;
        let mut inside = (0, 0, i64::from(width), i64::from(height));
        match side {
            Side::Left => inside.0 = added + blur_x * 2,
            Side::Up => inside.1 = added + blur_y * 2,
            Side::Right => inside.2 = i64::from(width) - added - blur_x * 2,
            Side::Down => inside.3 = i64::from(height) - added - blur_y * 2,
        }
        let cut = |whole: &RgbImage| crop(whole, i64::from(left), i64::from(top), width, height);
        if let Some(img2img) = &mut params.img2img {
            img2img.init_images = canvases.iter().map(|it| cut(it).into()).collect();
            img2img.mask = Some(cut(&mask.to_rgb8()).into());
            img2img.latent_mask = Some(white_around((width, height), inside));
            img2img.mask_blur_x = blur_x * 4;
            img2img.mask_blur_y = blur_y * 4;
            img2img.inpainting_fill = 1;
            img2img.only_masked = false;
        }
        let result = self.job.generate(&params)?;
        self.first
            .get_or_insert_with(|| (result.seed, infotext_of(&result)));
        Ok(result)
    }
}

/// Puts the grid of all pictures before them, as the options say.
fn with_grid(
    params: &GenerationParams,
    result: &GenerationResult,
    images: &mut Vec<GeneratedImage>,
    infotext: &str,
) -> Result<(), GenerateError> {
    if images.len() < 2 && params.options.bool("grid_only_if_multiple") {
        return Ok(());
    }
    let pictures: Vec<Picture> = images.iter().map(|it| (*it.image).clone()).collect();
    let rows = GridRows::from_options(
        params.options.i64("n_rows"),
        params.options.bool("grid_prevent_empty_spots"),
        params.batch_size,
    );
    let grid = Picture::from(image_grid(&pictures, rows));
    save_script_grid(params, result, "grid", &grid, infotext)?;
    if params.options.bool("return_grid") {
        images.insert(0, without_text(grid));
    }
    Ok(())
}
