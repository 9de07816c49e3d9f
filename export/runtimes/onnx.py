"""ONNX artifacts in ONNX Runtime, on the CPU."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mobileclip.errors import BundleError
from mobileclip.export.bundle import ArtifactInfo
from mobileclip.export.runtimes import Array
from mobileclip.files import require


def cpu_session(path: Path, threads: int, profile: Path | None = None) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU; whoever runs an ONNX file goes through here, so that telemetry is off.

    `profile` is how the name of the file begins that its `end_profiling` writes.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the library is loaded
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class OnnxSession:
    """An ONNX Runtime session."""

    def __init__(self, path: Path, artifact: ArtifactInfo, threads: int) -> None:
        try:
            self._session = cpu_session(path, threads)
        except Exception as e:
            raise BundleError(f"{path}: ONNX Runtime refuses it ({str(e).splitlines()[0]}); export again") from None
        import onnxruntime

        given = [(i.name, tuple(i.shape)) for i in self._session.get_inputs()]
        if given != [(artifact.input.name, artifact.input.shape)] or len(self._session.get_outputs()) != 1:
            raise BundleError(f"{path}: takes {given}, the manifest says {artifact.input.name} {list(artifact.input.shape)}; export again")
        self._input = artifact.input.name
        self.engine = f"onnxruntime {onnxruntime.__version__}"

    def run(self, value: Array) -> npt.NDArray[np.float32]:
        """(batch, ...) -> (batch, embed_dim)."""
        return np.asarray(self._session.run(None, {self._input: value})[0], np.float32)


def load(path: Path, artifact: ArtifactInfo, threads: int, provider: str = "") -> OnnxSession:
    """A session for the artifact at `path`."""
    require("onnxruntime", "onnx", "running ONNX artifacts")
    return OnnxSession(path, artifact, threads)
