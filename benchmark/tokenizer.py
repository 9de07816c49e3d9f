"""Throughput of the tokenizer next to open_clip's on the same ordinary captions: `python -m mobileclip.benchmark.tokenizer`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mobileclip.files import require
from mobileclip.tokenizer import Tokenizer


def measure(captions_count: int = 10_000, rounds: int = 7) -> dict[str, Any]:
    """Time both tokenizers in turn on ImageNet prompts, with warm caches, and time the construction of ours.

    Returns:
        Median captions per second of each, the ratio of each round with its median, and construction times in ms.

    Raises:
        MissingToolError: open_clip is not installed.
        RuntimeError: The ids differ.
    """
    require("open_clip", "open-clip", "the comparison")
    from open_clip.tokenizer import SimpleTokenizer
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES

    prompts = [template(name) for name in IMAGENET_CLASSNAMES for template in OPENAI_IMAGENET_TEMPLATES]
    captions = prompts[:: max(len(prompts) // captions_count, 1)][:captions_count]
    construction_ms = []
    for _ in range(rounds):
        start = time.perf_counter()
        ours = Tokenizer.clip()
        construction_ms.append((time.perf_counter() - start) * 1e3)
    theirs = SimpleTokenizer()
    if not np.array_equal(ours(captions), theirs(captions).numpy()):
        raise RuntimeError("the two tokenizers disagree, so their speeds cannot be compared")
    times_s = [(_seconds(ours, captions), _seconds(theirs, captions)) for _ in range(rounds)]
    return {
        "captions": len(captions),
        "rounds": rounds,
        "ours_captions_per_s": len(captions) / statistics.median(t[0] for t in times_s),
        "open_clip_captions_per_s": len(captions) / statistics.median(t[1] for t in times_s),
        "ratios": [theirs_s / ours_s for ours_s, theirs_s in times_s],
        "ratio": statistics.median(theirs_s / ours_s for ours_s, theirs_s in times_s),
        "first_construction_ms": construction_ms[0],
        "construction_ms": statistics.median(construction_ms),
    }


def _seconds(tokenize: Callable[[list[str]], Any], captions: Sequence[str]) -> float:
    start = time.perf_counter()
    tokenize(list(captions))
    return time.perf_counter() - start


def main() -> None:
    """Print what `measure` finds."""
    r = measure()
    ratios = " ".join(f"{x:.1f}" for x in r["ratios"])
    lines = [
        f"ours       {r['ours_captions_per_s']:>10,.0f} captions/s (median of {r['rounds']} rounds of {r['captions']:,})",
        f"open_clip  {r['open_clip_captions_per_s']:>10,.0f} captions/s",
        f"ratio      {r['ratio']:>10.1f} (rounds: {ratios})",
        f"construct  {r['construction_ms']:>10.0f} ms (first {r['first_construction_ms']:.0f} ms)",
    ]
    print("\n".join(lines))  # noqa: T201


if __name__ == "__main__":
    main()
