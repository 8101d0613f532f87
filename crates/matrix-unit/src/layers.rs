//! A linear layer and a convolution over whole arrays.

use super::kernel::{
    BLOCK, LINE, PARTS, RIGHT_STEP, Rows, Tiles, expect, multiply, pack_positions, pack_rows,
    pack_weights, unpack_positions,
};
use super::scratch::Scratch;
use super::{CHANNEL_MULTIPLE, Convolution, InParallel, Linear, MatrixUnit, Operands};

/// Rows of the left operand that a thread has laid out at a time, and values of the sum: together half a megabyte.
const LINEAR_ROWS: usize = 256;
const LINEAR_STEPS: usize = 10;
/// Bytes of a convolution's input, or of a linear layer's weights, that are laid out at a time.
const LAID_OUT_BYTES: usize = 24 << 20;
/// Blocks of 32 input channels whose weights a thread has laid out at a time.
const KERNEL_BLOCKS: usize = 4;
/// Positions of a convolution that are worth laying its weights out for.
const MIN_POSITIONS: usize = 256;
/// Tasks a thread, so that all end at about the same time.
const TASKS_A_THREAD: usize = 4;

static ZEROS: [f32; BLOCK] = [0.0; BLOCK];

/// An output of which threads write disjoint parts.
#[derive(Clone, Copy)]
struct Shared<T>(*mut T);

// SAFETY: see where it is written.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    fn at(self, index: usize) -> *mut T {
        self.0.wrapping_add(index)
    }
}

/// The bias of 32 outputs as a block in which every row is the same.
fn bias_block(bias: Option<&[f32]>, first: usize) -> Rows<*const f32> {
    let begin = bias.map_or(ZEROS.as_ptr(), |bias| bias[first..first + BLOCK].as_ptr());
    Rows { begin, pitch: 0 }
}

impl Linear {
    /// Computes `y` with `each`, which has so many `threads`.
    ///
    /// # Panics
    /// When a slice is not as long as the sizes say, or these are not divisible by [`CHANNEL_MULTIPLE`].
    pub fn run(
        self,
        unit: MatrixUnit,
        (x, weight, bias): Operands<'_>,
        y: &mut [f32],
        threads: usize,
        each: &InParallel<'_>,
    ) {
        let Self { rows, width, out } = self;
        assert!(width.is_multiple_of(CHANNEL_MULTIPLE) && out.is_multiple_of(CHANNEL_MULTIPLE));
        assert_eq!((x.len(), weight.len()), (rows * width, out * width));
        assert!(y.len() == rows * out && bias.is_none_or(|bias| bias.len() == out));
        if y.is_empty() {
            return;
        }
        let steps = width / BLOCK;
        let (x, y) = (Shared(x.as_ptr().cast_mut()), Shared(y.as_mut_ptr()));
        let weight = Shared(weight.as_ptr().cast_mut());
        let panel_bytes = steps * RIGHT_STEP;
        let most = (LAID_OUT_BYTES / panel_bytes).max(1);
        let groups = rows.div_ceil(LINEAR_ROWS);
        for first in (0..out / BLOCK).step_by(most) {
            let panels = most.min(out / BLOCK - first);
            let right = Scratch::take(panels * panel_bytes);
            let right = (Shared(right.begin()), right);
            let lay_out = |panel: usize| {
                let weights = weight.at((first + panel) * BLOCK * width);
                // SAFETY: there is a unit, hence AVX-512. Every panel has its own part of the memory.
                unsafe {
                    pack_weights(weights, width, (steps, 1), right.0.at(panel * panel_bytes));
                }
            };
            each(panels, &lay_out);
            let splits = (TASKS_A_THREAD * threads).div_ceil(groups);
            let share = panels.div_ceil(splits.clamp(1, panels));
            let splits = panels.div_ceil(share);
            let task = |number: usize| {
                let (group, split) = (number / splits, number % splits);
                let panels = split * share..((split + 1) * share).min(panels);
                let from = group * LINEAR_ROWS;
                let count = LINEAR_ROWS.min(rows - from);
                let pitch = count.next_multiple_of(BLOCK);
                let left = Scratch::take(LINEAR_STEPS * PARTS * pitch * LINE);
                let tiles = Tiles::set_up(unit);
                let offsets: [isize; LINEAR_STEPS] =
                    std::array::from_fn(|step| (step * PARTS * pitch * LINE) as isize);
                for step in (0..steps).step_by(LINEAR_STEPS) {
                    let offsets = &offsets[..LINEAR_STEPS.min(steps - step)];
                    let values = Rows {
                        begin: x.at(from * width + step * BLOCK).cast_const(),
                        pitch: width,
                    };
                    // SAFETY: as above.
                    unsafe { pack_rows(values, (count, pitch), offsets.len(), left.begin()) };
                    for panel in panels.clone() {
                        let column = (first + panel) * BLOCK;
                        let right = right.0.at(panel * panel_bytes + step * RIGHT_STEP);
                        for row in (0..count).step_by(BLOCK) {
                            let block = Rows {
                                begin: y.at((from + row) * out + column),
                                pitch: out,
                            };
                            expect(Rows {
                                begin: y.at((from + row + BLOCK) * out + column),
                                pitch: out,
                            });
                            let before = if step == 0 {
                                bias_block(bias, column)
                            } else {
                                block.read_only()
                            };
                            let left = left.begin().wrapping_add(row * LINE).cast_const();
                            let left = (left, offsets, pitch * LINE);
                            // SAFETY: no other task writes these rows and columns.
                            unsafe {
                                multiply_rows(&tiles, left, right, before, block, count - row);
                            }
                        }
                    }
                }
            };
            each(groups * splits, &task);
        }
    }
}

impl Rows<*mut f32> {
    fn read_only(self) -> Rows<*const f32> {
        Rows {
            begin: self.begin.cast_const(),
            pitch: self.pitch,
        }
    }
}

/// [`multiply`] where only the first `count` rows of the block are there.
///
/// # Safety
/// As for [`multiply`].
unsafe fn multiply_rows(
    tiles: &Tiles,
    left: (*const u8, &[isize], usize),
    right: *const u8,
    from: Rows<*const f32>,
    to: Rows<*mut f32>,
    count: usize,
) {
    // SAFETY: the caller's, of rows that are there.
    unsafe {
        if count >= BLOCK {
            return multiply(tiles, left, right, from, to);
        }
        let mut block = [[0.0_f32; BLOCK]; BLOCK];
        for (row, values) in block.iter_mut().enumerate().take(count) {
            let source = from.begin.add(row * from.pitch);
            std::ptr::copy_nonoverlapping(source, values.as_mut_ptr(), BLOCK);
        }
        let whole = Rows {
            begin: block.as_mut_ptr().cast(),
            pitch: BLOCK,
        };
        multiply(tiles, left, right, whole.read_only(), whole);
        for (row, values) in block.iter().enumerate().take(count) {
            let target = to.begin.add(row * to.pitch);
            std::ptr::copy_nonoverlapping(values.as_ptr(), target, BLOCK);
        }
    }
}

/// A row of a convolution's input as it is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LaidRow {
    /// Around an image.
    Zeros,
    /// Row `.0` of all rows of all images.
    Values(usize),
}

/// Rows that are laid out together. Behind each row of a 3x3 convolution there is a position of zeros, which is the left
/// neighbour of the next row too.
struct Band {
    rows: Vec<LaidRow>,
    /// Which of them are rows of the output.
    wanted: Vec<usize>,
}

impl Band {
    /// The rows that the output's rows `range` are made of.
    fn of(convolution: &Convolution, range: std::ops::Range<usize>) -> Self {
        let (mut rows, mut wanted) = (Vec::new(), Vec::new());
        let height = convolution.height;
        let has_edge = convolution.side > 1;
        for row in range.clone() {
            if has_edge && row.is_multiple_of(height) {
                rows.push(LaidRow::Zeros);
            } else if has_edge && row == range.start {
                rows.push(LaidRow::Values(row - 1));
            }
            wanted.push(rows.len());
            rows.push(LaidRow::Values(row));
        }
        if has_edge {
            rows.push(if range.end.is_multiple_of(height) {
                LaidRow::Zeros
            } else {
                LaidRow::Values(range.end)
            });
        }
        Self { rows, wanted }
    }
}

impl Convolution {
    /// Computes `y` with `each`, which has so many `threads`.
    ///
    /// # Panics
    /// When a slice is not as long as the sizes say, or these are not divisible by [`CHANNEL_MULTIPLE`].
    pub fn run(
        self,
        unit: MatrixUnit,
        (x, weight, bias): Operands<'_>,
        y: &mut [f32],
        threads: usize,
        each: &InParallel<'_>,
    ) {
        let Self {
            images,
            channels,
            out,
            height,
            width,
            side,
        } = self;
        let (plane, taps) = (height * width, side * side);
        assert!(channels.is_multiple_of(CHANNEL_MULTIPLE) && out.is_multiple_of(CHANNEL_MULTIPLE));
        assert!(side == 1 || side == 3);
        assert_eq!(
            (x.len(), weight.len()),
            (images * channels * plane, out * channels * taps)
        );
        assert!(y.len() == images * out * plane && bias.is_none_or(|bias| bias.len() == out));
        if y.is_empty() {
            return;
        }
        let (pitch, _) = self.positions();
        let row_bytes = pitch * LINE * PARTS * (channels / BLOCK);
        let most = (LAID_OUT_BYTES / row_bytes).max(1);
        let shared = (Shared(x.as_ptr().cast_mut()), Shared(y.as_mut_ptr()));
        for first in (0..images * height).step_by(most) {
            let band = Band::of(&self, first..(first + most).min(images * height));
            self.run_band(
                unit,
                (shared.0, weight, bias),
                shared.1,
                &band,
                (threads, each),
            );
        }
    }

    /// Positions of a row as it is laid out, and before the first one.
    fn positions(&self) -> (usize, usize) {
        match self.side {
            1 => (self.width, 0),
            _ => (self.width + 1, 1),
        }
    }

    fn run_band(
        self,
        unit: MatrixUnit,
        (x, weight, bias): (Shared<f32>, &[f32], Option<&[f32]>),
        y: Shared<f32>,
        band: &Band,
        (threads, each): (usize, &InParallel<'_>),
    ) {
        let Self {
            channels,
            out,
            height,
            width,
            side,
            ..
        } = self;
        let (plane, taps, blocks) = (height * width, side * side, channels / BLOCK);
        let (pitch, lead) = self.positions();
        let (Some(&begin), Some(&end)) = (band.wanted.first(), band.wanted.last()) else {
            return;
        };
        // Outputs are made for positions in a row from the first wanted row on; those between rows are left unused.
        let first = begin * pitch;
        let strips = (end * pitch + width - first).div_ceil(BLOCK);
        // What lies behind is read for unused positions alone.
        let behind = BLOCK + pitch + 1;
        let part = (lead + band.rows.len() * pitch + behind) * LINE;
        let left = Scratch::take(blocks * PARTS * part);
        let left = (Shared(left.begin()), left);
        let lay_out = |block: usize| {
            let lines = |position: usize| left.0.at(block * PARTS * part + position * LINE);
            // SAFETY: there is a unit, hence AVX-512. Every block has its own part of the memory.
            let zero = |position: usize, count: usize| unsafe {
                for number in 0..PARTS {
                    lines(position)
                        .add(number * part)
                        .write_bytes(0, count * LINE);
                }
            };
            zero(0, lead);
            for (number, row) in band.rows.iter().enumerate() {
                let at = lead + number * pitch;
                let LaidRow::Values(row) = *row else {
                    zero(at, pitch);
                    continue;
                };
                let (image, row) = (row / height, row % height);
                let values = x.at((image * channels + block * BLOCK) * plane + row * width);
                // SAFETY: as above.
                unsafe { pack_positions(values, plane, width, lines(at), part) };
                zero(at + width, pitch - width);
            }
        };
        each(blocks, &lay_out);
        let tasks = TASKS_A_THREAD * threads;
        let splits = tasks.div_ceil(out / BLOCK);
        let splits = splits.clamp(1, (strips * BLOCK / MIN_POSITIONS).max(1));
        let share = strips.div_ceil(splits);
        let task = |number: usize| {
            let (panel, split) = (number / splits, number % splits);
            let strips = split * share..((split + 1) * share).min(strips);
            if strips.is_empty() {
                return;
            }
            let sums = Scratch::take(strips.len() * BLOCK * BLOCK * size_of::<f32>());
            let sums = sums.floats();
            let right = Scratch::take(KERNEL_BLOCKS * taps * RIGHT_STEP);
            let tiles = Tiles::set_up(unit);
            for block in (0..blocks).step_by(KERNEL_BLOCKS) {
                let count = KERNEL_BLOCKS.min(blocks - block);
                let weights = &weight[(panel * BLOCK * channels + block * BLOCK) * taps..];
                let row = channels * taps;
                // SAFETY: as above.
                unsafe { pack_weights(weights.as_ptr(), row, (count, taps), right.begin()) };
                let offsets: Vec<isize> = (0..count * taps)
                    .map(|step| {
                        let (block, tap) = (block + step / taps, step % taps);
                        let (down, along) = ((tap / side) as isize, (tap % side) as isize);
                        let middle = (side / 2) as isize;
                        let shift = (down - middle) * pitch as isize + along - middle;
                        let position = (lead + first) as isize + shift;
                        (block * PARTS * part) as isize + position * LINE as isize
                    })
                    .collect();
                for strip in strips.clone() {
                    let sum = Rows {
                        begin: sums.wrapping_add((strip - strips.start) * BLOCK * BLOCK),
                        pitch: BLOCK,
                    };
                    let before = if block == 0 {
                        bias_block(bias, panel * BLOCK)
                    } else {
                        sum.read_only()
                    };
                    let left = left.0.at(strip * BLOCK * LINE).cast_const();
                    // SAFETY: the sums are this task's own; all positions that the offsets name are laid out or behind.
                    unsafe { multiply(&tiles, (left, &offsets, part), right.begin(), before, sum) };
                }
            }
            let made = strips.start * BLOCK..strips.end * BLOCK;
            for &row in &band.wanted {
                let LaidRow::Values(source) = band.rows[row] else {
                    continue;
                };
                let begin = row * pitch - first;
                let columns = begin.max(made.start)..(begin + width).min(made.end);
                if columns.is_empty() {
                    continue;
                }
                let (image, source) = (source / height, source % height);
                let at = (image * out + panel * BLOCK) * plane + source * width;
                let from = sums.wrapping_add((columns.start - made.start) * BLOCK);
                let to = y.at(at + columns.start - begin);
                // SAFETY: no other task writes these channels and positions.
                unsafe { unpack_positions(from, columns.len(), to, plane) };
            }
        };
        each(out / BLOCK * splits, &task);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of both signs and of many sizes.
    fn values(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        };
        (0..count).map(|_| next() * next()).collect()
    }

    fn each(total: usize, work: &(dyn Fn(usize) + Send + Sync)) {
        std::thread::scope(|scope| {
            for thread in 0..2 {
                scope.spawn(move || (thread..total).step_by(2).for_each(work));
            }
        });
    }

    /// What float32 sums in any order stay within.
    fn assert_near(found: &[f32], wanted: impl Fn(usize) -> (f64, f64), what: &str) {
        for (at, found) in found.iter().enumerate() {
            let (sum, magnitude) = wanted(at);
            let off = (f64::from(*found) - sum).abs();
            assert!(
                off <= 4.0 * f64::from(f32::EPSILON) * magnitude,
                "{what}, value {at}: {found} instead of {sum}"
            );
        }
    }

    fn unit() -> Option<MatrixUnit> {
        let unit = MatrixUnit::find();
        if unit.is_none() {
            eprintln!("this processor has no matrix unit: nothing was compared");
        }
        unit
    }

    #[test]
    fn linear_layers_are_those_of_float64_but_for_float32s_rounding() {
        let Some(unit) = unit() else { return };
        for (rows, width, out) in [(1, 32, 32), (77, 64, 96), (300, 352, 64), (513, 704, 32)] {
            for has_bias in [false, true] {
                let (x, weight) = (values(rows * width, 1), values(out * width, 2));
                let bias = has_bias.then(|| values(out, 3));
                let mut y = vec![f32::NAN; rows * out];
                let layer = Linear { rows, width, out };
                layer.run(unit, (&x, &weight, bias.as_deref()), &mut y, 2, &each);
                let wanted = |at: usize| {
                    let (row, column) = (at / out, at % out);
                    let mut sum = bias.as_ref().map_or(0.0, |bias| f64::from(bias[column]));
                    let mut magnitude = sum.abs();
                    for k in 0..width {
                        let term =
                            f64::from(x[row * width + k]) * f64::from(weight[column * width + k]);
                        sum += term;
                        magnitude += term.abs();
                    }
                    (sum, magnitude)
                };
                assert_near(&y, wanted, &format!("{layer:?}"));
            }
        }
    }

    #[test]
    fn convolutions_are_those_of_float64_but_for_float32s_rounding() {
        let Some(unit) = unit() else { return };
        let sizes = [
            (1, 32, 32, 1, 1, 3),
            (2, 64, 32, 5, 7, 3),
            (2, 32, 64, 8, 8, 1),
            (3, 160, 32, 9, 33, 3),
            (1, 32, 32, 40, 17, 3),
        ];
        for (images, channels, out, height, width, side) in sizes {
            let layer = Convolution {
                images,
                channels,
                out,
                height,
                width,
                side,
            };
            let (plane, taps) = (height * width, side * side);
            let x = values(images * channels * plane, 1);
            let weight = values(out * channels * taps, 2);
            let bias = values(out, 3);
            let mut y = vec![f32::NAN; images * out * plane];
            layer.run(unit, (&x, &weight, Some(&bias)), &mut y, 2, &each);
            assert_near(
                &y,
                |at| layer.reference(&x, &weight, &bias, at),
                &format!("{layer:?}"),
            );
        }
    }

    #[test]
    fn a_convolution_in_bands_is_the_whole_ones() {
        let Some(unit) = unit() else { return };
        let layer = Convolution {
            images: 2,
            channels: 32,
            out: 32,
            height: 6,
            width: 5,
            side: 3,
        };
        let x = values(2 * 32 * 30, 1);
        let (weight, bias) = (values(32 * 32 * 9, 2), values(32, 3));
        let mut whole = vec![f32::NAN; x.len()];
        layer.run(unit, (&x, &weight, Some(&bias)), &mut whole, 2, &each);
        for rows in 1..12 {
            let mut y = vec![f32::NAN; x.len()];
            for first in (0..12).step_by(rows) {
                let band = Band::of(&layer, first..(first + rows).min(12));
                layer.run_band(
                    unit,
                    (Shared(x.as_ptr().cast_mut()), &weight, Some(&bias)),
                    Shared(y.as_mut_ptr()),
                    &band,
                    (2, &each),
                );
            }
            assert_eq!(y, whole, "{rows} rows a band");
        }
    }

    impl Convolution {
        /// Value `at` of the output in float64, and the sum of its terms' magnitudes.
        fn reference(&self, x: &[f32], weight: &[f32], bias: &[f32], at: usize) -> (f64, f64) {
            let plane = self.height * self.width;
            let (image, rest) = (at / (self.out * plane), at % (self.out * plane));
            let (channel, place) = (rest / plane, rest % plane);
            let (row, column) = (place / self.width, place % self.width);
            let mut sum = f64::from(bias[channel]);
            let mut magnitude = sum.abs();
            for from in 0..self.channels {
                for tap in 0..self.side * self.side {
                    let down = (row + tap / self.side).checked_sub(self.side / 2);
                    let along = (column + tap % self.side).checked_sub(self.side / 2);
                    let (Some(down), Some(along)) = (down, along) else {
                        continue;
                    };
                    if down >= self.height || along >= self.width {
                        continue;
                    }
                    let value =
                        x[(image * self.channels + from) * plane + down * self.width + along];
                    let factor =
                        weight[(channel * self.channels + from) * self.side * self.side + tap];
                    let term = f64::from(value) * f64::from(factor);
                    sum += term;
                    magnitude += term.abs();
                }
            }
            (sum, magnitude)
        }
    }
}
