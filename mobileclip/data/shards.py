"""Shards: tar files whose members belong together by name, the layout that webdataset made common.

`<key>.<extension>` with the extension behind the first dot of the base name; the members of a sample stand together.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mobileclip.data.samples import BadSample, Reason, Sample
from mobileclip.errors import InputError
from mobileclip.files import reading, staged_file

MAX_MEMBER_BYTES = 256 << 20
MAX_KEY_BYTES = 80
"""A tar header holds 100 bytes, and extensions need some."""
MAX_MEMBERS = 64
"""In one sample; published ones have at most nine."""


class DamagedShard(InputError):
    """A file that should be a shard and is none: counted as one bad sample where many shards are read."""


@dataclass(frozen=True, slots=True)
class Part:
    """Where one member lies: `size` bytes of `path` from `offset`; or `content`, where there is no file."""

    extension: str
    path: str = ""
    offset: int = 0
    size: int = 0
    content: bytes | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One sample, not yet read; `bad` tells why it never will be."""

    key: str
    parts: tuple[Part, ...]
    bad: Reason | None = None
    detail: str = ""
    """What is wrong with it, where that is more than the key."""


def index_shard(path: Path) -> list[Entry]:
    """All samples of a shard in their order, from the headers alone.

    A sample with a member that is too large, no plain file or there twice, and a key that was there before, are listed as bad; so is the
    rest of a shard that is cut off (one entry, as nobody can tell how many samples it had).

    Raises:
        DamagedShard: Not a tar file at all.
        InputError: No such file.
    """
    entries: list[Entry] = []
    seen: set[str] = set()
    key: str | None = None
    parts: list[Part] = []
    bad: Reason | None = None

    def finish() -> None:
        if key is not None:
            entries.append(Entry(key, tuple(parts), "duplicate" if key in seen else bad))
            seen.add(key)

    with reading(path), path.open("rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep every header
                    if member.size < 0:  # tarfile would go back, and round and round
                        raise tarfile.ReadError("a member of negative size")
                    if member.isdir():
                        continue
                    folder, slash, name = member.name.rpartition("/")
                    stem, _, extension = name.partition(".")
                    extension = sys.intern(extension.lower())
                    if f"{folder}{slash}{stem}" != key:
                        finish()
                        key, parts, bad = f"{folder}{slash}{stem}", [], None
                    plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()
                    if not plain or any(p.extension == extension for p in parts):
                        bad = bad or "damaged_shard"
                    elif member.size > MAX_MEMBER_BYTES or len(parts) >= MAX_MEMBERS:
                        bad = bad or "too_large"
                    else:
                        parts.append(Part(extension, str(path), member.offset_data, member.size))
                file.seek(tar.offset)
                if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes a broken or missing header for the end
                    raise tarfile.ReadError("no end mark")
                finish()
        except (tarfile.TarError, ValueError, OverflowError, RecursionError) as e:
            if key is None:
                raise DamagedShard(f"{path}: is not a tar file ({e}); shards are plain, uncompressed tar files") from None
            entries.append(Entry(key, (), "damaged_shard"))
    return entries


def read_entry(entry: Entry) -> Sample:
    """The sample itself.

    Raises:
        BadSample: It was listed as bad, or its bytes can no longer be read.
    """
    if entry.bad:
        raise BadSample(entry.bad, entry.detail or entry.key)
    members = {}
    with contextlib.ExitStack() as stack:
        files: dict[str, io.FileIO] = {}
        try:
            for part in entry.parts:
                if part.content is None and part.path not in files:
                    files[part.path] = stack.enter_context(io.FileIO(part.path))
                members[part.extension] = _read(files[part.path], part) if part.content is None else part.content
        except OSError as e:
            raise BadSample("unreadable", f"{entry.key}: {e.strerror}") from None
    return Sample(entry.key, members)


def _read(file: io.FileIO, part: Part) -> bytes:
    file.seek(part.offset)
    content = file.read(part.size)
    if content is None or len(content) < part.size:
        raise BadSample("damaged_shard", f"{part.path} is cut off")
    return content


def read_shard(path: Path) -> Iterator[Sample | BadSample]:
    """All samples of a shard in their order; one that cannot be read comes as the `BadSample` that says why.

    Raises:
        InputError: As `index_shard`.
    """
    for entry in index_shard(path):
        try:
            yield read_entry(entry)
        except BadSample as e:
            yield e


def writable(key: str) -> bool:
    """Whether `write_shard` can write a sample of this key."""
    return "." not in key and "/" not in key and 0 < len(key.encode(errors="replace")) <= MAX_KEY_BYTES and key.isprintable()


def write_shard(path: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> int:
    """Write samples (key, extension to content) as a shard, atomically; equal samples give equal bytes.

    Returns:
        The number of samples.

    Raises:
        InputError: A key that is empty, longer than 80 bytes, or has a dot or a slash.
        StorageError: The folder cannot be written or the disk is full.
    """
    count = 0
    with staged_file(path) as tmp, tarfile.open(tmp, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, members in samples:
            if not writable(key):
                raise InputError(f"{key[:100]!r} cannot be a sample's key: 1 to {MAX_KEY_BYTES} bytes of UTF-8 without dots and slashes")
            for extension, content in sorted(members.items()):
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size, info.mode, info.uname, info.gname = len(content), 0o444, "bigdata", "bigdata"
                tar.addfile(info, io.BytesIO(content))
            count += 1
    return count
