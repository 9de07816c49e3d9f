"""Fitting of the teachers that need it: linear heads for LiT, means for ConSE, and the temperature of both, on pictures with captions."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mobileclip.data.augment import Policy, draw
from mobileclip.data.samples import BadSample
from mobileclip.data.shards import DamagedShard, read_entry
from mobileclip.data.source import Shard, opened
from mobileclip.errors import InputError
from mobileclip.files import write_bytes
from mobileclip.preprocess import open_image
from mobileclip.reinforce.backbones import IMAGE_BATCH, Floats, image_backbone, one_thread, text_backbone, unit
from mobileclip.reinforce.captioners import Captioner, Subject
from mobileclip.reinforce.config import BackboneConfig, LitConfig
from mobileclip.reinforce.teachers import HEAD_WIDTH, class_embeddings, combined
from mobileclip.reinforce.views import render

if TYPE_CHECKING:
    from torch import Tensor

VIEWS, CAPTIONS = 2, 4
"""Of each picture: as it is and augmented ones; its own caption and synthetic ones."""
MAX_SAMPLES = 100_000
_STEPS_A_SAMPLE, _BATCH = 0.08, 512
_MIN_STEPS, _MAX_STEPS = 200, 2000
_REAL, _DROPOUT = 0.5, 0.3
"""Share of real captions, and of features that are left out: measured on drawings of an unseen style."""
_SCALES = np.geomspace(5, 100, 31)


class Pairs:
    """What the backbones make of the pictures and captions that a teacher is fitted on.

    Attributes:
        features: (samples, VIEWS, 1280).
        logits: (samples, VIEWS, 1000).
        sentences: (texts, 384), distinct captions.
        captions: (samples, CAPTIONS), numbers of each sample's captions.
    """

    def __init__(self, features: Floats, logits: Floats, sentences: Floats, captions: NDArray[np.int64]) -> None:
        self.features, self.logits, self.sentences, self.captions = features, logits, sentences, captions


def fit(
    configs: Sequence[BackboneConfig], paths: Sequence[Path], shards: Sequence[Shard], policy: Policy, captioner: Captioner,
    folder: Path, seed: int, progress: Callable[[str], None],
) -> None:  # fmt: skip
    """Fit teachers and write each one's heads as safetensors; the same arguments give the same bytes.

    Args:
        configs: What to fit.
        paths: Where the heads go.
        shards: Pictures with captions; the first `MAX_SAMPLES` good ones are used.
        policy: The augmentations that the teachers will see.
        captioner: The captions that they will see.
        folder: For networks in ONNX form.
        seed: Of everything drawn.
        progress: Told what is being done.

    Raises:
        InputError: Fewer than two samples can be used.
    """
    known: dict[tuple[str, int, str], Pairs] = {}
    for config, path in zip(configs, paths, strict=True):
        key = (config.image, config.side, config.text)
        with one_thread():
            if key not in known:
                known[key] = _pairs(config, shards, policy, captioner, folder, seed, progress)
            pairs = known[key]
            progress(f"fitting {config.name}")
            tensors = fit_lit(pairs, seed) if isinstance(config, LitConfig) else fit_conse(pairs, class_embeddings(config))
        from safetensors.numpy import save

        write_bytes(path, save({name: np.ascontiguousarray(t, np.float32) for name, t in sorted(tensors.items())}))


def _pairs(
    config: BackboneConfig, shards: Sequence[Shard], policy: Policy, captioner: Captioner, folder: Path, seed: int,
    progress: Callable[[str], None],
) -> Pairs:  # fmt: skip
    backbone, encode = image_backbone(config.image, config.side, folder), text_backbone(config.text)
    features: list[NDArray[np.float16]] = []
    logits: list[NDArray[np.float16]] = []
    captions: list[list[int]] = []
    views: list[NDArray[np.uint8]] = []
    numbers: dict[str, int] = {}

    def flush() -> None:
        f, p = backbone(list(views))
        features.append(f.astype(np.float16))
        logits.append(p.astype(np.float16))
        views.clear()

    subjects = usable(shards, seed)
    while part := list(itertools.islice(subjects, IMAGE_BATCH)):
        for subject, synthetic in zip(part, captioner.caption(part, CAPTIONS - 1), strict=True):
            rng = np.random.default_rng(subject.seed)
            width, height = subject.image.size
            params = [[[0, 0, height, width]], *(draw(width, height, rng, policy) for _ in range(VIEWS - 1))]
            views += [render(subject.image, p, policy, config.side, "bicubic") for p in params]
            own = next(c for c in subject.real if c.strip())
            captions.append([numbers.setdefault(t, len(numbers)) for t in (own, *synthetic)])
        if len(views) >= 64 * IMAGE_BATCH:
            flush()
            progress(f"{config.name}: {len(captions):,} pictures to fit on")
    if views:
        flush()
    if len(captions) < 2:
        raise InputError(f"teacher {config.name}: there is nothing to fit it on; give shards with pictures and captions, or its heads")
    shape = (len(captions), VIEWS, -1)
    joined = [np.concatenate(column).astype(np.float32).reshape(shape) for column in (features, logits)]
    return Pairs(joined[0], joined[1], encode(list(numbers)), np.array(captions))


def usable(shards: Sequence[Shard], seed: int) -> Iterator[Subject]:
    """The good samples of the shards, at most `MAX_SAMPLES`; bad ones are counted when the data set is made."""
    count = 0
    for shard in shards:
        with contextlib.suppress(DamagedShard), opened(shard) as entries:
            for entry in entries:
                try:
                    sample = read_entry(entry)
                    real, image = sample.captions(), open_image(sample.image(), upright=False)
                except (BadSample, InputError):
                    continue
                count += 1
                key = hashlib.sha256(sample.key.encode(errors="replace")).digest()
                yield Subject(sample, image, real, (seed, int.from_bytes(key[:8], "little")))
                if count == MAX_SAMPLES:
                    return


def fit_lit(pairs: Pairs, seed: int) -> dict[str, Floats]:
    """Two linear heads, contrastive, with a learned temperature; pairs with the same caption are no negatives."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    image, text = nn.Linear(pairs.features.shape[2], HEAD_WIDTH), nn.Linear(pairs.sentences.shape[1], HEAD_WIDTH)
    log_scale = nn.Parameter(torch.tensor(3.0))
    # features of a ReLU6 network are of the order of 0.1 to 1, sentences of length 1: both are brought to the same size
    size = torch.tensor(float(np.sqrt((pairs.features**2).sum(2).mean())))
    count = len(pairs.captions)
    batch = min(_BATCH, count)
    steps = int(np.clip(count * _STEPS_A_SAMPLE, _MIN_STEPS, _MAX_STEPS))
    optimizer = torch.optim.AdamW([*image.parameters(), *text.parameters(), log_scale], lr=2e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = rng.permutation(count)[:batch]
        views = rng.integers(pairs.features.shape[1], size=batch)
        other = rng.integers(pairs.captions.shape[1], size=batch)
        numbers = pairs.captions[rows, np.where(rng.random(batch) < _REAL, 0, other)]
        pixels = nn.functional.dropout(torch.from_numpy(pairs.features[rows, views]) / size, _DROPOUT)
        u = nn.functional.normalize(image(pixels), dim=1)
        v = nn.functional.normalize(text(torch.from_numpy(pairs.sentences[numbers])), dim=1)
        own = torch.from_numpy(pairs.captions[rows, 0])
        loss = _contrastive(log_scale.exp() * u @ v.T, own[:, None] == own)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return {
        "image.weight": (image.weight / size).detach().numpy(),
        "image.bias": image.bias.detach().numpy(),
        "text.weight": text.weight.detach().numpy(),
        "text.bias": text.bias.detach().numpy(),
        "scale": np.array([min(float(log_scale.detach().exp()), 100.0)], np.float32),
    }


def _contrastive(logits: Tensor, same: Tensor) -> Tensor:
    import torch

    others = same & ~torch.eye(len(same), dtype=torch.bool)
    masked = logits.masked_fill(others, -torch.inf)
    labels = torch.arange(len(logits))
    return (torch.nn.functional.cross_entropy(masked, labels) + torch.nn.functional.cross_entropy(masked.T, labels)) / 2


def fit_conse(pairs: Pairs, classes: Floats) -> dict[str, Floats]:
    """The means of both sides, and the temperature at which the own caption is likeliest among those of other pictures."""
    images = combined(pairs.logits.reshape(-1, pairs.logits.shape[2]), classes)
    means = images.mean(0), pairs.sentences[pairs.captions.ravel()].mean(0)
    own, first = np.unique(pairs.captions[:, 0], return_index=True)
    chosen = np.sort(first)[:_BATCH]
    u, v = unit(images[chosen * pairs.features.shape[1]] - means[0]), unit(pairs.sentences[pairs.captions[chosen, 0]] - means[1])
    cosines = u.astype(np.float64) @ v.T
    losses = [np.log(np.exp(s * (cosines - cosines.max())).sum(1)) - s * (np.diag(cosines) - cosines.max()) for s in _SCALES]
    best = _SCALES[int(np.argmin([loss.mean() for loss in losses]))] if len(own) > 1 else _SCALES[0]
    return {"image.mean": means[0], "text.mean": means[1], "scale": np.array([best], np.float32)}
