//! Execution providers: which are asked for, with which settings, and which of them this machine can use.
//!
//! A library built for a GPU lists its provider on machines without one, and some of them accept it until the
//! first session. So each provider is tried out with a graph of one node ([`usable`]), and only what passed is
//! registered with the sessions, in the order of the flag; the CPU is always the last.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use ort::ep::ArbitrarilyConfigurableExecutionProvider as _;
use ort::ep::cuda::AttentionBackend;
use ort::session::Session;
use ort::session::builder::SessionBuilder;
use ort::value::TensorRef;

use super::RuntimeOptions;

/// The hardware a graph may run on, by the names that the command line uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExecutionProvider {
    Cpu,
    Cuda,
    TensorRt,
    DirectMl,
}

impl ExecutionProvider {
    const ALL: [Self; 4] = [Self::Cpu, Self::Cuda, Self::TensorRt, Self::DirectMl];

    /// The name on the command line and in the log.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::TensorRt => "tensorrt",
            Self::DirectMl => "directml",
        }
    }

    /// How errors name the device, as torch does for CUDA.
    pub(super) fn device_name(self) -> &'static str {
        match self {
            Self::Cpu => "CPU",
            Self::Cuda | Self::TensorRt => "CUDA",
            Self::DirectMl => "DirectML",
        }
    }

    /// Whether it has memory of its own, so that what a graph takes has to be brought there.
    #[must_use]
    pub fn is_gpu(self) -> bool {
        match self {
            Self::Cpu => false,
            Self::Cuda | Self::TensorRt | Self::DirectMl => true,
        }
    }
}

impl FromStr for ExecutionProvider {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|provider| provider.name().eq_ignore_ascii_case(text))
            .ok_or_else(|| {
                format!(
                    "unknown execution provider \"{text}\"; known are cpu, cuda, tensorrt and directml"
                )
            })
    }
}

/// How cuDNN chooses among its convolutions (`--conv-search`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ConvSearch {
    /// Every one is tried at each new size of picture, which takes seconds. Measured on an H100 it gained nothing and chose
    /// badly for some sizes (docs/PERFORMANCE.md).
    Exhaustive,
    /// By cuDNN's own estimate.
    #[default]
    Heuristic,
    /// Always the same one.
    Fixed,
}

impl ConvSearch {
    fn setting(self) -> &'static str {
        match self {
            Self::Exhaustive => "EXHAUSTIVE",
            Self::Heuristic => "HEURISTIC",
            Self::Fixed => "DEFAULT",
        }
    }
}

impl FromStr for ConvSearch {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().as_str() {
            "exhaustive" => Ok(Self::Exhaustive),
            "heuristic" => Ok(Self::Heuristic),
            "fixed" => Ok(Self::Fixed),
            _ => Err(format!("{text} is none of exhaustive, heuristic, fixed")),
        }
    }
}

/// Keys and values in the provider's own words.
pub(super) type ProviderSettings = Vec<(&'static str, String)>;

/// The settings of a provider.
pub(super) fn settings(provider: ExecutionProvider, options: &RuntimeOptions) -> ProviderSettings {
    let device = ("device_id", options.device_id.to_string());
    let yes = || "1".to_owned();
    let folder = |name: &str| {
        let folder = options.cache_folder.join(name);
        folder.to_string_lossy().into_owned()
    };
    match provider {
        ExecutionProvider::Cpu => Vec::new(),
        ExecutionProvider::Cuda => {
            // TensorRT's fused attention in half precision gives SD 2.x black pictures.
            let attention = AttentionBackend::FLASH_ATTENTION
                | AttentionBackend::EFFICIENT_ATTENTION
                | AttentionBackend::MATH;
            let mut settings = vec![
                device,
                // Sizes of pictures change; doubling at each new one would take twice the memory.
                ("arena_extend_strategy", "kSameAsRequested".to_owned()),
                (
                    "cudnn_conv_algo_search",
                    options.conv_search.setting().to_owned(),
                ),
                ("cudnn_conv_use_max_workspace", yes()),
                // Float32 means float32: TensorFloat-32 has ten bits.
                ("use_tf32", "0".to_owned()),
                ("sdpa_kernel", attention.to_string()),
            ];
            if let Some(limit) = options.gpu_memory_bytes {
                settings.push(("gpu_mem_limit", limit.to_string()));
            }
            settings
        }
        ExecutionProvider::TensorRt => vec![
            device,
            ("trt_engine_cache_enable", yes()),
            ("trt_engine_cache_path", folder("tensorrt")),
            ("trt_timing_cache_enable", yes()),
            ("trt_timing_cache_path", folder("tensorrt")),
            ("trt_fp16_enable", u8::from(options.half).to_string()),
            ("trt_layer_norm_fp32_fallback", yes()),
        ],
        ExecutionProvider::DirectMl => vec![device],
    }
}

/// Where graphs can be run; a fake in tests.
pub(super) trait Devices {
    /// Runs a graph of one node with this provider.
    ///
    /// # Errors
    /// Why it cannot be used here.
    fn try_out(
        &self,
        provider: ExecutionProvider,
        settings: &ProviderSettings,
    ) -> Result<(), String>;
}

/// What was asked for and can be used, in the order asked for, the CPU last. TensorRT is followed by CUDA, which
/// takes the nodes that it cannot.
pub(super) fn usable(devices: &dyn Devices, options: &RuntimeOptions) -> Vec<ExecutionProvider> {
    let mut wanted: Vec<ExecutionProvider> = Vec::new();
    for provider in &options.providers {
        // What comes after the CPU would get no node.
        if *provider == ExecutionProvider::Cpu {
            break;
        }
        if !wanted.contains(provider) {
            wanted.push(*provider);
        }
        if *provider == ExecutionProvider::TensorRt
            && !options.providers.contains(&ExecutionProvider::Cuda)
        {
            wanted.push(ExecutionProvider::Cuda);
        }
    }
    let mut found = Vec::new();
    for provider in wanted {
        match devices.try_out(provider, &settings(provider, options)) {
            Ok(()) => found.push(provider),
            Err(reason) => tracing::info!(
                provider = provider.name(),
                %reason,
                "this execution provider cannot be used here and is left out"
            ),
        }
    }
    found.push(ExecutionProvider::Cpu);
    found
}

/// The devices of the loaded library.
pub(super) struct Library<'a> {
    pub(super) environment: &'a ort::environment::Environment,
    pub(super) path: &'a Path,
    pub(super) cache_folder: &'a Path,
}

/// `y = Relu(x)` on two floats (ONNX, IR version 8, opset 17).
pub(super) const PROBE: &[u8] = b"\x08\x08:=\x0a\x12\x0a\x01x\x12\x01y\x1a\x04relu\x22\x04Relu\x12\x05probeZ\x0f\x0a\x01x\x12\x0a\x0a\x08\x08\x01\x12\x04\x0a\x02\x08\x02b\x0f\x0a\x01y\x12\x0a\x0a\x08\x08\x01\x12\x04\x0a\x02\x08\x02B\x04\x0a\x00\x10\x11";

impl Devices for Library<'_> {
    fn try_out(
        &self,
        provider: ExecutionProvider,
        settings: &ProviderSettings,
    ) -> Result<(), String> {
        match provider {
            ExecutionProvider::Cpu => return Ok(()),
            ExecutionProvider::Cuda | ExecutionProvider::TensorRt => {
                preload_beside(self.path);
            }
            ExecutionProvider::DirectMl => {}
        }
        if provider == ExecutionProvider::TensorRt {
            let folder = self.cache_folder.join(provider.name());
            fs_err::create_dir_all(&folder).map_err(|error| error.to_string())?;
        }
        let words = |error: ort::Error| error.to_string();
        let mut builder = Session::builder(self.environment)
            .map_err(words)?
            .with_memory_pattern(provider != ExecutionProvider::DirectMl)
            .map_err(|error| error.to_string())?;
        register(&mut builder, provider, settings)?;
        let mut session = builder.commit_from_memory(PROBE).map_err(words)?;
        let x = ndarray::arr1(&[-1.0_f32, 2.0]);
        let input = TensorRef::from_array_view(x.view()).map_err(words)?;
        let outputs = session.run(ort::inputs!["x" => input]).map_err(words)?;
        let y = outputs
            .get("y")
            .and_then(|value| value.try_extract_array::<f32>().ok())
            .map(|array| array.iter().copied().collect::<Vec<_>>());
        if y.as_deref() == Some(&[0.0, 2.0]) {
            Ok(())
        } else {
            Err(format!("a graph of one node answered {y:?}"))
        }
    }
}

/// Registers one provider with its settings.
pub(super) fn register(
    builder: &mut SessionBuilder,
    provider: ExecutionProvider,
    settings: &ProviderSettings,
) -> Result<(), String> {
    macro_rules! configured {
        ($provider:ty) => {
            settings
                .iter()
                .fold(<$provider>::default(), |provider, (key, value)| {
                    provider.with_arbitrary_config(key, value)
                })
                .build()
        };
    }
    let dispatch = match provider {
        ExecutionProvider::Cpu => return Ok(()),
        ExecutionProvider::Cuda => configured!(ort::ep::CUDA),
        ExecutionProvider::TensorRt => configured!(ort::ep::TensorRT),
        ExecutionProvider::DirectMl => {
            let device = settings.iter().find(|(key, _)| *key == "device_id");
            let device = device.and_then(|(_, value)| value.parse().ok());
            ort::ep::DirectML::default()
                .with_device_id(device.unwrap_or(0))
                .build()
        }
    };
    dispatch
        .error_on_failure()
        .register(builder)
        .map_err(|error| error.to_string())
}

/// Loads NVIDIA's libraries from `nvidia/` beside the runtime, where `scripts/fetch_runtime` puts them: the
/// provider asks for them by name, and finds what is loaded already.
fn preload_beside(library: &Path) {
    let folder = library.parent().unwrap_or(Path::new(".")).join("nvidia");
    let Ok(entries) = fs_err::read_dir(&folder) else {
        return;
    };
    let mut waiting: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    waiting.sort();
    // They need each other; each round loads those whose needs are there.
    loop {
        let before = waiting.len();
        waiting.retain(|path| ort::util::preload_dylib(path).is_err());
        if waiting.is_empty() || waiting.len() == before {
            break;
        }
    }
    for path in waiting {
        tracing::debug!(library = %path.display(), "this library could not be loaded beforehand");
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// Devices of which some are there; notes what was tried.
    struct Fake {
        there: &'static [ExecutionProvider],
        tried: RefCell<Vec<(ExecutionProvider, ProviderSettings)>>,
    }

    impl Devices for Fake {
        fn try_out(
            &self,
            provider: ExecutionProvider,
            settings: &ProviderSettings,
        ) -> Result<(), String> {
            self.tried.borrow_mut().push((provider, settings.clone()));
            if self.there.contains(&provider) {
                Ok(())
            } else {
                Err("no such device".to_owned())
            }
        }
    }

    fn usable_of(
        there: &'static [ExecutionProvider],
        asked: &[ExecutionProvider],
    ) -> (Vec<ExecutionProvider>, Vec<ExecutionProvider>) {
        let fake = Fake {
            there,
            tried: RefCell::default(),
        };
        let options = RuntimeOptions {
            providers: asked.to_vec(),
            ..RuntimeOptions::default()
        };
        let found = usable(&fake, &options);
        let tried = fake.tried.into_inner().into_iter();
        (found, tried.map(|(provider, _)| provider).collect())
    }

    use ExecutionProvider::{Cpu, Cuda, DirectMl, TensorRt};

    #[test]
    fn providers_are_read_by_name() {
        assert_eq!("CUDA".parse(), Ok(Cuda));
        assert!("npu".parse::<ExecutionProvider>().is_err());
    }

    #[test]
    fn the_order_of_the_flag_is_kept_and_the_cpu_is_last() {
        let (found, tried) = usable_of(&[Cuda, DirectMl], &[DirectMl, Cuda]);
        assert_eq!(found, [DirectMl, Cuda, Cpu]);
        assert_eq!(tried, [DirectMl, Cuda]);
    }

    #[test]
    fn what_is_not_there_is_left_out() {
        let (found, tried) = usable_of(&[], &[Cuda, DirectMl, Cpu]);
        assert_eq!(found, [Cpu]);
        assert_eq!(tried, [Cuda, DirectMl]);
    }

    #[test]
    fn nothing_is_tried_after_the_cpu() {
        let (found, tried) = usable_of(&[Cuda], &[Cpu, Cuda]);
        assert_eq!(found, [Cpu]);
        assert_eq!(tried, []);
    }

    #[test]
    fn tensorrt_has_cuda_behind_it() {
        let (found, _) = usable_of(&[Cuda, TensorRt], &[TensorRt]);
        assert_eq!(found, [TensorRt, Cuda, Cpu]);
        let (found, _) = usable_of(&[Cuda, TensorRt], &[Cuda, TensorRt]);
        assert_eq!(found, [Cuda, TensorRt, Cpu]);
    }

    #[test]
    fn settings_are_in_the_providers_words() {
        let options = RuntimeOptions {
            device_id: 1,
            gpu_memory_bytes: Some(6 << 30),
            conv_search: ConvSearch::Exhaustive,
            cache_folder: PathBuf::from("/data/cache"),
            half: true,
            ..RuntimeOptions::default()
        };
        let text = |provider| {
            settings(provider, &options)
                .into_iter()
                .map(|(key, value)| format!("{key}={value}"))
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(
            text(Cuda),
            "device_id=1 arena_extend_strategy=kSameAsRequested cudnn_conv_algo_search=EXHAUSTIVE \
             cudnn_conv_use_max_workspace=1 use_tf32=0 sdpa_kernel=19 gpu_mem_limit=6442450944"
        );
        assert_eq!(
            text(TensorRt),
            "device_id=1 trt_engine_cache_enable=1 trt_engine_cache_path=/data/cache/tensorrt \
             trt_timing_cache_enable=1 trt_timing_cache_path=/data/cache/tensorrt trt_fp16_enable=1 \
             trt_layer_norm_fp32_fallback=1"
        );
        assert_eq!(text(DirectMl), "device_id=1");
        assert_eq!(text(Cpu), "");
    }
}
