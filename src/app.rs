//! Builds everything once and starts the server: the only place besides `main.rs` that sees every room.

use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use actix_web::HttpServer;
use actix_web::middleware::from_fn;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::api::{StyleBook, StyleRow};
use crate::catalogue::{Catalogue, CatalogueConfig};
use crate::config::{
    Binding, Config, ConfigError, Folders, LoadStrategyFlag, OutputFolders, QueueConfig,
    RuntimeConfig, Settings, Tls,
};
use crate::http::{self, CurrentModel, Fetcher, Kept, Server, Throttle};
use crate::jobs::{Engine, GraphRuns, Jobs, QueueLimits, Ticket};
use crate::models::{LoadStrategy, Provider, ProviderConfig, RunSharing};
use crate::pipeline::{
    ExtrasParams, ExtrasResult, GenerateError, GenerationParams, GenerationResult, JobControl,
    ModelProvider as _, ModelRequest, ShortHash, extras, generate,
};
use crate::prompt::parse_styles_csv;
use crate::runtime::{
    ConvSearch, ExecutionProvider, LibrarySearch, Runtime, RuntimeError, RuntimeOptions,
    exit_at_once, find_library, has_background_work, total_memory_bytes,
};
use crate::saving::{FileSaver, NameRules};
use crate::scripts::{ScriptCall, run_script};

/// Why the server cannot start; each message is one sentence with the way out.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error("the checkpoint {0} does not exist; name another with --ckpt")]
    CheckpointMissing(PathBuf),
    #[error("the VAE {0} does not exist; name another with --vae-path")]
    VaeMissing(PathBuf),
    #[error("there is no checkpoint in {0}; put a .safetensors file there or name one with --ckpt")]
    NoCheckpoint(PathBuf),
    #[error("--execution-provider: {0}")]
    ExecutionProvider(String),
    #[error("--conv-search: {0}")]
    ConvSearch(String),
    #[error("port {port} of {host} is already in use; choose another with --port")]
    PortInUse { host: String, port: u16 },
    #[error("{host}:{port} cannot be bound: {source}")]
    Bind {
        host: String,
        port: u16,
        source: std::io::Error,
    },
    #[error("HTTPS cannot be served with {path}: {reason}")]
    Tls { path: PathBuf, reason: String },
    #[error("the server stopped: {0}")]
    Serve(std::io::Error),
}

/// Jobs that run at once on a GPU.
const GPU_JOBS: usize = 4;

/// The server's parts, ready to answer.
#[derive(Clone)]
pub struct App {
    server: Arc<Server>,
}

impl App {
    /// Builds the server with the ONNX Runtime behind it. Checkpoints are loaded later.
    ///
    /// # Errors
    /// When the data folder, the library or a checkpoint is missing.
    pub fn build(config: Config) -> Result<Self, StartError> {
        config.prepare_data_folder()?;
        if let Some(path) = config
            .folders
            .checkpoint
            .as_ref()
            .filter(|path| !path.exists())
        {
            return Err(StartError::CheckpointMissing(path.clone()));
        }
        if let Some(path) = config.folders.vae.as_ref().filter(|path| !path.is_file()) {
            return Err(StartError::VaeMissing(path.clone()));
        }
        let catalogue = Arc::new(catalogue(&config.folders));
        if catalogue.checkpoints().is_empty() {
            let folder = config.folders.models.join("Stable-diffusion");
            return Err(StartError::NoCheckpoint(folder));
        }
        let runtime = runtime(&config)?;
        let on_gpu = runtime.is_on_gpu();
        let concurrent = if on_gpu { GPU_JOBS } else { 1 };
        let provider = Provider::new(
            runtime,
            Arc::clone(&catalogue),
            ProviderConfig {
                tower_folders: vec![config.folders.models.clone()],
                memory_budget_bytes: memory_budget(&config.runtime),
                decode_memory_bytes: config.runtime.decode_memory_bytes,
                // Whoever says how much memory there is for checkpoints has what fits stay in it.
                text_makes_room: config.runtime.model_memory_bytes.is_none(),
                load_strategy: match config.runtime.load_strategy {
                    LoadStrategyFlag::Auto => LoadStrategy::Auto,
                    LoadStrategyFlag::Quick => LoadStrategy::Quick,
                    LoadStrategyFlag::Fast => LoadStrategy::Fast,
                },
                answers_nan: config.runtime.answers_nan,
                half: config.runtime.precision.is_half(on_gpu),
                half_vae: config.runtime.precision.is_vae_half(on_gpu),
                safety_checker: config
                    .runtime
                    .safety_checker
                    .then(|| config.folders.models.clone()),
                sharing: RunSharing {
                    latent_pixels: config.runtime.shared_latent_pixels,
                },
                ..ProviderConfig::default()
            },
        );
        let engine = Arc::new(Pipeline {
            provider,
            tower_widths: Mutex::default(),
        });
        Self::assembled(config, engine, catalogue, concurrent)
    }

    /// Builds the server around an engine of the caller's, for tests.
    ///
    /// # Errors
    /// When the data folder cannot be written.
    pub fn with_engine(
        config: Config,
        engine: Arc<dyn Engine>,
        catalogue: Arc<Catalogue>,
    ) -> Result<Self, StartError> {
        Self::assembled(config, engine, catalogue, 1)
    }

    /// `concurrent` jobs run at once unless a flag says otherwise.
    fn assembled(
        config: Config,
        engine: Arc<dyn Engine>,
        catalogue: Arc<Catalogue>,
        concurrent: usize,
    ) -> Result<Self, StartError> {
        config.prepare_data_folder()?;
        let (settings, warning) =
            Settings::load(&config.folders.options_file, config.freeze.clone());
        for warning in warning.iter().chain(&config.ineffective_flags) {
            tracing::warn!("{warning}");
        }
        let outputs = OutputFolders::new(
            &config.folders.data,
            config.folders.allowed_outputs.iter().cloned(),
        )
        .with_folders_of(&settings.snapshot());
        let server = Server {
            settings: settings.with_outputs(outputs.clone()),
            saver: Arc::new(FileSaver {
                folders: outputs,
                rules: NameRules {
                    max_length: config.folders.filename_max_length,
                    unix: config.folders.unix_filenames,
                },
            }),
            jobs: Jobs::start(
                queue_limits(&config.queue, concurrent),
                config.progress_bars,
            ),
            engine,
            catalogue,
            fetcher: Fetcher::new(config.server.image_urls, config.limits.body_bytes as u64),
            throttle: Throttle::default(),
            kept: Kept::new(config.folders.data.join("jobs")),
            styles: Arc::new(StyleFiles {
                patterns: config.folders.styles.clone(),
            }),
            ready: AtomicBool::new(!config.runtime.load_at_start),
            exit: exit_at_once,
            stop: Notify::new(),
            started: Instant::now(),
            config,
        };
        Ok(Self {
            server: Arc::new(server),
        })
    }

    /// The shared state, for [`http::configure`].
    #[must_use]
    pub fn server(&self) -> &Arc<Server> {
        &self.server
    }
}

/// Builds the server and answers requests until it is told to stop.
///
/// # Errors
/// See [`StartError`].
pub fn serve(config: Config) -> Result<(), StartError> {
    let app = App::build(config)?;
    let (listener, port) = bind(&app.server.config.server.binding)?;
    let outcome = actix_web::rt::System::new().block_on(run(app, listener, port));
    if outcome.is_ok() && has_background_work() {
        exit_at_once(0);
    }
    outcome
}

/// Threads that read requests and write answers; they never compute.
const HTTP_THREADS: usize = 2;
/// How long answers may take to leave after the last job.
const SHUTDOWN_SECONDS: u64 = 3;

/// Answers requests on a bound socket until a signal or a request ends it.
///
/// # Errors
/// When HTTPS cannot be set up or the server fails.
pub async fn run(app: App, listener: TcpListener, port: u16) -> Result<(), StartError> {
    let server = Arc::clone(&app.server);
    let for_workers = Arc::clone(&server);
    let http = HttpServer::new(move || {
        actix_web::App::new()
            .wrap(from_fn(http::surround))
            .configure(|config| http::configure(&for_workers, config))
    })
    .workers(HTTP_THREADS)
    .keep_alive(Duration::from_secs(server.config.server.keep_alive_s))
    .client_request_timeout(Duration::from_secs(server.config.limits.head_timeout_s))
    .max_connections(server.config.limits.connections.div_ceil(HTTP_THREADS))
    .h1_allow_half_closed(false)
    .shutdown_timeout(SHUTDOWN_SECONDS)
    .disable_signals();
    let http = match &server.config.server.tls {
        Some(tls) => http.listen_rustls_0_23(listener, tls_config(tls)?),
        None => http.listen(listener),
    };
    let running = http.map_err(StartError::Serve)?.run();
    let handle = running.handle();
    welcome(&server, port);
    check_in_background(&server);
    if server.config.runtime.load_at_start {
        load_in_background(&server);
    }
    Kept::resume(&server.clone().into());
    let answering = actix_web::rt::spawn(running);
    stop_asked(&server).await;
    // Progress is answered until the running job is done; then open connections are closed.
    server.jobs.close();
    let for_drain = Arc::clone(&server);
    let drained = async move {
        match for_drain.config.queue.drain_s {
            Some(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
            None => std::future::pending().await,
        }
        tracing::warn!("the running jobs took too long to end; they are interrupted");
        for_drain.jobs.interrupt_all();
        std::future::pending::<()>().await;
    };
    let finished = actix_web::web::block(move || server.jobs.shut_down());
    tokio::select! {
        _ = finished => handle.stop(true).await,
        () = drained => {}
        () = signal() => {
            tracing::warn!("stopped at once; the running job is lost");
            handle.stop(false).await;
            exit_at_once(130);
        }
    }
    answering.abort();
    Ok(())
}

async fn stop_asked(server: &Server) {
    tokio::select! {
        () = signal() => {}
        () = server.stop.notified() => {}
    }
    tracing::info!(
        "stopping: the running job is finished, waiting ones are refused; a second signal stops at once"
    );
}

/// SIGINT or SIGTERM.
async fn signal() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let (Ok(mut interrupt), Ok(mut terminate)) = (
            signal(SignalKind::interrupt()),
            signal(SignalKind::terminate()),
        ) {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            return;
        }
    }
    let _ = tokio::signal::ctrl_c().await;
}

fn load_in_background(server: &Arc<Server>) {
    let server = Arc::clone(server);
    actix_web::rt::spawn(async move {
        let for_job = Arc::clone(&server);
        let loaded = server
            .jobs
            .run(Ticket::default(), move |_| CurrentModel(&for_job).load())
            .await;
        match loaded {
            // Whoever waited until it is ready finds the hash in the title. Jobs need not wait, nor the server's end.
            Ok(Ok(hash)) => {
                std::thread::spawn(move || {
                    hash.wait();
                    server.ready.store(true, Ordering::Relaxed);
                });
                return;
            }
            Ok(Err(error)) => {
                tracing::error!(%error, "the checkpoint is not loaded; the first request will say so");
            }
            Err(_) => {}
        }
        server.ready.store(true, Ordering::Relaxed);
    });
}

/// Files that cannot be used are told at the start, not when somebody asks for one; a large folder
/// takes a while.
fn check_in_background(server: &Arc<Server>) {
    let catalogue = Arc::clone(&server.catalogue);
    std::thread::spawn(move || catalogue.check_checkpoints());
}

/// Says where the server answers and what to do next.
fn welcome(server: &Server, port: u16) {
    let config = &server.config.server;
    let scheme = if config.tls.is_some() {
        "https"
    } else {
        "http"
    };
    let host = match config.binding.host.as_str() {
        "0.0.0.0" | "::" => "127.0.0.1",
        host => host,
    };
    let address = format!("{scheme}://{host}:{port}");
    let login = if config.logins.is_empty() {
        ""
    } else {
        " -u USER:PASSWORD"
    };
    let text = format!(
        "Ancestral answers at {address}\n\
         \n\
         Draw a picture into picture.png:\n\
         \n  curl -s{login} {address}/sdapi/v1/txt2img -H 'Content-Type: application/json' \\\n    \
         -d '{{\"prompt\": \"a red cube on a table\", \"steps\": 20}}' \\\n    \
         | python3 -c 'import base64, json, sys; open(\"picture.png\", \"wb\").write(base64.b64decode(json.load(sys.stdin)[\"images\"][0]))'\n\n"
    );
    // Nobody may be reading; that is no reason to end.
    let _ = std::io::stdout().write_all(text.as_bytes());
    let _ = std::io::stdout().flush();
    tracing::info!(elapsed_ms = server.started.elapsed().as_millis() as u64, %address, "ready");
}

/// Binds the port, or one of the next where none was asked for.
fn bind(binding: &Binding) -> Result<(TcpListener, u16), StartError> {
    let last = binding.port.saturating_add(binding.further_ports);
    for port in binding.port..=last {
        match TcpListener::bind((binding.host.as_str(), port)) {
            Ok(listener) => {
                let port = listener.local_addr().map_or(port, |address| address.port());
                return Ok((listener, port));
            }
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {}
            Err(source) => {
                return Err(StartError::Bind {
                    host: binding.host.clone(),
                    port,
                    source,
                });
            }
        }
    }
    Err(StartError::PortInUse {
        host: binding.host.clone(),
        port: last,
    })
}

fn tls_config(tls: &Tls) -> Result<rustls::ServerConfig, StartError> {
    let failed = |path: &Path, reason: String| StartError::Tls {
        path: path.to_owned(),
        reason,
    };
    let read =
        |path: &Path| fs_err::read(path).map_err(|error| failed(path, error.kind().to_string()));
    let certificates = rustls_pemfile::certs(&mut read(&tls.certificate)?.as_slice())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| failed(&tls.certificate, error.to_string()))?;
    let key = rustls_pemfile::private_key(&mut read(&tls.key)?.as_slice())
        .map_err(|error| failed(&tls.key, error.to_string()))?
        .ok_or_else(|| failed(&tls.key, "it holds no private key".to_owned()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder
                .with_no_client_auth()
                .with_single_cert(certificates, key)
        })
        .map_err(|error| failed(&tls.certificate, error.to_string()))
}

/// The lists of models. The embedded model is there while the folders hold no checkpoint.
fn catalogue(folders: &Folders) -> Catalogue {
    let ckpt_dir = (folders.checkpoints.len() > 1).then(|| folders.checkpoints[0].clone());
    let config = CatalogueConfig {
        models_dir: folders.models.clone(),
        ckpt_dir,
        vae_dir: folders.vaes.get(1).cloned(),
        vae_path: folders.vae.clone(),
        no_hashing: folders.no_hashing,
        extra_checkpoints: folders.checkpoint.iter().cloned().collect(),
        network_dirs: folders.loras.clone(),
        embeddings_dir: Some(folders.embeddings.clone()),
        hypernetworks_dir: Some(folders.hypernetworks.clone()),
        upscaler_dirs: folders.upscalers.clone(),
        face_dirs: folders.faces.clone(),
        gfpgan_model: folders.gfpgan_model.clone(),
        hash_cache: Some(folders.data.join("cache").join("hashes.json")),
    };
    let catalogue = Catalogue::new(config.clone());
    match embedded_model() {
        Some(model) if catalogue.checkpoints().is_empty() => Catalogue::new(CatalogueConfig {
            extra_checkpoints: vec![model],
            ..config
        }),
        _ => catalogue,
    }
}

/// The folder of the embedded model: beside the executable, or in the source it was built from.
fn embedded_model() -> Option<PathBuf> {
    let executable = std::env::current_exe().ok();
    let beside = executable
        .as_deref()
        .and_then(Path::parent)
        .map(|folder| folder.join("onnx"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("onnx");
    beside.into_iter().chain([source]).find_map(|folder| {
        let inner = fs_err::read_dir(&folder)
            .ok()?
            .filter_map(Result::ok)
            .map(|entry| entry.path());
        std::iter::once(folder.clone())
            .chain(inner)
            .find(|path| path.join("unet").is_dir())
    })
}

fn runtime(config: &Config) -> Result<Runtime, StartError> {
    let library = find_library(&LibrarySearch {
        explicit: config.runtime.library.clone(),
        data_dir: config.folders.data.clone(),
        python_prefixes: Vec::new(),
    })?;
    let mut providers = config
        .runtime
        .execution_providers
        .iter()
        .map(|name| name.parse::<ExecutionProvider>())
        .collect::<Result<Vec<_>, _>>()
        .map_err(StartError::ExecutionProvider)?;
    if providers.is_empty() {
        providers = vec![
            ExecutionProvider::Cuda,
            ExecutionProvider::DirectMl,
            ExecutionProvider::Cpu,
        ];
    }
    let options = RuntimeOptions {
        providers,
        threads: config.runtime.threads.unwrap_or(0),
        device_id: config.runtime.device_id,
        gpu_memory_bytes: config.runtime.gpu_memory_bytes,
        conv_search: match &config.runtime.conv_search {
            Some(name) => name.parse::<ConvSearch>().map_err(StartError::ConvSearch)?,
            None => ConvSearch::default(),
        },
        cache_folder: config.folders.data.join("cache"),
        half: config.runtime.precision.is_half(true),
        matrix_unit: config.runtime.matrix_unit,
    };
    let asked_for_gpu = !config.runtime.execution_providers.is_empty()
        && options
            .providers
            .first()
            .is_some_and(|provider| provider.is_gpu());
    let runtime = Runtime::load(&library, options)?;
    let names: Vec<&str> = runtime.providers().iter().map(|it| it.name()).collect();
    if asked_for_gpu && !runtime.is_on_gpu() {
        tracing::warn!(
            "no execution provider of --execution-provider can use a GPU here; graphs run on the CPU"
        );
    }
    tracing::info!(
        providers = %names.join(", "),
        device = config.runtime.device_id,
        half = config.runtime.precision.is_half(runtime.is_on_gpu()),
        "graphs run on {}", names[0]
    );
    Ok(runtime)
}

fn queue_limits(config: &QueueConfig, usual: usize) -> QueueLimits {
    QueueLimits {
        waiting: config.waiting,
        waiting_per_client: config.waiting_per_client.unwrap_or(usize::MAX),
        concurrent: config.concurrent.unwrap_or(usual),
        cancel_on_disconnect: config.cancel_on_disconnect,
    }
}

/// Half of the machine's memory unless a flag says otherwise.
fn memory_budget(config: &RuntimeConfig) -> u64 {
    const FALLBACK_BYTES: u64 = 8 << 30;
    config
        .model_memory_bytes
        .unwrap_or_else(|| total_memory_bytes().map_or(FALLBACK_BYTES, |bytes| bytes / 2))
}

/// The pipeline over checkpoints that the ONNX Runtime runs.
struct Pipeline {
    provider: Provider,
    tower_widths: Mutex<Vec<usize>>,
}

impl Engine for Pipeline {
    fn generate(
        &self,
        params: &GenerationParams,
        control: &dyn JobControl,
    ) -> Result<GenerationResult, GenerateError> {
        let _job = self.provider.job();
        generate(params, &self.provider, control)
    }

    fn run_script(
        &self,
        script: &ScriptCall,
        params: &GenerationParams,
        control: &dyn JobControl,
    ) -> Result<GenerationResult, GenerateError> {
        let _job = self.provider.job();
        run_script(script, params, &self.provider, control)
    }

    fn extras(
        &self,
        params: &ExtrasParams,
        control: &dyn JobControl,
    ) -> Result<ExtrasResult, GenerateError> {
        extras(
            params,
            self.provider.upscalers(),
            self.provider.faces(),
            control,
        )
    }

    fn load(&self, request: &ModelRequest) -> Result<ShortHash, GenerateError> {
        let model = self.provider.load(request).map_err(GenerateError::Load)?;
        *self.tower_widths.lock() = model
            .text_encoders
            .iter()
            .map(|encoder| encoder.width())
            .collect();
        Ok(model.short_hash.clone())
    }

    fn tower_widths(&self) -> Vec<usize> {
        self.tower_widths.lock().clone()
    }

    fn graph_runs(&self) -> Vec<GraphRuns> {
        let times = self.provider.runtime().graph_times();
        let runs = times.into_iter().map(|time| GraphRuns {
            graph: time.graph,
            count: time.runs,
            seconds: time.seconds,
        });
        runs.collect()
    }

    fn unload(&self) {
        self.provider.unload_all();
    }
}

/// The styles of `styles.csv`, read when somebody asks.
struct StyleFiles {
    /// Files; the last part may hold `*` and `?`.
    patterns: Vec<PathBuf>,
}

impl StyleBook for StyleFiles {
    fn styles(&self) -> Vec<StyleRow> {
        let files: Vec<PathBuf> = self
            .patterns
            .iter()
            .flat_map(|pattern| expand(pattern))
            .collect();
        let mut rows: Vec<StyleRow> = Vec::new();
        for file in &files {
            let Ok(text) = fs_err::read_to_string(file) else {
                continue;
            };
            let styles = match parse_styles_csv(&text) {
                Ok(styles) => styles,
                Err(error) => {
                    tracing::warn!(file = %file.display(), %error, "the styles are not used");
                    continue;
                }
            };
            if files.len() > 1 {
                let stem = file
                    .file_stem()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .to_uppercase();
                rows.push(StyleRow {
                    name: format!("{:-^40}", format!(" {stem} ")),
                    prompt: String::new(),
                    negative_prompt: String::new(),
                    divider: true,
                });
            }
            for style in styles {
                let row = StyleRow {
                    name: style.name,
                    prompt: style.prompt,
                    negative_prompt: style.negative_prompt,
                    divider: false,
                };
                match rows
                    .iter_mut()
                    .find(|known| known.name == row.name && !known.divider)
                {
                    Some(known) => *known = row,
                    None => rows.push(row),
                }
            }
        }
        rows
    }
}

/// The files that a pattern means, in order.
fn expand(pattern: &Path) -> Vec<PathBuf> {
    let name = pattern.file_name().unwrap_or_default().to_string_lossy();
    if !name.contains(['*', '?']) {
        return vec![pattern.to_owned()];
    }
    let expression = regex::escape(&name)
        .replace(r"\*", ".*")
        .replace(r"\?", ".");
    let Ok(matcher) = regex::Regex::new(&format!("^{expression}$")) else {
        return Vec::new();
    };
    let folder = pattern.parent().unwrap_or(Path::new("."));
    let mut files: Vec<PathBuf> = fs_err::read_dir(folder)
        .map(|entries| {
            entries
                .filter_map(Result::ok)
                .map(|entry| entry.path())
                .collect()
        })
        .unwrap_or_default();
    files.retain(|file| matcher.is_match(&file.file_name().unwrap_or_default().to_string_lossy()));
    files.sort();
    files
}

/// `ancestral export CHECKPOINT DIR`
///
/// # Errors
/// When the checkpoint cannot be read or the folder not be written.
pub fn export(checkpoint: &Path, folder: &Path, config: &Config) -> anyhow::Result<()> {
    // Only checkpoints that do not say what they predict need a run of their UNet.
    let runtime = runtime(config).ok();
    let towers = tower_folders(checkpoint, config);
    crate::models::export(runtime.as_ref(), checkpoint, folder, &towers)?;
    Ok(())
}

/// Where the configurations of a checkpoint's text towers may lie: the `models` folder that it is in, and that of the
/// data folder.
fn tower_folders(checkpoint: &Path, config: &Config) -> Vec<PathBuf> {
    let path = std::path::absolute(checkpoint).unwrap_or_default();
    let around = path.ancestors().skip(1);
    around
        .filter(|folder| folder.ends_with("models"))
        .map(Path::to_path_buf)
        .chain([config.folders.models.clone()])
        .collect()
}

/// `ancestral inspect FILE`: prints what the file (or a folder of ONNX graphs) is and what it lacks.
///
/// # Errors
/// When it cannot be read or is no checkpoint; the message says what it is instead.
pub fn inspect(file: &Path, config: &Config) -> anyhow::Result<()> {
    let towers = tower_folders(file, config);
    std::io::stdout().write_all(crate::models::describe(file, &towers)?.as_bytes())?;
    Ok(())
}
