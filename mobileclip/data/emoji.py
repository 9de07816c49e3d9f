"""Emoji of several styles, joined with their names, tags and groups: drawings and captions from pinned packages.

A style is a row of `STYLES`. Noto is held out: at most 2.2 % of its drawings look like another style's (cosine of the pixels over .95),
whereas the two Fluent styles are the same drawings (58 %) and therefore stand on the same side.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from mobileclip.data.items import Gathered, Item, held_out, uid_of
from mobileclip.data.packages import Package, members
from mobileclip.data.samples import Tally
from mobileclip.data.svg import MAX_SVG_BYTES
from mobileclip.errors import InputError
from mobileclip.files import did_you_mean

T = TypeVar("T")
NAMES = Package(
    "npm", "emojibase-data", "17.0.0", "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a", "MIT",
    "Emojibase, copyright 2017-2019 Miles Johnson, https://github.com/milesj/emojibase; names and tags of Unicode CLDR",
)  # fmt: skip
KEYWORDS = Package(
    "npm", "emojilib", "4.0.3", "7f9a6b43cff31d18985b7d65d11faba5bd971cbcc60020cf6d09322fbaaaf303", "MIT",
    "emojilib, copyright 2014 Mu-An Chiou, https://github.com/muan/emojilib",
)  # fmt: skip
HELD_OUT_SHARE = 0.1
_COMPONENTS = 2
"""The group of skin tones and hair: no emoji of their own."""
_MAX_ALIASES = 8


class _Icon(BaseModel):
    body: str = Field(max_length=MAX_SVG_BYTES)
    width: float | None = Field(None, gt=0, le=10_000)
    height: float | None = Field(None, gt=0, le=10_000)


class _Alias(BaseModel):
    parent: str
    hFlip: bool = False
    vFlip: Literal[False] = False
    rotate: Literal[0] = 0


class _IconSet(BaseModel):
    """`icons.json` of an Iconify package, https://iconify.design/docs/types/iconify-json.html."""

    icons: dict[str, _Icon]
    aliases: dict[str, _Alias] = {}
    width: float = Field(16, gt=0, le=10_000)
    height: float = Field(16, gt=0, le=10_000)


class _Record(BaseModel):
    label: str
    hexcode: str
    emoji: str
    tags: list[str] = []
    group: int | None = None
    subgroup: int | None = None


class _Groups(BaseModel):
    groups: dict[int, str]
    subgroups: dict[int, str]


@dataclass(frozen=True)
class Concept:
    """What an emoji means, whatever its style."""

    hexcode: str
    """Code points without U+FE0F, lower case, joined by dashes: `1f1ff-1f1e6`."""
    label: str
    tags: tuple[str, ...]
    group: str
    subgroup: str

    def names(self) -> Iterator[str]:
        """The names under which styles may have it, the most certain first."""
        yield f"u+{self.hexcode}"
        for label in (self.label, self.label.replace("&", "and")):
            slug = slugify(label)
            yield slug
            if slug.startswith("flag-"):
                yield f"flag-for-{slug.removeprefix('flag-')}"
                yield f"flag-for-{slug}"
        yield slugify(self.label).replace("-", "")


def slugify(label: str) -> str:
    """ASCII letters and digits in lower case with dashes between words; accents and apostrophes are dropped."""
    plain = unicodedata.normalize("NFKD", label).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain.replace("'", "")).strip("-")


def _code(hexcode: str) -> str:
    return "-".join(part for part in hexcode.lower().split("-") if part != "fe0f")


def _parse(adapter: TypeAdapter[T], content: bytes | None, path: Path, name: str) -> T:
    if content is None:
        raise InputError(f"{path}: has no {name}; it is not the package that was pinned")
    try:
        return adapter.validate_json(content)
    except ValidationError as e:
        first = e.errors()[0]
        raise InputError(f"{path}: its {name} is damaged at {'.'.join(map(str, first['loc']))[:80]} ({first['msg'][:100]})") from None


def read_concepts(names: Path, keywords: Path) -> list[Concept]:
    """All base emoji of the two packages, without skin tones: 1,914 with the pinned ones.

    Raises:
        InputError: A package is damaged or of another layout.
    """
    wanted = {"package/en/data.json", "package/meta/groups.json"}
    files = dict(members(names, wanted.__contains__))
    records = _parse(TypeAdapter(list[_Record]), files.get("package/en/data.json"), names, "en/data.json")
    groups = _parse(TypeAdapter(_Groups), files.get("package/meta/groups.json"), names, "meta/groups.json")
    extra = dict(members(keywords, "package/dist/emoji-en-US.json".__eq__)).get("package/dist/emoji-en-US.json")
    words = _parse(TypeAdapter(dict[str, list[str]]), extra, keywords, "dist/emoji-en-US.json")
    more = {emoji.replace("\ufe0f", ""): tags for emoji, tags in words.items()}
    concepts = {}
    for r in records:
        if r.group is None or r.subgroup is None or r.group == _COMPONENTS:
            continue
        tags = (t.replace("_", " ").strip() for t in [*r.tags, *more.get(r.emoji.replace("\ufe0f", ""), [])])
        useful = dict.fromkeys(t for t in tags if re.search(r"\w\w", t) and t.lower() != r.label.lower())
        group, subgroup = groups.groups.get(r.group, ""), groups.subgroups.get(r.subgroup, "")
        concepts[_code(r.hexcode)] = Concept(_code(r.hexcode), r.label, tuple(useful), group, subgroup)
    if not concepts:
        raise InputError(f"{names}: holds no emoji; it is not the package that was pinned")
    return list(concepts.values())


Drawings = Mapping[str, Callable[[int], str | bytes]]
"""By name, or `u+` and the code points: a function from the side in pixels to an SVG document or the bytes of a WebP."""


def read_iconify(path: Path) -> Drawings:
    """Drawings of an Iconify package."""
    wanted = {"package/icons.json", "package/chars.json"}
    files = dict(members(path, wanted.__contains__))
    icons = _parse(TypeAdapter(_IconSet), files.get("package/icons.json"), path, "icons.json")
    codes = _parse(TypeAdapter(dict[str, str]), files.get("package/chars.json"), path, "chars.json")
    found = {name: drawing for name in (*icons.icons, *icons.aliases) if (drawing := _drawing(icons, name))}
    return found | {f"u+{_code(code)}": found[name] for code, name in codes.items() if name in found}


def _drawing(icons: _IconSet, name: str) -> Callable[[int], str] | None:
    flipped = False
    for _ in range(_MAX_ALIASES):
        alias = icons.aliases.get(name)
        if name in icons.icons or alias is None:
            break
        name, flipped = alias.parent, flipped != alias.hFlip
    icon = icons.icons.get(name)
    if icon is None:
        return None
    width, height = icon.width or icons.width, icon.height or icons.height
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'

    def draw(pixels: int) -> str:  # only when it is wanted: thousands of aliases may lead to one large drawing
        body = f'<g transform="translate({width} 0) scale(-1 1)">{icon.body}</g>' if flipped else icon.body
        return f'<svg {names} width="{pixels}" height="{pixels}" viewBox="0 0 {width} {height}">{body}</svg>'

    return draw


def read_pictures(path: Path) -> Drawings:
    """Drawings of a package with one `assets/<code points>.webp` each."""
    found = members(path, re.compile(r"package/assets/[0-9a-f-]+\.webp").fullmatch)
    return {f"u+{_code(Path(name).stem)}": lambda _, content=content: content for name, content in found}  # type: ignore[misc]


@dataclass(frozen=True)
class Style:
    """One way of drawing emoji."""

    package: Package
    split: Literal["train", "val-style"]
    default: bool = True
    read: Callable[[Path], Drawings] = read_iconify


def _iconify(name: str, version: str, sha256: str, licence: str, attribution: str) -> Package:
    return Package("npm", f"@iconify-json/{name}", version, sha256, licence, attribution)


STYLES = {
    "noto": Style(
        _iconify(
            "noto", "1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad", "Apache-2.0",
            "Noto Emoji, copyright Google Inc., https://github.com/googlefonts/noto-emoji",
        ),
        "val-style",
    ),
    "twemoji": Style(
        _iconify(
            "twemoji", "1.2.5", "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7", "CC-BY-4.0",
            "Twemoji, copyright Twitter, Inc and other contributors, https://github.com/jdecked/twemoji; rendered to pixels on white",
        ),
        "train",
    ),
    "fluent-emoji-flat": Style(
        _iconify(
            "fluent-emoji-flat", "1.2.6", "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175", "MIT",
            "Fluent Emoji, copyright Microsoft Corporation, https://github.com/microsoft/fluentui-emoji",
        ),
        "train",
    ),
    "fluent-emoji-3d": Style(
        Package(
            "npm", "@lobehub/fluent-emoji-3d", "1.1.0", "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58", "MIT",
            "Fluent Emoji 3D, copyright Microsoft Corporation, https://github.com/microsoft/fluentui-emoji, packed by LobeHub",
        ),
        "train", read=read_pictures,
    ),
    "emojione": Style(
        _iconify(
            "emojione", "1.2.3", "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e", "CC-BY-4.0",
            "Emoji One 2.3, https://github.com/EmojiTwo/emojitwo; rendered to pixels on white",
        ),
        "train",
    ),
    "noto-v1": Style(
        _iconify(
            "noto-v1", "1.2.5", "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37", "Apache-2.0",
            "Noto Emoji (v1), copyright Google Inc., https://github.com/googlefonts/noto-emoji",
        ),
        "train",
    ),
    "fxemoji": Style(
        _iconify(
            "fxemoji", "1.2.2", "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef", "Apache-2.0",
            "Firefox OS Emoji, copyright Mozilla, https://github.com/mozilla/fxemoji",
        ),
        "train",
    ),
    "openmoji": Style(
        _iconify(
            "openmoji", "1.2.29", "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5", "CC-BY-SA-4.0",
            "OpenMoji, https://github.com/hfg-gmuend/openmoji; rendered to pixels on white",
        ),
        "train", default=False,
    ),
}  # fmt: skip
"""OpenMoji is share-alike, which would bind the weights trained on it: only on request."""


def collect(
    get: Callable[[Package], Path],
    chosen: Collection[str],
    pixels: int,
    seed: int,
    *,
    names: Package = NAMES,
    keywords: Package = KEYWORDS,
    styles: Mapping[str, Style] = STYLES,
) -> Gathered:
    """All drawings of the styles that show a base emoji.

    Present is every concept in every style; one that a style does not draw is left out as `no_image`.

    Args:
        get: Gives the file of a package.
        chosen: Names of styles; none for the default ones.
        pixels: Side that the pictures will be rendered to.
        seed: Draws the concepts that are held out of training.
        names: Package with labels, tags and groups.
        keywords: Package with more tags.
        styles: The table of styles.

    Raises:
        InputError: An unknown style, or a package that is damaged.
    """
    for name in chosen:
        if name not in styles:
            raise did_you_mean("style", name, styles)
    picked = {name: style for name, style in styles.items() if (name in chosen if chosen else style.default)}
    concepts = read_concepts(get(names), get(keywords))
    unseen = held_out((c.hexcode for c in concepts), HELD_OUT_SHARE, seed)
    gathered = Gathered((names, keywords, *(s.package for s in picked.values())))
    gathered.tables["concepts.jsonl"] = [
        {"concept": c.hexcode, "label": c.label, "tags": c.tags, "group": c.group, "subgroup": c.subgroup, "held_out": c.hexcode in unseen}
        for c in concepts
    ]
    for name, style in picked.items():
        drawings = style.read(get(style.package))
        tally = gathered.tallies[name] = Tally()
        for c in concepts:
            drawing = next((drawings[key] for key in c.names() if key in drawings), None)
            if drawing is None:
                tally.skipped["no_image"] += 1
                continue
            split = "val-concept" if style.split == "train" and c.hexcode in unseen else style.split
            details: dict[str, object] = {
                "concept": c.hexcode, "label": c.label, "tags": c.tags, "group": c.group, "subgroup": c.subgroup,
                "licence": style.package.licence, "source": f"{style.package.name}@{style.package.version}",
            }  # fmt: skip
            gathered.items.append(Item(uid_of("emoji", name, c.hexcode), name, split, c.label, details, drawing(pixels)))
    return gathered
