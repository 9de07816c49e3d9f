from __future__ import annotations

import numpy as np
import pytest
from small_sets import ensemble

from mobileclip.data.augment import Policy
from mobileclip.data.source import find_shards
from mobileclip.errors import InputError
from mobileclip.reinforce.backbones import CLASSES, FEATURES, SENTENCE, unit
from mobileclip.reinforce.captioners import load_captioner
from mobileclip.reinforce.fit import Pairs, fit, fit_conse, fit_lit
from mobileclip.reinforce.teachers import load_teacher, projected

CONCEPTS = 40


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    """Features and sentences that are two noisy views of 40 concepts, 5 pictures each."""
    rng = np.random.default_rng(0)
    concepts = rng.normal(size=(CONCEPTS, 32))
    number = np.repeat(np.arange(CONCEPTS), 5)
    features = np.maximum(concepts[number] @ rng.normal(size=(32, FEATURES)) + rng.normal(size=(len(number), FEATURES)), 0)
    sentences = unit(concepts @ rng.normal(size=(32, SENTENCE)))
    logits = rng.normal(size=(len(number), 1, CLASSES)) + 12 * (np.arange(CLASSES) == number[:, None])[:, None]
    return Pairs(features[:, None].astype(np.float32), logits.astype(np.float32), sentences, np.repeat(number[:, None], 3, 1))


def found(images: np.ndarray, texts: np.ndarray, own: np.ndarray) -> float:
    return float((np.argmax(unit(images) @ unit(texts).T, 1) == own).mean())


def test_lit_learns_to_match(pairs):
    heads = fit_lit(pairs, seed=0)
    images = projected(pairs.features[:, 0], heads["image.weight"], heads["image.bias"])
    texts = projected(pairs.sentences, heads["text.weight"], heads["text.bias"])
    assert found(images, texts, pairs.captions[:, 0]) > 0.95
    assert all(np.array_equal(a, b) for a, b in zip(heads.values(), fit_lit(pairs, seed=0).values(), strict=True))


def test_conse_takes_both_means_away(pairs):
    classes = np.zeros((CLASSES, SENTENCE), np.float32)
    classes[:CONCEPTS] = pairs.sentences + 0.5  # all share one large part
    classes[CONCEPTS:] = 0.5
    heads = fit_conse(pairs, unit(classes))
    assert heads["image.mean"].shape == heads["text.mean"].shape == (SENTENCE,)
    assert abs(heads["image.mean"].mean()) > 5 * abs(heads["text.mean"].mean())
    assert 5 <= heads["scale"][0] <= 100


def test_teachers_are_fitted_once_and_the_same_each_time(make, data, tmp_path):
    lit = {"kind": "lit", "name": "lit", "image": "efficientnet-lite0", "side": 32, "text": "paraphrase-minilm-l3"}
    conse = lit | {"kind": "conse", "name": "conse"}
    first = make(lit, conse, out=tmp_path / "a")
    assert [(t["name"], t["width"]) for t in first.teachers] == [("lit", 256), ("conse", 384)]
    config = ensemble(lit).teachers
    path = tmp_path / "again.safetensors"
    progress: list[str] = []
    captioner = load_captioner(ensemble(lit).captioner)
    fit(config, [path], find_shards([str(data)]), Policy(), captioner, tmp_path / "a/teachers", 0, progress.append)
    assert path.read_bytes() == (tmp_path / "a/teachers/lit.safetensors").read_bytes()
    teacher = load_teacher(config[0].model_copy(update={"heads": path, "scale": 7.0}), tmp_path / "a/teachers")
    assert teacher.scale == 7.0
    assert teacher.embed_texts(["a", "b"]).shape == (2, 256)


def test_nothing_to_fit_on_is_told(make, tmp_path):
    from mobileclip.data.shards import write_shard

    write_shard(tmp_path / "empty/00000.tar", [])
    lit = {"kind": "lit", "name": "lit", "image": "efficientnet-lite0", "side": 32, "text": "paraphrase-minilm-l3"}
    with pytest.raises(InputError, match="teacher lit: there is nothing to fit it on"):
        make(lit, shards=tmp_path / "empty")
