"""The generated pages: all settings with their comments, all commands, the tutorial; nothing comes from outside."""

from __future__ import annotations

import base64
import json
import re
import tomllib
from pathlib import Path

import pytest

from docs.reference import commands, notebook, settings
from docs.reference.offline import loaded_from_elsewhere
from flexo.config_dir import config_dir
from trainers import setting_help
from trainers.setting_help import Setting

ROOT = Path(__file__).resolve().parents[2]
YAML = """\
# @package _global_
# What the file is for. thing=this
defaults:
  - other
  - /shared@_here_: kind
  - sizes: small
  - _self_

name: ${domain.name} # whose it is
plain: 3
list: [1, "# no comment"] # two | parts
section: # of the whole
  inner: null
  # above
  text: "a: b"
"""


def test_a_config_is_read_with_its_comments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setting_help, "config_dir", lambda: tmp_path)
    path = tmp_path / "thing/this.yaml"
    path.parent.mkdir()
    path.write_text(YAML)
    config = setting_help.read_config(path)
    assert (config.choice, config.about) == ("thing=this", "What the file is for. thing=this")
    assert (config.groups, config.takes) == ({"sizes": "small"}, ["thing=other", "shared=kind"])
    assert config.settings == [
        Setting("name", "${domain.name}", "whose it is"),
        Setting("plain", "3", ""),
        Setting("list", '[1, "# no comment"]', "two | parts"),
        Setting("section", "", "of the whole"),
        Setting("section.inner", "null", ""),
        Setting("section.text", '"a: b"', "above"),
    ]
    path.write_text(YAML.replace("# @package _global_\n", ""))
    assert setting_help.read_config(path).settings[-1].name == "thing.section.text"


def test_every_comment_beside_a_setting_is_on_a_page() -> None:
    text = "\n".join(settings.pages().values()).replace("`", "").replace("\\", "")
    seen = 0
    for path in config_dir().rglob("*.yaml"):
        for line in path.read_text().partition("\nhydra:\n")[0].splitlines():
            for comment in re.findall(r"^ *[\w-]+: .*?# (.*)$", line):
                assert comment.replace("`", "") in text, f"{path}: {line}"
                seen += 1
    assert seen > 50


def test_every_command_has_a_page_with_its_options_and_examples() -> None:
    pages = commands.pages()
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"].keys() - {"flexo"}
    assert pages.keys() == {f"reference/commands/{name}.md" for name in [*scripts, "index"]}
    index = pages["reference/commands/index.md"]
    assert all(f"[`{name}`]({name}.md) | " in index for name in scripts)
    merge = pages["reference/commands/flexo-merge.md"]
    assert "\n* `-o, --output <path>`: The folder to make; it must not hold anything yet.  [required]\n" in merge
    assert "```bash\nflexo-merge experts/*.pt -o model/\nflexo-merge experts/math.pt experts/news.pt" in merge
    data = pages["reference/commands/flexo-data.md"]
    assert "\n## `flexo-data prepare`\n" in data
    assert "--install-completion" not in data and "**Commands**" not in data  # which cuts help short


def test_a_notebook_becomes_a_page_with_its_pictures(tmp_path: Path) -> None:
    picture = base64.b64encode(b"pixels").decode()
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": ["\x1b[31mred\x1b[0m\n", "bl"]},
        {"output_type": "stream", "name": "stdout", "text": "ue\n"},
        {"output_type": "display_data", "data": {"image/png": picture, "text/plain": "shares"}},
        {"output_type": "execute_result", "data": {"text/plain": ["3"]}},
    ]
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "\n", "First."]},
        {"cell_type": "code", "source": "%%bash -e\nls\npwd", "outputs": outputs[:2]},
        {"cell_type": "code", "source": "1 + 2", "outputs": outputs[2:]},
    ]
    path = tmp_path / "walk.ipynb"
    path.write_text(json.dumps({"cells": cells}))
    text, pictures = notebook.page(path)
    assert pictures == {"walk-1.png": b"pixels"}
    assert text == (
        "# Title\n\nThis page is a notebook that can be run: `docs/walk.ipynb`.\n\nFirst.\n\n"
        "```bash\nls\npwd\n```\n\n```{.text .output}\nred\nblue\n```\n\n"
        "```python\n1 + 2\n```\n\n![shares](walk-1.png)\n\n```{.text .output}\n3\n```\n"
    )


def test_what_a_page_would_load_from_elsewhere_is_found(tmp_path: Path) -> None:
    loads = {
        "a": '<script src="https://a.example/x.js"></script>',
        "b": '<link rel="stylesheet" href="//b.example/x.css">',
        "c": '<img srcset="c.png 1x, https://c.example/x.png 2x">',
        "d": "<style>body { background: url('https://d.example/x.png') }</style>",
        "e": '<p style="background: url(https://e.example/x.png)">',
    }
    for name, text in loads.items():
        (tmp_path / f"{name}.html").write_text(text)
    (tmp_path / "f.css").write_text('@import "https://f.example/x.css";')
    (tmp_path / "fine.html").write_text(
        '<a href="https://x.example">x</a><link rel="canonical" href="https://x.example"><script src="x.js"></script>'
        '<code>url(https://x.example)</code><img src="x.png">'
    )
    found = loaded_from_elsewhere(tmp_path)
    assert [line[:6] for line in found] == [f"{name}.html"[:6] for name in loads] + ["f.css:"]
    assert all(f"//{name}.example/x" in line for name, line in zip("abcdef", found, strict=True))
