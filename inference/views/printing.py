"""One prompt continued on standard output, as the text is made; and in files, with the experts that made it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flexo.atomic_files import new_file
from inference.attribution import Attribution
from inference.generate import Sampling, continued
from inference.views.answer import Report, token_texts
from inference.views.html_page import page
from inference.views.terminal import ColourStreamer, PlainStreamer, print_shares


def continue_prompt(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    sampling: Sampling,
    experts: Sequence[str] | None = None,
    coloured: bool = False,
    files: Sequence[Path] = (),
) -> None:
    """Prints a prompt and what `model` makes of it.

    Args:
        experts: domains to use; None uses all.
        coloured: show the expert behind each token, and the shares below.
        files: new files for the same, `.html` or `.json`.

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
        for path, partial in zip(files, partials, strict=True):
            text = page(report) if path.suffix == ".html" else json.dumps(report.to_dict(), indent=1)
            partial.write_text(text, encoding="utf-8")
    if coloured:
        print_shares(answer)
