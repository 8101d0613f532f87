//! torch's `mean` of float32 on a CPU, to the last bit.
//!
//! The states of a text tower nearly cancel out, so that the mean that emphasis restores depends on
//! the order in which they are added: a plain sum differs from torch's in the fifth digit. This is
//! the cascade of ATen's `SumKernel.cpp` with 8 lanes (AVX2) and 4 rows, one thread.

const LANES: usize = 8;
const ROWS: usize = 4;
const LEVELS: usize = 4;

type Block = [[f32; LANES]; ROWS];

/// The mean of `values`, in their order in memory.
pub(super) fn mean(values: &[f32]) -> f32 {
    sum(values) / values.len() as f32
}

fn sum(values: &[f32]) -> f32 {
    let (vectors, tail) = values.as_chunks::<LANES>();
    let (blocks, extra_vectors) = vectors.as_chunks::<ROWS>();
    let mut lanes = cascade(blocks);
    for vector in extra_vectors {
        add(&mut lanes[0], vector);
    }
    let [mut total, rows @ ..] = lanes;
    for row in &rows {
        add(&mut total, row);
    }
    tail.iter()
        .chain(&total)
        .fold(0.0, |sum, value| sum + value)
}

fn add(sum: &mut [f32; LANES], vector: &[f32; LANES]) {
    for (sum, value) in sum.iter_mut().zip(vector) {
        *sum += value;
    }
}

fn add_block(sum: &mut Block, block: &Block) {
    for (sum, row) in sum.iter_mut().zip(block) {
        add(sum, row);
    }
}

/// Adds in levels: every `step` blocks the lowest level moves one up, every `step²` the next.
fn cascade(blocks: &[Block]) -> Block {
    let log = blocks.len().next_power_of_two().trailing_zeros() as usize;
    let level_power = (log / LEVELS).max(4);
    let step = 1 << level_power;
    let mut levels = [[[0.0; LANES]; ROWS]; LEVELS];
    let full = blocks.chunks_exact(step);
    let rest = full.remainder();
    for (index, chunk) in full.enumerate() {
        for block in chunk {
            add_block(&mut levels[0], block);
        }
        let done = (index + 1) * step;
        for level in 1..LEVELS {
            let lower = std::mem::take(&mut levels[level - 1]);
            add_block(&mut levels[level], &lower);
            if done & ((step - 1) << (level * level_power)) != 0 {
                break;
            }
        }
    }
    for block in rest {
        add_block(&mut levels[0], block);
    }
    let [mut total, upper @ ..] = levels;
    for level in &upper {
        add_block(&mut total, level);
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_add_up_whatever_their_count() {
        for count in [1, 7, 8, 31, 32, 33, 600, 9_856, 59_136, 600_001] {
            let values: Vec<f32> = (0..count).map(|index| (index % 3) as f32).collect();
            let want: u32 = (0..count).map(|index| index % 3).sum();
            assert_eq!(
                sum(&values).to_bits(),
                (want as f32).to_bits(),
                "{count} values"
            );
        }
    }
}
