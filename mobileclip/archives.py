"""What may stand in the zip archive and the pickle of a checkpoint: stricter than `torch.load`, and checked before it.

`torch.load(weights_only=True)` runs no code, but it still lets a file ask for any amount of memory or time (`bytearray(10**12)`, sets of
it, deflated members, dictionary keys of tuples in tuples). A state dict needs none of this.
"""

from __future__ import annotations

import os
import pickletools
import re
import zipfile
from pathlib import Path
from typing import BinaryIO

import torch

from mobileclip.errors import CheckpointError

_GLOBALS = {
    "collections OrderedDict",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor_v2",
    "torch Size",
    *(f"torch {kind}Storage" for kind in ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")),
}
_MEMBER = re.compile(r"[^/]+/(data\.pkl|data/\w+|byteorder|version|\.format_version|\.storage_alignment|\.data/serialization_id)")
_TUPLES = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
_PUTS, _GETS = {"BINPUT", "LONG_BINPUT"}, {"BINGET", "LONG_BINGET"}
_MAX_PICKLE_BYTES = _MAX_DIRECTORY_BYTES = 2 << 20
"""Reading takes a second or two a million steps; the largest variant with its optimizer state needs some 0.6 MB of each."""
_MAX_SHARED_TUPLES = 48
"""Hashing n nested pairs takes 2^n steps; at most 3^16 with this many references. Optimizer states share a few (`betas`)."""


def check_torch_archive(source: Path | BinaryIO, name: str = "") -> None:
    """Refuse an archive that `torch.save` would not write for tensors in dictionaries or lists.

    Args:
        source: A path, or an open binary file that can seek.
        name: How messages call it; the path where there is one.

    Raises:
        CheckpointError: Damaged, or with members, sizes or objects of another kind.
    """
    if isinstance(source, Path):
        with source.open("rb") as f:
            return check_torch_archive(f, name or str(source))
    size = source.seek(0, os.SEEK_END)
    _check_directory(source, name, size)
    _check_members(source, name, size)
    source.seek(0)
    try:
        pickled = torch._C.PyTorchFileReader(source).get_record("data.pkl")
    except RuntimeError:
        raise CheckpointError(f"{name}: is damaged or not a checkpoint; download it again") from None
    _check_pickle(name, pickled)
    source.seek(0)


def _check_directory(file: BinaryIO, name: str, size: int) -> None:
    """The end of the archive, before anything walks through its members: no comment, and a table of contents of sensible size."""
    file.seek(max(0, size - 98))
    tail = file.read().rjust(98, b"\0")
    record64, locator64, end = tail[:56], tail[56:76], tail[76:]
    if end[:4] != b"PK\5\6" or end[20:] != b"\0\0":
        raise CheckpointError(f"{name}: is truncated or damaged; download it again")
    zip64 = record64[:4] == b"PK\6\6" and locator64[:4] == b"PK\6\7"
    directory_bytes = int.from_bytes(record64[40:48] if zip64 else end[12:16], "little")
    if directory_bytes > _MAX_DIRECTORY_BYTES:
        raise CheckpointError(f"{name}: refused, its table of contents has {directory_bytes:,} bytes, far more than a checkpoint needs")


def _check_members(file: BinaryIO, name: str, size: int) -> None:
    """`torch.save` stores members uncompressed, so together they are never larger than the file: anything else is hostile."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        raise CheckpointError(f"{name}: is truncated or damaged; download it again") from None
    for m in members:
        if not _MEMBER.fullmatch(m.filename) or m.compress_type != zipfile.ZIP_STORED or m.flag_bits & 1:
            raise CheckpointError(f"{name}: refused, the archive member {m.filename[:80]!r} is not one that torch.save writes")
    if sum(m.file_size for m in members) > size:
        raise CheckpointError(f"{name}: refused, the archive claims to unpack to more than its size")
    names = {m.filename.lower() for m in members}
    roots = {n.split("/")[0] for n in names}
    first = min((m.header_offset for m in members), default=0)
    if len(names) < len(members) or len(roots) != 1 or first != 0:
        raise CheckpointError(f"{name}: refused, its archive is not laid out as torch.save does (names twice, or parts that do not belong)")


def _check_pickle(name: str, pickled: bytes) -> None:
    if len(pickled) > _MAX_PICKLE_BYTES:
        raise CheckpointError(f"{name}: refused, its list of tensors has {len(pickled):,} bytes; a plain state dict is needed")
    tuples: set[object] = set()
    shared = 0
    made_tuple = False  # the value on top of the stack is a tuple
    try:
        for op, arg, _ in pickletools.genops(pickled):
            if op.name in _PUTS:
                (tuples.add if made_tuple else tuples.discard)(arg)
                continue
            made_tuple = op.name in _TUPLES or (op.name in _GETS and arg in tuples)
            shared += op.name in _GETS and made_tuple
            if op.name == "GLOBAL" and arg not in _GLOBALS:
                raise CheckpointError(
                    f"{name}: refused, it holds objects other than tensors ({str(arg).replace(' ', '.')[:80]}), which could run code; "
                    "ask for a plain state dict or safetensors"
                )
    except (ValueError, IndexError, UnicodeError):
        raise CheckpointError(f"{name}: is damaged or not a checkpoint; download it again") from None
    if shared > _MAX_SHARED_TUPLES:
        raise CheckpointError(f"{name}: refused, its tuples are nested as in no checkpoint")
