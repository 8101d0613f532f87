//! What systems without a matrix unit have in its place. No [`MatrixUnit`] exists there.

use super::{Convolution, InParallel, Linear, MatrixUnit, Operands};

/// Nothing is kept.
pub fn give_back_memory() {}

impl Linear {
    /// Leaves `y` as it is.
    pub fn run(self, _: MatrixUnit, _: Operands<'_>, _: &mut [f32], _: usize, _: &InParallel<'_>) {}
}

impl Convolution {
    /// Leaves `y` as it is.
    pub fn run(self, _: MatrixUnit, _: Operands<'_>, _: &mut [f32], _: usize, _: &InParallel<'_>) {}
}
