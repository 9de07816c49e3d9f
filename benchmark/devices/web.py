"""Any browser as a device: a page that this machine serves, runs the bundle with onnxruntime-web and gives raw samples back.

The page hands each command (see `rounds`) to a worker of its own, one a measurement. Served are the page, the runtime and the files of this
call's measurements and of their first bundle with both towers: when all is measured the page fetches it, for a person to try there.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from mobileclip.benchmark.devices import setup, web_server
from mobileclip.benchmark.devices.device import Linked
from mobileclip.benchmark.devices.rounds import Job, Link, Moment, Progress
from mobileclip.benchmark.devices.web_server import Page
from mobileclip.benchmark.protocol import BenchResult, DeviceInfo, DeviceState
from mobileclip.errors import DeviceError, one_line
from mobileclip.export.bundle import MANIFEST, TOWERS, ArtifactInfo, read_manifest

OPEN_SECONDS = 300.0
"""How long a browser may take to open the page."""
KEEP_SECONDS = 60.0
"""How long the page may take to show the results and to fetch what is to be tried."""


def page_files() -> dict[str, bytes]:
    """The page's own files, each by its name below the page."""
    return dict(_files_below(files("mobileclip.benchmark.devices") / "web", ""))


def _files_below(folder: Traversable, prefix: str) -> Iterator[tuple[str, bytes]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _files_below(entry, f"{prefix}{entry.name}/")
        elif Path(entry.name).suffix in web_server.TYPES:
            yield prefix + entry.name, entry.read_bytes()


def bundle_files(bundle: Path) -> dict[str, Path]:
    """What a browser needs to run a bundle, each by its name below the page; nothing if it cannot."""
    manifest = read_manifest(bundle)
    towers = {a.tower: a.path for a in manifest.artifacts if a.target == "onnx" and len(a.files) == 1}
    if len(towers) < len(TOWERS):
        return {}
    return {f"bundle/{name}": bundle / name for name in (MANIFEST, manifest.tokenizer.file.path, manifest.golden.path, *towers.values())}


class WebLink(Link):
    """A measurement on the page."""

    def __init__(self, job: Job, page: Page, number: int, timeout_s: float) -> None:
        super().__init__(job, f"files/{number}/", f"files/{number}/inputs")
        self._page, self._number, self._timeout_s = page, number, timeout_s

    def answer(self, command: Mapping[str, Any]) -> str:  # noqa: D102 (see Link)
        try:
            return self._page.ask(self._number, command, self._timeout_s)
        except DeviceError as e:
            raise self.error(str(e)) from None

    def close(self) -> None:  # noqa: D102
        if not (self._page.lost or self._page.busy):  # one in the middle of a run would be waited for
            with contextlib.suppress(DeviceError):
                self._page.ask(self._number, {"do": "close"}, 5)


class Web(Linked):
    """Whatever browser opens the page.

    Attributes:
        lan: Serve to the network instead of to this machine alone.
        show: Told the address of the page; by default it is part of the progress.
    """

    kind, key, name = "web", "web", "any browser"
    targets = ("onnx",)
    lan = False
    show: Callable[[str], None] | None = None
    _page: Page | None = None
    _tried: Mapping[str, object] | None = None
    """How the bundle was measured that the page may keep."""

    def lacks(self, artifact: ArtifactInfo) -> str | None:  # noqa: D102 (see Device)
        if artifact.target != "onnx":
            return "a browser runs ONNX only"
        return "a browser needs the whole model in one file" if len(artifact.files) > 1 else None

    def providers(self, artifact: ArtifactInfo) -> tuple[str, ...]:  # noqa: D102
        return ("wasm", "webgpu")

    @contextlib.contextmanager
    def prepared(self, jobs: Sequence[Job], progress: Progress) -> Iterator[None]:  # noqa: D102
        paths = {f"files/{i}/{job.request.artifact}": job.bundle / job.request.artifact for i, job in enumerate(jobs)}
        paths |= {f"files/{i}/inputs": job.inputs for i, job in enumerate(jobs)}
        kept = next(((job.request, found) for job in jobs if (found := bundle_files(job.bundle))), None)
        self._tried = {"provider": kept[0].provider, "threads": kept[0].threads} if kept else None
        page = Page(page_files() | setup.web(progress), paths | (kept[1] if kept else {}))
        with (
            web_server.serving(page, "0.0.0.0" if self.lan else "127.0.0.1") as port,
            self.reachable(port, f"/{page.token}/", progress),
        ):
            self._page = page
            if not page.opened.wait(OPEN_SECONDS):
                raise DeviceError(f"no browser opened the page within {OPEN_SECONDS / 60:g} minutes")
            progress("the page was opened")
            yield

    @contextlib.contextmanager
    def reachable(self, port: int, path: str, progress: Progress) -> Iterator[None]:
        """Have a browser open the page at that port of this machine."""
        address = f"http://{web_server.lan_address() if self.lan else 'localhost'}:{port}{path}"
        (self.show or (lambda a: progress(f"open {a}")))(address)
        yield

    def link(self, job: Job, number: int, timeout_s: float) -> WebLink:  # noqa: D102
        assert self._page is not None
        return WebLink(job, self._page, number, timeout_s)

    def info(self) -> DeviceInfo:  # noqa: D102
        told = self._ask_page("info")
        try:
            return DeviceInfo.model_validate(told | {"name": "web"})  # no page may pass for another device
        except ValueError as e:
            raise DeviceError(f"the page tells nonsense about its device ({one_line(e)})") from None

    def state(self, moment: Moment) -> DeviceState:  # noqa: D102
        told = self._ask_page("state")
        try:
            return DeviceState.model_validate(told | {"moment": moment})
        except ValueError as e:
            raise DeviceError(f"the page tells nonsense about its state ({one_line(e)})") from None

    def finished(self, results: Sequence[BenchResult]) -> None:  # noqa: D102
        rows = [
            {
                "label": r.label, "provider": r.samples.provider, "p50_ms": r.summary.p50_ms, "p90_ms": r.summary.p90_ms, "n": r.summary.n,
                "cosine": r.parity.cosine_min if r.parity else None, "valid": r.valid, "reasons": r.reasons,
                "latency_ms": r.samples.latency_ms[:2000],
            }
            for r in results
        ]  # fmt: skip
        with contextlib.suppress(DeviceError, KeyboardInterrupt):  # the numbers are here already
            self._ask_page("show", KEEP_SECONDS, results=rows, model=self._tried)

    def _ask_page(self, do: str, timeout_s: float = 20.0, **values: Any) -> dict[str, Any]:
        assert self._page is not None
        try:
            told = json.loads(self._page.ask(None, {"do": do, **values}, timeout_s))
        except (ValueError, RecursionError):
            told = None
        if not isinstance(told, dict):
            raise DeviceError(f"the page's answer to '{do}' is no JSON object")
        return told
