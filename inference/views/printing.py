"""One prompt continued on standard output, as the text is made; and in files, with the experts that made it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flexo.atomic_files import new_file
from inference.attribution import Attribution
from inference.generate import Sampling, continued
from inference.views.answer import Report, token_texts
from inference.views.html_page import page
from inference.views.summary import summarise
from inference.views.terminal import ColourStreamer, PlainStreamer, print_shares

Render = Callable[[Report], str]


def full(path: Path) -> Render:
    """How everything about each token is written into a file of that name, `.html` or `.json`."""
    return page if path.suffix == ".html" else lambda report: json.dumps(report.to_dict(), indent=1)


def summary(report: Report) -> str:
    """How tokens by owner are written, as JSON."""
    return json.dumps(summarise([report.answer]), indent=1)


def continue_prompt(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    sampling: Sampling,
    experts: Sequence[str] | None = None,
    coloured: bool = False,
    files: Mapping[Path, Render] = {},
) -> None:
    """Prints a prompt and what `model` makes of it.

    Args:
        experts: domains to use; None uses all.
        coloured: show the expert behind each token, and the shares below.
        files: new files, and what is written to each about the experts: `full(path)` or `summary`.

    Raises:
        InputError: too long a prompt, unknown experts, a file that exists, attribution of a model that no merge made.
    """

    def streamer(record: Attribution | None) -> Any:
        return ColourStreamer(tokenizer, prompt, record) if coloured and record else PlainStreamer(tokenizer)

    with ExitStack() as stack:
        partials = [stack.enter_context(new_file(path)) for path in files]  # refused before the work, not after it
        attributed = coloured or bool(files)
        _, answer = continued(model, tokenizer, prompt, sampling, experts, attributed, streamer)
        if answer is None:
            return
        name = Path(str(model.name_or_path)).resolve().name
        report = Report(name, prompt, answer, token_texts(tokenizer, answer.tokens))
        for render, partial in zip(files.values(), partials, strict=True):
            partial.write_text(render(report), encoding="utf-8")
    if coloured:
        print_shares(answer)
