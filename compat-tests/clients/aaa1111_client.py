"""The PyPI package aaa1111, unmodified: strictly typed answers, every call both waiting and asynchronous.

    python aaa1111_client.py --base http://127.0.0.1:7860

It is written for A1111 before 1.7. What 1.10.1 answers differently from that (png-info has one key more) it
refuses from A1111 as well; those calls are left out.
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["aaa1111==0.1.0.dev7", "Pillow==12.0.0"]
# ///

import asyncio
import sys

from aaa1111 import AAA1111
from aaa1111.types.extras import ExtrasSingleImage
from aaa1111.types.toimg import IMG2IMG, TXT2IMG
from checks import NEGATIVE, PROMPT, arguments, expect, expect_equal, expect_error, mask, picture, run

QUICK = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "seed": 5, "steps": 4, "width": 64, "height": 64}


def txt2img(api: AAA1111) -> None:
    result = api.txt2img(TXT2IMG(**QUICK, sampler_name="DPM++ 2M Karras"))
    expect_equal(result.images[0].size, (64, 64), "size")
    expect_equal((result.info["seed"], result.info["sampler_name"]), (5, "DPM++ 2M"), "info")
    expect_equal(result.parameters["steps"], 4, "steps in the echo")


def hires_fix(api: AAA1111) -> None:
    hires = {"enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.6}
    expect_equal(api.txt2img(TXT2IMG(**QUICK, **hires)).images[0].size, (96, 96), "size")


def img2img(api: AAA1111) -> None:
    result = api.img2img(IMG2IMG(init_images=[picture()], denoising_strength=0.5, **QUICK))
    expect_equal(result.images[0].size, (64, 64), "size")
    result = api.img2img(IMG2IMG(init_images=[picture()], mask=mask(), **QUICK))
    expect_equal(result.images[0].size, (64, 64), "size, inpainting")


def extras(api: AAA1111) -> None:
    one = api.extra_single_image(ExtrasSingleImage(image=picture(), upscaler_1="Lanczos"))
    expect_equal(one.image.size, (128, 128), "size")
    # Its own class for this body does not become JSON; a plain one does.
    files = [{"data": picture(), "name": "a"}, {"data": picture((32, 32)), "name": "b"}]
    several = api.extra_batch_images({"imageList": files, "upscaler_1": "Nearest"})
    expect_equal([image.size for image in several.images], [(128, 128), (64, 64)], "sizes")


READS = [
    "cmd_flags",
    "samplers",
    "upscalers",
    "latent_upscale_modes",
    "sd_models",
    "sd_vae",
    "hypernetworks",
    "face_restorers",
    "realesrgan_models",
    "prompt_styles",
    "embeddings",
    "memory",
    "scripts",
    "script_info",
    "loras",
    "progress",
    "get_options",
]
ACTIONS = [
    "interrupt",
    "skip",
    "refresh_checkpoints",
    "unload_checkpoint",
    "reload_checkpoint",
    "refresh_loras",
]


def every_read(api: AAA1111) -> None:
    for name in READS:
        expect(getattr(api, name)() is not None, f"{name} answers nothing")


def every_action(api: AAA1111) -> None:
    for name in ACTIONS:
        getattr(api, name)()
    expect_error(api.refresh_lycos, "404")


def options(api: AAA1111) -> None:
    api.set_options(CLIP_stop_at_last_layers=2)
    expect_equal(api.get_options()["CLIP_stop_at_last_layers"], 2, "the option")
    api.set_options(CLIP_stop_at_last_layers=1)


def asynchronous(api: AAA1111) -> None:
    async def all_of_it() -> None:
        drawn, again = await asyncio.gather(*(api.atxt2img(TXT2IMG(**QUICK)) for _ in range(2)))
        expect_equal(drawn.images[0].tobytes(), again.images[0].tobytes(), "two requests at once")
        changed = await api.aimg2img(IMG2IMG(init_images=[picture()], **QUICK))
        expect_equal(changed.images[0].size, (64, 64), "size of img2img")
        larger = await api.aextra_single_image(ExtrasSingleImage(image=picture(), upscaler_1="Lanczos"))
        expect_equal(larger.image.size, (128, 128), "size of extras")
        await asyncio.gather(*(getattr(api, f"a{name}")() for name in READS))
        for name in ACTIONS:
            await getattr(api, f"a{name}")()
        await api.aclient.aclose()

    asyncio.run(all_of_it())


CHECKS = [txt2img, hires_fix, img2img, extras, every_read, every_action, options, asynchronous]


def main() -> int:
    return run(CHECKS, AAA1111(base_url=arguments().base))


if __name__ == "__main__":
    sys.exit(main())
