//! What one network does to one weight. Formulas: LoRA (arXiv 2106.09685), LyCORIS (arXiv
//! 2309.14859: LoHa, LoKr, (IA)³, full, norm, GLoRA), OFT (arXiv 2306.07280), BOFT (arXiv
//! 2311.06243), DoRA (arXiv 2402.09353), in the forms that A1111 reads.

use std::collections::HashMap;

use ndarray::{Array2, ArrayView2, Axis, s};

use crate::catalogue::{TensorFile, TensorFileError};

/// A tensor of a network file.
#[derive(Debug, Clone)]
struct Tensor {
    shape: Vec<usize>,
    values: Vec<f32>,
}

impl Tensor {
    /// The first axis against all others.
    fn matrix(&self) -> Result<ArrayView2<'_, f32>, String> {
        let rows = self.shape.first().copied().unwrap_or(1).max(1);
        ArrayView2::from_shape((rows, self.values.len() / rows), &self.values)
            .map_err(|error| error.to_string())
    }
}

/// The tensors of one network for one layer, by the name after the layer's.
#[derive(Debug, Clone, Default)]
pub(super) struct Parts {
    tensors: HashMap<String, Tensor>,
}

/// `ΔW = up · down`, with `up [out, rank]` and `down [rank, ...]` row-major.
#[derive(Debug, Clone)]
pub(super) struct LowRank {
    pub(super) down: Vec<f32>,
    pub(super) up: Vec<f32>,
    pub(super) rank: usize,
}

impl LowRank {
    pub(super) fn scaled(mut self, factor: f32) -> Self {
        for value in &mut self.up {
            *value *= factor;
        }
        self
    }
}

/// What is added to a weight (row-major) and a bias, before the multiplier.
#[derive(Debug, Clone)]
pub(super) struct Change {
    pub(super) weight: Vec<f32>,
    pub(super) bias: Option<Vec<f32>>,
}

impl Parts {
    /// Reads tensors given as (name after the layer's, name in the file).
    pub(super) fn read(file: &TensorFile, names: &[(&str, &str)]) -> Result<Self, TensorFileError> {
        let mut tensors = HashMap::new();
        for (part, name) in names {
            let shape = file.get(name).map(|t| t.shape.clone()).unwrap_or_default();
            let values = file.read_f32(name)?;
            tensors.insert((*part).to_owned(), Tensor { shape, values });
        }
        Ok(Self { tensors })
    }

    fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    fn any(&self, names: &[&str]) -> Option<&Tensor> {
        names.iter().find_map(|name| self.get(name))
    }

    fn up(&self) -> Option<&Tensor> {
        self.any(&["lora_up.weight", "lora_B.weight"])
    }

    fn down(&self) -> Option<&Tensor> {
        self.any(&["lora_down.weight", "lora_A.weight"])
    }

    fn number(&self, name: &str) -> Option<f32> {
        self.get(name).and_then(|t| t.values.first().copied())
    }

    /// `scale` if present, else `alpha / dim` if both are known, else 1.
    fn scale(&self) -> f32 {
        if let Some(scale) = self.number("scale") {
            return scale;
        }
        let dim = self
            .down()
            .or_else(|| self.get("hada_w1_b"))
            .or_else(|| self.get("lokr_w1_b"))
            .or_else(|| self.get("lokr_w2_b"))
            .and_then(|tensor| tensor.shape.first().copied());
        match (self.number("alpha"), dim) {
            (Some(alpha), Some(dim)) if dim > 0 => alpha / dim as f32,
            _ => 1.0,
        }
    }

    /// The two factors of a plain LoRA with the scale folded in; `None` when the change is of
    /// another kind or does not fit the layer.
    pub(super) fn low_rank(&self, shape: &[usize], dynamic_rank: Option<usize>) -> Option<LowRank> {
        if self.get("dora_scale").is_some() || self.get("bias").is_some() {
            return None;
        }
        let (up, down) = (self.up()?, self.down()?);
        let (out, width) = (shape[0], shape[1..].iter().product::<usize>());
        let up = up.matrix().ok()?;
        if up.nrows() != out {
            return None;
        }
        let mut factor = match self.get("lora_mid.weight") {
            Some(mid) => core(mid, &down.matrix().ok()?)?,
            None => down.matrix().ok()?.to_owned(),
        };
        if factor.ncols() != width {
            factor = widened(&factor, down, shape)?;
        }
        let rank = factor.nrows();
        if up.ncols() != rank {
            return None;
        }
        let kept = dynamic_rank.map_or(rank, |limit| limit.min(rank)).max(1);
        let up = up.slice(s![.., ..kept]).to_owned();
        let down = factor.slice(s![..kept, ..]).to_owned();
        let scale = self.scale();
        Some(LowRank {
            down: down.iter().copied().collect(),
            up: up.iter().map(|value| value * scale).collect(),
            rank: kept,
        })
    }

    /// Any kind, as an addition to `weight`, whose shape is `shape`.
    pub(super) fn change(
        &self,
        weight: &[f32],
        shape: &[usize],
        dynamic_rank: Option<usize>,
    ) -> Result<Change, String> {
        let out = shape.first().copied().unwrap_or(1).max(1);
        let original = ArrayView2::from_shape((out, weight.len() / out), weight)
            .map_err(|error| error.to_string())?;
        let mut delta = self.raw(&original, shape, dynamic_rank)?;
        if delta.len() != weight.len() {
            return Err(format!(
                "its change has {} values, the layer {}",
                delta.len(),
                weight.len()
            ));
        }
        if let Some(extra) = self.get("bias").filter(|t| t.values.len() == delta.len()) {
            for (value, extra) in delta.iter_mut().zip(&extra.values) {
                *value += extra;
            }
        }
        let scale = self.scale();
        for value in &mut delta {
            *value *= scale;
        }
        if let Some(magnitude) = self.get("dora_scale") {
            delta = decomposed(weight, &delta, &magnitude.values, shape)?;
        }
        let bias = self
            .any(&["diff_b", "b_norm"])
            .map(|tensor| tensor.values.clone());
        Ok(Change {
            weight: delta,
            bias,
        })
    }

    /// ΔW before the scale; the first kind that matches, in A1111's order.
    fn raw(
        &self,
        original: &ArrayView2<'_, f32>,
        shape: &[usize],
        dynamic_rank: Option<usize>,
    ) -> Result<Vec<f32>, String> {
        if self.up().is_some() && self.down().is_some() {
            let unscaled = Self {
                tensors: self
                    .tensors
                    .iter()
                    .filter(|(name, _)| {
                        !["alpha", "scale", "dora_scale", "bias"].contains(&name.as_str())
                    })
                    .map(|(name, tensor)| (name.clone(), tensor.clone()))
                    .collect(),
            };
            let factors = unscaled
                .low_rank(shape, dynamic_rank)
                .ok_or("its factors do not fit the layer")?;
            let width = factors.down.len() / factors.rank;
            let up = Array2::from_shape_vec((shape[0], factors.rank), factors.up);
            let down = Array2::from_shape_vec((factors.rank, width), factors.down);
            return Ok(flat(&up.map_err(text)?.dot(&down.map_err(text)?)));
        }
        if let (Some(a), Some(b)) = (self.get("hada_w1_a"), self.get("hada_w1_b")) {
            let first = product(a, b, self.get("hada_t1"))?;
            let (a, b) = self
                .get("hada_w2_a")
                .zip(self.get("hada_w2_b"))
                .ok_or("LoHa lacks its second half")?;
            let second = product(a, b, self.get("hada_t2"))?;
            if first.dim() != second.dim() {
                return Err("the halves of LoHa differ in shape".to_owned());
            }
            return Ok(flat(&(first * second)));
        }
        if let (Some(weight), Some(on_input)) = (self.get("weight"), self.number("on_input")) {
            return Ok(ia3(original, &weight.values, on_input != 0.0, shape));
        }
        if self.tensors.keys().any(|name| name.starts_with("lokr_")) {
            return self.kronecker();
        }
        if let Some(full) = self.any(&["diff", "w_norm"]) {
            return Ok(full.values.clone());
        }
        if let (Some(a1), Some(a2), Some(b1), Some(b2)) = (
            self.get("a1.weight"),
            self.get("a2.weight"),
            self.get("b1.weight"),
            self.get("b2.weight"),
        ) {
            let fits = a2.matrix()?.nrows() == original.ncols();
            if !fits
                || b2.matrix()?.ncols() != b1.matrix()?.nrows()
                || a2.matrix()?.ncols() != a1.matrix()?.nrows()
            {
                return Err("the factors of GLoRA do not fit the layer".to_owned());
            }
            let own = b2.matrix()?.dot(&b1.matrix()?);
            let through = original.dot(&a2.matrix()?).dot(&a1.matrix()?);
            if own.dim() != through.dim() {
                return Err("the factors of GLoRA do not fit the layer".to_owned());
            }
            return Ok(flat(&(own + through)));
        }
        if let Some(blocks) = self.get("oft_blocks").or_else(|| self.get("oft_diag")) {
            let merged = self.rotated(blocks, original)?;
            return Ok(flat(&(merged - original)));
        }
        Err("it is of a kind that is not known".to_owned())
    }

    /// LoKr: the Kronecker product of two matrices, each whole or as two factors.
    fn kronecker(&self) -> Result<Vec<f32>, String> {
        let factor =
            |whole: &str, a: &str, b: &str, t: Option<&Tensor>| -> Result<Array2<f32>, String> {
                if let Some(whole) = self.get(whole) {
                    return Ok(whole.matrix()?.to_owned());
                }
                let (a, b) = self.get(a).zip(self.get(b)).ok_or("LoKr lacks a factor")?;
                product(a, b, t)
            };
        let w1 = factor("lokr_w1", "lokr_w1_a", "lokr_w1_b", None)?;
        let w2 = factor("lokr_w2", "lokr_w2_a", "lokr_w2_b", self.get("lokr_t2"))?;
        let mut values = Vec::with_capacity(w1.len() * w2.len());
        for first in w1.rows() {
            for second in w2.rows() {
                for x in first {
                    values.extend(second.iter().map(|y| x * y));
                }
            }
        }
        Ok(values)
    }

    /// OFT and BOFT: block rotations of the rows of the weight.
    fn rotated(
        &self,
        blocks: &Tensor,
        weight: &ArrayView2<'_, f32>,
    ) -> Result<Array2<f32>, String> {
        let is_given = self.get("oft_blocks").is_none();
        let constraint = self.number("alpha").unwrap_or(0.0) * weight.nrows() as f32;
        let size = blocks.shape.last().copied().unwrap_or(0);
        if size == 0 || !blocks.values.len().is_multiple_of(size * size) {
            return Err("the blocks of OFT are not square".to_owned());
        }
        let rotations = rotations(&blocks.values, size, is_given, constraint)?;
        let mut merged = weight.to_owned();
        if blocks.shape.len() == 4 && !is_given {
            let stages = blocks.shape[0].max(1);
            let per_stage = rotations.len() / stages;
            if per_stage * size != weight.nrows() || size % 2 != 0 {
                return Err("the blocks of BOFT do not fit the layer".to_owned());
            }
            for (stage, chunk) in rotations.chunks(per_stage).enumerate() {
                let order = butterfly(weight.nrows(), (size / 2) << stage)?;
                let shuffled = merged.select(Axis(0), &order);
                let turned = turn(chunk, size, &shuffled, false);
                for (position, row) in order.iter().enumerate() {
                    merged.row_mut(*row).assign(&turned.row(position));
                }
            }
        } else {
            if rotations.len() * size != weight.nrows() {
                return Err("the blocks of OFT do not fit the layer".to_owned());
            }
            merged = turn(&rotations, size, &merged, true);
        }
        if let Some(rescale) = self
            .get("rescale")
            .filter(|t| t.values.len() == merged.nrows())
        {
            for (mut row, factor) in merged.rows_mut().into_iter().zip(&rescale.values) {
                row *= *factor;
            }
        }
        Ok(merged)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is handed to map_err")]
fn text(error: ndarray::ShapeError) -> String {
    error.to_string()
}

fn flat(matrix: &Array2<f32>) -> Vec<f32> {
    matrix.iter().copied().collect()
}

/// `Σ_m mid[n, m, k, l] down[m, j]` as `[n, j k l]`: LoCon's middle factor as part of the first.
fn core(mid: &Tensor, down: &ArrayView2<'_, f32>) -> Option<Array2<f32>> {
    let [n, m, k, l] = mid.shape[..] else {
        return None;
    };
    if down.nrows() != m || mid.values.len() != n * m * k * l {
        return None;
    }
    let (width, area) = (down.ncols(), k * l);
    let mut out = Array2::zeros((n, width * area));
    for row in 0..n {
        for inner in 0..m {
            let kernel = &mid.values[(row * m + inner) * area..(row * m + inner + 1) * area];
            for j in 0..width {
                for (at, value) in kernel.iter().enumerate() {
                    out[[row, j * area + at]] += value * down[[inner, j]];
                }
            }
        }
    }
    Some(out)
}

/// A factor for the first convolution of a 4-channel UNet on one with more input channels.
fn widened(factor: &Array2<f32>, down: &Tensor, shape: &[usize]) -> Option<Array2<f32>> {
    let [_, channels, kh, kw] = shape[..] else {
        return None;
    };
    let own = down.shape.get(1).copied()?;
    if own >= channels || factor.ncols() != own * kh * kw {
        return None;
    }
    let mut wide = Array2::zeros((factor.nrows(), channels * kh * kw));
    wide.slice_mut(s![.., ..factor.ncols()]).assign(factor);
    Some(wide)
}

/// `a · b`, or with a core tensor `Σ_i a[i, r] Σ_q t[i, q, k, l] b[q, j]` as `[r, j k l]`.
fn product(a: &Tensor, b: &Tensor, t: Option<&Tensor>) -> Result<Array2<f32>, String> {
    let (a, b) = (a.matrix()?, b.matrix()?);
    let mismatch = || "factors of different ranks".to_owned();
    match t {
        None if a.ncols() == b.nrows() => Ok(a.dot(&b)),
        None => Err(mismatch()),
        Some(t) => {
            let inner = core(t, &b).ok_or_else(mismatch)?;
            if a.nrows() == inner.nrows() {
                Ok(a.t().dot(&inner))
            } else {
                Err(mismatch())
            }
        }
    }
}

/// (IA)³: the weight times a factor a column (`on_input`) or a row.
fn ia3(
    original: &ArrayView2<'_, f32>,
    factors: &[f32],
    on_input: bool,
    shape: &[usize],
) -> Vec<f32> {
    let area: usize = shape.iter().skip(2).product();
    original
        .indexed_iter()
        .map(|((row, column), value)| {
            let at = if on_input { column / area.max(1) } else { row };
            value * factors.get(at).copied().unwrap_or(0.0)
        })
        .collect()
}

/// DoRA: every input column of `W + ΔW` gets the length `magnitude`; the change against `W`.
fn decomposed(
    weight: &[f32],
    delta: &[f32],
    magnitude: &[f32],
    shape: &[usize],
) -> Result<Vec<f32>, String> {
    let [out, width] = [shape.first(), shape.get(1)].map(|n| n.copied().unwrap_or(1));
    let area: usize = shape.iter().skip(2).product();
    if magnitude.len() != width {
        return Err("dora_scale does not fit the layer".to_owned());
    }
    let moved: Vec<f32> = weight.iter().zip(delta).map(|(w, d)| w + d).collect();
    let mut norms = vec![0.0_f32; width];
    for row in 0..out {
        for (column, norm) in norms.iter_mut().enumerate() {
            let first = (row * width + column) * area;
            *norm += moved[first..first + area]
                .iter()
                .map(|v| v * v)
                .sum::<f32>();
        }
    }
    let factors: Vec<f32> = magnitude
        .iter()
        .zip(&norms)
        .map(|(magnitude, norm)| magnitude / norm.sqrt())
        .collect();
    Ok(moved
        .iter()
        .enumerate()
        .map(|(at, value)| value * factors[at / area % width] - weight[at])
        .collect())
}

/// The rotations that blocks of OFT stand for: `(I + Q)(I - Q)⁻¹` with `Q = B - Bᵀ`, or the blocks
/// themselves where they are given whole.
fn rotations(
    values: &[f32],
    size: usize,
    is_given: bool,
    constraint: f32,
) -> Result<Vec<Array2<f32>>, String> {
    let mut blocks: Vec<Array2<f32>> = values
        .chunks(size * size)
        .map(|chunk| Array2::from_shape_vec((size, size), chunk.to_vec()).map_err(text))
        .collect::<Result<_, _>>()?;
    if is_given {
        return Ok(blocks);
    }
    for block in &mut blocks {
        *block = &*block - &block.t();
    }
    if constraint != 0.0 {
        let squares: f32 = blocks.iter().flatten().map(|v| v * v).sum();
        let norm = squares.sqrt();
        let factor = (norm.min(constraint) + 1e-8) / (norm + 1e-8);
        for block in &mut blocks {
            *block *= factor;
        }
    }
    blocks
        .iter()
        .map(|q| {
            let unit = Array2::<f32>::eye(size);
            let inverse = inverse(&(&unit - q)).ok_or("a block of OFT has no rotation")?;
            Ok((&unit + q).dot(&inverse))
        })
        .collect()
}

/// Gauss-Jordan with row pivots, in float64.
fn inverse(matrix: &Array2<f32>) -> Option<Array2<f32>> {
    let n = matrix.nrows();
    let mut left = matrix.mapv(f64::from);
    let mut right = Array2::<f64>::eye(n);
    for column in 0..n {
        let pivot = (column..n).max_by(|a, b| {
            left[[*a, column]]
                .abs()
                .total_cmp(&left[[*b, column]].abs())
        })?;
        if left[[pivot, column]].abs() < 1e-12 {
            return None;
        }
        for j in 0..n {
            left.swap([pivot, j], [column, j]);
            right.swap([pivot, j], [column, j]);
        }
        let scale = left[[column, column]];
        for j in 0..n {
            left[[column, j]] /= scale;
            right[[column, j]] /= scale;
        }
        for row in (0..n).filter(|row| *row != column) {
            let factor = left[[row, column]];
            for j in 0..n {
                left[[row, j]] -= factor * left[[column, j]];
                right[[row, j]] -= factor * right[[column, j]];
            }
        }
    }
    Some(right.mapv(|value| value as f32))
}

/// Multiplies every block of rows: by `Rᵀ` for OFT (`Σ_n R[n, m] W[n]`), by `R` for BOFT.
fn turn(
    rotations: &[Array2<f32>],
    size: usize,
    weight: &Array2<f32>,
    transposed: bool,
) -> Array2<f32> {
    let mut out = weight.clone();
    for (block, rotation) in rotations.iter().enumerate() {
        let rows = s![block * size..(block + 1) * size, ..];
        let part = weight.slice(rows);
        let turned = if transposed {
            rotation.t().dot(&part)
        } else {
            rotation.dot(&part)
        };
        out.slice_mut(rows).assign(&turned);
    }
    out
}

/// The order of rows that turns `(c g k)` into `(c k g)` with `g = 2`.
fn butterfly(rows: usize, k: usize) -> Result<Vec<usize>, String> {
    if k == 0 || !rows.is_multiple_of(2 * k) {
        return Err("the stages of BOFT do not fit the layer".to_owned());
    }
    let mut order = Vec::with_capacity(rows);
    for c in 0..rows / (2 * k) {
        for inner in 0..k {
            for g in 0..2 {
                order.push((c * 2 + g) * k + inner);
            }
        }
    }
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(entries: &[(&str, &[usize], &[f32])]) -> Parts {
        let tensors = entries
            .iter()
            .map(|(name, shape, values)| {
                let tensor = Tensor {
                    shape: shape.to_vec(),
                    values: values.to_vec(),
                };
                ((*name).to_owned(), tensor)
            })
            .collect();
        Parts { tensors }
    }

    fn assert_near(got: &[f32], want: &[f32]) {
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() <= 1e-5, "{got} is not {want}");
        }
    }

    fn delta(entries: &[(&str, &[usize], &[f32])], weight: &[f32], shape: &[usize]) -> Vec<f32> {
        parts(entries).change(weight, shape, None).unwrap().weight
    }

    const W: [f32; 4] = [1.0, 2.0, 3.0, 4.0];

    #[test]
    fn lora_scales_by_alpha_over_rank_and_cuts_ranks() {
        let lora = parts(&[
            ("lora_up.weight", &[2, 2], &[1.0, 2.0, 3.0, 4.0]),
            ("lora_down.weight", &[2, 2], &[1.0, 0.0, 0.0, 1.0]),
            ("alpha", &[], &[1.0]),
        ]);
        let change = lora.change(&W, &[2, 2], None).unwrap();
        assert_near(&change.weight, &[0.5, 1.0, 1.5, 2.0]);
        let cut = lora.low_rank(&[2, 2], Some(1)).unwrap();
        assert_eq!(cut.rank, 1);
        assert_near(&cut.up, &[0.5, 1.5]);
        assert!(lora.low_rank(&[3, 2], None).is_none());
    }

    #[test]
    fn a_middle_factor_joins_the_first() {
        // up [1, 1], mid [1, 1, 1, 2], down [1, 2]: every value multiplies.
        let lora = parts(&[
            ("lora_up.weight", &[1, 1, 1, 1], &[2.0]),
            ("lora_mid.weight", &[1, 1, 1, 2], &[3.0, 5.0]),
            ("lora_down.weight", &[1, 2, 1, 1], &[7.0, 11.0]),
        ]);
        let change = lora.change(&[0.0; 4], &[1, 2, 1, 2], None).unwrap();
        assert_near(&change.weight, &[42.0, 70.0, 66.0, 110.0]);
    }

    #[test]
    fn a_four_channel_network_fits_an_inpainting_unet() {
        let lora = parts(&[
            ("lora_up.weight", &[1, 1], &[1.0]),
            ("lora_down.weight", &[1, 4, 1, 1], &[1.0, 2.0, 3.0, 4.0]),
        ]);
        let factors = lora.low_rank(&[1, 9, 1, 1], None).unwrap();
        assert_near(
            &factors.down,
            &[1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        );
    }

    #[test]
    fn loha_multiplies_two_products() {
        let got = delta(
            &[
                ("hada_w1_a", &[2, 1], &[1.0, 2.0]),
                ("hada_w1_b", &[1, 2], &[3.0, 4.0]),
                ("hada_w2_a", &[2, 1], &[5.0, 6.0]),
                ("hada_w2_b", &[1, 2], &[7.0, 8.0]),
            ],
            &W,
            &[2, 2],
        );
        assert_near(&got, &[105.0, 160.0, 252.0, 384.0]);
    }

    #[test]
    fn lokr_is_a_kronecker_product() {
        let got = delta(
            &[
                ("lokr_w1", &[1, 2], &[2.0, 3.0]),
                ("lokr_w2", &[2, 1], &[5.0, 7.0]),
            ],
            &W,
            &[2, 2],
        );
        assert_near(&got, &[10.0, 15.0, 14.0, 21.0]);
    }

    #[test]
    fn ia3_scales_columns_or_rows() {
        let on = |on_input: f32| {
            delta(
                &[
                    ("weight", &[2], &[0.5, 2.0]),
                    ("on_input", &[], &[on_input]),
                ],
                &W,
                &[2, 2],
            )
        };
        assert_near(&on(1.0), &[0.5, 4.0, 1.5, 8.0]);
        assert_near(&on(0.0), &[0.5, 1.0, 6.0, 8.0]);
    }

    #[test]
    fn full_and_norm_bring_a_bias() {
        let full = parts(&[("diff", &[2, 2], &W), ("diff_b", &[2], &[1.0, 2.0])]);
        let change = full.change(&W, &[2, 2], None).unwrap();
        assert_near(&change.weight, &W);
        assert_near(&change.bias.unwrap(), &[1.0, 2.0]);
        let norm = parts(&[("w_norm", &[2], &[3.0, 4.0]), ("b_norm", &[2], &[5.0, 6.0])]);
        let change = norm.change(&[1.0, 1.0], &[2], None).unwrap();
        assert_near(&change.weight, &[3.0, 4.0]);
    }

    #[test]
    fn glora_adds_what_goes_through_the_weight() {
        let got = delta(
            &[
                ("a1.weight", &[1, 2], &[1.0, 1.0]),
                ("a2.weight", &[2, 1], &[1.0, 0.0]),
                ("b1.weight", &[1, 2], &[10.0, 20.0]),
                ("b2.weight", &[2, 1], &[1.0, 2.0]),
            ],
            &W,
            &[2, 2],
        );
        assert_near(&got, &[11.0, 21.0, 23.0, 43.0]);
    }

    #[test]
    fn oft_turns_the_rows() {
        // Q = [[0, 1], [-1, 0]]: (I + Q)(I - Q)^-1 is a quarter turn.
        let got = delta(
            &[("oft_blocks", &[1, 2, 2], &[0.0, 1.0, 0.0, 0.0])],
            &W,
            &[2, 2],
        );
        // R = [[0, 1], [-1, 0]], merged = Rᵀ W = [[-3, -4], [1, 2]].
        assert_near(&got, &[-4.0, -6.0, -2.0, -2.0]);
        let given = delta(
            &[("oft_diag", &[1, 2, 2], &[0.0, 1.0, -1.0, 0.0])],
            &W,
            &[2, 2],
        );
        assert_near(&given, &got);
    }

    #[test]
    fn boft_without_rotation_changes_nothing() {
        let got = delta(
            &[("oft_blocks", &[2, 2, 2, 2], &[0.0; 16])],
            &[1.0; 8],
            &[4, 2],
        );
        assert_near(&got, &[0.0; 8]);
        assert_eq!(butterfly(8, 2).unwrap(), [0, 2, 1, 3, 4, 6, 5, 7]);
    }

    #[test]
    fn dora_gives_every_column_its_length() {
        let got = delta(
            &[
                ("lora_up.weight", &[2, 1], &[0.0, 0.0]),
                ("lora_down.weight", &[1, 2], &[0.0, 0.0]),
                ("dora_scale", &[1, 2], &[10.0, 20.0]),
            ],
            &[3.0, 0.0, 4.0, 2.0],
            &[2, 2],
        );
        assert_near(&got, &[3.0, 0.0, 4.0, 18.0]);
    }

    #[test]
    fn changes_that_do_not_fit_are_errors() {
        let wrong = parts(&[("diff", &[3], &[1.0; 3])]);
        assert!(wrong.change(&W, &[2, 2], None).is_err());
        let unknown = parts(&[("mystery", &[1], &[1.0])]);
        assert!(unknown.change(&W, &[2, 2], None).is_err());
    }
}
