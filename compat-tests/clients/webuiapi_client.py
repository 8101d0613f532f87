"""The PyPI package webuiapi, unmodified, against a started server: what its users do first.

    python webuiapi_client.py --base http://127.0.0.1:7860

Prints one line a check, `ok NAME` or `FAIL NAME: why`; exit status 1 when any failed.
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["webuiapi==0.9.17", "aiohttp==3.13.2", "requests==2.32.5", "Pillow==12.0.0"]
# ///

import argparse
import asyncio
import sys
import traceback
from urllib.parse import urlsplit

import webuiapi
from PIL import Image

SIZE = {"width": 64, "height": 64}
QUICK = {"prompt": "a red cube", "negative_prompt": "blurry", "seed": 1003, "steps": 4, "cfg_scale": 7, **SIZE}


def expect(condition: bool, what: str) -> None:
    if not condition:
        raise AssertionError(what)


def txt2img(api: webuiapi.WebUIApi) -> None:
    result = api.txt2img(**QUICK, sampler_name="Euler a")
    expect(result.image.size == (64, 64), f"the picture is {result.image.size}")
    expect(result.info["seed"] == 1003, f"info has the seed {result.info['seed']}")
    expect(result.info["all_prompts"] == ["a red cube"], f"info has the prompts {result.info['all_prompts']}")
    text = result.image.info["parameters"]
    expect(text == result.info["infotexts"][0], "the picture's text is not the infotext of info")
    expect("Sampler: Euler a" in text and "Seed: 1003" in text, text)
    expect(result.parameters["steps"] == 4, "parameters does not echo the request")


def same_seed_same_picture(api: webuiapi.WebUIApi) -> None:
    first, second = (api.txt2img(**QUICK, sampler_name="Euler").image for _ in range(2))
    expect(first.tobytes() == second.tobytes(), "two pictures of one seed differ")


def batch(api: webuiapi.WebUIApi) -> None:
    result = api.txt2img(**QUICK, batch_size=2, n_iter=2)
    expect(len(result.images) == 4, f"{len(result.images)} pictures")
    expect(result.info["all_seeds"] == [1003, 1004, 1005, 1006], f"seeds {result.info['all_seeds']}")


def hires_fix(api: webuiapi.WebUIApi) -> None:
    upscaler = webuiapi.HiResUpscaler.Latent
    result = api.txt2img(**QUICK, enable_hr=True, hr_scale=2, hr_upscaler=upscaler, denoising_strength=0.7)
    expect(result.image.size == (128, 128), f"the picture is {result.image.size}")


def img2img(api: webuiapi.WebUIApi) -> None:
    picture = Image.new("RGB", (64, 64), "steelblue")
    result = api.img2img(images=[picture], denoising_strength=0.5, **QUICK)
    expect(result.image.size == (64, 64), f"the picture is {result.image.size}")


def inpainting(api: webuiapi.WebUIApi) -> None:
    picture, mask = Image.new("RGB", (64, 64), "steelblue"), Image.new("L", (64, 64), 0)
    mask.paste(255, (16, 16, 48, 48))
    result = api.img2img(images=[picture], mask_image=mask, inpainting_fill=1, denoising_strength=0.6, **QUICK)
    expect(result.image.size == (64, 64), f"the picture is {result.image.size}")


def png_info(api: webuiapi.WebUIApi) -> None:
    picture = api.txt2img(**QUICK).image
    expect("Seed: 1003" in api.png_info(picture).info, "png-info does not read the infotext")


def extras(api: webuiapi.WebUIApi) -> None:
    picture = Image.new("RGB", (32, 32), "steelblue")
    result = api.extra_single_image(image=picture, upscaler_1=webuiapi.Upscaler.Lanczos, upscaling_resize=2)
    expect(result.image.size == (64, 64), f"the picture is {result.image.size}")


def lists(api: webuiapi.WebUIApi) -> None:
    samplers = [sampler["name"] for sampler in api.get_samplers()]
    expect("Euler a" in samplers and "DPM++ 2M" in samplers, f"samplers {samplers}")
    expect("Karras" in [scheduler["label"] for scheduler in api.get_schedulers()], "no scheduler Karras")
    expect(len(api.get_sd_models()) >= 1, "no checkpoint")
    expect("Lanczos" in [upscaler["name"] for upscaler in api.get_upscalers()], "no upscaler Lanczos")
    api.get_cmd_flags()


def every_list(api: webuiapi.WebUIApi) -> None:
    for read in (
        api.get_sd_vae,
        api.get_hypernetworks,
        api.get_face_restorers,
        api.get_realesrgan_models,
        api.get_prompt_styles,
        api.get_embeddings,
        api.get_scripts,
        api.get_memory,
        api.get_loras,
    ):
        read()


def options(api: webuiapi.WebUIApi) -> None:
    before = api.get_options()["CLIP_stop_at_last_layers"]
    api.set_options({"CLIP_stop_at_last_layers": 2})
    expect(api.get_options()["CLIP_stop_at_last_layers"] == 2, "the option was not set")
    api.set_options({"CLIP_stop_at_last_layers": before})


def switch_model(api: webuiapi.WebUIApi) -> None:
    current = api.util_get_current_model()
    names = api.util_get_model_names()
    api.util_set_model(names[0])
    expect(names[0].split(" [")[0] in api.util_get_current_model(), "the checkpoint was not switched")
    api.util_set_model(current)


def progress(api: webuiapi.WebUIApi) -> None:
    expect(api.get_progress()["state"]["job_count"] == 0, "an idle server says that it works")
    api.util_wait_for_ready(check_interval=0.05)


def interrupt_and_skip(api: webuiapi.WebUIApi) -> None:
    api.interrupt()
    api.skip()


def asynchronous(api: webuiapi.WebUIApi) -> None:
    async def two() -> list:
        return await asyncio.gather(*(api.txt2img(**QUICK, use_async=True) for _ in range(2)))

    first, second = asyncio.run(two())
    expect(first.image.tobytes() == second.image.tobytes(), "two requests at once differ")


CHECKS = [
    txt2img,
    same_seed_same_picture,
    batch,
    lists,
    every_list,
    options,
    progress,
    png_info,
    asynchronous,
    switch_model,
    interrupt_and_skip,
    hires_fix,
    img2img,
    inpainting,
    extras,
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="http://127.0.0.1:7860")
    address = urlsplit(parser.parse_args().base)
    api = webuiapi.WebUIApi(host=address.hostname, port=address.port)
    failed = 0
    for check in CHECKS:
        try:
            check(api)
            print(f"ok {check.__name__}", flush=True)
        except Exception as error:
            failed += 1
            why = str(error) or traceback.format_exc(limit=-1)
            print(f"FAIL {check.__name__}: {type(error).__name__}: {' '.join(why.split())[:300]}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
