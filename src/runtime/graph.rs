//! One session: graph bytes in, arrays in, arrays out.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use half::f16;
use ndarray::{ArrayD, ArrayViewD, CowArray, IxDyn};
use ort::logging::LogLevel;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::session::{RunOptions, Session, SessionInputValue};
use ort::value::{DynValue, Tensor as OrtTensor, TensorElementType, TensorRef, ValueType};

use super::input_binding::InputBinding;
use super::providers::{register, settings};
use super::run_times::RunTime;
use super::upgrade::Upgrade;
use super::{
    ExecutionProvider, LoadEffort, Runtime, RuntimeError, external_data, matrix_operators,
};

/// Where a graph comes from.
#[derive(Debug, Clone, Copy)]
pub enum GraphSource<'a> {
    /// A model file; external data is beside it, and read into memory.
    File(&'a Path),
    /// A serialised model whose external data, if any, lies in `external_folder`, but for the
    /// initializers in `values`.
    Bytes {
        model: &'a [u8],
        external_folder: Option<&'a Path>,
        values: &'a [(String, ArrayD<f32>)],
    },
}

/// An input array. Float arrays are converted where the graph wants half precision.
#[derive(Debug, Clone)]
pub enum Tensor<'a> {
    Float(CowArray<'a, f32, IxDyn>),
    Int(CowArray<'a, i64, IxDyn>),
}

impl<'a, D: ndarray::Dimension> From<&'a ndarray::Array<f32, D>> for Tensor<'a> {
    fn from(array: &'a ndarray::Array<f32, D>) -> Self {
        Self::Float(array.view().into_dyn().into())
    }
}

impl<'a, D: ndarray::Dimension> From<&'a ndarray::Array<i64, D>> for Tensor<'a> {
    fn from(array: &'a ndarray::Array<i64, D>) -> Self {
        Self::Int(array.view().into_dyn().into())
    }
}

impl<D: ndarray::Dimension> From<ndarray::Array<f32, D>> for Tensor<'_> {
    fn from(array: ndarray::Array<f32, D>) -> Self {
        Self::Float(array.into_dyn().into())
    }
}

impl<D: ndarray::Dimension> From<ndarray::Array<i64, D>> for Tensor<'_> {
    fn from(array: ndarray::Array<i64, D>) -> Self {
        Self::Int(array.into_dyn().into())
    }
}

/// The element type and the shape (`None`: free) that a graph declares for an input or output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    pub is_integer: bool,
    pub dims: Vec<Option<usize>>,
}

/// What one call takes.
pub type Invocation<'a> = [(&'a str, Tensor<'a>)];

#[derive(Debug, Clone)]
struct Port {
    element: TensorElementType,
    dims: Vec<Option<usize>>,
}

struct Running {
    session: Session,
    /// What is bound for the next call; `None`: inputs are handed over at each call.
    binding: Option<InputBinding>,
}

/// Makes a graph anew.
type LoadGraph = Box<dyn Fn() -> Result<Graph, RuntimeError> + Send + Sync>;

/// One loaded graph. Calls from several threads are served one after the other.
pub struct Graph {
    name: String,
    runtime: Runtime,
    /// `None`: it is loaded again by `load` when it is needed.
    session: Mutex<Option<Running>>,
    load: Option<LoadGraph>,
    inputs: HashMap<String, Port>,
    outputs: HashMap<String, Port>,
    time: RunTime,
    /// Nothing was computed since its arena was given back.
    is_shrunk: AtomicBool,
    /// How its session becomes a faster one, where it was loaded quickly.
    pub(super) upgrade: Option<Upgrade>,
}

/// A hold on one call, which may be several runs: stops it from any thread, within one operator, also before
/// it begins.
#[derive(Default)]
pub struct RunStop {
    state: Mutex<StopState>,
}

#[derive(Default)]
struct StopState {
    stopped: bool,
    /// The options of the last run, by which it can be stopped.
    run: Option<Arc<RunOptions>>,
}

impl RunStop {
    /// A hold on a call that has not begun.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The call answers [`RuntimeError::Terminated`]; no other is touched.
    pub fn stop(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.stopped = true;
        if let Some(Err(error)) = state.run.as_ref().map(|run| run.terminate()) {
            tracing::warn!(%error, "a run could not be stopped");
        }
    }

    /// A run with these options begins; false when it must not.
    fn begin(&self, options: &Arc<RunOptions>) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.run = Some(Arc::clone(options));
        !state.stopped
    }
}

impl Graph {
    /// Loads a graph; `name` is what errors and logs call it.
    ///
    /// # Errors
    /// [`RuntimeError::Load`] with the runtime's own words.
    pub fn load(
        runtime: &Runtime,
        name: &str,
        source: GraphSource<'_>,
    ) -> Result<Self, RuntimeError> {
        Self::load_with(runtime, name, source, LoadEffort::Full)
    }

    /// [`Self::load`] with another effort, for sources in bytes.
    ///
    /// # Errors
    /// As [`Self::load`], also where the load is stopped.
    pub fn load_with(
        runtime: &Runtime,
        name: &str,
        source: GraphSource<'_>,
        effort: LoadEffort<'_>,
    ) -> Result<Self, RuntimeError> {
        let refused = |reason: String| match out_of_memory(runtime, name, &reason) {
            Some(error) => error,
            None => RuntimeError::Load {
                graph: name.to_owned(),
                reason,
            },
        };
        let mut builder = session_builder(runtime).map_err(refused)?;
        if let GraphSource::Bytes {
            external_folder: Some(folder),
            ..
        } = source
        {
            builder = builder
                .with_config_entry(
                    "session.model_external_initializers_file_folder_path",
                    folder.to_string_lossy(),
                )
                .map_err(|error| refused(error.to_string()))?;
        }
        if let GraphSource::Bytes { values, .. } = source {
            for (name, values) in values {
                let tensor = OrtTensor::from_array(values.clone())
                    .map_err(|error| refused(error.to_string()))?;
                builder = builder
                    .with_external_initializer(name, tensor.into_dyn())
                    .map_err(|error| refused(error.to_string()))?;
            }
        }
        if let GraphSource::File(path) = source {
            for (name, value) in external_data::read(path).map_err(refused)? {
                builder = builder
                    .with_external_initializer(name, value)
                    .map_err(|error| refused(error.to_string()))?;
            }
        }
        if let GraphSource::Bytes {
            model,
            external_folder,
            ..
        } = source
        {
            let threads = thread_count(runtime.options.threads);
            builder = effort.apply(builder, threads).map_err(refused)?;
            if let Some(folder) = external_folder {
                let kinds = effort.left_in_place(runtime.has_matrix_unit());
                let values = external_data::read_in_place(model, folder, kinds, threads);
                // Handed over as external initializers they would be copied; these are used where they are.
                for (name, value) in values.map_err(refused)? {
                    builder = builder
                        .with_initializer(name, value)
                        .map_err(|error| refused(error.to_string()))?;
                }
            }
        }
        let session = match source {
            GraphSource::File(path) => builder.commit_from_file(path),
            GraphSource::Bytes { model, .. } => builder.commit_from_memory(model),
        }
        .map_err(|error| refused(error.to_string()))?;
        let mut inputs = ports(
            session
                .inputs()
                .iter()
                .map(|port| (port.name(), port.dtype())),
        );
        let optional = session.overridable_initializers();
        inputs.extend(ports(
            optional.iter().map(|port| (port.name(), port.dtype())),
        ));
        let outputs = ports(
            session
                .outputs()
                .iter()
                .map(|port| (port.name(), port.dtype())),
        );
        let binding = if runtime.is_on_gpu() {
            let binding =
                InputBinding::new(&session).map_err(|error| refused(error.to_string()))?;
            Some(binding)
        } else {
            None
        };
        Ok(Self {
            name: name.to_owned(),
            runtime: runtime.clone(),
            session: Mutex::new(Some(Running { session, binding })),
            load: None,
            inputs,
            outputs,
            time: runtime.times.of(name),
            is_shrunk: AtomicBool::new(false),
            upgrade: None,
        })
    }

    /// A graph whose session `load` makes at the first call, and again after [`Self::release`]: one of these inputs and
    /// outputs in float32 and whole numbers of 64 bits.
    pub fn unloaded(
        runtime: &Runtime,
        name: &str,
        inputs: Vec<(String, Input)>,
        outputs: Vec<(String, Input)>,
        load: impl Fn() -> Result<Self, RuntimeError> + Send + Sync + 'static,
    ) -> Self {
        let ports = |ports: Vec<(String, Input)>| {
            let ports = ports.into_iter().map(|(name, port)| {
                let element = if port.is_integer {
                    TensorElementType::Int64
                } else {
                    TensorElementType::Float32
                };
                let dims = port.dims;
                (name, Port { element, dims })
            });
            ports.collect()
        };
        Self {
            name: name.to_owned(),
            runtime: runtime.clone(),
            session: Mutex::new(None),
            load: Some(Box::new(load)),
            inputs: ports(inputs),
            outputs: ports(outputs),
            time: runtime.times.of(name),
            is_shrunk: AtomicBool::new(false),
            upgrade: None,
        }
    }

    /// Lets go of the session if it can be made again; the call in flight ends first.
    pub fn release(&self) {
        if self.load.is_some() {
            *self.session.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    /// Loads the session, unless it is there. Waits for the call in flight.
    ///
    /// # Errors
    /// Those of its load.
    pub fn load_now(&self) -> Result<(), RuntimeError> {
        self.loaded().map(drop)
    }

    /// The session, loaded if it can be.
    fn loaded(&self) -> Result<MutexGuard<'_, Option<Running>>, RuntimeError> {
        let mut running = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        if running.is_none()
            && let Some(load) = &self.load
        {
            let loaded = load()?;
            let mut session = loaded
                .session
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            *running = session.take();
        }
        Ok(running)
    }

    /// Whether its next call would load the session; false while a call or a load is in flight.
    #[must_use]
    pub fn lacks_session(&self) -> bool {
        self.load.is_some()
            && self
                .session
                .try_lock()
                .is_ok_and(|running| running.is_none())
    }

    /// Whether its session is there. Waits for the call in flight.
    #[must_use]
    pub fn is_loaded(&self) -> bool {
        let session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        session.is_some()
    }

    /// What errors and logs call it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs go to the session of `other`, a graph of the same inputs and outputs, from now on; the one in flight ends
    /// first. `taken` is called before the next can begin.
    pub(super) fn take_over(&self, other: Self, taken: impl FnOnce()) {
        let mut theirs = other.session.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ours = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut *ours, &mut *theirs);
        self.is_shrunk.store(false, Ordering::SeqCst);
        taken();
        drop(ours);
        drop(theirs);
        drop(other);
    }

    /// Whether its operators run on a GPU, as far as the provider has them.
    #[must_use]
    pub fn is_on_gpu(&self) -> bool {
        self.runtime.is_on_gpu()
    }

    /// What the graph declares for an input, if it has it. Inputs with a default are among them.
    #[must_use]
    pub fn input(&self, name: &str) -> Option<Input> {
        self.inputs.get(name).map(Port::declared)
    }

    /// What the graph declares for an output, if it has it.
    #[must_use]
    pub fn output(&self, name: &str) -> Option<Input> {
        self.outputs.get(name).map(Port::declared)
    }

    /// Names of all inputs, in no order.
    pub fn input_names(&self) -> impl Iterator<Item = &str> {
        self.inputs.keys().map(String::as_str)
    }

    /// Names of all outputs, in no order.
    pub fn output_names(&self) -> impl Iterator<Item = &str> {
        self.outputs.keys().map(String::as_str)
    }

    /// Runs the graph and gives the asked-for outputs, as float32, in the order of `wanted`. Where the device has
    /// no memory left, what nobody needs is let go of and the call made once more.
    ///
    /// # Errors
    /// [`RuntimeError::Contract`] when a wanted output does not exist, [`RuntimeError::Run`] when
    /// the runtime fails, [`RuntimeError::OutOfMemory`].
    pub fn run(
        &self,
        inputs: &Invocation<'_>,
        wanted: &[&str],
    ) -> Result<Vec<ArrayD<f32>>, RuntimeError> {
        self.run_until_stopped(inputs, wanted, &RunStop::new())
    }

    /// [`Self::run`], which `stop` ends early.
    ///
    /// # Errors
    /// As [`Self::run`], and [`RuntimeError::Terminated`] after [`RunStop::stop`].
    pub fn run_until_stopped(
        &self,
        inputs: &Invocation<'_>,
        wanted: &[&str],
        stop: &RunStop,
    ) -> Result<Vec<ArrayD<f32>>, RuntimeError> {
        relieved(&self.runtime, |is_second| {
            self.run_once(inputs, wanted, stop, is_second, |outputs| {
                outputs.into_iter().map(CowArray::into_owned).collect()
            })
        })
    }

    /// [`Self::run`], of whose outputs nothing is copied but what `read` copies, where the graph gives float32.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_and_read<T>(
        &self,
        inputs: &Invocation<'_>,
        wanted: &[&str],
        mut read: impl FnMut(&[CowArray<'_, f32, IxDyn>]) -> T,
    ) -> Result<T, RuntimeError> {
        relieved(&self.runtime, |is_second| {
            self.run_once(inputs, wanted, &RunStop::new(), is_second, |outputs| {
                read(&outputs)
            })
        })
    }

    fn run_once<T>(
        &self,
        inputs: &Invocation<'_>,
        wanted: &[&str],
        stop: &RunStop,
        shrinks_arena: bool,
        read: impl FnOnce(Vec<CowArray<'_, f32, IxDyn>>) -> T,
    ) -> Result<T, RuntimeError> {
        let failed = |error: ort::Error| {
            let reason = error.to_string();
            out_of_memory(&self.runtime, &self.name, &reason).unwrap_or(RuntimeError::Run {
                graph: self.name.clone(),
                reason,
            })
        };
        if let Some(missing) = wanted
            .iter()
            .find(|name| !self.outputs.contains_key(**name))
        {
            return Err(self.contract(format!("output \"{missing}\"")));
        }
        let converted: Vec<(&str, Feed<'_>)> = inputs
            .iter()
            .map(|(name, tensor)| (*name, self.feed(name, tensor)))
            .collect();
        let mut options = RunOptions::new().map_err(failed)?;
        if shrinks_arena && let Some(arena) = arena(&self.runtime) {
            options
                .set("memory.enable_memory_arena_shrinkage", arena)
                .map_err(failed)?;
        }
        let options = Arc::new(options);
        if !stop.begin(&options) {
            return Err(self.terminated());
        }
        let mut running = self.loaded()?;
        let Some(Running { session, binding }) = &mut *running else {
            return Err(self.contract("session".to_owned()));
        };
        // All outputs are fetched: the runtime computes every one anyway, and a selection would take
        // the options out of reach of the thread that terminates the call.
        let begin = Instant::now();
        self.is_shrunk.store(false, Ordering::SeqCst);
        let outcome = match binding {
            Some(binding) => binding
                .bind(&converted, wanted)
                .and_then(|()| session.run_binding_with_options(binding.bound(), &options)),
            None => converted
                .iter()
                .map(|(name, feed)| Ok((Cow::Borrowed(*name), feed.value()?)))
                .collect::<Result<Vec<(Cow<'_, str>, SessionInputValue<'_>)>, ort::Error>>()
                .and_then(|values| session.run_with_options(values, &options)),
        };
        if !wanted.is_empty() {
            self.time.add(begin.elapsed());
        }
        let outputs = outcome.map_err(|error| {
            if error.to_string().contains("terminate flag") {
                self.terminated()
            } else {
                failed(error)
            }
        })?;
        self.is_shrunk.store(shrinks_arena, Ordering::SeqCst);
        let arrays: Result<Vec<_>, _> = wanted
            .iter()
            .map(|name| {
                outputs
                    .get(*name)
                    .and_then(float_array)
                    .ok_or_else(|| self.contract(format!("float output \"{name}\"")))
            })
            .collect();
        arrays.map(read)
    }

    /// Gives back what runs on large inputs left in the session's arena: ends a run on zeros, in which every free
    /// dimension is `free`, with that. The CPU's arena and that of CUDA are given back.
    ///
    /// # Errors
    /// As [`Self::run`]; the graph may not take such inputs.
    pub fn shrink(&self, free: usize) -> Result<(), RuntimeError> {
        if self.is_shrunk.load(Ordering::SeqCst) || !self.is_loaded() {
            return Ok(());
        }
        let zeros = |port: &Port| {
            let dims = port.dims.iter().map(|dim| dim.unwrap_or(free));
            let shape = IxDyn(&dims.collect::<Vec<_>>());
            if port.declared().is_integer {
                Tensor::Int(ArrayD::zeros(shape).into())
            } else {
                Tensor::Float(ArrayD::zeros(shape).into())
            }
        };
        let inputs: Vec<_> = self
            .inputs
            .iter()
            .map(|(name, port)| (name.as_str(), zeros(port)))
            .collect();
        self.run_once(&inputs, &[], &RunStop::new(), true, |_| ())
    }

    fn terminated(&self) -> RuntimeError {
        RuntimeError::Terminated {
            graph: self.name.clone(),
        }
    }

    fn contract(&self, what: String) -> RuntimeError {
        RuntimeError::Contract {
            graph: self.name.clone(),
            what,
        }
    }

    fn feed<'a>(&self, name: &str, tensor: &'a Tensor<'_>) -> Feed<'a> {
        let element = self
            .inputs
            .get(name)
            .map_or(TensorElementType::Float32, |port| port.element);
        match (tensor, element) {
            (Tensor::Float(array), TensorElementType::Float16) => {
                Feed::Half(array.mapv(f16::from_f32))
            }
            (Tensor::Float(array), TensorElementType::Int64) => {
                Feed::Int(array.mapv(|value| value as i64).into())
            }
            (Tensor::Float(array), _) => Feed::Float(contiguous(array.view())),
            (Tensor::Int(array), TensorElementType::Int32) => {
                Feed::Short(array.mapv(|value| value as i32))
            }
            (Tensor::Int(array), _) => Feed::Int(contiguous(array.view())),
        }
    }
}

/// An input in the element type that the graph wants.
pub(super) enum Feed<'a> {
    Float(CowArray<'a, f32, IxDyn>),
    Half(ArrayD<f16>),
    Int(CowArray<'a, i64, IxDyn>),
    Short(ArrayD<i32>),
}

impl Feed<'_> {
    fn value(&self) -> Result<SessionInputValue<'_>, ort::Error> {
        Ok(match self {
            Self::Float(array) => TensorRef::from_array_view(array.view())?.into(),
            Self::Half(array) => TensorRef::from_array_view(array.view())?.into(),
            Self::Int(array) => TensorRef::from_array_view(array.view())?.into(),
            Self::Short(array) => TensorRef::from_array_view(array.view())?.into(),
        })
    }

    /// The same in memory of its own.
    pub(super) fn owned(&self) -> Result<DynValue, ort::Error> {
        Ok(match self {
            Self::Float(array) => OrtTensor::from_array(array.to_owned().into_owned())?.into_dyn(),
            Self::Half(array) => OrtTensor::from_array(array.clone())?.into_dyn(),
            Self::Int(array) => OrtTensor::from_array(array.to_owned().into_owned())?.into_dyn(),
            Self::Short(array) => OrtTensor::from_array(array.clone())?.into_dyn(),
        })
    }

    /// Whether `value` has this type, shape and these values, to the bit of a number.
    pub(super) fn equals(&self, value: &DynValue) -> bool {
        match self {
            Self::Float(array) => value
                .try_extract_array::<f32>()
                .is_ok_and(|known| known == array.view()),
            Self::Half(array) => value
                .try_extract_array::<f16>()
                .is_ok_and(|known| known == array.view()),
            Self::Int(array) => value
                .try_extract_array::<i64>()
                .is_ok_and(|known| known == array.view()),
            Self::Short(array) => value
                .try_extract_array::<i32>()
                .is_ok_and(|known| known == array.view()),
        }
    }
}

/// The arena of the first provider in the runtime's words; `None`: it has none that can be shrunk.
fn arena(runtime: &Runtime) -> Option<String> {
    match runtime.providers.first()? {
        ExecutionProvider::Cpu => Some("cpu:0".to_owned()),
        ExecutionProvider::Cuda | ExecutionProvider::TensorRt => {
            Some(format!("gpu:{}", runtime.options.device_id))
        }
        ExecutionProvider::DirectMl => None,
    }
}

/// `call(false)`, and where the device has no memory left, `call(true)` after what nobody needs was let go of.
fn relieved<T>(
    runtime: &Runtime,
    mut call: impl FnMut(bool) -> Result<T, RuntimeError>,
) -> Result<T, RuntimeError> {
    match call(false) {
        Err(error @ RuntimeError::OutOfMemory { .. }) => {
            let relief = runtime
                .relief
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            let freed = relief.is_some_and(|relief| relief());
            tracing::warn!(%error, freed, "tried once more");
            call(true)
        }
        answer => answer,
    }
}

/// The error of a device without memory left, by the words of the runtime, cuDNN, cuBLAS and DirectML.
fn out_of_memory(runtime: &Runtime, graph: &str, reason: &str) -> Option<RuntimeError> {
    const WORDS: [&str; 7] = [
        "Failed to allocate memory",
        "is smaller than requested bytes",
        "out of memory",
        "STATUS_ALLOC_FAILED",
        "8007000E",
        "OutOfMemory",
        "bad_alloc",
    ];
    let first = runtime.providers.first()?;
    WORDS
        .iter()
        .any(|words| reason.contains(words))
        .then(|| RuntimeError::OutOfMemory {
            device: first.device_name(),
            graph: graph.to_owned(),
            reason: reason.to_owned(),
        })
}

impl Port {
    fn declared(&self) -> Input {
        Input {
            is_integer: matches!(
                self.element,
                TensorElementType::Int64 | TensorElementType::Int32
            ),
            dims: self.dims.clone(),
        }
    }
}

fn contiguous<T: Clone>(view: ArrayViewD<'_, T>) -> CowArray<'_, T, IxDyn> {
    if view.is_standard_layout() {
        view.into()
    } else {
        view.as_standard_layout().into_owned().into()
    }
}

fn ports<'a>(entries: impl Iterator<Item = (&'a str, &'a ValueType)>) -> HashMap<String, Port> {
    entries
        .filter_map(|(name, kind)| match kind {
            ValueType::Tensor { ty, shape, .. } => Some((
                name.to_owned(),
                Port {
                    element: *ty,
                    dims: shape.iter().map(|dim| usize::try_from(*dim).ok()).collect(),
                },
            )),
            _ => None,
        })
        .collect()
}

fn float_array(value: &DynValue) -> Option<CowArray<'_, f32, IxDyn>> {
    if let Ok(array) = value.try_extract_array::<f32>() {
        return Some(array.into());
    }
    if let Ok(array) = value.try_extract_array::<bool>() {
        return Some(array.mapv(|flag| f32::from(u8::from(flag))).into());
    }
    value
        .try_extract_array::<f16>()
        .ok()
        .map(|array| array.mapv(f16::to_f32).into())
}

/// Settings that measured best on a CPU (docs/ARCHITECTURE.md): no spinning, so that two graphs in
/// one process do not fight for cores; arena and memory pattern on; every optimisation.
fn session_builder(runtime: &Runtime) -> Result<SessionBuilder, String> {
    let words = |error: ort::Error<SessionBuilder>| error.to_string();
    let mut builder = Session::builder(&runtime.environment)
        .map_err(|error| error.to_string())?
        .with_optimization_level(GraphOptimizationLevel::All)
        .map_err(words)?
        .with_intra_threads(thread_count(runtime.options.threads))
        .map_err(words)?
        .with_log_level(LogLevel::Error)
        .map_err(words)?
        .with_intra_op_spinning(false)
        .map_err(words)?
        .with_memory_pattern(!runtime.providers.contains(&ExecutionProvider::DirectMl))
        .map_err(words)?;
    if let Some(unit) = runtime.matrix_unit {
        let operators = matrix_operators::domain(unit, thread_count(runtime.options.threads));
        builder = builder
            .with_operators(operators.map_err(|error| error.to_string())?)
            .map_err(words)?;
    }
    for provider in runtime.providers.iter() {
        register(
            &mut builder,
            *provider,
            &settings(*provider, &runtime.options),
        )?;
    }
    Ok(builder)
}

/// The asked-for number, or one thread a physical core within what the process may use.
fn thread_count(asked: usize) -> usize {
    if asked > 0 {
        return asked;
    }
    let allowed = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    physical_cores()
        .map_or(allowed, |cores| cores.min(allowed))
        .max(1)
}

/// Distinct (package, core) pairs of `/proc/cpuinfo`; `None` where there is no such file.
fn physical_cores() -> Option<usize> {
    let text = fs_err::read_to_string("/proc/cpuinfo").ok()?;
    let mut cores = std::collections::HashSet::new();
    let mut package = "";
    for line in text.lines() {
        let (key, value) = line.split_once(':').unwrap_or((line, ""));
        match key.trim() {
            "physical id" => package = value.trim(),
            "core id" => {
                cores.insert((package, value.trim()));
            }
            _ => {}
        }
    }
    (!cores.is_empty()).then_some(cores.len())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::{LibrarySearch, RuntimeOptions, find_library};
    use super::*;

    fn runtime() -> Runtime {
        let search = LibrarySearch {
            explicit: std::env::var_os("ORT_DYLIB_PATH").map(Into::into),
            ..LibrarySearch::default()
        };
        Runtime::load(&find_library(&search).unwrap(), RuntimeOptions::default()).unwrap()
    }

    #[test]
    fn without_memory_a_call_is_made_once_more_after_the_relief() {
        let runtime = runtime();
        let relieved_count = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&relieved_count);
        runtime.when_out_of_memory(move || counter.fetch_add(1, Ordering::Relaxed) == 0);
        let words = "CUDNN failure 4: CUDNN_STATUS_ALLOC_FAILED";
        let full = || out_of_memory(&runtime, "UNet", words).expect("it is known");
        let answer = relieved(
            &runtime,
            |is_second| {
                if is_second { Ok(7) } else { Err(full()) }
            },
        );
        assert_eq!(answer.unwrap(), 7);
        assert_eq!(relieved_count.load(Ordering::Relaxed), 1);

        let answer = relieved(&runtime, |_| Err::<(), _>(full()));
        let text = answer.unwrap_err().to_string();
        assert!(
            text.starts_with("CPU out of memory. The UNet graph"),
            "{text}"
        );
        assert_eq!(relieved_count.load(Ordering::Relaxed), 2);

        let calls = AtomicUsize::new(0);
        let answer = relieved(&runtime, |_| {
            calls.fetch_add(1, Ordering::Relaxed);
            Err::<(), _>(RuntimeError::Terminated {
                graph: "UNet".to_owned(),
            })
        });
        assert!(answer.is_err());
        assert_eq!(calls.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn an_error_of_another_kind_is_not_taken_for_a_lack_of_memory() {
        assert!(out_of_memory(&runtime(), "UNet", "Invalid Feed Input Name").is_none());
    }
}
