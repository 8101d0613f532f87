//! Pictures that carry a textual inversion.
#![no_main]

use ancestral::catalogue::read_embedding;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let file = tempfile::Builder::new().suffix(".png").tempfile().unwrap();
    std::fs::write(file.path(), data).unwrap();
    let _ = read_embedding(file.path());
});
