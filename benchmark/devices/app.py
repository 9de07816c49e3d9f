"""Phones whose own app measures: it is given a plan with the models, takes the turns by itself, and leaves an answer for each measurement.

While it runs the app prints lines `MOBILECLIP {...}`: `{"progress": TEXT}`, and last of all `{"done": true}`. Lines tell how it goes, the
answers count: what an app has finished before it crashed is there.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import random
import re
import secrets
import shutil
import subprocess
import tempfile
import threading
import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError

from mobileclip.benchmark.devices.device import Device, alone
from mobileclip.benchmark.devices.rounds import BLOCK_SAMPLES, BLOCK_SECONDS, COOL_SECONDS, Ended, Job, Progress
from mobileclip.benchmark.protocol import BenchAnswer, BenchPlan, PlannedMeasurement, unit
from mobileclip.errors import DeviceError, InputError, Interrupted, MobileClipError, one_line

APP = "org.mobileclip.bench"
"""The benchmark app's name on phones."""
PLAN = "plan.json"
_ORDERS = 64
MAX_ANSWER_BYTES = 64 << 20
_MAX_LINE_CHARS, MAX_UNREAD_LINES = 1 << 16, 1000
_SLOWNESS = 20
"""A plan may take so many times the timed seconds that it asks for, with what else it needs; then the app is stopped."""
_MARK = re.compile(r"MOBILECLIP (\{.*\})")


def app_name(text: str) -> str:
    """The name of an app, as its owner has given it.

    Raises:
        InputError: It is none; it goes into commands of devices.
    """
    if not re.fullmatch(r"[A-Za-z0-9._-]+", text):
        raise InputError(f"--app-id {text!r} is no name of an app; it is like org.example.bench")
    return text


class AppDevice(Device):
    """A phone with the benchmark app.

    Attributes:
        app: Name of the app, where it was signed under another one.
        package: The app as a file, to be installed first.
        serial: What tells it from others of its model; the app itself may not know it.
    """

    app = APP
    package: Path | None = None
    serial: str
    _folder = ""

    @abstractmethod
    def install(self, package: Path) -> None:
        """Install the app.

        Raises:
            DeviceError: It is refused.
        """

    @abstractmethod
    def check_app(self) -> None:
        """See that the app is there.

        Raises:
            DeviceError: It is not; how it gets there.
        """

    @abstractmethod
    def put(self, folder: Path) -> None:
        """Copy a folder into the app's own folder.

        Raises:
            DeviceError: The phone is gone.
            StorageError: It has no room.
        """

    @abstractmethod
    def get(self, name: str) -> bytes | None:
        """A file of the app's own folder, not much more than `MAX_ANSWER_BYTES` of it; None if there is none.

        Raises:
            DeviceError: The phone is gone.
        """

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a folder from the app's own folder, and stop the app.

        Raises:
            DeviceError: The phone is gone.
        """

    @abstractmethod
    def command(self, plan: str) -> list[str]:
        """What starts the app on a plan, prints its lines, and ends when it ends."""

    @abstractmethod
    def why_it_ended(self, code: int, lines: Sequence[str]) -> str:
        """Why the app ended before it was done, for people.

        Args:
            code: Exit code of `command`.
            lines: The last ones that it printed.
        """

    @contextlib.contextmanager
    def prepared(self, jobs: Sequence[Job], progress: Progress) -> Iterator[None]:  # noqa: D102 (see Device)
        with alone(self.key):
            if self.package is not None:
                progress(f"installing {self.package.name} on {self.name}")
                self.install(self.package)
            self.check_app()
            self._folder = f"mobileclip-{secrets.token_hex(4)}"
            try:
                yield
            finally:
                with contextlib.suppress(MobileClipError):  # it may be gone; what brought us here matters more
                    self.remove(self._folder)

    def measure(self, jobs: Sequence[Job], seed: int, timeout_s: float, progress: Progress) -> list[Ended]:  # noqa: D102
        progress(f"copying {len(jobs)} model(s) to {self.name}")
        with tempfile.TemporaryDirectory(prefix="mobileclip-plan-") as scratch:
            folder = Path(scratch) / self._folder
            for i, job in enumerate(jobs):
                _copy(job.bundle / job.request.artifact, folder / str(i) / job.request.artifact)
                _copy(job.inputs, folder / f"{i}.inputs")  # never in the artifact's place: it is a link to the bundle's own file
            (folder / PLAN).write_text(self._plan(jobs, seed).model_dump_json(indent=1))
            self.put(folder)
        asked_s = sum(job.request.min_seconds for job in jobs)
        error = self._run(timeout_s, COOL_SECONDS + (len(jobs) + 1) * timeout_s + _SLOWNESS * asked_s, progress)
        return [self._ended(i, error) for i in range(len(jobs))]

    def _plan(self, jobs: Sequence[Job], seed: int) -> BenchPlan:
        order, numbers = random.Random(seed), range(len(jobs))
        return BenchPlan(
            measurements=tuple(PlannedMeasurement(request=job.request, bundle=str(i), inputs=f"{i}.inputs") for i, job in enumerate(jobs)),
            orders=tuple(tuple(order.sample(numbers, len(jobs))) for _ in range(_ORDERS)),
            block_seconds=BLOCK_SECONDS, block_samples=BLOCK_SAMPLES, cool_seconds=COOL_SECONDS,
        )  # fmt: skip

    def _run(self, timeout_s: float, limit_s: float, progress: Progress) -> MobileClipError:
        """Run the app to its end; the error of every measurement that will have no answer."""
        lines: queue.Queue[str | None] = queue.Queue(MAX_UNREAD_LINES)
        command = self.command(f"{self._folder}/{PLAN}")
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
            )
        except OSError as e:
            return DeviceError(f"{self.key}: {command[0]} does not start ({e.strerror}); install it again")
        assert process.stdout is not None
        stdout, last = process.stdout, list[str]()

        def read() -> None:
            while line := stdout.readline(_MAX_LINE_CHARS):
                lines.put(line)
            lines.put(None)

        threading.Thread(target=read, daemon=True).start()
        began_s = heard_s = time.monotonic()
        try:
            while (line := lines.get(timeout=timeout_s)) is not None:
                if told := _told(line):  # a system's chatter is no sign of life
                    heard_s = time.monotonic()
                elif time.monotonic() - heard_s > timeout_s:
                    raise queue.Empty
                if time.monotonic() - began_s > limit_s:
                    return DeviceError(f"{self.key}: the app has not come to an end within {limit_s:g} s; it was stopped")
                if told.get("done"):
                    return DeviceError(f"{self.key}: the app says that it is done, but left no answer")
                if isinstance(text := told.get("progress"), str):
                    progress(text[:200])
                last = [*last, line.strip()][-20:]
            return DeviceError(f"{self.key}: {self.why_it_ended(process.wait(10), [text for text in last if text])}")
        except queue.Empty:
            return DeviceError(f"{self.key}: the app has not been heard of for {timeout_s:g} s; it was stopped")
        except KeyboardInterrupt:  # what it has written so far is fetched
            return Interrupted(f"{self.key}: interrupted")
        except subprocess.TimeoutExpired:
            return DeviceError(f"{self.key}: the connection to the app broke off")
        finally:
            process.kill()
            process.wait()

    def _ended(self, number: int, error: MobileClipError) -> Ended:
        try:
            content = self.get(f"{self._folder}/answer-{number}.json")
        except MobileClipError as e:
            return Ended(None, e)
        if content is None:
            return Ended(None, error)
        try:
            if len(content) > MAX_ANSWER_BYTES:
                raise ValueError("it is too large")
            answer = BenchAnswer.model_validate_json(content)
        except (ValidationError, ValueError) as e:
            return Ended(None, DeviceError(f"{self.key}: answer {number} of the app is unusable ({one_line(e)})"))
        samples = answer.samples
        if samples is not None:
            samples = samples.model_copy(update={"device": samples.device.model_copy(update={"unit": unit(self.serial)})})
        return Ended(samples, DeviceError(f"{self.key}: {one_line(Exception(answer.error))}") if answer.error else None)


def _copy(source: Path, target: Path) -> None:
    """A file or a folder, without its bytes where that is possible."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, copy_function=_link)
    else:
        _link(source, target)


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy(source, target)


def _told(line: str) -> dict[str, object]:
    found = _MARK.search(line)
    try:
        told = json.loads(found[1]) if found else None
    except (ValueError, RecursionError):
        told = None
    return told if isinstance(told, dict) else {}
