"""Programs that read generation parameters out of pictures, on the PNG that a started server writes.

    python metadata_readers.py --base http://127.0.0.1:7860

Prints one line a check, `ok NAME` or `FAIL NAME: why`; exit status 1 when any failed.
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["sd-parsers==0.6", "requests==2.32.5", "Pillow==12.0.0"]
# ///

import argparse
import base64
import io
import sys

import requests
from PIL import Image
from sd_parsers import ParserManager

REQUEST = {
    "prompt": "a red cube on a table, (blue sky:1.2)",
    "negative_prompt": "blurry, lowres",
    "seed": 7,
    "steps": 4,
    "width": 64,
    "height": 64,
    "cfg_scale": 6.5,
    "sampler_name": "Euler a",
}


def sd_parsers(png: bytes) -> None:
    found = ParserManager().parse(Image.open(io.BytesIO(png)))
    if found is None:
        raise AssertionError("sd-parsers finds no parameters")
    (sampler,) = found.samplers
    prompts = [prompt.value for prompt in found.prompts]
    negative = [prompt.value for prompt in found.negative_prompts]
    got = (sampler.name, sampler.parameters["seed"], sampler.parameters["cfg_scale"], prompts, negative)
    want = ("Euler a", "7", "6.5", [REQUEST["prompt"]], [REQUEST["negative_prompt"]])
    if (got[0], str(got[1]), str(got[2]), *got[3:]) != want:
        raise AssertionError(f"sd-parsers reads {got}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="http://127.0.0.1:7860")
    base = parser.parse_args().base
    failed = 0
    for check in (sd_parsers,):
        try:
            answer = requests.post(f"{base}/sdapi/v1/txt2img", json=REQUEST, timeout=300)
            answer.raise_for_status()
            check(base64.b64decode(answer.json()["images"][0]))
            print(f"ok {check.__name__}", flush=True)
        except Exception as error:
            failed += 1
            print(f"FAIL {check.__name__}: {type(error).__name__}: {' '.join(str(error).split())[:300]}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
