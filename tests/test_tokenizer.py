from __future__ import annotations

import functools
import gzip
import inspect
import itertools
import json
import pickle
import random
import string
from pathlib import Path
from types import ModuleType

import numpy as np
import open_clip.tokenizer as reference
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES

import mobileclip.tokenizer
from mobileclip.errors import BundleError, InputError
from mobileclip.tokenizer import Tokenizer

GOLDEN = [json.loads(line) for line in (Path(__file__).parent / "data/golden/tokenizer.jsonl").open(encoding="utf-8")]
SPECIAL_PIECES = [
    *("<start_of_text>", "<end_of_text>", "<START_OF_TEXT>", "<ſtart_of_text>", "<|startoftext|>", "!<end_of_text>"),
    *("&amp;", "&amp;lt;", "&lt;start_of_text&gt;", "&#39;", "&#x1F600;", "&#xD800;", "&eacute", "& ", "&\r", "&T", "<b>"),
    *("<", "'s", "'S", "'ſ", "'LL", "’", "“", "K", "İ", "Σ", "ẞ", "__", "--", "...", "\r\n", "\t", " ", "a", "Z", "9"),
    *("\x00", "\x0b", "\x0c", "\x1b[31m", "\x1c", "\x85", "\xa0", "\u2028", "\u3000", "\u200b", "\u200d", "\ufeff", "\ud800"),
    *("e\u0301", "ﬁ", "Ａ", "cafÃ©", "â€œ", "日本", "👨\u200d👩", "🇩🇪", "٣", "½", "Ⅷ"),
]


@pytest.fixture(scope="module")
def ours() -> Tokenizer:
    return Tokenizer.clip()


@pytest.fixture(scope="module")
def theirs() -> reference.SimpleTokenizer:
    return reference.SimpleTokenizer()


def portable(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(tokenizer.to_bytes().decode())


def assert_same(ours: Tokenizer, theirs: reference.SimpleTokenizer, texts: list[str]) -> None:
    expected = theirs(texts).numpy()
    got = ours(texts)
    wrong = np.flatnonzero((got != expected).any(axis=1))
    assert not wrong.size, f"{wrong.size} of {len(texts)} differ, first {texts[wrong[0]]!r}"


def docstrings(*packages: ModuleType) -> list[str]:
    """Every documented member's text, whole and by line."""
    texts: set[str] = set()
    for package in packages:
        for name in dir(package):
            doc = inspect.getdoc(getattr(package, name)) or ""
            texts.update([doc, *doc.splitlines()])
    return sorted(texts)


def mixed_texts(count: int) -> list[str]:
    """Words, special pieces and random characters of all planes, joined with and without spaces."""
    rng = random.Random(20240917)
    words = IMAGENET_CLASSNAMES
    ranges = [(0x20, 0x7F), (0, 0x250), (0x250, 0x3000), (0x3000, 0xD800), (0xE000, 0x10000), (0x1F000, 0x1FB00), (0, 0x110000)]

    def piece() -> str:
        kind = rng.random()
        if kind < 0.45:
            return rng.choice(words)
        if kind < 0.75:
            return rng.choice(SPECIAL_PIECES)
        low, high = rng.choice(ranges)
        return "".join(chr(rng.randrange(low, high)) for _ in range(rng.randint(1, 6)))

    return ["".join(piece() + rng.choice(["", " ", " "]) for _ in range(rng.randint(1, 12))) for _ in range(count)]


@pytest.mark.parametrize("golden", GOLDEN, ids=range(len(GOLDEN)))
def test_golden_ids(ours: Tokenizer, golden: dict) -> None:
    ids = ours(golden["text"])
    assert ids.dtype == np.int32
    assert ids.shape == (1, 77)
    assert ids[0].tolist() == golden["ids"]


def test_equal_to_the_reference_on_captions(ours: Tokenizer, theirs: reference.SimpleTokenizer) -> None:
    captions = [t(c) for i, c in enumerate(IMAGENET_CLASSNAMES) for t in OPENAI_IMAGENET_TEMPLATES[i % 7 :: 7]]
    captions += docstrings(np, np.linalg, random, string, json, inspect, reference, tokenizers)
    assert len(captions) >= 10_000
    assert_same(ours, theirs, captions)


def test_equal_to_the_reference_on_mixed_text(ours: Tokenizer, theirs: reference.SimpleTokenizer) -> None:
    assert_same(ours, theirs, mixed_texts(6_000))


def test_equal_to_the_reference_on_every_character(ours: Tokenizer, theirs: reference.SimpleTokenizer) -> None:
    characters = [chr(c) for c in range(0x30000) if not 0xE000 <= c < 0xF900 and not 0x3400 <= c < 0xD800]
    assert_same(ours, theirs, [f"x{''.join(characters[i : i + 8])}'s" for i in range(0, len(characters), 8)])


@settings(max_examples=1500, deadline=None)
@given(st.text(max_size=200) | st.lists(st.sampled_from(SPECIAL_PIECES) | st.text(max_size=4), max_size=30).map("".join))
@example("<" + "a" * 300)
@example("\ud83d\ude00")
def test_equal_to_the_reference_on_any_string(text: str) -> None:
    assert_same(_OURS, _THEIRS, [text])


@settings(max_examples=1500, deadline=None)
@given(st.text(alphabet=string.printable + "&<>'\x00\x1b\x1c\x7f", max_size=120))
def test_equal_to_the_reference_on_ascii(text: str) -> None:
    assert_same(_OURS, _THEIRS, [text])


_OURS, _THEIRS = Tokenizer.clip(), reference.SimpleTokenizer()


@pytest.mark.parametrize("context_length", [2, 3, 16, 77, 300])
def test_context_length(theirs: reference.SimpleTokenizer, context_length: int) -> None:
    texts = ["", "a", "a photo of a dog", "word " * 400, "12345" * 30]
    ours = Tokenizer.clip(context_length)
    assert np.array_equal(ours(texts), theirs(texts, context_length=context_length).numpy())
    assert Tokenizer.from_json(ours.to_bytes()).context_length == context_length


@pytest.mark.parametrize("words", [74, 75, 76, 77, 200])
def test_truncation_keeps_the_end(ours: Tokenizer, words: int) -> None:
    ids = ours("dog " * words)[0]
    assert ids[0] == ours.start_id
    assert ids[min(words, 75) + 1] == ours.end_id
    assert (ids == ours.end_id).sum() == 1
    assert (ids[words + 2 :] == ours.pad_id).all()


def test_special_names(ours: Tokenizer) -> None:
    assert ours("a <end_of_text> b")[0, :5].tolist() == [49406, 320, 49407, 321, 49407]
    assert ours("<start_of_text>")[0, :3].tolist() == [49406, 49406, 49407]
    assert 49406 not in ours("<|startoftext|>")[0, 1:]


def test_no_text_and_no_list(ours: Tokenizer) -> None:
    assert ours([]).shape == (0, 77)
    assert ours("")[0, :3].tolist() == [49406, 49407, 0]
    for wrong in (None, 0, b"bytes", ["nested"]):
        with pytest.raises(InputError, match="caption must be text"):
            ours(["fine", wrong])  # type: ignore[list-item]


def test_context_length_without_room_is_refused() -> None:
    with pytest.raises(InputError, match="no room"):
        Tokenizer.clip(1)


def test_word_cache_is_bounded_and_changes_nothing(monkeypatch: pytest.MonkeyPatch, theirs: reference.SimpleTokenizer) -> None:
    monkeypatch.setattr(mobileclip.tokenizer, "_CACHED_WORDS", 5)
    ours = Tokenizer.clip()
    texts = [*mixed_texts(200), "x" * 5000, "<end_of_text> " * 9]
    assert_same(ours, theirs, texts + texts)
    assert len(ours._clip._cache) <= 5


def test_merges_are_those_of_the_reference() -> None:
    lines = gzip.decompress(Path(reference.default_bpe()).read_bytes()).decode().split("\n")
    packed = Path(mobileclip.__file__).parent / "assets/clip_merges.txt.gz"
    assert gzip.decompress(packed.read_bytes()).decode().splitlines() == lines[1:48_895]


def test_portable_file_keeps_everything(tmp_path: Path, ours: Tokenizer) -> None:
    path = tmp_path / "tokenizer.json"
    ours.save(path)
    again = Tokenizer.load(path)
    assert (again.context_length, again.start_id, again.end_id, again.pad_id) == (77, 49406, 49407, 0)
    assert again.sha256() == ours.sha256() == Tokenizer.clip().sha256()
    again.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()
    texts = [g["text"] for g in GOLDEN] + mixed_texts(300)
    assert np.array_equal(again(texts), ours(texts))


def test_portable_file_is_as_the_rust_library_writes_it(ours: Tokenizer) -> None:
    """So a file that another program has read and written is still taken for CLIP's."""
    rewritten = portable(ours).to_str()
    assert json.loads(rewritten) == json.loads(ours.to_bytes())
    assert Tokenizer.from_json(rewritten.encode()).sha256() == ours.sha256()


def test_portable_file_alone_gives_the_ids(ours: Tokenizer) -> None:
    """Without the clean-up in front, as Swift, Kotlin and JavaScript use it: exact but for HTML and text in need of repair."""
    alone = portable(ours)
    for golden in GOLDEN:
        if not golden["needs_ftfy"] and "&" not in golden["text"]:
            assert alone.encode(golden["text"]).ids == golden["ids"], golden["text"]
    typed = ["It’s a “nice” dog", "ΕΛΛΑΣ Σας", "  A  PHOTO\tof\na dog ", "nul\x00l\ufeff", "日本 😀"]
    captions = [t(c) for c, t in zip(IMAGENET_CLASSNAMES, itertools.cycle(OPENAI_IMAGENET_TEMPLATES), strict=False)] + typed
    assert [e.ids for e in alone.encode_batch(captions)] == ours(captions).tolist()


def test_survives_pickling(ours: Tokenizer) -> None:
    """Data loaders send tokenizers to their worker processes."""
    again = pickle.loads(pickle.dumps(ours))
    assert np.array_equal(again(["a photo of a dog"]), ours(["a photo of a dog"]))


def other_vocabulary(**parts: object) -> dict:
    """A small word-piece tokenizer, trained here, framed as BERT or T5 files are."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]"]
    trainer = tokenizers.trainers.WordPieceTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([*IMAGENET_CLASSNAMES, string.printable], trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=parts.get("single", "[CLS] $A [SEP]"), special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return json.loads(tokenizer.to_str())


def test_other_vocabulary_keeps_its_frame(tmp_path: Path) -> None:
    source = json.dumps(other_vocabulary())
    path = tmp_path / "tokenizer.json"
    path.write_text(source, encoding="utf-8")
    ours = Tokenizer.load(path)
    assert (ours.start_id, ours.end_id, ours.pad_id, ours.context_length) == (1, 2, 3, 77)
    expected = tokenizers.Tokenizer.from_str(source)
    expected.enable_truncation(77)
    expected.enable_padding(length=77, pad_id=3)
    texts = ["a tench &amp; a goldfish", "caf\u00c3\u00a9", "", "goldfish " * 100]
    clean = ["a tench & a goldfish", "caf\u00e9", "", ("goldfish " * 100).strip()]
    assert ours(texts).tolist() == [e.ids for e in expected.encode_batch(clean)]
    assert ours([]).shape == (0, 77)
    again = Tokenizer.from_json(ours.to_bytes())
    assert np.array_equal(again(texts), ours(texts))
    assert again.sha256() == ours.sha256()


@pytest.mark.parametrize(("single", "start", "end"), [("$A [SEP]", None, 2), ("[CLS] $A", 1, None), ("$A", None, None)])
def test_other_frames(single: str, start: int | None, end: int | None) -> None:
    ours = Tokenizer.from_json(json.dumps(other_vocabulary(single=single)).encode(), context_length=16, pad_id=0)
    assert (ours.start_id, ours.end_id, ours.pad_id, ours.context_length) == (start, end, 0, 16)
    assert ours(["goldfish " * 50, ""]).shape == (2, 16)


def test_canonicalize_is_that_of_the_reference() -> None:
    document = json.dumps(other_vocabulary()).encode()
    plain, canonical = Tokenizer.from_json(document), Tokenizer.from_json(document, canonicalize=True)
    texts = ["Hello, World!", "snake_case  [x] \\ ^-~ `y`", " A-B c - D's ", "\u00dcber\u2019s", *IMAGENET_CLASSNAMES]
    expected = plain([reference.get_clean_fn("canonicalize")(t) for t in texts])
    assert np.array_equal(canonical(texts), expected)
    assert np.array_equal(Tokenizer.from_json(canonical.to_bytes())(texts), expected)


@functools.cache
def damaged() -> dict[str, bytes]:
    data = Tokenizer.clip().to_bytes()
    document = json.loads(data)
    cases = {f"cut {i}/16": data[: len(data) * i // 16] for i in range(16)}
    for key in ("model", "truncation", "padding"):
        cases[f"bad {key}"] = json.dumps(document | {key: 5}).encode()
    vocab = document["model"]["vocab"]
    for name, new in {
        "gap": vocab | {"<end_of_text>": 60_000},
        "double": vocab | {"<end_of_text>": 49_406},
        "byte missing": {("??" if k == "a" else k): v for k, v in vocab.items()},
        "huge id": vocab | {"<end_of_text>": 2**40},
    }.items():
        cases[name] = json.dumps(mobileclip.tokenizer._clip_document(new, document["model"]["merges"], 77)).encode()
    cases["no special token"] = json.dumps(document | {"post_processor": {**document["post_processor"], "special_tokens": {}}}).encode()
    return cases | {"not JSON": b"PK\x03\x04", "list": b"[]", "no model": b"{}", "binary": b"\xff\xfe", "deep": b"[" * 100_000}


@pytest.mark.parametrize(("name", "data"), damaged().items(), ids=damaged().keys())
def test_damaged_file_is_one_clear_line(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(data)
    with pytest.raises(BundleError, match="not a usable tokenizer file") as error:
        Tokenizer.load(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_missing_and_oversized_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        Tokenizer.load(tmp_path / "none.json")
    with (tmp_path / "big.json").open("wb") as f:
        f.truncate(200 * 2**20)
    with pytest.raises(BundleError, match="over"):
        Tokenizer.load(tmp_path / "big.json")
