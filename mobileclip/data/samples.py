"""One sample of a data set as it is stored, and why one is skipped."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

from PIL import Image

from mobileclip.errors import InputError
from mobileclip.preprocess import open_image

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")

Reason = Literal[
    "bad_image", "bad_key", "bad_reinforcement", "damaged_shard", "duplicate", "no_caption", "no_image", "no_label", "no_reinforcement",
    "not_joined", "not_utf8", "too_large", "too_small", "unknown_label", "unreadable",
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
        """The real captions: `txt` (a text, or a JSON list of them), or in `json` under `captions`, `caption`, `texts` or `text`.

        Raises:
            BadSample: There is none, or it is no UTF-8 text.
        """
        try:
            if "txt" in self.members:
                found: Any = self.members["txt"].decode()
                if found.startswith('["'):
                    with contextlib.suppress(ValueError, RecursionError):  # a text that only looks like a list
                        found = json.loads(found)
            else:
                about = json.loads(self.members.get("json", b"{}").decode())
                found = next((about[key] for key in ("captions", "caption", "texts", "text") if about.get(key)), None)
            found = [found] if isinstance(found, str) else found
            captions = [c if isinstance(c, str) else "" for c in found] if isinstance(found, list) else []
            "".join(captions).encode()  # JSON can hold half a surrogate pair
        except UnicodeError:
            raise BadSample("not_utf8") from None
        except (ValueError, AttributeError, RecursionError):
            captions = []
        if not any(c.strip() for c in captions):
            raise BadSample("no_caption")
        return captions  # with empty ones, as embeddings are stored by number


def decode_image(content: bytes, *, upright: bool = True) -> Image.Image:
    """Decode a sample's picture, see `mobileclip.preprocess.open_image`.

    Raises:
        BadSample: `too_large` with more pixels than the limit, else `bad_image`.
    """
    try:
        return open_image(content, upright=upright)
    except InputError as e:
        raise BadSample("too_large" if isinstance(e.__cause__, Image.DecompressionBombError) else "bad_image", str(e)) from None


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

    def check(self, max_bad: float, at_least: int = 1000, *, option: str = "--max-bad", example: str = "") -> None:
        """Stop when too much is bad.

        Args:
            max_bad: Largest share of skipped samples, 0 to 1.
            at_least: Judge only from this many samples on; at the end of a data set use 1.
            option: What the user calls `max_bad`.
            example: One of the bad samples, for the message.

        Raises:
            InputError: Names the counts by reason.
        """
        if self.present >= at_least and self.bad_share > max_bad:
            last = f"; the last one: {example}" if example else ""
            raise InputError(
                f"{self.skipped.total():,} of {self.present:,} samples are bad ({self.reasons()}), more than {option} {max_bad:.2%}; "
                f"mend the data or allow more{last}"
            )

    def reasons(self) -> str:
        """For a message: `bad_image 3, no_caption 1`."""
        return ", ".join(f"{reason} {n:,}" for reason, n in sorted(self.skipped.items())) or "none"
