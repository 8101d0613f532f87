//! The list of LoRA files and their relatives: names, aliases, hashes and look-up as A1111's
//! built-in extension has them.

use std::collections::{BTreeMap, HashSet};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use parking_lot::RwLock;
use sha2::{Digest, Sha256};

use super::checkpoints::{has_extension, natural_key, walk};
use super::{HashCache, TensorFile};

/// One network file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkFile {
    /// The file's stem, which prompts use.
    pub name: String,
    /// `ss_output_name` of the metadata, else the stem.
    pub alias: String,
    pub path: PathBuf,
    /// The text metadata of a `.safetensors` file.
    pub metadata: BTreeMap<String, String>,
}

/// The network files, as of the last scan.
#[derive(Debug, Default)]
pub struct NetworkList {
    folders: Vec<PathBuf>,
    files: RwLock<Vec<NetworkFile>>,
}

impl NetworkList {
    /// Scans `folders` (`models/Lora`, `models/LyCORIS`). Missing folders are empty; of two files
    /// of the same name the later one counts.
    #[must_use]
    pub fn new(folders: Vec<PathBuf>) -> Self {
        let list = Self {
            folders,
            files: RwLock::default(),
        };
        list.refresh();
        list
    }

    /// Scans the folders anew.
    pub fn refresh(&self) {
        let wanted = |path: &Path| has_extension(path, &["pt", "ckpt", "safetensors"]);
        let mut paths: Vec<PathBuf> = self
            .folders
            .iter()
            .flat_map(|folder| walk(folder, &|path| !path.is_dir() && wanted(path)))
            .collect();
        paths.sort_by_cached_key(|path| natural_key(&path.to_string_lossy()));
        let mut files: Vec<NetworkFile> = Vec::new();
        for path in paths {
            let file = describe(path);
            match files.iter_mut().find(|known| known.name == file.name) {
                Some(known) => *known = file,
                None => files.push(file),
            }
        }
        *self.files.write() = files;
    }

    /// All files in A1111's order.
    #[must_use]
    pub fn files(&self) -> Vec<NetworkFile> {
        self.files.read().clone()
    }

    /// The file that a prompt's name means: a stem or an alias; an alias that several files have
    /// means none of them.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<NetworkFile> {
        let files = self.files.read();
        let mut seen = HashSet::new();
        let mut ambiguous = HashSet::new();
        for file in files.iter() {
            for text in HashSet::from([&file.name, &file.alias]) {
                if !seen.insert(text.as_str()) {
                    ambiguous.insert(text.to_lowercase());
                }
            }
        }
        let by_name = || files.iter().find(|file| file.name == name);
        let by_alias = || files.iter().rfind(|file| file.alias == name);
        if name.is_empty() || ambiguous.contains(&name.to_lowercase()) {
            return by_name().cloned();
        }
        by_name().or_else(by_alias).cloned()
    }
}

impl NetworkFile {
    /// First 12 hex digits of: the metadata's `sshs_model_hash`, else the SHA-256 of the data after
    /// the header, else (no safetensors file) that of the file.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn short_hash(&self, hashes: &HashCache) -> std::io::Result<String> {
        let mut hash = match self.metadata.get("sshs_model_hash") {
            Some(stated) if stated.bytes().all(|byte| byte.is_ascii_hexdigit()) => stated.clone(),
            _ if has_extension(&self.path, &["safetensors"]) => {
                hashes.get_or_compute_with(&format!("lora/{}", self.name), &self.path, data_hash)?
            }
            _ => hashes.get_or_compute(&format!("lora/{}", self.name), &self.path)?,
        };
        hash.truncate(12);
        Ok(hash)
    }
}

fn describe(path: PathBuf) -> NetworkFile {
    let name = path
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let metadata = if has_extension(&path, &["safetensors"]) {
        match TensorFile::open_safetensors(&path) {
            Ok(file) => file.metadata().clone(),
            Err(error) => {
                tracing::warn!(%error, "this network file is listed but cannot be read");
                BTreeMap::new()
            }
        }
    } else {
        BTreeMap::new()
    };
    let alias = metadata
        .get("ss_output_name")
        .filter(|alias| !alias.is_empty())
        .cloned()
        .unwrap_or_else(|| name.clone());
    NetworkFile {
        name,
        alias,
        path,
        metadata,
    }
}

/// SHA-256 of what follows a safetensors header.
fn data_hash(path: &Path) -> std::io::Result<String> {
    let mut file = fs_err::File::open(path)?;
    let mut length = [0_u8; 8];
    file.read_exact(&mut length)?;
    let begin = u64::from_le_bytes(length).saturating_add(8);
    file.seek(SeekFrom::Start(begin.min(i64::MAX.unsigned_abs())))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0_u8; 1 << 20];
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok(super::hashes::hex(&hasher.finalize()));
        }
        hasher.update(&buffer[..count]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(folder: &Path, name: &str, alias: &str) {
        let header = format!(r#"{{"__metadata__":{{"ss_output_name":"{alias}"}}}}"#);
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(b"abc");
        fs_err::write(folder.join(name), bytes).unwrap();
    }

    #[test]
    fn names_and_unambiguous_aliases_are_found() {
        let folder = tempfile::tempdir().unwrap();
        network(folder.path(), "a.safetensors", "shared");
        network(folder.path(), "b.safetensors", "shared");
        network(folder.path(), "c.safetensors", "Own Name");
        let list = NetworkList::new(vec![folder.path().to_owned()]);
        let found = |name: &str| list.find(name).map(|file| file.name);
        assert_eq!(found("a").as_deref(), Some("a"));
        assert_eq!(found("Own Name").as_deref(), Some("c"));
        assert_eq!(found("shared"), None);
        assert_eq!(found("A"), None);
        let hash = list
            .find("c")
            .unwrap()
            .short_hash(&HashCache::open(None))
            .unwrap();
        assert_eq!(hash, "ba7816bf8f01");
    }
}
