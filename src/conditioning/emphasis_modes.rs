//! What token weights do to a tower's states: A1111's option `emphasis`.

use ndarray::{ArrayViewMut2, Axis};

use super::torch_mean;

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

/// One chunk position of a batch of texts.
pub(super) struct ChunkBatch<'a> {
    /// `[77, width]` for every different text.
    pub(super) states: Vec<ArrayViewMut2<'a, f32>>,
    /// 77 weights for every different text.
    pub(super) multipliers: Vec<&'a [f64]>,
    /// The batch: indices of texts, with repetitions, in the order of the schedule.
    pub(super) order: &'a [usize],
}

impl ChunkBatch<'_> {
    /// Applies the weights. The mean that `Original` restores is taken over all texts of the batch,
    /// so schedule variants of one prompt influence each other.
    pub(super) fn apply(&mut self, mode: Emphasis) {
        if matches!(mode, Emphasis::None | Emphasis::Ignore) {
            return;
        }
        let before = self.mean();
        for (states, weights) in self.states.iter_mut().zip(&self.multipliers) {
            for (mut state, &weight) in states.axis_iter_mut(Axis(0)).zip(*weights) {
                state *= weight as f32;
            }
        }
        if mode == Emphasis::Original {
            let factor = before / self.mean();
            // A mean of exactly 0 would leave nothing but NaN.
            if factor.is_finite() {
                for states in &mut self.states {
                    *states *= factor;
                }
            }
        }
    }

    /// The mean over texts, tokens and channels.
    fn mean(&self) -> f32 {
        let values: Vec<f32> = self
            .order
            .iter()
            .flat_map(|&text| self.states[text].iter().copied())
            .collect();
        torch_mean::mean(&values)
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, Array3, array};

    use super::*;

    fn run(mode: Emphasis, states: &mut [Array2<f32>], weights: &[[f64; 2]], order: &[usize]) {
        ChunkBatch {
            states: states.iter_mut().map(|states| states.view_mut()).collect(),
            multipliers: weights.iter().map(<[f64; 2]>::as_slice).collect(),
            order,
        }
        .apply(mode);
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
            &[0, 1, 1],
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
        run(Emphasis::NoNorm, &mut states, &[[2.0, 0.5]], &[0]);
        assert_eq!(states[0], array![[2.0, 6.0], [1.0, 1.0]]);
        for mode in [Emphasis::Ignore, Emphasis::None] {
            run(mode, &mut states, &[[2.0, 0.5]], &[0]);
            assert_eq!(states[0], array![[2.0, 6.0], [1.0, 1.0]]);
        }
    }

    #[test]
    fn weights_of_one_change_nothing() {
        let mut states = [array![[0.1, 0.7], [0.3, -0.9]]];
        let want = states[0].clone();
        run(Emphasis::Original, &mut states, &[[1.0, 1.0]], &[0, 0, 0]);
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

    /// `name` in the conditionings recorded with `model`, `[77, width]`.
    fn recorded(model: &str, name: &str) -> Array2<f32> {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join(format!("compat-tests/golden/truth/cond_{model}.npz"));
        let file = std::fs::File::open(path).expect("the golden file exists");
        let mut arrays = ndarray_npy::NpzReader::new(file).expect("an npz file");
        let array: Array3<f32> = arrays
            .by_name(name)
            .or_else(|_| arrays.by_name(&format!("{name}.npy")))
            .expect("the array exists");
        array.index_axis(Axis(0), 0).to_owned()
    }

    #[test]
    fn the_recorded_states_are_scaled_to_the_last_bit() {
        for model in ["tiny-sd1", "tiny-sd2-v"] {
            let case = &crate::prompt::vectors::recorded_prompts(model)["emph"];
            let weights: Vec<f64> =
                serde_json::from_value(case["chunks"][0]["multipliers"].clone()).expect("weights");
            for mode in [Emphasis::NoNorm, Emphasis::Original] {
                let mut states = recorded(model, "emph/emphasis=Ignore");
                ChunkBatch {
                    states: vec![states.view_mut()],
                    multipliers: vec![&weights],
                    order: &[0],
                }
                .apply(mode);
                let want = recorded(model, &format!("emph/emphasis={}", mode.name()));
                assert!(states == want, "{model}, {}", mode.name());
            }
        }
    }
}
