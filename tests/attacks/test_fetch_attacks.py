"""Hostile packages for `data fetch`: archives, JSON, drawings and metadata that want to read, write or eat what is not theirs."""

from __future__ import annotations

import gzip
import lzma
import os
import struct
import tarfile
import time
import zlib

import packs
import pytest
from PIL import Image

from mobileclip.data import emoji, fetch, packages
from mobileclip.data.clipart import read_metadata
from mobileclip.data.items import Gathered, Item
from mobileclip.data.packages import members, obtain
from mobileclip.data.samples import Tally
from mobileclip.data.svg import check_svg, render_svg, thumbnail
from mobileclip.errors import InputError


def quiet(_: str) -> None:
    pass


def everything(path) -> dict[str, bytes]:
    return dict(members(path, lambda _: True))


def svg(body: str) -> str:
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {names} width="32" height="32" viewBox="0 0 32 32">{body}</svg>'


def test_other_bytes_are_never_opened(tmp_path, monkeypatch):
    sources = {"emoji": packs.emoji_source(tmp_path / "p")}
    for path in (tmp_path / "p").iterdir():
        path.write_bytes(path.read_bytes() + b"\0")
    opened = []
    monkeypatch.setattr(tarfile, "open", lambda *_, **options: opened.append(options))
    with pytest.raises(InputError, match="sha256 differs"):
        fetch.fetch("emoji", tmp_path / "d", quiet, folder=tmp_path / "p", sources=sources)
    assert opened == []


def test_a_download_of_other_bytes_is_not_kept(tmp_path, monkeypatch):
    package = packs.npm(tmp_path / "p", "set", {"icons.json": {}})
    (tmp_path / "npm").write_text(f"#!/bin/sh\necho evil > {package.filename}\n")
    (tmp_path / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(InputError, match="sha256 differs"):
        obtain(package, tmp_path / "cache", None, quiet)
    assert list((tmp_path / "cache").iterdir()) == []


def link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("pack", [lambda files: gzip.compress(packs.tar_of(files)), packs.deb_of], ids=["tgz", "deb"])
def test_members_that_point_outside_are_never_written_nor_followed(tmp_path, pack):
    (tmp_path / "secret").write_bytes(b"secret")
    secret = str(tmp_path / "secret")
    files = {
        "../outside": b"a", "/tmp/outside": b"b", "package/icons.json": link("package/icons.json", secret, tarfile.SYMTYPE),
        "hard": link("hard", secret, tarfile.LNKTYPE), "pipe": link("pipe", "", tarfile.FIFOTYPE),
    }  # fmt: skip
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "package"
    path.write_bytes(pack(files))
    assert everything(path) == {"../outside": b"a", "/tmp/outside": b"b"}
    assert {p.name for p in tmp_path.iterdir()} == {"secret", "in"}
    assert [p.name for p in (tmp_path / "in").iterdir()] == ["package"]


@pytest.mark.parametrize("pack", [lambda files: gzip.compress(packs.tar_of(files)), packs.deb_of], ids=["tgz", "deb"])
def test_bombs(tmp_path, pack, monkeypatch):
    monkeypatch.setattr(packages, "MAX_UNPACKED_BYTES", 4 << 20)
    (tmp_path / "bomb").write_bytes(pack({"package/icons.json": bytes(5 << 20)}))
    with pytest.raises(InputError, match="unpacks to more than 4 MB"):
        everything(tmp_path / "bomb")
    monkeypatch.setattr(packages, "MAX_MEMBER_BYTES", 1 << 20)
    (tmp_path / "bomb").write_bytes(pack({"package/icons.json": bytes(2 << 20)}))
    with pytest.raises(InputError, match="larger than 1 MB"):
        everything(tmp_path / "bomb")
    (tmp_path / "bomb").write_bytes(pack({f"{i}": b"" for i in range(2000)}))
    monkeypatch.setattr(packages, "MAX_MEMBERS", 1000)
    with pytest.raises(InputError, match="more than 1,000 members"):
        everything(tmp_path / "bomb")


def test_a_name_that_claims_gigabytes(tmp_path):
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 7 << 30
    (tmp_path / "p.tgz").write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20)))
    with pytest.raises(InputError):
        everything(tmp_path / "p.tgz")


GOOD_TGZ = gzip.compress(packs.tar_of({"package/a": os.urandom(5000)}))
GOOD_DEB = packs.deb_of({"a": os.urandom(5000)})


@pytest.mark.parametrize(
    "content",
    [b"", b"not an archive", GOOD_TGZ[:3000], GOOD_TGZ[:-200] + bytes(200), GOOD_DEB[:9], GOOD_DEB[:100], GOOD_DEB[:4000],
     GOOD_DEB.replace(b"data.tar.xz", b"data.tar.gz"), b"!<arch>\n" + b"x" * 60, b"!<arch>\n" + f"{'data':<48}{-100:<10}`\n".encode() * 9,
     gzip.compress(b"no tar" * 200, mtime=0), lzma.compress(b"")],
)  # fmt: skip
def test_damaged_archives(tmp_path, content):
    (tmp_path / "p").write_bytes(content)
    with pytest.raises(InputError) as e:
        everything(tmp_path / "p")
    assert len(str(e.value).splitlines()) == 1


ICON = {"body": packs.RED}


@pytest.mark.parametrize(
    "icons",
    [b"{", b"\xff\xfe", b"[" * 100_000, b'{"icons": [' + b"1," * 1000, {}, {"icons": {"a": {}}}, {"icons": {"a": {"body": 1}}},
     {"icons": {"a": {**ICON, "width": -1}}}, {"icons": {"a": {**ICON, "height": 1e99}}}, b'{"icons": {"a": {"body": "", "width": NaN}}}',
     {"icons": {"a": ICON}, "aliases": {"b": {"parent": "a", "rotate": 1}}}, {"icons": {"a": {"body": "x" * (1 << 20)}}}],
)  # fmt: skip
def test_broken_json(tmp_path, icons):
    package = packs.npm(tmp_path, "set", {"icons.json": icons, "chars.json": {}})
    with pytest.raises(InputError, match=r"icons\.json") as e:
        emoji.read_iconify(tmp_path / package.filename)
    assert len(str(e.value).splitlines()) == 1


def test_aliases_that_lead_nowhere(tmp_path):
    aliases = {"a": {"parent": "b"}, "b": {"parent": "a"}, "c": {"parent": "gone"}, "d": {"parent": "dog"}}
    package = packs.iconify(tmp_path, "set", {"dog": packs.RED}, {"1f436": "a", "1f431": "d"}, aliases)
    assert set(emoji.read_iconify(tmp_path / package.filename)) == {"dog", "d", "u+1f431"}


def test_packages_without_their_files(tmp_path):
    package = packs.npm(tmp_path, "set", {})
    with pytest.raises(InputError, match=r"has no icons\.json"):
        emoji.read_iconify(tmp_path / package.filename)
    with pytest.raises(InputError, match=r"has no en/data\.json"):
        emoji.read_concepts(tmp_path / package.filename, tmp_path / package.filename)


BOMB = "".join(f'<g id="a{i + 1}">{f"""<use href="#a{i}"/>""" * 10}</g>' for i in range(8))
MASKS = "".join(f'<mask id="a{i + 1}">{f"""<path mask="url(#a{i})"/>""" * 10}</mask>' for i in range(8))


@pytest.mark.parametrize(
    "body",
    [
        '<image href="{file}" width="32" height="32"/>',
        '<image xlink:href="file://{file}" width="32" height="32"/>',
        '<image href="data:image/svg+xml;base64,PHN2Zy8+"/>',
        '<use href="{file}"/>',
        '<use xlink:href=" {file}#a"/>',
        '<filter id="f"><feImage href="{file}"/></filter><rect filter="url(#f)" width="9" height="9"/>',
        '<rect fill="url({file})"/>',
        "<rect style=\"fill:URL( '{file}')\"/>",
        '<rect style="fill:u\\72l({file})"/>',
        '<rect fill="url({file}"/>',
        "<style>@import url({file});</style>",
        "<script>1</script>",
        "<text>words</text>",
        "<foreignObject/>",
        '<a href="#x"/>',
        '<pattern id="p" width="1e-9" height="1e-9"/>',
        '<g xmlns="urn:other"><x:image xmlns:x="http://www.w3.org/2000/svg" href="{file}"/></g>',
        "<g>" * 100_000 + "</g>" * 100_000,
        "<g>" * 3_000 + "</g>" * 3_000,
        '<g id="a0"><rect/></g>' + BOMB + '<use href="#a8"/>',
        '<path id="a0"/>' + MASKS + '<path mask="url(#a8)"/>',
        '<g id="a"><use href="#a"/></g>',
        "<path d='" + "M0 0 L8 8 " * 100_000 + "'/>",
        "<g>",
        "\ud800",
        "&nbsp;",
    ],
)
def test_hostile_drawings(tmp_path, body):
    """The renderer itself would read the file, overflow its stack or run for hours."""
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    start = time.monotonic()
    with pytest.raises(InputError) as e:
        render_svg(svg(body.replace("{file}", str(tmp_path / "red.png"))), 32)
    assert len(str(e.value).splitlines()) == 1
    assert time.monotonic() - start < 60


@pytest.mark.parametrize(
    "head",
    ['<!DOCTYPE svg [<!ENTITY a "red">]>', '<!DOCTYPE svg [<!ENTITY a SYSTEM "file:///etc/passwd">]>', '<!DOCTYPE svg SYSTEM "http://x/y.dtd">',
     '<?xml version="1.0" encoding="utf-16"?>'],
)  # fmt: skip
def test_hostile_prologues(head):
    with pytest.raises(InputError):
        check_svg(head + svg('<rect fill="red"/>'))


def test_honest_drawings_are_drawn():
    shared = '<defs><path id="a" d="M0 0H32V32H0z"/></defs><clipPath id="b"><use href="#a"/></clipPath>'
    body = shared + '<use xlink:href="#a" clip-path="url(#b)" fill="red"/>'
    assert render_svg(svg(body), 32).getpixel((9, 9)) == (255, 0, 0)


class Crash(str):
    """Ends the process that receives it."""

    def __reduce__(self):
        return os._exit, (1,)


def test_a_renderer_that_crashes_does_not_take_the_run_along(tmp_path):
    def collect(*_: object) -> Gathered:
        return Gathered((), [Item("0" * 32, "s", "train", "a", {}, Crash("<svg/>"))], {"s": Tally()})

    with pytest.raises(InputError, match="crash"):
        fetch.fetch("s", tmp_path / "d", quiet, sources={"s": collect})
    assert {p.name for p in (tmp_path / "d").iterdir()} == {".mobileclip-data"}


def png_claiming(width: int, height: int) -> bytes:
    header = struct.pack(">II5B", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


@pytest.mark.parametrize("picture", [png_claiming(60_000, 60_000), png_claiming(9, 9), packs.picture()[:30], b"", b"GIF89a" + bytes(99)])
def test_hostile_pictures(picture):
    with pytest.raises(InputError):
        thumbnail(picture, 32)


def test_hostile_clipart_is_counted(tmp_path):
    good = {f"a/{i}": packs.picture(kind="PNG") for i in range(200)}
    png = {**good, "b/huge": png_claiming(60_000, 60_000), "b/cut": packs.picture(kind="PNG")[:60], "b/none": b"PNG", "b/bomb": good["a/0"]}
    about = {name: packs.svg_about(f"Thing {name[2:]}") for name in png}
    about["b/bomb"] = b'<!DOCTYPE svg [<!ENTITY a "aaaa">]>' + packs.svg_about("&a;").split(b'svg10.dtd">')[1]
    sources = {"clipart": packs.clipart_source(tmp_path / "p", png, about)}
    done = fetch.fetch("clipart", tmp_path / "d", quiet, folder=tmp_path / "p", sources=sources, pixels=16)
    counts = done.dataset["counts"]["clipart"]
    assert counts["skipped"] == {"bad_image": 2, "no_caption": 1, "too_large": 1}
    assert (counts["present"], counts["written"]) == (204, 200)


@pytest.mark.parametrize(
    "content",
    [b"", b"<svg", b"<a>" * 5000, b"\xff\xfe<", b'<?xml version="1.0" encoding="no-such"?><svg/>', packs.svg_about("x" * 100_000),
     packs.svg_about("a", *["word" * 100] * 1000), b'<!DOCTYPE svg [<!ENTITY a SYSTEM "file:///etc/passwd">]><svg>&a;</svg>'],
)  # fmt: skip
def test_hostile_metadata(content):
    with pytest.raises(InputError):
        read_metadata(content)


def test_links_in_the_output_folder_are_not_followed(tmp_path):
    folder = tmp_path / "p"
    sources = {"emoji": packs.emoji_source(folder)}
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "00000.tar").write_bytes(b"mine")
    out = tmp_path / "d"
    fetch.fetch("emoji", out, quiet, folder=folder, sources=sources, pixels=32)
    for split in ("train", "val-style"):
        (out / split).rename(out / f"{split}-before")
        (out / split).symlink_to(precious)
    fetch.fetch("emoji", out, quiet, folder=folder, sources=sources, pixels=32)
    assert not (out / "train").is_symlink()
    assert (precious / "00000.tar").read_bytes() == b"mine"
    assert [p.name for p in precious.iterdir()] == ["00000.tar"]
