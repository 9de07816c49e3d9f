"""What the tests of the page share."""

from __future__ import annotations

import threading
from pathlib import Path

from mobileclip.benchmark.bench import bench
from mobileclip.benchmark.devices import web
from mobileclip.benchmark.protocol import BenchRun
from mobileclip.errors import MobileClipError

QUICK = {"seconds": 0.05, "samples": 40}


class Call(threading.Thread):
    """`bench` on the web device in the background, as the browser has to stay in the test's own thread."""

    def __init__(self, bundle: Path, device: web.Web | None = None, **options: object) -> None:
        super().__init__(daemon=True)
        self._bundle, self._device, self._options = bundle, device or web.Web(), options
        self._shown = threading.Event()
        self._address = ""
        self.run_made: BenchRun | None = None
        self.error: MobileClipError | None = None
        self.start()

    def run(self) -> None:
        self._device.show = self._show
        try:
            self.run_made = bench([self._bundle], device=self._device, **(QUICK | self._options))
        except MobileClipError as e:
            self.error = e

    def _show(self, address: str) -> None:
        self._address = address
        self._shown.set()

    def address(self) -> str:
        assert self._shown.wait(60)
        return self._address

    def result(self) -> BenchRun:
        self.join(120)
        assert self.run_made is not None, self.error
        return self.run_made


def heading(page, name: str):
    return page.get_by_role("heading", name=name, exact=True)


SIZES = {"phone": {"width": 390, "height": 844}, "desk": {"width": 1280, "height": 800}}
