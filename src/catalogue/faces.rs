//! The files of face restoration in the data folder.
//!
//! A1111 downloads them on first use; here they are used where they lie. The folders are looked through
//! whenever somebody asks, so that new files need no restart.

use std::path::{Path, PathBuf};

use super::checkpoints::{has_extension, walk};

/// One file's purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaceFile {
    CodeFormer,
    Gfpgan,
    /// RetinaFace, for both.
    Detector,
    /// ParseNet, for both.
    Parser,
}

impl FaceFile {
    /// What A1111 calls the file that it would download.
    #[must_use]
    pub fn published_name(self) -> &'static str {
        match self {
            Self::CodeFormer => "codeformer-v0.1.0.pth",
            Self::Gfpgan => "GFPGANv1.4.pth",
            Self::Detector => "detection_Resnet50_Final.pth",
            Self::Parser => "parsing_parsenet.pth",
        }
    }

    /// What the names of other versions contain, in lower case.
    fn family(self) -> Option<&'static str> {
        match self {
            Self::CodeFormer => Some("codeformer"),
            Self::Gfpgan => Some("gfpgan"),
            Self::Detector | Self::Parser => None,
        }
    }
}

/// The folders of face restoration.
#[derive(Debug, Clone, Default)]
pub struct FaceFiles {
    codeformer: Option<PathBuf>,
    gfpgan: Option<PathBuf>,
    gfpgan_model: Option<PathBuf>,
}

impl FaceFiles {
    /// A1111's `models/Codeformer` and `models/GFPGAN`, or what its flags name instead; `gfpgan_model` is the
    /// file of `--gfpgan-model`, relative to the folder of GFPGAN.
    #[must_use]
    pub fn new(
        codeformer: Option<PathBuf>,
        gfpgan: Option<PathBuf>,
        gfpgan_model: Option<PathBuf>,
    ) -> Self {
        Self {
            codeformer,
            gfpgan,
            gfpgan_model,
        }
    }

    /// Where a file is: under its published name, or another version of it; detector and parser may lie in
    /// either folder, at any depth.
    #[must_use]
    pub fn find(&self, file: FaceFile) -> Option<PathBuf> {
        if file == FaceFile::Gfpgan
            && let Some(named) = self.named_gfpgan()
        {
            return Some(named);
        }
        let found: Vec<PathBuf> = self
            .folders(file)
            .into_iter()
            .flatten()
            .flat_map(|folder| walk(folder, &|path| has_extension(path, &["pth", "safetensors"])))
            .collect();
        let name = |path: &Path| {
            path.file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned()
        };
        let published = found
            .iter()
            .find(|path| name(path) == file.published_name());
        let other = || {
            let family = file.family()?;
            found
                .iter()
                .find(|path| name(path).to_lowercase().contains(family))
        };
        published.or_else(other).cloned()
    }

    fn named_gfpgan(&self) -> Option<PathBuf> {
        let named = self.gfpgan_model.as_ref()?;
        let beside = self.gfpgan.as_ref().map(|folder| folder.join(named));
        beside
            .into_iter()
            .chain([named.clone()])
            .find(|path| path.is_file())
    }

    fn folders(&self, file: FaceFile) -> [Option<&Path>; 2] {
        let (codeformer, gfpgan) = (self.codeformer.as_deref(), self.gfpgan.as_deref());
        match file {
            FaceFile::CodeFormer => [codeformer, None],
            FaceFile::Gfpgan => [gfpgan, None],
            FaceFile::Detector | FaceFile::Parser => [gfpgan, codeformer],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_under_their_names_and_versions() {
        let folder = tempfile::tempdir().unwrap();
        let (codeformer, gfpgan) = (folder.path().join("C"), folder.path().join("G"));
        let put = |path: PathBuf| {
            fs_err::create_dir_all(path.parent().unwrap()).unwrap();
            fs_err::write(&path, b"").unwrap();
            path
        };
        let files = |named: Option<&str>| {
            let named = named.map(PathBuf::from);
            FaceFiles::new(Some(codeformer.clone()), Some(gfpgan.clone()), named)
        };
        assert_eq!(files(None).find(FaceFile::CodeFormer), None);

        let parser = put(codeformer.join("facelib/parsing_parsenet.pth"));
        assert_eq!(files(None).find(FaceFile::Parser), Some(parser));
        assert_eq!(files(None).find(FaceFile::CodeFormer), None);
        let detector = put(gfpgan.join("detection_Resnet50_Final.pth"));
        assert_eq!(files(None).find(FaceFile::Detector), Some(detector));

        let old = put(gfpgan.join("GFPGANv1.3.pth"));
        assert_eq!(files(None).find(FaceFile::Gfpgan), Some(old.clone()));
        let new = put(gfpgan.join("GFPGANv1.4.pth"));
        assert_eq!(files(None).find(FaceFile::Gfpgan), Some(new.clone()));
        assert_eq!(
            files(Some("GFPGANv1.3.pth")).find(FaceFile::Gfpgan),
            Some(old)
        );
        assert_eq!(files(Some("missing.pth")).find(FaceFile::Gfpgan), Some(new));
    }

    #[test]
    fn no_folders_hold_nothing() {
        assert_eq!(FaceFiles::default().find(FaceFile::Detector), None);
    }
}
