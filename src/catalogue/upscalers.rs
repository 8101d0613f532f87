//! Upscaler networks in the data folder, under the names that A1111 lists them by.
//!
//! Files in `models/ESRGAN` are called by their stems. In `models/RealESRGAN` the published models
//! have names of their own; other files there, which A1111 does not list, are called by their stems
//! too. The folders are walked whenever somebody asks, so that new files need no restart. A1111
//! lists models that it would download, we list those that are here.

use std::path::{Path, PathBuf};

use super::checkpoints::{has_extension, walk};

/// What weights files are called.
const EXTENSIONS: [&str; 3] = ["pth", "pt", "safetensors"];

/// A published Real-ESRGAN model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RealEsrganModel {
    /// A1111's name.
    pub name: &'static str,
    pub file_stem: &'static str,
    /// The release that has the file.
    pub release: &'static str,
    pub scale: u8,
}

impl RealEsrganModel {
    /// Where A1111 would download the file from.
    #[must_use]
    pub fn url(&self) -> String {
        let (release, stem) = (self.release, self.file_stem);
        format!("https://github.com/xinntao/Real-ESRGAN/releases/download/{release}/{stem}.pth")
    }
}

/// In the order of `GET /sdapi/v1/realesrgan-models`.
pub static REALESRGAN_MODELS: [RealEsrganModel; 6] = [
    RealEsrganModel {
        name: "R-ESRGAN General 4xV3",
        file_stem: "realesr-general-x4v3",
        release: "v0.2.5.0",
        scale: 4,
    },
    RealEsrganModel {
        name: "R-ESRGAN General WDN 4xV3",
        file_stem: "realesr-general-wdn-x4v3",
        release: "v0.2.5.0",
        scale: 4,
    },
    RealEsrganModel {
        name: "R-ESRGAN AnimeVideo",
        file_stem: "realesr-animevideov3",
        release: "v0.2.5.0",
        scale: 4,
    },
    RealEsrganModel {
        name: "R-ESRGAN 4x+",
        file_stem: "RealESRGAN_x4plus",
        release: "v0.1.0",
        scale: 4,
    },
    RealEsrganModel {
        name: "R-ESRGAN 4x+ Anime6B",
        file_stem: "RealESRGAN_x4plus_anime_6B",
        release: "v0.2.2.4",
        scale: 4,
    },
    RealEsrganModel {
        name: "R-ESRGAN 2x+",
        file_stem: "RealESRGAN_x2plus",
        release: "v0.2.1",
        scale: 2,
    },
];

/// One upscaler network.
#[derive(Debug, Clone, PartialEq)]
pub struct UpscalerFile {
    /// What requests call it.
    pub name: String,
    pub path: PathBuf,
    /// A1111's `model_name`, that of the folder's kind.
    pub model_name: Option<&'static str>,
    /// A1111's `model_path`: the file, or the address of a published model.
    pub model_path: String,
    /// What A1111 says about the scale; the network may have another.
    pub scale: f64,
}

/// The folders of upscaler networks.
#[derive(Debug, Clone, Default)]
pub struct UpscalerList {
    esrgan: Option<PathBuf>,
    realesrgan: Option<PathBuf>,
}

impl UpscalerList {
    /// A1111's `models/ESRGAN` and `models/RealESRGAN`, or what its flags name instead.
    #[must_use]
    pub fn new(esrgan: Option<PathBuf>, realesrgan: Option<PathBuf>) -> Self {
        Self { esrgan, realesrgan }
    }

    /// The networks that are here, sorted by name without regard to case, each name once.
    #[must_use]
    pub fn files(&self) -> Vec<UpscalerFile> {
        let mut files: Vec<UpscalerFile> = Vec::new();
        if let Some(folder) = &self.esrgan {
            files.extend(weights_in(folder).map(plain));
        }
        if let Some(folder) = &self.realesrgan {
            files.extend(weights_in(folder).map(published_or_plain));
        }
        files.sort_by_key(|file| file.name.to_lowercase());
        files.dedup_by(|later, earlier| later.name == earlier.name);
        files
    }

    /// The network of this exact name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<UpscalerFile> {
        self.files().into_iter().find(|file| file.name == name)
    }
}

fn weights_in(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    walk(folder, &|path| has_extension(path, &EXTENSIONS)).into_iter()
}

fn stem(path: &Path) -> String {
    path.file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn plain(path: PathBuf) -> UpscalerFile {
    UpscalerFile {
        name: stem(&path),
        model_name: Some("ESRGAN_4x"),
        model_path: path.display().to_string(),
        scale: 4.0,
        path,
    }
}

fn published_or_plain(path: PathBuf) -> UpscalerFile {
    let stem = stem(&path);
    let published = REALESRGAN_MODELS
        .iter()
        .find(|model| model.file_stem == stem);
    match published {
        Some(model) => UpscalerFile {
            name: model.name.to_owned(),
            model_name: None,
            model_path: model.url(),
            scale: f64::from(model.scale),
            path,
        },
        None => UpscalerFile {
            model_name: None,
            ..plain(path)
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_listed_under_the_names_of_a1111() {
        let folder = tempfile::tempdir().unwrap();
        let (esrgan, real) = (folder.path().join("E"), folder.path().join("R"));
        for path in [
            esrgan.join("4x-UltraSharp.pth"),
            esrgan.join("anime/2x_b.safetensors"),
            esrgan.join("notes.txt"),
            esrgan.join("RealESRGAN_x4plus.pth"),
            real.join("RealESRGAN_x4plus.pth"),
            real.join("RealESRGAN_x2plus.pth"),
            real.join("Zebra.pth"),
        ] {
            fs_err::create_dir_all(path.parent().unwrap()).unwrap();
            fs_err::write(path, b"").unwrap();
        }
        let list = UpscalerList::new(Some(esrgan.clone()), Some(real.clone()));
        let files = list.files();
        let names: Vec<&str> = files.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "2x_b",
                "4x-UltraSharp",
                "R-ESRGAN 2x+",
                "R-ESRGAN 4x+",
                "RealESRGAN_x4plus",
                "Zebra"
            ]
        );
        let two = list.find("R-ESRGAN 2x+").unwrap();
        assert_eq!((two.scale, two.model_name), (2.0, None));
        assert_eq!(two.path, real.join("RealESRGAN_x2plus.pth"));
        assert_eq!(
            two.model_path,
            "https://github.com/xinntao/Real-ESRGAN/releases/download/v0.2.1/RealESRGAN_x2plus.pth"
        );
        let own = list.find("2x_b").unwrap();
        assert_eq!(own.model_name, Some("ESRGAN_4x"));
        assert!(list.find("2x_B").is_none());
    }

    #[test]
    fn missing_folders_are_empty() {
        let nowhere = Some(PathBuf::from("/nowhere/at/all"));
        assert!(UpscalerList::new(nowhere, None).files().is_empty());
    }
}
