"""Atomic writes, hashing, locks and the check for optional packages: the only place that touches the file system's corners."""

from __future__ import annotations

import contextlib
import difflib
import errno
import hashlib
import importlib.util
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mobileclip.errors import InputError, MissingToolError, MobileClipError, StorageError

STAGING_PREFIX = ".mobileclip-tmp-"
_JSON_LINE_BYTES = 1 << 24


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with reading(path), path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON that is the same for equal values: sorted keys, no spaces. NaN and infinity are refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the operating system's errors on `path` into one clear line."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the path") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder, a file is needed") from None
    except OSError as e:
        raise StorageError(f"{path}: cannot be read ({_reason(e)})") from e


def json_lines(path: Path) -> Iterator[tuple[dict[str, Any], bytes, int]]:
    """The objects of a file with one a line, each with its bytes and number. Blank lines are passed over, a bare `NaN` is taken.

    Bytes that are no UTF-8 become halves of surrogate pairs, which a line can hold as escapes anyhow.

    Raises:
        InputError: No such file, or a line is no JSON object.
        StorageError: The file cannot be read.
    """
    with reading(path), path.open("rb") as file:
        number = 0
        while line := file.readline(_JSON_LINE_BYTES):
            number += 1
            if not (line := line.strip()):
                continue
            try:
                row = json.loads(line.decode("utf-8-sig", errors="surrogateescape"))
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise InputError(f"{path}:{number}: is not a JSON object; one a line is needed")
            yield row, line, number


_SPACE, _PLACE = "free some space and run again", "choose a folder that can be written with -o"
_WRITE_HINTS = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: _SPACE,
    errno.EROFS: _PLACE,
    errno.EACCES: _PLACE,
    errno.EPERM: _PLACE,
    errno.ENOTDIR: _PLACE,
    errno.EISDIR: _PLACE,
    errno.EEXIST: _PLACE,
    errno.ENAMETOOLONG: "choose a shorter name with -o",
    errno.EIO: "the disk has failed; nothing was published",
    errno.ENOTEMPTY: "run it again",
}


_NOT_ABOUT_WRITING = {errno.EPIPE, errno.ECONNRESET, errno.ECONNREFUSED, errno.ETIMEDOUT, errno.ENOEXEC}
"""A closed pipe, a lost connection: errors that can happen in the midst of writing and are told as they are."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's errors while writing to `path` into one clear line.

    Libraries written in Rust, like safetensors, have error types of their own, whose messages end in `(os error N)`.
    """
    try:
        yield
    except Exception as e:
        number = e.errno if isinstance(e, OSError) else _number_in(str(e))
        if isinstance(e, MobileClipError) or not (number or isinstance(e, OSError)):
            raise
        if number in _NOT_ABOUT_WRITING:
            raise
        hint = _WRITE_HINTS.get(number or 0, "nothing was published")
        reason = os.strerror(number).lower() if number else str(e)
        raise StorageError(f"{path}: cannot be written ({reason}); {hint}") from e


def _number_in(message: str) -> int | None:
    found = re.search(r"\(os error (\d+)\)", message)
    return int(found[1]) if found else None


def _reason(e: OSError) -> str:
    return os.strerror(e.errno).lower() if e.errno else str(e)


@contextlib.contextmanager
def staged_file(target: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `target`; on success fsync and rename it over `target`, else remove it.

    Raises:
        StorageError: The folder cannot be written or the disk is full; `target` is then as it was.
    """
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        fd, name = tempfile.mkstemp(prefix=STAGING_PREFIX, suffix=target.suffix, dir=target.parent)
        os.close(fd)
        tmp = Path(name)
        try:
            yield tmp
            tmp.chmod(0o666 & ~_umask())
            fsync(tmp)
            tmp.replace(target)
            fsync(target.parent)
        finally:
            tmp.unlink(missing_ok=True)


def write_bytes(target: Path, data: bytes) -> None:
    """Write `data` to `target` atomically."""
    with staged_file(target) as tmp:
        tmp.write_bytes(data)


def fsync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


_locks: set[int] = set()
"""Open lock files of this process."""


def _forget_locks() -> None:
    """In a forked child, which would keep the parent's locks when the parent dies. To close a lock's copy does not free it."""
    while _locks:
        os.close(_locks.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock named after `path`; the system frees it when the process dies, also where children outlive it.

    The lock file `.NAME.lock` stays behind on purpose: removing it would let two waiters hold two different locks.

    Args:
        path: What is locked.
        wait: For any other process that holds it.

    Raises:
        InputError: Another process holds it and `wait` is false.
        StorageError: The folder cannot be written, or its file system has no locks.
    """
    import fcntl

    lock = path.parent / f".{path.name}.lock"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    _locks.add(fd)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{path}: another process works there; wait for it, or choose another folder with -o") from None
        except OSError as e:  # some network file systems have none
            raise StorageError(f"{path}: cannot be locked ({_reason(e)}); choose a folder on a file system that has locks") from e
        yield
    finally:
        if fd in _locks:  # not in a forked child
            _locks.remove(fd)
            os.close(fd)


def remove_stale(*folders: Path) -> None:
    """Remove what killed processes left half written; the caller holds the lock of the folders."""
    for folder in folders:
        for stale in folder.glob(f"{STAGING_PREFIX}*"):
            remove_tree(stale)


def remove_tree(path: Path) -> None:
    """Remove a file or folder if it is there; a link is removed, never followed."""
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    elif path.exists():
        shutil.rmtree(path)


def require(package: str, extra: str, needed_for: str) -> None:
    """Check that an optional package is installed.

    Raises:
        MissingToolError: Names the package and the extra to install.
    """
    if importlib.util.find_spec(package) is None:
        raise MissingToolError(f"{needed_for} needs the package {package}; install it with: pip install 'mobileclip-toolkit[{extra}]'")


def did_you_mean(kind: str, got: str, known: Iterable[str]) -> InputError:
    """The error for an unknown name, with the nearest known one."""
    known = list(known)
    near = difflib.get_close_matches(got.lower(), [k.lower() for k in known], n=1, cutoff=0.6)
    hint = next((f"did you mean {k!r}? " for k in known if near and k.lower() == near[0]), "")
    return InputError(f"unknown {kind} {got!r}; {hint}known: {', '.join(known)}")


def cache_folder() -> Path:
    """The user's folder for what can be made or fetched again: below `XDG_CACHE_HOME`, else `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mobileclip"
