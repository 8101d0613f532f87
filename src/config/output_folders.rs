//! The folders that pictures may be written to.
//!
//! Clients may point the `outdir_…` options elsewhere, as in A1111, but only inside of an output
//! folder: `outputs` and `log` of the data folder, what the options file named when the server
//! started, and what `--gradio-allowed-path` names. A1111 lets a client write anywhere.

use std::path::{Component, Path, PathBuf};

use super::Options;

/// Where pictures may go.
#[derive(Debug, Clone, Default)]
pub struct OutputFolders {
    data: PathBuf,
    roots: Vec<PathBuf>,
}

impl OutputFolders {
    /// Below `data`, and below `further` folders.
    #[must_use]
    pub fn new(data: &Path, further: impl IntoIterator<Item = PathBuf>) -> Self {
        let own = ["outputs", "log"].map(|name| data.join(name));
        let roots = own.into_iter().chain(further);
        Self {
            data: data.to_owned(),
            roots: roots.filter_map(|root| tidy(&data.join(root))).collect(),
        }
    }

    /// Adds the folders that these options name: those of the options file, which whoever runs the
    /// server wrote.
    #[must_use]
    pub fn with_folders_of(mut self, options: &Options) -> Self {
        let values = options.values().iter();
        let folders = values
            .filter(|(key, _)| is_folder_option(key))
            .filter_map(|(_, value)| value.as_str())
            .filter(|folder| !folder.is_empty());
        for folder in folders {
            self.roots.extend(tidy(&self.data.join(folder)));
        }
        self
    }

    /// The folder that an option's value means, relative to the data folder; `None` where pictures may
    /// not be written.
    #[must_use]
    pub fn resolve(&self, folder: &str) -> Option<PathBuf> {
        let folder = tidy(&self.data.join(folder))?;
        self.roots
            .iter()
            .any(|root| folder.starts_with(root))
            .then_some(folder)
    }
}

/// Whether an option names an output folder.
pub(super) fn is_folder_option(key: &str) -> bool {
    key.starts_with("outdir_")
}

/// The path without `.`; `None` where it goes up.
fn tidy(path: &Path) -> Option<PathBuf> {
    let goes_up = path.components().any(|part| part == Component::ParentDir);
    (!goes_up).then(|| path.components().collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_output_folders_resolve() {
        let mut options = Options::default();
        options.set("outdir_txt2img_samples", json!("/mnt/pictures"));
        options.set("outdir_samples", json!(""));
        let folders = OutputFolders::new(Path::new("/data"), [PathBuf::from("/extra")])
            .with_folders_of(&options);
        for inside in [
            "outputs/txt2img-images",
            "./outputs",
            "/data/outputs/x",
            "/mnt/pictures/today",
            "/extra",
            "log/images",
        ] {
            assert!(folders.resolve(inside).is_some(), "{inside}");
        }
        for outside in [
            "",
            ".",
            "models/Stable-diffusion",
            "outputs/../models",
            "/mnt",
            "/mnt/pictures/../x",
            "/data/outputs-of-others",
            "/etc",
        ] {
            assert_eq!(folders.resolve(outside), None, "{outside}");
        }
        assert_eq!(
            folders.resolve("outputs/./a"),
            Some(PathBuf::from("/data/outputs/a"))
        );
    }
}
