"""Shards: what is written is read, and nothing is lost silently."""

from __future__ import annotations

import io
import tarfile

import pytest

from mobileclip.data.samples import BadSample, Sample, Tally
from mobileclip.data.shards import DamagedShard, index_shard, read_entry, read_shard, write_shard
from mobileclip.errors import InputError

SAMPLES = [(f"{i:032x}", {"txt": f"caption {i}".encode(), "jpg": bytes([i]) * (600 * i), "syn.json": b"{}"}) for i in range(1, 6)]


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "00000.tar"
    assert write_shard(path, SAMPLES) == len(SAMPLES)
    return path


def split(path):
    read = list(read_shard(path))
    return [s for s in read if isinstance(s, Sample)], [s.reason for s in read if isinstance(s, BadSample)]


def test_round_trip(shard):
    samples, bad = split(shard)
    assert not bad
    assert [(s.key, s.members) for s in samples] == SAMPLES


def test_layout(shard):
    """Members of a sample together, sorted by extension; two writings are the same bytes."""
    with tarfile.open(shard) as tar:
        members = tar.getmembers()
    assert [m.name.split(".", 1)[1] for m in members] == ["jpg", "syn.json", "txt"] * len(SAMPLES)
    assert {(m.mode, m.mtime, m.type) for m in members} == {(0o444, 0, tarfile.REGTYPE)}
    first = shard.read_bytes()
    write_shard(shard, reversed(SAMPLES))
    assert shard.read_bytes() != first
    write_shard(shard, SAMPLES)
    assert shard.read_bytes() == first


@pytest.mark.parametrize("share", range(2, 64))
def test_truncated(shard, share):
    """Everything before the cut is there, unchanged; the cut itself is reported, unless only padding behind the end mark is lost."""
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) * share // 64])
    samples, bad = split(shard)
    assert [(s.key, s.members) for s in samples] == SAMPLES[: len(samples)]
    assert bad == ["damaged_shard"] * (len(samples) < len(SAMPLES))


@pytest.mark.parametrize("at", range(10))
def test_broken_header(shard, at):
    data = bytearray(shard.read_bytes())
    with tarfile.open(shard) as tar:
        offset = tar.getmembers()[at].offset
    data[offset + 148 : offset + 156] = b"garbage!"
    shard.write_bytes(data)
    if at == 0:
        with pytest.raises(InputError, match="not a tar file"):
            index_shard(shard)
        return
    samples, bad = split(shard)
    assert bad == ["damaged_shard"]
    assert len(samples) == (at - 1) // 3


@pytest.mark.parametrize("content", [b"", b"not a tar file" * 100, b"\0" * 10240])
def test_not_a_shard(tmp_path, content):
    path = tmp_path / "x.tar"
    path.write_bytes(content)
    if content.startswith(b"\0"):
        assert index_shard(path) == []
        return
    with pytest.raises(InputError, match="not a tar file"):
        index_shard(path)


def raw(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content, kind in members:
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, len(content)
            if kind == tarfile.SYMTYPE:
                info.linkname = "/etc/passwd"
            tar.addfile(info, io.BytesIO(content))


def test_hostile_members(tmp_path):
    path = tmp_path / "x.tar"
    raw(path, [
        ("a.txt", b"", tarfile.SYMTYPE), ("b.txt", b"fine", tarfile.REGTYPE), ("c.txt", b"1", tarfile.REGTYPE),
        ("c.txt", b"2", tarfile.REGTYPE), ("b.txt", b"again", tarfile.REGTYPE), ("../d.TXT", b"name only", tarfile.REGTYPE),
        ("e.fifo", b"", tarfile.FIFOTYPE),
    ])  # fmt: skip
    samples, bad = split(path)
    assert bad == ["damaged_shard", "damaged_shard", "duplicate", "damaged_shard"]
    assert [s.key for s in samples] == ["b", "../d"]
    assert samples[1].members == {"txt": b"name only"}


@pytest.mark.parametrize("size", [-512, -1024, -1536, -100_000, -(1 << 70)])
@pytest.mark.parametrize("member", range(3))
def test_members_of_negative_size(tmp_path, size, member):
    """tarfile goes back to them for ever."""
    path = tmp_path / "x.tar"
    write_shard(path, [(str(n), {"txt": b"x"}) for n in range(3)])
    content = bytearray(path.read_bytes())
    header = content[1024 * member : 1024 * member + 512]
    header[124:136] = size.to_bytes(12, "big", signed=True)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    content[1024 * member : 1024 * member + 512] = header
    path.write_bytes(content)
    if member:
        assert split(path)[1] == ["damaged_shard"]
    else:
        with pytest.raises(DamagedShard, match="negative size"):
            index_shard(path)


def test_sparse_members(tmp_path):
    """Their bytes are not where their size tells."""
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name, headers in (("a.txt", {"GNU.sparse.size": "600", "GNU.sparse.map": "0,1"}), ("b.txt", {})):
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = 5, headers
            tar.addfile(info, io.BytesIO(b"hello"))
    samples, bad = split(tmp_path / "x.tar")
    assert ([s.key for s in samples], bad) == (["b"], ["damaged_shard"])


def test_file_that_shrinks(shard):
    """The index is old: the sample is skipped, not misread."""
    entries = index_shard(shard)
    shard.write_bytes(shard.read_bytes()[: entries[3].parts[0].offset + 5])
    assert read_entry(entries[0]).members == SAMPLES[0][1]
    with pytest.raises(BadSample, match="damaged_shard"):
        read_entry(entries[3])
    shard.unlink()
    with pytest.raises(BadSample, match="unreadable"):
        read_entry(entries[0])


@pytest.mark.parametrize("key", ["", "a.b", "a/b"])
def test_unwritable_key(tmp_path, key):
    with pytest.raises(InputError, match="key"):
        write_shard(tmp_path / "x.tar", [(key, {"txt": b""})])
    assert not list(tmp_path.iterdir())


def test_tally():
    tally = Tally()
    tally.seen = 990
    tally.skipped.update({"bad_image": 9, "no_caption": 1})
    assert tally.present == 1000
    tally.check(0.01)
    tally.skipped["no_caption"] += 1
    with pytest.raises(InputError, match=r"11 of 1,001 samples are bad \(bad_image 9, no_caption 2\)"):
        tally.check(0.01)
