//! Loading one checkpoint: which graphs to build from a weights file or to take from an ONNX
//! folder, and what its family decides.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ndarray::{Array3, Array4};

use super::graphs::{
    AdapterPort, BuildError, BuildOptions, BuiltGraph, Heads, Precision, TextTower, TextTowerShape,
    UnetShape, VectorInput, Weights, text_encoder, unet, vae_decoder, vae_encoder,
};
use super::networks::{
    GraphTextEncoder, GraphUnet, GraphVae, InFloat, LazyGraph, NetworkError, RunSharing,
};
use super::vae_strips::StripDecoder;
use crate::catalogue::{
    CheckpointFamily, CheckpointLayout, HeadRule, LdmConfig, TensorFile, TensorFileError,
    TextTowerConfig, UNET_PREFIX, VAE_PREFIX, detect, find_tower_facts,
};
use crate::pipeline::{Family, Prediction};
use crate::runtime::{Graph, GraphSource, LoadEffort, Runtime, RuntimeError};
use crate::sampling::{Unet, UnetInput, scaled_linear_alphas_cumprod};

/// Why a checkpoint cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("no checkpoint is known as \"{name}\"")]
    UnknownCheckpoint { name: String },
    #[error("there is no checkpoint; put one into models/Stable-diffusion")]
    NoCheckpoint,
    #[error("{path} cannot be loaded: {reason}")]
    Unusable { path: String, reason: String },
    #[error(transparent)]
    Weights(#[from] TensorFileError),
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error("{path} cannot be read: {source}")]
    Io {
        path: String,
        source: std::io::Error,
    },
}

/// A weights file with everything that decides its graphs.
#[derive(Debug, Clone)]
pub struct CheckpointPlan {
    pub file: Arc<TensorFile>,
    pub layout: CheckpointLayout,
    pub config: LdmConfig,
    /// Shapes of the text towers, in order.
    pub towers: Vec<TextTowerShape>,
    /// Towers of an unusual width without a configuration: their heads are a guess.
    pub guessed_towers: Vec<usize>,
}

impl CheckpointPlan {
    /// Reads the table of contents and the configuration beside it. `tower_folders` are searched
    /// for text tower configurations after the checkpoint's own folder.
    ///
    /// # Errors
    /// When the file or its `.yaml` cannot be read, or it is no checkpoint that can be used.
    pub fn open(path: &Path, tower_folders: &[PathBuf]) -> Result<Self, LoadError> {
        let file = Arc::new(open_weights(path)?);
        let unusable = |reason| LoadError::Unusable {
            path: path.display().to_string(),
            reason,
        };
        let layout = detect(&file).map_err(unusable)?;
        let yaml = path.with_extension("yaml");
        let config = match fs_err::read_to_string(&yaml) {
            Ok(text) => LdmConfig::parse(&text)
                .map_err(|reason| unusable(format!("{}: {reason}", yaml.display())))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => LdmConfig::default(),
            Err(source) => {
                return Err(LoadError::Io {
                    path: yaml.display().to_string(),
                    source,
                });
            }
        };
        let mut folders: Vec<PathBuf> = path.parent().map(Path::to_owned).into_iter().collect();
        folders.extend_from_slice(tower_folders);
        let (towers, guessed_towers) = tower_shapes(&file, &layout, &config, &folders)?;
        for tower in &guessed_towers {
            tracing::warn!(
                path = %path.display(),
                tower,
                heads = towers[*tower].heads,
                "no configuration of this text encoder was found; its attention heads are taken to be 64 wide"
            );
        }
        Ok(Self {
            file,
            layout,
            config,
            towers,
            guessed_towers,
        })
    }

    /// The family in the pipeline's terms.
    #[must_use]
    pub fn family(&self) -> Family {
        match self.layout.family {
            CheckpointFamily::Sd1 => Family::Sd1,
            CheckpointFamily::Sd2 => Family::Sd2,
            CheckpointFamily::Sdxl => Family::Sdxl,
            CheckpointFamily::SdxlRefiner => Family::SdxlRefiner,
        }
    }

    /// What the configuration says the UNet predicts; `None`: the tensors must be asked.
    #[must_use]
    pub fn stated_prediction(&self) -> Option<Prediction> {
        match (self.config.predicts_velocity, self.layout.family) {
            (Some(true), _) => Some(Prediction::Velocity),
            // A configuration without the word means epsilon, no configuration at all the test.
            (None, CheckpointFamily::Sd2) if self.config == LdmConfig::default() => None,
            (Some(false) | None, _) => Some(Prediction::Epsilon),
        }
    }

    /// Factor between the latents of VAE and UNet.
    #[must_use]
    pub fn vae_scale(&self) -> f32 {
        let usual = match self.layout.family {
            CheckpointFamily::Sd1 | CheckpointFamily::Sd2 => 0.18215,
            CheckpointFamily::Sdxl | CheckpointFamily::SdxlRefiner => 0.13025,
        };
        self.config.scale_factor.unwrap_or(usual) as f32
    }

    /// The training schedule.
    #[must_use]
    pub fn alphas_cumprod(&self) -> Arc<[f32]> {
        scaled_linear_alphas_cumprod(
            self.config.linear_start.unwrap_or(0.00085),
            self.config.linear_end.unwrap_or(0.012),
            self.config.timesteps.unwrap_or(1000),
        )
        .into()
    }

    /// Attention heads of the UNet.
    #[must_use]
    pub fn heads(&self) -> Heads {
        match (self.config.heads, self.layout.family) {
            (Some(HeadRule::Count(count)), _) => Heads::Count(count),
            (Some(HeadRule::Width(width)), _) => Heads::Width(width),
            (None, CheckpointFamily::Sd1) => Heads::Count(8),
            (None, _) => Heads::Width(64),
        }
    }

    /// The UNet's weights.
    #[must_use]
    pub fn unet_weights(&self) -> Weights {
        Weights::new(Arc::clone(&self.file), UNET_PREFIX)
    }

    /// A text tower's weights.
    #[must_use]
    pub fn text_weights(&self, tower: usize) -> Weights {
        let prefix = self
            .layout
            .text_prefixes
            .get(tower)
            .map_or("", String::as_str);
        Weights::new(Arc::clone(&self.file), prefix)
    }

    /// Values of the embedding of one size or crop number in SDXL's vector conditioning.
    #[must_use]
    pub fn size_embedding_width(&self) -> Option<usize> {
        let total = self.unet_weights().dim("label_emb.0.0.weight", 1).ok()?;
        let last = self.towers.len().checked_sub(1)?;
        let pooled = self.text_weights(last).dim("text_projection", 1).ok()?;
        let size_count = if self.layout.family == CheckpointFamily::SdxlRefiner {
            5
        } else {
            6
        };
        Some(total.checked_sub(pooled)? / size_count)
    }

    /// Whether the checkpoint has a VAE of its own.
    #[must_use]
    pub fn has_vae(&self) -> bool {
        self.file
            .get(&format!("{VAE_PREFIX}decoder.conv_out.weight"))
            .is_some()
    }

    /// The weights of the VAE inside.
    #[must_use]
    pub fn vae_weights(&self) -> Weights {
        Weights::new(Arc::clone(&self.file), VAE_PREFIX)
    }

    /// Why parts of it cannot be built (a missing tensor, a wrong shape), a sentence each.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let options = BuildOptions::default();
        let vae = self.has_vae().then(|| self.vae_weights());
        let text = self.towers.iter().enumerate();
        let mut outcomes = vec![self.build_unet(options)];
        outcomes.extend(
            text.map(|(tower, shape)| text_encoder(&self.text_weights(tower), *shape, options)),
        );
        if let Some(weights) = &vae {
            outcomes.push(vae_decoder(weights, options));
            outcomes.push(vae_encoder(weights, options));
        }
        let faults = outcomes.into_iter().filter_map(Result::err);
        faults.map(|fault| fault.to_string()).collect()
    }

    /// The UNet graph.
    ///
    /// # Errors
    /// When the tensors form no UNet that can be built.
    pub fn build_unet(&self, options: BuildOptions) -> Result<BuiltGraph, BuildError> {
        unet(&self.unet_weights(), self.unet_shape(), options)
    }

    /// What the UNet's tensors do not tell.
    #[must_use]
    pub fn unet_shape(&self) -> UnetShape {
        UnetShape {
            heads: self.heads(),
            vector: VectorInput::Whole,
        }
    }
}

/// Opens a weights file, `.safetensors` or saved by torch.
///
/// # Errors
/// When it cannot be read.
pub fn open_weights(path: &Path) -> Result<TensorFile, TensorFileError> {
    TensorFile::open(path)
}

fn tower_shapes(
    file: &Arc<TensorFile>,
    layout: &CheckpointLayout,
    config: &LdmConfig,
    folders: &[PathBuf],
) -> Result<(Vec<TextTowerShape>, Vec<usize>), LoadError> {
    let (mut shapes, mut guessed) = (Vec::new(), Vec::new());
    for (index, prefix) in layout.text_prefixes.iter().enumerate() {
        let weights = Weights::new(Arc::clone(file), prefix);
        let (tower, table) = if weights.has("token_embedding.weight") {
            (TextTower::OpenClip, "token_embedding.weight")
        } else {
            (TextTower::Transformers, "embeddings.token_embedding.weight")
        };
        let width = weights.dim(table, 1)?;
        let named = config.text_towers.get(index).cloned().unwrap_or_default();
        let facts = match &named {
            TextTowerConfig {
                arch: None,
                version: None,
            } => None,
            named => find_tower_facts(named, folders),
        };
        let heads = facts.and_then(|facts| facts.heads);
        if heads.is_none() && !USUAL_TEXT_WIDTHS.contains(&width) {
            guessed.push(index);
        }
        shapes.push(TextTowerShape {
            tower,
            heads: heads.unwrap_or((width / 64).max(1)),
            quick_gelu: facts
                .and_then(|facts| facts.quick_gelu)
                .unwrap_or(tower == TextTower::Transformers),
            drop_layers: 0,
            projection: has_projection(&weights, layout.family),
        });
    }
    Ok((shapes, guessed))
}

/// CLIP-L, OpenCLIP-H and bigG, whose attention heads are all 64 wide.
const USUAL_TEXT_WIDTHS: [usize; 3] = [768, 1024, 1280];

/// SDXL's second tower and the refiner's use the projected end token.
fn has_projection(weights: &Weights, family: CheckpointFamily) -> bool {
    matches!(
        family,
        CheckpointFamily::Sdxl | CheckpointFamily::SdxlRefiner
    ) && (weights.has("text_projection") || weights.has("text_projection.weight"))
        && weights.has("token_embedding.weight")
}

/// Makes a session of a built graph whose weights lie beside `weights`.
pub(super) fn load_built(
    runtime: &Runtime,
    name: &str,
    built: &BuiltGraph,
    weights: &Weights,
) -> Result<Arc<Graph>, RuntimeError> {
    load_built_with(runtime, name, built, weights, LoadEffort::Full).map(Arc::new)
}

fn load_built_with(
    runtime: &Runtime,
    name: &str,
    built: &BuiltGraph,
    weights: &Weights,
    effort: LoadEffort<'_>,
) -> Result<Graph, RuntimeError> {
    if !weights.is_current() {
        return Err(RuntimeError::Load {
            graph: name.to_owned(),
            reason: format!(
                "{} has changed since it was opened; the next request reads it anew",
                weights.path().display()
            ),
        });
    }
    let source = GraphSource::Bytes {
        model: &built.model,
        external_folder: weights.path().parent(),
        values: &built.values,
    };
    Graph::load_with(runtime, name, source, effort)
}

/// [`load_built`] at the first call, and again after it was released.
fn load_built_late(
    runtime: &Runtime,
    name: &'static str,
    built: BuiltGraph,
    weights: &Weights,
    effort: LoadEffort<'static>,
) -> Graph {
    let (inputs, outputs) = (built.inputs.clone(), built.outputs.clone());
    let (late, weights) = (runtime.clone(), weights.clone());
    Graph::unloaded(runtime, name, inputs, outputs, move || {
        load_built_with(&late, name, &built, &weights, effort)
    })
}

/// Whether the parts of a checkpoint are all there from the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    /// All are loaded.
    Together,
    /// Each is loaded when it is needed; see [`super::frugal`].
    InTurn,
    /// So too, and text towers make room only for steps that outweigh loading them again.
    TextFirst,
}

/// The UNet of a checkpoint.
pub(super) fn load_unet(
    runtime: &Runtime,
    plan: &CheckpointPlan,
    options: BuildOptions,
    effort: LoadEffort<'static>,
    presence: Presence,
    sharing: RunSharing,
) -> Result<Arc<GraphUnet>, LoadError> {
    let (weights, shape) = (plan.unet_weights(), plan.unet_shape());
    if presence != Presence::Together {
        let built = unet(&weights, shape, options)?;
        let mut graph = load_built_late(runtime, "UNet", built, &weights, effort);
        if matches!(effort, LoadEffort::Quick) {
            graph = with_unet_upgrade(graph, runtime, &weights, shape, options);
        }
        return Ok(Arc::new(GraphUnet::shared(Arc::new(graph), sharing)?));
    }
    let (unet, _) = unet_session(runtime, weights, shape, options, effort, sharing)?;
    Ok(Arc::new(unet))
}

/// A UNet's session with the layers that networks can change. In half precision it has one in float32 behind it,
/// unless what is no number is to be answered. One that is loaded quickly can be upgraded.
pub(super) fn unet_session(
    runtime: &Runtime,
    weights: Weights,
    shape: UnetShape,
    options: BuildOptions,
    effort: LoadEffort<'_>,
    sharing: RunSharing,
) -> Result<(GraphUnet, Vec<AdapterPort>), LoadError> {
    let built = unet(&weights, shape, options)?;
    let mut graph = load_built_with(runtime, "UNet", &built, &weights, effort)?;
    if matches!(effort, LoadEffort::Quick) {
        graph = with_unet_upgrade(graph, runtime, &weights, shape, options);
    }
    let graph = Arc::new(graph);
    let in_float = in_float(options).map(|options| {
        let runtime = runtime.clone();
        let graph = LazyGraph::new(move || {
            let built =
                unet(&weights, shape, options).map_err(|error| unbuilt("float32", &error))?;
            load_built(&runtime, "UNet", &built, &weights)
        });
        InFloat::new("Unet", graph)
    });
    let unet = GraphUnet::shared(graph, sharing)?.with_float(in_float);
    Ok((unet, built.adapters))
}

/// The UNet `graph` of a quick load with what makes its faster session.
fn with_unet_upgrade(
    graph: Graph,
    runtime: &Runtime,
    weights: &Weights,
    shape: UnetShape,
    options: BuildOptions,
) -> Graph {
    let (runtime, weights) = (runtime.clone(), weights.clone());
    graph.with_upgrade(move |stop| {
        let built = unet(&weights, shape, options).map_err(|error| unbuilt("UNet", &error))?;
        let effort = LoadEffort::Background(stop);
        load_built_with(&runtime, "UNet", &built, &weights, effort)
    })
}

/// The same graph in float32, where it is not that already.
fn in_float(options: BuildOptions) -> Option<BuildOptions> {
    (options.precision != Precision::Float).then_some(BuildOptions {
        precision: Precision::Float,
        ..options
    })
}

fn unbuilt(graph: &str, error: &BuildError) -> RuntimeError {
    RuntimeError::Load {
        graph: graph.to_owned(),
        reason: error.to_string(),
    }
}

/// The text towers of a checkpoint.
pub(super) fn load_text_encoders(
    runtime: &Runtime,
    plan: &CheckpointPlan,
    options: BuildOptions,
    presence: Presence,
) -> Result<Vec<Arc<GraphTextEncoder>>, LoadError> {
    let mut encoders = Vec::new();
    for (index, shape) in plan.towers.iter().enumerate() {
        let weights = plan.text_weights(index);
        let built = text_encoder(&weights, *shape, options)?;
        let graph = match presence {
            Presence::Together => load_built(runtime, "text encoder", &built, &weights)?,
            Presence::InTurn | Presence::TextFirst => {
                let effort = LoadEffort::Full;
                let late = load_built_late(runtime, "text encoder", built, &weights, effort);
                Arc::new(late)
            }
        };
        encoders.push(Arc::new(GraphTextEncoder::new(graph, 0)?));
    }
    Ok(encoders)
}

/// A VAE from its weights. Each half becomes a session when it is first used: a checkpoint's first
/// step need not wait for its decoder, and the encoder is for pictures that are given. A picture that would
/// take more than `decode_memory_bytes` (`None`: than is free) is decoded strip by strip.
pub(super) fn load_vae(
    runtime: &Runtime,
    weights: Weights,
    options: BuildOptions,
    decode_memory_bytes: Option<u64>,
) -> Result<Arc<GraphVae>, LoadError> {
    // Circular padding would have the first strip look at the last one.
    let strips = if options.tiling {
        None
    } else {
        StripDecoder::new(runtime, &weights, decode_memory_bytes)
    };
    let half = |name: &'static str, built: BuiltGraph| {
        let (runtime, weights) = (runtime.clone(), weights.clone());
        LazyGraph::new(move || load_built(&runtime, name, &built, &weights))
    };
    let vae = GraphVae::new(
        half("VAE encoder", vae_encoder(&weights, options)?),
        half("VAE decoder", vae_decoder(&weights, options)?),
    );
    let vae = vae.with_strips(strips);
    Ok(Arc::new(match in_float(options) {
        Some(options) => vae.with_float(
            half("VAE encoder", vae_encoder(&weights, options)?),
            half("VAE decoder", vae_decoder(&weights, options)?),
        ),
        None => vae,
    }))
}

/// A1111's test for SD 2.x without a configuration: on a constant input at the last timestep a
/// network that predicts v answers far below the input.
pub(super) fn predicts_velocity(unet: &GraphUnet) -> Result<Prediction, LoadError> {
    let sample = Array4::from_elem((1, unet.channels(), 8, 8), 0.5);
    let input = UnetInput {
        timestep: vec![999.0],
        context: Array3::from_elem((1, 2, unet.context_width()), 0.5),
        vector: None,
        sample,
    };
    let out = unet.predict(&input).map_err(|source| LoadError::Unusable {
        path: "the UNet".to_owned(),
        reason: source.to_string(),
    })?;
    let mean = out.mean().unwrap_or(0.0) - 0.5;
    Ok(if mean < -1.0 {
        Prediction::Velocity
    } else {
        Prediction::Epsilon
    })
}
