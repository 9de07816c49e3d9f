"""Data sets to score on: a folder per class, a table, shards, or the layout that clip_benchmark publishes.

Whatever it is becomes the samples that shards have, and these become examples: a picture with its captions and named fields.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from mobileclip.data.samples import IMAGE_EXTENSIONS, BadSample, Sample
from mobileclip.data.shards import MAX_MEMBER_BYTES, Entry, Part, read_entry
from mobileclip.data.source import LABEL, TABLES, Shard, find_shards, opened
from mobileclip.errors import InputError
from mobileclip.files import reading

Kind = Literal["classification", "retrieval"]


@dataclass(frozen=True)
class Example:
    """One picture, not yet decoded (or decoded by another package), with what is known of it.

    Attributes:
        captions: Texts that describe it.
        fields: What a table's row or the `json` member says; `label` also holds a folder's name or a shard's `cls` member.
    """

    key: str
    image: bytes | Image.Image
    captions: tuple[str, ...] = ()
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Dataset:
    """A data set.

    Attributes:
        read: Starts a pass over it: examples, and the reasons of those that cannot be used.
        classes: Names that the numbers of `label` stand for, where the data set has them.
        templates: Captions with `{}` for the class, where the data set has them.
        kind: What it was made for, where it says so.
    """

    name: str
    read: Callable[[], Iterator[Example | BadSample]]
    classes: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    kind: Kind | None = None


def open_dataset(place: str) -> Dataset:
    """Open what a user names.

    - A folder with `test/nshards.txt`: clip_benchmark's layout with its `classnames.txt`, `zeroshot_classification_templates.txt`
      (`{c}` for the class) and `dataset_type.txt`; in its shards `txt` holds one caption a line.
    - A folder of folders, without shards: a folder for each class.
    - Shards and tables, see `mobileclip.data.source.find_shards`. Rows of a table with the same picture are one example with several
      captions.

    Raises:
        InputError: It is none of these, or empty.
        StorageError: It cannot be read.
    """
    path = Path(place)
    if (path / "test" / "nshards.txt").is_file():
        return _published(path)
    name = path.resolve().stem
    if path.is_dir() and not any(path.glob("*.tar")):
        entries = _class_folders(path)
        return Dataset(name, lambda: _examples(entries))
    shards = find_shards([place])
    return Dataset(name, lambda: _in_shards(shards))


def matching(dataset: Dataset, conditions: Iterable[str]) -> Dataset:
    """The part of a data set whose fields fulfil all conditions, `FIELD=VALUE` or `FIELD!=VALUE`; a missing field equals nothing.

    Raises:
        InputError: A condition of another form.
    """
    wanted: list[tuple[str, str, bool]] = []
    for condition in conditions:
        name, sign, value = condition.partition("=")
        if not sign or not name.strip("! "):
            raise InputError(f"the condition {condition!r} is not of the form FIELD=VALUE or FIELD!=VALUE")
        wanted.append((name.removesuffix("!").strip(), value.strip(), not name.endswith("!")))

    def read() -> Iterator[Example | BadSample]:
        for example in dataset.read():
            if isinstance(example, BadSample) or all(
                (n in example.fields and str(example.fields[n]) == v) is same for n, v, same in wanted
            ):
                yield example

    return replace(dataset, read=read)


def example_of(sample: Sample, caption_lines: bool = False) -> Example:
    """A sample as an example; it may lack captions, fields, or both.

    Args:
        caption_lines: Each line of `txt` is a caption.

    Raises:
        BadSample: No picture, or a member that cannot be read.
    """
    fields: dict[str, Any] = {}
    if "json" in sample.members:
        try:
            fields = json.loads(_text(sample, "json"))
            json.dumps(fields, ensure_ascii=False).encode()
        except UnicodeEncodeError:  # half a character, written as an escape
            raise BadSample("not_utf8", f"{sample.key}.json") from None
        except (ValueError, RecursionError):
            raise BadSample("unreadable", f"{sample.key}.json is not JSON") from None
        if not isinstance(fields, dict):
            raise BadSample("unreadable", f"{sample.key}.json is not an object")
    if "cls" in sample.members:
        number = _text(sample, "cls").strip()
        fields[LABEL] = int(number) if number.isdecimal() and len(number) < 10 else number
    try:
        captions = sample.captions()
    except BadSample as e:
        if e.reason != "no_caption":
            raise
        captions = []
    if caption_lines:
        captions = [line.strip() for caption in captions for line in caption.splitlines() if line.strip()]
    return Example(sample.key, sample.image(), tuple(captions), fields)


def _text(sample: Sample, extension: str) -> str:
    try:
        return sample.members[extension].decode()
    except UnicodeDecodeError:
        raise BadSample("not_utf8", f"{sample.key}.{extension}") from None


def _in_shards(shards: Iterable[Shard], caption_lines: bool = False) -> Iterator[Example | BadSample]:
    for shard in shards:
        with opened(shard) as entries:
            yield from _examples(_one_a_picture(entries) if shard.places[0].endswith(TABLES) else entries, caption_lines)


def _examples(entries: Iterable[Entry], caption_lines: bool = False) -> Iterator[Example | BadSample]:
    for entry in entries:
        try:
            yield example_of(read_entry(entry), caption_lines)
        except BadSample as e:
            yield e


def _one_a_picture(rows: Iterable[Entry]) -> list[Entry]:
    """The rows of a table, those with the same picture as one: the fields of the first, the captions of all."""
    entries: dict[str, Entry] = {}
    for row in rows:
        picture = row.parts[0].path if row.parts else row.key
        known = entries.get(picture)
        if known is None:
            entries[picture] = row
            continue
        fields, more = (json.loads(e.parts[1].content or b"{}") for e in (known, row))
        fields["captions"] = [*fields.get("captions", []), *more.get("captions", [])]
        entries[picture] = replace(known, parts=(known.parts[0], Part("json", content=json.dumps(fields).encode())))
    return list(entries.values())


def _published(path: Path) -> Dataset:
    kind = _optional_lines(path / "dataset_type.txt")
    if kind not in ([], ["classification"], ["retrieval"]):
        raise InputError(f"{path}: data sets of the type {' '.join(kind)[:40]!r} cannot be scored; classification and retrieval can")
    count = _optional_lines(path / "test" / "nshards.txt")
    if len(count) != 1 or not count[0].isdecimal() or not 0 < int(count[0]) < 10**6:
        raise InputError(f"{path / 'test' / 'nshards.txt'}: must hold the number of shards and nothing else")
    shards = find_shards([str(path / "test" / f"{i}.tar") for i in range(int(count[0]))])
    return Dataset(
        path.resolve().name,
        lambda: _in_shards(shards, caption_lines=True),
        tuple(_optional_lines(path / "classnames.txt")),
        tuple(t.replace("{c}", "{}") for t in _optional_lines(path / "zeroshot_classification_templates.txt")),
        "retrieval" if kind == ["retrieval"] else "classification",
    )


def _optional_lines(path: Path) -> list[str]:
    """Stripped lines; a repeated one stays, for a class is known by its line's number."""
    if not path.exists():
        return []
    try:
        with reading(path):
            return [line.strip() for line in path.read_text("utf-8-sig").strip().splitlines()]
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not UTF-8 text; save it as UTF-8") from None


def _class_folders(path: Path) -> list[Entry]:
    with reading(path):
        folders = sorted(f for f in path.iterdir() if f.is_dir() and not f.name.startswith("."))
        files = [(folder.name, file) for folder in folders for file in sorted(folder.iterdir()) if not file.name.startswith(".")]
        pictures = [(name, file, file.suffix.lower().lstrip(".")) for name, file in files]
        entries = [_entry(name, file, extension) for name, file, extension in pictures if extension in IMAGE_EXTENSIONS]
    if not entries:
        raise InputError(f"{path}: holds neither shards (*.tar) nor folders of pictures; give a data set or a table (.csv, .jsonl)")
    return entries


def _entry(label: str, file: Path, extension: str) -> Entry:
    """A picture file as a sample that is not yet read."""
    size = file.stat().st_size if file.is_file() else -1
    if not 0 <= size <= MAX_MEMBER_BYTES:
        return Entry(f"{label}/{file.name}", (), "no_image" if size < 0 else "too_large")
    return Entry(f"{label}/{file.name}", (Part(extension, str(file), 0, size), Part("json", content=json.dumps({LABEL: label}).encode())))
