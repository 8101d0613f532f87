//! The order of the rooms, read from the source: which room names which, and who may name `ort`, actix,
//! files and clocks. `docs/ARCHITECTURE.md` has the table for people; this is the one that is enforced.

use std::path::{Path, PathBuf};

/// The rooms, outermost first, and the rooms that each may use.
const ROOMS: &[(&str, &[&str])] = &[
    (
        "http",
        &[
            "api",
            "jobs",
            "scripts",
            "pipeline",
            "infotext",
            "imaging",
            "catalogue",
            "config",
        ],
    ),
    (
        "api",
        &[
            "jobs",
            "scripts",
            "pipeline",
            "infotext",
            "imaging",
            "catalogue",
            "config",
        ],
    ),
    ("jobs", &["scripts", "pipeline", "sampling", "config"]),
    (
        "scripts",
        &[
            "pipeline", "sampling", "prompt", "infotext", "rng", "imaging", "config",
        ],
    ),
    (
        "models",
        &[
            "pipeline",
            "conditioning",
            "sampling",
            "imaging",
            "catalogue",
            "config",
            "runtime",
        ],
    ),
    ("saving", &["pipeline", "infotext", "imaging", "config"]),
    (
        "pipeline",
        &[
            "conditioning",
            "sampling",
            "prompt",
            "infotext",
            "rng",
            "imaging",
            "catalogue",
            "config",
        ],
    ),
    ("conditioning", &["prompt"]),
    ("sampling", &["rng"]),
    ("prompt", &[]),
    ("infotext", &[]),
    ("rng", &[]),
    ("imaging", &[]),
    ("catalogue", &["config"]),
    ("config", &[]),
    ("runtime", &[]),
];

/// Rooms whose answers depend on their arguments alone.
const PURE_ROOMS: &[&str] = &["prompt", "infotext", "rng", "imaging", "sampling"];

/// One source file of a room, comments and tests taken out.
struct Source {
    room: String,
    path: PathBuf,
    code: String,
}

#[test]
fn no_room_uses_one_above_it() {
    let mut wrong = Vec::new();
    for source in sources() {
        let allowed = ROOMS.iter().find(|(room, _)| *room == source.room);
        let (_, allowed) =
            allowed.unwrap_or_else(|| panic!("src/{} is no room of the table", source.room));
        for used in rooms_named(&source.code) {
            if used != source.room && !allowed.contains(&used.as_str()) {
                wrong.push(format!(
                    "{}: {} may not use {used}",
                    source.path.display(),
                    source.room
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_table_itself_points_down() {
    for (index, (room, allowed)) in ROOMS.iter().enumerate() {
        for used in *allowed {
            let below = ROOMS[index + 1..].iter().any(|(name, _)| name == used);
            assert!(below, "{room} may use {used}, which is not below it");
        }
    }
}

#[test]
fn every_room_says_what_it_is() {
    for (room, _) in ROOMS {
        let path = src().join(room).join("mod.rs");
        let text = read(&path);
        assert!(
            text.starts_with("//! "),
            "{} has no module header",
            path.display()
        );
    }
}

#[test]
fn foreign_types_stay_in_their_room() {
    let mut wrong = Vec::new();
    for source in sources() {
        let rules: &[(&str, &[&str])] = &[
            ("ort::", &["runtime"]),
            ("actix_web", &["http"]),
            ("unsafe {", &["runtime"]),
            ("unsafe fn", &["runtime"]),
            ("std::env::var", &["config"]),
        ];
        for (token, rooms) in rules {
            if names(&source.code, token) && !rooms.contains(&source.room.as_str()) {
                wrong.push(format!(
                    "{} names {token}, which belongs to {rooms:?}",
                    source.path.display()
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn pure_rooms_read_no_file_clock_or_environment() {
    let tokens = [
        "std::fs",
        "fs_err",
        "std::env",
        "Instant::now",
        "SystemTime",
        "Zoned::now",
        "Timestamp::now",
    ];
    let mut wrong = Vec::new();
    for source in sources() {
        for token in tokens {
            if PURE_ROOMS.contains(&source.room.as_str()) && names(&source.code, token) {
                wrong.push(format!("{} names {token}", source.path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_are_named_for_what_they_hold() {
    for source in sources() {
        let name = source
            .path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy();
        assert!(
            !["utils", "util", "common", "misc", "helpers"].contains(&name.as_ref()),
            "{} says nothing of what it holds",
            source.path.display()
        );
    }
}

#[test]
fn grouped_and_plain_paths_are_both_seen() {
    let code = "use crate::{api::{a, b}, jobs};\nfn f() { crate::rng::seed(); }";
    assert_eq!(rooms_named(code), ["api", "jobs", "rng"]);
}

/// Every room that `code` names by a path from the crate's root.
fn rooms_named(code: &str) -> Vec<String> {
    let mut rooms = Vec::new();
    for (at, root) in code.match_indices("crate::") {
        let rest = &code[at + root.len()..];
        match rest.strip_prefix('{') {
            Some(group) => rooms.extend(first_segments(group)),
            None => rooms.push(identifier(rest)),
        }
    }
    rooms.retain(|name| ROOMS.iter().any(|(room, _)| room == name));
    rooms
}

/// The first path segment of each element of a `{…}` group that begins behind its brace.
fn first_segments(group: &str) -> Vec<String> {
    let (mut depth, mut segments, mut start) = (0, Vec::new(), 0);
    for (at, letter) in group.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 0 => {
                segments.push(identifier(group[start..at].trim_start()));
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                segments.push(identifier(group[start..at].trim_start()));
                start = at + 1;
            }
            _ => {}
        }
    }
    segments
}

fn identifier(text: &str) -> String {
    text.chars()
        .take_while(|letter| letter.is_alphanumeric() || *letter == '_')
        .collect()
}

/// Whether `token` stands in `code` as a path or word of its own.
fn names(code: &str, token: &str) -> bool {
    code.match_indices(token).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        before.is_none_or(|letter| !letter.is_alphanumeric() && letter != '_')
    })
}

fn sources() -> Vec<Source> {
    let mut sources = Vec::new();
    for (room, _) in ROOMS {
        let mut folders = vec![src().join(room)];
        while let Some(folder) = folders.pop() {
            for path in entries(&folder) {
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|ext| ext == "rs") && !is_test_file(&path) {
                    let code = without_comments_and_tests(&read(&path));
                    sources.push(Source {
                        room: (*room).to_owned(),
                        path,
                        code,
                    });
                }
            }
        }
    }
    assert!(!sources.is_empty());
    sources
}

/// Whether `path` is a module that its parent declares for tests only.
fn is_test_file(path: &Path) -> bool {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let folder = path.parent().unwrap_or(path);
    let named = folder.with_extension("rs");
    let parents = [folder.join("mod.rs"), named];
    parents
        .iter()
        .filter(|parent| parent.is_file())
        .any(|parent| {
            let text = read(parent);
            let lines: Vec<&str> = text.lines().collect();
            lines
                .windows(2)
                .any(|pair| pair[0] == "#[cfg(test)]" && pair[1].ends_with(&format!("mod {stem};")))
        })
}

/// `text` without comment lines, without declarations of test files, and without what follows the test
/// module at the end of the file.
fn without_comments_and_tests(text: &str) -> String {
    let mut code = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line == "#[cfg(test)]" {
            match lines.next() {
                Some(item) if item.ends_with('{') => break,
                _ => continue,
            }
        }
        if !line.trim_start().starts_with("//") {
            code.push_str(line);
            code.push('\n');
        }
    }
    code
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries =
        std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.expect("a readable folder").path())
        .collect();
    paths.sort();
    paths
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
