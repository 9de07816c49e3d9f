"""What the benchmark asks of every device."""

from __future__ import annotations

import contextlib
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from mobileclip.benchmark.devices.rounds import Ended, Job, Link, Moment, Progress, Rounds
from mobileclip.benchmark.protocol import BenchResult, DeviceInfo, DeviceState
from mobileclip.errors import DeviceError, InputError
from mobileclip.export.bundle import ArtifactInfo, Target
from mobileclip.files import cache_folder, locked


class Device(ABC):
    """Something that can be reached and measures.

    Attributes:
        kind: How it is reached, `host`, `android-shell`, `android-app`, `ios-devicectl`, `ios-pymobiledevice3` or `web`.
        key: What names it and nothing else: a serial number, a udid, `host`, `web`.
        name: What its owner or maker calls it.
        aliases: What else `--device` may call it.
        targets: What the default model is exported for; the one that fits it best first.
    """

    kind: str
    key: str
    name: str
    aliases: tuple[str, ...] = ()
    targets: tuple[Target, ...]

    @abstractmethod
    def lacks(self, artifact: ArtifactInfo) -> str | None:
        """Why it cannot time an artifact; None if it can."""

    @abstractmethod
    def providers(self, artifact: ArtifactInfo) -> tuple[str, ...]:
        """What can run an artifact on it, see `BenchRequest.provider`; the default first."""

    @contextlib.contextmanager
    def prepared(self, jobs: Sequence[Job], progress: Progress) -> Iterator[None]:
        """Bring everything to the device that the jobs need, and take it away at the end.

        Raises:
            DeviceError: It cannot be brought there.
        """
        yield

    @abstractmethod
    def measure(self, jobs: Sequence[Job], seed: int, timeout_s: float, progress: Progress) -> list[Ended]:
        """Measure all jobs, for which it has been prepared; those of mode `burst` interleaved.

        Args:
            jobs: What to measure.
            seed: Of the order of the turns.
            timeout_s: For one answer.
            progress: Told what is being done.

        Returns:
            One entry a job; one that fails leaves the others alone.

        """

    def finished(self, results: Sequence[BenchResult]) -> None:  # noqa: B027 (most cannot)
        """Show the results on the device, if it can."""


@contextlib.contextmanager
def alone(key: str) -> Iterator[None]:
    """Hold a device, however it is reached, against this user's other processes.

    Raises:
        DeviceError: One of them measures on it.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(cache_folder() / f"device-{re.sub(r'[^A-Za-z0-9]', '-', key)}", wait=False))
        except InputError:
            raise DeviceError(f"{key}: another process measures on it; wait for it") from None
        yield


class Linked(Device):
    """A device that answers commands one by one."""

    @abstractmethod
    def info(self) -> DeviceInfo:
        """What it is.

        Raises:
            DeviceError: It does not answer.
        """

    @abstractmethod
    def state(self, moment: Moment) -> DeviceState:
        """How it feels.

        Raises:
            DeviceError: It does not answer.
        """

    @abstractmethod
    def link(self, job: Job, number: int, timeout_s: float) -> Link:
        """Start one measurement, the job of that number for which the device has been prepared.

        Raises:
            DeviceError: It does not start.
        """

    def measure(self, jobs: Sequence[Job], seed: int, timeout_s: float, progress: Progress) -> list[Ended]:  # noqa: D102 (see Device)
        with contextlib.ExitStack() as stack:
            links = []
            for number, job in enumerate(jobs):
                links.append(self.link(job, number, timeout_s))
                stack.callback(links[-1].close)
            return Rounds(links, self.info(), self.state, random.Random(seed), progress).run()


def plain(name: str) -> str:
    """A name as people type it: its letters and digits alone, of any script, in lower case."""
    return re.sub(r"[\W_]", "", name.lower())
