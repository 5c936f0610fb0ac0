"""The commands: as functions where that says enough, as processes where exit codes, signals and imports matter."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import merge.commands.flexo_inspect
import merge.commands.flexo_merge
from flexo.atomic_files import LOCK
from merge.formats.expert_file import open_expert
from merge.formats.manifest import read_manifest
from tests.merge.tools import call, listing

Make = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[3]


def start(program: str, *arguments: object) -> subprocess.Popen[str]:
    """A Python process with `program`, run from a folder that is not the checkout."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd="/",
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_merge_says_what_it_does(make_expert: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [make_expert("math", bias=True), make_expert("news")]
    assert call(merge.commands.flexo_merge.main, *paths, "-o", tmp_path / "m") == 0
    out, err = capsys.readouterr()
    assert err == ""
    for text in (
        "expert 0 public", "expert 1 math", "expert 2 news", "CC-BY-4.0", "FlexOlmo, 3 experts, 3 active per token",
        "biases are folded into the rows", f"wrote {tmp_path / 'm'}",
    ):  # fmt: skip
        assert text in out
    assert [e["domain"] for e in read_manifest(tmp_path / "m")["experts"]] == ["public", "math", "news"]


def test_a_dry_run_writes_nothing(
    make_expert: Make, tiny_anchor: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [make_expert("math"), "-o", tmp_path / "m", "--anchor", tiny_anchor, "--top-k", 1, "--dry-run"]
    assert call(merge.commands.flexo_merge.main, *arguments) == 0
    out = capsys.readouterr().out
    assert "2 experts, 1 active per token" in out and "MB" in out and "nothing was written" in out
    assert listing(tmp_path) == set()


def test_shards_are_as_large_as_asked_for(make_anchor: Make, make_expert: Make, tmp_path: Path) -> None:
    path = make_expert("math", anchor=make_anchor(hidden_size=128, intermediate_size=512))
    assert call(merge.commands.flexo_merge.main, path, "-o", tmp_path / "m", "--max-shard-size", "1MB") == 0
    shards = list((tmp_path / "m").glob("model-*-of-*.safetensors"))
    assert len(shards) > 2 and all(shard.stat().st_size < 1_010_000 for shard in shards)


def test_inspect_shows_files_folders_and_anchors(
    make_expert: Make, tiny_anchor: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_expert("math")
    call(merge.commands.flexo_merge.main, path, "-o", tmp_path / "m")
    capsys.readouterr()
    assert call(merge.commands.flexo_inspect.main, path, "--verify", "--json") == 0
    about = json.loads(capsys.readouterr().out)
    assert about["domain"] == "math" and about["verified"] is True and about["bytes"] == path.stat().st_size
    header = open_expert(path).header
    assert json.loads(json.dumps(header.to_dict()["tensors"])) == about["tensors"] and len(about["tensors"]) == 12
    assert call(merge.commands.flexo_inspect.main, path) == 0
    out = capsys.readouterr().out
    assert "domain: math\n" in out and "  learning_rate: 0.001\n" in out and "privacy: -\n" in out
    assert "tensors: 12 in 0." in out and "gate_proj" not in out
    assert call(merge.commands.flexo_inspect.main, tmp_path / "m") == 0
    out = capsys.readouterr().out
    assert "  - index: 1\n    file: math.pt\n" in out and "      own_before: 4.0\n" not in out.split("experts:")[0]
    assert call(merge.commands.flexo_inspect.main, tmp_path / "m", "--json") == 0
    assert json.loads(capsys.readouterr().out) == read_manifest(tmp_path / "m")
    assert call(merge.commands.flexo_inspect.main, tiny_anchor) == 0
    assert "made_by: tests/merge/tiny.py" in capsys.readouterr().out


def test_inspect_prints_no_control_characters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = {
        "format": "flexo.manifest",
        "version": 1,
        "experts": [{"domain": "math", "title": "\x1b[2J"}],
        "\x1bx": 1,
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert call(merge.commands.flexo_inspect.main, tmp_path) == 0
    assert "\x1b" not in capsys.readouterr().out


def damaged(path: Path) -> Path:
    """A copy whose last tensor byte is flipped, so that only reading the values can tell."""
    expert = open_expert(path)
    name = sorted(expert.header.tensors)[-1]
    data = bytearray(path.read_bytes())
    data[data.index(expert.tensor(name).numpy().tobytes())] ^= 1
    copy = path.with_name("damaged.pt")
    copy.write_bytes(data)
    return copy


def test_a_refusal_is_one_message_exit_code_1_and_nothing_written(
    make_expert: Make, make_anchor: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    math, news, output = make_expert("math"), make_expert("news"), tmp_path / "new" / "m"
    cut = math.with_name("cut.pt")
    cut.write_bytes(math.read_bytes()[:-1])
    refusals: list[tuple[list[object], str]] = [
        ([tmp_path / "none.pt"], "none.pt: no such file"),
        ([math, math], "was given 2 times"),
        ([math, make_expert("math")], "2 experts for the domain 'math'"),
        ([news, cut], "cut.pt: a damaged or cut-off zip"),
        ([news, damaged(math)], "does not match the sha256"),
        ([math, "--top-k", 3], "--top-k 3: this merge has 2 experts"),
        ([math, "--top-k", 0], "--top-k 0: this merge has 2 experts"),
        ([math, "--anchor", make_anchor(seed=5)], "trained against the public router"),
        ([math, "--anchor", tmp_path / "none"], "none: no such folder"),
    ]
    for arguments, message in refusals:
        assert call(merge.commands.flexo_merge.main, *arguments, "-o", output) == 1
        out, err = capsys.readouterr()
        assert err.startswith("error: ") and err.count("\n") == 1 and message in err
        assert "wrote" not in out and listing(tmp_path) == set()
    for occupied in (math.parent, math):
        assert call(merge.commands.flexo_merge.main, news, "-o", occupied) == 1
        assert capsys.readouterr().out == ""
    assert call(merge.commands.flexo_inspect.main, cut) == call(merge.commands.flexo_inspect.main, tmp_path) == 1
    assert call(merge.commands.flexo_inspect.main, damaged(math), "--verify") == 1
    assert call(merge.commands.flexo_inspect.main, damaged(math)) == 0


def test_wrong_usage_is_exit_code_2(make_expert: Make, tmp_path: Path) -> None:
    math = make_expert("math")
    for arguments in ([], [math], ["-o", tmp_path / "m"], [math, "-o", tmp_path / "m", "--top-k", "many"]):
        assert call(merge.commands.flexo_merge.main, *arguments) == 2
    assert call(merge.commands.flexo_inspect.main) == 2
    assert listing(tmp_path) == set()


@pytest.mark.parametrize("command", ["merge", "inspect"])
def test_help_answers_without_torch(command: str) -> None:
    program = """
        import sys
        from merge.commands.flexo_COMMAND import main
        sys.argv = ["flexo", "--help"]
        try:
            main()
        finally:
            assert "torch" not in sys.modules and "numpy" not in sys.modules
    """.replace("COMMAND", command)
    began = time.monotonic()
    code, out, err = finish(start(program))
    assert (code, err) == (0, "") and "Examples" in out and "Usage" in out
    assert time.monotonic() - began < 10  # a fraction of a second, on a machine with nothing else to do


def test_a_merge_needs_numpy_and_typer_alone(make_expert: Make, tmp_path: Path) -> None:
    program = """
        import sys
        FOREIGN = {"torch", "safetensors", "transformers", "tokenizers", "lightning", "pytorch_lightning",
                   "huggingface_hub", "datasets", "omegaconf", "hydra", "pandas", "pyarrow", "flexmix", "trainers",
                   "inference", "evals"}
        class Refuse:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in FOREIGN:
                    raise ModuleNotFoundError(f"{name} is not here", name=name)
        sys.meta_path.insert(0, Refuse())
        import merge.commands.flexo_merge
        merge.commands.flexo_merge.main()
    """
    code, out, err = finish(start(program, make_expert("math"), "-o", tmp_path / "m"))
    assert (code, err) == (0, "") and "wrote" in out and "config.json" in listing(tmp_path / "m")


STOPPABLE = """
    import pathlib, sys, time
    import merge.commands.flexo_merge, merge.tensor_io.shard_writer
    mark, written, original = pathlib.Path(sys.argv.pop(1)), [], merge.tensor_io.shard_writer._write
    def slow(output, view, at):
        written.append(at)
        if len(written) >= 40:
            mark.touch()
            time.sleep(2)  # a thread ends with the buffer that it is at
        return original(output, view, at)
    merge.tensor_io.shard_writer._write = slow
    merge.commands.flexo_merge.main()
"""


def test_stopping_in_the_middle_leaves_nothing(make_expert: Make, tmp_path: Path) -> None:
    """Ctrl-C and a polite kill clean up at once; after kill -9 the next run for the same output does."""
    path = make_expert("math")
    expected = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}
    processes = {}
    for number in expected:
        folder = tmp_path / number.name
        folder.mkdir()
        processes[number] = start(STOPPABLE, tmp_path / f"{number.name}.mark", path, "-o", folder / "m")
    for number, process in processes.items():
        while not (tmp_path / f"{number.name}.mark").exists():
            assert process.poll() is None, finish(process)
            time.sleep(0.02)
        (partial,) = (tmp_path / number.name).glob(".m.partial-*[!k]")  # beside it, its .lock
        assert (partial / "model.safetensors").exists()
        process.send_signal(number)
        code, _, err = finish(process)
        assert code == expected[number] and "Traceback" not in err
        left = {partial.name, partial.name + LOCK} if number == signal.SIGKILL else set()
        assert listing(tmp_path / number.name) == left
    assert call(merge.commands.flexo_merge.main, path, "-o", tmp_path / "SIGKILL" / "m") == 0
    assert listing(tmp_path / "SIGKILL") == {"m"}


def test_a_reader_that_leaves_is_no_error(make_expert: Make) -> None:
    program = """
        import sys, merge.commands.flexo_inspect
        sys.stdin.read()  # until the reader has gone
        merge.commands.flexo_inspect.main()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(make_expert("math"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.stdin and process.stdout and process.stderr
    process.stdout.close()
    process.stdin.close()
    err = process.stderr.read()
    process.stderr.close()
    assert (process.wait(60), err) == (0, b"")
