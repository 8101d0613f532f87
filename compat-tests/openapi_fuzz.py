"""schemathesis over the server's own document: what `/openapi.json` says is sent, and what it rules out.

    python openapi_fuzz.py --base http://127.0.0.1:7860 [--examples 30] [--seed 1]

Every operation gets as many requests made from its schema, and as many made to violate it. An answer fails its operation's
check when it has a status from 500 on that documented-errors.toml does not explain, when it does not come in time,
or when its content type or its body is not what the document says. Prints `ok NAME` or `FAIL NAME: why` for each
operation; the same seed sends the same requests.
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["schemathesis==4.32.5", "requests==2.32.5"]
# ///

import argparse
import base64
import contextlib
import io
import json
import re
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import hypothesis
import requests
import schemathesis
from hypothesis import strategies as st
from PIL import Image
from schemathesis import GenerationMode
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

counts: Counter[int] = Counter()
ERRORS = Path(__file__).resolve().parent / "documented-errors.toml"
TIMEOUT_S = 60
# Fields that cost time. A value that the server would work through is brought down to a few pixels, steps or
# pictures; values that it refuses stay, to see that it does.
COSTLY = {
    "width": 96,
    "height": 96,
    "steps": 3,
    "batch_size": 2,
    "n_iter": 2,
    "firstphase_width": 128,
    "firstphase_height": 128,
    "hr_resize_x": 128,
    "hr_resize_y": 128,
    "hr_second_pass_steps": 3,
    "hr_scale": 2,
    "upscaling_resize": 4,
    "upscaling_resize_w": 256,
    "upscaling_resize_h": 256,
}
LARGEST_ACCEPTED = 20000
# Options that make another picture than a small one, or look for files.
COSTLY_OPTIONS = {"sd_model_checkpoint", "sd_vae"}
SMALL = {"steps": 1, "width": 64, "height": 64}


def picture() -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (48, 32), "steelblue").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


PICTURE = picture()
# Fields of which nearly every made-up value is refused. Each is left as it is or replaced by one of these, by turns,
# so that requests come through to the drawing too.
ACCEPTED = {
    "alwayson_scripts": [{}, []],
    "firstpass_image": [None],
    "hr_checkpoint_name": [None, ""],
    "hr_sampler_name": [None, "Euler"],
    "hr_scheduler": [None, "Karras"],
    "hr_upscaler": [None, "Latent", "Lanczos"],
    "image": [PICTURE, f"data:image/png;base64,{PICTURE}"],
    "imageList": [[{"data": PICTURE, "name": ""}]],
    "init_images": [[PICTURE], [PICTURE, PICTURE]],
    "latent_mask": [None],
    "mask": [None, PICTURE],
    "override_settings": [None, {}, {"CLIP_stop_at_last_layers": 2}],
    "refiner_checkpoint": [None, "None"],
    "script_name": [None, "", "prompt matrix", "x/y/z plot", "loopback", "sd upscale", "outpainting mk2"],
    "upscaler_1": ["None", "Lanczos"],
    "upscaler_2": ["None", "Nearest"],
}


def documented() -> list[dict]:
    return tomllib.loads(ERRORS.read_text())["error"]


def explained(status: int, body: object, errors: list[dict]) -> bool:
    if not isinstance(body, dict) or set(body) != {"error", "detail", "body", "errors"}:
        return False
    text = body["detail"] or body["errors"]
    return any(
        entry["status"] == status and entry["error"] == body["error"] and re.search(entry["text"], text, re.DOTALL)
        for entry in errors
    )


def bounded(value: object, largest: int) -> object:
    """A number that is accepted and large, made small; everything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    if largest < value <= LARGEST_ACCEPTED:
        return type(value)(value % largest)
    return value


def affordable(body: object) -> object:
    if not isinstance(body, dict):
        return body
    changed = {key: bounded(value, COSTLY[key]) if key in COSTLY else value for key, value in body.items()}
    return {"steps": 2, "width": 64, "height": 64, **changed}


def plausible(body: object, fields: set[str], draw: Callable) -> object:
    if not isinstance(body, dict):
        return body
    changed = {key: value for key, value in body.items() if value is not None or draw(st.booleans())}
    if "init_images" in fields and changed.get("init_images") is None and draw(st.integers(0, 3)) < 3:
        changed["init_images"] = [PICTURE]
    for key, values in ACCEPTED.items():
        if key in changed and draw(st.booleans()):
            changed[key] = draw(st.sampled_from(values))
    return changed


def finding(case: schemathesis.Case, errors: list[dict]) -> str | None:
    """What is wrong with the answer to this request."""
    begin = time.monotonic()
    try:
        answer = case.call(timeout=TIMEOUT_S)
    except requests.exceptions.RequestException as error:
        return f"no answer after {time.monotonic() - begin:.0f} s: {type(error).__name__}"
    counts[answer.status_code] += 1
    if answer.status_code >= 500:
        try:
            body = json.loads(answer.content)
        except ValueError:
            body = None
        return None if explained(answer.status_code, body, errors) else f"{answer.status_code} {answer.text[:200]}"
    if answer.status_code in (200, 422):
        try:
            case.validate_response(answer, checks=[content_type_conformance, response_schema_conformance])
        except FailureGroup as failures:
            return " ".join(str(failure) for failure in failures.exceptions)
    if answer.status_code == 200 and case.operation.label == "POST /sdapi/v1/options":
        return drawn_with_options(case, errors)
    return None


def drawn_with_options(case: schemathesis.Case, errors: list[dict]) -> str | None:
    """What is wrong when options were set and a picture is drawn with them."""
    answer = requests.post(f"{case.operation.base_url}/sdapi/v1/txt2img", json=SMALL, timeout=TIMEOUT_S)
    if answer.status_code == 200 or explained(answer.status_code, answer.json(), errors):
        return None
    return f"txt2img with these options: {answer.status_code} {answer.text[:200]}"


def some_options(known: list[str], draw: Callable) -> dict:
    """A few options with values of any kind."""
    values = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.just([]))
    keys = st.sampled_from([key for key in known if key not in COSTLY_OPTIONS])
    return draw(st.dictionaries(keys, values, max_size=5))


def body_fields(operation) -> set[str]:
    """The names that the operation's body knows."""
    schema = operation.schema.raw_schema
    content = operation.definition.raw.get("requestBody", {}).get("content", {}).get("application/json", {})
    name = content.get("schema", {}).get("$ref", "").rsplit("/", 1)[-1]
    return set(schema["components"]["schemas"].get(name, {}).get("properties", {}))


def findings_of(operation, mode: GenerationMode, given: argparse.Namespace, errors: list[dict]) -> dict[str, str]:
    """What is wrong with the operation's answers, each kind once, with a request that shows it."""
    found: dict[str, str] = {}
    counts.clear()
    fields = body_fields(operation)
    options = list(operation.schema.raw_schema["components"]["schemas"]["Options"]["properties"])

    @hypothesis.seed(given.seed)
    @hypothesis.settings(
        max_examples=given.examples,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode), data=st.data())
    def send(case: schemathesis.Case, data: st.DataObject) -> None:
        if operation.path.endswith(("/txt2img", "/img2img")):
            case.body = affordable(case.body)
        if mode is GenerationMode.POSITIVE:
            case.body = plausible(case.body, fields, data.draw)
            if operation.label == "POST /sdapi/v1/options" and data.draw(st.integers(0, 3)):
                case.body = some_options(options, data.draw)
        why = finding(case, errors)
        if why is not None:
            found.setdefault(" ".join(why.split()), f"{case.query!r} {case.body!r}"[:500])

    with contextlib.suppress(hypothesis.errors.Unsatisfiable):
        send()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="http://127.0.0.1:7860")
    parser.add_argument("--examples", type=int, default=30, help="requests of each kind an operation")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="part of an operation's path")
    parser.add_argument("--long", action="store_true", help="tell a request for each finding")
    given = parser.parse_args()
    schema = schemathesis.openapi.from_url(f"{given.base}/openapi.json")
    errors = documented()
    options = requests.get(f"{given.base}/sdapi/v1/options", timeout=TIMEOUT_S).json()
    failed = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        if given.only and given.only not in operation.path:
            continue
        name = re.sub(r"\W+", "_", f"{operation.method}{operation.path}")
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            found = findings_of(operation, mode, given, errors)
            # What an operation left set must not speak in the next one's answers.
            requests.post(f"{given.base}/sdapi/v1/options", json=options, timeout=TIMEOUT_S).raise_for_status()
            failed += bool(found)
            why = " | ".join(f"{why} <- {request}" for why, request in found.items()) if given.long else " | ".join(found)
            print(f"FAIL {name}_{mode.value}: {why}" if found else f"ok {name}_{mode.value}", flush=True)
            if given.long:
                print(f"   statuses {dict(counts)}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
