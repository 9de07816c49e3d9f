"""Small plots as inline SVG. Sizes suit a phone's width; a page lays them out side by side on a desk. Colours come from the page's CSS."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from markupsafe import Markup

WIDTH, HEIGHT = 360, 250
LEFT, RIGHT, TOP, BOTTOM = 54, 14, 14, 42
STRIP_POINTS = 400


@dataclass(frozen=True)
class Point:
    """A marked point; `style` is a CSS class."""

    x: float
    y: float
    label: str
    style: str
    title: str
    counts: bool = True
    """Whether it may lie on the Pareto front."""


class Axis:
    """A linear scale from `low` or a logarithmic one, with round ticks."""

    def __init__(self, values: Sequence[float], start: float, end: float, *, log: bool = False, zero: bool = True) -> None:
        low, high = min(values), max(values)
        self._log, self._start, self._end = log, start, end
        if log:
            self.low, self.high = low / 1.5, high * 1.5
            self.ticks = _log_ticks(self.low, self.high)
        else:
            pad = (high - low) * 0.12 or abs(high) * 0.1 or 1.0
            bottom = 0.0 if zero else low - pad
            step = nice_step((high + pad - bottom) / 4)
            self.low, self.high = math.floor(bottom / step) * step, math.ceil((high + pad / 2) / step) * step
            self.ticks = [self.low + i * step for i in range(round((self.high - self.low) / step) + 1)]

    def __call__(self, value: float) -> float:
        """Position in the picture."""
        if self._log:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(self._start + share * (self._end - self._start), 2)


def nice_step(rough: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999999)


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    span = math.log10(high / low)
    multiples: Sequence[int] = range(1, 10) if span < 0.6 else (1, 2, 5) if span < 2.2 else (1,)
    every = max(round(span / 5), 1) if span >= 2.2 else 1
    return [t for i, d in enumerate(decades) if i % every == 0 for t in (10.0**d * m for m in multiples) if low <= t <= high]


def tick_text(value: float) -> str:
    """A short number: 0.002, 15, 1e-07."""
    return f"{value:.0e}" if 0 < abs(value) < 1e-3 else f"{round(value, 6):g}"


def _frame(x: Axis, y: Axis, x_title: str, y_title: str) -> list[Markup]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for t in y.ticks:
        parts.append(Markup('<path class="grid" d="M{} {}H{}"/>').format(LEFT, y(t), right))
        parts.append(Markup('<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>').format(LEFT - 6, y(t) + 3.5, tick_text(t)))
    for t in x.ticks:
        parts.append(Markup('<path class="grid" d="M{} {}V{}"/>').format(x(t), TOP, bottom))
        parts.append(Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>').format(x(t), bottom + 15, tick_text(t)))
    parts.append(Markup('<text class="axis" x="{}" y="{}" text-anchor="middle">{}</text>').format((LEFT + right) / 2, HEIGHT - 6, x_title))
    parts.append(Markup('<text class="axis" x="0" y="0" text-anchor="middle" transform="translate(11 {}) rotate(-90)">{}</text>').format(
        (TOP + bottom) / 2, y_title))  # fmt: skip
    return parts


def _svg(parts: Sequence[Markup], title: str, height: int = HEIGHT, *, xmlns: bool = False) -> Markup:
    namespace = Markup(' xmlns="http://www.w3.org/2000/svg"') if xmlns else ""
    head = Markup('<svg{} viewBox="0 0 {} {}" role="img" aria-label="{}">').format(namespace, WIDTH, height, title)
    return head + Markup("").join(parts) + Markup("</svg>")


def scatter(
    points: Sequence[Point], x_title: str, y_title: str, *, log_x: bool = False, log_y: bool = False,
    zero_y: bool = True, beside: bool = False, best: Literal["low", "high"] = "low",
) -> Markup:  # fmt: skip
    """Marked points over two axes, with a line along the Pareto front: the points that no other beats on both.

    Labels stand inside the markers, and markers that would cover each other are moved apart a little; or, with `beside`, points stay
    exactly in place and labels are put around them. `best` says which end of the second axis is; of the first it is the low one.
    """
    x = Axis([p.x for p in points], LEFT, WIDTH - RIGHT, log=log_x)
    y = Axis([p.y for p in points], HEIGHT - BOTTOM, TOP, log=log_y, zero=zero_y)
    parts = _frame(x, y, x_title, y_title)
    front = [f"{x(p.x)} {y(p.y)}" for p in pareto([p for p in points if p.counts], best)]
    if front:
        parts.append(Markup('<path class="front" d="M{}"/>').format("L".join(front)))
    taken: list[tuple[float, float]] = []
    for p in sorted(points, key=lambda p: (p.x, p.y)):
        px, py = x(p.x), y(p.y)
        if beside:
            parts.append(Markup('<g class="mark {}"><title>{}</title><circle cx="{}" cy="{}" r="4"/></g>').format(p.style, p.title, px, py))
            taken.append((px, py))
            continue
        px, py = _free_place(px, py, taken)
        taken.append((px, py))
        parts.append(Markup(
            '<g class="mark {}"><title>{}</title><circle cx="{}" cy="{}" r="8"/>'
            '<text class="inside" x="{}" y="{}" text-anchor="middle">{}</text></g>'
        ).format(p.style, p.title, px, py, px, py + 3.5, p.label))  # fmt: skip
    if beside:
        parts += _labels([(x(p.x), y(p.y), p.label) for p in points])
    return _svg(parts, f"{y_title} over {x_title}")


def pareto(points: Sequence[Point], best: Literal["low", "high"] = "low") -> list[Point]:
    """The points that no other beats on both axes, by ascending x."""
    sign, front = (1 if best == "low" else -1), list[Point]()
    for p in sorted(points, key=lambda p: (p.x, sign * p.y)):
        if not front or sign * p.y < sign * front[-1].y:
            front.append(p)
    return front


def course(windows: Sequence[tuple[float, float]], style: str) -> Markup:
    """Medians in ms over the seconds at which their windows begin."""
    x = Axis([s for s, _ in windows] or [0.0], LEFT, WIDTH - RIGHT)
    y = Axis([ms for _, ms in windows], HEIGHT - BOTTOM, TOP)
    places = [f"{x(s)} {y(ms)}" for s, ms in windows]
    parts = [*_frame(x, y, "s", "p50, ms"), Markup('<path class="course {}" d="M{}"/>').format(style, "L".join(places))]
    return _svg(parts, "p50 over time")


def _labels(places: Sequence[tuple[float, float, str]]) -> list[Markup]:
    """A label above, below, right or left of each point: the first place that covers neither a point nor another label."""
    parts: list[Markup] = []
    boxes = [(px - 5, py - 5, px + 5, py + 5) for px, py, _ in places]
    for px, py, text in places:
        half = 3.6 * len(text)
        middles = ((px, py - 11), (px, py + 11), (px + half + 7, py), (px - half - 7, py))
        rects = [(mx - half, my - 5, mx + half, my + 5) for mx, my in middles]
        free = (i for i, r in enumerate(rects) if not any(r[0] < b[2] and b[0] < r[2] and r[1] < b[3] and b[1] < r[3] for b in boxes))
        i = next(free, 0)
        boxes.append(rects[i])
        mx, my = middles[i]
        parts.append(Markup('<text class="beside" x="{}" y="{}" text-anchor="middle">{}</text>').format(round(mx, 2), my + 3.5, text))
    return parts


def _free_place(x: float, y: float, taken: Sequence[tuple[float, float]]) -> tuple[float, float]:
    for radius in (0, 9, 14, 18):
        for angle in range(0, 360, 45):
            px = round(x + radius * math.cos(math.radians(angle)), 2)
            py = round(y - radius * math.sin(math.radians(angle)), 2)
            inside = LEFT <= px <= WIDTH - RIGHT and TOP <= py <= HEIGHT - BOTTOM
            if inside and all(math.hypot(px - a, py - b) >= 13 for a, b in taken):
                return px, py
    return x, y


_ALONE = """<style>
 text { font: 11px system-ui, sans-serif; fill: #555 } .grid { stroke: #ddd } svg { background: #fff }
 .curve { fill: none; stroke-width: 2 } .c0 { stroke: #777; fill: #777 } .c1 { stroke: #0a6cc4; fill: #0a6cc4 } path.curve { fill: none }
</style>"""


def curves(series: Mapping[str, Sequence[tuple[float, float]]], x_title: str, y_title: str) -> Markup:
    """Two or fewer named curves of (x, y) over a logarithmic axis, as an SVG file that needs no page around it."""
    points = [point for curve in series.values() for point in curve] or [(1.0, 0.0), (10.0, 1.0)]
    x = Axis([p[0] for p in points], LEFT, WIDTH - RIGHT, log=True)
    y = Axis([p[1] for p in points], HEIGHT - BOTTOM, TOP)
    parts = [Markup(_ALONE), *_frame(x, y, x_title, y_title)]
    highest = max((curve[-1][1] for curve in series.values() if curve), default=0.0)
    for i, (name, curve) in enumerate(series.items()):
        if not curve:
            continue
        places = [(x(a), y(b)) for a, b in curve]
        parts.append(Markup('<path class="curve c{}" d="M{}"/>').format(i, "L".join(f"{a} {b}" for a, b in places)))
        parts += [Markup('<circle class="c{}" cx="{}" cy="{}" r="3.5"/>').format(i, a, b) for a, b in places]
        last = places[-1]
        right, down, anchor = (-4, -9, "end") if curve[-1][1] == highest else (7, 9, "start")  # above the upper curve, beside the lower one
        parts.append(Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(last[0] + right, last[1] + down, anchor, name))
    return _svg(parts, f"{y_title} over {x_title}", xmlns=True)


def distribution(latency_ms: Sequence[float], style: str) -> tuple[Markup, int]:
    """Histogram of latencies above the same samples in the order of time.

    Returns:
        The picture, and how many samples above 1.3 times the 99th percentile lie outside of it.
    """
    values = np.asarray(latency_ms, np.float64)
    p50, p90, p99 = (float(v) for v in np.percentile(values, (50, 90, 99)))
    low = float(values.min())
    high = max(p99 * 1.3 if float(values.max()) > p99 * 1.3 else float(values.max()), low * 1.02 + 1e-6)
    shown = values[values <= high]
    left, right, base, strip_top, strip_bottom = 14, WIDTH - 14, 92, 122, 178

    def at(value: float) -> float:
        return round(left + (value - low) / (high - low) * (right - left), 2)

    counts, edges = np.histogram(shown, bins=48, range=(low, high))
    bars = "".join(
        f"M{at(a)} {base}V{base - count / counts.max() * (base - 22):.1f}H{at(b) - 0.6:.2f}V{base}z"
        for count, a, b in zip(counts, edges[:-1], edges[1:], strict=True)
        if count
    )
    parts = [Markup('<path class="bars {}" d="{}"/>').format(style, bars)]
    last_x = -100.0
    for row, (name, value) in enumerate((("p50", p50), ("p90", p90), ("p99", p99))):
        px = at(value)
        parts.append(Markup('<path class="rule" d="M{} {}V{}"/>').format(px, 16, base))
        if px - last_x > 26 or row == 0:
            parts.append(Markup('<text class="tick" x="{}" y="11" text-anchor="middle">{}</text>').format(min(px, right - 10), name))
            last_x = px
    parts.append(Markup('<path class="line" d="M{} {}H{}"/>').format(left, base, right))
    for value, anchor in ((low, "start"), (high, "end")):
        parts.append(Markup('<text class="tick" x="{}" y="{}" text-anchor="{}">{} ms</text>').format(
            at(value), base + 15, anchor, f"{value:.3g}"))  # fmt: skip
    chosen = np.unique(np.linspace(0, len(values) - 1, min(len(values), STRIP_POINTS)).astype(int))
    dots = []
    for i in chosen:
        share = (min(float(values[i]), high) - low) / (high - low)
        dots.append(f"M{left + i / max(len(values) - 1, 1) * (right - left):.1f} {strip_bottom - share * (strip_bottom - strip_top):.1f}h0")
    parts.append(Markup('<path class="dots {}" d="{}"/>').format(style, "".join(dots)))
    parts.append(Markup('<path class="line" d="M{} {}H{}"/>').format(left, strip_bottom + 4, right))
    parts.append(Markup('<text class="tick" x="{}" y="{}">first sample</text>').format(left, strip_bottom + 18))
    parts.append(Markup('<text class="tick" x="{}" y="{}" text-anchor="end">last</text>').format(right, strip_bottom + 18))
    return _svg(parts, f"distribution of {len(values)} latencies", 200), int((values > high).sum())
