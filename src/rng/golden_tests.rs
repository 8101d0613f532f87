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

/// The shape of most recordings.
const SHAPE: (usize, usize, usize) = (4, 8, 12);

#[test]
fn noise_of_one_seed_equals_the_recording_to_the_bit() {
    for (label, kind) in KINDS {
        for seed in [0_i64, 1, 1234, 4_294_967_296_123] {
            for (h, w, count) in [(8, 8, 3), (8, 12, 3), (9, 11, 3), (16, 24, 1)] {
                let key = format!("{label}/seed{seed}/4x{h}x{w}");
                let ours = draws(params(kind, (4, h, w), &[seed]), count);
                let ours = ours.index_axis_move(Axis(1), 0);
                assert_eq!(difference(&ours, &recorded(&key)), (0.0, 0), "{key}");
            }
        }
    }
}

#[test]
fn variations_equal_the_recording() {
    let resize = |width_px, height_px| SeedResize {
        height_px,
        width_px,
    };
    for (label, kind) in KINDS {
        let plain = |seed| params(kind, SHAPE, &[seed]);
        // The spherical interpolation rounds differently in its last digit; all else is exact.
        let cases = [
            ("batch seeds 5,6", params(kind, (4, 8, 8), &[5, 6]), 0.0),
            (
                "seed0 subseed77 strength0.25",
                ImageRngParams {
                    subseeds: vec![77],
                    subseed_strength: 0.25,
                    ..plain(0)
                },
                5e-7,
            ),
            (
                "seed0 subseed77 strength1.0",
                ImageRngParams {
                    subseeds: vec![77],
                    subseed_strength: 1.0,
                    ..plain(0)
                },
                0.0,
            ),
            (
                "seed0 resize_from 64x64 to 96x64",
                ImageRngParams {
                    seed_resize: resize(64, 64),
                    ..plain(0)
                },
                0.0,
            ),
            (
                "seed0 resize_from 128x64 to 96x64",
                ImageRngParams {
                    seed_resize: resize(128, 64),
                    ..plain(0)
                },
                0.0,
            ),
            (
                "seed3 subseed9 0.4 resize_from 64x64 to 96x64",
                ImageRngParams {
                    subseeds: vec![9],
                    subseed_strength: 0.4,
                    seed_resize: resize(64, 64),
                    ..plain(3)
                },
                5e-7,
            ),
            (
                "seed0 ensd31340",
                ImageRngParams {
                    eta_noise_seed_delta: 31340,
                    ..plain(0)
                },
                0.0,
            ),
        ];
        for (name, params, tolerance) in cases {
            let key = format!("{label}/{name}");
            let mut theirs = recorded(&key);
            if theirs.ndim() == 4 {
                theirs.insert_axis_inplace(Axis(0));
            }
            let ours = draws(params, theirs.shape()[0]);
            let (largest, _) = difference(&ours, &theirs);
            assert!(largest <= tolerance, "{key}: {largest:e}");
        }
    }
}

/// Noise between consecutive sigmas, `[step, batch, ...]`.
fn brownian(
    kind: NoiseGenerator,
    shape: (usize, usize, usize),
    sigmas: &[f32],
    seeds: &[i64],
) -> ArrayD<f32> {
    let low = sigmas
        .iter()
        .copied()
        .filter(|&s| s > 0.0)
        .fold(f32::INFINITY, f32::min);
    let mut noise = BrownianNoise::new(kind, shape, low, sigmas[0], seeds);
    let steps: Vec<_> = sigmas
        .windows(2)
        .filter(|pair| pair[1] > 0.0)
        .map(|pair| noise.between(pair[0], pair[1]))
        .collect();
    let views: Vec<_> = steps.iter().map(|step| step.view()).collect();
    ndarray::stack(Axis(0), &views).unwrap().into_dyn()
}

fn recorded_json(path: &str) -> serde_json::Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path);
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn floats(value: &serde_json::Value) -> Vec<f32> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_f64().unwrap() as f32)
        .collect()
}

#[test]
fn brownian_noise_equals_the_recording() {
    let large = recorded_json("compat-tests/golden/truth/noise_large.json");
    for (label, kind) in KINDS {
        for schedule in ["karras6", "exponential6"] {
            let key = format!("{label}/brownian seed0 {schedule}");
            let sigmas = floats(&large[&key]["sigmas"]);
            let ours = brownian(kind, SHAPE, &sigmas, &[0]).index_axis_move(Axis(1), 0);
            // The root of the step's length differs in its last digit.
            let (largest, _) = difference(&ours, &recorded(&key));
            assert!(largest <= 3e-7, "{key}: {largest:e}");
        }
    }
}

#[test]
fn a_brownian_batch_equals_the_recording_to_the_bit() {
    for (label, kind) in KINDS {
        let key = format!("{label}/brownian batch seeds 0,1 sigma 14.6>5>2>0.5");
        let theirs = recorded(&key);
        let mut noise = BrownianNoise::new(kind, (4, 8, 8), 0.03, 14.6, &[0, 1]);
        for (index, (from, to)) in [(14.6, 5.0), (5.0, 2.0), (2.0, 0.5)]
            .into_iter()
            .enumerate()
        {
            let ours = noise.between(from, to).into_dyn();
            let want = theirs.index_axis(Axis(0), index).to_owned();
            assert_eq!(difference(&ours, &want), (0.0, 0), "{key} {from}>{to}");
        }
    }
}

#[test]
fn random_vectors_are_met() {
    let vectors = recorded_json("tests/golden/random_vectors.json");
    let close = |ours: &[f32], theirs: &serde_json::Value, name: &str| {
        for (index, (got, want)) in ours.iter().zip(floats(theirs)).enumerate() {
            assert!(
                (got - want).abs() <= 2e-6,
                "{name}: [{index}] is {got}, not {want}"
            );
        }
    };
    for case in vectors["cpu_randn"].as_array().unwrap() {
        let len = case["n"].as_u64().unwrap() as usize;
        let ours = TorchCpu::new(case["seed"].as_i64().unwrap()).normal(len);
        close(
            &ours,
            &case["first16"],
            &format!("{len} of seed {}", case["seed"]),
        );
    }
    let mut generator = TorchCpu::new(42);
    for want in vectors["cpu_two_calls_seed42"].as_array().unwrap() {
        close(&generator.normal(256), want, "two calls");
    }
    for case in vectors["nv_randn"].as_array().unwrap() {
        let mut generator = Philox::new(case["seed"].as_i64().unwrap());
        close(&generator.normal(256), &case["first"], "first call");
        close(&generator.normal(256), &case["second_call"], "second call");
    }
    for case in vectors["seedsequence_pool24"].as_array().unwrap() {
        let words = |key: &str| -> Vec<u64> {
            case[key]
                .as_array()
                .unwrap()
                .iter()
                .map(|v| v.as_u64().unwrap())
                .collect()
        };
        let state = seed_sequence(case["entropy"].as_u64().unwrap(), &words("spawn_key"), 4);
        let state: Vec<u64> = state.into_iter().map(u64::from).collect();
        assert_eq!(state, words("state"), "{case}");
    }
}

#[test]
fn large_tensors_equal_the_recording() {
    let large = recorded_json("compat-tests/golden/truth/noise_large.json");
    for (label, kind) in KINDS {
        for seed in [0, 1234] {
            let key = format!("{label}/seed{seed}/4x112x80");
            let mut rng = ImageRng::new(params(kind, (4, 112, 80), &[seed]));
            let (first, second) = (rng.next(), rng.next());
            let first: Vec<f32> = first.into_iter().collect();
            let case = &large[&key];
            assert_eq!(first[..64], floats(&case["first_head"]), "{key}");
            assert_eq!(
                first[first.len() - 64..],
                floats(&case["first_tail"]),
                "{key}"
            );
            let sum: f64 = first.iter().map(|&v| f64::from(v)).sum();
            assert!(
                (sum - case["first_sum"].as_f64().unwrap()).abs() < 1e-6,
                "{key}"
            );
            let second: Vec<f32> = second.into_iter().take(16).collect();
            assert_eq!(second, floats(&case["second_head"]), "{key}");
        }
    }
}
