"""The PyPI package sd-backend-client, unmodified: discovery, lists, generation handles, upscaling, login.

    python sd_backend_client_client.py --base http://127.0.0.1:7860
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["sd-backend-client==0.5.0", "Pillow==12.0.0"]
# ///

import sys

from checks import NEGATIVE, PROMPT, arguments, expect, expect_equal, expect_error, mask, picture, run
from sd_backend_client import (
    A1111Webservice,
    DiffusionParams,
    DiffusionRequestBody,
    DiffusionUpscalingParams,
    GenerationStatus,
    connect_to_backend,
)


def params(**changes: object) -> DiffusionParams:
    values = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "seed": 11, "steps": 4, "width": 64, "height": 64}
    return DiffusionParams(**{**values, **changes})


def finds_out_what_the_server_is(service: A1111Webservice) -> None:
    expect_equal(type(connect_to_backend(service.server_url)), A1111Webservice, "what connect_to_backend finds")


def capabilities(service: A1111Webservice) -> None:
    found = service.get_capabilities()
    expect_equal((found.controlnet, found.scheduler, found.interrogate), (False, True, True), "capabilities")
    expect(found.soft_inpainting, "soft inpainting is not seen")
    expect_equal(len(service.get_soft_inpainting_parameters()), 6, "settings of soft inpainting")


def lists(service: A1111Webservice) -> None:
    expect(len(service.list_checkpoints()) > 1, "checkpoints")
    expect(all("[" not in option.name for option in service.list_checkpoints()), "a hash in a checkpoint's name")
    expect("euler_ancestral" in [option.name for option in service.list_samplers()], "samplers")
    expect("karras" in [option.name for option in service.list_schedulers()], "schedulers")
    expect("Lanczos" in [option.name for option in service.list_upscalers()], "upscalers")
    for read in (service.list_vaes, service.list_loras, service.list_hypernetworks, service.list_controlnet_models):
        expect(isinstance(read(), list), read.__name__)


def typed_lists(service: A1111Webservice) -> None:
    for read in (
        service.get_config,
        service.get_styles,
        service.get_scripts,
        service.get_script_info,
        service.get_samplers,
        service.get_upscalers,
        service.get_latent_upscale_modes,
        service.get_models,
        service.get_loras,
    ):
        expect(read(), f"{read.__name__} answers nothing")
    service.get_vae()
    service.get_hypernetworks()
    service.refresh_checkpoints()
    service.refresh_vae()
    service.refresh_loras()
    expect_equal(service.get_thumbnail("nope.png"), None, "a thumbnail that is not there")
    expect_error(service.get_controlnet_version, "ServerError", "404")


def txt2img(service: A1111Webservice) -> None:
    seen = []
    handle = service.submit_txt2img(params(batch_size=2))
    result = handle.wait(timeout=120, poll_interval=0.02, on_progress=seen.append)
    expect_equal([image.size for image in result.images], [(64, 64)] * 2, "sizes")
    expect_equal((result.seeds, result.seed), ([11, 12], 11), "seeds")
    expect_equal(result.raw_info.prompt, PROMPT, "prompt")
    expect_equal(seen[-1].status, GenerationStatus.FINISHED, "status")


def txt2img_at_once(service: A1111Webservice) -> None:
    answer = service.txt2img(params())
    expect_equal(answer["images"][0].size, (64, 64), "size")
    expect_equal((answer["info"].seed, answer["info"].width), (11, 64), "info")


def img2img(service: A1111Webservice) -> None:
    changes = {"init_images": [picture()], "denoising_strength": 0.5}
    result = service.submit_img2img(params(**changes)).wait(timeout=120, poll_interval=0.02)
    expect_equal(result.images[0].size, (64, 64), "size")


def inpainting(service: A1111Webservice) -> None:
    changes = {"init_images": [picture()], "mask": mask(), "denoising_strength": 0.7, "mask_blur": 2}
    for full_res in (False, True):
        handle = service.submit_inpaint(params(**changes, inpaint_full_res=full_res))
        image = handle.wait(timeout=120, poll_interval=0.02).images[0]
        expect_equal(image.convert("RGB").getpixel((0, 0)), picture().getpixel((0, 0)), "a pixel that is not masked")


def soft_inpainting(service: A1111Webservice) -> None:
    changes = {"init_images": [picture()], "mask": mask(), "denoising_strength": 0.7, "soft_inpainting": True}
    result = service.submit_inpaint(params(**changes)).wait(timeout=120, poll_interval=0.02)
    expect("Soft inpainting enabled: True" in result.raw_info.infotexts[0], result.raw_info.infotexts[0])


def upscale(service: A1111Webservice) -> None:
    result = service.submit_upscale(picture((32, 32)), 64, 48).wait(timeout=120, poll_interval=0.02)
    expect_equal(result.images[0].size, (64, 48), "size")
    by_name = DiffusionUpscalingParams(upscaling_mode="Nearest")
    answer = service.upscale(picture((32, 32)), 64, 64, by_name)
    expect_equal(answer["images"][0].size, (64, 64), "size")


def the_request_body_of_the_webui(service: A1111Webservice) -> None:
    body = DiffusionRequestBody.from_params(params())
    body.override_settings = {"CLIP_stop_at_last_layers": 2}
    expect_equal(service.txt2img(body)["info"].clip_skip, 2, "clip_skip")


def cancel(service: A1111Webservice) -> None:
    handle = service.submit_txt2img(params(width=256, height=256, steps=150, sampler="euler"))
    while handle.poll().progress in (None, 0.0):
        expect(not handle.done, "the job ended before it was cancelled")
    expect(handle.cancel(), "the server did not accept")
    expect_error(lambda: handle.wait(timeout=60, poll_interval=0.02), "GenerationError")
    while service.progress_check().state.job_count:
        pass


def progress_and_interrupt(service: A1111Webservice) -> None:
    idle = service.progress_check()
    expect_equal((idle.progress, idle.state.job_count), (0.0, 0), "progress of an idle server")
    expect_equal(service.interrupt(), {}, "interrupt")


def settings(service: A1111Webservice) -> None:
    service.set_config({"CLIP_stop_at_last_layers": 2})
    expect_equal(service.get_config()["CLIP_stop_at_last_layers"], 2, "the option")
    service.set_config({"CLIP_stop_at_last_layers": 1})


def interrogate(service: A1111Webservice) -> None:
    expect(service.interrogate(picture()), "no caption")


CHECKS = [
    finds_out_what_the_server_is,
    capabilities,
    lists,
    typed_lists,
    txt2img,
    txt2img_at_once,
    img2img,
    inpainting,
    soft_inpainting,
    upscale,
    the_request_body_of_the_webui,
    cancel,
    progress_and_interrupt,
    settings,
    interrogate,
]


def asks_for_the_login_when_told_to(service: A1111Webservice, login: tuple[str, str]) -> None:
    asked = []

    def credentials() -> tuple[str, str]:
        asked.append(True)
        return login if len(asked) > 1 else (login[0], "wrong")

    known = connect_to_backend(service.server_url, credentials)
    expect_equal(known.submit_txt2img(params()).wait(timeout=60).images[0].size, (64, 64), "size")
    expect_equal(len(asked), 2, "how often the login was asked for")
    expect_error(lambda: connect_to_backend(service.server_url, lambda: (login[0], "wrong")), "AuthError")


def main() -> int:
    given = arguments()
    service = A1111Webservice(given.base)
    if given.login:
        return run([asks_for_the_login_when_told_to], service, given.login)
    return run(CHECKS, service)


if __name__ == "__main__":
    sys.exit(main())
