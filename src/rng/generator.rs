//! One type over the generators that A1111's option `randn_source` can name.

use super::philox::Philox;
use super::torch_cpu::TorchCpu;

/// Where noise comes from, A1111's `randn_source`, with `GPU` already resolved to one of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoiseGenerator {
    /// torch's CPU generator (mt19937).
    Cpu,
    /// The NVIDIA generator (Philox).
    Nv,
}

/// A seeded stream of standard normal numbers.
#[derive(Debug, Clone)]
pub enum Generator {
    /// torch's CPU generator.
    Cpu(Box<TorchCpu>),
    /// The NVIDIA generator.
    Nv(Philox),
}

impl Generator {
    /// A fresh generator of the given kind. The CPU generator looks at the low 32 bits of `seed`
    /// only, the NVIDIA generator at all 64.
    #[must_use]
    pub fn new(kind: NoiseGenerator, seed: i64) -> Self {
        match kind {
            NoiseGenerator::Cpu => Self::Cpu(Box::new(TorchCpu::new(seed))),
            NoiseGenerator::Nv => Self::Nv(Philox::new(seed)),
        }
    }

    /// The next `len` standard normal numbers, as `torch.randn` fills a contiguous tensor of that
    /// many elements.
    pub fn normal(&mut self, len: usize) -> Vec<f32> {
        match self {
            Self::Cpu(generator) => generator.normal(len),
            Self::Nv(generator) => generator.normal(len),
        }
    }
}
