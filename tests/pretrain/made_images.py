"""Images and depth maps of tests, encoded in memory."""

import io

import numpy as np
from PIL import Image


def gradient(width: int, height: int) -> np.ndarray:
    """Red grows to the right, green downwards: a picture whose orientation can be seen."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 250, width)[None]
    pixels[..., 1] = np.linspace(0, 250, height)[:, None]
    return pixels


def encoded(pixels: np.ndarray | Image.Image, kind: str = "JPEG", mode: str = "RGB", **options: object) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def depth_png(values: np.ndarray, kind: str = "PNG", mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(values)
    (image.convert(mode) if mode else image).save(buffer, kind)
    return buffer.getvalue()
