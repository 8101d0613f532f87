//! Loads checkpoints for jobs and keeps the ones used last, within a memory budget.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

use super::adapted::{AdaptedSessions, AppliedHypernetwork};
use super::checkpoint::{
    CheckpointPlan, LoadError, Presence, load_text_encoders, load_unet, load_vae, open_weights,
    predicts_velocity,
};
use super::embeddings::FittingEmbeddings;
use super::faces::FaceRestorers;
use super::frugal::{FrugalUnet, FrugalVae, Room};
use super::graphs::{BuildOptions, HypernetworkModules, Precision, Weights};
use super::hypernetwork::open_hypernetwork;
use super::late_hash::LateHashes;
use super::load_strategy::{LARGE_UNET_BYTES, LoadStrategy, OUTWEIGHS_TEXT_LATENT_PIXELS};
use super::lora::{AppliedNetwork, bundled_embeddings};
use super::networks::{GraphTextEncoder, GraphUnet, GraphVae, RunSharing};
use super::onnx_folder;
use super::rest::{RestWatch, RunningJob};
use super::safety::GraphSafetyChecker;
use super::upscalers::UpscalerNetworks;
use crate::catalogue::{
    Catalogue, Checkpoint, CheckpointFormat, HypernetworkFile, TensorFile, VAE_PREFIX, VaeFile,
};
use crate::conditioning::{CacheLimits, ConditioningCache, Embedding, TextEncoder};
use crate::pipeline::{
    self, Cause, FaceNetworkProvider, Family, Model, ModelProvider, ModelRequest, NetworkKind,
    OutOfMemory, Prediction, SafetyChecker, UpscalerProvider,
};
use crate::runtime::{
    BackgroundWork, ExecutionProvider, Graph, LoadEffort, Runtime, RuntimeError,
    available_memory_bytes, give_back_free_memory,
};
use crate::sampling::Unet;

/// How checkpoints are found and kept.
#[derive(Debug, Clone)]
pub struct ProviderConfig {
    /// Folders that hold text tower configurations, after the checkpoint's own: usually the data
    /// folder's `models`.
    pub tower_folders: Vec<PathBuf>,
    /// Bytes of weights that may stay loaded; what was used last always stays.
    pub memory_budget_bytes: u64,
    /// Memory that decoding a picture may take; what takes more in one piece is decoded strip by strip. `None`:
    /// what is free at that moment.
    pub decode_memory_bytes: Option<u64>,
    /// The text towers of a checkpoint with a large UNet make room for its steps on a CPU though both fit, and pictures
    /// are decoded in strips unless `decode_memory_bytes` is given.
    pub text_makes_room: bool,
    pub load_strategy: LoadStrategy,
    /// From how many bytes of float32 on a UNet is a large one to the strategy.
    pub large_unet_bytes: u64,
    /// Results that are no numbers are answered (`--disable-nan-check`).
    pub answers_nan: bool,
    /// UNet and text encoder compute in half precision.
    pub half: bool,
    /// The VAE does.
    pub half_vae: bool,
    /// How long no job has run when memory that their graphs worked in is given back.
    pub rest_after: Duration,
    /// The models folder whose safety checker looks at finished pictures; `None`: none does.
    pub safety_checker: Option<PathBuf>,
    /// How much of calls of different jobs is one run of the UNet.
    pub sharing: RunSharing,
}

impl Default for ProviderConfig {
    fn default() -> Self {
        Self {
            tower_folders: Vec::new(),
            memory_budget_bytes: 8 << 30,
            decode_memory_bytes: None,
            text_makes_room: false,
            load_strategy: LoadStrategy::default(),
            large_unet_bytes: LARGE_UNET_BYTES,
            answers_nan: false,
            half: false,
            half_vae: false,
            rest_after: Duration::from_secs(2),
            safety_checker: None,
            sharing: RunSharing::default(),
        }
    }
}

/// The [`ModelProvider`] of the server.
pub struct Provider {
    runtime: Runtime,
    catalogue: Arc<Catalogue>,
    config: ProviderConfig,
    /// Hypernetwork files that were read, the last ones.
    hypernetworks: Mutex<Vec<(FileState, Arc<HypernetworkModules>)>>,
    /// Most recently used last. Held while loading, so that a checkpoint is loaded once.
    loaded: Arc<Mutex<Vec<Loaded>>>,
    upscalers: UpscalerNetworks,
    faces: FaceRestorers,
    safety_checker: Option<GraphSafetyChecker>,
    rest: RestWatch,
    late_hashes: LateHashes,
}

/// A file or folder in the state in which it was loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Identity {
    path: PathBuf,
    modified: Option<SystemTime>,
    size_bytes: u64,
    tiling: bool,
    token_merging: bool,
    precision: Precision,
}

impl Identity {
    fn of(path: &Path, options: BuildOptions) -> Self {
        let metadata = fs_err::metadata(path).ok();
        Self {
            path: path.to_owned(),
            modified: metadata.as_ref().and_then(|it| it.modified().ok()),
            size_bytes: metadata.map_or(0, |it| it.len()),
            tiling: options.tiling,
            token_merging: options.token_merging,
            precision: options.precision,
        }
    }

    /// The same variant of the same file in another state.
    fn is_outdated(&self, now: &Self) -> bool {
        self.path == now.path && (self.modified, self.size_bytes) != (now.modified, now.size_bytes)
    }
}

struct Loaded {
    identity: Identity,
    part: Part,
}

impl Loaded {
    /// Memory that its sessions take, about: the weights as float32.
    fn size_bytes(&self) -> u64 {
        match &self.part {
            Part::Checkpoint(checkpoint) => checkpoint.size_bytes(),
            Part::Vae(_, size_bytes) => *size_bytes,
        }
    }

    /// Whether a job uses it: letting go of it would free nothing.
    fn is_in_use(&self) -> bool {
        match &self.part {
            Part::Checkpoint(checkpoint) => checkpoint.is_in_use(),
            Part::Vae(vae, _) => Arc::strong_count(vae) > 1 || vae.is_in_use(),
        }
    }

    /// Lets go of the sessions that no job uses; whether there were any.
    fn forget_idle(&self) -> bool {
        match &self.part {
            Part::Checkpoint(checkpoint) => checkpoint.forget_idle_unets(),
            Part::Vae(..) => false,
        }
    }
}

#[derive(Clone)]
enum Part {
    Checkpoint(Arc<LoadedCheckpoint>),
    /// With the memory that it takes once both halves are loaded.
    Vae(Arc<GraphVae>, u64),
}

/// A checkpoint without its VAE.
struct LoadedCheckpoint {
    /// Another number for every load in this process.
    generation: u64,
    family: Family,
    prediction: Prediction,
    vae_scale: f32,
    alphas_cumprod: Arc<[f32]>,
    presence: Presence,
    /// Without networks; `None` while only requests with networks have been served, or while the one
    /// with networks has its memory.
    unet: Mutex<Option<Arc<GraphUnet>>>,
    unet_bytes: u64,
    text_encoders: Vec<Arc<GraphTextEncoder>>,
    text_bytes: u64,
    /// The weights file, if it is one with a VAE inside.
    vae_weights: Option<Weights>,
    text_cache: Arc<ConditioningCache>,
    size_embedding_width: usize,
    /// Sessions with networks applied; `None`: the checkpoint cannot take any.
    adapted: Option<AdaptedSessions>,
}

fn next_generation() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, Ordering::Relaxed)
}

impl LoadedCheckpoint {
    fn size_bytes(&self) -> u64 {
        let plain = match &*self.unet.lock() {
            Some(unet) if unet.graph().is_upgrading() => 2 * self.unet_bytes,
            Some(_) => self.unet_bytes,
            None => 0,
        };
        let adapted = self.adapted.as_ref().map_or(0, |sessions| {
            let (unets, towers) = sessions.counts();
            unets * self.unet_bytes
                + towers * self.text_bytes / self.text_encoders.len().max(1) as u64
        });
        plain + self.text_bytes + adapted
    }

    fn is_in_use(&self) -> bool {
        self.plain_unet_in_use()
            || self
                .text_encoders
                .iter()
                .any(|encoder| Arc::strong_count(encoder) > 1 || encoder.is_in_use())
            || self
                .adapted
                .as_ref()
                .is_some_and(AdaptedSessions::is_in_use)
    }

    fn plain_unet_in_use(&self) -> bool {
        self.unet.lock().as_ref().is_some_and(is_unet_in_use)
    }

    /// Lets go of the UNets that no job uses; whether there were any.
    fn forget_idle_unets(&self) -> bool {
        // An ONNX folder's UNet cannot be made again alone.
        let Some(adapted) = &self.adapted else {
            return false;
        };
        let plain = self.unet.lock().take_if(|unet| !is_unet_in_use(unet));
        adapted.forget_idle_unets() || plain.is_some()
    }
}

/// Loads a UNet on a thread of its own, unless it is there. What fails is told when the UNet is needed.
fn load_ahead(unet: &Arc<GraphUnet>) {
    if !unet.graph().lacks_session() {
        return;
    }
    let unet = Arc::clone(unet);
    let begun = BackgroundWork::begin();
    let work = move || {
        // It goes before its work ends, as it may be the last to hold the session.
        let (_begun, unet) = (begun, unet);
        if let Err(error) = unet.graph().load_now() {
            tracing::debug!(%error, "the UNet was not loaded ahead");
        }
    };
    let thread = std::thread::Builder::new().name("load".to_owned());
    if let Err(error) = thread.spawn(work) {
        tracing::debug!(%error, "no thread to load the UNet ahead");
    }
}

fn is_unet_in_use(unet: &Arc<GraphUnet>) -> bool {
    Arc::strong_count(unet) > 1 || unet.is_in_use()
}

/// The networks of one request.
#[derive(Default)]
struct RequestedNetworks {
    applied: Vec<AppliedNetwork>,
    hypernetworks: Vec<AppliedHypernetwork>,
    /// Textual inversions inside the networks.
    bundled: Vec<Arc<Embedding>>,
    /// Name as in the prompt and short hash.
    named: Vec<(String, String)>,
    missing: Vec<String>,
}

/// A file and its modification time.
type FileState = (PathBuf, Option<SystemTime>);

/// Hypernetworks that stay read.
const KEPT_HYPERNETWORKS: usize = 4;

/// Encoded prompts that a checkpoint keeps: a few hundred of SD 2.x, about a hundred of SDXL.
const TEXT_CACHE: CacheLimits = CacheLimits {
    entries: 512,
    bytes: 64 << 20,
};

/// Decoding in one piece may take this part of what a UNet takes where text towers make room for it: with more, decoding
/// would need more than the steps did.
const PIECE_SHARE: u64 = 12;

/// What a request's model is made of.
struct ModelParts {
    main: Arc<LoadedCheckpoint>,
    unet: Arc<GraphUnet>,
    text_encoders: Vec<Arc<GraphTextEncoder>>,
    vae: Arc<GraphVae>,
    vae_file: Option<VaeFile>,
    networks: RequestedNetworks,
}

impl Provider {
    #[must_use]
    pub fn new(runtime: Runtime, catalogue: Arc<Catalogue>, config: ProviderConfig) -> Self {
        let loaded = Arc::new(Mutex::new(Vec::<Loaded>::new()));
        let all = Arc::downgrade(&loaded);
        // Jobs that run keep what they use. A load in progress is left alone; see `ModelProvider::load`.
        runtime.when_out_of_memory(move || {
            let Some(all) = all.upgrade() else {
                return false;
            };
            let Some(mut all) = all.try_lock() else {
                return false;
            };
            let before = all.len();
            all.retain(Loaded::is_in_use);
            let mut some = all.len() < before;
            for entry in all.iter() {
                some |= entry.forget_idle();
            }
            some
        });
        let resting = Arc::downgrade(&loaded);
        let rest = RestWatch::start(config.rest_after, move || {
            if let Some(loaded) = resting.upgrade() {
                give_back_work_memory(&loaded);
            }
        });
        Self {
            rest,
            late_hashes: LateHashes::default(),
            upscalers: UpscalerNetworks::new(runtime.clone(), catalogue.upscalers().clone()),
            safety_checker: config
                .safety_checker
                .as_deref()
                .map(|models| GraphSafetyChecker::new(runtime.clone(), models)),
            faces: FaceRestorers::new(runtime.clone(), catalogue.faces().clone()),
            runtime,
            catalogue,
            config,
            hypernetworks: Mutex::default(),
            loaded,
        }
    }

    /// The lists that it loads from.
    #[must_use]
    pub fn catalogue(&self) -> &Arc<Catalogue> {
        &self.catalogue
    }

    /// What graphs are loaded with.
    #[must_use]
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// A job runs on what is loaded until the answer is dropped; soon after the last one, what graphs worked in is given
    /// back.
    pub fn job(&self) -> RunningJob {
        self.rest.job()
    }

    /// Forgets everything that is loaded; jobs that run keep theirs.
    pub fn unload_all(&self) {
        self.loaded.lock().clear();
        self.upscalers.unload_all();
        self.faces.unload_all();
        give_back_free_memory();
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
        let short_hash = self.late_hashes.of(&self.catalogue, &checkpoint);
        let ModelParts {
            main,
            unet,
            text_encoders,
            vae,
            vae_file,
            networks,
        } = self.parts(request, &checkpoint)?;
        let widths: Vec<usize> = text_encoders
            .iter()
            .map(|encoder| encoder.width())
            .collect();
        let embeddings =
            FittingEmbeddings::new(self.catalogue.embeddings(), &networks.bundled, &widths);
        let vae_file = match vae_file {
            Some(file) => {
                let mut hash = self.catalogue.vae_hash(&file).map_err(io)?;
                hash.truncate(10);
                Some((file.name, hash))
            }
            None => None,
        };
        let merging = unet.with_merge_ratio(request.token_merging_ratio);
        let mut used_unet: Arc<dyn Unet> = Arc::new(if self.config.answers_nan {
            merging.with_float(None)
        } else {
            merging
        });
        let own_vae = if request.keeps_vae_precision || self.config.answers_nan {
            vae.without_float()
        } else {
            GraphVae::clone(&vae)
        };
        let used_vae: Arc<dyn pipeline::Vae> = match main.presence {
            Presence::Together => Arc::new(own_vae),
            Presence::InTurn => {
                used_unet = Arc::new(FrugalUnet {
                    unet: used_unet,
                    text_encoders: text_encoders.clone(),
                    room: Room::EveryStep,
                });
                Arc::new(FrugalVae {
                    vae: own_vae,
                    unet: Arc::clone(&unet),
                    piece_bytes: None,
                })
            }
            Presence::TextFirst => {
                if request.latent_pixels_without_text < OUTWEIGHS_TEXT_LATENT_PIXELS {
                    // Both stay, so that the UNet can be loaded while a prompt is encoded. None: steps may not be next.
                    if request.latent_pixels_without_text > 0 {
                        load_ahead(&unet);
                    }
                } else {
                    used_unet = Arc::new(FrugalUnet {
                        unet: used_unet,
                        text_encoders: text_encoders.clone(),
                        room: Room::once(self.rest.job_count()),
                    });
                }
                Arc::new(FrugalVae {
                    vae: own_vae,
                    unet: Arc::clone(&unet),
                    piece_bytes: Some(main.unet_bytes / PIECE_SHARE),
                })
            }
        };
        Ok(Model {
            name: checkpoint.model_name.clone(),
            short_hash,
            family: main.family,
            prediction: main.prediction,
            unet_channels: unet.channels(),
            vae_scale: main.vae_scale,
            alphas_cumprod: Arc::clone(&main.alphas_cumprod),
            unet: used_unet,
            text_state: embeddings.state(main.generation, &networks.applied),
            embeddings: Some(Arc::new(embeddings)),
            text_encoders: text_encoders
                .into_iter()
                .map(|encoder| encoder as Arc<dyn TextEncoder>)
                .collect(),
            vae: used_vae,
            vae_file,
            text_cache: Arc::clone(&main.text_cache),
            size_embedding_width: main.size_embedding_width,
            networks: networks.named,
            missing_networks: networks.missing,
            checks_nan: !self.config.answers_nan,
        })
    }

    /// Everything of a model that has to be loaded.
    fn parts(
        &self,
        request: &ModelRequest,
        checkpoint: &Checkpoint,
    ) -> Result<ModelParts, LoadError> {
        let networks = self.networks(request, checkpoint)?;
        let mut loaded = self.loaded.lock();
        // What was in use while more was needed than the budget holds.
        self.make_room(&mut loaded, 0, 1);
        let plain = networks.applied.is_empty() && networks.hypernetworks.is_empty();
        let planned = request.planned_latent_pixels;
        let variant = self.variant_of(request);
        let main = self.checkpoint(&mut loaded, checkpoint, variant, plain, planned)?;
        let (unet, text_encoders) =
            self.with_networks(&mut loaded, &main, checkpoint, &networks, planned)?;
        let vae_file =
            self.catalogue
                .choose_vae(&request.vae, request.prefers_checkpoints_vae, checkpoint);
        let vae = self.vae(
            &mut loaded,
            checkpoint,
            &main,
            vae_file.as_ref(),
            request.tiling,
        )?;
        self.upgrade_what_pays(&loaded, &unet, main.unet_bytes, planned);
        Ok(ModelParts {
            main,
            unet,
            text_encoders,
            vae,
            vae_file,
            networks,
        })
    }

    /// Opens the network files that a request names.
    fn networks(
        &self,
        request: &ModelRequest,
        checkpoint: &Checkpoint,
    ) -> Result<RequestedNetworks, LoadError> {
        let mut found = RequestedNetworks::default();
        for tag in &request.networks.loras {
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
            found.bundled.extend(bundled_embeddings(&file, &hash));
            found.named.push((tag.name.clone(), hash));
            found.applied.push(AppliedNetwork {
                name: tag.name.clone(),
                file,
                text_multiplier: tag.text_encoder_multiplier as f32,
                unet_multiplier: tag.unet_multiplier as f32,
                dynamic_rank: tag.dynamic_rank,
            });
        }
        for tag in &request.networks.hypernetworks {
            // A1111 says nothing of a hypernetwork that does not exist.
            let Some(file) = self.catalogue.hypernetworks().find(&tag.name) else {
                continue;
            };
            match self.hypernetwork(&file) {
                Ok((identity, modules)) => found.hypernetworks.push(AppliedHypernetwork {
                    identity,
                    modules,
                    multiplier: tag.multiplier as f32,
                }),
                Err(error) => {
                    tracing::warn!(hypernetwork = %tag.name, %error, "this hypernetwork cannot be applied");
                }
            }
        }
        let some = !found.applied.is_empty() || !found.hypernetworks.is_empty();
        if some && checkpoint.format == CheckpointFormat::OnnxFolder {
            return Err(LoadError::Unusable {
                path: checkpoint.path.display().to_string(),
                reason:
                    "LoRA and hypernetworks need the checkpoint file; an ONNX export cannot take them"
                        .to_owned(),
            });
        }
        Ok(found)
    }

    /// A hypernetwork's file as it is now, and its modules, which are kept while the file stays so.
    fn hypernetwork(
        &self,
        file: &HypernetworkFile,
    ) -> Result<(FileState, Arc<HypernetworkModules>), LoadError> {
        let modified = fs_err::metadata(&file.path)
            .and_then(|metadata| metadata.modified())
            .ok();
        let state = (file.path.clone(), modified);
        let mut known = self.hypernetworks.lock();
        if let Some((_, modules)) = known.iter().find(|(path, _)| *path == state) {
            return Ok((state, Arc::clone(modules)));
        }
        let modules = open_hypernetwork(&file.path)?;
        if known.len() >= KEPT_HYPERNETWORKS {
            known.remove(0);
        }
        known.push((state.clone(), Arc::clone(&modules)));
        Ok((state, modules))
    }

    /// The UNet and the text towers with the networks applied.
    fn with_networks(
        &self,
        loaded: &mut Vec<Loaded>,
        main: &LoadedCheckpoint,
        checkpoint: &Checkpoint,
        networks: &RequestedNetworks,
        planned_latent_pixels: u64,
    ) -> Result<(Arc<GraphUnet>, Vec<Arc<GraphTextEncoder>>), LoadError> {
        let effort = self.effort(main.unet_bytes, planned_latent_pixels);
        let mut text = main.text_encoders.clone();
        let asked = !networks.applied.is_empty() || !networks.hypernetworks.is_empty();
        let Some(sessions) = main.adapted.as_ref().filter(|_| asked) else {
            return Ok((self.plain_unet(loaded, main, effort)?, text));
        };
        let begin = Instant::now();
        let parts = sessions.apply(
            &self.runtime,
            &networks.applied,
            &networks.hypernetworks,
            effort,
            &mut || {
                if !self.make_room(loaded, main.unet_bytes, 1) {
                    // Both UNets of the checkpoint are too much: the plain one, if no job uses it, is
                    // loaded again when a request without networks comes.
                    if !main.plain_unet_in_use() {
                        *main.unet.lock() = None;
                    }
                }
            },
        )?;
        for (tower, adapted) in parts.text {
            text[tower] = adapted;
        }
        tracing::debug!(
            checkpoint = %checkpoint.name,
            networks = networks.applied.len(),
            elapsed_ms = begin.elapsed().as_millis() as u64,
            "networks applied"
        );
        let unet = match parts.unet {
            Some(adapted) => adapted,
            None => self.plain_unet(loaded, main, effort)?,
        };
        Ok((unet, text))
    }

    /// The UNet without networks.
    fn plain_unet(
        &self,
        loaded: &mut Vec<Loaded>,
        main: &LoadedCheckpoint,
        effort: LoadEffort<'static>,
    ) -> Result<Arc<GraphUnet>, LoadError> {
        if let Some(unet) = &*main.unet.lock() {
            // One that was never loaded need not be loaded quickly first.
            let is_outdated = matches!(effort, LoadEffort::Full)
                && unet.graph().is_quick()
                && !is_unet_in_use(unet)
                && !unet.graph().is_loaded();
            if !is_outdated {
                return Ok(Arc::clone(unet));
            }
        }
        let sessions = main.adapted.as_ref().ok_or(LoadError::NoCheckpoint)?;
        *main.unet.lock() = None;
        if !self.make_room(loaded, main.unet_bytes, 1) {
            sessions.forget_idle_unets();
        }
        let unet = sessions.plain_unet(&self.runtime, effort, main.presence)?;
        *main.unet.lock() = Some(Arc::clone(&unet));
        Ok(unet)
    }

    /// A checkpoint's parts but for its VAE and, without `with_unet`, its UNet (unless that has to
    /// tell what it predicts).
    fn checkpoint(
        &self,
        loaded: &mut Vec<Loaded>,
        checkpoint: &Checkpoint,
        options: BuildOptions,
        with_unet: bool,
        planned_latent_pixels: u64,
    ) -> Result<Arc<LoadedCheckpoint>, LoadError> {
        let identity = Identity::of(&checkpoint.path, options);
        if let Some(Part::Checkpoint(known)) = recall(loaded, &identity) {
            return Ok(known);
        }
        loaded.retain(|entry| !entry.identity.is_outdated(&identity));
        let begin = Instant::now();
        let main = Arc::new(match checkpoint.format {
            CheckpointFormat::OnnxFolder => self.load_folder(loaded, &checkpoint.path, options)?,
            CheckpointFormat::SafeTensors | CheckpointFormat::Pickle => self.load_weights(
                loaded,
                &checkpoint.path,
                options,
                with_unet,
                planned_latent_pixels,
            )?,
        });
        // What was unloaded for it, and what building its graphs took.
        give_back_free_memory();
        tracing::info!(
            checkpoint = %checkpoint.name,
            family = ?main.family,
            prediction = ?main.prediction,
            elapsed_ms = begin.elapsed().as_millis() as u64,
            "checkpoint loaded"
        );
        loaded.push(Loaded {
            identity,
            part: Part::Checkpoint(Arc::clone(&main)),
        });
        Ok(main)
    }

    fn load_weights(
        &self,
        loaded: &mut Vec<Loaded>,
        path: &Path,
        options: BuildOptions,
        with_unet: bool,
        planned_latent_pixels: u64,
    ) -> Result<LoadedCheckpoint, LoadError> {
        let plan = CheckpointPlan::open(path, &self.config.tower_folders)?;
        let mut options = options;
        if let Precision::Half { float_attention } = &mut options.precision {
            *float_attention |= overflows_in_half(plan.family(), self.runtime.providers());
        }
        let share = if self.config.half { 2 } else { 1 };
        let unet_bytes = plan.unet_weights().float_bytes() / share;
        let text_bytes = (0..plan.towers.len())
            .map(|tower| plan.text_weights(tower).float_bytes() / share)
            .sum();
        self.make_room(loaded, unet_bytes + text_bytes, 0);
        let stated = plan.stated_prediction();
        let effort = self.effort(unet_bytes, planned_latent_pixels);
        let presence = self.presence(&plan, unet_bytes + text_bytes);
        let (unet, text_encoders) = std::thread::scope(|scope| {
            let text = scope.spawn(|| load_text_encoders(&self.runtime, &plan, options, presence));
            let unet = (with_unet || stated.is_none())
                .then(|| {
                    load_unet(
                        &self.runtime,
                        &plan,
                        options,
                        effort,
                        presence,
                        self.config.sharing,
                    )
                })
                .transpose();
            (unet, text.join())
        });
        let unet = unet?;
        let text_encoders = text_encoders.map_err(|_| LoadError::Unusable {
            path: path.display().to_string(),
            reason: "its text encoder could not be built".to_owned(),
        })??;
        let prediction = match (stated, &unet) {
            (Some(stated), _) => stated,
            (None, Some(unet)) => {
                let prediction = predicts_velocity(unet)?;
                // Where there is room for one of them, the text towers come first.
                if presence == Presence::InTurn {
                    unet.graph().release();
                }
                prediction
            }
            (None, None) => Prediction::Epsilon,
        };
        Ok(LoadedCheckpoint {
            generation: next_generation(),
            family: plan.family(),
            presence,
            prediction,
            vae_scale: plan.vae_scale(),
            alphas_cumprod: plan.alphas_cumprod(),
            unet: Mutex::new(unet),
            unet_bytes,
            text_encoders,
            text_bytes,
            vae_weights: plan.has_vae().then(|| plan.vae_weights()),
            text_cache: Arc::new(ConditioningCache::new(TEXT_CACHE)),
            size_embedding_width: plan.size_embedding_width().unwrap_or(256),
            adapted: Some(AdaptedSessions::new(plan, options, self.config.sharing)),
        })
    }

    fn load_folder(
        &self,
        loaded: &mut Vec<Loaded>,
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
        let part_bytes = |parts: &[&str]| -> u64 {
            parts.iter().map(|part| graph_bytes(&path.join(part))).sum()
        };
        let unet_bytes = part_bytes(&["unet"]);
        let text_bytes = part_bytes(&["text_encoder", "text_encoder_2"]);
        self.make_room(loaded, unet_bytes + text_bytes, 0);
        Ok(LoadedCheckpoint {
            generation: next_generation(),
            unet: Mutex::new(Some(Arc::new(onnx_folder::load_unet(
                &self.runtime,
                path,
                self.config.sharing,
            )?))),
            unet_bytes,
            text_bytes,
            text_encoders: onnx_folder::load_text_encoders(&self.runtime, path, &facts)?,
            family: facts.family,
            presence: Presence::Together,
            prediction: facts.prediction,
            vae_scale: facts.vae_scale,
            alphas_cumprod: facts.alphas_cumprod,
            vae_weights: None,
            text_cache: Arc::new(ConditioningCache::new(TEXT_CACHE)),
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
            precision: if self.config.half_vae {
                Precision::Half {
                    float_attention: true,
                }
            } else {
                Precision::Float
            },
            matrix_unit: self.runtime.has_matrix_unit(),
            ..BuildOptions::default()
        };
        let mut identity = Identity::of(
            file.map_or(checkpoint.path.as_path(), |file| file.path.as_path()),
            options,
        );
        // The same file may be loaded as a checkpoint too.
        identity.path.push("vae");
        if let Some(Part::Vae(known, _)) = recall(loaded, &identity) {
            return Ok(known);
        }
        loaded.retain(|entry| !entry.identity.is_outdated(&identity));
        let mut own = |weights: Weights| -> Result<_, LoadError> {
            let size_bytes = weights.float_bytes();
            self.make_room(loaded, size_bytes, 1);
            Ok((
                load_vae(
                    &self.runtime,
                    weights,
                    options,
                    self.config.decode_memory_bytes,
                )?,
                size_bytes,
            ))
        };
        let (vae, size_bytes) = match (file, &main.vae_weights) {
            (Some(file), _) => own(vae_file_weights(&file.path)?)?,
            (None, Some(weights)) => own(weights.clone())?,
            (None, None) if checkpoint.format == CheckpointFormat::OnnxFolder => {
                let parts = ["vae_encoder", "vae_decoder"];
                let size_bytes = parts
                    .iter()
                    .map(|part| graph_bytes(&checkpoint.path.join(part)))
                    .sum();
                (
                    onnx_folder::load_vae(&self.runtime, &checkpoint.path)?,
                    size_bytes,
                )
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
            part: Part::Vae(Arc::clone(&vae), size_bytes),
        });
        Ok(vae)
    }

    /// The variant of the graphs that a request needs.
    fn variant_of(&self, request: &ModelRequest) -> BuildOptions {
        BuildOptions {
            tiling: request.tiling,
            token_merging: request.token_merging_ratio > 0.0,
            precision: if self.config.half {
                Precision::Half {
                    float_attention: request.upcast_attention,
                }
            } else {
                Precision::Float
            },
            matrix_unit: self.runtime.has_matrix_unit(),
            ..BuildOptions::default()
        }
    }

    /// Whether the parts of a checkpoint can be there together; `network_bytes` are those of UNet and text towers.
    fn presence(&self, plan: &CheckpointPlan, network_bytes: u64) -> Presence {
        let vae_bytes = if plan.has_vae() {
            plan.vae_weights().float_bytes()
        } else {
            0
        };
        if self.config.half || self.runtime.is_on_gpu() {
            Presence::Together
        } else if network_bytes + vae_bytes > self.config.memory_budget_bytes {
            Presence::InTurn
        } else if self.config.text_makes_room
            && plan.unet_weights().float_bytes() >= self.config.large_unet_bytes
        {
            Presence::TextFirst
        } else {
            Presence::Together
        }
    }

    /// How a UNet of so many bytes is loaded for so much work.
    fn effort(&self, unet_bytes: u64, planned_latent_pixels: u64) -> LoadEffort<'static> {
        // The layout of convolutions is a matter of the CPU in float32.
        if self.config.half || self.runtime.is_on_gpu() || self.runtime.has_matrix_unit() {
            return LoadEffort::Full;
        }
        let is_large = unet_bytes >= self.config.large_unet_bytes;
        let strategy = self.config.load_strategy;
        strategy.effort(is_large, planned_latent_pixels)
    }

    /// Has the faster session of a UNet that was loaded quickly built in the background, once so much was asked of it
    /// that this pays, where there is memory for both.
    fn upgrade_what_pays(
        &self,
        loaded: &[Loaded],
        unet: &GraphUnet,
        unet_bytes: u64,
        planned_latent_pixels: u64,
    ) {
        let graph = unet.graph();
        let Some(asked) = graph.note_work(planned_latent_pixels) else {
            return;
        };
        if !self.config.load_strategy.upgrades(asked) {
            return;
        }
        let total = loaded.iter().map(Loaded::size_bytes).sum::<u64>();
        let is_within_budget = total.saturating_add(unet_bytes) <= self.config.memory_budget_bytes;
        if is_within_budget && available_memory_bytes().is_none_or(|free| free > unet_bytes) {
            graph.upgrade();
        }
    }

    /// How many loaded UNets without networks still run on the session of a quick load.
    #[must_use]
    pub fn quick_unet_count(&self) -> usize {
        self.unet_count(Graph::is_quick)
    }

    /// For how many of them the faster session is being built.
    #[must_use]
    pub fn upgrading_unet_count(&self) -> usize {
        self.unet_count(Graph::is_upgrading)
    }

    /// How many sessions of UNets and text towers without networks are there: fewer than graphs where parts take turns.
    #[must_use]
    pub fn present_session_count(&self) -> usize {
        let loaded = self.loaded.lock();
        let count = |entry: &Loaded| match &entry.part {
            Part::Checkpoint(checkpoint) => {
                let unet = checkpoint.unet.lock();
                let unet = unet.as_ref().is_some_and(|unet| unet.graph().is_loaded());
                let towers = checkpoint.text_encoders.iter();
                usize::from(unet) + towers.filter(|tower| tower.is_loaded()).count()
            }
            Part::Vae(..) => 0,
        };
        loaded.iter().map(count).sum()
    }

    fn unet_count(&self, counts: fn(&Graph) -> bool) -> usize {
        let loaded = self.loaded.lock();
        let is_counted = |entry: &&Loaded| match &entry.part {
            Part::Checkpoint(checkpoint) => {
                let unet = checkpoint.unet.lock();
                unet.as_ref().is_some_and(|unet| counts(unet.graph()))
            }
            Part::Vae(..) => false,
        };
        loaded.iter().filter(is_counted).count()
    }

    /// Lets go of what was used longest ago until `needed` more bytes are within the budget, but not
    /// of the `kept` last used nor of what jobs use; whether they are.
    fn make_room(&self, loaded: &mut Vec<Loaded>, needed: u64, kept: usize) -> bool {
        let budget = self.config.memory_budget_bytes.saturating_sub(needed);
        let total = |loaded: &[Loaded]| loaded.iter().map(Loaded::size_bytes).sum::<u64>();
        while total(loaded) > budget {
            let candidates = loaded.len().saturating_sub(kept);
            let Some(at) = (0..candidates).find(|&at| !loaded[at].is_in_use()) else {
                break;
            };
            let gone = loaded.remove(at);
            tracing::info!(path = %gone.identity.path.display(), "unloaded to stay within the memory budget");
        }
        total(loaded) <= budget
    }
}

impl ModelProvider for Provider {
    fn load(&self, request: &ModelRequest) -> Result<Arc<Model>, Cause> {
        let loaded = match self.model(request) {
            Err(LoadError::Runtime(error @ RuntimeError::OutOfMemory { .. })) => {
                tracing::warn!(%error, "once no other job runs, all models are unloaded and the load is tried once more");
                self.rest.wait_for_others();
                self.unload_all();
                self.model(request)
            }
            answer => answer,
        };
        loaded.map(Arc::new).map_err(|error| match error {
            LoadError::Runtime(error @ RuntimeError::OutOfMemory { .. }) => {
                Box::new(OutOfMemory(error.to_string())) as Cause
            }
            error => Box::new(error),
        })
    }

    fn knows(&self, checkpoint: &str) -> bool {
        self.catalogue.find(checkpoint).is_some()
    }

    fn knows_network(&self, kind: NetworkKind, name: &str) -> bool {
        match kind {
            NetworkKind::Lora => {
                let files = self.catalogue.networks().files();
                files.iter().any(|file| file.name == name)
            }
            NetworkKind::Hypernetwork => self.catalogue.hypernetworks().find(name).is_some(),
        }
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

/// Gives back the memory in which the graphs of loaded parts work. A load in progress is not waited for.
fn give_back_work_memory(loaded: &Mutex<Vec<Loaded>>) {
    let Some(parts) = loaded
        .try_lock()
        .map(|loaded| loaded.iter().map(|entry| entry.part.clone()).collect())
    else {
        return;
    };
    let parts: Vec<Part> = parts;
    for part in parts {
        match part {
            Part::Checkpoint(checkpoint) => {
                let unet = checkpoint.unet.lock().clone();
                if let Some(unet) = unet {
                    unet.shrink();
                }
                for unet in checkpoint.adapted.iter().flat_map(AdaptedSessions::unets) {
                    unet.shrink();
                }
            }
            Part::Vae(vae, _) => vae.shrink(),
        }
    }
    give_back_free_memory();
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

/// Whether the UNet's attention may leave half precision's range: in SD 2.x, products of queries and keys do. CUDA's fused
/// attention does not keep them in half; cards too old for it have the second try after NaN.
fn overflows_in_half(family: Family, providers: &[ExecutionProvider]) -> bool {
    family == Family::Sd2 && providers.first() != Some(&ExecutionProvider::Cuda)
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

/// Bytes of one exported graph with its external data.
fn graph_bytes(part: &Path) -> u64 {
    let Ok(files) = fs_err::read_dir(part) else {
        return 0;
    };
    files
        .flatten()
        .filter_map(|file| file.metadata().ok())
        .map(|metadata| metadata.len())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attention_of_sd2_is_in_half_on_cuda_alone() {
        use ExecutionProvider::{Cpu, Cuda, DirectMl, TensorRt};
        assert!(!overflows_in_half(Family::Sd2, &[Cuda, Cpu]));
        for providers in [&[Cpu][..], &[TensorRt, Cuda, Cpu], &[DirectMl, Cpu]] {
            assert!(overflows_in_half(Family::Sd2, providers), "{providers:?}");
            assert!(!overflows_in_half(Family::Sdxl, providers));
        }
    }
}
