"""Words of a vocabulary that teachers find in a picture."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
from small_sets import NANO

from mobileclip.data import vocabulary
from mobileclip.data.embeddings import read
from mobileclip.data.shards import read_shard
from mobileclip.errors import InputError
from mobileclip.export.encoder import open_encoder
from mobileclip.reinforce import words as words_module
from mobileclip.reinforce.config import WordsConfig
from mobileclip.reinforce.words import Tagger, resolved
from mobileclip.tokenizer import Tokenizer, whole_words

WORDS = ("goat", "ram", "red", "round", "tower", "goat")


class Told:
    """A teacher that says what it is told to."""

    name = "told"

    def __init__(self, scale: float, rows: dict[str, tuple[float, ...]], weights: str = "") -> None:
        self.scale, self._rows, self.width, self.weights, self.asked = scale, rows, 2, weights, 0

    def embed_texts(self, texts):
        self.asked += 1
        return np.array([self._rows[t] for t in texts], np.float32)


def test_order_is_that_of_the_product_of_probabilities(tmp_path):
    first = Told(10, {"a": (1, 0), "b": (0, 1), "c": (0.6, 0.8)})
    second = Told(5, {"a": (0, 1), "b": (1, 0), "c": (0.8, 0.6)})
    tagger = Tagger(WordsConfig(count=3, vocabulary=("a", "b", "c")), [first, second], tmp_path)
    views = np.array([[1, 0, 1, 0], [0, 1, 1, 0]], np.float32)  # means: (.5, .5) at 10, (1, 0) at 5
    words, rows = tagger.nearest(views)
    assert words == ["c", "b", "a"]  # 7 + 4, 5 + 5, 5 + 0
    assert rows.tolist() == [pytest.approx(r) for r in ([0.6, 0.8, 0.8, 0.6], [0, 1, 1, 0], [1, 0, 0, 1])]
    one = Tagger(WordsConfig(count=1, vocabulary=("a", "b")), [first, second], tmp_path)
    assert one.nearest(views)[0] == ["b"]


def test_words_are_embedded_once(tmp_path):
    """For all workers and runs, until the words or a teacher's weights change or the file is damaged."""
    path = tmp_path / vocabulary.NAME
    rows = {"a": (1, 0), "b": (0, 1)}
    config = WordsConfig(count=1, vocabulary=("a", "b"))

    def asked(config=config, weights=""):
        teacher = Told(10, rows, weights)
        assert Tagger(config, [teacher], tmp_path).nearest(np.array([[0.0, 1.0]], np.float32))[0] == ["b"]
        return teacher.asked

    assert [asked(), asked()] == [1, 0]
    assert vocabulary.read(path).words == ["a", "b"]
    assert [asked(weights="other"), asked(weights="other"), asked()] == [1, 0, 1]
    assert [asked(config.model_copy(update={"vocabulary": ("b", "a")})), asked()] == [1, 1]
    path.write_bytes(path.read_bytes()[:-1])
    assert [asked(), asked()] == [1, 0]


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
    inoffensive = resolved(WordsConfig())
    assert set(inoffensive) < set(words)
    assert len(inoffensive) == 32_230 - 144
    assert {"goat", "the"} <= set(inoffensive)


def test_another_list_of_offensive_words_is_refused(monkeypatch):
    """On a cluster the workers would disagree about the words."""
    monkeypatch.setattr(words_module, "_OFFENSIVE", dataclasses.replace(words_module._OFFENSIVE, sha256="0" * 64))
    with pytest.raises(InputError, match=r"profanity_wordlist.txt: is not the file of better-profanity 0.7.0 .*; run: pip install"):
        resolved(WordsConfig())


def test_a_finished_set_gets_its_vocabulary_again(make, tmp_path):
    """With the first shard; also a set that was finished without."""
    first = make(words={"count": 2, "vocabulary": WORDS})
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").glob("[!.]*") if p.is_file()}
    (tmp_path / "out" / vocabulary.NAME).unlink()
    again = make(words={"count": 2, "vocabulary": WORDS})
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").glob("[!.]*") if p.is_file()} == before
    assert (again.made, again.tally) == (1, first.tally)
    assert make(words={"count": 2, "vocabulary": WORDS}).made == 0


def test_by_the_teachers_that_made_the_shards(make, data, tmp_path, tiny_open_clip):
    teacher = {"kind": "open_clip", "name": "t", "model": tiny_open_clip()}
    options = {"shards": data / "00002.tar", "words": {"count": 2, "vocabulary": WORDS}}
    make(teacher, **options)
    (tmp_path / "out" / vocabulary.NAME).unlink()
    before = (tmp_path / "out/00002.tar").read_bytes()
    path = Path(teacher["model"].removeprefix("local-dir:")) / "open_clip_model.safetensors"
    state = safetensors.torch.load(path.read_bytes())
    safetensors.torch.save_file({name: t * 2 if t.ndim > 1 else t for name, t in state.items()}, path)
    with pytest.raises(InputError, match="teachers with other weights"):
        make(teacher, **options)
    assert (tmp_path / "out/00002.tar").read_bytes() == before
    assert not (tmp_path / "out" / vocabulary.NAME).exists()


def test_the_vocabulary_lies_beside_the_shards(make, tmp_path):
    """Also where the teachers' files lie elsewhere."""
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere/teachers").mkdir(parents=True)
    (tmp_path / "out/teachers").symlink_to(tmp_path / "elsewhere/teachers")
    make(words={"count": 2, "vocabulary": WORDS})
    assert (tmp_path / "out" / vocabulary.NAME).is_file()
    assert not (tmp_path / "elsewhere" / vocabulary.NAME).exists()


def test_another_vocabulary_is_another_set(make):
    make(NANO, captions=0, dtype="fp32", words={"count": 2, "vocabulary": WORDS})
    with pytest.raises(InputError, match="made in another way"):
        make(NANO, captions=0, dtype="fp32", words={"count": 2, "vocabulary": WORDS[1:]})
