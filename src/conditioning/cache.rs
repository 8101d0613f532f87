//! Encoded prompts kept from one request to the next.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

use super::conditioner::{Encoded, EncodingKey};

/// How much a [`ConditioningCache`] holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheLimits {
    pub entries: usize,
    /// Of tensors and of the texts that they are found by.
    pub bytes: usize,
}

/// The most recently used encodings, up to a size. Its owner shares it between jobs.
#[derive(Debug)]
pub struct ConditioningCache {
    limits: CacheLimits,
    /// Most recently used first.
    entries: Mutex<VecDeque<(EncodingKey, Arc<Encoded>)>>,
}

impl ConditioningCache {
    /// An empty cache.
    #[must_use]
    pub fn new(limits: CacheLimits) -> Self {
        Self {
            limits,
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
        // Two jobs may have encoded the same text at once.
        entries.retain(|(held, _)| *held != key);
        entries.push_front((key, encoded));
        let mut size = 0;
        let kept = entries
            .iter()
            .take(self.limits.entries)
            .take_while(|(key, encoded)| {
                size += key.size_bytes() + encoded.size_bytes();
                size <= self.limits.bytes
            })
            .count();
        entries.truncate(kept);
    }
}
