"""A mistyped folder is never fetched from whoever registered its name on the hub."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest

from flexmix.documents.hub import local_folder
from flexo.errors import InputError


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, str | None]]:
    """What would be fetched; the current folder holds `anchors/anchor-7b`."""
    asked: list[tuple[str, str | None]] = []

    def snapshot_download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision))
        return str(tmp_path / "cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    (tmp_path / "anchors/anchor-7b").mkdir(parents=True)
    (tmp_path / "anchors/file").touch()
    monkeypatch.chdir(tmp_path)
    return asked


@pytest.mark.parametrize(
    ("path", "revision", "asked"),
    [
        ("hf://allenai/OLMo-2-1124-7B", None, ("allenai/OLMo-2-1124-7B", None)),
        ("hf://allenai/OLMo-2-1124-7B", "v1", ("allenai/OLMo-2-1124-7B", "v1")),
        ("hf://allenai/OLMo-2-1124-7B@v2", "v1", ("allenai/OLMo-2-1124-7B", "v2")),
        ("hf://anchors/anchor-7b", None, ("anchors/anchor-7b", None)),
        ("allenai/OLMo-2-1124-7B", "main", ("allenai/OLMo-2-1124-7B", "main")),
    ],
)
def test_a_repository_is_said_to_be_one(
    fetched: list[tuple[str, str | None]], path: str, revision: str | None, asked: tuple[str, str | None]
) -> None:
    assert local_folder(path, revision).name == "cache"
    assert fetched == [asked]


@pytest.mark.parametrize(
    ("path", "revision", "message"),
    [
        ("anchors/anchor-7c", None, r"Did you mean anchors/anchor-7b\? .* anchor\.path=hf://anchors/anchor-7c$"),
        ("anchors/anchor-7c", "main", r"Did you mean anchors/anchor-7b\?"),
        ("anchrs/anchor-7b", None, r"no such folder\. If the repository .* anchor\.path=hf://anchrs/anchor-7b$"),
        ("anchrs/anchor-7b@main", "main", "no such folder"),
        ("anchor", None, r"no such folder\..* Make an anchor with"),
        ("anchors/file", None, "a file, expected a model folder"),
        ("./anchrs/anchor-7b", "main", "no such folder"),
        ("../anchrs", "main", "no such folder"),
        ("~/anchor", "main", "no such folder"),
        ("hf://anchor", None, "expected hf://OWNER/NAME"),
        ("hf://../anchor", None, "expected hf://OWNER/NAME"),
        ("hf://a/b/c", None, "expected hf://OWNER/NAME"),
    ],
)
def test_all_else_is_a_path(
    fetched: list[tuple[str, str | None]], path: str, revision: str | None, message: str
) -> None:
    with pytest.raises(InputError, match=rf"^anchor\.path={path}: .*{message}".replace("~", "[~]")):
        local_folder(path, revision)
    assert fetched == []


def test_a_folder_is_itself(fetched: list[tuple[str, str | None]]) -> None:
    assert local_folder("anchors/anchor-7b", "main") == Path("anchors/anchor-7b")
    assert fetched == []
