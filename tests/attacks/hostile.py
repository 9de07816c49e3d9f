"""What the attacks on checkpoints have in common: parts of real files, and the check that a hostile one is refused."""

from __future__ import annotations

import io
import json
import pickle
import struct
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from mobileclip.checkpoints import load
from mobileclip.errors import CheckpointError

SLOWEST_S = 10.0


def refused(path: Path, match: str = "", marker: Path | None = None) -> str:
    """`path` is refused with one line, exit code 2, within seconds, and nothing of it was run."""
    started = time.process_time()
    with pytest.raises(CheckpointError, match=match or None) as e:
        load(path)
    assert time.process_time() - started < SLOWEST_S
    message = str(e.value)
    assert message.startswith(str(path))
    assert message.isprintable(), repr(message)
    assert len(message) < len(str(path)) + 1000
    assert e.value.exit_code == 2
    if marker is not None:
        assert not marker.exists(), "code in the file was run"
    return message


class Gadget:
    """An object whose unpickling calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


def torch_parts(value: object) -> dict[str, bytes]:
    """The members of the archive that `torch.save` writes."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return {m.filename: archive.read(m) for m in archive.infolist()}


def write_zip(path: Path, members: dict[str, bytes] | list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items() if isinstance(members, dict) else members:
            archive.writestr(name, data)


def write_pickle(path: Path, pickled: bytes) -> None:
    """A torch archive around a pickle of one's own."""
    parts = torch_parts({"weight": torch.zeros(4)})
    parts["archive/data.pkl"] = pickled
    write_zip(path, parts)


def write_safetensors(path: Path, header: dict[str, Any] | bytes, data: bytes = b"", claimed: int | None = None) -> None:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded) if claimed is None else claimed) + encoded + data)


def pickled(value: object) -> bytes:
    return pickle.dumps(value, protocol=2)
