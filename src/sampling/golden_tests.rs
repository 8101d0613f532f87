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

fn sd_table() -> SigmaTable {
    let alphas = scaled_linear_alphas_cumprod(0.00085, 0.012);
    SigmaTable::new(&alphas, AlphaOptions::default(), false)
}

#[test]
fn explore() {
    let truth = read_json("compat-tests/golden/truth/sigmas.json");
    let table = sd_table();
    let alphas = floats(&truth["alphas_cumprod"]);
    let sigmas = floats(&truth["model_sigmas"]);
    println!(
        "alphas differ {}",
        alphas
            .iter()
            .zip(table.alphas_cumprod())
            .filter(|(a, b)| a != b)
            .count()
    );
    println!(
        "sigmas differ {}",
        sigmas
            .iter()
            .zip(table.sigmas())
            .filter(|(a, b)| a != b)
            .count()
    );
    let lcm = table.lcm();
    println!(
        "lcm differ {}",
        floats(&truth["lcm_model_sigmas"])
            .iter()
            .zip(lcm.sigmas())
            .filter(|(a, b)| a != b)
            .count()
    );
    println!("{}", truth["sigma_to_t"]);
    let mut bad = std::collections::BTreeMap::new();
    for (key, position) in truth["index"].as_object().unwrap() {
        let want = &truth["lists"][position.as_u64().unwrap() as usize];
        let parts: Vec<&str> = key.split(" | ").collect();
        let (sampler, label) = (find_sampler(parts[0]).unwrap(), parts[1]);
        let count: usize = parts[2].parse().unwrap();
        let mut options = ScheduleOptions::default();
        let (extra, label) = label
            .rsplit_once(' ')
            .filter(|(e, _)| e.contains('=') || e.contains('_') || e.contains('/'))
            .unwrap_or(("", label));
        match extra {
            "" => {}
            "rho=5,sigma_min=0.1,sigma_max=10" => {
                options.rho = 5.0;
                options.sigma_min = 0.1;
                options.sigma_max = 10.0;
            }
            "use_old_karras_scheduler_sigmas" => options.use_old_karras_sigmas = true,
            "always_discard_next_to_last_sigma" => options.always_discard_penultimate = true,
            "beta 0.8/0.5" => {
                options.beta_alpha = 0.8;
                options.beta_beta = 0.5;
            }
            other => panic!("{other}"),
        }
        if label == "timesteps" {
            let want: Vec<usize> = want
                .as_array()
                .unwrap()
                .iter()
                .map(|v| v.as_f64().unwrap() as usize)
                .collect();
            assert_eq!(discretised_timesteps(count).unwrap(), want, "{key}");
            continue;
        }
        let Some(scheduler) = find_scheduler(label) else {
            panic!("{key}")
        };
        if want.is_object() {
            println!("{key} {want}");
            continue;
        }
        let want = floats(want);
        let levels = match sampler.kind {
            SamplerKind::Lcm(_) => Levels::Lcm(&lcm),
            _ => Levels::Full(&table),
        };
        let scheduler = effective_scheduler(sampler, scheduler);
        let discards = sampler.discards_penultimate || options.always_discard_penultimate;
        let mut got = scheduler
            .sigmas(count + usize::from(discards), levels, &options)
            .unwrap();
        if discards {
            got.remove(got.len() - 2);
        }
        if got.len() != want.len() {
            println!("{key} length {} {}", got.len(), want.len());
            continue;
        }
        let differing: Vec<(usize, f32, f32)> = got
            .iter()
            .zip(&want)
            .enumerate()
            .filter(|(_, (a, b))| a != b)
            .map(|(i, (a, b))| (i, *a, *b))
            .collect();
        if !differing.is_empty() {
            bad.entry(position.as_u64())
                .or_insert((key.clone(), count, differing));
        }
    }
    for (p, v) in &bad {
        println!("{p:?} {v:?}");
    }
}
