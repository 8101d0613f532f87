//! The sessions of one checkpoint with networks (LoRA) applied.
//!
//! A session is made for a set of layers. It serves every request whose networks touch no other
//! layers: layers that are not touched get a zero addition of rank 1. Networks that change weights
//! (LyCORIS kinds) need a session of their own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ndarray::{ArrayD, IxDyn};
use parking_lot::Mutex;

use super::checkpoint::{CheckpointPlan, LoadError, load_built};
use super::graphs::{AdapterPort, BuildOptions, UnetShape, VectorInput, text_encoder, unet};
use super::lora::{AppliedNetwork, ModelPart, PartChanges, changes, weights_of};
use super::networks::{GraphTextEncoder, GraphUnet};
use crate::runtime::Runtime;

/// What identifies the networks of a request: file, multipliers, rank.
type NetworkKey = Vec<(std::path::PathBuf, u32, u32, Option<usize>)>;

/// The adapted sessions of a checkpoint, the last used of each part.
pub(super) struct AdaptedSessions {
    plan: CheckpointPlan,
    options: BuildOptions,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last: Option<(NetworkKey, Arc<BTreeMap<ModelPart, PartChanges>>)>,
    unet: Option<Session<GraphUnet>>,
    text: BTreeMap<usize, Session<GraphTextEncoder>>,
}

struct Session<N> {
    layers: BTreeSet<String>,
    /// The networks whose merged weights are in it; `None`: the checkpoint's own.
    merged: Option<NetworkKey>,
    ports: Vec<AdapterPort>,
    network: Arc<N>,
}

impl<N> Session<N> {
    fn serves(&self, wanted: &BTreeSet<String>, merged: Option<&NetworkKey>) -> bool {
        self.merged.as_ref() == merged && wanted.is_subset(&self.layers)
    }

    /// Values for every adapter input.
    fn values(&self, changes: &PartChanges) -> Vec<(String, ArrayD<f32>)> {
        let mut values = changes.adapters.clone();
        for port in &self.ports {
            if !changes.adapted.contains(&port.layer) {
                values.extend(zeros(port));
            }
        }
        values
    }
}

/// A network's parts: the UNet and the text towers that it changes.
pub(super) struct AdaptedParts {
    pub(super) unet: Option<Arc<GraphUnet>>,
    pub(super) text: BTreeMap<usize, Arc<GraphTextEncoder>>,
}

impl AdaptedSessions {
    pub(super) fn new(plan: CheckpointPlan, options: BuildOptions) -> Self {
        Self {
            plan,
            options,
            state: Mutex::default(),
        }
    }

    /// The parts that these networks change, ready to run.
    pub(super) fn apply(
        &self,
        runtime: &Runtime,
        networks: &[AppliedNetwork],
    ) -> Result<AdaptedParts, LoadError> {
        let mut state = self.state.lock();
        let key: NetworkKey = networks
            .iter()
            .map(|network| {
                (
                    network.file.path().to_owned(),
                    network.text_multiplier.to_bits(),
                    network.unet_multiplier.to_bits(),
                    network.dynamic_rank,
                )
            })
            .collect();
        let all = match &state.last {
            Some((last, all)) if *last == key => Arc::clone(all),
            _ => Arc::new(changes(&self.plan, networks)),
        };
        state.last = Some((key.clone(), Arc::clone(&all)));
        let mut parts = AdaptedParts {
            unet: None,
            text: BTreeMap::new(),
        };
        for (part, change) in all.iter() {
            let merged = (!change.replaced.is_empty()).then_some(&key);
            match part {
                ModelPart::Unet => {
                    let fits =
                        |session: &Session<GraphUnet>| session.serves(&change.adapted, merged);
                    if !state.unet.as_ref().is_some_and(fits) {
                        // The old session goes before the new one takes its memory.
                        state.unet = None;
                        state.unet = Some(self.load_unet(runtime, change, merged.cloned())?);
                    }
                    parts.unet = state.unet.as_ref().map(|session| {
                        Arc::new(session.network.with_networks(session.values(change)))
                    });
                }
                ModelPart::Text(tower) => {
                    let fits = |session: &Session<GraphTextEncoder>| {
                        session.serves(&change.adapted, merged)
                    };
                    if !state.text.get(tower).is_some_and(fits) {
                        state.text.remove(tower);
                        let session = self.load_text(runtime, *tower, change, merged.cloned())?;
                        state.text.insert(*tower, session);
                    }
                    if let Some(session) = state.text.get(tower) {
                        let network = session.network.with_networks(session.values(change));
                        parts.text.insert(*tower, Arc::new(network));
                    }
                }
            }
        }
        Ok(parts)
    }

    fn load_unet(
        &self,
        runtime: &Runtime,
        change: &PartChanges,
        merged: Option<NetworkKey>,
    ) -> Result<Session<GraphUnet>, LoadError> {
        let weights = weights_of(&self.plan, ModelPart::Unet)
            .with_adapted(change.adapted.clone())
            .with_replaced(change.replaced.clone());
        let shape = UnetShape {
            heads: self.plan.heads(),
            vector: VectorInput::Whole,
        };
        let built = unet(&weights, shape, self.options)?;
        let graph = load_built(runtime, "UNet", &built, &weights)?;
        Ok(Session {
            layers: change.adapted.clone(),
            merged,
            ports: built.adapters,
            network: Arc::new(GraphUnet::new(graph)?),
        })
    }

    fn load_text(
        &self,
        runtime: &Runtime,
        tower: usize,
        change: &PartChanges,
        merged: Option<NetworkKey>,
    ) -> Result<Session<GraphTextEncoder>, LoadError> {
        let weights = weights_of(&self.plan, ModelPart::Text(tower))
            .with_adapted(change.adapted.clone())
            .with_replaced(change.replaced.clone());
        let built = text_encoder(&weights, self.plan.towers[tower], self.options)?;
        let graph = load_built(runtime, "text encoder", &built, &weights)?;
        Ok(Session {
            layers: change.adapted.clone(),
            merged,
            ports: built.adapters,
            network: Arc::new(GraphTextEncoder::new(graph, 0)?),
        })
    }
}

/// A rank 1 addition of nothing.
fn zeros(port: &AdapterPort) -> [(String, ArrayD<f32>); 2] {
    let mut down = vec![1];
    down.extend_from_slice(&port.down_shape);
    let mut up = vec![port.out, 1];
    up.extend(std::iter::repeat_n(1, port.down_shape.len() - 1));
    [
        (port.down_input(), ArrayD::zeros(IxDyn(&down))),
        (port.up_input(), ArrayD::zeros(IxDyn(&up))),
    ]
}
