"""The benchmark app on an Android phone, started as an instrumentation over adb.

Sources: Android's documentation of `am instrument`, `run-as` and `dumpsys activity exit-info`.
"""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from mobileclip.benchmark.devices.adb import Adb
from mobileclip.benchmark.devices.android import Android
from mobileclip.benchmark.devices.app import MAX_ANSWER_BYTES, AppDevice
from mobileclip.errors import DeviceError, MobileClipError
from mobileclip.export.bundle import ArtifactInfo

INSTALL_SECONDS, COPY_SECONDS = 300.0, 600.0
_SHARED = "/data/local/tmp"
"""Where adb may write and the app may read."""


class AndroidApp(AppDevice):
    """A phone with the app of `android_app/`."""

    kind = "android-app"
    targets = ("executorch", "onnx")

    def __init__(self, phone: Android) -> None:
        self.key, self.name, self.aliases, self.serial = phone.key, phone.name, phone.aliases, phone.serial
        self._adb: Adb = phone.adb

    def lacks(self, artifact: ArtifactInfo) -> str | None:  # noqa: D102 (see Device)
        if artifact.target == "coreml" or artifact.backend == "coreml":
            return "CoreML runs on a Mac or an iPhone only"
        return None

    def providers(self, artifact: ArtifactInfo) -> tuple[str, ...]:  # noqa: D102
        return ("cpu", "xnnpack", "nnapi", "qnn") if artifact.target == "onnx" else (artifact.backend,)

    def _as_app(self, script: str, timeout_s: float = 60.0) -> str:
        """Run a script as the app, in its own folder."""
        return self._adb.shell(f"run-as {self.app} sh -c {shlex.quote(script)}", timeout_s)

    def install(self, package: Path) -> None:  # noqa: D102 (see AppDevice)
        self._adb.run("install", "-r", "-g", str(package), timeout_s=INSTALL_SECONDS)

    def check_app(self) -> None:  # noqa: D102
        if f":{self.app}/" not in self._adb.shell("pm list instrumentation"):
            raise DeviceError(f"{self.key}: has no app {self.app}; install the benchmark app, see android_app/, or give it with --app")
        self._earlier_exits = set(self._exits())

    def _exits(self) -> list[tuple[str, str]]:
        """When the app has ended, and why; the last time first."""
        told = self._adb.shell(f"dumpsys activity exit-info {self.app}")
        return re.findall(r"timestamp=(.*?) pid=.*?reason=\d+ \(([^)]+)\)", told, re.DOTALL)

    def put(self, folder: Path) -> None:  # noqa: D102
        try:
            self._adb.push([folder], f"{_SHARED}/")
            self._as_app(f"mkdir -p files && cp -r {_SHARED}/{folder.name} files/", COPY_SECONDS)
        finally:
            with contextlib.suppress(MobileClipError):
                self._adb.shell(f"rm -rf {_SHARED}/{folder.name}")

    def get(self, name: str) -> bytes | None:  # noqa: D102
        marked = self._as_app(f"if [ -f files/{name} ]; then echo found; head -c {MAX_ANSWER_BYTES + 1} files/{name}; fi", COPY_SECONDS)
        return marked.removeprefix("found\n").encode() if marked.startswith("found\n") else None

    def remove(self, name: str) -> None:  # noqa: D102
        self._adb.shell(f"am force-stop {self.app}")
        self._as_app(f"rm -rf files/{name}")

    def command(self, plan: str) -> list[str]:  # noqa: D102
        return [*self._adb.command, "shell", f"am instrument -w -r -e plan files/{plan} {self.app}/.BenchInstrumentation"]

    def why_it_ended(self, code: int, lines: Sequence[str]) -> str:  # noqa: D102
        said = "\n".join(lines)
        try:
            exits = [reason for when, reason in self._exits() if (when, reason) not in self._earlier_exits]
        except MobileClipError as e:
            return str(e).removeprefix(f"{self.key}: ")
        if exits and "LOW" in exits[0].upper():
            return "the app was killed, out of memory; give fewer or smaller models"
        if found := re.search(r"INSTRUMENTATION_RESULT: refused=(.*)", said):
            return found[1][:300]
        if found := re.search(r"(?:longMsg|shortMsg)=(.*)", said):
            return f"the app crashed ({found[1][:160]})"
        if found := re.search(r"INSTRUMENTATION_FAILED: (.*)", said):
            return f"{found[1][:120]} cannot be started; install the benchmark app again"
        return f"the app ended without an answer (exit code {code}{': ' + lines[-1][:160] if lines else ''})"
