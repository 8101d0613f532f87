//! The table of contents of a `.safetensors` file, and the test of what it is.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/support/fuzz_readers.rs"]
#[allow(dead_code)]
mod fuzz_readers;

fuzz_target!(|data: &[u8]| {
    let file = tempfile::Builder::new().suffix(".safetensors").tempfile().unwrap();
    std::fs::write(file.path(), data).unwrap();
    fuzz_readers::safetensors(file.path());
});
