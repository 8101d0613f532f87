//! Running numbers of files.

use std::path::Path;

/// One more than the largest number that a file of `folder` begins with, behind `basename-` if there is
/// a basename; 0 in an empty or missing folder.
pub(super) fn next_number(folder: &Path, basename: &str) -> u64 {
    let Ok(entries) = fs_err::read_dir(folder) else {
        return 0;
    };
    entries
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let name = entry.file_name();
            let name = name.to_str()?;
            let rest = match basename {
                "" => name,
                basename => name.strip_prefix(basename)?.get(1..)?,
            };
            let stem = rest.rsplit_once('.').map_or(rest, |(stem, _)| stem);
            stem.split('-').next()?.parse::<u64>().ok()
        })
        .max()
        .map_or(0, |largest| largest.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_follow_the_largest() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        assert_eq!(next_number(&folder.path().join("none"), ""), 0);
        for name in ["00003-1.png", "00001.png", "grid-0007.png", "x.png", "grid"] {
            fs_err::write(folder.path().join(name), b"").expect("written");
        }
        assert_eq!(next_number(folder.path(), ""), 4);
        assert_eq!(next_number(folder.path(), "grid"), 8);
        assert_eq!(next_number(folder.path(), "xyz_grid"), 0);
    }
}
