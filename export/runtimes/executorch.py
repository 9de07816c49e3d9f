"""ExecuTorch artifacts in the ExecuTorch runtime."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mobileclip.errors import BundleError
from mobileclip.export.bundle import ArtifactInfo
from mobileclip.export.runtimes import Array, Session
from mobileclip.files import reading, require


class ExecutorchSession:
    """A loaded program and its `forward` method."""

    def __init__(self, path: Path, artifact: ArtifactInfo, threads: int) -> None:
        import torch

        with reading(path), path.open("rb") as f:
            if not re.fullmatch(rb"ET\d\d", f.read(8)[4:]):  # the runtime's own message about this would end the process
                raise BundleError(f"{path}: the ExecuTorch runtime refuses it (not a program); export again")
        with _silent():
            from executorch.extension.pybindings import portable_lib
            from executorch.runtime import Runtime, Verification

            runtime = Runtime.get()
            portable_lib._unsafe_reset_threadpool(threads)  # the only way to set the number of threads from Python
            try:
                self._program = runtime.load_program(path, verification=Verification.InternalConsistency)
                self._method = self._program.load_method("forward")
            except RuntimeError as e:
                raise BundleError(f"{path}: the ExecuTorch runtime refuses it ({str(e).splitlines()[0]}); export again") from None
        self._tensor = torch.from_numpy
        self.engine = f"executorch {version('executorch')} {artifact.backend}"

    def run(self, value: Array) -> npt.NDArray[np.float32]:
        """(batch, ...) -> (batch, embed_dim)."""
        return np.array(self._method.execute([self._tensor(value)])[0].numpy(), np.float32)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """The runtime logs to the error stream from C++ what a user cannot act on."""
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


def load(path: Path, artifact: ArtifactInfo, threads: int, provider: str = "") -> Session:
    """A session for the artifact at `path`; what was lowered to the CoreML delegate is interpreted where there is no CoreML."""
    require("executorch", "executorch", "running ExecuTorch artifacts")
    if artifact.backend == "coreml" and sys.platform != "darwin":
        return _interpreted(path, threads)
    return ExecutorchSession(path, artifact, threads)


def _interpreted(path: Path, threads: int) -> Session:
    from mobileclip.export.coreml_delegate import extract
    from mobileclip.export.runtimes.coreml import InterpretedSession

    require("coremltools", "coreml", "checking the CoreML delegate")
    with tempfile.TemporaryDirectory() as folder:  # weights stay mapped into memory
        return InterpretedSession(*extract(path, Path(folder)), threads)
