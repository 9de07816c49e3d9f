from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from mobileclip.data.samples import Sample
from mobileclip.errors import InputError
from mobileclip.reinforce.captioners import CocaCaptioner, Subject, TemplateCaptioner, cut, nucleus
from mobileclip.reinforce.config import CocaConfig, TemplatesConfig

TAGS = ["fruit", "red", "garden"]


def subject(number: int, **about: object) -> Subject:
    pixels = np.random.default_rng(number).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    members = {"json": json.dumps(about).encode()} if about else {}
    return Subject(Sample(str(number), members), Image.fromarray(pixels), ["a caption"], (0, number))


def test_templates_give_distinct_captions_of_label_and_tags():
    captioner = TemplateCaptioner(TemplatesConfig())
    subjects = [subject(n, label="apple", tags=TAGS) for n in range(50)]
    captions = captioner.caption(subjects, 5)
    assert all(len(set(c)) == 5 for c in captions)
    flat = [c for some in captions for c in some]
    assert all("apple" in c or set(c.split(", ")) <= set(TAGS) for c in flat)
    assert {"a drawing of apple", "a picture of the apple"} <= set(flat)
    assert any(c.startswith("apple, ") for c in flat)
    assert any("apple" not in c for c in flat)
    assert captioner.caption(subjects[7:8], 5) == captions[7:8]


def test_templates_without_label_take_the_caption():
    (captions,) = TemplateCaptioner(TemplatesConfig()).caption([subject(0)], 9)
    assert len(captions) == 9
    assert all("a caption" in c for c in captions)


@pytest.mark.parametrize(
    "about", [b"[1]", b"{", b'{"label": 3, "tags": "red"}', b"[" * 10_000, b'{"label": "\\ud800", "tags": ["\\udfff"]}']
)
def test_strange_json_is_no_label(about):
    s = Subject(Sample("0", {"json": about}), Image.new("RGB", (9, 9)), ["a caption"], (0,))
    assert all("a caption" in c for c in TemplateCaptioner(TemplatesConfig()).caption([s], 5)[0])


def test_template_without_place_is_refused():
    with pytest.raises(InputError, match=r"needs one \{\}"):
        TemplateCaptioner(TemplatesConfig(templates=("a thing",)))


def test_coca_writes_captions(tiny_open_clip):
    config = CocaConfig(kind="coca", model=tiny_open_clip("coca"), pretrained=None, tokens=8, batch=2)
    subjects = [subject(n) for n in range(3)]
    captions = CocaCaptioner(config).caption(subjects, 2)
    assert [len(c) for c in captions] == [2, 2, 2]
    assert all(c == cut(c) and "<" not in c for some in captions for c in some)
    assert len({c for some in captions for c in some}) > 1
    assert CocaCaptioner(config).caption(subjects, 2) == captions


def test_coca_says_the_same_whatever_stands_beside_a_picture(tiny_open_clip):
    config = CocaConfig(kind="coca", model=tiny_open_clip("coca"), pretrained=None, tokens=8, batch=2)
    captioner = CocaCaptioner(config)
    together = captioner.caption([subject(0), subject(1)], 4)
    assert captioner.caption([subject(1), subject(2)], 4)[0] == together[1]


@pytest.mark.parametrize(("tags", "count"), [([], 7), (["red"], 8), (TAGS, 9)])
def test_captions_are_distinct_as_far_as_there_are_so_many(tags, count):
    captioner = TemplateCaptioner(TemplatesConfig())
    for captions in captioner.caption([subject(n, label="apple", tags=tags) for n in range(200)], count):
        assert len(set(captions)) == count
    (more,) = captioner.caption([subject(0, label="apple", tags=tags)], 50)
    assert len(more) == 50


def test_an_empty_caption_is_no_label():
    s = Subject(Sample("0", {}), Image.new("RGB", (9, 9)), ["", "a cat"], (0,))
    assert all("a cat" in c for c in TemplateCaptioner(TemplatesConfig()).caption([s], 5)[0])


def test_other_models_write_no_captions(tiny_open_clip):
    with pytest.raises(InputError, match="writes no captions"):
        CocaCaptioner(CocaConfig(kind="coca", model=tiny_open_clip(), pretrained=None))


def test_captions_end_at_the_first_full_stop():
    assert cut("<start_of_text>a cat on a mat . it sleeps . <end_of_text>!!!") == "a cat on a mat"


def test_nucleus_draws_from_the_likeliest_values_only():
    p = np.array([[0.05, 0.5, 0.15, 0.3]])
    uniform = np.linspace(0, 0.999999, 10_000)
    drawn = nucleus(np.repeat(p, len(uniform), 0), 0.75, uniform)
    shares = np.bincount(drawn, minlength=4) / len(drawn)
    np.testing.assert_allclose(shares, [0, 0.625, 0, 0.375], atol=1e-3)
    assert set(nucleus(np.repeat(p, len(uniform), 0), 1.0, uniform)) == {0, 1, 2, 3}
