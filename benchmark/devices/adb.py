"""The user's own `adb`: finding it, its devices, and commands that end in one typed error.

Sources: `adb help`, the Android developers' page on adb; the texts of its errors as adb 29 and 36 print them.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from mobileclip.benchmark.devices import tool
from mobileclip.errors import DeviceError, MissingToolError, StorageError

MIN_VERSION = (1, 0, 39)
"""The first whose `shell` gives exit codes and separate errors on every system."""
COMMAND_SECONDS = 30.0
PUSH_BYTES_PER_SECOND = 500_000
"""A cable is a hundred times faster."""

_ADVICE = {
    "unauthorized": "unlock it and allow this computer in the dialog",
    "offline": "reconnect its cable",
    "no permissions": "add a udev rule for it (Debian: apt install android-sdk-platform-tools-common), then reconnect it",
    "authorizing": "unlock it and allow this computer in the dialog",
    "recovery": "start it normally",
    "sideload": "start it normally",
    "bootloader": "start it normally",
}


def find() -> str:
    """The `adb` of ANDROID_HOME or ANDROID_SDK_ROOT, of PATH, or the one inside the package adbutils.

    Raises:
        MissingToolError: There is none.
    """
    for name in ("ANDROID_HOME", "ANDROID_SDK_ROOT"):
        if (home := os.environ.get(name)) and (found := shutil.which("adb", path=str(Path(home) / "platform-tools"))):
            return found
    if found := shutil.which("adb"):
        return found
    try:
        return str(importlib.import_module("adbutils").adb_path())
    except ImportError:
        raise MissingToolError("Android: no adb; install the platform tools, or pip install 'mobileclip-toolkit[android]'") from None


def connected() -> tuple[list[str], list[str]]:
    """Serial numbers of the devices that can be used, and why each other one cannot.

    Raises:
        MissingToolError: No adb, or one that is too old.
        DeviceError: It does not work.
    """
    adb = find()
    told = re.search(r"version (\d+)\.(\d+)\.(\d+)", run([adb, "version"]))
    if told is None or tuple(map(int, told.groups())) < MIN_VERSION:
        version = told[0].removeprefix("version ") if told else "unknown"
        raise MissingToolError(f"Android: {adb} is too old (version {version}); install newer platform tools")
    usable, reasons = [], []
    for line in run([adb, "devices", "-l"]).splitlines():
        found = re.match(r"(\S+)\s+(no permissions|[a-z]+)\b", line)
        if found is None or line.startswith(("List of", "* ")):
            continue
        if found[2] == "device":
            usable.append(found[1])
        else:
            reasons.append(f"Android {found[1]} is {found[2]}: {_ADVICE.get(found[2], 'reconnect it')}")
    return usable, reasons


class Adb:
    """One device."""

    def __init__(self, serial: str) -> None:
        self.serial = serial
        self.command = (find(), "-s", serial)

    def run(self, *arguments: str, timeout_s: float = COMMAND_SECONDS) -> str:
        """An adb command's output.

        Raises:
            DeviceError: It failed: the device is gone, asleep, full.
        """
        return run([*self.command, *arguments], timeout_s)

    def shell(self, script: str, timeout_s: float = COMMAND_SECONDS) -> str:
        """The output of a script of the device's shell.

        Raises:
            DeviceError: It ended with another code than 0, or the device is gone.
        """
        return self.run("shell", script, timeout_s=timeout_s)

    def push(self, sources: Sequence[Path], folder: str) -> None:
        """Copy files into a folder of the device.

        Raises:
            StorageError: No room for them.
            DeviceError: The device is gone.
        """
        size = sum(path.stat().st_size for source in sources for path in (source, *source.rglob("*")))
        self.run("push", *map(str, sources), folder, timeout_s=COMMAND_SECONDS + size / PUSH_BYTES_PER_SECOND)

    def properties(self) -> dict[str, str]:
        """What `getprop` tells."""
        return dict(re.findall(r"^\[(.*?)\]: \[(.*?)\]", self.shell("getprop"), re.MULTILINE))


def run(command: Sequence[str], timeout_s: float = COMMAND_SECONDS) -> str:
    """Output of an adb command.

    Raises:
        DeviceError: It failed or took too long; what it said, and what to do.
        StorageError: The device has no room.
    """
    what = " ".join(command[3:5] if command[1:2] == ["-s"] else command[1:3])
    serial = command[2] if list(command[1:2]) == ["-s"] else "adb"
    done = tool.run(command, serial, f"adb {what[:60]}", timeout_s)
    if done.returncode:
        raise error_of(serial, what, done.stderr.strip() or done.stdout.strip(), done.returncode)
    return done.stdout


def error_of(serial: str, what: str, said: str, code: int) -> DeviceError | StorageError:
    """The typed error for what adb or the device's shell said."""
    last = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), f"exit code {code}")
    if re.search(r"No space left|ENOSPC", said):
        return StorageError(f"{serial}: its storage is full; free some and run again")
    for state, advice in _ADVICE.items():
        if re.search(rf"device (still )?{state}", said):
            return DeviceError(f"{serial}: is {state}; {advice}")
    if re.search(r"not found|no devices|device '.*' not|closed|protocol fault|transport", last):
        return DeviceError(f"{serial}: is not connected any more ({last[:120]}); reconnect it and run again")
    return DeviceError(f"{serial}: adb {what[:60]} failed: {last[:200]}")
