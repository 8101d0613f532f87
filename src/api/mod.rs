//! The JSON as A1111 speaks it: request fields, defaults, coercion, resolution into pipeline
//! parameters, answers. May use pipeline types, infotext and imaging.
//!
//! Follows A1111 v1.10.1, whose requests are read by pydantic v1 under FastAPI 0.94.

mod answer;
mod body;
mod error;
mod field;
mod img2img;
mod info;
mod json;
mod resolve;
mod sampler_choice;
mod schema;
mod scripts;
mod txt2img;

pub use answer::{encode_images, generation_answer};
pub use body::{Body, query_bool, read_body};
pub use error::{ApiError, FieldError};
pub use field::{Field, Kind};
pub use img2img::resolve_img2img;
pub use json::{JsonError, parse_json};
pub use resolve::{CheckpointNames, NoStyles, ResolveContext, Resolved, StyleTexts};
pub use sampler_choice::{SamplerChoice, choose_sampler};
pub use schema::{
    EXTRAS_BATCH, EXTRAS_SINGLE, IMG2IMG, INTERNAL_PROGRESS, INTERROGATE, PNG_INFO, Schema, TXT2IMG,
};
pub use scripts::{ScriptTitles, check_alwayson, check_script_name};
pub use txt2img::resolve_txt2img;
