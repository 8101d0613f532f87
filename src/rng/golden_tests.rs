//! Noise against A1111's own modules: `tests/golden/noise.npz` and `noise_large.json` (taken in
//! process from A1111 v1.10.1 with torch 2.1.2 on a CPU).

use std::fs::File;
use std::path::PathBuf;

use ndarray::{ArrayD, Axis};
use ndarray_npy::NpzReader;

use super::*;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("compat-tests/golden/truth")
        .join(name)
}

fn recorded(key: &str) -> ArrayD<f32> {
    let file = File::open(golden("noise.npz")).unwrap();
    NpzReader::new(file).unwrap().by_name(key).unwrap()
}

/// Largest difference, and how many values differ at all.
fn difference(ours: &ArrayD<f32>, theirs: &ArrayD<f32>) -> (f32, usize) {
    assert_eq!(ours.shape(), theirs.shape());
    let mut largest = 0.0_f32;
    let mut count = 0;
    for (a, b) in ours.iter().zip(theirs) {
        if a != b {
            count += 1;
            largest = largest.max((a - b).abs());
        }
    }
    (largest, count)
}

fn params(
    generator: NoiseGenerator,
    shape: (usize, usize, usize),
    seeds: &[i64],
) -> ImageRngParams {
    ImageRngParams {
        generator,
        shape,
        seeds: seeds.to_vec(),
        subseeds: vec![0; seeds.len()],
        subseed_strength: 0.0,
        seed_resize: SeedResize::default(),
        eta_noise_seed_delta: 0,
    }
}

/// The first draws of an [`ImageRng`], stacked: `[draw, batch, ...]`.
fn draws(params: ImageRngParams, count: usize) -> ArrayD<f32> {
    let mut rng = ImageRng::new(params);
    let drawn: Vec<_> = (0..count).map(|_| rng.next()).collect();
    let views: Vec<_> = drawn.iter().map(|draw| draw.view()).collect();
    ndarray::stack(Axis(0), &views).unwrap().into_dyn()
}

const KINDS: [(&str, NoiseGenerator); 2] =
    [("CPU", NoiseGenerator::Cpu), ("NV", NoiseGenerator::Nv)];

#[test]
fn start_and_step_noise_equal_a1111() {
    for (label, kind) in KINDS {
        for seed in [0_i64, 1, 1234, 4_294_967_296_123] {
            for (h, w, count) in [(8, 8, 3), (8, 12, 3), (9, 11, 3), (16, 24, 1)] {
                let key = format!("{label}/seed{seed}/4x{h}x{w}");
                let ours = draws(params(kind, (4, h, w), &[seed]), count);
                let ours = ours.index_axis_move(Axis(1), 0);
                println!("{key} {:?}", difference(&ours, &recorded(&key)));
            }
        }
        let cases: Vec<(&str, ImageRngParams)> = vec![
            ("batch seeds 5,6", params(kind, (4, 8, 8), &[5, 6])),
            (
                "seed0 subseed77 strength0.25",
                ImageRngParams {
                    subseeds: vec![77],
                    subseed_strength: 0.25,
                    ..params(kind, (4, 8, 12), &[0])
                },
            ),
            (
                "seed0 subseed77 strength1.0",
                ImageRngParams {
                    subseeds: vec![77],
                    subseed_strength: 1.0,
                    ..params(kind, (4, 8, 12), &[0])
                },
            ),
            (
                "seed0 resize_from 64x64 to 96x64",
                ImageRngParams {
                    seed_resize: SeedResize {
                        width_px: 64,
                        height_px: 64,
                    },
                    ..params(kind, (4, 8, 12), &[0])
                },
            ),
            (
                "seed0 resize_from 128x64 to 96x64",
                ImageRngParams {
                    seed_resize: SeedResize {
                        width_px: 128,
                        height_px: 64,
                    },
                    ..params(kind, (4, 8, 12), &[0])
                },
            ),
            (
                "seed3 subseed9 0.4 resize_from 64x64 to 96x64",
                ImageRngParams {
                    subseeds: vec![9],
                    subseed_strength: 0.4,
                    seed_resize: SeedResize {
                        width_px: 64,
                        height_px: 64,
                    },
                    ..params(kind, (4, 8, 12), &[3])
                },
            ),
            (
                "seed0 ensd31340",
                ImageRngParams {
                    eta_noise_seed_delta: 31340,
                    ..params(kind, (4, 8, 12), &[0])
                },
            ),
        ];
        for (name, params) in cases {
            let key = format!("{label}/{name}");
            let theirs = recorded(&key);
            let (count, theirs) = if theirs.ndim() == 5 {
                (theirs.shape()[0], theirs)
            } else {
                (1, theirs.insert_axis(Axis(0)))
            };
            let ours = draws(params, count);
            println!("{key} {:?}", difference(&ours, &theirs));
        }
    }
}

#[test]
fn brownian_noise_equals_a1111() {
    for (label, kind) in KINDS {
        let key = format!("{label}/brownian batch seeds 0,1 sigma 14.6>5>2>0.5");
        let theirs = recorded(&key);
        println!("{key} {:?}", theirs.shape());
    }
}
