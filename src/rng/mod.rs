//! Philox, Mersenne Twister, torch's normals, Brownian trees, seeds and ENSD. Uses no other room.

pub mod brownian;
mod generator;
mod image_rng;
mod pcg64;
mod philox;
mod seed_sequence;
mod seeds;
mod torch_cpu;

pub use brownian::{BrownianNoise, BrownianTree};
pub use generator::{Generator, NoiseGenerator};
pub use image_rng::{ImageRng, ImageRngParams, SeedResize, slerp};
pub use pcg64::Pcg64;
pub use philox::Philox;
pub use seed_sequence::seed_sequence;
pub use seeds::{JobSeeds, MAX_RANDOM_SEED, SeedChoice, SeedOptions, job_seeds};
pub use torch_cpu::TorchCpu;

#[cfg(test)]
mod golden_tests;
