//! From RetinaFace's numbers to faces, as facexlib 0.3.0 reads them: anchors, decoding, non-maximum suppression.
//! All arithmetic is f32.

use ndarray::{ArrayView2, ArrayView3, Axis};

use crate::pipeline::Landmarks;

/// Pixels from one place of a level to the next, and the sides of its anchors.
const LEVELS: [(usize, [f64; 2]); 3] =
    [(8, [16.0, 32.0]), (16, [64.0, 128.0]), (32, [256.0, 512.0])];
/// Share of an anchor's side that a number of 1 moves a point by, and the exponent's factor for a size.
const VARIANCES: [f32; 2] = [0.1, 0.2];
/// Boxes that share more than this with a surer one are the same face.
const MOST_OVERLAP: f32 = 0.4;

/// A face and how sure the network is of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DetectedFace {
    /// Left, top, right, bottom in pixels.
    pub corners: [f32; 4],
    /// 0 to 1.
    pub score: f32,
    pub landmarks: Landmarks,
}

/// The faces with a score above `least_score`, the surest first; `None` where the network's answers do not fit
/// the picture's size.
#[must_use]
pub fn detected_faces(
    boxes: ArrayView3<'_, f32>,
    scores: ArrayView3<'_, f32>,
    landmarks: ArrayView3<'_, f32>,
    (width, height): (u32, u32),
    least_score: f32,
) -> Option<Vec<DetectedFace>> {
    let anchors = anchors(width, height);
    let count = anchors.len();
    if boxes.dim() != (1, count, 4)
        || scores.dim() != (1, count, 2)
        || landmarks.dim() != (1, count, 10)
    {
        return None;
    }
    let (boxes, scores, landmarks) = (
        boxes.index_axis_move(Axis(0), 0),
        scores.index_axis_move(Axis(0), 0),
        landmarks.index_axis_move(Axis(0), 0),
    );
    let mut faces: Vec<DetectedFace> = anchors
        .iter()
        .enumerate()
        .filter(|(index, _)| scores[[*index, 1]] > least_score)
        .map(|(index, anchor)| {
            let side = [width as f32, height as f32];
            DetectedFace {
                corners: corners(*anchor, boxes, index, side),
                score: scores[[index, 1]],
                landmarks: points(*anchor, landmarks, index, side),
            }
        })
        .collect();
    faces.reverse();
    faces.sort_by(|a, b| b.score.total_cmp(&a.score));
    Some(without_repeats(faces))
}

/// Centre and sides, in shares of the picture.
#[derive(Debug, Clone, Copy)]
struct Anchor {
    centre: [f32; 2],
    sides: [f32; 2],
}

fn anchors(width: u32, height: u32) -> Vec<Anchor> {
    let (wide, high) = (f64::from(width), f64::from(height));
    let mut anchors = Vec::new();
    for (step, sides) in LEVELS {
        let places = |side: u32| (side as usize).div_ceil(step);
        let at = |place: usize, whole: f64| ((place as f64 + 0.5) * step as f64 / whole) as f32;
        for row in 0..places(height) {
            for column in 0..places(width) {
                anchors.extend(sides.map(|side| Anchor {
                    centre: [at(column, wide), at(row, high)],
                    sides: [(side / wide) as f32, (side / high) as f32],
                }));
            }
        }
    }
    anchors
}

fn corners(
    anchor: Anchor,
    boxes: ArrayView2<'_, f32>,
    index: usize,
    picture: [f32; 2],
) -> [f32; 4] {
    let mut corners = [0.0; 4];
    for axis in 0..2 {
        let (centre, side) = (anchor.centre[axis], anchor.sides[axis]);
        let middle = centre + boxes[[index, axis]] * VARIANCES[0] * side;
        let length = side * (boxes[[index, axis + 2]] * VARIANCES[1]).exp();
        let near = middle - length / 2.0;
        corners[axis] = near * picture[axis];
        corners[axis + 2] = (length + near) * picture[axis];
    }
    corners
}

fn points(
    anchor: Anchor,
    landmarks: ArrayView2<'_, f32>,
    index: usize,
    picture: [f32; 2],
) -> Landmarks {
    let at = |point: usize, axis: usize| {
        let moved = landmarks[[index, 2 * point + axis]] * VARIANCES[0] * anchor.sides[axis];
        (anchor.centre[axis] + moved) * picture[axis]
    };
    std::array::from_fn(|point| [at(point, 0), at(point, 1)])
}

/// Of faces that overlap, the first one.
fn without_repeats(faces: Vec<DetectedFace>) -> Vec<DetectedFace> {
    let mut kept: Vec<DetectedFace> = Vec::new();
    for face in faces {
        if kept
            .iter()
            .all(|known| overlap(known.corners, face.corners) <= MOST_OVERLAP)
        {
            kept.push(face);
        }
    }
    kept
}

/// Area in common divided by the area of both.
fn overlap(a: [f32; 4], b: [f32; 4]) -> f32 {
    let area = |[left, top, right, bottom]: [f32; 4]| (right - left) * (bottom - top);
    let across = (a[2].min(b[2]) - a[0].max(b[0])).max(0.0);
    let down = (a[3].min(b[3]) - a[1].max(b[1])).max(0.0);
    let common = across * down;
    common / (area(a) + area(b) - common)
}

#[cfg(test)]
mod tests {
    use ndarray::Array3;

    use super::*;

    #[test]
    fn the_surer_of_two_overlapping_faces_stays() {
        let face = |left: f32, score: f32| DetectedFace {
            corners: [left, 0.0, left + 10.0, 10.0],
            score,
            landmarks: [[0.0; 2]; 5],
        };
        let kept = without_repeats(vec![face(0.0, 0.9), face(3.0, 0.8), face(6.0, 0.7)]);
        let scores: Vec<f32> = kept.iter().map(|face| face.score).collect();
        assert_eq!(scores, [0.9, 0.7]);
    }

    #[test]
    fn answers_for_another_size_are_none() {
        // Ten places of 8 pixels, three of 16, two of 32; two anchors each.
        let numbers = |width: usize| Array3::<f32>::zeros((1, 30, width));
        let faces = |sides: (u32, u32)| {
            detected_faces(
                numbers(4).view(),
                numbers(2).view(),
                numbers(10).view(),
                sides,
                0.5,
            )
        };
        assert_eq!(faces((40, 16)), Some(Vec::new()));
        assert_eq!(faces((32, 16)), None);
        assert_eq!(anchors(33, 16).len(), 2 * (10 + 3 + 2));
    }
}
