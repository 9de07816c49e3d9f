"""Archives with members that `torch.save` never writes."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import pytest
import torch
from hostile import refused, torch_parts, write_zip

GOOD = torch_parts({"weight": torch.zeros(4)})


@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "archive/../../outside",
        "/outside",
        "\\outside",
        "archive\\..\\..\\outside",
        "archive/data/..",
        "//outside",
        "archive/\x1b[2J",
    ],
)
def test_members_that_point_outside(tmp_path, name):
    folder = tmp_path / "in"
    folder.mkdir()
    write_zip(folder / "model.pt", {**GOOD, name: b"x"})
    refused(folder / "model.pt")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]
    assert [p.name for p in folder.iterdir()] == ["model.pt"]


@pytest.mark.parametrize("name", ["archive/data/0", "archive/data/1", "archive/link"])
def test_members_that_are_links(tmp_path, name):
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(16))
    link = zipfile.ZipInfo(name)
    link.create_system, link.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        for member, data in GOOD.items():
            if member != name:
                archive.writestr(member, data)
        archive.writestr(link, str(secret))
    refused(tmp_path / "model.pt")
    assert secret.read_bytes() == bytes(16)


def bomb(path: Path, compression: int) -> None:
    """320 MB of zeros in about 320 kB."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in GOOD.items():
            archive.writestr(name, data)
        info = zipfile.ZipInfo("archive/data/1")
        info.compress_type = compression
        with archive.open(info, "w", force_zip64=True) as f:
            for _ in range(20):
                f.write(bytes(16 << 20))


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED], ids=["deflate"])
def test_compression_bombs(tmp_path, compression):
    bomb(tmp_path / "model.pt", compression)
    refused(tmp_path / "model.pt", "the archive member 'archive/data/1' is not one that torch.save writes")


def test_compressed_pickle(tmp_path):
    write_zip(tmp_path / "model.pt", {**GOOD, "archive/data.pkl": bytes(64 << 20)}, zipfile.ZIP_DEFLATED)
    refused(tmp_path / "model.pt", "is not one that torch.save writes")


def patched(data: bytes, field: int, value: bytes) -> bytes:
    """The archive with a field of its last central directory entry overwritten."""
    at = data.rindex(b"PK\x01\x02") + field
    return data[:at] + value + data[at + len(value) :]


@pytest.mark.parametrize("claimed", [1 << 20, 0x7FFFFFFF, 0xFFFFFFFE])
def test_claimed_sizes(tmp_path, claimed):
    path = tmp_path / "model.pt"
    write_zip(path, GOOD)
    data = path.read_bytes()
    path.write_bytes(patched(data, 20, struct.pack("<II", claimed, claimed)))
    refused(path, "claims to unpack to more than its size")
    path.write_bytes(patched(data, 24, struct.pack("<I", claimed)))
    refused(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (8, b"\x01\x00"),  # encrypted
        (10, b"\x63\x00"),  # unknown compression
        (28, b"\xff\xff"),  # name length
        (30, b"\xff\xff"),  # extra length
        (42, b"\xff\xff\xff\x7f"),  # offset of the local header
        (42, b"\x00\x00\x00\x00"),  # the first member's
    ],
)
def test_broken_entries(tmp_path, field, value):
    path = tmp_path / "model.pt"
    write_zip(path, GOOD)
    path.write_bytes(patched(path.read_bytes(), field, value))
    refused(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_twice(tmp_path):
    path = tmp_path / "model.pt"
    write_zip(path, [*GOOD.items(), ("archive/data.pkl", b"\x80\x02}.")])
    refused(path, "names twice, or parts that do not belong")
    write_zip(path, {**GOOD, "ARCHIVE/data.pkl": b"\x80\x02}."})
    refused(path, "names twice, or parts that do not belong")


def test_archive_behind_or_before_something_else(tmp_path):
    path = tmp_path / "model.pt"
    write_zip(path, GOOD)
    data = path.read_bytes()
    for hidden in (b"PK\x03\x04" + data, data + data, data + b"trailing", data[:-2] + b"\x04\x00note", b"#!/bin/sh\n" + data):
        path.write_bytes(hidden)
        refused(path)


def test_members_without_number(tmp_path):
    """A million empty members: the table of contents is refused before anyone walks through it."""
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(60_000):
            archive.writestr(f"archive/data/{i}{'x' * 40}", b"")
    refused(path, "its table of contents has")
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\x01\x02", *(0,) * 3, 0, *(0,) * 4, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    count = 1_000_000
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, count * len(entry), 4)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 4 + count * len(entry), 1)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path.write_bytes(b"PK\x03\x04" + entry * count + end64 + locator + end)
    refused(path, "its table of contents has 47,000,000 bytes")


@pytest.mark.parametrize("missing", sorted(GOOD))
def test_missing_members(tmp_path, missing):
    path = tmp_path / "model.pt"
    write_zip(path, {n: d for n, d in GOOD.items() if n != missing})
    refused(path)


def test_an_archive_of_something_else(tmp_path):
    path = tmp_path / "model.pt"
    for members in ({"word/document.xml": b"<x/>"}, {"a": b"", "b": b""}, {}):
        write_zip(path, members)
        refused(path)
