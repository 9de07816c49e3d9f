"""Tags by retrieval: the words of a vocabulary that teachers place nearest to a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mobileclip.data import vocabulary
from mobileclip.data.vocabulary import Vocabulary
from mobileclip.errors import InputError
from mobileclip.files import locked
from mobileclip.reinforce.backbones import Floats, PinnedFile
from mobileclip.reinforce.config import WordsConfig
from mobileclip.reinforce.teachers import Teacher
from mobileclip.tokenizer import whole_words

_OFFENSIVE = PinnedFile(
    "better-profanity", "0.7.0", "better_profanity/profanity_wordlist.txt",
    "e75665f3f57b5e0412b178334764aae9cae319b88ef3f42027d1e1f22ed7172b",
)  # fmt: skip


class Tagger:
    """Finds the words for a picture.

    A caption names what its writer thought of; here a drawing of a ram is also a "goat" and a "sheep", as far as teachers know these. So
    the student meets words that are in no caption of the data, with the teachers' embeddings that say how well each fits.

    Args:
        config: How many, and of which words.
        teachers: Whose embeddings count.
        folder: Of the data set, where the words' embeddings are kept. The first worker makes them, the others wait for it.

    Raises:
        MissingToolError: A package is not installed.
        InputError: The list of offensive words is not the pinned one.
        StorageError: The file cannot be written.
    """

    def __init__(self, config: WordsConfig, teachers: Sequence[Teacher], folder: Path) -> None:
        words = resolved(config)
        made_by: list[list[str | int]] = [[t.name, t.width, t.weights] for t in teachers]
        path = folder / vocabulary.NAME
        with locked(path):
            try:
                kept = vocabulary.read(path)
            except InputError:  # not there yet, or half of it
                kept = None
            if kept is None or (kept.words, kept.teachers) != (words, made_by):
                kept = Vocabulary(words, np.concatenate([t.embed_texts(words) for t in teachers], axis=1), made_by)
                vocabulary.write(path, kept)
        self._words, self._rows = kept.words, kept.rows
        self._count = min(config.count, len(words))
        self._scales = np.concatenate([np.full(t.width, t.scale, np.float32) for t in teachers])

    def nearest(self, views: NDArray[np.float32]) -> tuple[list[str], Floats]:
        """The likeliest words of one picture by the product of the teachers' probabilities.

        Args:
            views: (views, sum of the teachers' widths), embeddings of its augmentations; their mean counts.

        Returns:
            Words, best first, and their embeddings (words, sum of widths).
        """
        best = np.argsort(-(self._rows @ (self._scales * views.mean(0))), kind="stable")[: self._count]
        return [self._words[i] for i in best], self._rows[best]


def resolved(config: WordsConfig) -> list[str]:
    """The words of a config; by default CLIP's whole words without the 144 that better_profanity lists, as no drawing is to be called so.

    Each worker resolves them itself; as the list is pinned, to the same words on all machines.

    Raises:
        MissingToolError: The package is not installed.
        InputError: Its list is not the pinned one.
    """
    if config.vocabulary:
        return list(dict.fromkeys(config.vocabulary))
    offensive = {line.strip() for line in _OFFENSIVE.path().read_text(encoding="utf-8").lower().splitlines()}
    return [word for word in whole_words() if word not in offensive]
