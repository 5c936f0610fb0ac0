from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import flexmix.commands.flexo_data
from flexmix.documents.corpus import HubSource
from flexmix.documents.flexmix_sets import SETS, find_source, load_set
from flexmix.documents.source import Source
from flexo.config_dir import config_dir
from flexo.errors import InputError
from tests.flexmix.text import TEXTS, write_jsonl
from tests.merge.tools import call

BILLIONS = {
    "public": 2370, "news": 158.0, "creative": 201.9, "code": 83.0, "academic": 58.6, "educational": 102.2,
    "math": 20.3, "reddit": 9.9,
}  # fmt: skip


def test_the_eight_sets_are_those_of_the_paper() -> None:
    assert {path.stem for path in (config_dir() / "flexmix").glob("*.yaml")} == set(SETS) == set(BILLIONS)
    for name in SETS:
        found = load_set(name)
        assert found.tokens == pytest.approx(BILLIONS[name] * 1e9)
        assert all((found.title, found.size, found.slice, found.licence, found.checked, found.hub.id.count("/") == 1))


@pytest.mark.parametrize("name", [name for name in SETS if name != "public"])
def test_a_domain_is_read_from_the_stand_in_of_its_set(name: str) -> None:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        domain = OmegaConf.to_container(compose("train_expert", [f"+domain={name}"]).domain)
    assert isinstance(domain, dict)
    assert (HubSource(**domain["hub"]), domain["title"]) == (load_set(name).hub, load_set(name).title)
    assert domain["name"] == name


def test_sources_by_place() -> None:
    assert find_source("flexmix:code") == Source("hub:codeparrot/codeparrot-clean", "content", where={"license": "mit"})
    assert find_source("a.jsonl") == Source("a.jsonl")
    with pytest.raises(InputError, match=r"flexmix:maths: there is no such set. There are: public, news"):
        find_source("flexmix:maths")


def test_the_list_names_source_size_and_licence(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(flexmix.commands.flexo_data.main, "list") == 0
    said = capsys.readouterr().out
    for name in SETS:
        found = load_set(name)
        for text in (name, f"{found.tokens / 1e9:,.1f}B", found.hub.id, found.size, found.licence):
            assert text in said


def test_a_set_prepares_from_a_repository_laid_out_like_its_stand_in(
    tiny_anchor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The hub id is also a folder name, and a folder of that name here is read instead of the hub."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "open-web-math/open-web-math/data/train.jsonl", TEXTS)
    arguments = ["prepare", "flexmix:math", "-o", "out", "--tokenizer", tiny_anchor, "--held-out", 0]
    assert call(flexmix.commands.flexo_data.main, *arguments) == 0
    assert "4" in capsys.readouterr().out
    assert (
        call(flexmix.commands.flexo_data.main, "prepare", "flexmix:news", "-o", "news", "--tokenizer", tiny_anchor) == 1
    )
    assert "error: vblagoje/cc_news cannot be read (HF_HUB_OFFLINE is 1)" in capsys.readouterr().err
