"""`flexo-tasks`: task files with which lm-eval measures any model, offline.

flexo-tasks data/corpora -o tasks
lm_eval --model hf --model_args pretrained=model --include_path tasks --tasks flexo --device cpu
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from flexo.console import comma_list, new_app, run

app = new_app("Make task files for lm-eval.")


def main() -> None:
    run(app)


@app.command(
    epilog="Examples:\n\n`flexo-tasks data/corpora -o tasks`, and `lm_eval --model hf --model_args pretrained=model "
    "--include_path tasks --tasks flexo --device cpu`\n\n"
    "`flexo-tasks data/corpora -o tasks --domains public,math --choices public --questions 1000 --seed 1`"
)
def tasks(
    data: Annotated[
        Path, typer.Argument(help="A folder with one corpus folder a domain, as `flexo-data sample` makes.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder to make.")],
    domains: Annotated[str | None, typer.Option(help="Which, separated by commas. [default: all]")] = None,
    choices: Annotated[
        str | None,
        typer.Option(
            help="Domains whose passages become multiple choice, or '' for none. [default: educational, if it is there]"
        ),
    ] = None,
    questions: Annotated[int, typer.Option(min=40, help="Of arithmetic, and of each multiple choice, at most.")] = 400,
    split: Annotated[str, typer.Option(help="test, valid, or final: the test text that valid leaves.")] = "test",
    max_bytes: Annotated[int, typer.Option(min=1, help="Text to read per domain.")] = 200_000,
    seed: Annotated[int, typer.Option(help="Of the questions.")] = 0,
) -> None:
    """Write a folder of tasks: bits per byte of each domain, arithmetic, and multiple choice from passages.

    The documents are those that `flexo-eval` reads with the same options. The folder holds their text: guard it alike.
    """
    from evals.scoring.held_out import Reading
    from evals.tasks.folder import GROUP, make_task_folder

    reading = Reading(data, comma_list(domains, "--domains") if domains else None, split, max_bytes)
    wanted = None if choices is None else comma_list(choices, "--choices") if choices else []
    made = make_task_folder(reading, output, choices=wanted, questions=questions, seed=seed)
    width = max(len(task.name) for task in made)
    for task in made:
        typer.echo(f"{task.name:{width}}  {len(task.rows):6,} {'documents' if 'text' in task.rows[0] else 'questions'}")
    typer.echo(f"wrote {output}. Next, with pip install 'flexo[lm-eval]':")
    where = shlex.quote(str(output))
    typer.echo(
        f"HF_HUB_OFFLINE=1 lm_eval --model hf --model_args pretrained=MODEL --include_path {where} --tasks {GROUP}"
    )
