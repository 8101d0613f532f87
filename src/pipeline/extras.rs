//! Extras: upscaling and face restoration of finished pictures, A1111's `extra-single-image` and
//! `extra-batch-images`.
//!
//! Follows the order Upscale, GFPGAN, CodeFormer unless the options say otherwise. The request's
//! `upscale_first` has no effect in A1111 v1.10.1 and has no place here.

use image::{DynamicImage, RgbImage};

use crate::imaging::{Decoded, blend, paste, to_rgb, upscale, upscaled_side};

use super::faces::restore_faces;
use super::{
    FaceModel, FaceNetworkProvider, FoundUpscaler, GenerateError, JobControl, Tiling,
    UpscalerProvider,
};

/// The wanted size.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ExtrasSize {
    /// Both sides times a factor.
    By(f64),
    /// Cover a size; with `crop` cut to exactly it.
    To {
        width_px: u32,
        height_px: u32,
        crop: bool,
    },
}

/// One step of the work on a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtrasStage {
    Upscale,
    Gfpgan,
    CodeFormer,
}

impl ExtrasStage {
    const DEFAULT_ORDER: [Self; 3] = [Self::Upscale, Self::Gfpgan, Self::CodeFormer];

    fn name(self) -> &'static str {
        match self {
            Self::Upscale => "Upscale",
            Self::Gfpgan => "GFPGAN",
            Self::CodeFormer => "CodeFormer",
        }
    }

    /// The stages in the order of the option `postprocessing_operation_order` (those it does not name
    /// come after, in their own order), without those of `postprocessing_disable_in_extras`.
    #[must_use]
    pub fn from_options(operation_order: &[String], disabled: &[String]) -> Vec<Self> {
        let mut stages: Vec<Self> = Self::DEFAULT_ORDER.to_vec();
        stages.retain(|stage| !disabled.iter().any(|name| name == stage.name()));
        let place = |stage: &Self| {
            let named = operation_order.iter().position(|name| name == stage.name());
            named.unwrap_or(usize::MAX)
        };
        stages.sort_by_key(place);
        stages
    }
}

/// Everything one extras job needs.
#[derive(Debug, Clone)]
pub struct ExtrasParams {
    pub images: Vec<Decoded>,
    pub size: ExtrasSize,
    pub upscaler_1: String,
    pub upscaler_2: String,
    /// 0 to 1.
    pub upscaler_2_visibility: f64,
    /// 0 to 1.
    pub gfpgan_visibility: f64,
    /// 0 to 1.
    pub codeformer_visibility: f64,
    pub codeformer_weight: f64,
    pub stages: Vec<ExtrasStage>,
    pub tiling: Tiling,
}

/// One finished picture.
#[derive(Debug, Clone)]
pub struct ExtrasImage {
    /// RGB or RGBA.
    pub image: DynamicImage,
    /// The text chunks that go with it: the source's own, then `postprocessing`. The option
    /// `enable_pnginfo` off means to leave them out.
    pub texts: Vec<(String, String)>,
}

/// The outcome of an extras job.
#[derive(Debug, Clone, Default)]
pub struct ExtrasResult {
    pub images: Vec<ExtrasImage>,
    /// What was done to the last picture, `key: value, …`.
    pub infotext: String,
    /// Warnings for the log.
    pub comments: Vec<String>,
}

/// Carries out an extras job. An interrupted one ends with the pictures it has.
///
/// # Errors
/// Unknown upscalers, sides that become zero, and failing networks.
pub fn extras(
    params: &ExtrasParams,
    upscalers: &dyn UpscalerProvider,
    faces: &dyn FaceNetworkProvider,
    control: &dyn JobControl,
) -> Result<ExtrasResult, GenerateError> {
    let mut result = ExtrasResult::default();
    for source in &params.images {
        if control.interrupted() {
            break;
        }
        let mut work = Work {
            picture: match &source.picture {
                rgba @ DynamicImage::ImageRgba8(_) => rgba.clone(),
                other => DynamicImage::ImageRgb8(to_rgb(other)),
            },
            info: Vec::new(),
        };
        for stage in &params.stages {
            control.set_job(stage.name());
            match stage {
                ExtrasStage::Upscale => work.upscale(params, upscalers)?,
                ExtrasStage::Gfpgan => {
                    let share = params.gfpgan_visibility;
                    work.restore(
                        FaceModel::Gfpgan,
                        share,
                        params,
                        faces,
                        &mut result.comments,
                    )?;
                }
                ExtrasStage::CodeFormer => {
                    let share = params.codeformer_visibility;
                    work.restore(
                        FaceModel::CodeFormer,
                        share,
                        params,
                        faces,
                        &mut result.comments,
                    )?;
                }
            }
        }
        result.infotext = infotext(&work.info);
        let mut texts = source.metadata.texts();
        texts.retain(|(keyword, _)| keyword != "postprocessing");
        texts.push(("postprocessing".to_owned(), result.infotext.clone()));
        result.images.push(ExtrasImage {
            image: work.picture,
            texts,
        });
    }
    Ok(result)
}

/// A picture on its way and what was done to it.
struct Work {
    picture: DynamicImage,
    info: Vec<(&'static str, String)>,
}

impl Work {
    fn upscale(
        &mut self,
        params: &ExtrasParams,
        upscalers: &dyn UpscalerProvider,
    ) -> Result<(), GenerateError> {
        let first = FoundUpscaler::find(&params.upscaler_1, upscalers)?;
        if matches!(first, FoundUpscaler::None) {
            return Ok(());
        }
        let second = match params.upscaler_2.as_str() {
            "None" | "" => None,
            name => Some(FoundUpscaler::find(name, upscalers)?),
        };
        let share = params.upscaler_2_visibility;
        let source = &self.picture;
        let mut larger = enlarged(source, &first, params, &mut self.info)?;
        self.info
            .push(("Postprocess upscaler", params.upscaler_1.clone()));
        if let Some(second) = second.filter(|_| share > 0.0) {
            let other = enlarged(source, &second, params, &mut Vec::new())?;
            larger = blend(&larger, &other, share);
            self.info
                .push(("Postprocess upscaler 2", params.upscaler_2.clone()));
        }
        self.picture = larger;
        Ok(())
    }

    fn restore(
        &mut self,
        model: FaceModel,
        visibility: f64,
        params: &ExtrasParams,
        faces: &dyn FaceNetworkProvider,
        comments: &mut Vec<String>,
    ) -> Result<(), GenerateError> {
        if visibility <= 0.0 {
            return Ok(());
        }
        let source = to_rgb(&self.picture);
        let weight = params.codeformer_weight;
        let restored = restore_faces(&source, model, weight, faces, comments)?;
        let restored = DynamicImage::ImageRgb8(restored);
        self.picture = if visibility < 1.0 {
            blend(&source.into(), &restored, visibility)
        } else {
            restored
        };
        let visibility_key = match model {
            FaceModel::Gfpgan => "GFPGAN visibility",
            FaceModel::CodeFormer => "CodeFormer visibility",
        };
        self.info.push((visibility_key, thousandths(visibility)));
        if model == FaceModel::CodeFormer {
            self.info.push(("CodeFormer weight", thousandths(weight)));
        }
        Ok(())
    }
}

/// One upscaler's picture at the wanted size; `info` gets what A1111 says about the size.
fn enlarged(
    picture: &DynamicImage,
    upscaler: &FoundUpscaler,
    params: &ExtrasParams,
    info: &mut Vec<(&'static str, String)>,
) -> Result<DynamicImage, GenerateError> {
    let factor = match params.size {
        ExtrasSize::By(factor) => {
            info.push(("Postprocess upscale by", format!("{factor:?}")));
            factor
        }
        ExtrasSize::To {
            width_px,
            height_px,
            crop,
        } => {
            let size = format!("{width_px}x{height_px}");
            info.push(("Postprocess upscale to", size.clone()));
            if crop {
                info.push(("Postprocess crop to", size));
            }
            let across = f64::from(width_px) / f64::from(picture.width());
            across.max(f64::from(height_px) / f64::from(picture.height()))
        }
    };
    let sides = [picture.width(), picture.height()];
    if sides.iter().any(|&side| upscaled_side(side, factor) == 0) {
        return Err(GenerateError::InvalidValue(
            "height and width must be > 0".to_owned(),
        ));
    }
    let larger = upscaler
        .lend(params.tiling, |upscaler| upscale(picture, factor, upscaler))
        .map_err(|source| GenerateError::Graph {
            graph: "upscaler",
            source,
        })?;
    let ExtrasSize::To {
        width_px,
        height_px,
        crop: true,
    } = params.size
    else {
        return Ok(larger);
    };
    let mut canvas = RgbImage::new(width_px, height_px);
    let left = i64::from(width_px / 2) - i64::from(larger.width() / 2);
    let top = i64::from(height_px / 2) - i64::from(larger.height() / 2);
    paste(&mut canvas, &to_rgb(&larger), left, top);
    Ok(canvas.into())
}

/// Python's `round(value, 3)` as text.
fn thousandths(value: f64) -> String {
    let rounded: f64 = format!("{value:.3}").parse().unwrap_or(value);
    format!("{rounded:?}")
}

fn infotext(info: &[(&str, String)]) -> String {
    let pairs = info.iter().map(|(key, value)| {
        if value.contains([',', '\n', ':']) {
            format!("{key}: {}", serde_json::Value::from(value.as_str()))
        } else {
            format!("{key}: {value}")
        }
    });
    pairs.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::ExtrasStage::{CodeFormer, Gfpgan, Upscale};
    use super::*;
    use crate::imaging::{decode, encode_png};
    use crate::pipeline::{BuiltInUpscalers, NoFaceNetworks, Unattended};

    fn read(path: &str) -> Vec<u8> {
        let root = env!("CARGO_MANIFEST_DIR");
        fs_err::read(format!("{root}/compat-tests/golden/{path}")).expect("a recorded file")
    }

    fn picture_at(reference: &Value) -> Decoded {
        let path = reference.as_str().unwrap().strip_prefix("@file:").unwrap();
        decode(&read(path)).unwrap()
    }

    fn params_of(request: &Value) -> ExtrasParams {
        let number = |key: &str, default: f64| request[key].as_f64().unwrap_or(default);
        let text = |key: &str| request[key].as_str().unwrap_or("None").to_owned();
        let images = match request["imageList"].as_array() {
            Some(list) => list
                .iter()
                .map(|entry| picture_at(&entry["data"]))
                .collect(),
            None => vec![picture_at(&request["image"])],
        };
        let size = if number("resize_mode", 0.0) > 0.0 {
            ExtrasSize::To {
                width_px: number("upscaling_resize_w", 512.0) as u32,
                height_px: number("upscaling_resize_h", 512.0) as u32,
                crop: request["upscaling_crop"].as_bool().unwrap_or(true),
            }
        } else {
            ExtrasSize::By(number("upscaling_resize", 2.0))
        };
        ExtrasParams {
            images,
            size,
            upscaler_1: text("upscaler_1"),
            upscaler_2: text("upscaler_2"),
            upscaler_2_visibility: number("extras_upscaler_2_visibility", 0.0),
            gfpgan_visibility: 0.0,
            codeformer_visibility: 0.0,
            codeformer_weight: 0.0,
            stages: ExtrasStage::from_options(&[], &[]),
            tiling: Tiling {
                tile_px: 192,
                overlap_px: 8,
            },
        }
    }

    #[test]
    fn the_recorded_answers_are_met_to_the_byte() {
        let names = [
            "batch",
            "single-blend",
            "single-default",
            "single-lanczos-2x",
            "single-nearest-2x",
            "single-none",
            "single-rgba",
            "single-size-crop",
        ];
        for name in names {
            let case = read(&format!("cases/extra-{name}.json"));
            let case: Value = serde_json::from_slice(&case).unwrap();
            let params = params_of(&case["request"]);
            let result = extras(&params, &BuiltInUpscalers, &NoFaceNetworks, &Unattended).unwrap();
            let response = &case["response"];
            assert_eq!(
                response["html_info"],
                format!("<p>{}</p>", result.infotext),
                "{name}"
            );
            let want: Vec<Decoded> = match response["images"].as_array() {
                Some(list) => list.iter().map(picture_at).collect(),
                None => vec![picture_at(&response["image"])],
            };
            assert_eq!(want.len(), result.images.len(), "{name}");
            for (want, got) in want.iter().zip(&result.images) {
                assert_eq!(want.metadata.texts(), got.texts, "{name}");
                assert!(want.picture == got.image, "{name}: other pixels");
            }
        }
    }

    #[test]
    fn an_unknown_upscaler_is_named() {
        let case: Value =
            serde_json::from_slice(&read("cases/extra-single-unknown-upscaler.json")).unwrap();
        let params = params_of(&case["request"]);
        let error = extras(&params, &BuiltInUpscalers, &NoFaceNetworks, &Unattended).unwrap_err();
        assert_eq!(case["response"]["errors"], error.to_string());
    }

    #[test]
    fn the_sources_own_texts_are_kept() {
        let picture = DynamicImage::new_rgb8(8, 8);
        let texts = [
            ("Software", "x"),
            ("parameters", "a cube"),
            ("postprocessing", "old"),
        ];
        let source = decode(&encode_png(&picture, &texts).unwrap()).unwrap();
        let mut params = params_of(&serde_json::json!({"image": "@file:inputs/b_96x96.png"}));
        params.images = vec![source];
        let result = extras(&params, &BuiltInUpscalers, &NoFaceNetworks, &Unattended).unwrap();
        let keys: Vec<&str> = result.images[0]
            .texts
            .iter()
            .map(|(k, _)| k.as_str())
            .collect();
        assert_eq!(keys, ["Software", "parameters", "postprocessing"]);
        assert_eq!(result.images[0].texts[2].1, "");
    }

    #[test]
    fn face_restoration_without_models_says_so() {
        let mut params = params_of(&serde_json::json!({"image": "@file:inputs/b_96x96.png"}));
        params.codeformer_visibility = 0.5;
        params.codeformer_weight = 0.25;
        let result = extras(&params, &BuiltInUpscalers, &NoFaceNetworks, &Unattended).unwrap();
        assert_eq!(
            result.infotext,
            "CodeFormer visibility: 0.5, CodeFormer weight: 0.25"
        );
        assert_eq!(result.comments.len(), 1);
        assert!(result.images[0].image == params.images[0].picture);
    }

    #[test]
    fn stages_follow_the_options() {
        let names = |list: &[&str]| list.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let order = ExtrasStage::from_options(&names(&["CodeFormer"]), &[]);
        assert_eq!(order, [CodeFormer, Upscale, Gfpgan]);
        let order = ExtrasStage::from_options(&[], &names(&["GFPGAN"]));
        assert_eq!(order, [Upscale, CodeFormer]);
    }
}
