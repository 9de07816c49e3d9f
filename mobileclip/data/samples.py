"""One sample of a data set as it is stored, and why one is skipped."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mobileclip.errors import InputError

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
MAX_CAPTIONS = 1000
"""Of one picture; published sets have up to 6."""
_MAX_TEXT_BYTES = 1 << 20

Reason = Literal[
    "bad_image", "bad_reinforcement", "damaged_shard", "duplicate", "no_caption", "no_image", "no_reinforcement", "not_joined",
    "not_utf8", "too_large", "too_small", "unreadable",
]  # fmt: skip
"""Why a sample is skipped; the only vocabulary, in reports and logs alike."""


class BadSample(Exception):
    """A sample that cannot be used; it is skipped and counted, and does not stop a run."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason: Reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Sample:
    """Members of one sample: extension (behind the first dot of the file's name, lower case, for example `syn.json`) to content."""

    key: str
    members: dict[str, bytes]

    def image(self) -> bytes:
        """The picture's bytes, as stored.

        Raises:
            BadSample: There is none.
        """
        for extension in IMAGE_EXTENSIONS:
            if extension in self.members:
                return self.members[extension]
        raise BadSample("no_image")

    def captions(self) -> list[str]:
        """See `real_captions`."""
        return real_captions(self.members)


def real_captions(members: Mapping[str, bytes]) -> list[str]:
    """The captions that came with the picture: `txt` (one caption, or a JSON list of them), or else `texts` or `text` in `json`.

    Raises:
        BadSample: `no_caption`, `not_utf8`, or `bad_reinforcement` for JSON that is none.
    """
    if "txt" in members:
        text = _text(members, "txt").strip()
        if text.startswith('["'):
            try:
                return _captions(json.loads(text), "txt")
            except (ValueError, RecursionError):
                pass  # a caption that only looks like a list
        found: object = text
    else:
        stored = json_object(members, "json") if "json" in members else {}
        found = next((stored[key] for key in ("texts", "text", "captions", "caption") if stored.get(key)), None)
    captions = _captions(found, "captions") if found else []
    if not any(c.strip() for c in captions):
        raise BadSample("no_caption")
    return captions


def synthetic_captions(members: Mapping[str, bytes], pattern: str = r"^syn_text.*$") -> dict[str, list[str]]:
    """The synthetic captions under each key of `syn.json` that matches (`re.match`); none without the member.

    Raises:
        BadSample: `not_utf8`, `too_large` or `bad_reinforcement`.
    """
    stored = json_object(members, "syn.json") if "syn.json" in members else {}
    return {key: _captions(value, f"syn.json: {key}") for key, value in stored.items() if re.match(pattern, key)}


def json_object(members: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """A member that holds a JSON object.

    Raises:
        BadSample: `not_utf8`, `too_large`, or `bad_reinforcement` for anything else.
    """
    try:
        value = json.loads(_text(members, name))
    except (ValueError, RecursionError):
        raise BadSample("bad_reinforcement", f"{name}: is not JSON") from None
    if not isinstance(value, dict):
        raise BadSample("bad_reinforcement", f"{name}: is not an object")
    return value


def _text(members: Mapping[str, bytes], name: str) -> str:
    if len(members[name]) > _MAX_TEXT_BYTES:
        raise BadSample("too_large", f"{name}: {len(members[name]):,} bytes")
    try:
        return members[name].decode()
    except UnicodeDecodeError:
        raise BadSample("not_utf8", name) from None


def _captions(value: object, name: str) -> list[str]:
    captions = [value] if isinstance(value, str) else value
    if not isinstance(captions, list) or not 0 < len(captions) <= MAX_CAPTIONS or not all(isinstance(c, str) for c in captions):
        raise BadSample("bad_reinforcement", f"{name}: is not a list of 1 to {MAX_CAPTIONS} captions")
    try:
        "".join(captions).encode()
    except UnicodeEncodeError:  # JSON can hold half a surrogate pair
        raise BadSample("not_utf8", name) from None
    return captions


@dataclass
class Tally:
    """How many samples were used, and how many were skipped for which reason: seen + skipped = present, exactly."""

    seen: int = 0
    skipped: Counter[str] = field(default_factory=Counter)

    @property
    def present(self) -> int:
        """All samples that were met."""
        return self.seen + self.skipped.total()

    @property
    def bad_share(self) -> float:
        """Skipped / present; 0 where nothing was met."""
        return self.skipped.total() / max(self.present, 1)

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.seen + other.seen, self.skipped + other.skipped)

    def check(self, max_bad: float, at_least: int = 1000) -> None:
        """Stop when too much is bad.

        Args:
            max_bad: Largest share of skipped samples, 0 to 1.
            at_least: Judge only from this many samples on; at the end of a data set use 1.

        Raises:
            InputError: Names the counts by reason.
        """
        if self.present >= at_least and self.bad_share > max_bad:
            raise InputError(
                f"{self.skipped.total():,} of {self.present:,} samples are bad ({self.reasons()}), more than --max-bad {max_bad:.2%}; "
                "mend the data or allow more"
            )

    def reasons(self) -> str:
        """For a message: `bad_image 3, no_caption 1`."""
        return ", ".join(f"{reason} {n:,}" for reason, n in sorted(self.skipped.items())) or "none"
