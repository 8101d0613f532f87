//! This room against Pillow, OpenCV and torch: the files that `scripts/golden_images.py` writes, and the
//! recorded vectors of A1111's own functions.

use base64::Engine;
use image::{DynamicImage, GrayImage, RgbImage, RgbaImage};
use serde_json::Value;

use super::composite::premultiply_in_place;
use super::gaussian_blur::gaussian_blur;
use super::pixels::image_of;
use super::*;

macro_rules! golden {
    ($name:literal) => {
        serde_json::from_str::<Value>(include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/golden/",
            $name
        )))
        .expect("golden files are JSON")
    };
}

/// The generator of the script: the high bytes of Numerical Recipes' linear congruence.
fn noise(seed: u32, count: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..count).map(|_| next()).collect()
}

fn picture(seed: u32, mode: &str, width: u32, height: u32) -> DynamicImage {
    let channels = mode.len();
    let mut samples = noise(seed, (width * height) as usize * channels);
    if mode.ends_with('A') {
        for pixel in samples.chunks_exact_mut(channels) {
            let alpha = &mut pixel[channels - 1];
            *alpha = match *alpha {
                171.. => 255,
                85.. => *alpha,
                _ => 0,
            };
        }
    }
    match mode {
        "L" => DynamicImage::ImageLuma8(image_of(width, height, samples)),
        "LA" => DynamicImage::ImageLumaA8(image_of(width, height, samples)),
        "RGB" => DynamicImage::ImageRgb8(image_of(width, height, samples)),
        _ => DynamicImage::ImageRgba8(image_of(width, height, samples)),
    }
}

fn rgb(seed: u32, width: u32, height: u32) -> RgbImage {
    picture(seed, "RGB", width, height).to_rgb8()
}

/// The script's `smooth`.
fn smooth(seed: u32, width: u32, height: u32) -> RgbImage {
    let wave: Vec<u32> = noise(seed, 3).into_iter().map(u32::from).collect();
    RgbImage::from_fn(width, height, |x, y| {
        let level = |w: u32| ((x * (3 + w % 5) + y * (2 + w % 7) + x * y / 9 + w) % 256) as u8;
        image::Rgb([level(wave[0]), level(wave[1]), level(wave[2])])
    })
}

fn bytes(value: &Value) -> Vec<u8> {
    let text = value.as_str().expect("base64 text");
    base64::engine::general_purpose::STANDARD
        .decode(text)
        .expect("golden base64")
}

fn numbers(value: &Value) -> Vec<u8> {
    let list = value.as_array().expect("a list");
    list.iter()
        .map(|n| n.as_f64().expect("a number") as u8)
        .collect()
}

fn number(value: &Value) -> u32 {
    value.as_u64().expect("a whole number") as u32
}

fn size(value: &Value) -> (u32, u32) {
    (number(&value[0]), number(&value[1]))
}

fn crc32(data: &[u8]) -> u64 {
    let mut crc = flate2::Crc::new();
    crc.update(data);
    u64::from(crc.sum())
}

fn cases(golden: &Value) -> &Vec<Value> {
    golden["cases"].as_array().expect("a list of cases")
}

#[test]
fn resampling_is_pillows_to_the_byte() {
    for case in cases(&golden!("images_resample.json")) {
        let filter = match case["filter"].as_str().unwrap() {
            "nearest" => Filter::Nearest,
            "box" => Filter::Box,
            "bilinear" => Filter::Bilinear,
            "bicubic" => Filter::Bicubic,
            _ => Filter::Lanczos,
        };
        let (from, to) = (size(&case["from"]), size(&case["to"]));
        let mode = case["mode"].as_str().unwrap();
        let input = picture(number(&case["seed"]), mode, from.0, from.1);
        let output = resize(&input, to.0, to.1, filter);
        if case["crc32"].is_null() {
            assert_eq!(
                output.as_bytes(),
                bytes(&case["want"]),
                "{filter:?} {mode} {from:?} {to:?}"
            );
        } else {
            assert_eq!(
                case["crc32"],
                crc32(output.as_bytes()),
                "{filter:?} {from:?} {to:?}"
            );
        }
    }
}

#[test]
fn resampling_gives_the_recorded_vectors() {
    let golden = golden!("image_vectors.json");
    let lanczos = &golden["lanczos"];
    let input: RgbImage = image_of(7, 5, numbers(&lanczos["input_5x7x3"]));
    let checks = [
        ("to_w10_h8", 10, 8, Filter::Lanczos),
        ("to_w3_h3", 3, 3, Filter::Lanczos),
        ("default_resize_rgb_bicubic_w3_h2", 3, 2, Filter::Bicubic),
        ("default_resize_rgb_bicubic_w12_h9", 12, 9, Filter::Bicubic),
    ];
    for (name, width, height, filter) in checks {
        let output = resize_rgb(&input, width, height, filter);
        assert_eq!(output.as_raw(), &numbers(&lanczos[name]), "{name}");
    }
}

#[test]
fn resize_modes_give_the_recorded_vectors() {
    let golden = golden!("image_vectors.json");
    let modes = &golden["resize_modes"];
    let input: RgbImage = image_of(12, 6, numbers(&modes["input_w12_h6"]));
    for mode in 0..3 {
        let name = format!("mode{mode}_to_w8_h8");
        let how = ResizeMode::from_number(mode);
        let output = resize_image(how, &input.clone().into(), 8, 8, &Upscaler::None).unwrap();
        assert_eq!(output.as_bytes(), numbers(&modes[&name]), "{name}");
    }
}

#[test]
fn crop_and_fill_are_pillows_to_the_byte() {
    for case in cases(&golden!("images_resize_mode.json")) {
        let (from, to) = (size(&case["from"]), size(&case["to"]));
        let mode = ResizeMode::from_number(case["mode"].as_i64().unwrap());
        let input = picture(21, "RGB", from.0, from.1);
        let output = resize_image(mode, &input, to.0, to.1, &Upscaler::None).unwrap();
        assert_eq!(
            case["crc32"],
            crc32(output.as_bytes()),
            "{mode:?} {from:?} {to:?}"
        );
    }
}

#[test]
fn impossible_sizes_are_errors() {
    let thin = DynamicImage::new_rgb8(300, 1);
    for mode in [ResizeMode::Stretch, ResizeMode::Crop, ResizeMode::Fill] {
        assert!(resize_image(mode, &thin, 0, 8, &Upscaler::None).is_err());
    }
    assert!(resize_image(ResizeMode::Fill, &thin, 8, 8, &Upscaler::None).is_err());
    assert!(upscale(&thin, 0.01, &Upscaler::Lanczos).is_err());
}

#[test]
fn pillows_gaussian_blur_is_matched_to_the_byte() {
    let golden = golden!("images_blur.json");
    for case in golden["cases"]["gaussian"].as_array().unwrap() {
        let mut samples = picture(3, "RGBA", 23, 17).into_bytes();
        premultiply_in_place::<4>(&mut samples);
        let radius = case["radius"].as_f64().unwrap() as f32;
        gaussian_blur::<4>(&mut samples, 23, radius);
        assert_eq!(samples, bytes(&case["want"]), "radius {radius}");
    }
}

#[test]
fn the_mask_blur_is_opencvs_to_the_byte() {
    let golden = golden!("images_blur.json");
    let levels = noise(5, 33 * 21)
        .into_iter()
        .map(|level| if level > 190 { 255 } else { 0 });
    let mask: GrayImage = image_of(33, 21, levels.collect());
    for case in golden["cases"]["mask"].as_array().unwrap() {
        let blur = case["blur"].as_f64().unwrap();
        assert_eq!(
            blur_mask(&mask, blur, 0.0).as_raw(),
            &bytes(&case["x"]),
            "{blur} x"
        );
        assert_eq!(
            blur_mask(&mask, blur, blur).as_raw(),
            &bytes(&case["xy"]),
            "{blur} xy"
        );
    }
    for case in golden!("image_vectors.json")["mask_blur"]
        .as_array()
        .unwrap()
    {
        let row: GrayImage = image_of(21, 1, numbers(&case["input"]));
        let blur = case["sigma"].as_f64().unwrap();
        assert_eq!(
            blur_mask(&row, blur, 0.0).as_raw(),
            &numbers(&case["out"]),
            "{blur} row"
        );
        let column: GrayImage = image_of(1, 21, numbers(&case["input"]));
        assert_eq!(
            blur_mask(&column, 0.0, blur).as_raw(),
            &numbers(&case["out"]),
            "{blur} column"
        );
    }
}

#[test]
fn compositing_is_pillows_to_the_byte() {
    let golden = golden!("images_composite.json");
    let want = &golden["cases"];
    let rgba = |seed| picture(seed, "RGBA", 40, 30).to_rgba8();
    let mut canvas: RgbaImage = rgba(7);
    alpha_composite(&mut canvas, &rgba(8));
    assert_eq!(want["alpha_composite"], crc32(&canvas));
    for case in want["blend"].as_array().unwrap() {
        let share = case["share"].as_f64().unwrap();
        let mixed = blend(&rgb(9, 40, 30).into(), &rgb(11, 40, 30).into(), share);
        assert_eq!(case["crc32"], crc32(mixed.as_bytes()), "{share}");
    }
    let mask = picture(10, "L", 40, 30).to_luma8();
    let overlay = overlay_of(&rgb(9, 40, 30), &mask).unwrap();
    assert_eq!(want["overlay"], crc32(&overlay));
    let painted = apply_overlay(&rgb(12, 40, 30), &overlay, None).unwrap();
    assert_eq!(want["overlay_applied"], crc32(&painted));
    let colour = parse_colour("#4080c0").unwrap();
    assert_eq!(
        want["flatten"],
        crc32(&flatten(&picture(8, "RGBA", 40, 30), colour))
    );
    assert_eq!(want["grey"], crc32(&to_grey(&rgb(9, 40, 30).into())));
}

#[test]
fn fill_is_the_originals_to_the_byte() {
    for case in cases(&golden!("images_fill.json")) {
        let (width, height) = (number(&case["width"]), number(&case["height"]));
        let count = (width * height) as usize;
        let chosen = noise(32, count).into_iter().zip(noise(33, count));
        let levels = chosen.map(|(choice, level)| if choice > 150 { 255 } else { level });
        let mask: GrayImage = image_of(width, height, levels.collect());
        let filled = fill_masked(&rgb(31, width, height), &mask).unwrap();
        assert_eq!(case["crc32"], crc32(&filled), "{width}x{height}");
    }
    let golden = golden!("image_vectors.json");
    let input: RgbImage = image_of(16, 16, numbers(&golden["fill"]["input_16x16x3"]));
    let mask = GrayImage::from_fn(16, 16, |x, y| {
        let inside = (5..=10).contains(&x) && (5..=10).contains(&y);
        image::Luma([if inside { 255 } else { 0 }])
    });
    assert_eq!(
        fill_masked(&input, &mask).unwrap().as_raw(),
        &numbers(&golden["fill"]["output"])
    );
}

#[test]
fn masked_regions_give_the_recorded_vectors() {
    let region = |value: &Value| {
        let side = |at: usize| value[at].as_i64().unwrap();
        Region {
            left: side(0),
            top: side(1),
            right: side(2),
            bottom: side(3),
        }
    };
    let golden = golden!("image_vectors.json");
    for case in golden["crop"].as_array().unwrap() {
        let image = size(&case["image"]);
        let inside = region(&case["mask_box"]);
        let mask = GrayImage::from_fn(image.0, image.1, |x, y| {
            let (x, y) = (i64::from(x), i64::from(y));
            let white = (inside.left..inside.right).contains(&x)
                && (inside.top..inside.bottom).contains(&y);
            image::Luma([u8::from(white)])
        });
        let found = masked_region(&mask, case["pad"].as_i64().unwrap()).unwrap();
        assert_eq!(found, region(&case["region"]));
        let expanded = expand_region(found, size(&case["processing"]), image);
        assert_eq!(expanded, region(&case["expanded"]));
    }
    assert_eq!(masked_region(&GrayImage::new(4, 4), 3), None);
    let more = [
        ([0, 0, 64, 64], (512, 768), (512, 512), [0, 0, 64, 96]),
        (
            [400, 400, 500, 500],
            (768, 512),
            (512, 512),
            [362, 400, 512, 500],
        ),
        (
            [10, 20, 300, 400],
            (640, 896),
            (640, 896),
            [10, 7, 300, 413],
        ),
        (
            [500, 10, 512, 12],
            (512, 512),
            (512, 512),
            [500, 5, 512, 17],
        ),
    ];
    for (from, generation, image, want) in more {
        let of = |sides: [i64; 4]| region(&serde_json::json!(sides));
        assert_eq!(expand_region(of(from), generation, image), of(want));
    }
}

#[test]
fn latent_masks_give_the_recorded_vector() {
    let golden = golden!("image_vectors.json");
    let want = golden["latmask_64to8_first_row"].as_array().unwrap();
    assert_eq!(want.len(), 8);
    let mask = GrayImage::from_pixel(64, 64, image::Luma([200]));
    assert!(
        latent_mask(&mask, 8, 8, true)
            .iter()
            .all(|value| value.to_bits() == 1.0_f32.to_bits())
    );
    let soft = latent_mask(&mask, 8, 8, false);
    assert!(
        soft.iter()
            .all(|value| value.to_bits() == (200.0_f32 / 255.0).to_bits())
    );
}

#[test]
fn latents_are_resized_as_torch_does() {
    let golden = golden!("image_vectors.json");
    let vectors = &golden["latent_upscale"];
    let floats = |value: &Value| -> Vec<f32> {
        let list = value.as_array().unwrap();
        list.iter().map(|n| n.as_f64().unwrap() as f32).collect()
    };
    let input =
        ndarray::Array4::from_shape_vec((1, 1, 4, 4), floats(&vectors["input_4x4"])).unwrap();
    for (name, filter) in LATENT_UPSCALE_MODES {
        assert_eq!(latent_filter(name), Some(filter));
        for (size, height, width) in [("to_6x7", 6, 7), ("to_3x3", 3, 3)] {
            let output = resize_latent(&input, height, width, filter);
            let want = floats(&vectors[name][size]);
            assert_eq!(output.len(), want.len());
            for (got, want) in output.iter().zip(want) {
                assert!(
                    (got - want).abs() < 2e-6,
                    "{name} {size}: {got} against {want}"
                );
            }
        }
    }
}

#[test]
fn grid_shapes_give_the_recorded_vectors() {
    let vectors = [
        (1, -1, 1, false, 1, 1),
        (2, -1, 1, false, 1, 2),
        (3, -1, 1, false, 2, 2),
        (5, -1, 1, false, 2, 3),
        (7, -1, 1, false, 3, 3),
        (10, -1, 1, false, 3, 4),
        (12, -1, 1, false, 3, 4),
        (6, 0, 2, false, 2, 3),
        (6, 2, 1, false, 2, 3),
        (3, 8, 1, false, 3, 1),
        (6, -1, 1, true, 2, 3),
        (7, -1, 1, true, 1, 7),
        (12, -1, 1, true, 3, 4),
    ];
    for (count, n_rows, batch_size, prevent_empty_spots, rows, columns) in vectors {
        let how = GridRows::from_options(n_rows, prevent_empty_spots, batch_size);
        assert_eq!(grid_shape(count, how), (rows, columns), "{count} {n_rows}");
    }
}

#[test]
fn tiles_are_joined_as_the_original_joins_them() {
    for case in cases(&golden!("images_tiles.json")) {
        let (width, height) = (number(&case["width"]), number(&case["height"]));
        let network = |tile: &RgbImage| {
            let stretched = autocontrast(tile);
            Ok(resize_rgb(
                &stretched,
                tile.width() * 2,
                tile.height() * 2,
                Filter::Nearest,
            ))
        };
        let (tile, overlap) = (number(&case["tile"]), number(&case["overlap"]));
        let joined = upscale_tiled(&smooth(51, width, height), tile, overlap, network).unwrap();
        assert_eq!(
            case["crc32"],
            crc32(&joined),
            "{width}x{height} {tile} {overlap}"
        );
    }
}

/// Pillow's `ImageOps.autocontrast` without a cutoff.
fn autocontrast(picture: &RgbImage) -> RgbImage {
    let mut out = picture.clone();
    for channel in 0..3 {
        let levels = || picture.pixels().map(|pixel| pixel.0[channel]);
        let (low, high) = (levels().min().unwrap(), levels().max().unwrap());
        if high <= low {
            continue;
        }
        let scale = 255.0 / f64::from(high - low);
        let offset = -f64::from(low) * scale;
        for pixel in out.pixels_mut() {
            let level = f64::from(pixel.0[channel]) * scale + offset;
            pixel.0[channel] = (level as i64).clamp(0, 255) as u8;
        }
    }
    out
}

#[test]
fn files_are_decoded_as_pillow_decodes_them() {
    for case in cases(&golden!("images_decode.json")) {
        let name = case["name"].as_str().unwrap();
        let decoded = decode(&bytes(&case["file"])).unwrap_or_else(|e| panic!("{name}: {e:?}"));
        let picture = decoded.picture;
        assert_eq!(
            (picture.width(), picture.height()),
            size(&case["size"]),
            "{name}"
        );
        let samples = if case["mode"] == "RGBA" {
            assert!(picture.color().has_alpha(), "{name}");
            picture.to_rgba8().into_raw()
        } else {
            picture.to_rgb8().into_raw()
        };
        assert_eq!(case["crc32"], crc32(&samples), "{name}");
    }
}

#[test]
fn lossy_files_are_pillows_to_the_byte() {
    let comment = "a red cube\nNegative prompt: é☕\nSteps: 20";
    let input: DynamicImage = smooth(71, 53, 38).into();
    for case in cases(&golden!("images_encode.json")) {
        let quality = number(&case["quality"]) as u8;
        let file = if case["format"] == "JPEG" {
            encode_jpeg(&input, quality, comment).unwrap()
        } else {
            encode_webp(&input, quality, false, comment).unwrap()
        };
        let name = format!("{} {quality}", case["format"]);
        assert_eq!(
            case["pixels"],
            crc32(decode(&file).unwrap().picture.as_bytes()),
            "{name}"
        );
        assert_eq!(case["size_bytes"], file.len(), "{name}");
        assert_eq!(case["crc32"], crc32(&file), "{name}");
    }
}

#[test]
fn lab_is_opencvs_to_the_byte() {
    let golden = golden!("images_colour.json");
    let levels = || (0..=255_u8).step_by(5);
    let cube = levels().flat_map(|r| levels().flat_map(move |g| levels().map(move |b| [r, g, b])));
    let samples: Vec<u8> = cube.flatten().collect();
    let cube: RgbImage = image_of(samples.len() as u32 / 3, 1, samples);
    assert_eq!(
        golden["cases"]["rgb_to_lab"],
        crc32(&lab::lab_of_rgb(&cube))
    );
    assert_eq!(
        golden["cases"]["lab_to_rgb"],
        crc32(&lab::rgb_of_lab(&cube))
    );
}

#[test]
fn colour_correction_is_the_originals_to_the_byte() {
    let golden = golden!("images_colour.json");
    for case in golden["cases"]["corrections"].as_array().unwrap() {
        let seed = number(&case["seed"]);
        let reference = ColorReference::of(&smooth(seed, 40, 30));
        let input = if seed == 43 {
            rgb(seed, 36, 28)
        } else {
            smooth(seed + 10, 36, 28)
        };
        assert_eq!(case["matched"], crc32(&reference.matched(&input)), "{seed}");
        assert_eq!(
            reference.apply(&input).as_raw(),
            &bytes(&case["want"]),
            "{seed}"
        );
    }
}

#[test]
fn damaged_files_never_panic() {
    let golden = golden!("images_decode.json");
    let files: Vec<Vec<u8>> = cases(&golden)
        .iter()
        .map(|case| bytes(&case["file"]))
        .collect();
    let mut random = noise(77, 40_000).into_iter();
    let mut next = || usize::from(random.next().unwrap_or(0));
    for file in &files {
        for _ in 0..200 {
            let mut damaged = file.clone();
            for _ in 0..=(next() % 3) {
                let at = (next() * 256 + next()) % damaged.len();
                damaged[at] = next() as u8;
            }
            if next() % 4 == 0 {
                damaged.truncate(damaged.len() * next() / 255);
            }
            let _outcome = decode(&damaged);
        }
    }
}
