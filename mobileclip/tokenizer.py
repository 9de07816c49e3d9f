"""Captions to token ids: the CLIP byte-pair vocabulary, and any other Hugging Face tokenizer file.

The ids equal those of the reference tokenizer of CLIP (Radford et al. 2021, https://arxiv.org/abs/2103.00020, section 2.4)
with its clean-up: ftfy repair, HTML unescape twice, white space collapsed, lower case.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import html
import importlib.resources
import json
import re
import string
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import ftfy
import numpy as np
import regex
import tokenizers

from mobileclip.errors import BundleError, InputError
from mobileclip.files import canonical_json, reading, write_bytes

CONTEXT_LENGTH = 77
MAX_FILE_BYTES = 128 * 2**20
START, END = "<start_of_text>", "<end_of_text>"

# The split of the reference, on cleaned text. Case is still ignored there: a long s (U+017F) is lower case and matches 's.
_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_WORDS = regex.compile(f"{START}|{END}|{_SPLIT}", regex.IGNORECASE)
# ASCII text in which the repair, the unescape and the special names can change nothing takes a short way.
_NEEDS_CLEANUP = re.compile(r"[^\t\n\f\r -~]|&[^\t\n\f ]|<[sSeE]")
_ASCII_WORDS = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^\sa-z0-9]+")
_CACHED_WORDS = 100_000
_CACHED_WORD_LENGTH = 64


class Tokenizer:
    """Turns captions into rows of token ids of one fixed length.

    Attributes:
        context_length: Ids in a row, padding included.
        start_id: Id in front of every caption, or None for vocabularies without one.
        end_id: Id after every caption, or None for vocabularies without one.
        pad_id: Id that fills a row.
    """

    def __init__(self, document: dict[str, Any]) -> None:
        """Wrap the parsed content of a tokenizer file; use `clip`, `load` or `from_json` instead."""
        self._document = document
        self.context_length: int = document["truncation"]["max_length"]
        self.pad_id: int = document["padding"]["pad_id"]
        self.start_id: int | None
        self.end_id: int | None
        self._clip: _ClipWords | None = None
        self._general: tokenizers.Tokenizer | None = None
        if _is_clip(document):
            self._clip = _ClipWords(document["model"]["vocab"], document["model"]["merges"])
            self.start_id, self.end_id = self._clip.special[START][0], self._clip.special[END][0]
        else:
            self._general = tokenizers.Tokenizer.from_str(json.dumps(document))
            if max(self._general.get_vocab().values(), default=0) >= 2**31:
                raise ValueError("an id does not fit into 32 bits")
            self.start_id, self.end_id = _frame(self._general)

    @classmethod
    def clip(cls, context_length: int = CONTEXT_LENGTH) -> Tokenizer:
        """The CLIP vocabulary that ships with the package: 49,408 tokens, start 49406, end 49407, padding 0.

        Raises:
            InputError: `context_length` has no room for the start and the end.
        """
        if context_length < 2:
            raise InputError(f"context length {context_length} has no room for start and end; give 2 or more")
        return cls(_clip_document(*_clip_vocabulary(), context_length))

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read a Hugging Face tokenizer file, such as the one in every bundle.

        Raises:
            InputError: There is no such file.
            BundleError: The file is damaged or is no tokenizer file.
        """
        with reading(path):
            if path.stat().st_size > MAX_FILE_BYTES:
                raise BundleError(f"{path}: over {MAX_FILE_BYTES} bytes is no tokenizer file; export the bundle again")
            return cls.from_json(path.read_bytes(), name=str(path))

    @classmethod
    def from_json(
        cls,
        data: bytes,
        *,
        context_length: int | None = None,
        pad_id: int | None = None,
        canonicalize: bool = False,
        name: str = "tokenizer file",
    ) -> Tokenizer:
        """Read the content of a Hugging Face tokenizer file of any vocabulary.

        Texts of other vocabularies than CLIP's are repaired (ftfy), unescaped and stripped of surplus white space in front, then
        treated as the file says. Start and end come from the file.

        Args:
            data: The JSON file.
            context_length: Length of a row; the file's own if None, 77 if that is silent.
            pad_id: Padding; the file's own if None, the id of <pad> or [PAD] or 0 if that is silent.
            canonicalize: Put into the file that punctuation is dropped and letters become lower case (SigLIP, Zhai et al. 2023).
            name: What errors call the file.

        Raises:
            BundleError: The content is damaged or is no tokenizer file.
        """
        try:
            document = _framed_document(data, context_length, pad_id)
            return cls(_canonicalizing(document) if canonicalize else document)
        except BaseException as e:
            # The Rust library raises plain Exception for what it does not understand, and a panic, which is no Exception, for the rest.
            if not isinstance(e, Exception) and type(e).__name__ != "PanicException":
                raise
            reason = " ".join(str(e).split())[:200]
            raise BundleError(f"{name}: not a usable tokenizer file ({reason}); export the bundle again") from e

    def to_bytes(self) -> bytes:
        """The portable file's content, the same bytes for the same tokenizer.

        Other implementations get the same ids from it, but for text that needs what no tokenizer file can hold: repair of wrongly
        decoded text, full-width forms and ligatures, HTML entities, and special names glued to other symbols.
        """
        return canonical_json(self._document)

    def save(self, path: Path) -> None:
        """Write the portable tokenizer file atomically.

        Raises:
            StorageError: The file cannot be written.
        """
        write_bytes(path, self.to_bytes())

    def sha256(self) -> str:
        """Hex SHA-256 of the portable file."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def __call__(self, texts: Sequence[str] | str) -> np.ndarray:
        """Tokenize one caption or several.

        Longer captions keep their first `context_length` ids, of which the last becomes `end_id`.

        Returns:
            (B, context_length) int32.

        Raises:
            InputError: Something in `texts` is not a string.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        for text in texts:
            if not isinstance(text, str):
                raise InputError(f"a caption must be text, got {type(text).__name__}")
        rows = np.full((len(texts), self.context_length), self.pad_id, dtype=np.int32)
        if self._clip is not None:
            for row, text in zip(rows, texts, strict=True):
                ids = self._clip.encode(text, self.context_length)
                row[: len(ids)] = ids
        elif self._general is not None and texts:
            rows[:] = [e.ids for e in self._general.encode_batch([_clean(t) for t in texts])]
        return rows


class _ClipWords:
    """CLIP's split into words, with the ids of each word looked up or merged by the Rust library."""

    def __init__(self, vocab: dict[str, int], merges: Iterable[Sequence[str]]) -> None:
        if sorted(vocab.values()) != list(range(len(vocab))):
            raise ValueError("the ids have gaps")
        if not vocab.keys() >= {s + suffix for s in _byte_symbols() for suffix in ("", "</w>")}:
            raise ValueError("a byte has no id")
        model = tokenizers.models.BPE(vocab=vocab, merges=[(a, b) for a, b in merges], end_of_word_suffix="</w>", cache_capacity=0)
        self._merge = tokenizers.Tokenizer(model)
        self._merge.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self._cache: dict[str, list[int]] = {}
        self.special = {name: [vocab[name]] for name in (START, END)}

    def encode(self, text: str, context_length: int) -> list[int]:
        """Ids of one caption from start to end, at most `context_length`."""
        plain = not _NEEDS_CLEANUP.search(text)
        words = _ASCII_WORDS.findall(text.lower()) if plain else _WORDS.findall(_clean(text).lower())
        ids = self.special[START].copy()
        cached = self._cache.get
        for word in words:
            ids += cached(word) or self._word(word)
            if len(ids) >= context_length:
                break
        del ids[context_length - 1 :]
        return ids + self.special[END]

    def _word(self, word: str) -> list[int]:
        ids: list[int] = self.special.get(word) or self._merge.encode(word, add_special_tokens=False).ids
        if len(self._cache) >= _CACHED_WORDS:
            self._cache.clear()
        if len(word) <= _CACHED_WORD_LENGTH:
            self._cache[word] = ids
        return ids


def _clean(text: str) -> str:
    """The reference's clean-up without the lower-casing."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


def _byte_symbols() -> list[str]:
    """The 256 characters that stand for bytes, in the order of the vocabulary: printable ones first, then stand-ins from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]


@functools.cache
def _clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Token -> id and the 48,894 merges in order of rank. Ids: bytes, bytes that end a word, merges, start and end."""
    packed = importlib.resources.files("mobileclip.assets").joinpath("clip_merges.txt.gz").read_bytes()
    merges = [(a, b) for a, _, b in (line.partition(" ") for line in gzip.decompress(packed).decode().splitlines())]
    symbols = _byte_symbols()
    tokens = [*symbols, *(s + "</w>" for s in symbols), *(a + b for a, b in merges), START, END]
    return {token: i for i, token in enumerate(tokens)}, merges


def whole_words() -> list[str]:
    """The 32,230 plain words among CLIP's tokens, in the order of their ids: three lower-case letters of English's alphabet or more."""
    return [word for token in _clip_vocabulary()[0] if re.fullmatch("[a-z]{3,}", word := token.removesuffix("</w>")) and word != token]


def _clip_document(vocab: dict[str, int], merges: Sequence[Sequence[str]], context_length: int) -> dict[str, Any]:
    """Content of the portable file. Every optional field is spelled out, as the Rust library writes it."""
    start, end = vocab[START], vocab[END]
    return {
        "version": "1.0",
        "truncation": _truncation(context_length),
        "padding": _padding(context_length, 0, "!"),
        "added_tokens": [
            {
                "id": i,
                "content": name,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": True,
                "special": True,
            }
            for name, i in ((START, start), (END, end))
        ],
        "normalizer": {"type": "Sequence", "normalizers": _portable_cleanup()},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": _SPLIT}, "behavior": "Removed", "invert": True},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": START, "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": END, "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {name: {"id": name, "ids": [i], "tokens": [name]} for name, i in ((START, start), (END, end))},
        },
        "decoder": None,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": "</w>",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges,
        },
    }


def _portable_cleanup() -> list[dict[str, Any]]:
    """The part of the clean-up that a tokenizer file can hold: the repairs of ftfy that single characters show, and lower case."""
    controls = "".join(map(chr, [*range(0x09), 0x0B, *range(0x0E, 0x20), 0x7F, *range(0x206A, 0x2070), 0xFEFF]))
    replacements = {
        "[\u02bc\u2018-\u201b]": "'",
        "[\u201c-\u201f]": '"',
        f"[{controls}\ufff9-\ufffc]": "",
        r"(?<=\p{L})\u03a3(?!\p{L})": "\u03c2",  # Greek final sigma, which the library's own lower-casing leaves out
    }
    steps = [{"type": "Replace", "pattern": {"Regex": k}, "content": v} for k, v in replacements.items()]
    return [{"type": "NFC"}, *steps, {"type": "Lowercase"}]


def _truncation(context_length: int) -> dict[str, Any]:
    return {"direction": "Right", "max_length": context_length, "strategy": "LongestFirst", "stride": 0}


def _padding(context_length: int, pad_id: int, pad_token: str) -> dict[str, Any]:
    return {
        "strategy": {"Fixed": context_length},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": pad_id,
        "pad_type_id": 0,
        "pad_token": pad_token,
    }


def _is_clip(document: dict[str, Any]) -> bool:
    """Whether everything but the vocabulary and the length is as `_clip_document` writes it."""
    model = document["model"]
    vocab, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocab, dict) or START not in vocab or END not in vocab:
        return False
    return document == _clip_document(vocab, merges, document["truncation"]["max_length"])


def _framed_document(data: bytes, context_length: int | None, pad_id: int | None) -> dict[str, Any]:
    """Parse a tokenizer file and make it cut and pad to one fixed length."""
    document = json.loads(data)
    if not isinstance(document, dict) or not isinstance(document.get("model"), dict):
        raise ValueError("no model in it")
    truncation, padding = document.get("truncation") or {}, document.get("padding") or {}
    if context_length is None:
        context_length = truncation.get("max_length", CONTEXT_LENGTH)
    if pad_id is None:
        pad_id = padding.get("pad_id", _find_pad_id(document))
    if not isinstance(context_length, int) or not 2 <= context_length <= 2**16:
        raise ValueError(f"context length {context_length}")
    if not isinstance(pad_id, int) or not 0 <= pad_id < 2**31:
        raise ValueError(f"padding id {pad_id}")
    direction = {"direction": "Right"} | {k: v for k, v in truncation.items() if k == "direction"}
    return document | {
        "truncation": _truncation(context_length) | direction,
        "padding": _padding(context_length, pad_id, padding.get("pad_token", "!")),
    }


def _canonicalizing(document: dict[str, Any]) -> dict[str, Any]:
    """Let the file itself drop ASCII punctuation (an underscore becomes a space) and lower the case, before its own steps."""
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "_"}, "content": " "},
        {"type": "Replace", "pattern": {"Regex": f"[{re.escape(string.punctuation)}]"}, "content": ""},
        {"type": "Lowercase"},
        {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
        {"type": "Strip", "strip_left": True, "strip_right": True},
    ]
    own = [document["normalizer"]] if document.get("normalizer") else []
    return document | {"normalizer": {"type": "Sequence", "normalizers": steps + own}}


def _find_pad_id(document: dict[str, Any]) -> int:
    named = {t["content"]: t["id"] for t in document.get("added_tokens") or []}
    return next((int(named[name]) for name in ("<pad>", "[PAD]") if name in named), 0)


def _frame(tokenizer: tokenizers.Tokenizer) -> tuple[int | None, int | None]:
    """The ids that the file puts in front of and behind a text: all that is special around one plain letter."""
    encoding = tokenizer.encode("a")
    special = [m for m, used in zip(encoding.special_tokens_mask, encoding.attention_mask, strict=True) if used]
    if not special or all(special):
        raise ValueError("it has no ids for plain text")
    return (
        encoding.ids[0] if special[0] else None,
        encoding.ids[len(special) - 1] if special[-1] else None,
    )
