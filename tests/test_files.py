"""Atomic writing, locks and the messages of the file system's errors."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobileclip.errors import BundleError, CheckpointError, GateError, InputError, MissingToolError, MobileClipError, StorageError
from mobileclip.files import (
    STAGING_PREFIX,
    canonical_json,
    did_you_mean,
    locked,
    reading,
    remove_tree,
    require,
    sha256_file,
    staged_file,
    write_bytes,
    writing,
)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_exit_codes():
    codes = {InputError: 2, CheckpointError: 2, BundleError: 2, GateError: 3, MissingToolError: 4, StorageError: 5}
    for error, code in codes.items():
        assert error("x").exit_code == code
        assert issubclass(error, MobileClipError)


@pytest.mark.parametrize("size", [0, 1, 1 << 20])
def test_hash(tmp_path, size):
    data = os.urandom(size)
    (tmp_path / "f").write_bytes(data)
    assert sha256_file(tmp_path / "f") == sha256(data).hexdigest()


def test_hash_of_nothing_and_of_a_folder(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        sha256_file(tmp_path / "none")
    with pytest.raises(InputError, match="is a folder"):
        sha256_file(tmp_path)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), values, max_size=5))
def test_canonical_json_does_not_depend_on_the_order_of_keys(value):
    import json

    try:
        data = canonical_json(value)
    except UnicodeEncodeError:  # lone surrogates are not text
        return
    assert data == canonical_json(dict(reversed(value.items())))
    assert json.loads(data) == value
    assert b"\n" not in data


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [float("-inf")]}])
def test_canonical_json_refuses_what_json_cannot_hold(value):
    with pytest.raises(ValueError):
        canonical_json(value)


def test_staged_file_replaces_at_once(tmp_path):
    target = tmp_path / "new" / "f.bin"
    with staged_file(target) as tmp:
        assert tmp.parent == target.parent
        assert tmp.name.startswith(STAGING_PREFIX)
        assert tmp.suffix == target.suffix
        tmp.write_bytes(b"1")
        assert not target.exists()
    assert target.read_bytes() == b"1"
    write_bytes(target, b"2")
    assert target.read_bytes() == b"2"
    assert names(target.parent) == ["f.bin"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_staged_file_is_removed_when_the_body_fails(tmp_path, error):
    target = tmp_path / "f"
    target.write_bytes(b"old")

    def stop_half_way() -> None:
        with staged_file(target) as tmp:
            tmp.write_bytes(b"half")
            raise error

    with pytest.raises(error):
        stop_half_way()
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["f"]


def test_staged_file_has_the_mode_of_an_ordinary_file(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    write_bytes(tmp_path / "staged", b"")
    assert (tmp_path / "staged").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_writing_over_a_link_leaves_what_it_points_to(tmp_path):
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    write_bytes(tmp_path / "link", b"new")
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert (tmp_path / "link").read_bytes() == b"new"


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for target in (tmp_path / "file" / "x", tmp_path / "folder", tmp_path / ("n" * 300), Path("/proc/x")):
        with pytest.raises(StorageError, match="cannot be written") as e:
            write_bytes(target, b"x")
        assert "\n" not in str(e.value)
    assert names(tmp_path) == ["file", "folder"]


def test_full_device():
    full = Path("/dev/full")
    with pytest.raises(StorageError, match=r"no space left on device\); free some space and run again"):
        with writing(full), full.open("wb", buffering=0) as f:
            f.write(b"x")


def test_reading_errors(tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(StorageError, match=r"cannot be read \(too many levels of symbolic links\)"), reading(loop):
        loop.read_bytes()


def test_lock_excludes_another_process_and_dies_with_it(tmp_path):
    target, log = tmp_path / "bundle", tmp_path / "log"
    script = f"""
import os, time
from pathlib import Path
from mobileclip.files import locked
with locked(Path({str(target)!r})):
    child = os.fork()  # outlives it, as workers do for a while
    if child:
        Path({str(log)!r}).write_text(str(child))
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", script])
    try:
        while not log.exists():
            assert process.poll() is None
            time.sleep(0.02)
        waiter = subprocess.Popen(
            [sys.executable, "-c", script.partition("    child")[0] + "    print('in')"], stdout=subprocess.PIPE, text=True
        )
        with pytest.raises(subprocess.TimeoutExpired):
            waiter.communicate(timeout=1)
    finally:
        process.kill()
        process.wait()
    assert waiter.communicate(timeout=30)[0] == "in\n"
    os.kill(int(log.read_text()), signal.SIGKILL)
    with locked(target):
        assert names(tmp_path) == [".bundle.lock", "log"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks(tmp_path, monkeypatch, number):
    tried = []

    def flock(fd, how):
        tried.append(fd)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(StorageError, match=r"x: cannot be locked \(.+\); choose a folder on a file system that has locks"):
        with locked(tmp_path / "x"):
            pytest.fail("is not locked")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(*tried)


def test_remove_tree(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "f").write_bytes(b"")
    link, folder, file = tmp_path / "link", tmp_path / "folder", tmp_path / "file"
    link.symlink_to(outside)
    folder.mkdir()
    (folder / "inner").symlink_to(outside)
    file.write_bytes(b"")
    for path in (link, folder, file, tmp_path / "none"):
        remove_tree(path)
    assert names(tmp_path) == ["outside"]
    assert names(outside) == ["f"]


def test_require():
    require("torch", "x", "this")
    with pytest.raises(MissingToolError) as e:
        require("no_such_package", "coreml", "exporting to CoreML")
    assert (
        str(e.value) == "exporting to CoreML needs the package no_such_package; install it with: pip install 'mobileclip-toolkit[coreml]'"
    )
    assert e.value.exit_code == 4


def test_did_you_mean():
    assert (
        str(did_you_mean("target", "coreML2", ["onnx", "CoreML"])) == "unknown target 'coreML2'; did you mean 'CoreML'? known: onnx, CoreML"
    )
    assert str(did_you_mean("target", "zzz", ["onnx"])) == "unknown target 'zzz'; known: onnx"
