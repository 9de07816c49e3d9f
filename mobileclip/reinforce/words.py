"""Tags by retrieval: the words of a vocabulary that teachers place nearest to a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mobileclip.reinforce.backbones import Floats
from mobileclip.reinforce.config import WordsConfig
from mobileclip.reinforce.teachers import Teacher
from mobileclip.tokenizer import whole_words


class Vocabulary:
    """Words with the teachers' embeddings of them.

    A caption names what its writer thought of; here a drawing of a ram is also a "goat" and a "sheep", as far as teachers know these. So
    the student meets words that are in no caption of the data, with the teachers' embeddings that say how well each fits.
    """

    def __init__(self, config: WordsConfig, teachers: Sequence[Teacher]) -> None:
        self.words = list(dict.fromkeys(config.vocabulary)) or whole_words()
        self._count = min(config.count, len(self.words))
        self._rows: Floats = np.concatenate([t.embed_texts(self.words) for t in teachers], axis=1)
        self._scales = np.concatenate([np.full(t.width, t.scale, np.float32) for t in teachers])

    def nearest(self, views: NDArray[np.float32]) -> tuple[list[str], Floats]:
        """The likeliest words of one picture by the product of the teachers' probabilities.

        Args:
            views: (views, sum of the teachers' widths), embeddings of its augmentations; their mean counts.

        Returns:
            Words, best first, and their embeddings (words, sum of widths).
        """
        logits = self._rows @ (self._scales * views.mean(0))
        best = np.argsort(-logits, kind="stable")[: self._count]
        return [self.words[i] for i in best], self._rows[best]
