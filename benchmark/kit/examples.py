"""Manifests, answers and a plan, good and bad."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import numpy as np

from mobileclip.benchmark.protocol import SCHEMA_VERSION, BenchPlan
from mobileclip.export.bundle import Manifest
from mobileclip.files import canonical_json
from mobileclip.tokenizer import CONTEXT_LENGTH


def manifests() -> bytes:
    """Manifests as JSON: `name`, whether it is `valid`, and the `manifest`."""
    good = _manifest().model_dump(mode="json")
    cases: list[dict[str, Any]] = [{"name": "as it is written", "valid": True, "manifest": good}]
    for name, where, value in _DAMAGE:
        bad = _changed(good, where, value)
        if where != ("manifest_sha256",):
            bad["manifest_sha256"] = hashlib.sha256(canonical_json({k: v for k, v in bad.items() if k != "manifest_sha256"})).hexdigest()
        cases.append({"name": name, "valid": False, "manifest": bad})
    edited = _changed(good, ("embed_dim",), 32)
    cases.append({"name": "edited after the export", "valid": False, "manifest": edited})
    return json.dumps(cases, indent=1).encode() + b"\n"


_DAMAGE: tuple[tuple[str, tuple[str | int, ...], Any], ...] = (
    ("another schema version", ("schema_version",), 2),
    ("no schema version", ("schema_version",), ...),
    ("another hash of its own", ("manifest_sha256",), "0" * 64),
    ("no hash of its own", ("manifest_sha256",), ...),
    ("a file outside of the folder", ("artifacts", 0, "files", 0, "path"), "../image.onnx"),
    ("a file by its absolute path", ("tokenizer", "file", "path"), "/etc/passwd"),
    ("a file by a path with a backslash", ("reference", "path"), "..\\reference.safetensors"),
    ("an artifact that is not among its files", ("artifacts", 0, "path"), "other.onnx"),
    ("an artifact without files", ("artifacts", 0, "files"), []),
    ("a hash that is none", ("golden", "sha256"), "x"),
    ("a negative size", ("golden", "size_bytes"), -1),
    ("an unknown target", ("artifacts", 0, "target"), "tflite"),
    ("an input of another name", ("artifacts", 0, "input", "name"), "pixels"),
    ("an output of another width", ("artifacts", 1, "output", "shape"), [1, 8]),
    ("a resolution that the inputs have not", ("preprocess", "resolution"), 128),
    ("no resolution at all", ("preprocess", "resolution"), 0),
    ("an unknown filter", ("preprocess", "interpolation"), "nearest"),
    ("a mean of two channels", ("preprocess", "mean"), [0.0, 0.0]),
    ("a context length that the inputs have not", ("tokenizer", "context_length"), 32),
    ("a word for a number", ("embed_dim",), "sixteen"),
    ("no artifacts field", ("artifacts",), ...),
)
"""Name, place and new value of a field; `...` takes it out."""


def _changed(document: dict[str, Any], where: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(document))
    place: Any = copy
    for key in where[:-1]:
        place = place[key]
    if value is ...:
        del place[where[-1]]
    else:
        place[where[-1]] = value
    return copy


def _manifest() -> Manifest:
    def file(name: str, digit: str) -> dict[str, object]:
        return {"path": name, "size_bytes": 1000 + int(digit), "sha256": digit * 64}

    shapes = {"image": ("image", "float32", [1, 3, 64, 64]), "text": ("tokens", "int32", [1, CONTEXT_LENGTH])}
    artifacts = [
        {
            "target": "onnx", "tower": tower, "backend": "cpu", "path": f"{tower}.onnx", "files": [file(f"{tower}.onnx", "3")],
            "input": {"name": name, "dtype": dtype, "shape": shape}, "output": {"name": "embedding", "dtype": "float32",
            "shape": [1, 16]},
            "fp32_operators": [], "not_delegated": {},
        }
        for tower, (name, dtype, shape) in shapes.items()
    ]  # fmt: skip
    value = {
        "toolkit_version": "0.1.0",
        "model": {
            "name": "mobileclip_nano", "form": "open_clip", "source": "an example with \u00fc and \u732b", "weights_sha256": "1" * 64,
            "trained": True,
            "branches_folded": 3, "logit_scale": 100.00000762939453,
        },
        "embedding_space": "2" * 64, "embed_dim": 16, "options": {"targets": ["onnx"]},
        "preprocess": {
            "resolution": 64, "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0], "interpolation": "bilinear", "resize": "shortest",
            "baked": False,
        },
        "tokenizer": {"file": file("tokenizer.json", "4"), "context_length": CONTEXT_LENGTH}, "artifacts": artifacts,
        "dataset_sha256": "5" * 64,
        "reference": file("reference.safetensors", "6"), "golden": file("golden.safetensors", "7"),
        "parity": [
            {
                "target": "onnx", "tower": "image", "engine": "onnxruntime", "inputs": 84, "cosine_min": 0.9999991, "cosine_mean": 1.0,
                "max_abs": 1.2e-06, "top1_agreement": 1.0, "recall10_overlap": 1.0, "worst_inputs": ["cat"], "passed": True,
            }
        ],
        "tools": {"onnx": "1.20"},
    }  # fmt: skip
    return Manifest.model_validate_json(json.dumps(value)).sealed()


def answers() -> bytes:
    """Answers of an app as JSON: `name`, whether it is `valid`, and the `answer`; and a `plan` to read."""
    device = {"name": "Example phone", "model": "Example1,1", "os": "Example 1"}
    kept = base64.b64encode(np.full(16, 0.25, "<f4").tobytes()).decode()
    samples = {
        "schema_version": SCHEMA_VERSION, "engine": "onnxruntime 1.30.0", "provider": "cpu", "device": device,
        "states": [{"moment": "before", "thermal": "nominal", "battery_percent": 80.0, "charging": False, "low_power": False}],
        "load_ms": 12.5, "first_run_ms": 2.0, "warmup_ms": [1.0] * 10, "latency_ms": [1.0, 1.25, 1.5], "block_samples": [2, 1],
        "kept": [{"sample": 0, "first_input": 0, "values": kept}],
    }  # fmt: skip
    good = {"schema_version": SCHEMA_VERSION, "samples": samples, "error": None}
    cases: list[dict[str, Any]] = [
        {"name": "samples", "valid": True, "answer": good},
        {
            "name": "an error",
            "valid": True,
            "answer": {"schema_version": SCHEMA_VERSION, "samples": None, "error": "the model needs iOS 18"},
        },
        {"name": "an end half way", "valid": True, "answer": good | {"samples": samples | {"ended_early": "closed"}, "error": "closed"}},
        {"name": "nothing", "valid": False, "answer": good | {"samples": None}},
        {"name": "an error that the samples do not know", "valid": False, "answer": good | {"error": "closed"}},
    ]
    for name, where, value in (
        ("another schema version", ("samples", "schema_version"), 2), ("no latency", ("samples", "latency_ms"), []),
        ("blocks that do not add up", ("samples", "block_samples"), [2, 2]), ("a latency of 0", ("samples", "latency_ms", 0), 0),
        ("an output of a run that was not timed", ("samples", "kept", 0, "sample"), 3), ("starts that go back", ("samples",
        "start_ms"), [0, 2, 1]),
        ("an unknown field", ("samples", "median_ms"), 1.25), ("an unknown thermal state", ("samples", "states", 0, "thermal"), "hot"),
    ):  # fmt: skip
        cases.append({"name": name, "valid": False, "answer": _changed(good, where, value)})
    return json.dumps({"plan": _plan().model_dump(mode="json"), "answers": cases}, indent=1).encode() + b"\n"


def _plan() -> BenchPlan:
    inputs = {
        "image": {"name": "image", "dtype": "float32", "shape": [1, 3, 64, 64]},
        "text": {"name": "tokens", "dtype": "int32", "shape": [1, 77]},
    }
    measurements = [
        {
            "request": {
                "bundle": "example", "target": "onnx", "tower": tower, "artifact": f"{tower}.onnx", "input": inputs[tower],
                "output": {"name": "embedding", "dtype": "float32", "shape": [1, 16]}, "inputs": f"inputs{i}.bin", "rows": 3 + i,
                "provider": "cpu",
                "threads": 1, "min_samples": 100, "min_seconds": 10, "keep": [0, 7, 19], "keep_of": 20, "per_op": bool(i),
            },
            "bundle": str(i), "inputs": f"{i}.inputs",
        }
        for i, tower in enumerate(inputs)
    ]  # fmt: skip
    plan = {"measurements": measurements, "orders": [[0, 1], [1, 0]], "block_seconds": 0.5, "block_samples": 4, "cool_seconds": 300}
    return BenchPlan.model_validate_json(json.dumps(plan))
