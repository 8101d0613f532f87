//! `Prompts from file or textbox`: one generation a line, each with options of its own.

use serde_json::json;

use crate::pipeline::{GenerateError, GenerationParams, GenerationResult, SAMPLERS};

use super::job::{ScriptJob, add_to_seed};
use super::{Script, Tab, shell_words};

pub(super) struct PromptsFromFile;

impl Script for PromptsFromFile {
    fn title(&self) -> &'static str {
        "Prompts from file or textbox"
    }

    fn serves(&self, _tab: Tab) -> bool {
        true
    }

    fn run(&self, mut job: ScriptJob<'_>) -> Result<GenerationResult, GenerateError> {
        let arguments = job.arguments();
        let (iterates, same_seed) = (arguments.bool(0), arguments.bool(1));
        let at_start = arguments.text(2) != "end";
        let lines: Vec<Vec<LineOption>> = arguments
            .text(3)
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .map(options_of_line)
            .collect();
        job.params.makes_grid = false;
        if iterates || same_seed {
            let control = job.control;
            job.params.seed.get_or_insert_with(|| control.random_seed());
        }
        let jobs: Vec<GenerationParams> = lines
            .iter()
            .map(|line| params_of_line(&job, line, at_start))
            .collect();
        let batches: usize = jobs.iter().map(|params| params.batch_count).sum();
        job.set_job_count(batches)?;
        let advance = (job.params.batch_size * job.params.batch_count) as i64;
        let mut whole: Option<GenerationResult> = None;
        for (index, (mut params, line)) in jobs.into_iter().zip(&lines).enumerate() {
            if whole.is_some() && job.interrupted() {
                break;
            }
            job.set_job(&format!("{} out of {batches}", index + 1));
            let has_seed = line
                .iter()
                .any(|option| matches!(option, LineOption::Seed(_)));
            if iterates && !has_seed {
                add_to_seed(&mut params, advance * index as i64);
            }
            let result = job.generate(&params)?;
            match &mut whole {
                None => whole = Some(result),
                Some(whole) => append(whole, result),
            }
        }
        if let Some(whole) = whole {
            return Ok(whole);
        }
        // No line holds a prompt: nothing is drawn.
        let mut params = job.params.clone();
        params.batch_count = 0;
        job.generate_alone(&params)
    }
}

/// Adds a later line's pictures to those before.
fn append(whole: &mut GenerationResult, mut more: GenerationResult) {
    whole.images.append(&mut more.images);
    whole.infotexts.append(&mut more.infotexts);
    whole.all_prompts.append(&mut more.all_prompts);
    whole
        .all_negative_prompts
        .append(&mut more.all_negative_prompts);
    whole.all_seeds.append(&mut more.all_seeds);
    whole.all_subseeds.append(&mut more.all_subseeds);
    whole.comments.append(&mut more.comments);
}

/// What one line asks for.
#[derive(Debug, Clone, PartialEq)]
enum LineOption {
    Checkpoint(String),
    Prompt(String),
    NegativePrompt(String),
    Styles(String),
    Seed(i64),
    Subseed(i64),
    SubseedStrength(f64),
    SeedResizeHeight(i64),
    SeedResizeWidth(i64),
    /// Unknown names change nothing.
    Sampler(Option<&'static str>),
    BatchSize(usize),
    BatchCount(usize),
    Steps(usize),
    CfgScale(f64),
    Width(usize),
    Height(usize),
    RestoreFaces(bool),
    Tiling(bool),
    /// Of no effect through the API.
    Ignored,
}

/// A line with `--` is a list of options; one that cannot be read, or any other, is a prompt.
fn options_of_line(line: &str) -> Vec<LineOption> {
    let parsed = line.contains("--").then(|| parse_options(line)).flatten();
    parsed.unwrap_or_else(|| vec![LineOption::Prompt(line.to_owned())])
}

fn parse_options(line: &str) -> Option<Vec<LineOption>> {
    let words = shell_words::split(line)?;
    let mut options = Vec::new();
    let mut at = 0;
    while at < words.len() {
        let name = words[at].strip_prefix("--")?;
        at += 1;
        if matches!(name, "prompt" | "negative_prompt") {
            let count = words[at..]
                .iter()
                .take_while(|word| !word.starts_with("--"))
                .count();
            let text = words[at..at + count].join(" ");
            at += count;
            options.push(match name {
                "prompt" => LineOption::Prompt(text),
                _ => LineOption::NegativePrompt(text),
            });
            continue;
        }
        options.push(option(name, words.get(at)?)?);
        at += 1;
    }
    Some(options)
}

/// An option with one value; `None` for an unknown name or a value of another type.
fn option(name: &str, value: &str) -> Option<LineOption> {
    let int = || value.trim().parse::<i64>().ok();
    let count = || {
        value
            .trim()
            .parse::<usize>()
            .ok()
            .filter(|it| (1..=10_000).contains(it))
    };
    let side = || {
        value
            .trim()
            .parse::<usize>()
            .ok()
            .filter(|it| (8..=16_384).contains(it))
    };
    let float = || value.trim().parse::<f64>().ok().filter(|it| it.is_finite());
    let flag = value == "true";
    Some(match name {
        "sd_model" => LineOption::Checkpoint(value.to_owned()),
        "styles" => LineOption::Styles(value.to_owned()),
        "seed" => LineOption::Seed(int()?),
        "subseed" => LineOption::Subseed(int()?),
        "subseed_strength" => LineOption::SubseedStrength(float()?),
        "seed_resize_from_h" => LineOption::SeedResizeHeight(int()?),
        "seed_resize_from_w" => LineOption::SeedResizeWidth(int()?),
        "sampler_index" => LineOption::Sampler(
            usize::try_from(int()?)
                .ok()
                .and_then(|index| SAMPLERS.get(index))
                .map(|sampler| sampler.name),
        ),
        "sampler_name" => LineOption::Sampler(sampler(value)),
        "batch_size" => LineOption::BatchSize(count()?),
        "n_iter" => LineOption::BatchCount(count()?),
        "steps" => LineOption::Steps(count()?),
        "cfg_scale" => LineOption::CfgScale(float()?),
        "width" => LineOption::Width(side()?),
        "height" => LineOption::Height(side()?),
        "restore_faces" => LineOption::RestoreFaces(flag),
        "tiling" => LineOption::Tiling(flag),
        "outpath_samples"
        | "outpath_grids"
        | "prompt_for_display"
        | "do_not_save_samples"
        | "do_not_save_grid" => LineOption::Ignored,
        _ => return None,
    })
}

/// The sampler of a name or alias in any letter case.
pub(super) fn sampler(name: &str) -> Option<&'static str> {
    let name = name.to_lowercase();
    SAMPLERS
        .iter()
        .find(|sampler| {
            sampler.name.to_lowercase() == name
                || sampler
                    .aliases
                    .iter()
                    .any(|alias| alias.to_lowercase() == name)
        })
        .map(|sampler| sampler.name)
}

fn params_of_line(job: &ScriptJob<'_>, line: &[LineOption], at_start: bool) -> GenerationParams {
    let mut params = job.params.clone();
    let joined = |own: &str, of_request: &str| match (own, of_request) {
        ("", other) | (other, "") => other.to_owned(),
        _ if at_start => format!("{own} {of_request}"),
        _ => format!("{of_request} {own}"),
    };
    let seed = |seed: i64| Some(seed).filter(|seed| *seed != -1);
    for option in line {
        match option {
            LineOption::Checkpoint(name) => {
                params.override_option("sd_model_checkpoint", json!(name));
            }
            LineOption::Prompt(text) => params.prompt = joined(text, &job.params.prompt),
            LineOption::NegativePrompt(text) => {
                params.negative_prompt = joined(text, &job.params.negative_prompt);
            }
            LineOption::Styles(names) => {
                params.styles.clear();
                params.style_texts.clear();
                job.add_styles(&mut params, names.split(',').map(str::trim));
            }
            LineOption::Seed(number) => params.seed = seed(*number),
            LineOption::Subseed(number) => params.subseed = seed(*number),
            LineOption::SubseedStrength(strength) => params.subseed_strength = *strength,
            LineOption::SeedResizeHeight(height) => params.seed_resize_from.0 = *height,
            LineOption::SeedResizeWidth(width) => params.seed_resize_from.1 = *width,
            LineOption::Sampler(Some(name)) => (*name).clone_into(&mut params.sampler),
            LineOption::BatchSize(size) => params.batch_size = *size,
            LineOption::BatchCount(count) => params.batch_count = *count,
            LineOption::Steps(count) => params.step_count = *count,
            LineOption::CfgScale(scale) => params.cfg_scale = *scale,
            LineOption::Width(side) => params.width_px = *side,
            LineOption::Height(side) => params.height_px = *side,
            LineOption::RestoreFaces(flag) => params.restore_faces = *flag,
            LineOption::Tiling(flag) => params.tiling = *flag,
            LineOption::Sampler(None) | LineOption::Ignored => {}
        }
    }
    params
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines and what A1111's own function makes of them.
    #[test]
    fn lines_are_read_as_a1111_reads_them() {
        let prompt = |text: &str| LineOption::Prompt(text.to_owned());
        let cases = [
            (
                "--prompt \"photo of a castle\" --negative_prompt blurry, dark --width 768 --steps 10",
                vec![
                    prompt("photo of a castle"),
                    LineOption::NegativePrompt("blurry, dark".to_owned()),
                    LineOption::Width(768),
                    LineOption::Steps(10),
                ],
            ),
            (
                "--prompt a red fox --seed 7 --sampler_name \"Euler a\" --cfg_scale 5.5",
                vec![
                    prompt("a red fox"),
                    LineOption::Seed(7),
                    LineOption::Sampler(Some("Euler a")),
                    LineOption::CfgScale(5.5),
                ],
            ),
            (
                "--sampler_name k_euler_a --prompt x",
                vec![LineOption::Sampler(Some("Euler a")), prompt("x")],
            ),
            (
                "--restore_faces true --tiling True --prompt y",
                vec![
                    LineOption::RestoreFaces(true),
                    LineOption::Tiling(false),
                    prompt("y"),
                ],
            ),
        ];
        for (line, want) in cases {
            assert_eq!(options_of_line(line), want, "{line}");
        }
        for line in [
            "--bogus 1 --prompt y",
            "--steps",
            "x -- y",
            "don't --seed 1",
            "plain",
        ] {
            assert_eq!(options_of_line(line), [prompt(line)], "{line}");
        }
    }
}
