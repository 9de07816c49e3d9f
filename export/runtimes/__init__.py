"""Load an artifact and run it on numpy arrays: one interface for verification, evaluation and the host benchmark."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mobileclip.export.bundle import ArtifactInfo, Bundle, Target, Tower

Array = npt.NDArray[np.generic]
PACKAGES: dict[Target, str] = {"onnx": "onnxruntime", "executorch": "executorch", "coreml": "coremltools"}
"""What must be installed to run a target's artifacts."""


class Session(Protocol):
    """One loaded tower."""

    engine: str
    """What runs it, with version, for example `onnxruntime 1.31.1`."""

    def run(self, value: Array) -> npt.NDArray[np.float32]:
        """Input of the artifact's exact dtype and shape (batch, ...) -> embedding (batch, embed_dim)."""
        ...


def load(bundle: Bundle, target: Target, tower: Tower, threads: int = 1, provider: str = "") -> Session:
    """Load a tower in its runtime: ONNX Runtime, the ExecuTorch runtime, CoreML (on a Mac) or the ML program interpreter (elsewhere).

    Args:
        bundle: Holds it.
        target: Its format.
        tower: Which.
        threads: Of the CPU.
        provider: The compute units that CoreML may use, see `coreml.UNITS`; the other runtimes have one choice here.

    Raises:
        InputError: The bundle has no such artifact.
        MissingToolError: The runtime's package is not installed.
        BundleError: The runtime refuses the artifact.
    """
    return load_artifact(bundle.path, bundle.artifact(target, tower), threads, provider)


def load_artifact(folder: Path, artifact: ArtifactInfo, threads: int = 1, provider: str = "") -> Session:
    """`load` for an artifact in a folder that is not (yet) a bundle."""
    session: Callable[..., Session] = import_module(f"mobileclip.export.runtimes.{artifact.target}").load
    return session(folder / artifact.path, artifact, threads, provider)


def embed(session: Session, inputs: Array, batch: int) -> npt.NDArray[np.float32]:
    """Run any number of inputs through a session of fixed batch size; the last batch is filled up with copies.

    Args:
        inputs: (N, ...), of the artifact's dtype.

    Returns:
        (N, embed_dim).
    """
    outputs = []
    for start in range(0, len(inputs), batch):
        part = inputs[start : start + batch]
        missing = batch - len(part)
        filled = np.concatenate([part, np.repeat(part[-1:], missing, 0)]) if missing else part
        outputs.append(np.array(session.run(np.ascontiguousarray(filled)))[: len(part)])
    return np.concatenate(outputs)
