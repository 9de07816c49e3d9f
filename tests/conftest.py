from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from mobileclip.export.bundle import TARGETS, Options, Precision, Target


@pytest.fixture(scope="session")
def bundle_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that exports a bundle once for all tests and workers: `bundle_of("untrained:mobileclip_nano", ("onnx",))`."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def export(source: str, targets: tuple[Target, ...] = TARGETS, precision: Precision = "fp32", **changes: object) -> Path:
        from mobileclip.export.export import export_bundle
        from mobileclip.sources import load_model

        defaults = {
            "targets": targets, "towers": ("image", "text"), "precision": precision, "batch": 1, "normalize": True,
            "bake_preprocessing": False, "executorch_backend": "xnnpack",
        }  # fmt: skip
        options = Options.model_validate(defaults | changes)
        name = "-".join([source.replace(":", "_").replace("/", "_"), *targets, precision, *(f"{k}_{v}" for k, v in sorted(changes.items()))])
        folder = root / "bundles" / name
        folder.parent.mkdir(exist_ok=True)
        with FileLock(f"{folder}.once"):
            if not folder.exists():
                export_bundle(load_model(source), options, folder, lambda step: None)
        return folder

    return export


@pytest.fixture(scope="session")
def nano_bundle(bundle_of: Callable[..., Path]) -> Path:
    """mobileclip_nano with untrained weights, ONNX fp32, both towers."""
    return bundle_of("untrained:mobileclip_nano", ("onnx",))


@pytest.fixture(scope="session")
def nano_bundle_all(bundle_of: Callable[..., Path]) -> Path:
    """mobileclip_nano with untrained weights, all targets, fp32, both towers."""
    return bundle_of("untrained:mobileclip_nano")
