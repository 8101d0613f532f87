//! Wildcards and dynamic prompts as requests: the real pipeline over toy networks, in process. What is
//! drawn for a seed was drawn by the Python library dynamicprompts 0.31.0 from the same files.

#[path = "support/in_process.rs"]
mod in_process;
#[path = "support/toy_models.rs"]
mod toy_models;

use std::path::Path;

use in_process::{InProcess, Reply};
use serde_json::{Value, json};

const TITLE: &str = "Dynamic Prompts v2.17.1";

/// A data folder with these files below `folder`.
fn data_with(folder: &str, files: &[(&str, &str)]) -> tempfile::TempDir {
    let data = tempfile::tempdir().expect("a temporary folder");
    for (name, text) in files {
        let path = data.path().join(folder).join(name);
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new("."))).expect("a folder");
        std::fs::write(path, text).expect("a file");
    }
    data
}

fn server() -> InProcess {
    let files = [
        ("color.txt", "red\ngreen\n# no\n\nblue\n"),
        ("animals/pets.txt", "cat\n__color__ dog\n"),
        (
            "deep/styles.yaml",
            "styles:\n  light: [soft, \"3::hard\"]\n  single: plain\n",
        ),
        ("deep/er/flat.json", "[\"one\", \"two\", 3]"),
        ("broken.json", "{"),
    ];
    InProcess::over(data_with("wildcards", &files), &[])
}

fn prompts(reply: &Reply) -> Value {
    assert_eq!(reply.status, 200, "{}", reply.json());
    reply.info()["all_prompts"].clone()
}

/// The script's arguments with changes to its page's values.
fn script(changes: &[(usize, Value)]) -> Value {
    let mut arguments = json!([
        true, false, 1, false, false, false, 1.1, 1.5, 100, 0.7, false, false, true, false, false,
        0, "", ""
    ]);
    for (index, value) in changes {
        arguments[*index] = value.clone();
    }
    json!({TITLE: {"args": arguments}})
}

#[actix_web::test]
async fn wildcards_are_drawn_from_the_pictures_seeds() {
    let server = server();
    let cases = [
        (
            "a __color__ cube",
            json!(["a green cube", "a blue cube", "a green cube", "a red cube"]),
        ),
        (
            "a __animals/*__",
            json!(["a cat", "a green dog", "a cat", "a green dog"]),
        ),
        (
            "{2$$ and $$red|green|blue} x",
            json!([
                "blue and red x",
                "green and red x",
                "green and red x",
                "green and blue x"
            ]),
        ),
        (
            "${c=!{a|b|c}}${c} and ${c}, __pets__",
            json!([
                "c and c, cat",
                "c and c, green dog",
                "c and c, cat",
                "c and c, green dog"
            ]),
        ),
        (
            "a {0.5::x|3::y} __deep/styles/light__",
            json!(["a y hard", "a y hard", "a y soft", "a y hard"]),
        ),
        (
            "__flat__ __missing__ {}",
            json!([
                "two __missing__ ",
                "one __missing__ ",
                "two __missing__ ",
                "one __missing__ "
            ]),
        ),
    ];
    for (prompt, want) in cases {
        let reply = server
            .txt2img(&json!({"prompt": prompt, "seed": 7, "n_iter": 2, "batch_size": 2}))
            .await;
        assert_eq!(prompts(&reply), want, "{prompt}");
        assert_eq!(reply.info()["all_seeds"], json!([7, 8, 9, 10]));
    }
}

#[actix_web::test]
async fn a_picture_is_that_of_its_expanded_prompt() {
    let server = server();
    let drawn = server
        .txt2img(&json!({"prompt": "a __color__ cube", "negative_prompt": "__color__", "seed": 7, "n_iter": 2}))
        .await;
    assert_eq!(
        drawn.info()["all_negative_prompts"],
        json!(["green", "blue"])
    );
    let plain = server
        .txt2img(&json!({"prompt": "a blue cube", "negative_prompt": "blue", "seed": 8}))
        .await;
    assert_eq!(drawn.images()[1], plain.images()[0]);
    assert_eq!(drawn.info()["infotexts"][1], plain.info()["infotexts"][0]);
}

#[actix_web::test]
async fn styles_hires_prompts_and_img2img_are_expanded_too() {
    let styles = "name,prompt,negative_prompt\ncoloured,\"{prompt}, __color__\",\n";
    let data = data_with("wildcards", &[("color.txt", "red\ngreen\nblue\n")]);
    std::fs::write(data.path().join("styles.csv"), styles).expect("a file");
    let server = InProcess::over(data, &[]);
    let styled = server
        .txt2img(&json!({"prompt": "cube", "styles": ["coloured"], "seed": 7}))
        .await;
    assert_eq!(prompts(&styled), json!(["cube, green"]));
    let request = json!({
        "prompt": "a __color__ cube", "seed": 7, "enable_hr": true, "denoising_strength": 0.5,
        "hr_scale": 1.5, "hr_negative_prompt": "not __color__",
    });
    let text = server.txt2img(&request).await.info()["infotexts"][0].to_string();
    assert!(
        !text.contains("Hires prompt") && text.contains("Hires negative prompt: not green"),
        "{text}"
    );
    let image = server
        .img2img(&json!({"prompt": "{a|b|c}", "seed": 7}))
        .await;
    assert_eq!(prompts(&image).as_array().map(Vec::len), Some(1));
    assert_ne!(prompts(&image), json!(["{a|b|c}"]));
}

#[actix_web::test]
async fn without_a_folder_of_wildcards_prompts_stay_as_they_are() {
    let server = InProcess::new(&[]);
    let request = json!({"prompt": "a __color__ {cat|dog}", "negative_prompt": "{x|y}"});
    let reply = server.txt2img(&request).await;
    assert_eq!(prompts(&reply), json!(["a __color__ {cat|dog}"]));
    let names = server.get("/sdapi/v1/scripts").await.json();
    assert!(!names.to_string().contains("dynamic prompts"), "{names}");
    // A request may ask for it all the same.
    let asked = json!({"prompt": "a {cat}", "alwayson_scripts": {TITLE: {"args": [true]}}});
    assert_eq!(prompts(&server.txt2img(&asked).await), json!(["a cat"]));
    let on = InProcess::new(&["--dynamic-prompts", "on"]);
    let reply = on.txt2img(&json!({"prompt": "a {cat} __none__"})).await;
    assert_eq!(prompts(&reply), json!(["a cat __none__"]));
}

#[actix_web::test]
async fn it_is_listed_and_switched_off_as_the_extension() {
    let server = server();
    let names = server.get("/sdapi/v1/scripts").await.json();
    for tab in ["txt2img", "img2img"] {
        let listed = names[tab].as_array().into_iter().flatten();
        assert_eq!(
            listed
                .filter(|name| **name == "dynamic prompts v2.17.1")
                .count(),
            1
        );
    }
    let info = server.get("/sdapi/v1/script-info").await.json();
    let described = info.as_array().into_iter().flatten();
    let arguments = described
        .filter(|script| script["name"] == "dynamic prompts v2.17.1")
        .map(|script| script["args"].as_array().map(Vec::len));
    assert_eq!(arguments.collect::<Vec<_>>(), [Some(18), Some(18)]);
    let off = json!({"prompt": "{a|b}", "alwayson_scripts": script(&[(0, json!(false))])});
    assert_eq!(prompts(&server.txt2img(&off).await), json!(["{a|b}"]));
    let never = InProcess::over(
        data_with("wildcards", &[("color.txt", "red\n")]),
        &["--dynamic-prompts", "off"],
    );
    let reply = never.txt2img(&json!({"prompt": "__color__"})).await;
    assert_eq!(prompts(&reply), json!(["__color__"]));
    let reply = never
        .txt2img(&json!({"alwayson_scripts": script(&[])}))
        .await;
    assert_eq!(reply.status, 422);
    assert_eq!(
        reply.json()["detail"],
        format!("Script '{TITLE}' not found")
    );
}

#[actix_web::test]
async fn combinations_are_drawn_all_with_the_number_of_batches_that_they_need() {
    let server = server();
    let list = |prompt: &str, changes: &[(usize, Value)]| {
        let mut all = vec![(1, json!(true))];
        all.extend_from_slice(changes);
        json!({
            "prompt": prompt, "seed": 5, "batch_size": 2, "n_iter": 9, "negative_prompt": "",
            "alwayson_scripts": script(&all),
        })
    };
    let reply = server.txt2img(&list("a {b|c} __color__", &[])).await;
    assert_eq!(
        prompts(&reply),
        json!([
            "a b blue",
            "a b green",
            "a b red",
            "a c blue",
            "a c green",
            "a c red"
        ])
    );
    assert_eq!(reply.images().len(), 6);
    assert_eq!(reply.info()["all_seeds"], json!([5, 6, 7, 8, 9, 10]));
    let reply = server
        .txt2img(&list("a {b|c}", &[(2, json!(2)), (10, json!(true))]))
        .await;
    assert_eq!(prompts(&reply), json!(["a b", "a c", "a b", "a c"]));
    assert_eq!(reply.info()["all_seeds"], json!([5, 5, 6, 6]));
    let reply = server
        .txt2img(&list("{b|c} __color__", &[(15, json!(3))]))
        .await;
    assert_eq!(prompts(&reply), json!(["b blue", "b green", "b red"]));
    let mut crossed = list("{b|c}", &[]);
    crossed["negative_prompt"] = json!("{x|y}");
    let info = server.txt2img(&crossed).await.info();
    assert_eq!(info["all_prompts"], json!(["b", "b", "c", "c"]));
    assert_eq!(info["all_negative_prompts"], json!(["x", "y", "x", "y"]));
    let too_many = "{a|b|c|d|e|f|g|h}".repeat(5);
    let reply = server.txt2img(&list(&too_many, &[])).await;
    assert_eq!(reply.status, 500);
    assert!(
        reply.json()["errors"]
            .as_str()
            .unwrap_or("")
            .contains("more than 1000")
    );
}

#[actix_web::test]
async fn seeds_and_prompts_follow_the_scripts_arguments() {
    let server = server();
    let with = |changes: &[(usize, Value)]| {
        json!({
            "prompt": "__color__", "seed": 7, "n_iter": 4, "alwayson_scripts": script(changes),
        })
    };
    let fixed = server.txt2img(&with(&[(10, json!(true))])).await;
    assert_eq!(prompts(&fixed), json!(["green", "green", "green", "green"]));
    assert_eq!(fixed.info()["all_seeds"], json!([7, 7, 7, 7]));
    let first = server.txt2img(&with(&[(14, json!(true))])).await;
    assert_eq!(prompts(&first), json!(["green"]));
    // A variation keeps its prompt.
    let varied = json!({"prompt": "__color__", "seed": 7, "n_iter": 3, "subseed": 1, "subseed_strength": 0.2});
    let varied = server.txt2img(&varied).await;
    assert_eq!(prompts(&varied), json!(["green", "green", "green"]));
    assert_eq!(varied.info()["all_subseeds"], json!([1, 2, 3]));
    for index in [3, 4, 5, 13] {
        let reply = server.txt2img(&with(&[(index, json!(true))])).await;
        assert_eq!(reply.status, 500);
        assert_eq!(reply.json()["error"], "NotImplementedError");
    }
}

#[actix_web::test]
async fn templates_are_written_when_asked_for() {
    let server = server();
    let request = json!({
        "prompt": "a __color__  {cube}", "seed": 7, "negative_prompt": "{bad}",
        "override_settings": {"dp_write_raw_template": true, "dp_ignore_whitespace": true},
    });
    let info = server.txt2img(&request).await.info();
    let text = info["infotexts"][0].as_str().unwrap_or("");
    assert!(
        text.starts_with("a green cube\nNegative prompt: bad\n"),
        "{text}"
    );
    assert!(
        text.ends_with("Template: a __color__  {cube}, Negative Template: {bad}, Version: v1.10.1"),
        "{text}"
    );
}

#[actix_web::test]
async fn the_extensions_own_folder_serves_too_and_nothing_outside_does() {
    let folder = "extensions/sd-dynamic-prompts/wildcards";
    let data = data_with(folder, &[("color.txt", "red\n")]);
    std::fs::write(data.path().join("secret.txt"), "secret\n").expect("a file");
    let server = InProcess::over(data, &[]);
    let paths = [
        "../secret",
        "..\\..\\..\\secret",
        "/secret",
        "color/../../secret",
        "../../../secret",
    ];
    for path in paths {
        let prompt = format!("__{path}__, __color__");
        let reply = server.txt2img(&json!({"prompt": prompt})).await;
        assert_eq!(prompts(&reply), json!([format!("__{path}__, red")]));
    }
}

#[actix_web::test]
async fn text_without_templates_and_broken_templates_are_left_alone() {
    let server = server();
    for prompt in [
        "100% cotton, 5$ # not a comment here // nor here",
        "a {b",
        "[cat|dog], (x:1.2)",
        "{a|b",
    ] {
        let request = json!({
            "prompt": prompt, "override_settings": {"enable_prompt_comments": false},
        });
        assert_eq!(prompts(&server.txt2img(&request).await), json!([prompt]));
    }
}

#[actix_web::test]
async fn a_scripts_prompts_are_expanded_one_by_one() {
    let server = server();
    let request = json!({
        "prompt": "__color__|cube", "seed": 7, "script_name": "Prompt matrix",
        "script_args": [false, true, "positive", "comma", 0],
    });
    assert_eq!(
        prompts(&server.txt2img(&request).await),
        json!(["green", "blue, cube"])
    );
    let request = json!({
        "prompt": "{a|b|c} __color__", "seed": 7, "script_name": "X/Y/Z plot",
        "script_args": [4, "1,2", []],
    });
    let all = prompts(&server.txt2img(&request).await);
    assert_eq!(all[1], all[2]);
    assert!(
        all[1].as_str().is_some_and(|prompt| !prompt.contains('_')),
        "{all}"
    );
}
