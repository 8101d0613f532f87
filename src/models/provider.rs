//! Loads checkpoints for jobs and keeps the ones used last, within a memory budget.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use parking_lot::Mutex;

use super::adapted::AdaptedSessions;
use super::checkpoint::{
    CheckpointPlan, LoadError, load_built, load_text_encoders, load_vae, open_weights,
    predicts_velocity,
};
use super::embeddings::FittingEmbeddings;
use super::faces::FaceRestorers;
use super::graphs::{BuildOptions, Weights};
use super::lora::AppliedNetwork;
use super::networks::{GraphTextEncoder, GraphUnet, GraphVae};
use super::onnx_folder;
use super::safety::GraphSafetyChecker;
use super::upscalers::UpscalerNetworks;
use crate::catalogue::{Catalogue, Checkpoint, CheckpointFormat, TensorFile, VAE_PREFIX, VaeFile};
use crate::conditioning::{ConditioningCache, TextEncoder};
use crate::pipeline::{
    self, Cause, FaceNetworkProvider, Family, Model, ModelProvider, ModelRequest, Prediction,
    SafetyChecker, UpscalerProvider,
};
use crate::runtime::Runtime;

/// How checkpoints are found and kept.
#[derive(Debug, Clone)]
pub struct ProviderConfig {
    /// Folders that hold text tower configurations, after the checkpoint's own: usually the data
    /// folder's `models`.
    pub tower_folders: Vec<PathBuf>,
    /// Bytes of weights that may stay loaded; what was used last always stays.
    pub memory_budget_bytes: u64,
    /// Results that are no numbers are answered (`--disable-nan-check`).
    pub answers_nan: bool,
    /// The models folder whose safety checker looks at finished pictures; `None`: none does.
    pub safety_checker: Option<PathBuf>,
}

impl Default for ProviderConfig {
    fn default() -> Self {
        Self {
            tower_folders: Vec::new(),
            memory_budget_bytes: 8 << 30,
            answers_nan: false,
            safety_checker: None,
        }
    }
}

/// The [`ModelProvider`] of the server.
pub struct Provider {
    runtime: Runtime,
    catalogue: Arc<Catalogue>,
    config: ProviderConfig,
    /// Most recently used last. Held while loading, so that a checkpoint is loaded once.
    loaded: Mutex<Vec<Loaded>>,
    upscalers: UpscalerNetworks,
    faces: FaceRestorers,
    safety_checker: Option<GraphSafetyChecker>,
}

/// A file or folder in the state in which it was loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Identity {
    path: PathBuf,
    modified: Option<SystemTime>,
    tiling: bool,
    token_merging: bool,
}

impl Identity {
    fn of(path: &Path, options: BuildOptions) -> Self {
        let modified = fs_err::metadata(path)
            .and_then(|metadata| metadata.modified())
            .ok();
        Self {
            path: path.to_owned(),
            modified,
            tiling: options.tiling,
            token_merging: options.token_merging,
        }
    }
}

struct Loaded {
    identity: Identity,
    size_bytes: u64,
    part: Part,
}

#[derive(Clone)]
enum Part {
    Checkpoint(Arc<LoadedCheckpoint>),
    Vae(Arc<GraphVae>),
}

/// A checkpoint without its VAE.
struct LoadedCheckpoint {
    family: Family,
    prediction: Prediction,
    vae_scale: f32,
    alphas_cumprod: Arc<[f32]>,
    unet: Arc<GraphUnet>,
    text_encoders: Vec<Arc<GraphTextEncoder>>,
    /// The weights file, if it is one with a VAE inside.
    vae_weights: Option<Weights>,
    text_cache: Arc<ConditioningCache>,
    size_embedding_width: usize,
    /// Sessions with networks applied; `None`: the checkpoint cannot take any.
    adapted: Option<AdaptedSessions>,
}

/// The networks of one request.
#[derive(Default)]
struct RequestedNetworks {
    applied: Vec<AppliedNetwork>,
    /// Name as in the prompt and short hash.
    named: Vec<(String, String)>,
    missing: Vec<String>,
}

/// Bytes of encoded prompts that a checkpoint keeps.
const TEXT_CACHE_BYTES: usize = 64 << 20;

impl Provider {
    #[must_use]
    pub fn new(runtime: Runtime, catalogue: Arc<Catalogue>, config: ProviderConfig) -> Self {
        Self {
            upscalers: UpscalerNetworks::new(runtime.clone(), catalogue.upscalers().clone()),
            safety_checker: config
                .safety_checker
                .as_deref()
                .map(|models| GraphSafetyChecker::new(runtime.clone(), models)),
            faces: FaceRestorers::new(runtime.clone(), catalogue.faces().clone()),
            runtime,
            catalogue,
            config,
            loaded: Mutex::new(Vec::new()),
        }
    }

    /// The lists that it loads from.
    #[must_use]
    pub fn catalogue(&self) -> &Arc<Catalogue> {
        &self.catalogue
    }

    /// Forgets everything that is loaded; jobs that run keep theirs.
    pub fn unload_all(&self) {
        self.loaded.lock().clear();
        self.upscalers.unload_all();
        self.faces.unload_all();
    }

    /// The checkpoint that a request means; an empty name is the first of the list.
    fn choose(&self, name: &str) -> Result<Checkpoint, LoadError> {
        if name.is_empty() {
            let list = self.catalogue.checkpoints();
            return list.into_iter().next().ok_or(LoadError::NoCheckpoint);
        }
        self.catalogue
            .find(name)
            .ok_or_else(|| LoadError::UnknownCheckpoint {
                name: name.to_owned(),
            })
    }

    fn model(&self, request: &ModelRequest) -> Result<Model, LoadError> {
        let checkpoint = self.choose(&request.checkpoint)?;
        let io = |source| LoadError::Io {
            path: checkpoint.path.display().to_string(),
            source,
        };
        let sha256 = self.catalogue.ensure_hash(&checkpoint).map_err(io)?;
        let mut loaded = self.loaded.lock();
        let main = self.checkpoint(&mut loaded, &checkpoint, variant_of(request))?;
        let vae_file =
            self.catalogue
                .choose_vae(&request.vae, request.prefers_checkpoints_vae, &checkpoint);
        let vae = self.vae(
            &mut loaded,
            &checkpoint,
            &main,
            vae_file.as_ref(),
            request.tiling,
        )?;
        drop(loaded);
        let networks = self.networks(request, &checkpoint)?;
        let (unet, text_encoders) = self.with_networks(&main, &checkpoint, &networks)?;
        let vae_file = match vae_file {
            Some(file) => {
                let mut hash = self.catalogue.vae_hash(&file).map_err(io)?;
                hash.truncate(10);
                Some((file.name, hash))
            }
            None => None,
        };
        Ok(Model {
            name: checkpoint.model_name.clone(),
            short_hash: sha256.chars().take(10).collect(),
            family: main.family,
            prediction: main.prediction,
            unet_channels: main.unet.channels(),
            vae_scale: main.vae_scale,
            alphas_cumprod: Arc::clone(&main.alphas_cumprod),
            unet: Arc::new(unet.with_merge_ratio(request.token_merging_ratio)),
            embeddings: Some(Arc::new(FittingEmbeddings::new(
                self.catalogue.embeddings(),
                &text_encoders
                    .iter()
                    .map(|encoder| encoder.width())
                    .collect::<Vec<_>>(),
            ))),
            text_encoders: text_encoders
                .into_iter()
                .map(|encoder| encoder as Arc<dyn TextEncoder>)
                .collect(),
            vae: vae as Arc<dyn pipeline::Vae>,
            vae_file,
            text_cache: Arc::clone(&main.text_cache),
            size_embedding_width: main.size_embedding_width,
            networks: networks.named,
            missing_networks: networks.missing,
            checks_nan: !self.config.answers_nan,
        })
    }

    /// Opens the network files that a request names.
    fn networks(
        &self,
        request: &ModelRequest,
        checkpoint: &Checkpoint,
    ) -> Result<RequestedNetworks, LoadError> {
        let mut found = RequestedNetworks::default();
        for tag in &request.loras {
            let Some(network) = self.catalogue.networks().find(&tag.name) else {
                found.missing.push(tag.name.clone());
                continue;
            };
            // A file that cannot be read is told in the log and left out, as in A1111.
            let file = match open_weights(&network.path) {
                Ok(file) => Arc::new(file),
                Err(error) => {
                    tracing::warn!(network = %tag.name, %error, "this network cannot be read");
                    found.missing.push(tag.name.clone());
                    continue;
                }
            };
            let hash = network
                .short_hash(self.catalogue.hashes())
                .map_err(|source| LoadError::Io {
                    path: network.path.display().to_string(),
                    source,
                })?;
            found.named.push((tag.name.clone(), hash));
            found.applied.push(AppliedNetwork {
                name: tag.name.clone(),
                file,
                text_multiplier: tag.text_encoder_multiplier as f32,
                unet_multiplier: tag.unet_multiplier as f32,
                dynamic_rank: tag.dynamic_rank,
            });
        }
        if !found.applied.is_empty() && checkpoint.format == CheckpointFormat::OnnxFolder {
            return Err(LoadError::Unusable {
                path: checkpoint.path.display().to_string(),
                reason: "LoRA need the checkpoint file; an ONNX export cannot take them".to_owned(),
            });
        }
        Ok(found)
    }

    /// The UNet and the text towers with the networks applied.
    fn with_networks(
        &self,
        main: &LoadedCheckpoint,
        checkpoint: &Checkpoint,
        networks: &RequestedNetworks,
    ) -> Result<(Arc<GraphUnet>, Vec<Arc<GraphTextEncoder>>), LoadError> {
        let (mut unet, mut text) = (Arc::clone(&main.unet), main.text_encoders.clone());
        let Some(sessions) = main
            .adapted
            .as_ref()
            .filter(|_| !networks.applied.is_empty())
        else {
            return Ok((unet, text));
        };
        let begin = Instant::now();
        let parts = sessions.apply(&self.runtime, &networks.applied)?;
        if let Some(adapted) = parts.unet {
            unet = adapted;
        }
        for (tower, adapted) in parts.text {
            text[tower] = adapted;
        }
        tracing::debug!(
            checkpoint = %checkpoint.name,
            networks = networks.applied.len(),
            elapsed_ms = begin.elapsed().as_millis() as u64,
            "networks applied"
        );
        Ok((unet, text))
    }

    fn checkpoint(
        &self,
        loaded: &mut Vec<Loaded>,
        checkpoint: &Checkpoint,
        options: BuildOptions,
    ) -> Result<Arc<LoadedCheckpoint>, LoadError> {
        let identity = Identity::of(&checkpoint.path, options);
        if let Some(Part::Checkpoint(known)) = recall(loaded, &identity) {
            return Ok(known);
        }
        let begin = Instant::now();
        let size_bytes = size_of(&checkpoint.path);
        self.make_room(loaded, size_bytes);
        let main = Arc::new(match checkpoint.format {
            CheckpointFormat::OnnxFolder => self.load_folder(&checkpoint.path, options)?,
            CheckpointFormat::SafeTensors | CheckpointFormat::Pickle => {
                self.load_weights(&checkpoint.path, options)?
            }
        });
        tracing::info!(
            checkpoint = %checkpoint.name,
            family = ?main.family,
            prediction = ?main.prediction,
            elapsed_ms = begin.elapsed().as_millis() as u64,
            "checkpoint loaded"
        );
        loaded.push(Loaded {
            identity,
            size_bytes,
            part: Part::Checkpoint(Arc::clone(&main)),
        });
        Ok(main)
    }

    fn load_weights(
        &self,
        path: &Path,
        options: BuildOptions,
    ) -> Result<LoadedCheckpoint, LoadError> {
        let plan = CheckpointPlan::open(path, &self.config.tower_folders)?;
        let built = plan.build_unet(options)?;
        let graph = load_built(&self.runtime, "UNet", &built, &plan.unet_weights())?;
        let unet = Arc::new(GraphUnet::new(graph)?);
        let prediction = match plan.stated_prediction() {
            Some(stated) => stated,
            None => predicts_velocity(&unet)?,
        };
        let text_encoders = load_text_encoders(&self.runtime, &plan, options)?
            .into_iter()
            .map(|(encoder, _)| encoder)
            .collect();
        Ok(LoadedCheckpoint {
            family: plan.family(),
            prediction,
            vae_scale: plan.vae_scale(),
            alphas_cumprod: plan.alphas_cumprod(),
            unet,
            text_encoders,
            vae_weights: plan.has_vae().then(|| plan.vae_weights()),
            text_cache: Arc::new(ConditioningCache::new(TEXT_CACHE_BYTES)),
            size_embedding_width: plan.size_embedding_width().unwrap_or(256),
            adapted: Some(AdaptedSessions::new(plan, options)),
        })
    }

    fn load_folder(
        &self,
        path: &Path,
        options: BuildOptions,
    ) -> Result<LoadedCheckpoint, LoadError> {
        let refused = |reason: &str| {
            Err(LoadError::Unusable {
                path: path.display().to_string(),
                reason: reason.to_owned(),
            })
        };
        if options.tiling {
            return refused(
                "tiling needs the checkpoint file; an ONNX export has its padding fixed",
            );
        }
        if options.token_merging {
            return refused(
                "token merging needs the checkpoint file; an ONNX export has its attention fixed",
            );
        }
        let facts = onnx_folder::read_facts(path);
        Ok(LoadedCheckpoint {
            unet: Arc::new(onnx_folder::load_unet(&self.runtime, path)?),
            text_encoders: onnx_folder::load_text_encoders(&self.runtime, path, &facts)?,
            family: facts.family,
            prediction: facts.prediction,
            vae_scale: facts.vae_scale,
            alphas_cumprod: facts.alphas_cumprod,
            vae_weights: None,
            text_cache: Arc::new(ConditioningCache::new(TEXT_CACHE_BYTES)),
            size_embedding_width: facts.size_embedding_width,
            adapted: None,
        })
    }

    /// The VAE for a job: the separate file, else the one inside.
    fn vae(
        &self,
        loaded: &mut Vec<Loaded>,
        checkpoint: &Checkpoint,
        main: &LoadedCheckpoint,
        file: Option<&VaeFile>,
        tiling: bool,
    ) -> Result<Arc<GraphVae>, LoadError> {
        let options = BuildOptions {
            tiling,
            ..BuildOptions::default()
        };
        let mut identity = Identity::of(
            file.map_or(checkpoint.path.as_path(), |file| file.path.as_path()),
            options,
        );
        // The same file may be loaded as a checkpoint too.
        identity.path.push("vae");
        if let Some(Part::Vae(known)) = recall(loaded, &identity) {
            return Ok(known);
        }
        let vae = match (file, &main.vae_weights) {
            (Some(file), _) => load_vae(&self.runtime, &vae_file_weights(&file.path)?, options)?,
            (None, Some(weights)) => load_vae(&self.runtime, weights, options)?,
            (None, None) if checkpoint.format == CheckpointFormat::OnnxFolder => {
                onnx_folder::load_vae(&self.runtime, &checkpoint.path)?
            }
            (None, None) => {
                return Err(LoadError::Unusable {
                    path: checkpoint.path.display().to_string(),
                    reason: "it has no VAE inside; choose one with the option sd_vae".to_owned(),
                });
            }
        };
        loaded.push(Loaded {
            identity,
            size_bytes: file.map_or(0, |file| size_of(&file.path)),
            part: Part::Vae(Arc::clone(&vae)),
        });
        Ok(vae)
    }

    /// Lets go of what was used longest ago until `needed` more bytes are within the budget.
    fn make_room(&self, loaded: &mut Vec<Loaded>, needed: u64) {
        let budget = self.config.memory_budget_bytes.saturating_sub(needed);
        let mut total: u64 = loaded.iter().map(|entry| entry.size_bytes).sum();
        while total > budget && !loaded.is_empty() {
            let gone = loaded.remove(0);
            tracing::info!(path = %gone.identity.path.display(), "unloaded to stay within the memory budget");
            total -= gone.size_bytes;
        }
    }
}

impl ModelProvider for Provider {
    fn load(&self, request: &ModelRequest) -> Result<Arc<Model>, Cause> {
        Ok(Arc::new(self.model(request)?))
    }

    fn knows(&self, checkpoint: &str) -> bool {
        self.catalogue.find(checkpoint).is_some()
    }

    fn upscalers(&self) -> &dyn UpscalerProvider {
        &self.upscalers
    }

    fn safety_checker(&self) -> Option<&dyn SafetyChecker> {
        let checker = self.safety_checker.as_ref()?;
        Some(checker)
    }

    fn faces(&self) -> &dyn FaceNetworkProvider {
        &self.faces
    }
}

/// The variant of the graphs that a request needs.
fn variant_of(request: &ModelRequest) -> BuildOptions {
    BuildOptions {
        tiling: request.tiling,
        token_merging: request.token_merging_ratio > 0.0,
        ..BuildOptions::default()
    }
}

/// What is loaded under this identity, which becomes the last used.
fn recall(loaded: &mut Vec<Loaded>, identity: &Identity) -> Option<Part> {
    let at = loaded
        .iter()
        .position(|entry| entry.identity == *identity)?;
    let entry = loaded.remove(at);
    let part = entry.part.clone();
    loaded.push(entry);
    Some(part)
}

/// A VAE file's tensors, which may have the prefix that they have inside a checkpoint.
fn vae_file_weights(path: &Path) -> Result<Weights, LoadError> {
    let file = Arc::new(open_weights(path)?);
    let prefix = vae_prefix(&file).ok_or_else(|| LoadError::Unusable {
        path: path.display().to_string(),
        reason: "it holds no VAE in the original layout".to_owned(),
    })?;
    Ok(Weights::new(file, prefix))
}

fn vae_prefix(file: &TensorFile) -> Option<&'static str> {
    ["", VAE_PREFIX].into_iter().find(|prefix| {
        file.get(&format!("{prefix}decoder.conv_out.weight"))
            .is_some()
    })
}

/// Bytes of the file, or of the graphs in a folder.
fn size_of(path: &Path) -> u64 {
    if path.is_dir() {
        let Ok(parts) = fs_err::read_dir(path) else {
            return 0;
        };
        return parts
            .flatten()
            .filter_map(|part| fs_err::metadata(part.path().join("model.onnx")).ok())
            .map(|metadata| metadata.len())
            .sum();
    }
    fs_err::metadata(path).map_or(0, |metadata| metadata.len())
}
