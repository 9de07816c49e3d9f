"""Reinforced samples made to run code, to exhaust memory or time, or to pass for whole when they are not."""

from __future__ import annotations

import gzip
import io
import json
import random
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile import Gadget, pickled, torch_parts, write_zip
from test_pickles import ALLOCATIONS, KINDS, gadgets, hash_bomb, opcodes

from mobileclip.data.embeddings import MAX_BYTES, Reinforcement, read, write
from mobileclip.data.samples import BadSample

SLOWEST_S = 10.0
GROWTH_BYTES = 150 << 20


def stored() -> Reinforcement:
    rows = np.random.default_rng(0).standard_normal((8, 40)).astype(np.float32)
    augmentations = [[[0, 0, 5, 5], [[1, 0.09], [12, 0.0]]] for _ in range(3)]
    return Reinforcement(augmentations, {"syn_text": list("abcd")}, rows[:3], rows[3:4], {"syn_text": rows[4:]})


FP32, BF16 = ({"txt": b"a cat"} | write(stored(), dtype) for dtype in ("fp32", "bf16"))


def refused(members: dict[str, bytes], match: str = "", marker: Path | None = None, reason: str = "bad_reinforcement") -> None:
    """The sample is refused with one short line, within seconds, and nothing of it was run."""
    started = time.process_time()
    with pytest.raises(BadSample, match=match or None) as e:
        read(members)
    assert time.process_time() - started < SLOWEST_S
    assert e.value.reason == reason
    assert len(str(e.value)) < 600
    assert str(e.value).isprintable()
    assert marker is None or not marker.exists(), "code in the sample was run"


def torch_gz(value: object) -> dict[str, bytes]:
    file = io.BytesIO()
    torch.save(value, file)
    return BF16 | {"pth.gz": gzip.compress(file.getvalue())}


def around(pickle: bytes, tmp_path: Path) -> dict[str, bytes]:
    """A torch archive with a pickle of one's own."""
    parts = torch_parts({"image_emb": torch.zeros(3, 40)})
    write_zip(tmp_path / "archive", {**parts, "archive/data.pkl": pickle})
    return BF16 | {"pth.gz": gzip.compress((tmp_path / "archive").read_bytes())}


def npz(members: dict[str, bytes] | list[tuple[str, bytes]], tmp_path: Path, compression: int = zipfile.ZIP_DEFLATED) -> dict[str, bytes]:
    write_zip(tmp_path / "archive", members, compression)
    return FP32 | {"npz": (tmp_path / "archive").read_bytes()}


def arrays() -> dict[str, bytes]:
    """The members of a good npz."""
    with zipfile.ZipFile(io.BytesIO(FP32["npz"])) as archive:
        return {m.filename: archive.read(m) for m in archive.infolist()}


def npy(descr: str, shape: str, data: bytes = b"") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def test_the_samples_are_good():
    assert len(read(FP32).image) == len(read(BF16).image) == 3
    assert FP32.keys() - BF16.keys() == {"npz"}


@pytest.mark.parametrize("kind", KINDS)
def test_pickles(tmp_path, kind):
    marker = tmp_path / "code-was-run"
    gadget = gadgets(marker)[kind]
    for value in (gadget, {"image_emb": gadget}, {"image_emb": [gadget]}, {"image_emb": torch.zeros(3, 40), "extra": gadget}):
        refused(torch_gz(value), "holds objects other than tensors", marker)
    refused(BF16 | {"pth.gz": gzip.compress(pickled({"image_emb": gadget}))}, "damaged", marker)
    refused(BF16 | {"pth.gz": pickled({"image_emb": gadget})}, "damaged", marker)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", sorted(opcodes(Path("x"))))
def test_opcodes(tmp_path, kind):
    marker = tmp_path / "code-was-run"
    refused(around(opcodes(marker)[kind], tmp_path), marker=marker)


@pytest.mark.parametrize("kind", sorted(ALLOCATIONS))
def test_pickles_that_allocate(tmp_path, kind):
    refused(around(ALLOCATIONS[kind], tmp_path))


def test_pickle_that_takes_all_time(tmp_path):
    refused(around(hash_bomb(60, 2), tmp_path))


def test_pickle_in_npz(tmp_path):
    marker = tmp_path / "code-was-run"
    file = io.BytesIO()
    objects = np.empty((3, 40), dtype=object)
    objects[:] = Gadget(Path.touch, marker)
    np.savez(file, image_emb=objects, text_emb=np.zeros((5, 40), np.float32))
    refused(FP32 | {"npz": file.getvalue()}, "is not a plain table of floats", marker)
    np.save(file := io.BytesIO(), objects)
    refused(FP32 | {"npz": file.getvalue()}, "truncated or damaged", marker)
    refused(npz({**arrays(), "extra": pickled(Gadget(Path.touch, marker))}, tmp_path), "is not a plain table of floats", marker)
    refused(FP32 | {"npz": pickled(Gadget(Path.touch, marker))}, "truncated or damaged", marker)


@pytest.mark.parametrize(
    "header",
    [
        npy("'|O'", "(3, 40)"),
        npy("'<f4'", "(3, 40, 1)", bytes(480)),
        npy("'<f4'", "(99999999, 99999999)"),
        npy("'<f4'", "(-3, 40)", bytes(480)),
        npy("'<f4'", f"({'9' * 5000}, 40)"),
        npy("'<f4'", "(3, 40)", bytes(479)),
        npy("'<f4'", "(3, 40)", bytes(481)),
        npy("[('a', '<f4')]", "(3, 40)", bytes(480)),
        npy("'<f4'", "(" * 5000),
        npy("__import__('os').system('true')", "(3, 40)"),
        b"",
        b"\x93NUMPY",
        b"\x93NUMPY\x03\x00\xff\xff\xff\xff",
    ],
)
def test_headers_of_arrays(tmp_path, header):
    refused(npz({**arrays(), "image_emb.npy": header}, tmp_path))


def bombs(tmp_path: Path, compression: int) -> list[bytes]:
    """256 MiB of zeros in an npz: as it is, and with sizes that claim to be small."""
    with zipfile.ZipFile(tmp_path / "bomb", "w", compression) as archive:
        for name, data in arrays().items():
            archive.writestr(name, data)
        with archive.open("image_embx.npy", "w", force_zip64=True) as f:
            for _ in range(16):
                f.write(bytes(16 << 20))
    content = (tmp_path / "bomb").read_bytes()
    at = content.rindex(b"PK\x01\x02") + 24
    return [content, *(content[:at] + struct.pack("<I", claimed) + content[at + 4 :] for claimed in (0, 100, 1 << 20))]


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_bombs_in_npz(tmp_path, compression):
    honest, *lies = bombs(tmp_path, compression)
    refused(FP32 | {"npz": honest}, reason="too_large")
    for lie in lies:
        refused(FP32 | {"npz": lie})


def test_bombs_in_gzip():
    bomb = gzip.compress(bytes(1 << 28), 1)
    refused(BF16 | {"pth.gz": bomb}, "unpacks to more than", reason="too_large")
    refused(BF16 | {"pth.gz": bomb + BF16["pth.gz"]}, "unpacks to more than", reason="too_large")
    refused(BF16 | {"pth.gz": gzip.compress(bomb)})


SCRIPT = """
import json, resource, sys
from pathlib import Path
from mobileclip.data import embeddings
good = {p.name: p.read_bytes() for p in Path(sys.argv[1]).iterdir()}
embeddings.read(good), embeddings.read({k: v for k, v in good.items() if k != "npz"})
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
for bad in sys.argv[2:]:
    kind = bad.rsplit("-")[-1]
    try:
        embeddings.read({k: v for k, v in good.items() if k != "npz"} | {kind: Path(bad).read_bytes()})
    except embeddings.BadSample:
        print(json.dumps(peak() - before))
"""


def test_memory_stays_bounded(tmp_path):
    """In a process of its own, whose peak is measured: the bombs, and tensors that claim terabytes."""
    (tmp_path / "good").mkdir()
    for name, content in (BF16 | FP32).items():
        (tmp_path / "good" / name).write_bytes(content)
    bad = [("npz", content) for content in bombs(tmp_path, zipfile.ZIP_DEFLATED)]
    bad += [
        ("pth.gz", gzip.compress(bytes(1 << 28), 1)),
        ("pth.gz", torch_gz({**GOOD, "image_emb": torch.ones(1).expand(1 << 40)})["pth.gz"]),
    ]
    bad += [("pth.gz", around(program, tmp_path)["pth.gz"]) for program in ALLOCATIONS.values()]
    paths = [tmp_path / f"{i}-{kind}" for i, (kind, _) in enumerate(bad)]
    for path, (_, content) in zip(paths, bad, strict=True):
        path.write_bytes(content)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "good"), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    peaks = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(peaks) == len(paths)
    assert max(peaks) < GROWTH_BYTES


@pytest.mark.parametrize("name", ["npz", "pth.gz", "syn.json", "paug.json"])
def test_members_without_end(name):
    members = (FP32 if name == "npz" else BF16) | {name: b"[" + b" " * (MAX_BYTES + 1)}
    refused(members, reason="too_large")


def test_something_before_or_behind_the_archives():
    refused(BF16 | {"pth.gz": BF16["pth.gz"] * 2}, "something behind its end")
    refused(BF16 | {"pth.gz": BF16["pth.gz"] + b"x"}, "something behind its end")
    plain = gzip.decompress(BF16["pth.gz"])
    for hidden in (plain + plain, b"#!/bin/sh\n" + plain, plain + b"x"):
        refused(BF16 | {"pth.gz": gzip.compress(hidden)})
    refused(FP32 | {"npz": FP32["npz"] + b"x"}, "truncated or damaged")
    refused(FP32 | {"npz": FP32["npz"][:-2] + b"\x04\x00note"}, "truncated or damaged")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_twice(tmp_path):
    refused(npz([*arrays().items(), ("image_emb.npy", arrays()["image_emb.npy"])], tmp_path), "names twice")
    parts = torch_parts({"image_emb": torch.zeros(3, 40)})
    write_zip(tmp_path / "archive", [*parts.items(), ("archive/data.pkl", b"\x80\x02}.")])
    refused(BF16 | {"pth.gz": gzip.compress((tmp_path / "archive").read_bytes())}, "names twice")


def test_members_without_number(tmp_path):
    refused(npz({**arrays(), **{f"{i}.npy": b"" for i in range(100)}}, tmp_path), "names twice, or too many")
    refused(npz({**arrays(), **{f"{i}.npy": b"" for i in range(20_000)}}, tmp_path), "truncated or damaged")


@pytest.mark.parametrize(("field", "value"), [(8, b"\x01\x00"), (10, b"\x63\x00"), (42, b"\xff\xff\xff\x7f")])
def test_broken_entries(field, value):
    content = FP32["npz"]
    at = content.rindex(b"PK\x01\x02") + field
    refused(FP32 | {"npz": content[:at] + value + content[at + len(value) :]})


def test_checksums():
    """A changed number is noticed, wherever it is."""
    draw = random.Random(3)
    text = arrays()
    plain = text["text_emb.npy"]
    content = bytearray(FP32["npz"])
    start = content.index(b"PK\x01\x02")
    raw = zlib.crc32(plain).to_bytes(4, "little")
    assert raw in content[start:]
    content[content.index(raw, start)] ^= 1
    refused(FP32 | {"npz": bytes(content)}, "BadZipFile")
    for _ in range(20):
        damaged = bytearray(BF16["pth.gz"])
        damaged[draw.randrange(10, len(damaged))] ^= 1 << draw.randrange(8)
        refused(BF16 | {"pth.gz": bytes(damaged)})


@pytest.mark.parametrize("name", ["npz", "pth.gz", "syn.json", "paug.json"])
@pytest.mark.parametrize("part", range(64))
def test_truncated(name, part):
    members = FP32 if name == "npz" else BF16
    refused(members | {name: members[name][: len(members[name]) * part // 64]})


def test_truncated_archive_in_a_whole_gzip():
    plain = gzip.decompress(BF16["pth.gz"])
    for part in range(64):
        refused(BF16 | {"pth.gz": gzip.compress(plain[: len(plain) * part // 64])})


NUMBERS = {"nan": np.nan, "infinite": np.inf, "minus infinite": -np.inf, "huge": 1e30}


@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers(kind):
    for name, rows in (("image_emb", 3), ("text_emb", 5)):
        for row in range(rows):
            tables = {"image_emb": np.array(stored().image), "text_emb": np.ones((5, 40), np.float32)}
            tables[name][row, 39] = NUMBERS[kind]
            file = io.BytesIO()
            np.savez_compressed(file, **tables)
            refused(FP32 | {"npz": file.getvalue()}, "NaN, infinite or huge numbers")
            refused(torch_gz({k: torch.tensor(v).bfloat16() for k, v in tables.items()}), "NaN, infinite or huge numbers")


GOOD = {"image_emb": torch.ones(3, 40), "text_emb": torch.ones(5, 40)}
TENSORS = {
    "too few": {**GOOD, "image_emb": torch.ones(2, 40)},
    "too many": {**GOOD, "image_emb": torch.ones(4, 40)},
    "none": {**GOOD, "image_emb": []},
    "other width": {**GOOD, "image_emb": torch.ones(3, 41)},
    "ragged": {**GOOD, "image_emb": [torch.ones(40), torch.ones(41), torch.ones(40)]},
    "scalars": {**GOOD, "image_emb": [torch.ones(())] * 3},
    "tables in a list": {**GOOD, "image_emb": [torch.ones(1, 40)] * 3},
    "integers": {**GOOD, "image_emb": torch.ones(3, 40, dtype=torch.int64)},
    "three axes": {**GOOD, "image_emb": torch.ones(3, 40, 1)},
    "no tensors": {**GOOD, "image_emb": [[1.0] * 40] * 3},
    "a number": {**GOOD, "image_emb": 3},
    "names that are none": {**GOOD, 3: torch.ones(1)},
    "no dictionary": [GOOD],
    "a tensor": torch.ones(3, 40),
    "nothing": {},
}


@pytest.mark.parametrize("kind", TENSORS)
def test_tensors(kind):
    refused(torch_gz(TENSORS[kind]))


def test_tensors_of_one_number():
    """A stride of 0 makes terabytes of four bytes."""
    for value in (torch.ones(1).expand(1 << 40), torch.ones(1, 1).expand(3, 1 << 33), [torch.ones(1).expand(1 << 40)] * 3):
        refused(torch_gz({**GOOD, "image_emb": value}), "is larger than", reason="too_large")


@pytest.mark.parametrize("size", [b"M\x10\x27", b"\x8a\x05\x00\x00\x00\x00\x01"])
def test_tensors_beyond_their_storage(tmp_path, size):
    """10,000 and 2^32 rows of a storage of 120 numbers."""
    parts = torch_parts({"image_emb": torch.zeros(3, 40)})
    pickle = parts["archive/data.pkl"]
    shape = b"K\x03K(\x86"
    assert pickle.count(shape) == 1
    refused(around(pickle.replace(shape, size + b"K(\x86"), tmp_path))


@pytest.mark.parametrize("name", ["paug.json", "syn.json"])
@pytest.mark.parametrize(
    "content",
    [
        b"[" * 500_000,
        b'{"param_aug": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"syn_text": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
        b'{"param_aug": [[[0, 0, 5, ' + b"9" * 100_000 + b"]]]}",
        b'{"syn_text": ' + b"9" * 100_000 + b"}",
        b'{"param_aug": [[[0, 0, 5, 1e999]]], "syn_text": [1e999]}',
        b'{"param_aug": [[[0, 0, 5, 5], [[1, NaN]]]], "syn_text": NaN}',
        b'{"param_aug": [[[0, 0, 5, 5], [[1, -Infinity]]]], "syn_text": [-Infinity]}',
        b'{"param_aug": "' + b"[" * 100_000 + b'", "syn_text": []}',
        b'{"param_aug": "\\"[]\\"", "syn_text": ["a", null, "c", "d"]}',
        b'{"param_aug": {}, "syn_text": {}}',
        b'{"param_aug": null, "syn_text": null}',
        b'{"param_aug": [], "syn_text": []}',
        b"[]",
        b"null",
        b"3",
        b"",
    ],
)
def test_json(name, content):
    refused(BF16 | {name: content})


@pytest.mark.parametrize("name", ["txt", "syn.json", "paug.json"])
def test_not_utf8(name):
    refused(BF16 | {name: b'{"syn_text": ["\xff"]}'}, reason="not_utf8")
    refused(BF16 | {name: json.dumps({"syn_text": ["a"]}).encode("utf-16")}, reason="not_utf8")


def test_half_characters():
    refused(BF16 | {"syn.json": b'{"syn_text": ["a", "b", "c", "\\ud83d"]}'}, reason="not_utf8")


def test_too_many():
    refused(BF16 | {"paug.json": json.dumps({"param_aug": [[[0, 0, 5, 5]]] * 1001}).encode()}, "1 to 1000 augmentations")
    refused(BF16 | {"syn.json": json.dumps({"syn_text": ["a"] * 1001}).encode()}, "1 to 1000 captions")


def test_hostile_names_in_messages(tmp_path):
    members = npz({**arrays(), "\x1b[2J" + "x" * 500 + ".npy": b""}, tmp_path)
    refused(members, "is not a plain table of floats")
    refused(torch_gz({**GOOD, "\x1b[2J" + "x" * 5000: 3}), "is not a tensor of floats")
    refused(BF16 | {"syn.json": json.dumps({"syn_text\x1b[2J" + "x" * 5000: 3}).encode()})
