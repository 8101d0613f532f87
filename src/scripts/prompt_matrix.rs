//! `Prompt matrix`: every combination of the parts of a prompt that `|` separates.

use crate::imaging::{GridRows, Legend, Title, image_grid, to_rgb, with_legend};
use crate::pipeline::{GenerateError, GenerationResult, Picture, save_script_grid};

use super::arguments::raised;
use super::job::{ScriptJob, infotext_of, without_text};
use super::{Script, Tab};

pub(super) struct PromptMatrix;

/// Pictures that one matrix may ask for, as many parts as a user can mean.
const MAX_SWITCHED_PARTS: usize = 12;

impl Script for PromptMatrix {
    fn title(&self) -> &'static str {
        "Prompt matrix"
    }

    fn serves(&self, _tab: Tab) -> bool {
        true
    }

    fn run(&self, mut job: ScriptJob<'_>) -> Result<GenerationResult, GenerateError> {
        let arguments = job.arguments();
        let (at_start, own_seeds) = (arguments.bool(0), arguments.bool(1));
        let positive = is_positive(&arguments.text(2))?;
        let joiner = joiner(&arguments.text(3))?;
        let margin = arguments.pixels(4)?;
        job.fix_seeds();
        let prompt = if positive {
            &job.params.prompt
        } else {
            &job.params.negative_prompt
        };
        let parts: Vec<String> = prompt.split('|').map(str::to_owned).collect();
        if parts.len() > MAX_SWITCHED_PARTS + 1 {
            let text = format!("{} parts make too many pictures", parts.len());
            return Err(raised("ValueError", text));
        }
        let prompts = combinations(&parts, joiner, at_start);
        let count = prompts.len();
        job.check_pictures(count)?;
        let mut params = job.params.clone();
        if positive {
            params.lists.prompts = prompts;
        } else {
            params.lists.negative_prompts = prompts;
        }
        let first = params.seed.unwrap_or_default();
        params.lists.seeds = (0..count as i64)
            .map(|index| {
                if own_seeds {
                    first.wrapping_add(index)
                } else {
                    first
                }
            })
            .collect();
        // The init image's latent is made for whole batches.
        if params.img2img.is_some() && !count.is_multiple_of(params.batch_size) {
            params.batch_size = 1;
        }
        params.batch_count = count.div_ceil(params.batch_size);
        params.makes_grid = false;
        let result = job.generate_alone(&params)?;
        with_grid(&job, result, &parts, margin)
    }
}

fn is_positive(kind: &str) -> Result<bool, GenerateError> {
    match kind {
        "positive" => Ok(true),
        "negative" => Ok(false),
        other => Err(raised("ValueError", format!("Unknown prompt type {other}"))),
    }
}

fn joiner(name: &str) -> Result<&'static str, GenerateError> {
    match name {
        "comma" => Ok(", "),
        "space" => Ok(" "),
        other => {
            let text = format!("Unknown variations delimiter {other}");
            Err(raised("ValueError", text))
        }
    }
}

/// The first part with every selection of the others; bit n of the counter switches part n + 1.
fn combinations(parts: &[String], joiner: &str, at_start: bool) -> Vec<String> {
    let Some((always, switched)) = parts.split_first() else {
        return Vec::new();
    };
    let of_number = |number: usize| {
        let mut chosen: Vec<&str> = switched
            .iter()
            .enumerate()
            .filter(|(bit, _)| number & (1 << bit) != 0)
            .map(|(_, part)| part.trim_matches([' ', ',']))
            .collect();
        let place = if at_start { chosen.len() } else { 0 };
        chosen.insert(place, always);
        chosen.join(joiner)
    };
    (0..1 << switched.len()).map(of_number).collect()
}

/// Puts the matrix before its pictures; half of the parts stand above it, half beside it.
fn with_grid(
    job: &ScriptJob<'_>,
    mut result: GenerationResult,
    parts: &[String],
    margin: u32,
) -> Result<GenerationResult, GenerateError> {
    let pictures: Vec<Picture> = result.images.iter().map(|it| (*it.image).clone()).collect();
    let Some(first) = pictures.first() else {
        return Ok(result);
    };
    let switched = parts.get(1..).unwrap_or_default();
    let grid = image_grid(&pictures, GridRows::Fixed(1 << (switched.len() / 2)));
    let (above, beside) = switched.split_at(switched.len().div_ceil(2));
    let titles = |parts: &[String]| -> Vec<Vec<Title>> {
        let of_position = |position: usize| {
            let title = |(bit, part): (usize, &String)| Title {
                text: part.clone(),
                active: position & (1 << bit) != 0,
            };
            parts.iter().enumerate().map(title).collect()
        };
        (0..1 << parts.len()).map(of_position).collect()
    };
    let (columns, rows) = (titles(above), titles(beside));
    let picture = Picture::from(with_legend(
        &to_rgb(&grid.into()),
        (first.width(), first.height()),
        Legend {
            columns: &columns,
            rows: &rows,
            margin,
            colours: job.legend_colours(),
        },
    ));
    let text = infotext_of(&result);
    save_script_grid(&job.params, &result, "prompt_matrix", &picture, &text)?;
    result.images.insert(0, without_text(picture));
    result.infotexts.insert(0, text);
    result.index_of_first_image = 1;
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(prompt: &str) -> Vec<String> {
        prompt.split('|').map(str::to_owned).collect()
    }

    #[test]
    fn every_selection_of_parts_is_a_prompt() {
        let castle = parts("a castle|at night|in snow");
        assert_eq!(
            combinations(&castle, ", ", false),
            [
                "a castle",
                "a castle, at night",
                "a castle, in snow",
                "a castle, at night, in snow"
            ]
        );
        assert_eq!(
            combinations(&castle, " ", true),
            [
                "a castle",
                "at night a castle",
                "in snow a castle",
                "at night in snow a castle"
            ]
        );
    }

    #[test]
    fn parts_lose_blanks_and_commas_but_for_the_first() {
        assert_eq!(
            combinations(&parts("a ,| b, "), ", ", false),
            ["a ,", "a ,, b"]
        );
    }
}
