"""Scores of a model in training: the tasks of `mobileclip eval`, on weights that have not been written yet."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from PIL import Image

from mobileclip.errors import InputError
from mobileclip.evaluation import tasks
from mobileclip.evaluation.datasets import open_dataset
from mobileclip.models.clip import CLIP
from mobileclip.preprocess import preprocess_batch
from mobileclip.tokenizer import Tokenizer
from mobileclip.training.config import TrainConfig
from mobileclip.training.trainer import Evaluate
from mobileclip.zeroshot import Embeddings

_AT_ONCE = 64


class ModelEncoder:
    """A `mobileclip.evaluation.tasks.Encoder` of a model in eval mode, on its device."""

    def __init__(self, clip: CLIP, tokenizer: Tokenizer) -> None:
        self._clip, self._tokenizer, self._device = clip, tokenizer, clip.logit_scale.device

    def encode_images(self, images: Iterable[Image.Image]) -> Embeddings:
        """Normalised embeddings (N, D) of pictures, which are taken from the iterable a few at a time."""
        rows = [np.empty((0, self._clip.spec.embed_dim), np.float32)]
        pictures = iter(images)
        while part := list(itertools.islice(pictures, _AT_ONCE)):
            pixels = torch.from_numpy(preprocess_batch(part, self._clip.spec.preprocess))
            rows.append(self._clip.encode_image(pixels.to(self._device), normalize=True).float().cpu().numpy())
        return np.concatenate(rows)

    def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        """Normalised embeddings (N, D) of captions."""
        rows = [np.empty((0, self._clip.spec.embed_dim), np.float32)]
        for start in range(0, len(texts), _AT_ONCE):
            tokens = torch.from_numpy(self._tokenizer(list(texts[start : start + _AT_ONCE])))
            rows.append(self._clip.encode_text(tokens.to(self._device), normalize=True).float().cpu().numpy())
        return np.concatenate(rows)


def evaluator(config: TrainConfig) -> Evaluate | None:
    """What scores a model on the config's tasks, as `NAME/METRIC`; None without tasks. Data and labels are looked at now.

    Raises:
        InputError: A data set or file that cannot be used.
    """
    wanted = []
    for i, e in enumerate(config.evaluations):
        try:
            task = tasks.task(e.task, e.label_field, e.labels_file, e.templates, e.where, e.text_field)
            wanted.append((e.name, open_dataset(e.data), task))
        except InputError as error:
            raise config.wrong(f"evaluations.{i}", f"{e.name}: {error}") from None
    if not wanted:
        return None

    def evaluate(clip: CLIP) -> dict[str, float]:
        encoder = ModelEncoder(clip, Tokenizer.clip(clip.spec.text.context))
        scores: dict[str, float] = {}
        for name, dataset, task in wanted:
            try:
                score = tasks.run(encoder, dataset, task, config.data.max_bad, lambda step: None, "data.max_bad")
            except InputError as e:
                raise InputError(f"evaluations, {name}: {e}") from None
            scores |= {f"{name}/{metric}": value for metric, value in score.metrics.items() if value is not None}
        return scores

    return evaluate
