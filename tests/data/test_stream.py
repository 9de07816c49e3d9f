"""The order of samples: complete, shuffled, the same again, and resumable anywhere."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import pytest

from mobileclip.data.shards import write_shard
from mobileclip.data.source import find_shards
from mobileclip.data.stream import Position, Stream
from mobileclip.errors import InputError

SIZES = (3, 7, 1, 5, 4)
TOTAL = sum(SIZES)


@pytest.fixture
def shards(tmp_path):
    for n, size in enumerate(SIZES):
        write_shard(tmp_path / f"{n:05}.tar", [(f"{n}-{i}", {"txt": b"x"}) for i in range(size)])
    return find_shards([str(tmp_path)])


def take(stream, count):
    try:
        return list(itertools.islice(stream, count))
    finally:
        stream.close()


def keys(items):
    return [item.entry.key for item in items]


@pytest.mark.parametrize("window", [1, 2, 16])
def test_each_sample_once_an_epoch(shards, window):
    items = take(Stream(shards, seed=0, window=window), 3 * TOTAL)
    epochs = [keys(items[i : i + TOTAL]) for i in range(0, 3 * TOTAL, TOTAL)]
    assert all(len(set(epoch)) == TOTAL for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert [item.after.epoch for item in items] == [0] * TOTAL + [1] * TOTAL + [2] * TOTAL
    assert len({item.seed for item in items}) == len(items)


def test_the_seed_decides(shards):
    first, again, other = (keys(take(Stream(shards, seed=seed), TOTAL)) for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize("window", [1, 2, 16])
def test_goes_on_at_any_position(shards, window):
    whole = take(Stream(shards, seed=3, window=window), 2 * TOTAL)
    for done in range(1, TOTAL + 3):
        rest = take(Stream(shards, seed=3, window=window, start=whole[done - 1].after), 5)
        assert rest == whole[done : done + 5]


@pytest.mark.parametrize("world", [2, 3, 5, 7])
def test_processes_share_an_epoch(shards, world):
    """Also where there are fewer shards than processes; each process then takes samples of all shards."""
    seen = Counter()
    for rank in range(world):
        stream = Stream(shards, seed=0, rank=rank, world=world)
        seen.update(keys(itertools.takewhile(lambda item: item.after.epoch == 0, stream)))
        stream.close()
    assert len(seen) == TOTAL
    assert set(seen.values()) == {1}


def test_without_samples(tmp_path):
    write_shard(tmp_path / "0.tar", [])
    with pytest.raises(InputError, match="no sound sample"):
        take(Stream(find_shards([str(tmp_path)]), seed=0), 1)


def test_a_broken_shard_is_one_bad_sample(shards, tmp_path):
    (tmp_path / "00001.tar").write_bytes(b"garbage" * 1000)
    (tmp_path / "00002.tar").unlink()
    items = take(Stream(shards, seed=0), 14)
    epoch = [item.entry for item in items if item.after.epoch == 0]
    assert sorted(e.bad for e in epoch if e.bad) == ["damaged_shard", "unreadable"]
    assert len(epoch) == TOTAL - SIZES[1] - SIZES[2] + 2


def test_a_mistake_in_a_table_stops(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"image": "a.png", "caption": "x"}\nno json\n')
    with pytest.raises(InputError, match=r"t\.jsonl:2"):
        take(Stream(find_shards([f"{tmp_path}/t.jsonl"]), seed=0), 1)


def test_a_process_may_meet_a_damaged_shard_now_and_then(shards, tmp_path):
    (tmp_path / "00001.tar").write_bytes(b"garbage" * 1000)
    items = take(Stream(shards[:2], seed=0, rank=0, world=2), 20 * SIZES[0])
    assert {item.entry.bad for item in items} == {None, "damaged_shard"}


def test_positions_are_ordered():
    assert Position(0, 5, 3) < Position(0, 5, 4) < Position(0, 6, 0) < Position(1, 0, 0)


def test_fetched_shards_are_removed(tmp_path):
    """Commands stand for anything remote: fetched window by window, removed when done."""
    for n in range(6):
        write_shard(tmp_path / f"{n}.tar", [(f"{n}-{i}", {"txt": b"x"}) for i in range(4)])
    shards = find_shards([f"pipe:cat {tmp_path}/{{0..5}}.tar"])
    assert len(shards) == 6
    stream = Stream(shards, seed=0, window=2)
    iterator = iter(stream)
    paths = []
    for _ in range(24):
        item = next(iterator)
        paths.append(item.entry.parts[0].path)
        stream.release(item.after)
    here = [Path(p).exists() for p in paths]
    assert here == [False] * 16 + [True] * 8
    assert keys(take(Stream(shards, seed=0, window=2), 24)) == keys(take(Stream(shards, seed=0, window=2), 24))
    stream.close()
    assert not any(Path(p).exists() for p in paths)


def test_a_failing_command(tmp_path):
    shards = find_shards(["pipe:echo no such bucket >&2; exit 3"])
    assert take(Stream(shards, seed=0), 1)[0].entry.bad == "unreadable"
    with pytest.raises(InputError, match=r"no sound sample for process 1 of 1; unreadable: .*exit code 3 \(no such bucket\)"):
        take(Stream(shards, seed=0), 30)
