//! Affine maps between pictures, and the one that lays a face's landmarks on a template.
//!
//! Follows OpenCV 4's `invertAffineTransform` and `estimateAffinePartial2D` with least median of squares
//! (ptsetreg.cpp), whose random choices come from a generator with a fixed seed. The refinement at its end
//! is a Levenberg-Marquardt search of a linear problem; here it is that problem's solution.

/// `x' = a x + b y + c`, `y' = d x + e y + f`, as `[a, b, c, d, e, f]`, in pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Affine(pub [f64; 6]);

impl Affine {
    /// The map back; all zero where there is none.
    #[must_use]
    pub fn inverse(self) -> Self {
        let [a, b, c, d, e, f] = self.0;
        let determinant = a * e - b * d;
        let scale = if determinant == 0.0 {
            0.0
        } else {
            1.0 / determinant
        };
        let (a, b, d, e) = (e * scale, -b * scale, -d * scale, a * scale);
        Self([a, b, -a * c - b * f, d, e, -d * c - e * f])
    }
}

/// Chance of having seen a choice without outliers, and the share of outliers that it reckons with:
/// `round(log(1 - 0.99) / log(1 - 0.55^2))` choices of two points.
const CHOICES: usize = 13;

/// The turn, size and shift that best lay `from` on `to`, with outliers left out; `None` where the points
/// are too few or coincide.
#[must_use]
pub fn similarity(from: &[[f32; 2]], to: &[[f32; 2]]) -> Option<Affine> {
    let count = from.len();
    if count != to.len() || count < 3 {
        return None;
    }
    let mut random = Random(u64::MAX);
    let mut best: Option<(f64, Affine)> = None;
    for _ in 0..CHOICES {
        let first = random.below(count);
        let mut second = random.below(count);
        while second == first {
            second = random.below(count);
        }
        let Some(map) = through([from[first], from[second]], [to[first], to[second]]) else {
            continue;
        };
        let median = median(errors(from, to, map).collect());
        if best.is_none_or(|(least, _)| median < least) {
            best = Some((median, map));
        }
    }
    let (median, map) = best?;
    let sigma = 2.5 * 1.4826 * (1.0 + 5.0 / (count as f64 - 2.0)) * median.sqrt();
    let sigma = sigma.max(0.001);
    let limit = (sigma * sigma) as f32;
    let inliers: Vec<usize> = errors(from, to, map)
        .enumerate()
        .filter(|(_, error)| *error <= limit)
        .map(|(index, _)| index)
        .collect();
    Some(least_squares(from, to, &inliers).unwrap_or(map))
}

/// OpenCV's multiply-with-carry generator.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        let low = self.0 & 0xffff_ffff;
        self.0 = (low * 4_164_903_690).wrapping_add(self.0 >> 32);
        (self.0 & 0xffff_ffff) as usize % limit
    }
}

/// The similarity that takes two points to two others.
fn through(from: [[f32; 2]; 2], to: [[f32; 2]; 2]) -> Option<Affine> {
    let [[x1, y1], [x2, y2]] = from.map(|point| point.map(f64::from));
    let [[u1, v1], [u2, v2]] = to.map(|point| point.map(f64::from));
    let (dx, dy) = (x1 - x2, y1 - y2);
    let length = dx * dx + dy * dy;
    if length == 0.0 {
        return None;
    }
    let d = 1.0 / length;
    let cross = x1 * y2 - x2 * y1;
    let s0 = d * ((u1 - u2) * dx + (v1 - v2) * dy);
    let s1 = d * ((v1 - v2) * dx - (u1 - u2) * dy);
    let s2 = d * ((v1 - v2) * cross - (u1 * y2 - u2 * y1) * dy - (u1 * x2 - u2 * x1) * dx);
    let s3 = d * (-(u1 - u2) * cross - (v1 * x2 - v2 * x1) * dx - (v1 * y2 - v2 * y1) * dy);
    Some(Affine([s0, -s1, s2, s1, s0, s3]))
}

/// Squared distances between the mapped points and their targets.
fn errors<'a>(
    from: &'a [[f32; 2]],
    to: &'a [[f32; 2]],
    Affine([a, b, c, d, e, f]): Affine,
) -> impl Iterator<Item = f32> + 'a {
    from.iter().zip(to).map(move |(from, to)| {
        let [x, y] = from.map(f64::from);
        let right = a * x + b * y + c - f64::from(to[0]);
        let down = d * x + e * y + f - f64::from(to[1]);
        (right * right + down * down) as f32
    })
}

fn median(mut errors: Vec<f32>) -> f64 {
    errors.sort_by(f32::total_cmp);
    let middle = errors.len() / 2;
    if errors.len() % 2 == 1 {
        f64::from(errors[middle])
    } else {
        f64::from(errors[middle - 1] + errors[middle]) * 0.5
    }
}

/// The similarity with the least sum of squared distances over some of the points, in closed form.
fn least_squares(from: &[[f32; 2]], to: &[[f32; 2]], chosen: &[usize]) -> Option<Affine> {
    let n = chosen.len() as f64;
    let mean = |points: &[[f32; 2]], axis: usize| {
        let values = chosen.iter().map(|&index| f64::from(points[index][axis]));
        values.sum::<f64>() / n
    };
    let (mx, my, mu, mv) = (mean(from, 0), mean(from, 1), mean(to, 0), mean(to, 1));
    let (mut same, mut turned, mut spread) = (0.0, 0.0, 0.0);
    for &index in chosen {
        let [x, y] = from[index].map(f64::from);
        let [u, v] = to[index].map(f64::from);
        let (x, y, u, v) = (x - mx, y - my, u - mu, v - mv);
        same += x * u + y * v;
        turned += x * v - y * u;
        spread += x * x + y * y;
    }
    if chosen.len() < 2 || spread == 0.0 {
        return None;
    }
    let (a, b) = (same / spread, turned / spread);
    Some(Affine([
        a,
        -b,
        mu - a * mx + b * my,
        b,
        a,
        mv - b * mx - a * my,
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEMPLATE: [[f32; 2]; 5] = [
        [10.0, 10.0],
        [50.0, 11.0],
        [30.0, 30.0],
        [14.0, 52.0],
        [47.0, 51.0],
    ];

    #[test]
    fn a_map_and_its_inverse_cancel() {
        let map = Affine([2.0, -0.5, 3.0, 0.5, 2.0, -7.0]);
        let Affine([a, b, c, d, e, f]) = map.inverse();
        let (x, y) = (2.0 * 5.0 - 0.5 * 4.0 + 3.0, 0.5 * 5.0 + 2.0 * 4.0 - 7.0);
        assert!((a * x + b * y + c - 5.0).abs() < 1e-12);
        assert!((d * x + e * y + f - 4.0).abs() < 1e-12);
        assert_eq!(Affine([0.0; 6]).inverse(), Affine([0.0; 6]));
    }

    #[test]
    fn one_point_far_off_does_not_matter() {
        let moved = TEMPLATE.map(|[x, y]| [y * 2.0 + 100.0, -x * 2.0 + 7.0]);
        let mut spoilt = moved;
        spoilt[2] = [900.0, -400.0];
        let map = similarity(&spoilt, &TEMPLATE).unwrap();
        for (from, to) in moved.iter().zip(TEMPLATE) {
            let error = errors(&[*from], &[to], map).next().unwrap();
            assert!(error < 1e-6, "{from:?} is {error} away");
        }
    }

    #[test]
    fn points_without_extent_have_no_map() {
        assert_eq!(similarity(&[[3.0, 3.0]; 5], &TEMPLATE), None);
        assert_eq!(similarity(&TEMPLATE[..2], &TEMPLATE[..2]), None);
    }
}
