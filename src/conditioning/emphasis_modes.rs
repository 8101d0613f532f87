//! What token weights do to a tower's states: A1111's option `emphasis`.

use ndarray::{ArrayViewMut2, Axis};

/// Emphasis modes of the option `emphasis`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Emphasis {
    /// Brackets are text like any other.
    None,
    /// Brackets are read, their weights dropped.
    Ignore,
    /// States are multiplied, then scaled so that the mean of the batch stays.
    Original,
    /// States are multiplied.
    NoNorm,
}

impl Emphasis {
    /// The mode by A1111's name; an unknown name is `Original`, as there.
    #[must_use]
    pub fn from_option(name: &str) -> Self {
        match name {
            "None" => Self::None,
            "Ignore" => Self::Ignore,
            "No norm" => Self::NoNorm,
            _ => Self::Original,
        }
    }

    /// A1111's name of the mode.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Ignore => "Ignore",
            Self::Original => "Original",
            Self::NoNorm => "No norm",
        }
    }
}

/// One text's share of a batch: the states of one chunk.
pub(super) struct Weighted<'a> {
    /// `[77, width]`
    pub(super) states: ArrayViewMut2<'a, f32>,
    /// 77 weights.
    pub(super) multipliers: &'a [f64],
    /// How many texts of the batch are this one.
    pub(super) copies: usize,
}

/// Applies the weights to one chunk position of a whole batch. The mean that `Original` restores is
/// taken over all texts of the batch, so schedule variants of one prompt influence each other.
pub(super) fn apply_emphasis(mode: Emphasis, batch: &mut [Weighted<'_>]) {
    if matches!(mode, Emphasis::None | Emphasis::Ignore) {
        return;
    }
    let before = mean(batch);
    for item in batch.iter_mut() {
        for (mut state, &weight) in item.states.axis_iter_mut(Axis(0)).zip(item.multipliers) {
            state *= weight as f32;
        }
    }
    if mode == Emphasis::Original {
        let factor = before / mean(batch);
        // A mean of exactly 0 would leave nothing but NaN.
        if factor.is_finite() {
            for item in batch {
                item.states *= factor;
            }
        }
    }
}

/// The mean over texts, tokens and channels; summed in f64, rounded to torch's f32.
fn mean(batch: &[Weighted<'_>]) -> f32 {
    let (mut sum, mut count) = (0.0, 0);
    for item in batch {
        let text: f64 = item.states.iter().map(|&value| f64::from(value)).sum();
        sum += text * item.copies as f64;
        count += item.states.len() * item.copies;
    }
    (sum / count as f64) as f32
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, array};

    use super::*;

    fn run(mode: Emphasis, states: &mut [Array2<f32>], weights: &[[f64; 2]], copies: &[usize]) {
        let mut batch: Vec<Weighted<'_>> = states
            .iter_mut()
            .zip(weights)
            .zip(copies)
            .map(|((states, multipliers), &copies)| Weighted {
                states: states.view_mut(),
                multipliers,
                copies,
            })
            .collect();
        apply_emphasis(mode, &mut batch);
    }

    #[test]
    fn original_restores_the_mean_of_the_whole_batch() {
        let mut states = [
            array![[1.0, 3.0], [2.0, 2.0]],
            array![[4.0, 0.0], [1.0, 1.0]],
        ];
        run(
            Emphasis::Original,
            &mut states,
            &[[2.0, 1.0], [1.0, 1.0]],
            &[1, 2],
        );
        // Sum 8 + 2·6 = 20 before, 12 + 2·6 = 24 after.
        let factor = 20.0_f32 / 24.0;
        assert!((states[0][[0, 1]] - 6.0 * factor).abs() < 1e-6);
        assert!(
            (states[1][[0, 0]] - 4.0 * factor).abs() < 1e-6,
            "a sibling is scaled too"
        );
    }

    #[test]
    fn the_other_modes_multiply_or_leave_alone() {
        let mut states = [array![[1.0, 3.0], [2.0, 2.0]]];
        run(Emphasis::NoNorm, &mut states, &[[2.0, 0.5]], &[1]);
        assert_eq!(states[0], array![[2.0, 6.0], [1.0, 1.0]]);
        for mode in [Emphasis::Ignore, Emphasis::None] {
            run(mode, &mut states, &[[2.0, 0.5]], &[1]);
            assert_eq!(states[0], array![[2.0, 6.0], [1.0, 1.0]]);
        }
    }

    #[test]
    fn weights_of_one_change_nothing() {
        let mut states = [array![[0.1, 0.7], [0.3, -0.9]]];
        let want = states[0].clone();
        run(Emphasis::Original, &mut states, &[[1.0, 1.0]], &[3]);
        assert_eq!(states[0], want);
    }

    #[test]
    fn names_are_a1111s() {
        for mode in [
            Emphasis::None,
            Emphasis::Ignore,
            Emphasis::Original,
            Emphasis::NoNorm,
        ] {
            assert_eq!(Emphasis::from_option(mode.name()), mode);
        }
    }
}
