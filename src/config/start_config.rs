//! From flags and environment to the small structs that the rest of the server is built from.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::api_keys::{self, ApiKey};
use super::{Environment, FlagError, Flags, QueueConfig, RequestLimits, WebhookConfig};

/// Why the server cannot start with this command line.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(transparent)]
    Flags(#[from] FlagError),
    #[error("--{flag}: {value} {problem}")]
    Value {
        flag: &'static str,
        value: String,
        problem: &'static str,
    },
    #[error("the data folder {path} cannot be written: {source}; choose another with --data-dir")]
    DataFolder {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("--flags-file: {path}: {problem}")]
    File { path: PathBuf, problem: String },
    #[error("there is no flag --{name}, which the environment or the file of --flags-file sets")]
    UnknownSetting { name: String },
    #[error("the working directory cannot be read: {0}")]
    WorkingDirectory(std::io::Error),
}

/// What the command line asks for.
#[derive(Debug, Clone)]
pub enum Command {
    Serve(Box<Config>),
    /// Write the graphs of a checkpoint into a folder.
    Export {
        checkpoint: PathBuf,
        folder: PathBuf,
        config: Box<Config>,
    },
    /// Say what a model file is.
    Inspect {
        file: PathBuf,
        config: Box<Config>,
    },
}

/// Everything the server needs to know before it starts.
#[derive(Debug, Clone)]
pub struct Config {
    pub server: ServerConfig,
    pub folders: Folders,
    pub runtime: RuntimeConfig,
    pub freeze: Freeze,
    pub queue: QueueConfig,
    pub webhook: WebhookConfig,
    pub limits: RequestLimits,
    pub dynamic_prompts: DynamicPromptsMode,
    /// `--use-cpu all`: the noise source `GPU` means the CPU generator.
    pub noise_on_cpu: bool,
    pub progress_bars: bool,
    pub log_filter: String,
    pub log_json: bool,
    /// Sentences on flags that were given and have no effect here.
    pub ineffective_flags: Vec<String>,
    /// The body of `GET /sdapi/v1/cmd-flags`.
    pub flag_echo: Map<String, Value>,
}

/// `--dynamic-prompts`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DynamicPromptsMode {
    /// In force where a folder of wildcards is there: a data folder without one behaves as A1111
    /// without the extension. A request may switch them on.
    #[default]
    Auto,
    /// In force unless a request switches them off.
    On,
    /// The extension is not there.
    Off,
}

impl DynamicPromptsMode {
    fn from_flags(flags: &Flags) -> Result<Self, ConfigError> {
        const FLAG: &str = "dynamic-prompts";
        match flags.value(FLAG) {
            None | Some("auto") => Ok(Self::Auto),
            Some("on") => Ok(Self::On),
            Some("off") => Ok(Self::Off),
            Some(other) => Err(ConfigError::Value {
                flag: FLAG,
                value: other.to_owned(),
                problem: "is none of auto, on, off",
            }),
        }
    }
}

/// Where and how the server answers.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    pub binding: Binding,
    /// `--nowebui` is off: the page and the `/internal` routes are there.
    pub web_routes: bool,
    /// `(user, password)`; empty: no login.
    pub logins: Vec<(String, String)>,
    /// Who may enter with a key instead.
    pub keys: Vec<ApiKey>,
    /// Names beside the loopback ones that a server on the loopback interface answers to.
    pub hosts: Vec<String>,
    /// Pictures may be given as addresses.
    pub image_urls: bool,
    pub api_log: bool,
    pub server_stop: bool,
    /// A launcher starts the server again after it ends.
    pub restartable: bool,
    pub keep_alive_s: u64,
    pub cors_origins: Vec<String>,
    pub cors_origin_regex: Option<String>,
    pub cors_local: bool,
    pub tls: Option<Tls>,
    pub subpath: String,
}

/// The address to bind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    pub host: String,
    pub port: u16,
    /// How many further ports may be tried when this one is taken.
    pub further_ports: u16,
}

/// PEM files for HTTPS.
#[derive(Debug, Clone)]
pub struct Tls {
    pub key: PathBuf,
    pub certificate: PathBuf,
}

/// Folders in A1111's layout; several where A1111 looks into several, in its order.
#[derive(Debug, Clone)]
pub struct Folders {
    pub data: PathBuf,
    pub models: PathBuf,
    /// `--ckpt`, if given.
    pub checkpoint: Option<PathBuf>,
    pub checkpoints: Vec<PathBuf>,
    pub vaes: Vec<PathBuf>,
    /// `--vae-path`: wins over every option.
    pub vae: Option<PathBuf>,
    pub loras: Vec<PathBuf>,
    pub embeddings: PathBuf,
    pub hypernetworks: PathBuf,
    pub upscalers: Vec<PathBuf>,
    /// CodeFormer's and GFPGAN's.
    pub faces: Vec<PathBuf>,
    /// `--gfpgan-model`, if given.
    pub gfpgan_model: Option<PathBuf>,
    pub styles: Vec<PathBuf>,
    /// Files of wildcards for dynamic prompts.
    pub wildcards: Vec<PathBuf>,
    pub options_file: PathBuf,
    /// `--no-hashing`: hashes that are not known yet are not computed.
    pub no_hashing: bool,
    /// Where `params.txt` goes; `None` with `--no-prompt-history`.
    pub prompt_history: Option<PathBuf>,
    /// `--gradio-allowed-path`: further folders that the `outdir_…` options may point to.
    pub allowed_outputs: Vec<PathBuf>,
    pub filename_max_length: usize,
    pub unix_filenames: bool,
}

/// How graphs run.
#[derive(Debug, Clone, Default)]
pub struct RuntimeConfig {
    pub library: Option<PathBuf>,
    /// In the order to try; empty: whatever the library offers.
    pub execution_providers: Vec<String>,
    pub threads: Option<usize>,
    pub device_id: i32,
    /// `--gpu-mem-limit`
    pub gpu_memory_bytes: Option<u64>,
    /// `--conv-search`, by name.
    pub conv_search: Option<String>,
    pub precision: PrecisionFlags,
    /// The processor's matrix unit may compute layers.
    pub matrix_unit: bool,
    pub model_memory_bytes: Option<u64>,
    /// `--decode-memory`: what decoding a picture may take; `None`: what is free.
    pub decode_memory_bytes: Option<u64>,
    /// Latent pixels of a run that jobs share; `None`: what suits the hardware.
    pub shared_latent_pixels: Option<usize>,
    pub load_at_start: bool,
    pub load_strategy: LoadStrategyFlag,
    /// `--disable-nan-check`: a picture of no numbers is answered, black, instead of an error.
    pub answers_nan: bool,
    /// Finished pictures are looked at by the models folder's safety checker.
    pub safety_checker: bool,
}

/// `--load-strategy`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LoadStrategyFlag {
    /// By what will pay.
    #[default]
    Auto,
    /// For the shortest load.
    Quick,
    /// For the fastest steps.
    Fast,
}

impl LoadStrategyFlag {
    fn from_flags(flags: &Flags) -> Result<Self, ConfigError> {
        const FLAG: &str = "load-strategy";
        match flags.value(FLAG) {
            None | Some("auto") => Ok(Self::Auto),
            Some("quick") => Ok(Self::Quick),
            Some("fast") => Ok(Self::Fast),
            Some(other) => Err(ConfigError::Value {
                flag: FLAG,
                value: other.to_owned(),
                problem: "is none of auto, quick, fast",
            }),
        }
    }
}

/// What `--precision`, `--no-half` and `--no-half-vae` ask for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PrecisionFlags {
    pub networks: Halves,
    /// `--no-half-vae`: the VAE in float32 whatever the rest computes in.
    pub float_vae: bool,
}

impl PrecisionFlags {
    /// Whether UNet and text encoder compute in half precision.
    #[must_use]
    pub fn is_half(self, on_gpu: bool) -> bool {
        match self.networks {
            Halves::OnGpu => on_gpu,
            Halves::Always => true,
            Halves::Never => false,
        }
    }

    /// Whether the VAE does.
    #[must_use]
    pub fn is_vae_half(self, on_gpu: bool) -> bool {
        self.is_half(on_gpu) && !self.float_vae
    }
}

/// Where networks compute in half precision.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Halves {
    /// On a GPU (`--precision autocast`).
    #[default]
    OnGpu,
    /// `--precision half`
    Always,
    /// `--precision full` or `--no-half`
    Never,
}

impl PrecisionFlags {
    fn from_flags(flags: &Flags) -> Self {
        let networks = match flags.value("precision") {
            _ if flags.given("no_half") => Halves::Never,
            Some("full") => Halves::Never,
            Some("half") => Halves::Always,
            _ => Halves::OnGpu,
        };
        Self {
            networks,
            float_vae: flags.given("no_half_vae"),
        }
    }
}

/// Options that clients may not change.
#[derive(Debug, Clone, Default)]
pub struct Freeze {
    pub all: bool,
    pub sections: Vec<String>,
    pub keys: Vec<String>,
    /// `--hide-ui-dir-config`: folder and file name options ignore changes.
    pub folders: bool,
}

impl Command {
    /// Reads `arguments` (the first is the program's name).
    ///
    /// # Errors
    /// When the command line asks for something that cannot be; `--help` and `--version` too.
    pub fn parse(
        arguments: impl IntoIterator<Item = OsString>,
        environment: &Environment,
    ) -> Result<Self, ConfigError> {
        let mut words: Vec<String> = arguments
            .into_iter()
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        if words.len() <= 1 || words[1].starts_with('-') {
            words.extend(
                environment
                    .commandline_args
                    .split_whitespace()
                    .map(str::to_owned),
            );
        }
        let serves = words.get(1).is_none_or(|word| word.starts_with('-'));
        if serves {
            words = Flags::complete(&words, &environment.flags)?;
        }
        let flags = Flags::parse(&words, environment.ignore_flag_errors)?;
        let path = |matches: &clap::ArgMatches, name: &str| {
            PathBuf::from(matches.get_one::<String>(name).cloned().unwrap_or_default())
        };
        match flags.subcommand() {
            Some(("inspect", matches)) => Ok(Self::Inspect {
                file: path(matches, "file"),
                config: Box::new(Config::from_flags(&flags, environment)?),
            }),
            Some(("export", matches)) => Ok(Self::Export {
                checkpoint: path(matches, "checkpoint"),
                folder: path(matches, "folder"),
                config: Box::new(Config::from_flags(&flags, environment)?),
            }),
            _ => Ok(Self::Serve(Box::new(Config::from_flags(
                &flags,
                environment,
            )?))),
        }
    }
}

impl Config {
    /// The configuration of `ancestral FLAGS` with no environment, for tests and embedders.
    ///
    /// # Errors
    /// See [`Command::parse`].
    pub fn from_arguments(arguments: &[&str]) -> Result<Self, ConfigError> {
        let mut words = vec!["ancestral".to_owned()];
        words.extend(arguments.iter().map(ToString::to_string));
        Self::from_flags(&Flags::parse(&words, false)?, &Environment::default())
    }

    fn from_flags(flags: &Flags, environment: &Environment) -> Result<Self, ConfigError> {
        let here = std::env::current_dir().map_err(ConfigError::WorkingDirectory)?;
        let data = here.join(flags.value("data_dir").unwrap_or("data"));
        let folders = Folders::from_flags(flags, &here, data);
        Ok(Self {
            server: ServerConfig::from_flags(flags, environment)?,
            runtime: RuntimeConfig::from_flags(flags, environment)?,
            freeze: Freeze::from_flags(flags),
            queue: QueueConfig::from_flags(flags)?,
            webhook: WebhookConfig::from_flags(flags, environment),
            limits: RequestLimits::from_flags(flags)?,
            dynamic_prompts: DynamicPromptsMode::from_flags(flags)?,
            noise_on_cpu: flags
                .values("use_cpu")
                .iter()
                .any(|name| name.eq_ignore_ascii_case("all")),
            progress_bars: !flags.given("disable_console_progressbars"),
            log_filter: log_filter(flags, environment),
            log_json: flags.given("log-json"),
            ineffective_flags: flags.without_effect(),
            flag_echo: flags.echo(&folders.data, &here),
            folders,
        })
    }

    /// Creates the data folder if it is missing and makes sure that it can be written.
    ///
    /// # Errors
    /// When it cannot.
    pub fn prepare_data_folder(&self) -> Result<(), ConfigError> {
        let folder = &self.folders.data;
        let probe = folder.join(".write-test");
        fs_err::create_dir_all(folder)
            .and_then(|()| fs_err::write(&probe, b""))
            .and_then(|()| fs_err::remove_file(&probe))
            .map_err(|source| ConfigError::DataFolder {
                path: folder.clone(),
                source: plain(&source),
            })
    }
}

/// The error without the path that `fs_err` adds, since the message names it already.
fn plain(error: &std::io::Error) -> std::io::Error {
    std::io::Error::from(error.kind())
}

impl ServerConfig {
    /// Whether every route asks who is there.
    #[must_use]
    pub fn asks_for_login(&self) -> bool {
        !self.logins.is_empty() || !self.keys.is_empty()
    }

    /// Whom a key belongs to.
    #[must_use]
    pub fn find_key(&self, key: &str) -> Option<&ApiKey> {
        api_keys::find(&self.keys, key)
    }

    fn from_flags(flags: &Flags, environment: &Environment) -> Result<Self, ConfigError> {
        let web_routes = !flags.given("nowebui");
        let host = match flags.value("server_name") {
            Some(name) => name.to_owned(),
            None if flags.given("listen") => "0.0.0.0".to_owned(),
            None => "127.0.0.1".to_owned(),
        };
        let given_port: Option<u16> = number(flags, "port")?;
        let binding = Binding {
            host,
            port: given_port.unwrap_or(if web_routes { 7860 } else { 7861 }),
            further_ports: if given_port.is_none() && web_routes {
                99
            } else {
                0
            },
        };
        let tls = match (flags.value("tls_keyfile"), flags.value("tls_certfile")) {
            (Some(key), Some(certificate)) => Some(Tls {
                key: key.into(),
                certificate: certificate.into(),
            }),
            _ => None,
        };
        let cors_origin_regex = flags.value("cors_allow_origins_regex").map(str::to_owned);
        if let Some(pattern) = &cors_origin_regex
            && regex::Regex::new(pattern).is_err()
        {
            return Err(ConfigError::Value {
                flag: "cors-allow-origins-regex",
                value: pattern.clone(),
                problem: "is no regular expression",
            });
        }
        Ok(Self {
            binding,
            web_routes,
            logins: logins(flags.value("api_auth").unwrap_or(""))?,
            keys: match flags.value("api-keys") {
                Some(file) => api_keys::read(Path::new(file))?,
                None => Vec::new(),
            },
            hosts: comma_list(flags.value("allow-hosts")),
            image_urls: flags.given("allow-image-urls"),
            api_log: flags.given("api_log"),
            server_stop: flags.given("api_server_stop"),
            restartable: environment.restartable,
            keep_alive_s: number(flags, "timeout_keep_alive")?.unwrap_or(30),
            cors_origins: comma_list(flags.value("cors_allow_origins")),
            cors_origin_regex,
            cors_local: flags.given("cors-allow-local"),
            tls,
            subpath: flags
                .value("subpath")
                .unwrap_or("")
                .trim_matches('/')
                .to_owned(),
        })
    }
}

impl Folders {
    fn from_flags(flags: &Flags, here: &Path, data: PathBuf) -> Self {
        let given = |dest: &str| flags.value(dest).map(|value| here.join(value));
        let models = given("models_dir").unwrap_or_else(|| data.join("models"));
        let or_model = |dest: &str, name: &str| given(dest).unwrap_or_else(|| models.join(name));
        let mut checkpoints: Vec<PathBuf> = given("ckpt_dir").into_iter().collect();
        checkpoints.push(models.join("Stable-diffusion"));
        let mut vaes = vec![models.join("VAE")];
        vaes.extend(given("vae_dir"));
        let upscalers = vec![
            or_model("esrgan_models_path", "ESRGAN"),
            or_model("realesrgan_models_path", "RealESRGAN"),
            or_model("dat_models_path", "DAT"),
            models.join("HAT"),
            or_model("swinir_models_path", "SwinIR"),
            or_model("scunet_models_path", "ScuNET"),
        ];
        let mut wildcards = vec![
            data.join("wildcards"),
            data.join("extensions/sd-dynamic-prompts/wildcards"),
        ];
        wildcards.extend(given("wildcards-dir"));
        let mut styles: Vec<PathBuf> = flags
            .values("styles_file")
            .into_iter()
            .map(|file| here.join(file))
            .collect();
        if styles.is_empty() {
            styles.push(data.join("styles.csv"));
        }
        Self {
            checkpoint: given("ckpt"),
            checkpoints,
            vaes,
            vae: given("vae_path"),
            loras: vec![
                or_model("lora_dir", "Lora"),
                or_model("lyco_dir_backcompat", "LyCORIS"),
            ],
            embeddings: given("embeddings_dir").unwrap_or_else(|| data.join("embeddings")),
            hypernetworks: or_model("hypernetwork_dir", "hypernetworks"),
            upscalers,
            faces: vec![
                or_model("codeformer_models_path", "Codeformer"),
                or_model("gfpgan_models_path", "GFPGAN"),
            ],
            gfpgan_model: flags.value("gfpgan_model").map(PathBuf::from),
            styles,
            wildcards,
            options_file: given("ui_settings_file").unwrap_or_else(|| data.join("config.json")),
            no_hashing: flags.given("no_hashing"),
            prompt_history: (!flags.given("no_prompt_history")).then(|| data.join("params.txt")),
            allowed_outputs: flags
                .values("gradio_allowed_path")
                .into_iter()
                .map(|folder| here.join(folder))
                .collect(),
            filename_max_length: flags
                .value("filenames_max_length")
                .and_then(|text| text.parse().ok())
                .unwrap_or(128),
            unix_filenames: flags.given("unix_filenames_sanitization"),
            models,
            data,
        }
    }
}

impl RuntimeConfig {
    fn from_flags(flags: &Flags, environment: &Environment) -> Result<Self, ConfigError> {
        const BYTES_PER_GIB: f64 = 1024.0 * 1024.0 * 1024.0;
        // A latent pixel is 8x8 pixels of the picture.
        const LATENT_PIXELS_PER_MEGAPIXEL: f64 = 1e6 / 64.0;
        let gib = |flag| -> Result<Option<u64>, ConfigError> {
            let given: Option<f64> = number(flags, flag)?;
            Ok(given.map(|gib| (gib * BYTES_PER_GIB) as u64))
        };
        let shared_megapixels: Option<f64> = number(flags, "shared-run-megapixels")?;
        let on_cpu = flags
            .values("use_cpu")
            .iter()
            .any(|name| name.eq_ignore_ascii_case("all"));
        let mut execution_providers = comma_list(flags.value("execution-provider"));
        if on_cpu && execution_providers.is_empty() {
            execution_providers.push("cpu".to_owned());
        }
        Ok(Self {
            library: flags
                .value("ort-library")
                .map(PathBuf::from)
                .or_else(|| environment.ort_library.clone()),
            execution_providers,
            threads: number(flags, "threads")?,
            device_id: number(flags, "device_id")?.unwrap_or(0),
            matrix_unit: !flags.given("no-matrix-unit"),
            model_memory_bytes: gib("model-memory")?,
            decode_memory_bytes: gib("decode-memory")?,
            gpu_memory_bytes: gib("gpu-mem-limit")?,
            conv_search: flags.value("conv-search").map(str::to_owned),
            precision: PrecisionFlags::from_flags(flags),
            load_strategy: LoadStrategyFlag::from_flags(flags)?,
            shared_latent_pixels: shared_megapixels
                .map(|area| (area * LATENT_PIXELS_PER_MEGAPIXEL) as usize),
            load_at_start: !flags.given("skip_load_model_at_start"),
            answers_nan: flags.given("disable_nan_check"),
            safety_checker: flags.given("safety-checker"),
        })
    }
}

impl Freeze {
    fn from_flags(flags: &Flags) -> Self {
        Self {
            all: flags.given("freeze_settings"),
            sections: comma_list(flags.value("freeze_settings_in_sections")),
            keys: comma_list(flags.value("freeze_specific_settings")),
            folders: flags.given("hide_ui_dir_config"),
        }
    }
}

pub(super) fn number<T: std::str::FromStr>(
    flags: &Flags,
    flag: &'static str,
) -> Result<Option<T>, ConfigError> {
    let Some(text) = flags.value(flag) else {
        return Ok(None);
    };
    match text.trim().parse() {
        Ok(number) => Ok(Some(number)),
        Err(_) => Err(ConfigError::Value {
            flag,
            value: text.to_owned(),
            problem: "is no number in range",
        }),
    }
}

fn comma_list(text: Option<&str>) -> Vec<String> {
    text.unwrap_or("")
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(str::to_owned)
        .collect()
}

/// `user:password,user2:password2`, with exactly one colon an entry, as A1111 demands.
fn logins(text: &str) -> Result<Vec<(String, String)>, ConfigError> {
    comma_list(Some(text))
        .into_iter()
        .map(|entry| match entry.split(':').collect::<Vec<_>>()[..] {
            [user, password] => Ok((user.to_owned(), password.to_owned())),
            _ => Err(ConfigError::Value {
                flag: "api-auth",
                value: "(not shown)".to_owned(),
                problem: "needs user:password entries with one colon each",
            }),
        })
        .collect()
}

fn log_filter(flags: &Flags, environment: &Environment) -> String {
    if let Some(filter) = &environment.log_filter {
        return filter.clone();
    }
    let level = match flags.value("loglevel").map(str::to_uppercase).as_deref() {
        Some("TRACE") => "trace",
        Some("DEBUG") => "debug",
        Some("WARNING" | "WARN") => "warn",
        Some("ERROR" | "CRITICAL") => "error",
        _ => "info",
    };
    format!("warn,ancestral={level}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_web_port_moves_on_and_a_given_one_does_not() {
        let config = Config::from_arguments(&[]).expect("accepted");
        assert_eq!(config.server.binding.port, 7860);
        assert_eq!(config.server.binding.further_ports, 99);
        let config = Config::from_arguments(&["--port", "9000"]).expect("accepted");
        assert_eq!(
            (
                config.server.binding.port,
                config.server.binding.further_ports
            ),
            (9000, 0)
        );
        let config = Config::from_arguments(&["--nowebui"]).expect("accepted");
        assert_eq!(config.server.binding.port, 7861);
    }

    #[test]
    fn a_bad_login_or_port_is_one_clear_sentence() {
        let error = Config::from_arguments(&["--api-auth", "a:b:c"]).unwrap_err();
        assert!(!error.to_string().contains("a:b:c"), "{error}");
        let error = Config::from_arguments(&["--port", "x"]).unwrap_err();
        assert_eq!(error.to_string(), "--port: x is no number in range");
    }

    #[test]
    fn folders_follow_a1111s_layout() {
        let config = Config::from_arguments(&["--data-dir", "/d", "--ckpt-dir", "/c"]).expect("ok");
        let folders = &config.folders;
        assert_eq!(
            folders.checkpoints,
            [Path::new("/c"), Path::new("/d/models/Stable-diffusion")]
        );
        assert_eq!(folders.embeddings, Path::new("/d/embeddings"));
        assert_eq!(folders.loras[0], Path::new("/d/models/Lora"));
        assert_eq!(folders.options_file, Path::new("/d/config.json"));
    }

    #[test]
    fn halves_are_for_gpus_unless_a_flag_says_otherwise() {
        let halves = |arguments: &[&str]| {
            let flags = Config::from_arguments(arguments)
                .expect("ok")
                .runtime
                .precision;
            [false, true].map(|on_gpu| (flags.is_half(on_gpu), flags.is_vae_half(on_gpu)))
        };
        let (none, both, no_vae) = ((false, false), (true, true), (true, false));
        assert_eq!(halves(&[]), [none, both]);
        assert_eq!(halves(&["--no-half-vae"]), [none, no_vae]);
        assert_eq!(halves(&["--no-half"]), [none, none]);
        assert_eq!(halves(&["--precision", "full"]), [none, none]);
        assert_eq!(halves(&["--precision", "half"]), [both, both]);
        assert_eq!(halves(&["--precision", "half", "--no-half"]), [none, none]);
    }

    #[test]
    fn a_data_folder_that_is_a_file_is_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("file");
        fs_err::write(&file, b"").expect("written");
        let config =
            Config::from_arguments(&["--data-dir", &file.display().to_string()]).expect("ok");
        let message = config.prepare_data_folder().unwrap_err().to_string();
        assert!(message.contains("cannot be written"), "{message}");
    }
}
