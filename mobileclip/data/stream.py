"""The order of samples, a pure function of a seed: a run goes on exactly where it stopped, whatever the number of workers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mobileclip.data.shards import DamagedShard, Entry
from mobileclip.data.source import Shard, is_local, opened
from mobileclip.errors import InputError, StorageError


class Position(NamedTuple):
    """How far a stream is: `offset` samples of a window of an epoch are done. Positions compare in the stream's order."""

    epoch: int = 0
    window: int = 0
    offset: int = 0


START = Position()
_FETCHES = 4
"""At the same time."""
_EMPTY_EPOCHS = 10
"""In a row, for one process: then there is nothing. With few shards a process may meet only a damaged one now and then."""


@dataclass(frozen=True)
class Item:
    """One sample in the stream.

    Attributes:
        entry: Where it lies.
        seed: For all that is drawn at random for it.
        after: The position behind it.
    """

    entry: Entry
    seed: tuple[int, ...]
    after: Position


class Stream:
    """An endless stream of samples, each once an epoch, for one process of several.

    Every epoch has an order of shards of its own; several shards together, a window, are shuffled sample by sample. While a window is
    read, the next is fetched. Where there are fewer shards than processes, every process reads all of them and takes its share.

    Args:
        shards: See `find_shards`.
        seed: Of every order and of what is drawn for the samples.
        window: Shards to shuffle together.
        rank: Which process this is.
        world: How many there are.
        start: Where to begin.
    """

    def __init__(
        self, shards: Sequence[Shard], *, seed: int, window: int = 16, rank: int = 0, world: int = 1, start: Position = START
    ) -> None:
        self._shards, self._seed, self._window, self._rank, self._world = shards, seed, window, rank, world
        self._start = start
        self._thread = ThreadPoolExecutor(1, "shards")
        self._open: dict[tuple[int, int], Future[tuple[contextlib.ExitStack, list[Entry]]]] = {}

    def __iter__(self) -> Iterator[Item]:
        """Samples from the start position on.

        Raises:
            InputError: Several epochs hold no sample for this process.
        """
        epoch, window, offset = self._start
        found, empty, why = True, 0, ""
        while True:
            windows = self._windows(epoch)
            if window >= len(windows):
                empty = 0 if found else empty + 1
                if empty > _EMPTY_EPOCHS:
                    raise InputError(f"the data set has no sound sample for process {self._rank + 1} of {self._world}{why}")
                epoch, window, offset, found = epoch + 1, 0, 0, False
                continue
            _, entries = self._opening(epoch, window).result()
            self._opening(*((epoch, window + 1) if window + 1 < len(windows) else (epoch + 1, 0)))
            order = self._random(epoch, 1, window, self._rank).permutation(len(entries))
            found = found or not all(e.bad for e in entries)
            why = next((f"; {e.bad}: {e.detail or e.key}" for e in entries if e.bad), why)
            for i in range(offset, len(entries)):
                index = int(order[i])
                yield Item(entries[index], (self._seed, epoch, window, self._rank, index), Position(epoch, window, i + 1))
            window, offset = window + 1, 0

    def release(self, done: Position) -> None:
        """Remove fetched shards of the windows before `done`, whose samples have all been read."""
        for key in [k for k in self._open if k < done[:2]]:
            self._open.pop(key).result()[0].close()

    def close(self) -> None:
        """Remove everything that was fetched."""
        for future in self._open.values():
            if not future.cancel():
                with contextlib.suppress(Exception):
                    future.result()[0].close()
        self._open.clear()
        self._thread.shutdown()

    def _random(self, *path: int) -> np.random.Generator:
        return np.random.default_rng((self._seed, *path))

    def _windows(self, epoch: int) -> list[list[Shard]]:
        order = [self._shards[i] for i in self._random(epoch, 0).permutation(len(self._shards))]
        if len(order) >= self._world:
            order = order[self._rank :: self._world]
        return [order[i : i + self._window] for i in range(0, len(order), self._window)]

    def _opening(self, epoch: int, window: int) -> Future[tuple[contextlib.ExitStack, list[Entry]]]:
        key = (epoch, window)
        if key not in self._open:
            self._open[key] = self._thread.submit(self._opened, self._windows(epoch)[window])
        return self._open[key]

    def _opened(self, shards: list[Shard]) -> tuple[contextlib.ExitStack, list[Entry]]:
        with contextlib.ExitStack() as stack:
            with ThreadPoolExecutor(_FETCHES) as pool:
                parts = [pool.submit(_entries, shard) for shard in shards]
            for part in parts:
                if not part.exception():
                    stack.enter_context(part.result()[0])
            entries = [entry for part in parts for entry in part.result()[1]]
            if len(self._shards) < self._world:
                entries = entries[self._rank :: self._world]
            return stack.pop_all(), entries


def _entries(shard: Shard) -> tuple[contextlib.ExitStack, list[Entry]]:
    """A shard that cannot be read is one bad sample: a long run goes on, and counts it."""
    with contextlib.ExitStack() as stack:
        try:
            entries = stack.enter_context(opened(shard))
        except DamagedShard as e:
            entries = [Entry(shard.name, (), "damaged_shard", str(e))]
        except (InputError, StorageError) as e:
            if isinstance(e, InputError) and all(Path(place).exists() for place in shard.places if is_local(place)):
                raise  # a mistake in a table
            entries = [Entry(shard.name, (), "unreadable", str(e))]
        return stack.pop_all(), entries
