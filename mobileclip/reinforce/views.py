"""Augmented pictures as teachers see them."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mobileclip.data.augment import Params, Policy, replay
from mobileclip.data.operations import OPERATIONS

_TRANSLATIONS = tuple(i for i, operation in enumerate(OPERATIONS) if operation.name in ("TranslateX", "TranslateY"))


def render(
    image: Image.Image, params: Params, policy: Policy, side: int, interpolation: Literal["bilinear", "bicubic"]
) -> NDArray[np.uint8]:
    """One augmentation of a picture at a teacher's own size, (side, side, 3).

    Translations, which are stored in pixels of the policy's resolution, grow with the size: all teachers see the same part of the picture,
    each at its full sharpness, and so does a student of that resolution. Apple's generator renders once and resizes; where the teacher's
    size is the policy's resolution, as in the published sets, both are the same.
    """
    return replay(image, scaled(params, side / policy.resolution), side, interpolation)


def scaled(params: Params, factor: float) -> Params:
    """The same augmentation for another size: translations are in pixels, everything else is relative."""
    if factor == 1:
        return params

    def step(element: object) -> object:
        if not isinstance(element, list) or not element or not isinstance(element[0], list):
            return element
        return [[i, magnitude * factor if i in _TRANSLATIONS else magnitude] for i, magnitude in element]

    return [step(element) for element in params]
