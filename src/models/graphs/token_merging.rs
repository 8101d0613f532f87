//! Token merging (Bolya and Hoffman, "Token Merging for Fast Stable Diffusion", 2023) as tomesd 0.1.3
//! does it when A1111 patches a UNet: without randomness, before and after self-attention only, and
//! only in the transformers that see the latent at its full size.
//!
//! Every 2x2 block of tokens has its top left one as target; all other tokens are sources. The
//! sources that are most like their nearest target (cosine of the block's input) are averaged into
//! it, attention runs over what is left, and each merged source gets its target's answer back.
//!
//! Which tokens are which depends on the latent's size, and how many are merged on the ratio too,
//! so both are inputs of the graph: [`TokenMerge`] works them out.

use super::builder::{Attribute, Dim, GraphBuilder, Value};
use super::proto::data_type;

/// Graph input: positions of the sources, `[s]`.
pub const MERGE_SOURCES: &str = "merge_sources";
/// Graph input: positions of the targets, `[d]`.
pub const MERGE_TARGETS: &str = "merge_targets";
/// Graph input: how many sources are merged, `[1]`.
pub const MERGE_COUNT: &str = "merge_count";

/// What the graph needs to know for one latent size and ratio.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenMerge {
    /// Positions of the sources, row by row.
    pub sources: Vec<i64>,
    /// Positions of the targets, row by row.
    pub targets: Vec<i64>,
    /// How many sources are merged.
    pub count: i64,
}

impl TokenMerge {
    /// For a latent of `height` rows and `width` columns; `None` where no 2x2 block fits, which
    /// tomesd cannot merge either.
    #[must_use]
    pub fn new(height: usize, width: usize, ratio: f64) -> Option<Self> {
        if height < 2 || width < 2 {
            return None;
        }
        let (rows, columns) = (height / 2 * 2, width / 2 * 2);
        let is_target = |position: usize| {
            let (y, x) = (position / width, position % width);
            y < rows && x < columns && y % 2 == 0 && x % 2 == 0
        };
        let of = |target: bool| -> Vec<i64> {
            (0..height * width)
                .filter(|position| is_target(*position) == target)
                .map(|position| position as i64)
                .collect()
        };
        let (sources, targets) = (of(false), of(true));
        // Python's `int(tokens * ratio)`, at most every source.
        let wanted = ((height * width) as f64 * ratio.max(0.0)) as i64;
        Some(Self {
            count: wanted.min(sources.len() as i64),
            sources,
            targets,
        })
    }
}

/// The inputs in the graph.
pub(super) struct MergeInputs {
    sources: Value,
    targets: Value,
    count: Value,
    /// The batch size as a one-value shape.
    batch: Value,
}

/// One block's choice: which of its tokens go where.
pub(super) struct Matching {
    /// Ranks of the sources that stay, `[b, s - r]`.
    kept: Value,
    /// Ranks of the sources that are merged, `[b, r]`.
    merged: Value,
    /// Ranks of the targets that they are merged into, `[b, r]`.
    into: Value,
}

impl MergeInputs {
    pub(super) fn new(g: &mut GraphBuilder<'_>, batch: &Value) -> Self {
        let int = data_type::INT64;
        Self {
            sources: g.input(MERGE_SOURCES, int, &[Dim::Free("source_count")]),
            targets: g.input(MERGE_TARGETS, int, &[Dim::Free("target_count")]),
            count: g.input(MERGE_COUNT, int, &[Dim::Fixed(1)]),
            batch: batch.clone(),
        }
    }

    /// Chooses by the block's input, `x [b, n, c]`.
    pub(super) fn matching(&self, g: &mut GraphBuilder<'_>, x: &Value) -> Matching {
        let x = &g.cast_float(x);
        let last = g.ints(&[-1]);
        let norm = g.node("ReduceL2", &[x, &last], &[("keepdims", Attribute::Int(1))]);
        let metric = g.node("Div", &[x, &norm], &[]);
        let a = take(g, &metric, &self.sources);
        let b = take(g, &metric, &self.targets);
        let b = g.transpose(&b, &[0, 2, 1]);
        let scores = g.node("MatMul", &[&a, &b], &[]);
        let flat = [("keepdims", Attribute::Int(0))];
        let best = g.node("ReduceMax", &[&scores, &last], &flat);
        let best_target = g.node(
            "ArgMax",
            &[&scores],
            &[
                ("axis", Attribute::Int(-1)),
                ("keepdims", Attribute::Int(0)),
            ],
        );
        let all = g.dims_of(&self.sources, 0, 1);
        let order = g.top_indices(&best, &all);
        let (zero, axis) = (g.ints(&[0]), g.ints(&[1]));
        let merged = g.node("Slice", &[&order, &zero, &self.count, &axis], &[]);
        let kept = g.node("Slice", &[&order, &self.count, &all, &axis], &[]);
        let along = [("axis", Attribute::Int(1))];
        let into = g.node("GatherElements", &[&best_target, &merged], &along);
        Matching { kept, merged, into }
    }

    /// `[b, n, c]` → `[b, n - r, c]`: the sources that stay, then the targets, each the mean of
    /// itself and what is merged into it.
    pub(super) fn merge(&self, g: &mut GraphBuilder<'_>, x: &Value, chosen: &Matching) -> Value {
        let x = &g.cast_float(x);
        let sources = take(g, x, &self.sources);
        let targets = take(g, x, &self.targets);
        let kept = gather_rows(g, &sources, &chosen.kept);
        let merged = gather_rows(g, &sources, &chosen.merged);
        let sum = scatter_rows(g, &targets, &chosen.into, &merged, true);
        let one = g.floats("one", &[1.0], &[1]);
        let shape = g.dims_of(&targets, 0, 2);
        let ones = g.node("Expand", &[&one, &shape], &[]);
        let shape = g.shape_of(&chosen.into);
        let more = g.node("Expand", &[&one, &shape], &[]);
        let add = [
            ("axis", Attribute::Int(1)),
            ("reduction", Attribute::Text("add")),
        ];
        let counts = g.node("ScatterElements", &[&ones, &chosen.into, &more], &add);
        let last = g.ints(&[-1]);
        let counts = g.node("Unsqueeze", &[&counts, &last], &[]);
        let mean = g.node("Div", &[&sum, &counts], &[]);
        let merged = g.concat(&[&kept, &mean], 1);
        g.in_precision(&merged)
    }

    /// `[b, n - r, c]` → `[b, n, c]` in the order of `like`.
    pub(super) fn unmerge(
        &self,
        g: &mut GraphBuilder<'_>,
        x: &Value,
        like: &Value,
        chosen: &Matching,
    ) -> Value {
        let kept_count = g.dims_of(&chosen.kept, 1, 2);
        let (zero, axis) = (g.ints(&[0]), g.ints(&[1]));
        let end = g.ints(&[i64::MAX]);
        let kept = g.node("Slice", &[x, &zero, &kept_count, &axis], &[]);
        let targets = g.node("Slice", &[x, &kept_count, &end, &axis], &[]);
        let merged = gather_rows(g, &targets, &chosen.into);
        let values = g.concat(&[&targets, &kept, &merged], 1);

        let one = g.ints(&[1]);
        let rows = g.concat(&[&self.batch, &one], 0);
        let of_targets = g.node("Expand", &[&self.targets, &rows], &[]);
        let first_axis = [("axis", Attribute::Int(0))];
        let of_kept = g.node("Gather", &[&self.sources, &chosen.kept], &first_axis);
        let of_merged = g.node("Gather", &[&self.sources, &chosen.merged], &first_axis);
        let positions = g.concat(&[&of_targets, &of_kept, &of_merged], 1);
        scatter_rows(g, like, &positions, &values, false)
    }
}

/// The same positions of every picture.
fn take(g: &mut GraphBuilder<'_>, x: &Value, positions: &Value) -> Value {
    g.node("Gather", &[x, positions], &[("axis", Attribute::Int(1))])
}

/// `x [b, n, c]`, `rows [b, k]` → `[b, k, c]`.
fn gather_rows(g: &mut GraphBuilder<'_>, x: &Value, rows: &Value) -> Value {
    let last = g.ints(&[-1]);
    let index = g.node("Unsqueeze", &[rows, &last], &[]);
    g.node(
        "GatherND",
        &[x, &index],
        &[("batch_dims", Attribute::Int(1))],
    )
}

/// `x [b, n, c]` with `values [b, k, c]` written, or added, at `rows [b, k]`.
fn scatter_rows(
    g: &mut GraphBuilder<'_>,
    x: &Value,
    rows: &Value,
    values: &Value,
    adds: bool,
) -> Value {
    let last = g.ints(&[-1]);
    let index = g.node("Unsqueeze", &[rows, &last], &[]);
    let shape = g.shape_of(values);
    let index = g.node("Expand", &[&index, &shape], &[]);
    let mut options = vec![("axis", Attribute::Int(1))];
    if adds {
        options.push(("reduction", Attribute::Text("add")));
    }
    g.node("ScatterElements", &[x, &index, values], &options)
}

#[cfg(test)]
mod tests {
    use super::TokenMerge;

    #[test]
    fn targets_are_the_top_left_tokens_of_whole_blocks() {
        let merge = TokenMerge::new(3, 5, 0.5).unwrap();
        assert_eq!(merge.targets, [0, 2]);
        assert_eq!(merge.sources, [1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]);
        assert_eq!(merge.count, 7);
    }

    #[test]
    fn no_more_than_the_sources_are_merged() {
        let count = |ratio| TokenMerge::new(4, 4, ratio).unwrap().count;
        assert_eq!(count(0.9), 12);
        assert_eq!(count(0.05), 0);
        assert_eq!(count(-1.0), 0);
        assert_eq!(TokenMerge::new(1, 64, 0.5), None);
    }
}
