"""Small packages in the layouts of the pinned ones, made in the test."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
import tarfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from PIL import Image

from mobileclip.data import clipart, emoji
from mobileclip.data.emoji import Style
from mobileclip.data.packages import Package

LABELS = {
    "1F436": "dog face", "1F431": "cat face", "2764-FE0F": "red heart", "1F6F4": "kick scooter", "1F1E7-1F1F4": "flag: Bolivia",
    "1F1F9-1F1F9": "flag: Trinidad & Tobago", "1F449": "backhand index pointing right", "1FA85": "piñata", "1F382": "birthday cake",
    "1F34E": "red apple",
}  # fmt: skip
"""Hexcode to label."""
RED = '<rect width="32" height="32" fill="#f00"/>'


def tar_of(files: Mapping[str, bytes | tarfile.TarInfo]) -> bytes:
    """A tar of plain files; a `TarInfo` goes in as it is."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in files.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def deb_of(files: Mapping[str, bytes | tarfile.TarInfo]) -> bytes:
    """A Debian package with an odd-sized first member, as real ones have."""
    parts = {"debian-binary": b"2.0\n", "control.tar.xz": lzma.compress(tar_of({})) + b"\0", "data.tar.xz": lzma.compress(tar_of(files))}
    out = b"!<arch>\n"
    for name, content in parts.items():
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode() + content + b"\n" * (len(content) % 2)
    return out


def put(folder: Path, name: str, content: bytes, registry: str = "npm") -> Package:
    """Write a package's file and pin it."""
    package = Package(registry, name, "1.0", hashlib.sha256(content).hexdigest(), "MIT", f"{name} by us")  # type: ignore[arg-type]
    folder.mkdir(exist_ok=True)
    (folder / package.filename).write_bytes(content)
    return package


def npm(folder: Path, name: str, files: Mapping[str, object]) -> Package:
    """A `.tgz`; values that are no bytes are written as JSON."""
    content = {f"package/{n}": c if isinstance(c, bytes) else json.dumps(c).encode() for n, c in files.items()}
    return put(folder, name, gzip.compress(tar_of(content), mtime=0))


def iconify(folder: Path, name: str, icons: Mapping[str, str], chars: Mapping[str, str] | None = None, aliases: object = None) -> Package:
    """An Iconify package; `icons` are name to SVG body."""
    icon_set = {"icons": {icon: {"body": body} for icon, body in icons.items()}, "aliases": aliases or {}, "width": 32, "height": 32}
    return npm(folder, name, {"icons.json": icon_set, "chars.json": chars or {}})


def picture(colour: str = "#00f", size: tuple[int, int] = (64, 64), kind: str = "WEBP") -> bytes:
    """A picture of one colour; `#0000` is transparent."""
    file = io.BytesIO()
    Image.new("RGBA", size, colour).save(file, kind, lossless=True)
    return file.getvalue()


def names(folder: Path, labels: Mapping[str, str] = LABELS) -> dict[str, Package]:
    """The packages with labels and keywords; a skin tone and a letter are in it and count for nothing."""
    about = {"tags": ["thing"], "group": 3, "subgroup": 7}
    rows: list[dict[str, object]] = [
        {"label": label, "hexcode": code, "emoji": "".join(chr(int(c, 16)) for c in code.split("-")), **about}
        for code, label in labels.items()
    ]
    rows.append({"label": "light skin tone", "hexcode": "1F3FB", "emoji": "🏻", "group": 2, "subgroup": 1})
    rows.append({"label": "regional indicator A", "hexcode": "1F1E6", "emoji": "🇦"})
    groups = {"groups": {"2": "component", "3": "animals-nature"}, "subgroups": {"1": "skin", "7": "animal-mammal"}}
    words = {"🐶": ["dog_face", "good boy", ":D", "thing"], "❤": ["love"]}
    return {
        "names": npm(folder, "names", {"en/data.json": rows, "meta/groups.json": groups}),
        "keywords": npm(folder, "words", {"dist/emoji-en-US.json": words}),
    }


def emoji_source(folder: Path) -> partial:
    """Four styles that name their drawings in the four ways of the real ones."""
    green = RED.replace("f00", "0f0")
    half = '<rect width="16" height="32" fill="#f00"/>'
    aliases = {"1F449": {"parent": "left", "hFlip": True}}
    codes = {code.lower(): code for code in LABELS}
    heart = {"love": {"parent": "heart"}}
    packages = {
        "held": iconify(folder, "held", {"dog-face": RED, "heart": RED}, {"1f436": "dog-face", "2764": "love"}, heart),
        "coded": iconify(folder, "coded", {c: green for c in LABELS if c not in aliases} | {"left": half}, codes, aliases),
        "labelled": iconify(folder, "labelled", dict.fromkeys(("flag-for-bolivia", "flag-for-flag-trinidad-and-tobago", "pinata"), RED)),
        "dashless": iconify(folder, "dashless", {"birthdaycake": RED, "redapple": RED}),
        "rendered": npm(folder, "@us/rendered", {"assets/1f436.webp": picture(), "assets/2764-fe0f.webp": picture("#0000")}),
    }
    styles = {n: Style(p, "train") for n, p in packages.items()}
    styles["held"] = Style(packages["held"], "val-style")
    styles["rendered"] = Style(packages["rendered"], "train", default=False, read=emoji.read_pictures)
    return partial(emoji.collect, **names(folder), styles=styles)


def svg_about(title: str, *keywords: str) -> bytes:
    """An SVG with metadata as the Open Clip Art Library writes it."""
    words = "".join(f"<rdf:li>{k}</rdf:li>" for k in keywords)
    return f"""<?xml version="1.0"?><!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.0//EN" "svg10.dtd"><svg xmlns="http://www.w3.org/2000/svg">
        <metadata><rdf:RDF xmlns:cc="http://web.resource.org/cc/" xmlns:dc="http://purl.org/dc/elements/1.1/"
        xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><cc:Work rdf:about=""><dc:title>{title}</dc:title>
        <dc:subject><rdf:Bag>{words}</rdf:Bag></dc:subject><dc:creator><cc:Agent><dc:title>An artist</dc:title></cc:Agent></dc:creator>
        </cc:Work></rdf:RDF></metadata></svg>""".encode()


def clipart_source(folder: Path, pictures: Mapping[str, bytes | tarfile.TarInfo], about: Mapping[str, bytes]) -> partial:
    """The two packages; names are without root and ending."""
    root = "./usr/share/openclipart"
    png = {f"{root}/png/{n}.png": c for n, c in pictures.items()}
    svg = {f"{root}/svg/{n}.svg": c for n, c in about.items()}
    return partial(
        clipart.collect, pictures=put(folder, "clips", deb_of(png), "debian"), titles=put(folder, "titles", deb_of(svg), "debian")
    )
