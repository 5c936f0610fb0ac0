"""`flexo-eval`: bits per byte and routing of models on held-out text of domains.

flexo-eval model/ --data data/corpora
flexo-eval anchor specialists/* model --data data/corpora --btm 2 --opt-out --cache cells --json results.json
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from flexo.console import comma_list, new_app, run
from flexo.errors import InputError
from inference.commands.options import Device, Dtype

app = new_app("Measure models on held-out text.")


def main() -> None:
    run(app)


@app.command(
    epilog="Examples:\n\n`flexo-eval model/ --data data/corpora`\n\n"
    "`flexo-eval model/ --data data/corpora --domains math,public --max-bytes 1000000 --json results.json`\n\n"
    "`flexo-eval anchor specialists/math specialists/code soup model --data data/corpora --btm 2 --classifier "
    "--active 1,2,4 --opt-out --growing --mixed --cache cells --json results.json`, and "
    "`flexo-report results.json -o report.html`\n\n"
    "`flexo-eval model/ --data data/corpora --credit --cache cells --json results.json`\n\n"
    "`flexo-eval ours=experts/math.pt paper=published/math.pt --anchor anchor --data data/corpora`"
)
def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]PATH...", help="Merged folders, plain models such as an anchor, and expert files."
        ),
    ],
    data: Annotated[Path, typer.Option(help="A folder with one corpus folder a domain, as `flexo-data sample` makes.")],
    domains: Annotated[
        str | None, typer.Option(help="Which, separated by commas. [default: those of the models' experts]")
    ] = None,
    split: Annotated[str, typer.Option(help="test, valid, or final: the test text that valid leaves.")] = "test",
    max_bytes: Annotated[int, typer.Option(min=1, help="Text to read per domain.")] = 200_000,
    length: Annotated[
        int | None,
        typer.Option(
            min=2, help="Tokens in a window; a token sees at least half of it. [default: 256, or all the models take]"
        ),
    ] = None,
    anchor: Annotated[
        Path | None,
        typer.Option(
            help="The model that the others are compared with and that expert files belong to. [default: found]"
        ),
    ] = None,
    pairs: Annotated[
        bool | None,
        typer.Option(
            "--pairs/--no-pairs",
            help="Also the anchor and each pair of a merged folder. [default: for one merged folder alone]",
        ),
    ] = None,
    active: Annotated[
        str | None, typer.Option(help="Also merged folders with so many active experts, such as 1,2,4.")
    ] = None,
    opt_out: Annotated[
        bool, typer.Option("--opt-out", help="Also merged folders without each of their experts.")
    ] = False,
    growing: Annotated[
        bool, typer.Option("--growing", help="Also merged folders with their first expert, their first two, and so on.")
    ] = False,
    btm: Annotated[
        int | None, typer.Option(min=1, help="Also the ensemble of the dense models, so many of them for a token.")
    ] = None,
    classifier: Annotated[
        bool, typer.Option("--classifier", help="Also one expert for a whole document, chosen by its words.")
    ] = False,
    mixed: Annotated[
        bool, typer.Option("--mixed", help="Also text whose domain changes, and text that blends two domains.")
    ] = False,
    credit: Annotated[
        bool,
        typer.Option("--credit", help="Also what each owner adds to merged folders: Shapley values and leave-one-out."),
    ] = False,
    permutations: Annotated[
        int, typer.Option(min=4, help="Orders of joining that --credit samples if there are nine owners or more.")
    ] = 32,
    cache: Annotated[
        Path | None, typer.Option(help="Keep every measurement here; the same command then goes on where it stopped.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the numbers here.")] = None,
    markdown_file: Annotated[Path | None, typer.Option("--markdown", help="Also write the table here.")] = None,
    seed: Annotated[int | None, typer.Option(help="The seed of the study that the models are from: a label.")] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> None:
    """Print bits per byte of every model on each domain."""
    from evals.matrix.evaluate import Scoring
    from evals.matrix.evaluate import evaluate as measure
    from evals.matrix.results import matrix_table
    from evals.matrix.variants import Extras
    from evals.report.credit import credit_text
    from evals.scoring.held_out import Reading
    from flexo.atomic_files import new_file
    from flexo.cpu_threads import keep_freed_memory
    from inference.load import quiet
    from merge.tensor_io.json_file import write_json

    quiet()
    keep_freed_memory()
    reading = Reading(data, comma_list(domains, "--domains") if domains else None, split, max_bytes)
    extras = Extras(_numbers(active), opt_out, growing, pairs, btm, classifier, mixed, credit, permutations)
    with ExitStack() as stack:
        # entered before the work, so that a path which cannot be written is refused before it
        outputs = [path and stack.enter_context(new_file(path, replace=True)) for path in (json_file, markdown_file)]
        scoring = Scoring(length, dtype, device, cache)
        results = measure(models, reading, anchor=anchor, extras=extras, scoring=scoring, seed=seed)
        table = "\n".join([matrix_table(results), *map(credit_text, results.credits)])
        typer.echo(table, nl=False)
        if outputs[0]:
            write_json(outputs[0], results.to_dict())
        if outputs[1]:
            outputs[1].write_text(table, encoding="utf-8")
    for path in (json_file, markdown_file):
        if path:
            typer.echo(f"wrote {path}")


def _numbers(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(dict.fromkeys(int(part) for part in text.split(","))) if text else ()
    except ValueError:
        raise InputError(f"--active {text}: expected numbers separated by commas, such as 1,2,4.") from None
