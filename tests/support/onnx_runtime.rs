//! The ONNX Runtime that tests run graphs with: that of `ORT_DYLIB_PATH`, else the one that
//! `scripts/fetch_runtime` brought.

#![allow(
    dead_code,
    reason = "every test crate that includes this module uses its own part of it"
)]

use std::path::PathBuf;

use ancestral::runtime::{LibrarySearch, Runtime, RuntimeOptions, find_library};

/// Where the library is.
pub(crate) fn library() -> PathBuf {
    let search = LibrarySearch {
        explicit: std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from),
        data_dir: PathBuf::from(env!("CARGO_MANIFEST_DIR")),
        python_prefixes: Vec::new(),
    };
    find_library(&search).expect("scripts/fetch_runtime has fetched the library")
}

/// The library, loaded.
pub(crate) fn runtime() -> Runtime {
    Runtime::load(&library(), RuntimeOptions::default()).expect("the library loads")
}

/// The same without the processor's matrix unit.
pub(crate) fn runtime_without_matrix_unit() -> Runtime {
    let options = RuntimeOptions {
        matrix_unit: false,
        ..RuntimeOptions::default()
    };
    Runtime::load(&library(), options).expect("the library loads")
}
