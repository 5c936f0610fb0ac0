"""The report: results of `flexo-eval` as one HTML file that needs nothing else, a table and pictures.

write_report([Path("seed0.json"), Path("seed1.json")], Path("report.html"))
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from evals.matrix.seeds import Seeds, read_seeds
from evals.privacy.leak import Leak, read_leak
from evals.report.credit import credit_sections, credit_sheets
from evals.report.html_page import Td, folded, page, paragraph, section, table
from evals.report.leak import leak_sections, leak_sheets, leak_text
from evals.report.pictures import active_charts, growing_charts, picture_files, router_maps
from evals.report.tables import accuracy, kept_gain, markdown_report, matrix, opt_out
from flexo.atomic_files import new_file
from flexo.errors import InputError

TITLE = "flexo: models and domains"


def write_report(
    results: Sequence[Path],
    output: Path,
    *,
    leaks: Sequence[Path] = (),
    markdown: Path | None = None,
    pictures: Path | None = None,
    title: str = TITLE,
) -> list[Path]:
    """Writes the report of one study, all of its files or none: `flexo-report` as a plain function.

    Args:
        results: files of `flexo-eval --json`, one for each seed of the study; none, if there are `leaks`.
        leaks: files of `flexo-leak --json`.
        output: the HTML file; it replaces an older one, as the other files do.
        markdown: a file for the table alone; None writes none.
        pictures: a folder for the pictures as SVG; None writes none.
        title: of the page.

    Returns:
        The files written.

    Raises:
        InputError: a file holds no results, the seeds were measured on different text, or a file cannot be written.
    """
    if not results and not leaks:
        raise InputError(
            "nothing to report: give files of flexo-eval --json, or --leak with files of flexo-leak --json."
        )
    seeds, leaked = read_seeds(results) if results else None, [read_leak(path) for path in leaks]
    files = {output: html_report(seeds, title, leaked)}
    if markdown is not None:
        files[markdown] = "\n".join([*([markdown_report(seeds)] if seeds else []), *map(leak_text, leaked)])
    if pictures is not None:
        drawings = leak_sheets(leaked) | (picture_files(seeds) | credit_sheets(seeds) if seeds else {})
        files |= {pictures / name: drawn for name, drawn in drawings.items()}
    with ExitStack() as stack:
        for path, text in files.items():
            stack.enter_context(new_file(path, replace=True)).write_text(text, encoding="utf-8")
    return list(files)


def html_report(seeds: Seeds | None, title: str, leaks: Sequence[Leak] = ()) -> str:
    """The HTML page."""
    leaked = [section(f"What can be got out of {leak.model}", *leak_sections(leak)) for leak in leaks]
    return page(title, [*(_of_study(seeds) if seeds else []), *leaked])


def _of_study(seeds: Seeds) -> list[str]:
    models = [model for model in seeds.models if model.variant is None]
    return [
        _about(seeds),
        section("Bits per byte", paragraph(_how_to_read(seeds)), matrix(seeds, models)),
        section("Next-token accuracy", folded("Share of tokens that were the likeliest", accuracy(seeds, models))),
        section("Routers", *router_maps(seeds, models)),
        section("Quality against the number of experts", *growing_charts(seeds)),
        section("Quality against active experts", *active_charts(seeds), *kept_gain(seeds)),
        section("Opt-out", *opt_out(seeds)),
        section("Credit", *credit_sections(seeds)),
        section("Text", _texts(seeds)),
    ]


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
