//! The list of hypernetwork files: `.pt` files below one folder, by stem.

use std::path::PathBuf;

use parking_lot::RwLock;

use super::checkpoints::{has_extension, natural_key, walk};

/// One hypernetwork file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HypernetworkFile {
    /// The file's stem, which prompts use.
    pub name: String,
    pub path: PathBuf,
}

/// The hypernetwork files, as of the last scan.
#[derive(Debug, Default)]
pub struct HypernetworkList {
    folder: Option<PathBuf>,
    files: RwLock<Vec<HypernetworkFile>>,
}

impl HypernetworkList {
    /// Scans `folder`; a missing one is empty. Of two files of the same name the later one counts.
    #[must_use]
    pub fn new(folder: Option<PathBuf>) -> Self {
        let list = Self {
            folder,
            files: RwLock::default(),
        };
        list.refresh();
        list
    }

    /// Scans the folder anew.
    pub fn refresh(&self) {
        let Some(folder) = &self.folder else { return };
        let mut paths = walk(folder, &|path| {
            !path.is_dir() && has_extension(path, &["pt"])
        });
        paths.sort_by_cached_key(|path| natural_key(&path.to_string_lossy()));
        let mut files: Vec<HypernetworkFile> = Vec::new();
        for path in paths {
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            let file = HypernetworkFile {
                name: name.into_owned(),
                path,
            };
            // The option's word for "no hypernetwork" can be no name.
            if file.name == "None" {
                continue;
            }
            match files.iter_mut().find(|known| known.name == file.name) {
                Some(known) => *known = file,
                None => files.push(file),
            }
        }
        *self.files.write() = files;
    }

    /// All files in A1111's order.
    #[must_use]
    pub fn files(&self) -> Vec<HypernetworkFile> {
        self.files.read().clone()
    }

    /// The file of this name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<HypernetworkFile> {
        self.files
            .read()
            .iter()
            .find(|file| file.name == name)
            .cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_listed_by_stem_in_natural_order() {
        let folder = tempfile::tempdir().unwrap();
        fs_err::create_dir(folder.path().join("sub")).unwrap();
        for name in ["b10.pt", "b2.pt", "None.pt", "notes.txt", "sub/a.pt"] {
            fs_err::write(folder.path().join(name), b"x").unwrap();
        }
        let list = HypernetworkList::new(Some(folder.path().to_owned()));
        let names: Vec<String> = list.files().into_iter().map(|file| file.name).collect();
        assert_eq!(names, ["b2", "b10", "a"]);
        assert!(list.find("a").is_some());
        assert_eq!(list.find("None"), None);
        assert!(HypernetworkList::default().files().is_empty());
    }
}
