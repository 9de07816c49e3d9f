"""A bundle with two small ONNX towers, real in every respect but the architecture; it runs in microseconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from mobileclip.benchmark.bench import tower_inputs
from mobileclip.benchmark.protocol import BenchRequest, DeviceSamples
from mobileclip.export import bundle as b
from mobileclip.export.verify.dataset import dataset_sha256
from mobileclip.tokenizer import Tokenizer

EMBED_DIM, SIDE, CONTEXT = 16, 64, 77
PREPROCESS = b.PreprocessInfo(resolution=SIDE, mean=(0, 0, 0), std=(1, 1, 1), interpolation="bilinear", resize="shortest", baked=False)


def image_weights() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(3 * 8 * 8, EMBED_DIM)).astype(np.float32)


def text_weights() -> np.ndarray:
    return np.random.default_rng(2).normal(size=(49408, EMBED_DIM)).astype(np.float32)


def write_image_tower(path: Path, batch: int = 1) -> None:
    nodes = [
        helper.make_node("AveragePool", ["image"], ["pooled"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Reshape", ["pooled", "flat"], ["features"]),
        helper.make_node("MatMul", ["features", "w"], ["embedding"]),
    ]
    flat = numpy_helper.from_array(np.array([batch, -1], np.int64), "flat")
    _save(path, nodes, "image", TensorProto.FLOAT, (batch, 3, SIDE, SIDE), [flat, numpy_helper.from_array(image_weights(), "w")], batch)


def write_text_tower(path: Path, batch: int = 1) -> None:
    nodes = [
        helper.make_node("Gather", ["w", "tokens"], ["rows"]),
        helper.make_node("ReduceMean", ["rows", "axes"], ["embedding"], keepdims=0),
    ]
    axes = numpy_helper.from_array(np.array([1], np.int64), "axes")
    _save(path, nodes, "tokens", TensorProto.INT32, (batch, CONTEXT), [axes, numpy_helper.from_array(text_weights(), "w")], batch)


def _save(path: Path, nodes: list, name: str, kind: int, shape: tuple[int, ...], weights: list, batch: int) -> None:
    graph = helper.make_graph(
        nodes, "tower", [helper.make_tensor_value_info(name, kind, shape)],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, (batch, EMBED_DIM))], weights,
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


def embed_images(pixels: np.ndarray) -> np.ndarray:
    cells = pixels.reshape(len(pixels), 3, 8, 8, 8, 8).mean((3, 5))
    return cells.reshape(len(pixels), -1) @ image_weights()


def embed_texts(ids: np.ndarray) -> np.ndarray:
    return text_weights()[ids].mean(1)


def write_bundle(folder: Path, *, batch: int = 1, wrong_reference: bool = False, extra: tuple[b.ArtifactInfo, ...] = ()) -> Path:
    """Write the bundle; `extra` artifacts share the image tower's file, whatever their target."""
    folder.mkdir(parents=True)
    Tokenizer.clip(CONTEXT).save(folder / b.TOKENIZER)
    write_image_tower(folder / "image.onnx", batch)
    write_text_tower(folder / "text.onnx", batch)
    draft = _manifest(folder, batch, extra)
    opened = b.Bundle(folder, draft)
    reference = {}
    for tower, embed in (("image", embed_images), ("text", embed_texts)):
        raw = embed(tower_inputs(opened, tower))
        reference[tower] = (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)
        if wrong_reference:
            reference[tower] = np.ascontiguousarray(reference[tower][::-1])
    save_file(reference, folder / b.REFERENCE)
    b.write_manifest(folder, _manifest(folder, batch, extra))
    return folder


def _manifest(folder: Path, batch: int, extra: tuple[b.ArtifactInfo, ...]) -> b.Manifest:
    entry = {name: b.file_entry(folder, folder / name) for name in ("image.onnx", "text.onnx", b.TOKENIZER)}
    golden = folder / b.GOLDEN
    golden.write_bytes(b"")
    reference = folder / b.REFERENCE
    artifacts = tuple(
        b.ArtifactInfo(
            target="onnx", tower=tower, backend="cpu", path=f"{tower}.onnx", files=(entry[f"{tower}.onnx"],),
            input=b.TensorInfo(name=name, dtype=dtype, shape=(batch, *shape)),
            output=b.TensorInfo(name="embedding", dtype="float32", shape=(batch, EMBED_DIM)), fp32_operators=(), not_delegated={},
        )
        for tower, name, dtype, shape in (("image", "image", "float32", (3, SIDE, SIDE)), ("text", "tokens", "int32", (CONTEXT,)))
    )  # fmt: skip
    more = tuple(a.model_copy(update={"files": (entry["image.onnx"],), "path": "image.onnx"}) for a in extra)
    parity = tuple(
        b.ParityInfo(
            target="onnx", tower=a.tower, engine="onnxruntime", inputs=84, cosine_min=0.9999991, cosine_mean=0.9999999, max_abs=1.2e-6,
            top1_agreement=1, recall10_overlap=1, worst_inputs=("cat",), passed=True,
        )
        for a in artifacts
    )  # fmt: skip
    return b.Manifest(
        toolkit_version="0.1.0",
        model=b.ModelInfo(
            name="mobileclip_nano", form="open_clip", source="recipe", weights_sha256="1" * 64, trained=False, branches_folded=3,
            logit_scale=100,
        ),
        embedding_space="2" * 64, embed_dim=EMBED_DIM,
        options=b.Options(targets=("onnx",), batch=batch, normalize=False),
        preprocess=PREPROCESS, tokenizer=b.TokenizerInfo(file=entry[b.TOKENIZER], context_length=CONTEXT),
        artifacts=artifacts + more, dataset_sha256=dataset_sha256(),
        reference=b.file_entry(folder, reference) if reference.exists() else entry[b.TOKENIZER],
        golden=b.file_entry(folder, golden), parity=parity, tools={"onnx": onnx.__version__},
    )  # fmt: skip


def request(**changes: object) -> BenchRequest:
    """A request for the image tower of `write_bundle`."""
    value = {
        "bundle": "b", "target": "onnx", "tower": "image", "artifact": "image.onnx", "inputs": "inputs.bin", "rows": 3,
        "input": {"name": "image", "dtype": "float32", "shape": (1, 3, SIDE, SIDE)},
        "output": {"name": "embedding", "dtype": "float32", "shape": (1, EMBED_DIM)},
        "provider": "cpu", "threads": 1, "min_samples": 100, "min_seconds": 10, "keep": (3,), "keep_of": 20,
    }  # fmt: skip
    return BenchRequest.model_validate(value | changes)


def device_samples(latency_ms: Sequence[float], **changes: object) -> DeviceSamples:
    """What a quiet machine gives back."""
    value = {
        "engine": "onnxruntime 1", "provider": "cpu", "device": {"name": "host", "model": "x", "os": "x"}, "states": (), "load_ms": 1,
        "first_run_ms": 1, "warmup_ms": (1.0,) * 10, "latency_ms": tuple(latency_ms), "block_samples": (len(latency_ms),), "kept": (),
    }  # fmt: skip
    return DeviceSamples.model_validate(value | changes)


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """Three pictures of nothing, as `request` wants them."""
    path = tmp_path / "inputs.bin"
    np.zeros((3, 3, SIDE, SIDE), "<f4").tofile(path)
    return path


@pytest.fixture(scope="session")
def build_bundle() -> Callable[..., Path]:
    """`write_bundle`, for tests that need a special one."""
    return write_bundle


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "tiny")
