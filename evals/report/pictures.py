"""The pictures of the report: router heat maps, and quality against the number of experts; on the page or as files.

L layers, E experts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Sequence
from functools import partial
from itertools import count
from statistics import fmean

from evals.matrix.results import CellRouting, ModelRow
from evals.matrix.seeds import Seeds
from evals.report.html_page import folded, maps, paragraph
from evals.report.svg import Line, Picture, chart, heat_map, legend, sheet

Table = Sequence[Sequence[float]]

MAPS = (
    "Layers are rows, the first on top; experts are columns; the text's own expert is outlined. A shade is the mean "
    "probability that the router gives the expert, before the top are chosen. In a layer in brackets all experts are "
    "the same network: own mass and agreement leave it out."
)
SUMMARY = (
    "Own mass is the probability of the text's own expert; entropy is that of a token's probabilities; agreement is "
    "the share of tokens whose heaviest expert, over all layers, is their own; the active share of an expert is the "
    "share of the places for active experts that it fills."
)
GROWING = (
    "Bits per byte of the merged model with its first experts, public included, in the order of the manifest. Each "
    "picture has a scale of its own."
)
ACTIVE = "Bits per byte of the whole merged model with so many experts active for a token."


def router_maps(seeds: Seeds, models: Sequence[ModelRow]) -> list[str]:
    """For each model with more than two experts: a heat map a domain, own mass, entropy and active share."""
    parts: list[str] = []
    for label, found in _routed(seeds, models).items():
        pictures, summary = _maps_of(found)
        parts.append(folded(label, maps(pictures) + paragraph(SUMMARY) + maps(summary), opened=not parts))
    return [paragraph(MAPS), *parts] if parts else []


def growing_charts(seeds: Seeds) -> list[str]:
    """A chart a domain, over the number of experts."""
    return _charts(seeds, _growing(seeds), GROWING)


def active_charts(seeds: Seeds) -> list[str]:
    """A chart a domain, over the number of active experts."""
    return _charts(seeds, _active(seeds), ACTIVE)


def picture_files(seeds: Seeds) -> dict[str, str]:
    """File name -> SVG, of all that there is to draw of models that are no variants of others."""
    files = {}
    for name, lines in (("number-of-experts", _growing(seeds)), ("active-experts", _active(seeds))):
        if pictures := _drawn(seeds, lines):
            files[f"{name}.svg"] = sheet(pictures, list(lines), seeds.anchor is not None)
    for label, found in _routed(seeds, [model for model in seeds.models if model.variant is None]).items():
        pictures, summary = _maps_of(found)
        files[picture_name("routers", label, files)] = sheet([*pictures, *summary])
    return files


def picture_name(kind: str, label: str, taken: Container[str]) -> str:
    """A file name for a picture of a model, with a number if it is taken."""
    plain = re.sub(r"[^\w.-]+", "-", label).strip("-.")
    return next(name for n in count(1) if (name := f"{kind}-{plain}{f'-{n}' if n > 1 else ''}.svg") not in taken)


def _growing(seeds: Seeds) -> dict[str, dict[int, str]]:
    return {
        name: {len(model.experts or ()): model.name for model in models}
        for name, models in seeds.variants("growing").items()
    }


def _active(seeds: Seeds) -> dict[str, dict[int, str]]:
    return {
        name: {model.active or 0: model.name for model in models} for name, models in seeds.variants("active").items()
    }


def _routed(seeds: Seeds, models: Sequence[ModelRow]) -> dict[str, dict[str, CellRouting]]:
    """Label of a model with more than two experts -> domain -> its routing."""
    known = {
        model.label: {d: routing for d in seeds.columns if (routing := _mean_routing(seeds, model.name, d))}
        for model in models
        if model.kind != "pair"
    }
    return {label: found for label, found in known.items() if found}


def _charts(seeds: Seeds, lines: dict[str, dict[int, str]], said: str) -> list[str]:
    if not lines:
        return []
    return [paragraph(said), legend(list(lines), seeds.anchor is not None), maps(_drawn(seeds, lines))]


def _drawn(seeds: Seeds, lines: dict[str, dict[int, str]]) -> list[Picture]:
    """Charts with a line for each merged model, whose rows are named by their place on the x axis."""
    places = sorted({place for rows in lines.values() for place in rows})
    pictures = []
    for domain in (None, *seeds.columns):
        figure = seeds.mean if domain is None else partial(seeds.bits, domain=domain)
        drawn = [Line(name, [figure(rows[n]) if n in rows else None for n in places]) for name, rows in lines.items()]
        base = figure(seeds.anchor.name) if seeds.anchor else None
        pictures.append(chart(domain or "mean", places, drawn, base.mean if base else None))
    return [picture for picture in pictures if picture is not None]


def _maps_of(found: dict[str, CellRouting]) -> tuple[list[Picture], list[Picture]]:
    """A heat map a domain, and those over all of them."""
    first = next(iter(found.values()))
    domains, layers = list(found), [f"layer {n}" for n in range(len(first.entropy))]
    if first.chooses:
        layers = [name if chosen else f"({name})" for name, chosen in zip(layers, first.chooses, strict=True)]
    pictures = [heat_map(d, layers, routing.experts, routing.mass, marked=[d]) for d, routing in found.items()]
    summary = []
    if own := {d: routing.own for d, routing in found.items() if routing.own}:
        agreement = [found[d].agreement or 0.0 for d in own]
        summary.append(heat_map("own mass", layers, list(own), _turned(list(own.values()))))
        summary.append(heat_map("agreement", ["all layers"], list(own), [agreement]))
    entropy = _turned([found[d].entropy for d in domains])
    uniform = math.log2(len(first.experts))
    summary.append(heat_map(f"entropy, bits of {uniform:.2f}", layers, domains, entropy, most=uniform or 1.0))
    active_share = _turned([_mean_rows(found[d].active_share) for d in domains])
    summary.append(heat_map("active share", first.experts, domains, active_share))
    return pictures, summary


def _mean_routing(seeds: Seeds, model: str, domain: str) -> CellRouting | None:
    """The mean over those seeds that have the experts and layers of the first."""
    known = [routing for results in seeds.having(model) if (routing := results.cell(model, domain).routing)]
    alike = [r for r in known if (r.experts, len(r.entropy)) == (known[0].experts, len(known[0].entropy))]
    if not alike:
        return None
    owns, agreements = [r.own for r in alike if r.own], [r.agreement for r in alike if r.agreement is not None]
    return CellRouting(
        experts=alike[0].experts,
        mass=_mean_tables([r.mass for r in alike]),
        entropy=_mean_rows([r.entropy for r in alike]),
        active_share=_mean_tables([r.active_share for r in alike]),
        heaviest=_mean_tables([r.heaviest for r in alike]),
        own=_mean_rows(owns) if owns else None,
        agreement=fmean(agreements) if agreements else None,
        chooses=alike[0].chooses,
    )


def _mean_tables(tables: Sequence[Table]) -> list[list[float]]:
    return [_mean_rows(rows) for rows in zip(*tables, strict=True)]


def _mean_rows(rows: Table) -> list[float]:
    return [fmean(values) for values in zip(*rows, strict=True)]


def _turned(rows: Table) -> list[list[float]]:
    return [list(column) for column in zip(*rows, strict=True)]
