//! What a job asks for and no picture can be made with, and what would change the picture in A1111
//! and is not carried out here: refused with a sentence, never ignored (docs/UNSUPPORTED.md).

use crate::config::Options;
use crate::sampling;

use super::{Family, GenerateError, GenerationParams};

/// Checks a job before anything is loaded.
///
/// # Errors
/// [`GenerateError::InvalidValue`] and [`GenerateError::Unsupported`].
pub(super) fn check(params: &GenerationParams) -> Result<(), GenerateError> {
    let invalid = |what: &str| Err(GenerateError::InvalidValue(what.to_owned()));
    if params.step_count == 0 {
        return invalid("steps must be at least 1");
    }
    if params.batch_size == 0 {
        return invalid("batch_size must be at least 1");
    }
    if params.hires.is_some() && params.denoising_strength.is_none() {
        return invalid("hires fix needs denoising_strength");
    }
    match unsupported(params) {
        Some(what) => Err(GenerateError::Unsupported(what.to_owned())),
        None => Ok(()),
    }
}

/// Checks what only the family of the checkpoint decides.
///
/// # Errors
/// [`GenerateError::Unsupported`].
pub(super) fn check_family(options: &Options, family: Family) -> Result<(), GenerateError> {
    let is_xl = matches!(family, Family::Sdxl | Family::SdxlRefiner);
    match options.text("fp8_storage") {
        "Enable" => {}
        "Enable for SDXL" if is_xl => {}
        _ => return Ok(()),
    }
    Err(GenerateError::Unsupported(
        "weights are never rounded to 8 bits: set fp8_storage to Disable".to_owned(),
    ))
}

fn unsupported(params: &GenerationParams) -> Option<&'static str> {
    let options = &params.options;
    // Without hires fix there is no second pass for the third option to act in.
    let second = params.hires.is_some() && options.bool("hypertile_enable_unet_secondpass");
    if options.bool("hypertile_enable_unet") || options.bool("hypertile_enable_vae") || second {
        return Some(
            "hypertile is not supported: set hypertile_enable_unet, hypertile_enable_unet_secondpass and hypertile_enable_vae to false",
        );
    }
    if options.bool("use_old_emphasis_implementation") {
        return Some(
            "emphasis as before 2023 is not supported: set use_old_emphasis_implementation to false",
        );
    }
    if options.bool("no_dpmpp_sde_batch_determinism") && takes_brownian_noise(params) {
        return Some(
            "Brownian noise without seeds is not supported: set no_dpmpp_sde_batch_determinism to false",
        );
    }
    if options.text("sd_vae_decode_method") == "TAESD" {
        return Some("TAESD is not supported: set sd_vae_decode_method to Full");
    }
    if encodes_pictures(params) && options.text("sd_vae_encode_method") == "TAESD" {
        return Some("TAESD is not supported: set sd_vae_encode_method to Full");
    }
    None
}

fn takes_brownian_noise(params: &GenerationParams) -> bool {
    let hires = params
        .hires
        .as_ref()
        .and_then(|hires| hires.sampler.as_deref());
    std::iter::once(params.sampler.as_str())
        .chain(hires)
        .filter_map(sampling::find_sampler)
        .any(|sampler| sampler.brownian)
}

/// Whether the VAE's encoder may run.
fn encodes_pictures(params: &GenerationParams) -> bool {
    params.img2img.is_some() || params.hires.is_some()
}
