"""Checkpoints with recipe weights and exported bundles, shared by tests of all folders; each is made once."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from mobileclip import checkpoints
from mobileclip.checkpoints import Checkpoint, recipe_checkpoint
from mobileclip.export.bundle import TARGETS, Options, Precision, Target
from mobileclip.recipe import recipe_tensor
from mobileclip.specs import get_spec


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that trains in forks in a fresh process if this one cannot do so: behind torch.export and torch.compile, autograd
    refuses to work in a fork.
    """
    if not pyfuncitem.get_closest_marker("trains_in_forks") or _trains_in_a_fork():
        return None
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-m", "slow or not slow", pyfuncitem.nodeid]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=pyfuncitem.config.rootpath, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-10_000:]
    return True


def _trains_in_a_fork() -> bool:
    torch.ones(1, requires_grad=True).backward()  # autograd starts its threads here, if it needs any
    child = os.fork()
    if not child:
        try:
            torch.ones(1, requires_grad=True).backward()
        except RuntimeError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


@pytest.fixture(scope="session")
def recipe() -> Iterator[Callable[[str], Checkpoint]]:
    """Untrained checkpoint of a variant. Text tensors are drawn once, as many variants have the same; do not write to them."""
    kept = functools.cache(recipe_tensor)

    def tensor(key: str, shape: tuple[int, ...]):
        return kept(key, shape) if key.startswith("text") else recipe_tensor(key, shape)

    def of(name: str) -> Checkpoint:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoints, "recipe_tensor", tensor)
            return recipe_checkpoint(get_spec(name))

    yield of
    kept.cache_clear()


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    torch.set_num_threads(1)  # workers share the cores


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """A run in the background of a script ignores Ctrl-C, and so would every process that it starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def nano(recipe) -> Checkpoint:
    return recipe("mobileclip_nano")


@pytest.fixture(scope="session")
def bundle_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that exports a bundle once for all tests and workers: `bundle_of("untrained:mobileclip_nano", ("onnx",))`."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def export(source: str, targets: tuple[Target, ...] = TARGETS, precision: Precision = "fp32", **changes: object) -> Path:
        from mobileclip.export.export import export_bundle
        from mobileclip.sources import load_model

        options = Options.model_validate({"targets": targets, "precision": precision, **changes})
        name = "-".join(
            [source.replace(":", "_").replace("/", "_"), *targets, precision, *(f"{k}_{v}" for k, v in sorted(changes.items()))]
        )
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
