"""Programs that read generation parameters out of pictures, on what a started server writes.

    python metadata_readers.py --base http://127.0.0.1:7860
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["sd-parsers==0.6", "sd-prompt-reader==1.3.5", "requests==2.32.5", "Pillow==12.0.0"]
# ///

import base64
import io
import sys

import requests
from checks import NEGATIVE, PROMPT, arguments, expect, expect_equal, run
from PIL import Image
from sd_parsers import ParserManager
from sd_prompt_reader.image_data_reader import ImageDataReader

REQUEST = {
    "prompt": PROMPT,
    "negative_prompt": NEGATIVE,
    "seed": 7,
    "steps": 4,
    "width": 64,
    "height": 64,
    "cfg_scale": 6.5,
    "sampler_name": "Euler a",
}


def drawn(base: str, **changes: object) -> tuple[bytes, dict]:
    """The first picture's file, and the answer's info parsed."""
    answer = requests.post(f"{base}/sdapi/v1/txt2img", json={**REQUEST, **changes}, timeout=300)
    answer.raise_for_status()
    body = answer.json()
    return base64.b64decode(body["images"][0]), requests.models.complexjson.loads(body["info"])


def sd_parsers(base: str) -> None:
    file, _ = drawn(base)
    found = ParserManager().parse(Image.open(io.BytesIO(file)))
    expect(found is not None, "sd-parsers finds no parameters")
    (sampler,) = found.samplers
    prompts = [prompt.value for prompt in found.prompts]
    negative = [prompt.value for prompt in found.negative_prompts]
    got = (sampler.name, str(sampler.parameters["seed"]), str(sampler.parameters["cfg_scale"]), prompts, negative)
    expect_equal(got, ("Euler a", "7", "6.5", [PROMPT], [NEGATIVE]), "sd-parsers")


def sd_parsers_on_prompts_of_any_script(base: str) -> None:
    for prompt in ("a cat, Steps: 5, a dog", "two\nlines: of text", "画像、été, 🙂", 'with "quotes", and\\ backslash'):
        file, info = drawn(base, prompt=prompt)
        image = Image.open(io.BytesIO(file))
        expect_equal(image.info["parameters"], info["infotexts"][0], "the picture's text")
        found = ParserManager().parse(image)
        expect_equal([found.value for found in found.prompts], [prompt], "sd-parsers' prompt")


def sd_prompt_reader(base: str) -> None:
    file, info = drawn(base)
    found = ImageDataReader(io.BytesIO(file))
    expect_equal(found.status.name, "READ_SUCCESS", "status")
    expect_equal((found.tool, found.positive, found.negative), ("A1111 webUI", PROMPT, NEGATIVE), "prompts")
    expect_equal(found.raw, info["infotexts"][0], "text")
    wanted = {"model": info["sd_model_name"], "sampler": "Euler a", "seed": "7", "cfg": "6.5", "steps": "4", "size": "64x64"}
    expect_equal(found.parameter, wanted, "parameters")


def sd_prompt_reader_on_jpeg_and_webp(base: str) -> None:
    for kind in ("jpg", "webp"):
        options = f"{base}/sdapi/v1/options"
        requests.post(options, json={"samples_format": kind}, timeout=30).raise_for_status()
        try:
            file, _ = drawn(base)
        finally:
            requests.post(options, json={"samples_format": "png"}, timeout=30).raise_for_status()
        expect_equal(Image.open(io.BytesIO(file)).format, {"jpg": "JPEG", "webp": "WEBP"}[kind], "format")
        found = ImageDataReader(io.BytesIO(file))
        expect_equal((found.status.name, found.positive), ("READ_SUCCESS", PROMPT), kind)
        expect_equal(found.parameter["seed"], "7", f"seed in {kind}")


CHECKS = [sd_parsers, sd_parsers_on_prompts_of_any_script, sd_prompt_reader, sd_prompt_reader_on_jpeg_and_webp]


def main() -> int:
    return run(CHECKS, arguments().base)


if __name__ == "__main__":
    sys.exit(main())
