//! Encoded prompts kept from one request to the next.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

use super::conditioner::{Encoded, EncodingKey};

/// The most recently used encodings, up to a size. Its owner shares it between jobs.
#[derive(Debug)]
pub struct ConditioningCache {
    limit_bytes: usize,
    /// Most recently used first.
    entries: Mutex<VecDeque<(EncodingKey, Arc<Encoded>)>>,
}

impl ConditioningCache {
    /// An empty cache that holds tensors of up to `limit_bytes`.
    #[must_use]
    pub fn new(limit_bytes: usize) -> Self {
        Self {
            limit_bytes,
            entries: Mutex::new(VecDeque::new()),
        }
    }

    pub(super) fn get(&self, key: &EncodingKey) -> Option<Arc<Encoded>> {
        let mut entries = self.entries.lock();
        let index = entries.iter().position(|(held, _)| held == key)?;
        let entry = entries.remove(index)?;
        let encoded = Arc::clone(&entry.1);
        entries.push_front(entry);
        Some(encoded)
    }

    pub(super) fn insert(&self, key: EncodingKey, encoded: Arc<Encoded>) {
        let mut entries = self.entries.lock();
        entries.push_front((key, encoded));
        let mut size = 0;
        let kept = entries
            .iter()
            .take_while(|(_, encoded)| {
                size += encoded.size_bytes();
                size <= self.limit_bytes
            })
            .count();
        entries.truncate(kept);
    }
}
