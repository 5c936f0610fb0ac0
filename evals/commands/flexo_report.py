"""`flexo-report`: results of `flexo-eval`, of one seed or several, as one HTML file with pictures.

flexo-report results.json -o report.html
flexo-report study/seed*/results.json -o report.html --markdown results.md
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from flexo.console import new_app, run

app = new_app("Show results of flexo-eval with pictures.")


def main() -> None:
    run(app)


@app.command(
    epilog="Examples:\n\n`flexo-report results.json -o report.html`\n\n"
    "`flexo-report study/seed*/results.json -o report.html --markdown results.md --pictures pictures`"
)
def report(
    results: Annotated[list[Path], typer.Argument(help="Files of `flexo-eval --json`: seeds of one study.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The HTML file to write; it needs nothing else.")],
    markdown_file: Annotated[Path | None, typer.Option("--markdown", help="Also write the table here.")] = None,
    pictures: Annotated[Path | None, typer.Option(help="Also write the pictures into this folder, as SVG.")] = None,
    title: Annotated[str, typer.Option(help="Of the page.")] = "flexo: models and domains",
) -> None:
    """Write matrix, router heat maps, curves and opt-out matrix as one HTML file."""
    from evals.matrix.seeds import read_seeds
    from evals.report.pictures import picture_files
    from evals.report.report import html_report
    from evals.report.tables import markdown_report
    from flexo.atomic_files import new_file

    seeds = read_seeds(results)
    files = {output: html_report(seeds, title)}
    if markdown_file:
        files[markdown_file] = markdown_report(seeds)
    if pictures:
        files |= {pictures / name: drawn for name, drawn in picture_files(seeds).items()}
    with ExitStack() as stack:
        for path, text in files.items():
            stack.enter_context(new_file(path, replace=True)).write_text(text, encoding="utf-8")
    for path in files:
        typer.echo(f"wrote {path}")
