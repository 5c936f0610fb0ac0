from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import evals.commands.flexo_tasks
from evals.scoring.held_out import documents_digest, first_documents
from tests.flexmix.text import TEXTS, write_jsonl
from tests.merge.tools import call, listing

Capture = pytest.CaptureFixture[str]
TASKS = {
    "flexo_text_educational", "flexo_text_public", "flexo_arithmetic", "flexo_arithmetic_choice",
    "flexo_choices_educational",
}  # fmt: skip


def make(*arguments: object) -> int:
    return call(evals.commands.flexo_tasks.main, *arguments)


def configuration(path: Path) -> dict[str, Any]:
    """A YAML file as lm-eval reads it, functions left as they are named."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    read: dict[str, Any] = yaml.load(path.read_text(), Loader)
    return read


def items_of(folder: Path) -> Any:
    """The module that reads a folder's questions, found as lm-eval finds it."""
    spec = importlib.util.spec_from_file_location("items", folder / "items.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_folder_of_tasks_reads_its_own_questions_wherever_it_lies(
    library: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert make(library, "-o", tmp_path / "made", "--questions", 40) == 0
    out, err = capsys.readouterr()
    assert err == "" and out.count("\n") == len(TASKS) + 2
    folder = (tmp_path / "made").rename(tmp_path / "moved")
    assert listing(folder) == {f"{task}.{suffix}" for task in TASKS for suffix in ("yaml", "jsonl")} | {
        "flexo.yaml", "flexo_text.yaml", "items.py", "manifest.json"
    }  # fmt: skip
    manifest, read = json.loads((folder / "manifest.json").read_text()), items_of(folder).read
    rows = {}
    for task in TASKS:
        about = configuration(folder / f"{task}.yaml")
        assert about["task"] == task and about["custom_dataset"] == "items.read"
        rows[task] = read(**about["metadata"], **about["dataset_kwargs"])[about["test_split"]]
        assert about["doc_to_target"] in rows[task].features
        assert manifest["tasks"][task] == len(rows[task])
    assert rows["flexo_text_public"]["text"] == first_documents(library / "public/test.jsonl", None, 10**6)
    assert len(rows["flexo_arithmetic"]) == 40 and 4 <= len(rows["flexo_arithmetic_choice"]) <= 40
    text, everything = (configuration(folder / f"{name}.yaml") for name in ("flexo_text", "flexo"))
    assert text["task"] == ["flexo_text_educational", "flexo_text_public"]
    assert {"flexo_text", *everything["task"]} == {"flexo_text"} | TASKS - {*text["task"]}


def test_the_documents_are_those_of_flexo_eval_and_a_second_folder_is_the_same(library: Path, tmp_path: Path) -> None:
    options = (library, "--domains", "public", "--max-bytes", 60, "--seed", 1)
    assert make(*options, "-o", tmp_path / "a") == make(*options, "-o", tmp_path / "b") == 0
    (domain,) = json.loads((tmp_path / "a/manifest.json").read_text())["domains"]
    documents = first_documents(library / "public/test.jsonl", None, 60)
    assert documents == TEXTS[:2] and domain == {
        "name": "public", "documents": 2, "bytes": len("".join(documents)), "digest": documents_digest(documents)
    }  # fmt: skip
    assert "flexo_choices_educational.yaml" not in listing(tmp_path / "a")
    for name in listing(tmp_path / "a") | listing(tmp_path / "b"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_name_can_hold_anything_that_a_folder_name_can(tmp_path: Path) -> None:
    name = 'a: "b"\n- !c'
    write_jsonl(tmp_path / "data" / name / "test.jsonl", TEXTS)
    assert make(tmp_path / "data", "-o", tmp_path / "tasks", "--questions", 40) == 0
    about = configuration(tmp_path / "tasks" / f"flexo_text_{name}.yaml")
    assert about["task"] == f"flexo_text_{name}" and (tmp_path / "tasks" / about["dataset_kwargs"]["file"]).is_file()
    assert configuration(tmp_path / "tasks/flexo_text.yaml")["task"] == [f"flexo_text_{name}"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{data}/gone"], "gone: no such folder"),
        (["{data}", "--domains", "maths"], "no domain 'maths' in it. There are educational, public"),
        (["{data}", "--split", "half"], "--split half: expected one of"),
        (["{data}", "--choices", "news"], "--choices news: not among the domains that are read, educational, public."),
        (["{data}", "--domains", "public", "--choices", "public"], "public: no multiple choice can be made of its"),
        (["{data}", "-o", "{data}"], "this folder is not empty"),
        (["{data}", "-o", "{data}/public/test.jsonl"], "a file stands where the output folder should go"),
    ],
)
def test_what_cannot_be_is_refused_in_one_message(
    library: Path, tmp_path: Path, capsys: Capture, arguments: list[str], said: str
) -> None:
    before = listing(library)
    assert make("-o", tmp_path / "tasks", *(argument.format(data=library) for argument in arguments)) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and said in err
    assert listing(library) == before and listing(tmp_path) == set()
