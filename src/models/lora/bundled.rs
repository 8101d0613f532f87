//! Textual inversions inside a network file: `bundle_emb.<name>.string_to_param.*`, or
//! `bundle_emb.<name>.<tensor>` as [`embedding_vectors`] knows them.

use std::sync::Arc;

use indexmap::IndexMap;

use crate::catalogue::{TensorFile, embedding_vectors};
use crate::conditioning::Embedding;

/// The key before the first dot of their names.
pub(super) const KEY: &str = "bundle_emb";

/// The embeddings that a network file brings, in file order. Ones that cannot be read are logged and
/// left out. `short_hash` is the network file's.
#[must_use]
pub fn bundled_embeddings(file: &TensorFile, short_hash: &str) -> Vec<Arc<Embedding>> {
    let mut by_name: IndexMap<&str, Vec<(&str, &str)>> = IndexMap::new();
    for full in file.names() {
        let Some((KEY, rest)) = full.split_once('.') else {
            continue;
        };
        if let Some((name, tensor)) = rest.split_once('.') {
            by_name.entry(name).or_default().push((tensor, full));
        }
    }
    by_name
        .into_iter()
        .filter_map(|(name, tensors)| match embedding_vectors(file, &tensors) {
            Ok(vectors) => Some(Arc::new(Embedding {
                name: name.to_owned(),
                short_hash: short_hash.to_owned(),
                vectors,
            })),
            Err(reason) => {
                tracing::warn!(name, path = %file.path().display(), %reason, "this bundled embedding cannot be read");
                None
            }
        })
        .collect()
}
