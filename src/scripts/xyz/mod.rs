//! `X/Y/Z plot`: a grid of generations in which up to three parameters change.

mod axes;
mod grid;
mod values;

use order::cells_in_order;

use crate::pipeline::{GenerateError, GenerationParams, GenerationResult, MAX_RANDOM_SEED};

use super::arguments::raised;
use super::job::ScriptJob;
use super::{Arguments, Script, Tab};
use axes::{Axis, Cell, axes_of};
use values::AxisValue;

pub use axes::axis_labels;

pub(super) struct XyzPlot;

/// One axis as a request sets it.
struct SetAxis {
    axis: &'static Axis,
    values: Vec<AxisValue>,
    /// The values as the request wrote them, for the infotext.
    written: String,
    /// Whether the seed varies along it besides.
    varies_seed: bool,
}

/// Places of the arguments.
const LEGEND: usize = 9;
const LONE_IMAGES: usize = 10;
const SUB_GRIDS: usize = 11;
const NO_FIXED_SEEDS: usize = 12;
const VARY_SEEDS: usize = 13;
const MARGIN: usize = 16;
const CSV_MODE: usize = 17;

impl Script for XyzPlot {
    fn title(&self) -> &'static str {
        "X/Y/Z plot"
    }

    fn serves(&self, _tab: Tab) -> bool {
        true
    }

    fn answers_generations(&self, arguments: &Arguments) -> bool {
        arguments.bool(LONE_IMAGES)
    }

    fn run(&self, mut job: ScriptJob<'_>) -> Result<GenerationResult, GenerateError> {
        let no_fixed_seeds = job.arguments().bool(NO_FIXED_SEEDS);
        if !no_fixed_seeds {
            job.fix_seeds();
        }
        if !job.params.options.bool("return_grid") {
            job.params.batch_size = 1;
        }
        let mut set = Vec::with_capacity(3);
        for index in 0..3 {
            set.push(set_axis(&job, index)?);
        }
        for axis in &mut set {
            if !no_fixed_seeds && axis.axis.is_seed() {
                draw_seeds(&mut axis.values, || job.control.random_seed());
            }
        }
        let counts = [
            set[0].values.len(),
            set[1].values.len(),
            set[2].values.len(),
        ];
        check_size(&job.params, counts)?;
        let total: usize = counts.iter().product();
        job.set_job_count(total * job.params.batch_count)?;
        let mut cells: Vec<Option<GenerationResult>> = Vec::new();
        cells.resize_with(total, || None);
        let mut first_failure = None;
        for place in cells_in_order(counts, [0, 1, 2].map(|axis| set[axis].axis.cost)) {
            if job.interrupted() {
                break;
            }
            let index = place[0] + counts[0] * (place[1] + counts[1] * place[2]);
            job.set_job(&format!("{} out of {total}", index + 1));
            match draw_cell(&job, &set, place, counts) {
                Ok(result) => cells[index] = Some(result),
                Err(error) => {
                    tracing::warn!(%error, cell = index + 1, "a cell of the X/Y/Z plot is left empty");
                    first_failure.get_or_insert(error);
                }
            }
        }
        let drawn = cells.iter().flatten().any(|cell| !cell.images.is_empty());
        match (drawn, first_failure) {
            (true, _) => grid::answer(&job, &set, counts, cells, no_fixed_seeds),
            (false, Some(error)) => Err(error),
            (false, None) => job.generate_alone(&job.params),
        }
    }
}

/// Reads axis `index` of the arguments and checks its values.
fn set_axis(job: &ScriptJob<'_>, index: usize) -> Result<SetAxis, GenerateError> {
    let arguments = job.arguments();
    let axis = chosen_axis(arguments, index * 3, job.call.tab)?;
    let from_list = axis.has_choices && !arguments.bool(CSV_MODE);
    let (items, written) = if from_list {
        let items = arguments.list(index * 3 + 2);
        let written = values::to_csv(&items);
        (items, written)
    } else {
        let written = arguments.text(index * 3 + 1);
        (values::from_csv(&written), written)
    };
    let values = axis.values(&items)?;
    if values.is_empty() {
        let name = ["X", "Y", "Z"][index];
        let text = format!("{name} values: the axis {} has none", axis.label);
        return Err(raised("ValueError", text));
    }
    axis.confirm(job, &values)?;
    Ok(SetAxis {
        axis,
        values,
        written,
        varies_seed: arguments.bool(VARY_SEEDS + index),
    })
}

/// An axis by its place in the page's list, or by its label.
fn chosen_axis(arguments: &Arguments, at: usize, tab: Tab) -> Result<&'static Axis, GenerateError> {
    let mut axes = axes_of(tab);
    let found = match arguments.value(at) {
        serde_json::Value::Null => axes.next(),
        serde_json::Value::String(label) => axes.find(|axis| axis.label == label),
        _ => usize::try_from(arguments.int(at)?)
            .ok()
            .and_then(|index| axes.nth(index)),
    };
    found.ok_or_else(|| raised("IndexError", "list index out of range"))
}

fn draw_seeds(values: &mut [AxisValue], mut random: impl FnMut() -> i64) {
    for value in values {
        if matches!(value, AxisValue::Int(-1)) {
            *value = AxisValue::Int(random().clamp(0, MAX_RANDOM_SEED));
        }
    }
}

fn check_size(params: &GenerationParams, counts: [usize; 3]) -> Result<(), GenerateError> {
    let pixels = counts
        .iter()
        .fold((params.width_px * params.height_px) as f64, |all, count| {
            all * *count as f64
        });
    let megapixels = (pixels / 1e6).round_ties_even();
    let limit = params.options.f64("img_max_size_mp");
    if megapixels < limit {
        return Ok(());
    }
    let text = format!(
        "Error: Resulting grid would be too large ({megapixels} MPixels) (max configured size is {limit} MPixels)"
    );
    Err(raised("AssertionError", text))
}

fn draw_cell(
    job: &ScriptJob<'_>,
    set: &[SetAxis],
    place: [usize; 3],
    counts: [usize; 3],
) -> Result<GenerationResult, GenerateError> {
    let mut params = job.params.clone();
    for (axis, index) in set.iter().zip(place) {
        let mut cell = Cell {
            job,
            params: &mut params,
            values: &axis.values,
        };
        (axis.axis.apply)(&mut cell, &axis.values[index])?;
    }
    let mut stride = 1;
    let mut offset = 0;
    for ((axis, index), count) in set.iter().zip(place).zip(counts) {
        if axis.varies_seed {
            offset += index * stride;
            stride *= count;
        }
    }
    super::job::add_to_seed(&mut params, offset as i64);
    job.generate(&params)
}

mod order {
    /// Every cell, the axis of the highest cost outermost; among equals z, then y, then x.
    pub(super) fn cells_in_order(
        counts: [usize; 3],
        costs: [f64; 3],
    ) -> impl Iterator<Item = [usize; 3]> {
        let mut order = [2, 1, 0];
        order.sort_by(|left, right| costs[*right].total_cmp(&costs[*left]));
        let [outer, middle, inner] = order;
        (0..counts[outer]).flat_map(move |first| {
            (0..counts[middle]).flat_map(move |second| {
                (0..counts[inner]).map(move |third| {
                    let mut place = [0; 3];
                    place[outer] = first;
                    place[middle] = second;
                    place[inner] = third;
                    place
                })
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costly_axes_change_least_often() {
        let places: Vec<[usize; 3]> = cells_in_order([2, 2, 1], [0.0, 0.0, 0.0]).collect();
        assert_eq!(places, [[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]]);
        let places: Vec<[usize; 3]> = cells_in_order([2, 2, 1], [1.0, 0.0, 0.0]).collect();
        assert_eq!(places, [[0, 0, 0], [0, 1, 0], [1, 0, 0], [1, 1, 0]]);
    }
}
