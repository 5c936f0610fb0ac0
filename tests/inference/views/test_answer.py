"""An attributed answer as JSON, in a terminal, and as a page; its tokens are hostile."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
import torch

from inference.attribution import Answer, Expert
from inference.views.answer import PALETTE, Report, colour, token_texts, visible
from inference.views.html_page import page
from inference.views.terminal import ColourStreamer, PlainStreamer, print_shares

ATTACK = "<script>alert(1)</script>\"'&\x1b[31m\x9b2J\x00\u202ecba"
EXPERTS = [
    Expert("public", "the anchor's own", "", ""),
    Expert("math", "Sums <b>", "CC-BY-4.0", "owner@example.org"),
    Expert("news", "</style>\x1b]0;title\x07", "", ""),
]
WEIGHTS = torch.tensor([[[0.1, 0.3, 0.0], [0.2, 0.2, 0.0]], [[0.5, 0.0, 0.0], [0.9, 0.1, 0.0]]], dtype=torch.float64)
SHARES = {"public": 0.6625, "math": 0.3375, "news": 0.0}


@pytest.fixture
def report() -> Report:
    return Report(
        "my <model>", f"prompt {ATTACK}\n", Answer(EXPERTS, [7, 8], WEIGHTS, [True, True]), [ATTACK, "\n b\tc"]
    )


def test_a_share_is_a_part_of_the_active_weight(report: Report) -> None:
    answer = report.answer
    torch.testing.assert_close(
        answer.share_TE, torch.tensor([[0.375, 0.625, 0.0], [0.95, 0.05, 0.0]], dtype=torch.float64)
    )
    assert answer.shares == pytest.approx(SHARES) and answer.shares["news"] == 0.0


def test_a_layer_of_equal_experts_counts_nowhere(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    answer = replace(report.answer, chooses=[False, True])
    shares = {"public": (0.5 + 0.9) / 2, "math": (0.5 + 0.1) / 2, "news": 0.0}
    assert answer.shares == pytest.approx(shares)
    left_out = replace(report, answer=answer)
    found = left_out.to_dict()
    assert found["chooses"] == [False, True] and len(found["tokens"][0]["layers"]) == 2
    assert {expert["domain"]: expert["share"] for expert in found["experts"]} == pytest.approx(shares)
    text = page(left_out)
    assert "layer 0:" not in text and "layer 1: public 0.200" in text and "70.0%" in text
    assert text.count("all experts are the same here: not counted") == 1
    print_shares(answer)
    title = "2 tokens, by router weight, mean over the 1 of 2 layers whose experts differ:"
    assert capsys.readouterr().out.splitlines()[1] == title


def test_json_holds_everything_and_is_read_back(report: Report) -> None:
    found = json.loads(json.dumps(report.to_dict()))
    assert (found["format"], found["version"], found["model"]) == ("flexo.attribution", 1, "my <model>")
    assert found["prompt"] == report.prompt and found["text"] == ATTACK + "\n b\tc"
    assert {expert["domain"]: expert["share"] for expert in found["experts"]} == report.answer.shares
    assert found["experts"][1] | {"share": 0} == {
        "index": 1, "domain": "math", "title": "Sums <b>", "licence": "CC-BY-4.0", "contact": "owner@example.org",
        "share": 0,
    }  # fmt: skip
    assert [token["id"] for token in found["tokens"]] == [7, 8]
    assert found["tokens"][0]["layers"] == [[[1, 0.3], [0, 0.1]], [[0, 0.2], [1, 0.2]]]
    assert found["tokens"][1]["shares"] == report.answer.share_TE[1].tolist()


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.meta: list[dict[str, Any]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag == "meta":
            self.meta.append(dict(attrs))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_is_inert_whatever_its_text(report: Report) -> None:
    """No tag and no attribute but ours, nothing from elsewhere, no character that acts."""
    text = page(report)
    tags = Tags()
    tags.feed(text)
    assert tags.tags == {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "div", "span", "mark", "table", "tr", "th", "td",
        "p",
    }  # fmt: skip
    assert tags.attributes == {"lang", "charset", "http-equiv", "content", "name", "class", "dir", "style", "title"}
    assert any(meta.get("content") == "default-src 'none'; style-src 'unsafe-inline'" for meta in tags.meta)
    assert "//" not in text.replace("</", "") and "url(" not in text and "@import" not in text
    assert visible(ATTACK) in tags.text and tags.text.count("alert(1)") == 2
    assert not [char for char in text if not char.isprintable() and char not in "\n\t"]
    assert "66.2%" in text and "33.8%" in text and text.count('class="absent"') == 1
    assert "layer 1: public 0.200, math 0.200" in text


def test_a_terminal_gets_no_sequences_but_ours(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    print_shares(report.answer)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["", "2 tokens, by router weight, mean over 2 layers:"]
    assert [line.split()[0] for line in lines[2:]] == ["66.2%", "33.8%", "0.0%"]
    assert lines[3].split()[2:] == ["math", "Sums", "<b>,", "CC-BY-4.0,", "owner@example.org"]
    assert lines[4].endswith(r"news    </style>\x1b]0;title\x07")


class Bytes:
    """A tokenizer of one token a byte; 256 ends a text."""

    def decode(self, tokens: list[int], skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return bytes(token for token in tokens if token < 256).decode(errors="replace")


class Leader:
    """A record in which one expert after the other leads."""

    def __init__(self) -> None:
        self.calls = 0

    def latest(self) -> torch.Tensor:
        self.calls += 1
        return torch.eye(3)[[self.calls % 3]]


@pytest.mark.parametrize("force", ["", "1"])
def test_text_is_coloured_where_there_are_colours(force: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setenv("FORCE_COLOR", force)
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.delenv("NO_COLOR", raising=False)
    tokenizer: Any = Bytes()
    made: Any = Leader()
    streamer = ColourStreamer(tokenizer, "\x1b[2Jthe", made)
    for value in (torch.tensor([[1, 2]]), *torch.tensor([*b" cat\x1b", 256]).split(1)):
        streamer.put(value)
    streamer.end()
    plain = r"\x1b[2Jthe cat\x1b" + "\n"
    if not force:
        assert out.getvalue() == plain
        return
    found = out.getvalue()
    assert f"\x1b[38;2;{';'.join(map(str, PALETTE[0]))}m" in found and made.calls == 6
    assert found.replace("\x1b[0m", "").count("\x1b") == 5 and "\x1b[2J" not in found


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_gets_plain_text_harmless_and_a_pipe_as_it_is(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: terminal)
    monkeypatch.setattr("sys.stdout", out)
    tokenizer: Any = Bytes()
    streamer = PlainStreamer(tokenizer)
    for token in torch.tensor([*"the\tcafé\n\x1b[2J \r\x9b2J".encode(), 256]).split(1):
        streamer.put(token)
    streamer.end()
    assert out.getvalue() == ("the\tcafé\n\\x1b[2J \\r\\x9b2J\n" if terminal else "the\tcafé\n\x1b[2J \r\x9b2J\n")


def test_tokens_that_end_within_a_character_wait_for_it() -> None:
    tokenizer: Any = Bytes()
    text = "café 😀 \ufffd the"
    texts = token_texts(tokenizer, [*text.encode(), 256])
    assert len(texts) == len(text.encode()) + 1 and "".join(texts) == text
    assert texts[-1] == "" and "😀" in texts and texts.count("") == 8 and texts.count("é") == 1
    assert token_texts(tokenizer, list("😀".encode()[:2])) == ["", "\ufffd"]
    assert token_texts(tokenizer, [255] * 5) == ["", "", "", "\ufffd" * 4, "\ufffd"]


def test_every_expert_has_a_colour_of_its_own() -> None:
    assert len({colour(expert) for expert in range(64)}) == 64
