//! What a request for face restoration answers and leaves on disk: the real pipeline over toy networks.

#[path = "support/in_process.rs"]
mod in_process;
#[path = "support/toy_models.rs"]
mod toy_models;

use ancestral::imaging::decode;
use image::RgbImage;
use in_process::{InProcess, Reply, picture};
use serde_json::{Value, json};

fn first_picture(reply: &Reply) -> RgbImage {
    decode(&reply.images()[0])
        .expect("a picture")
        .picture
        .to_rgb8()
}

/// The middle of a picture that is one restored face.
fn middle(reply: &Reply) -> [u8; 3] {
    first_picture(reply).get_pixel(32, 32).0
}

fn infotext(reply: &Reply) -> String {
    reply.info()["infotexts"][0].as_str().unwrap().to_owned()
}

#[actix_web::test]
async fn a_request_or_the_option_restores_faces() {
    let server = InProcess::new(&[]);
    let plain = server.txt2img(&json!({})).await;
    assert_eq!(plain.info()["restore_faces"], false);
    assert_eq!(plain.info()["face_restoration_model"], Value::Null);
    assert!(!infotext(&plain).contains("Face restoration"));

    let restored = server.txt2img(&json!({"restore_faces": true})).await;
    assert_eq!(middle(&restored), [100; 3]);
    assert!(infotext(&restored).contains(", Face restoration: CodeFormer, Size: 64x64"));
    assert_eq!(restored.info()["restore_faces"], true);
    assert_eq!(restored.info()["face_restoration_model"], "CodeFormer");
    let weighted = json!({"restore_faces": true, "override_settings": {"code_former_weight": 0.9}});
    assert_eq!(middle(&server.txt2img(&weighted).await), [180; 3]);
    assert_eq!(
        middle(&server.img2img(&json!({"restore_faces": true})).await),
        [100; 3]
    );

    server.set(&json!({"face_restoration": true})).await;
    assert_eq!(middle(&server.txt2img(&json!({})).await), [100; 3]);
    let refused = server.txt2img(&json!({"restore_faces": false})).await;
    assert!(first_picture(&refused) == first_picture(&plain));
}

#[actix_web::test]
async fn without_the_models_files_pictures_stay_as_they_are() {
    let server = InProcess::new(&[]);
    let plain = server.txt2img(&json!({})).await;
    for name in ["GFPGAN", "no such model"] {
        let request = json!({
            "restore_faces": true, "override_settings": {"face_restoration_model": name},
        });
        let reply = server.txt2img(&request).await;
        assert_eq!(reply.status, 200);
        assert!(first_picture(&reply) == first_picture(&plain), "{name}");
        assert!(infotext(&reply).contains(&format!("Face restoration: {name}, ")));
    }
}

#[actix_web::test]
async fn the_picture_before_is_kept_on_request() {
    let server = InProcess::new(&[]);
    let plain = server.txt2img(&json!({})).await;
    let options = json!({"save_to_dirs": false, "save_images_before_face_restoration": true,
        "samples_filename_pattern": "[seed]"});
    server.set(&options).await;
    let request = json!({"restore_faces": true, "save_images": true});
    let restored = server.txt2img(&request).await;
    let folder = "outputs/txt2img-images";
    let names = ["00000-1234-before-face-restoration.png", "00001-1234.png"];
    assert_eq!(server.files(folder), names);
    let saved = |name: &str| {
        let bytes = std::fs::read(server.data.path().join(folder).join(name)).unwrap();
        decode(&bytes).unwrap().picture.to_rgb8()
    };
    assert!(saved(names[0]) == first_picture(&plain));
    assert!(saved(names[1]) == first_picture(&restored));
    // Without restoration there is nothing to keep.
    server.txt2img(&json!({"save_images": true})).await;
    assert_eq!(server.files(folder).len(), 3);
}

#[actix_web::test]
async fn extras_mix_restored_faces_in() {
    let server = InProcess::new(&[]);
    let source = picture(64, 64);
    let send = async |changes: Value| {
        let mut request = json!({"image": source, "upscaler_1": "None"});
        for (key, value) in changes.as_object().unwrap() {
            request[key] = value.clone();
        }
        let reply = server.post("/sdapi/v1/extra-single-image", &request).await;
        let body = reply.json();
        let bytes = ancestral::imaging::base64_decode_lenient(body["image"].as_str().unwrap());
        let decoded = decode(&bytes.unwrap()).unwrap();
        (body["html_info"].clone(), decoded)
    };
    let (_, plain) = send(json!({})).await;
    let before = plain.picture.to_rgb8().get_pixel(32, 32)[0];

    let whole = json!({"codeformer_visibility": 1, "codeformer_weight": 0.25});
    let (info, whole) = send(whole).await;
    assert_eq!(
        info,
        "<p>CodeFormer visibility: 1.0, CodeFormer weight: 0.25</p>"
    );
    assert_eq!(whole.picture.to_rgb8().get_pixel(32, 32).0, [50; 3]);
    let text = "CodeFormer visibility: 1.0, CodeFormer weight: 0.25".to_owned();
    assert!(
        whole
            .metadata
            .texts()
            .contains(&("postprocessing".to_owned(), text))
    );

    let half = json!({"codeformer_visibility": 0.5, "codeformer_weight": 1});
    let (_, half) = send(half).await;
    let level = half.picture.to_rgb8().get_pixel(32, 32)[0];
    let want = (f32::from(before) + 200.0) / 2.0;
    assert!(
        (f32::from(level) - want).abs() <= 1.0,
        "{level}, not {want}"
    );

    let (info, missing) = send(json!({"gfpgan_visibility": 0.3334})).await;
    assert_eq!(info, "<p>GFPGAN visibility: 0.333</p>");
    assert!(missing.picture == plain.picture);
}
