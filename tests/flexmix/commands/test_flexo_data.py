from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub
import pytest

import flexmix.commands.flexo_data
from flexmix.documents.corpus import find_split, read_documents
from flexmix.tokens.shard import open_shard
from tests.flexmix.text import write_jsonl
from tests.merge.tools import call, listing

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("command", "texts"),
    [
        ("sample", ("flexo-data sample -o data/corpora", "--domains", "--offline", "--cache")),
        ("prepare", ("flexo-data prepare notes/ -o prepared --tokenizer anchor", "--duplicates", "--slurm", "--keep")),
        ("list", ("flexo-data prepare flexmix:NAME",)),
        ("stats", ("flexo-data stats prepared",)),
    ],
)
def test_help_is_quick_and_imports_nothing_heavy(command: str, texts: tuple[str, ...]) -> None:
    program = (
        "import sys, flexmix.commands.flexo_data\n"
        f"sys.argv = ['flexo-data', '{command}', '--help']\n"
        "try:\n    flexmix.commands.flexo_data.main()\n"
        "finally:\n"
        "    print(sorted({'torch', 'transformers', 'datasets', 'lightning', 'numpy', 'datatrove'} & set(sys.modules)))"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("[]")
    for text in texts:
        assert text in done.stdout
    assert time.monotonic() - start < 10


def test_offline_samples_come_from_this_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, cache = tmp_path / "corpora", tmp_path / "cache"
    arguments = ["sample", "-o", output, "--domains", "math", "--offline", "--cache", cache]
    assert call(flexmix.commands.flexo_data.main, *arguments) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{output}: math. Sources and licences: {output / 'manifest.json'}\n")
    assert {"math", "manifest.json"} <= listing(output)
    for split in ("train", "test"):
        assert sum(1 for text in read_documents(find_split(output / "math", split)) if text.strip()) > 10


def test_a_tokenizer_may_be_a_hub_id(
    tiny_anchor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the hub's cache, as without a network; of the repository only what text is prepared with is asked for."""
    asked = {}

    def download(name: str, **options: object) -> str:
        asked[name] = options["allow_patterns"]
        if name != "some/anchor":
            raise OSError("no network\nand more")
        return str(tiny_anchor)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    source = write_jsonl(tmp_path / "a.jsonl", [f"the sum of {n} and one" for n in range(40)])
    arguments = ["prepare", source, "-o", tmp_path / "out", "--tokenizer"]
    assert call(flexmix.commands.flexo_data.main, *arguments, "hf://other/anchor") == 1
    assert "other/anchor" in (said := capsys.readouterr().err) and "OSError: no network" in said
    assert call(flexmix.commands.flexo_data.main, *arguments, "some/anchor") == 1
    assert "say so: --tokenizer hf://some/anchor" in capsys.readouterr().err
    assert call(flexmix.commands.flexo_data.main, *arguments, "nowhere") == 1
    assert "--tokenizer nowhere: no such folder" in capsys.readouterr().err and listing(tmp_path) == {"a.jsonl"}
    assert call(flexmix.commands.flexo_data.main, *arguments, "hf://some/anchor") == 0
    assert asked["some/anchor"] == [
            "tokenizer.json", "config.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.*",
        ]  # fmt: skip
    assert open_shard(tmp_path / "out/train", tiny_anchor).documents > 30


def test_an_unknown_domain_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        call(flexmix.commands.flexo_data.main, "sample", "-o", tmp_path / "out", "--domains", "maths", "--offline") == 1
    )
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "maths" in said and "math" in said and said.count("\n") == 1
    assert listing(tmp_path) == set()
