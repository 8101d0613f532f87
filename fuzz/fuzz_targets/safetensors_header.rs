//! The table of contents of a `.safetensors` file, and the test of what it is.
#![no_main]

use ancestral::catalogue::{TensorFile, detect};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let file = tempfile::Builder::new().suffix(".safetensors").tempfile().unwrap();
    std::fs::write(file.path(), data).unwrap();
    if let Ok(table) = TensorFile::open_safetensors(file.path()) {
        for (name, _) in table.iter() {
            let _ = table.read_f32(name);
        }
        let _ = detect(&table);
    }
});
