//! Options that change pictures or infotexts, each set globally and by `override_settings`, which must
//! agree and be undone: the real pipeline over toy networks, in process. `docs/OPTIONS.md` says of
//! every option whether it is honoured.

#[path = "support/in_process.rs"]
mod in_process;
#[path = "support/toy_models.rs"]
mod toy_models;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use ancestral::conditioning::{
    CacheLimits, ConditioningCache, EncodedText, HiddenState, TextEncoder, TokenBatch,
};
use ancestral::config::option_table;
use ancestral::jobs::Engine;
use ancestral::pipeline::{
    Cause, ExtrasParams, ExtrasResult, FaceNetworkProvider, GenerateError, GenerationParams,
    GenerationResult, JobControl, Model, ModelProvider, ModelRequest, ShortHash, generate,
};
use ancestral::scripts::ScriptCall;
use in_process::{InProcess, Reply, picture};
use serde_json::{Value, json};
use toy_models::{ToyEngine, ToyModels};

/// Which request shows an option's effect.
#[derive(Clone, Copy)]
enum Way {
    Txt2Img,
    Img2Img,
}
use Way::{Img2Img, Txt2Img};

struct Case {
    key: &'static str,
    value: Value,
    way: Way,
    request: Value,
}

fn case(key: &'static str, value: Value, way: Way, request: Value) -> Case {
    Case {
        key,
        value,
        way,
        request,
    }
}

fn long_prompt() -> String {
    let words: Vec<String> = (0..60)
        .map(|number| format!("word{number} and more,"))
        .collect();
    words.join(" ")
}

fn transparent() -> String {
    use base64::Engine as _;
    let picture = image::RgbaImage::from_pixel(64, 64, image::Rgba([10, 20, 30, 40]));
    let png = ancestral::imaging::encode_png(&picture.into(), &[]).expect("encodes");
    base64::engine::general_purpose::STANDARD.encode(png)
}

/// Options whose effect shows in the pixels.
fn pixel_cases() -> Vec<Case> {
    let none = || json!({});
    let hires = json!({"enable_hr": true, "denoising_strength": 0.5, "hr_scale": 1.5, "hr_upscaler": "Latent"});
    let mask = json!({"mask": picture(64, 64), "inpaint_full_res": false});
    let unipc = |steps: i64| json!({"sampler_name": "UniPC", "steps": steps});
    let euler_a = json!({"sampler_name": "Euler a", "steps": 4});
    let karras = json!({"scheduler": "Karras", "steps": 4});
    let churned = json!({"sampler_name": "Euler", "s_churn": 2.0, "steps": 4});
    let mut refined = hires.clone();
    refined["refiner_checkpoint"] = json!("other");
    refined["refiner_switch_at"] = json!(0.5);
    vec![
        case(
            "emphasis",
            json!("Ignore"),
            Txt2Img,
            json!({"prompt": "a (castle:1.5)"}),
        ),
        case(
            "comma_padding_backtrack",
            json!(0),
            Txt2Img,
            json!({"prompt": long_prompt()}),
        ),
        case("CLIP_stop_at_last_layers", json!(2), Txt2Img, none()),
        case("randn_source", json!("CPU"), Txt2Img, none()),
        case("tiling", json!(true), Txt2Img, none()),
        case(
            "enable_prompt_comments",
            json!(false),
            Txt2Img,
            json!({"prompt": "a castle # not seen"}),
        ),
        case(
            "initial_noise_multiplier",
            json!(0.5),
            Img2Img,
            json!({"initial_noise_multiplier": null}),
        ),
        case("img2img_extra_noise", json!(0.5), Img2Img, none()),
        case("img2img_color_correction", json!(true), Img2Img, none()),
        case("img2img_fix_steps", json!(true), Img2Img, none()),
        case(
            "img2img_background_color",
            json!("#ff0000"),
            Img2Img,
            json!({"init_images": [transparent()]}),
        ),
        case("overlay_inpaint", json!(false), Img2Img, mask.clone()),
        case("return_mask", json!(true), Img2Img, mask.clone()),
        case("return_mask_composite", json!(true), Img2Img, mask),
        case("s_min_uncond", json!(20.0), Txt2Img, json!({"steps": 6})),
        case(
            "s_min_uncond_all",
            json!(true),
            Txt2Img,
            json!({"steps": 6, "s_min_uncond": 20.0}),
        ),
        case("skip_early_cond", json!(0.5), Txt2Img, json!({"steps": 6})),
        case(
            "pad_cond_uncond_v0",
            json!(true),
            Txt2Img,
            json!({"negative_prompt": long_prompt()}),
        ),
        case(
            "use_old_karras_scheduler_sigmas",
            json!(true),
            Txt2Img,
            karras.clone(),
        ),
        case("use_old_hires_fix_width_height", json!(true), Txt2Img, {
            let mut request = hires.clone();
            request["width"] = json!(128);
            request["height"] = json!(128);
            request
        }),
        case(
            "use_old_scheduling",
            json!(true),
            Txt2Img,
            json!({"prompt": "[a:b:1.0] c", "sampler_name": "Heun", "steps": 5}),
        ),
        case(
            "hires_fix_refiner_pass",
            json!("first pass"),
            Txt2Img,
            refined,
        ),
        case("eta_ancestral", json!(0.3), Txt2Img, euler_a.clone()),
        case(
            "eta_ddim",
            json!(0.9),
            Txt2Img,
            json!({"sampler_name": "DDIM", "steps": 4}),
        ),
        case("s_churn", json!(3.0), Txt2Img, json!({"steps": 4})),
        case("s_tmin", json!(5.0), Txt2Img, churned.clone()),
        case("s_tmax", json!(2.0), Txt2Img, churned.clone()),
        case("s_noise", json!(0.5), Txt2Img, churned),
        case("sigma_min", json!(0.3), Txt2Img, karras.clone()),
        case("sigma_max", json!(5.0), Txt2Img, karras.clone()),
        case("rho", json!(3.0), Txt2Img, karras.clone()),
        case("eta_noise_seed_delta", json!(31337), Txt2Img, euler_a),
        case(
            "always_discard_next_to_last_sigma",
            json!(true),
            Txt2Img,
            karras,
        ),
        case("sgm_noise_multiplier", json!(true), Txt2Img, none()),
        case("uni_pc_variant", json!("bh2"), Txt2Img, unipc(6)),
        case(
            "uni_pc_skip_type",
            json!("time_quadratic"),
            Txt2Img,
            unipc(6),
        ),
        case("uni_pc_order", json!(1), Txt2Img, unipc(6)),
        case("uni_pc_lower_order_final", json!(false), Txt2Img, unipc(6)),
        case(
            "sd_noise_schedule",
            json!("Zero Terminal SNR"),
            Txt2Img,
            none(),
        ),
        case(
            "beta_dist_alpha",
            json!(0.3),
            Txt2Img,
            json!({"scheduler": "Beta", "steps": 5}),
        ),
        case(
            "beta_dist_beta",
            json!(0.3),
            Txt2Img,
            json!({"scheduler": "Beta", "steps": 5}),
        ),
        case(
            "enable_quantization",
            json!(true),
            Txt2Img,
            json!({"scheduler": "Karras", "steps": 5}),
        ),
        case(
            "return_grid",
            json!(false),
            Txt2Img,
            json!({"n_iter": 2, "save_images": true}),
        ),
        case(
            "grid_only_if_multiple",
            json!(false),
            Txt2Img,
            json!({"save_images": true}),
        ),
        case(
            "n_rows",
            json!(1),
            Txt2Img,
            json!({"n_iter": 4, "save_images": true}),
        ),
        case(
            "grid_prevent_empty_spots",
            json!(true),
            Txt2Img,
            json!({"n_iter": 5, "save_images": true}),
        ),
    ]
}

/// Options whose effect shows in the infotext alone.
fn text_cases() -> Vec<Case> {
    let vae = || json!({"override_settings": {"sd_vae": "toy.vae.pt"}});
    vec![
        case("add_model_name_to_info", json!(false), Txt2Img, json!({})),
        case("add_model_hash_to_info", json!(false), Txt2Img, json!({})),
        case("add_vae_name_to_info", json!(false), Txt2Img, vae()),
        case("add_vae_hash_to_info", json!(false), Txt2Img, vae()),
        case("add_version_to_infotext", json!(false), Txt2Img, json!({})),
        // Its pixels differ by less than a grey level here.
        case("use_downcasted_alpha_bar", json!(true), Txt2Img, json!({})),
        case("sd_vae", json!("toy.vae.pt"), Txt2Img, json!({})),
        case("sd_lora", json!("style"), Txt2Img, json!({})),
    ]
}

async fn draw(server: &InProcess, case: &Case, overrides: Option<&Value>) -> Reply {
    let mut request = case.request.clone();
    if let Some(value) = overrides {
        request["override_settings"][case.key] = value.clone();
    }
    let reply = match case.way {
        Txt2Img => server.txt2img(&request).await,
        Img2Img => server.img2img(&request).await,
    };
    assert_eq!(reply.status, 200, "{}: {}", case.key, reply.json());
    reply
}

fn pixels(reply: &Reply) -> Vec<Vec<u8>> {
    let decoded = |bytes: &Vec<u8>| {
        ancestral::imaging::decode(bytes)
            .expect("a picture")
            .picture
            .into_bytes()
    };
    reply.images().iter().map(decoded).collect()
}

fn texts(reply: &Reply) -> Value {
    reply.info()["infotexts"].clone()
}

/// Draws with the default, with an override, without it again, and with the option set; `of` is what
/// has to differ.
async fn check<T: PartialEq>(case: &Case, of: fn(&Reply) -> T) -> Result<(), String> {
    let server = InProcess::new(&["--use-cpu", "none"]);
    let plain = of(&draw(&server, case, None).await);
    let overridden = of(&draw(&server, case, Some(&case.value)).await);
    // A1111 reads this one before it applies overrides.
    if case.key != "initial_noise_multiplier" && plain == overridden {
        return Err("the override has no effect".to_owned());
    }
    if plain != of(&draw(&server, case, None).await) {
        return Err("the override is not undone".to_owned());
    }
    server.set(&json!({case.key: case.value})).await;
    let set = of(&draw(&server, case, None).await);
    if plain == set {
        return Err("the option has no effect".to_owned());
    }
    if case.key != "initial_noise_multiplier" && set != overridden {
        return Err("option and override differ".to_owned());
    }
    Ok(())
}

#[actix_web::test]
async fn options_change_pictures_globally_and_by_override() {
    let mut wrong = Vec::new();
    for case in pixel_cases() {
        if let Err(why) = check(&case, pixels).await {
            wrong.push(format!("{}: {why}", case.key));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[actix_web::test]
async fn options_change_infotexts_globally_and_by_override() {
    let mut wrong = Vec::new();
    for case in text_cases() {
        if let Err(why) = check(&case, texts).await {
            wrong.push(format!("{}: {why}", case.key));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[actix_web::test]
async fn overrides_stay_where_the_request_asks_for_it() {
    let server = InProcess::new(&[]);
    let request = json!({
        "override_settings": {"CLIP_stop_at_last_layers": 2, "eta_ancestral": 0.5},
        "override_settings_restore_afterwards": false,
    });
    server.txt2img(&request).await;
    let options = server.get("/sdapi/v1/options").await.json();
    assert_eq!(options["CLIP_stop_at_last_layers"], 2.0);
    assert_eq!(options["eta_ancestral"], 0.5);
    // They are not written to the file until something else saves it.
    assert_eq!(server.files(""), ["params.txt"]);
    // A request that fails after overrides were applied leaves nothing behind.
    let failing = json!({
        "override_settings": {"CLIP_stop_at_last_layers": 3, "sd_vae": toy_models::BROKEN_VAE},
    });
    assert_eq!(server.txt2img(&failing).await.status, 500);
    let options = server.get("/sdapi/v1/options").await.json();
    assert_eq!(options["CLIP_stop_at_last_layers"], 2.0);
    assert_eq!(options["sd_vae"], "Automatic");
}

/// Rows of `docs/OPTIONS.md`: key and what becomes of it.
fn documented() -> Vec<(String, String)> {
    include_str!("../docs/OPTIONS.md")
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter_map(|line| {
            let (key, rest) = line.split_once("` | ")?;
            Some((key.to_owned(), rest.split(" |").next()?.to_owned()))
        })
        .collect()
}

/// The toy engine with text encoders that count their calls, and a cache that outlives a request.
struct Counting {
    calls: Arc<AtomicUsize>,
    cache: Arc<ConditioningCache>,
    /// What every load was told of the work that needs no other text.
    without_text: Arc<Mutex<Vec<u64>>>,
}

struct CountedText {
    inner: Arc<dyn TextEncoder>,
    calls: Arc<AtomicUsize>,
}

impl TextEncoder for CountedText {
    fn encode(&self, batch: &TokenBatch, state: HiddenState) -> Result<EncodedText, Cause> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.inner.encode(batch, state)
    }

    fn width(&self) -> usize {
        self.inner.width()
    }
}

impl ModelProvider for Counting {
    fn load(&self, request: &ModelRequest) -> Result<Arc<Model>, Cause> {
        let mut model = Model::clone(&*ToyModels.load(request)?);
        model.text_cache = Arc::clone(&self.cache);
        let announced = request.latent_pixels_without_text;
        self.without_text.lock().unwrap().push(announced);
        for encoder in &mut model.text_encoders {
            *encoder = Arc::new(CountedText {
                inner: Arc::clone(encoder),
                calls: Arc::clone(&self.calls),
            });
        }
        Ok(Arc::new(model))
    }

    fn knows(&self, checkpoint: &str) -> bool {
        ToyModels.knows(checkpoint)
    }

    fn faces(&self) -> &dyn FaceNetworkProvider {
        ToyModels.faces()
    }
}

#[rustfmt::skip]
impl Engine for Counting {
    fn generate(
        &self,
        params: &GenerationParams,
        control: &dyn JobControl,
    ) -> Result<GenerationResult, GenerateError> {
        generate(params, self, control)
    }
    fn run_script(
        &self,
        script: &ScriptCall,
        params: &GenerationParams,
        control: &dyn JobControl,
    ) -> Result<GenerationResult, GenerateError> {
        ToyEngine.run_script(script, params, control)
    }
    fn extras(
        &self,
        params: &ExtrasParams,
        control: &dyn JobControl,
    ) -> Result<ExtrasResult, GenerateError> {
        ToyEngine.extras(params, control)
    }
    fn load(&self, request: &ModelRequest) -> Result<ShortHash, GenerateError> { ToyEngine.load(request) }
    fn unload(&self) {}
}

#[actix_web::test]
async fn prompts_are_encoded_once_while_nothing_changes_unless_the_option_says_otherwise() {
    let calls = Arc::new(AtomicUsize::new(0));
    let engine = Counting {
        calls: Arc::clone(&calls),
        cache: Arc::new(ConditioningCache::new(CacheLimits {
            entries: 16,
            bytes: 1 << 20,
        })),
        without_text: Arc::default(),
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let server = InProcess::with_engine(folder, &[], Arc::new(engine));
    let draw = async |overrides: Value| {
        let before = calls.load(Ordering::Relaxed);
        let request = json!({"override_settings": overrides});
        let reply = server.txt2img(&request).await;
        assert_eq!(reply.status, 200);
        (calls.load(Ordering::Relaxed) - before, reply.images())
    };
    let (first, picture) = draw(json!({})).await;
    assert_eq!(first, 2, "both prompts");
    let (second, same) = draw(json!({})).await;
    assert_eq!((second, &same), (0, &picture));
    let (skipped, _) = draw(json!({"CLIP_stop_at_last_layers": 2})).await;
    assert_eq!(skipped, 2);
    let (anew, same) = draw(json!({"persistent_cond_cache": false})).await;
    assert_eq!((anew, &same), (2, &picture));
    let (kept, _) = draw(json!({})).await;
    assert_eq!(kept, 0);
}

#[actix_web::test]
async fn a_batch_after_which_another_text_is_encoded_announces_no_work_without_text() {
    let without_text = Arc::new(Mutex::new(Vec::new()));
    let engine = Counting {
        calls: Arc::default(),
        cache: Arc::new(ConditioningCache::new(CacheLimits {
            entries: 16,
            bytes: 1 << 20,
        })),
        without_text: Arc::clone(&without_text),
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let flags = ["--dynamic-prompts", "on"];
    let server = InProcess::with_engine(folder, &flags, Arc::new(engine));
    let announced = async |change: Value| {
        let mut request = json!({
            "prompt": "a cube", "sampler_name": "Euler", "steps": 4, "width": 64, "height": 64, "n_iter": 3, "seed": 1
        });
        let entries = change.as_object().unwrap().clone();
        request.as_object_mut().unwrap().extend(entries);
        let reply = server.txt2img(&request).await;
        assert_eq!(reply.status, 200);
        std::mem::take(&mut *without_text.lock().unwrap())
    };
    // Both rows of four steps of 8x8.
    let batch = 2 * 4 * 8 * 8;
    // The first load is the job's.
    let same = announced(json!({})).await;
    assert_eq!(same, [0, 3 * batch, 2 * batch, batch]);
    let other = announced(json!({"prompt": "{@red|green|blue} cube"})).await;
    assert_eq!(other, [0, 0, 0, batch]);
    let forgotten = json!({"override_settings": {"persistent_cond_cache": false}});
    assert_eq!(announced(forgotten).await, [0, batch, batch, batch]);
    let mut hires =
        json!({"n_iter": 1, "enable_hr": true, "hr_scale": 1.0, "denoising_strength": 1.0});
    let second_pass = announced(hires.clone()).await;
    assert!(second_pass[1] > batch, "{second_pass:?}");
    hires["hr_prompt"] = json!("a ball");
    assert_eq!(announced(hires).await[1], 0);
}

#[test]
fn the_document_says_of_every_option_what_becomes_of_it() {
    let documented = documented();
    let listed: BTreeSet<&str> = documented.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(listed.len(), documented.len(), "a key stands twice");
    for entry in option_table() {
        let concerns_the_api =
            ["generation", "output", "api", "runtime"].contains(&entry.effect.as_str());
        assert_eq!(
            listed.contains(entry.key.as_str()),
            concerns_the_api,
            "{}",
            entry.key
        );
    }
    for (key, state) in &documented {
        let known = ["honoured", "no effect", "refused"];
        assert!(
            known.iter().any(|word| state.starts_with(word)),
            "{key}: {state}"
        );
    }
    // What is tested here is not called without effect there.
    for case in pixel_cases().iter().chain(&text_cases()) {
        let state = documented.iter().find(|(key, _)| key == case.key);
        assert!(
            state.is_some_and(|(_, state)| state == "honoured"),
            "{}",
            case.key
        );
    }
}
