//! Wildcard files for dynamic prompts, as the A1111 extension sd-dynamic-prompts keeps them.
//!
//! A wildcard's name is its file's path below a folder, with `/` and without extension. Names come from
//! what lies in the folders, never from a request, and links that lead out of them are passed over.

use std::path::{Path, PathBuf};

/// Folders within each other that are looked into.
const MAX_DEPTH: usize = 16;
/// Files that are listed.
const MAX_FILES: usize = 100_000;
/// Largest file that is read.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// What a wildcard file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WildcardKind {
    /// One value a line.
    Lines,
    Json,
    Yaml,
}

/// One file of wildcards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WildcardFile {
    /// Path below its folder with `/`, without extension.
    pub name: String,
    pub path: PathBuf,
    pub kind: WildcardKind,
}

impl WildcardFile {
    /// The file's text; bytes that are no UTF-8 are replaced.
    ///
    /// # Errors
    /// When the file cannot be read or is over 64 MiB.
    pub fn read(&self) -> std::io::Result<String> {
        if fs_err::metadata(&self.path)?.len() > MAX_FILE_BYTES {
            return Err(std::io::Error::other("the wildcard file is over 64 MiB"));
        }
        let bytes = fs_err::read(&self.path)?;
        let text = String::from_utf8_lossy(&bytes);
        Ok(text.trim_start_matches('\u{feff}').to_owned())
    }
}

/// The folders that hold wildcards.
#[derive(Debug, Clone, Default)]
pub struct WildcardFolders {
    folders: Vec<PathBuf>,
}

impl WildcardFolders {
    /// Folders that need not exist.
    #[must_use]
    pub fn new(folders: Vec<PathBuf>) -> Self {
        Self { folders }
    }

    /// Whether one of the folders is there.
    #[must_use]
    pub fn exist(&self) -> bool {
        self.folders.iter().any(|folder| folder.is_dir())
    }

    /// All files, sorted by path folder by folder.
    #[must_use]
    pub fn files(&self) -> Vec<WildcardFile> {
        let mut files = Vec::new();
        for folder in &self.folders {
            let Ok(root) = fs_err::canonicalize(folder) else {
                continue;
            };
            walk(&root, &root, 0, &mut files);
        }
        files
    }
}

fn walk(root: &Path, folder: &Path, depth: usize, files: &mut Vec<WildcardFile>) {
    let Ok(entries) = fs_err::read_dir(folder) else {
        return;
    };
    let mut paths: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    for path in paths {
        let inside = fs_err::canonicalize(&path).is_ok_and(|path| path.starts_with(root));
        if !inside || files.len() >= MAX_FILES {
            continue;
        }
        if path.is_dir() {
            let hidden = path
                .file_name()
                .is_some_and(|it| it.to_string_lossy().starts_with('.'));
            if depth < MAX_DEPTH && !hidden {
                walk(root, &path, depth + 1, files);
            }
        } else if let Some(file) = wildcard_file(root, path) {
            files.push(file);
        }
    }
}

fn wildcard_file(root: &Path, path: PathBuf) -> Option<WildcardFile> {
    let kind = match path.extension()?.to_str()? {
        "txt" => WildcardKind::Lines,
        "json" => WildcardKind::Json,
        "yaml" => WildcardKind::Yaml,
        _ => return None,
    };
    let below = path.strip_prefix(root).ok()?.with_extension("");
    let parts: Option<Vec<&str>> = below.iter().map(|part| part.to_str()).collect();
    Some(WildcardFile {
        name: parts?.join("/"),
        path,
        kind,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_in_folders_and_nowhere_else() {
        let data = tempfile::tempdir().expect("a temporary folder");
        let folder = data.path().join("wildcards");
        fs_err::create_dir_all(folder.join("a/b")).expect("folders");
        for name in [
            "color.txt",
            "a/b/deep.txt",
            "tree.yaml",
            "list.json",
            "readme.md",
        ] {
            fs_err::write(folder.join(name), "red\n").expect("a file");
        }
        fs_err::write(data.path().join("secret.txt"), "secret").expect("a file");
        #[cfg(unix)]
        std::os::unix::fs::symlink(data.path().join("secret.txt"), folder.join("link.txt"))
            .expect("a link");
        let folders = WildcardFolders::new(vec![data.path().join("none"), folder]);
        assert!(folders.exist());
        let files = folders.files();
        let names: Vec<&str> = files.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(names, ["a/b/deep", "color", "list", "tree"]);
        assert_eq!(files[1].read().expect("readable"), "red\n");
        assert!(!WildcardFolders::default().exist());
    }
}
