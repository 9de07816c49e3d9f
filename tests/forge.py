"""Bundles changed by hand, with or without hashes that agree."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mobileclip.export.bundle import MANIFEST, Bundle, Manifest, file_entry, write_manifest

Json = dict[str, Any]


def copy(source: Path, to: Path) -> Path:
    """A copy of a bundle; its files are links to the same data, so replace them, do not write into them."""
    shutil.copytree(source, to, copy_function=lambda a, b: Path(b).hardlink_to(a))
    return to


def replace(file: Path, data: bytes) -> None:
    """Give a file of a copied bundle other content."""
    file.unlink()
    file.write_bytes(data)


def edit(bundle: Path, change: Callable[[Json], object]) -> None:
    """Edit the manifest as an editor would: its own hash is not touched."""
    value = json.loads((bundle / MANIFEST).read_bytes())
    change(value)
    replace(bundle / MANIFEST, json.dumps(value).encode())


def forge(bundle: Path, change: Callable[[Json], object] = lambda value: None) -> None:
    """Edit the manifest, then make every hash in it agree with the files as they are now."""
    value = json.loads((bundle / MANIFEST).read_bytes())
    change(value)
    for entry in _entries(value):
        entry |= file_entry(bundle, bundle / entry["path"]).model_dump()
    write_manifest(bundle, Manifest.model_validate(value))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _entries(value: Json) -> list[Json]:
    return [value["tokenizer"]["file"], value["reference"], value["golden"], *(f for a in value["artifacts"] for f in a["files"])]


def small(source: Path, to: Path, content: bytes) -> Path:
    """A bundle of a few hundred bytes that passes `Bundle.open`."""
    copy(source, to)
    for file in Bundle.open(source).manifest.files:
        replace(to / file.path, content + file.path.encode())
    forge(to)
    return to
