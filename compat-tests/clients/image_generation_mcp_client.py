"""The provider for A1111 of the PyPI package image-generation-mcp, unmodified.

    python image_generation_mcp_client.py --base http://127.0.0.1:7860

Installed without its dependencies: the provider needs httpx alone, the rest is for the MCP server around it.
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["image-generation-mcp==1.12.1", "httpx==0.28.1", "Pillow==12.0.0"]
# ///

import asyncio
import io
import sys

from checks import NEGATIVE, PROMPT, arguments, expect, expect_equal, picture, run
from image_generation_mcp.providers.sd_webui import SdWebuiImageProvider
from image_generation_mcp.providers.types import ImageProviderError, InputImage
from PIL import Image


def once(base: str, **arguments_: object):
    async def ask():
        provider = SdWebuiImageProvider(base)
        try:
            return await provider.generate(PROMPT, negative_prompt=NEGATIVE, **arguments_)
        finally:
            await provider.aclose()

    return asyncio.run(ask())


def generates(base: str) -> None:
    seen: list[float] = []

    def note(fraction: float, _message: str) -> None:
        seen.append(fraction)

    result = once(base, aspect_ratio="3:2", progress_callback=note)
    image = Image.open(io.BytesIO(result.image_data))
    width, height = result.provider_metadata["size"].split("x")
    expect_equal(image.size, (int(width), int(height)), "size")
    expect(seen and all(0 <= fraction <= 1 for fraction in seen), f"progress {seen}")
    expect(f"Seed: {result.provider_metadata['seed']}" in image.info["parameters"], "seed")


def edits(base: str) -> None:
    buffer = io.BytesIO()
    picture().save(buffer, "PNG")
    reference = InputImage(data=buffer.getvalue(), content_type="image/png")
    result = once(base, reference_images=[reference], strength=0.1, aspect_ratio="3:2")
    expect(result.provider_metadata["edited"], "not edited")


def discovers_checkpoints(base: str) -> None:
    async def ask():
        provider = SdWebuiImageProvider(base)
        found = await provider.discover_capabilities()
        await provider.aclose()
        return found

    found = asyncio.run(ask())
    expect(not found.degraded and len(found.models) > 1, f"{found}")


def tells_of_errors(base: str) -> None:
    try:
        broken = InputImage(data=b"no picture", content_type="image/png")
        once(base, reference_images=[broken])
    except ImageProviderError as error:
        expect("Invalid encoded image" in str(error), error)
        return
    raise AssertionError("the client takes it")


CHECKS = [generates, edits, discovers_checkpoints, tells_of_errors]


def main() -> int:
    return run(CHECKS, arguments().base)


if __name__ == "__main__":
    sys.exit(main())
