"""`flexo-report`: results of `flexo-eval`, of one seed or several, as one HTML file with pictures.

flexo-report results.json -o report.html
flexo-report study/seed*/results.json -o report.html --markdown results.md
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from merge.console import new_app, run

app = new_app("Show results of flexo-eval with pictures.")


def main() -> None:
    run(app)


@app.command(
    epilog="Examples:\n\n`flexo-report results.json -o report.html`\n\n"
    "`flexo-report study/seed*/results.json -o report.html --markdown results.md`"
)
def report(
    results: Annotated[list[Path], typer.Argument(help="Files of `flexo-eval --json`: seeds of one study.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The HTML file to write; it needs nothing else.")],
    markdown_file: Annotated[Path | None, typer.Option("--markdown", help="Also write the table here.")] = None,
    title: Annotated[str, typer.Option(help="Of the page.")] = "flexo: models and domains",
) -> None:
    """Write matrix, router heat maps, curves and opt-out matrix as one HTML file."""
    from evals.report import html_report
    from evals.report_tables import markdown_report
    from evals.seeds import read_seeds
    from merge.files import new_file

    seeds = read_seeds(results)
    with ExitStack() as stack:
        paths = [path and stack.enter_context(new_file(path, replace=True)) for path in (output, markdown_file)]
        assert paths[0] is not None
        paths[0].write_text(html_report(seeds, title), encoding="utf-8")
        if paths[1]:
            paths[1].write_text(markdown_report(seeds), encoding="utf-8")
    for path in (output, markdown_file):
        if path:
            typer.echo(f"wrote {path}")
