//! `SD upscale`: the init image enlarged, redrawn tile by tile and joined again.

use serde_json::{Map, Value, json};

use crate::imaging::{TileGrid, upscale};
use crate::pipeline::{
    FoundUpscaler, GenerateError, GenerationResult, Picture, Tiling, save_script_sample,
};

use super::arguments::raised;
use super::job::{ScriptJob, infotext_of, repeated, without_text};
use super::{Arguments, Script, Tab};

pub(super) struct SdUpscale;

/// Largest side of the enlarged picture in pixels.
const SIDE_LIMIT_PX: f64 = 16_384.0;

impl Script for SdUpscale {
    fn title(&self) -> &'static str {
        "SD upscale"
    }

    fn serves(&self, tab: Tab) -> bool {
        tab == Tab::Img2Img
    }

    fn answers_generations(&self, _arguments: &Arguments) -> bool {
        false
    }

    fn run(&self, mut job: ScriptJob<'_>) -> Result<GenerationResult, GenerateError> {
        let overlap = job.arguments().pixels(1)?;
        let scale = job.arguments().float(3)?;
        let upscaler = upscaler_name(&job)?;
        job.fix_seeds();
        let picture = enlarged(&job, &upscaler, scale)?;
        let mut params = job.params.clone();
        params.first_entries = Map::from_iter([
            ("SD upscale overlap".to_owned(), json!(overlap)),
            ("SD upscale upscaler".to_owned(), json!(upscaler)),
        ]);
        let tile = (params.width_px as u32, params.height_px as u32);
        if overlap >= tile.0.min(tile.1) {
            let text = format!(
                "a tile of {}x{} has no overlap of {overlap}",
                tile.0, tile.1
            );
            return Err(raised("ValueError", text));
        }
        let grid = TileGrid::new((picture.width(), picture.height()), tile, overlap);
        let tiles: Vec<Picture> = grid
            .split(&picture.to_rgb8())
            .into_iter()
            .map(Picture::from)
            .collect();
        let batches = tiles.len().div_ceil(params.batch_size);
        let rounds = params.batch_count;
        job.set_job_count(batches * rounds)?;
        params.batch_count = 1;
        params.makes_grid = false;
        params.save_images = false;
        let seed = params.seed.unwrap_or_default();
        let mut first_infotext = None;
        let mut last = None;
        let mut images = Vec::new();
        for round in 0..rounds {
            params.seed = Some(seed.wrapping_add(round as i64));
            let mut drawn = Vec::with_capacity(tiles.len());
            for (index, batch) in tiles.chunks(job.params.batch_size).enumerate() {
                if last.is_some() && job.interrupted() {
                    break;
                }
                job.set_job(&format!(
                    "Batch {} out of {}",
                    index + 1 + round * batches,
                    batches * rounds
                ));
                params.batch_size = batch.len();
                if let Some(img2img) = &mut params.img2img {
                    img2img.init_images = batch.to_vec();
                }
                let result = job.generate(&params)?;
                first_infotext.get_or_insert_with(|| infotext_of(&result));
                params.seed = Some(result.seed.wrapping_add(1));
                drawn.extend(result.images.iter().map(|it| it.image.to_rgb8()));
                last = Some(result);
            }
            drawn.resize(tiles.len(), image::RgbImage::new(tile.0, tile.1));
            let joined = Picture::from(grid.join(&drawn, 1));
            if let Some(last) = &last {
                let infotext = first_infotext.as_deref().unwrap_or_default();
                save_script_sample(&params, last, &joined, infotext)?;
            }
            images.push(without_text(joined));
        }
        let last = last.ok_or_else(|| raised("IndexError", "the picture has no tiles"))?;
        let infotext = first_infotext.unwrap_or_default();
        Ok(repeated(last, images, seed, &infotext))
    }
}

/// The upscaler that argument 2 names, by its place in the list or by its name.
fn upscaler_name(job: &ScriptJob<'_>) -> Result<String, GenerateError> {
    let known = &job.call.surroundings.upscalers;
    if let Value::String(name) = job.arguments().value(2) {
        let name = name.to_lowercase();
        let found = known.iter().find(|it| it.to_lowercase() == name);
        return found
            .cloned()
            .ok_or_else(|| raised("ValueError", format!("'{name}' is not in list")));
    }
    usize::try_from(job.arguments().int(2)?)
        .ok()
        .and_then(|place| known.get(place))
        .cloned()
        .ok_or_else(|| raised("IndexError", "list index out of range"))
}

fn enlarged(job: &ScriptJob<'_>, upscaler: &str, scale: f64) -> Result<Picture, GenerateError> {
    let options = &job.params.options;
    let flat = Picture::from(job.flat_init_image()?);
    if upscaler == "None" {
        return Ok(flat);
    }
    let longest = f64::from(flat.width().max(flat.height())) * scale;
    if !(scale > 0.0 && longest <= SIDE_LIMIT_PX) {
        let text = format!("a picture cannot be enlarged to {longest} pixels");
        return Err(raised("ValueError", text));
    }
    FoundUpscaler::find(upscaler, job.models.upscalers())?
        .lend(Tiling::from_options(options), |upscaler| {
            upscale(&flat, scale, upscaler)
        })
        .map_err(|source| GenerateError::Graph {
            graph: "upscaler",
            source,
        })
}
