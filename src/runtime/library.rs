//! Finding and loading the ONNX Runtime shared library, and which execution providers sessions get.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use matrix_unit::MatrixUnit;
use ort::logging::LogLevel;
use tracing::Level;

use super::providers::{ConvSearch, ExecutionProvider, Library, usable};
use super::run_times::RunTimes;
use super::{GraphTime, RuntimeError};

/// Where to look for the library.
#[derive(Debug, Clone, Default)]
pub struct LibrarySearch {
    /// The file that a flag or `ORT_DYLIB_PATH` names. If given, no other place is looked at.
    pub explicit: Option<PathBuf>,
    /// A1111's data folder; its `runtime/` is looked at.
    pub data_dir: PathBuf,
    /// Python installations to look into (`VIRTUAL_ENV`, `sys.prefix`): folders with a `lib`.
    pub python_prefixes: Vec<PathBuf>,
}

/// How sessions are made.
#[derive(Debug, Clone)]
pub struct RuntimeOptions {
    /// Tried in this order; what cannot be used is logged and left out. The CPU is always the last
    /// resort.
    pub providers: Vec<ExecutionProvider>,
    /// Threads within one operator; 0: one a physical core.
    pub threads: usize,
    /// Which device of the provider.
    pub device_id: i32,
    /// Bytes that the arena of a CUDA device may take; `None`: what there is.
    pub gpu_memory_bytes: Option<u64>,
    pub conv_search: ConvSearch,
    /// In its `tensorrt/`, TensorRT keeps engines and timings.
    pub cache_folder: PathBuf,
    /// Graphs may be in half precision, which TensorRT has to be told.
    pub half: bool,
    /// Graphs may use the processor's matrix unit, where they run on the CPU and it has one.
    pub matrix_unit: bool,
}

impl Default for RuntimeOptions {
    fn default() -> Self {
        Self {
            providers: vec![ExecutionProvider::Cpu],
            threads: 0,
            device_id: 0,
            gpu_memory_bytes: None,
            conv_search: ConvSearch::default(),
            cache_folder: std::env::temp_dir(),
            half: false,
            matrix_unit: true,
        }
    }
}

/// The loaded library. Cheap to clone.
#[derive(Clone)]
pub struct Runtime {
    pub(super) environment: ort::environment::Environment,
    pub(super) options: Arc<RuntimeOptions>,
    pub(super) times: RunTimes,
    /// What sessions run on, in order.
    pub(super) providers: Arc<[ExecutionProvider]>,
    pub(super) relief: Arc<Mutex<Option<Relief>>>,
    /// The processor's, where graphs may use it.
    pub(super) matrix_unit: Option<MatrixUnit>,
    library: Arc<Path>,
}

/// Frees memory that nobody needs at the moment; whether there was any.
pub(super) type Relief = Arc<dyn Fn() -> bool + Send + Sync>;

/// The library can be loaded once a process; later calls share it.
static LOADED: Mutex<Option<(Arc<Path>, ort::environment::Environment)>> = Mutex::new(None);

impl Runtime {
    /// Loads the library at `path`. A second call in the same process keeps the first library and
    /// takes only the new options.
    ///
    /// # Errors
    /// [`RuntimeError::LibraryUnusable`] when the file is no ONNX Runtime of version 1.24 or newer.
    pub fn load(path: &Path, options: RuntimeOptions) -> Result<Self, RuntimeError> {
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        let (library, environment) = if let Some(known) = loaded.as_ref() {
            known.clone()
        } else {
            let unusable = |reason: String| RuntimeError::LibraryUnusable {
                path: path.display().to_string(),
                reason,
            };
            // The dynamic loader searches its own path for a bare file name.
            let absolute =
                std::path::absolute(path).map_err(|source| unusable(source.to_string()))?;
            if !absolute.is_file() {
                return Err(unusable("there is no such file".to_owned()));
            }
            let environment = ort::init_from(&absolute)
                .map_err(|source| unusable(source.to_string()))?
                .with_name("ancestral")
                .with_telemetry(false)
                .with_logger(Arc::new(log))
                .build()
                .map_err(|source| unusable(source.to_string()))?;
            tracing::info!(library = %absolute.display(), "ONNX Runtime loaded");
            let entry = (Arc::from(absolute), environment);
            *loaded = Some(entry.clone());
            entry
        };
        let devices = Library {
            environment: &environment,
            path: &library,
            cache_folder: &options.cache_folder,
        };
        let providers = usable(&devices, &options);
        let on_cpu = providers.first() == Some(&ExecutionProvider::Cpu);
        let matrix_unit = MatrixUnit::find().filter(|_| options.matrix_unit && on_cpu);
        Ok(Self {
            matrix_unit,
            providers: providers.into(),
            relief: Arc::default(),
            environment,
            options: Arc::new(options),
            times: RunTimes::default(),
            library,
        })
    }

    /// The file that was loaded.
    #[must_use]
    pub fn library(&self) -> &Path {
        &self.library
    }

    /// How long the graphs that this and its clones loaded have run.
    #[must_use]
    pub fn graph_times(&self) -> Vec<GraphTime> {
        self.times.all()
    }

    /// What graphs run on: what was asked for and can be used here, in order, the CPU last.
    #[must_use]
    pub fn providers(&self) -> &[ExecutionProvider] {
        &self.providers
    }

    /// Whether graphs run on a GPU.
    #[must_use]
    pub fn is_on_gpu(&self) -> bool {
        self.providers
            .first()
            .is_some_and(|provider| provider.is_gpu())
    }

    /// Whether graphs may name the operators of [`super::matrix_operators`].
    #[must_use]
    pub fn has_matrix_unit(&self) -> bool {
        self.matrix_unit.is_some()
    }

    /// What is called when a device has no memory left, before the call is tried again. It must not wait for a
    /// call of a graph.
    pub fn when_out_of_memory(&self, relief: impl Fn() -> bool + Send + Sync + 'static) {
        let mut place = self.relief.lock().unwrap_or_else(PoisonError::into_inner);
        *place = Some(Arc::new(relief));
    }

    /// The options that sessions are made with.
    #[must_use]
    pub fn options(&self) -> &RuntimeOptions {
        &self.options
    }
}

/// Hands a line of the library's log on to ours.
fn log(level: LogLevel, _category: &str, id: &str, location: &str, message: &str) {
    match level_of(level, message) {
        Level::ERROR => tracing::error!(target: LOG_TARGET, id, location, "{message}"),
        Level::WARN => tracing::warn!(target: LOG_TARGET, id, location, "{message}"),
        Level::INFO => tracing::info!(target: LOG_TARGET, id, location, "{message}"),
        Level::DEBUG => tracing::debug!(target: LOG_TARGET, id, location, "{message}"),
        Level::TRACE => tracing::trace!(target: LOG_TARGET, id, location, "{message}"),
    }
}

const LOG_TARGET: &str = "onnxruntime";

/// How much a line of the library matters to whoever runs the server.
fn level_of(level: LogLevel, message: &str) -> Level {
    match level {
        // cuDNN has no plan that fuses this convolution with what follows; the runtime takes another way.
        LogLevel::Error if message.contains("No execution plans support the graph") => Level::DEBUG,
        LogLevel::Fatal | LogLevel::Error => Level::ERROR,
        LogLevel::Warning => Level::WARN,
        LogLevel::Info => Level::INFO,
        LogLevel::Verbose => Level::TRACE,
    }
}

/// The first library among: the explicit one, beside the executable, `runtime/` in the data folder
/// and in the working directory, `runtime/` of the source tree, an installed Python package.
///
/// # Errors
/// [`RuntimeError::LibraryMissing`] naming the places.
pub fn find_library(search: &LibrarySearch) -> Result<PathBuf, RuntimeError> {
    if let Some(explicit) = &search.explicit {
        if explicit.is_file() {
            return Ok(explicit.clone());
        }
        if let Some(inside) = library_in(explicit) {
            return Ok(inside);
        }
        return Err(RuntimeError::LibraryMissing {
            looked_at: explicit.display().to_string(),
        });
    }
    let folders = folders_to_search(search);
    folders
        .iter()
        .find_map(|folder| library_in(folder))
        .ok_or_else(|| RuntimeError::LibraryMissing {
            looked_at: folders
                .iter()
                .map(|folder| folder.display().to_string())
                .collect::<Vec<_>>()
                .join(", "),
        })
}

fn folders_to_search(search: &LibrarySearch) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    if let Ok(executable) = std::env::current_exe()
        && let Some(beside) = executable.parent()
    {
        folders.push(beside.to_owned());
        folders.push(beside.join("runtime"));
    }
    folders.push(search.data_dir.join("runtime"));
    if let Ok(working) = std::env::current_dir() {
        folders.push(working.join("runtime"));
    }
    // A build that runs where it was built, from any folder.
    folders.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("runtime"));
    for prefix in &search.python_prefixes {
        folders.extend(python_packages(prefix));
    }
    let mut unique = Vec::new();
    for folder in folders {
        if !unique.contains(&folder) {
            unique.push(folder);
        }
    }
    unique
}

/// `onnxruntime/capi` of every Python version under a prefix.
fn python_packages(prefix: &Path) -> Vec<PathBuf> {
    let mut packages = vec![prefix.join("Lib/site-packages/onnxruntime/capi")];
    if let Ok(versions) = fs_err::read_dir(prefix.join("lib")) {
        for version in versions.flatten() {
            packages.push(version.path().join("site-packages/onnxruntime/capi"));
        }
    }
    packages.retain(|package| package.is_dir());
    packages
}

/// The library in one folder: the exact name, else the highest version suffix.
fn library_in(folder: &Path) -> Option<PathBuf> {
    let name = format!(
        "{}onnxruntime{}",
        std::env::consts::DLL_PREFIX,
        std::env::consts::DLL_SUFFIX
    );
    let exact = folder.join(&name);
    if exact.is_file() {
        return Some(exact);
    }
    let mut versions: Vec<(Vec<u64>, PathBuf)> = fs_err::read_dir(folder)
        .ok()?
        .flatten()
        .filter_map(|entry| {
            let file = entry.file_name().to_string_lossy().into_owned();
            let version = versioned(&file)?;
            Some((version, entry.path()))
        })
        .collect();
    versions.sort();
    versions.pop().map(|(_, path)| path)
}

/// The version in `libonnxruntime.so.1.27.0` or `libonnxruntime.1.27.0.dylib`.
fn versioned(file: &str) -> Option<Vec<u64>> {
    let rest = file
        .strip_prefix("libonnxruntime.so.")
        .or_else(|| file.strip_prefix("libonnxruntime.")?.strip_suffix(".dylib"))?;
    rest.split('.').map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_versioned_library_of_a_folder_is_found() {
        let folder = tempfile::tempdir().unwrap();
        for name in [
            "libonnxruntime.so.1.24.4",
            "libonnxruntime.so.1.27.0",
            "libonnxruntime_providers_shared.so",
        ] {
            fs_err::write(folder.path().join(name), b"").unwrap();
        }
        let found = library_in(folder.path()).unwrap();
        assert_eq!(found.file_name().unwrap(), "libonnxruntime.so.1.27.0");
    }

    #[test]
    fn what_cudnn_tries_in_vain_is_no_error_of_the_server() {
        let vain = "[cudnn_frontend] Error: No execution plans support the graph.";
        assert_eq!(level_of(LogLevel::Error, vain), Level::DEBUG);
        let failed = "Non-zero status code returned while running Conv node.";
        assert_eq!(level_of(LogLevel::Error, failed), Level::ERROR);
        let other = "[cudnn_frontend] Error: No valid engine configs for Conv";
        assert_eq!(level_of(LogLevel::Error, other), Level::ERROR);
    }

    #[test]
    fn a_missing_explicit_library_is_named() {
        let search = LibrarySearch {
            explicit: Some(PathBuf::from("/nowhere/libonnxruntime.so")),
            ..LibrarySearch::default()
        };
        let message = find_library(&search).unwrap_err().to_string();
        assert!(message.contains("/nowhere/libonnxruntime.so"), "{message}");
        assert!(message.contains("scripts/fetch_runtime"), "{message}");
    }

    #[test]
    fn a_file_that_is_no_library_gives_one_sentence() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("libonnxruntime.so");
        fs_err::write(&path, b"not a library").unwrap();
        // Another test of this process may have loaded a real library already; then this file is
        // not looked at.
        if let Err(error) = Runtime::load(&path, RuntimeOptions::default()) {
            assert!(error.to_string().contains("version 1.24 or newer"));
        }
    }
}
