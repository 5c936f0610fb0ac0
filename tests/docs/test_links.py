"""Links of the documentation lead somewhere: to a file of the checkout, and to a heading in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.wrap_markdown import long_lines, wrapped

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path.relative_to(ROOT) for part in (".", "docs", "benchmarks") for path in (ROOT / part).glob("*.md")
)  # README, CONTRIBUTING, CHANGELOG and the rest
LINK = re.compile(r"\]\(([^()\s]+(?:\([^()\s]*\))?)\)|<(?:img|source|a)\s[^>]*?(?:src|srcset|href)=\"([^\"]+)\"")
WRAPPED = ("README", "CONTRIBUTING")  # and the pages in docs/


def prose(path: Path) -> str:
    """The page without code, in which brackets are no links: fenced and indented blocks, and what is in backticks."""
    text = re.sub(r"^(```|~~~).*?^\1", "", path.read_text(), flags=re.S | re.M)
    text = re.sub(r"^(?: {4}|\t).*$", "", text, flags=re.M)
    return re.sub(r"`[^`\n]*`", "", text)


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").replace("*", "")
    return re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")


def anchors(path: Path) -> frozenset[str]:
    text = re.sub(r"^(```|~~~).*?^\1", "", path.read_text(), flags=re.S | re.M)
    found: list[str] = re.findall(r"<a id=\"([^\"]+)\">", text)
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", text, flags=re.M):
        name = slug(heading)
        found.append(name if name not in found else f"{name}-{sum(a.startswith(name) for a in found)}")
    return frozenset(found)


def broken(page: Path) -> list[str]:
    """What is wrong with each relative link of a page that leads nowhere."""
    wrong = []
    for link in (match[1] or match[2] for match in LINK.finditer(prose(page))):
        if re.match(r"[a-z]+:", link):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        if not target.exists() or ROOT not in target.parents:
            wrong.append(f"{link}: no such file in the checkout")
        elif anchor and (target.suffix != ".md" or anchor not in anchors(target)):
            wrong.append(f"{link}: no such heading; there are {', '.join(sorted(anchors(target))) or 'none'}")
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    assert not broken(ROOT / page)


def test_the_readme_leads_to_every_page() -> None:
    linked = {match[1].partition("#")[0] for match in LINK.finditer(prose(ROOT / "README.md")) if match[1]}
    assert {str(page) for page in PAGES if page.parts[0] == "docs"} <= linked


def test_a_broken_link_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (tmp_path / "other.md").write_text('# One\n\n## Two words, `code`!\n\n## One\n\n<a id="own"></a>\n')
    page = tmp_path / "page.md"
    right = "[a](other.md) [b](other.md#two-words-code) [c](#here) [d](https://x.org/#y) [e](other.md#one-1)"
    right += " [f](other.md#own)"
    page.write_text(f"# Here\n\n{right} `[code](nowhere)`\n\n    [indented](nowhere)\n\n```\n[fenced](nowhere)\n```\n")
    assert broken(page) == []
    page.write_text('[a](other.md#three) [b](gone.md) <img src="gone.svg"> [c](../up.md) [d](#here)')
    assert [line.split(":")[0] for line in broken(page)] == [
        "other.md#three",
        "gone.md",
        "gone.svg",
        "../up.md",
        "#here",
    ]


@pytest.mark.parametrize("page", [page for page in PAGES if page.parts[0] == "docs" or page.stem in WRAPPED], ids=str)
def test_lines_are_short(page: Path) -> None:
    long = long_lines((ROOT / page).read_text())
    assert not long, f"run python tests/docs/wrap_markdown.py {page}, for it has\n" + "\n".join(long)


def test_wrapping_changes_line_breaks_alone() -> None:
    sentence = "A sentence with `some code in it` that goes on. " * 4
    text = (
        f"# {sentence}\n\n{sentence}\nAnd on.\n* {sentence}\n* short\n  lines\n  1. {sentence}\n\n| {sentence} |\n\n"
        f"    {sentence}\n\n```sh\n{sentence}\n```\n<!-- {sentence} -->\n"
    )
    new = wrapped(text)
    assert new.split() == text.split() and wrapped(new) == new
    assert "* short\n  lines\n" in new and f"```sh\n{sentence}\n```\n" in new and f"| {sentence} |\n" in new
    left = long_lines(new)
    assert [line.lstrip()[0] for line in left] == ["#", "A", "<"], "a heading, indented code and a comment stay"
    assert all(re.match(r" {5}\S| {2}1\. ", line) for line in new.split("  lines\n")[1].split("\n\n")[0].split("\n"))
