//! Textual inversion: names in a prompt that stand for trained vectors.

use std::collections::HashMap;
use std::sync::Arc;

use ndarray::Array2;

use super::tokenizer::Tokenizer;

/// One trained embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    /// What a prompt calls it.
    pub name: String,
    /// First 12 hex digits of the file's SHA-256, for the infotext.
    pub short_hash: String,
    /// `[vectors, width]` a text tower, in the order of the checkpoint's towers.
    pub vectors: Vec<Array2<f32>>,
}

impl Embedding {
    /// Tokens that the embedding takes in a prompt.
    #[must_use]
    pub fn vector_count(&self) -> usize {
        self.vectors.first().map_or(0, Array2::nrows)
    }
}

/// Where embeddings come from.
pub trait EmbeddingSource: Send + Sync {
    /// Names of the embeddings whose width fits the checkpoint, in the order of registration.
    fn names(&self) -> Vec<String>;

    /// The embedding called `name`, read when a prompt first uses it; `None` if it cannot be.
    fn load(&self, name: &str) -> Option<Arc<Embedding>>;
}

/// The embeddings by the token ids of their names, as one tower's tokenizer reads them.
#[derive(Clone, Default)]
pub struct EmbeddingIndex {
    source: Option<Arc<dyn EmbeddingSource>>,
    /// By the first id of the name; longer names first, then in the order of registration.
    by_first_id: HashMap<u32, Vec<(Vec<u32>, String)>>,
}

impl EmbeddingIndex {
    /// Tokenises the name of every embedding of `source`.
    #[must_use]
    pub fn new(source: Arc<dyn EmbeddingSource>, tokenizer: Tokenizer) -> Self {
        let mut by_first_id: HashMap<u32, Vec<(Vec<u32>, String)>> = HashMap::new();
        for name in source.names() {
            let ids = tokenizer.tokens(&name);
            if let Some(&first) = ids.first() {
                by_first_id.entry(first).or_default().push((ids, name));
            }
        }
        for candidates in by_first_id.values_mut() {
            candidates.sort_by_key(|(ids, _)| std::cmp::Reverse(ids.len()));
        }
        Self {
            source: Some(source),
            by_first_id,
        }
    }

    /// The embedding whose name `tokens` begin with, and how many tokens the name has.
    pub(super) fn find(&self, tokens: &[u32]) -> Option<(Arc<Embedding>, usize)> {
        let candidates = self.by_first_id.get(tokens.first()?)?;
        candidates
            .iter()
            .filter(|(ids, _)| tokens.starts_with(ids))
            .find_map(|(ids, name)| Some((self.source.as_ref()?.load(name)?, ids.len())))
    }
}

impl std::fmt::Debug for EmbeddingIndex {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("EmbeddingIndex")
            .field("by_first_id", &self.by_first_id)
            .finish_non_exhaustive()
    }
}
