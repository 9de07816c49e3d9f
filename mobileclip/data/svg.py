"""Drawings to pixels. The renderer reads files that a drawing links to and overflows its stack on deep ones, so each is checked first."""

from __future__ import annotations

import io
import re
import warnings
from xml.parsers import expat

from PIL import Image, ImageOps

from mobileclip.errors import InputError

MAX_SVG_BYTES = 256 << 10
"""The largest drawing of the pinned sets has 173 kB."""
MAX_DEPTH = 64
MAX_ELEMENTS = 50_000
"""After all references are followed: `use` of `use` multiplies."""
MAX_PIXELS = 16_000_000
_ELEMENTS = {
    "svg", "g", "defs", "symbol", "use", "path", "rect", "circle", "ellipse", "line", "polyline", "polygon", "title", "desc",
    "linearGradient", "radialGradient", "stop", "clipPath", "mask", "filter", "feBlend", "feColorMatrix", "feComposite", "feFlood",
    "feGaussianBlur", "feMerge", "feMergeNode", "feOffset",
}  # fmt: skip
_URL = re.compile(r"url\(([^)]*)\)?", re.IGNORECASE)


class _Element:
    """What an element draws: its children and whatever it refers to."""

    def __init__(self) -> None:
        self.children: list[_Element] = []
        self.references: list[str] = []
        self.cost = 0
        """Elements drawn for this one; 0 not known yet, -1 being counted."""


def check_svg(svg: str) -> None:
    """Refuse what drawings of icon sets never need: links, entities, style sheets, scripts, text, and what grows without bound.

    Raises:
        InputError: One line that says what is in it.
    """
    if len(svg) > MAX_SVG_BYTES:
        raise InputError(f"a drawing of {len(svg):,} bytes is too large")
    stack, named = [_Element()], {}

    def start(name: str, attributes: dict[str, str]) -> None:
        if name not in _ELEMENTS:
            raise InputError(f"a drawing must not hold the element {name[:40]!r}")
        if len(stack) > MAX_DEPTH:
            raise InputError(f"a drawing is nested deeper than {MAX_DEPTH} elements")
        element = _Element()
        stack[-1].children.append(element)
        stack.append(element)
        for key, value in attributes.items():
            if key == "id":
                named[value] = element
            targets = [t.strip(" \t\n'\"") for t in _URL.findall(value)] + [value.strip()] * (key.split(":")[-1] == "href")
            if "\\" in value or any(not t.startswith("#") for t in targets):
                raise InputError(f"a drawing must not link to {value[:40]!r}")
            element.references += [t[1:] for t in targets]

    def entity(*_: object) -> None:
        raise InputError("a drawing must not define entities")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = start, lambda _: stack.pop()
    parser.EntityDeclHandler = parser.StartDoctypeDeclHandler = entity
    try:
        parser.Parse(svg.encode(), True)
    except expat.ExpatError as e:
        raise InputError(f"a drawing is not well-formed XML ({e})") from None
    except UnicodeEncodeError:
        raise InputError("a drawing is not Unicode text") from None
    if _cost(stack[0], named, 0) > MAX_ELEMENTS:
        raise InputError(f"a drawing unfolds to more than {MAX_ELEMENTS:,} elements")


def _cost(element: _Element, named: dict[str, _Element], depth: int) -> int:
    if element.cost == -1 or depth > 4 * MAX_DEPTH:
        raise InputError("a drawing refers to itself, or too deep")
    if not element.cost:
        element.cost = -1
        parts = [*element.children, *(named[r] for r in element.references if r in named)]
        element.cost = 1 + sum(_cost(part, named, depth + 1) for part in parts)
    return element.cost


def render_svg(svg: str, pixels: int) -> Image.Image:
    """Draw a whole SVG on a white square, centred, its proportions kept.

    Args:
        svg: A complete document; its root's width and height must be `pixels`.
        pixels: Side of the square.

    Raises:
        InputError: Refused by `check_svg`, or not drawable.
    """
    import resvg_py

    check_svg(svg)
    try:
        png = bytes(resvg_py.svg_to_bytes(svg_string=svg, background="white", skip_system_fonts=True))
    except ValueError as e:
        raise InputError(f"a drawing cannot be rendered ({' '.join(str(e).split())[:100]})") from None
    with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
        return image.convert("RGB")


def thumbnail(picture: bytes, pixels: int, *, trim: bool = False) -> Image.Image:
    """A PNG or WebP fitted into a white square, centred; transparent parts are white, and margins are cut off with `trim`.

    Raises:
        InputError: Damaged, of another format, or more than `MAX_PIXELS`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the limit below is stricter than Pillow's
            with Image.open(io.BytesIO(picture), formats=("PNG", "WEBP")) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise InputError(f"a picture of {image.width} x {image.height} is too large")
                drawn = image.convert("RGBA")
    except InputError:
        raise
    except Exception as e:  # Pillow's plugins raise a dozen types on damaged data
        raise InputError(f"a picture cannot be read ({' '.join(str(e).split())[:100]})") from None
    flat = Image.new("RGBA", drawn.size, "white")
    flat.alpha_composite(drawn)
    white = flat.convert("RGB")
    if trim:
        white = white.crop(ImageOps.invert(white).getbbox())
    return ImageOps.pad(white, (pixels, pixels), Image.Resampling.LANCZOS, color="white")


def webp(pixels: int, picture: str | bytes, trim: bool) -> bytes | None:
    """An SVG document (text), or a PNG or WebP, as the bytes of a square lossless WebP; None if it is refused or damaged."""
    try:
        image = render_svg(picture, pixels) if isinstance(picture, str) else thumbnail(picture, pixels, trim=trim)
    except InputError:
        return None
    file = io.BytesIO()
    image.save(file, "WEBP", lossless=True, quality=50, method=1)  # half of PNG in size and in time to decode
    return file.getvalue()
