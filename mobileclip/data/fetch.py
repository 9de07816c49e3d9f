"""`data fetch`: pinned packages to shards of rendered pictures with captions, splits, counts, licences and attributions."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import tempfile
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from mobileclip import __version__
from mobileclip.data import clipart, emoji
from mobileclip.data.items import Gathered, Item, shuffled
from mobileclip.data.packages import Package, obtain
from mobileclip.data.samples import Tally
from mobileclip.data.shards import write_shard
from mobileclip.data.svg import webp
from mobileclip.errors import InputError
from mobileclip.files import STAGING_PREFIX, did_you_mean, locked, remove_stale, remove_tree, require, sha256_file, write_bytes, writing

SHARD_SAMPLES = 1000
MAX_BAD = 0.01
MIN_PIXELS, MAX_PIXELS = 16, 1024
SPLITS = ("train", "val-concept", "val-style")
_MARKER = ".mobileclip-data"
_CHUNK = 32


class Source(Protocol):
    """Gives all pictures of a data set: `emoji.collect` or `clipart.collect`."""

    def __call__(self, get: Callable[[Package], Path], chosen: Collection[str], pixels: int, seed: int) -> Gathered:
        """See `emoji.collect`."""
        ...


SOURCES: dict[str, Source] = {"emoji": emoji.collect, "clipart": clipart.collect}


@dataclass(frozen=True)
class Fetched:
    """What lies in the folder now; `dataset` is the content of its `dataset.json`."""

    path: Path
    dataset: dict[str, Any]
    already_there: bool


def fetch(
    name: str,
    out: Path,
    progress: Callable[[str], None],
    *,
    styles: Collection[str] = (),
    pixels: int = 72,
    seed: int = 0,
    folder: Path | None = None,
    sources: Mapping[str, Source] = SOURCES,
) -> Fetched:
    """Make a data set: one folder of shards for each split, `dataset.json`, `NOTICE`, and the downloads in `packages/`.

    Equal arguments give equal bytes. What is there and whole is not made again; an interrupted run leaves the downloads that were
    finished and nothing else. A sample is `<uid>.webp` (lossless), `<uid>.txt` (its caption) and `<uid>.json`.

    Args:
        name: A name in `sources`.
        out: The folder of the data set.
        progress: Told what is being done.
        styles: Which styles of drawings; none for the default ones.
        pixels: Side of the square pictures, 16 to 1024.
        seed: Draws what is held out, and the order of the samples.
        folder: Where the packages' files lie, instead of getting them from their registries.
        sources: The data sets that can be made.

    Raises:
        InputError: Unknown name or style, pixels out of range, a package whose bytes are not the pinned ones, or over 1 % of its
            pictures cannot be drawn.
        MissingToolError: A registry's client or the package `resvg_py` is not installed.
        StorageError: A package could not be downloaded, or the folder cannot be written.
    """
    if name not in sources:
        raise did_you_mean("data set", name, sources)
    if not MIN_PIXELS <= pixels <= MAX_PIXELS:
        raise InputError(f"{pixels} pixels: choose from {MIN_PIXELS} to {MAX_PIXELS}")
    require("resvg_py", "train", "rendering drawings")
    made_by = {"name": name, "tool": __version__, "styles": sorted(set(styles)), "pixels": pixels, "seed": seed}
    with locked(out):
        _take(out)
        dataset = _whole(out, made_by)
        if dataset is not None:
            return Fetched(out, dataset, already_there=True)
        get = partial(obtain, cache=out / "packages", folder=folder, progress=progress)
        progress("reading packages")
        gathered = sources[name](get, styles, pixels, seed)
        with writing(out):
            with tempfile.TemporaryDirectory(prefix=STAGING_PREFIX, dir=out) as staging:
                counts, splits = _pack(gathered, Path(staging), pixels, seed, progress)
                packages = [asdict(p) | {"file": p.filename} for p in gathered.packages]
                dataset = {"schema": 1, "made_by": made_by, "packages": packages, "counts": counts, "splits": splits}
                _publish(Path(staging), out, dataset, gathered)
    return Fetched(out, dataset, already_there=False)


def _take(out: Path) -> None:
    """Make the folder ours, and remove what an interrupted run has left; a folder with anything else in it stays as it is."""
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        if not (out / _MARKER).exists():
            if any(p.name != "packages" for p in out.iterdir()):
                raise InputError(f"{out}: holds files that are no data set of this tool; choose an empty folder with -o")
            (out / _MARKER).touch()
        remove_stale(out, out / "packages")


def _whole(out: Path, made_by: dict[str, Any]) -> dict[str, Any] | None:
    """The data set that is there, if it was made in this way and every shard is as it was written."""
    path = out / "dataset.json"
    try:
        dataset = json.loads(path.read_bytes())
        if dataset["made_by"] != made_by:
            return None
        shards = [(out / split / s["file"], s["sha256"]) for split, about in dataset["splits"].items() for s in about["shards"]]
        return dataset if all(p.is_file() and sha256_file(p) == sha256 for p, sha256 in shards) else None
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None


def _begin() -> None:
    """What a renderer does first: leave Ctrl-C to the main process, and end with it however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _render_all(items: list[Item], pixels: int, progress: Callable[[str], None]) -> Iterator[tuple[Item, bytes | None]]:
    """Every item with its WebP; None for one that is refused or damaged."""
    # Fresh processes: a fork would copy locks that other threads hold, and a renderer that crashes must not take this process along.
    workers = min(os.cpu_count() or 1, -(-len(items) // _CHUNK)) or 1
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin)
    try:
        rendered = pool.map(partial(webp, pixels), (i.picture for i in items), (i.trim for i in items), chunksize=_CHUNK)
        for done, (item, picture) in enumerate(zip(items, rendered, strict=True), 1):
            yield item, picture
            if done % 500 == 0 or done == len(items):
                progress(f"rendered {done:,} of {len(items):,} pictures")
    except BrokenProcessPool:
        raise InputError("a picture made the renderer crash; nothing was written") from None
    finally:
        # A join that Ctrl-C interrupts takes the running thread for ended (CPython before 3.13), and the exit then never comes.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            pool.shutdown(wait=True, cancel_futures=True)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _pack(
    gathered: Gathered, staging: Path, pixels: int, seed: int, progress: Callable[[str], None]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Render and write the shards of all splits into `staging`; returns the counts by style and the shards by split."""
    samples: dict[str, dict[str, dict[str, bytes]]] = defaultdict(dict)
    splits: dict[str, Counter[str]] = defaultdict(Counter)
    for item, picture in _render_all(gathered.items, pixels, progress):
        tally = gathered.tallies[item.style]
        if picture is None:
            tally.skipped["bad_image"] += 1
            continue
        tally.seen += 1
        splits[item.style][item.split] += 1
        about = {"uid": item.uid, "style": item.style, "split": item.split, **item.details}
        content = json.dumps(about, ensure_ascii=False, sort_keys=True).encode()
        samples[item.split][item.uid] = {"webp": picture, "txt": item.caption.encode(), "json": content}
    drawn = Tally(len(gathered.items), Counter())
    drawn.skipped["bad_image"] = sum(t.skipped["bad_image"] for t in gathered.tallies.values())
    drawn.seen -= drawn.skipped["bad_image"]
    drawn.check(MAX_BAD, at_least=1, option="the allowed")
    counts = {
        style: {"present": t.present, "written": t.seen, "splits": dict(splits[style]), "skipped": dict(sorted(t.skipped.items()))}
        for style, t in gathered.tallies.items()
    }
    return counts, {split: _write_split(staging / split, of_split, seed) for split, of_split in sorted(samples.items())}


def _write_split(folder: Path, samples: Mapping[str, Mapping[str, bytes]], seed: int) -> dict[str, Any]:
    order = shuffled(samples, seed)
    shards: list[dict[str, Any]] = []
    for start in range(0, len(order), SHARD_SAMPLES):
        keys = order[start : start + SHARD_SAMPLES]
        path = folder / f"{start // SHARD_SAMPLES:05d}.tar"
        count = write_shard(path, ((key, samples[key]) for key in keys))
        shards.append({"file": path.name, "samples": count, "bytes": path.stat().st_size, "sha256": sha256_file(path)})
    lines = [{"shard": Path(s["file"]).stem, "num_uids": s["samples"]} for s in shards]
    write_bytes(folder / "manifest.jsonl", _json_lines(lines))
    return {"samples": len(order), "shards": shards}


def _json_lines(rows: Iterable[Mapping[str, object]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _publish(staging: Path, out: Path, dataset: dict[str, Any], gathered: Gathered) -> None:
    """Replace what is there. `dataset.json` goes first and comes last: whoever sees it sees a whole data set."""
    for name in ("dataset.json", "NOTICE", "concepts.jsonl", *SPLITS):
        remove_tree(out / name)
    for split in dataset["splits"]:
        (staging / split).replace(out / split)
    for name, rows in gathered.tables.items():
        write_bytes(out / name, _json_lines(rows))
    notice = ["The pictures and captions in this folder were made from the packages below.", ""]
    notice += [f"{p.name} {p.version}: {p.attribution}. Licence: {p.licence}." for p in gathered.packages]
    write_bytes(out / "NOTICE", ("\n".join(notice) + "\n").encode())
    write_bytes(out / "dataset.json", json.dumps(dataset, indent=1, ensure_ascii=False).encode() + b"\n")
