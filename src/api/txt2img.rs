//! From the fields of `POST /sdapi/v1/txt2img` to pipeline parameters.

use serde_json::Value;

use super::infotext_field::{Target, apply_infotext};
use super::resolve::{CommonPart, read_common};
use super::{ApiError, Body, ResolveContext, Resolved};
use crate::pipeline::HiresParams;
use crate::scripts::Tab;

/// Resolves a request; every check that A1111 makes before it queues the job.
///
/// # Errors
/// A1111's answer to an unknown script or an unusable value.
pub fn resolve_txt2img(mut body: Body, context: &ResolveContext<'_>) -> Result<Resolved, ApiError> {
    apply_infotext(&mut body, context, Target::Txt2Img)?;
    let CommonPart {
        script,
        mut params,
        ignored_overrides,
        ..
    } = read_common(Tab::Txt2Img, &mut body, context)?;
    if body.bool("enable_hr") {
        params.hires = Some(hires(&body));
    }
    // A1111 looks an infotext's scheduler up before it echoes it, and finds none of this name.
    if body.text("hr_scheduler") == Some(SAME_SCHEDULER) && !body.sent("hr_scheduler") {
        body.set("hr_scheduler", Value::from("Automatic"));
    }
    Ok(Resolved {
        params,
        script,
        body,
        ignored_overrides,
        init_images: Vec::new(),
        mask: None,
    })
}

const SAME_SCHEDULER: &str = "Use same scheduler";

fn hires(body: &Body) -> HiresParams {
    let size = |name: &str| body.int(name).unwrap_or(0).max(0) as usize;
    HiresParams {
        first_phase: (size("firstphase_width"), size("firstphase_height")),
        scale: body.float("hr_scale").unwrap_or(2.0),
        upscaler: body.text("hr_upscaler").map(str::to_owned),
        second_pass_steps: size("hr_second_pass_steps"),
        resize_x: size("hr_resize_x"),
        resize_y: size("hr_resize_y"),
        checkpoint: body
            .nonempty_text("hr_checkpoint_name")
            .filter(|name| *name != "Use same checkpoint")
            .map(str::to_owned),
        sampler: body
            .nonempty_text("hr_sampler_name")
            .filter(|name| *name != "Use same sampler")
            .map(str::to_owned),
        scheduler: body
            .nonempty_text("hr_scheduler")
            .filter(|name| *name != SAME_SCHEDULER)
            .map(str::to_owned),
        prompt: body.text("hr_prompt").unwrap_or("").to_owned(),
        negative_prompt: body.text("hr_negative_prompt").unwrap_or("").to_owned(),
    }
}
