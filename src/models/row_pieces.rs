//! Calls of the UNet whose rows are too many for the device's memory at once.

use std::collections::HashMap;
use std::ops::Range;

use ndarray::{Array4, Axis, concatenate, s};
use parking_lot::Mutex;

use super::networks::NetworkError;
use crate::runtime::RuntimeError;
use crate::sampling::UnetInput;

/// One picture with its negative: pieces are not made smaller.
const FEWEST_ROWS: usize = 2;

/// Forms of calls whose piece is remembered.
const KEPT_FORMS: usize = 1024;

/// What calls have in common that take the same memory a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Form {
    /// Of the latent.
    height: usize,
    width: usize,
    tokens: usize,
    setting: u64,
}

/// How many rows of a call one session computes at once. A row depends on no other, so pieces answer what the whole
/// call would.
#[derive(Debug, Default)]
pub(super) struct RowPieces {
    most_rows: Mutex<HashMap<Form, usize>>,
}

impl RowPieces {
    /// The answer of `run` to all rows, `[rows, 4, h, w]`. Where there is no memory for them, they are computed in halves,
    /// in halves of those, and so on; later calls of the same shapes begin with pieces of the size that did.
    /// `setting` is a hash of whatever else decides on the memory that a row takes.
    ///
    /// # Errors
    /// As `run`; [`RuntimeError::OutOfMemory`] only for pieces of at most two rows.
    pub(super) fn run(
        &self,
        input: &UnetInput,
        setting: u64,
        mut run: impl FnMut(&UnetInput) -> Result<Array4<f32>, NetworkError>,
    ) -> Result<Array4<f32>, NetworkError> {
        let (rows, _, height, width) = input.sample.dim();
        let form = Form {
            height,
            width,
            tokens: input.context.dim().1,
            setting,
        };
        let known = self.most_rows.lock().get(&form).copied();
        let mut most = known.unwrap_or(rows).min(rows);
        let mut pieces: Vec<Array4<f32>> = Vec::new();
        let mut first = 0;
        while first < rows {
            let last = rows.min(first + most);
            let outcome = if last - first == rows {
                run(input)
            } else {
                run(&rows_of(input, first..last))
            };
            match outcome {
                Ok(piece) => {
                    pieces.push(piece);
                    first = last;
                }
                Err(NetworkError::Runtime(error @ RuntimeError::OutOfMemory { .. }))
                    if last - first > FEWEST_ROWS =>
                {
                    most = (last - first).div_ceil(2);
                    tracing::warn!(%error, rows, most, "rows are computed in smaller runs from now on");
                }
                Err(error) => return Err(error),
            }
        }
        if most < rows && known.is_none_or(|known| most < known) {
            let mut kept = self.most_rows.lock();
            if kept.len() >= KEPT_FORMS {
                kept.clear();
            }
            kept.insert(form, most);
        }
        if let [_] = pieces.as_slice()
            && let Some(whole) = pieces.pop()
        {
            return Ok(whole);
        }
        let views: Vec<_> = pieces.iter().map(|piece| piece.view()).collect();
        concatenate(Axis(0), &views).map_err(|_| NetworkError::OutputShape {
            shape: pieces.iter().flat_map(Array4::shape).copied().collect(),
        })
    }
}

/// Some rows of a call, in order.
pub(super) fn rows_of(input: &UnetInput, rows: Range<usize>) -> UnetInput {
    let Range { start, end } = rows;
    UnetInput {
        sample: input.sample.slice(s![start..end, .., .., ..]).to_owned(),
        timestep: input.timestep[start..end].to_vec(),
        context: input.context.slice(s![start..end, .., ..]).to_owned(),
        vector: input
            .vector
            .as_ref()
            .map(|vector| vector.slice(s![start..end, ..]).to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, Array3};

    use super::*;

    fn input(rows: usize, side: usize) -> UnetInput {
        UnetInput {
            sample: Array4::from_shape_fn((rows, 4, side, side), |(row, c, y, x)| {
                (row * 1000 + c * 100 + y * 10 + x) as f32
            }),
            timestep: (0..rows).map(|row| row as f32).collect(),
            context: Array3::from_shape_fn((rows, 3, 2), |(row, _, _)| row as f32 * 0.5),
            vector: Some(Array2::from_shape_fn((rows, 5), |(row, _)| {
                row as f32 * 0.25
            })),
        }
    }

    /// A network whose every row depends on all that the row takes.
    fn answer(input: &UnetInput) -> Array4<f32> {
        let mut output = input.sample.clone();
        for (row, mut values) in output.outer_iter_mut().enumerate() {
            let vector = input.vector.as_ref().map_or(0.0, |vector| vector[[row, 4]]);
            let plus = input.timestep[row] + input.context[[row, 2, 1]] + vector;
            values.mapv_inplace(|value| value * 2.0 + plus);
        }
        output
    }

    fn out_of_memory() -> NetworkError {
        NetworkError::Runtime(RuntimeError::OutOfMemory {
            device: "CUDA",
            graph: "UNet".to_owned(),
            reason: "Failed to allocate memory".to_owned(),
        })
    }

    /// Runs a call where no more than `most` rows fit; the answer and the rows of each run.
    fn call(
        pieces: &RowPieces,
        input: &UnetInput,
        setting: u64,
        most: usize,
    ) -> (Result<Array4<f32>, NetworkError>, Vec<usize>) {
        let mut runs = Vec::new();
        let answer = pieces.run(input, setting, |piece| {
            let rows = piece.sample.dim().0;
            runs.push(rows);
            if rows > most {
                Err(out_of_memory())
            } else {
                Ok(answer(piece))
            }
        });
        (answer, runs)
    }

    #[test]
    fn rows_for_which_there_is_no_memory_are_computed_in_pieces_with_the_same_answer() {
        for (rows, most, runs) in [
            (8, 8, vec![8]),
            (8, 4, vec![8, 4, 4]),
            (8, 2, vec![8, 4, 2, 2, 2, 2]),
            (10, 4, vec![10, 5, 3, 3, 3, 1]),
            (3, 2, vec![3, 2, 1]),
        ] {
            let input = input(rows, 2);
            let (got, made) = call(&RowPieces::default(), &input, 0, most);
            assert_eq!(got.expect("answered"), answer(&input));
            assert_eq!(made, runs, "{rows} rows where {most} fit");
        }
    }

    #[test]
    fn later_calls_of_the_same_shapes_begin_with_the_size_that_did() {
        let pieces = RowPieces::default();
        assert_eq!(call(&pieces, &input(8, 2), 0, 4).1, [8, 4, 4]);
        assert_eq!(call(&pieces, &input(8, 2), 0, 4).1, [4, 4]);
        assert_eq!(call(&pieces, &input(6, 2), 0, 4).1, [4, 2]);
        assert_eq!(call(&pieces, &input(2, 2), 0, 4).1, [2]);
        assert_eq!(call(&pieces, &input(8, 2), 0, 2).1, [4, 2, 2, 2, 2]);
        assert_eq!(call(&pieces, &input(8, 2), 0, 8).1, [2, 2, 2, 2]);
        assert_eq!(call(&pieces, &input(8, 1), 0, 8).1, [8], "other shapes");
        assert_eq!(call(&pieces, &input(8, 2), 1, 8).1, [8], "other settings");
    }

    #[test]
    fn a_picture_that_does_not_fit_alone_is_an_error_and_nothing_is_remembered() {
        let pieces = RowPieces::default();
        let (got, runs) = call(&pieces, &input(8, 2), 0, 1);
        assert!(matches!(
            got,
            Err(NetworkError::Runtime(RuntimeError::OutOfMemory { .. }))
        ));
        assert_eq!(runs, [8, 4, 2]);
        assert_eq!(call(&pieces, &input(8, 2), 0, 8).1, [8]);
    }

    #[test]
    fn other_errors_are_not_tried_again() {
        let mut runs = 0;
        let got = RowPieces::default().run(&input(8, 2), 0, |_| {
            runs += 1;
            Err(NetworkError::TooSmallToMerge)
        });
        assert!(matches!(got, Err(NetworkError::TooSmallToMerge)));
        assert_eq!(runs, 1);
    }
}
