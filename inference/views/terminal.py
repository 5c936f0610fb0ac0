"""An answer in a terminal, made harmless; where it is attributed, in the colours of experts with their shares below."""

from __future__ import annotations

import sys
from typing import Any

import torch
from rich.console import Console
from transformers import TextStreamer
from transformers.generation.streamers import BaseStreamer

from inference.attribution import Answer, Attribution
from inference.views.answer import TokenText, colour, ranked, visible

BAR = 20


class PlainStreamer(TextStreamer):
    """Prints prompt and text as they are made: to a terminal with control characters shown, for a model may have been
    taught to steer it; to a file or another program every character as it is.
    """

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer, skip_prompt=False, skip_special_tokens=True)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        super().on_finalized_text(visible(text) if sys.stdout.isatty() else text, stream_end)


class ColourStreamer(BaseStreamer):
    """Prints the prompt, and each token as it is made; without colours where the output is no terminal."""

    def __init__(self, tokenizer: Any, prompt: str, record: Attribution) -> None:
        self._console = Console(highlight=False)
        self._prompt, self._record, self._text = prompt, record, TokenText(tokenizer)
        self._started = False

    def put(self, value: torch.Tensor) -> None:
        """Prompts come first, [1, S], then the tokens one by one, [1]."""
        if self._started:
            leader = int(self._record.latest()[0].argmax())
            self._print(self._text.add(int(value)), style(leader))
        else:
            self._started = True
            self._print(self._prompt)

    def end(self) -> None:
        self._print(self._text.rest() + "\n")

    def _print(self, text: str, style: str = "") -> None:
        self._console.out(visible(text), style=style, highlight=False, end="")


def print_shares(answer: Answer) -> None:
    """A line for each expert, the greatest share first."""
    console = Console(highlight=False)
    wide = max(len(expert.domain) for expert in answer.experts)
    counted, layers = sum(answer.chooses), len(answer.chooses)
    over = f"{layers} layers" if counted == layers else f"the {counted} of {layers} layers whose experts differ"
    console.out(f"\n{len(answer.tokens)} tokens, by router weight, mean over {over}:", highlight=False)
    for index, share in ranked(list(answer.shares.values())):
        expert = answer.experts[index]
        about = ", ".join(filter(None, (expert.title, expert.licence, expert.contact)))
        console.out(f"{share:7.1%} ", end="", highlight=False)
        console.out(f"{'█' * round(BAR * share):{BAR}} {visible(expert.domain):{wide}}", style=style(index), end="")
        console.out(f"  {visible(about)}", highlight=False)


def style(expert: int) -> str:
    """For rich, which takes the nearest colour that the terminal has."""
    return "rgb({},{},{})".format(*colour(expert))
