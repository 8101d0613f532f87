"""Asks a running Ancestral (or A1111) for pictures."""

import base64
import io
import json
import urllib.error
import urllib.request
from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass
class Client:
    """One server, and the settings that all pictures share."""

    server: str
    width: int = 512
    height: int = 512
    steps: int = 20
    cfg: float = 6.0

    def post(self, path: str, body: dict[str, object]) -> dict[str, object]:
        return self.call(path, json.dumps(body).encode())

    def get(self, path: str) -> dict[str, object]:
        return self.call(path, None)

    def call(self, path: str, body: bytes | None) -> dict[str, object]:
        request = urllib.request.Request(
            self.server.rstrip("/") + path, body, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as err:
            raise SystemExit(
                f"{path} answered {err.code}: {err.read()[:300]!r}"
            ) from err
        except urllib.error.URLError as err:
            raise SystemExit(f"{self.server} cannot be reached: {err.reason}") from err

    def png(self, prompt: str, seed: int, **more: object) -> bytes:
        """the picture's file, with its infotext; `more` goes into the request"""
        body = {
            "prompt": prompt,
            "seed": seed,
            "sampler_name": "Euler a",
            "width": self.width,
            "height": self.height,
            "steps": self.steps,
            "cfg_scale": self.cfg,
        }
        answer = self.post("/sdapi/v1/txt2img", body | more)
        return base64.b64decode(answer["images"][0])

    def draw(self, prompt: str, seed: int, **more: object) -> np.ndarray:
        """height x width x 3 bytes"""
        return pixels(self.png(prompt, seed, **more))


def pixels(png: bytes) -> np.ndarray:
    """height x width x 3 bytes"""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
