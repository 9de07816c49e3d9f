"""Search a folder of pictures: an index of their embeddings that lies beside them, kept up to date, and its ranking.

An index is a folder with `mobileclip-index.json` and one float16 matrix `embeddings-HASH.npy`, which is memory-mapped. The JSON file is
replaced last, in one rename, so a reader sees either the old index or the new one.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mobileclip.errors import InputError, MobileClipError
from mobileclip.export.encoder import Encoder, printable
from mobileclip.files import STAGING_PREFIX, cache_folder, canonical_json, fsync, locked, reading, sha256_file, write_bytes, writing
from mobileclip.preprocess import FORMATS
from mobileclip.zeroshot import Embeddings, top_rows

FOLDER_NAME, SIDECAR = ".mobileclip-index", "mobileclip-index.json"
SAVE_EVERY = 1024
"""Pictures embedded between two writes of the index: what an interrupted run can lose."""
UNREADABLE_SUFFIXES = (".heic", ".heif", ".jxl")
"""Pictures that cannot be decoded here; they are reported, not passed over."""

_MATRIX = re.compile(r"embeddings-[0-9a-f]{16}\.npy")
_ROWS_AT_ONCE = 16_384
Progress = Callable[[str], None]
Matrix = npt.NDArray[np.float16]


@dataclass(frozen=True)
class Skipped:
    """A picture that is not in the index, and why."""

    path: str
    error: str


@dataclass(frozen=True)
class Hit:
    """One picture of a ranking; `score` is the cosine of its embedding, stored in float16, and the query's."""

    path: str
    score: float


class Entry(NamedTuple):
    """One row of the matrix: the picture's path below the folder, with forward slashes, and the file that was embedded."""

    path: str
    size_bytes: int
    mtime_ns: int


class Sidecar(BaseModel):
    """`mobileclip-index.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    schema_version: Literal[1] = 1
    model: str
    embedding_space: str = Field(pattern=r"^[0-9a-f]{64}$")
    embed_dim: int = Field(ge=1)
    matrix: str = Field(pattern=r"^embeddings-[0-9a-f]{16}\.npy$")
    """Name of the matrix's file: (pictures, embed_dim) float16."""
    matrix_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    paths: tuple[str, ...]
    """Of the rows, sorted; below the folder, with forward slashes."""
    sizes_bytes: tuple[int, ...]
    mtimes_ns: tuple[int, ...]
    sha256: str = ""
    """Over this document's canonical JSON without this field."""

    @model_validator(mode="after")
    def _consistent(self) -> Sidecar:
        if not len(self.paths) == len(self.sizes_bytes) == len(self.mtimes_ns):
            raise ValueError("the columns differ in length")
        for path in self.paths:
            if not path or path[0] == "/" or "\0" in path or ".." in path.split("/"):
                raise ValueError(f"the path {path!r} leaves the folder")
        if any(a >= b for a, b in itertools.pairwise(self.paths)):
            raise ValueError("the paths are not sorted")
        return self

    def digest(self) -> str:
        """The value that `sha256` must have."""
        return hashlib.sha256(canonical_json(self.model_dump(mode="json", exclude={"sha256"}))).hexdigest()


@dataclass(frozen=True)
class Index:
    """An opened index.

    Attributes:
        path: The index's folder.
        matrix: (pictures, embed_dim), memory-mapped.
    """

    path: Path
    sidecar: Sidecar
    matrix: Matrix

    @property
    def entries(self) -> list[Entry]:
        """The rows, in order."""
        return list(map(Entry, self.sidecar.paths, self.sidecar.sizes_bytes, self.sidecar.mtimes_ns))

    def search(self, query: Embeddings, top: int) -> list[Hit]:
        """The nearest pictures, best first; equal ones by path. Memory does not grow with the matrix.

        Args:
            query: (embed_dim,), normalised, from an encoder of the index's embedding space.
            top: How many, at most.

        Raises:
            InputError: The query is of another length, or the matrix holds no finite numbers.
        """
        if query.shape != (self.sidecar.embed_dim,):
            raise InputError(f"{self.path}: holds embeddings of {self.sidecar.embed_dim} numbers, not {query.shape[-1]}")
        found = top_rows(self.matrix, query, top)
        if not np.isfinite([score for _, score in found]).all():
            raise _damaged(self.path, "numbers that are not finite")
        return [Hit(self.sidecar.paths[row], max(-1.0, min(1.0, score))) for row, score in found]


@dataclass(frozen=True)
class Update:
    """An index that is up to date, and what that took: pictures embedded, rows removed, and the pictures that cannot be read."""

    index: Index
    embedded: int
    removed: int
    skipped: tuple[Skipped, ...]


def update(folder: Path, encoder: Encoder, progress: Progress, *, index: Path | None = None, rebuild: bool = False) -> Update:
    """Bring the index of all pictures below a folder up to date; only new and changed pictures are embedded.

    A picture counts as unchanged while its size and modification time are. Several processes may do this at once: they take turns. The
    index is written every `SAVE_EVERY` pictures, so an interrupted run goes on from there.

    Args:
        folder: See `find_pictures`.
        progress: Told how far it is.
        index: The index's folder; default: see `default_index`.
        rebuild: Make a new index, whatever is there.

    Raises:
        InputError: No picture that can be read, or the index is damaged or of another embedding space.
        StorageError: The index cannot be written.
    """
    progress(f"looking for pictures below {folder}")
    found, skipped = find_pictures(folder)
    if not found:
        raise InputError(_nothing(folder, skipped))
    path = index or default_index(folder)
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: is a file; give a folder for the index")
    with locked(path / SIDECAR):
        state = None if rebuild or not (path / SIDECAR).exists() else open_index(path)
        if state is not None and state.sidecar.embedding_space != encoder.embedding_space:
            raise _mixed(state, encoder)
        known = set(state.entries) if state else set()
        current = set(found)
        todo, gone, embedded = [e for e in found if e not in known], known - current, 0
        for start in range(0, len(todo), SAVE_EVERY):
            fresh: dict[Entry, Embeddings] = {}
            for entry, result in _embed(folder, encoder, todo, start, progress):
                if isinstance(result, MobileClipError):
                    skipped.append(Skipped(entry.path, str(result)))
                else:
                    fresh[entry] = result
            if fresh:
                state = _write(path, encoder, state, current, fresh)
                embedded += len(fresh)
        if state is not None and not current.issuperset(state.entries):
            state = _write(path, encoder, state, current, {})
        if state is None or not state.sidecar.paths:
            raise InputError(_nothing(folder, skipped))
        _clean(path, state.sidecar.matrix)
    replaced = {e.path for e in todo}
    return Update(state, embedded, sum(e.path not in replaced for e in gone), tuple(sorted(skipped, key=lambda s: s.path)))


def _nothing(folder: Path, skipped: Sequence[Skipped]) -> str:
    if skipped:
        return f"{folder}: none of its {len(skipped):,} pictures can be read; the first: {skipped[0].error}"
    return f"{folder}: no pictures below it; give a folder with pictures ({', '.join(FORMATS)})"


def _embed(
    folder: Path, encoder: Encoder, todo: Sequence[Entry], start: int, progress: Progress
) -> Iterator[tuple[Entry, Embeddings | MobileClipError]]:
    """The next `SAVE_EVERY` entries with their embeddings."""
    part = todo[start : start + SAVE_EVERY]
    for i, (entry, (_, result)) in enumerate(zip(part, encoder.encode_files(folder / e.path for e in part), strict=True), start):
        if i % max(32, len(todo) // 100) == 0:
            progress(f"embedding pictures: {i:,} of {len(todo):,}")
        yield entry, result


def find_pictures(folder: Path) -> tuple[list[Entry], list[Skipped]]:
    """All pictures below a folder by their names' endings, sorted by path, and those that cannot even be looked at.

    Hidden files and folders (`.NAME`) are left out, and links to folders are not followed.

    Raises:
        InputError: Not a folder.
        StorageError: The folder cannot be read.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; check the path")
    with reading(folder):
        os.scandir(folder).close()
    suffixes = {*UNREADABLE_SUFFIXES, *(suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS)}
    found: list[Entry] = []
    skipped: list[Skipped] = []
    pending = [folder]
    while pending:
        parent = pending.pop()
        try:
            items = list(os.scandir(parent))
        except OSError as e:
            skipped.append(
                Skipped(_name(parent, folder), f"{printable(str(parent))}: cannot be read ({os.strerror(e.errno or 0).lower()})")
            )
            continue
        for item in items:
            if item.name.startswith("."):
                continue
            if item.is_dir(follow_symlinks=False):
                pending.append(Path(item.path))
            elif os.path.splitext(item.name)[1].lower() in suffixes:
                entry = _entry(Path(item.path), folder)
                if isinstance(entry, Entry):
                    found.append(entry)
                elif entry:
                    skipped.append(entry)
    return sorted(found), sorted(skipped, key=lambda s: s.path)


def _entry(path: Path, folder: Path) -> Entry | Skipped | None:
    """What a file is; None for a link to a folder."""
    name = _name(path, folder)
    if name != path.relative_to(folder).as_posix():
        return Skipped(name, f"{printable(str(path))}: its name is not UTF-8; rename it")
    try:
        about = path.stat()
    except OSError as e:
        return Skipped(name, f"{path}: cannot be read ({os.strerror(e.errno or 0).lower()})")
    if stat.S_ISDIR(about.st_mode):
        return None
    if not stat.S_ISREG(about.st_mode):
        return Skipped(name, f"{path}: is not a file")
    return Entry(name, about.st_size, about.st_mtime_ns)


def _name(path: Path, folder: Path) -> str:
    return printable(path.relative_to(folder).as_posix())


def default_index(folder: Path) -> Path:
    """Where a folder's index lies: in it, or in the user's cache when it is read-only."""
    own = folder / FOLDER_NAME
    if os.access(own if own.exists() else folder, os.W_OK, effective_ids=True):
        return own
    return cache_folder() / "indexes" / hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]


def open_index(path: Path) -> Index:
    """Open and check an index.

    Raises:
        InputError: It is damaged, was edited, or is of an unknown schema.
        StorageError: It cannot be read.
    """
    with reading(path / SIDECAR):
        data = (path / SIDECAR).read_bytes()
    try:
        sidecar = Sidecar.model_validate_json(data)
    except ValidationError as e:
        first = e.errors()[0]
        raise _damaged(path, f"{SIDECAR}: {'.'.join(map(str, first['loc']))} {first['msg']}") from None
    if sidecar.sha256 != sidecar.digest():
        raise _damaged(path, f"{SIDECAR} was edited")
    file = path / sidecar.matrix
    if not file.is_file():
        raise _damaged(path, f"{sidecar.matrix} is missing")
    if sha256_file(file) != sidecar.matrix_sha256:
        raise _damaged(path, f"{sidecar.matrix} was changed or cut off")
    return Index(path, sidecar, _map(file, sidecar))


def _map(file: Path, sidecar: Sidecar) -> Matrix:
    try:
        matrix = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, SyntaxError):
        raise _damaged(file.parent, f"{file.name} is no matrix") from None
    if matrix.dtype != np.float16 or matrix.shape != (len(sidecar.paths), sidecar.embed_dim):
        raise _damaged(file.parent, f"{file.name} does not fit to {SIDECAR}")
    return np.asarray(matrix)


def _damaged(path: Path, reason: str) -> InputError:
    return InputError(f"{path}: the index is damaged ({' '.join(reason.split())}); make a new one with --rebuild")


def _mixed(index: Index, encoder: Encoder) -> InputError:
    theirs, ours = (f"{name} (embedding space {space[:8]})" for name, space in (
        (index.sidecar.model, index.sidecar.embedding_space), (encoder.name, encoder.embedding_space),
    ))  # fmt: skip
    return InputError(
        f"{index.path}: the index is by {theirs} and cannot be searched with {ours}; use that model, give another --index, "
        "or make a new one with --rebuild"
    )


def _write(path: Path, encoder: Encoder, old: Index | None, current: set[Entry], fresh: Mapping[Entry, Embeddings]) -> Index:
    """Publish the rows of `old` that are in `current`, together with `fresh` ones."""
    rows = {e: i for i, e in enumerate(old.entries) if e in current} if old else {}
    entries = sorted([*rows, *fresh])
    tmp = path / f"{STAGING_PREFIX}matrix.npy"
    with writing(tmp):
        try:
            digest = _write_matrix(tmp, entries, encoder.embed_dim, old, rows, fresh)
            fsync(tmp)
            matrix = path / f"embeddings-{digest[:16]}.npy"
            tmp.replace(matrix)
        finally:
            tmp.unlink(missing_ok=True)
    sidecar = Sidecar(
        model=encoder.name,
        embedding_space=encoder.embedding_space,
        embed_dim=encoder.embed_dim,
        matrix=matrix.name,
        matrix_sha256=digest,
        paths=tuple(e.path for e in entries),
        sizes_bytes=tuple(e.size_bytes for e in entries),
        mtimes_ns=tuple(e.mtime_ns for e in entries),
    )
    sidecar = sidecar.model_copy(update={"sha256": sidecar.digest()})
    write_bytes(path / SIDECAR, canonical_json(sidecar.model_dump(mode="json")) + b"\n")
    _clean(path, matrix.name)
    return Index(path, sidecar, _map(matrix, sidecar))


def _write_matrix(
    file: Path, entries: Sequence[Entry], embed_dim: int, old: Index | None, rows: Mapping[Entry, int], fresh: Mapping[Entry, Embeddings]
) -> str:
    """Write the float16 rows of `entries`, a few at a time; returns the file's SHA-256."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f2", "fortran_order": False, "shape": (len(entries), embed_dim)})
    digest = hashlib.sha256(header.getvalue())
    with file.open("wb") as f:
        f.write(header.getvalue())
        for start in range(0, len(entries), _ROWS_AT_ONCE):
            part = entries[start : start + _ROWS_AT_ONCE]
            block = np.empty((len(part), embed_dim), np.float16)
            source = np.array([rows.get(e, -1) for e in part])
            if old is not None:
                block[source >= 0] = old.matrix[source[source >= 0]]
            for i, entry in enumerate(part):
                if source[i] < 0:
                    block[i] = fresh[entry]
            f.write(block.data)
            digest.update(block.data)
    return digest.hexdigest()


def _clean(path: Path, keep: str) -> None:
    """Remove matrices that nothing names any more, and what killed processes left."""
    with writing(path):
        for file in path.iterdir():
            if file.name.startswith(STAGING_PREFIX) or (_MATRIX.fullmatch(file.name) and file.name != keep):
                file.unlink(missing_ok=True)
