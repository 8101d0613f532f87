//! No prompt, infotext, picture, body or model file makes its reader panic. The inputs are mutations of
//! the corpora in `fuzz/corpus` from fixed seeds; `scripts/fuzz` feeds a million to each reader.

#[path = "support/fuzz_readers.rs"]
mod fuzz_readers;
#[path = "support/mutations.rs"]
mod mutations;

use std::fs;
use std::path::Path;

use mutations::{
    Random, mutated, mutated_picture, mutated_picture_file, mutated_request, never_panics,
};

/// The files of a target's corpus, by name.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    files(&Path::new("fuzz/corpus").join(target))
}

/// The files in a folder of the repository, by name.
fn files(folder: &Path) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let entries = fs::read_dir(&folder).expect("the folder is in the repository");
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

fn try_target(target: &str, read: fn(&[u8]), mutate: fn(&mut Random, &[u8]) -> Vec<u8>) {
    let seeds = corpus(target);
    assert!(!seeds.is_empty());
    for seed in &seeds {
        read(seed);
    }
    let make = |random: &mut Random| {
        let seed = &seeds[random.below(seeds.len())];
        mutate(random, seed)
    };
    never_panics(target, make, read);
}

#[test]
fn mutated_prompts_never_panic() {
    try_target("prompt", fuzz_readers::prompt, mutated_request);
}

#[test]
fn mutated_infotexts_never_panic() {
    try_target("infotext", fuzz_readers::infotext, mutated_request);
}

#[test]
fn mutated_pictures_never_panic() {
    try_target("picture", fuzz_readers::picture, mutated_picture_file);
}

#[test]
fn mutated_bodies_never_panic() {
    try_target("request", fuzz_readers::request, mutated_request);
}

/// [`never_panics`] for a reader of files called `name`.
fn file_never_panics(name: &str, make: impl Fn(&mut Random) -> Vec<u8>, read: impl Fn(&Path)) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    never_panics(name, make, |bytes| {
        fs::write(&path, bytes).unwrap();
        read(&path);
    });
}

#[test]
fn mutated_safetensors_headers_never_panic() {
    let seed = &corpus("safetensors_header")[0];
    let make = |random: &mut Random| {
        // Half of the inputs keep the stated length true, so that the JSON is reached.
        if random.below(2) == 0 {
            return mutated(random, seed);
        }
        let header = mutated(random, &seed[8..seed.len() - 18]);
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(&header);
        bytes.extend_from_slice(&[7; 18]);
        bytes
    };
    file_never_panics("x.safetensors", make, fuzz_readers::safetensors);
}

#[test]
fn mutated_pickles_never_panic() {
    let seeds = files(Path::new("tests/golden/pickles"));
    let make = |random: &mut Random| {
        let seed = &seeds[random.below(seeds.len())];
        mutated(random, seed)
    };
    file_never_panics("x.ckpt", make, fuzz_readers::torch_pickle);
}

#[test]
fn mutated_embedding_pictures_never_panic() {
    file_never_panics("x.png", mutated_picture, fuzz_readers::embedding_picture);
}
