//! Face restoration: finds the faces of a picture, lays each on a template, has a network draw it anew and
//! pastes it back.
//!
//! Follows facexlib 0.3.0's `FaceRestoreHelper` as A1111 uses it: detection on a copy whose shorter side has
//! 640 pixels, five landmarks, faces whose eyes are 5 pixels apart or more, ParseNet's soft mask.

use std::sync::Arc;

use image::{GrayImage, Rgb, RgbImage};
use ndarray::Array2;

use crate::imaging::{Affine, face_mask, resize_lanczos4, similarity, warp_mask, warp_picture};

use super::generate::Job;
use super::job_text::JobText;
use super::{Cause, GenerateError};

/// A face restoration model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaceModel {
    Gfpgan,
    CodeFormer,
}

impl FaceModel {
    /// In the order of `GET /sdapi/v1/face-restorers`.
    pub const ALL: [Self; 2] = [Self::CodeFormer, Self::Gfpgan];

    /// A1111's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Gfpgan => "GFPGAN",
            Self::CodeFormer => "CodeFormer",
        }
    }

    /// The model that the option `face_restoration_model` names: the first one where it says nothing, none
    /// where it is no model's name.
    #[must_use]
    pub fn from_option(name: &str) -> Option<Self> {
        if name.is_empty() {
            return Some(Self::ALL[0]);
        }
        Self::ALL.into_iter().find(|model| model.name() == name)
    }
}

/// Left eye, right eye, nose, left and right corner of the mouth as the viewer sees them: x and y in pixels.
pub type Landmarks = [[f32; 2]; 5];

/// The networks of one face restoration model, loaded.
pub trait FaceNetworks: Send + Sync {
    /// The faces of a picture, the surest first.
    ///
    /// # Errors
    /// When the graph fails or was terminated.
    fn find_faces(&self, picture: &RgbImage) -> Result<Vec<Landmarks>, Cause>;

    /// Draws a face of [`FACE_SIDE_PX`] by [`FACE_SIDE_PX`] pixels anew; `fidelity` (0 to 1) is CodeFormer's weight, which
    /// GFPGAN does not have.
    ///
    /// # Errors
    /// When the graph fails or was terminated.
    fn redraw(&self, face: &RgbImage, fidelity: f64) -> Result<RgbImage, Cause>;

    /// ParseNet's class of every pixel of such a face.
    ///
    /// # Errors
    /// When the graph fails or was terminated.
    fn parse(&self, face: &RgbImage) -> Result<GrayImage, Cause>;
}

/// Whoever loads face networks and keeps them.
pub trait FaceNetworkProvider: Send + Sync {
    /// The networks of a model.
    ///
    /// # Errors
    /// When a file is missing or cannot be loaded; the text says which.
    fn load(&self, model: FaceModel) -> Result<Arc<dyn FaceNetworks>, Cause>;
}

/// A server without the files of face restoration.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoFaceNetworks;

impl FaceNetworkProvider for NoFaceNetworks {
    fn load(&self, model: FaceModel) -> Result<Arc<dyn FaceNetworks>, Cause> {
        Err(format!("{} has no model files here", model.name()).into())
    }
}

/// Sides of a face on the template.
pub const FACE_SIDE_PX: u32 = 512;
/// The shorter side of the copy that faces are looked for in.
const DETECTION_SIDE_PX: f64 = 640.0;
/// Eyes nearer than this belong to no face worth restoring.
const LEAST_EYE_DISTANCE_PX: f32 = 5.0;
/// Where FFHQ's faces have their landmarks.
const TEMPLATE: Landmarks = [
    [192.98138, 239.94708],
    [318.90277, 240.1936],
    [256.63416, 314.01935],
    [201.26117, 371.41043],
    [313.08905, 371.15118],
];
/// What a face sees beyond the picture's edge.
const OUTSIDE: Rgb<u8> = Rgb([132, 133, 135]);

/// The picture with its faces restored. A model whose files are missing or unusable leaves it as it is and
/// says why in `comments`, as A1111 does.
///
/// # Errors
/// When a graph fails.
pub fn restore_faces(
    picture: &RgbImage,
    model: FaceModel,
    fidelity: f64,
    provider: &dyn FaceNetworkProvider,
    comments: &mut Vec<String>,
) -> Result<RgbImage, GenerateError> {
    match provider.load(model) {
        Ok(networks) => {
            restored(picture, networks.as_ref(), fidelity).map_err(|source| GenerateError::Graph {
                graph: model.name(),
                source,
            })
        }
        Err(reason) => {
            let comment = format!("Unable to load {}: {reason}", model.name());
            if !comments.contains(&comment) {
                comments.push(comment);
            }
            Ok(picture.clone())
        }
    }
}

impl Job<'_> {
    /// A picture of the job with its faces restored, if the job asks for that; `index` is its number.
    pub(super) fn with_restored_faces(
        &mut self,
        text: &JobText<'_>,
        index: usize,
        picture: RgbImage,
    ) -> Result<RgbImage, GenerateError> {
        let params = self.params;
        if !params.restore_faces {
            return Ok(picture);
        }
        if params.options.bool("save_images_before_face_restoration") {
            let infotext = self.write_text(text, index);
            let before = picture.clone().into();
            self.save_sample(text, index, &before, &infotext, "-before-face-restoration")?;
        }
        let name = params.options.text("face_restoration_model");
        let Some(model) = FaceModel::from_option(name) else {
            return Ok(picture);
        };
        let fidelity = params.options.f64("code_former_weight");
        let provider = self.models.faces();
        restore_faces(&picture, model, fidelity, provider, &mut self.comments)
    }
}

/// A face on the template, drawn anew.
struct RestoredFace {
    picture: RgbImage,
    /// From the template to the picture.
    way_back: Affine,
}

fn restored(
    picture: &RgbImage,
    networks: &dyn FaceNetworks,
    fidelity: f64,
) -> Result<RgbImage, Cause> {
    let mut faces = Vec::new();
    for landmarks in landmarks(picture, networks)? {
        let Some(map) = similarity(&landmarks, &TEMPLATE) else {
            continue;
        };
        let sides = (FACE_SIDE_PX, FACE_SIDE_PX);
        let face = warp_picture(picture, map, sides, OUTSIDE);
        faces.push(RestoredFace {
            picture: networks.redraw(&face, fidelity)?,
            way_back: map.inverse(),
        });
    }
    paste(picture, &faces, networks)
}

/// The landmarks of the faces worth restoring, on the picture itself.
fn landmarks(picture: &RgbImage, networks: &dyn FaceNetworks) -> Result<Vec<Landmarks>, Cause> {
    let (width, height) = picture.dimensions();
    let scale = f64::from(width.min(height)) / DETECTION_SIDE_PX;
    if scale == 0.0 {
        return Ok(Vec::new());
    }
    let side = |side: u32| (f64::from(side) / scale) as u32;
    let copy = resize_lanczos4(picture, (side(width), side(height)));
    let mut faces = networks.find_faces(&copy)?;
    for point in faces.iter_mut().flatten() {
        *point = point.map(|at| at * scale as f32);
    }
    faces.retain(|[left, right, ..]| {
        let (across, down) = (left[0] - right[0], left[1] - right[1]);
        (across * across + down * down).sqrt() >= LEAST_EYE_DISTANCE_PX
    });
    Ok(faces)
}

/// Lays the faces over the picture in double precision and cuts the levels at the end.
fn paste(
    picture: &RgbImage,
    faces: &[RestoredFace],
    networks: &dyn FaceNetworks,
) -> Result<RgbImage, Cause> {
    let sides = picture.dimensions();
    let mut levels: Vec<f64> = picture.as_raw().iter().copied().map(f64::from).collect();
    for face in faces {
        let mask: Array2<f64> = face_mask(&networks.parse(&face.picture)?);
        let mask = warp_mask(&mask, face.way_back, sides);
        let black = Rgb([0, 0, 0]);
        let over = warp_picture(&face.picture, face.way_back, sides, black);
        for ((pixel, over), &share) in levels.chunks_exact_mut(3).zip(over.pixels()).zip(&mask) {
            for (level, &over) in pixel.iter_mut().zip(&over.0) {
                *level = share * f64::from(over) + (1.0 - share) * *level;
            }
        }
    }
    let mut pasted = picture.clone();
    for (level, value) in pasted.iter_mut().zip(levels) {
        *level = value as u8;
    }
    Ok(pasted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_have_exact_names() {
        assert_eq!(FaceModel::from_option("GFPGAN"), Some(FaceModel::Gfpgan));
        assert_eq!(FaceModel::from_option(""), Some(FaceModel::CodeFormer));
        assert_eq!(FaceModel::from_option("codeformer"), None);
    }

    #[test]
    fn without_files_the_picture_stays_and_the_reason_is_told_once() {
        let picture = RgbImage::from_pixel(8, 8, Rgb([1, 2, 3]));
        let mut comments = Vec::new();
        for _ in 0..2 {
            let model = FaceModel::Gfpgan;
            let same = restore_faces(&picture, model, 0.5, &NoFaceNetworks, &mut comments);
            assert_eq!(same.unwrap(), picture);
        }
        assert_eq!(
            comments,
            ["Unable to load GFPGAN: GFPGAN has no model files here"]
        );
    }
}
