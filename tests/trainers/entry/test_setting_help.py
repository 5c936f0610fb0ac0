"""`--help` of the root scripts: every setting with its default and the comment that stands beside it in its YAML."""

from __future__ import annotations

import re
import sys
from functools import cache
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from flexo.config_dir import config_dir
from trainers.entry.hydra_entry import run_hydra
from trainers.entry.setting_help import SCRIPTS, Setting, help_text, read_config, reference
from trainers.loop.gpu_specs import HARDWARE


@cache
def listed(script: str) -> dict[str, Setting]:
    """Groups and settings; a group and a section may share a name, and then the section's settings are there."""
    return {setting.name: setting for setting in reference(script)}


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_setting_has_a_comment(script: str) -> None:
    settings = listed(script).values()
    assert [setting.name for setting in settings if not setting.comment] == []
    assert sum(not setting.choices for setting in settings) > 50


def test_a_reference_has_groups_defaults_and_what_choices_bring() -> None:
    found = listed("train_expert")
    assert found["logger"].choices == ("csv", "none", "tensorboard", "wandb") and found["logger"].value == "csv"
    assert found["domain"].value == "null" and "math" in found["domain"].choices
    assert (found["data.tokens"].value, found["data.tokens"].choice) == ("240000", "")
    assert found["data.tokens"].comment.startswith("seen in training")
    assert found["model.match"].choice == "model=mixture" and found["model.router_init"].choice == ""
    assert found["hydra.launcher.minutes"].choice == "hydra/launcher=slurm"
    assert found["loss.lm_z"].value == "1e-5", "as it stands in its file"
    assert "data.path" not in found, "a setting of train_anchor.py"
    assert "model.router_init" not in listed("train_anchor")
    names = list(found)
    assert names.index("anchor.path") < names.index("data.tokens") < names.index("run.precision"), "as in the help"


def test_settings_are_shown_as_the_command_line_makes_them() -> None:
    said = help_text("train_expert", ["+domain=math", "model=dense", "data.tokens=5", "optimizer.betas=[0.5,0.6]"], 100)
    assert "python train_expert.py +domain=math" in said and "-q says less" in said
    assert re.search(r"^  tokens: 5 +# seen in training, in all", said, re.MULTILINE)
    assert re.search(r"^  betas: \[0\.5, 0\.6\] +# of adamw", said, re.MULTILINE)
    assert re.search(r"^  rest_lr: 5e-4 +# of normuon", said, re.MULTILINE), "the baseline's, with the comment"
    assert re.search(r"^  kind: dense +# all weights are trained$", said, re.MULTILINE)
    assert re.search(r"^  name: math +# of the domain", said, re.MULTILINE) and "router_init" not in said
    settings = said.partition("== Settings (name=value) ==\n")[2].partition("\n\n--cfg")[0]
    assert max(map(len, settings.splitlines())) <= 100
    values = OmegaConf.create(settings)
    assert (values.data.tokens, values.optimizer.lr, values.domain.title) == (5, 2e-3, "Mathematics")


def test_groups_that_leave_no_choice_are_left_out() -> None:
    said = help_text("train_anchor").partition("== Settings")[0]
    assert "anchor: olmo2_13b, olmo2_1b, olmo2_7b, small, tiny" in said and "debug: fast" in said
    assert not re.search(r"^(optimizer|data|run|experiment|study|domain):", said, re.MULTILINE)


def test_help_stops_before_the_task_and_refuses_what_is_mistyped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["train_router.py", *arguments])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        run_hydra(lambda _cfg: pytest.fail("it ran"), "train_router")

    call("-h", "output=elsewhere")
    assert re.search(r"^output: elsewhere +# the model folder to make$", capsys.readouterr().out, re.MULTILINE)
    with pytest.raises(SystemExit) as stopped:
        call("--help", "outptu=elsewhere")
    out, err = capsys.readouterr()
    assert stopped.value.code == 1 and out == "" and "outptu: there is no such setting. Did you mean 'output'?" in err


def test_choices_of_a_folder_of_ones_own_are_listed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "own/optimizer").mkdir(parents=True)
    (tmp_path / "own/optimizer/mine.yaml").write_text("lr: 1.0 # high\n")
    arguments = ["train_router.py", "--config-dir", str(tmp_path / "own"), "optimizer=mine", "--help"]
    monkeypatch.setattr(sys, "argv", arguments)
    run_hydra(lambda _cfg: pytest.fail("it ran"), "train_router")
    said = capsys.readouterr().out
    assert "optimizer: mine, router" in said and re.search(r"^  lr: 1\.0", said, re.MULTILINE)


def test_what_stands_beside_a_setting_is_what_the_code_takes() -> None:
    settings = {setting.name: setting for setting in read_config(config_dir() / "train_expert.yaml", "").settings}
    assert re.findall(r"\w+", settings["hardware.name"].comment.replace(" or ", " ")) == list(HARDWARE)
