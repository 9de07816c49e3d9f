"""Every layout gives the same examples; what is wrong in one is named or counted."""

from __future__ import annotations

import json
import shutil

import pytest

from mobileclip.data.samples import BadSample, Sample
from mobileclip.data.shards import write_shard
from mobileclip.errors import InputError
from mobileclip.evaluation.datasets import Example, example_of, matching, open_dataset

NAMES = ("cat", "coffee", "dahlia", "drum", "rocket")


def usable(dataset) -> list[Example]:
    return [e for e in dataset.read() if isinstance(e, Example)]


def reasons(dataset) -> list[str]:
    return [e.reason for e in dataset.read() if isinstance(e, BadSample)]


def test_all_layouts_hold_the_same_pictures(layouts):
    pictures = {}
    for field in ("folders", "shards", "table", "published", "published_retrieval"):
        dataset = open_dataset(str(getattr(layouts, field)))
        pictures[field] = sorted(e.image for e in usable(dataset))
        assert reasons(dataset) == []
        assert [e.key for e in dataset.read()] == [e.key for e in dataset.read()]  # a second pass
    assert len(pictures["folders"]) == 10
    assert all(found == pictures["folders"] for found in pictures.values())


def test_what_each_layout_knows(layouts):
    by_folder = open_dataset(str(layouts.folders))
    assert (by_folder.name, by_folder.classes, by_folder.kind) == ("folders", (), None)
    assert [e.fields for e in usable(by_folder)] == [{"label": n} for n in NAMES for _ in range(2)]
    first = usable(open_dataset(str(layouts.shards)))[0]
    assert (first.key, first.captions, first.fields) == ("cat-whole", ("a photo of a cat",), {"label": "cat", "style": "whole"})
    row = usable(open_dataset(str(layouts.table)))[0]
    assert row.captions == ("a photo of a cat", "the cat, seen from near")
    assert row.fields["style"] == "whole"
    published = open_dataset(str(layouts.published))
    assert (published.classes, published.templates, published.kind) == (NAMES, ("a photo of a {}.", "the {}"), "classification")
    assert [e.fields["label"] for e in usable(published)] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    retrieval = open_dataset(str(layouts.published_retrieval))
    assert (retrieval.classes, retrieval.kind) == ((), "retrieval")
    assert usable(retrieval)[9].captions == ("a photo of a rocket", "the rocket, seen from near")
    one = open_dataset(str(layouts.shards / "01.tar"))
    assert (one.name, len(usable(one))) == ("01", 4)


def test_a_table_of_labels_and_one_of_repeated_pictures(layouts):
    labels = layouts.table.with_name("labels.csv")
    labels.write_text("file,label,group\nfolders/cat/cat-whole.png,cat,animal\nfolders/drum/drum-half.png,drum,thing\n,drum,thing\n")
    dataset = open_dataset(str(labels))
    assert [e.fields for e in usable(dataset)] == [{"label": "cat", "group": "animal"}, {"label": "drum", "group": "thing"}]
    assert reasons(dataset) == ["no_image"]
    captions = layouts.table.with_name("captions.tsv")
    lines = ("filepath\ttitle\tsplit", "folders/cat/cat-whole.png\ta cat\ta", "folders/drum/drum-half.png\ta drum\tb")
    captions.write_text("\n".join((*lines, "folders/cat/cat-whole.png\tanother, cat\ta", "folders/drum/drum-half.png\t \tb")))
    dataset = open_dataset(str(captions))
    assert [(e.captions, e.fields["split"]) for e in usable(dataset)] == [(("a cat", "another, cat"), "a"), (("a drum",), "b")]
    assert reasons(dataset) == ["no_caption"]


def test_line_separators_of_unicode_are_text(layouts):
    caption = "a cat\u2028on a\x85mat"
    table = layouts.table.with_name("separators.jsonl")
    table.write_text(json.dumps({"image": "folders/cat/cat-whole.png", "caption": caption}, ensure_ascii=False) + "\n", "utf-8")
    assert [e.captions for e in usable(open_dataset(str(table)))] == [(caption,)]
    table = layouts.table.with_name("separators.csv")
    table.write_text(f"image,caption\nfolders/cat/cat-whole.png,{caption}\n", "utf-8")
    assert [e.captions for e in usable(open_dataset(str(table)))] == [(caption,)]


def test_conditions_choose_a_part(layouts):
    dataset = open_dataset(str(layouts.shards))
    assert len(usable(matching(dataset, ["style=half"]))) == 5
    assert [e.key for e in matching(dataset, ["style != half", "label=drum"]).read()] == ["drum-whole"]
    assert len(usable(matching(dataset, ["absent!=half"]))) == 10
    assert usable(matching(dataset, ["absent=None"])) == []
    with pytest.raises(InputError, match="FIELD=VALUE"):
        matching(dataset, ["style"])


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"txt": b"a cat"}, "no_image"),
        ({"png": b"x", "txt": b"caf\xe9"}, "not_utf8"),
        ({"png": b"x", "json": b"{"}, "unreadable"),
        ({"png": b"x", "json": b"[" * 100_000}, "unreadable"),
        ({"png": b"x", "json": b"[1]"}, "unreadable"),
        ({"png": b"x", "json": b"\xff"}, "not_utf8"),
        ({"png": b"x", "json": b'{"label": "\\ud800"}'}, "not_utf8"),
        ({"png": b"x", "cls": b"\xff"}, "not_utf8"),
    ],
)
def test_a_sample_that_cannot_be_used_says_why(members, reason):
    with pytest.raises(BadSample) as caught:
        example_of(Sample("key", members))
    assert caught.value.reason == reason


def test_a_class_may_be_a_number_or_a_name():
    def label(content: bytes) -> object:
        return example_of(Sample("key", {"png": b"x", "cls": content, "json": b'{"label": "other"}'})).fields["label"]

    assert label(b"7\n") == 7
    assert label(b" tabby cat ") == "tabby cat"
    assert label(b"9" * 5000) == "9" * 5000


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("dataset_type.txt", "multilabel", "'multilabel' cannot be scored"),
        ("test/nshards.txt", "two", "number of shards"),
        ("test/nshards.txt", "99999999", "number of shards"),
        ("test/nshards.txt", "2", "1.tar"),
        ("classnames.txt", b"caf\xe9", "not UTF-8"),
    ],
)
def test_a_damaged_published_layout_is_refused(layouts, tmp_path, file, content, message):
    copy = tmp_path / "published"
    shutil.copytree(layouts.published, copy)
    (copy / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        open_dataset(str(copy))


def test_nothing_to_score(tmp_path):
    with pytest.raises(InputError, match="neither shards"):
        open_dataset(str(tmp_path))
    with pytest.raises(InputError, match="no such"):
        open_dataset(str(tmp_path / "absent"))
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": "a.png"}) + "\n")
    with pytest.raises(InputError, match="caption or label"):
        list(open_dataset(str(tmp_path / "rows.jsonl")).read())


def test_a_cut_off_shard_counts_once(layouts, tmp_path):
    whole = (layouts.shards / "00.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2])
    dataset = open_dataset(str(tmp_path / "cut.tar"))
    assert reasons(dataset) == ["damaged_shard"]
    assert 0 < len(usable(dataset)) < 6
    write_shard(tmp_path / "empty.tar", [])
    assert list(open_dataset(str(tmp_path / "empty.tar")).read()) == []
