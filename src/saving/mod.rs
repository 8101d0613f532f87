//! Pictures on disk: folders, file names, counters, formats, and writing in one step.
//!
//! Follows A1111 v1.10.1's saving of results. What is written and when is the pipeline's to say, which
//! asks through `pipeline::PictureSaver`. Left out: GIF and AVIF files, which are written as PNG.

mod file_saver;
mod numbering;
mod pattern;
mod sanitize;
mod tokens;

pub use file_saver::{FileSaver, NameRules, SaveError};
