//! Schedules against A1111's own: `compat-tests/golden/truth/sigmas.json` (A1111 v1.10.1 in
//! process, torch 2.1.2) and `tests/golden/schedules_vectors.json`.

use std::path::PathBuf;

use serde_json::Value;

use super::schedulers::Levels;
use super::*;

pub(super) fn read_json(path: &str) -> Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path);
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

pub(super) fn floats(value: &Value) -> Vec<f32> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_f64().unwrap() as f32)
        .collect()
}

/// Relative difference that the last digit of torch's square root explains.
const TOLERANCE: f32 = 3e-7;

fn sd_alphas() -> Vec<f32> {
    scaled_linear_alphas_cumprod(0.00085, 0.012, 1000)
}

fn sd_table() -> SigmaTable {
    SigmaTable::new(&sd_alphas(), AlphaOptions::default(), false)
}

fn assert_close(got: &[f32], want: &[f32], tolerance: f32, name: &str) {
    assert_eq!(got.len(), want.len(), "{name}: length");
    for (index, (got, want)) in got.iter().zip(want).enumerate() {
        let allowed = tolerance * want.abs().max(1e-6);
        assert!(
            (got - want).abs() <= allowed,
            "{name}[{index}]: {got}, not {want}"
        );
    }
}

/// Options behind the prefix of a recorded scheduler label.
fn recorded_options(label: &str) -> (ScheduleOptions, &str) {
    let mut options = ScheduleOptions::default();
    #[expect(
        clippy::type_complexity,
        reason = "a table that is read once, right below"
    )]
    let prefixes: [(&str, fn(&mut ScheduleOptions)); 4] = [
        ("rho=5,sigma_min=0.1,sigma_max=10 ", |options| {
            options.rho = 5.0;
            options.sigma_min = 0.1;
            options.sigma_max = 10.0;
        }),
        ("use_old_karras_scheduler_sigmas ", |options| {
            options.use_old_karras_sigmas = true;
        }),
        ("always_discard_next_to_last_sigma ", |options| {
            options.always_discard_penultimate = true;
        }),
        ("beta 0.8/0.5 ", |options| {
            options.beta_alpha = 0.8;
            options.beta_beta = 0.5;
        }),
    ];
    for (prefix, apply) in prefixes {
        if let Some(label) = label.strip_prefix(prefix) {
            apply(&mut options);
            return (options, label);
        }
    }
    (options, label)
}

#[test]
fn every_recorded_schedule_is_met() {
    let truth = read_json("compat-tests/golden/truth/sigmas.json");
    let table = sd_table();
    let lcm = table.lcm();
    for (key, position) in truth["index"].as_object().unwrap() {
        let want = &truth["lists"][position.as_u64().unwrap() as usize];
        let parts: Vec<&str> = key.split(" | ").collect();
        let sampler = find_sampler(parts[0]).unwrap();
        let count: usize = parts[2].parse().unwrap();
        if parts[1] == "timesteps" {
            let got: Vec<f32> = discretised_timesteps(count)
                .unwrap()
                .iter()
                .map(|&t| t as f32)
                .collect();
            assert_eq!(got, floats(want), "{key}");
            continue;
        }
        let (options, label) = recorded_options(parts[1]);
        let levels = match sampler.kind {
            SamplerKind::Lcm(_) => Levels::Lcm(&lcm),
            SamplerKind::Sigma(_) | SamplerKind::Timestep(_) => Levels::Full(&table),
        };
        let scheduler = effective_scheduler(sampler, find_scheduler(label).unwrap());
        let discards = sampler.discards_penultimate || options.always_discard_penultimate;
        let mut got = scheduler
            .sigmas(count + usize::from(discards), levels, &options)
            .unwrap();
        if discards {
            got.remove(got.len() - 2);
        }
        assert_close(&got, &floats(want), TOLERANCE, key);
    }
}

#[test]
fn the_model_tables_are_met() {
    let truth = read_json("compat-tests/golden/truth/sigmas.json");
    let table = sd_table();
    assert_eq!(table.alphas_cumprod(), floats(&truth["alphas_cumprod"]));
    assert_close(
        table.sigmas(),
        &floats(&truth["model_sigmas"]),
        TOLERANCE,
        "sigmas",
    );
    assert_close(
        table.lcm().sigmas(),
        &floats(&truth["lcm_model_sigmas"]),
        TOLERANCE,
        "LCM sigmas",
    );
    for pair in truth["sigma_to_t"].as_array().unwrap() {
        let pair = floats(pair);
        assert!((table.timestep(pair[0]) - pair[1]).abs() < 2e-3, "{pair:?}");
    }
}

#[test]
fn lcm_walks_at_the_recorded_timesteps() {
    let vectors = read_json("tests/golden/lcm_timesteps.json");
    let lcm = sd_table().lcm();
    let sampler = find_sampler("LCM").unwrap();
    let scheduler = effective_scheduler(sampler, find_scheduler("Automatic").unwrap());
    let options = ScheduleOptions::default();
    for (count, want) in vectors["timesteps"].as_object().unwrap() {
        let sigmas = scheduler
            .sigmas(count.parse().unwrap(), Levels::Lcm(&lcm), &options)
            .unwrap();
        let got: Vec<f32> = sigmas[..sigmas.len() - 1]
            .iter()
            .map(|&sigma| lcm.timestep(sigma))
            .collect();
        assert_eq!(got, floats(want), "{count} steps");
    }
}

#[test]
fn schedule_vectors_are_met() {
    let vectors = read_json("tests/golden/schedules_vectors.json");
    let table = sd_table();
    for (count, schedules) in vectors["schedules"].as_object().unwrap() {
        for (label, want) in schedules.as_object().unwrap() {
            let label_only = label.trim_end_matches(" (SDXL)");
            let options = ScheduleOptions {
                is_sdxl: label_only != label,
                ..ScheduleOptions::default()
            };
            let scheduler = find_scheduler(label_only).unwrap();
            let got = scheduler
                .sigmas(count.parse().unwrap(), Levels::Full(&table), &options)
                .unwrap();
            assert_close(&got, &floats(want), 1e-6, &format!("{label} {count}"));
        }
    }
    for (count, want) in vectors["timesteps_len"].as_object().unwrap() {
        let got = discretised_timesteps(count.parse().unwrap()).unwrap();
        assert_eq!(got.len() as u64, want[0].as_u64().unwrap(), "{count}");
    }
}

#[test]
fn options_change_the_table_as_recorded() {
    let vectors = read_json("tests/golden/schedules_vectors.json");
    let check = |got: &[f32], want: &Value, tolerance: f32, name: &str| {
        for (index, want) in want.as_object().unwrap() {
            let got = got[index.parse::<usize>().unwrap()];
            assert_close(
                &[got],
                &[want.as_f64().unwrap() as f32],
                tolerance,
                &format!("{name} {index}"),
            );
        }
    };
    let zero_snr = SigmaTable::new(
        &sd_alphas(),
        AlphaOptions {
            zero_terminal_snr: true,
            ..AlphaOptions::default()
        },
        false,
    );
    // Near the end, where little signal is left, the last digits of the roots are magnified.
    check(
        zero_snr.alphas_cumprod(),
        &vectors["ztsnr"]["alphas_cumprod"],
        2e-3,
        "ZTSNR",
    );
    check(
        zero_snr.sigmas(),
        &vectors["ztsnr"]["sigmas"],
        1e-3,
        "ZTSNR sigma",
    );
    let half = SigmaTable::new(
        &sd_alphas(),
        AlphaOptions {
            downcast: true,
            ..AlphaOptions::default()
        },
        false,
    );
    check(
        half.alphas_cumprod(),
        &vectors["downcast_alphas"]["alphas"],
        0.0,
        "half",
    );
    check(
        half.sigmas(),
        &vectors["downcast_alphas"]["sigmas"],
        0.0,
        "half sigma",
    );
    let quantised = SigmaTable::new(&sd_alphas(), AlphaOptions::default(), true);
    let asked = floats(&vectors["sigma_to_t"]["sigma"]);
    let got: Vec<f32> = asked
        .iter()
        .map(|&sigma| quantised.timestep(sigma))
        .collect();
    assert_eq!(got, floats(&vectors["sigma_to_t"]["quantized"]));
}

#[test]
fn sigmas_fall_and_end_at_zero() {
    let table = sd_table();
    for scheduler in SCHEDULERS
        .iter()
        .filter(|scheduler| scheduler.name != "kl_optimal")
    {
        for count in 1..60 {
            let sigmas = scheduler
                .sigmas(count, Levels::Full(&table), &ScheduleOptions::default())
                .unwrap();
            assert_eq!(sigmas.last(), Some(&0.0), "{} {count}", scheduler.label);
            let falls = sigmas.windows(2).all(|pair| pair[0] > pair[1]);
            assert!(falls, "{} {count}: {sigmas:?}", scheduler.label);
        }
    }
}

#[test]
fn the_tables_list_as_the_api_does() {
    let case = read_json("compat-tests/golden/cases/get-samplers.json");
    let want = case["response"].as_array().unwrap();
    assert_eq!(want.len(), SAMPLERS.len());
    for (sampler, want) in SAMPLERS.iter().zip(want) {
        assert_eq!(sampler.name, want["name"]);
        assert_eq!(Value::from(sampler.aliases.to_vec()), want["aliases"]);
        let options: serde_json::Map<String, Value> = sampler
            .listed_options()
            .into_iter()
            .map(|(key, value)| (key.to_owned(), Value::from(value)))
            .collect();
        assert_eq!(Value::Object(options), want["options"], "{}", sampler.name);
    }
    let case = read_json("compat-tests/golden/cases/get-schedulers.json");
    let want = case["response"].as_array().unwrap();
    assert_eq!(want.len(), SCHEDULERS.len());
    for (scheduler, want) in SCHEDULERS.iter().zip(want) {
        assert_eq!(scheduler.name, want["name"]);
        assert_eq!(scheduler.label, want["label"]);
        assert_eq!(
            scheduler
                .aliases
                .map(<[_]>::to_vec)
                .map_or(Value::Null, Value::from),
            want["aliases"]
        );
        assert_eq!(Some(scheduler.default_rho), want["default_rho"].as_f64());
        assert_eq!(
            scheduler.needs_inner_model, want["need_inner_model"],
            "{}",
            scheduler.name
        );
    }
}

#[test]
fn sampler_names_resolve_with_their_endings() {
    let cases = [
        ("DPM++ 2M Karras", "DPM++ 2M", "Automatic"),
        ("Euler a Karras", "Euler a", "Karras"),
        ("DPM++ 2M SDE Karras", "DPM++ 2M SDE", "Karras"),
        ("DPM++ 3M SDE Exponential", "DPM++ 3M SDE", "Automatic"),
        ("Euler SGMUniform", "Euler", "SGM Uniform"),
        ("k_euler_a", "DPM++ 2M", "Automatic"),
        ("foo", "DPM++ 2M", "Automatic"),
        ("", "DPM++ 2M", "Automatic"),
    ];
    for (name, sampler, scheduler) in cases {
        let resolved = resolve_names(name, "", true);
        assert_eq!(
            (resolved.0.name, resolved.1.label),
            (sampler, scheduler),
            "{name}"
        );
    }
}
