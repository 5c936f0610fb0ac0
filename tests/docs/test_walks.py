"""README and the three walks, followed block by block from an empty folder, on small models and made-up text.

Every block of commands or Python is run, or says why not in a comment before it:

    <!-- not run: needs a GPU -->

What would take minutes is made small here, by settings behind those on the page (`SMALLER`), and the sample corpora are
made up instead of fetched (`STAND_INS`). Everything else runs as it stands there.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, SHELL, Block, blocks_of
from tests.trainers.runs import shard

WALKS = ("README.md", "docs/owner.md", "docs/coordinator.md", "docs/application.md")
DOMAINS = {"public": "public", "math": "math", "code": "code", "reddit": "news"}  # -> words of its made-up text
SMALLER = {
    "SMALL_ANCHOR": "anchor.vocab_size=320 anchor.hidden_size=32 anchor.intermediate_size=64 "
    "anchor.num_hidden_layers=2 anchor.num_key_value_heads=2 anchor.max_position_embeddings=256 "
    "anchor.reference_bytes=20_000 data.tokens=8192 data.length=32 data.eval_windows=8 data.moment_windows=32",
    "SMALL_EXPERT": "data.tokens=4096 data.length=32 data.batch_size=4 data.eval_windows=8 data.moment_windows=32",
}
STAND_INS = """
python() {
  case $1 in
    train_anchor.py) command python "$@" $SMALL_ANCHOR ;;
    train_expert.py) command python "$@" $SMALL_EXPERT ;;
    *) command python "$@" ;;
  esac
}
flexo-data() {
  case "$1 $2" in
    "sample -o") mkdir -p "$(dirname "$3")" && cp -r "$CORPORA" "$3" ;;
    *) command flexo-data "$@" ;;
  esac
}
"""


def follow(page: str, folder: Path, corpora: Path) -> None:
    """Runs the blocks of a page in turn, each in a shell of its own in the same folder."""
    for script in ROOT.glob("*.py"):
        if not (folder / script.name).exists():
            (folder / script.name).symlink_to(script)
    environment = (
        os.environ
        | SMALLER
        | {
            "CORPORA": str(corpora),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
    )
    for block in blocks_of(page):
        if block.reason is None and block.language in (*SHELL, "python"):
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", f"{STAND_INS}\n{block.script}"],
                cwd=folder, env=environment, capture_output=True, text=True,
            )  # fmt: skip
            assert done.returncode == 0, f"{block}\n{block.script}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made-up") / "corpora"
    for name, words in DOMAINS.items():
        for split, documents in (("train", 300), ("test", 30)):
            shard(folder / name / f"{split}.jsonl.gz", words, documents)
    return folder


@pytest.fixture(scope="module")
def after_readme(corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of somebody who has followed the README."""
    folder = tmp_path_factory.mktemp("reader")
    follow("README.md", folder, corpora)
    return folder


def given(folder: Path, source: Path, *names: str) -> Path:
    """A folder that has what a walk starts from."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(source / name)
    return folder


@pytest.mark.slow
def test_readme(after_readme: Path) -> None:
    made = {path.name for path in after_readme.iterdir() if not path.is_symlink()}
    assert {"anchor", "data", "experts", "model", "model2", "model3"} <= made


@pytest.mark.slow
def test_owner(after_readme: Path, corpora: Path, tmp_path: Path) -> None:
    follow("docs/owner.md", given(tmp_path, after_readme, "anchor", "data/corpora"), corpora)
    assert (tmp_path / "experts/chat.pt").exists() and (tmp_path / "experts/chat.pt.sig").exists()


@pytest.mark.slow
def test_coordinator(after_readme: Path, corpora: Path, tmp_path: Path) -> None:
    follow("docs/coordinator.md", given(tmp_path, after_readme, "data/corpora"), corpora)
    assert {"model", "model2", "model3", "model4"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.slow
def test_application(after_readme: Path, corpora: Path, tmp_path: Path) -> None:
    follow("docs/application.md", given(tmp_path, after_readme, "model"), corpora)
    assert (tmp_path / "answer.html").exists() and (tmp_path / "model-int4/config.json").exists()


@pytest.mark.parametrize("page", WALKS)
def test_every_block_is_run_or_says_why_not(page: str) -> None:
    blocks = blocks_of(page)
    assert sum(block.reason is None for block in blocks) >= 5, f"{page}: hardly anything of it is run"
    for block in blocks:
        known = (*SHELL, "python", "bibtex")
        assert block.language in known, (
            f"{block}: a block of {block.language or 'no language'}, expected one of {known}"
        )
        assert block.language not in SHELL or block.commands, f"{block}: no command in it"
        assert block.reason is None or len(block.reason.split()) >= 2, f"{block}: why is it not run?"
    marks = (ROOT / page).read_text().count("<!-- not run")
    assert marks == sum(block.reason is not None for block in blocks), (
        f"{page}: a `not run` that stands before no block"
    )


def test_blocks_are_read_as_a_reader_types_them() -> None:
    console = Block("page", 1, "console", "$ echo a \\\n  b\na b\n$ true  # so\n> no\n", None)
    assert console.commands == ["echo a b", "true  # so"]
    shell = Block("page", 1, "sh", "# why\nA=1 one x && two 'y z' | three\n", None)
    assert list(shell.calls) == [["A=1", "one", "x"], ["two", "y z"], ["three"]]


def test_a_failing_block_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "<!-- not run: fails -->\n```sh\nfalse\n```\n\n```console\n$ touch ran && cat missing\nno output\n```\n"
    (tmp_path / "page.md").write_text(text)
    monkeypatch.setattr("tests.docs.blocks.ROOT", tmp_path)
    with pytest.raises(AssertionError, match=r"page\.md:6"):
        follow("page.md", tmp_path, tmp_path)
    assert (tmp_path / "ran").exists()
