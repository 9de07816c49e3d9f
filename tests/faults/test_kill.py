"""kill -9 during an export: under the bundle's name there is nothing or a whole bundle, and the next run cleans up."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import forge
import pytest
from forkserver import EXPORT, command, command_in_full

from mobileclip.export.bundle import Bundle
from mobileclip.export.publishing import publishing
from mobileclip.files import STAGING_PREFIX, locked

STEPS = {
    "open",
    "os.rename",
    "os.mkdir",
    "os.remove",
    "os.rmdir",
    "os.chmod",
    "os.scandir",
    "os.listdir",
    "tempfile.mkdtemp",
    "shutil.rmtree",
}
SEED = 20260


def publish(source: Path, final: Path, last_step: int | None) -> int:
    """Publish a copy of a bundle, as an export does; die before the given step of the file system's, if there are so many."""
    steps = 0

    def count(event: str, _: object) -> None:
        nonlocal steps
        if event in STEPS:
            steps += 1
            if steps == last_step:
                os.kill(os.getpid(), signal.SIGKILL)

    if last_step:
        sys.addaudithook(count)
    with locked(final):
        with publishing(final) as staging:
            shutil.copytree(source, staging, dirs_exist_ok=True)
    return 0


def siblings(final: Path) -> set[str]:
    """What lies beside the bundle, but for the lock, which stays on purpose."""
    return {p.name for p in final.parent.iterdir()} - {final.name, f".{final.name}.lock"}


def whole(folder: Path) -> bool:
    """Whether the folder is there; if it is, it must be a whole bundle."""
    if folder.exists():
        Bundle.open(folder)
    return folder.exists()


@pytest.mark.parametrize("before", ["nothing", "an older bundle", "an older bundle, killed between the two renames"])
def test_kill_before_each_step_of_publishing(before, server, nano_bundle, tmp_path):
    older, newer = (forge.small(nano_bundle, tmp_path / name, name.encode()) for name in ("older", "newer"))
    killed = 0
    for step in range(1, 1000):
        final = tmp_path / str(step) / "bundle"
        previous = final.with_name(f"{STAGING_PREFIX}bundle-previous")
        final.parent.mkdir()
        if before != "nothing":
            shutil.copytree(older, previous if "killed" in before else final)
        code = server.run(tmp_path / "err", publish, newer, final, step)
        assert code in (0, -signal.SIGKILL), (tmp_path / "err").read_text()
        if code == 0:
            assert whole(final)
            assert not siblings(final)
            break
        killed += 1
        assert whole(final) or before == "nothing" or whole(previous), f"step {step}: the older bundle is lost"
        assert publish(newer, final, None) == 0
        assert Bundle.open(final).manifest == Bundle.open(newer).manifest
        assert not siblings(final), f"step {step}"
        shutil.rmtree(final.parent)
    assert killed > 20, "the steps were not seen"


def kill_at_random(server, nano_bundle: Path, folder: Path, moments: int, run: Callable[..., int]) -> None:
    """Kill exports at random moments, in turns where nothing and where an older bundle is; then let each finish."""
    draw = random.Random(SEED)
    fresh, replaced = folder / "fresh" / "bundle", folder / "replaced" / "bundle"
    fresh.parent.mkdir()
    shutil.copytree(nano_bundle, replaced)
    started = time.monotonic()
    assert server.run(folder / "err", run, *EXPORT, "-o", folder / "timed") == 0
    duration_s = time.monotonic() - started
    killed = 0
    for i in range(moments):
        final = (fresh, replaced)[i % 2]
        pid = server.start(folder / "err", run, *EXPORT, "--again", "-o", final)
        time.sleep(draw.uniform(0, duration_s))
        os.kill(pid, signal.SIGKILL)
        killed += server.wait(pid) == -signal.SIGKILL
        previous = final.with_name(f"{STAGING_PREFIX}bundle-previous")
        assert whole(final) or final == fresh or whole(previous)
        assert len(siblings(final)) <= 2, "what earlier runs left was not cleaned up"
    assert killed > moments / 2
    for final in (fresh, replaced):
        assert server.run(folder / "err", run, *EXPORT, "--again", "-o", final) == 0, (folder / "err").read_text()
        assert [a.path for a in Bundle.open(final).manifest.artifacts] == ["image.onnx"]
        assert not siblings(final)


def test_kill_at_10_random_moments_of_an_export(server, nano_bundle, tmp_path):
    kill_at_random(server, nano_bundle, tmp_path, 10, command)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kill_at_50_random_moments_of_an_export(server, nano_bundle, tmp_path):
    kill_at_random(server, nano_bundle, tmp_path, 50, command_in_full)


def test_another_bundle_whose_name_begins_alike_is_left_alone(server, nano_bundle, tmp_path):
    """Cleaning up for `a` must not remove what an export of `a-b` is writing."""
    bundle = forge.small(nano_bundle, tmp_path / "small", b"x")
    with publishing(tmp_path / "a-b") as staging:
        assert publish(bundle, tmp_path / "a", None) == 0
        shutil.copytree(bundle, staging, dirs_exist_ok=True)
    assert whole(tmp_path / "a")
    assert whole(tmp_path / "a-b")
    odd = tmp_path / "b[1]*"
    assert server.run(tmp_path / "err", publish, bundle, odd, 10) == -signal.SIGKILL
    assert publish(bundle, odd, None) == 0
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(STAGING_PREFIX)]


def test_eight_exports_to_one_folder_at_once(server, tmp_path):
    final = tmp_path / "at once" / "bundle"
    errs = [tmp_path / f"err{i}" for i in range(8)]
    pids = [server.start(err, command, *EXPORT, "-o", final) for err in errs]
    assert [server.wait(pid) for pid in pids] == [0] * 8, [err.read_text() for err in errs]
    assert whole(final)
    assert not siblings(final)
    written = ["exporting" in err.read_text() for err in errs]
    assert sum(written) == 1, "one exports, the others find the bundle up to date"
    assert sum("is up to date" in err.read_text() for err in errs) == 7
