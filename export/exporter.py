"""What an exporter is: a module `mobileclip.export.<target>` with the functions below."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from torch import nn

from mobileclip.errors import GateError
from mobileclip.export.bundle import Backend, Target, TensorInfo
from mobileclip.export.graph import Plan
from mobileclip.files import require

SUFFIX: dict[Target, str] = {"onnx": ".onnx", "coreml": ".mlpackage", "executorch": ".pte"}
PACKAGES: dict[Target, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "coreml": ("coremltools",),
    "executorch": ("executorch",),
}


@dataclass(frozen=True)
class Written:
    """What an exporter knows about the artifact that it wrote."""

    backend: Backend
    not_delegated: dict[str, int] = field(default_factory=dict)
    unhashed: str = ""


class Exporter(Protocol):
    """The functions of an exporter's module."""

    def export(self, tower: nn.Module, plan: Plan, path: Path) -> Written:
        """Write the tower to `path`; never prints."""
        ...

    def interface(self, path: Path) -> tuple[TensorInfo, TensorInfo]:
        """Input and output as the finished artifact declares them."""
        ...

    def broken_rules(self, path: Path) -> list[str]:
        """Graph rules (see `mobileclip.export.graph`) that the finished artifact breaks."""
        ...


def check_packages(target: Target) -> None:
    """Check that the packages of a target are installed.

    Raises:
        MissingToolError: Names the package and the extra.
    """
    for package in PACKAGES[target]:
        require(package, target, f"the target {target}")


def exporter(target: Target) -> Exporter:
    """The exporter of a target."""
    return cast(Exporter, import_module(f"mobileclip.export.{target}"))


def write(target: Target, tower: nn.Module, plan: Plan, path: Path) -> Written:
    """Export, then check the finished artifact's interface and graph.

    Raises:
        GateError: Names, dtypes or shapes differ from the plan, or a graph rule is broken.
    """
    module = exporter(target)
    written = module.export(tower, plan, path)
    for wanted, got in zip((plan.input, plan.output), module.interface(path), strict=True):
        if wanted != got:
            raise GateError(f"{path.name}: declares {got}, expected {wanted}; nothing was published")
    broken = module.broken_rules(path)
    if broken:
        raise GateError(f"{path.name}: breaks a graph rule: {'; '.join(broken[:5])}; nothing was published")
    return written
