"""The text tower before the run proper: it learns how the teachers relate the texts of the data to each other, without pictures.

A text costs nano's text tower a tenth of what a picture costs the image tower, and the tower meets far more texts than captions would
bring it. Pairs of texts are distilled as pairs of picture and caption are (MobileCLIP, equation 3, arXiv 2311.17049), alone.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mobileclip.data import vocabulary
from mobileclip.data.batch import Rows
from mobileclip.data.embeddings import read
from mobileclip.data.samples import BadSample
from mobileclip.data.shards import read_entry
from mobileclip.data.source import find_shards, is_local
from mobileclip.data.stream import entries_of
from mobileclip.data.vocabulary import Vocabulary
from mobileclip.errors import GateError, InputError
from mobileclip.models.clip import CLIP
from mobileclip.tokenizer import Tokenizer
from mobileclip.training import distributed
from mobileclip.training.checkpointing import checkpoint_blocks
from mobileclip.training.config import TrainConfig
from mobileclip.training.losses import ClipLoss, Features, Teachers
from mobileclip.training.meter import Meter
from mobileclip.training.optim import Schedule, apply_gradients, set_learning_rate
from mobileclip.training.setup import DTYPES, make_optimizer, make_scaler, make_teachers, stored_teachers, text_batch
from mobileclip.training.student import Student, freeze

MAX_TEXTS, MAX_SAMPLES = 100_000, 200_000
"""So many distinct texts of so many samples are held in memory, those of the first shards."""
_STREAM = 0x7E97
"""Keeps these draws apart from the data's."""
_REPORTS = 20


def read_vocabulary(config: TrainConfig) -> Vocabulary | None:
    """The words that `mobileclip reinforce` has embedded beside the shards, if it has; of several sets, the first's.

    Raises:
        InputError: They are damaged, or by other teachers than the shards.
    """
    shards = find_shards(config.data.shards, *config.data.join)
    folders = dict.fromkeys(Path(place).parent for shard in shards for place in shard.places if is_local(place))
    folder = next((f for f in folders if (f / vocabulary.NAME).is_file()), None)
    if folder is None:
        return None
    found = vocabulary.read(folder / vocabulary.NAME)
    stored = stored_teachers(folder)
    if stored is not None and found.teachers != [[t.get(n) for n in ("name", "width", "weights")] for t in stored]:
        raise InputError(f"{folder / vocabulary.NAME}: is not by the shards' teachers; remove it, `mobileclip reinforce` makes it again")
    return found


def read_texts(config: TrainConfig) -> dict[str, NDArray[np.float32]]:
    """Distinct captions of the data, real and synthetic, with the teachers' rows (sum of widths,) float32.

    Bad samples, and shards that cannot be read, are left out here and counted by the run proper.
    """
    found: dict[str, NDArray[np.float32]] = {}
    width = sum(t.width for t in config.loss.teachers)
    read_samples = 0
    for shard in find_shards(config.data.shards, *config.data.join):
        files, entries = entries_of(shard)
        with files:
            for entry in entries:
                if len(found) >= MAX_TEXTS or read_samples >= MAX_SAMPLES:
                    return found
                read_samples += 1
                with contextlib.suppress(BadSample):
                    sample = read_entry(entry)
                    stored, real = read(sample.members, config.data.synthetic_keys), sample.captions()
                    if stored.width == width:
                        pairs = [(real, stored.real), *((stored.captions[key], rows) for key, rows in stored.synthetic.items())]
                        for text, row in (pair for captions, rows in pairs for pair in zip(captions, rows, strict=True)):
                            if text not in found:
                                found[text] = row.copy()  # a part of a table would keep all of it
    return found


def spread_words(clip: CLIP, words: Vocabulary, teachers: Teachers) -> None:
    """Start the embeddings of tokens that are whole words from the principal components of the teachers' embeddings of them.

    The components together have the spread that the tokens' embeddings have; where the tower is wider, its further columns stay random.
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


class _Pairs(nn.Module):
    """What DDP wraps: see `Student.pair_texts`."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(self, tokens: Tensor) -> Features:
        return self.student.pair_texts(tokens)


def pretrain_text(clip: CLIP, config: TrainConfig, progress: Callable[[str], None]) -> None:
    """Teach the text tower in place. The same config, data and threads give the same weights.

    Args:
        clip: In train form, on its device; its image tower and its scale stay as they are.
        config: Of the run, with `text_pretraining`; data, teachers, optimizer, precision and seed are the run's.
        progress: Told how far it is.

    Raises:
        InputError: The batch does not divide, or the data has no texts of these teachers.
        GateError: The loss is no longer finite.
    """
    stage, teachers = config.text_pretraining, make_teachers(config)
    assert stage is not None
    assert teachers is not None, "the config has seen to it"
    size, device = text_batch(config), clip.logit_scale.device
    stored, words = read_texts(config), read_vocabulary(config)
    if words and words.rows.shape[1] == sum(teachers.dims):
        stored |= zip(words.words, words.rows, strict=True)
        if config.init is None:
            spread_words(clip, words, teachers)
    if not stored:
        raise InputError(
            f"text_pretraining: the data has no texts with embeddings of {sum(teachers.dims)} values, to which the widths of loss.teachers "
            "add up; correct these, or reinforce the data"
        )
    texts, rows = list(stored), torch.from_numpy(np.stack(list(stored.values())))
    digest = hashlib.sha256(repr(texts).encode() + rows.numpy().tobytes()).hexdigest()
    if len(set(distributed.objects(digest))) > 1:
        raise InputError("text_pretraining: the processes read different texts; see that all can read all shards, and start again")
    if distributed.main_process():
        progress(f"text tower: {len(texts):,} texts, {len(words.words) if words else 0:,} of them words of the vocabulary")
    del stored
    tokens = torch.from_numpy(np.ascontiguousarray(Tokenizer.clip(clip.spec.text.context)(texts), np.int32))
    taught = copy.deepcopy(clip)
    freeze(taught, image=True)
    if config.gradient_checkpointing:
        checkpoint_blocks(taught)
    student = Student(taught, dtype=DTYPES[config.precision])
    student.train()
    optimizer, max_norm = make_optimizer(student, config, stage.lr), config.optimizer.max_norm or math.inf
    schedule, scaler, loss = Schedule(stage.steps, stage.steps // 10), make_scaler(config, device), ClipLoss(1.0, teachers)
    forward = distributed.parallel(_Pairs(student))
    meter = Meter(device)
    for step in range(1, stage.steps + 1):
        began = time.perf_counter()
        drawn = np.random.default_rng((config.seed, _STREAM, step)).integers(len(texts), size=(2, distributed.world_size(), size // 2))
        mine = torch.from_numpy(drawn[:, distributed.rank()].reshape(-1))
        set_learning_rate(optimizer, stage.lr * schedule(step - 1))
        losses = loss(forward(tokens[mine].to(device)), Rows(*rows[mine].to(device).chunk(2)))
        (scaler.scale(losses.loss) if scaler is not None else losses.loss).backward()
        norm = apply_gradients(student, optimizer, max_norm=max_norm, scaler=scaler)
        meter.add(losses.detached(), norm, stage.batch_size, 0.0, time.perf_counter() - began)
        if step % max(stage.steps // _REPORTS, 1) == 0 or step == stage.steps:
            if not meter.finite(scaler is not None):
                raise GateError(f"the loss is no longer finite at step {step:,} of text_pretraining; lower its lr, or check the data")
            values = meter.values()
            rate = f"divergence {values['kl']:.4f}, {values['samples_per_s']:.0f} texts/s"
            if distributed.main_process():
                progress(f"text tower: step {step:,} of {stage.steps:,}, {rate}")
    clip.text.load_state_dict(taught.text.state_dict())
