"""`flexo-generate`: text from a merged model, or any causal language model folder.

echo "The derivative of x squared is" | flexo-generate model/
flexo-generate model/ "Once upon a time" --experts public,creative --max-new-tokens 200 --temperature 0.8
flexo-generate model/ "What is 7 + 8?" --attribution --attribution-out answer.html
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from flexo.console import comma_list, new_app, progress, run
from flexo.errors import InputError
from inference.commands.options import Device, Dtype

app = new_app("Generate text with a merged model.")


def main() -> None:
    run(app)


@app.command(
    epilog='Examples:\n\n`echo "The derivative of x squared is" | flexo-generate model/`\n\n'
    '`flexo-generate model/ "Once upon a time" --experts public,creative --temperature 0.8 --seed 1`\n\n'
    '`flexo-generate model/ "What is 7 + 8?" --attribution --attribution-out answer.html`'
)
def generate(
    model: Annotated[Path, typer.Argument(help="The folder of the model.")],
    prompt: Annotated[str | None, typer.Argument(help="The text to go on with. [default: standard input]")] = None,
    experts: Annotated[
        str | None, typer.Option(help="Use only these, separated by commas, e.g. public,math. [default: all]")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of the continuation.")] = 100,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 always takes the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of the mass to sample from.")] = 1.0,
    seed: Annotated[int, typer.Option(help="For sampling.")] = 0,
    attribution: Annotated[
        bool, typer.Option("--attribution", help="Colour each token by its leading expert, and print shares.")
    ] = False,
    attribution_out: Annotated[
        list[Path] | None,
        typer.Option(
            help="Write who made each token to FILE.html or FILE.json, as sensitive as the text; may be repeated."
        ),
    ] = None,
    attribution_summary: Annotated[
        Path | None, typer.Option(help="Write how many tokens each owner made, rounded, to FILE.json.")
    ] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> None:
    """Print the prompt and what the model makes of it, as it is made."""
    if prompt is None:
        if sys.stdin.isatty():
            raise typer.BadParameter("no prompt: give it as an argument or on standard input.")
        prompt = _text(sys.stdin.buffer.read(), "standard input").rstrip("\n")
    else:
        prompt = _text(os.fsencode(prompt), "the prompt")
    if not prompt:
        raise InputError("the prompt is empty: there is nothing to go on with.")
    chosen = None if experts is None else comma_list(experts, "--experts")
    files = list(dict.fromkeys(attribution_out or []))
    for path in files:
        if path.suffix not in (".html", ".json"):
            raise InputError(f"--attribution-out {path}: expected a name that ends in .html or .json.")
    if attribution_summary is not None and (attribution_summary.suffix != ".json" or attribution_summary in files):
        raise InputError(f"--attribution-summary {attribution_summary}: expected a file of its own that ends in .json.")

    from inference.generate import Sampling
    from inference.load import load_model, quiet
    from inference.views.printing import continue_prompt, full, summary

    quiet()
    loaded, tokenizer = load_model(model, dtype, device, partial(progress, unit="tensors"))
    sampling = Sampling(max_new_tokens, temperature, top_p, seed)
    written = {path: full(path) for path in files}
    if attribution_summary is not None:
        written[attribution_summary] = summary
    continue_prompt(loaded, tokenizer, prompt, sampling, chosen, attribution, written)


def _text(data: bytes, what: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{what}: not UTF-8 at byte {error.start + 1}. Convert it: iconv -t utf-8.") from None
