"""Draws with plain onnxruntime what `ancestral export` wrote, and expects the server's pictures.

    python plain_onnxruntime.py --base http://127.0.0.1:7860 --data FOLDER --server target/debug/ancestral

FOLDER is the server's data folder, filled with the golden models. Of every checkpoint below the server's binary exports the
graphs; this program repeats a request with them in a few lines of numpy: token ids from the exported vocabulary, torch's
start noise, the Euler sampler with guidance (k-diffusion's formulas), the VAE. Nothing of it is shared with the server.
scripts/check_export.py lets optimum do the same; it needs torch.
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.3.5", "onnxruntime==1.27.0", "pillow==12.0.0", "requests==2.32.5"]
# ///

import base64
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import requests
from checks import arguments, expect, picture, run
from PIL import Image

PROMPT = "a red cube on a table"
SEED = 77
STEPS = 5
GUIDANCE = 6.0
DENOISING_STRENGTH = 0.6
WIDTH, HEIGHT = 96, 64


class Export:
    """A checkpoint's exported graphs, each run as any program would run it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sessions: dict[str, onnxruntime.InferenceSession] = {}
        self.is_xl = (folder / "text_encoder_2").is_dir()
        self.scheduler = self.json("scheduler/scheduler_config.json")
        self.vae_scale = self.json("vae_decoder/config.json")["scaling_factor"]

    def json(self, file: str) -> dict:
        return json.loads((self.folder / file).read_text(encoding="utf-8"))

    def run(self, part: str, outputs: list[str], **inputs: np.ndarray) -> list[np.ndarray]:
        if part not in self.sessions:
            file = self.folder / part / "model.onnx"
            self.sessions[part] = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        return self.sessions[part].run(outputs, inputs)

    def token_ids(self, part: str, words: list[str]) -> np.ndarray:
        """Ids of words that are one token each. [1, 77]"""
        folder = part.replace("text_encoder", "tokenizer")
        vocabulary = self.json(f"{folder}/vocab.json")
        marks = self.json(f"{folder}/special_tokens_map.json")
        ids = [vocabulary["<|startoftext|>"], *(vocabulary[f"{word}</w>"] for word in words), vocabulary["<|endoftext|>"]]
        ids += [vocabulary[marks["pad_token"]]] * (77 - len(ids))
        return np.array([ids], np.int64)

    def conditioning(self, text: str) -> dict[str, np.ndarray]:
        """The UNet's inputs that come from a text, the last hidden state but one for SDXL, which gets sizes too."""
        words = text.split()
        if not self.is_xl:
            [hidden] = self.run("text_encoder", ["last_hidden_state"], input_ids=self.token_ids("text_encoder", words))
            return {"encoder_hidden_states": hidden}
        [first] = self.run("text_encoder", ["hidden_states"], input_ids=self.token_ids("text_encoder", words))
        second, pooled = self.run(
            "text_encoder_2", ["hidden_states", "text_embeds"], input_ids=self.token_ids("text_encoder_2", words)
        )
        hidden = np.concatenate([first[-2], second[-2]], axis=-1)
        if not words:  # `force_zeros_for_empty_prompt`
            hidden, pooled = np.zeros_like(hidden), np.zeros_like(pooled)
        sizes = np.array([[HEIGHT, WIDTH, 0, 0, HEIGHT, WIDTH]], np.float32)
        return {"encoder_hidden_states": hidden, "text_embeds": pooled, "time_ids": sizes}

    def sigmas(self) -> np.ndarray:
        """Noise levels of all training timesteps. [1000], float64"""
        ends = np.sqrt([self.scheduler["beta_start"], self.scheduler["beta_end"]])
        kept = np.cumprod(1.0 - np.linspace(*ends, self.scheduler["num_train_timesteps"]) ** 2)
        return np.sqrt((1 - kept) / kept)

    def sampled(self, init: np.ndarray | None) -> np.ndarray:
        """The latent after Euler's steps, begun at noise or at noise on `init`. [1, 4, height / 8, width / 8]"""
        timesteps = np.linspace(999, 0, STEPS)
        levels = np.exp(np.interp(timesteps, np.arange(1000), np.log(self.sigmas())))
        levels = np.append(levels, 0.0)
        first = 0 if init is None else STEPS - int(DENOISING_STRENGTH * STEPS) - 1
        x = noise() * levels[first] + (0.0 if init is None else init)
        texts = [self.conditioning(PROMPT), self.conditioning("")]
        for step in range(first, STEPS):
            sigma = levels[step]
            wanted, unwanted = (self.denoised(x, sigma, timesteps[step], text) for text in texts)
            denoised = unwanted + GUIDANCE * (wanted - unwanted)
            x = x + (x - denoised) / sigma * (levels[step + 1] - sigma)
        return x

    def denoised(self, x: np.ndarray, sigma: float, timestep: float, text: dict[str, np.ndarray]) -> np.ndarray:
        spread = np.sqrt(sigma**2 + 1)
        [out] = self.run(
            "unet",
            ["out_sample"],
            sample=(x / spread).astype(np.float32),
            timestep=np.array([timestep], np.float32),
            **text,
        )
        if self.scheduler["prediction_type"] == "v_prediction":
            return x / spread**2 - sigma / spread * out
        return x - sigma * out

    def encoded(self, image: Image.Image) -> np.ndarray:
        """A sample of the VAE's distribution, as A1111 takes one, with the numbers of the start noise."""
        pixels = np.asarray(image, np.float32).transpose(2, 0, 1)[None] / 255 * 2 - 1
        [parameters] = self.run("vae_encoder", ["latent_parameters"], sample=pixels)
        mean, log_variance = np.split(parameters, 2, axis=1)
        return (mean + np.exp(log_variance.clip(-30, 20) / 2) * noise()) * self.vae_scale

    def picture(self, init: Image.Image | None) -> np.ndarray:
        """The whole request. [height, width, 3], float in 0..255"""
        latent = self.sampled(None if init is None else self.encoded(init))
        [decoded] = self.run("vae_decoder", ["sample"], latent_sample=(latent / self.vae_scale).astype(np.float32))
        return ((decoded[0].transpose(1, 2, 0) + 1) / 2).clip(0, 1) * 255


def noise() -> np.ndarray:
    """What torch draws on a CPU for the seed: mt19937, 24 bits a number, Box and Muller's transform in blocks of 16."""
    shape = (1, 4, HEIGHT // 8, WIDTH // 8)
    words = np.random.RandomState(SEED).randint(0, 2**32, size=int(np.prod(shape)), dtype=np.uint32)
    uniform = (words & 0xFFFFFF).reshape(-1, 2, 8) / 2**24
    radius = np.sqrt(-2 * np.log1p(-uniform[:, 0]))
    angle = 2 * np.pi * uniform[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(shape).astype(np.float32)


def by_server(base: str, checkpoint: str, init: Image.Image | None) -> np.ndarray:
    """The server's picture from the checkpoint itself. [height, width, 3]"""
    body = {"prompt": PROMPT, "seed": SEED, "steps": STEPS, "cfg_scale": GUIDANCE, "width": WIDTH, "height": HEIGHT}
    body |= {"sampler_name": "Euler", "scheduler": "Automatic"}
    body["override_settings"] = {"sd_model_checkpoint": checkpoint, "sd_vae": "None", "randn_source": "CPU"}
    route = "txt2img"
    if init is not None:
        route = "img2img"
        file = io.BytesIO()
        init.save(file, "PNG")
        body |= {"init_images": [base64.b64encode(file.getvalue()).decode()], "denoising_strength": DENOISING_STRENGTH}
    answer = requests.post(f"{base}/sdapi/v1/{route}", json=body, timeout=120)
    answer.raise_for_status()
    drawn = Image.open(io.BytesIO(base64.b64decode(answer.json()["images"][0])))
    return np.asarray(drawn.convert("RGB"), np.float32)


def check_of(checkpoint: str, *, repainted: bool) -> Callable[[str, Path, Path], None]:
    def check(base: str, data: Path, exports: Path) -> None:
        init = picture((WIDTH, HEIGHT)) if repainted else None
        got = Export(exports / checkpoint).picture(init)
        want = by_server(base, checkpoint, init)
        expect(got.shape == want.shape, f"{got.shape}, not {want.shape}")
        # The server cuts the fraction off, so that equal values lie up to one level above its own.
        worst = float(np.abs(got - 0.5 - want).max())
        expect(worst <= 1.0, f"a pixel differs by {worst:.2f} levels")
        expect(want.std() > 5.0, "the server's picture is all of one colour")

    check.__name__ = f"{checkpoint.replace('-', '_')}_{'img2img' if repainted else 'txt2img'}"
    return check


CHECKPOINTS = ["tiny-sd1", "tiny-sd2-v", "tiny-sdxl"]
CHECKS = [check_of(name, repainted=repainted) for name in CHECKPOINTS for repainted in (False, True)]


if __name__ == "__main__":
    given = arguments()
    with tempfile.TemporaryDirectory() as temporary:
        for name in CHECKPOINTS:
            file = given.data / "models" / "Stable-diffusion" / f"{name}.safetensors"
            command = [given.server, "export", file, Path(temporary) / name]
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL, timeout=120)
        sys.exit(run(CHECKS, given.base, given.data, Path(temporary)))
