//! Face restoration networks behind `pipeline`'s traits: finds their files, builds their graphs, and keeps what
//! was loaded.

mod detection;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use image::{GrayImage, Luma, RgbImage};
use ndarray::{Array1, Array4, ArrayD, Axis, Ix3, Ix4};

pub use detection::{DetectedFace, detected_faces};

use super::checkpoint::{LoadError, load_built, open_weights};
use super::file_cache::FileCache;
use super::graphs::{
    BuildError, BuiltGraph, FaceShape, Weights, codeformer, gfpgan, parsenet, retinaface,
};
use crate::catalogue::{FaceFile, FaceFiles};
use crate::imaging::tensor_to_picture;
use crate::pipeline::{
    Cause, FACE_SIDE_PX, FaceModel, FaceNetworkProvider, FaceNetworks, Landmarks,
};
use crate::runtime::{Graph, Runtime};

/// Faces that the detector is less sure of are left alone.
const LEAST_SCORE: f32 = 0.97;
/// What was taken from blue, green and red when the detector was trained.
const TRAINING_MEAN: [f32; 3] = [104.0, 117.0, 123.0];

/// The [`FaceNetworkProvider`] of the server.
pub struct FaceRestorers {
    runtime: Runtime,
    files: FaceFiles,
    loaded: FileCache<Graph>,
}

impl FaceRestorers {
    #[must_use]
    pub fn new(runtime: Runtime, files: FaceFiles) -> Self {
        Self {
            runtime,
            files,
            loaded: FileCache::new(usize::MAX),
        }
    }

    /// Forgets the loaded networks; jobs that run keep theirs.
    pub fn unload_all(&self) {
        self.loaded.clear();
    }

    fn graph(&self, file: FaceFile) -> Result<Arc<Graph>, Cause> {
        let path = self.files.find(file).ok_or_else(|| {
            let name = file.published_name();
            let folder = match file {
                FaceFile::CodeFormer => "models/Codeformer",
                FaceFile::Gfpgan | FaceFile::Detector | FaceFile::Parser => "models/GFPGAN",
            };
            format!("the file {name} is not in {folder}")
        })?;
        Ok(self.loaded.get_or_load(&path, || {
            let begin = Instant::now();
            let graph = load(&self.runtime, file, &path)?;
            tracing::info!(
                path = %path.display(),
                elapsed_ms = begin.elapsed().as_millis() as u64,
                "face network loaded"
            );
            Ok::<_, LoadError>(graph)
        })?)
    }
}

impl FaceNetworkProvider for FaceRestorers {
    fn load(&self, model: FaceModel) -> Result<Arc<dyn FaceNetworks>, Cause> {
        let restorer = self.graph(match model {
            FaceModel::CodeFormer => FaceFile::CodeFormer,
            FaceModel::Gfpgan => FaceFile::Gfpgan,
        })?;
        Ok(Arc::new(GraphFaceNetworks {
            takes_fidelity: restorer.input("fidelity").is_some(),
            restorer,
            detector: self.graph(FaceFile::Detector)?,
            parser: self.graph(FaceFile::Parser)?,
        }))
    }
}

/// Builds and loads the network of a file.
fn load(runtime: &Runtime, file: FaceFile, path: &Path) -> Result<Arc<Graph>, LoadError> {
    let stored = Arc::new(open_weights(path)?);
    // Files of networks that were trained on several cards have this before every name.
    let parallel = stored.names().all(|name| name.starts_with("module."));
    let weights = Weights::new(stored, if parallel { "module." } else { "" });
    let built = build(file, &weights).map_err(|error| LoadError::Unusable {
        path: path.display().to_string(),
        reason: error.to_string(),
    })?;
    Ok(load_built(
        runtime,
        file.published_name(),
        &built,
        &weights,
    )?)
}

fn build(file: FaceFile, weights: &Weights) -> Result<BuiltGraph, BuildError> {
    match file {
        FaceFile::Detector => retinaface(weights),
        FaceFile::Parser => parsenet(weights),
        FaceFile::Gfpgan => gfpgan(weights).and_then(of_template_size),
        FaceFile::CodeFormer => codeformer(weights).and_then(of_template_size),
    }
}

/// A network for faces as they lie on the template.
fn of_template_size((built, shape): (BuiltGraph, FaceShape)) -> Result<BuiltGraph, BuildError> {
    let side = shape.side_px;
    if side == FACE_SIDE_PX as usize {
        return Ok(built);
    }
    Err(BuildError::Unsupported {
        part: "face network",
        reason: format!("it takes faces of {side} pixels, not {FACE_SIDE_PX}"),
    })
}

/// The networks of one restoration model.
struct GraphFaceNetworks {
    restorer: Arc<Graph>,
    takes_fidelity: bool,
    detector: Arc<Graph>,
    parser: Arc<Graph>,
}

impl FaceNetworks for GraphFaceNetworks {
    fn find_faces(&self, picture: &RgbImage) -> Result<Vec<Landmarks>, Cause> {
        let faces = find_faces(&self.detector, picture, LEAST_SCORE)?;
        Ok(faces.iter().map(|face| face.landmarks).collect())
    }

    fn redraw(&self, face: &RgbImage, fidelity: f64) -> Result<RgbImage, Cause> {
        // A1111 divides in f64 and then casts.
        let pixels = planes(face, |level| (f64::from(level) / 255.0) as f32);
        let fidelity = Array1::from_elem(1, fidelity as f32);
        let mut inputs = vec![("face", (&pixels).into())];
        if self.takes_fidelity {
            inputs.push(("fidelity", (&fidelity).into()));
        }
        let answer = first(self.restorer.run(&inputs, &["restored"])?)?;
        let restored = answer.into_dimensionality::<Ix4>()?;
        if restored.dim() != pixels.dim() {
            return Err("the restored face has another size".into());
        }
        Ok(tensor_to_picture(restored.index_axis(Axis(0), 0)))
    }

    fn parse(&self, face: &RgbImage) -> Result<GrayImage, Cause> {
        let pixels = planes(face, |level| level / 255.0);
        let answer = first(
            self.parser
                .run(&[("face", (&pixels).into())], &["classes"])?,
        )?;
        let classes = answer.into_dimensionality::<Ix3>()?;
        if classes.dim() != (1, face.height() as usize, face.width() as usize) {
            return Err("the parsed face has another size".into());
        }
        Ok(GrayImage::from_fn(face.width(), face.height(), |x, y| {
            Luma([classes[[0, y as usize, x as usize]] as u8])
        }))
    }
}

/// The faces that a detector's graph finds with a score above `least_score`.
///
/// # Errors
/// When the graph fails or answers for another size.
pub fn find_faces(
    detector: &Graph,
    picture: &RgbImage,
    least_score: f32,
) -> Result<Vec<DetectedFace>, Cause> {
    let (width, height) = picture.dimensions();
    let (columns, rows) = (width as usize, height as usize);
    let pixels = Array4::from_shape_fn((1, 3, rows, columns), |(_, plane, y, x)| {
        let level = picture.get_pixel(x as u32, y as u32)[2 - plane];
        f32::from(level) - TRAINING_MEAN[plane]
    });
    let wanted = ["boxes", "scores", "landmarks"];
    let answers = detector.run(&[("picture", (&pixels).into())], &wanted)?;
    let mut answers = answers.into_iter().map(ArrayD::into_dimensionality::<Ix3>);
    let mut next = || -> Result<_, Cause> {
        Ok(answers
            .next()
            .ok_or("an answer of the detector is missing")??)
    };
    let (boxes, scores, landmarks) = (next()?, next()?, next()?);
    detected_faces(
        boxes.view(),
        scores.view(),
        landmarks.view(),
        (width, height),
        least_score,
    )
    .ok_or_else(|| "the detector answered for another size".into())
}

/// `[1, 3, height, width]` in -1..1: `(unit(level) - 0.5) / 0.5`.
fn planes(face: &RgbImage, unit: impl Fn(f32) -> f32) -> Array4<f32> {
    let table: [f32; 256] = std::array::from_fn(|level| (unit(level as f32) - 0.5) / 0.5);
    let (width, height) = (face.width() as usize, face.height() as usize);
    Array4::from_shape_fn((1, 3, height, width), |(_, plane, y, x)| {
        table[usize::from(face.get_pixel(x as u32, y as u32)[plane])]
    })
}

fn first(answers: Vec<ArrayD<f32>>) -> Result<ArrayD<f32>, Cause> {
    let answer = answers.into_iter().next();
    answer.ok_or_else(|| "the network gave no answer".into())
}
