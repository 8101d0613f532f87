//! The functions of one f32 number that schedules and samplers need: the f64 result, rounded once.
//! Torch's vector library on a CPU is one unit of the last place off that in 6 % of the logarithms
//! and 1 % of the exponentials; where such a digit decides more than a digit, the place says so.

/// Natural logarithm.
#[must_use]
pub fn ln(x: f32) -> f32 {
    f64::from(x).ln() as f32
}

/// Exponential.
#[must_use]
pub fn exp(x: f32) -> f32 {
    f64::from(x).exp() as f32
}

/// `exp(x) - 1`.
#[must_use]
pub fn expm1(x: f32) -> f32 {
    f64::from(x).exp_m1() as f32
}

/// `base` to the power of `exponent`; torch casts a Python exponent to f32.
#[must_use]
pub fn pow(base: f32, exponent: f64) -> f32 {
    f64::from(base).powf(f64::from(exponent as f32)) as f32
}

/// Tangent.
#[must_use]
pub fn tan(x: f32) -> f32 {
    f64::from(x).tan() as f32
}

/// Arc tangent.
#[must_use]
pub fn atan(x: f32) -> f32 {
    f64::from(x).atan() as f32
}

/// `torch.linspace` in f32: the first half is counted from the start, the second from the end,
/// with fused multiply-adds. A single step gives the start.
#[must_use]
pub fn linspace(start: f64, end: f64, count: usize) -> Vec<f32> {
    let (start, end) = (start as f32, end as f32);
    if count == 1 {
        return vec![start];
    }
    let step = (end - start) / (count.max(2) - 1) as f32;
    (0..count)
        .map(|index| {
            if index < count / 2 {
                step.mul_add(index as f32, start)
            } else {
                (-step).mul_add((count - index - 1) as f32, end)
            }
        })
        .collect()
}

/// `torch.lerp` with weight 1/2.
#[must_use]
pub fn midpoint(start: f32, end: f32) -> f32 {
    end - (end - start) * 0.5
}
