"""Pictures for the report, as SVG, inline or a file: heat maps and small charts. Nothing is loaded from anywhere.

Every name is escaped here; numbers that are not finite are drawn as gaps.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from evals.matrix.seeds import Spread

COLOURS = ("#1b6ca8", "#d1495b", "#2e8b57", "#b8860b", "#6a4c93", "#444444", "#00868b", "#a0522d")
LONGEST = 18  # letters of a name that are drawn; the rest is in the tooltip
LETTER = 6.2  # width of a letter, px
SHEET = 1000  # width of a file that holds several pictures, px; more where one of them is wider
GAP = 16
UNFIT = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # characters that XML does not allow
STYLE = """
svg text { font: 11px system-ui, sans-serif; fill: #333 }
svg text.title { font-weight: 600; font-size: 12px }
svg text.light { fill: #fff }
.grid { stroke: #e6e6e6 }
.base { stroke: #555; stroke-dasharray: 4 3 }
"""


@dataclass(frozen=True)
class Picture:
    """A drawing on a canvas of so many pixels; `str` gives an element for a page that has `STYLE`."""

    title: str
    width: float
    height: float
    inside: str

    def __str__(self) -> str:
        return self.at()

    def at(self, place: str = "") -> str:
        """The element; `place` are further attributes."""
        return (
            f'<svg {place}viewBox="0 0 {self.width:.0f} {self.height:.0f}" width="{self.width:.0f}" '
            f'height="{self.height:.0f}" role="img" aria-label="{escape(self.title)}">{self.inside}</svg>'
        )


@dataclass(frozen=True)
class Line:
    """One model in a chart: a figure, or none, at each place of the x axis."""

    name: str
    points: Sequence[Spread | None]


def heat_map(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float]],
    *,
    most: float = 1.0,
    marked: Sequence[str] = (),
) -> Picture:
    """A table of numbers as shades from 0, white, to `most`; columns in `marked` are outlined."""
    side, below = max(map(_width, rows)) + 8, max(map(_width, columns)) + 10
    wide, high, top = 30, 20, 22
    width, height = side + wide * len(columns) + 4, top + high * len(rows) + below
    parts = [_text(side, 13, title, "start", "title")]
    for r, row in enumerate(rows):
        parts.append(_text(side - 5, top + high * r + 14, row, "end"))
        for c, column in enumerate(columns):
            value = values[r][c]
            known = math.isfinite(value)
            depth = min(1.0, max(0.0, value / most)) if known else 0.0
            said = f"{value:.2f}" if known else "?"
            parts.append(
                f"<g><title>{escape(f'{title}, {row}, {column}: {said}')}</title>"
                f'<rect x="{side + wide * c:.0f}" y="{top + high * r}" width="{wide}" height="{high}" '
                f'fill="{_shade(depth)}" stroke="#fff"/>'
                f'<text x="{side + wide * c + wide / 2:.0f}" y="{top + high * r + 14}" text-anchor="middle" '
                f'class="{"light" if depth > 0.55 else "dark"}">{said.removeprefix("0")}</text></g>'
            )
    for c, column in enumerate(columns):
        x, y = side + wide * c + wide / 2 + 4, top + high * len(rows) + 6
        parts.append(
            f'<text transform="translate({x:.0f} {y}) rotate(-90)" text-anchor="end">{_short(column)}'
            f"<title>{escape(column)}</title></text>"
        )
        if column in marked:
            parts.append(
                f'<rect x="{side + wide * c:.0f}" y="{top}" width="{wide}" height="{high * len(rows)}" fill="none" '
                'stroke="#d1495b" stroke-width="2"/>'
            )
    return Picture(title, max(width, side + len(title) * LETTER * 1.2), height, "".join(parts))


def chart(title: str, places: Sequence[int], lines: Sequence[Line], base: float | None = None) -> Picture | None:
    """Lines over numbers of experts, with the range over seeds as bars, and a dashed line at `base`; None without any
    figure."""
    values = [v for line in lines for point in line.points if point for v in point.values if math.isfinite(v)]
    if base is not None and math.isfinite(base):
        values.append(base)
    if not values:
        return None
    low, high = min(values), max(values)
    margin = (high - low) * 0.08 or abs(high) * 0.01 or 1.0
    low, high = low - margin, high + margin
    left, right, top, bottom, width, height = 46, 10, 24, 26, 250, 170
    step = (width - left - right) / max(1, len(places) - 1)
    x = [left + step * n if len(places) > 1 else (left + width - right) / 2 for n in range(len(places))]

    def y(value: float) -> float:
        return top + (high - value) / (high - low) * (height - top - bottom)

    def level(value: float, kind: str) -> str:
        return f'<path d="M{left} {y(value):.1f}H{width - right}" class="{kind}"/>'

    parts = [_text(left, 13, title, "start", "title")]
    for tick in (low + margin, (low + high) / 2, high - margin):
        parts += [level(tick, "grid"), _text(left - 4, y(tick) + 4, f"{tick:.3f}", "end")]
    every = math.ceil(len(places) / 10)
    parts += [_text(x[n], height - 8, str(place), "middle") for n, place in enumerate(places) if n % every == 0]
    if base is not None and math.isfinite(base):
        parts.append(level(base, "base"))
    for line, colour in zip(lines, _colours(len(lines)), strict=True):
        known = [(n, point) for n, point in enumerate(line.points) if point and math.isfinite(point.mean)]
        path = "L".join(f"{x[n]:.1f} {y(point.mean):.1f}" for n, point in known)
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>' if known else "")
        for n, point in known:
            said = escape(f"{line.name}, {places[n]}: {point.text('{:.4f}'.format)}")
            ends = f"{y(min(point.values)):.1f}V{y(max(point.values)):.1f}"
            parts.append(
                f'<g><title>{said}</title><path d="M{x[n]:.1f} {ends}" stroke="{colour}"/>'
                f'<circle cx="{x[n]:.1f}" cy="{y(point.mean):.1f}" r="2.6" fill="{colour}"/></g>'
            )
    return Picture(title, width, height, "".join(parts))


def bars(title: str, rows: Sequence[str], series: Sequence[Sequence[float]]) -> Picture:
    """For each row a bar of each series side by side, as percentages; below 0 they go to the left."""
    values = [value for values in series for value in values if math.isfinite(value)]
    low, high = min([0.0, *values]), max([0.0, *values])
    side, wide, high_bar, gap, top = max(map(_width, rows)) + 8, 260, 9, 8, 24
    scale = wide / ((high - low) or 1.0)
    zero = side + 40 - low * scale  # 40 px on both sides for the figures
    parts = [_text(side, 13, title, "start", "title")]
    for r, row in enumerate(rows):
        y = top + r * (len(series) * high_bar + gap)
        parts.append(_text(side - 5, y + len(series) * high_bar / 2 + 4, row, "end"))
        for s, (values_of, colour) in enumerate(zip(series, _colours(len(series)), strict=True)):
            value = values_of[r] if math.isfinite(values_of[r]) else 0.0
            start, end, place = zero + min(0.0, value) * scale, zero + max(0.0, value) * scale, y + s * high_bar
            parts.append(
                f'<rect x="{start:.1f}" y="{place}" width="{end - start:.1f}" height="{high_bar - 1}" fill="{colour}"/>'
            )
            said = f"{values_of[r]:.0%}"
            parts.append(_text(end + 3 if value >= 0 else start - 3, place + 8, said, "start" if value >= 0 else "end"))
    height = top + len(rows) * (len(series) * high_bar + gap)
    parts.append(f'<path d="M{zero:.1f} {top - 4}V{height - gap + 4:.0f}" class="base"/>')
    return Picture(title, side + wide + 80, height, "".join(parts))


def legend(names: Sequence[str], base: bool) -> str:
    """The colours of a chart's lines, and the dashed line of the anchor if there is one."""
    items = [
        f'<span><i style="background:{colour}"></i>{escape(name)}</span>'
        for name, colour in zip(names, _colours(len(names)), strict=True)
    ]
    if base:
        items.append('<span><i class="dashed"></i>anchor</span>')
    return f'<p class="legend">{"".join(items)}</p>'


def sheet(pictures: Sequence[Picture], names: Sequence[str] = (), base: bool = False) -> str:
    """A file of pictures, row by row, below the legend of `names` and, with `base`, of the anchor's dashed line."""
    parts: list[str] = []
    x, y, row = float(GAP), float(GAP), 0.0
    width = max([SHEET, *(picture.width + 2 * GAP for picture in pictures)])
    keys = [(name, f'h16v8h-16z" fill="{colour}') for name, colour in zip(names, _colours(len(names)), strict=True)]
    for name, look in [*keys, *([("anchor", 'm0 4h16" class="base')] if base else [])]:
        if x > GAP and x + 22 + _width(name) > width - GAP:
            x, y = GAP, y + 8 + GAP
        parts.append(f'<path d="M{x:.0f} {y:.0f}{look}"/>{_text(x + 22, y + 8, name, "start")}')
        x += 22 + _width(name) + GAP
    if parts:
        y += 8 + GAP
    x = GAP
    for picture in pictures:
        if x > GAP and x + picture.width > width - GAP:
            x, y, row = GAP, y + row + GAP, 0.0
        parts.append(picture.at(f'x="{x:.0f}" y="{y:.0f}" '))
        x, row = x + picture.width + GAP, max(row, picture.height)
    height = y + row + GAP
    inside = UNFIT.sub("\ufffd", "".join(parts))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}">'
        f'<style>{STYLE}</style><rect width="100%" height="100%" fill="#fff"/>{inside}</svg>\n'
    )


def _colours(count: int) -> list[str]:
    return [COLOURS[n % len(COLOURS)] for n in range(count)]


def _shade(depth: float) -> str:
    """White to dark blue."""
    ends = ((247, 250, 252), (16, 78, 139))
    return "#" + "".join(f"{round(a + (b - a) * depth):02x}" for a, b in zip(*ends, strict=True))


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    said = escape(text) if kind == "title" else _short(text)
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}"{named}>{said}</text>'


def _short(name: str) -> str:
    return escape(name if len(name) <= LONGEST else name[: LONGEST - 1] + "…")


def _width(name: str) -> float:
    return min(len(name), LONGEST) * LETTER
