//! Guidance against the original wrapper over a toy model (`tests/golden/guidance_vectors.json`):
//! `out = tanh(x) * mean(ctx) + 0.01 * sigma * ctx[0, 0]`, contexts of constant rows. The toy model
//! answers in the wrapper's own quantity, so the walk is in timesteps, where nothing is converted.

use std::sync::{Arc, Mutex};

use ndarray::{Array2, Array3, Array4, Axis};
use serde_json::Value;

use super::golden_tests::{floats, read_json};
use super::guidance::{GuidedDenoiserParams, NoiseSpace};
use super::*;

/// The toy model, with the shapes it was called with.
#[derive(Default)]
struct Toy {
    calls: Mutex<Vec<(Vec<usize>, Vec<usize>)>>,
}

impl Unet for Toy {
    fn predict(&self, input: &UnetInput) -> Result<Array4<f32>, Cause> {
        let shapes = (
            input.sample.shape().to_vec(),
            input.context.shape().to_vec(),
        );
        self.calls.lock().unwrap().push(shapes);
        let mut output = input.sample.mapv(f32::tanh);
        for (row, mut out) in output.outer_iter_mut().enumerate() {
            let context = input.context.index_axis(Axis(0), row);
            let (mean, first) = (context.mean().unwrap(), context[[0, 0]]);
            out.mapv_inplace(|v| v * mean + 0.01 * input.timestep[row] * first);
        }
        Ok(output)
    }
}

/// One entry whose chunks of 77 rows hold these constants.
fn condition(end_at_step: usize, chunks: &[f32]) -> TextCondition {
    let context = Array2::from_shape_fn((77 * chunks.len(), 4), |(row, _)| chunks[row / 77]);
    TextCondition {
        end_at_step,
        context: Arc::new(context),
        vector: None,
    }
}

fn part(weight: f64, schedule: Vec<TextCondition>) -> PromptPart {
    PromptPart { weight, schedule }
}

/// A case of the vectors: what the wrapper is given.
struct Case {
    name: &'static str,
    positive: Vec<PromptPart>,
    negative: Vec<f32>,
    options: GuidanceOptions,
    multiplier: f64,
    mask: Option<InpaintMask>,
}

fn case(name: &'static str, positive: Vec<PromptPart>) -> Case {
    Case {
        name,
        positive,
        negative: vec![-0.5],
        options: GuidanceOptions::default(),
        multiplier: 1.0,
        mask: None,
    }
}

fn plain(name: &'static str) -> Case {
    case(name, vec![part(1.0, vec![condition(10, &[1.0])])])
}

fn with(mut case: Case, change: impl FnOnce(&mut GuidanceOptions)) -> Case {
    change(&mut case.options);
    case
}

fn cases() -> Vec<Case> {
    let second = |weight, chunks: &[f32]| part(weight, vec![condition(10, chunks)]);
    let long = || vec![second(1.0, &[1.0, 2.0])];
    let alternate = vec![
        condition(1, &[1.0]),
        condition(2, &[3.0]),
        condition(3, &[1.0]),
    ];
    let keep = Array3::from_shape_vec((1, 2, 2), vec![1.0, 0.0, 1.0, 0.5]).unwrap();
    let mask = InpaintMask {
        init: Array4::from_elem((1, 1, 2, 2), 2.0),
        repaint: keep.mapv(|m| 1.0 - m),
        keep,
        soft: None,
    };
    vec![
        plain("plain_scale7"),
        with(plain("scale1"), |o| o.cfg_scale = 1.0),
        case(
            "AND_1.0_and_-0.5",
            vec![second(1.0, &[1.0]), second(-0.5, &[0.25])],
        ),
        case(
            "AND_len_77_154",
            vec![second(1.0, &[1.0]), second(1.0, &[0.25, 0.75])],
        ),
        with(
            case(
                "schedule_end2_end10_5calls",
                vec![part(1.0, vec![condition(2, &[1.0]), condition(10, &[3.0])])],
            ),
            |o| o.cfg_scale = 1.0,
        ),
        with(
            case("alternate_ends_1_2_3", vec![part(1.0, alternate)]),
            |o| {
                o.cfg_scale = 1.0;
            },
        ),
        with(plain("ngms_smin4_4calls"), |o| o.s_min_uncond = Some(4.0)),
        with(plain("ngms_all_2calls"), |o| {
            o.s_min_uncond = Some(4.0);
            o.s_min_uncond_all = true;
        }),
        with(plain("skip_early_0.2_total10_5calls"), |o| {
            o.skip_early_cond = 0.2;
        }),
        with(
            case(
                "skip_early_AND",
                vec![second(1.0, &[1.0]), second(0.5, &[0.25])],
            ),
            |o| o.skip_early_cond = 0.2,
        ),
        Case {
            mask: Some(mask),
            ..plain("mask_before")
        },
        case("len_154_vs_77_default", long()),
        with(case("len_154_vs_77_pad", long()), |o| {
            o.padding = ContextPadding::Pad(Arc::new(Array2::from_elem((77, 4), 0.125)));
        }),
        Case {
            negative: vec![-0.5, 9.0],
            ..with(plain("v0_cond77_unc154_truncates"), |o| {
                o.padding = ContextPadding::PadV0;
            })
        },
        Case {
            multiplier: 1.0 / 12.5,
            ..plain("cfgpp_multiplier_scale7")
        },
    ]
}

#[test]
fn guidance_meets_the_original_wrapper() {
    let vectors = read_json("tests/golden/guidance_vectors.json");
    let x = Array4::from_shape_vec((1, 1, 2, 2), floats(&vectors["x"])).unwrap();
    for case in cases() {
        let name = case.name;
        let want = &vectors["cases"][name];
        let toy = Arc::new(Toy::default());
        let mut denoiser = GuidedDenoiser::new(GuidedDenoiserParams {
            model: SamplingModel {
                unet: toy.clone(),
                prediction: Prediction::Epsilon,
                alphas_cumprod: scaled_linear_alphas_cumprod(0.00085, 0.012, 1000).into(),
                is_edit: false,
            },
            space: NoiseSpace::Timestep,
            alpha_options: AlphaOptions::default(),
            quantize: false,
            conditioning: ScheduledConditioning {
                pictures: vec![PictureConditioning {
                    positive: case.positive,
                    negative: vec![condition(10, &case.negative)],
                }],
            },
            options: case.options,
            scale_multiplier: case.multiplier,
            total_steps: 10,
            image_conditioning: None,
            mask: case.mask,
            preview: Preview::Prompt,
            refiner: None,
            interrupted: &|| false,
        });
        for (call, want) in want[0].as_array().unwrap().iter().enumerate() {
            let got = denoiser.denoise(&x, 3.0).unwrap();
            for (got, want) in got.iter().zip(floats(want)) {
                assert!(
                    (got - want).abs() < 1e-5,
                    "{name}, call {call}: {got}, not {want}"
                );
            }
        }
        let calls: Vec<Value> = toy
            .calls
            .lock()
            .unwrap()
            .iter()
            .map(|(sample, context)| serde_json::json!([sample, context]))
            .collect();
        assert_eq!(Value::Array(calls), want[1], "{name}: UNet calls");
    }
}

#[test]
fn the_blend_after_the_network_keeps_the_original() {
    let vectors = read_json("tests/golden/guidance_vectors.json");
    let plain = floats(&vectors["cases"]["plain_scale7"][0][0]);
    let keep = Array3::from_shape_vec((1, 2, 2), vec![1.0, 0.0, 1.0, 0.5]).unwrap();
    let mask = InpaintMask {
        init: Array4::from_elem((1, 1, 2, 2), 2.0),
        repaint: keep.mapv(|m| 1.0 - m),
        keep,
        soft: None,
    };
    let denoised = Array4::from_shape_vec((1, 1, 2, 2), plain).unwrap();
    let blended = mask.blend(&denoised, 3.0);
    for (got, want) in blended
        .iter()
        .zip(floats(&vectors["cases"]["mask_after"][0][0]))
    {
        assert!((got - want).abs() < 1e-5, "{got}, not {want}");
    }
}
