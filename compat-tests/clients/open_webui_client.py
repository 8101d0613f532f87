"""The automatic1111 code path of open-webui, from its wheel: `open_webui/routers/images.py`, unmodified.

    python open_webui_client.py --package FOLDER --base http://127.0.0.1:7860

FOLDER holds the Python files of the wheel. What that module imports of the rest of open-webui (a data base, a file
store, user management) is replaced by the little that this path needs of it; its HTTP calls, and what it does
with the answers, are its own.
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["aiofiles==25.1.0", "aiohttp==3.13.2", "fastapi==0.165.0", "requests==2.32.5", "Pillow==12.0.0"]
# ///

import asyncio
import importlib
import io
import sys
import tempfile
import types
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import aiohttp
import requests
from checks import arguments, expect, expect_equal, expect_error, run
from PIL import Image

STORE: dict[str, object] = {}
UPLOADS: list[tuple[bytes, dict]] = []
ADMIN = SimpleNamespace(id="1", role="admin")
USER = SimpleNamespace(id="2", role="user")


class Config:
    """The settings, which open-webui keeps in its data base."""

    @staticmethod
    async def upsert(values: dict) -> None:
        STORE.update(values)

    @staticmethod
    async def get_many(*keys: str) -> dict:
        return {key: STORE.get(key) for key in keys}


async def upload_file_handler(_request, file, metadata, **_rest) -> SimpleNamespace:
    UPLOADS.append((file.file.read(), metadata))
    return SimpleNamespace(id=str(len(UPLOADS)), meta={"name": file.filename}, filename=file.filename)


async def yes(*_arguments, **_rest) -> bool:
    return True


SESSIONS: list[aiohttp.ClientSession] = []


async def get_session() -> aiohttp.ClientSession:
    SESSIONS.append(aiohttp.ClientSession())
    return SESSIONS[-1]


def load(package: Path, cache: Path):
    """The module, with its neighbours replaced; the wheel's own `constants.py` stays."""
    parts = {
        "config": {"CACHE_DIR": cache},
        "env": {"AIOHTTP_CLIENT_ALLOW_REDIRECTS": False, "AIOHTTP_CLIENT_SESSION_SSL": True},
        "events": {"EVENTS": MagicMock(), "publish_event": yes},
        "internal.db": {},
        "models.chats": {},
        "models.config": {"Config": Config},
        "retrieval.web.utils": {},
        "routers.files": {"upload_file_handler": upload_file_handler},
        "utils.access_control": {"has_permission": yes},
        "utils.auth": {},
        "utils.headers": {},
        "utils.images.comfyui": {},
        "utils.json_codec": {},
        "utils.session_pool": {"get_session": get_session},
    }
    for name in ("", ".routers"):
        folder = types.ModuleType(f"open_webui{name}")
        folder.__path__ = [str(package / "open_webui" / name.lstrip("."))]
        sys.modules[folder.__name__] = folder
    for name, content in parts.items():
        module = MagicMock(spec_set=None)
        module.__dict__.update(content)
        sys.modules[f"open_webui.{name}"] = module
    # Both are names of types in signatures only.
    from pydantic import BaseModel

    comfyui = sys.modules["open_webui.utils.images.comfyui"]
    for name in ("ComfyUICreateImageForm", "ComfyUIEditImageForm", "ComfyUIWorkflow"):
        setattr(comfyui, name, type(name, (BaseModel,), {}))
    sys.modules.setdefault("sqlalchemy.ext.asyncio", MagicMock())
    return importlib.import_module("open_webui.routers.images")


def configure(images, base: str, login: tuple[str, str] | None) -> None:
    STORE.update(dict.fromkeys(images.IMAGE_CONFIG_KEYS.values()))
    STORE.update(
        {
            "image_generation.enable": True,
            "image_generation.engine": "automatic1111",
            "image_generation.size": "64x64",
            "image_generation.steps": 4,
            "image_generation.automatic1111.base_url": base,
            "image_generation.automatic1111.api_auth": ":".join(login) if login else None,
            "image_generation.automatic1111.api_params": {"cfg_scale": 6.5, "sampler_name": "Euler a", "seed": 21},
        }
    )


def wait(call):
    async def and_close():
        try:
            return await call
        finally:
            while SESSIONS:
                await SESSIONS.pop().close()

    return asyncio.run(and_close())


def draw(images, user=ADMIN, **form: object) -> list[tuple[bytes, dict]]:
    UPLOADS.clear()
    form = images.CreateImageForm(**{"prompt": "a red cube", **form})
    files = wait(images.generate_images(MagicMock(), form, user=user))
    expect_equal(len(files), len(UPLOADS), "files")
    return list(UPLOADS)


def verifies_the_connection(images, base: str) -> None:
    form = images.ConnectionVerificationForm(engine="automatic1111", url=f"{base}/", key="")
    expect_equal(wait(images.verify_connection(form, user=ADMIN)), True, "the answer")


def lists_models(images, base: str) -> None:
    models = wait(images.get_models(MagicMock(), user=USER))
    titles = [model["title"] for model in requests.get(f"{base}/sdapi/v1/sd-models", timeout=30).json()]
    expect_equal([model["id"] for model in models], titles, "models")
    expect(wait(images.get_image_model(MagicMock())) in titles, "the model in use is not in the list")


def generates(images, _base: str) -> None:
    ((file, metadata),) = draw(images, negative_prompt="blurry")
    image = Image.open(io.BytesIO(file))
    expect_equal((image.format, image.size), ("PNG", (64, 64)), "picture")
    text = image.info["parameters"]
    expect("Seed: 21" in text and "CFG scale: 6.5" in text and "Negative prompt: blurry" in text, text)
    expect(text in requests.models.complexjson.loads(metadata["info"])["infotexts"], "info does not hold the text")


def generates_several_of_a_size(images, _base: str) -> None:
    files = draw(images, n=3, size="96x64", steps=2)
    expect_equal([Image.open(io.BytesIO(file)).size for file, _ in files], [(96, 64)] * 3, "sizes")


def sends_all_options_back_to_switch_the_model(images, base: str) -> None:
    models = [model["id"] for model in wait(images.get_models(MagicMock(), user=USER))]
    before = wait(images.get_image_model(MagicMock()))
    other = next(title for title in models if title.split(" [")[0] != before.split(" [")[0])
    options = requests.get(f"{base}/sdapi/v1/options", timeout=30).json()
    ((file, _),) = draw(images, model=other)
    now = requests.get(f"{base}/sdapi/v1/options", timeout=30).json()
    expect(now["sd_model_checkpoint"].startswith(other.split(" [")[0]), "the model was not switched")
    changed = {key for key in now if now[key] != options[key]}
    expect(changed <= {"sd_model_checkpoint", "sd_checkpoint_hash"}, f"other options changed: {changed}")
    name = other.split(" [")[0].rsplit("/", 1)[-1].rsplit(".", 1)[0]
    expect(f"Model: {name}" in Image.open(io.BytesIO(file)).info["parameters"], "drawn with another model")
    wait(images.set_image_model(MagicMock(), before))
    expect_equal(wait(images.get_image_model(MagicMock())), before, "the model afterwards")


def tells_of_errors(images, _base: str) -> None:
    params = STORE["image_generation.automatic1111.api_params"]
    STORE["image_generation.automatic1111.api_params"] = {"steps": "many"}
    try:
        expect_error(lambda: draw(images), "HTTPException", "400")
    finally:
        STORE["image_generation.automatic1111.api_params"] = params


CHECKS = [
    verifies_the_connection,
    lists_models,
    generates,
    generates_several_of_a_size,
    sends_all_options_back_to_switch_the_model,
    tells_of_errors,
]


def the_login_opens(images, base: str) -> None:
    right = STORE["image_generation.automatic1111.api_auth"]
    form = images.ConnectionVerificationForm(engine="automatic1111", url=base, key=right)
    expect_equal(wait(images.verify_connection(form, user=ADMIN)), True, "the answer")
    ((file, _),) = draw(images)
    expect_equal(Image.open(io.BytesIO(file)).size, (64, 64), "size")
    form.key = "user:wrong"
    expect_error(lambda: wait(images.verify_connection(form, user=ADMIN)), "400")


def main() -> int:
    given = arguments()
    with tempfile.TemporaryDirectory() as cache:
        images = load(given.package, Path(cache))
        configure(images, given.base, given.login)
        return run([the_login_opens] if given.login else CHECKS, images, given.base)


if __name__ == "__main__":
    sys.exit(main())
