//! Values between known points.

/// numpy's `interp` over points whose first components rise.
pub(super) fn interpolated(points: &[(f64, f64)], x: f64) -> f64 {
    let above = points.partition_point(|&(known, _)| known <= x);
    match (
        above.checked_sub(1).map(|below| points[below]),
        points.get(above),
    ) {
        (None, Some(&(_, first))) => first,
        (Some((x0, y0)), Some(&(x1, y1))) => (y1 - y0) / (x1 - x0) * (x - x0) + y0,
        (Some((_, last)), None) => last,
        (None, None) => 0.0,
    }
}
