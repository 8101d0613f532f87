//! Sessions behind the traits of the rooms below. The same types serve graphs that were built here
//! and graphs that others exported: what a graph lacks is told from its inputs and outputs, and
//! answered with an error only when a request needs it.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use ndarray::{Array1, Array2, Array3, Array4, ArrayD, Axis, Ix2, Ix3, Ix4, concatenate, s};
use parking_lot::Mutex;

use super::denoise::{Backend, DenoiseService, Seat, Setting, Sharing, SharingRule};
use super::graphs::{MERGE_COUNT, MERGE_SOURCES, MERGE_TARGETS, TokenMerge};
use super::row_pieces::{RowPieces, rows_of};
use super::vae_strips::{DecodeWay, StripDecoder};
use crate::conditioning::{EncodedText, HiddenState, TextEncoder, TokenBatch};
use crate::pipeline::{OutOfMemory, Posterior, Vae};
use crate::runtime::{Graph, Invocation, RunStop, RuntimeError, Tensor};
use crate::sampling::{Unet, UnetInput};

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why a network cannot do what a request needs.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(
        "this exported UNet takes whole timesteps only, {timestep} was asked for; use a sampler and scheduler that stay on them, or the checkpoint file"
    )]
    WholeTimesteps { timestep: f32 },
    #[error("this exported UNet cannot take {what}")]
    UnetInput { what: &'static str },
    #[error(
        "this exported text encoder gives no hidden state {from_end} from the end; clip skip needs the checkpoint file or an export with clip_skip_states"
    )]
    HiddenState { from_end: usize },
    #[error("this exported text encoder cannot take textual inversions")]
    Overrides,
    #[error("this exported text encoder takes {wanted} tokens, {given} were given")]
    TokenCount { wanted: usize, given: usize },
    #[error(
        "token merging needs at least 16 pixels a side; set token_merging_ratio to 0 for this size"
    )]
    TooSmallToMerge,
    #[error("a graph gave an output of an unexpected shape {shape:?}")]
    OutputShape { shape: Vec<usize> },
}

/// The error as the pipeline knows it.
fn told(error: impl Into<NetworkError>) -> Cause {
    match error.into() {
        NetworkError::Runtime(error @ RuntimeError::OutOfMemory { .. }) => {
            Box::new(OutOfMemory(error.to_string()))
        }
        error => Box::new(error),
    }
}

/// A network in half precision can overflow; this is what it is computed with then.
#[derive(Clone)]
pub struct InFloat {
    part: &'static str,
    graph: Arc<LazyGraph>,
    /// It was needed once: half precision is not tried again.
    needed: Arc<AtomicBool>,
}

impl InFloat {
    /// The same network in float32, loaded when it is needed.
    #[must_use]
    pub fn new(part: &'static str, graph: LazyGraph) -> Self {
        Self {
            part,
            graph: Arc::new(graph),
            needed: Arc::default(),
        }
    }

    fn is_needed(&self) -> bool {
        self.needed.load(Ordering::Relaxed)
    }
}

/// What `half` answers, or `float`, where there is one and `half` answered something that is no number.
fn run_or_upcast(
    half: &Graph,
    float: Option<&InFloat>,
    feeds: &Invocation<'_>,
    wanted: &[&str],
    stop: &RunStop,
) -> Result<Vec<ArrayD<f32>>, RuntimeError> {
    let Some(float) = float else {
        return half.run_until_stopped(feeds, wanted, stop);
    };
    if !float.is_needed() {
        let outputs = half.run_until_stopped(feeds, wanted, stop)?;
        if outputs.iter().flatten().all(|value| value.is_finite()) {
            return Ok(outputs);
        }
        // A1111's own words, but for the part.
        tracing::warn!(
            "A tensor with NaNs was produced in {}; it is computed in 32-bit float from now on. To start with \
             that, use the --no-half commandline flag (--no-half-vae for the VAE alone).",
            float.part
        );
        float.needed.store(true, Ordering::Relaxed);
    }
    float.graph.get()?.run_until_stopped(feeds, wanted, stop)
}

/// How the graph wants its timestep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TimestepForm {
    /// One value a row.
    Rows,
    /// One value for all rows, as a vector of one or a scalar.
    Single { scalar: bool },
}

/// How the graph wants SDXL's vector conditioning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum VectorForm {
    None,
    /// sgm's `y`.
    Whole,
    /// diffusers' `text_embeds` and `time_ids`.
    Parts {
        text_width: usize,
    },
}

/// The values of a session's adapter inputs, the same object for equal values in use.
#[derive(Debug)]
struct NetworkInputs {
    values: Vec<(String, ArrayD<f32>)>,
    /// A hash of names and shapes.
    shape: u64,
}

impl NetworkInputs {
    fn new(values: Vec<(String, ArrayD<f32>)>) -> Self {
        let mut hasher = DefaultHasher::new();
        for (name, array) in &values {
            (name, array.shape()).hash(&mut hasher);
        }
        Self {
            shape: hasher.finish(),
            values,
        }
    }
}

/// What a UNet call takes beside its rows.
#[derive(Clone)]
struct UnetSetting {
    graph: Arc<Graph>,
    networks: Arc<NetworkInputs>,
    /// Share of the tokens that are merged, where the graph has token merging.
    merge_ratio: Option<f64>,
    in_float: Option<InFloat>,
}

impl Setting for UnetSetting {
    fn agrees(&self, other: &Self) -> bool {
        let same_float = match (&self.in_float, &other.in_float) {
            (Some(one), Some(other)) => Arc::ptr_eq(&one.graph, &other.graph),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        same_float
            && Arc::ptr_eq(&self.networks, &other.networks)
            && self.merge_ratio.map(f64::to_bits) == other.merge_ratio.map(f64::to_bits)
    }

    fn shape(&self) -> u64 {
        let in_float = self.in_float.as_ref().is_some_and(InFloat::is_needed);
        let mut hasher = DefaultHasher::new();
        let merge_ratio = self.merge_ratio.map(f64::to_bits);
        // Another session may compute the same call to other bits.
        let computation = (in_float, self.graph.is_quick());
        (self.networks.shape, merge_ratio, computation).hash(&mut hasher);
        hasher.finish()
    }
}

/// A UNet's graph and the form of its inputs.
struct UnetSession {
    graph: Arc<Graph>,
    timestep: TimestepForm,
    whole_timesteps: bool,
    vector: VectorForm,
    channels: usize,
    context_width: usize,
    /// The adapter inputs in use.
    networks: Mutex<Vec<Weak<NetworkInputs>>>,
    /// `None`: it takes a fixed number of rows.
    pieces: Option<RowPieces>,
}

/// One job's place at a UNet session, with the networks of the job.
pub struct GraphUnet {
    seat: Seat<UnetSession>,
    setting: UnetSetting,
}

/// How much of calls of different jobs is one run; see [`GraphUnet::shared`].
#[derive(Debug, Clone, Copy, Default)]
pub struct RunSharing {
    /// Latent pixels of all rows of a shared run; `None`: what suits the execution provider.
    pub latent_pixels: Option<usize>,
}

/// Latent pixels of a shared run on a CPU: eight rows of 512x512. Larger runs were no faster
/// (docs/PERFORMANCE.md).
const CPU_LATENT_PIXELS: usize = 8 * 64 * 64;

/// ... on a GPU: 16 rows of 512x512.
const GPU_LATENT_PIXELS: usize = 16 * 64 * 64;

impl GraphUnet {
    /// [`Self::shared`] with what suits the execution provider.
    ///
    /// # Errors
    /// As [`Self::shared`].
    pub fn new(graph: Arc<Graph>) -> Result<Self, RuntimeError> {
        Self::shared(graph, RunSharing::default())
    }

    /// Reads the graph's form off its inputs. Clones for jobs share the session by `sharing`.
    ///
    /// # Errors
    /// When it lacks `sample`, `timestep`, `encoder_hidden_states` or `out_sample`.
    pub fn shared(graph: Arc<Graph>, sharing: RunSharing) -> Result<Self, RuntimeError> {
        let lacks = |what: &str| RuntimeError::Contract {
            graph: "UNet".to_owned(),
            what: what.to_owned(),
        };
        let input = |name: &str| graph.input(name).ok_or_else(|| lacks(name));
        let (sample, time) = (input("sample")?, input("timestep")?);
        let context = input("encoder_hidden_states")?;
        graph
            .output("out_sample")
            .ok_or_else(|| lacks("output out_sample"))?;
        let timestep = match time.dims.as_slice() {
            [] => TimestepForm::Single { scalar: true },
            [Some(1)] => TimestepForm::Single { scalar: false },
            _ => TimestepForm::Rows,
        };
        let text = graph.input("text_embeds");
        let vector = match (&text, graph.input("y")) {
            (_, Some(_)) => VectorForm::Whole,
            (Some(text), None) => VectorForm::Parts {
                text_width: text.dims.get(1).copied().flatten().unwrap_or(1280),
            },
            (None, None) => VectorForm::None,
        };
        let merge_ratio = graph.input(MERGE_COUNT).map(|_| 0.0);
        let on_cpu = !graph.is_on_gpu();
        let rule = SharingRule {
            sharing: match (sample.dims.first(), timestep) {
                (Some(None), TimestepForm::Rows) if on_cpu => Sharing::OnceProven,
                (Some(None), TimestepForm::Rows) => Sharing::Always,
                // The graph takes a fixed number of rows, or one timestep for all.
                _ => Sharing::Never,
            },
            latent_pixels: sharing.latent_pixels.unwrap_or(if on_cpu {
                CPU_LATENT_PIXELS
            } else {
                GPU_LATENT_PIXELS
            }),
        };
        let session = UnetSession {
            timestep,
            whole_timesteps: time.is_integer,
            vector,
            channels: sample.dims.get(1).copied().flatten().unwrap_or(4),
            context_width: context.dims.get(2).copied().flatten().unwrap_or(0),
            networks: Mutex::default(),
            pieces: (sample.dims.first() == Some(&None)).then(RowPieces::default),
            graph: Arc::clone(&graph),
        };
        let networks = session.networks(Vec::new());
        Ok(Self {
            seat: DenoiseService::new(session, rule).seat(),
            setting: UnetSetting {
                graph,
                networks,
                merge_ratio,
                in_float: None,
            },
        })
    }

    /// The same with what it is computed with where half precision overflows.
    #[must_use]
    pub fn with_float(mut self, in_float: Option<InFloat>) -> Self {
        self.setting.in_float = in_float;
        self
    }

    /// A place of its own at the same session with another share of merged tokens; without effect on
    /// a graph that was built without token merging.
    #[must_use]
    pub fn with_merge_ratio(&self, ratio: f64) -> Self {
        Self {
            seat: self.service().seat(),
            setting: UnetSetting {
                merge_ratio: self.setting.merge_ratio.map(|_| ratio),
                ..self.setting.clone()
            },
        }
    }

    /// A place of its own at the same session with values for its adapter inputs.
    #[must_use]
    pub fn with_networks(&self, networks: Vec<(String, ArrayD<f32>)>) -> Self {
        Self {
            seat: self.service().seat(),
            setting: UnetSetting {
                networks: self.session().networks(networks),
                ..self.setting.clone()
            },
        }
    }

    /// Gives back the memory that large pictures left in the session.
    pub(super) fn shrink(&self) {
        shrink(self.graph(), 2);
    }

    /// The session, for what goes beyond a call.
    pub(super) fn graph(&self) -> &Arc<Graph> {
        &self.session().graph
    }

    fn service(&self) -> &Arc<DenoiseService<UnetSession>> {
        self.seat.service()
    }

    fn session(&self) -> &UnetSession {
        self.service().backend()
    }

    /// Whether somebody beside this place has one at the session.
    pub(super) fn is_in_use(&self) -> bool {
        Arc::strong_count(self.service()) > 1
    }

    /// Channels of the input: 4, 9 for inpainting, 8 for instruct-pix2pix.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.session().channels
    }

    /// Width of the text conditioning.
    #[must_use]
    pub fn context_width(&self) -> usize {
        self.session().context_width
    }
}

impl UnetSession {
    /// These values, or equal ones that are in use: only calls with the same object share a run.
    fn networks(&self, values: Vec<(String, ArrayD<f32>)>) -> Arc<NetworkInputs> {
        let mut in_use = self.networks.lock();
        in_use.retain(|networks| networks.strong_count() > 0);
        let known = in_use.iter().filter_map(Weak::upgrade);
        if let Some(known) = known.into_iter().find(|known| known.values == values) {
            return known;
        }
        let networks = Arc::new(NetworkInputs::new(values));
        in_use.push(Arc::downgrade(&networks));
        networks
    }

    fn rows(
        &self,
        input: &UnetInput,
        setting: &UnetSetting,
        stop: &RunStop,
    ) -> Result<Array4<f32>, NetworkError> {
        if self.whole_timesteps
            && let Some(&timestep) = input.timestep.iter().find(|t| t.fract() != 0.0)
        {
            return Err(NetworkError::WholeTimesteps { timestep });
        }
        let timestep: ArrayD<f32> = match self.timestep {
            TimestepForm::Rows => Array1::from(input.timestep.clone()).into_dyn(),
            TimestepForm::Single { scalar: false } => {
                Array1::from_elem(1, input.timestep[0]).into_dyn()
            }
            TimestepForm::Single { scalar: true } => ndarray::arr0(input.timestep[0]).into_dyn(),
        };
        let mut feeds: Vec<(&str, Tensor<'_>)> = vec![
            ("sample", (&input.sample).into()),
            ("timestep", timestep.into()),
            ("encoder_hidden_states", (&input.context).into()),
        ];
        match (self.vector, &input.vector) {
            (VectorForm::None, _) => {}
            (VectorForm::Whole, Some(vector)) => feeds.push(("y", vector.into())),
            (VectorForm::Parts { text_width }, Some(vector)) => {
                let (text, sizes) = split_vector(vector, text_width)?;
                feeds.push(("text_embeds", text.into()));
                feeds.push(("time_ids", sizes.into()));
            }
            (VectorForm::Whole | VectorForm::Parts { .. }, None) => {
                return Err(NetworkError::UnetInput {
                    what: "a request without the vector conditioning of SDXL",
                });
            }
        }
        for (name, values) in &setting.networks.values {
            feeds.push((name, values.into()));
        }
        if let Some(ratio) = setting.merge_ratio {
            let (_, _, height, width) = input.sample.dim();
            let merge =
                TokenMerge::new(height, width, ratio).ok_or(NetworkError::TooSmallToMerge)?;
            feeds.extend([
                (MERGE_SOURCES, Array1::from(merge.sources).into()),
                (MERGE_TARGETS, Array1::from(merge.targets).into()),
                (MERGE_COUNT, Array1::from_elem(1, merge.count).into()),
            ]);
        }
        let wanted = ["out_sample"];
        let in_float = setting.in_float.as_ref();
        let out = run_or_upcast(&self.graph, in_float, &feeds, &wanted, stop)?;
        shaped4(out)
    }
}

impl Backend for UnetSession {
    type Setting = UnetSetting;
    type Run = RunStop;

    fn prepare(&self) -> RunStop {
        RunStop::new()
    }

    fn run(
        &self,
        input: &UnetInput,
        setting: &UnetSetting,
        stop: &RunStop,
    ) -> Result<Array4<f32>, Cause> {
        let same = input
            .timestep
            .windows(2)
            .all(|pair| pair[0].to_bits() == pair[1].to_bits());
        if self.timestep == TimestepForm::Rows || same {
            let run = |input: &UnetInput| self.rows(input, setting, stop);
            let answer = match &self.pieces {
                Some(pieces) => pieces.run(input, setting.shape(), run),
                None => run(input),
            };
            return answer.map_err(told);
        }
        let rows: Vec<Array4<f32>> = (0..input.timestep.len())
            .map(|row| self.rows(&rows_of(input, row..row + 1), setting, stop))
            .collect::<Result<_, _>>()
            .map_err(told)?;
        let views: Vec<_> = rows.iter().map(|rows| rows.view()).collect();
        Ok(concatenate(Axis(0), &views)?)
    }

    fn stop(stop: &RunStop) {
        stop.stop();
    }
}

impl Unet for GraphUnet {
    fn predict(&self, input: &UnetInput) -> Result<Array4<f32>, Cause> {
        self.seat.call(input, &self.setting)
    }

    fn terminate(&self) {
        self.seat.withdraw();
    }
}

fn shrink(graph: &Graph, free: usize) {
    if let Err(error) = graph.shrink(free) {
        tracing::debug!(%error, "its memory is not given back");
    }
}

/// sgm's vector is the pooled text and then `[cos, sin]` embeddings of the sizes. A diffusers graph
/// embeds the sizes itself, so they are read back from the slowest pair of every embedding, whose
/// angle stays below a quarter turn up to sizes of 8192.
fn split_vector(
    vector: &Array2<f32>,
    text_width: usize,
) -> Result<(Array2<f32>, Array2<f32>), NetworkError> {
    let size_count =
        if vector.ncols() > text_width && (vector.ncols() - text_width).is_multiple_of(6) {
            6
        } else {
            5
        };
    let rest = vector.ncols().saturating_sub(text_width);
    if rest == 0 || !rest.is_multiple_of(2 * size_count) {
        return Err(NetworkError::UnetInput {
            what: "a vector conditioning of this width",
        });
    }
    let (width, half) = (rest / size_count, rest / size_count / 2);
    let slowest = (-(10000_f64.ln()) * (half - 1) as f64 / half as f64).exp();
    let sizes = Array2::from_shape_fn((vector.nrows(), size_count), |(row, size)| {
        let first = text_width + size * width;
        let cos = f64::from(vector[[row, first + half - 1]]);
        let sin = f64::from(vector[[row, first + width - 1]]);
        (sin.atan2(cos) / slowest).round() as f32
    });
    Ok((vector.slice(s![.., ..text_width]).to_owned(), sizes))
}

/// A text tower session.
pub struct GraphTextEncoder {
    graph: Arc<Graph>,
    width: usize,
    /// Layers at the end of the original tower that the graph does not have.
    dropped_layers: usize,
    networks: Vec<(String, ArrayD<f32>)>,
}

impl GraphTextEncoder {
    /// Reads the graph's form off its inputs and outputs.
    ///
    /// # Errors
    /// When it lacks `input_ids` or `last_hidden_state`.
    pub fn new(graph: Arc<Graph>, dropped_layers: usize) -> Result<Self, RuntimeError> {
        let lacks = |what: &str| RuntimeError::Contract {
            graph: "text encoder".to_owned(),
            what: what.to_owned(),
        };
        graph
            .input("input_ids")
            .ok_or_else(|| lacks("input input_ids"))?;
        let state = ["last_hidden_state", "hidden_states"]
            .iter()
            .find_map(|name| graph.output(name))
            .ok_or_else(|| lacks("output last_hidden_state"))?;
        let width = state.dims.last().copied().flatten().unwrap_or(768);
        Ok(Self {
            graph,
            width,
            dropped_layers,
            networks: Vec::new(),
        })
    }

    /// The same session with values for its adapter inputs.
    #[must_use]
    pub fn with_networks(&self, networks: Vec<(String, ArrayD<f32>)>) -> Self {
        Self {
            graph: Arc::clone(&self.graph),
            networks,
            ..*self
        }
    }

    /// Whether something beside this object uses the session.
    pub(super) fn is_in_use(&self) -> bool {
        Arc::strong_count(&self.graph) > 1
    }

    /// Whether the session is there.
    pub(super) fn is_loaded(&self) -> bool {
        self.graph.is_loaded()
    }

    /// Lets go of the session where it is made again when it is needed.
    pub(super) fn release(&self) {
        self.graph.release();
    }

    fn run(&self, batch: &TokenBatch, wanted: &[&str]) -> Result<Vec<ArrayD<f32>>, NetworkError> {
        let (rows, length) = batch.ids.dim();
        if let Some(Some(fixed)) = self
            .graph
            .input("input_ids")
            .and_then(|input| input.dims.get(1).copied())
            && fixed != length
        {
            return Err(NetworkError::TokenCount {
                wanted: fixed,
                given: length,
            });
        }
        let mut feeds: Vec<(&str, Tensor<'_>)> = vec![("input_ids", (&batch.ids).into())];
        if !batch.overrides.is_empty() {
            if self.graph.input("token_embedding_override").is_none() {
                return Err(NetworkError::Overrides);
            }
            let mut keep = Array3::<f32>::ones((rows, length, 1));
            let mut vectors = Array3::<f32>::zeros((rows, length, self.width));
            for entry in &batch.overrides {
                keep[[entry.row, entry.position, 0]] = 0.0;
                vectors
                    .slice_mut(s![entry.row, entry.position, ..])
                    .assign(&entry.vector);
            }
            feeds.push(("token_embedding_keep", keep.into()));
            feeds.push(("token_embedding_override", vectors.into()));
        }
        for (name, values) in &self.networks {
            feeds.push((name, values.into()));
        }
        Ok(self.graph.run(&feeds, wanted)?)
    }

    /// The output that holds a state, and the index along its first axis if it is a stack.
    fn output_for(&self, state: HiddenState) -> Result<(String, Option<usize>), NetworkError> {
        let (from_end, normalised) = match state {
            HiddenState::Normalised { from_end } => (from_end, true),
            HiddenState::Raw { from_end } => (from_end, false),
        };
        let lacking = || NetworkError::HiddenState { from_end };
        let k = from_end
            .checked_sub(self.dropped_layers)
            .filter(|k| *k > 0)
            .ok_or_else(lacking)?;
        if normalised && k == 1 && self.graph.output("last_hidden_state").is_some() {
            return Ok(("last_hidden_state".to_owned(), None));
        }
        let name = if normalised {
            "clip_skip_states"
        } else {
            "hidden_states"
        };
        if let Some(stack) = self.graph.output(name) {
            let count = stack.dims.first().copied().flatten().unwrap_or(usize::MAX);
            if k >= count {
                return Err(lacking());
            }
            return Ok((
                name.to_owned(),
                Some(if normalised { k } else { count - k }),
            ));
        }
        // optimum gives one output a state: hidden_states.0 is the embedding.
        let count = self
            .graph
            .output_names()
            .filter(|output| output.starts_with("hidden_states."))
            .count();
        if normalised || count <= k {
            return Err(lacking());
        }
        Ok((format!("hidden_states.{}", count - k), None))
    }
}

impl TextEncoder for GraphTextEncoder {
    fn encode(&self, batch: &TokenBatch, state: HiddenState) -> Result<EncodedText, Cause> {
        let (output, index) = self.output_for(state).map_err(told)?;
        let has_projection = self.graph.output("text_embeds").is_some();
        let wanted: &[&str] = if has_projection {
            &[&output, "text_embeds"]
        } else {
            &[&output]
        };
        let mut outputs = self.run(batch, wanted).map_err(told)?.into_iter();
        let states = outputs.next().ok_or("no output")?;
        let states = match index {
            Some(index) => states.index_axis_move(Axis(0), index),
            None => states,
        };
        let hidden = states
            .into_dimensionality::<Ix3>()?
            .as_standard_layout()
            .into_owned();
        let pooled = outputs
            .next()
            .map(ArrayD::into_dimensionality::<Ix2>)
            .transpose()?;
        Ok(EncodedText { hidden, pooled })
    }

    fn width(&self) -> usize {
        self.width
    }
}

type LoadGraph = Box<dyn Fn() -> Result<Arc<Graph>, RuntimeError> + Send + Sync>;

/// A session that is made when it is first used.
pub struct LazyGraph {
    graph: Mutex<Option<Arc<Graph>>>,
    load: LoadGraph,
}

impl LazyGraph {
    pub fn new(
        load: impl Fn() -> Result<Arc<Graph>, RuntimeError> + Send + Sync + 'static,
    ) -> Self {
        Self {
            graph: Mutex::default(),
            load: Box::new(load),
        }
    }

    /// One that is there already.
    #[must_use]
    pub fn loaded(graph: Arc<Graph>) -> Self {
        Self::new(move || Ok(Arc::clone(&graph)))
    }

    /// The session.
    ///
    /// # Errors
    /// When it cannot be made; the next call tries again.
    fn get(&self) -> Result<Arc<Graph>, RuntimeError> {
        let mut graph = self.graph.lock();
        if let Some(graph) = &*graph {
            return Ok(Arc::clone(graph));
        }
        let loaded = (self.load)()?;
        *graph = Some(Arc::clone(&loaded));
        Ok(loaded)
    }

    /// The session, if it was made and is not being made.
    fn if_loaded(&self) -> Option<Arc<Graph>> {
        self.graph.try_lock()?.clone()
    }
}

/// A VAE's two sessions, and its decoder in strips where it can be cut.
#[derive(Clone)]
pub struct GraphVae {
    encoder: Arc<LazyGraph>,
    decoder: Arc<LazyGraph>,
    strips: Option<Arc<StripDecoder>>,
    /// Both again for where half precision overflows: encoder, decoder.
    in_float: Option<[InFloat; 2]>,
}

impl GraphVae {
    #[must_use]
    pub fn new(encoder: LazyGraph, decoder: LazyGraph) -> Self {
        Self {
            encoder: Arc::new(encoder),
            decoder: Arc::new(decoder),
            strips: None,
            in_float: None,
        }
    }

    /// The same with another way for pictures that do not fit into memory in one piece.
    #[must_use]
    pub(super) fn with_strips(mut self, strips: Option<StripDecoder>) -> Self {
        self.strips = strips.map(Arc::new);
        self
    }

    /// The same with what it is computed with where half precision overflows: encoder and decoder. What one
    /// of them needed the other gets too.
    #[must_use]
    pub fn with_float(self, encoder: LazyGraph, decoder: LazyGraph) -> Self {
        let encoder = InFloat::new("VAE", encoder);
        let decoder = InFloat {
            needed: Arc::clone(&encoder.needed),
            ..InFloat::new("VAE", decoder)
        };
        Self {
            in_float: Some([encoder, decoder]),
            ..self
        }
    }

    /// The same sessions, and what overflows is answered as it is.
    #[must_use]
    pub fn without_float(&self) -> Self {
        Self {
            in_float: None,
            ..self.clone()
        }
    }

    /// Whether somebody uses the sessions through a copy of this.
    pub(super) fn is_in_use(&self) -> bool {
        Arc::strong_count(&self.decoder) > 1
    }

    /// Gives back the memory that large pictures left in the sessions.
    pub(super) fn shrink(&self) {
        // The smallest sizes that pass through all levels.
        for (graph, free) in [(&self.decoder, 2), (&self.encoder, 16)] {
            if let Some(graph) = graph.if_loaded() {
                shrink(&graph, free);
            }
        }
    }

    /// [`Vae::decode`]; what takes more than `piece_bytes` in one piece is decoded strip by strip, unless a flag
    /// gives another limit.
    pub(super) fn decode_within(
        &self,
        latent: &Array4<f32>,
        piece_bytes: Option<u64>,
    ) -> Result<Array4<f32>, Cause> {
        if let Some(strips) = &self.strips
            && let DecodeWay::Strips { allowed_bytes } = strips.way(latent, piece_bytes)
        {
            return strips.decode(latent, allowed_bytes);
        }
        let in_float = self.in_float.as_ref().map(|[_, decoder]| decoder);
        let feeds = [("latent_sample", latent.into())];
        let out = self
            .decoder
            .get()
            .and_then(|decoder| {
                run_or_upcast(&decoder, in_float, &feeds, &["sample"], &RunStop::new())
            })
            .map_err(told)?;
        shaped4(out).map_err(told)
    }

    fn posterior(&self, pixels: &Array4<f32>) -> Result<Posterior, NetworkError> {
        let encoder = self.encoder.get()?;
        let name = if encoder.output("latent_parameters").is_some() {
            "latent_parameters"
        } else {
            "latent_sample"
        };
        let in_float = self.in_float.as_ref().map(|[encoder, _]| encoder);
        let feeds = [("sample", pixels.into())];
        let moments = shaped4(run_or_upcast(
            &encoder,
            in_float,
            &feeds,
            &[name],
            &RunStop::new(),
        )?)?;
        if name == "latent_sample" {
            // Older exports give a sample or the mode; then there is nothing left to draw.
            let logvar = Array4::from_elem(moments.raw_dim(), -30.0);
            return Ok(Posterior {
                mean: moments,
                logvar,
            });
        }
        let channels = moments.dim().1 / 2;
        Ok(Posterior {
            mean: moments.slice(s![.., ..channels, .., ..]).to_owned(),
            // DiagonalGaussianDistribution clamps the log variance.
            logvar: moments
                .slice(s![.., channels.., .., ..])
                .mapv(|value| value.clamp(-30.0, 20.0)),
        })
    }
}

impl Vae for GraphVae {
    fn encode(&self, pixels: &Array4<f32>) -> Result<Posterior, Cause> {
        self.posterior(pixels).map_err(told)
    }

    fn decode(&self, latent: &Array4<f32>) -> Result<Array4<f32>, Cause> {
        self.decode_within(latent, None)
    }
}

pub(super) fn shaped4(outputs: Vec<ArrayD<f32>>) -> Result<Array4<f32>, NetworkError> {
    let array = outputs
        .into_iter()
        .next()
        .unwrap_or_else(|| ArrayD::zeros(ndarray::IxDyn(&[0])));
    let shape = array.shape().to_vec();
    array
        .into_dimensionality::<Ix4>()
        .map_err(|_| NetworkError::OutputShape { shape })
}
