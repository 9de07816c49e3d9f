"""Where a data set's samples lie: shards in files, behind URLs or commands, and tables of picture files."""

from __future__ import annotations

import contextlib
import csv
import functools
import glob
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mobileclip.data.samples import IMAGE_EXTENSIONS, Reason
from mobileclip.data.shards import MAX_MEMBER_BYTES, Entry, Part, index_shard
from mobileclip.errors import InputError, MissingToolError, StorageError, one_line
from mobileclip.files import json_lines, reading, writing

TABLES = (".csv", ".tsv", ".jsonl")
IMAGE_COLUMNS, CAPTION_COLUMNS = ("image", "filepath", "path", "file"), ("caption", "captions", "title", "text")
LABEL = "label"
"""A column or field with the name or number of a class; a table with labels needs no captions."""
_MAX_TABLE_BYTES = 8 << 30


@dataclass(frozen=True)
class Shard:
    """A part of a data set that is read as a whole: a file, URL or command, or several to be joined by their samples' keys."""

    places: tuple[str, ...]

    @property
    def name(self) -> str:
        """For messages."""
        return " + ".join(self.places)


def find_shards(places: Sequence[str], *joined: Sequence[str]) -> tuple[Shard, ...]:
    """All shards that the places name, in order.

    Args:
        places: Folders with shards, files, patterns with `*` or `{000..099}`, URLs that fsspec knows (without `*`), commands `pipe:...`
            that write a shard to standard output, and tables (`.csv`, `.tsv`, `.jsonl`).
        joined: More lists of places, whose shards belong one to one to the first list's.

    Raises:
        InputError: A place names nothing or is named twice, or the lists differ in length.
    """
    lists = [[place for pattern in names for place in _expand(pattern)] for names in (places, *joined)]
    if twice := next((place for found in lists for place, n in Counter(found).items() if n > 1), None):
        raise InputError(f"{twice}: is named twice; each shard is read once an epoch")
    if len({len(found) for found in lists}) != 1:
        raise InputError(f"shards to be joined must be equally many, got {' and '.join(str(len(found)) for found in lists)}")
    return tuple(Shard(together) for together in zip(*lists, strict=True))


def _expand(pattern: str) -> list[str]:
    if not is_local(pattern):
        if "://" in pattern and Path(pattern).suffix in TABLES:
            raise InputError(f"{pattern}: a table's pictures lie beside it; fetch both, or pack them into shards")
        if "://" in pattern and "*" in pattern:
            raise InputError(f"{pattern}: only local patterns take *; write the range of numbers, like {{000..099}}")
        return _braces(pattern)
    if Path(pattern).is_dir():
        found = sorted(str(p) for p in Path(pattern).glob("*.tar") if not p.name.startswith("."))  # those are half written
    else:
        found = [place for plain in _braces(pattern) for place in (sorted(glob.glob(plain)) if glob.has_magic(plain) else [plain])]
    if not found or (missing := next((f for f in found if not Path(f).is_file()), None)):
        raise InputError(f"{pattern}: no such shard or table{'' if not found else f' ({missing})'}; check the path")
    return found


def _braces(pattern: str) -> list[str]:
    """`{008..011}` to 008, 009, 010, 011; several multiply."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if not found:
        return [pattern]
    first, last = int(found[1]), int(found[2])
    if not first <= last < first + 10**6:
        raise InputError(f"{pattern}: {found[0]} is no range of up to a million shards")
    before, after = pattern[: found.start()], _braces(pattern[found.end() :])
    return [f"{before}{n:0{len(found[1])}d}{rest}" for n in range(first, last + 1) for rest in after]


@contextlib.contextmanager
def opened(shard: Shard) -> Iterator[list[Entry]]:
    """The samples of a shard; what had to be fetched lies on disk as long as the context is open.

    Raises:
        DamagedShard: Not a shard.
        InputError: No such file, or not a table of the known columns.
        StorageError: It cannot be fetched.
    """
    with contextlib.ExitStack() as stack:
        lists = []
        for place in shard.places:
            path = stack.enter_context(_local(place))
            with reading(path):
                changed = path.stat().st_mtime_ns
            lists.append(_table(path) if path.suffix in TABLES else _indexed(str(path), changed) if is_local(place) else index_shard(path))
        yield functools.reduce(_joined, lists)


def is_local(place: str) -> bool:
    """Whether a place is a file on this machine, not a URL or a command."""
    return not (place.startswith("pipe:") or "://" in place)


@functools.lru_cache(maxsize=16)  # a small set is read again and again; of a large one each index takes 20 MB
def _indexed(path: str, _changed: int) -> list[Entry]:
    return index_shard(Path(path))


def _joined(left: list[Entry], right: list[Entry]) -> list[Entry]:
    """Members of both sides under one key; a sample that only one side has is bad, so that nothing is lost unseen."""
    others: dict[str, Entry] = {}
    spare = []
    for e in right:
        if _uid(e) in others:
            spare.append(Entry(e.key, e.parts, e.bad or "duplicate"))
        else:
            others[_uid(e)] = e
    entries = []
    for entry in left:
        other = others.pop(_uid(entry), None)
        extensions = {p.extension for p in entry.parts}
        more = tuple(p for p in other.parts if p.extension not in extensions) if other else ()
        bad: Reason | None = entry.bad or (other.bad if other else "not_joined")
        entries.append(Entry(entry.key, entry.parts + more, bad))
    return entries + spare + [Entry(e.key, e.parts, e.bad or "not_joined") for e in others.values()]


def _uid(entry: Entry) -> str:
    return entry.key.rpartition("/")[2]


# --- fetching --------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _local(place: str) -> Iterator[Path]:
    """The place as a local file."""
    if is_local(place):
        yield Path(place)
        return
    with tempfile.TemporaryDirectory(prefix="mobileclip-shard-") as folder:
        path = Path(folder) / (Path(place.rpartition("/")[2]).name if "://" in place else "shard.tar")
        fetch: Callable[[str, Path], None] = _run_command if place.startswith("pipe:") else _download
        with writing(path):
            fetch(place, path)
        yield path


def _run_command(place: str, path: Path) -> None:
    command = place.removeprefix("pipe:")
    with path.open("wb") as f:
        done = subprocess.run(command, shell=True, stdout=f, stderr=subprocess.PIPE, check=False)
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise StorageError(f"{place}: the command failed with exit code {done.returncode} ({' '.join(last)[:200]})")


def _download(place: str, path: Path) -> None:
    import fsspec

    try:
        with fsspec.open(place, "rb") as source, path.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    except ImportError as e:
        raise MissingToolError(f"{place}: {e}; for http, pip install 'mobileclip-toolkit[train]'") from None
    except ValueError as e:
        raise InputError(f"{place}: {one_line(e)}") from None
    except OSError as e:
        if e.filename == str(path):
            raise
        raise StorageError(f"{place}: cannot be fetched ({one_line(e)})") from e
    except Exception as e:  # the file systems behind fsspec have error types of their own
        raise StorageError(f"{place}: cannot be fetched ({type(e).__name__}: {one_line(e)})") from e


# --- tables ----------------------------------------------------------------------------------------------------------------------


def _table(path: Path) -> list[Entry]:
    """A table with one picture a line: a column with the file (relative to the table), one with the caption or captions, other fields."""
    with reading(path):
        if path.stat().st_size > _MAX_TABLE_BYTES:
            raise InputError(f"{path}: is too large for a table; pack it into shards")
        return list(_rows(path))


def _rows(path: Path) -> Iterator[Entry]:
    lines = ((number, row) for row, _, number in json_lines(path)) if path.suffix == ".jsonl" else _csv_lines(path)
    columns: tuple[str, str] | None = None
    for number, row in lines:
        if columns is None:
            texts = (*CAPTION_COLUMNS, LABEL)
            columns = _column(path, row, IMAGE_COLUMNS, "picture file"), _column(path, row, texts, "caption or label")
        yield _row_entry(path, number, row, *columns)


def _csv_lines(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as f:  # what is no UTF-8 is found in its sample
        reader = csv.DictReader(f, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)  # else a quote takes all the rest
        try:
            for row in reader:
                yield reader.line_num, {str(k): v for k, v in row.items()}
        except csv.Error as e:
            raise InputError(f"{path}:{reader.line_num + 1}: {e}") from None  # where the row begins


def _column(path: Path, row: dict[str, object], names: Sequence[str], what: str) -> str:
    found = next((n for n in names if n in row), None)
    if found is None:
        raise InputError(f"{path}: has no column for the {what}; name it one of {', '.join(names)}")
    return found


def _row_entry(path: Path, number: int, row: dict[str, object], image_column: str, text_column: str) -> Entry:
    image, text = row.get(image_column), row.get(text_column)
    key = f"{path.name}:{number}"
    extension = Path(str(image or "")).suffix.lower().removeprefix(".")
    file = path.parent / str(image or "")
    try:
        size = os.stat(file).st_size if image and extension in IMAGE_EXTENSIONS else 0
    except (OSError, ValueError):
        size = 0
    if not 0 < size <= MAX_MEMBER_BYTES:
        return Entry(key, (), "too_large" if size else "no_image")
    fields = {name: value for name, value in row.items() if name not in (image_column, *CAPTION_COLUMNS)}
    if text_column != LABEL:
        captions = [c for c in (text if isinstance(text, list) else [text]) if isinstance(c, str) and c.strip()]
        if not captions:
            return Entry(key, (), "no_caption")
        fields["captions"] = captions
    return Entry(key, (Part(extension, str(file), 0, size), Part("json", content=json.dumps(fields).encode())))
