"""What was got out of a model, for readers: a table as text, and tables and pictures of the report."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, groupby

from evals.matrix.results import markdown
from evals.matrix.seeds import Spread
from evals.privacy.attacks.part import Row
from evals.privacy.leak import PARTS, Leak
from evals.report.html_page import Td, maps, paragraph, table
from evals.report.pictures import picture_name
from evals.report.svg import Line, Picture, bars, chart, legend, sheet

FIGURE = "{:.3f}".format
TIMES = " in the text"  # behind the number, in the name of a group
SAID = (
    "Attacks with the owner's text at hand, each beside what can be had without the model, mostly the same attack on "
    "the anchor, which everybody has: what is over that is what the model gives away. Small intervals do not make an "
    "attack the best there is: these figures say what can be got out at least."
)


def leak_text(leak: Leak) -> str:
    """Markdown: a table for each part, what is wrong with its figures, what was left out."""
    tables = [
        markdown([f"{leak.model}: {name}", *_columns(name)], [[row.figure, row.group, *_cells(row)] for row in rows])
        for name, rows in _by_part(leak)
    ]
    return "\n".join([*tables, *(f"{note}\n" for note in _notes(leak))])


def leak_sections(leak: Leak) -> list[str]:
    """A table and pictures for each part."""
    parts = [paragraph(SAID), *map(paragraph, _notes(leak))]
    for name, rows in _by_part(leak):
        cells = [(row.figure, [Td(row.group), *map(Td, _cells(row))]) for row in rows]
        parts.append(table([name, *_columns(name)], cells))
        if pictures := leak_pictures(rows, leak.model):
            parts += [legend([leak.model, PARTS[name].reference], False), maps(pictures)]
    return parts


def leak_sheets(leaks: Sequence[Leak]) -> dict[str, str]:
    """File name -> SVG: `leak-MODEL.svg` for each model whose figures can be drawn."""
    files: dict[str, str] = {}
    for leak in leaks:
        drawn = {name: pictures for name, rows in _by_part(leak) if (pictures := leak_pictures(rows, leak.model))}
        if drawn:
            beside = " or ".join(dict.fromkeys(PARTS[name].reference for name in drawn))
            files[picture_name("leak", leak.model, files)] = sheet([*chain(*drawn.values())], [leak.model, beside])
    return files


def leak_pictures(rows: Sequence[Row], model: str) -> list[Picture]:
    """Shares of one part as bars, and each figure that is known by times in the text as lines over them."""
    pictures: list[Picture | None] = []
    beside = [(row, row.reference) for row in rows if row.reference is not None and 0 <= row.value <= 1]
    if whole := [(row, known) for row, known in beside if row.group == "all"]:
        series = [[row.value for row, _ in whole], [known for _, known in whole]]
        pictures.append(bars(rows[0].part, [row.figure for row, _ in whole], series))
    for figure in dict.fromkeys(row.figure for row in rows):
        over = {int(row.group.removesuffix(TIMES)): row for row in rows
                if row.figure == figure and row.group.endswith(TIMES)}  # fmt: skip
        if len(over) > 1:
            known = [None if row.reference is None else Spread((row.reference,)) for row in over.values()]
            lines = [
                Line(model, [Spread((row.value,)) for row in over.values()]),
                Line(PARTS[rows[0].part].reference, known),
            ]
            pictures.append(chart(figure, list(over), lines))
    return [picture for picture in pictures if picture is not None]


def _by_part(leak: Leak) -> list[tuple[str, list[Row]]]:
    return [(name, list(rows)) for name, rows in groupby(leak.rows, lambda row: row.part)]


def _columns(part: str) -> list[str]:
    return ["of", "value", PARTS[part].interval, PARTS[part].reference]


def _cells(row: Row) -> list[str]:
    around = "" if row.low is None or row.high is None else f"{FIGURE(row.low)} to {FIGURE(row.high)}"
    return [FIGURE(row.value), around, "" if row.reference is None else FIGURE(row.reference)]


def _notes(leak: Leak) -> list[str]:
    reads = [] if leak.reads is None else [f"training read each document or unit {leak.reads:.3g} times in the mean"]
    warnings = [f"warning: {row.warning}" for row in leak.rows if row.warning]
    left = [f"left out: {part} needs {' and '.join(needs)}" for part, needs in leak.left_out.items()]
    refused = [f"refused: {part}: {why}" for part, why in leak.refused.items()]
    return reads + warnings + left + refused
