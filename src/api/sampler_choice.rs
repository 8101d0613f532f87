//! Which sampler and scheduler the names of a request mean.
//!
//! Follows A1111 v1.10.1's `get_sampler_and_scheduler`: names match exactly and by case, a trailing
//! schedule name is split off, and an unknown sampler becomes the first of the list without an error.

use crate::pipeline::{SAMPLERS, SCHEDULERS};

/// Canonical names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SamplerChoice {
    pub sampler: String,
    /// A scheduler's label, or `Automatic`.
    pub scheduler: String,
}

impl SamplerChoice {
    /// The scheduler that the sampler takes by itself need not be named, as A1111 reads infotexts.
    #[must_use]
    pub(super) fn with_own_scheduler_automatic(mut self) -> Self {
        let own = SAMPLERS
            .iter()
            .find(|sampler| sampler.name == self.sampler)
            .and_then(|sampler| sampler.default_scheduler);
        let named = SCHEDULERS
            .iter()
            .find(|scheduler| scheduler.label == self.scheduler);
        if own.is_some() && named.map(|scheduler| scheduler.name) == own {
            AUTOMATIC.clone_into(&mut self.scheduler);
        }
        self
    }
}

const AUTOMATIC: &str = "Automatic";

/// Resolves the request's `sampler_name` (or `sampler_index`) and `scheduler`.
#[must_use]
pub fn choose_sampler(name: &str, scheduler: Option<&str>) -> SamplerChoice {
    let mut rest = name;
    let mut from_suffix = None;
    for known in &SCHEDULERS {
        let aliases = known.aliases.unwrap_or_default().iter().copied();
        let spellings = [known.label, known.name].into_iter().chain(aliases);
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
    let sampler = SAMPLERS
        .iter()
        .find(|sampler| sampler.name == rest)
        .unwrap_or(&SAMPLERS[0]);
    let label = match scheduler.filter(|text| !text.is_empty()) {
        Some(wanted) => SCHEDULERS
            .iter()
            .find(|known| known.name == wanted || known.label == wanted)
            .map_or(AUTOMATIC, |known| known.label),
        None => match from_suffix {
            Some(known) if sampler.default_scheduler != Some(known.name) => known.label,
            _ => AUTOMATIC,
        },
    };
    SamplerChoice {
        sampler: sampler.name.to_owned(),
        scheduler: label.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `(name, scheduler, sampler, label)`, from A1111's own function.
    const CASES: &[(&str, Option<&str>, &str, &str)] = &[
        ("Euler", None, "Euler", "Automatic"),
        ("Euler a", Some("Karras"), "Euler a", "Karras"),
        ("Euler a", Some("karras"), "Euler a", "Karras"),
        ("Euler a Karras", None, "Euler a", "Karras"),
        ("Euler a Exponential", Some("Karras"), "Euler a", "Karras"),
        ("DPM++ 2M Karras", None, "DPM++ 2M", "Automatic"),
        ("DPM++ 2M", Some("Automatic"), "DPM++ 2M", "Automatic"),
        ("DPM++ 2M SDE Karras", None, "DPM++ 2M SDE", "Karras"),
        (
            "DPM++ 2M SDE Exponential",
            None,
            "DPM++ 2M SDE",
            "Automatic",
        ),
        ("k_euler_a", None, "DPM++ 2M", "Automatic"),
        ("euler a", None, "DPM++ 2M", "Automatic"),
        ("", None, "DPM++ 2M", "Automatic"),
        ("Euler SGM Uniform", None, "DPM++ 2M", "Uniform"),
        ("Euler SGMUniform", None, "Euler", "SGM Uniform"),
        ("Euler", Some("Nope"), "Euler", "Automatic"),
        ("Euler Karras", Some(""), "Euler", "Karras"),
    ];

    #[test]
    fn names_resolve_as_in_a1111() {
        for (name, scheduler, sampler, label) in CASES {
            let choice = choose_sampler(name, *scheduler);
            let found = (choice.sampler.as_str(), choice.scheduler.as_str());
            assert_eq!(found, (*sampler, *label), "{name} with {scheduler:?}");
        }
    }
}
