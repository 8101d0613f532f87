# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "blendmodes==2022",
#     "numpy==1.26.4",
#     "opencv-python-headless==4.11.0.86",
#     "piexif==1.1.3",
#     "Pillow==9.5.0",
#     "scikit-image==0.21.0",
# ]
# ///
"""Writes tests/golden/images_*.json: what Pillow, OpenCV and scikit-image make of small pictures.

Inputs are not stored: both sides draw them from the same generator (`noise`). Bytes are base64.
"""

import argparse
import base64
import io
import json
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import piexif
import piexif.helper
import PIL
import skimage
from blendmodes.blend import BlendType, blendLayers
from PIL import Image, ImageFilter, ImageOps, features
from skimage import exposure

Json = dict[str, object]


def noise(seed: int, count: int) -> np.ndarray:
    """`count` bytes of the linear congruential generator of Numerical Recipes, high byte first."""
    values = np.empty(count, dtype=np.uint8)
    state = seed
    for index in range(count):
        state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
        values[index] = state >> 24
    return values


def picture(seed: int, mode: str, width: int, height: int) -> Image.Image:
    channels = len(mode)
    data = noise(seed, width * height * channels)
    if mode in ("RGBA", "LA"):
        # A third of the pixels fully opaque, a third fully transparent.
        alpha = data[channels - 1 :: channels]
        alpha[alpha > 170] = 255
        alpha[alpha < 85] = 0
    return Image.frombytes(mode, (width, height), data.tobytes())


def smooth(seed: int, width: int, height: int) -> Image.Image:
    """A picture that lossy codecs and histograms can make something of."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    wave = noise(seed, 3).astype(int)
    channels = [(x * (3 + wave[c] % 5) + y * (2 + wave[c] % 7) + x * y // 9 + wave[c]) % 256 for c in range(3)]
    return Image.fromarray(np.stack(channels, axis=2).astype(np.uint8))


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def resampling() -> list[Json]:
    filters = {
        "nearest": Image.NEAREST,
        "box": Image.BOX,
        "bilinear": Image.BILINEAR,
        "bicubic": Image.BICUBIC,
        "lanczos": Image.LANCZOS,
    }
    sizes = [((13, 9), (7, 21)), ((13, 9), (29, 4)), ((13, 9), (13, 5)), ((13, 9), (6, 9)), ((5, 4), (1, 1)), ((1, 1), (3, 2)), ((37, 3), (2, 3))]
    cases = []
    for name, number in filters.items():
        for index, (before, after) in enumerate(sizes):
            for mode in ("L", "LA", "RGB", "RGBA"):
                result = picture(index + 1, mode, *before).resize(after, number)
                cases.append({"filter": name, "mode": mode, "seed": index + 1, "from": before, "to": after, "want": text(result.tobytes())})
    for name in ("lanczos", "bicubic", "bilinear", "nearest"):
        for before, after in (((320, 200), (512, 512)), ((511, 333), (97, 64)), ((64, 48), (1000, 7))):
            result = picture(99, "RGB", *before).resize(after, filters[name])
            cases.append({"filter": name, "mode": "RGB", "seed": 99, "from": before, "to": after, "crc32": zlib.crc32(result.tobytes())})
    return cases


def blurs() -> Json:
    gaussian = []
    for radius in (0.5, 1, 2, 3.7, 4, 16, 64, 256):
        result = picture(3, "RGBA", 23, 17).convert("RGBa").filter(ImageFilter.GaussianBlur(radius))
        gaussian.append({"radius": radius, "width": 23, "seed": 3, "want": text(result.tobytes())})
    masks = []
    for blur in (1, 2, 4, 7, 16, 40, 64):
        levels = np.where(noise(5, 33 * 21).reshape(21, 33) > 190, 255, 0).astype(np.uint8)
        size = 2 * int(2.5 * blur + 0.5) + 1
        across = cv2.GaussianBlur(levels, (size, 1), blur)
        both = cv2.GaussianBlur(across, (1, size), blur)
        masks.append({"blur": blur, "x": text(across.tobytes()), "xy": text(both.tobytes())})
    return {"gaussian": gaussian, "mask": masks}


def compositing() -> Json:
    below, above = picture(7, "RGBA", 40, 30), picture(8, "RGBA", 40, 30)
    original, mask = picture(9, "RGB", 40, 30), picture(10, "L", 40, 30)
    blends = []
    for share in (0.0, 0.25, 0.4, 0.5, 0.9, 1.0):
        result = Image.blend(original, picture(11, "RGB", 40, 30), share)
        blends.append({"share": share, "crc32": zlib.crc32(result.tobytes())})
    masked = Image.new("RGBa", original.size)
    masked.paste(original.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(mask))
    overlay = masked.convert("RGBA")
    result = picture(12, "RGB", 40, 30).convert("RGBA")
    result.alpha_composite(overlay)
    flat = Image.new("RGBA", above.size, "#4080c0")
    flat.paste(above, mask=above)
    return {
        "alpha_composite": zlib.crc32(Image.alpha_composite(below, above).tobytes()),
        "blend": blends,
        "overlay": zlib.crc32(overlay.tobytes()),
        "overlay_applied": zlib.crc32(result.convert("RGB").tobytes()),
        "flatten": zlib.crc32(flat.convert("RGB").tobytes()),
        "grey": zlib.crc32(original.convert("L").tobytes()),
    }


def fit(mode: int, image: Image.Image, width: int, height: int) -> Image.Image:
    """Crop (1) and fill (2) to a size with Pillow's own primitives."""
    wanted, given = width / height, image.width / image.height
    by_width = wanted > given if mode == 1 else wanted < given
    inner = (width, image.height * width // image.width) if by_width else (image.width * height // image.height, height)
    resized = image.resize(inner, Image.LANCZOS)
    result = Image.new("RGB", (width, height))
    result.paste(resized, box=(width // 2 - inner[0] // 2, height // 2 - inner[1] // 2))
    if mode == 1 or wanted == given:
        return result
    if wanted < given:
        bar = height // 2 - inner[1] // 2
        if bar > 0:
            result.paste(resized.resize((width, bar), box=(0, 0, width, 0)), box=(0, 0))
            result.paste(resized.resize((width, bar), box=(0, inner[1], width, inner[1])), box=(0, bar + inner[1]))
    else:
        bar = width // 2 - inner[0] // 2
        if bar > 0:
            result.paste(resized.resize((bar, height), box=(0, 0, 0, height)), box=(0, 0))
            result.paste(resized.resize((bar, height), box=(inner[0], 0, inner[0], height)), box=(bar + inner[0], 0))
    return result


def resize_modes() -> list[Json]:
    cases = []
    for mode in (1, 2):
        for before, after in (((40, 30), (64, 64)), ((40, 30), (21, 50)), ((30, 40), (33, 15)), ((31, 17), (62, 35)), ((50, 9), (8, 8)), ((24, 24), (48, 48))):
            result = fit(mode, picture(21, "RGB", *before), *after)
            cases.append({"mode": mode, "from": before, "to": after, "crc32": zlib.crc32(result.tobytes())})
    return cases


def fills() -> list[Json]:
    cases = []
    for width, height in ((48, 32), (17, 40)):
        image = picture(31, "RGB", width, height)
        mask = Image.fromarray(np.where(noise(32, width * height) > 150, 255, noise(33, width * height)).astype(np.uint8).reshape(height, width))
        masked = Image.new("RGBa", image.size)
        masked.paste(image.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(mask))
        result = Image.new("RGBA", image.size)
        for radius, repeats in ((256, 1), (64, 1), (16, 2), (4, 4), (2, 2), (0, 1)):
            blurred = masked.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")
            for _ in range(repeats):
                result.alpha_composite(blurred)
        cases.append({"width": width, "height": height, "crc32": zlib.crc32(result.convert("RGB").tobytes())})
    return cases


def colours() -> Json:
    every = np.arange(256, dtype=np.uint8)
    cube = np.stack(np.meshgrid(every[::5], every[::5], every[::5], indexing="ij"), axis=-1).reshape(1, -1, 3)
    rows = {"rgb_to_lab": cv2.COLOR_RGB2LAB, "lab_to_rgb": cv2.COLOR_LAB2RGB}
    tables = {name: zlib.crc32(cv2.cvtColor(cube, code).tobytes()) for name, code in rows.items()}
    corrections = []
    for seed in (41, 42, 43):
        reference, image = smooth(seed, 40, 30), smooth(seed + 10, 36, 28)
        if seed == 43:
            image = picture(seed, "RGB", 36, 28)
        lab = exposure.match_histograms(
            cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2LAB),
            cv2.cvtColor(np.asarray(reference), cv2.COLOR_RGB2LAB),
            channel_axis=2,
        )
        matched = Image.fromarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB).astype("uint8"))
        result = blendLayers(matched, image, BlendType.LUMINOSITY).convert("RGB")
        corrections.append({"seed": seed, "matched": zlib.crc32(matched.tobytes()), "want": text(result.tobytes())})
    return {"made_by": {"skimage": skimage.__version__}, **tables, "corrections": corrections}


def tiles() -> list[Json]:
    """Tiled upscaling with an enlarging that depends on the tile, so that seams show."""

    def enlarge(tile: Image.Image) -> Image.Image:
        return ImageOps.autocontrast(tile).resize((tile.width * 2, tile.height * 2), Image.NEAREST)

    cases = []
    for width, height, tile, overlap in ((50, 41, 24, 4), (100, 30, 32, 8), (20, 50, 24, 4), (24, 24, 24, 4)):
        image = smooth(51, width, height)

        def positions(side: int, tile: int = tile, overlap: int = overlap) -> list[int]:
            count = int(np.ceil((side - overlap) / (tile - overlap)))
            step = (side - tile) / (count - 1) if count > 1 else 0
            return [min(int(index * step), side - tile) for index in range(count)]

        ramp = np.trunc(np.arange(overlap * 2) * 255 / (overlap * 2)).astype(np.uint8)
        result = Image.new("RGB", (width * 2, height * 2))
        for y in positions(height):
            row = Image.new("RGB", (width * 2, tile * 2))
            for x in positions(width):
                piece = enlarge(image.crop((x, y, x + tile, y + tile)))
                if x == 0:
                    row.paste(piece, (0, 0))
                    continue
                mask = Image.fromarray(np.tile(ramp, (tile * 2, 1)))
                row.paste(piece.crop((0, 0, overlap * 2, tile * 2)), (x * 2, 0), mask=mask)
                row.paste(piece.crop((overlap * 2, 0, tile * 2, tile * 2)), (x * 2 + overlap * 2, 0))
            if y == 0:
                result.paste(row, (0, 0))
                continue
            mask = Image.fromarray(np.tile(ramp[:, None], (1, width * 2)))
            result.paste(row.crop((0, 0, width * 2, overlap * 2)), (0, y * 2), mask=mask)
            result.paste(row.crop((0, overlap * 2, width * 2, tile * 2)), (0, y * 2 + overlap * 2))
        cases.append({"width": width, "height": height, "tile": tile, "overlap": overlap, "crc32": zlib.crc32(result.tobytes())})
    return cases


def saved(image: Image.Image, name: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=name, **options)
    return buffer.getvalue()


def opened(data: bytes) -> Image.Image:
    return ImageOps.exif_transpose(Image.open(io.BytesIO(data)))


def decoding() -> list[Json]:
    small = picture(61, "RGB", 7, 5)
    palette = small.quantize(6)
    sixteen = (np.arange(35, dtype=np.uint16).reshape(5, 7) * 1873) % 65536
    wide = cv2.imencode(".png", np.stack([sixteen, sixteen * 3, sixteen * 7], axis=2).astype(np.uint16))[1].tobytes()
    photo = smooth(62, 45, 34)

    def turned(orientation: int) -> bytes:
        return piexif.dump({"0th": {piexif.ImageIFD.Orientation: orientation}})

    files: dict[str, tuple[bytes, str]] = {
        "png-rgb": (saved(small, "PNG"), "RGB"),
        "png-rgba": (saved(picture(61, "RGBA", 7, 5), "PNG"), "RGBA"),
        "png-grey": (saved(picture(61, "L", 7, 5), "PNG"), "RGB"),
        "png-bits": (saved(picture(61, "L", 7, 5).convert("1"), "PNG"), "RGB"),
        "png-palette": (saved(palette, "PNG"), "RGB"),
        "png-palette-transparent": (saved(palette, "PNG", transparency=bytes([0, 255, 128, 255, 255, 7])), "RGBA"),
        "png-16-grey": (saved(Image.fromarray(sixteen), "PNG"), "RGB"),
        "png-16-rgb": (wide, "RGB"),
        "gif": (saved(palette, "GIF", comment=b"a comment"), "RGB"),
        "bmp": (saved(small, "BMP"), "RGB"),
        "tiff": (saved(small, "TIFF", compression="tiff_lzw"), "RGB"),
        "webp-lossless": (saved(small, "WEBP", lossless=True), "RGB"),
        "webp-alpha": (saved(picture(61, "RGBA", 7, 5), "WEBP", lossless=True, exact=True), "RGBA"),
        "webp": (saved(photo, "WEBP", quality=60), "RGB"),
        "jpeg": (saved(photo, "JPEG", quality=75), "RGB"),
        "jpeg-444": (saved(photo, "JPEG", quality=90, subsampling=0), "RGB"),
        "jpeg-422": (saved(photo, "JPEG", quality=90, subsampling=1), "RGB"),
        "jpeg-progressive": (saved(photo, "JPEG", quality=75, progressive=True), "RGB"),
        "jpeg-grey": (saved(photo.convert("L"), "JPEG", quality=75), "RGB"),
        "jpeg-cmyk": (saved(photo.convert("CMYK"), "JPEG", quality=75), "RGB"),
        "png-turned-6": (saved(small, "PNG", exif=turned(6)), "RGB"),
        "webp-turned-3": (saved(small, "WEBP", lossless=True, exif=turned(3)), "RGB"),
    }
    for orientation in range(1, 9):
        files[f"jpeg-turned-{orientation}"] = (saved(photo, "JPEG", quality=75, exif=turned(orientation)), "RGB")
    cases = []
    for name, (data, mode) in files.items():
        image = opened(data).convert(mode)
        cases.append({"name": name, "file": text(data), "mode": mode, "size": image.size, "crc32": zlib.crc32(image.tobytes())})
    return cases


def encoding() -> list[Json]:
    cases = []
    comment = "a red cube\nNegative prompt: é☕\nSteps: 20"
    block = piexif.dump({"Exif": {piexif.ExifIFD.UserComment: piexif.helper.UserComment.dump(comment, encoding="unicode")}})
    for name in ("JPEG", "WEBP"):
        for quality in (25, 50, 80, 95, 100):
            data = saved(smooth(71, 53, 38), name, quality=quality, exif=block)
            cases.append({"format": name, "quality": quality, "size_bytes": len(data), "crc32": zlib.crc32(data), "pixels": zlib.crc32(opened(data).tobytes())})
    return cases


SECTIONS: dict[str, Callable[[], object]] = {
    "resample": resampling,
    "blur": blurs,
    "composite": compositing,
    "resize_mode": resize_modes,
    "fill": fills,
    "colour": colours,
    "tiles": tiles,
    "decode": decoding,
    "encode": encoding,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("tests/golden"))
    folder: Path = parser.parse_args().folder
    if not folder.is_dir():
        print(f"{folder} is no folder.", file=sys.stderr)
        return 1
    versions = {
        "script": "scripts/golden_images.py",
        "pillow": PIL.__version__,
        "opencv": cv2.__version__,
        "libjpeg_turbo": features.version("libjpeg_turbo"),
        "webp": features.version("webp"),
    }
    for name, make in SECTIONS.items():
        content = json.dumps({"made_by": versions, "cases": make()}, separators=(",", ":"))
        (folder / f"images_{name}.json").write_text(content + "\n")
    print(f"{len(SECTIONS)} files, made with {versions}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
