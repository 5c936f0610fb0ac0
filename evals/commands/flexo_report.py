"""`flexo-report`: results of `flexo-eval`, of one seed or several, as one HTML file with pictures.

flexo-report results.json -o report.html
flexo-report study/seed*/results.json -o report.html --markdown results.md
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flexo.console import new_app, run

app = new_app("Show results of flexo-eval with pictures.")


def main() -> None:
    run(app)


@app.command(
    epilog="Examples:\n\n`flexo-report results.json -o report.html`\n\n"
    "`flexo-report study/seed*/results.json -o report.html --markdown results.md --pictures pictures`\n\n"
    "`flexo-report --leak leak.json -o report.html`"
)
def report(
    results: Annotated[
        list[Path] | None, typer.Argument(help="Files of `flexo-eval --json`: seeds of one study.")
    ] = None,
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="The HTML file to write; it needs nothing else.")],
    leaks: Annotated[
        list[Path] | None, typer.Option("--leak", help="Also figures of `flexo-leak --json`. Repeatable.")
    ] = None,
    markdown_file: Annotated[Path | None, typer.Option("--markdown", help="Also write the table here.")] = None,
    pictures: Annotated[Path | None, typer.Option(help="Also write the pictures into this folder, as SVG.")] = None,
    title: Annotated[str | None, typer.Option(help="Of the page. [default: flexo: models and domains]")] = None,
) -> None:
    """Write matrix, router heat maps, curves and opt-out matrix as one HTML file."""
    from evals.report.report import TITLE, write_report

    for path in write_report(
        results or [], output, leaks=leaks or [], markdown=markdown_file, pictures=pictures, title=title or TITLE
    ):
        typer.echo(f"wrote {path}")
