//! SHA-256 of model files, kept by modification time as A1111 does, and its old 8-digit hash.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// One remembered hash.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Entry {
    mtime: f64,
    sha256: String,
}

/// Hashes by `checkpoint/NAME`, `vae/NAME`, `lora/NAME`, in the JSON form of A1111's older
/// `cache.json`: `{"hashes": {key: {mtime, sha256}}}`.
#[derive(Debug)]
pub struct HashCache {
    file: Option<PathBuf>,
    computes: bool,
    entries: Mutex<BTreeMap<String, Entry>>,
}

#[derive(Default, Serialize, Deserialize)]
struct Stored {
    #[serde(default)]
    hashes: BTreeMap<String, Entry>,
}

impl HashCache {
    /// Reads the cache; a missing or broken file is an empty cache. `None` keeps it in memory.
    #[must_use]
    pub fn open(file: Option<PathBuf>) -> Self {
        let entries = file
            .as_ref()
            .and_then(|path| fs_err::read(path).ok())
            .and_then(|bytes| serde_json::from_slice::<Stored>(&bytes).ok())
            .map(|stored| stored.hashes)
            .unwrap_or_default();
        Self {
            file,
            computes: true,
            entries: Mutex::new(entries),
        }
    }

    /// Answers hashes that are not remembered with an empty text (`--no-hashing`).
    #[must_use]
    pub fn only_remembered(mut self) -> Self {
        self.computes = false;
        self
    }

    /// The remembered hash, if the file has not changed since.
    #[must_use]
    pub fn get(&self, key: &str, path: &Path) -> Option<String> {
        let mtime = modified(path)?;
        let entries = self.entries.lock();
        let entry = entries.get(key)?;
        // A1111 takes a hash as long as the file is not newer than it was.
        (mtime <= entry.mtime).then(|| entry.sha256.clone())
    }

    /// The remembered hash, or a new one, which is remembered.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn get_or_compute(&self, key: &str, path: &Path) -> std::io::Result<String> {
        self.get_or_compute_with(key, path, sha256_of)
    }

    /// The same with a hash of another part of the file.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn get_or_compute_with(
        &self,
        key: &str,
        path: &Path,
        compute: impl FnOnce(&Path) -> std::io::Result<String>,
    ) -> std::io::Result<String> {
        if let Some(known) = self.get(key, path) {
            return Ok(known);
        }
        if !self.computes {
            return Ok(String::new());
        }
        let sha256 = compute(path)?;
        if let Some(mtime) = modified(path) {
            let entry = Entry {
                mtime,
                sha256: sha256.clone(),
            };
            let mut entries = self.entries.lock();
            entries.insert(key.to_owned(), entry);
            self.write(&entries);
        }
        Ok(sha256)
    }

    fn write(&self, entries: &BTreeMap<String, Entry>) {
        let Some(file) = &self.file else { return };
        let stored = Stored {
            hashes: entries.clone(),
        };
        let outcome = serde_json::to_vec_pretty(&stored)
            .map_err(std::io::Error::other)
            .and_then(|json| {
                if let Some(folder) = file.parent() {
                    fs_err::create_dir_all(folder)?;
                }
                let temporary = file.with_extension("tmp");
                fs_err::write(&temporary, json)?;
                fs_err::rename(&temporary, file)
            });
        if let Err(error) = outcome {
            tracing::warn!(%error, "the hash cache cannot be written; hashes are computed anew next time");
        }
    }
}

fn modified(path: &Path) -> Option<f64> {
    let time = fs_err::metadata(path).ok()?.modified().ok()?;
    Some(time.duration_since(UNIX_EPOCH).ok()?.as_secs_f64())
}

/// SHA-256 of a whole file, as 64 hex digits.
///
/// # Errors
/// When the file cannot be read.
pub fn sha256_of(path: &Path) -> std::io::Result<String> {
    let mut file = fs_err::File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0_u8; 1 << 20];
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
    }
    Ok(hex(&hasher.finalize()))
}

/// A1111's first model hash: the first 8 hex digits of the SHA-256 of 64 KiB from 1 MiB on.
/// Files that end before have the hash of what is there.
///
/// # Errors
/// When the file cannot be read.
pub fn old_hash(path: &Path) -> std::io::Result<String> {
    let mut file = fs_err::File::open(path)?;
    file.seek(SeekFrom::Start(0x10_0000))?;
    let mut bytes = Vec::new();
    file.take(0x1_0000).read_to_end(&mut bytes)?;
    let mut text = hex(&Sha256::digest(&bytes));
    text.truncate(8);
    Ok(text)
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_remembered_until_the_file_is_newer() {
        let folder = tempfile::tempdir().unwrap();
        let (model, cache) = (folder.path().join("m"), folder.path().join("c/cache.json"));
        fs_err::write(&model, b"abc").unwrap();
        let hashes = HashCache::open(Some(cache.clone()));
        assert_eq!(hashes.get("checkpoint/m", &model), None);
        let hash = hashes.get_or_compute("checkpoint/m", &model).unwrap();
        assert!(hash.starts_with("ba7816bf8f01cfea"));

        let again = HashCache::open(Some(cache));
        assert_eq!(again.get("checkpoint/m", &model), Some(hash));
        let later = std::time::SystemTime::now() + std::time::Duration::from_mins(1);
        fs_err::OpenOptions::new()
            .write(true)
            .open(&model)
            .unwrap()
            .into_parts()
            .0
            .set_modified(later)
            .unwrap();
        assert_eq!(again.get("checkpoint/m", &model), None);
    }
}
