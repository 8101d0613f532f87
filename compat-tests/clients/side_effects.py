"""What the routes that change something change: files that come and go, the loaded checkpoint.

    python side_effects.py --base http://127.0.0.1:7860 --data FOLDER

FOLDER is the server's data folder, filled with the golden models.
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["requests==2.32.5"]
# ///

import contextlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import requests
from checks import arguments, expect, expect_equal, run

QUICK = {"prompt": "a red cube", "seed": 71, "steps": 2, "width": 64, "height": 64}


class Server:
    def __init__(self, base: str, data: Path) -> None:
        self.base, self.data = base, data

    def get(self, path: str):
        answer = requests.get(f"{self.base}/sdapi/v1/{path}", timeout=60)
        answer.raise_for_status()
        return answer.json()

    def post(self, path: str, body: object = None) -> requests.Response:
        return requests.post(f"{self.base}/sdapi/v1/{path}", json=body, timeout=120)

    def draw(self, **changes: object) -> tuple[str, dict]:
        answer = self.post("txt2img", {**QUICK, **changes})
        answer.raise_for_status()
        return answer.json()["images"][0], json.loads(answer.json()["info"])


@contextlib.contextmanager
def another(file: Path, name: str) -> Iterator[Path]:
    """A copy of the file under another name beside it."""
    copy = file.with_name(name)
    shutil.copy(file, copy)
    try:
        yield copy
    finally:
        copy.unlink(missing_ok=True)


def refresh_checkpoints(server: Server) -> None:
    def names() -> list[str]:
        return [model["model_name"] for model in server.get("sd-models")]

    folder = server.data / "models" / "Stable-diffusion"
    with another(folder / "tiny-sd1.safetensors", "added-later.safetensors") as file:
        expect("added-later" not in names(), "the checkpoint is listed before the refresh")
        expect_equal(server.post("refresh-checkpoints").text, "null", "the answer")
        expect("added-later" in names(), "the checkpoint is not listed after the refresh")
        _, info = server.draw(override_settings={"sd_model_checkpoint": "added-later"})
        expect_equal(info["sd_model_name"], "added-later", "what drew")
        file.unlink()
        server.post("refresh-checkpoints")
        expect("added-later" not in names(), "the checkpoint is still listed")
        refused = server.post("options", {"sd_model_checkpoint": "added-later"})
        expect_equal((refused.status_code, refused.json()["errors"]), (500, "model 'added-later' not found"), "options")


def refresh_vae(server: Server) -> None:
    def names() -> list[str]:
        return [vae["model_name"] for vae in server.get("sd-vae")]

    folder = server.data / "models" / "VAE"
    folder.mkdir(exist_ok=True)
    file = folder / "added-later.safetensors"
    shutil.copy(server.data / "models" / "Stable-diffusion" / "tiny-sd1.safetensors", file)
    expect("added-later.safetensors" not in names(), "the VAE is listed before the refresh")
    expect_equal(server.post("refresh-vae").text, "null", "the answer")
    expect("added-later.safetensors" in names(), "the VAE is not listed after the refresh")
    file.unlink()
    server.post("refresh-vae")
    expect("added-later.safetensors" not in names(), "the VAE is still listed")


def refresh_embeddings(server: Server) -> None:
    def names() -> set[str]:
        found = server.get("embeddings")
        return set(found["loaded"]) | set(found["skipped"])

    source = next(file for file in sorted((server.data / "embeddings").iterdir()) if file.suffix == ".safetensors")
    with another(source, "addedlater.safetensors") as file:
        expect_equal(server.post("refresh-embeddings").text, "null", "the answer")
        expect("addedlater" in names(), "the embedding is not listed after the refresh")
        file.unlink()
        server.post("refresh-embeddings")
        expect("addedlater" not in names(), "the embedding is still listed")


def refresh_loras(server: Server) -> None:
    def names() -> list[str]:
        return [lora["name"] for lora in server.get("loras")]

    source = next((server.data / "models" / "Lora").glob("*.safetensors"))
    with another(source, "added-later.safetensors") as file:
        expect("added-later" not in names(), "the file is listed before the refresh")
        expect_equal(server.post("refresh-loras").text, "null", "the answer")
        expect("added-later" in names(), "the file is not listed after the refresh")
        file.unlink()
        server.post("refresh-loras")
        expect("added-later" not in names(), "the file is still listed")


def prompt_styles(server: Server) -> None:
    file = server.data / "styles.csv"
    before = file.read_text()
    try:
        file.write_text(before.rstrip("\n") + "\nadded later,{prompt} at dusk,noise\n")
        styles = {style["name"]: style for style in server.get("prompt-styles")}
        expect_equal(styles["added later"]["prompt"], "{prompt} at dusk", "the style")
        _, info = server.draw(styles=["added later"])
        expect_equal(info["prompt"], "a red cube at dusk", "the prompt drawn")
    finally:
        file.write_text(before)


def unload_and_reload(server: Server) -> None:
    before, _ = server.draw()
    expect_equal(server.post("unload-checkpoint").text, "{}", "unload-checkpoint")
    selected = server.get("options")["sd_model_checkpoint"]
    expect(selected, "no checkpoint is selected after it was unloaded")
    expect_equal(server.draw()[0], before, "the picture after unload-checkpoint")
    server.post("unload-checkpoint")
    expect_equal(server.post("reload-checkpoint").text, "{}", "reload-checkpoint")
    expect_equal(server.draw()[0], before, "the picture after reload-checkpoint")
    expect_equal(server.get("options")["sd_model_checkpoint"], selected, "the checkpoint selected")


def memory(server: Server) -> None:
    ram = server.get("memory")["ram"]
    expect_equal(set(ram), {"free", "used", "total"}, "ram")
    expect(0 < ram["used"] < ram["total"], f"ram {ram}")
    expect_equal(ram["free"] + ram["used"], ram["total"], "free and used")


def lists_of_models_that_a1111_knows(server: Server) -> None:
    models = server.get("realesrgan-models")
    expect_equal([model["scale"] for model in models], [4, 4, 4, 4, 4, 2], "scales")
    expect(all(model["path"].startswith("https://") for model in models), "paths")
    expect(all(set(item) == {"name", "path"} for item in server.get("hypernetworks")), "hypernetworks")
    expect_equal([item["cmd_dir"] for item in server.get("face-restorers")], [None, None], "face restorers")


def options_survive(server: Server) -> None:
    file = server.data / "config.json"
    server.post("options", {"jpeg_quality": 77}).raise_for_status()
    expect_equal(json.loads(file.read_text())["jpeg_quality"], 77, "jpeg_quality in config.json")
    server.draw(override_settings={"jpeg_quality": 33}, override_settings_restore_afterwards=True)
    expect_equal(json.loads(file.read_text())["jpeg_quality"], 77, "jpeg_quality after an override")
    server.post("options", {"jpeg_quality": 80})


CHECKS = [
    refresh_checkpoints,
    refresh_vae,
    refresh_embeddings,
    refresh_loras,
    prompt_styles,
    unload_and_reload,
    memory,
    lists_of_models_that_a1111_knows,
    options_survive,
]


def main() -> int:
    given = arguments()
    return run(CHECKS, Server(given.base, given.data))


if __name__ == "__main__":
    sys.exit(main())
