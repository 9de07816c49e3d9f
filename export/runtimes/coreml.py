"""CoreML artifacts: CoreML itself on a Mac, the ML program interpreter elsewhere."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mobileclip import __version__
from mobileclip.errors import BundleError
from mobileclip.export.bundle import ArtifactInfo
from mobileclip.export.runtimes import Array, Session
from mobileclip.files import require


class InterpretedSession:
    """The reference interpreter: right to the stored precision, of no use for timing."""

    def __init__(self, package: Path, input_name: str, output_name: str, threads: int) -> None:
        from mobileclip.export.verify.mil import MilProgram

        self._program, self._input, self._output = MilProgram.load(package, threads), input_name, output_name
        self.engine = f"ML program interpreter {__version__}"

    def run(self, value: Array) -> npt.NDArray[np.float32]:
        """(batch, ...) -> (batch, embed_dim)."""
        return np.asarray(self._program.run({self._input: value})[self._output], np.float32)


class CoreMLSession:
    """CoreML, all compute units. Written against its documentation; not yet run on hardware."""

    def __init__(self, path: Path, artifact: ArtifactInfo) -> None:
        import coremltools as ct

        try:
            self._model = ct.models.MLModel(str(path), compute_units=ct.ComputeUnit.ALL)
        except RuntimeError as e:
            raise BundleError(f"{path}: CoreML refuses it ({str(e).splitlines()[0]}); export again") from None
        self._artifact = artifact
        self.engine = f"CoreML, macOS {platform.mac_ver()[0]}"

    def run(self, value: Array) -> npt.NDArray[np.float32]:
        """(batch, ...) -> (batch, embed_dim)."""
        feed: object = value
        if self._artifact.input.dtype == "uint8":
            from PIL import Image

            feed = Image.fromarray(np.asarray(value[0], np.uint8))
        return np.asarray(self._model.predict({self._artifact.input.name: feed})[self._artifact.output.name], np.float32)


def load(path: Path, artifact: ArtifactInfo, threads: int) -> Session:
    """A session for the package at `path`."""
    require("coremltools", "coreml", "running CoreML artifacts")
    if sys.platform == "darwin":
        return CoreMLSession(path, artifact)
    return InterpretedSession(path, artifact.input.name, artifact.output.name, threads)
