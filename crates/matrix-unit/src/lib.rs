//! Linear layers and convolutions of float32 on the matrix unit of x86 processors (AMX).
//!
//! The unit multiplies bfloat16 and adds up in float32. A float32 value is the sum of three bfloat16 values of 8
//! significant bits each; of the nine products of two such sums the six largest are added up, so that a product is off by
//! less than 2^-22 of itself and a sum by no more than sums in float32 are (G. Henry, P. T. P. Tang, A. Heinecke,
//! "Leveraging the bfloat16 Artificial Intelligence Datatype For Higher-Precision Computations", 2019). Weights stay in
//! float32 where they lie: they are split anew at every call, which costs a few percent of it.
//!
//! A result depends on what its own sum is made of alone, not on how many rows, images or threads there are.
//!
//! [`MatrixUnit::find`] tells whether the processor and the system have it. Elsewhere than on Linux on x86-64 nobody does.

#![expect(
    unsafe_code,
    reason = "tiles of the matrix unit have no safe interface, and threads write disjoint parts of one output"
)]

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
mod elsewhere;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod kernel;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod layers;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod scratch;

use std::sync::OnceLock;

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
pub use elsewhere::give_back_memory;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub use scratch::give_back_memory;

/// What the numbers of input and output channels have to be divisible by.
pub const CHANNEL_MULTIPLE: usize = 32;

/// Calls its argument with each number below the first, on as many threads as there are. All calls have ended when it
/// returns.
pub type InParallel<'a> = dyn Fn(usize, &(dyn Fn(usize) + Send + Sync)) + 'a;

/// What a layer is computed of, in float32 and the order of the axes: its input, its weights, and its bias if it has one.
pub type Operands<'a> = (&'a [f32], &'a [f32], Option<&'a [f32]>);

/// `y [rows, out] = x [rows, width] weight [out, width]ᵀ + bias [out]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Linear {
    pub rows: usize,
    pub width: usize,
    pub out: usize,
}

/// `y [images, out, height, width]` of `x [images, channels, height, width]`, `weight [out, channels, side, side]` and
/// `bias [out]`: stride 1, and zeros around so that the size stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Convolution {
    pub images: usize,
    pub channels: usize,
    pub out: usize,
    pub height: usize,
    pub width: usize,
    /// 1 or 3.
    pub side: usize,
}

/// Proof that the process may use the matrix unit.
#[derive(Debug, Clone, Copy)]
pub struct MatrixUnit(());

impl MatrixUnit {
    /// `None` where processor or system have none. The first call asks the system for it, for all threads.
    #[must_use]
    pub fn find() -> Option<Self> {
        static FOUND: OnceLock<bool> = OnceLock::new();
        FOUND.get_or_init(ask).then_some(Self(()))
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn ask() -> bool {
    use std::arch::x86_64::__cpuid_count;

    /// `arch_prctl` of arch/x86/include/uapi/asm/prctl.h, and the state component of tile data.
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILE_DATA: libc::c_long = 18;
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    if !(is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw")) {
        return false;
    }
    let tiles = AMX_BF16 | AMX_TILE;
    if __cpuid_count(7, 0).edx & tiles != tiles {
        return false;
    }
    // SAFETY: the call takes two numbers and changes what the kernel saves of this process's threads.
    unsafe {
        libc::syscall(
            libc::SYS_arch_prctl,
            ARCH_REQ_XCOMP_PERM,
            XFEATURE_XTILE_DATA,
        ) == 0
    }
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn ask() -> bool {
    false
}
