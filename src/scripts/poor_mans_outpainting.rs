//! `Poor man's outpainting`: a larger canvas whose new parts are inpainted tile by tile.

use serde_json::Value;

use crate::imaging::{TileGrid, paste};
use crate::pipeline::{GenerateError, GenerationResult, Picture, save_script_sample};

use super::arguments::raised;
use super::canvas::{Sides, white_around};
use super::job::{ScriptJob, infotext_of, repeated, without_text};
use super::{Arguments, Script, Tab};

pub(super) struct PoorMansOutpainting;

const FILLS: [&str; 4] = ["fill", "original", "latent noise", "latent nothing"];

impl Script for PoorMansOutpainting {
    fn title(&self) -> &'static str {
        "Poor man's outpainting"
    }

    fn serves(&self, tab: Tab) -> bool {
        tab == Tab::Img2Img
    }

    fn answers_generations(&self, _arguments: &Arguments) -> bool {
        false
    }

    fn run(&self, mut job: ScriptJob<'_>) -> Result<GenerationResult, GenerateError> {
        let arguments = job.arguments();
        let pixels = arguments.pixels(0)?.clamp(8, 1024);
        let blur = i64::from(arguments.pixels(1)?.min(64));
        let fill = fill(arguments)?;
        job.fix_seeds();
        let picture = job.flat_init_image()?;
        let sides = Sides::new(job.arguments(), 3, pixels, picture.dimensions());
        let size = sides.canvas(picture.dimensions());
        let mut canvas = image::RgbImage::new(size.0, size.1);
        paste(
            &mut canvas,
            &picture,
            i64::from(sides.left),
            i64::from(sides.up),
        );
        let mut params = job.params.clone();
        let tile = (params.width_px as u32, params.height_px as u32);
        if pixels >= tile.0.min(tile.1) {
            let text = format!("a tile of {}x{} has no overlap of {pixels}", tile.0, tile.1);
            return Err(raised("ValueError", text));
        }
        let grid = TileGrid::new(size, tile, pixels);
        // The mask reaches into the picture by twice its blur, the latent one by half of it.
        let masks =
            [blur * 2, blur / 2].map(|inwards| grid.split(&mask(size, sides, inwards).to_rgb8()));
        let mut tiles = grid.split(&canvas);
        let new: Vec<usize> = grid
            .places()
            .enumerate()
            .filter(|(_, (x, y))| !lies_inside((*x, *y), tile, size, sides))
            .map(|(index, _)| index)
            .collect();
        job.set_job_count(new.len())?;
        params.batch_size = 1;
        params.batch_count = 1;
        params.makes_grid = false;
        params.save_images = false;
        let mut first = None;
        let mut last = None;
        for (number, &index) in new.iter().enumerate() {
            if last.is_some() && job.interrupted() {
                tiles[index] = image::RgbImage::new(tile.0, tile.1);
                continue;
            }
            job.set_job(&format!("Batch {} out of {}", number + 1, new.len()));
            if let Some(img2img) = &mut params.img2img {
                img2img.init_images = vec![Picture::from(tiles[index].clone())];
                img2img.mask = Some(masks[0][index].clone().into());
                img2img.latent_mask = Some(masks[1][index].clone().into());
                img2img.mask_blur_x = blur;
                img2img.mask_blur_y = blur;
                img2img.inpainting_fill = fill;
                img2img.only_masked = false;
            }
            let result = job.generate(&params)?;
            first.get_or_insert_with(|| (result.seed, infotext_of(&result)));
            params.seed = Some(result.seed.wrapping_add(1));
            tiles[index] = result.images.first().map_or_else(
                || image::RgbImage::new(tile.0, tile.1),
                |it| it.image.to_rgb8(),
            );
            last = Some(result);
        }
        let (Some(last), Some((seed, infotext))) = (last, first) else {
            return Err(raised("ValueError", "no direction is given to paint in"));
        };
        let joined = Picture::from(grid.join(&tiles, 1));
        save_script_sample(&params, &last, &joined, &infotext)?;
        Ok(repeated(last, vec![without_text(joined)], seed, &infotext))
    }
}

/// Argument 2: what masked parts begin with, by its number or name.
fn fill(arguments: &Arguments) -> Result<i64, GenerateError> {
    if let Value::String(name) = arguments.value(2) {
        let found = FILLS.iter().position(|fill| fill == name);
        return found
            .map(|index| index as i64)
            .ok_or_else(|| raised("ValueError", format!("'{name}' is not in list")));
    }
    arguments.int(2)
}

/// White where the canvas is new and `inwards` pixels into the picture.
fn mask(size: (u32, u32), sides: Sides, inwards: i64) -> Picture {
    let inner = |side: u32| i64::from(side) + if side > 0 { inwards } else { 0 };
    white_around(
        size,
        (
            inner(sides.left),
            inner(sides.up),
            i64::from(size.0) - inner(sides.right),
            i64::from(size.1) - inner(sides.down),
        ),
    )
}

/// Whether a tile has nothing new.
fn lies_inside((x, y): (i64, i64), tile: (u32, u32), size: (u32, u32), sides: Sides) -> bool {
    x >= i64::from(sides.left)
        && x + i64::from(tile.0) <= i64::from(size.0) - i64::from(sides.right)
        && y >= i64::from(sides.up)
        && y + i64::from(tile.1) <= i64::from(size.1) - i64::from(sides.down)
}
