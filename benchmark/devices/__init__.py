"""Where a measurement can run, and which of the devices `--device` means."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from mobileclip.benchmark.devices import adb, android, ios
from mobileclip.benchmark.devices.android_app import AndroidApp
from mobileclip.benchmark.devices.device import Device, plain
from mobileclip.benchmark.devices.host import Host
from mobileclip.benchmark.devices.web import Web
from mobileclip.errors import DeviceError, InputError, MobileClipError

ALWAYS: tuple[type[Device], ...] = (Host, Web)
"""Devices that need no cable."""


def connected() -> tuple[list[Device], list[str]]:
    """Everything that can be reached now, and what else was seen with the reason why it cannot.

    A tool that is not installed is a reason, no error.
    """
    found: list[Device] = [kind() for kind in ALWAYS]
    reasons: list[str] = []
    for look in (_androids, ios.look):
        try:
            devices, seen = look()
        except MobileClipError as e:
            reasons.append(str(e))
        else:
            found += devices
            reasons += seen
    return found, reasons


def find(name: str, via: str | None = None) -> Device:
    """The device that a name means.

    Args:
        name: A serial number or udid, a name (`Anna's phone`), a model or product type (`Pixel 8`, `iPhone13,4`), or an alias
            (`pixel8`, `iphone12promax`, `android`, `host`, `web`); case, blanks and signs do not matter.
        via: How to reach it where there are several ways, see `Device.kind`.

    Raises:
        DeviceError: None is meant, or several are.
    """
    for kind in ALWAYS:  # no tool is asked, and no adb server started, for what needs none
        if name == kind.key and via in (None, kind.kind):
            return kind()
    devices, reasons = connected()
    asked = plain(name)
    matching = [d for d in devices if d.key == name] or [d for d in devices if asked and asked in map(plain, (d.key, d.name, *d.aliases))]
    if not matching:
        near = difflib.get_close_matches(asked, [plain(n) for d in devices for n in (d.key, d.name, *d.aliases)], n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise DeviceError(f"no device {name!r} is connected; {hint}{_listed(devices, reasons)}")
    if via is not None:
        matching = [d for d in matching if d.kind == via or d.kind.endswith(f"-{via}")]
        if not matching:
            raise InputError(f"{name} cannot be reached via {via!r}; {_listed(devices, reasons)}")
    if len({d.key for d in matching}) > 1:
        raise DeviceError(f"{name!r} means several devices: {', '.join(f'{d.key} ({d.name})' for d in matching)}; name one by its number")
    return matching[0]


def _listed(devices: Sequence[Device], reasons: Sequence[str]) -> str:
    shown = ", ".join(dict.fromkeys(f"{d.key} ({d.name})" for d in devices))
    return "; ".join((f"connected: {shown}", *reasons, "see: mobileclip devices"))


def _androids() -> tuple[list[Device], list[str]]:
    serials, reasons = adb.connected()
    found: list[Device] = []
    for serial in serials:
        try:
            phone = android.AndroidShell(serial)
        except MobileClipError as e:
            reasons.append(str(e))
        else:
            found += [phone, AndroidApp(phone), android.AndroidWeb(phone)]
    return found, reasons
