//! Decodes pictures without the memory that decoding in one piece takes: the decoder runs on strips of rows.
//!
//! The result is that of the decoder in one piece but for rounding, since nothing is left out: the head,
//! with the attention, runs on the whole latent; behind it a strip is given the rows that its convolutions
//! look at beyond it, and every group normalisation gets mean and deviation of the whole picture, which a
//! sweep over all strips finds first.
//!
//! A block's sweeps keep what its convolutions gave where there is memory for that: every convolution is done
//! once then, and what is kept at the same time is the block's input (enlarged) and what its first convolution
//! gave, into which the block's output is written. Elsewhere only the block's input is kept, into which the output
//! is written where the sizes agree: its first convolution is done twice then, and the enlarging one three times.
//!
//! A sweep's session is made when its turn comes and let go after it: no memory of it is held while others run.

use std::ops::Range;
use std::sync::Arc;

use ndarray::{Array1, Array4, ArrayView4};

use super::checkpoint::{LoadError, load_built};
use super::graphs::{
    BuildError, BuildOptions, BuiltGraph, StripInputs, StripPart, Weights, decoder_head,
    streamed_blocks, strip_graph,
};
use super::networks::NetworkError;
use super::vae_planes::{Moments, Norm, Plane, Strip};
use crate::runtime::{Graph, Runtime, Tensor, available_memory_bytes, give_back_free_memory};

/// Memory that the decoder in one piece takes for every value of its widest layer at the picture's full
/// size; measured with SD's VAE (docs/PERFORMANCE.md).
const WHOLE_COPIES: u64 = 4;
/// A strip of a sweep that keeps what it makes.
const KEPT_STRIP_BYTES: u64 = 8 << 20;
/// A strip of one that does not: neighbours both compute the rows at their border, so that they are larger.
const COMPUTED_STRIP_BYTES: u64 = 64 << 20;
/// Tensors of a strip's size that a sweep takes.
const STRIP_COPIES: u64 = 8;
/// Rows of the shortest strip.
const MIN_ROWS: usize = 16;

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// The decoder of one VAE in pieces.
pub(super) struct StripDecoder {
    runtime: Runtime,
    weights: Weights,
    blocks: Vec<StripBlock>,
    /// Memory that decoding a picture may take; `None`: what is free.
    limit_bytes: Option<u64>,
}

/// A residual block, with the convolution of the enlargement before it where there is one.
struct StripBlock {
    upsample: Option<String>,
    name: String,
    /// Channels before it.
    input: usize,
    /// Channels behind it, and behind its first convolution.
    output: usize,
}

/// How a picture is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DecodeWay {
    OnePiece,
    /// Strip by strip, within so much memory.
    Strips {
        allowed_bytes: u64,
    },
}

/// What decoding a picture may take.
#[derive(Debug, Clone, Copy, Default)]
struct Limits {
    /// A flag's; nothing else counts then.
    flag: Option<u64>,
    /// What one piece may take.
    piece: Option<u64>,
    /// What is free, where the system tells.
    free: Option<u64>,
}

impl Limits {
    /// The way of a picture that takes about so much in one piece.
    fn way(self, whole_bytes: u64) -> DecodeWay {
        let allowed_bytes = self.flag.or(self.free).unwrap_or(u64::MAX);
        let piece_bytes = match self.flag {
            Some(flag) => flag,
            None => self.piece.unwrap_or(u64::MAX).min(allowed_bytes),
        };
        if whole_bytes <= piece_bytes {
            DecodeWay::OnePiece
        } else {
            DecodeWay::Strips { allowed_bytes }
        }
    }
}

impl StripDecoder {
    /// `None` for a decoder that cannot be cut.
    pub(super) fn new(
        runtime: &Runtime,
        weights: &Weights,
        limit_bytes: Option<u64>,
    ) -> Option<Self> {
        let block = |(upsample, name): (Option<String>, String)| {
            let conv1 = format!("{name}.conv1.weight");
            Some(StripBlock {
                input: weights.dim(&conv1, 1).ok()?,
                output: weights.dim(&conv1, 0).ok()?,
                upsample,
                name,
            })
        };
        let blocks = streamed_blocks(weights)?.into_iter().map(block);
        Some(Self {
            blocks: blocks.collect::<Option<_>>()?,
            runtime: runtime.clone(),
            weights: weights.clone(),
            limit_bytes,
        })
    }

    /// How a latent `[b, c, h, w]` is decoded. `piece_bytes` is what one piece may take where no flag gives a limit,
    /// beside what is free.
    pub(super) fn way(&self, latent: &Array4<f32>, piece_bytes: Option<u64>) -> DecodeWay {
        let (_, _, height, width) = latent.dim();
        let limits = Limits {
            flag: self.limit_bytes,
            piece: piece_bytes,
            free: available_memory_bytes(),
        };
        limits.way(whole_bytes(&self.blocks, height * width))
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
        let head = self.load(decoder_head(&self.weights, self.options()))?;
        let hidden = head
            .run(&[("latent_sample", latent.into())], &["hidden"])
            .map_err(NetworkError::from)?;
        drop(head);
        let hidden = super::networks::shaped4(hidden)?;
        let (_, channels, height, width) = hidden.dim();
        let values: Vec<f32> = hidden.into_iter().collect();
        let plane = Plane::blank([channels, height, width], values);
        let mut state = State {
            moments: Moments::of(&plane),
            plane,
            memory: Memory::default(),
        };
        for block in &self.blocks {
            let strip_bytes =
                block.kept_strip_bytes(state.plane.height, state.plane.width, allowed_bytes);
            tracing::debug!(block = block.name, ?strip_bytes, "decoding strip by strip");
            state = match strip_bytes {
                Some(strip_bytes) => self.block_keeping(block, state, strip_bytes)?,
                None => self.block_computing(block, state, computed_strip_bytes(allowed_bytes))?,
            };
        }
        let last = self.norm(&state.moments, "decoder", "norm_out")?;
        let strip_bytes = computed_strip_bytes(allowed_bytes).min(KEPT_STRIP_BYTES);
        let sweep = Sweep {
            norms: &[last],
            ..Sweep::of(StripPart::Picture, strip_bytes)
        };
        let State {
            plane, mut memory, ..
        } = state;
        memory.plane = Vec::new();
        let (picture, _) = self.sweep_to_new(&sweep, &plane, &mut memory)?;
        drop((plane, memory));
        give_back_free_memory();
        let shape = (1, picture.channels, picture.height, picture.width);
        Ok(Array4::from_shape_vec(shape, picture.into_values())?)
    }

    /// A block of which every convolution is done once.
    fn block_keeping(
        &self,
        block: &StripBlock,
        state: State,
        strip_bytes: u64,
    ) -> Result<State, Cause> {
        let State {
            mut plane,
            mut moments,
            mut memory,
        } = state;
        let name = &block.name;
        let sweep = |part| Sweep::of(part, strip_bytes);
        if let Some(upsample) = &block.upsample {
            let enlarged = sweep(StripPart::Enlarged { upsample });
            let (made, its_moments) = self.sweep_to_new(&enlarged, &plane, &mut memory)?;
            memory.plane = std::mem::replace(&mut plane, made).into_memory();
            moments = its_moments;
        }
        let first = StripPart::Hidden {
            upsample: None,
            block: name,
        };
        let first = Sweep {
            norms: &[self.norm(&moments, name, "norm1")?],
            ..sweep(first)
        };
        let (mut hidden, inner) = self.sweep_to_new(&first, &plane, &mut memory)?;
        let rest = Sweep {
            norms: &[self.norm(&inner, name, "norm2")?],
            shortcut: Some(&plane),
            ..sweep(StripPart::Rest { block: name })
        };
        let moments = self.sweep_in_place(&rest, &mut hidden, &mut memory)?;
        memory.plane = plane.into_memory();
        Ok(State {
            plane: hidden,
            moments,
            memory,
        })
    }

    /// A block of which nothing is kept but its input, and its output in the end.
    fn block_computing(
        &self,
        block: &StripBlock,
        state: State,
        strip_bytes: u64,
    ) -> Result<State, Cause> {
        let State {
            mut plane,
            mut moments,
            mut memory,
        } = state;
        memory.plane = Vec::new();
        plane.shrink();
        let (upsample, name) = (block.upsample.as_deref(), block.name.as_str());
        let sweep = |part| Sweep::of(part, strip_bytes);
        if let Some(upsample) = upsample {
            let enlarged = sweep(StripPart::Enlarged { upsample });
            moments = self.sweep_for_moments(&enlarged, &plane, &mut memory)?;
        }
        let first = self.norm(&moments, name, "norm1")?;
        let hidden = Sweep {
            norms: std::slice::from_ref(&first),
            ..sweep(StripPart::Hidden {
                upsample,
                block: name,
            })
        };
        let inner = self.sweep_for_moments(&hidden, &plane, &mut memory)?;
        let whole = Sweep {
            norms: &[first, self.norm(&inner, name, "norm2")?],
            ..sweep(StripPart::Block {
                upsample,
                block: name,
            })
        };
        if upsample.is_none() && block.input == block.output {
            moments = self.sweep_in_place(&whole, &mut plane, &mut memory)?;
        } else {
            (plane, moments) = self.sweep_to_new(&whole, &plane, &mut memory)?;
            give_back_free_memory();
        }
        Ok(State {
            plane,
            moments,
            memory,
        })
    }

    /// Strips are computed in float32 whatever the whole decoder computes in.
    fn options(&self) -> BuildOptions {
        BuildOptions {
            matrix_unit: self.runtime.has_matrix_unit(),
            ..BuildOptions::default()
        }
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

    fn begin<'s>(
        &self,
        sweep: &'s Sweep<'s>,
        strips: &'s mut Strips,
    ) -> Result<Running<'s>, LoadError> {
        Ok(Running {
            graph: self.load(strip_graph(&self.weights, sweep.part, self.options()))?,
            sweep,
            strips,
            dims: [0; 3],
        })
    }

    /// Only the moments of what comes out are wanted.
    fn sweep_for_moments(
        &self,
        sweep: &Sweep<'_>,
        source: &Plane,
        memory: &mut Memory,
    ) -> Result<Moments, Cause> {
        let mut running = self.begin(sweep, &mut memory.strips)?;
        let mut moments = Moments::default();
        for window in sweep.windows(source) {
            running.take(source, &window, None);
            running.run(&window, |strip| moments.add(strip))?;
        }
        Ok(moments)
    }

    /// What comes out becomes a plane of its own.
    fn sweep_to_new(
        &self,
        sweep: &Sweep<'_>,
        source: &Plane,
        memory: &mut Memory,
    ) -> Result<(Plane, Moments), Cause> {
        let mut running = self.begin(sweep, &mut memory.strips)?;
        let mut moments = Moments::default();
        let mut made: Option<Plane> = None;
        let height = source.height * sweep.part.scale();
        for window in sweep.windows(source) {
            running.take(source, &window, None);
            running.run(&window, |strip| {
                let [channels, _, width] = strip.dims;
                let blank = || {
                    let memory = std::mem::take(&mut memory.plane);
                    Plane::blank([channels, height, width], memory)
                };
                moments.add(strip);
                made.get_or_insert_with(blank)
                    .write(window.out.start, strip);
            })?;
        }
        Ok((made.ok_or("a picture without rows")?, moments))
    }

    /// What comes out, of the source's shape, takes the source's place.
    fn sweep_in_place(
        &self,
        sweep: &Sweep<'_>,
        plane: &mut Plane,
        memory: &mut Memory,
    ) -> Result<Moments, Cause> {
        let mut running = self.begin(sweep, &mut memory.strips)?;
        let mut moments = Moments::default();
        // Rows that the next strip looks at and this one overwrites.
        let mut before: Option<Plane> = None;
        for window in sweep.windows(plane) {
            running.take(plane, &window, before.as_ref());
            let end = window.out.end;
            before = Some(plane.rows(end.saturating_sub(sweep.part.reach())..end));
            running.run(&window, |strip| {
                moments.add(strip);
                plane.write(window.out.start, strip);
            })?;
        }
        Ok(moments)
    }
}

/// What is known between two blocks.
struct State {
    plane: Plane,
    moments: Moments,
    memory: Memory,
}

/// Memory for what comes next.
#[derive(Default)]
struct Memory {
    /// That of a plane that nobody needs any more.
    plane: Vec<f32>,
    strips: Strips,
}

/// What a graph reads next.
#[derive(Default)]
struct Strips {
    /// `[channels, rows, width]`.
    source: Vec<f32>,
    shortcut: Vec<f32>,
}

impl StripBlock {
    /// Places for one before it.
    fn growth(&self) -> usize {
        if self.upsample.is_some() { 4 } else { 1 }
    }

    /// The size of strips for an input of so many rows and columns with which every convolution is done once. `None`:
    /// that takes more than is allowed.
    fn kept_strip_bytes(&self, height: usize, width: usize, allowed_bytes: u64) -> Option<u64> {
        let places = height * width;
        let input = bytes_of(self.input * places);
        let enlarged = input * self.growth() as u64;
        let hidden = bytes_of(self.output * places * self.growth());
        // The plane that was enlarged is let go of before there is another.
        let planes = enlarged + hidden.max(if self.upsample.is_some() { input } else { 0 });
        let left = allowed_bytes.checked_sub(planes)?;
        let scale = if self.upsample.is_some() { 2 } else { 1 };
        let shortest = bytes_of(self.input.max(self.output) * MIN_ROWS * width * scale);
        let strip_bytes = KEPT_STRIP_BYTES.max(shortest).min(left / STRIP_COPIES);
        (strip_bytes >= shortest).then_some(strip_bytes)
    }
}

/// About what decoding a latent of so many places in one piece takes.
fn whole_bytes(blocks: &[StripBlock], mut places: usize) -> u64 {
    let mut widest = 0;
    for block in blocks {
        places *= block.growth();
        widest = widest.max(bytes_of(block.input * places));
    }
    WHOLE_COPIES * widest
}

fn bytes_of(values: usize) -> u64 {
    (values * size_of::<f32>()) as u64
}

/// The size of strips that nothing but the block's input is kept beside.
fn computed_strip_bytes(allowed_bytes: u64) -> u64 {
    COMPUTED_STRIP_BYTES.min(allowed_bytes / (2 * STRIP_COPIES))
}

/// One part of the decoder over all strips.
struct Sweep<'s> {
    part: StripPart<'s>,
    norms: &'s [Norm],
    /// The block's input, where the part takes it beside what it runs over.
    shortcut: Option<&'s Plane>,
    strip_bytes: u64,
}

impl<'s> Sweep<'s> {
    /// One that takes no norms and no shortcut.
    fn of(part: StripPart<'s>, strip_bytes: u64) -> Self {
        Self {
            part,
            norms: &[],
            shortcut: None,
            strip_bytes,
        }
    }

    /// The strips of a source.
    fn windows(&self, source: &Plane) -> Vec<Window> {
        let (part, height) = (self.part, source.height);
        let out_height = height * part.scale();
        let row_bytes = bytes_of(source.channels * source.width * part.scale());
        let rows = usize::try_from(self.strip_bytes / row_bytes.max(1)).unwrap_or(usize::MAX);
        // Even, so that strips of an enlarged picture begin where rows of its source do.
        let step = rows.max(MIN_ROWS).min(out_height).next_multiple_of(2);
        (0..out_height)
            .step_by(step)
            .map(|first| Window::new(part, height, first..(first + step).min(out_height)))
            .collect()
    }
}

/// A sweep on its way.
struct Running<'s> {
    sweep: &'s Sweep<'s>,
    graph: Arc<Graph>,
    strips: &'s mut Strips,
    /// Channels, rows and width of the source's strip.
    dims: [usize; 3],
}

impl Running<'_> {
    /// Reads a strip; `before` are its first rows where `source` no longer has them.
    fn take(&mut self, source: &Plane, window: &Window, before: Option<&Plane>) {
        source.read(window.source.clone(), before, &mut self.strips.source);
        self.dims = [source.channels, window.source.len(), source.width];
    }

    /// Runs the part on what was read last, and shows what came out.
    fn run(&mut self, window: &Window, mut see: impl FnMut(&Strip<'_>)) -> Result<(), Cause> {
        let x = strip_tensor(&self.strips.source, self.dims)?;
        let pads = &window.pads;
        let mut feeds: Vec<(&str, Tensor<'_>)> = vec![("x", x), (StripInputs::PADS, pads.into())];
        if matches!(self.sweep.part, StripPart::Block { .. }) {
            feeds.push((StripInputs::FROM, (&window.shortcut[0]).into()));
            feeds.push((StripInputs::TO, (&window.shortcut[1]).into()));
        }
        if let Some(plane) = self.sweep.shortcut {
            plane.read(window.out.clone(), None, &mut self.strips.shortcut);
            let dims = [plane.channels, window.out.len(), plane.width];
            feeds.push((
                StripInputs::SHORTCUT,
                strip_tensor(&self.strips.shortcut, dims)?,
            ));
        }
        let names: Vec<[String; 2]> = (0..self.sweep.norms.len())
            .map(|n| [format!("mean.{n}"), format!("reciprocal.{n}")])
            .collect();
        for ([mean, reciprocal], norm) in names.iter().zip(self.sweep.norms) {
            feeds.push((mean, (&norm.mean).into()));
            feeds.push((reciprocal, (&norm.reciprocal).into()));
        }
        let seen = self.graph.run_and_read(&feeds, &["out"], |outputs| {
            let out = outputs.first()?;
            let &[1, channels, rows, width] = out.shape() else {
                return None;
            };
            see(&Strip {
                values: out.as_slice()?,
                dims: [channels, rows, width],
                rows: window.wanted.clone(),
            });
            Some(())
        });
        seen.map_err(NetworkError::from)?
            .ok_or("a strip of another shape")?;
        Ok(())
    }
}

fn strip_tensor(values: &[f32], [channels, rows, width]: [usize; 3]) -> Result<Tensor<'_>, Cause> {
    let view = ArrayView4::from_shape((1, channels, rows, width), values)?;
    Ok(Tensor::Float(view.into_dyn().into()))
}

/// Which rows a strip reads, and where in its output the wanted ones are.
struct Window {
    source: Range<usize>,
    /// The rows of the whole output that are wanted of it.
    out: Range<usize>,
    /// Where these are in what comes out.
    wanted: Range<usize>,
    pads: Array1<i64>,
    /// Rows of the block's input that its shortcut adds, from and to.
    shortcut: [Array1<i64>; 2],
}

impl Window {
    /// For the rows `out` of the output of `part` over a source of `height` rows.
    fn new(part: StripPart<'_>, height: usize, out: Range<usize>) -> Self {
        let (reach, scale) = (part.reach(), part.scale());
        let from = out.start.saturating_sub(reach) / scale;
        let to = (out.end + reach).div_ceil(scale).min(height);
        let (top, bottom) = (from == 0, to == height);
        let pads = [0, 0, i64::from(top), 0, 0, 0, i64::from(bottom), 0];
        let begin = from * scale + if top { 0 } else { reach };
        Self {
            source: from..to,
            wanted: out.start - begin..out.end - begin,
            out,
            pads: Array1::from(pads.to_vec()),
            // A block loses two rows behind the enlargement.
            shortcut: [if top { 0 } else { 2 }, if bottom { i64::MAX } else { -2 }]
                .map(|row| Array1::from_elem(1, row)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn block(input: usize, output: usize, is_enlarged: bool) -> StripBlock {
        StripBlock {
            upsample: is_enlarged.then(String::new),
            name: String::new(),
            input,
            output,
        }
    }

    /// Those of the VAE of SD 1.x, SD 2.x and SDXL behind its head.
    fn blocks() -> Vec<StripBlock> {
        let level = |input, output| {
            let same = || block(output, output, false);
            [block(input, output, true), same(), same()]
        };
        [level(512, 512), level(512, 256), level(256, 128)]
            .into_iter()
            .flatten()
            .collect()
    }

    #[test]
    fn a_picture_is_decoded_in_one_piece_where_that_fits() {
        let whole = whole_bytes(&blocks(), 64 * 64);
        assert_eq!(whole, 1024 * MIB);
        let way = |flag, piece, free| {
            let limits = Limits { flag, piece, free };
            match limits.way(whole) {
                DecodeWay::OnePiece => None,
                DecodeWay::Strips { allowed_bytes } => Some(allowed_bytes),
            }
        };
        assert_eq!(way(None, None, None), None);
        assert_eq!(way(None, None, Some(whole)), None);
        assert_eq!(way(None, None, Some(whole - 1)), Some(whole - 1));
        // A bound for one piece bounds no strips.
        assert_eq!(way(None, Some(whole), Some(8 * whole)), None);
        assert_eq!(way(None, Some(7), Some(8 * whole)), Some(8 * whole));
        assert_eq!(way(None, Some(7), None), Some(u64::MAX));
        // A flag counts alone.
        assert_eq!(way(Some(whole), Some(7), Some(7)), None);
        assert_eq!(way(Some(7), Some(whole), Some(whole)), Some(7));
    }

    #[test]
    fn a_block_keeps_what_its_convolutions_give_where_that_fits() {
        let blocks = blocks();
        // The enlarged input of the widest block is 256 MiB at 512x512, what its first convolution gives 128.
        let widest = |allowed| blocks[6].kept_strip_bytes(256, 256, allowed * MIB);
        assert_eq!(widest(1 << 20), Some(KEPT_STRIP_BYTES));
        // 16 rows are 8 MiB.
        assert_eq!(widest(448), Some(8 * MIB));
        assert_eq!(widest(447), None);
        assert_eq!(widest(0), None);
        let last = |allowed| blocks[8].kept_strip_bytes(512, 512, allowed * MIB);
        assert_eq!(last(320), Some(8 * MIB));
        assert_eq!(last(304), Some(6 * MIB));
        assert_eq!(last(287), None);
        // Of wide pictures 16 rows are more than the usual strip.
        let wide = |allowed| blocks[6].kept_strip_bytes(256, 1024, allowed * MIB);
        assert_eq!(wide(1792), Some(32 * MIB));
        assert_eq!(wide(1791), None);
    }
}
