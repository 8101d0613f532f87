//! The JSON as A1111 speaks it: request fields, defaults, coercion, resolution into pipeline
//! parameters, answers. May use pipeline types, infotext and imaging.
//!
//! Follows A1111 v1.10.1, whose requests are read by pydantic v1 under FastAPI 0.94.

mod answer;
mod body;
mod dynamic_prompts;
mod early_encoder;
mod error;
mod extras;
mod field;
mod img2img;
mod info;
mod infotext_field;
mod json;
mod limits;
mod openapi;
mod pictures;
mod png_info;
mod resolve;
mod sampler_choice;
mod schema;
mod scripts;
mod txt2img;

pub use answer::{encode_picture, generation_answer, preview_url};
pub use body::{Body, query_bool, read_body, read_json};
pub use dynamic_prompts::DynamicPromptsSetting;
pub use early_encoder::EarlyEncoder;
pub use error::{ApiError, FieldError};
pub use extras::{ExtrasRequest, extras_answer, resolve_extras};
pub use field::{Field, Kind};
pub use img2img::resolve_img2img;
pub use json::{JsonError, parse_json};
pub use limits::{check_extras_limits, check_limits, set_script_limits};
pub use openapi::openapi_document;
pub use pictures::{PictureAccess, PictureFetcher};
pub use png_info::png_info_answer;
pub use resolve::{CheckpointNames, NoStyles, ResolveContext, Resolved, StyleBook, StyleRow};
pub use sampler_choice::{SamplerChoice, choose_sampler};
pub use schema::{
    EXTRAS_BATCH, EXTRAS_SINGLE, IMG2IMG, INTERNAL_PROGRESS, INTERROGATE, PNG_INFO, Schema, TXT2IMG,
};
pub use scripts::{ScriptChoices, script_info, script_names};
pub use txt2img::resolve_txt2img;
