"""The tables of the report: models by domains, opt-out, and the gain kept with fewer active experts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from evals.matrix.results import ModelRow, Results, markdown
from evals.matrix.seeds import Seeds, Spread
from evals.report.html_page import Td, paragraph, table

Show = Callable[[float], str]
BITS: Show = "{:.3f}".format
CHANGE: Show = "{:+.1%}".format
SMALL_CHANGE: Show = "{:+.2%}".format
SHARE: Show = "{:.1%}".format
MASS: Show = "{:.2f}".format


def matrix(seeds: Seeds, models: Sequence[ModelRow]) -> str:
    """Bits per byte with mean, worst change against the anchor and in-domain router mass."""
    rows = []
    for model in models:
        name, base = model.name, model.kind == "anchor"
        cells = {d: _bits(seeds.bits(name, d), None if base else seeds.change(name, d)) for d in seeds.columns}
        mean = _bits(seeds.mean(name), None if base else seeds.over(name, Results.change))
        row = [mean]
        if seeds.anchor:
            domain, worst = seeds.worst(name) or ("", None)
            row.append(
                spread_td(None if base else worst, CHANGE, domain, share=worst.mean if worst else None, full=0.05)
            )
        row.append(spread_td(seeds.over(name, Results.own_mass), MASS))
        rows.append((model.label, row + [cells[d] for d in seeds.columns]))
    header = ["model", "mean", *(["worst"] if seeds.anchor else []), "own mass", *seeds.columns]
    return table(header, rows, bold=[seeds.anchor.label] if seeds.anchor else [])


def markdown_report(seeds: Seeds) -> str:
    """The same as a Markdown table, variants included."""
    rows = []
    for model in seeds.models:
        name, worst = model.name, seeds.worst(model.name)
        cells = {d: _text(seeds.bits(name, d), BITS) for d in seeds.columns}
        row = [*(cells[d] for d in seeds.pure), _text(seeds.mean(name), BITS), *(cells[d] for d in seeds.mixed)]
        if seeds.anchor:
            row.append(f"{worst[1].text(CHANGE)} {worst[0]}" if worst and model.kind != "anchor" else "")
        rows.append([model.label, *row, _text(seeds.over(name, Results.own_mass), MASS)])
    worst_header = ["worst against anchor"] if seeds.anchor else []
    return markdown(["bits per byte", *seeds.pure, "mean", *seeds.mixed, *worst_header, "own mass"], rows)


def accuracy(seeds: Seeds, models: Sequence[ModelRow]) -> str:
    rows = []
    for model in models:
        found = [seeds.over(model.name, _accuracy, domain=d) for d in seeds.columns]
        rows.append((model.label, [spread_td(value, SHARE) for value in found]))
    return table(["model", *seeds.columns], rows)


def kept_gain(seeds: Seeds) -> list[str]:
    """How much of the gain over the anchor is kept with fewer active experts."""
    rows = []
    for models in seeds.variants("active").values() if seeds.anchor else ():
        most = max(models, key=lambda model: model.active or 0).name
        for model in models:
            kept = seeds.over(model.name, _kept, most=most)
            rows.append(
                (
                    model.name,
                    [Td(str(model.active)), spread_td(seeds.mean(model.name), BITS), spread_td(kept, SHARE)],
                )
            )
    return [table(["model", "active", "mean", "gain kept"], rows)] if rows else []


def opt_out(seeds: Seeds) -> list[str]:
    """Without each expert in turn: the change on every domain."""
    parts = []
    for whole, models in seeds.variants("opt-out").items():
        experts = next((model.experts or [] for model in seeds.models if model.name == whole), [])
        rows = []
        for model in models:
            left = set(experts) - set(model.experts or ())
            rows.append((model.name, [_left(seeds, model.name, whole, d, d in left) for d in seeds.columns]))
        said = (
            f"Bits per byte without one expert, against {whole} with all. Outlined: the domain of the one that left, "
            "and how far it then is from the anchor."
        )
        parts += [paragraph(said), table(["model", *seeds.columns], rows)]
    return parts


def _left(seeds: Seeds, model: str, whole: str, domain: str, own: bool) -> Td:
    change, anchor = seeds.over(model, Results.change, domain=domain, other=whole), seeds.change(model, domain)
    if change is None:
        return Td("")
    note = f"{SMALL_CHANGE(anchor.mean)} to anchor" if own and anchor else ""
    return spread_td(change, SMALL_CHANGE, note, share=change.mean, full=0.02, own=own)


def _bits(value: Spread | None, change: Spread | None) -> Td:
    return spread_td(value, BITS, CHANGE(change.mean) if change else "", share=change.mean if change else None)


def spread_td(value: Spread | None, show: Show, note: str = "", **look: Any) -> Td:
    """The mean of a figure; below it its spread, if there are several seeds, and a note."""
    if value is None:
        return Td("")
    return Td(show(value.mean), tuple(filter(None, (value.around(show), note))), **look)


def _text(value: Spread | None, show: Show) -> str:
    return "" if value is None else value.text(show)


def _accuracy(results: Results, model: str, domain: str) -> float:
    return results.cell(model, domain).accuracy


def _kept(results: Results, model: str, most: str) -> float | None:
    all_of, part = results.change(most), results.change(model)
    return part / all_of if all_of and part is not None else None
