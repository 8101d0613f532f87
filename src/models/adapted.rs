//! The sessions of one checkpoint with networks (LoRA, hypernetworks) applied.
//!
//! The last used of each part stays, and so do those that other jobs use meanwhile.
//!
//! A session is made for a set of layers. It serves every request whose networks touch no other
//! layers: layers that are not touched get a zero addition of rank 1. Networks that change weights
//! (LyCORIS kinds) need a session of their own, and so does every list of hypernetworks, whatever
//! its multipliers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use ndarray::{ArrayD, IxDyn};
use parking_lot::Mutex;

use super::checkpoint::{CheckpointPlan, LoadError, Presence, load_built, load_unet, unet_session};
use super::graphs::{
    AdapterPort, BuildOptions, HypernetworkModules, multiplier_input, text_encoder,
};
use super::lora::{AppliedNetwork, ModelPart, PartChanges, changes, weights_of};
use super::networks::{GraphTextEncoder, GraphUnet, RunSharing};
use crate::catalogue::FileState;
use crate::runtime::{LoadEffort, Runtime};

/// What identifies the networks of a request: files as they are now, multipliers, ranks.
type NetworkKey = Vec<(PathBuf, Option<FileState>, [u32; 2], Option<usize>)>;

/// One hypernetwork of a request.
#[derive(Debug, Clone)]
pub(super) struct AppliedHypernetwork {
    /// The file and its modification time.
    pub(super) identity: (PathBuf, Option<SystemTime>),
    pub(super) modules: Arc<HypernetworkModules>,
    pub(super) multiplier: f32,
}

/// What identifies the hypernetworks of a session.
type HypernetworkKey = Vec<(PathBuf, Option<SystemTime>)>;

/// The adapted sessions of a checkpoint: the last used of each part and those in use.
pub(super) struct AdaptedSessions {
    plan: CheckpointPlan,
    options: BuildOptions,
    sharing: RunSharing,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last: Option<(NetworkKey, Arc<BTreeMap<ModelPart, PartChanges>>)>,
    /// The last used last.
    unets: Vec<Session<GraphUnet>>,
    /// Each with its tower, the last used last.
    text: Vec<(usize, Session<GraphTextEncoder>)>,
}

struct Session<N> {
    layers: BTreeSet<String>,
    /// The networks whose merged weights are in it; `None`: the checkpoint's own.
    merged: Option<NetworkKey>,
    hypernetworks: HypernetworkKey,
    ports: Vec<AdapterPort>,
    network: Arc<N>,
}

impl<N> Session<N> {
    fn serves(
        &self,
        wanted: &BTreeSet<String>,
        merged: Option<&NetworkKey>,
        hypernetworks: &HypernetworkKey,
    ) -> bool {
        self.merged.as_ref() == merged
            && self.hypernetworks == *hypernetworks
            && wanted.is_subset(&self.layers)
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
    pub(super) fn new(plan: CheckpointPlan, options: BuildOptions, sharing: RunSharing) -> Self {
        Self {
            plan,
            options,
            sharing,
            state: Mutex::default(),
        }
    }

    /// The UNet without networks.
    pub(super) fn plain_unet(
        &self,
        runtime: &Runtime,
        effort: LoadEffort<'static>,
        presence: Presence,
    ) -> Result<Arc<GraphUnet>, LoadError> {
        load_unet(
            runtime,
            &self.plan,
            self.options,
            effort,
            presence,
            self.sharing,
        )
    }

    /// How many UNets and text towers are loaded. Zero UNets while one is being loaded.
    pub(super) fn counts(&self) -> (u64, u64) {
        self.state.try_lock().map_or((0, 0), |state| {
            (state.unets.len() as u64, state.text.len() as u64)
        })
    }

    /// The UNets that are loaded; none while one is being loaded.
    pub(super) fn unets(&self) -> Vec<Arc<GraphUnet>> {
        let state = self.state.try_lock();
        state.map_or_else(Vec::new, |state| {
            let unets = state.unets.iter();
            unets.map(|session| Arc::clone(&session.network)).collect()
        })
    }

    /// Lets go of the UNets that no job uses; whether there were any.
    pub(super) fn forget_idle_unets(&self) -> bool {
        let mut state = self.state.lock();
        let before = state.unets.len();
        state.unets.retain(|session| session.network.is_in_use());
        state.unets.len() < before
    }

    /// Whether a job uses one of the sessions, or one of them is being made.
    pub(super) fn is_in_use(&self) -> bool {
        self.state.try_lock().is_none_or(|state| {
            let text =
                |(_, session): &(usize, Session<GraphTextEncoder>)| session.network.is_in_use();
            state
                .unets
                .iter()
                .any(|session| session.network.is_in_use())
                || state.text.iter().any(text)
        })
    }

    /// The parts that these networks change, ready to run. `make_room` is called before a UNet is
    /// loaded, with this effort.
    pub(super) fn apply(
        &self,
        runtime: &Runtime,
        networks: &[AppliedNetwork],
        hypernetworks: &[AppliedHypernetwork],
        effort: LoadEffort<'_>,
        make_room: &mut dyn FnMut(),
    ) -> Result<AdaptedParts, LoadError> {
        let mut state = self.state.lock();
        let key: NetworkKey = networks
            .iter()
            .map(|network| {
                (
                    network.file.path().to_owned(),
                    network.file.state(),
                    [network.text_multiplier, network.unet_multiplier].map(f32::to_bits),
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
        let hyper_key: HypernetworkKey = hypernetworks
            .iter()
            .map(|hypernetwork| hypernetwork.identity.clone())
            .collect();
        let nothing = PartChanges::default();
        let mut changed: BTreeMap<ModelPart, &PartChanges> =
            all.iter().map(|(part, change)| (*part, change)).collect();
        if !hypernetworks.is_empty() {
            changed.entry(ModelPart::Unet).or_insert(&nothing);
        }
        for (part, change) in changed {
            let merged = (!change.replaced.is_empty()).then_some(&key);
            match part {
                ModelPart::Unet => {
                    let fits = |session: &Session<GraphUnet>| {
                        session.serves(&change.adapted, merged, &hyper_key)
                    };
                    let session = if let Some(at) = state.unets.iter().position(fits) {
                        state.unets.remove(at)
                    } else {
                        // Old sessions go before the new one takes their memory.
                        state.unets.retain(|session| session.network.is_in_use());
                        make_room();
                        self.load_unet(runtime, change, merged.cloned(), hypernetworks, effort)?
                    };
                    state.unets.push(session);
                    parts.unet = state.unets.last().map(|session| {
                        let mut values = session.values(change);
                        values.extend(multipliers(hypernetworks));
                        Arc::new(session.network.with_networks(values))
                    });
                }
                ModelPart::Text(tower) => {
                    let fits = |(of, session): &(usize, Session<GraphTextEncoder>)| {
                        *of == tower
                            && session.serves(&change.adapted, merged, &HypernetworkKey::new())
                    };
                    let session = if let Some(at) = state.text.iter().position(fits) {
                        state.text.remove(at).1
                    } else {
                        let stays = |(of, session): &(usize, Session<GraphTextEncoder>)| {
                            *of != tower || session.network.is_in_use()
                        };
                        state.text.retain(stays);
                        self.load_text(runtime, tower, change, merged.cloned())?
                    };
                    let network = session.network.with_networks(session.values(change));
                    parts.text.insert(tower, Arc::new(network));
                    state.text.push((tower, session));
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
        hypernetworks: &[AppliedHypernetwork],
        effort: LoadEffort<'_>,
    ) -> Result<Session<GraphUnet>, LoadError> {
        let modules = hypernetworks.iter().map(|it| Arc::clone(&it.modules));
        let weights = weights_of(&self.plan, ModelPart::Unet)
            .with_adapted(change.adapted.clone())
            .with_hypernetworks(modules.collect())
            .with_replaced(change.replaced.clone());
        let shape = self.plan.unet_shape();
        let (options, sharing) = (self.options, self.sharing);
        let (unet, ports) = unet_session(runtime, weights, shape, options, effort, sharing)?;
        Ok(Session {
            layers: change.adapted.clone(),
            merged,
            hypernetworks: hypernetworks
                .iter()
                .map(|hypernetwork| hypernetwork.identity.clone())
                .collect(),
            ports,
            network: Arc::new(unet),
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
            hypernetworks: HypernetworkKey::new(),
            ports: built.adapters,
            network: Arc::new(GraphTextEncoder::new(graph, 0)?),
        })
    }
}

/// Values of the multiplier inputs.
fn multipliers(hypernetworks: &[AppliedHypernetwork]) -> Vec<(String, ArrayD<f32>)> {
    hypernetworks
        .iter()
        .enumerate()
        .map(|(index, hypernetwork)| {
            let value = ArrayD::from_elem(IxDyn(&[1]), hypernetwork.multiplier);
            (multiplier_input(index), value)
        })
        .collect()
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
