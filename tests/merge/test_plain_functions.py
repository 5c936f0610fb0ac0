"""What a command does, its function does: the same bytes, without a word on the terminal."""

from __future__ import annotations

import inspect as signatures_of
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer

import merge.commands.flexo_btx
import merge.commands.flexo_merge
import merge.commands.flexo_optout
import merge.commands.flexo_quantize
import merge.commands.flexo_sign
import merge.commands.flexo_soup
from flexo.errors import ExpertFileError, InputError, UsageError
from merge.baselines.btx import MixtureOptions, btx
from merge.baselines.soup import soup
from merge.formats.inspection import inspect, verify
from merge.formats.signing import make_key, sign
from merge.planning.membership import opt_out
from merge.planning.merge_options import MergeOptions
from merge.planning.merging import merge_experts, plan_merge
from merge.planning.quantize import quantize
from tests.merge.tools import call, listing

Make = Callable[..., Path]


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")


@pytest.fixture
def experts(make_expert: Make) -> list[str]:
    """Expert files of math and news, as text."""
    return [str(make_expert("math", bias=True)), str(make_expert("news"))]


def assert_same(left: Path, right: Path) -> None:
    """Two folders hold the same files, byte for byte."""
    assert listing(left) == listing(right)
    for name in listing(left):
        assert (left / name).read_bytes() == (right / name).read_bytes(), name


def test_merging_leaving_and_quantising(
    experts: list[str], make_expert: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    law, told = str(make_expert("law")), dict[str, float]()

    @contextmanager
    def progress(label: str, total: float | None) -> Iterator[Callable[[float], None]]:
        told[label] = 0.0
        yield lambda amount: told.__setitem__(label, told[label] + amount)

    mine, theirs = tmp_path / "functions", tmp_path / "commands"
    options = MergeOptions(top_k=2, dtype="bfloat16", max_shard_size=10**6)
    made = merge_experts(experts, mine / "model", options=options, progress=progress)
    assert made.domains == ["public", "math", "news"] and made.public_weight == 4 and told == {"merging": made.nbytes}
    merge_experts([str(mine / "model"), law], str(mine / "more"), replace={"news": experts[1]})
    left = opt_out(str(mine / "more"), str(mine / "less"), drop=["news"])
    assert left.left == ["news"] and left.domains == ["public", "math", "law"]
    opt_out(mine / "more", mine / "kept", keep=["math", "law"], progress=progress)
    assert told["writing"] == left.nbytes
    quantize(str(mine / "less"), str(mine / "packed"), bits=4, group_size=8)
    assert capsys.readouterr() == ("", "")

    settings = ["--top-k", 2, "--dtype", "bfloat16", "--max-shard-size", "1MB"]
    for command, arguments in (
        (merge.commands.flexo_merge, [*experts, "-o", theirs / "model", *settings]),
        (merge.commands.flexo_merge, [theirs / "model", law, "--replace", f"news={experts[1]}", "-o", theirs / "more"]),
        (merge.commands.flexo_optout, [theirs / "more", "--drop", "news", "-o", theirs / "less"]),
        (merge.commands.flexo_optout, [theirs / "more", "--keep", "math", "--keep", "law", "-o", theirs / "kept"]),
        (merge.commands.flexo_quantize, [theirs / "less", "--bits", 4, "--group-size", 8, "-o", theirs / "packed"]),
    ):
        assert call(command.main, *arguments) == 0
    for name in listing(mine) | listing(theirs):
        assert_same(mine / name, theirs / name)


def test_dense_models(make_anchor: Make, tiny_anchor: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dense = [make_anchor(seed=seed).rename(tmp_path / name) for seed, name in ((7, "math"), (8, "code"))]
    mine, theirs = tmp_path / "functions", tmp_path / "commands"
    made = soup([str(path) for path in dense], str(mine / "soup"), weights=[1, 3])
    assert made.weights == [0.25, 0.75]
    btx(list(map(str, dense)), str(tiny_anchor), str(mine / "btx"), options=MixtureOptions(seed=3))
    btx(dense, tiny_anchor, mine / "again", names=["a", "b"], options=MixtureOptions(top_k=1))
    assert capsys.readouterr() == ("", "")
    with pytest.raises(InputError, match="--names a: 1 names for 2 specialists"):
        btx(dense, tiny_anchor, mine / "never", names=["a"])
    anchor = ["--anchor", tiny_anchor]
    for command, arguments in (
        (merge.commands.flexo_soup, [*dense, "-o", theirs / "soup", "--weights", "1,3"]),
        (merge.commands.flexo_btx, [*dense, *anchor, "-o", theirs / "btx", "--seed", 3]),
        (merge.commands.flexo_btx, [*dense, *anchor, "-o", theirs / "again", "--names", "a,b", "--top-k", 1]),
    ):
        assert call(command.main, *arguments) == 0
    for name in listing(mine) | listing(theirs):
        assert_same(mine / name, theirs / name)


def test_signing_verifying_and_looking(experts: list[str], tiny_anchor: Path, tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    math, news = experts
    assert inspect(math)["domain"] == "math" and inspect(math)["signature"] is None
    assert verify(math) is None
    public, fingerprint = make_key(str(tmp_path / "alice.pem"))
    (tmp_path / "trusted").mkdir()
    public.rename(tmp_path / "trusted" / "alice.pub")
    (signed,) = sign([math], tmp_path / "alice.pem")
    assert (signed.domain, signed.key, signed.path) == ("math", fingerprint, Path(math + ".sig"))
    voucher = verify(math, trusted_keys=str(tmp_path / "trusted"))
    assert voucher is not None and (voucher.name, voucher.header) == ("alice", signed.header)
    assert inspect(math, trusted_keys=tmp_path / "trusted", verify=True)["signature"] == voucher.to_dict()
    with pytest.raises(InputError, match="no such file, and a signature is required"):
        verify(news, trusted_keys=tmp_path / "trusted")
    options = MergeOptions(trusted_keys=tmp_path / "trusted", require_signatures=True)
    with pytest.raises(InputError, match="no such file, and a signature is required"):
        merge_experts(experts, tmp_path / "model", options=options)
    merge_experts([math], tmp_path / "model", options=options)
    assert inspect(tmp_path / "model")["experts"][1]["vouched"] == voucher.to_dict()
    assert inspect(tiny_anchor)["format"] == "flexo.anchor"
    Path(math).write_bytes(Path(math).read_bytes()[:-1])
    for look in (verify, inspect):
        with pytest.raises(ExpertFileError, match="damaged or cut-off zip"):
            look(math)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: MergeOptions(require_signatures=True), "needs --trusted-keys FOLDER"),
        (lambda: MergeOptions(trusted_keys=Path("keys"), verify=False), "--no-verify cannot go with it"),
        (lambda: MergeOptions(dtype="int8"), "--dtype int8: expected one of bfloat16, float16, float32"),
        (lambda: MergeOptions(public_weight=float("nan")), "--public-weight nan: expected a positive number"),
        (lambda: MergeOptions(max_shard_size=0), "expected a positive number of bytes"),
        (lambda: merge_experts([], "model"), "no expert files given"),
        (lambda: plan_merge(["gone.pt"], "model", replace={"math": "x.pt"}), "--replace changes a merged folder"),
        (lambda: plan_merge(["."], "model"), "a folder and no expert to join it"),
        (lambda: opt_out("model", "new"), "which experts leave with --drop, or which stay with --keep"),
        (lambda: opt_out("model", "new", drop=["math"], keep=["news"]), "one of the two"),
        (lambda: quantize("model", "new", bits=3), "expected 8 or 4"),
    ],
)
def test_arguments_that_contradict_each_other(make: Callable[[], object], said: str, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        with pytest.raises(InputError, match=said):
            make()
    assert listing(tmp_path) == set()


def test_a_check_that_cannot_be_made_is_a_wrong_argument(
    experts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("merge.planning.merging.can_check", lambda: False)
    with pytest.raises(UsageError, match="--check needs transformers"):
        merge_experts(experts, tmp_path / "model", options=MergeOptions(check=True))
    assert call(merge.commands.flexo_merge.main, *experts, "-o", tmp_path / "model", "--check") == 2
    assert listing(tmp_path) == set()


def test_every_setting_of_the_command_is_an_option_or_an_argument() -> None:
    command: Any = typer.main.get_command(merge.commands.flexo_merge.app)
    given = {parameter.name for parameter in command.params} - {
        "install_completion",
        "show_completion",
        "quiet",
        "verbose",
    }
    taken = {field.name for field in fields(MergeOptions)} | set(signatures_of.signature(merge_experts).parameters)
    assert given - {"dry_run"} <= taken
    assert taken - {"options", "progress", "priors"} <= given  # priors come from the policy of a federation
