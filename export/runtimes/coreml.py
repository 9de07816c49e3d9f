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

UNITS = {"all": "ALL", "cpuAndNeuralEngine": "CPU_AND_NE", "cpuAndGPU": "CPU_AND_GPU", "cpuOnly": "CPU_ONLY"}
"""What CoreML may choose from, as its own languages call it, and what `coremltools.ComputeUnit` does."""


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
    """CoreML. Written against its documentation; not yet run on hardware."""

    def __init__(self, path: Path, artifact: ArtifactInfo, provider: str) -> None:
        import coremltools as ct

        self.units = ct.ComputeUnit[UNITS[provider or "all"]]
        try:
            self._model = ct.models.MLModel(str(path), compute_units=self.units)
        except RuntimeError as e:
            raise BundleError(f"{path}: CoreML refuses it ({str(e).splitlines()[0]}); export again") from None
        self._artifact = artifact
        self.engine = f"CoreML, macOS {platform.mac_ver()[0]}"

    @property
    def compiled(self) -> Path:
        """The folder that CoreML has compiled it to; gone with the session."""
        return Path(self._model.get_compiled_model_path())

    def run(self, value: Array) -> npt.NDArray[np.float32]:
        """(batch, ...) -> (batch, embed_dim)."""
        feed: object = value
        if self._artifact.input.dtype == "uint8":
            from PIL import Image

            feed = Image.fromarray(np.asarray(value[0], np.uint8))
        return np.asarray(self._model.predict({self._artifact.input.name: feed})[self._artifact.output.name], np.float32)


def load(path: Path, artifact: ArtifactInfo, threads: int, provider: str = "") -> Session:
    """A session for the package at `path`."""
    require("coremltools", "coreml", "running CoreML artifacts")
    if sys.platform == "darwin":
        return CoreMLSession(path, artifact, provider)
    return InterpretedSession(path, artifact.input.name, artifact.output.name, threads)
