"""The report: what `flexo-eval` measured as one HTML file that needs nothing else."""

from __future__ import annotations

from evals.matrix.seeds import Seeds
from evals.report.html_page import Td, folded, page, paragraph, section, table
from evals.report.pictures import active_charts, growing_charts, router_maps
from evals.report.tables import accuracy, kept_gain, matrix, opt_out


def html_report(seeds: Seeds, title: str) -> str:
    """The whole page."""
    models = [model for model in seeds.models if model.variant is None]
    return page(
        title,
        [
            _about(seeds),
            section("Bits per byte", paragraph(_how_to_read(seeds)), matrix(seeds, models)),
            section("Next-token accuracy", folded("Share of tokens that were the likeliest", accuracy(seeds, models))),
            section("Routers", *router_maps(seeds, models)),
            section("Quality against the number of experts", *growing_charts(seeds)),
            section("Quality against active experts", *active_charts(seeds), *kept_gain(seeds)),
            section("Opt-out", *opt_out(seeds)),
            section("Text", _texts(seeds)),
        ],
    )


def _about(seeds: Seeds) -> str:
    results, first = seeds.results, seeds.results[0]
    labels = ", ".join("not said" if r.seed is None else str(r.seed) for r in results)
    software = ", ".join(f"{name} {version}" for name, version in first.software.items())
    seed = f"{len(results)} seed{'s' if len(results) > 1 else ''} ({labels})"
    size = f", up to about {first.max_bytes:,} bytes a domain" if first.max_bytes else ""
    return paragraph(
        f"{len(seeds.models)} models on {len(seeds.domains)} domains; {seed}; split {first.split}{size}; {software}."
    )


def _how_to_read(seeds: Seeds) -> str:
    said = "Lower is better. The mean is over the pure domains, each counting the same; mixed text is not in it."
    if len(seeds.results) > 1:
        said += " Figures are means over seeds; ± is their standard deviation, in brackets their range."
    if seeds.anchor:
        said += (
            " A percentage is the change against the anchor, which gives the colour: blue is better, red is worse. "
            "Worst is the domain with the largest change."
        )
    return said


def _texts(seeds: Seeds) -> str:
    rows = [
        (d.name, [Td(f"{d.documents:,}"), Td(f"{d.bytes:,}"), Td(f"{d.tokens:,}"), Td(d.digest[:12])])
        for d in seeds.domains
    ]
    return table(["domain", "documents", "bytes", "tokens", "sha256"], rows)
