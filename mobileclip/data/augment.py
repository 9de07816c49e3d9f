"""The stored augmentations of a reinforced data set: drawn once, replayed to the bit at every training step.

The layout is that of Apple's published sets: a list with one element for each transform that has parameters, for example
`[[top, left, height, width], [[operation, magnitude], [operation, magnitude]]]` (Faghri et al. 2023, arXiv 2303.08983; Vasu et al. 2024,
arXiv 2311.17049). Distributions and pixels are those of torchvision's RandomResizedCrop and RandAugment on RGB pictures.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from mobileclip.data.operations import OPERATIONS, magnitudes
from mobileclip.errors import InputError
from mobileclip.preprocess import resize_crop, to_rgb
from mobileclip.specs import PreprocessSpec

Params = list[Any]
"""One augmentation, ready for JSON."""
MAX_SETS, MAX_OPERATIONS = 1000, 16
"""Augmentations of a picture, published sets have 2 to 30; operations of one RandAugment, published sets have 2."""
_MAX_JSON_CHARS = 1 << 20
_MAX_SIDE = 2**31 - 1
_MAX_RESIZE = 4096
_MAX_RESIZED_PIXELS = 1 << 26
_CROP_TRIES = 10
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class Policy:
    """What `draw` draws; the defaults are those of DataCompDR and DFNDR."""

    resolution: int = 224
    """Side in pixels at which RandAugment works: translations are stored in pixels of it."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Area of the crop / area of the picture."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width / height of the crop."""
    operations: int = 2
    magnitude: int = 9
    """Which of the `bins` equal steps from no change to the strongest."""
    bins: int = 31
    crop: bool = True
    rand_augment: bool = True
    probability: float = 1.0
    """That RandAugment is applied; otherwise its element is null."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            InputError: Names the field.
        """
        checks = {
            "resolution": 1 <= self.resolution <= _MAX_RESIZE,
            "scale": 0 < self.scale[0] <= self.scale[1] <= 1,
            "ratio": 0 < self.ratio[0] <= self.ratio[1] < math.inf,
            "operations": 1 <= self.operations <= MAX_OPERATIONS,
            "bins": 2 <= self.bins <= 1000,
            "magnitude": 0 <= self.magnitude < self.bins,
            "probability": 0 <= self.probability <= 1,
        }
        for name, good in checks.items():
            if not good:
                got, usual = getattr(self, name), getattr(Policy, name)
                raise InputError(f"augmentation policy: {name} {got} is out of range; the default is {usual}")


def draw(width: int, height: int, rng: np.random.Generator, policy: Policy) -> Params:
    """The parameters of one augmentation of a picture.

    Args:
        width: Of the picture, pixels; the crop is stored in pixels of it.
        height: Of the picture, pixels.
        rng: Source of all randomness; the same state gives the same parameters on every machine.
        policy: What to draw from.

    Returns:
        `[[top, left, height, width], [[operation, magnitude], ...]]`, without the elements that the policy leaves out, and null for
        operations that were skipped.

    Raises:
        InputError: The picture has no pixels.
    """
    if width < 1 or height < 1:
        raise InputError(f"a picture of {width} x {height} has no pixels")
    params: Params = []
    if policy.crop:
        params.append(_draw_crop(width, height, rng, policy))
    if policy.rand_augment:
        params.append(_draw_operations(rng, policy) if rng.random() < policy.probability else None)
    return params


def _draw_crop(width: int, height: int, rng: np.random.Generator, policy: Policy) -> list[int]:
    low, high = policy.ratio
    for _ in range(_CROP_TRIES):
        area = width * height * rng.uniform(*policy.scale)
        ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return [int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w]
    h, w = height, width
    if width / height < low:
        h = round(w / low)
    elif width / height > high:
        w = round(h * high)
    return [(height - h) // 2, (width - w) // 2, h, w]


def _draw_operations(rng: np.random.Generator, policy: Policy) -> list[list[float]]:
    values = magnitudes(policy.resolution, policy.bins, policy.magnitude)
    drawn: list[list[float]] = []
    for _ in range(policy.operations):
        i = int(rng.integers(len(OPERATIONS)))
        signed = OPERATIONS[i].strongest is not None and OPERATIONS[i].signed
        drawn.append([i, -values[i] if signed and rng.integers(2) else values[i]])
    return drawn


def parse(value: object) -> list[Params]:
    """All augmentations of a sample, as `paug.json` holds them under `param_aug`: a list, or the same list as a JSON string.

    Returns:
        The augmentations as they are stored, each of a layout that `replay` knows and with numbers in range.

    Raises:
        InputError: Names the augmentation, counted from 0, and what is wrong with it.
    """
    if isinstance(value, str):
        if len(value) > _MAX_JSON_CHARS:
            raise InputError(f"param_aug: {len(value):,} characters, more than {_MAX_JSON_CHARS:,}")
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise InputError("param_aug: the string is not JSON") from None
    if not isinstance(value, list) or not 0 < len(value) <= MAX_SETS:
        raise InputError(f"param_aug: a list of 1 to {MAX_SETS} augmentations is needed")
    for i, params in enumerate(value):
        try:
            _steps(params)
        except InputError as e:
            raise InputError(f"param_aug[{i}]: {e}") from None
    return value


_ORDER = {
    name: i
    for i, name in enumerate(("resize", "random_crop", "random_resized_crop", "random_horizontal_flip", "rand_augment", "random_erase"))
}
"""In which transforms are applied and stored; those between them (centre crop, to tensor, normalize) store nothing."""


def _steps(params: object) -> dict[str, Any]:
    """Name of each transform to its parameters, told from their form and order; skipped ones (null) are left out."""
    if not isinstance(params, list) or len(params) > len(_ORDER) + 2:
        raise InputError(f"an augmentation is a list of at most {len(_ORDER)} elements, one for each transform")
    steps: dict[str, Any] = {}
    last = -1
    for i, element in enumerate(params):
        if element is None:
            continue
        names = [name for name in _candidates(element) if _ORDER[name] > last]
        if names == ["resize", "random_crop"]:  # [height, width] or [top, left]: only a second pair tells
            names = ["resize"] if _is_integers(next(iter(params[i + 1 : i + 2]), None), 2) else []
        if not names:
            raise InputError(
                f"element {i} is none of the transforms {', '.join(_ORDER)} in this order, or it does not tell which; "
                "mixup and cutmix cannot be replayed"
            )
        steps[names[0]] = element
        last = _ORDER[names[0]]
    if "random_crop" in steps and "random_resized_crop" in steps:
        raise InputError("the size of a random_crop before a random_resized_crop is not stored, it cannot be replayed")
    _check_numbers(steps)
    return steps


def _candidates(element: object) -> list[str]:
    if isinstance(element, bool):
        return ["random_horizontal_flip"]
    if _is_integers(element, 4):
        return ["random_resized_crop", "random_erase"]
    if isinstance(element, int) or _is_integers(element, 1):
        return ["resize"]
    if _is_integers(element, 2):
        return ["resize", "random_crop"]
    if isinstance(element, list) and 0 < len(element) <= MAX_OPERATIONS and all(isinstance(e, list) and len(e) == 2 for e in element):
        return ["rand_augment"]
    return []


def _is_integers(value: object, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all([type(v) is int for v in value])  # noqa: C419  # three times as fast


def _check_numbers(steps: dict[str, Any]) -> None:
    resize = steps.get("resize", 1)
    for side in resize if isinstance(resize, list) else [resize]:
        if not 1 <= side <= _MAX_RESIZE:
            raise InputError(f"resize: a side is 1 to {_MAX_RESIZE} pixels")
    for name in ("random_crop", "random_resized_crop"):
        if any(not 0 <= v <= _MAX_SIDE for v in steps.get(name, ())):
            raise InputError(f"{name}: a position or side is negative or beyond any picture")
    if 0 in steps.get("random_resized_crop", ())[2:]:
        raise InputError("random_resized_crop: the crop has no pixels")
    if any(not -1 <= v <= _MAX_RESIZE for v in steps.get("random_erase", ())):
        raise InputError(f"random_erase: a position or side is not within {_MAX_RESIZE} pixels")
    for i, magnitude in steps.get("rand_augment", ()):
        if type(i) is not int or not 0 <= i < len(OPERATIONS):
            raise InputError(f"rand_augment: operations have the numbers 0 to {len(OPERATIONS) - 1}")
        operation = OPERATIONS[i]
        if type(magnitude) not in (int, float) or not operation.low <= magnitude <= operation.high:
            raise InputError(f"rand_augment: operation {i} takes a magnitude from {operation.low:g} to {operation.high:g}")


def replay(image: Image.Image, params: Params, resolution: int, interpolation: Literal["bilinear", "bicubic"] = "bicubic") -> np.ndarray:
    """The augmented picture, equal to torchvision's to the bit.

    Where no crop is stored, the picture is resized to its shortest side (unless a resize is stored) and cropped at the centre.

    Args:
        image: RGB; other modes are converted.
        params: One augmentation, see `parse`. Translations stay as many pixels as are stored, at every resolution, as in Apple's training.
        resolution: Side of the result, pixels.
        interpolation: Of resizing; RandAugment itself takes the nearest pixel.

    Returns:
        (resolution, resolution, 3) uint8.

    Raises:
        InputError: The layout is unknown, a number is out of range, or the crop is not inside this picture.
    """
    steps = _steps(params)
    image = _square(to_rgb(image), steps, resolution, interpolation)
    if steps.get("random_horizontal_flip"):
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for i, magnitude in steps.get("rand_augment", ()):
        image = OPERATIONS[i].apply(image, magnitude)
    pixels = np.array(image)
    top, left, height, width = steps.get("random_erase", (-1, -1, 0, 0))
    if top != -1:
        if min(left, height, width) < 0 or top + height > resolution or left + width > resolution:
            raise InputError(f"random_erase: the patch is not inside {resolution} x {resolution} pixels")
        pixels[top : top + height, left : left + width] = 0
    return pixels


def _square(image: Image.Image, steps: dict[str, Any], resolution: int, interpolation: Literal["bilinear", "bicubic"]) -> Image.Image:
    """Everything that changes the size."""
    resample, square = _FILTERS[interpolation], (resolution, resolution)
    if "resize" in steps:
        image = image.resize(_resized(image, steps["resize"]), resample)
    if "random_resized_crop" in steps:
        return _cropped(image, "random_resized_crop", *steps["random_resized_crop"]).resize(square, resample)
    if "random_crop" in steps:
        top, left = steps["random_crop"]
        return _cropped(image, "random_crop", top, left, *square)
    if "resize" in steps:
        top, left = (round((side - resolution) / 2) for side in (image.height, image.width))
        return _cropped(image, "centre crop", top, left, *square)
    return Image.fromarray(resize_crop(image, PreprocessSpec(resolution, interpolation=interpolation)))


def _resized(image: Image.Image, size: int | list[int]) -> tuple[int, int]:
    """Width and height: both are given, or the shortest side."""
    if isinstance(size, list) and len(size) == 2:
        return size[1], size[0]
    side = size[0] if isinstance(size, list) else size
    short, long = sorted(image.size)
    longer = int(side * long / short)
    if longer * side > _MAX_RESIZED_PIXELS:
        raise InputError(f"resize: {image.width} x {image.height} pixels would become {longer:,} long")
    return (longer, side) if image.width == long else (side, longer)


def _cropped(image: Image.Image, name: str, top: int, left: int, height: int, width: int) -> Image.Image:
    if top < 0 or left < 0 or top + height > image.height or left + width > image.width:
        raise InputError(
            f"{name}: {width} x {height} pixels at {left}, {top} are not inside the picture of {image.width} x {image.height}; "
            "the augmentation belongs to another picture, or to another size of it"
        )
    return image.crop((left, top, left + width, top + height))
