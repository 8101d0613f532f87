//! Hashes of checkpoints that are computed beside the jobs that tell them.

use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::catalogue::{Catalogue, Checkpoint};
use crate::pipeline::ShortHash;
use crate::runtime::lower_priority;

/// The hashes that are being computed, by file.
#[derive(Default)]
pub(super) struct LateHashes(Arc<Mutex<Vec<(PathBuf, ShortHash)>>>);

impl LateHashes {
    /// The checkpoint's hash: at once where the catalogue knows it, else as soon as a thread that leaves the processor to
    /// all others has read the file. It is then in the catalogue too. Where the file cannot be read the log tells, and the
    /// hash is empty.
    pub(super) fn of(&self, catalogue: &Arc<Catalogue>, checkpoint: &Checkpoint) -> ShortHash {
        if let Some(known) = &checkpoint.sha256 {
            return ShortHash::known(known);
        }
        let mut pending = self.0.lock();
        if let Some((_, hash)) = pending.iter().find(|(path, _)| *path == checkpoint.path) {
            return hash.clone();
        }
        let (hash, promise) = ShortHash::promised();
        pending.push((checkpoint.path.clone(), hash.clone()));
        let (catalogue, checkpoint) = (Arc::clone(catalogue), checkpoint.clone());
        let computed = Computed {
            pending: Arc::clone(&self.0),
            path: checkpoint.path.clone(),
        };
        let work = move || {
            let _computed = computed;
            lower_priority();
            match catalogue.ensure_hash(&checkpoint) {
                Ok(sha256) => promise.keep(&sha256),
                Err(error) => {
                    tracing::warn!(checkpoint = %checkpoint.name, %error, "its hash cannot be computed");
                }
            }
        };
        drop(pending);
        let thread = std::thread::Builder::new().name("hash".to_owned());
        if let Err(error) = thread.spawn(work) {
            tracing::warn!(%error, "no thread for a checkpoint's hash");
        }
        hash
    }
}

/// A file whose hash is no longer being computed when this is dropped.
struct Computed {
    pending: Arc<Mutex<Vec<(PathBuf, ShortHash)>>>,
    path: PathBuf,
}

impl Drop for Computed {
    fn drop(&mut self) {
        self.pending.lock().retain(|(path, _)| *path != self.path);
    }
}
