"""Fixtures for every room: a tiny OLMo-2 anchor with its shared files, and expert files that fit it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a worker a core
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import pytest

from merge.formats.anchor_folder import open_anchor
from merge.formats.expert_file import write_expert
from tests.local_slurm import local_slurm
from tests.merge.tiny import expert_header, expert_values, write_anchor

# what runs in the background of a shell ignores Ctrl-C, and so would the processes that tests start and interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)

MakeAnchor = Callable[..., Path]
MakeExpert = Callable[..., Path]


@pytest.fixture(scope="session")
def make_anchor(tmp_path_factory: pytest.TempPathFactory) -> MakeAnchor:
    """`make_anchor(seed=0, **config)`: a new anchor folder; `config` overrides Olmo2Config's values."""

    def make(seed: int = 0, **config: object) -> Path:
        folder = tmp_path_factory.mktemp("anchor") / "anchor"
        write_anchor(folder, seed, config)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_anchor(make_anchor: MakeAnchor) -> Path:
    """An OLMo-2 folder with tokenizer and shared files: V=96, D=32, F=48, 3 layers, 4 heads on 2 key-value heads.

    For all tests of a session: read it, never write to it.
    """
    return make_anchor()


@pytest.fixture(scope="session")
def make_expert(tmp_path_factory: pytest.TempPathFactory, tiny_anchor: Path) -> MakeExpert:
    """`make_expert("math")`: a new expert file for `tiny_anchor`.

    Keywords: `anchor` folder; `seed` of rows and weights; `bias` adds router biases; `trained=False` keeps the anchor's
    own feed-forward weights (the rows are random all the same); `path` of the file, whose suffix picks the container.
    """

    def make(
        domain: str,
        *,
        anchor: Path = tiny_anchor,
        seed: int = 0,
        bias: bool = False,
        trained: bool = True,
        path: Path | None = None,
    ) -> Path:
        opened = open_anchor(anchor)
        path = path or tmp_path_factory.mktemp("experts") / f"{domain}.pt"
        write_expert(path, expert_header(domain, opened), expert_values(domain, opened, seed, bias, trained))
        return path

    return make


@pytest.fixture(scope="session")
def cluster() -> Iterator[dict[str, str]]:
    """The environment in which sbatch reaches a SLURM of one machine."""
    with local_slurm() as environment:
        yield environment | {"OMP_NUM_THREADS": "1"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 40 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Path]:
    """A folder that holds `file` and may be neither read nor written; root becomes nobody for the test."""
    folder = tmp_path / "locked"
    folder.mkdir()
    (folder / "file").touch()
    folder.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield folder
    os.seteuid(user)
    folder.chmod(0o700)
