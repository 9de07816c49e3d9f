"""Words of a vocabulary that teachers find in a picture."""

from __future__ import annotations

import numpy as np
import pytest
from small_sets import NANO

from mobileclip.data.embeddings import read
from mobileclip.data.shards import read_shard
from mobileclip.export.encoder import open_encoder
from mobileclip.reinforce.config import WordsConfig
from mobileclip.reinforce.words import Vocabulary
from mobileclip.tokenizer import Tokenizer, whole_words

WORDS = ("goat", "ram", "red", "round", "tower", "goat")


class Told:
    """A teacher that says what it is told to."""

    def __init__(self, scale: float, rows: dict[str, tuple[float, ...]]) -> None:
        self.scale, self._rows, self.width = scale, rows, 2

    def embed_texts(self, texts):
        return np.array([self._rows[t] for t in texts], np.float32)


def test_order_is_that_of_the_product_of_probabilities():
    first = Told(10, {"a": (1, 0), "b": (0, 1), "c": (0.6, 0.8)})
    second = Told(5, {"a": (0, 1), "b": (1, 0), "c": (0.8, 0.6)})
    vocabulary = Vocabulary(WordsConfig(count=3, vocabulary=("a", "b", "c")), [first, second])
    views = np.array([[1, 0, 1, 0], [0, 1, 1, 0]], np.float32)  # means: (.5, .5) at 10, (1, 0) at 5
    words, rows = vocabulary.nearest(views)
    assert words == ["c", "b", "a"]  # 7 + 4, 5 + 5, 5 + 0
    assert rows.tolist() == [pytest.approx(r) for r in ([0.6, 0.8, 0.8, 0.6], [0, 1, 1, 0], [1, 0, 0, 1])]
    assert Vocabulary(WordsConfig(count=1, vocabulary=("a", "b")), [first, second]).nearest(views)[0] == ["b"]


def test_words_are_stored_as_further_captions(make, tmp_path):
    make(NANO, captions=2, dtype="fp32", words={"count": 3, "vocabulary": WORDS})
    make(NANO, captions=0, dtype="fp32", words={"count": 9, "vocabulary": WORDS}, out=tmp_path / "alone")
    nano = open_encoder(NANO["source"])
    for name, keys, count in (("out", {"syn_text", "syn_text_words"}, 3), ("alone", {"syn_text_words"}, 5)):
        for sample in read_shard(tmp_path / name / "00000.tar"):
            r = read(sample.members)
            assert r.captions.keys() == keys
            words = r.captions["syn_text_words"]
            assert len(words) == len(set(words)) == count
            np.testing.assert_allclose(nano.encode_texts(words), r.synthetic["syn_text_words"], atol=2e-6)
            cosines = nano.encode_texts(list(WORDS[:5])) @ r.image.mean(0)
            assert words == [WORDS[i] for i in np.argsort(-cosines)[:count]]
            assert set(read(sample.members, "^syn_text_words$").captions) == {"syn_text_words"}


def test_words_of_the_vocabulary_are_single_tokens():
    words = whole_words()
    assert len(words) == len(set(words)) == 32_230
    assert {"goat", "giraffe", "hedgehog", "tulip", "the"} <= set(words)
    assert ((Tokenizer.clip(5)(words[::500]) != 0).sum(1) == 3).all()
