"""`mobileclip doctor`."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version

import typer

from mobileclip.cli import output
from mobileclip.cli.options import JsonOption

EXTRAS = {
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "coreml": ("coremltools",),
    "executorch": ("executorch",),
    "open-clip": ("open_clip_torch", "timm"),
    "train": ("resvg_py",),
    "android": ("adbutils",),
    "web": ("segno",),
}


def doctor(json_output: JsonOption = False) -> None:
    """Say what this machine can export and run, and what to install for the rest; exits 4 when an extra is missing.

    Example: mobileclip doctor
    """

    def found(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    extras = {extra: {p: found(p) for p in packages} for extra, packages in EXTRAS.items()}
    missing = [extra for extra, packages in extras.items() if None in packages.values()]
    coreml = "CoreML" if sys.platform == "darwin" else "ML program interpreter (checks numbers, not speed)"
    if json_output:
        system = {"system": platform.platform(), "python": platform.python_version(), "torch": found("torch")}
        output.print_json({**system, "extras": extras, "missing": missing, "coreml_runs_on": coreml})
    else:
        rows = [
            (extra, ", ".join(f"{p} {v or 'absent'}" for p, v in packages.items()), "missing" if extra in missing else "ready")
            for extra, packages in extras.items()
        ]
        output.print_table(f"{platform.platform()}, Python {platform.python_version()}", ("extra", "packages", "state"), rows)
        output.print_line(f"CoreML artifacts run on: {coreml}")
        for extra in missing:
            output.print_line(f"missing: pip install 'mobileclip-toolkit[{extra}]'")
    if missing:
        raise typer.Exit(4)
