"""One shard in, one reinforced shard out: what a worker does."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mobileclip.data.augment import Params, draw
from mobileclip.data.embeddings import Reinforcement, write
from mobileclip.data.samples import IMAGE_EXTENSIONS, BadSample, Tally, decode_image
from mobileclip.data.shards import DamagedShard, Entry, read_entry, writable, write_shard
from mobileclip.data.source import Shard, opened
from mobileclip.errors import InputError
from mobileclip.files import canonical_json, write_bytes
from mobileclip.reinforce.backbones import Floats, one_thread
from mobileclip.reinforce.captioners import Subject, load_captioner
from mobileclip.reinforce.config import EnsembleConfig
from mobileclip.reinforce.teachers import Device, Teacher, load_teacher
from mobileclip.reinforce.views import render
from mobileclip.reinforce.words import Tagger

CAPTIONS_KEY, WORDS_KEY = "syn_text", "syn_text_words"
_BLOCK, _BLOCK_PIXELS = 128, 160_000_000
"""Samples that are held decoded at a time."""
_MAX_CAPTIONS, _MAX_CAPTION_BYTES = 1000, 64 << 10
_VIEWS_AT_ONCE = 256
_CACHE_BYTES = 256 << 20
"""Of embeddings that a worker remembers, for pictures and for captions each; what comes again after more than that is embedded again."""
_REPLACED = ("syn.json", "paug.json", "npz", "pth.gz")


@dataclass(frozen=True)
class Plan:
    """Everything that decides what is made of a sample.

    Attributes:
        ensemble: Teachers, augmentations, captioner, words.
        views: N augmentations.
        captions: M captions of the captioner's.
        dtype: `bf16` or `fp32`.
        seed: Of everything drawn.
        images: Also write the picture and the captions, so that the shard can be trained on without a join.
        folder: Of the teachers' files.
        device: Of models of open_clip.
    """

    ensemble: EnsembleConfig
    views: int
    captions: int
    dtype: str
    seed: int
    images: bool
    folder: Path
    device: Device

    def to_json(self) -> dict[str, Any]:
        """Plain data, for workers elsewhere."""
        return vars(self) | {"ensemble": self.ensemble.model_dump(mode="json"), "folder": str(self.folder), "device": vars(self.device)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Plan:
        """What `to_json` has made."""
        ensemble, device = EnsembleConfig.model_validate(value["ensemble"]), Device(**value["device"])
        return cls(**value | {"ensemble": ensemble, "folder": Path(value["folder"]), "device": device})


@dataclass(frozen=True)
class Job:
    """One shard to be made.

    Attributes:
        shard: What to read.
        out: What to write.
        fingerprint: Of everything that is known to decide the result.
        models: Those that made the other shards, see `Done`; None where there are none yet.
    """

    shard: Shard
    out: Path
    fingerprint: str
    models: dict[str, Any] | None = None


@dataclass
class Done:
    """What was made of a shard.

    Attributes:
        name: Of the shard, without `.tar`.
        tally: Written samples, and skipped ones by reason.
        models: Name, width, scale, side and weights of each teacher, and the captioner's weights.
        stages: Name to (items, seconds); empty if it was made by an earlier run.
    """

    name: str
    tally: Tally
    models: dict[str, Any]
    stages: dict[str, tuple[int, float]] = field(default_factory=dict)


def stats_path(out: Path) -> Path:
    """The file that tells that a shard is finished."""
    return out.with_name(f"{out.stem}_stats.json")


def finished(job: Job) -> Done | None:
    """What was made of the shard before, if it is there, whole and made in the same way."""
    try:
        about = json.loads(stats_path(job.out).read_bytes())
        if about["fingerprint"] != job.fingerprint or about["bytes"] != job.out.stat().st_size:
            return None
        skipped = Counter({str(reason): int(n) for reason, n in about["skipped"].items()})
        return Done(job.out.stem, Tally(int(about["num_uids"]), skipped), dict(about["models"]))
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None


class _Cache:
    """The rows of what this worker embedded last, by content, up to `_CACHE_BYTES`."""

    def __init__(self) -> None:
        self._rows: OrderedDict[object, Floats] = OrderedDict()
        self._bytes = 0

    def get(self, key: object) -> Floats | None:
        """The rows, if they are remembered."""
        if key in self._rows:
            self._rows.move_to_end(key)
        return self._rows.get(key)

    def put(self, key: object, rows: Floats) -> None:
        """Remember, and forget what was not asked for the longest."""
        self._rows[key] = rows = rows.copy()  # a part of a larger array would keep all of it
        self._bytes += rows.nbytes
        while self._bytes > _CACHE_BYTES and len(self._rows) > 1:
            self._bytes -= self._rows.popitem(last=False)[1].nbytes


@dataclass(frozen=True)
class _Picture:
    """A decoded sample; `digest` stands for its pixels and thus for its augmentations."""

    key: str
    subject: Subject
    digest: str
    params: list[Params]


class Worker:
    """Teachers and captioner loaded once, shards made one after the other."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._policy = plan, plan.ensemble.augmentation.policy()
        with one_thread():
            self.teachers: list[Teacher] = [load_teacher(t, plan.folder, plan.device) for t in plan.ensemble.teachers]
        self.captioner = load_captioner(plan.ensemble.captioner, plan.device.name) if plan.captions else None
        about = [{n: getattr(t, n) for n in ("name", "width", "scale", "side", "weights")} for t in self.teachers]
        self.models = {"teachers": about, "captioner": self.captioner.identity if self.captioner else ""}
        self._tagger: Tagger | None = None
        self._texts, self._images = _Cache(), _Cache()
        self._stages: dict[str, list[float]] = {}

    def make(self, job: Job) -> Done:
        """Make a shard and the file beside it, both atomically; equal arguments give equal bytes. No shard at all counts as a bad sample.

        Raises:
            InputError: The models are not those of the other shards, there is no such file, or a table is damaged.
            StorageError: It cannot be read, or the output not be written.
        """
        if job.models not in (None, self.models):
            raise InputError(f"{job.out.parent}: its shards were made by teachers with other weights; choose another folder with -o")
        tally, self._stages = Tally(), {}
        if (words := self._plan.ensemble.words) and not self._tagger:
            with one_thread():
                self._tagger = Tagger(words, self.teachers, job.out.parent)
        with one_thread(), ExitStack() as stack:
            try:
                entries = stack.enter_context(opened(job.shard))
            except DamagedShard:
                entries = [Entry(job.shard.name, (), "damaged_shard")]
            write_shard(job.out, self._samples(entries, tally))
        skipped = dict(sorted(tally.skipped.items()))
        about = {"fingerprint": job.fingerprint, "num_uids": tally.seen, "skipped": skipped, "models": self.models}
        write_bytes(stats_path(job.out), canonical_json(about | {"bytes": job.out.stat().st_size}))
        return Done(job.out.stem, tally, self.models, {name: (int(n), seconds) for name, (n, seconds) in self._stages.items()})

    def _samples(self, entries: Sequence[Entry], tally: Tally) -> Iterator[tuple[str, Mapping[str, bytes]]]:
        keys: dict[str, str] = {}
        block: list[_Picture] = []
        pixels = 0
        for entry in entries:
            try:
                with self._timed("decode", 1):
                    picture = self._decode(entry, _free_key(entry.key, keys))
            except BadSample as e:
                tally.skipped[e.reason] += 1
                continue
            keys[picture.key] = entry.key
            block.append(picture)
            pixels += picture.subject.image.width * picture.subject.image.height
            if len(block) == _BLOCK or pixels > _BLOCK_PIXELS:
                yield from self._reinforced(block)
                tally.seen += len(block)
                block, pixels = [], 0
        if block:
            yield from self._reinforced(block)
            tally.seen += len(block)

    def _decode(self, entry: Entry, key: str) -> _Picture:
        sample = read_entry(entry)
        real = sample.captions()
        if not writable(key):
            raise BadSample("bad_key", repr(key[:100]))
        if len(real) > _MAX_CAPTIONS or sum(len(c.encode()) for c in real) > _MAX_CAPTION_BYTES:
            raise BadSample("too_large", f"{len(real)} captions")
        image = decode_image(sample.image(), upright=False)  # crops are stored in the pixels of the file
        digest = hashlib.sha256(canonical_json(image.size) + image.tobytes()).hexdigest()
        # by content: a picture that is there many times has the same views, and is embedded once while a worker remembers it
        rng = np.random.default_rng([self._plan.seed, int(digest, 16)])
        params = [draw(image.width, image.height, rng, self._policy) for _ in range(self._plan.views)]
        uid = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
        return _Picture(key, Subject(sample, image, real, (self._plan.seed, uid)), digest, params)

    def _reinforced(self, block: list[_Picture]) -> Iterator[tuple[str, dict[str, bytes]]]:
        count = self._plan.captions
        with self._timed("captioner", len(block)):
            synthetic = self.captioner.caption([p.subject for p in block], count) if self.captioner else [[] for _ in block]
        images = self._embed_images(block)
        texts = self._embed_texts([t for p, s in zip(block, synthetic, strict=True) for t in (*p.subject.real, *s)])
        with self._timed("write", len(block)):
            for picture, written in zip(block, synthetic, strict=True):
                real, views = picture.subject.real, images[picture.digest]
                captions = {CAPTIONS_KEY: written} if written else {}
                rows = {key: np.stack([texts[t] for t in found]) for key, found in captions.items()}
                if self._tagger:
                    captions[WORDS_KEY], rows[WORDS_KEY] = self._tagger.nearest(views)
                r = Reinforcement(picture.params, captions, views, np.stack([texts[t] for t in real]), rows)
                members = write(r, "bf16" if self._plan.dtype == "bf16" else "fp32")
                yield picture.key, self._stored(picture) | members

    def _stored(self, picture: _Picture) -> dict[str, bytes]:
        sample = picture.subject.sample
        left_out = _REPLACED if self._plan.images else (*_REPLACED, *IMAGE_EXTENSIONS, "txt")
        return {extension: content for extension, content in sample.members.items() if extension not in left_out}

    def _embed_images(self, block: list[_Picture]) -> dict[str, Floats]:
        """Digest to (views, D): all teachers side by side."""
        found = {p.digest: rows for p in block if (rows := self._images.get(p.digest)) is not None}
        new = list({p.digest: p for p in block if p.digest not in found}.values())
        columns: list[Floats] = []
        if new:
            views = [(p, params) for p in new for params in p.params]
            parts = [self._embed_views(views[i : i + _VIEWS_AT_ONCE]) for i in range(0, len(views), _VIEWS_AT_ONCE)]
            columns = list(np.concatenate(parts).reshape(len(new), self._plan.views, -1))
        for picture, rows in zip(new, columns, strict=True):
            self._images.put(picture.digest, rows)
            found[picture.digest] = rows
        return found

    def _embed_views(self, views: Sequence[tuple[_Picture, Params]]) -> Floats:
        """(len(views), D). Each view is replayed at each size that a teacher wants."""
        columns: list[Floats | None] = [None] * len(self.teachers)
        for size in dict.fromkeys((t.side, t.interpolation) for t in self.teachers):
            with self._timed(f"augment at {size[0]}", len(views)):
                pixels = [render(p.subject.image, params, self._policy, *size) for p, params in views]
            for k, teacher in enumerate(self.teachers):
                if (teacher.side, teacher.interpolation) == size:
                    with self._timed(f"images {teacher.name}", len(views)):
                        columns[k] = teacher.embed_images(pixels)
        return np.concatenate([c for c in columns if c is not None], axis=1)

    def _embed_texts(self, texts: list[str]) -> dict[str, Floats]:
        """Text to (D,): all teachers side by side."""
        found = {t: rows for t in texts if (rows := self._texts.get(t)) is not None}
        new = [t for t in dict.fromkeys(texts) if t not in found]
        if new:
            columns = []
            for teacher in self.teachers:
                with self._timed(f"texts {teacher.name}", len(new)):
                    columns.append(teacher.embed_texts(new))
            for text, row in zip(new, np.concatenate(columns, axis=1), strict=True):
                self._texts.put(text, row)
                found[text] = row
        return found

    @contextmanager
    def _timed(self, stage: str, items: int) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            total = self._stages.setdefault(stage, [0, 0.0])
            total[0] += items
            total[1] += time.perf_counter() - start


def _free_key(key: str, taken: Mapping[str, str]) -> str:
    """A key that a shard can hold, without folder and dots, and another for each; `taken` has the keys that such ones stand for."""
    short = key.rpartition("/")[2].replace(".", "_")
    if taken.get(short, key) != key:
        short = f"{short}-{hashlib.sha256(key.encode(errors='replace')).hexdigest()[:8]}"
    return short
