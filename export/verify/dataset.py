"""The verification set: real photographs and real captions that live in the package (licences in NOTICE).

The photographs are lossless WebP, so their pixels are the same on every machine. The pictures are cut from them by a
fixed rule, off centre and seldom square, so that a wrong crop, a wrong resize or swapped channels changes the result.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import TypedDict

from PIL import Image

from mobileclip.files import canonical_json, did_you_mean

MIN_CROP_SIDE_PX = 200
CROPS = (("wide", 1.6), ("near", 1.25), ("tall", 0.75))
"""Kind and aspect ratio (width / height) of the crops cut from each photograph; a change here changes the set's identity."""

_ASSETS = "mobileclip.assets"


@dataclass(frozen=True)
class Picture:
    """One picture to verify on: a readable name such as `cat-tall`, and the RGB image."""

    name: str
    image: Image.Image


class _Captions(TypedDict):
    photographs: dict[str, list[str]]
    edge_cases: dict[str, str]


def pictures() -> list[Picture]:
    """The pictures, in a fixed order: each whole photograph, followed by its crops."""
    found = []
    for name in photograph_names():
        whole = photograph(name)
        found.append(Picture(name, whole))
        found += [Picture(f"{name}-{kind}", whole.crop(box)) for kind, box in _crop_boxes(name, whole.size)]
    return found


def captions() -> list[str]:
    """The captions, in a fixed order: those that describe the photographs, then the tokenizer's edge cases."""
    content = _captions_file()
    return [*itertools.chain.from_iterable(content["photographs"].values()), *content["edge_cases"].values()]


def edge_cases() -> dict[str, str]:
    """The captions chosen to be hard for a tokenizer, by what is special about each (`empty`, `77_tokens`, `emoji`).

    `1_token` and `2_tokens` are words of so many tokens; from 76 on the name counts the start and end tokens too.
    """
    return _captions_file()["edge_cases"]


def photograph_names() -> list[str]:
    """The names that `photograph` takes, sorted."""
    return sorted(entry.name.removesuffix(".webp") for entry in _photograph_files())


def photograph(name: str) -> Image.Image:
    """One whole photograph, RGB.

    Raises:
        InputError: The set has no photograph of that name.
    """
    for entry in _photograph_files():
        if entry.name == f"{name}.webp":
            with Image.open(io.BytesIO(entry.read_bytes())) as image:
                return image.convert("RGB")
    raise did_you_mean("photograph", name, photograph_names())


def dataset_sha256() -> str:
    """Identity of the set for manifests: hex SHA-256 over every asset's name and bytes and the crop rule."""
    assets = [*_photograph_files(), files(_ASSETS) / "captions.json"]
    digests = {entry.name: hashlib.sha256(entry.read_bytes()).hexdigest() for entry in assets}
    rule = {"crops": CROPS, "min_crop_side_px": MIN_CROP_SIDE_PX}
    return hashlib.sha256(canonical_json({"assets": digests, "rule": rule})).hexdigest()


def _crop_boxes(name: str, size: tuple[int, int]) -> list[tuple[str, tuple[int, int, int, int]]]:
    """Crop boxes (left, top, right, bottom) in pixels; scale and place are drawn from a hash of the photograph's name."""
    width, height = size
    draws = iter(hashlib.sha256(name.encode()).digest())
    boxes = []
    for kind, aspect in CROPS:
        smallest = MIN_CROP_SIDE_PX / min(aspect, 1.0)
        largest = min(height, width / aspect)
        crop_height = smallest + next(draws) / 255 * (largest - smallest)
        w, h = min(round(crop_height * aspect), width), round(crop_height)
        left, top = next(draws) * (width - w) // 255, next(draws) * (height - h) // 255
        boxes.append((kind, (left, top, left + w, top + h)))
    return boxes


def _photograph_files() -> list[Traversable]:
    folder = files(_ASSETS) / "photos"
    return sorted((entry for entry in folder.iterdir() if entry.name.endswith(".webp")), key=lambda entry: entry.name)


def _captions_file() -> _Captions:
    content: _Captions = json.loads((files(_ASSETS) / "captions.json").read_text("utf-8"))
    return content
