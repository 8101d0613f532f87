//! What a decoder in strips keeps of a picture between its sweeps: planes of channels, and the moments that group
//! normalisation needs.

use std::num::NonZero;
use std::ops::Range;

use ndarray::{ArrayD, IxDyn};

const GROUPS: usize = 32;
const EPS: f64 = 1e-6;

/// Channels of a picture, `[channels, height, width]`.
pub(super) struct Plane {
    /// These without gaps, and perhaps more behind them.
    values: Vec<f32>,
    pub(super) channels: usize,
    pub(super) height: usize,
    pub(super) width: usize,
}

impl Plane {
    /// One whose values nobody reads before they are written, in memory that a plane had that nobody needs any more:
    /// the system takes longer to give memory than a copy into it takes.
    pub(super) fn blank([channels, height, width]: [usize; 3], mut memory: Vec<f32>) -> Self {
        let count = channels * height * width;
        if memory.len() < count {
            memory.reserve_exact(count - memory.len());
            memory.resize(count, 0.0);
        }
        Self {
            values: memory,
            channels,
            height,
            width,
        }
    }

    /// Its values.
    pub(super) fn into_values(mut self) -> Vec<f32> {
        self.shrink();
        self.values
    }

    /// Gives back memory that it does not fill.
    pub(super) fn shrink(&mut self) {
        let count = self.count();
        self.values.truncate(count);
        self.values.shrink_to_fit();
    }

    /// Its memory for another one.
    pub(super) fn into_memory(self) -> Vec<f32> {
        self.values
    }

    fn count(&self) -> usize {
        self.channels * self.height * self.width
    }

    fn rows_of(&self, channel: usize, rows: Range<usize>) -> &[f32] {
        let begin = channel * self.height;
        &self.values[(begin + rows.start) * self.width..(begin + rows.end) * self.width]
    }

    /// The rows of all channels, `[channels, rows, width]`, in place of what `strip` held. `before` are the first of
    /// them where the plane no longer has them.
    pub(super) fn read(&self, rows: Range<usize>, before: Option<&Self>, strip: &mut Vec<f32>) {
        let missing = before.map_or(0, |before| before.height);
        strip.resize(self.channels * rows.len() * self.width, 0.0);
        for_channels(
            strip,
            self.channels,
            self.width * rows.len(),
            |channel, target| {
                let (first, rest) = target.split_at_mut(missing * self.width);
                if let Some(before) = before {
                    first.copy_from_slice(before.rows_of(channel, 0..missing));
                }
                rest.copy_from_slice(self.rows_of(channel, rows.start + missing..rows.end));
            },
        );
    }

    /// A copy of some rows.
    pub(super) fn rows(&self, rows: Range<usize>) -> Self {
        let mut values = Vec::new();
        let height = rows.len();
        self.read(rows, None, &mut values);
        Self {
            values,
            height,
            ..*self
        }
    }

    /// Puts a strip where `first` is the first of its rows.
    pub(super) fn write(&mut self, first: usize, strip: &Strip<'_>) {
        let (count, rows) = (self.count(), strip.rows.len());
        let places = first * self.width..(first + rows) * self.width;
        let copied = places.len();
        for_channels(
            &mut self.values[..count],
            self.channels,
            copied,
            |channel, target| {
                target[places.clone()].copy_from_slice(strip.channel(channel));
            },
        );
    }
}

/// Calls `work` for every channel with its share of `target`. The channels are shared among a few threads where `count`,
/// the values of one, says that this pays.
fn for_channels<T: Send>(
    target: &mut [T],
    channels: usize,
    count: usize,
    work: impl Fn(usize, &mut [T]) + Sync,
) {
    const PAYS_FROM_VALUES: usize = 1 << 18;
    const MAX_THREADS: usize = 4;
    let threads = if channels * count < PAYS_FROM_VALUES {
        1
    } else {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        cores.min(MAX_THREADS)
    };
    let size = (target.len() / channels.max(1)).max(1);
    let share = channels.div_ceil(threads).max(1);
    let run = |first: usize, part: &mut [T]| {
        for (at, values) in part.chunks_mut(size).enumerate() {
            work(first + at, values);
        }
    };
    std::thread::scope(|scope| {
        let mut parts = target.chunks_mut(share * size).enumerate();
        let own = parts.next();
        for (at, part) in parts {
            let run = &run;
            scope.spawn(move || run(at * share, part));
        }
        if let Some((_, part)) = own {
            run(0, part);
        }
    });
}

/// Some rows of what a graph gave.
pub(super) struct Strip<'v> {
    pub(super) values: &'v [f32],
    /// Channels, rows and width of `values`.
    pub(super) dims: [usize; 3],
    /// The rows that are meant.
    pub(super) rows: Range<usize>,
}

impl Strip<'_> {
    fn channel(&self, channel: usize) -> &[f32] {
        let [_, height, width] = self.dims;
        let begin = channel * height;
        &self.values[(begin + self.rows.start) * width..(begin + self.rows.end) * width]
    }
}

/// Sums over each group of channels. In float64, where sums of squares keep enough digits.
#[derive(Debug, Clone, Default)]
pub(super) struct Moments {
    sums: Vec<f64>,
    squares: Vec<f64>,
    /// Values a group.
    count: usize,
}

impl Moments {
    pub(super) fn of(plane: &Plane) -> Self {
        let mut moments = Self::default();
        moments.add(&Strip {
            values: &plane.values[..plane.count()],
            dims: [plane.channels, plane.height, plane.width],
            rows: 0..plane.height,
        });
        moments
    }

    /// Counts a strip in. What is not divisible into groups is no input of a norm.
    pub(super) fn add(&mut self, strip: &Strip<'_>) {
        let [channels, _, width] = strip.dims;
        if !channels.is_multiple_of(GROUPS) {
            return;
        }
        let size = channels / GROUPS;
        self.sums.resize(GROUPS, 0.0);
        self.squares.resize(GROUPS, 0.0);
        self.count += size * strip.rows.len() * width;
        let mut found = vec![(0.0, 0.0); channels];
        for_channels(
            &mut found,
            channels,
            strip.rows.len() * width,
            |channel, found| {
                found.fill(sums(strip.channel(channel)));
            },
        );
        for (channel, (sum, square)) in found.into_iter().enumerate() {
            self.sums[channel / size] += sum;
            self.squares[channel / size] += square;
        }
    }

    /// What a norm of so many channels takes.
    pub(super) fn norm(&self, channels: usize) -> Norm {
        let size = (channels / GROUPS).max(1);
        let of_group = |group: usize| {
            let sum = self.sums.get(group).copied().unwrap_or_default();
            let square = self.squares.get(group).copied().unwrap_or_default();
            let mean = sum / self.count as f64;
            let variance = (square / self.count as f64 - mean * mean).max(0.0);
            (mean as f32, (1.0 / (variance + EPS).sqrt()) as f32)
        };
        let shape = IxDyn(&[channels, 1, 1]);
        Norm {
            mean: ArrayD::from_shape_fn(shape.clone(), |at| of_group(at[0] / size).0),
            reciprocal: ArrayD::from_shape_fn(shape, |at| of_group(at[0] / size).1),
        }
    }
}

/// The sum of the values and that of their squares, in as many partial sums as a processor adds at once.
fn sums(values: &[f32]) -> (f64, f64) {
    const LANES: usize = 8;
    let (mut sum, mut square) = ([0.0_f64; LANES], [0.0_f64; LANES]);
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut add = |lane: usize, value: f32| {
        let value = f64::from(value);
        sum[lane] += value;
        square[lane] += value * value;
    };
    for chunk in chunks {
        for (lane, value) in chunk.iter().enumerate() {
            add(lane, *value);
        }
    }
    for (lane, value) in rest.iter().enumerate() {
        add(lane, *value);
    }
    (sum.iter().sum(), square.iter().sum())
}

/// Mean and reciprocal deviation of every channel's group, `[channels, 1, 1]`.
pub(super) struct Norm {
    pub(super) mean: ArrayD<f32>,
    pub(super) reciprocal: ArrayD<f32>,
}
