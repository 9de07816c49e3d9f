"""Samples and ensembles that the tests of reinforcing share."""

from __future__ import annotations

import io
import json

import numpy as np
from PIL import Image

from mobileclip.reinforce import EnsembleConfig

NANO = {"kind": "checkpoint", "name": "nano", "source": "untrained:mobileclip_nano", "scale": 50}


def picture(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((50, 60), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


def sample(number: int) -> tuple[str, dict[str, bytes]]:
    about = {"uid": f"{number:032x}", "label": f"thing {number}", "tags": ["red", "round", f"tag {number % 3}"]}
    return f"{number:032x}", {"png": picture(number), "txt": f"thing {number}".encode(), "json": json.dumps(about).encode()}


def ensemble(*teachers: dict[str, object], **more: object) -> EnsembleConfig:
    return EnsembleConfig.model_validate({"schema_version": 1, "teachers": teachers, **more})
