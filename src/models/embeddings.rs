//! The textual inversions that fit one checkpoint, for the conditioning room.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use super::lora::AppliedNetwork;
use crate::catalogue::{EmbeddingFile, EmbeddingList};
use crate::conditioning::{Embedding, EmbeddingSource};

/// The embeddings of a list whose widths are those of a checkpoint's text towers.
pub(super) struct FittingEmbeddings {
    entries: Vec<Arc<Embedding>>,
}

impl FittingEmbeddings {
    /// `bundled` come from the networks of a request; a file of the list with the same name wins.
    pub(super) fn new(
        list: &EmbeddingList,
        bundled: &[Arc<Embedding>],
        tower_widths: &[usize],
    ) -> Self {
        let (fitting, others) = list.split(tower_widths);
        if !others.is_empty() {
            tracing::debug!(
                count = others.len(),
                "embeddings of other widths are left out"
            );
        }
        let mut entries: Vec<Arc<Embedding>> =
            fitting.into_iter().map(entry).map(Arc::new).collect();
        for embedding in bundled {
            let widths = embedding.vectors.iter().map(ndarray::Array2::ncols);
            let is_new = entries.iter().all(|known| known.name != embedding.name);
            if is_new && widths.eq(tower_widths.iter().copied()) {
                entries.push(Arc::clone(embedding));
            }
        }
        Self { entries }
    }

    /// A number that changes with the load of the checkpoint, with the files of the networks (not with
    /// their hashes, which a file may state itself and `--no-hashing` leaves out), and with the embeddings.
    pub(super) fn state(&self, generation: u64, networks: &[AppliedNetwork]) -> u64 {
        let mut hasher = DefaultHasher::new();
        generation.hash(&mut hasher);
        for network in networks {
            (network.file.path(), network.file.state()).hash(&mut hasher);
        }
        for entry in &self.entries {
            (&entry.name, &entry.short_hash).hash(&mut hasher);
        }
        hasher.finish()
    }
}

fn entry(file: EmbeddingFile) -> Embedding {
    Embedding {
        name: file.name,
        short_hash: file.short_hash,
        vectors: file.vectors,
    }
}

impl EmbeddingSource for FittingEmbeddings {
    fn names(&self) -> Vec<String> {
        self.entries
            .iter()
            .map(|entry| entry.name.clone())
            .collect()
    }

    fn load(&self, name: &str) -> Option<Arc<Embedding>> {
        self.entries
            .iter()
            .find(|entry| entry.name == name)
            .map(Arc::clone)
    }
}
