"""The page that the report stands on: style, tables with coloured cells, and nothing from outside the file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from evals.report.svg import STYLE as PICTURES
from evals.report.svg import Picture

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff }
body { margin: 0 auto; padding: 1rem; max-width: 1500px }
h1 { font-size: 1.5rem; margin: .3rem 0 }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem; border-top: 1px solid #ddd; padding-top: 1rem }
h3 { font-size: 1rem; margin: 1.2rem 0 .2rem }
p { margin: .4rem 0; max-width: 60rem; color: #444 }
details { margin: .5rem 0 }
summary { cursor: pointer; font-weight: 600 }
.wide { overflow-x: auto; margin: .6rem 0 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .45rem; text-align: right; white-space: nowrap; border: 1px solid #e4e4e4; font-weight: 400 }
thead th { background: #f4f4f4; font-weight: 600 }
tbody th, thead th:first-child { text-align: left; position: sticky; left: 0 }
tbody th { background: #fff }
tr.base th, tr.base td { font-weight: 600 }
td.own { outline: 2px solid #444; outline-offset: -2px }
td small { display: block; font-size: .75rem; line-height: 1.25; color: #444 }
.maps { display: flex; flex-wrap: wrap; gap: .8rem 1.2rem; align-items: flex-start }
svg { max-width: 100%; height: auto }
.legend span { margin-right: 1rem; white-space: nowrap }
.legend i { display: inline-block; width: 1.1em; height: .7em; margin-right: .35em }
.legend i.dashed { height: 0; border-top: 2px dashed #555; vertical-align: middle }
@media (max-width: 600px) {
  body { padding: .6rem; font-size: 14px }
  tbody th, thead th:first-child { min-width: 6.5rem; white-space: normal; overflow-wrap: anywhere }
}
"""


@dataclass(frozen=True)
class Td:
    """A cell of a table: its text, smaller lines below, and a relative change that colours it."""

    text: str
    notes: tuple[str, ...] = ()
    share: float | None = None  # above 0 is worse, red; below is better, blue
    full: float = 0.2  # the share with the deepest colour
    own: bool = False


def page(title: str, sections: Sequence[str]) -> str:
    """A whole HTML document."""
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{STYLE}{PICTURES}</style></head>"
    )
    return f"{head}<body><h1>{escape(title)}</h1>\n" + "\n".join(filter(None, sections)) + "\n</body></html>\n"


def table(header: Sequence[str], rows: Sequence[tuple[str, Sequence[Td]]], bold: Sequence[str] = ()) -> str:
    """A table that scrolls sideways by itself; the rows named in `bold` stand out."""
    lines = [
        f"<tr{' class=base' if name in bold else ''}><th scope=row>{escape(name)}</th>{''.join(map(_td, cells))}</tr>"
        for name, cells in rows
    ]
    top = "".join(f"<th scope=col>{escape(name)}</th>" for name in header)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def section(title: str, *parts: str) -> str:
    """A heading and the parts below it; an empty string if all parts are empty."""
    return f"<h2>{escape(title)}</h2>\n" + "\n".join(parts) if any(parts) else ""


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def folded(title: str, inside: str, opened: bool = False) -> str:
    return f"<details{' open' if opened else ''}><summary>{escape(title)}</summary>{inside}</details>"


def maps(pictures: Sequence[Picture]) -> str:
    return f'<div class="maps">{"".join(map(str, pictures))}</div>'


def _td(cell: Td) -> str:
    notes = "".join(f"<small>{escape(note)}</small>" for note in cell.notes)
    own = ' class="own"' if cell.own else ""
    return f"<td{own}{_background(cell.share, cell.full)}>{escape(cell.text)}{notes}</td>"


def _background(share: float | None, full: float) -> str:
    """Blue for better, red for worse; the square root lets small differences be seen beside large ones."""
    if share is None or not math.isfinite(share) or share == 0:
        return ""
    depth = 0.75 * min(1.0, abs(share) / full) ** 0.5
    hue = (209, 73, 91) if share > 0 else (70, 130, 200)
    return ' style="background:#' + "".join(f"{round(255 + (c - 255) * depth):02x}" for c in hue) + '"'
