"""iPhones and iPads: Apple's `devicectl` on a Mac, the open `pymobiledevice3` elsewhere and for older systems; the user's own programs.

Sources: `xcrun devicectl help` and the JSON files that it writes (Xcode 16, the first with `--console`); pymobiledevice3 11's own help.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mobileclip.benchmark.devices import names, tool
from mobileclip.benchmark.devices.app import MAX_ANSWER_BYTES, AppDevice
from mobileclip.errors import DeviceError, MissingToolError, MobileClipError, StorageError
from mobileclip.export.bundle import ArtifactInfo
from mobileclip.export.runtimes.coreml import UNITS

LIST_SECONDS, COMMAND_SECONDS, COPY_SECONDS, INSTALL_SECONDS = 30.0, 60.0, 900.0, 600.0
_ADVICE = (
    (r"lock(ed)?\b.*(passcode|device)|unlocked|deviceislocked", "unlock it and keep it unlocked"),
    (r"developer mode", "switch on Developer Mode in Settings, Privacy & Security"),
    (r"not trusted|trust|pairing|InvalidHostID|NotPaired", "unlock it and trust this computer"),
    (r"signature|provision|entitlement|codesign|0xe80080", "sign the app with your own team in Xcode and install it again"),
    (r"no space|storage|ENOSPC", "free some storage"),
    (
        r"ApplicationLookupFailed|not installed|unknown bundle|no such application|InstallationLookupFailed",
        "install the benchmark app, see ios_app/",
    ),
    (r"tunnel", "reconnect it; iOS 17.0 to 17.3 need `sudo pymobiledevice3 remote tunneld`"),
    (r"not found|disconnected|no device|unavailable|ConnectionTerminated", "reconnect its cable"),
)


class _Apple(AppDevice):
    """What the two ways share."""

    targets = ("coreml",)

    def __init__(self, udid: str, name: str, product: str, marketing: str = "") -> None:
        self.key = self.serial = udid
        marketing = names.marketing(product) or marketing  # the tool knows models that are younger than the table
        self.name = f"{name} ({marketing or product})"
        self.aliases = (name, product, marketing, "iphone" if product.startswith("iPhone") else "ipad", "ios")

    def lacks(self, artifact: ArtifactInfo) -> str | None:
        if artifact.target == "executorch" and artifact.backend not in ("coreml", "xnnpack"):
            return f"the app has no {artifact.backend} backend"
        return None

    def providers(self, artifact: ArtifactInfo) -> tuple[str, ...]:
        return tuple(UNITS) if artifact.target == "coreml" or artifact.backend == "coreml" else (artifact.backend,)

    def why_it_ended(self, code: int, lines: Sequence[str]) -> str:
        said = "\n".join(lines)
        if re.search(r"jetsam|memory limit|SIGKILL|signal 9\b|per-process-limit", said, re.IGNORECASE):
            return "the app was killed, out of memory perhaps; give fewer or smaller models"
        if re.search(r"SIG[A-Z]+|signal \d+|crash", said):
            return f"the app crashed ({(lines or ['no message'])[-1][:160]})"
        if advice := _advice(said):
            return f"{(lines or ['it did not start'])[-1][:160]}; {advice}"
        return f"the app ended without an answer (exit code {code}{': ' + lines[-1][:160] if lines else ''})"


class Devicectl(_Apple):
    """By Apple's own tool; iOS 17 or later."""

    kind = "ios-devicectl"

    def _json(self, *words: str, timeout_s: float = COMMAND_SECONDS) -> dict[str, Any]:
        return devicectl("device", *words[:2], "--device", self.key, *words[2:], serial=self.key, timeout_s=timeout_s)

    def install(self, package: Path) -> None:  # noqa: D102 (see AppDevice)
        self._json("install", "app", str(package), timeout_s=INSTALL_SECONDS)

    def check_app(self) -> None:  # noqa: D102
        found = self._json("info", "apps", "--bundle-id", self.app)["result"].get("apps", [])
        if not any(isinstance(a, dict) and a.get("bundleIdentifier") == self.app for a in found):
            raise DeviceError(f"{self.key}: has no app {self.app}; install the benchmark app, see ios_app/, or give it with --app")

    def _container(self) -> list[str]:
        return ["--domain-type", "appDataContainer", "--domain-identifier", self.app]

    def put(self, folder: Path) -> None:  # noqa: D102
        where = ["--source", str(folder), "--destination", f"Documents/{folder.name}"]
        self._json("copy", "to", *self._container(), *where, timeout_s=COPY_SECONDS)

    def get(self, name: str) -> bytes | None:  # noqa: D102
        with tempfile.TemporaryDirectory(prefix="mobileclip-answer-") as folder:
            target = Path(folder) / "file"
            where = ["--source", f"Documents/{name}", "--destination", str(target)]
            try:
                self._json("copy", "from", *self._container(), *where, timeout_s=COPY_SECONDS)
            except DeviceError as e:
                if re.search(r"no such file|does not exist|not found", str(e), re.IGNORECASE):
                    return None
                raise
            return _start(target)

    def remove(self, name: str) -> None:
        """Tell the app to remove a folder: devicectl has no way to do so."""
        self._json("process", "launch", "--terminate-existing", "--console", self.app, "--", "--mobileclip-remove", f"Documents/{name}")

    def command(self, plan: str) -> list[str]:  # noqa: D102
        return [
            "xcrun", "devicectl", "device", "process", "launch", "--device", self.key, "--terminate-existing", "--console", self.app,
            "--", "--mobileclip-bench", f"Documents/{plan}",  # else devicectl would take the app's words for its own
        ]  # fmt: skip


class PyMobileDevice(_Apple):
    """By pymobiledevice3, on any computer."""

    kind = "ios-pymobiledevice3"

    def _tool(self, *words: str, timeout_s: float = COMMAND_SECONDS) -> str:
        return _run(["pymobiledevice3", *words, "--udid", self.key], self.key, timeout_s)

    def install(self, package: Path) -> None:  # noqa: D102 (see AppDevice)
        self._tool("apps", "install", str(package), timeout_s=INSTALL_SECONDS)

    def check_app(self) -> None:  # noqa: D102
        if self.app not in _parsed(self._tool("apps", "list", "--type", "User"), self.key, dict):
            raise DeviceError(f"{self.key}: has no app {self.app}; install the benchmark app, see ios_app/, or give it with --app")

    def put(self, folder: Path) -> None:  # noqa: D102
        self._tool("apps", "push", self.app, str(folder), "Documents", timeout_s=COPY_SECONDS)  # a folder goes below that one

    def get(self, name: str) -> bytes | None:  # noqa: D102
        with tempfile.TemporaryDirectory(prefix="mobileclip-answer-") as folder:
            target = Path(folder) / "file"
            try:
                self._tool("apps", "pull", self.app, f"Documents/{name}", str(target), timeout_s=COPY_SECONDS)
            except DeviceError as e:
                if re.search(r"OBJECT_NOT_FOUND|no such file|not found", str(e), re.IGNORECASE):
                    return None
                raise
            return _start(target)

    def remove(self, name: str) -> None:  # noqa: D102
        with contextlib.suppress(MobileClipError):  # the files go even if it cannot be stopped
            pid = self._tool("developer", "dvt", "process-id-for-bundle-id", self.app).strip()
            if re.fullmatch(r"[1-9]\d{0,9}", pid):  # 0: it does not run
                self._tool("developer", "dvt", "kill", pid)
        self._tool("apps", "rm", self.app, f"Documents/{name}")

    def command(self, plan: str) -> list[str]:  # noqa: D102
        words = f"{self.app} --mobileclip-bench Documents/{plan}"
        return ["pymobiledevice3", "developer", "dvt", "launch", words, "--kill-existing", "--stream", "--udid", self.key]


def _start(file: Path) -> bytes | None:
    """As much of an answer as can be used; None if there is none."""
    if not file.is_file():
        return None
    with file.open("rb") as f:
        return f.read(MAX_ANSWER_BYTES + 1)


def devicectl(*words: str, serial: str = "devicectl", timeout_s: float = COMMAND_SECONDS) -> dict[str, Any]:
    """What a devicectl command writes into its JSON file.

    Raises:
        DeviceError: It failed: what it said, and what to do.
    """
    with tempfile.TemporaryDirectory(prefix="mobileclip-devicectl-") as folder:
        told = Path(folder) / "told.json"
        command = ["xcrun", "devicectl", *words]
        at = command.index("--console") if "--console" in command else len(command)  # what follows are the app's own words
        error: DeviceError | StorageError | None = None
        try:
            _run([*command[:at], "--json-output", str(told), *command[at:]], serial, timeout_s)
        except (DeviceError, StorageError) as e:
            error = e
        content = _parsed(told.read_text(errors="replace"), serial, dict) if told.is_file() else {}
    if said := _failure(content):
        raise _error(serial, said)
    if error is not None:
        raise error
    if not isinstance(content.get("result"), dict):
        raise DeviceError(f"{serial}: devicectl {' '.join(words[:3])} has told nothing")
    return content


def _failure(content: Mapping[str, Any]) -> str:
    """What devicectl says went wrong: the descriptions of an error and of those below it."""
    if _object(content.get("info")).get("outcome") in ("success", None):
        return ""
    found: list[str] = []
    error = _object(content.get("error"))
    while error and len(found) < 24:
        told = _object(error.get("userInfo"))
        for name in ("NSLocalizedDescription", "NSLocalizedFailureReason", "NSLocalizedRecoverySuggestion"):
            found.append(str(_object(told.get(name)).get("string") or ""))
        error = _object(_object(told.get("NSUnderlyingError")).get("error"))
    return " ".join(filter(None, found)) or "it failed without a reason"


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _run(command: Sequence[str], serial: str, timeout_s: float) -> str:
    program, *words = command[1:] if command[0] == "xcrun" else command
    what = " ".join((program, *words[:2]))
    done = tool.run(command, serial, what, timeout_s)
    if done.returncode:
        raise _error(serial, done.stderr.strip() or done.stdout.strip() or f"{what} failed with exit code {done.returncode}")
    return done.stdout


def _error(serial: str, said: str) -> DeviceError | StorageError:
    """The typed error for what a tool said."""
    advice = _advice(said)
    text = f"{serial}: {' '.join(said.split())[-200:]}{f'; {advice}' if advice else ''}"
    return StorageError(text) if advice == "free some storage" else DeviceError(text)


def _advice(said: str) -> str:
    return next((advice for pattern, advice in _ADVICE if re.search(pattern, said, re.IGNORECASE)), "")


def _parsed(text: str, serial: str, kind: type) -> Any:
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, kind):
        raise DeviceError(f"{serial}: the tool's answer is no JSON that this version knows; use another version of it")
    return told


def look() -> tuple[list[_Apple], list[str]]:
    """The iPhones and iPads that can be used now, and why others cannot.

    Raises:
        MissingToolError: Neither tool is installed.
        DeviceError: One does not work.
    """
    found: list[_Apple] = []
    reasons: list[str] = []
    ways = [look for program, look in (("xcrun", _by_devicectl), ("pymobiledevice3", _by_pymobiledevice3)) if shutil.which(program)]
    if not ways:
        wanted = "Xcode 16 or later" if sys.platform == "darwin" else "pymobiledevice3 (pip install pymobiledevice3)"
        raise MissingToolError(f"iPhone: no tool to reach one; install {wanted}")
    for way in ways:
        try:
            devices, seen = way()
        except MobileClipError as e:
            reasons.append(f"iPhone: {e}")
        else:
            found += devices
            reasons += seen
    return found, reasons


def _by_devicectl() -> tuple[list[_Apple], list[str]]:
    listed = devicectl("list", "devices", "--timeout", "5", timeout_s=LIST_SECONDS)["result"].get("devices", [])
    found: list[_Apple] = []
    reasons: list[str] = []
    for told in map(_object, listed if isinstance(listed, list) else []):
        connection, device, hardware = (_object(told.get(f"{name}Properties")) for name in ("connection", "device", "hardware"))
        if hardware.get("platform") not in ("iOS", "iPadOS"):
            continue
        udid, name = str(hardware.get("udid") or told.get("identifier")), str(device.get("name"))
        if connection.get("pairingState") != "paired":
            reasons.append(f"iPhone {udid} ({name}) is not paired: unlock it and trust this computer")
        elif connection.get("tunnelState") == "unavailable":
            reasons.append(f"iPhone {udid} ({name}) is not connected: plug it in, or join its network")
        elif device.get("developerModeStatus") == "disabled":
            reasons.append(f"iPhone {udid} ({name}) is not in Developer Mode: switch it on in Settings, Privacy & Security")
        else:
            found.append(Devicectl(udid, name, str(hardware.get("productType")), str(hardware.get("marketingName") or "")))
    return found, reasons


def _by_pymobiledevice3() -> tuple[list[_Apple], list[str]]:
    listed = _parsed(_run(["pymobiledevice3", "usbmux", "list"], "pymobiledevice3", LIST_SECONDS), "pymobiledevice3", list)
    found: list[_Apple] = []
    for told in listed:
        if isinstance(told, dict) and isinstance(udid := told.get("UniqueDeviceID") or told.get("Identifier"), str):
            name, product = str(told.get("DeviceName")), str(told.get("ProductType"))
            found.append(PyMobileDevice(udid, name, product))
    return list({d.key: d for d in found}.values()), []
