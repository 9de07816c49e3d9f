"""Pickles that would run code, or take all time or memory, when a checkpoint is read."""

from __future__ import annotations

import builtins
import io
import os
import pickle
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile import Gadget, pickled, refused, torch_parts, write_pickle, write_zip


def gadgets(marker: Path) -> dict[str, object]:
    touch = f"touch '{marker}'"
    return {
        "os.system": Gadget(os.system, touch),
        "eval": Gadget(builtins.eval, f"open({str(marker)!r}, 'w')"),
        "exec": Gadget(builtins.exec, f"open({str(marker)!r}, 'w')"),
        "open": Gadget(builtins.open, str(marker), "w"),
        "popen": Gadget(subprocess.Popen, ["touch", str(marker)]),
        "import": Gadget(builtins.__import__, "antigravity"),
        "torch.load": Gadget(torch.load, str(marker)),
        "numpy objects": np.array([Gadget(os.system, touch)], dtype=object),
        "path": marker,
    }


KINDS = sorted(gadgets(Path("x")))


@pytest.fixture
def marker(tmp_path) -> Path:
    return tmp_path / "code-was-run"


def create(path: Path, gadget: object, where: str) -> None:
    tensors = {"logit_scale": torch.zeros(())}
    value = {
        "alone": gadget,
        "value": {**tensors, "extra": gadget},
        "key": {**tensors, "state_dict": {**tensors, "inner": [gadget]}},
        "wrapper": {"args": gadget, "state_dict": tensors},
    }[where]
    torch.save(value, path)


@pytest.mark.parametrize("where", ["alone", "value", "key", "wrapper"])
@pytest.mark.parametrize("kind", KINDS)
def test_zip_archives(tmp_path, marker, kind, where):
    path = tmp_path / "model.pt"
    create(path, gadgets(marker)[kind], where)
    refused(path, "refused, it holds objects other than tensors", marker)


@pytest.mark.parametrize("kind", KINDS)
def test_formats_before_zip(tmp_path, marker, kind):
    path = tmp_path / "model.pt"
    torch.save({"weight": gadgets(marker)[kind]}, path, _use_new_zipfile_serialization=False)
    refused(path, "safetensors, or the zip archive that torch.save writes since PyTorch 1.6, is needed", marker)
    path.write_bytes(pickle.dumps({"weight": gadgets(marker)[kind]}))
    refused(path, "is needed", marker)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".safetensors", ""])
def test_the_suffix_opens_no_other_door(tmp_path, marker, suffix):
    path = tmp_path / f"model{suffix}"
    create(path, gadgets(marker)["os.system"], "value")
    refused(path, marker=marker)


def opcodes(marker: Path) -> dict[str, bytes]:
    command = f"touch '{marker}'".encode()
    text = b"X" + len(command).to_bytes(4, "little") + command
    short = b"\x8c\x02os\x8c\x06system\x93"
    return {
        "GLOBAL REDUCE": b"\x80\x02cos\nsystem\n" + text + b"\x85R.",
        "INST": b"(S'" + command.replace(b"'", b"") + b"'\nios\nsystem\n.",
        "OBJ": b"\x80\x02(cos\nsystem\n" + text + b"o.",
        "NEWOBJ": b"\x80\x02csubprocess\nPopen\n" + text + b"\x85\x81.",
        "STACK_GLOBAL": b"\x80\x04" + short + text + b"\x85R.",
        "BUILD": b"\x80\x02ctorch\nTensor\n)R}X\x0c\x00\x00\x00__setstate__cos\nsystem\nsb" + text + b"b.",
        "EXT1": b"\x80\x02\x82\x01.",
        "after STOP": b"\x80\x02}.cos\nsystem\n" + text + b"\x85R.",
        "nested pickle": b"\x80\x02c_pickle\nloads\n" + b"C\x04none" + b"\x85R.",
        "dotted name": b"\x80\x02ctorch\n_utils.os.system\n" + text + b"\x85R.",
        "python 2 name": b"\x80\x02c__builtin__\neval\n" + text + b"\x85R.",
        "torch.hub": b"\x80\x02ctorch.hub\nload\n" + text + b"\x85R.",
    }


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", sorted(opcodes(Path("x"))))
def test_opcodes(tmp_path, marker, kind):
    path = tmp_path / "model.pt"
    write_pickle(path, opcodes(marker)[kind])
    refused(path, marker=marker)


def test_second_pickle_hidden_in_the_archive(tmp_path, marker):
    """Readers that take another member than the one that was looked at would run it."""
    bad, good = opcodes(marker)["GLOBAL REDUCE"], torch_parts({})
    path = tmp_path / "model.pt"
    for extra in ("archive/DATA.PKL", "other/data.pkl", "data.pkl", "archive/constants.pkl"):
        write_zip(path, {**good, extra: bad})
        refused(path, marker=marker)
        write_zip(path, {extra: bad, **good})
        refused(path, marker=marker)


def test_torchscript(tmp_path):
    path = tmp_path / "model.pt"
    torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    refused(path)


def hash_bomb(levels: int, width: int) -> bytes:
    """A dictionary with a key of tuples in tuples: hashing it takes width ** levels steps."""
    program = b"\x80\x02}X\x01\x00\x00\x00a\x85q\x00"
    for i in range(levels):
        program += b"(" + (b"h" + bytes([i])) * width + b"tq" + bytes([i + 1])
    return program + b"K\x01s."


@pytest.mark.parametrize(("levels", "width"), [(60, 2), (30, 4), (10, 25)])
def test_hash_bombs(tmp_path, levels, width):
    write_pickle(tmp_path / "model.pt", hash_bomb(levels, width))
    refused(tmp_path / "model.pt", "its tuples are nested as in no checkpoint")


ALLOCATIONS = {
    "bytearray": b"\x80\x02cbuiltins\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x10\x85R.",
    "set of bytearray": b"\x80\x02cbuiltins\nset\ncbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R\x85R.",
    "Size of bytearray": b"\x80\x02ctorch\nSize\ncbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R\x85R.",
    "Tensor": b"\x80\x02ctorch\nTensor\n\x8a\x06\x00\x00\x00\x00\x00\x10\x85R.",
    "Counter": b"\x80\x02ccollections\nCounter\ncbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R\x85R.",
}


@pytest.mark.parametrize("kind", sorted(ALLOCATIONS))
def test_allocations(tmp_path, kind):
    write_pickle(tmp_path / "model.pt", ALLOCATIONS[kind])
    refused(tmp_path / "model.pt", "refused, it holds objects other than tensors")


def test_very_long_pickle(tmp_path):
    write_pickle(tmp_path / "model.pt", b"\x80\x02" + b"N0" * (20 << 20) + b"}.")
    refused(tmp_path / "model.pt", "its list of tensors has 41,943,044 bytes")


def test_deep_nesting(tmp_path):
    for opening, closing in ((b"]" * 300_000, b"a" * 299_999), (b"(" * 300_000, b""), (b"}", b"\x85" * 300_000)):
        write_pickle(tmp_path / "model.pt", b"\x80\x02" + opening + closing + b".")
        refused(tmp_path / "model.pt")


@pytest.mark.parametrize(
    "value",
    [
        [],
        1,
        "text",
        None,
        torch.zeros(3),
        {},
        {"state_dict": {}},
        {1: torch.zeros(1)},
        {"a": 1},
        {"a": {"b": torch.zeros(1)}},
        {"a\n\x1b[31m": 1},
    ],
)
def test_values_that_are_no_state_dict(tmp_path, value):
    torch.save(value, tmp_path / "model.pt")
    refused(tmp_path / "model.pt")


def tar(path: Path, members: list[tarfile.TarInfo], data: bytes = b"x") -> None:
    with tarfile.open(path, "w") as archive:
        for m in members:
            m.size = len(data) if m.isreg() else 0
            archive.addfile(m, io.BytesIO(data))


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize("suffix", [".pt", ".tar", ".safetensors"])
def test_tar_archives_are_never_unpacked(tmp_path, marker, suffix):
    """The oldest torch format is a tar archive, which a reader would unpack."""
    folder = tmp_path / "in"
    folder.mkdir()
    path = folder / f"model{suffix}"
    for members in (
        [member("storages"), member("tensors"), member("pickle")],
        [member(f"../{marker.name}")],
        [member(str(marker))],
        [member("storages", tarfile.SYMTYPE, str(tmp_path)), member(f"storages/{marker.name}")],
        [member("storages", tarfile.LNKTYPE, "/etc/passwd")],
        [member("storages", tarfile.CHRTYPE)],
        [member("storages", tarfile.FIFOTYPE)],
    ):
        tar(path, members, pickled(Gadget(os.system, f"touch '{marker}'")))
        refused(path, marker=marker)
        assert [p.name for p in folder.iterdir()] == [path.name]
        assert [p.name for p in tmp_path.iterdir()] == ["in"]
