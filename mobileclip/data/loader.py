"""From stored samples to training batches: decoding, augmentation and tokens in workers, batches and accounting in order."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from mobileclip.data.augment import Policy, draw, replay
from mobileclip.data.batch import Batch
from mobileclip.data.embeddings import read, synthetic_captions
from mobileclip.data.samples import BadSample, Reason, Sample, Tally, decode_image
from mobileclip.data.shards import read_entry
from mobileclip.data.stream import START, Item, Position, Stream
from mobileclip.errors import InputError
from mobileclip.specs import PreprocessSpec
from mobileclip.tokenizer import Tokenizer

Captions = Literal["real", "synthetic", "both", "random"]
_CHUNK = 32
"""Samples that a worker decodes at a time."""
_EMPTY_EPOCHS = 10
"""Without a good sample: then there is none."""
_MAX_RESTARTS = 5
"""Without a batch in between."""


@dataclass(frozen=True)
class Recipe:
    """How a stored sample becomes an example.

    Attributes:
        preprocess: Resolution and interpolation of the student; its mean and standard deviation are applied on the device.
        tokenizer: The student's.
        policy: Augmentation to draw. None: replay a stored one, and give the teachers' embeddings of that view.
        captions: The real caption, a synthetic one, both, or either at random with probability `mix` for the synthetic one.
        mix: See `captions`.
        synthetic_keys: Regular expression; which lists of synthetic captions may be drawn from.
        in_turn: Take stored augmentations and captions by the epoch's number, not at random.
        min_side: Skip smaller pictures, pixels.
        width: Of the teachers' rows, all members together; others are bad. None: as they are.
    """

    preprocess: PreprocessSpec
    tokenizer: Tokenizer
    policy: Policy | None = None
    captions: Captions = "real"
    mix: float = 0.5
    synthetic_keys: str = "^syn_text.*$"
    in_turn: bool = False
    min_side: int = 1
    width: int | None = None


@dataclass(frozen=True)
class Example:
    """One decoded sample: picture (R, R, 3) uint8, captions, and the teachers' rows (D,) that belong to them."""

    image: NDArray[np.uint8]
    text: str
    synthetic: str | None = None
    teacher_image: NDArray[np.float32] | None = None
    teacher_real: NDArray[np.float32] | None = None
    teacher_synthetic: NDArray[np.float32] | None = None


def decode(sample: Sample, recipe: Recipe, seed: Sequence[int], epoch: int = 0) -> Example:
    """Decode one sample; the same seed gives the same example.

    Raises:
        BadSample: It cannot be used, and why.
    """
    rng = np.random.default_rng(seed)

    def pick(count: int) -> int:
        drawn = int(rng.integers(count))  # drawn in any case, so that the options do not change the other draws
        return epoch % count if recipe.in_turn else drawn

    real = sample.captions()
    stored = read(sample.members, recipe.synthetic_keys, recipe.width) if recipe.policy is None else None
    wants_synthetic = recipe.captions != "real"
    synthetic = stored.captions if stored else synthetic_captions(sample.members, recipe.synthetic_keys) if wants_synthetic else {}
    keys = sorted(synthetic)
    if wants_synthetic and not keys:
        raise BadSample("no_caption", "no synthetic caption")
    # stored crops were drawn on the pixels as they lie in the file (MobileCLIP's generator does not look at EXIF)
    image = decode_image(sample.image(), upright=stored is None)
    if min(image.size) < recipe.min_side:
        raise BadSample("too_small", f"{image.width} x {image.height}")
    view = pick(len(stored.param_aug)) if stored else 0
    row = pick(len(real))
    use_synthetic = recipe.captions in ("synthetic", "both") or (recipe.captions == "random" and rng.random() < recipe.mix)
    key = keys[int(rng.integers(len(keys)))] if keys else ""
    number = pick(len(synthetic[key])) if key else 0
    params = stored.param_aug[view] if stored else draw(image.width, image.height, rng, recipe.policy or Policy())
    try:
        pixels = replay(image, params, recipe.preprocess.resolution, recipe.preprocess.interpolation)
    except InputError as e:
        raise BadSample("bad_reinforcement", str(e)) from None
    teacher_real = stored.real[row] if stored else None
    teacher_synthetic = stored.synthetic[key][number] if stored and key else None
    teacher_image = stored.image[view] if stored else None
    other = synthetic[key][number] if use_synthetic else None
    if recipe.captions == "both" or other is None:
        return Example(pixels, real[row], other, teacher_image, teacher_real, teacher_synthetic if other is not None else None)
    return Example(pixels, other, None, teacher_image, teacher_synthetic, None)


@dataclass(frozen=True)
class Chunk:
    """What a worker makes of a few samples: where the stream is behind each and why it is bad, if so; and the good ones as one batch."""

    outcomes: list[tuple[Position, Reason | None, str]]
    """The last: which sample, and what is wrong with it."""
    examples: Batch | None


class _Decoder:
    """What the workers run."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe

    def __getitems__(self, items: list[Item]) -> Chunk:
        outcomes: list[tuple[Position, Reason | None, str]] = []
        examples = []
        for item in items:
            try:
                examples.append(decode(read_entry(item.entry), self._recipe, item.seed, item.after.epoch))
                outcomes.append((item.after, None, ""))
            except BadSample as e:
                outcomes.append((item.after, e.reason, f"{item.entry.key}: {e}"[:300]))
        return Chunk(outcomes, collate(examples, self._recipe.tokenizer) if examples else None)


def collate(examples: Sequence[Example], tokenizer: Tokenizer) -> Batch:
    """Examples as one batch; all with the same parts."""

    def rows(name: str) -> Tensor | None:
        values = [getattr(e, name) for e in examples]
        return None if values[0] is None else torch.from_numpy(np.stack(values))

    def tokens(captions: list[str]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(tokenizer(captions), np.int32))

    return Batch(
        image=torch.from_numpy(np.stack([e.image for e in examples]).transpose(0, 3, 1, 2).copy()),
        tokens=tokens([e.text for e in examples]),
        synthetic_tokens=tokens([e.synthetic or "" for e in examples]) if examples[0].synthetic is not None else None,
        teacher_image=rows("teacher_image"),
        teacher_real=rows("teacher_real"),
        teacher_synthetic=rows("teacher_synthetic"),
    )


def _start_worker(main: int, _worker: int) -> None:
    """The main process decides when it ends; torchrun sends signals to whole groups."""
    if multiprocessing.get_start_method() == "fork" and os.getppid() != main:
        os._exit(1)  # it was killed meanwhile: torch only sees later deaths, and the worker would wait for ever
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _as_is(value: Chunk) -> Chunk:
    return value


@dataclass
class Loader:
    """Endless batches in the stream's order, for one process.

    Attributes:
        position: Behind the last sample of the last batch; a loader that starts here goes on with the next.
        tally: Samples used and skipped so far.
        last_bad: Which sample was skipped last, and what is wrong with it.
        restarts: How often dead workers were replaced.
    """

    stream_options: dict[str, object]
    recipe: Recipe
    batch_size: int
    workers: int = 0
    max_bad: float = 0.01
    position: Position = START
    tally: Tally = field(default_factory=Tally)
    last_bad: str = ""
    restarts: int = 0

    def __iter__(self) -> Iterator[Batch]:
        """Batches of exactly `batch_size` examples.

        Raises:
            InputError: More samples are bad than `max_bad` allows, or nothing can be read at all.
        """
        failures = 0
        while True:
            try:
                for batch in self._batches():
                    yield batch
                    failures = 0
            except RuntimeError as e:  # torch has no type of its own for a worker that was killed
                failures += 1
                if "DataLoader worker" not in str(e) or failures > _MAX_RESTARTS:
                    raise
                self.restarts += 1

    def check(self, tally: Tally, at_least: int = 1) -> None:
        """Stop where too many samples are bad; few are judged as well, at the end of an epoch or of the run.

        Args:
            tally: Of this process or of all.
            at_least: See `mobileclip.data.samples.Tally.check`.

        Raises:
            InputError: More samples are bad than `max_bad` allows.
        """
        tally.check(self.max_bad, at_least, option="data.max_bad", example=self.last_bad)

    def _batches(self) -> Iterator[Batch]:
        stream = Stream(start=self.position, **self.stream_options)  # type: ignore[arg-type]
        loader: DataLoader[Chunk] = DataLoader(
            _Decoder(self.recipe),  # type: ignore[arg-type]
            batch_sampler=_chunks(stream),  # type: ignore[arg-type]
            num_workers=self.workers,
            collate_fn=_as_is,  # type: ignore[arg-type]
            prefetch_factor=4 if self.workers else None,
            worker_init_fn=functools.partial(_start_worker, os.getpid()),
            generator=torch.Generator(),  # else it draws from the global one, which a run that goes on has put back
        )
        parts: list[Batch] = []
        have, tally = 0, Tally()
        epoch = good_epoch = self.position.epoch
        chunks = iter(loader)
        if threading.current_thread() is threading.main_thread():
            # torch's handler raises wherever the main thread is, even while a state is written; its polling finds dead workers as well
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        try:
            for chunk in chunks:
                start = end = 0
                for position, bad, detail in chunk.outcomes:
                    if position.epoch > epoch:
                        self.check(self.tally + tally)
                        epoch = position.epoch
                    if bad:
                        self.last_bad = detail
                        tally.skipped[bad] += 1
                        self.check(self.tally + tally, at_least=1000)
                        if position.epoch > good_epoch + _EMPTY_EPOCHS:
                            raise InputError(f"none of {tally.present:,} samples can be used ({tally.reasons()}); the last one: {detail}")
                        continue
                    good_epoch = position.epoch
                    end += 1
                    have += 1
                    tally.seen += 1
                    if have == self.batch_size:
                        assert chunk.examples is not None
                        parts.append(chunk.examples.rows(start, end))
                        self.position, self.tally = position, self.tally + tally
                        stream.release(position)
                        yield Batch.joined(parts)
                        parts, have, start, tally = [], 0, end, Tally()
                if end > start:
                    assert chunk.examples is not None
                    parts.append(chunk.examples.rows(start, end))
        finally:
            stream.close()


def _chunks(stream: Stream) -> Iterator[list[Item]]:
    items: list[Item] = []
    for item in stream:
        items.append(item)
        if len(items) == _CHUNK:
            yield items
            items = []
