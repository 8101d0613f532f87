# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==1.26.4", "scikit-image==0.21.0"]
# ///
"""Writes tests/golden/images_matched_noise.json: outpainting noise as numpy and scikit-image compute it.

The method is parlance-zz's from g-diffuser-bot (MIT). The input is a formula that the test repeats.
"""

import argparse
import base64
import json
import sys
from pathlib import Path

import numpy as np
import skimage
from skimage.exposure import match_histograms


def picture(rows: int, columns: int) -> np.ndarray:
    y, x = np.mgrid[0:rows, 0:columns]
    planes = [(x * x * 7 + y * x * 3) % 253, (x * y + y * y * 5) % 251, (x * x + 5 * y * y * x) % 241]
    return np.stack(planes, axis=2).astype(np.uint8)


def spectrum(plane: np.ndarray) -> np.ndarray:
    return np.fft.ifftshift(np.fft.fft2(np.fft.fftshift(plane), norm="ortho"))


def inverse(values: np.ndarray) -> np.ndarray:
    return np.real(np.fft.ifftshift(np.fft.ifft2(np.fft.fftshift(values), norm="ortho")))


def window(rows: int, columns: int) -> np.ndarray:
    shorter = min(rows, columns)
    y = (np.arange(rows) / rows * 2.0 - 1.0) * (rows / shorter)
    x = (np.arange(columns) / columns * 2.0 - 1.0) * (columns / shorter)
    return 1.0 / ((y[:, None] ** 2 + 1.0) * (x[None, :] ** 2 + 1.0))


def matched_noise(source: np.ndarray, mask: np.ndarray, exponent: float, variation: float) -> np.ndarray:
    rows, columns, _ = source.shape
    mask_rgb = np.repeat(mask[:, :, None], 3, axis=2)
    windowed = source * (1.0 - mask_rgb)
    windowed /= np.max(windowed)
    windowed += np.average(source) * mask_rgb
    noise = np.random.default_rng(0).random((rows, columns, 3))
    grey = np.sum(noise, axis=2) / 3.0
    noise = noise * variation + (1.0 - variation) * grey[:, :, None]
    shaped = np.zeros_like(source)
    for channel in range(3):
        lowered = inverse(spectrum(noise[:, :, channel]) * window(rows, columns))
        wanted = spectrum(windowed[:, :, channel])
        strength = np.absolute(wanted)
        power = np.absolute(spectrum(lowered)) ** 2
        shaped[:, :, channel] = inverse(power * strength**exponent * wanted / strength)
    if np.isnan(shaped).any():
        raise ValueError("the input has an empty frequency")
    shaped -= np.min(shaped)
    shaped /= np.max(shaped)
    drawn, known = mask > 1e-6, mask < 1e-3
    shaped[drawn, :] = match_histograms(shaped[drawn, :], source[known, :], channel_axis=1)
    return np.clip(source * (1.0 - mask_rgb) + shaped * mask_rgb, 0.0, 1.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("tests/golden/images_matched_noise.json"))
    out: Path = parser.parse_args().out
    cases = []
    for rows, columns, left, exponent, variation in [(64, 96, 40, 1.0, 0.05), (128, 64, 20, 1.7, 0.5)]:
        source = picture(rows, columns) / 255.0
        mask = np.zeros((rows, columns))
        mask[:, :left] = 1.0
        noise = matched_noise(source, mask, exponent, variation)
        levels = np.clip(noise * 255.0, 0.0, 255.0).astype(np.uint8)
        cases.append(
            {
                "rows": rows,
                "columns": columns,
                "masked_columns": left,
                "exponent": exponent,
                "colour_variation": variation,
                "rgb": base64.b64encode(levels.tobytes()).decode(),
            }
        )
    made_by = f"numpy {np.__version__}, scikit-image {skimage.__version__}"
    out.write_text(json.dumps({"made_by": made_by, "cases": cases}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
