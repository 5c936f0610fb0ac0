"""The wheel owns one name, and works from an empty folder beside other people's packages of our rooms' names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from flexo.commands.table import COMMANDS, Command
from merge.formats.expert_file import open_expert
from tests.flexmix.text import write_jsonl
from tests.trainers.runs import SENTENCES, shard

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = sorted(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"])
SCRIPTS = [command for command in COMMANDS if command.script]
ANCHOR = ("anchor=tiny", "anchor.vocab_size=320", "anchor.context_heads=0", "output=anchor", "debug=fast")
FOREIGN = ("inference", "evals")  # packages that people have installed
pytestmark = pytest.mark.wheel
MakeExpert = Callable[..., Path]
Call = Callable[..., subprocess.CompletedProcess[str]]


def build(source: Path, output: Path, *kinds: str) -> list[Path]:
    """What `python -m build` makes of a folder, with the hatchling that is installed: the test needs no network."""
    command = [sys.executable, "-m", "build", *kinds, "--no-isolation", "--outdir", output, source]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return sorted(output.iterdir())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (built,) = build(ROOT, tmp_path_factory.mktemp("dist"), "--wheel")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of a new environment with the wheel, two foreign packages, and the dependencies of ours."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False)
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", folder / "bin/python", "install", "--no-deps", "--quiet", wheel],
        check=True,
    )
    (packages,) = folder.glob("lib/python*/site-packages")
    for name in FOREIGN:
        (packages / name).mkdir()
        (packages / name / "__init__.py").write_text(f"OWNER = 'the people of {name}'\n")
    ours = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "dependencies.pth").write_text("\n".join(ours) + "\n")  # a .pth inside them is not followed
    return folder / "bin"


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


@pytest.fixture
def call(installed: Path, empty: Path) -> Call:
    """Runs a program of the new environment in an empty folder, without our paths; keywords are more environment."""

    def call(program: str, *arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # threads that wait for each other take long
        command = [installed / program, *map(str, arguments)]
        return subprocess.run(command, cwd=empty, env=environment | more, capture_output=True, text=True)

    return call


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpora")
    for name in SENTENCES:
        for split, documents in (("train", 400), ("test", 40)):
            shard(folder / name / f"{split}.jsonl.gz", name, documents)
    return folder


def test_the_wheel_owns_one_name(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        "flexo",
        "hydra_plugins",
        f"{wheel.name.split('-py3')[0]}.dist-info",
    }
    assert [name for name in names if name.startswith("hydra_plugins/")] == ["hydra_plugins/flexo_launchers.py"]


def test_the_wheel_holds_every_module_and_setting(wheel: Path) -> None:
    inside = {name.removeprefix("flexo/") for name in zipfile.ZipFile(wheel).namelist() if name.startswith("flexo/")}
    rooms = [path.parent for path in ROOT.glob("*/__init__.py")]
    files = [path for room in rooms for kind in ("*.py", "*.pyi", "py.typed") for path in room.rglob(kind)]
    files = [path for path in files if path.relative_to(ROOT).parts[1] != "vllm_plugin"]  # has a wheel of its own
    ours = {path.relative_to(ROOT).as_posix().removeprefix("flexo/") for path in files}
    configs = {path.relative_to(ROOT / "configs").as_posix() for path in (ROOT / "configs").rglob("*.yaml")}
    scripts = {f"{command.script}.py" for command in SCRIPTS}
    assert inside == ours | scripts | {f"_configs/{name}" for name in configs}
    assert "py.typed" in ours and any(name.endswith("/LICENSE") for name in zipfile.ZipFile(wheel).namelist())


def test_the_sdist_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    (sdist,) = build(ROOT, tmp_path / "sdist", "--sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (again,) = build(tmp_path / sdist.name.removesuffix(".tar.gz"), tmp_path / "again", "--wheel")
    first, second = zipfile.ZipFile(wheel), zipfile.ZipFile(again)
    assert first.namelist() == second.namelist()
    assert [name for name in first.namelist() if first.read(name) != second.read(name)] == []


def test_other_peoples_packages_stay_theirs(call: Call) -> None:
    code = (
        f"import flexo, {', '.join(FOREIGN)}; flexo.load_model; flexo.audit; print(inference.OWNER, '+', evals.OWNER)"
    )
    assert call("python", "-c", code).stdout == "the people of inference + the people of evals\n"


def test_nothing_is_found_in_the_checkout(call: Call) -> None:
    code = (
        "import flexo.config_dir, flexo.trainers, hydra_plugins.flexo_launchers as launchers\n"
        "print(flexo.config_dir.config_dir(), flexo.trainers.__file__, launchers.__file__)"
    )
    places = call("python", "-c", code).stdout
    assert str(ROOT) not in places and places.count("/site-packages/") == 3


@pytest.mark.slow
def test_a_public_name_is_never_the_room_of_that_name(call: Call) -> None:
    """`flexo.merge` and `flexo.train_expert` are functions, and a folder and a file; whichever is asked for first."""
    code = (
        "import flexo, flexo.train_expert\n"
        "from flexo.merge.formats import expert_file\n"
        "from flexo.train_expert import main\n"
        "from flexo import merge, train_expert\n"
        "print(merge is flexo.merge, merge.__name__, train_expert is flexo.train_expert, train_expert.__module__,\n"
        "      main.__module__, flexo.open_expert is expert_file.open_expert)\n"
        "for name in flexo.__all__: getattr(flexo, name)\n"
    )
    said = call("python", "-c", code)
    assert (said.stdout, said.stderr) == (
        "True merge_experts True flexo.trainers.expert.train flexo.train_expert True\n", ""
    )  # fmt: skip


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_command_explains_itself(program: str, call: Call) -> None:
    said = call(program, "--help")
    assert said.returncode == 0, said.stderr
    assert program in said.stdout and (program == "flexo" or "Usage: " in said.stdout)


@pytest.mark.parametrize("command", SCRIPTS, ids=lambda command: command.script)
def test_root_scripts_are_modules_and_commands(command: Command, call: Call) -> None:
    helped = call("flexo", command.name, "--help")
    assert helped.returncode == 0, helped.stderr
    assert f"flexo {command.name} " in helped.stdout and f"{command.script}.py" not in helped.stdout
    job = call("python", "-m", f"flexo.{command.script}", "--cfg", "job")
    assert job.returncode == 0 and job.stdout.count("seed") >= 1, job.stderr


def test_what_cannot_be_understood_is_explained_by_what_is_installed(call: Call) -> None:
    wrong = call("flexo", "train-expert", "+domain=math", "optimzer.lr=1")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert wrong.stderr.startswith("error: optimzer.lr: there is no such setting. Did you mean 'optimizer.lr'?")
    assert wrong.stderr.endswith("See flexo train-expert --help\n")


@pytest.mark.slow
def test_the_coordinators_way_from_an_empty_folder(
    call: Call, tiny_anchor: Path, make_expert: MakeExpert, tmp_path: Path, empty: Path
) -> None:
    """Merge, look, generate and measure with the installed commands; the merge is checked in a process of its own."""
    experts = [make_expert("math"), make_expert("news", seed=1)]
    for domain in ("public", "math", "news"):
        write_jsonl(tmp_path / f"data/{domain}/test.jsonl", ["The cat sat. " * 20, "A dog ran off. " * 20])
    merged = call("flexo", "merge", *experts, "-o", "model", "--anchor", tiny_anchor)
    assert merged.returncode == 0, merged.stderr
    assert "public expert against the anchor: largest difference of logits" in merged.stdout
    shown = call("flexo-inspect", "model")
    assert shown.returncode == 0 and "math" in shown.stdout and "news" in shown.stdout
    generated = call("flexo-generate", "model", "The cat", "--max-new-tokens", 4)
    assert generated.returncode == 0 and generated.stdout.startswith("The cat")
    measured = call("flexo-eval", "model", "--data", tmp_path / "data", "--json", "matrix.json")
    assert measured.returncode == 0, measured.stderr
    matrix = json.loads((empty / "matrix.json").read_text())
    assert [model["kind"] for model in matrix["models"]] == ["anchor", "pair", "pair", "merged"]
    report = call("flexo", "report", "matrix.json", "-o", "report.html")
    assert report.returncode == 0 and (empty / "report.html").stat().st_size > 10_000


@pytest.mark.slow
def test_an_owners_way_from_an_empty_folder(call: Call, corpora: Path, empty: Path) -> None:
    """An anchor is made, text is prepared by processes that import by name, and an expert is trained on it."""
    made = call("flexo", "train-anchor", f"data.path={corpora}/public", *ANCHOR)
    assert made.returncode == 0 and "next: flexo train-expert +domain=math anchor.path=anchor" in made.stdout, (
        made.stderr
    )
    options = ("-o", "prepared", "--tokenizer", "anchor", "--workers", 2, "--task-size", 1)
    prepared = call("flexo-data", "prepare", corpora / "math/train.jsonl.gz", *options)
    assert prepared.returncode == 0, prepared.stderr
    assert "next: flexo train-expert +domain=local" in prepared.stdout
    settings = ("+domain=local", "domain.name=math", "domain.train=prepared", "anchor.path=anchor", "output=math.pt")
    trained = call("flexo", "train-expert", *settings, "debug=fast")
    assert trained.returncode == 0, trained.stderr
    assert open_expert(empty / "math.pt").domain == "math"


def stand_in(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_jobs_of_a_cluster_run_the_installed_module(call: Call, installed: Path, tmp_path: Path) -> None:
    (tmp_path / "slurm").mkdir()
    stand_in(tmp_path / "slurm", "sbatch", f"cat > {tmp_path}/given; echo 41")
    path = f"{tmp_path}/slurm:{os.environ['PATH']}"
    submitted = call("flexo", "train-expert", "-m", "+domain=math,code", "hydra/launcher=slurm_detached", PATH=path)
    assert submitted.returncode == 0 and "submitted as 41, 2 jobs:" in submitted.stdout, submitted.stderr
    script = (tmp_path / "given").read_text()
    assert f'srun --kill-on-bad-exit=1 {installed / "python"} -m flexo.train_expert "$@"\n' in script


@pytest.mark.slow
def test_a_study_starts_its_commands_by_name(call: Call, empty: Path) -> None:
    """Its processes are forked from a server that has imported our modules, and find console and root scripts."""
    (empty / "study.py").write_text(
        "from pathlib import Path\n"
        "from flexo.evals.study.processes import succeeds\n"
        "if __name__ == '__main__':\n"
        "    here = Path.cwd()\n"
        "    print(succeeds(['train_expert', '--cfg', 'job'], here, here / 'script.log'),\n"
        "          succeeds(['flexo-inspect', 'none.pt'], here, here / 'refused.log'))\n"
    )
    said = call("python", "study.py")
    assert said.stdout == "True False\n", said.stderr
    assert "optimizer:" in (empty / "script.log").read_text()
    assert (empty / "refused.log").read_text().startswith("error: none.pt: ")


@pytest.mark.slow  # two processes that import everything, four times
@pytest.mark.parametrize("started", [("python", "-m", "flexo.train_anchor"), ("flexo", "train-anchor")])
def test_training_on_two_devices_starts_itself_again(
    started: Sequence[str], call: Call, corpora: Path, empty: Path
) -> None:
    settings = (f"data.path={corpora}/public", "run.devices=2", "run.accelerator=cpu")
    trained = call(*started, *ANCHOR, *settings)
    assert trained.returncode == 0, trained.stderr
    assert (empty / "anchor/model.safetensors").is_file()
