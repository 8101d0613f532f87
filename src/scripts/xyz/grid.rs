//! The pictures that an X/Y/Z plot answers with: a grid for each z, and the grid of those.

use image::{DynamicImage, RgbImage};

use super::SetAxis;
use super::axes::Axis;
use super::values::AxisValue;
use super::{LEGEND, LONE_IMAGES, MARGIN, SUB_GRIDS};
use crate::imaging::{GridRows, Legend, Title, image_grid, with_legend};
use crate::pipeline::{
    GenerateError, GeneratedImage, GenerationResult, InfotextDraft, save_script_grid,
};
use crate::scripts::job::{ScriptJob, infotext_of, text, without_text};

/// What one cell adds to the answer.
struct Picture {
    image: GeneratedImage,
    infotext: String,
    prompt: String,
    seed: i64,
}

/// The answer: `[grid, a grid for each z, every cell]` as far as asked for. The lists of prompts, seeds
/// and infotexts have A1111's lengths: cells count even where their pictures are left out.
pub(super) fn answer(
    job: &ScriptJob<'_>,
    set: &[SetAxis],
    counts: [usize; 3],
    cells: Vec<Option<GenerationResult>>,
    no_fixed_seeds: bool,
) -> Result<GenerationResult, GenerateError> {
    let arguments = job.arguments();
    let drafts = Drafts::new(set, &cells, counts, no_fixed_seeds);
    let (pictures, first) = pictures(cells);
    let Some(mut result) = first else {
        unreachable!("the caller saw a picture")
    };
    let margin = arguments.pixels(MARGIN).unwrap_or(0).min(500);
    let with_titles = arguments.bool(LEGEND);
    let of_plane = counts[0] * counts[1];
    let planes: Vec<RgbImage> = pictures
        .chunks(of_plane)
        .map(|plane| plane_grid(job, set, plane, counts[1], with_titles, margin))
        .collect();
    let whole = DynamicImage::from(whole_grid(job, &set[2], &planes, with_titles));
    let save = |grid: &DynamicImage, infotext: &str| {
        save_script_grid(&job.params, &result, "xyz_grid", grid, infotext)
    };
    save(&whole, &drafts.whole)?;
    let mut images = vec![without_text(whole)];
    let mut infotexts = vec![drafts.whole];
    let mut prompts = vec![pictures[0].prompt.clone()];
    let mut seeds = vec![pictures[0].seed];
    if arguments.bool(SUB_GRIDS) {
        for (index, plane) in planes.into_iter().map(DynamicImage::from).enumerate() {
            save(&plane, &drafts.planes[index])?;
            images.push(without_text(plane));
            infotexts.push(drafts.planes[index].clone());
            prompts.push(pictures[index * of_plane].prompt.clone());
            seeds.push(pictures[index * of_plane].seed);
        }
    }
    let with_lone = arguments.bool(LONE_IMAGES);
    for picture in pictures {
        if with_lone {
            images.push(picture.image);
        }
        infotexts.push(picture.infotext);
        prompts.push(picture.prompt);
        seeds.push(picture.seed);
    }
    result.images = images;
    result.infotexts = infotexts;
    result.all_prompts = prompts;
    result.all_seeds = seeds;
    result.index_of_first_image = 1;
    Ok(result)
}

/// The first picture of every cell, an empty one where there is none; and the first cell's result.
fn pictures(cells: Vec<Option<GenerationResult>>) -> (Vec<Picture>, Option<GenerationResult>) {
    let size = cells
        .iter()
        .flatten()
        .find_map(|cell| cell.images.first())
        .map_or((1, 1), |image| (image.image.width(), image.image.height()));
    let empty = || Picture {
        image: without_text(RgbImage::new(size.0, size.1).into()),
        infotext: String::new(),
        prompt: String::new(),
        seed: -1,
    };
    let mut first: Option<GenerationResult> = None;
    let pictures = cells
        .into_iter()
        .map(|cell| {
            let Some(mut cell) = cell.filter(|cell| !cell.images.is_empty()) else {
                return empty();
            };
            let picture = Picture {
                image: cell.images.remove(0),
                infotext: infotext_of(&cell),
                prompt: cell.all_prompts.first().cloned().unwrap_or_default(),
                seed: cell.all_seeds.first().copied().unwrap_or(-1),
            };
            first.get_or_insert(cell);
            picture
        })
        .collect();
    (pictures, first)
}

/// The grid of one z.
fn plane_grid(
    job: &ScriptJob<'_>,
    set: &[SetAxis],
    cells: &[Picture],
    rows: usize,
    with_titles: bool,
    margin: u32,
) -> RgbImage {
    let images: Vec<DynamicImage> = cells.iter().map(|it| (*it.image.image).clone()).collect();
    let grid = image_grid(&images, GridRows::Fixed(rows));
    if !with_titles {
        return grid;
    }
    let (columns, rows) = (titles(&set[0]), titles(&set[1]));
    with_legend(
        &grid,
        largest(images.iter().map(|it| (it.width(), it.height()))),
        Legend {
            columns: &columns,
            rows: &rows,
            margin,
            colours: job.legend_colours(),
        },
    )
}

/// The planes side by side, the titles of z above them.
fn whole_grid(
    job: &ScriptJob<'_>,
    z: &SetAxis,
    planes: &[RgbImage],
    with_titles: bool,
) -> RgbImage {
    let images: Vec<DynamicImage> = planes.iter().cloned().map(DynamicImage::from).collect();
    let grid = image_grid(&images, GridRows::Fixed(1));
    if !with_titles {
        return grid;
    }
    with_legend(
        &grid,
        largest(planes.iter().map(RgbImage::dimensions)),
        Legend {
            columns: &titles(z),
            rows: &[],
            margin: 0,
            colours: job.legend_colours(),
        },
    )
}

fn largest(sizes: impl Iterator<Item = (u32, u32)>) -> (u32, u32) {
    sizes.fold((1, 1), |all, one| (all.0.max(one.0), all.1.max(one.1)))
}

fn titles(set: &SetAxis) -> Vec<Vec<Title>> {
    let title = |value: &AxisValue| vec![Title::new(set.axis.title(value))];
    set.values.iter().map(title).collect()
}

/// The infotexts of the grids.
struct Drafts {
    whole: String,
    planes: Vec<String>,
}

impl Drafts {
    fn new(
        set: &[SetAxis],
        cells: &[Option<GenerationResult>],
        counts: [usize; 3],
        no_fixed_seeds: bool,
    ) -> Self {
        let drafts: Vec<InfotextDraft> = cells
            .chunks(counts[0] * counts[1])
            .map(|plane| {
                let first = plane.iter().flatten().next();
                let mut draft = first
                    .map(|cell| cell.first_text.clone())
                    .unwrap_or_default();
                draft.set("Script", text("X/Y/Z plot"));
                tell_axis(&mut draft, "X", &set[0], no_fixed_seeds);
                tell_axis(&mut draft, "Y", &set[1], no_fixed_seeds);
                draft
            })
            .collect();
        let mut whole = drafts.first().cloned().unwrap_or_default();
        tell_axis(&mut whole, "Z", &set[2], no_fixed_seeds);
        Self {
            whole: whole.write(),
            planes: drafts.iter().map(InfotextDraft::write).collect(),
        }
    }
}

fn tell_axis(draft: &mut InfotextDraft, name: &str, set: &SetAxis, no_fixed_seeds: bool) {
    let axis: &Axis = set.axis;
    if axis.is_nothing() {
        return;
    }
    draft.set(&format!("{name} Type"), text(axis.label));
    draft.set(&format!("{name} Values"), text(set.written.clone()));
    if axis.is_seed() && !no_fixed_seeds {
        let seeds: Vec<String> = set.values.iter().map(AxisValue::title).collect();
        draft.set(&format!("Fixed {name} Values"), text(seeds.join(", ")));
    }
}
