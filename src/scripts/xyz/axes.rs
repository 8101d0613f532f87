//! Every axis of the X/Y/Z plot: its label, what its values are and what they change.

use serde_json::{Value, json};

use super::values::{AxisValue, floats, ints, permutations};
use crate::pipeline::{GenerateError, GenerationParams};
use crate::scripts::Tab;
use crate::scripts::arguments::raised;
use crate::scripts::job::ScriptJob;
use crate::scripts::prompts_from_file::sampler;

/// One axis.
pub(super) struct Axis {
    pub(super) label: &'static str,
    kind: Kind,
    /// Axes of a higher cost change less often.
    pub(super) cost: f64,
    /// The page offers a list of values, which requests then send as one.
    pub(super) has_choices: bool,
    title: TitleKind,
    check: Check,
    /// The only page that has it; `None` is both.
    tab: Option<Tab>,
    pub(super) apply: fn(&mut Cell<'_>, &AxisValue) -> Result<(), GenerateError>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The only value is that there is none.
    Nothing,
    Int,
    Float,
    Text,
    Order,
}

/// What stands beside the grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TitleKind {
    Empty,
    /// `label: value`
    Labelled,
    Value,
    FileName,
}

/// What is checked before anything is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Check {
    Nothing,
    Samplers,
    Checkpoints,
    CheckpointsOrNone,
    /// From and to, both allowed.
    Range(i64, i64),
}

/// One cell while its axes change it.
pub(super) struct Cell<'a> {
    pub(super) job: &'a ScriptJob<'a>,
    pub(super) params: &'a mut GenerationParams,
    /// All values of the axis that is applied.
    pub(super) values: &'a [AxisValue],
}

impl Axis {
    const fn new(
        label: &'static str,
        kind: Kind,
        apply: fn(&mut Cell<'_>, &AxisValue) -> Result<(), GenerateError>,
    ) -> Self {
        Self {
            label,
            kind,
            cost: 0.0,
            has_choices: false,
            title: TitleKind::Labelled,
            check: Check::Nothing,
            tab: None,
            apply,
        }
    }

    const fn cost(mut self, cost: f64) -> Self {
        self.cost = cost;
        self
    }

    const fn choices(mut self) -> Self {
        self.has_choices = true;
        self
    }

    const fn titled(mut self, title: TitleKind) -> Self {
        self.title = title;
        self
    }

    const fn checked(mut self, check: Check) -> Self {
        self.check = check;
        self
    }

    const fn only(mut self, tab: Tab) -> Self {
        self.tab = Some(tab);
        self
    }

    pub(super) fn is_nothing(&self) -> bool {
        self.kind == Kind::Nothing
    }

    pub(super) fn is_seed(&self) -> bool {
        matches!(self.label, "Seed" | "Var. seed")
    }

    /// The values that these items stand for.
    pub(super) fn values(&self, items: &[String]) -> Result<Vec<AxisValue>, GenerateError> {
        match self.kind {
            Kind::Nothing => Ok(vec![AxisValue::Int(0)]),
            Kind::Int => ints(items),
            Kind::Float => floats(items),
            Kind::Text => Ok(items.iter().cloned().map(AxisValue::Text).collect()),
            Kind::Order => permutations(items),
        }
    }

    /// The title of a value beside the grid.
    pub(super) fn title(&self, value: &AxisValue) -> String {
        match self.title {
            TitleKind::Empty => String::new(),
            TitleKind::Labelled => format!("{}: {}", self.label, value.title()),
            TitleKind::Value => value.title(),
            TitleKind::FileName => {
                let title = value.title();
                title.rsplit('/').next().unwrap_or(&title).to_owned()
            }
        }
    }

    /// Refuses values that name nothing.
    pub(super) fn confirm(
        &self,
        job: &ScriptJob<'_>,
        values: &[AxisValue],
    ) -> Result<(), GenerateError> {
        for value in values {
            let name = value.text();
            let failure = match self.check {
                Check::Nothing => None,
                Check::Samplers => {
                    (sampler(name).is_none()).then(|| format!("Unknown sampler: {name}"))
                }
                Check::CheckpointsOrNone if matches!(name, "" | "None" | "none") => None,
                Check::Checkpoints | Check::CheckpointsOrNone => {
                    (!job.models.knows(name)).then(|| format!("Unknown checkpoint: {name}"))
                }
                Check::Range(from, to) => {
                    let number = value.int();
                    (!(from..=to).contains(&number))
                        .then(|| format!("{}: {number} is not from {from} to {to}", self.label))
                }
            };
            if let Some(text) = failure {
                return Err(raised("RuntimeError", text));
            }
        }
        Ok(())
    }
}

/// The axes of one page, in its order.
pub(super) fn axes_of(tab: Tab) -> impl Iterator<Item = &'static Axis> {
    AXES.iter()
        .filter(move |axis| axis.tab.is_none_or(|only| only == tab))
}

/// The labels of one page's axes, in its order: what `x_type` counts.
#[must_use]
pub fn axis_labels(tab: Tab) -> Vec<&'static str> {
    axes_of(tab).map(|axis| axis.label).collect()
}

/// An axis that sets an option.
macro_rules! option_axis {
    ($label:literal, Int, $key:literal) => {
        Axis::new($label, Kind::Int, |cell, value| {
            cell.option($key, json!(value.int()))
        })
    };
    ($label:literal, Float, $key:literal) => {
        Axis::new($label, Kind::Float, |cell, value| {
            cell.option($key, json!(value.float()))
        })
    };
    ($label:literal, Text, $key:literal) => {
        Axis::new($label, Kind::Text, |cell, value| {
            cell.option($key, json!(value.text()))
        })
        .choices()
    };
    ($label:literal, Bool, $key:literal) => {
        Axis::new($label, Kind::Text, |cell, value| {
            let on = value.text().eq_ignore_ascii_case("true");
            cell.option($key, json!(on))
        })
        .choices()
    };
}

/// An axis that sets a number of the request.
macro_rules! float_axis {
    ($label:literal, $params:ident, $value:ident => $change:expr) => {
        Axis::new($label, Kind::Float, |cell, value| {
            let ($params, $value) = (&mut *cell.params, value.float());
            $change;
            Ok(())
        })
    };
}

static AXES: [Axis; 53] = [
    Axis::new("Nothing", Kind::Nothing, |_, _| Ok(())).titled(TitleKind::Empty),
    Axis::new("Seed", Kind::Int, |cell, value| {
        cell.params.seed = seed(value);
        Ok(())
    }),
    Axis::new("Var. seed", Kind::Int, |cell, value| {
        cell.params.subseed = seed(value);
        Ok(())
    }),
    float_axis!("Var. strength", params, value => params.subseed_strength = value),
    Axis::new("Steps", Kind::Int, |cell, value| {
        cell.params.step_count = count(value, "steps")?;
        Ok(())
    }),
    Axis::new("Hires steps", Kind::Int, |cell, value| {
        let steps = usize::try_from(value.int()).unwrap_or(0);
        if let Some(hires) = &mut cell.params.hires {
            hires.second_pass_steps = steps;
        }
        Ok(())
    })
    .only(Tab::Txt2Img),
    float_axis!("CFG Scale", params, value => params.cfg_scale = value),
    float_axis!("Image CFG Scale", params, value => {
        if let Some(img2img) = &mut params.img2img {
            img2img.image_cfg_scale = Some(value);
        }
    })
    .only(Tab::Img2Img),
    Axis::new("Prompt S/R", Kind::Text, search_and_replace).titled(TitleKind::Value),
    Axis::new("Prompt order", Kind::Order, reorder).titled(TitleKind::Value),
    Axis::new("Sampler", Kind::Text, |cell, value| {
        let name = sampler(value.text()).unwrap_or(value.text());
        name.clone_into(&mut cell.params.sampler);
        Ok(())
    })
    .titled(TitleKind::Value)
    .choices()
    .checked(Check::Samplers),
    Axis::new("Hires sampler", Kind::Text, |cell, value| {
        if let Some(hires) = &mut cell.params.hires {
            hires.sampler = sampler(value.text()).map(str::to_owned);
        }
        Ok(())
    })
    .choices()
    .checked(Check::Samplers)
    .only(Tab::Txt2Img),
    option_axis!("Checkpoint name", Text, "sd_model_checkpoint")
        .cost(1.0)
        .titled(TitleKind::FileName)
        .checked(Check::Checkpoints),
    float_axis!("Negative Guidance minimum sigma", params, value => params.s_min_uncond = Some(value)),
    float_axis!("Sigma Churn", params, value => params.s_churn = Some(value)),
    float_axis!("Sigma min", params, value => params.s_tmin = Some(value)),
    float_axis!("Sigma max", params, value => params.s_tmax = Some(value)),
    float_axis!("Sigma noise", params, value => params.s_noise = Some(value)),
    Axis::new("Schedule type", Kind::Text, |cell, value| {
        value.text().clone_into(&mut cell.params.scheduler);
        Ok(())
    })
    .choices(),
    option_axis!("Schedule min sigma", Float, "sigma_min"),
    option_axis!("Schedule max sigma", Float, "sigma_max"),
    option_axis!("Schedule rho", Float, "rho"),
    option_axis!("Beta schedule alpha", Float, "beta_dist_alpha"),
    option_axis!("Beta schedule beta", Float, "beta_dist_beta"),
    float_axis!("Eta", params, value => params.eta = Some(value)),
    option_axis!("Clip skip", Int, "CLIP_stop_at_last_layers"),
    float_axis!("Denoising", params, value => params.denoising_strength = Some(value)),
    float_axis!("Initial noise multiplier", params, value => {
        if let Some(img2img) = &mut params.img2img {
            img2img.initial_noise_multiplier = Some(value);
        }
    }),
    option_axis!("Extra noise", Float, "img2img_extra_noise"),
    Axis::new("Hires upscaler", Kind::Text, |cell, value| {
        if let Some(hires) = &mut cell.params.hires {
            hires.upscaler = Some(value.text().to_owned());
        }
        Ok(())
    })
    .choices()
    .only(Tab::Txt2Img),
    option_axis!("Cond. Image Mask Weight", Float, "inpainting_mask_weight").only(Tab::Img2Img),
    option_axis!("VAE", Text, "sd_vae").cost(0.7),
    Axis::new("Styles", Kind::Text, |cell, value| {
        cell.job.add_styles(cell.params, value.text().split(','));
        Ok(())
    })
    .choices(),
    Axis::new("UniPC Order", Kind::Int, |cell, value| {
        let most = cell.params.step_count as i64 - 1;
        cell.option("uni_pc_order", json!(value.int().min(most)))
    })
    .cost(0.5),
    Axis::new("Face restore", Kind::Text, restore_faces).titled(TitleKind::Value),
    option_axis!("Token merging ratio", Float, "token_merging_ratio"),
    option_axis!(
        "Token merging ratio high-res",
        Float,
        "token_merging_ratio_hr"
    ),
    option_axis!(
        "Always discard next-to-last sigma",
        Bool,
        "always_discard_next_to_last_sigma"
    ),
    option_axis!("SGM noise multiplier", Bool, "sgm_noise_multiplier"),
    Axis::new("Refiner checkpoint", Kind::Text, |cell, value| {
        let name = Some(value.text()).filter(|name| !matches!(*name, "" | "None" | "none"));
        cell.params.refiner_checkpoint = name.map(str::to_owned);
        Ok(())
    })
    .cost(1.0)
    .titled(TitleKind::FileName)
    .choices()
    .checked(Check::CheckpointsOrNone),
    float_axis!("Refiner switch at", params, value => params.refiner_switch_at = Some(value)),
    option_axis!("RNG source", Text, "randn_source"),
    option_axis!("FP8 mode", Text, "fp8_storage").cost(0.9),
    Axis::new("Size", Kind::Text, resize).titled(TitleKind::Labelled),
    option_axis!(
        "[Hypertile] Unet First pass Enabled",
        Bool,
        "hypertile_enable_unet"
    ),
    option_axis!(
        "[Hypertile] Unet Second pass Enabled",
        Bool,
        "hypertile_enable_unet_secondpass"
    ),
    option_axis!(
        "[Hypertile] Unet Max Depth",
        Int,
        "hypertile_max_depth_unet"
    )
    .choices()
    .checked(Check::Range(0, 3)),
    option_axis!(
        "[Hypertile] Unet Max Tile Size",
        Int,
        "hypertile_max_tile_unet"
    )
    .checked(Check::Range(0, 512)),
    option_axis!(
        "[Hypertile] Unet Swap Size",
        Int,
        "hypertile_swap_size_unet"
    )
    .checked(Check::Range(0, 64)),
    option_axis!("[Hypertile] VAE Enabled", Bool, "hypertile_enable_vae"),
    option_axis!("[Hypertile] VAE Max Depth", Int, "hypertile_max_depth_vae")
        .choices()
        .checked(Check::Range(0, 3)),
    option_axis!(
        "[Hypertile] VAE Max Tile Size",
        Int,
        "hypertile_max_tile_vae"
    )
    .checked(Check::Range(0, 512)),
    option_axis!("[Hypertile] VAE Swap Size", Int, "hypertile_swap_size_vae")
        .checked(Check::Range(0, 64)),
];

impl Cell<'_> {
    #[expect(
        clippy::unnecessary_wraps,
        reason = "the answer of an axis, whose others can fail"
    )]
    fn option(&mut self, key: &str, value: Value) -> Result<(), GenerateError> {
        self.params.override_option(key, value);
        Ok(())
    }
}

fn seed(value: &AxisValue) -> Option<i64> {
    Some(value.int()).filter(|seed| *seed != -1)
}

/// A count that a request could ask for too.
fn count(value: &AxisValue, name: &str) -> Result<usize, GenerateError> {
    let number = value.int();
    usize::try_from(number)
        .ok()
        .filter(|count| (1..=10_000).contains(count))
        .ok_or_else(|| {
            raised(
                "ValueError",
                format!("{name} must be from 1 to 10000, not {number}"),
            )
        })
}

/// The first value is what is looked for.
fn search_and_replace(cell: &mut Cell<'_>, value: &AxisValue) -> Result<(), GenerateError> {
    let wanted = cell.values.first().map_or("", AxisValue::text);
    let params = &mut *cell.params;
    if !params.prompt.contains(wanted) && !params.negative_prompt.contains(wanted) {
        let text = format!("Prompt S/R did not find {wanted} in prompt or negative prompt.");
        return Err(raised("RuntimeError", text));
    }
    params.prompt = params.prompt.replace(wanted, value.text());
    params.negative_prompt = params.negative_prompt.replace(wanted, value.text());
    Ok(())
}

/// Puts the items at the places that they have in the prompt, in the value's order.
fn reorder(cell: &mut Cell<'_>, value: &AxisValue) -> Result<(), GenerateError> {
    let prompt = cell.params.prompt.clone();
    let mut places: Vec<(usize, &String)> = Vec::new();
    for item in value.list() {
        let at = prompt.find(item.as_str()).ok_or_else(|| {
            raised(
                "RuntimeError",
                format!("Prompt order did not find {item} in the prompt."),
            )
        })?;
        places.push((at, item));
    }
    places.sort();
    let mut reordered = String::with_capacity(prompt.len());
    let mut rest = prompt.as_str();
    for ((_, old), new) in places.iter().zip(value.list()) {
        // An item within another one that was passed already is left out.
        let Some(at) = rest.find(old.as_str()) else {
            continue;
        };
        reordered.push_str(&rest[..at]);
        reordered.push_str(new);
        rest = &rest[at + old.len()..];
    }
    reordered.push_str(rest);
    cell.params.prompt = reordered;
    Ok(())
}

fn restore_faces(cell: &mut Cell<'_>, value: &AxisValue) -> Result<(), GenerateError> {
    let wanted = value.text().to_lowercase();
    let model = match wanted.as_str() {
        "codeformer" => Some("CodeFormer"),
        "gfpgan" => Some("GFPGAN"),
        _ => None,
    };
    cell.params.restore_faces =
        model.is_some() || matches!(wanted.as_str(), "true" | "yes" | "y" | "1");
    match model {
        Some(model) => cell.option("face_restoration_model", json!(model)),
        None => Ok(()),
    }
}

/// `WxH`
fn resize(cell: &mut Cell<'_>, value: &AxisValue) -> Result<(), GenerateError> {
    let side = |text: &str| {
        text.trim()
            .parse::<usize>()
            .ok()
            .filter(|side| (8..=16_384).contains(side))
    };
    let sides = value.text().split_once('x');
    let Some((Some(width), Some(height))) = sides.map(|(w, h)| (side(w), side(h))) else {
        let text = format!(
            "Size must be WIDTHxHEIGHT, from 8 to 16384, not {}",
            value.text()
        );
        return Err(raised("ValueError", text));
    };
    cell.params.width_px = width;
    cell.params.height_px = height;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lists_are_as_long_as_a1111s() {
        assert_eq!(axes_of(Tab::Txt2Img).count(), 51);
        assert_eq!(axes_of(Tab::Img2Img).count(), 50);
        assert_eq!(axis_labels(Tab::Txt2Img)[28], "Hires upscaler");
        assert_eq!(axis_labels(Tab::Img2Img)[27], "Cond. Image Mask Weight");
    }
}
