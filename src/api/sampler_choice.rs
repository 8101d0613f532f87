//! Which sampler and scheduler the names of a request mean.
//!
//! Follows A1111 v1.10.1's `get_sampler_and_scheduler`: names match exactly and by case, a trailing
//! schedule name is split off, and an unknown sampler becomes the first of the list without an error.

use crate::pipeline::{sampler_names, scheduler_names};

/// Canonical names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SamplerChoice {
    pub sampler: String,
    /// A scheduler's label, or `Automatic`.
    pub scheduler: String,
}

/// Resolves the request's `sampler_name` (or `sampler_index`) and `scheduler`.
#[must_use]
pub fn choose_sampler(name: &str, scheduler: Option<&str>) -> SamplerChoice {
    let mut rest = name;
    let mut from_suffix = None;
    for known in scheduler_names() {
        let spellings = [known.label, known.name]
            .into_iter()
            .chain(known.aliases.iter().copied());
        for spelling in spellings {
            if let Some(shorter) = rest
                .strip_suffix(spelling)
                .and_then(|text| text.strip_suffix(' '))
            {
                rest = shorter;
                from_suffix = Some(known);
            }
        }
    }
    let sampler = sampler_names()
        .find(|sampler| sampler.name == rest)
        .or_else(|| sampler_names().next())
        .expect("the table of samplers is not empty");
    let label = match scheduler.filter(|text| !text.is_empty()) {
        Some(wanted) => scheduler_names()
            .find(|known| known.name == wanted || known.label == wanted)
            .map_or("Automatic", |known| known.label),
        None => match from_suffix {
            Some(known) if sampler.default_scheduler != Some(known.name) => known.label,
            _ => "Automatic",
        },
    };
    SamplerChoice {
        sampler: sampler.name.to_owned(),
        scheduler: label.to_owned(),
    }
}
