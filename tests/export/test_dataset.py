"""The verification set is what it claims to be: real, varied, licensed, and hard for a tokenizer where it says so."""

from __future__ import annotations

import hashlib
import html
import re
import shutil
import unicodedata
from importlib.resources import files
from pathlib import Path

import numpy as np
import open_clip
import pytest
from PIL import Image

from mobileclip.errors import InputError
from mobileclip.export.verify import dataset

ASSETS = Path(str(files("mobileclip.assets")))
PHOTOS = sorted((ASSETS / "photos").iterdir())
NOTICE = (Path(__file__).parents[2] / "NOTICE").read_text("utf-8")
# The least correlation of neighbouring pixels that counts as a picture: white noise has 0, these pictures 0.74 or more.
MIN_NEIGHBOUR_CORRELATION = 0.5
MIN_STD = 10.0  # of 255


def neighbour_correlation(channel: np.ndarray) -> float:
    """Mean correlation of a channel (H, W) with itself shifted by one pixel, right and down."""
    pairs = ((channel[:, 1:], channel[:, :-1]), (channel[1:], channel[:-1]))
    return float(np.mean([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in pairs]))


def is_noise(image: Image.Image) -> bool:
    channels = np.asarray(image, np.float64).transpose(2, 0, 1)
    return any(c.std() < MIN_STD or neighbour_correlation(c) <= MIN_NEIGHBOUR_CORRELATION for c in channels)


@pytest.fixture(scope="module")
def pictures() -> list[dataset.Picture]:
    return dataset.pictures()


def token_counts(texts: list[str]) -> list[int]:
    """Tokens of each text by open_clip's tokenizer, start and end included, before truncation."""
    tokenizer = open_clip.SimpleTokenizer()
    return [len(tokenizer.encode(text)) + 2 for text in texts]


def test_enough_pictures_from_enough_photographs(pictures):
    assert len(pictures) >= 64
    assert len(dataset.photograph_names()) >= 16
    assert len(dataset.photograph_names()) == len(PHOTOS)
    assert {p.name.split("-")[0] for p in pictures} == set(dataset.photograph_names())


def test_pictures_are_rgb_large_enough_and_all_different(pictures):
    assert {p.image.mode for p in pictures} == {"RGB"}
    assert min(min(p.image.size) for p in pictures) >= dataset.MIN_CROP_SIDE_PX
    assert len({p.name for p in pictures}) == len(pictures)
    assert len({p.image.tobytes() for p in pictures}) == len(pictures)


def test_most_pictures_are_not_square_and_most_photographs_are_in_colour(pictures):
    oblong = [p for p in pictures if p.image.width != p.image.height]
    assert len(oblong) >= 0.9 * len(pictures)
    assert len({round(p.image.width / p.image.height, 1) for p in pictures}) >= 6
    coloured = [p for p in pictures if np.ptp(np.asarray(p.image, np.int16), axis=2).mean() > 8]
    assert len(coloured) >= 0.8 * len(pictures)


def test_no_picture_is_noise(pictures):
    assert [p.name for p in pictures if is_noise(p.image)] == []


@pytest.mark.parametrize("kind", ["white noise", "one grey", "shuffled pixels"])
def test_the_noise_check_finds_noise(kind, pictures):
    pixels = np.asarray(pictures[0].image)
    rng = np.random.default_rng(0)
    fakes = {
        "white noise": rng.integers(0, 256, pixels.shape, np.uint8),
        "one grey": np.full_like(pixels, 128),
        "shuffled pixels": rng.permutation(pixels.reshape(-1, 3)).reshape(pixels.shape),
    }
    assert is_noise(Image.fromarray(fakes[kind]))


def test_pictures_are_the_same_every_time(pictures):
    again = dataset.pictures()
    assert [(p.name, p.image.tobytes()) for p in again] == [(p.name, p.image.tobytes()) for p in pictures]


def test_photographs_keep_fine_detail():
    """Nearest and bilinear resizing must differ by much more than rounding, or the set cannot tell them apart."""
    for name in dataset.photograph_names():
        whole = dataset.photograph(name)
        small = [np.asarray(whole.resize((256, 256), how), np.float64) for how in (Image.NEAREST, Image.BILINEAR)]
        assert np.abs(small[0] - small[1]).mean() > 1.0, name


def test_photographs_are_lossless_webp_and_the_set_is_small():
    assert {path.suffix for path in PHOTOS} == {".webp"}
    assert all(path.read_bytes()[12:16] == b"VP8L" for path in PHOTOS)
    assert sum(path.stat().st_size for path in PHOTOS) <= 3_500_000


def test_notice_names_every_photograph_with_its_licence_and_hash():
    rows = {cells[0]: cells for line in NOTICE.splitlines() if (cells := [c.strip() for c in line.split("|")[1:-1]])}
    for path in PHOTOS:
        _, author, source, licence, digest = rows[path.name]
        assert author
        assert source
        assert re.fullmatch(r"public domain|CC0 1\.0|CC BY 2\.0|CC BY 4\.0", licence), path.name
        assert digest == hashlib.sha256(path.read_bytes()).hexdigest(), path.name
    assert {name for name in rows if name.endswith(".webp")} == {path.name for path in PHOTOS}


def test_unknown_photograph_is_one_clear_line():
    with pytest.raises(InputError, match=r"unknown photograph 'cta'; did you mean 'cat'\?") as caught:
        dataset.photograph("cta")
    assert "\n" not in str(caught.value)


def test_captions_are_many_and_distinct_also_as_token_ids():
    captions = dataset.captions()
    assert 64 <= len(captions) <= 80
    assert len(set(captions)) == len(captions)
    ids = open_clip.SimpleTokenizer()(captions)
    assert len({tuple(row) for row in ids.tolist()}) == len(captions)


def test_every_photograph_has_captions_and_a_label():
    described = dataset._captions_file()["photographs"]
    assert sorted(described) == dataset.photograph_names()
    assert all(len(texts) >= 2 for texts in described.values())
    labels = (ASSETS / "labels.txt").read_text("utf-8").splitlines()
    assert len(labels) == len(set(labels)) == len(described)
    assert all(label == label.strip() != "" for label in labels)


def test_edge_cases_have_the_token_counts_in_their_names():
    cases = dataset.edge_cases()
    names = ["empty", "1_token", "2_tokens", "76_tokens", "77_tokens", "78_tokens"]
    assert token_counts([cases[n] for n in names]) == [2, 3, 4, 76, 77, 78]
    assert min(token_counts([cases["over_77_tokens"], cases["far_over_77_tokens"]])) > 78


@pytest.mark.parametrize(
    ("case", "script"),
    [
        ("chinese", "CJK UNIFIED"),
        ("japanese", "HIRAGANA"),
        ("korean", "HANGUL"),
        ("arabic", "ARABIC"),
        ("hindi", "DEVANAGARI"),
        ("cyrillic", "CYRILLIC"),
        ("emoji", "DOG FACE"),
        ("emoji_joined", "ZERO WIDTH JOINER"),
        ("decomposed_accents", "COMBINING ACUTE"),
        ("quotes", "RIGHT SINGLE QUOTATION MARK"),
    ],
)
def test_edge_case_holds_the_script_in_its_name(case, script):
    assert any(script in unicodedata.name(c, "") for c in dataset.edge_cases()[case])


def test_edge_case_texts_are_what_their_names_say():
    cases = dataset.edge_cases()
    assert cases["empty"] == ""
    assert unicodedata.normalize("NFC", cases["accented_latin"]) == cases["accented_latin"]
    assert not cases["accented_latin"].isascii()
    once = html.unescape(cases["html_entity_twice"])
    assert cases["html_entity"] != html.unescape(cases["html_entity"])
    assert cases["html_entity_twice"] != once != html.unescape(once)
    assert cases["upper_case"].isupper()
    assert len(re.findall(r"\d", cases["digits"])) >= 10
    assert re.search(r"\S {2,}\S", cases["double_spaces"])
    assert re.search(r"[!?.*]{3,}", cases["punctuation_runs"])
    assert "<end_of_text>" in cases["start_and_end_words"]


@pytest.mark.parametrize("changed", ["photos/cat.webp", "captions.json", "rule", "name"])
def test_identity_changes_with_any_asset_and_with_the_crop_rule(changed, tmp_path, monkeypatch):
    before = dataset.dataset_sha256()
    assert re.fullmatch(r"[0-9a-f]{64}", before)
    shutil.copytree(ASSETS / "photos", tmp_path / "photos")
    shutil.copy(ASSETS / "captions.json", tmp_path)
    monkeypatch.setattr(dataset, "files", lambda _: tmp_path)
    assert dataset.dataset_sha256() == before
    if changed == "rule":
        monkeypatch.setattr(dataset, "MIN_CROP_SIDE_PX", 201)
    elif changed == "name":
        (tmp_path / "photos/cat.webp").rename(tmp_path / "photos/tom.webp")
    else:
        with (tmp_path / changed).open("ab") as f:
            f.write(b" ")
    assert dataset.dataset_sha256() != before
