"""The text tower before the run proper: it learns how the teachers relate the texts of the data to each other, without pictures.

A text costs nano's text tower a quarter of the operations of a picture in the image tower, and the tower meets far more texts than
captions would bring it. Pairs of texts are distilled as pairs of picture and caption are (MobileCLIP, equation 3, arXiv 2311.17049), alone.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import itertools
import math
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mobileclip.data import vocabulary
from mobileclip.data.batch import Rows
from mobileclip.data.embeddings import read
from mobileclip.data.samples import BadSample, Tally
from mobileclip.data.shards import DamagedShard, Entry, read_entry
from mobileclip.data.source import Shard, is_local, opened
from mobileclip.data.vocabulary import Vocabulary
from mobileclip.errors import GateError, InputError
from mobileclip.models.clip import CLIP
from mobileclip.tokenizer import Tokenizer
from mobileclip.training import distributed, state
from mobileclip.training.checkpointing import checkpoint_blocks
from mobileclip.training.config import TrainConfig
from mobileclip.training.interruption import Interruption
from mobileclip.training.losses import ClipLoss, Features, Teachers
from mobileclip.training.meter import Meter
from mobileclip.training.optim import Schedule, apply_gradients, set_learning_rate
from mobileclip.training.setup import DTYPES, deciding, make_optimizer, make_scaler, make_teachers, shards, stored_teachers, text_batch
from mobileclip.training.student import Student, freeze

MAX_TEXTS, MAX_SAMPLES = 100_000, 200_000
"""So many distinct texts of so many samples are held in memory, those of the first shards."""
_STREAM = 0x7E97
"""Keeps these draws apart from the data's."""
_REPORTS = 20


def read_vocabulary(config: TrainConfig) -> Vocabulary | None:
    """The words that `mobileclip reinforce` has embedded beside the shards, if it has; of several sets, the first's.

    Only folders on this machine are looked at: shards behind URLs and commands come without words.

    Raises:
        InputError: They are damaged, or by other teachers than the config's or the shards'.
    """
    folders = dict.fromkeys(Path(place).parent for shard in shards(config) for place in shard.places if is_local(place))
    folder = next((f for f in folders if (f / vocabulary.NAME).is_file()), None)
    if folder is None:
        return None
    path = folder / vocabulary.NAME
    found, stored = vocabulary.read(path), stored_teachers(folder)
    if stored is not None and found.teachers != [[t.get(n) for n in ("name", "width", "weights")] for t in stored]:
        raise InputError(f"{path}: is not by the shards' teachers; remove it, `mobileclip reinforce` makes it again")
    wanted, there = [[t.name, t.width] for t in config.loss.teachers], [[name, width] for name, width, _ in found.teachers]
    if wanted != there:
        names = [", ".join(f"{name} ({width})" for name, width in teachers) for teachers in (wanted, there)]
        raise config.wrong(
            "loss.teachers", f"{names[0]}, but {path} is by {names[1]}; name them so, or remove it if the shards are by others"
        )
    return found


def read_texts(config: TrainConfig) -> tuple[dict[str, NDArray[np.float32]], Tally]:
    """Distinct captions of the data, real and synthetic, with the teachers' rows (sum of widths,) float32.

    Bad samples are left out and counted, by the rules of the run proper. A shard that cannot be fetched is no bad sample here: when this
    is done again after an interruption it may be there, and the same run would have other weights.

    Raises:
        InputError: More samples are bad than `data.max_bad` allows, or a mistake in a table.
        StorageError: A shard cannot be fetched.
    """
    found: dict[str, NDArray[np.float32]] = {}
    tally, max_bad, last = Tally(), config.data.max_bad, ""
    width = sum(t.width for t in config.loss.teachers)
    with contextlib.closing(_entries(shards(config))) as entries:
        for entry in itertools.islice(entries, MAX_SAMPLES):
            if len(found) >= MAX_TEXTS:
                break
            try:
                sample = read_entry(entry)
                stored, real = read(sample.members, config.data.synthetic_keys, width), sample.captions()
            except BadSample as e:
                tally.skipped[e.reason] += 1
                last = f"{entry.key}: {e}"[:300]
                tally.check(max_bad, option="data.max_bad", example=last)
                continue
            tally.seen += 1
            pairs = [(real, stored.real), *((stored.captions[key], rows) for key, rows in stored.synthetic.items())]
            for text, row in (pair for captions, rows in pairs for pair in zip(captions, rows, strict=True)):
                if text not in found:
                    found[text] = row.copy()  # a part of a table would keep all of it
    tally.check(max_bad, at_least=1, option="data.max_bad", example=last)
    return found, tally


def _entries(places: Sequence[Shard]) -> Generator[Entry]:
    """All samples; a shard that is none counts as a bad one."""
    for shard in places:
        try:
            with opened(shard) as entries:
                yield from entries
        except DamagedShard:
            yield Entry(shard.name, (), "damaged_shard")


def spread_words(clip: CLIP, words: Vocabulary, teachers: Teachers) -> None:
    """Start the embeddings of tokens that are whole words from the principal components of the teachers' embeddings of them.

    Each teacher's embeddings are multiplied by its scale and weight, so that it counts by the square of these in the components. That is
    meant: in the loss, too, a sharper teacher tells more about which words are alike. The components together have the spread that the
    tokens' embeddings have; where the tower is wider, its further columns stay random.
    """
    tokens = torch.from_numpy(np.asarray(Tokenizer.clip(4)(words.words), np.int64))
    end = clip.text.end_token
    single = (tokens[:, 1] < end - 1) & (tokens[:, 2] == end)  # a start, the word, an end
    scales = [torch.full((d,), s * w) for d, s, w in zip(teachers.dims, teachers.scales, teachers.weights, strict=True)]
    rows = (torch.from_numpy(words.rows)[single] * torch.cat(scales)).double()
    rows = rows - rows.mean(0)
    table = clip.text.token_embedding.weight
    _, directions = torch.linalg.eigh(rows.T @ rows)
    components = rows @ directions.flip(1)[:, : table.shape[1]]
    if len(rows) < 2 or not components.std():
        return
    with torch.no_grad():
        spread = table.std() / components.std()
        table[tokens[single, 1].to(table.device), : components.shape[1]] = (components * spread.double().cpu()).to(table)


def _emptied(stored: dict[str, NDArray[np.float32]]) -> tuple[list[str], Tensor]:
    """The texts and their rows as one table (N, D); each row leaves `stored` as it is copied, so that none is in memory twice."""
    texts = list(stored)
    table = torch.empty(len(texts), len(stored[texts[0]]))
    for i, text in enumerate(texts):
        table[i] = torch.from_numpy(stored.pop(text))
    return texts, table


class _Pairs(nn.Module):
    """What DDP wraps: see `Student.pair_texts`."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(self, tokens: Tensor) -> Features:
        return self.student.pair_texts(tokens)


def pretrain_text(
    clip: CLIP, config: TrainConfig, folder: Path, progress: Callable[[str], None], interruption: Interruption | None = None
) -> None:
    """Teach the text tower in place. The same config, data and threads give the same weights, however often it was interrupted.

    Args:
        clip: In train form, on its device; its image tower and its scale stay as they are.
        config: Of the run, with `text_pretraining`; data, teachers, optimizer, precision, seed and `save_every` are the run's.
        folder: Of the run; the stage's states are left for the caller to remove.
        progress: Told how far it is.
        interruption: Of the run.

    Raises:
        InputError: The batch does not divide, too many samples are bad, texts or words are not by these teachers, or a state in the
            folder is of another config or of other texts.
        StorageError: A shard cannot be fetched, or a state not be written.
        GateError: The loss is no longer finite.
        KeyboardInterrupt: Interrupted; the state is saved.
    """
    tokens, rows, digest = _material(clip, config, progress)
    _Lesson(clip, config, folder, progress).run(tokens, rows, digest, interruption or Interruption())


def _material(clip: CLIP, config: TrainConfig, progress: Callable[[str], None]) -> tuple[Tensor, Tensor, str]:
    """The texts' tokens (N, context) int32 and teachers' rows (N, D) float32, and a hash of all; words give tokens their start."""
    teachers = make_teachers(config)
    assert teachers is not None, "the config has seen to it"
    text_batch(config)  # before anything is read
    words = read_vocabulary(config)
    stored, tally = read_texts(config)
    if words:
        stored |= zip(words.words, words.rows, strict=True)
        if config.init is None:
            spread_words(clip, words, teachers)
    if not stored:
        raise config.wrong("text_pretraining", "the data has no texts with teachers' embeddings; reinforce it with `mobileclip reinforce`")
    told = f"text tower: {len(stored):,} texts, {len(words.words) if words else 0:,} of them words of the vocabulary"
    if tally.skipped:
        told += f"; {tally.skipped.total():,} of {tally.present:,} samples left out ({tally.reasons()})"
    del words
    texts, rows = _emptied(stored)
    digest = hashlib.sha256(repr(texts).encode())
    digest.update(rows.numpy().data.cast("B"))
    if len(set(distributed.objects(digest.hexdigest()))) > 1:
        raise InputError("text_pretraining: the processes read different texts; see that all can read all shards, and start again")
    if distributed.main_process():
        progress(told)
    tokens = torch.from_numpy(np.ascontiguousarray(Tokenizer.clip(clip.spec.text.context)(texts), np.int32))
    return tokens, rows, digest.hexdigest()


class _Lesson:
    """The loop, as the trainer's is, on a copy of the model with its image tower frozen."""

    def __init__(self, clip: CLIP, config: TrainConfig, folder: Path, progress: Callable[[str], None]) -> None:
        stage, device = config.text_pretraining, clip.logit_scale.device
        assert stage is not None
        self.clip, self.config, self.stage, self.folder, self.progress, self.device = clip, config, stage, folder, progress, device
        taught = copy.deepcopy(clip)
        freeze(taught, image=True)
        if config.gradient_checkpointing:
            checkpoint_blocks(taught)
        self.taught, self.student = taught.text, Student(taught, dtype=DTYPES[config.precision])
        self.student.train()
        self.optimizer, self.scaler = make_optimizer(self.student, config, stage.lr), make_scaler(config, device)
        self.schedule, self.loss = Schedule(stage.steps, stage.steps // 10), ClipLoss(1.0, make_teachers(config))
        self.forward, self.meter, self.done = distributed.parallel(_Pairs(self.student)), Meter(device), 0

    def run(self, tokens: Tensor, rows: Tensor, digest: str, interruption: Interruption) -> None:
        """From the last state of these texts to the end, which is saved, too; the model has the result."""
        self._resume(digest)
        main = distributed.main_process()
        with interruption:
            for step in range(self.done + 1, self.stage.steps + 1):
                self._step(step, tokens, rows)
                interrupted, last = interruption.agreed(step, self.device), step == self.stage.steps
                saves = step % self.config.save_every == 0 or interrupted or last
                logs = step % max(self.stage.steps // _REPORTS, 1) == 0 or last
                if logs or saves:
                    self._judge(step)
                if logs:
                    values = self.meter.values()
                    rate = f"divergence {values['kl']:.4f}, {values['samples_per_s']:.0f} texts/s"
                    if main:
                        self.progress(f"text tower: step {step:,} of {self.stage.steps:,}, {rate}")
                if saves:
                    saved = self._save(step, digest) if main else None
                    if interrupted:
                        interruption.leave(saved, self.progress)
        self.clip.text.load_state_dict(self.taught.state_dict())

    def _step(self, step: int, tokens: Tensor, rows: Tensor) -> None:
        began, shape = time.perf_counter(), (2, distributed.world_size(), text_batch(self.config) // 2)
        drawn = np.random.default_rng((self.config.seed, _STREAM, step)).integers(len(tokens), size=shape)
        mine = torch.from_numpy(drawn[:, distributed.rank()].reshape(-1))
        set_learning_rate(self.optimizer, self.stage.lr * self.schedule(step - 1))
        losses = self.loss(self.forward(tokens[mine].to(self.device)), Rows(*rows[mine].to(self.device).chunk(2)))
        (self.scaler.scale(losses.loss) if self.scaler is not None else losses.loss).backward()
        max_norm = self.config.optimizer.max_norm or math.inf
        norm = apply_gradients(self.student, self.optimizer, max_norm=max_norm, scaler=self.scaler)
        self.meter.add(losses.detached(), norm, self.stage.batch_size, 0.0, time.perf_counter() - began)

    def _judge(self, step: int) -> None:
        if not self.meter.finite(self.scaler is not None):
            again = "check the data, or start in another folder with a lower text_pretraining.lr"
            raise GateError(f"the loss is no longer finite at step {step:,} of text_pretraining; {again}")

    def _save(self, step: int, digest: str) -> Path:
        whole = {
            "config": deciding(self.config),
            "texts_sha256": digest,
            "step": step,
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler is not None else {},
        }
        return state.save(self.folder, step, whole, self.config.keep, "texts")

    def _resume(self, digest: str) -> None:
        found = state.newest(self.folder, deciding(self.config), "texts")
        if not found:
            return
        path, stored = found
        if stored.get("texts_sha256") != digest:
            raise InputError(f"{path}: the texts of the data are others than then; put them back, or choose another folder with -o")
        with state.taking_over(path):
            self.done = stored["step"]
            self.student.load_state_dict(stored["student"])
            self.optimizer.load_state_dict(stored["optimizer"])
            if self.scaler is not None:
                self.scaler.load_state_dict(stored["scaler"])
        if distributed.main_process():
            self.progress(f"text tower: going on from step {self.done:,} of {self.stage.steps:,}")
