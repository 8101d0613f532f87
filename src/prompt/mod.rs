//! What the text of a prompt means before any model sees it: emphasis, prompt editing and
//! alternation, AND, extra-network tags, styles, comments, wildcards.
//!
//! Follows the behaviour of stable-diffusion-webui v1.10.1. Uses no other room; reads no file,
//! clock, environment variable or global. The pre-2022 emphasis code
//! (`use_old_emphasis_implementation`) is left out.

mod comments;
mod composition;
mod dynamic;
mod emphasis;
mod extra_networks;
mod python_random;
mod schedule;
mod styles;
#[cfg(test)]
pub(crate) mod vectors;

pub use comments::strip_comments;
pub use composition::{PromptPart, split_composition};
pub use dynamic::{
    DynamicPromptError, WildcardMap, WildcardSource, WildcardValue, expand_all, expand_random,
    replace_simple_wildcards, structured_wildcards, wildcards_in_text,
};
pub use emphasis::{EmphasisError, Segment, parse_emphasis};
pub use extra_networks::{
    ExtraNetwork, HypernetworkTag, LoraTag, NetworkTagError, PromptNetworks, extract_extra_networks,
};
pub use schedule::{PassSteps, ScheduledText, expand_schedule};
pub use styles::{Style, StylesError, apply_styles, merge_style, parse_styles_csv};
