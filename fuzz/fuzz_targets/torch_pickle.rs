//! What torch saved, in both of its formats.
#![no_main]

use ancestral::catalogue::TorchFile;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), data).unwrap();
    if let Ok(saved) = TorchFile::open(file.path())
        && let Ok(table) = saved.weights().tensor_table()
    {
        for (name, _) in table.iter() {
            let _ = table.read_f32(name);
        }
    }
});
