//! Infotexts out of pictures and back into requests: the real pipeline over toy networks, in process.

#[path = "support/in_process.rs"]
mod in_process;
#[path = "support/toy_models.rs"]
mod toy_models;

use ancestral::imaging::decode;
use base64::Engine as _;
use in_process::InProcess;
use serde_json::{Value, json};

fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// What `png-info` reads in a picture.
async fn read(server: &InProcess, picture: &[u8]) -> Value {
    let request = json!({"image": base64(picture)});
    server.post("/sdapi/v1/png-info", &request).await.json()
}

#[actix_web::test]
async fn a_request_with_a_pictures_infotext_draws_the_picture_again() {
    let styles = "name,prompt,negative_prompt\nInk,\"ink drawing, monochrome\",color\n";
    for (number, request) in [
        json!({}),
        json!({"sampler_name": "DPM++ 2M", "cfg_scale": 5.5, "width": 96}),
        json!({"sampler_name": "Euler a", "scheduler": "Karras", "eta": 0.7, "steps": 4,
            "override_settings": {"eta_noise_seed_delta": 31337, "CLIP_stop_at_last_layers": 2}}),
        json!({"subseed": 7, "subseed_strength": 0.25, "override_settings": {"randn_source": "CPU"}}),
        json!({"enable_hr": true, "denoising_strength": 0.5, "hr_upscaler": "Latent (nearest)",
            "hr_scale": 1.5, "hr_second_pass_steps": 2, "hr_prompt": "a tower: tall, grey",
            "sampler_name": "Euler", "scheduler": "Exponential"}),
        json!({"styles": ["Ink"], "prompt": "(a, b:1.2)\nsecond line", "negative_prompt": "c, d\ne"}),
        json!({"sampler_name": "DPM++ 2M SDE", "override_settings": {
            "sigma_min": 0.05, "rho": 5.0, "always_discard_next_to_last_sigma": true,
            "skip_early_cond": 0.3, "s_min_uncond": 2.0, "pad_cond_uncond": true,
            "emphasis": "No norm", "use_downcasted_alpha_bar": true}}),
        json!({"tiling": true, "prompt": "[a:b:0.5]", "override_settings": {
            "use_old_scheduling": true, "sd_noise_schedule": "Zero Terminal SNR",
            "sgm_noise_multiplier": true, "sd_vae": "toy.vae.pt"}}),
    ]
    .iter()
    .enumerate()
    {
        let server = InProcess::new(&[]);
        std::fs::write(server.data.path().join("styles.csv"), styles).expect("written");
        let first = server.txt2img(request).await;
        assert_eq!(first.status, 200, "{request}");
        let info = read(&server, &first.images()[0]).await;
        let text = info["info"].as_str().expect("a text");
        // The parsed styles are part of the request again.
        if number == 5 {
            assert_eq!(info["parameters"]["Styles array"], json!(["Ink"]));
        }
        let again = server
            .post("/sdapi/v1/txt2img", &json!({"infotext": text}))
            .await;
        assert_eq!(again.status, 200, "{request}");
        assert_eq!(again.info()["infotexts"][0], text, "{request}");
        let pixels = |reply: &in_process::Reply| decode(&reply.images()[0]).expect("PNG").picture;
        assert!(pixels(&first) == pixels(&again), "other pixels: {request}");
    }
}

#[actix_web::test]
async fn every_format_of_answers_is_read_back() {
    let server = InProcess::new(&[]);
    let prompt = "café ☕, \"quoted\": \\ backslash\nnew line";
    let mut read_texts = Vec::new();
    for format in ["png", "jpg", "jpeg", "webp", "PNG"] {
        server.set(&json!({"samples_format": format})).await;
        let reply = server.txt2img(&json!({"prompt": prompt})).await;
        let info = read(&server, &reply.images()[0]).await;
        assert_eq!(info["info"], reply.info()["infotexts"][0], "{format}");
        assert_eq!(info["parameters"]["Prompt"], prompt, "{format}");
        assert_eq!(info["parameters"]["Size-1"], "64", "{format}");
        read_texts.push(info["info"].clone());
    }
    assert!(read_texts.windows(2).all(|pair| pair[0] == pair[1]));
    server.set(&json!({"samples_format": "tga"})).await;
    let reply = server.txt2img(&json!({})).await;
    assert_eq!(reply.status, 500);
    assert_eq!(reply.json()["detail"], "Invalid image format");
}

#[actix_web::test]
async fn what_the_client_sends_wins_over_the_infotext() {
    let server = InProcess::new(&[]);
    let text = "a ball\nNegative prompt: dark\nSteps: 2, Sampler: DPM++ 2M Karras, CFG scale: 5, \
                Seed: 77, Size: 64x72, Clip skip: 2, ENSD: 31337, Model hash: 0123456789";
    let request = json!({
        "infotext": text, "seed": 5, "negative_prompt": null, "scheduler": "Exponential",
        "override_settings": {"CLIP_stop_at_last_layers": 1},
    });
    let reply = server.post("/sdapi/v1/txt2img", &request).await;
    // null is sent too; A1111 fails on it.
    assert_eq!(reply.status, 500);
    let mut request = request;
    request["negative_prompt"] = json!("");
    let reply = server.post("/sdapi/v1/txt2img", &request).await;
    let echo = reply.json()["parameters"].clone();
    assert_eq!(echo["prompt"], "a ball");
    assert_eq!(echo["negative_prompt"], "");
    assert_eq!((&echo["seed"], &echo["height"]), (&json!(5), &json!(72)));
    assert_eq!(echo["sampler_name"], "DPM++ 2M");
    assert_eq!(echo["scheduler"], "Exponential");
    // Without disable_weights_auto_swap off, the checkpoint stays.
    assert_eq!(
        echo["override_settings"],
        json!({"CLIP_stop_at_last_layers": 1, "eta_noise_seed_delta": 31337})
    );
    server
        .set(&json!({"disable_weights_auto_swap": false}))
        .await;
    let reply = server.post("/sdapi/v1/txt2img", &request).await;
    let overrides = reply.json()["parameters"]["override_settings"].clone();
    assert_eq!(overrides["sd_model_checkpoint"], "0123456789");
}

#[actix_web::test]
async fn options_decide_what_is_read() {
    let server = InProcess::new(&[]);
    let styles = "name,prompt,negative_prompt\nInk,ink drawing,\n";
    std::fs::write(server.data.path().join("styles.csv"), styles).expect("written");
    let reply = server.txt2img(&json!({"styles": ["Ink"]})).await;
    let picture = &reply.images()[0];
    for (option, styles, prompt) in [
        ("Apply if any", json!(["Ink"]), "a castle, on a hill"),
        ("Ignore", Value::Null, "a castle, on a hill, ink drawing"),
        ("Discard", Value::Null, "a castle, on a hill"),
    ] {
        server.set(&json!({"infotext_styles": option})).await;
        let parameters = read(&server, picture).await["parameters"].clone();
        assert_eq!(parameters["Prompt"], prompt, "{option}");
        assert_eq!(parameters["Styles array"], styles, "{option}");
    }
    server
        .set(&json!({"infotext_skip_pasting": ["Seed"]}))
        .await;
    let parameters = read(&server, picture).await["parameters"].clone();
    assert!(parameters.get("Seed").is_none(), "{parameters}");
    assert_eq!(parameters["Steps"], "3");
}
