"""What a source of pictures and captions gives to be rendered and packed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from mobileclip.data.packages import Package
from mobileclip.data.samples import Tally


@dataclass(frozen=True)
class Item:
    """One picture with its caption, not yet rendered."""

    uid: str
    style: str
    split: str
    caption: str
    details: dict[str, object]
    """More members of the sample's JSON."""
    picture: str | bytes
    """A whole SVG document, or the bytes of a PNG or WebP."""
    trim: bool = False
    """Whether empty margins are cut off a PNG or WebP."""


@dataclass
class Gathered:
    """All pictures of a source. `tallies` holds, by style, what was left out so far and why; what is rendered is added to it."""

    packages: tuple[Package, ...]
    items: list[Item] = field(default_factory=list)
    tallies: dict[str, Tally] = field(default_factory=dict)
    tables: dict[str, list[dict[str, object]]] = field(default_factory=dict)
    """JSON lines files to stand beside the shards."""


def uid_of(*parts: str) -> str:
    """32 hex digits that depend on the parts only."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def shuffled(names: Iterable[str], seed: int) -> list[str]:
    """The names in an order drawn by `seed`, the same with every version of Python."""
    return sorted(set(names), key=lambda name: (hashlib.sha256(f"{seed}\0{name}".encode()).digest(), name))


def held_out(names: Iterable[str], share: float, seed: int) -> frozenset[str]:
    """A share of the names (0 to 1, rounded to whole names), drawn by `seed`."""
    order = shuffled(names, seed)
    return frozenset(order[: round(share * len(order))])
