"""Tags by retrieval: the words of a vocabulary that teachers place nearest to a picture."""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mobileclip.data import vocabulary
from mobileclip.data.vocabulary import Vocabulary
from mobileclip.errors import InputError
from mobileclip.files import locked, require
from mobileclip.reinforce.backbones import Floats
from mobileclip.reinforce.config import WordsConfig
from mobileclip.reinforce.teachers import Teacher
from mobileclip.tokenizer import whole_words


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

    Raises:
        MissingToolError: The package is not installed.
    """
    if config.vocabulary:
        return list(dict.fromkeys(config.vocabulary))
    require("better_profanity", "reinforce", "the default vocabulary of words")
    listed = importlib.resources.files("better_profanity").joinpath("profanity_wordlist.txt").read_text().lower()
    offensive = {line.strip() for line in listed.splitlines()}
    return [word for word in whole_words() if word not in offensive]
