//! The textual inversions that fit one checkpoint, for the conditioning room.

use std::sync::Arc;

use crate::catalogue::{EmbeddingFile, EmbeddingList};
use crate::conditioning::{Embedding, EmbeddingSource};

/// The embeddings of a list whose widths are those of a checkpoint's text towers.
pub(super) struct FittingEmbeddings {
    entries: Vec<Arc<Embedding>>,
}

impl FittingEmbeddings {
    pub(super) fn new(list: &EmbeddingList, tower_widths: &[usize]) -> Self {
        let (fitting, others) = list.split(tower_widths);
        if !others.is_empty() {
            tracing::debug!(
                count = others.len(),
                "embeddings of other widths are left out"
            );
        }
        let entries = fitting.into_iter().map(entry).map(Arc::new).collect();
        Self { entries }
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
