"""Captions with their token ids: ordinary ones, and what breaks tokenizers."""

from __future__ import annotations

import html
import itertools
import json
import random
import unicodedata
from collections.abc import Iterator

import ftfy
import numpy as np

from mobileclip.export.verify import dataset
from mobileclip.tokenizer import CONTEXT_LENGTH, Tokenizer, whole_words

SEED = 20231128

_SENTENCES, _SCRIPT_STRINGS, _MIXED = 700, 24, 500
_SCRIPTS = {
    "latin": (0x00C0, 0x024F), "ipa": (0x0250, 0x02AF), "greek": (0x0370, 0x03FF), "cyrillic": (0x0400, 0x04FF),
    "armenian": (0x0530, 0x058F),
    "hebrew": (0x0590, 0x05FF), "arabic": (0x0600, 0x06FF), "devanagari": (0x0900, 0x097F), "bengali": (0x0980, 0x09FF),
    "tamil": (0x0B80, 0x0BFF),
    "thai": (0x0E00, 0x0E7F), "georgian": (0x10D0, 0x10FF), "hangul jamo": (0x1100, 0x11FF), "ethiopic": (0x1200, 0x137F),
    "khmer": (0x1780, 0x17FF),
    "latin additional": (0x1E00, 0x1EFF), "greek extended": (0x1F00, 0x1FFF), "punctuation": (0x2010, 0x205E),
    "currency": (0x20A0, 0x20B1),
    "letterlike": (0x2100, 0x214B), "numbers": (0x2153, 0x2183), "arrows": (0x2190, 0x21FF), "mathematics": (0x2200, 0x22FF),
    "enclosed": (0x2460, 0x24FE), "box drawing": (0x2500, 0x257F), "symbols": (0x2600, 0x2671), "hiragana": (0x3041, 0x309F),
    "katakana": (0x30A1, 0x30FF), "cjk": (0x4E00, 0x9FA5), "hangul": (0xAC00, 0xD7A3), "compatibility": (0xFB00, 0xFB06),
    "full width": (0xFF01, 0xFFEE), "gothic": (0x10330, 0x1034A), "mathematical letters": (0x1D400, 0x1D7FF),
}  # fmt: skip
"""First and last code point of blocks; only characters of Unicode 3.2 are taken, which every system of today knows alike."""
_EMOJI = (
    "😀", "❤️", "👍🏽", "👩‍🚀", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪", "🇯🇵🇧🇷", "1️⃣", "#️⃣", "🫠", "☕️", "🧑🏿‍🤝‍🧑🏻", "🐈‍⬛",
    "❓❗", "©️", "™", "🪿",
)  # fmt: skip
_ENTITIES = (
    "&amp;", "&lt;b&gt;", "&#39;", "&#x27;", "&quot;", "&nbsp;", "&eacute;", "&EACUTE;", "&Eacute;", "&copy", "&copy;", "&amp;amp;",
    "&amp;lt;",
    "&#233;", "&#xE9", "&#128512;", "&#x1F600;", "&#150;", "&#0;", "&#x110000;", "&#xD800;", "&#11;", "&notit;", "&notin;", "&hellip;",
    "&foo;",
    "&", "& ", "&;", "&#;", "&#x;", "&CounterClockwiseContourIntegral;", "&fjlig;", "&ZeroWidthSpace;", "&AMP", "&AMP;", "&ampamp;",
)  # fmt: skip
_SPECIAL = (
    "\t", "\n", "\r\n", "\r", "\x0b", "\x0c", "\x1c", "\x85", "\xa0", "\u1680", "\u2003", "\u2028", "\u2029", "\u202f", "\u205f",
    "\u3000",
    "\x00", "\x07", "\x1b[31m", "\x1b[0;1m", "\x7f", "\x80", "\x93", "\x9f", "\xad", "\u200b", "\u200c", "\u200d", "\u200e", "\u2066",
    "\u206a",
    "\ufeff", "\ufff9", "\ufffc", "\ufffd", "e\u0301", "\u0301", "\u1e9e", "ß", "İ", "ı", "ΑΣ", "ΣΑΣ Σ", "ΟΔΟΣ.", "K", "Å", "ſ", "'ſ",
    "Ǆ", "ŉ",
    "ﬁ", "ﬆ", "“q”", "‘q’", "ʼn", "„q‟", "ｆｕｌｌ", "ｶﾞ", "￥", "½", "²", "Ⅷ", "٣", "１２", "①", "__", "--", "...",
    "<start_of_text>", "<END_OF_TEXT>",
    "<end_of_text>!", "!<end_of_text>", "<|endoftext|>", "'s", "'S", "'re", "'LL", "''", "I'd've", "don't", "'twas", "3.14", "1,000",
    "C++", "a_b",
    "http://a.b/c?d=e&f=g", "user@example.org", "#tag", "<b>&amp;</b>", "a<b &amp; c>d",
    "\u0345", "x\u0345y", "ᾳ", "ᾼ",
)  # fmt: skip
_GLUE = (" ", " ", "", ", ", ". ", "-", "/", "\n", "  ")


def captions() -> list[str]:
    """Hard and ordinary captions, each once, in a fixed order.

    None needs the repair of text that was decoded wrongly (mojibake): no keyboard writes it, and apps leave it alone.
    """
    found = dict.fromkeys(itertools.chain(dataset.captions(), _SPECIAL, _ENTITIES, _EMOJI, _generated(random.Random(SEED))))
    return [text for text in found if _clean(text, repaired=False) == _clean(text, repaired=True)]


def _generated(chance: random.Random) -> Iterator[str]:
    words = whole_words()
    for n in (0, 1, 2, 5):
        yield " " * n
    for _ in range(_SENTENCES):
        yield _sentence(chance, [chance.choice(words) for _ in range(chance.randint(1, 14))])
    for first, last in _SCRIPTS.values():
        known = [chr(c) for c in range(first, last + 1) if unicodedata.ucd_3_2_0.category(chr(c)) != "Cn"]
        for _ in range(_SCRIPT_STRINGS):
            yield "".join(chance.choices([*known, *known, " "], k=chance.randint(1, 12)))
    pieces = (*_SPECIAL, *_ENTITIES, *_EMOJI)
    for _ in range(_MIXED):
        yield "".join(
            chance.choice((chance.choice(pieces), chance.choice(words))) + chance.choice(_GLUE) for _ in range(chance.randint(2, 8))
        )
    for n in (*range(70, 82), 200, 2000):  # around the length of a row: these words are one token each
        yield " ".join(["cat"] * n)
    yield "a" * 5000
    yield "猫" * 100


def _sentence(chance: random.Random, words: list[str]) -> str:
    styled = [chance.choice((w, w, w, w.capitalize(), w.upper(), f"{w}'s", f"{w},", str(chance.randint(0, 2100)))) for w in words]
    return " ".join(styled) + chance.choice(("", ".", "!", "?", "..."))


def _clean(text: str, *, repaired: bool) -> str:
    return html.unescape(html.unescape(ftfy.fix_text(text, fix_encoding=repaired)))


def captions_file() -> bytes:
    """A JSON object a line: `text`, and `ids` from start to end, without padding, at most 77."""
    tokenizer, texts = Tokenizer.clip(CONTEXT_LENGTH), captions()
    lines = []
    for text, row in zip(texts, tokenizer(texts), strict=True):
        ids = row[: 1 + int(np.flatnonzero(row == tokenizer.end_id)[-1])]  # a caption can hold the name of the end
        lines.append(json.dumps({"text": text, "ids": ids.tolist()}, ensure_ascii=True))
    return "\n".join(lines).encode() + b"\n"
