//! Writing and reading A1111's generation parameters text. Uses no other room.
//!
//! Follows the behaviour of stable-diffusion-webui v1.10.1: what it writes into pictures, what
//! `png-info` answers for such a text, and what the request field `infotext` does with one. Which
//! keys a job writes is the pipeline's to say. Left out: the sizes that the option
//! `use_old_hires_fix_width_height` would restore.

mod parse;
mod python;
mod request_fields;
mod style_extraction;
#[cfg(test)]
mod vectors;
mod version;
mod write;

pub use parse::{ParseSettings, StyleHandling, parse};
pub use python::{json_dumps, python_repr, python_str};
pub use request_fields::{
    OVERRIDE_KEYS, OverrideKey, img2img_fields, override_settings, txt2img_fields,
};
pub use style_extraction::{KnownStyle, extract_styles};
pub use version::Version;
pub use write::{quote, unquote, write};
