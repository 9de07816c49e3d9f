"""The conformance kit: what every implementation, in whatever language, must reproduce. `conformance/README.md` describes the files.

Everything is made from this package alone, by rule and seed, so that the kit can be made again; only the embeddings differ in their last
bits between machines.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import TypeAdapter

from mobileclip.benchmark.kit.captions import SEED, captions_file
from mobileclip.benchmark.kit.examples import answers, manifests
from mobileclip.benchmark.protocol import BenchAnswer, BenchPlan, BenchRequest, BenchResult, DeviceSamples, Reply
from mobileclip.export.bundle import Manifest
from mobileclip.export.verify import dataset
from mobileclip.files import write_bytes
from mobileclip.preprocess import preprocess, preprocess_batch, resize_crop, turn_upright
from mobileclip.specs import DEFAULT_MODEL, REGISTRY, PreprocessSpec
from mobileclip.zeroshot import normalized, predict, top_rows

DIALECT = "https://json-schema.org/draft/2020-12/schema"
SCHEMAS: dict[str, Any] = {
    "bench_answer.schema.json": BenchAnswer,
    "bench_plan.schema.json": BenchPlan,
    "bench_reply.schema.json": Reply,
    "bench_request.schema.json": BenchRequest,
    "bench_result.schema.json": BenchResult,
    "device_samples.schema.json": DeviceSamples,
    "manifest.schema.json": Manifest,
}
CAPTIONS, RANKING, MANIFESTS, ANSWERS = "captions.jsonl", "ranking.json", "manifests.json", "answers.json"
PIXELS, EMBEDDINGS = "pixels.safetensors", "embeddings.safetensors"


def schemas() -> dict[str, bytes]:
    """File name -> JSON Schema, the same bytes for the same models."""
    found = {}
    for name, model in SCHEMAS.items():
        schema: dict[str, Any] = {"$schema": DIALECT, **TypeAdapter(model).json_schema(mode="serialization")}
        found[name] = json.dumps(schema, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"
    return found


def pixels() -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    """Pictures with the pixels and the tensors that they must become.

    Returns:
        `picture_N` (H, W, 3) uint8 as they lie in their file, `pixels_N` (R, R, 3) uint8 after orientation, resize and crop, and for some
        `tensor_N` (3, R, R) float32; and, as JSON, the `cases`: the `orientation` (EXIF, 1 to 8) and the preprocessing of each N.
    """
    tensors: dict[str, npt.NDArray[Any]] = {}
    cases: list[dict[str, Any]] = []
    for number, (picture, orientation, spec) in enumerate(_pixel_cases()):
        upright = turn_upright(picture, orientation)
        tensors |= {f"picture_{number}": np.array(picture), f"pixels_{number}": resize_crop(upright, spec)}
        if number % 5 == 0 and spec.resolution <= 64:
            tensors[f"tensor_{number}"] = preprocess(upright, spec)
        how = {"resolution": spec.resolution, "interpolation": spec.interpolation, "resize": spec.resize}
        cases.append({"orientation": orientation, **how, "mean": spec.mean, "std": spec.std})
    return tensors, {"cases": json.dumps(cases)}  # one entry: the order of several is left to chance


def _pixel_cases() -> Iterator[tuple[Image.Image, int, PreprocessSpec]]:
    photo = dataset.photograph(dataset.photograph_names()[0])
    noise = np.random.default_rng(SEED)
    half, openai = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    kinds = list(itertools.product(("bilinear", "bicubic"), ("shortest", "squash")))
    sizes = [(64, 64), (97, 61), (61, 97), (33, 32), (31, 50), (16, 16), (1, 1), (3, 150), (150, 3), (113, 112)]
    for i, (width, height) in enumerate(sizes):
        smooth = photo.resize((width, height), Image.Resampling.BOX)
        rough = Image.fromarray(noise.integers(0, 256, (height, width, 3), np.uint8))
        for j, (interpolation, resize) in enumerate(kinds):
            if resize == "squash" and height > width:  # Pillow has changed which side it resizes first there
                continue
            mean, std = (((0.0,) * 3, (1.0,) * 3), half, openai)[(i + j) % 3]
            spec = PreprocessSpec(32, mean, std, interpolation, resize)  # type: ignore[arg-type]
            yield rough if (i + j) % 2 else smooth, 1, spec
    for orientation in range(1, 9):
        yield photo.resize((45, 30), Image.Resampling.BOX), orientation, PreprocessSpec(24)
    for name in ("mobileclip_s0", DEFAULT_MODEL):
        yield photo.resize((300, 220), Image.Resampling.BOX), 1, REGISTRY[name].preprocess


def ranking() -> bytes:
    """Cases of zero-shot ranking and of search, as JSON: embeddings and what comes of them."""
    chance = np.random.default_rng(SEED)

    def rows(n: int, dim: int) -> npt.NDArray[np.float32]:
        raw = chance.normal(size=(n, dim))
        return np.asarray(
            (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float16), np.float32
        )  # few digits, exact in all types

    cases: list[dict[str, Any]] = []
    for classes, dim, scale, top in ((1, 4, 100.0, 5), (3, 8, 100.0, 3), (10, 16, 1.0, 5), (40, 32, 55.5, 10)):
        image, labels = rows(1, dim)[0], rows(classes, dim)
        if classes > 5:
            labels[4] = labels[1]  # equal ones keep the labels' order
        found = predict(image, labels, [str(i) for i in range(classes)], scale, top)
        # rounded: the last bits differ between processors
        expected = [{"label": int(p.label), "probability": round(p.probability, 9), "cosine": round(p.cosine, 9)} for p in found]
        cases.append({"image": image.tolist(), "classes": labels.tolist(), "logit_scale": scale, "top": top, "expected": expected})
    searches: list[dict[str, Any]] = []
    for count, dim, top in ((1, 4, 3), (50, 8, 5), (300, 16, 20)):
        matrix, query = rows(count, dim).astype(np.float16), rows(1, dim)[0]
        matrix[count // 2] = matrix[0]
        best = [{"row": row, "score": round(score, 9)} for row, score in top_rows(matrix, query, top, 64)]
        searches.append({"matrix": matrix.astype(np.float64).tolist(), "query": query.tolist(), "top": top, "expected": best})
    return json.dumps({"rank": cases, "search": searches}).encode() + b"\n"


def embeddings() -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    """What the model that ships makes of some pictures and captions.

    Returns:
        `picture_N` (H, W, 3) uint8; `image` and `text` (N, D) float32, normalised; and the `captions` as JSON.
    """
    import torch

    from mobileclip.sources import load_model

    model = load_model(DEFAULT_MODEL)
    pictures = [dataset.photograph(name).resize((96, 72), Image.Resampling.BOX) for name in dataset.photograph_names()[:8]]
    texts = [*dataset.captions()[:12], "", "a photo of a cat", "\u00fcn\u00efc\u00f6d\u00e9 \u732b", "word " * 100]
    with torch.inference_mode():
        image = model.image(torch.from_numpy(preprocess_batch(pictures, model.preprocess))).numpy()
        text = model.text(torch.from_numpy(model.tokenizer(texts))).numpy()
    tensors: dict[str, npt.NDArray[Any]] = {f"picture_{i}": np.array(picture) for i, picture in enumerate(pictures)}
    return tensors | {"image": normalized(image), "text": normalized(text)}, {"captions": json.dumps(texts)}


def write(folder: Path) -> list[Path]:
    """Write the whole kit.

    Raises:
        StorageError: The folder cannot be written.
    """
    from safetensors.numpy import save

    content = schemas() | {CAPTIONS: captions_file(), RANKING: ranking(), MANIFESTS: manifests(), ANSWERS: answers()}
    content |= {PIXELS: save(*pixels()), EMBEDDINGS: save(*embeddings())}
    for name, data in content.items():
        write_bytes(folder / name, data)
    return [folder / name for name in content]
