//! The fields of every endpoint that takes a body, in A1111's order, with its defaults.

use super::Field;
use super::field::{Kind, Preset, Range};

/// The fields of one endpoint.
pub type Schema = &'static [Field];

const TEXT: Kind = Kind::Text;
const INT: Kind = Kind::Int { least: None };
const COUNT: Kind = Kind::Int { least: Some(1) };
const FLOAT: Kind = Kind::Float { range: Range::Any };
const UNIT: Kind = Kind::Float { range: Range::Unit };
const POSITIVE: Kind = Kind::Float {
    range: Range::Positive,
};

/// A field that may be null.
const fn opt(name: &'static str, kind: Kind, default: Preset) -> Field {
    Field {
        name,
        kind,
        default,
        nullable: true,
    }
}

/// A field that may not.
const fn req(name: &'static str, kind: Kind, default: Preset) -> Field {
    Field {
        name,
        kind,
        default,
        nullable: false,
    }
}

/// `POST /sdapi/v1/txt2img`
pub const TXT2IMG: Schema = &[
    opt("prompt", TEXT, Preset::Text("")),
    opt("negative_prompt", TEXT, Preset::Text("")),
    opt("styles", Kind::TextList, Preset::Null),
    opt("seed", INT, Preset::Int(-1)),
    opt("subseed", INT, Preset::Int(-1)),
    opt("subseed_strength", FLOAT, Preset::Int(0)),
    opt("seed_resize_from_h", INT, Preset::Int(-1)),
    opt("seed_resize_from_w", INT, Preset::Int(-1)),
    opt("sampler_name", TEXT, Preset::Null),
    opt("scheduler", TEXT, Preset::Null),
    opt("batch_size", INT, Preset::Int(1)),
    opt("n_iter", INT, Preset::Int(1)),
    opt("steps", INT, Preset::Int(50)),
    opt("cfg_scale", FLOAT, Preset::Float(7.0)),
    opt("width", INT, Preset::Int(512)),
    opt("height", INT, Preset::Int(512)),
    opt("restore_faces", Kind::Bool, Preset::Null),
    opt("tiling", Kind::Bool, Preset::Null),
    opt("do_not_save_samples", Kind::Bool, Preset::Bool(false)),
    opt("do_not_save_grid", Kind::Bool, Preset::Bool(false)),
    opt("eta", FLOAT, Preset::Null),
    opt("denoising_strength", FLOAT, Preset::Null),
    opt("s_min_uncond", FLOAT, Preset::Null),
    opt("s_churn", FLOAT, Preset::Null),
    opt("s_tmax", FLOAT, Preset::Null),
    opt("s_tmin", FLOAT, Preset::Null),
    opt("s_noise", FLOAT, Preset::Null),
    opt("override_settings", Kind::Object, Preset::Null),
    opt(
        "override_settings_restore_afterwards",
        Kind::Bool,
        Preset::Bool(true),
    ),
    opt("refiner_checkpoint", TEXT, Preset::Null),
    opt("refiner_switch_at", FLOAT, Preset::Null),
    opt("disable_extra_networks", Kind::Bool, Preset::Bool(false)),
    opt("firstpass_image", TEXT, Preset::Null),
    opt("comments", Kind::Object, Preset::Null),
    opt("enable_hr", Kind::Bool, Preset::Bool(false)),
    opt("firstphase_width", INT, Preset::Int(0)),
    opt("firstphase_height", INT, Preset::Int(0)),
    opt("hr_scale", FLOAT, Preset::Float(2.0)),
    opt("hr_upscaler", TEXT, Preset::Null),
    opt("hr_second_pass_steps", INT, Preset::Int(0)),
    opt("hr_resize_x", INT, Preset::Int(0)),
    opt("hr_resize_y", INT, Preset::Int(0)),
    opt("hr_checkpoint_name", TEXT, Preset::Null),
    opt("hr_sampler_name", TEXT, Preset::Null),
    opt("hr_scheduler", TEXT, Preset::Null),
    opt("hr_prompt", TEXT, Preset::Text("")),
    opt("hr_negative_prompt", TEXT, Preset::Text("")),
    opt("force_task_id", TEXT, Preset::Null),
    req("sampler_index", TEXT, Preset::Text("Euler")),
    opt("script_name", TEXT, Preset::Null),
    req("script_args", Kind::List, Preset::EmptyList),
    req("send_images", Kind::Bool, Preset::Bool(true)),
    req("save_images", Kind::Bool, Preset::Bool(false)),
    req("alwayson_scripts", Kind::Object, Preset::EmptyObject),
    opt("infotext", TEXT, Preset::Null),
];

/// `POST /sdapi/v1/img2img`
pub const IMG2IMG: Schema = &[
    opt("prompt", TEXT, Preset::Text("")),
    opt("negative_prompt", TEXT, Preset::Text("")),
    opt("styles", Kind::TextList, Preset::Null),
    opt("seed", INT, Preset::Int(-1)),
    opt("subseed", INT, Preset::Int(-1)),
    opt("subseed_strength", FLOAT, Preset::Int(0)),
    opt("seed_resize_from_h", INT, Preset::Int(-1)),
    opt("seed_resize_from_w", INT, Preset::Int(-1)),
    opt("sampler_name", TEXT, Preset::Null),
    opt("scheduler", TEXT, Preset::Null),
    opt("batch_size", INT, Preset::Int(1)),
    opt("n_iter", INT, Preset::Int(1)),
    opt("steps", INT, Preset::Int(50)),
    opt("cfg_scale", FLOAT, Preset::Float(7.0)),
    opt("width", INT, Preset::Int(512)),
    opt("height", INT, Preset::Int(512)),
    opt("restore_faces", Kind::Bool, Preset::Null),
    opt("tiling", Kind::Bool, Preset::Null),
    opt("do_not_save_samples", Kind::Bool, Preset::Bool(false)),
    opt("do_not_save_grid", Kind::Bool, Preset::Bool(false)),
    opt("eta", FLOAT, Preset::Null),
    req("denoising_strength", FLOAT, Preset::Float(0.75)),
    opt("s_min_uncond", FLOAT, Preset::Null),
    opt("s_churn", FLOAT, Preset::Null),
    opt("s_tmax", FLOAT, Preset::Null),
    opt("s_tmin", FLOAT, Preset::Null),
    opt("s_noise", FLOAT, Preset::Null),
    opt("override_settings", Kind::Object, Preset::Null),
    opt(
        "override_settings_restore_afterwards",
        Kind::Bool,
        Preset::Bool(true),
    ),
    opt("refiner_checkpoint", TEXT, Preset::Null),
    opt("refiner_switch_at", FLOAT, Preset::Null),
    opt("disable_extra_networks", Kind::Bool, Preset::Bool(false)),
    opt("firstpass_image", TEXT, Preset::Null),
    opt("comments", Kind::Object, Preset::Null),
    opt("init_images", Kind::List, Preset::Null),
    opt("resize_mode", INT, Preset::Int(0)),
    opt("image_cfg_scale", FLOAT, Preset::Null),
    opt("mask", TEXT, Preset::Null),
    opt("mask_blur_x", INT, Preset::Int(4)),
    opt("mask_blur_y", INT, Preset::Int(4)),
    opt("mask_blur", INT, Preset::Null),
    opt("mask_round", Kind::Bool, Preset::Bool(true)),
    opt("inpainting_fill", INT, Preset::Int(0)),
    opt("inpaint_full_res", Kind::Bool, Preset::Bool(true)),
    opt("inpaint_full_res_padding", INT, Preset::Int(0)),
    opt("inpainting_mask_invert", INT, Preset::Int(0)),
    opt("initial_noise_multiplier", FLOAT, Preset::Null),
    opt("latent_mask", TEXT, Preset::Null),
    opt("force_task_id", TEXT, Preset::Null),
    req("sampler_index", TEXT, Preset::Text("Euler")),
    req("include_init_images", Kind::Bool, Preset::Bool(false)),
    opt("script_name", TEXT, Preset::Null),
    req("script_args", Kind::List, Preset::EmptyList),
    req("send_images", Kind::Bool, Preset::Bool(true)),
    req("save_images", Kind::Bool, Preset::Bool(false)),
    req("alwayson_scripts", Kind::Object, Preset::EmptyObject),
    opt("infotext", TEXT, Preset::Null),
];

/// `POST /sdapi/v1/extra-single-image`
pub const EXTRAS_SINGLE: Schema = &[
    req("resize_mode", Kind::ZeroOrOne, Preset::Int(0)),
    req("show_extras_results", Kind::Bool, Preset::Bool(true)),
    req("gfpgan_visibility", UNIT, Preset::Int(0)),
    req("codeformer_visibility", UNIT, Preset::Int(0)),
    req("codeformer_weight", UNIT, Preset::Int(0)),
    req("upscaling_resize", POSITIVE, Preset::Int(2)),
    req("upscaling_resize_w", COUNT, Preset::Int(512)),
    req("upscaling_resize_h", COUNT, Preset::Int(512)),
    req("upscaling_crop", Kind::Bool, Preset::Bool(true)),
    req("upscaler_1", TEXT, Preset::Text("None")),
    req("upscaler_2", TEXT, Preset::Text("None")),
    req("extras_upscaler_2_visibility", UNIT, Preset::Int(0)),
    req("upscale_first", Kind::Bool, Preset::Bool(false)),
    req("image", TEXT, Preset::Text("")),
];

/// `POST /sdapi/v1/extra-batch-images`
pub const EXTRAS_BATCH: Schema = &[
    req("resize_mode", Kind::ZeroOrOne, Preset::Int(0)),
    req("show_extras_results", Kind::Bool, Preset::Bool(true)),
    req("gfpgan_visibility", UNIT, Preset::Int(0)),
    req("codeformer_visibility", UNIT, Preset::Int(0)),
    req("codeformer_weight", UNIT, Preset::Int(0)),
    req("upscaling_resize", POSITIVE, Preset::Int(2)),
    req("upscaling_resize_w", COUNT, Preset::Int(512)),
    req("upscaling_resize_h", COUNT, Preset::Int(512)),
    req("upscaling_crop", Kind::Bool, Preset::Bool(true)),
    req("upscaler_1", TEXT, Preset::Text("None")),
    req("upscaler_2", TEXT, Preset::Text("None")),
    req("extras_upscaler_2_visibility", UNIT, Preset::Int(0)),
    req("upscale_first", Kind::Bool, Preset::Bool(false)),
    req("imageList", Kind::FileList, Preset::Required),
];

/// `POST /sdapi/v1/png-info`
pub const PNG_INFO: Schema = &[req("image", TEXT, Preset::Required)];

/// `POST /sdapi/v1/interrogate`
pub const INTERROGATE: Schema = &[
    req("image", TEXT, Preset::Text("")),
    req("model", TEXT, Preset::Text("clip")),
];

/// `POST /internal/progress`
pub const INTERNAL_PROGRESS: Schema = &[
    opt("id_task", TEXT, Preset::Null),
    req("id_live_preview", INT, Preset::Int(-1)),
    req("live_preview", Kind::Bool, Preset::Bool(true)),
];
