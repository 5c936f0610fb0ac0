"""`flexo-fit-router`: the router of a merged model, fitted to what its owners measured of their text.

flexo-embed data/corpora/math --anchor anchor -o math.safetensors      # each owner, beside the expert file
flexo-fit-router model/ math.safetensors news.safetensors --anchor anchor -o model2/

Another round, measured in what the first one made, public text included:

flexo-embed data/corpora/math --anchor anchor --model model2 -o round2/math.safetensors
flexo-embed anchor/flexo/public --anchor anchor --model model2 --domain public -o round2/public.safetensors
flexo-fit-router model2/ round2/*.safetensors --anchor anchor -o model3/
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flexo.console import new_app, run

app = new_app("Fit the router of a merged model to embeddings of its domains.")


def main() -> None:
    run(app)


@app.command(
    epilog="Examples:\n\n`flexo-embed data/corpora/math --anchor anchor -o math.safetensors`, at each owner's, then\n\n"
    "`flexo-fit-router model/ embeddings/*.safetensors --anchor anchor -o model2/`\n\n"
    "Another round, with files of `flexo-embed --model model2` for public text and every domain:\n\n"
    "`flexo-fit-router model2/ round2/*.safetensors --anchor anchor -o model3/`"
)
def fit(
    model: Annotated[Path, typer.Argument(help="A folder made by flexo-merge.")],
    embeddings: Annotated[
        list[Path],
        typer.Argument(
            help="One file of flexo-embed for each of its experts, with second moments; all of the anchor, or all of "
            "this model, and then one of public text, too."
        ),
    ],
    anchor: Annotated[Path, typer.Option(help="The anchor folder, for the moments of public text.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder to make; it must not hold anything yet.")],
    public_weight: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            max=1000,
            help="How many domains public text counts for. [default: as many as there are owners]",
        ),
    ] = None,
) -> None:
    """Write the model again with other router rows: no text is read, no expert is touched.

    Embeddings tell something about the text that they were made of (docs/domains.md). Where an owner sends none, keep
    the rows of the merge.
    """
    from trainers.router.fit_router import fit_router

    routers = fit_router(model, embeddings, anchor, output, public_weight)
    typer.echo(f"wrote {output}/  {len(routers)} routers of {len(routers[0])} rows; every other tensor is as it was")


if __name__ == "__main__":
    main()
