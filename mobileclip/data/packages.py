"""Pinned packages of public registries: downloaded by their ordinary clients, checked before anything opens them, read in memory.

Nothing of a package is ever unpacked to the disk, so no member's name or link can lead anywhere.
"""

from __future__ import annotations

import gzip
import io
import lzma
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from mobileclip.errors import InputError, MissingToolError, StorageError
from mobileclip.files import STAGING_PREFIX, reading, remove_tree, sha256_file, writing

MAX_UNPACKED_BYTES = 512 << 20
MAX_MEMBER_BYTES = 64 << 20
MAX_MEMBERS = 20_000
_CLIENT_SECONDS = 1800


@dataclass(frozen=True)
class Package:
    """One version of a package, byte by byte."""

    registry: Literal["npm", "debian"]
    name: str
    version: str
    sha256: str
    licence: str
    attribution: str

    @property
    def filename(self) -> str:
        """The name that the registry's client gives to the file."""
        if self.registry == "npm":
            return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"
        return f"{self.name}_{self.version.replace(':', '%3a')}_all.deb"

    @property
    def client(self) -> tuple[str, ...]:
        """The command that downloads it into the current folder."""
        if self.registry == "npm":
            return ("npm", "pack", "--silent", "--ignore-scripts", f"{self.name}@{self.version}")
        return ("apt-get", "download", "--quiet", f"{self.name}={self.version}")


def obtain(package: Package, cache: Path, folder: Path | None, progress: Callable[[str], None]) -> Path:
    """The package's file: from `folder` if given, else from `cache`, else from its registry into `cache`.

    Raises:
        InputError: Not in the folder, or its bytes are not the pinned ones.
        MissingToolError: The registry's client is not installed.
        StorageError: The client could not get it (offline, no such version), or the cache cannot be written.
    """
    if folder is not None:
        plain = package.filename.replace("1%3a", "")  # mirrors leave Debian's epoch out
        path = next((p for p in (folder / package.filename, folder / plain) if p.exists()), folder / package.filename)
        _check(package, path)
        return path
    path = cache / package.filename
    if path.exists() and sha256_file(path) == package.sha256:
        return path
    progress(f"getting {package.name} {package.version}")
    with writing(cache):
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=STAGING_PREFIX, dir=cache) as staging:
            got = Path(staging) / package.filename
            _run_client(package, got)
            _check(package, got)
            remove_tree(path)
            got.replace(path)
    return path


def _check(package: Package, path: Path) -> None:
    if sha256_file(path) != package.sha256:
        raise InputError(f"{path}: is not {package.name} {package.version} (sha256 differs); remove it and get it again")


def _run_client(package: Package, got: Path) -> None:
    tool, *arguments = package.client
    program = shutil.which(tool)
    instead = f"or put {package.filename} into a folder and give it with --from"
    if program is None:
        raise MissingToolError(f"{package.name} comes by {tool}, which is not installed; install it, {instead}")
    try:
        done = subprocess.run(
            [program, *arguments], cwd=got.parent, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=_CLIENT_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise StorageError(f"{package.name}: {tool} took over {_CLIENT_SECONDS // 60} minutes; run it again, {instead}") from None
    if done.returncode or not got.is_file():
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()] or ["no message"]
        raise StorageError(f"{package.name} {package.version}: {tool} could not get it ({lines[0].strip()[:200]}); connect, {instead}")


class _Bounded(io.RawIOBase):
    """A decompressed stream that ends in an error instead of filling the memory."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._left = MAX_UNPACKED_BYTES

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(min(size, self._left + 1) if size >= 0 else self._left + 1)
        self._left -= len(data)
        if self._left < 0:
            raise InputError(f"it unpacks to more than {MAX_UNPACKED_BYTES >> 20} MB")
        return data


def members(path: Path, wanted: Callable[[str], object]) -> Iterator[tuple[str, bytes]]:
    """The plain files of a `.tgz` or `.deb` that are wanted, as (name without a leading `./`, content). Links and devices are passed over.

    Raises:
        InputError: Damaged, too many members, or larger than the limits above.
    """
    with reading(path), path.open("rb") as file:
        try:
            with _decompressed(file) as stream, tarfile.open(fileobj=_Bounded(stream), mode="r|") as tar:
                for count, member in enumerate(tar):
                    tar.members.clear()  # type: ignore[attr-defined] # tarfile would keep every header
                    name = member.name.removeprefix("./")
                    if count >= MAX_MEMBERS:
                        raise InputError(f"it has more than {MAX_MEMBERS:,} members")
                    if not member.isreg() or not wanted(name):
                        continue
                    if member.size > MAX_MEMBER_BYTES:
                        raise InputError(f"its member {name[:80]!r} is larger than {MAX_MEMBER_BYTES >> 20} MB")
                    content = tar.extractfile(member)
                    yield name, content.read() if content else b""
        except InputError as e:
            raise InputError(f"{path}: refused, {e}") from None
        except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, gzip.BadGzipFile, ValueError) as e:
            raise InputError(f"{path}: is damaged ({' '.join(str(e).split())[:100]}); get it again") from None


def _decompressed(file: BinaryIO) -> BinaryIO:
    if file.read(8) != b"!<arch>\n":
        file.seek(0)
        return gzip.GzipFile(fileobj=file)  # type: ignore[return-value]
    while header := file.read(60):  # ar: name 16, date 12, ids 6 + 6, mode 8, size 10, magic 2; members at even offsets
        if len(header) < 60 or header[58:] != b"`\n":
            break
        size = int(header[48:58])
        if size < 0:
            break
        if header[:16].rstrip() in (b"data.tar.xz", b"data.tar.xz/"):
            return lzma.LZMAFile(file)  # type: ignore[return-value]
        file.seek(size + size % 2, io.SEEK_CUR)
    raise InputError("it has no data.tar.xz")
