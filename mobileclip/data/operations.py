"""The 14 operations of RandAugment (Cubuk et al. 2019, arXiv 1909.13719) on RGB pictures, equal to torchvision's on Pillow to the bit.

Pillow's own functions where they are fast; the same values with less work for AutoContrast, Contrast and Sharpness. `OPERATIONS` is in
the order of the numbers that data sets store.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

_LEVELS = np.arange(256)


class Operation(NamedTuple):
    """One operation and the magnitudes it takes."""

    name: str
    apply: Callable[[Image.Image, float], Image.Image]
    low: float
    """Range of magnitudes that a file may ask for; published ones are much smaller."""
    high: float
    strongest: float | None = None
    """Magnitude of RandAugment's last bin, in widths of the picture for translations; None where it is always 0."""
    weakest: float = 0.0
    signed: bool = True


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    """Output pixel to input pixel, the nearest one, black outside."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)


def _angle(magnitude: float) -> float:
    """Radians; by way of degrees, as torchvision does, for the same last bit."""
    return math.radians(math.degrees(math.atan(magnitude)))


def _shear_x(image: Image.Image, magnitude: float) -> Image.Image:
    return _affine(image, 1, math.tan(_angle(magnitude)), 0, 0, 1, 0)


def _shear_y(image: Image.Image, magnitude: float) -> Image.Image:
    angle = _angle(magnitude)
    return _affine(image, 1, 0, 0, math.sin(angle) / math.cos(angle), 1, 0)


def _contrast(image: Image.Image, magnitude: float) -> Image.Image:
    counts = np.array(image.convert("L").histogram())
    mean = int(counts @ _LEVELS / (image.width * image.height) + 0.5)
    return Image.blend(Image.new("RGB", image.size, (mean, mean, mean)), image, 1 + magnitude)


def _sharpness(image: Image.Image, magnitude: float) -> Image.Image:
    """Blend with the picture smoothed by (1 1 1, 1 5 1, 1 1 1) / 13; the border is left as it is."""
    pixels = np.array(image)
    if min(image.size) > 2:
        p = pixels.astype(np.uint16)
        rows = p[:, :-2] + p[:, 1:-1] + p[:, 2:]
        total = rows[:-2] + rows[1:-1] + rows[2:] + 4 * p[1:-1, 1:-1]
        pixels[1:-1, 1:-1] = (2 * total + 13) // 26
    return Image.blend(Image.fromarray(pixels), image, 1 + magnitude)


@functools.lru_cache(4096)
def _stretch_table(darkest: int, brightest: int) -> tuple[int, ...]:
    if brightest <= darkest:
        return tuple(range(256))
    scale = 255.0 / (brightest - darkest)
    return tuple(min(max(int(level * scale - darkest * scale), 0), 255) for level in range(256))


def _autocontrast(image: Image.Image, magnitude: float) -> Image.Image:
    bands: tuple[tuple[int, int], ...] = image.getextrema()  # type: ignore[assignment]
    return image.point([level for band in bands for level in _stretch_table(*band)])


OPERATIONS = (
    Operation("Identity", lambda image, m: image, -1e4, 1e4),
    Operation("ShearX", _shear_x, -10, 10, 0.3),
    Operation("ShearY", _shear_y, -10, 10, 0.3),
    Operation("TranslateX", lambda image, m: _affine(image, 1, 0, -int(m), 0, 1, 0), -1e4, 1e4, 150 / 331),
    Operation("TranslateY", lambda image, m: _affine(image, 1, 0, 0, 0, 1, -int(m)), -1e4, 1e4, 150 / 331),
    Operation("Rotate", lambda image, m: image.rotate(m), -360, 360, 30.0),
    Operation("Brightness", lambda image, m: ImageEnhance.Brightness(image).enhance(1 + m), -10, 10, 0.9),
    Operation("Color", lambda image, m: ImageEnhance.Color(image).enhance(1 + m), -10, 10, 0.9),
    Operation("Contrast", _contrast, -10, 10, 0.9),
    Operation("Sharpness", _sharpness, -10, 10, 0.9),
    Operation("Posterize", lambda image, m: ImageOps.posterize(image, int(m)), 1, 8, 4.0, 8.0, signed=False),
    Operation("Solarize", lambda image, m: ImageOps.solarize(image, m), 0, 256, 0.0, 255.0, signed=False),  # type: ignore[arg-type]
    Operation("AutoContrast", _autocontrast, -1e4, 1e4),
    Operation("Equalize", lambda image, m: ImageOps.equalize(image), -1e4, 1e4),
)


@functools.cache
def magnitudes(resolution: int, bins: int, magnitude: int) -> tuple[float, ...]:
    """Unsigned magnitude of each operation: steps in float32, counted from the nearer end and rounded once, as torch.linspace does.

    Args:
        resolution: Side of the picture, pixels; translations are in pixels of it.
        bins: Number of steps, both ends counted.
        magnitude: Which step.
    """
    found = []
    for operation in OPERATIONS:
        if operation.strongest is None:
            found.append(0.0)
        elif operation.name == "Posterize":  # whole bits
            found.append(8.0 - round(magnitude / ((bins - 1) / 4)))
        else:
            widths = resolution if operation.name.startswith("Translate") else 1
            start, stop = np.float32(operation.weakest), np.float32(operation.strongest * widths)
            step = float((stop - start) / np.float32(bins - 1))
            low = magnitude < bins // 2
            found.append(float(np.float32(float(start) + step * magnitude if low else float(stop) - step * (bins - 1 - magnitude))))
    return tuple(found)
