//! The crate stable-diffusion-a1111-webui-client, unmodified: its whole surface against a started server.
//!
//!     cargo run -- --base http://127.0.0.1:7860 [--login user:password]
//!
//! Prints one line a check, `ok NAME` or `FAIL NAME: why`.

use std::future::Future;
use std::process::ExitCode;

use stable_diffusion_a1111_webui_client::image::{DynamicImage, GenericImageView, Rgb, RgbImage};
use stable_diffusion_a1111_webui_client::{
    Authentication, BaseGenerationRequest, Client, ClientError, GenerationResult,
    ImageToImageGenerationRequest, InpaintingFillMode, Interrogator, PostprocessRequest,
    ResizeMode, Sampler, TextToImageGenerationRequest, Upscaler,
};

type Outcome = Result<(), String>;

const PROMPT: &str = "a red cube on a table, (blue sky:1.2)";

fn quick() -> BaseGenerationRequest {
    BaseGenerationRequest {
        prompt: PROMPT.to_owned(),
        negative_prompt: Some("blurry, lowres".to_owned()),
        width: Some(64),
        height: Some(64),
        steps: Some(4),
        seed: Some(61),
        ..BaseGenerationRequest::default()
    }
}

fn text(base: BaseGenerationRequest) -> TextToImageGenerationRequest {
    TextToImageGenerationRequest {
        base,
        ..TextToImageGenerationRequest::default()
    }
}

fn picture(width: u32, height: u32) -> DynamicImage {
    DynamicImage::ImageRgb8(RgbImage::from_pixel(width, height, Rgb([70, 130, 180])))
}

fn say(error: impl std::fmt::Debug) -> String {
    format!("{error:?}")
}

fn equal<T: PartialEq + std::fmt::Debug>(got: T, want: T, what: &str) -> Outcome {
    if got == want {
        Ok(())
    } else {
        Err(format!("{what}: {got:?}, not {want:?}"))
    }
}

fn sizes(result: &GenerationResult) -> Result<Vec<(u32, u32)>, String> {
    let images = result.images().map_err(say)?;
    Ok(images.iter().map(GenericImageView::dimensions).collect())
}

async fn txt2img(client: &Client) -> Outcome {
    let request = text(BaseGenerationRequest {
        batch_size: Some(2),
        batch_count: Some(2),
        cfg_scale: Some(6.5),
        ..quick()
    });
    let result = client.generate_from_text(&request).await.map_err(say)?;
    equal(sizes(&result)?, vec![(64, 64); 4], "sizes")?;
    equal(result.info.seeds, vec![61, 62, 63, 64], "seeds")?;
    equal(result.info.prompts, vec![PROMPT.to_owned(); 4], "prompts")?;
    equal(
        (result.info.cfg_scale, result.info.steps),
        (6.5, 4),
        "settings",
    )?;
    equal(result.info.subseed_strength, 0.0, "subseed strength")
}

async fn every_sampler(client: &Client) -> Outcome {
    for sampler in Sampler::VALUES {
        let request = text(BaseGenerationRequest {
            sampler: Some(*sampler),
            steps: Some(3),
            ..quick()
        });
        let result = client.generate_from_text(&request).await.map_err(say)?;
        // The scheduler at the end of its older names is no part of the sampler's name since 1.9.
        let name = sampler.to_string().replace(" Karras", "");
        equal(result.info.sampler.to_string(), name, "sampler")?;
    }
    Ok(())
}

async fn every_setting(client: &Client) -> Outcome {
    let request = text(BaseGenerationRequest {
        subseed: Some(5),
        subseed_strength: Some(0.25),
        tiling: Some(true),
        eta: Some(0.5),
        s_churn: Some(0.0),
        s_noise: Some(1.0),
        s_tmin: Some(0.0),
        s_tmax: Some(0.0),
        seed_resize_from_w: Some(128),
        seed_resize_from_h: Some(96),
        restore_faces: Some(false),
        denoising_strength: Some(0.6),
        styles: Some(vec!["no such style".to_owned()]),
        ..quick()
    });
    let info = client.generate_from_text(&request).await.map_err(say)?.info;
    equal(
        (info.subseeds, info.subseed_strength),
        (vec![5], 0.25),
        "subseed",
    )?;
    equal(info.seed_resize_from_w, Some(128), "seed_resize_from_w")?;
    equal(info.clip_skip, 1, "clip_skip")
}

async fn hires_fix(client: &Client) -> Outcome {
    let request = TextToImageGenerationRequest {
        base: BaseGenerationRequest {
            denoising_strength: Some(0.6),
            ..quick()
        },
        enable_hr: Some(true),
        ..TextToImageGenerationRequest::default()
    };
    let result = client.generate_from_text(&request).await.map_err(say)?;
    equal(sizes(&result)?, vec![(128, 128)], "sizes")
}

async fn img2img(client: &Client) -> Outcome {
    let mut mask = RgbImage::new(64, 64);
    for (x, y, pixel) in mask.enumerate_pixels_mut() {
        if (16..48).contains(&x) && (16..48).contains(&y) {
            *pixel = Rgb([255; 3]);
        }
    }
    for resize_mode in ResizeMode::VALUES {
        for mask in [None, Some(DynamicImage::ImageRgb8(mask.clone()))] {
            let request = ImageToImageGenerationRequest {
                base: quick(),
                images: vec![picture(64, 64)],
                resize_mode: Some(*resize_mode),
                mask,
                mask_blur: Some(2),
                inpainting_fill_mode: Some(InpaintingFillMode::Original),
                ..ImageToImageGenerationRequest::default()
            };
            let call = client.generate_from_image_and_text(&request);
            let result = call.await.map_err(say)?;
            equal(sizes(&result)?, vec![(64, 64)], "sizes")?;
        }
    }
    Ok(())
}

async fn chooses_the_checkpoint(client: &Client) -> Outcome {
    for model in client.models().await.map_err(say)?.into_iter().take(2) {
        let hash = model.hash_short.clone();
        let request = text(BaseGenerationRequest {
            model: Some(model),
            ..quick()
        });
        let info = client.generate_from_text(&request).await.map_err(say)?.info;
        if let Some(hash) = hash {
            equal(info.model_hash, hash, "the checkpoint's hash")?;
        }
    }
    Ok(())
}

async fn postprocess(client: &Client) -> Outcome {
    let request = PostprocessRequest {
        upscaler_1: Upscaler::Lanczos,
        upscaler_2: Upscaler::Nearest,
        upscaler_2_visibility: Some(0.5),
        scale_factor: 2.0,
        ..PostprocessRequest::default()
    };
    let larger = client.postprocess(&picture(32, 24), &request).await;
    equal(larger.map_err(say)?.dimensions(), (64, 48), "size")
}

async fn png_info(client: &Client) -> Outcome {
    let result = client
        .generate_from_text(&text(quick()))
        .await
        .map_err(say)?;
    let found = client.png_info(&result.pngs[0]).await.map_err(say)?;
    if found.starts_with(PROMPT) && found.contains("Seed: 61") {
        Ok(())
    } else {
        Err(found)
    }
}

async fn interrogate(client: &Client) -> Outcome {
    let caption = client
        .interrogate(&picture(64, 64), Interrogator::Clip)
        .await;
    equal(caption.map_err(say)?.is_empty(), false, "an empty caption")
}

/// After a job; before the first one A1111's timestamp is `0`, which the client cannot read.
async fn progress(client: &Client) -> Outcome {
    client
        .generate_from_text(&text(quick()))
        .await
        .map_err(say)?;
    let found = client.progress().await.map_err(say)?;
    equal(found.progress_factor, 0.0, "progress of an idle server")
}

async fn lists(client: &Client) -> Outcome {
    let samplers = client.samplers().await.map_err(say)?;
    equal(samplers.contains(&Sampler::EulerA), true, "Euler a")?;
    let upscalers = client.upscalers().await.map_err(say)?;
    equal(upscalers.contains(&Upscaler::Lanczos), true, "Lanczos")?;
    let titles: Vec<String> = client
        .models()
        .await
        .map_err(say)?
        .into_iter()
        .map(|model| model.title)
        .collect();
    let current = client.options().await.map_err(say)?.model;
    equal(
        titles.contains(&current),
        true,
        "the checkpoint in use among the titles",
    )?;
    client.hypernetworks().await.map_err(say)?;
    client.embeddings().await.map_err(say)?;
    client.prompt_styles().await.map_err(say)?;
    let restorers = client.face_restorers().await.map_err(say)?;
    equal(
        restorers,
        vec!["CodeFormer".to_owned(), "GFPGAN".to_owned()],
        "face restorers",
    )?;
    equal(
        client.realesrgan_models().await.map_err(say)?.len(),
        6,
        "RealESRGAN models",
    )
}

async fn lists_that_a1111_no_longer_has(client: &Client) -> Outcome {
    let not_found =
        |error| matches!(error, ClientError::Error { message } if message == "Not Found");
    equal(
        client.artists().await.is_err_and(not_found),
        true,
        "artists",
    )?;
    let categories = client.artist_categories().await;
    equal(categories.is_err_and(not_found), true, "artist categories")
}

async fn errors_reach_the_caller(client: &Client) -> Outcome {
    let request = PostprocessRequest {
        upscaler_1: Upscaler::Ldsr,
        scale_factor: -1.0,
        ..PostprocessRequest::default()
    };
    match client.postprocess(&picture(8, 8), &request).await {
        Err(ClientError::Error { message }) if message.contains("greater than 0") => Ok(()),
        other => Err(format!("{:?}", other.map(|_| ()))),
    }
}

async fn the_login_opens(base: &str, user: &str, password: &str) -> Outcome {
    let open = Client::new(base, Authentication::None).await.map_err(say)?;
    match open.options().await {
        Err(ClientError::NotAuthenticated) => {}
        other => return Err(format!("without a login: {other:?}")),
    }
    let login = Authentication::ApiAuth(user, password);
    let client = Client::new(base, login).await.map_err(say)?;
    let result = client
        .generate_from_text(&text(quick()))
        .await
        .map_err(say)?;
    equal(sizes(&result)?, vec![(64, 64)], "sizes")
}

/// Runs one check and prints its line; whether it passed.
async fn report(name: &str, check: impl Future<Output = Outcome>) -> bool {
    let outcome = check.await;
    match &outcome {
        Ok(()) => println!("ok {name}"),
        Err(why) => println!("FAIL {name}: {}", why.replace('\n', " ")),
    }
    outcome.is_ok()
}

macro_rules! run {
    ($client:expr, [$($check:ident),* $(,)?]) => {{
        let mut passed = true;
        $(passed &= report(stringify!($check), $check($client)).await;)*
        passed
    }};
}

fn argument(name: &str) -> Option<String> {
    std::env::args()
        .skip_while(|argument| argument != name)
        .nth(1)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let base = argument("--base").unwrap_or_else(|| "http://127.0.0.1:7860".to_owned());
    let passed = if let Some(login) = argument("--login") {
        let (user, password) = login.split_once(':').unwrap_or((&login, ""));
        report("the_login_opens", the_login_opens(&base, user, password)).await
    } else {
        let client = match Client::new(&base, Authentication::None).await {
            Ok(client) => client,
            Err(error) => {
                println!("FAIL connect: {error:?}");
                return ExitCode::FAILURE;
            }
        };
        run!(
            &client,
            [
                txt2img,
                every_sampler,
                every_setting,
                hires_fix,
                img2img,
                chooses_the_checkpoint,
                postprocess,
                png_info,
                interrogate,
                progress,
                lists,
                lists_that_a1111_no_longer_has,
                errors_reach_the_caller,
            ]
        )
    };
    if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
