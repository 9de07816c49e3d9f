"""Android phones over adb: a runner of ONNX Runtime that is copied to the phone, used from its shell, and taken away again.

Sources: Android's documentation of adb, of `dumpsys battery` and of `PowerManager`'s thermal states.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from mobileclip.benchmark.devices import adb, names, setup
from mobileclip.benchmark.devices.device import Linked, alone
from mobileclip.benchmark.devices.rounds import Job, Moment, ProcessLink, Progress
from mobileclip.benchmark.devices.web import Web
from mobileclip.benchmark.protocol import DeviceInfo, DeviceState, Thermal, unit
from mobileclip.errors import MobileClipError
from mobileclip.export.bundle import ArtifactInfo

PLACE = "/data/local/tmp/mobileclip"
"""The runner's folders on a phone begin so."""
_ABI = "arm64-v8a"
_THERMAL: tuple[Thermal, ...] = ("nominal", "fair", "fair", "serious", "critical", "critical", "critical")
"""`PowerManager.THERMAL_STATUS_NONE` to `_SHUTDOWN`."""
_STATE = "dumpsys battery; echo =====; dumpsys thermalservice; echo =====; settings get global low_power"


class Android(Linked):
    """A phone that adb reaches; see the subclasses for what runs on it."""

    targets = ("onnx",)

    def __init__(self, serial: str) -> None:
        self.adb = adb.Adb(serial)
        self.key, self.properties = serial, self.adb.properties()
        model = self._property("ro.product.model")
        self.name = names.marketing(model) or f"{self._property('ro.product.manufacturer')} {model}".strip()
        self.serial = self._property("ro.serialno") or self.key
        self.aliases = ("android", model, self._property("ro.product.marketname"), self._property("ro.product.device"))

    def _property(self, name: str) -> str:
        return self.properties.get(name, "")

    def info(self) -> DeviceInfo:  # noqa: D102 (see Device)
        told = self.adb.shell("cat /proc/meminfo | head -1; ls -d /sys/devices/system/cpu/cpu[0-9]*")
        memory = re.search(r"MemTotal:\s+(\d{1,12}) kB", told)
        qemu = self._property("ro.kernel.qemu") or self._property("ro.boot.qemu")
        return DeviceInfo(
            name=self.name,
            model=self._property("ro.product.model"),
            unit=unit(self.serial),
            soc=f"{self._property('ro.soc.manufacturer')} {self._property('ro.soc.model')}".strip() or self._property("ro.board.platform"),
            os=f"Android {self._property('ro.build.version.release')} (API {self._property('ro.build.version.sdk')})",
            architecture=self._property("ro.product.cpu.abi"),
            logical_cores=told.count("/cpu/cpu") or None,
            memory_bytes=int(memory[1]) * 1024 if memory else None,
            emulated=qemu == "1" or self._property("ro.hardware") in ("goldfish", "ranchu", "cutf_cvm"),
        )

    def state(self, moment: Moment) -> DeviceState:  # noqa: D102
        battery, thermal, saver = (*self.adb.shell(_STATE).split("====="), "", "")[:3]
        level, scale = (re.search(rf"^\s*{word}: (\d{{1,9}})\b", battery, re.MULTILINE) for word in ("level", "scale"))
        powered = re.findall(r"^\s*(?:AC|USB|Wireless|Dock) powered: (true|false)", battery, re.MULTILINE)
        status = re.search(r"^\s*Thermal Status: (\d)", thermal, re.MULTILINE)
        return DeviceState(
            moment=moment,
            thermal=_THERMAL[min(int(status[1]), len(_THERMAL) - 1)] if status else "unknown",
            battery_percent=min(100.0, 100 * int(level[1]) / max(int(scale[1]) if scale else 100, 1)) if level else None,
            charging="true" in powered if powered else None,
            low_power={"0": False, "1": True}.get(saver.strip()),
        )


class _ShellLink(ProcessLink):
    """The runner on a phone, through `adb shell`."""

    def __init__(self, phone: Android, job: Job, folder: str, number: int, launch: str, timeout_s: float) -> None:
        self._phone = phone
        super().__init__(job, f"{folder}/{number}", f"{folder}/{number}/inputs", [*phone.adb.command, "shell", launch], timeout_s)

    def ending(self) -> str:
        told = super().ending()
        try:
            self._phone.adb.run("get-state")
        except MobileClipError as e:
            return str(e)
        return told


class AndroidShell(Android):
    """A phone with the runner of `setup`, on its CPU."""

    kind = "android-shell"
    _folder = _launch = ""

    def lacks(self, artifact: ArtifactInfo) -> str | None:  # noqa: D102 (see Device)
        if artifact.target != "onnx":
            return "the runner in a phone's shell runs ONNX only"
        if _ABI not in self._property("ro.product.cpu.abilist").split(","):
            return f"the runner needs a 64-bit ARM phone, this one is {self._property('ro.product.cpu.abilist') or 'unknown'}"
        return None

    def providers(self, artifact: ArtifactInfo) -> tuple[str, ...]:  # noqa: D102
        return ("cpu", "xnnpack", "nnapi")

    @contextlib.contextmanager
    def prepared(self, jobs: Sequence[Job], progress: Progress) -> Iterator[None]:  # noqa: D102
        runner = setup.android_runner(progress)
        with alone(self.key):
            # of a process that was killed; a younger one may be another computer's
            place, _, name = PLACE.rpartition("/")
            self.adb.shell(f"find {place} -maxdepth 1 -name '{name}-*' -mmin +1440 -exec rm -rf {{}} ';'")
            self._folder = f"{PLACE}-{secrets.token_hex(4)}"
            try:
                self._bring(runner, jobs, progress)
                yield
            finally:
                with contextlib.suppress(MobileClipError):  # it may be gone; what brought us here matters more
                    # the brackets: this shell's own command line must not match
                    self.adb.shell(f"pkill -9 -f '[/]{self._folder[1:]}/'; rm -rf {self._folder}")

    def _bring(self, runner: Path, jobs: Sequence[Job], progress: Progress) -> None:
        progress(f"copying {len(jobs)} model(s) to {self.name}")
        files = sorted(p for p in runner.iterdir() if p.is_file() and not p.name.startswith("."))
        self.adb.shell(f"mkdir -p {self._folder}")
        self.adb.push(files, self._folder + "/")
        for i, job in enumerate(jobs):
            self.adb.shell(f"mkdir -p {self._folder}/{i}/{shlex.quote(str(Path(job.request.artifact).parent))}")
            self.adb.push([job.bundle / job.request.artifact], f"{self._folder}/{i}/{job.request.artifact}")
            self.adb.push([job.inputs], f"{self._folder}/{i}/inputs")
        loaded = f"{self._folder}/{setup.LOADER} --library-path {self._folder}" if (runner / setup.LOADER).exists() else ""
        self._launch = f"LD_LIBRARY_PATH={self._folder} exec {loaded} {self._folder}/runner"
        self.adb.shell(f"chmod 755 {self._folder}/*")

    def link(self, job: Job, number: int, timeout_s: float) -> _ShellLink:  # noqa: D102
        return _ShellLink(self, job, self._folder, number, self._launch, timeout_s)


class AndroidWeb(Web):
    """The browser of a phone; the port is reversed, so that the page is local to it and has threads and WebGPU."""

    kind = "android-web"

    def __init__(self, phone: Android) -> None:
        self._phone = phone
        self.key, self.name, self.aliases = phone.key, phone.name, phone.aliases

    @contextlib.contextmanager
    def prepared(self, jobs: Sequence[Job], progress: Progress) -> Iterator[None]:  # noqa: D102
        with alone(self.key), super().prepared(jobs, progress):
            yield

    @contextlib.contextmanager
    def reachable(self, port: int, path: str, progress: Progress) -> Iterator[None]:  # noqa: D102 (see Web)
        phone = self._phone.adb
        phone.run("reverse", f"tcp:{port}", f"tcp:{port}")
        try:
            phone.shell(f"am start -a android.intent.action.VIEW -d {shlex.quote(f'http://localhost:{port}{path}')}")
            progress(f"opening the page on {self.name}; unlock it")
            yield
        finally:
            with contextlib.suppress(MobileClipError):
                phone.run("reverse", "--remove", f"tcp:{port}")

    def info(self) -> DeviceInfo:  # noqa: D102
        browser = super().info().os.rpartition(", ")[2]
        phone = self._phone.info()
        return phone.model_copy(update={"os": f"{phone.os}, {browser}"})

    def state(self, moment: Moment) -> DeviceState:  # noqa: D102
        return self._phone.state(moment).model_copy(update={"foreground": super().state(moment).foreground})
