# /// script
# requires-python = ">=3.11"
# dependencies = ["Pillow==9.5.0"]
# ///
"""Writes src/imaging/roboto/extents.bin: how far FreeType's hinted glyphs of Roboto reach from the baseline.

Legends of grids take their heights from it. For each font size from 1 to 164 pixels and each character
from `!` to `~`: one byte of pixels above the baseline, one signed byte of pixels below it.
"""

import argparse
import sys
from pathlib import Path

from PIL import ImageFont

SIZES = range(1, 165)
CHARACTERS = [chr(code) for code in range(0x21, 0x7F)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("src/imaging/roboto"))
    folder: Path = parser.parse_args().folder
    font_file = folder / "Roboto-Regular.ttf"
    if not font_file.is_file():
        print(f"{font_file} does not exist", file=sys.stderr)
        return 1
    table = bytearray()
    for size in SIZES:
        font = ImageFont.truetype(str(font_file), size)
        for character in CHARACTERS:
            _, top, _, bottom = font.getbbox(character, anchor="ls")
            table += (-top).to_bytes(1, "little") + bottom.to_bytes(1, "little", signed=True)
    (folder / "extents.bin").write_bytes(table)
    print(f"{len(table)} bytes for {len(SIZES)} sizes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
