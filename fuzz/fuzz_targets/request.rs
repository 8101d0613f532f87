//! The JSON bodies of requests.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/support/fuzz_readers.rs"]
#[allow(dead_code)]
mod fuzz_readers;

fuzz_target!(|data: &[u8]| fuzz_readers::request(data));
