//! Decodes pictures whose activations do not fit into memory at once: the decoder runs on strips of rows.
//!
//! The result is that of the decoder in one piece but for rounding, since nothing is left out: the head,
//! with the attention, runs on the whole latent; behind it a strip is given the rows that its convolutions
//! look at beyond it, and every group normalisation gets mean and deviation of the whole picture, which a
//! sweep over all strips finds first. A block's first convolution is done twice and the enlarging one three
//! times for that, instead of keeping what they gave. What is kept is the input of a block, into which
//! its output is written where the sizes agree.
//!
//! A strip's session is made when its turn comes and let go after it: making it takes much less time than
//! a picture that needs strips, and no memory of it is held while others run.

use std::sync::Arc;

use ndarray::{Array1, Array3, Array4, ArrayD, ArrayView3, Axis, IxDyn, s};

use super::checkpoint::{LoadError, load_built};
use super::graphs::{
    BuildError, BuiltGraph, Edges, StripPart, Weights, decoder_head, streamed_blocks, strip_graph,
};
use super::networks::NetworkError;
use crate::runtime::{Graph, Runtime, Tensor, available_memory_bytes, give_back_free_memory};

/// Memory that the decoder in one piece takes for every value of its widest layer at the picture's full
/// size; measured with SD's VAE (docs/PERFORMANCE.md).
const WHOLE_COPIES: u64 = 4;
/// Strips take about eight tensors of this size.
const STRIP_BYTES: u64 = 64 << 20;
/// Rows of the shortest strip.
const MIN_ROWS: usize = 16;
const GROUPS: usize = 32;
const EPS: f64 = 1e-6;

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// The decoder of one VAE in pieces.
pub(super) struct StripDecoder {
    runtime: Runtime,
    weights: Weights,
    blocks: Vec<(Option<String>, String)>,
    /// Memory that a picture in one piece may take; `None`: what is free.
    limit_bytes: Option<u64>,
}

impl StripDecoder {
    /// `None` for a decoder that cannot be cut.
    pub(super) fn new(
        runtime: &Runtime,
        weights: &Weights,
        limit_bytes: Option<u64>,
    ) -> Option<Self> {
        Some(Self {
            blocks: streamed_blocks(weights)?,
            runtime: runtime.clone(),
            weights: weights.clone(),
            limit_bytes,
        })
    }

    /// The memory within which a latent `[b, c, h, w]` has to be decoded, where that in one piece would take
    /// more. `piece_bytes` is the limit where no flag gives one, beside what is free.
    pub(super) fn needed(&self, latent: &Array4<f32>, piece_bytes: Option<u64>) -> Option<u64> {
        let usual = || {
            piece_bytes
                .into_iter()
                .chain(available_memory_bytes())
                .min()
        };
        let allowed = self.limit_bytes.or_else(usual)?;
        (self.whole_bytes(latent) > allowed).then_some(allowed)
    }

    /// About what decoding in one piece takes.
    fn whole_bytes(&self, latent: &Array4<f32>) -> u64 {
        let (_, _, height, width) = latent.dim();
        let mut places = (height * width) as u64;
        let mut widest = 0;
        for (upsample, block) in &self.blocks {
            places *= if upsample.is_some() { 4 } else { 1 };
            let channels = self.weights.dim(&format!("{block}.conv1.weight"), 1);
            widest = widest.max(places * channels.unwrap_or(0) as u64);
        }
        WHOLE_COPIES * widest * size_of::<f32>() as u64
    }

    /// `latent [1, channels, h, w]`, divided by the scale factor, to `[1, 3, 8h, 8w]`.
    ///
    /// # Errors
    /// When a graph cannot be built, loaded or run.
    pub(super) fn decode(
        &self,
        latent: &Array4<f32>,
        allowed_bytes: u64,
    ) -> Result<Array4<f32>, Cause> {
        let strip_bytes = STRIP_BYTES.min(allowed_bytes / 16);
        tracing::debug!(blocks = self.blocks.len(), "decoding strip by strip");
        let head = self.load(decoder_head(&self.weights))?;
        let hidden = head
            .run(&[("latent_sample", latent.into())], &["hidden"])
            .map_err(NetworkError::from)?;
        drop(head);
        let mut plane = plane(hidden)?;
        let mut moments = Moments::of(plane.view());
        for (upsample, block) in &self.blocks {
            let upsample = upsample.as_deref();
            let hidden = StripPart::Hidden { upsample, block };
            let whole = StripPart::Block { upsample, block };
            if let Some(upsample) = upsample {
                let enlarged = StripPart::Enlarged { upsample };
                moments = self
                    .sweep(&mut plane, enlarged, &[], strip_bytes, Keep::Nothing)?
                    .1;
            }
            let first = self.norm(&moments, block, "norm1")?;
            let inner = self
                .sweep(
                    &mut plane,
                    hidden,
                    std::slice::from_ref(&first),
                    strip_bytes,
                    Keep::Nothing,
                )?
                .1;
            let second = self.norm(&inner, block, "norm2")?;
            let same_shape =
                upsample.is_none() && !self.weights.has(&format!("{block}.nin_shortcut.weight"));
            let keep = if same_shape { Keep::InPlace } else { Keep::New };
            let (made, after) =
                self.sweep(&mut plane, whole, &[first, second], strip_bytes, keep)?;
            if let Some(made) = made {
                plane = made;
                give_back_free_memory();
            }
            moments = after;
        }
        let last = self.norm(&moments, "decoder", "norm_out")?;
        let (picture, _) = self.sweep(
            &mut plane,
            StripPart::Picture,
            &[last],
            strip_bytes,
            Keep::New,
        )?;
        drop(plane);
        give_back_free_memory();
        let picture = picture.ok_or("a decoder without a picture")?;
        Ok(picture.insert_axis(Axis(0)))
    }

    fn load(&self, built: Result<BuiltGraph, BuildError>) -> Result<Arc<Graph>, LoadError> {
        Ok(load_built(
            &self.runtime,
            "VAE decoder",
            &built?,
            &self.weights,
        )?)
    }

    /// What a norm's inputs are, a value a channel.
    fn norm(&self, moments: &Moments, layer: &str, norm: &str) -> Result<Norm, LoadError> {
        let channels = self.weights.dim(&format!("{layer}.{norm}.weight"), 0)?;
        Ok(moments.norm(channels))
    }

    /// Runs `part` over all strips of `source` and answers the moments of what came out, which is kept as
    /// `keep` says.
    fn sweep(
        &self,
        source: &mut Array3<f32>,
        part: StripPart<'_>,
        norms: &[Norm],
        strip_bytes: u64,
        keep: Keep,
    ) -> Result<(Option<Array3<f32>>, Moments), Cause> {
        let graph = self.load(strip_graph(&self.weights, part))?;
        let names: Vec<[String; 2]> = (0..norms.len())
            .map(|n| [format!("mean.{n}"), format!("reciprocal.{n}")])
            .collect();
        let (channels, height, width) = source.dim();
        let (scale, out_height) = (part.scale(), height * part.scale());
        let row_bytes = (channels * width * scale * size_of::<f32>()) as u64;
        let rows = usize::try_from(strip_bytes / row_bytes.max(1)).unwrap_or(usize::MAX);
        // Even, so that strips of an enlarged picture begin where rows of its source do.
        let step = rows.max(MIN_ROWS).min(out_height).next_multiple_of(2);
        let mut moments = Moments::default();
        let mut made: Option<Array3<f32>> = None;
        // With `Keep::InPlace` a strip is written when the next one has read the rows that it overwrites.
        let mut pending: Option<(usize, Array3<f32>)> = None;
        for first in (0..out_height).step_by(step) {
            let window = Window::new(part, height, first..(first + step).min(out_height));
            let strip = source
                .slice(s![.., window.source.clone(), ..])
                .as_standard_layout()
                .into_owned()
                .insert_axis(Axis(0));
            if let Some((row, values)) = pending.take() {
                write_rows(source, row, values.view());
            }
            let mut feeds: Vec<(&str, Tensor<'_>)> =
                vec![("x", (&strip).into()), (Edges::PADS, (&window.pads).into())];
            if matches!(part, StripPart::Block { .. }) {
                feeds.push((Edges::FROM, (&window.shortcut[0]).into()));
                feeds.push((Edges::TO, (&window.shortcut[1]).into()));
            }
            for ([mean, reciprocal], norm) in names.iter().zip(norms) {
                feeds.push((mean, (&norm.mean).into()));
                feeds.push((reciprocal, (&norm.reciprocal).into()));
            }
            let out = graph.run(&feeds, &["out"]).map_err(NetworkError::from)?;
            let out = plane(out)?;
            let wanted = out.slice(s![.., window.wanted.clone(), ..]);
            moments.add(wanted);
            match keep {
                Keep::Nothing => {}
                Keep::New => {
                    let (channels, _, width) = wanted.dim();
                    let target =
                        made.get_or_insert_with(|| Array3::zeros((channels, out_height, width)));
                    write_rows(target, first, wanted);
                }
                Keep::InPlace => pending = Some((first, wanted.to_owned())),
            }
        }
        if let Some((row, values)) = pending {
            write_rows(source, row, values.view());
        }
        Ok((made, moments))
    }
}

/// What becomes of the strips that come out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keep {
    /// Only their moments are wanted.
    Nothing,
    /// They take the place of what they were made from.
    InPlace,
    New,
}

/// Which rows a strip reads, and where in its output the wanted ones are.
struct Window {
    source: std::ops::Range<usize>,
    wanted: std::ops::Range<usize>,
    pads: Array1<i64>,
    /// Rows of the block's input that its shortcut adds, from and to.
    shortcut: [Array1<i64>; 2],
}

impl Window {
    /// For the rows `out` of the output of `part` over a source of `height` rows.
    fn new(part: StripPart<'_>, height: usize, out: std::ops::Range<usize>) -> Self {
        let (reach, scale) = (part.reach(), part.scale());
        let from = out.start.saturating_sub(reach) / scale;
        let to = (out.end + reach).div_ceil(scale).min(height);
        let (top, bottom) = (from == 0, to == height);
        let pads = [0, 0, i64::from(top), 0, 0, 0, i64::from(bottom), 0];
        let begin = from * scale + if top { 0 } else { reach };
        Self {
            source: from..to,
            wanted: out.start - begin..out.end - begin,
            pads: Array1::from(pads.to_vec()),
            // A block loses two rows behind the enlargement.
            shortcut: [if top { 0 } else { 2 }, if bottom { i64::MAX } else { -2 }]
                .map(|row| Array1::from_elem(1, row)),
        }
    }
}

/// Sums over each group of channels. In float64, where sums of squares keep enough digits.
#[derive(Debug, Clone, Default)]
struct Moments {
    sums: Vec<f64>,
    squares: Vec<f64>,
    /// Values a group.
    count: usize,
}

impl Moments {
    fn of(rows: ArrayView3<'_, f32>) -> Self {
        let mut moments = Self::default();
        moments.add(rows);
        moments
    }

    /// Counts `[channels, rows, width]` in. What is not divisible into groups is no input of a norm.
    fn add(&mut self, rows: ArrayView3<'_, f32>) {
        let (channels, height, width) = rows.dim();
        if !channels.is_multiple_of(GROUPS) {
            return;
        }
        let size = channels / GROUPS;
        self.sums.resize(GROUPS, 0.0);
        self.squares.resize(GROUPS, 0.0);
        self.count += size * height * width;
        for (channel, values) in rows.axis_iter(Axis(0)).enumerate() {
            let group = channel / size;
            for row in values.rows() {
                let (mut sum, mut square) = (0.0, 0.0);
                for &value in row {
                    let value = f64::from(value);
                    sum += value;
                    square += value * value;
                }
                self.sums[group] += sum;
                self.squares[group] += square;
            }
        }
    }

    fn norm(&self, channels: usize) -> Norm {
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

/// Mean and reciprocal deviation of every channel's group, `[channels, 1, 1]`.
struct Norm {
    mean: ArrayD<f32>,
    reciprocal: ArrayD<f32>,
}

fn write_rows(target: &mut Array3<f32>, first: usize, rows: ArrayView3<'_, f32>) {
    let end = first + rows.dim().1;
    target.slice_mut(s![.., first..end, ..]).assign(&rows);
}

/// The first output, `[1, channels, h, w]`, without its batch.
fn plane(outputs: Vec<ArrayD<f32>>) -> Result<Array3<f32>, NetworkError> {
    let array = super::networks::shaped4(outputs)?;
    Ok(array.index_axis_move(Axis(0), 0))
}
