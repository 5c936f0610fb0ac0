"""What the build of a wheel rewrites, and what it refuses, on a small checkout; `test_wheel.py` builds the real one."""

from __future__ import annotations

from pathlib import Path

import pytest

from flexo.commands.table import COMMANDS
from hatch_build import Rewriter, lay_out

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Two rooms, the floor, a root script, Hydra's plugins and a config."""
    root = tmp_path / "checkout"
    for path, text in {
        "flexo/__init__.py": "",
        "merge/__init__.py": '"""A room."""\n',
        "merge/planning/__init__.py": "",
        "merge/planning/plan.py": "from flexo.errors import InputError\n",
        "merge/py.typed": "",
        "evals/__init__.py": "",
        "evals/rows.py": "",
        "evals/plugin/pyproject.toml": "",
        "evals/plugin/README.md": "a package of its own",
        "evals/plugin/its/model.py": "import merge.planning.plan",
        "train_expert.py": "from merge.planning.plan import x\n",
        "hydra_plugins/launchers.py": "from merge.planning import plan\n",
        "configs/a/b.yaml": "# python train_expert.py +a=b\n_target_: merge.planning.plan.Plan\n",
        "hatch_build.py": "raise AssertionError('no part of the wheel')\n",
        "tests/test_x.py": "import merge.planning\n",
        "merge/__pycache__/x.pyc": "",
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def test_everything_has_its_place(checkout: Path, tmp_path: Path) -> None:
    lay_out(checkout, tmp_path / "wheel")
    files = {path.relative_to(tmp_path / "wheel").as_posix() for path in (tmp_path / "wheel").rglob("*.*")}
    assert files == {
        "flexo/__init__.py", "flexo/_configs/a/b.yaml", "flexo/evals/__init__.py", "flexo/evals/rows.py",
        "flexo/merge/__init__.py", "flexo/merge/planning/__init__.py", "flexo/merge/planning/plan.py",
        "flexo/merge/py.typed", "flexo/train_expert.py", "hydra_plugins/launchers.py",
    }  # fmt: skip
    assert (tmp_path / "wheel/flexo/_configs/a/b.yaml").read_text() == (
        "# flexo train-expert +a=b\n_target_: flexo.merge.planning.plan.Plan\n"
    )
    assert (tmp_path / "wheel/hydra_plugins/launchers.py").read_text() == "from flexo.merge.planning import plan\n"


@pytest.mark.parametrize(
    "marked",
    [
        "from ~merge.planning.plan import x as y",
        "from ~merge import planning",
        "é = 'é'; from ~evals.rows import (\n    a,\n    b,\n)",
        "def f():\n    from ~train_expert import main",
        "from flexo.errors import InputError\nimport json",
        "run('-m', '~merge.planning.plan', '--x')",
        "names = ['~evals.rows', \"~merge.planning.plan:Plan\"]",
        "import_module('~evals.rows')",
        '"""See `~merge.planning.plan.f`."""',
        "# python -m ~train_expert",
        "plan.merge.planning.x(recipe.evals.rows, merge.append)",
        "'keep the rows of the merge. Or a/merge.planning/x, launch/train_expert.py'",
        "{'merge': 'evals'}['merge']",
    ],
)
def test_what_names_a_module_is_rewritten_and_nothing_else(checkout: Path, marked: str) -> None:
    """A ~ is where the package's name comes in."""
    rewriter = Rewriter(checkout)
    assert rewriter.rewritten(marked.replace("~", ""), "room/file.py") == marked.replace("~", "flexo.")


def test_root_scripts_are_called_as_commands(checkout: Path) -> None:
    text = "# python train_expert.py -m\nx = f'made by train_expert.py in {evals}'\n"
    assert Rewriter(checkout).rewritten(text, "room/file.py") == (
        "# flexo train-expert -m\nx = f'made by flexo train-expert in {evals}'\n"
    )


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("import merge.planning.plan", "import merge.planning.plan"),
        ("import merge.planning.plan as plan", "import merge.planning.plan"),
        ("import json, evals", "import evals"),
        ("from . import rows", "a relative import"),
        ("from  merge.planning import plan", "an import written in another way"),
        ("from \\\n merge.planning import plan", "an import written in another way"),
        ("find_spec('evals')", "find_spec('evals')"),
        ("importlib.import_module('train_expert')", "import_module('train_expert')"),
        ("[sys.executable, '-m', 'train_expert']", "'-m', 'train_expert'"),
        ("name = 'merge.planning.' + part", "'merge.planning.', the beginning of a name"),
        ("name = f'evals.{part}'", "'evals.', the beginning of a name"),
        ("say = f'python {script}.py --help'", "'python ' before a name"),
        ("path = root / 'train_expert.py'", "'train_expert.py', a file of the checkout"),
        ("name = 'merge.planing.plan'", "merge.planing.plan, which is no module"),
        ("name = '''\nmerge.planing.plan'''", "merge.planing.plan, which is no module"),
    ],
)
def test_what_is_not_understood_ends_the_build_with_its_line(checkout: Path, line: str, found: str) -> None:
    with pytest.raises(SystemExit) as refused:
        Rewriter(checkout).rewritten(f"x = 1\n{line}\n", "room/file.py")
    at = 3 if line.startswith("name = '''") else 2
    assert str(refused.value).startswith(f"room/file.py:{at}: {found}") and "Expected " in str(refused.value)


def test_a_file_of_an_unknown_kind_ends_the_build(checkout: Path, tmp_path: Path) -> None:
    (checkout / "merge/planning/table.csv").touch()
    with pytest.raises(SystemExit, match=r"table\.csv: expected \.py, \.pyi, \.typed"):
        lay_out(checkout, tmp_path / "wheel")


def test_this_checkout_can_be_laid_out(tmp_path: Path) -> None:
    """Every form that the code uses is understood; root scripts are called what `flexo` calls them."""
    lay_out(ROOT, tmp_path)
    scripts = {command.script: command.name for command in COMMANDS if command.script}
    assert {path.stem for path in ROOT.glob("*.py")} == {*scripts, "hatch_build"}
    for script, name in scripts.items():
        assert Rewriter(ROOT).rewritten(f"# python {script}.py\n", "x.py") == f"# flexo {name}\n"
