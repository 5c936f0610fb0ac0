"""`flexo-generate`: text from a merged model, or any causal language model folder.

echo "The derivative of x squared is" | flexo-generate model/
flexo-generate model/ "Once upon a time" --experts public,creative --max-new-tokens 200 --temperature 0.8
"""

from __future__ import annotations

import math
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from merge.console import new_app, run
from merge.errors import InputError

Dtype = Annotated[str, typer.Option(help="auto (as stored), float32, bfloat16 or float16.")]
Device = Annotated[str, typer.Option(help="auto (a GPU if there is one), cpu, cuda, cuda:1, ...")]

app = new_app("Generate text with a merged model.")


def main() -> None:
    run(app)


@app.command(
    epilog='Examples:\n\n`echo "The derivative of x squared is" | flexo-generate model/`\n\n'
    '`flexo-generate model/ "Once upon a time" --experts public,creative --temperature 0.8 --seed 1`'
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
    _generate(model, prompt, experts, max_new_tokens, temperature, top_p, seed, dtype, device)


def _text(data: bytes, what: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{what}: not UTF-8 at byte {error.start + 1}. Convert it: iconv -t utf-8.") from None


def _generate(
    folder: Path,
    prompt: str,
    experts: str | None,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    dtype: str,
    device: str,
) -> None:
    import torch
    import transformers

    from inference.load import load_model, quiet
    from inference.select import select_experts

    quiet()
    model: Any
    model, tokenizer = load_model(folder, dtype, device)
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).to(model.device)
    length, limit = inputs["input_ids"].shape[1], getattr(model.config, "max_position_embeddings", math.inf)
    if length + max_new_tokens > limit:
        raise InputError(
            f"{length} tokens of prompt and {max_new_tokens} new ones: this model was made for {limit} in all. "
            "Shorten the prompt or pass a smaller --max-new-tokens."
        )
    torch.manual_seed(seed)
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    streamer = transformers.TextStreamer(tokenizer, skip_prompt=False, skip_special_tokens=True)
    with torch.inference_mode(), nullcontext() if experts is None else select_experts(model, experts.split(",")):
        model.generate(**inputs, max_new_tokens=max_new_tokens, streamer=streamer, **sampling)
