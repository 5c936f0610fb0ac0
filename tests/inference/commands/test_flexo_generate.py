from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import inference.commands.flexo_generate
from tests.inference.models import merge_domains
from tests.merge.tools import call, listing

ROOT = Path(__file__).resolve().parents[3]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def feed(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Puts bytes on standard input."""

    def put(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))

    return put


def generate(*arguments: object) -> int:
    return call(inference.commands.flexo_generate.main, *arguments, "--device", "cpu")


def test_a_prompt_comes_as_an_argument_or_on_standard_input(
    merged: Path, feed: Callable[[bytes], None], capsys: Capture
) -> None:
    assert generate(merged, "The cat", "--max-new-tokens", 12) == 0
    out, err = capsys.readouterr()
    assert out.startswith("The cat") and out.endswith("\n") and len(out) > 10 and err == ""
    feed(b"The cat\n")
    assert generate(merged, "--max-new-tokens", 12) == 0
    assert capsys.readouterr() == (out, "")


def test_the_text_is_that_of_transformers(merged: Path, capsys: Capture) -> None:
    """For a prompt behind the end-of-text token, as documents in training."""
    from transformers import pipeline

    assert generate(merged, "The dog lay", "--max-new-tokens", 20) == 0
    made = pipeline("text-generation", str(merged))("<|endoftext|>The dog lay", max_new_tokens=20, do_sample=False)
    assert capsys.readouterr().out == made[0]["generated_text"].removeprefix("<|endoftext|>") + "\n"


def test_experts_are_chosen_by_name(
    merged: Path, make_expert: Callable[..., Path], tmp_path: Path, capsys: Capture
) -> None:
    texts = []
    without = merge_domains(make_expert, tmp_path / "without", ["news"])
    for arguments in ([merged], [merged, "--experts", "public,news"], [without]):
        assert generate(*arguments[:1], "The cat", *arguments[1:], "--max-new-tokens", 30) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] != texts[1] == texts[2]


def test_attribution_goes_with_chosen_experts(merged: Path, tmp_path: Path, capsys: Capture) -> None:
    arguments = [merged, "The cat", "--max-new-tokens", 8, "--experts", "public,math"]
    files = [tmp_path / "new" / "answer.json", tmp_path / "new" / "answer.html"]
    out = ["--attribution-out", files[0], "--attribution-out", files[1], "--attribution-out", files[0]]
    assert generate(*arguments) == 0
    plain = capsys.readouterr().out
    assert generate(*arguments, *out) == 0  # the text alone, for whoever reads it from a pipe
    assert capsys.readouterr() == (plain, "")
    assert listing(files[0].parent) == {"answer.json", "answer.html"}
    found = json.loads(files[0].read_text())
    shares = {expert["domain"]: expert["share"] for expert in found["experts"]}
    assert sum(shares.values()) == pytest.approx(1, abs=1e-12) and shares["news"] == shares["code"] == 0.0
    assert found["experts"][1]["title"] == "Text about math" and len(found["tokens"]) == 8
    assert f"The cat{found['text']}\n" == plain and found["model"] == merged.name
    assert "Text about math" in files[1].read_text()
    assert generate(*arguments, "--attribution") == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"{plain}\n8 tokens, by router weight, mean over 3 layers:\n")
    assert sorted(line.split()[0] for line in shown.splitlines()[-4:])[:2] == ["0.0%", "0.0%"]
    assert generate(*arguments, *out) == 1
    stdout, err = capsys.readouterr()
    assert stdout == "" and "answer.json: this file exists already" in err


def test_a_summary_of_owners_is_written_beside(merged: Path, tmp_path: Path, capsys: Capture) -> None:
    files = [tmp_path / "answer.json", tmp_path / "owners.json"]
    arguments = [merged, "The cat", "--max-new-tokens", 60, "--experts", "math"]
    out = ["--attribution-out", files[0], "--attribution-summary", files[1]]
    assert generate(*arguments, *out) == 0
    tokens = len(json.loads(files[0].read_text())["tokens"])
    found = json.loads(files[1].read_text())
    contact = json.loads(files[0].read_text())["experts"][1]["contact"]
    assert tokens == 60 and found["owners"] == [{"owner": contact or "math", "tokens": 60}]
    assert generate(*arguments, "--attribution-summary", files[1]) == 1
    assert "this file exists already" in capsys.readouterr().err
    for path in (tmp_path / "owners.txt", files[0]):
        assert generate(*arguments, "--attribution-out", files[0], "--attribution-summary", path) == 1
        assert "expected a file of its own that ends in .json" in capsys.readouterr().err


def test_attribution_that_cannot_be_is_refused(
    merged: Path, tiny_anchor: Path, tmp_path: Path, capsys: Capture
) -> None:
    """Before anything is generated or written."""
    for model, file, said in (
        (merged, tmp_path / "answer.txt", r"answer.txt: expected a name that ends in .html or .json."),
        (merged, tmp_path, "expected a name that ends in .html or .json."),
        (tiny_anchor, tmp_path / "answer.html", "no manifest.json. Is it a folder made by flexo-merge?"),
    ):
        assert generate(model, "The cat", "--attribution-out", file) == 1
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: ") and said in err and not listing(tmp_path)


def test_sampling_is_fixed_by_its_seed(merged: Path, capsys: Capture) -> None:
    texts = []
    for seed, temperature, top_p in ((1, 1.0, 1.0), (1, 1.0, 1.0), (2, 1.0, 1.0), (1, 1.0, 0.0), (1, 0.0, 1.0)):
        options = ["--seed", seed, "--temperature", temperature, "--top-p", top_p]
        assert generate(merged, "The cat", "--max-new-tokens", 30, *options) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]
    assert texts[3] == texts[4]  # the smallest share is the likeliest token


def test_sampling_cuts_nothing_off_that_was_not_asked_for(merged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import FlexOlmoForCausalLM

    seen = {}
    monkeypatch.setattr(
        FlexOlmoForCausalLM, "generate", lambda _self, **options: seen.update(options) or options["input_ids"]
    )
    assert generate(merged, "The cat", "--temperature", 0.7, "--top-p", 0.9) == 0
    assert (seen["do_sample"], seen["temperature"], seen["top_p"], seen["top_k"]) == (True, 0.7, 0.9, 0)


def test_any_causal_model_goes_but_experts_need_a_merged_one(tiny_anchor: Path, capsys: Capture) -> None:
    assert generate(tiny_anchor, "The cat", "--max-new-tokens", 5) == 0
    assert capsys.readouterr().out.startswith("The cat")
    assert generate(tiny_anchor, "The cat", "--experts", "public") == 1
    assert "no manifest.json. Is it a folder made by flexo-merge?" in capsys.readouterr().err


@pytest.mark.parametrize("prompt", ["", "\n"])
def test_an_empty_prompt_is_refused(merged: Path, feed: Callable[[bytes], None], capsys: Capture, prompt: str) -> None:
    feed(prompt.encode())
    assert generate(merged) == 1
    assert capsys.readouterr() == ("", "error: the prompt is empty: there is nothing to go on with.\n")


def test_no_prompt_at_all_is_wrong_usage(merged: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdin", terminal)
    assert generate(merged) == 2
    assert "no prompt: give it as an argument or on standard input" in capsys.readouterr().err


def test_text_that_is_not_utf8_is_refused(merged: Path, feed: Callable[[bytes], None], capsys: Capture) -> None:
    feed(b"caf\xe9")
    assert generate(merged) == 1
    out, err = capsys.readouterr()
    assert (out, err) == ("", "error: standard input: not UTF-8 at byte 4. Convert it: iconv -t utf-8.\n")
    assert generate(merged, os.fsdecode(b"caf\xe9")) == 1
    assert capsys.readouterr().err == "error: the prompt: not UTF-8 at byte 4. Convert it: iconv -t utf-8.\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["The cat", "--max-new-tokens", 127], "tokens of prompt and 127 new ones: this model was made for 128 in all"),
        (["The cat " * 60], "tokens of prompt and 100 new ones: .* Shorten the prompt"),
        (["The cat", "--experts", "public,maths"], r"'maths': no such expert .* Did you mean 'math'\?"),
        (["The cat", "--experts", " public , maths"], r"'maths': no such expert .* Did you mean 'math'\?"),
        (["The cat", "--experts", ""], r"--experts '': expected names with commas between them"),
        (["The cat", "--experts", "public,,math"], r"--experts 'public,,math': .* one is empty"),
        (["The cat", "--dtype", "int4"], r"--dtype int4: expected one of"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_message(
    merged: Path, capsys: Capture, arguments: list[object], said: str
) -> None:
    assert generate(merged, *arguments) == 1
    out, err = capsys.readouterr()
    assert out == "" and re.fullmatch(rf"error: .*{said}.*\n", err), err


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut, "not a whole safetensors file"),
        (lambda folder: (folder / "config.json").unlink(), "no such file. Is"),
        (lambda folder: (folder / "model.safetensors").unlink(), "is it a model folder?"),
        (lambda folder: folder.rename(folder.with_name("elsewhere")), "no such folder"),
    ],
)
def test_folders_that_are_no_model_are_refused_in_one_message(
    copied: Path, damage: Callable[[Path], object], said: str, capsys: Capture
) -> None:
    damage(copied)
    assert generate(copied, "The cat") == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and said in err


def test_a_process_of_its_own_says_nothing_but_the_text(merged: Path) -> None:
    """Through a pipe, from another folder, whatever transformers would like to say."""
    environment = {name: value for name, value in os.environ.items() if name != "TRANSFORMERS_VERBOSITY"}
    program = "import inference.commands.flexo_generate; inference.commands.flexo_generate.main()"
    done = subprocess.run(
        [sys.executable, "-c", program, str(merged), "--max-new-tokens", "5", "--temperature", "0.5"],
        input="The cat naïve 😀".encode(),
        capture_output=True,
        cwd=merged.parent,
        env=environment | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode().startswith("The cat na")


def test_help_is_quick() -> None:
    body = 'try:\n    main()\nfinally:\n    print("torch" in sys.modules)'
    program = f"import sys\nfrom inference.commands.flexo_generate import main\n{body}"
    done = subprocess.run([sys.executable, "-c", program, "--help"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.rstrip().endswith("False")
    assert "flexo-generate model/" in done.stdout
