"""What an exporter is: a module `mobileclip.export.<target>` with the functions below."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from torch import nn

from mobileclip.errors import GateError
from mobileclip.export.bundle import ArtifactInfo, Backend, Options, Target, TensorInfo, file_entries
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


def check_packages(options: Options) -> None:
    """Check that the packages of all targets are installed.

    Raises:
        MissingToolError: Names the package and the extra.
    """
    for target in options.targets:
        for package in PACKAGES[target]:
            require(package, target, f"the target {target}")
    if "executorch" in options.targets and options.executorch_backend == "coreml":
        require("coremltools", "coreml", "the CoreML delegate")


def exporter(target: Target) -> Exporter:
    """The exporter of a target."""
    return cast(Exporter, import_module(f"mobileclip.export.{target}"))


def write(target: Target, tower: nn.Module, plan: Plan, folder: Path, *, check: bool = True) -> ArtifactInfo:
    """Export a tower to `folder`, then check the finished artifact's interface and graph.

    Args:
        target: The target.
        tower: Fused, from `mobileclip.export.graph.fold_affine`.
        plan: How to export it.
        folder: Where; the file is named after the tower.
        check: Leave out the checks when false; only what is broken on purpose needs that.

    Raises:
        GateError: Names, dtypes or shapes differ from the plan, or a graph rule is broken.
    """
    module = exporter(target)
    path = folder / f"{plan.tower}{SUFFIX[target]}"
    written = module.export(tower, plan, path)
    if check:
        for wanted, got in zip((plan.input, plan.output), module.interface(path), strict=True):
            if wanted != got:
                raise GateError(f"{path.name}: declares {got}, expected {wanted}; nothing was published")
        if broken := module.broken_rules(path):
            raise GateError(f"{path.name}: breaks a graph rule: {'; '.join(broken[:5])}; nothing was published")
    return ArtifactInfo(
        target=target,
        tower=plan.tower,
        backend=written.backend,
        path=path.name,
        files=file_entries(folder, path),
        input=plan.input,
        output=plan.output,
        fp32_operators=plan.fp32_layers,
        not_delegated=written.not_delegated,
        unhashed=written.unhashed,
    )
