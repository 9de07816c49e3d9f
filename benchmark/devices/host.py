"""This machine as a device: a process for each measurement, so that each has its own memory."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import psutil

from mobileclip.benchmark.devices.device import Linked
from mobileclip.benchmark.devices.rounds import Job, Moment, ProcessLink
from mobileclip.benchmark.protocol import DeviceInfo, DeviceState, unit
from mobileclip.export.bundle import TARGETS, ArtifactInfo
from mobileclip.export.runtimes import PACKAGES
from mobileclip.export.runtimes.coreml import UNITS

POWER_PROFILE = Path("/sys/firmware/acpi/platform_profile")
"""Linux tells there whether it saves power (kernel documentation, `sysfs-platform_profile`)."""


class _WorkerLink(ProcessLink):
    trusted = True


class Host(Linked):
    """The machine that the toolkit runs on."""

    kind, key, name = "host", "host", "this machine"
    targets = tuple(t for t in TARGETS if t != "coreml" or sys.platform == "darwin")

    def lacks(self, artifact: ArtifactInfo) -> str | None:  # noqa: D102 (see Device)
        on_mac = sys.platform == "darwin"
        if artifact.target == "coreml" and not on_mac:
            return "CoreML runs on a Mac or an iPhone only; the interpreter used elsewhere checks numbers and is no runtime to time"
        if artifact.target == "executorch" and artifact.backend == "coreml" and not on_mac:
            return "the CoreML delegate runs on a Mac or an iPhone only; export with --backend xnnpack to time it here"
        if importlib.util.find_spec(PACKAGES[artifact.target]) is None:
            return f"the package {PACKAGES[artifact.target]} is missing; pip install 'mobileclip-toolkit[{artifact.target}]'"
        return None

    def providers(self, artifact: ArtifactInfo) -> tuple[str, ...]:  # noqa: D102
        return tuple(UNITS) if artifact.target == "coreml" else (artifact.backend,)

    def link(self, job: Job, number: int, timeout_s: float) -> _WorkerLink:  # noqa: D102
        threads = str(job.request.threads)
        # -P: nothing in the current folder is imported in place of an installed module.
        command = [sys.executable, "-P", "-m", "mobileclip.benchmark.devices.host_worker"]
        environment = {"ORT_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        return _WorkerLink(job, str(job.bundle), str(job.inputs), command, timeout_s, environment)

    def info(self) -> DeviceInfo:  # noqa: D102
        return DeviceInfo(
            name="host",
            model=_cpu_model(),
            os=_os_name(),
            unit=unit(platform.node()),
            architecture=platform.machine(),
            logical_cores=os.cpu_count() or 1,
            memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            emulated=sys.platform == "darwin" and _sysctl("sysctl.proc_translated") == "1",  # an Intel Python on Apple silicon
        )

    def state(self, moment: Moment) -> DeviceState:  # noqa: D102
        battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
        return DeviceState(
            moment=moment,
            battery_percent=min(max(battery.percent, 0.0), 100.0) if battery else None,
            charging=battery.power_plugged if battery else None,
            low_power=_saves_power(),
            load_average_1m=round(os.getloadavg()[0], 2),
        )


def _cpu_model() -> str:
    if sys.platform == "darwin":
        return _sysctl("machdep.cpu.brand_string") or platform.processor()
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor() or "unknown")


def _saves_power() -> bool | None:
    """Whether the system saves power; None where it does not tell."""
    if sys.platform == "darwin":
        found = re.search(r"^\s*lowpowermode\s+(\d)", _said("/usr/bin/pmset", "-g"), re.MULTILINE)
        return found[1] == "1" if found else None
    try:
        return POWER_PROFILE.read_text().strip() == "low-power"
    except OSError:
        return None


def _sysctl(name: str) -> str:
    """A value of a Mac's kernel; empty if it has none of that name."""
    return _said("/usr/sbin/sysctl", "-n", name)


def _said(*command: str) -> str:
    """What a tool of the system prints; empty if it is not there or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _os_name() -> str:
    if sys.platform == "darwin":
        return f"macOS {platform.mac_ver()[0]}"
    try:
        name = platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        name = platform.system()
    return f"{name}, kernel {platform.release()}"
