//! The list of checkpoints and VAE files: folders, names, titles, hashes and look-up as A1111 has
//! them. A folder with an ONNX export in the diffusers layout counts as a checkpoint too.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use parking_lot::{Mutex, RwLock};

use super::hashes::old_hash;
use super::tensor_file::state_of;
use super::{
    EmbeddingList, FaceFiles, FileState, HashCache, HypernetworkList, NetworkList, TensorFile,
    UpscalerList, detect,
};

/// Which folders to look into.
#[derive(Debug, Clone, Default)]
pub struct CatalogueConfig {
    /// The folder `models` of the data folder (or `--models-dir`).
    pub models_dir: PathBuf,
    /// `--ckpt-dir`, looked at first.
    pub ckpt_dir: Option<PathBuf>,
    /// `--vae-dir`.
    pub vae_dir: Option<PathBuf>,
    /// `--vae-path`: the VAE of every checkpoint, whatever the options say.
    pub vae_path: Option<PathBuf>,
    /// `--no-hashing`: hashes that are not known yet are not computed.
    pub no_hashing: bool,
    /// Checkpoints outside the folders (`--ckpt`, the embedded model); first in the list.
    pub extra_checkpoints: Vec<PathBuf>,
    /// Folders with LoRA and their relatives; empty: `Lora` and `LyCORIS` in `models_dir`.
    pub network_dirs: Vec<PathBuf>,
    /// A1111's `embeddings`.
    pub embeddings_dir: Option<PathBuf>,
    /// A1111's `hypernetworks`; `None`: the folder of that name in `models_dir`.
    pub hypernetworks_dir: Option<PathBuf>,
    /// A1111's folders ESRGAN and RealESRGAN, in this order; empty: those in `models_dir`.
    pub upscaler_dirs: Vec<PathBuf>,
    /// A1111's folders Codeformer and GFPGAN, in this order; empty: those in `models_dir`.
    pub face_dirs: Vec<PathBuf>,
    /// `--gfpgan-model`.
    pub gfpgan_model: Option<PathBuf>,
    /// Where hashes are remembered; `None`: in memory.
    pub hash_cache: Option<PathBuf>,
}

/// How a checkpoint is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckpointFormat {
    SafeTensors,
    /// A torch pickle (`.ckpt`, `.pt`).
    Pickle,
    /// A folder of ONNX graphs in the diffusers layout.
    OnnxFolder,
}

/// One entry of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    pub path: PathBuf,
    pub format: CheckpointFormat,
    /// Path relative to the folder it was found in, A1111's name.
    pub name: String,
    /// The name with separators turned into `_` and without extension.
    pub model_name: String,
    /// The file's stem.
    pub stem: String,
    /// Known after the first load on this machine.
    pub sha256: Option<String>,
    /// A1111's first hash, 8 hex digits.
    pub old_hash: Option<String>,
}

impl Checkpoint {
    /// The first 10 digits of the hash, once it is known.
    #[must_use]
    pub fn short_hash(&self) -> Option<&str> {
        self.sha256.as_deref().and_then(|hash| hash.get(..10))
    }

    /// `name [short hash]`, or the name while the hash is unknown.
    #[must_use]
    pub fn title(&self) -> String {
        with_hash(&self.name, self.short_hash())
    }

    /// `stem [short hash]`, or the stem while the hash is unknown.
    #[must_use]
    pub fn short_title(&self) -> String {
        with_hash(&self.stem, self.short_hash())
    }

    /// The `.yaml` beside the file, if it exists.
    #[must_use]
    pub fn config_file(&self) -> Option<PathBuf> {
        let config = self.path.with_extension("yaml");
        config.is_file().then_some(config)
    }

    /// Every text that means exactly this checkpoint.
    #[must_use]
    pub fn aliases(&self) -> Vec<String> {
        let mut aliases = vec![
            self.model_name.clone(),
            self.title(),
            self.name.clone(),
            self.stem.clone(),
        ];
        if let Some(old) = &self.old_hash {
            aliases.push(old.clone());
            aliases.push(format!("{} [{old}]", self.name));
        }
        if let (Some(sha256), Some(short)) = (&self.sha256, self.short_hash()) {
            aliases.push(short.to_owned());
            aliases.push(sha256.clone());
            aliases.push(format!("{} [{short}]", self.name));
            aliases.push(format!("{} [{short}]", self.stem));
        }
        aliases
    }

    fn cache_key(&self) -> String {
        format!("checkpoint/{}", self.name)
    }
}

fn with_hash(name: &str, hash: Option<&str>) -> String {
    hash.map_or_else(|| name.to_owned(), |hash| format!("{name} [{hash}]"))
}

/// A separate VAE file; its key is the file name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VaeFile {
    pub name: String,
    pub path: PathBuf,
}

/// The lists, as of the last scan.
#[derive(Debug)]
pub struct Catalogue {
    config: CatalogueConfig,
    hashes: HashCache,
    checkpoints: RwLock<Vec<Checkpoint>>,
    /// The weights files that were looked into, as they were then.
    checked: Mutex<HashMap<PathBuf, Option<FileState>>>,
    vaes: RwLock<Vec<VaeFile>>,
    networks: NetworkList,
    embeddings: EmbeddingList,
    hypernetworks: HypernetworkList,
    upscalers: UpscalerList,
    faces: FaceFiles,
}

impl Catalogue {
    /// Scans the folders. Missing folders are empty.
    #[must_use]
    pub fn new(config: CatalogueConfig) -> Self {
        let mut hashes = HashCache::open(config.hash_cache.clone());
        if config.no_hashing {
            hashes = hashes.only_remembered();
        }
        let catalogue = Self {
            hashes,
            networks: NetworkList::new(network_folders(&config)),
            embeddings: EmbeddingList::new(config.embeddings_dir.clone()),
            hypernetworks: HypernetworkList::new(Some(
                config
                    .hypernetworks_dir
                    .clone()
                    .unwrap_or_else(|| config.models_dir.join("hypernetworks")),
            )),
            upscalers: upscaler_list(&config),
            faces: face_files(&config),
            config,
            checkpoints: RwLock::default(),
            checked: Mutex::default(),
            vaes: RwLock::default(),
        };
        catalogue.refresh_checkpoints();
        catalogue.refresh_vaes();
        catalogue
    }

    /// The folders it looks into.
    #[must_use]
    pub fn config(&self) -> &CatalogueConfig {
        &self.config
    }

    /// The remembered hashes.
    #[must_use]
    pub fn hashes(&self) -> &HashCache {
        &self.hashes
    }

    /// LoRA files and their relatives.
    #[must_use]
    pub fn networks(&self) -> &NetworkList {
        &self.networks
    }

    /// Textual inversions.
    #[must_use]
    pub fn embeddings(&self) -> &EmbeddingList {
        &self.embeddings
    }

    /// Hypernetworks.
    #[must_use]
    pub fn hypernetworks(&self) -> &HypernetworkList {
        &self.hypernetworks
    }

    /// Upscaler networks.
    #[must_use]
    pub fn upscalers(&self) -> &UpscalerList {
        &self.upscalers
    }

    /// The files of face restoration.
    #[must_use]
    pub fn faces(&self) -> &FaceFiles {
        &self.faces
    }

    /// Scans the checkpoint folders anew.
    pub fn refresh_checkpoints(&self) {
        let mut list: Vec<Checkpoint> = Vec::new();
        for path in &self.config.extra_checkpoints {
            if let Some(format) = checkpoint_format(path) {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                list.push(self.describe(path.clone(), &name, format));
            }
        }
        for folder in self.checkpoint_folders() {
            for path in walk(&folder, &|path| checkpoint_format(path).is_some()) {
                let Some(format) = checkpoint_format(&path) else {
                    continue;
                };
                let name = relative_name(&path, &folder);
                if !list.iter().any(|known| known.path == path) {
                    list.push(self.describe(path, &name, format));
                }
            }
        }
        *self.checkpoints.write() = list;
    }

    /// Looks into the weights files of the list that are new or have changed since the last call, and
    /// logs each that cannot be used, with its reason; it stays in the list, as in A1111. Gives their
    /// names and reasons.
    pub fn check_checkpoints(&self) -> Vec<(String, String)> {
        let mut checked = self.checked.lock();
        let mut broken = Vec::new();
        for checkpoint in self.checkpoints() {
            let path = &checkpoint.path;
            let state = state_of(path);
            let is_folder = checkpoint.format == CheckpointFormat::OnnxFolder;
            if is_folder || checked.insert(path.clone(), state) == Some(state) {
                continue;
            }
            let outcome = TensorFile::open(path)
                .map_err(|error| error.to_string())
                .and_then(|file| detect(&file));
            if let Err(reason) = outcome {
                tracing::warn!(checkpoint = %checkpoint.name, %reason, "this checkpoint cannot be used");
                broken.push((checkpoint.name, reason));
            }
        }
        broken
    }

    /// Scans the VAE folders anew.
    pub fn refresh_vaes(&self) {
        let mut list: Vec<VaeFile> = Vec::new();
        let mut add = |path: PathBuf| {
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            match list.iter_mut().find(|known| known.name == name) {
                Some(known) => known.path = path,
                None => list.push(VaeFile { name, path }),
            }
        };
        for folder in self.checkpoint_folders() {
            walk(&folder, &is_vae_beside_checkpoint)
                .into_iter()
                .for_each(&mut add);
        }
        let own = [
            Some(self.config.models_dir.join("VAE")),
            self.config.vae_dir.clone(),
        ];
        for folder in own.into_iter().flatten() {
            walk(&folder, &|path| {
                has_extension(path, &["ckpt", "pt", "safetensors"])
            })
            .into_iter()
            .for_each(&mut add);
        }
        list.sort_by_cached_key(|vae| natural_key(&vae.name));
        *self.vaes.write() = list;
    }

    /// All checkpoints in A1111's order.
    #[must_use]
    pub fn checkpoints(&self) -> Vec<Checkpoint> {
        self.checkpoints.read().clone()
    }

    /// All VAE files in A1111's order.
    #[must_use]
    pub fn vaes(&self) -> Vec<VaeFile> {
        self.vaes.read().clone()
    }

    /// The checkpoint that a text means exactly (title, name, stem, hash).
    #[must_use]
    pub fn find_exact(&self, text: &str) -> Option<Checkpoint> {
        let list = self.checkpoints.read();
        list.iter()
            .find(|checkpoint| checkpoint.aliases().iter().any(|alias| alias == text))
            .cloned()
    }

    /// As [`Self::find_exact`], else the shortest title that contains the text, else the same
    /// without a trailing `[…]`.
    #[must_use]
    pub fn find(&self, text: &str) -> Option<Checkpoint> {
        if text.is_empty() {
            return None;
        }
        if let Some(exact) = self.find_exact(text) {
            return Some(exact);
        }
        let list = self.checkpoints.read();
        let containing = |part: &str| {
            list.iter()
                .filter(|checkpoint| checkpoint.title().contains(part))
                .min_by_key(|checkpoint| checkpoint.title().chars().count())
                .cloned()
        };
        containing(text).or_else(|| {
            let open = text.rfind('[')?;
            let part = text[..open].trim_end();
            (text.ends_with(']') && !part.is_empty())
                .then(|| containing(part))
                .flatten()
        })
    }

    /// A checkpoint's SHA-256; computed on the first call and then part of its title. Empty with
    /// `--no-hashing` where it is not known.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn ensure_hash(&self, checkpoint: &Checkpoint) -> std::io::Result<String> {
        if let Some(known) = &checkpoint.sha256 {
            return Ok(known.clone());
        }
        let sha256 = match checkpoint.format {
            CheckpointFormat::OnnxFolder if self.config.no_hashing => return Ok(String::new()),
            CheckpointFormat::OnnxFolder => onnx_folder_hash(&checkpoint.path)?,
            CheckpointFormat::SafeTensors | CheckpointFormat::Pickle => self
                .hashes
                .get_or_compute(&checkpoint.cache_key(), &checkpoint.path)?,
        };
        if sha256.is_empty() {
            return Ok(sha256);
        }
        let mut list = self.checkpoints.write();
        for entry in list
            .iter_mut()
            .filter(|entry| entry.path == checkpoint.path)
        {
            entry.sha256 = Some(sha256.clone());
        }
        Ok(sha256)
    }

    /// A VAE file's SHA-256; empty with `--no-hashing` where it is not known.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn vae_hash(&self, vae: &VaeFile) -> std::io::Result<String> {
        self.hashes
            .get_or_compute(&format!("vae/{}", vae.name), &vae.path)
    }

    /// The VAE that the setting `sd_vae` means for a checkpoint: `None` is the one inside, as is
    /// `Automatic` where no file's name begins with the checkpoint's stem. With `--vae-path` it is
    /// always that file.
    /// `prefers_checkpoints`: what the checkpoint's `.json` names wins over the setting.
    #[must_use]
    pub fn choose_vae(
        &self,
        setting: &str,
        prefers_checkpoints: bool,
        checkpoint: &Checkpoint,
    ) -> Option<VaeFile> {
        if let Some(path) = &self.config.vae_path {
            let name = path.file_name().unwrap_or_default();
            return Some(VaeFile {
                name: name.to_string_lossy().into_owned(),
                path: path.clone(),
            });
        }
        let preference = preferred_vae(checkpoint)
            .filter(|name| prefers_checkpoints && !name.is_empty() && name != "Automatic");
        let setting = preference.as_deref().unwrap_or(setting);
        let list = self.vaes.read();
        match setting {
            "None" => None,
            "Automatic" | "auto" | "" => {
                let wanted = preferred_vae(checkpoint);
                let by_preference = wanted
                    .as_deref()
                    .filter(|name| *name != "Automatic" && *name != "None");
                if wanted.as_deref() == Some("None") {
                    return None;
                }
                by_preference
                    .and_then(|name| list.iter().find(|vae| vae.name == name))
                    .or_else(|| {
                        list.iter()
                            .find(|vae| vae.name.starts_with(&checkpoint.stem))
                    })
                    .cloned()
            }
            name => {
                let found = list.iter().find(|vae| vae.name == name).cloned();
                if found.is_none() {
                    tracing::warn!(vae = name, "no such VAE file; the checkpoint's own is used");
                }
                found
            }
        }
    }

    fn checkpoint_folders(&self) -> Vec<PathBuf> {
        let own = self.config.models_dir.join("Stable-diffusion");
        self.config.ckpt_dir.iter().cloned().chain([own]).collect()
    }

    fn describe(&self, path: PathBuf, name: &str, format: CheckpointFormat) -> Checkpoint {
        let (mut name, mut sha256, mut old) = (name.to_owned(), None, None);
        if format == CheckpointFormat::OnnxFolder {
            let facts = onnx_folder_facts(&path);
            if let Some(file_name) = facts.file_name {
                name = Path::new(&name)
                    .with_file_name(file_name)
                    .to_string_lossy()
                    .into_owned();
            }
            sha256 = facts.sha256;
        } else {
            old = old_hash(&path).ok();
        }
        let stem = Path::new(&name)
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let model_name = Path::new(&name)
            .with_extension("")
            .to_string_lossy()
            .replace(['/', '\\'], "_");
        let mut checkpoint = Checkpoint {
            path,
            format,
            name,
            model_name,
            stem,
            sha256,
            old_hash: old,
        };
        if format != CheckpointFormat::OnnxFolder {
            checkpoint.sha256 = self.hashes.get(&checkpoint.cache_key(), &checkpoint.path);
        }
        checkpoint
    }
}

fn network_folders(config: &CatalogueConfig) -> Vec<PathBuf> {
    if config.network_dirs.is_empty() {
        ["Lora", "LyCORIS"]
            .map(|name| config.models_dir.join(name))
            .into()
    } else {
        config.network_dirs.clone()
    }
}

fn upscaler_list(config: &CatalogueConfig) -> UpscalerList {
    let folder = |index: usize, name: &str| {
        let given = config.upscaler_dirs.get(index).cloned();
        given.or_else(|| Some(config.models_dir.join(name)))
    };
    UpscalerList::new(folder(0, "ESRGAN"), folder(1, "RealESRGAN"))
}

fn face_files(config: &CatalogueConfig) -> FaceFiles {
    let folder = |index: usize, name: &str| {
        let given = config.face_dirs.get(index).cloned();
        given.or_else(|| Some(config.models_dir.join(name)))
    };
    FaceFiles::new(
        folder(0, "Codeformer"),
        folder(1, "GFPGAN"),
        config.gfpgan_model.clone(),
    )
}

/// The per-model preference that A1111 keeps in `<stem>.json` under `vae`.
fn preferred_vae(checkpoint: &Checkpoint) -> Option<String> {
    let bytes = fs_err::read(checkpoint.path.with_extension("json")).ok()?;
    let json: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
    json["vae"]
        .as_str()
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
}

#[derive(Default)]
struct OnnxFolderFacts {
    file_name: Option<String>,
    sha256: Option<String>,
}

/// `a1111.json` of an export: the file name and the hash of the checkpoint that it was made from.
fn onnx_folder_facts(folder: &Path) -> OnnxFolderFacts {
    let Ok(bytes) = fs_err::read(folder.join("a1111.json")) else {
        return OnnxFolderFacts::default();
    };
    let Ok(json) = serde_json::from_slice::<serde_json::Value>(&bytes) else {
        tracing::warn!(folder = %folder.display(), "its a1111.json cannot be read and is ignored");
        return OnnxFolderFacts::default();
    };
    let title = json["title"].as_str().map(|title| {
        let end = title.rfind(" [").unwrap_or(title.len());
        title[..end].to_owned()
    });
    OnnxFolderFacts {
        file_name: title.filter(|name| !name.contains(['/', '\\'])),
        sha256: json["sha256"]
            .as_str()
            .filter(|hash| hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit()))
            .map(str::to_owned),
    }
}

/// An export without a recorded hash has that of its UNet graph.
fn onnx_folder_hash(folder: &Path) -> std::io::Result<String> {
    match onnx_folder_facts(folder).sha256 {
        Some(hash) => Ok(hash),
        None => super::sha256_of(&folder.join("unet/model.onnx")),
    }
}

fn checkpoint_format(path: &Path) -> Option<CheckpointFormat> {
    if path.is_dir() {
        let is_export =
            path.join("model_index.json").is_file() && path.join("unet/model.onnx").is_file();
        return is_export.then_some(CheckpointFormat::OnnxFolder);
    }
    if is_vae_beside_checkpoint(path) {
        return None;
    }
    if has_extension(path, &["safetensors"]) {
        Some(CheckpointFormat::SafeTensors)
    } else if has_extension(path, &["ckpt", "pt"]) {
        Some(CheckpointFormat::Pickle)
    } else {
        None
    }
}

fn is_vae_beside_checkpoint(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    [".vae.ckpt", ".vae.pt", ".vae.safetensors"]
        .iter()
        .any(|ending| name.ends_with(ending))
}

pub(crate) fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    path.extension().is_some_and(|found| {
        extensions
            .iter()
            .any(|wanted| found.eq_ignore_ascii_case(wanted))
    })
}

/// The path below `folder`, with forward slashes.
pub(crate) fn relative_name(path: &Path, folder: &Path) -> String {
    path.strip_prefix(folder)
        .unwrap_or(path)
        .to_string_lossy()
        .replace('\\', "/")
}

/// Everything below a folder that is wanted, folder by folder in natural order, links followed.
/// A wanted folder is not entered; a folder that was entered before (a link to an ancestor) neither.
pub(crate) fn walk(folder: &Path, wanted: &dyn Fn(&Path) -> bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut entered = HashSet::new();
    walk_into(folder, wanted, &mut entered, &mut found);
    found
}

fn walk_into(
    folder: &Path,
    wanted: &dyn Fn(&Path) -> bool,
    entered: &mut HashSet<PathBuf>,
    found: &mut Vec<PathBuf>,
) {
    let Ok(real) = fs_err::canonicalize(folder) else {
        return;
    };
    if !entered.insert(real) {
        return;
    }
    let Ok(entries) = fs_err::read_dir(folder) else {
        return;
    };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort_by_cached_key(|path| {
        natural_key(&path.file_name().unwrap_or_default().to_string_lossy())
    });
    let (folders, files): (Vec<_>, Vec<_>) = paths.into_iter().partition(|path| path.is_dir());
    found.extend(
        files
            .into_iter()
            .filter(|path| path.is_file() && wanted(path)),
    );
    for path in folders {
        if wanted(&path) {
            found.push(path);
        } else {
            walk_into(&path, wanted, entered, found);
        }
    }
}

/// One piece of a name: text in lower case, or a number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum NamePart {
    Text(String),
    Number(u128),
}

/// Digit runs as numbers between pieces of lower-case text, which is how names are ordered.
pub(crate) fn natural_key(name: &str) -> Vec<NamePart> {
    let mut parts = vec![];
    let mut text = String::new();
    let mut rest = name.chars().peekable();
    while let Some(&next) = rest.peek() {
        if next.is_ascii_digit() {
            let mut number: u128 = 0;
            while let Some(digit) = rest.peek().and_then(|c| c.to_digit(10)) {
                number = number.saturating_mul(10).saturating_add(u128::from(digit));
                rest.next();
            }
            parts.push(NamePart::Text(std::mem::take(&mut text)));
            parts.push(NamePart::Number(number));
        } else {
            text.extend(next.to_lowercase());
            rest.next();
        }
    }
    parts.push(NamePart::Text(text));
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalogue(files: &[&str]) -> (tempfile::TempDir, Catalogue) {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            fs_err::create_dir_all(path.parent().unwrap()).unwrap();
            fs_err::write(path, file.as_bytes()).unwrap();
        }
        let catalogue = Catalogue::new(CatalogueConfig {
            models_dir: folder.path().to_owned(),
            ..CatalogueConfig::default()
        });
        (folder, catalogue)
    }

    fn names(catalogue: &Catalogue) -> Vec<String> {
        catalogue
            .checkpoints()
            .into_iter()
            .map(|c| c.name)
            .collect()
    }

    #[test]
    fn checkpoints_are_listed_in_natural_order_with_sub_folders() {
        let (_folder, catalogue) = catalogue(&[
            "Stable-diffusion/m10.safetensors",
            "Stable-diffusion/m2.ckpt",
            "Stable-diffusion/tiny-sd1.safetensors",
            "Stable-diffusion/tiny-sd1-inpaint.safetensors",
            "Stable-diffusion/m2.vae.safetensors",
            "Stable-diffusion/m2.vae.pt",
            "Stable-diffusion/old.pt",
            "Stable-diffusion/notes.txt",
            "Stable-diffusion/a/B.safetensors",
        ]);
        assert_eq!(
            names(&catalogue),
            [
                "m2.ckpt",
                "m10.safetensors",
                "old.pt",
                "tiny-sd1-inpaint.safetensors",
                "tiny-sd1.safetensors",
                "a/B.safetensors"
            ]
        );
        assert_eq!(catalogue.checkpoints()[2].format, CheckpointFormat::Pickle);
        assert_eq!(catalogue.checkpoints()[5].model_name, "a_B");
        let vaes: Vec<_> = catalogue.vaes().into_iter().map(|vae| vae.name).collect();
        assert_eq!(vaes, ["m2.vae.pt", "m2.vae.safetensors"]);
    }

    #[test]
    fn titles_get_the_hash_after_the_first_load() {
        let (_folder, catalogue) = catalogue(&["Stable-diffusion/m.safetensors"]);
        let before = catalogue.find_exact("m").unwrap();
        assert_eq!(before.title(), "m.safetensors");
        let hash = catalogue.ensure_hash(&before).unwrap();
        let after = catalogue.find_exact(&hash[..10]).unwrap();
        assert_eq!(after.title(), format!("m.safetensors [{}]", &hash[..10]));
        for alias in after.aliases() {
            assert_eq!(catalogue.find_exact(&alias).unwrap().name, "m.safetensors");
        }
        assert_eq!(catalogue.find_exact("M"), None);
    }

    #[test]
    fn the_shortest_title_that_contains_the_text_is_found() {
        let (_folder, catalogue) = catalogue(&[
            "Stable-diffusion/long-name.safetensors",
            "Stable-diffusion/name.safetensors",
        ]);
        assert_eq!(catalogue.find("nam").unwrap().name, "name.safetensors");
        assert_eq!(
            catalogue
                .find("long-name.safetensors [feedc0de]")
                .unwrap()
                .name,
            "long-name.safetensors"
        );
        assert_eq!(catalogue.find("other"), None);
        assert_eq!(catalogue.find(""), None);
    }

    #[test]
    fn the_automatic_vae_begins_with_the_checkpoints_stem() {
        let (folder, catalogue) = catalogue(&[
            "Stable-diffusion/m.safetensors",
            "Stable-diffusion/n.safetensors",
            "VAE/m-vae.pt",
            "VAE/other.safetensors",
        ]);
        let (m, n) = (
            catalogue.find_exact("m").unwrap(),
            catalogue.find_exact("n").unwrap(),
        );
        let name = |setting: &str, checkpoint| {
            catalogue
                .choose_vae(setting, false, checkpoint)
                .map(|vae| vae.name)
        };
        assert_eq!(name("Automatic", &m).as_deref(), Some("m-vae.pt"));
        assert_eq!(name("Automatic", &n), None);
        assert_eq!(name("None", &m), None);
        assert_eq!(
            name("other.safetensors", &m).as_deref(),
            Some("other.safetensors")
        );
        fs_err::write(
            folder.path().join("Stable-diffusion/n.json"),
            r#"{"vae": "other.safetensors"}"#,
        )
        .unwrap();
        assert_eq!(name("Automatic", &n).as_deref(), Some("other.safetensors"));
        assert_eq!(name("m-vae.pt", &n).as_deref(), Some("m-vae.pt"));
        let preferred = |setting| catalogue.choose_vae(setting, true, &n).map(|vae| vae.name);
        assert_eq!(preferred("m-vae.pt").as_deref(), Some("other.safetensors"));
        assert_eq!(preferred("None").as_deref(), Some("other.safetensors"));
    }

    #[test]
    fn flags_force_a_vae_and_forbid_hashing() {
        let (folder, _) = catalogue(&["Stable-diffusion/m.safetensors", "VAE/m-vae.pt"]);
        let forced = folder.path().join("elsewhere.safetensors");
        let catalogue = Catalogue::new(CatalogueConfig {
            models_dir: folder.path().to_owned(),
            vae_path: Some(forced.clone()),
            no_hashing: true,
            ..CatalogueConfig::default()
        });
        let m = catalogue.find_exact("m").unwrap();
        for setting in ["Automatic", "None", "m-vae.pt"] {
            let vae = catalogue.choose_vae(setting, false, &m).unwrap();
            assert_eq!(
                (vae.name.as_str(), &vae.path),
                ("elsewhere.safetensors", &forced)
            );
        }
        assert_eq!(catalogue.ensure_hash(&m).unwrap(), "");
        assert_eq!(catalogue.find_exact("m").unwrap().title(), "m.safetensors");
        assert_eq!(catalogue.vae_hash(&catalogue.vaes()[0]).unwrap(), "");
    }

    #[test]
    fn a_broken_file_is_told_once_and_again_when_it_has_changed() {
        let (folder, catalogue) = catalogue(&["Stable-diffusion/m.safetensors"]);
        let told = catalogue.check_checkpoints();
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].0, "m.safetensors");
        assert!(told[0].1.contains("its header claims"), "{}", told[0].1);
        assert_eq!(catalogue.check_checkpoints(), []);
        fs_err::write(folder.path().join("Stable-diffusion/m.safetensors"), b"1").unwrap();
        assert!(catalogue.check_checkpoints()[0].1.contains("only 1 bytes"));
        assert_eq!(names(&catalogue), ["m.safetensors"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_to_an_ancestor_does_not_loop() {
        let (folder, catalogue) = catalogue(&["Stable-diffusion/m.safetensors"]);
        let models = folder.path().join("Stable-diffusion");
        std::os::unix::fs::symlink(&models, models.join("again")).unwrap();
        catalogue.refresh_checkpoints();
        assert_eq!(names(&catalogue), ["m.safetensors"]);
    }
}
