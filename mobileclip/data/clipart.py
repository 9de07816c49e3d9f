"""Drawings of the Open Clip Art Library, as Debian packs them: pictures in one package, their titles and keywords in the other."""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from mobileclip.data.items import Gathered, Item, held_out, uid_of
from mobileclip.data.packages import Package, members
from mobileclip.data.samples import Tally
from mobileclip.data.svg import MAX_PIXELS
from mobileclip.errors import InputError

_CREDIT = "Open Clip Art Library, dedicated to the public domain by its artists, https://openclipart.org"
PICTURES = Package(
    "debian", "openclipart-png", "1:0.18+dfsg-19", "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02",
    "public-domain", _CREDIT,
)  # fmt: skip
TITLES = Package(
    "debian", "openclipart-svg", "1:0.18+dfsg-19", "989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5",
    "public-domain", _CREDIT,
)  # fmt: skip
HELD_OUT_SHARE = 0.1
MIN_SIDE = 32
MAX_RATIO = 4
_ROOT = "usr/share/openclipart"
_LEFT_OUT = (
    "shapes/",
    "special/",
    "buttons/",
    "computer/icons/",
    "computer/buttons/",
    "signs_and_symbols/map_symbols/",
    "recreation/games/cards/",
)
_COLLECTION = 8
"""A title that so many drawings share names a collection ("Various Cliparts", "R16 submission"); the file's name says more."""
_NO_KEYWORD = re.compile(r"hash(\(0x\w+\))?|unsorted|signs_and_symbols")
_MAX_DEPTH = 256
_MAX_METADATA_BYTES = 64 << 10
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns# li"
_DC = "http://purl.org/dc/elements/1.1/"


@dataclass
class Metadata:
    """What a drawing says about itself (RDF in its SVG)."""

    title: str = ""
    keywords: list[str] = field(default_factory=list)


def read_metadata(svg: bytes) -> Metadata:
    """Title and keywords of a drawing; entities are refused.

    Raises:
        InputError: Not well-formed, or with entities.
    """
    metadata = Metadata()
    path: list[str] = []
    text: list[str] = []
    budget = _MAX_METADATA_BYTES

    def start(name: str, _: object) -> None:
        if len(path) >= _MAX_DEPTH:
            raise InputError("nested too deep")
        path.append(name)
        text.clear()

    def end(_: str) -> None:
        nonlocal budget
        name, words = path.pop(), " ".join("".join(text).split())
        text.clear()
        if name == f"{_DC} title" and path and path[-1].endswith(" Work"):
            metadata.title = metadata.title or words
        elif name == _RDF and words:
            metadata.keywords.append(words)

    def characters(data: str) -> None:
        nonlocal budget
        if path and (path[-1] == _RDF or path[-1].startswith(_DC)):
            budget -= len(data)
            if budget < 0:
                raise InputError("too much metadata")
            text.append(data)

    def entity(*_: object) -> None:
        raise InputError("entities are refused")

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.EntityDeclHandler = characters, entity
    try:
        parser.Parse(svg, True)
    except (expat.ExpatError, ValueError, LookupError) as e:  # unknown encodings
        raise InputError(f"not well-formed ({e})") from None
    return metadata


def collect(
    get: Callable[[Package], Path],
    chosen: Collection[str],
    pixels: int,
    seed: int,
    *,
    pictures: Package = PICTURES,
    titles: Package = TITLES,
) -> Gathered:
    """All drawings that show something, with their title as the caption.

    Left out (`left_out`): basic shapes, patterns, icons and buttons of programs, map symbols, playing cards, and pictures with a side
    below 32 pixels or four times longer than the other. Links are not counted: they show what is there already.

    Args:
        get: Gives the file of a package.
        chosen: Must be empty, there are no styles.
        pixels: Not needed, the pictures are scaled.
        seed: Draws the titles that are held out of training.
        pictures: Package with the PNG files.
        titles: Package with the SVG files of the same names.

    Raises:
        InputError: Styles were asked for, or a package is damaged.
    """
    if chosen:
        raise InputError("clipart has no styles; leave --styles out")
    tally = Tally()
    gathered = Gathered((pictures, titles), tallies={"clipart": tally})
    about = {}
    for name, svg in members(get(titles), re.compile(rf"{_ROOT}/svg/.+\.svg").fullmatch):
        try:
            about[_stem(name)] = read_metadata(svg)
        except InputError:
            continue  # counted below, as a picture without a caption
    useful: dict[str, bytes] = {}
    for name, picture in members(get(pictures), re.compile(rf"{_ROOT}/png/.+\.png").fullmatch):
        stem = _stem(name)
        reason = _unsuitable(stem, picture) or (None if stem in about and about[stem].title else "no_caption")
        if reason:
            tally.skipped[reason] += 1
        else:
            useful[stem] = picture
    shared = Counter(about[stem].title.lower() for stem in useful)
    captions = {stem: _caption(stem, about[stem].title, shared) for stem in sorted(useful)}
    unseen = held_out({c.lower() for c in captions.values()}, HELD_OUT_SHARE, seed)
    for stem, caption in captions.items():
        keywords = [k.replace("_", " ") for k in about[stem].keywords if not _NO_KEYWORD.fullmatch(k)]
        details: dict[str, object] = {
            "title": about[stem].title, "tags": list(dict.fromkeys(keywords)), "group": stem.split("/")[0], "path": stem,
            "licence": pictures.licence, "source": f"{pictures.name}@{pictures.version}",
        }  # fmt: skip
        split = "val-concept" if caption.lower() in unseen else "train"
        gathered.items.append(Item(uid_of("clipart", stem), "clipart", split, caption, details, useful[stem], trim=True))
    return gathered


def _stem(name: str) -> str:
    return name.removeprefix(_ROOT)[5:-4]


def _unsuitable(stem: str, picture: bytes) -> str | None:
    if picture[:8] != b"\x89PNG\r\n\x1a\n" or len(picture) < 24:
        return "bad_image"
    width, height = struct.unpack(">II", picture[16:24])
    if width * height > MAX_PIXELS:
        return "too_large"
    if stem.startswith(_LEFT_OUT) or min(width, height) < MIN_SIDE or max(width, height) > MAX_RATIO * min(width, height):
        return "left_out"
    return None


def _caption(stem: str, title: str, shared: Counter[str]) -> str:
    if shared[title.lower()] < _COLLECTION and "clipart" not in title.lower():
        return title
    words = re.sub(r"[\W_]+", " ", stem.split("/")[-1])
    return re.sub(r"\d+$", "", words.strip()).strip() or title
