"""A manifest comes with a folder from elsewhere: the names in it are as plain as those of expert files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flexo.errors import ModelFolderError
from merge.formats.manifest import MANIFEST, read_manifest


def manifest(*experts: object) -> str:
    return json.dumps({"format": "flexo.manifest", "version": 1, "experts": experts})


def test_plain_names_are_read(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(manifest({"domain": "public"}, {"domain": "math-2"}))
    assert [expert["domain"] for expert in read_manifest(tmp_path)["experts"]] == ["public", "math-2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (manifest({"domain": "../../etc"}), "without a plain domain name"),
        (manifest({"domain": "\x1b[2J"}), "without a plain domain name"),
        (manifest({"domain": "a\nb"}), "without a plain domain name"),
        (manifest({"title": "x"}), "without a plain domain name"),
        (manifest("math"), "without a plain domain name"),
        (manifest({"domain": "math"}).replace("{", '{"version": 2, ', 1), "the same name twice"),
        ("{}", "not a flexo manifest of version 1"),
    ],
)
def test_others_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(ModelFolderError, match=message):
        read_manifest(tmp_path)
