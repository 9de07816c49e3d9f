"""Full and read-only disks, and Ctrl-C, during an export: one line, the right exit code, an older bundle untouched, nothing left over."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from forkserver import EXPORT, command, command_in_full

from mobileclip.export.bundle import Bundle

MB = 1 << 20


def mount(folder: Path, *options: str) -> bool:
    """Mount a small file system of its own, where the system lets us."""
    done = subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)], capture_output=True, check=False)
    return done.returncode == 0


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A folder that can be a file system of its own, which is taken away at the end."""
    folder = tmp_path / "disk"
    folder.mkdir()
    yield folder
    if folder.is_mount():
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def limited(size_bytes: int, *arguments: object) -> int:
    """An export that may write no file larger than this."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, size_bytes))
    return command(*arguments)


def one_error(err: Path) -> str:
    """The last line of standard error, the only error in it."""
    text = err.read_text()
    assert "Traceback" not in text
    *progress, last = text.splitlines()
    assert last.startswith("error: ")
    assert not any("rror" in line for line in progress), text
    return last


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# The export writes 0.2 MB of reference outputs, 1.7 MB of tokenizer and 8.5 MB of image tower, in this order.
@pytest.mark.parametrize("free_mb", [0.05, 1, 4])
def test_full_disk(free_mb, server, nano_bundle, disk, tmp_path):
    older = content(nano_bundle)
    size = sum(len(data) + 8192 for data in older.values()) + 3 * 8192
    if mount(disk, "-o", f"size={size + int(free_mb * MB)}"):
        run, limit, reason = command, (), "no space left on device"
    else:
        run, limit, reason = limited, (int(free_mb * MB),), "file too large"
    final = disk / "bundle"
    shutil.copytree(nano_bundle, final)
    assert server.run(tmp_path / "err", run, *limit, *EXPORT, "-o", final) == 5, (tmp_path / "err").read_text()
    line = one_error(tmp_path / "err")
    assert reason in line
    assert line.startswith(f"error: {final}")
    assert content(final) == older
    assert {p.name for p in disk.iterdir()} == {"bundle", ".bundle.lock"}
    Bundle.open(final)


@pytest.mark.parametrize("there", [False, True])
def test_read_only_disk(there, server, nano_bundle, disk, tmp_path):
    final, is_own = disk / "bundle", mount(disk)
    if not is_own and os.geteuid() == 0:
        pytest.skip("root may not mount here, and to root no folder is read-only")
    if there:
        shutil.copytree(nano_bundle, final)
    before = content(disk)
    if is_own:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    else:
        disk.chmod(0o555)
    try:
        assert server.run(tmp_path / "err", command, *EXPORT, "-o", final) == 5
    finally:
        if not is_own:
            disk.chmod(0o755)
    line = one_error(tmp_path / "err")
    assert "read-only file system" in line or "permission denied" in line
    assert "choose a folder that can be written with -o" in line
    assert content(disk) == before


INTERRUPTED = """
import os, signal, sys, time
sys.argv[0] = "mobileclip"
waiting = {sys.argv.pop(1)}
def interrupt(event, details):
    if event == "import" and details[0] in waiting:
        waiting.clear()
        print(time.time(), flush=True)
        os.kill(os.getpid(), signal.SIGINT)
from mobileclip.cli.main import main
sys.addaudithook(interrupt)
main()
"""


@pytest.mark.parametrize("module", ["typer", "mobileclip.cli.output", "pydantic", "numpy", "torch", "torch.nn", "onnx"])
def test_ctrl_c_while_modules_are_loaded(module, tmp_path):
    argv = [sys.executable, "-c", INTERRUPTED, module, *EXPORT, "-o", tmp_path / "bundle"]
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    took_s = time.time() - float(ran.stdout)
    assert (ran.returncode, ran.stderr.splitlines()[-1:]) == (130, ["error: interrupted"])
    assert "Traceback" not in ran.stderr
    assert took_s < 5
    assert {p.name for p in tmp_path.iterdir()} <= {".bundle.lock"}


MOMENTS = [
    ("loading", 0.05, command), ("running", 0, command), ("running", 0.2, command), ("exporting", 0, command),
    ("exporting", 1, command_in_full), ("verifying", 0, command), ("verifying", 0.05, command),
]  # fmt: skip


@pytest.mark.parametrize(("step", "delay_s", "run"), MOMENTS)
def test_ctrl_c_during_the_export(step, delay_s, run, server, tmp_path):
    final, err = tmp_path / "out" / "bundle", tmp_path / "err"
    pid = server.start(err, run, *EXPORT, "-o", final)
    until = time.monotonic() + 120
    while not (err.exists() and step in err.read_text()):
        assert time.monotonic() < until
        time.sleep(0.005)
    time.sleep(delay_s)
    os.kill(pid, signal.SIGINT)
    sent = time.monotonic()
    assert server.wait(pid) == 130, err.read_text()
    assert time.monotonic() - sent < 30
    assert one_error(err) == "error: interrupted"
    assert {p.name for p in tmp_path.glob("out/*")} <= {".bundle.lock"}
