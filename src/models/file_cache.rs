//! What was loaded from files, as long as they do not change.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;

/// Keeps what the files used last gave.
pub(super) struct FileCache<T> {
    limit: usize,
    /// Most recently used last. Held while loading, so that a file is loaded once.
    entries: Mutex<Vec<Entry<T>>>,
}

struct Entry<T> {
    path: PathBuf,
    modified: Option<SystemTime>,
    content: Arc<T>,
}

impl<T> FileCache<T> {
    /// A cache of at most `limit` files.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            entries: Mutex::default(),
        }
    }

    /// Forgets everything; whoever uses it keeps it.
    pub(super) fn clear(&self) {
        self.entries.lock().clear();
    }

    /// What the file gave when it was last changed, or what `load` makes of it now.
    ///
    /// # Errors
    /// Those of `load`; then nothing is kept.
    pub(super) fn get_or_load<E>(
        &self,
        path: &Path,
        load: impl FnOnce() -> Result<Arc<T>, E>,
    ) -> Result<Arc<T>, E> {
        let modified = fs_err::metadata(path)
            .and_then(|metadata| metadata.modified())
            .ok();
        let mut entries = self.entries.lock();
        let known = entries
            .iter()
            .position(|entry| entry.path == path && entry.modified == modified);
        if let Some(at) = known {
            let entry = entries.remove(at);
            let content = Arc::clone(&entry.content);
            entries.push(entry);
            return Ok(content);
        }
        let content = load()?;
        entries.retain(|entry| entry.path != path);
        entries.push(Entry {
            path: path.to_owned(),
            modified,
            content: Arc::clone(&content),
        });
        if entries.len() > self.limit {
            entries.remove(0);
        }
        Ok(content)
    }
}
