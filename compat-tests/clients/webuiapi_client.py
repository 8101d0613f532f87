"""The PyPI packages webuiapi and easyai-sdwebui-api (a fork of it), unmodified: their whole surface.

    python webuiapi_client.py --base http://127.0.0.1:7860
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["webuiapi==0.9.17", "easyai-sdwebui-api==0.1.5", "aiohttp==3.13.2", "requests==2.32.5", "Pillow==12.0.0"]
# ///

import asyncio
import sys
import threading
import time
from urllib.parse import urlsplit

import easyai
import requests
import webuiapi
from checks import arguments, expect, expect_equal, expect_error, mask, picture, run

SIZE = {"width": 64, "height": 64}
QUICK = {"prompt": "a red cube", "negative_prompt": "blurry", "seed": 1003, "steps": 4, "cfg_scale": 7, **SIZE}
Api = webuiapi.WebUIApi


def txt2img(api: Api) -> None:
    result = api.txt2img(**QUICK, sampler_name="Euler a")
    expect_equal(result.image.size, (64, 64), "size")
    expect_equal(result.info["seed"], 1003, "seed")
    expect_equal(result.info["all_prompts"], ["a red cube"], "prompts")
    text = result.image.info["parameters"]
    expect_equal(text, result.info["infotexts"][0], "the picture's text")
    expect("Sampler: Euler a" in text and "Seed: 1003" in text, text)
    expect_equal(result.parameters["steps"], 4, "steps in the echo")


def every_sampler(api: Api) -> None:
    for sampler in api.util_get_sampler_names():
        result = api.txt2img(**{**QUICK, "steps": 3}, sampler_name=sampler)
        expect_equal(result.info["sampler_name"], sampler, "sampler")


def every_scheduler(api: Api) -> None:
    for scheduler in api.get_schedulers():
        result = api.txt2img(**{**QUICK, "steps": 3}, sampler_name="Euler", scheduler=scheduler["name"])
        expect(f"Schedule type: {scheduler['label']}" in result.info["infotexts"][0], result.info["infotexts"][0])


def same_seed_same_picture(api: Api) -> None:
    first, second = (api.txt2img(**QUICK, sampler_name="Euler").image for _ in range(2))
    expect_equal(first.tobytes(), second.tobytes(), "two pictures of one seed")


def batch(api: Api) -> None:
    result = api.txt2img(**QUICK, batch_size=2, n_iter=2)
    expect_equal(len(result.images), 4, "pictures")
    expect_equal(result.info["all_seeds"], [1003, 1004, 1005, 1006], "seeds")


def random_seed_is_told_and_gives_the_picture_again(api: Api) -> None:
    result = api.txt2img(**{**QUICK, "seed": -1})
    expect(0 <= result.info["seed"] < 2**32, f"seed {result.info['seed']}")
    again = api.txt2img(**{**QUICK, "seed": result.info["seed"]})
    expect_equal(result.image.tobytes(), again.image.tobytes(), "the picture of the seed told")


def variation_and_tiling(api: Api) -> None:
    plain = api.txt2img(**QUICK)
    varied = api.txt2img(**QUICK, subseed=5, subseed_strength=0.5)
    expect_equal(varied.info["subseed_strength"], 0.5, "subseed strength")
    expect("Variation seed: 5" in varied.info["infotexts"][0], varied.info["infotexts"][0])
    expect(plain.image.tobytes() != varied.image.tobytes(), "the variation seed does nothing")
    tiled = api.txt2img(**QUICK, tiling=True)
    expect(plain.image.tobytes() != tiled.image.tobytes(), "tiling does nothing")


def styles_are_applied(api: Api) -> None:
    style = next(style for style in api.get_prompt_styles() if style["prompt"])
    result = api.txt2img(**QUICK, styles=[style["name"]])
    expect_equal(result.info["styles"], [style["name"]], "styles")
    expect(result.info["prompt"] != "a red cube", "the style is not in the prompt")


def override_settings(api: Api) -> None:
    before = api.get_options()["CLIP_stop_at_last_layers"]
    result = api.txt2img(**QUICK, override_settings={"CLIP_stop_at_last_layers": 2})
    expect_equal(result.info["clip_skip"], 2, "clip_skip")
    expect_equal(api.get_options()["CLIP_stop_at_last_layers"], before, "the option afterwards")


def hires_fix(api: Api) -> None:
    upscaler = webuiapi.HiResUpscaler.Latent
    result = api.txt2img(**QUICK, enable_hr=True, hr_scale=2, hr_upscaler=upscaler, denoising_strength=0.7)
    expect_equal(result.image.size, (128, 128), "size")
    expect("Hires upscaler: Latent" in result.info["infotexts"][0], result.info["infotexts"][0])


def hires_fix_to_a_size_with_an_upscaler(api: Api) -> None:
    result = api.txt2img(
        **QUICK,
        enable_hr=True,
        hr_resize_x=96,
        hr_resize_y=128,
        hr_upscaler=webuiapi.HiResUpscaler.Lanczos,
        hr_second_pass_steps=2,
        denoising_strength=0.5,
    )
    expect_equal(result.image.size, (96, 128), "size")


def img2img(api: Api) -> None:
    result = api.img2img(images=[picture()], denoising_strength=0.5, **QUICK)
    expect_equal(result.image.size, (64, 64), "size")
    expect_equal(result.parameters["init_images"], None, "init_images in the echo")


def img2img_resize_modes(api: Api) -> None:
    for mode in range(4):
        result = api.img2img(images=[picture((96, 64))], resize_mode=mode, denoising_strength=0.5, **QUICK)
        expect_equal(result.image.size, (64, 64), f"size with resize_mode {mode}")


def inpainting(api: Api) -> None:
    for fill in range(4):
        for full_res in (False, True):
            result = api.img2img(
                images=[picture()],
                mask_image=mask(),
                inpainting_fill=fill,
                inpaint_full_res=full_res,
                inpaint_full_res_padding=4,
                denoising_strength=0.6,
                **QUICK,
            )
            expect_equal(result.image.size, (64, 64), "size")
            corner = result.image.convert("RGB").getpixel((0, 0))
            expect_equal(corner, picture().getpixel((0, 0)), "a pixel that is not masked")


def png_info(api: Api) -> None:
    image = api.txt2img(**QUICK).image
    found = api.png_info(image)
    expect_equal(found.info, image.info["parameters"], "png-info")
    expect_equal(found.parameters["Seed"], "1003", "parsed seed")


def extras(api: Api) -> None:
    result = api.extra_single_image(
        image=picture((32, 32)), upscaler_1=webuiapi.Upscaler.Lanczos, upscaling_resize=2
    )
    expect_equal(result.image.size, (64, 64), "size")
    expect("Postprocess upscaler: Lanczos" in result.info, result.info)


def extras_to_a_size_with_two_upscalers(api: Api) -> None:
    result = api.extra_single_image(
        image=picture((32, 32)),
        resize_mode=1,
        upscaling_resize_w=80,
        upscaling_resize_h=64,
        upscaler_1=webuiapi.Upscaler.Lanczos,
        upscaler_2=webuiapi.Upscaler.Nearest,
        extras_upscaler_2_visibility=0.5,
    )
    expect_equal(result.image.size, (80, 64), "size")


def extras_batch(api: Api) -> None:
    result = api.extra_batch_images(
        images=[picture((32, 32)), picture((16, 16))],
        name_list=["one.png", "two.png"],
        upscaler_1=webuiapi.Upscaler.Nearest,
        upscaling_resize=2,
    )
    expect_equal([image.size for image in result.images], [(64, 64), (32, 32)], "sizes")


def interrogate(api: Api) -> None:
    expect(api.interrogate(picture()).info, "no caption")
    expect_error(lambda: api.interrogate(picture(), model="nope"), "404", "Model not found")


def lists(api: Api) -> None:
    samplers = api.util_get_sampler_names()
    expect("Euler a" in samplers and "DPM++ 2M" in samplers, f"samplers {samplers}")
    expect("karras" in api.util_get_scheduler_names(), "no scheduler karras")
    expect(len(api.get_sd_models()) > 1, "one checkpoint or none")
    names = [upscaler["name"] for upscaler in api.get_upscalers()]
    expect_equal(names[:3], ["None", "Lanczos", "Nearest"], "upscalers")
    expect_equal(api.get_latent_upscale_modes()[0]["name"], "Latent", "first latent upscaler")
    expect_equal(api.get_cmd_flags()["api"], True, "the flag api")
    expect("txt2img" in api.get_scripts() and "img2img" in api.get_scripts(), "scripts")
    expect("free" in api.get_memory()["ram"], "memory")
    expect_equal(set(api.get_embeddings()), {"loaded", "skipped"}, "embeddings")


def every_list(api: Api) -> None:
    for read in (
        api.get_sd_vae,
        api.get_hypernetworks,
        api.get_face_restorers,
        api.get_realesrgan_models,
        api.get_prompt_styles,
        api.get_loras,
    ):
        expect(isinstance(read(), list), f"{read.__name__} is no list")


def lists_that_a1111_no_longer_has(api: Api) -> None:
    for read in (api.get_artists, api.get_artist_categories):
        expect_equal(read(), {"detail": "Not Found"}, read.__name__)


def options(api: Api) -> None:
    before = api.get_options()["CLIP_stop_at_last_layers"]
    expect_equal(api.set_options({"CLIP_stop_at_last_layers": 2}), None, "the answer")
    expect_equal(api.get_options()["CLIP_stop_at_last_layers"], 2, "the option")
    api.set_options({"CLIP_stop_at_last_layers": before})


def switch_model(api: Api) -> None:
    current = api.util_get_current_model()
    other = next(name for name in api.util_get_model_names() if name.split(" [")[0] != current.split(" [")[0])
    api.util_set_model(other, find_closest=False)
    expect(other.split(" [")[0] in api.util_get_current_model(), "the checkpoint was not switched")
    result = api.txt2img(**QUICK)
    expect(result.info["sd_model_name"] in other, f"drawn with {result.info['sd_model_name']}")
    api.util_set_model(current)
    expect_equal(api.util_get_current_model(), current, "the checkpoint afterwards")


def refresh_checkpoints(api: Api) -> None:
    expect_equal(api.refresh_checkpoints(), None, "the answer")


def progress(api: Api) -> None:
    expect_equal(api.get_progress()["state"]["job_count"], 0, "job_count of an idle server")
    api.util_wait_for_ready(check_interval=0.05)


def progress_and_interrupt_while_it_runs(api: Api) -> None:
    done: list[webuiapi.WebUIApiResult] = []
    size = {"width": 256, "height": 256, "steps": 150}
    job = threading.Thread(target=lambda: done.append(api.txt2img(**{**QUICK, **size}, sampler_name="Euler")))
    job.start()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        state = api.get_progress()
        if state["state"]["sampling_step"] > 0:
            break
        time.sleep(0.01)
    expect(0 < state["progress"] < 1, f"progress {state['progress']}")
    expect(state["state"]["job_count"] >= 1 and state["state"]["job"], f"state {state['state']}")
    expect_equal(state["state"]["sampling_steps"], 150, "sampling_steps")
    expect_equal(api.interrupt(), {}, "the answer to interrupt")
    job.join(timeout=60)
    expect(done, "the interrupted call does not come back")
    expect_equal(done[0].image.size, (256, 256), "size")
    api.util_wait_for_ready(check_interval=0.05)


def interrupt_and_skip_while_idle(api: Api) -> None:
    expect_equal(api.interrupt(), {}, "interrupt")
    expect_equal(api.skip(), None, "skip")
    expect_equal(api.txt2img(**QUICK).image.size, (64, 64), "size of the next picture")


def asynchronous(api: Api) -> None:
    async def several() -> list[webuiapi.WebUIApiResult]:
        calls = [
            api.txt2img(**QUICK, use_async=True),
            api.txt2img(**QUICK, use_async=True),
            api.img2img(images=[picture()], denoising_strength=0.5, **QUICK, use_async=True),
            api.extra_single_image(image=picture(), upscaler_1=webuiapi.Upscaler.Lanczos, use_async=True),
            api.extra_batch_images(images=[picture()], upscaler_1=webuiapi.Upscaler.Lanczos, use_async=True),
            api.custom_post("png-info", {"image": webuiapi.b64_img(picture())}, baseurl=True, use_async=True),
        ]
        return await asyncio.gather(*calls)

    first, second, changed, larger, several_larger, read = asyncio.run(several())
    expect_equal(first.image.tobytes(), second.image.tobytes(), "two requests at once")
    expect_equal(changed.image.size, (64, 64), "size of img2img")
    expect_equal((larger.image.size, several_larger.image.size), ((128, 128), (128, 128)), "sizes of extras")
    expect_equal(read.info, "", "png-info of a picture without text")


def any_endpoint(api: Api) -> None:
    expect_equal(api.custom_get("internal/ping"), {}, "internal/ping")
    expect_equal(api.custom_get("progress", baseurl=True)["progress"], 0.0, "progress")
    answer = api.custom_post("sdapi/v1/png-info", {"image": webuiapi.b64_img(picture())})
    expect_equal(answer.info, "", "png-info of a picture without text")


def extensions_that_are_missing(api: Api) -> None:
    expect(not (api.has_controlnet or api.has_adetailer or api.has_animatediff), "an extension is claimed")
    expect_equal(api.custom_get("controlnet/version"), {"detail": "Not Found"}, "controlnet/version")
    for read in (api.controlnet_version, api.controlnet_model_list, api.controlnet_module_list):
        expect_error(read, "KeyError")
    # The client adds to its own default argument, so later calls would carry the script too.
    roop = {"roop": webuiapi.Roop(img=picture()), "alwayson_scripts": {}}
    expect_error(lambda: api.txt2img(**QUICK, **roop), "422", "roop", "not found")
    script = {"script_name": "instruct-pix2pix", "script_args": []}
    expect_error(lambda: api.img2img(images=[picture()], **QUICK, **script), "422", "instruct-pix2pix", "not found")


def errors_reach_the_caller(api: Api) -> None:
    expect_error(lambda: api.txt2img(**{**QUICK, "steps": "many"}), "422", "value is not a valid integer")
    expect_error(lambda: api.extra_single_image(image=picture(), upscaler_1="nope"), "500", "could not find upscaler named")
    expect_error(
        lambda: api.txt2img(**QUICK, enable_hr=True, hr_upscaler="nope", denoising_strength=0.5), "could not find upscaler"
    )


def the_fork(api: Api) -> None:
    address = urlsplit(api.baseurl)
    fork = easyai.EasyAPI(host=address.hostname, port=address.port)

    # Its calls that wait read a property that the answers of requests do not have; those that do not wait work.
    async def several() -> list:
        return await asyncio.gather(
            fork.txt2img(**QUICK, use_async=True),
            fork.img2img(images=[picture()], **QUICK, use_async=True),
            fork.extra_single_image(image=picture(), use_async=True),
            fork.extra_batch_images(images=[picture()] * 2, use_async=True),
        )

    drawn, changed, larger, several_larger = asyncio.run(several())
    expect_equal((drawn.image.size, drawn.info["seed"]), ((64, 64), 1003), "size and seed")
    expect_equal(changed.image.size, (64, 64), "size of img2img")
    expect_equal((larger.image.size, len(several_larger.images)), ((64, 64), 2), "extras")
    for read in (
        fork.get_options,
        fork.get_cmd_flags,
        fork.get_progress,
        fork.get_samplers,
        fork.get_upscalers,
        fork.get_sd_models,
        fork.get_hypernetworks,
        fork.get_face_restorers,
        fork.get_realesrgan_models,
        fork.get_prompt_styles,
        fork.get_scripts,
        fork.get_embeddings,
        fork.get_memory,
    ):
        expect(read() is not None, f"{read.__name__} answers nothing")
    fork.util_set_model(fork.util_get_current_model())
    fork.util_wait_for_ready(check_interval=0.05)


CHECKS = [
    txt2img,
    every_sampler,
    every_scheduler,
    same_seed_same_picture,
    batch,
    random_seed_is_told_and_gives_the_picture_again,
    variation_and_tiling,
    styles_are_applied,
    override_settings,
    lists,
    every_list,
    lists_that_a1111_no_longer_has,
    options,
    progress,
    progress_and_interrupt_while_it_runs,
    png_info,
    asynchronous,
    switch_model,
    refresh_checkpoints,
    interrupt_and_skip_while_idle,
    hires_fix,
    hires_fix_to_a_size_with_an_upscaler,
    img2img,
    img2img_resize_modes,
    inpainting,
    extras,
    extras_to_a_size_with_two_upscalers,
    extras_batch,
    interrogate,
    any_endpoint,
    extensions_that_are_missing,
    errors_reach_the_caller,
    the_fork,
]


def a_login_is_needed(api: Api, login: tuple[str, str]) -> None:
    api.session.auth = None
    expect_equal(api.get_options()["detail"], "Not authenticated", "options without a login")
    api.set_auth(login[0], "wrong")
    expect_equal(api.get_options()["detail"], "Incorrect username or password", "options with a wrong login")
    expect_error(lambda: api.txt2img(**QUICK), "401", "Incorrect username or password")
    without = requests.get(f"{api.baseurl}/loras", timeout=30)
    expect_equal(without.status_code, 401, "loras without a login")


def the_login_opens(api: Api, login: tuple[str, str]) -> None:
    api.set_auth(*login)
    expect_equal(api.txt2img(**QUICK).image.size, (64, 64), "size")
    expect(isinstance(api.get_loras(), list), "loras")

    async def one() -> webuiapi.WebUIApiResult:
        return await api.txt2img(**QUICK, use_async=True)

    expect_equal(asyncio.run(one()).image.size, (64, 64), "size, async")


def main() -> int:
    given = arguments()
    address = urlsplit(given.base)
    api = webuiapi.WebUIApi(host=address.hostname, port=address.port)
    if given.login:
        return run([a_login_is_needed, the_login_opens], api, given.login)
    return run(CHECKS, api)


if __name__ == "__main__":
    sys.exit(main())
