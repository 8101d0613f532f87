//! UniPC (Zhao et al., 2023): a multistep predictor with a corrector that costs no extra call, in
//! its data prediction form. f32 throughout, small linear systems included.

use ndarray::Zip;

use super::TimestepGrid;
use crate::sampling::scalar::{exp, expm1, linspace, ln, pow};
use crate::sampling::{Latent, SamplingError, UniPcSkip, UniPcVariant, Walk};

/// The end of every walk, one training step above 0.
const END_TIME: f64 = 1.0 / 1000.0;

/// UniPC, without noise.
pub(super) fn unipc(
    walk: &mut Walk<'_>,
    mut x: Latent,
    grid: &TimestepGrid<'_>,
) -> Result<Latent, SamplingError> {
    let step_count = grid.timesteps.len();
    let options = walk.options.uni_pc;
    if options.order == 0 || step_count < options.order {
        return Err(SamplingError::Schedule(format!(
            "UniPC of order {} needs as many steps, not {step_count}",
            options.order
        )));
    }
    let schedule = ContinuousSchedule::new(grid.alphas_cumprod);
    let times = start_to_end(walk, grid, &schedule);
    let mut history = vec![Evaluation::new(walk, &schedule, &x, times[0])?];
    for (step, &t) in times.iter().enumerate().skip(1) {
        let order = if step < options.order {
            step
        } else if options.lower_order_final {
            options.order.min(step_count + 1 - step)
        } else {
            options.order
        };
        let corrects = step != step_count;
        let update = Update::new(&schedule, &history, t, order);
        let (next, evaluation) = match options.variant {
            UniPcVariant::Bh1 | UniPcVariant::Bh2 => {
                update.bh(walk, &schedule, &x, options.variant, corrects)?
            }
            UniPcVariant::VaryCoeff => update.vary_coeff(walk, &schedule, &x, corrects)?,
        };
        x = next;
        if let Some(evaluation) = evaluation {
            history.insert(0, evaluation);
            history.truncate(options.order);
        }
        walk.report(step - 1, &history[0].x0)?;
    }
    Ok(x)
}

/// The times of a walk, from the start down, one more than steps.
fn start_to_end(
    walk: &Walk<'_>,
    grid: &TimestepGrid<'_>,
    schedule: &ContinuousSchedule,
) -> Vec<f32> {
    let step_count = grid.timesteps.len();
    let start = if walk.options.is_img2img {
        grid.timesteps[step_count - 1] as f64 / 1000.0 + END_TIME
    } else {
        1.0
    };
    match walk.options.uni_pc.skip {
        UniPcSkip::TimeUniform => linspace(start, END_TIME, step_count + 1),
        UniPcSkip::TimeQuadratic => linspace(start.sqrt(), END_TIME.sqrt(), step_count + 1)
            .into_iter()
            .map(|root| root * root)
            .collect(),
        UniPcSkip::LogSnr => {
            let from = schedule.lambda(start as f32);
            let to = schedule.lambda(END_TIME as f32);
            linspace(f64::from(from), f64::from(to), step_count + 1)
                .into_iter()
                .map(|lambda| schedule.time(lambda))
                .collect()
        }
    }
}

/// The training schedule over continuous time 0.001 to 1.
struct ContinuousSchedule {
    times: Vec<f32>,
    log_alphas: Vec<f32>,
}

impl ContinuousSchedule {
    fn new(alphas_cumprod: &[f32]) -> Self {
        let mut times = linspace(0.0, 1.0, alphas_cumprod.len() + 1);
        times.remove(0);
        Self {
            times,
            log_alphas: alphas_cumprod.iter().map(|&a| 0.5 * ln(a)).collect(),
        }
    }

    /// Logarithm of the signal's share at a time.
    fn log_alpha(&self, t: f32) -> f32 {
        interpolate(t, &self.times, &self.log_alphas)
    }

    /// The noise's share at a time.
    fn sigma(&self, t: f32) -> f32 {
        (1.0 - exp(2.0 * self.log_alpha(t))).sqrt()
    }

    /// Half the log signal-to-noise ratio at a time.
    fn lambda(&self, t: f32) -> f32 {
        let log_alpha = self.log_alpha(t);
        log_alpha - 0.5 * ln(1.0 - exp(2.0 * log_alpha))
    }

    /// The time of half a log signal-to-noise ratio.
    fn time(&self, lambda: f32) -> f32 {
        let doubled = f64::from(-2.0 * lambda);
        // logaddexp(0, doubled)
        let log_sum = doubled.max(0.0) + (-doubled.abs()).exp().ln_1p();
        let log_alpha = -0.5 * log_sum as f32;
        let alphas: Vec<f32> = self.log_alphas.iter().rev().copied().collect();
        let times: Vec<f32> = self.times.iter().rev().copied().collect();
        interpolate(log_alpha, &alphas, &times)
    }
}

/// Piecewise linear over ascending `xs`, extended by the end pieces.
fn interpolate(x: f32, xs: &[f32], ys: &[f32]) -> f32 {
    let start = xs
        .partition_point(|&knot| knot < x)
        .saturating_sub(1)
        .min(xs.len() - 2);
    let slope = (x - xs[start]) * (ys[start + 1] - ys[start]) / (xs[start + 1] - xs[start]);
    ys[start] + slope
}

/// The noise-free prediction at one time of the walk.
struct Evaluation {
    t: f32,
    x0: Latent,
}

impl Evaluation {
    fn new(
        walk: &mut Walk<'_>,
        schedule: &ContinuousSchedule,
        x: &Latent,
        t: f32,
    ) -> Result<Self, SamplingError> {
        let timestep = (t - END_TIME as f32) * 1000.0;
        let mut x0 = walk.denoise(x, timestep)?;
        let (alpha, sigma) = (exp(schedule.log_alpha(t)), schedule.sigma(t));
        Zip::from(&mut x0)
            .and(x)
            .for_each(|eps, &x| *eps = (x - sigma * *eps) / alpha);
        Ok(Self { t, x0 })
    }
}

/// The numbers of one update, and the differences of earlier predictions.
struct Update<'a> {
    newest: &'a Evaluation,
    t: f32,
    order: usize,
    alpha: f32,
    sigma_ratio: f32,
    /// `-h`, minus the step in half log signal-to-noise ratio.
    hh: f32,
    /// Places of the earlier predictions in units of the step, and 1 for the new one.
    places: Vec<f32>,
    differences: Vec<Latent>,
}

impl<'a> Update<'a> {
    /// An update to time `t`; `history` is newest first.
    fn new(schedule: &ContinuousSchedule, history: &'a [Evaluation], t: f32, order: usize) -> Self {
        let newest = &history[0];
        let lambda = schedule.lambda(newest.t);
        let h = schedule.lambda(t) - lambda;
        let mut places = Vec::with_capacity(order);
        let mut differences = Vec::with_capacity(order);
        for earlier in history.iter().take(order).skip(1) {
            let place = (schedule.lambda(earlier.t) - lambda) / h;
            places.push(place);
            differences.push((&earlier.x0 - &newest.x0) / place);
        }
        places.push(1.0);
        Self {
            newest,
            t,
            order,
            alpha: exp(schedule.log_alpha(t)),
            sigma_ratio: schedule.sigma(t) / schedule.sigma(newest.t),
            hh: -h,
            places,
            differences,
        }
    }

    /// The first-order part of the update.
    fn base(&self, x: &Latent) -> Latent {
        let weight = self.alpha * expm1(self.hh);
        super::combination(self.sigma_ratio, x, -weight, &self.newest.x0)
    }

    /// The update with a fixed `B(h)`.
    fn bh(
        &self,
        walk: &mut Walk<'_>,
        schedule: &ContinuousSchedule,
        x: &Latent,
        variant: UniPcVariant,
        corrects: bool,
    ) -> Result<(Latent, Option<Evaluation>), SamplingError> {
        let b_h = match variant {
            UniPcVariant::Bh2 => expm1(self.hh),
            UniPcVariant::Bh1 | UniPcVariant::VaryCoeff => self.hh,
        };
        let (matrix, right) = self.bh_system(b_h);
        let scale = self.alpha * b_h;
        let base = self.base(x);

        let mut predicted = base.clone();
        if self.order > 1 {
            let inner = self.order - 1;
            let weights = if self.order == 2 {
                vec![0.5]
            } else {
                let matrix = matrix[..inner]
                    .iter()
                    .map(|row| row[..inner].to_vec())
                    .collect();
                solve(matrix, right[..inner].to_vec())
            };
            subtract_scaled(&mut predicted, &self.weighted_differences(&weights), scale);
        }
        if !corrects {
            return Ok((predicted, None));
        }
        let evaluation = Evaluation::new(walk, schedule, &predicted, self.t)?;
        let weights = if self.order == 1 {
            vec![0.5]
        } else {
            solve(matrix, right)
        };
        let newest_weight = weights[self.order - 1];
        let mut correction = (&evaluation.x0 - &self.newest.x0) * newest_weight;
        if self.order > 1 {
            correction = self.weighted_differences(&weights[..self.order - 1]) + correction;
        }
        let mut corrected = base;
        subtract_scaled(&mut corrected, &correction, scale);
        Ok((corrected, Some(evaluation)))
    }

    /// The matrix of powers of the places, and the right-hand side.
    fn bh_system(&self, b_h: f32) -> (Vec<Vec<f32>>, Vec<f32>) {
        let mut phi = expm1(self.hh) / self.hh - 1.0;
        let mut factorial = 1.0_f64;
        let mut matrix = Vec::with_capacity(self.order);
        let mut right = Vec::with_capacity(self.order);
        for power in 0..self.order {
            matrix.push(
                self.places
                    .iter()
                    .map(|&place| pow(place, power as f64))
                    .collect(),
            );
            right.push(phi * factorial as f32 / b_h);
            factorial *= (power + 2) as f64;
            phi = phi / self.hh - (1.0 / factorial) as f32;
        }
        (matrix, right)
    }

    /// The update whose coefficients vary with the step.
    fn vary_coeff(
        &self,
        walk: &mut Walk<'_>,
        schedule: &ContinuousSchedule,
        x: &Latent,
        corrects: bool,
    ) -> Result<(Latent, Option<Evaluation>), SamplingError> {
        let order = self.order;
        let columns = self.coefficient_columns();
        let phis = self.coefficient_phis();
        let base = self.base(x);
        let mut predicted = base.clone();
        let inner_inverse = inverse(&columns, order - 1);
        for k in 0..order - 1 {
            let sum = self.weighted_differences(&inner_inverse[k]);
            subtract_scaled(&mut predicted, &sum, self.alpha * phis[k + 1]);
        }
        if !corrects {
            return Ok((predicted, None));
        }
        let evaluation = Evaluation::new(walk, schedule, &predicted, self.t)?;
        let full_inverse = inverse(&columns, order);
        let mut corrected = base;
        for k in 0..order - 1 {
            let sum = self.weighted_differences(&full_inverse[k][..order - 1]);
            subtract_scaled(&mut corrected, &sum, self.alpha * phis[k + 1]);
        }
        // The original reads the row that its loop ended with.
        let last = full_inverse[order.saturating_sub(2)][order - 1];
        let difference = (&evaluation.x0 - &self.newest.x0) * last;
        subtract_scaled(&mut corrected, &difference, self.alpha * phis[order]);
        Ok((corrected, Some(evaluation)))
    }

    /// `columns[k][row]`: ones, then every column times the places over its number.
    fn coefficient_columns(&self) -> Vec<Vec<f32>> {
        let mut column = vec![1.0_f32; self.order];
        (1..=self.order)
            .map(|number| {
                let current = column.clone();
                for (value, place) in column.iter_mut().zip(&self.places) {
                    *value = *value * place / (number + 1) as f32;
                }
                current
            })
            .collect()
    }

    fn coefficient_phis(&self) -> Vec<f32> {
        let mut phi = expm1(self.hh);
        let mut factorial = 1.0_f64;
        (1..=self.order + 1)
            .map(|number| {
                let current = phi;
                phi = phi / self.hh - (1.0 / factorial) as f32;
                factorial *= (number + 1) as f64;
                current
            })
            .collect()
    }

    /// Sum of the differences, weighted.
    fn weighted_differences(&self, weights: &[f32]) -> Latent {
        let mut sum = Latent::zeros(self.newest.x0.dim());
        for (difference, &weight) in self.differences.iter().zip(weights) {
            Zip::from(&mut sum)
                .and(difference)
                .for_each(|sum, &d| *sum += weight * d);
        }
        sum
    }
}

/// `x -= scale * y`.
fn subtract_scaled(x: &mut Latent, y: &Latent, scale: f32) {
    Zip::from(x).and(y).for_each(|x, &y| *x -= scale * y);
}

/// Gaussian elimination with partial pivoting, f32 as LAPACK's `sgesv`.
fn solve(mut matrix: Vec<Vec<f32>>, mut right: Vec<f32>) -> Vec<f32> {
    let size = right.len();
    for column in 0..size {
        // The first of equals, as LAPACK picks it.
        let mut pivot = column;
        for row in column + 1..size {
            if matrix[row][column].abs() > matrix[pivot][column].abs() {
                pivot = row;
            }
        }
        matrix.swap(column, pivot);
        right.swap(column, pivot);
        for row in column + 1..size {
            let factor = matrix[row][column] / matrix[column][column];
            let pivot_row = matrix[column].clone();
            for (value, pivot_value) in matrix[row].iter_mut().zip(&pivot_row).skip(column) {
                *value -= factor * pivot_value;
            }
            right[row] -= factor * right[column];
        }
    }
    for row in (0..size).rev() {
        for inner in row + 1..size {
            right[row] -= matrix[row][inner] * right[inner];
        }
        right[row] /= matrix[row][row];
    }
    right
}

/// Rows of the inverse of the leading block of a matrix given by its columns.
fn inverse(columns: &[Vec<f32>], size: usize) -> Vec<Vec<f32>> {
    let matrix: Vec<Vec<f32>> = (0..size)
        .map(|row| (0..size).map(|column| columns[column][row]).collect())
        .collect();
    let inverse_columns: Vec<Vec<f32>> = (0..size)
        .map(|unit| {
            let right = (0..size)
                .map(|row| if row == unit { 1.0 } else { 0.0 })
                .collect();
            solve(matrix.clone(), right)
        })
        .collect();
    (0..size)
        .map(|row| inverse_columns.iter().map(|column| column[row]).collect())
        .collect()
}
