//! What torch saved, in both of its formats.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/support/fuzz_readers.rs"]
#[allow(dead_code)]
mod fuzz_readers;

fuzz_target!(|data: &[u8]| {
    let file = tempfile::Builder::new().suffix(".ckpt").tempfile().unwrap();
    std::fs::write(file.path(), data).unwrap();
    fuzz_readers::torch_pickle(file.path());
});
