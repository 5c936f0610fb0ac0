"""A log shows every change, and statements come from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flexo.errors import InputError
from merge.formats.signing import make_key
from serving.receipts.log import Log, LogError, read_log
from serving.receipts.statement import as_csv, as_html, check_receipts, statement
from serving.receipts.store import Receipts

EXPERTS = [{"domain": "public", "contact": ""}, {"domain": "math", "contact": "=cmd()<b>", "licence": "CC0"}]


def written(folder: Path, key: Path | None = None, answers: int = 6) -> list[dict[str, Any]]:
    """A log of several closed files, and the receipts of its answers."""
    log = Log(folder, key, most=700)
    log.append("model", model="m", name="model", experts=EXPERTS)
    receipts = []
    for n in range(answers):
        about = {"id": f"a{n}", "model": "m", "completion_tokens": 10, "shares": {"public": 0.25, "math": 0.75}}
        receipts.append(about | {"log": log.append("answer", **about)})
    log.close()
    return receipts


def test_a_log_goes_on_where_it_stopped_and_a_torn_line_goes(tmp_path: Path) -> None:
    written(tmp_path)
    last = sorted(tmp_path.glob("*.jsonl"))[-1]
    with last.open("ab") as file:
        file.write(b'{"previous": "half a li')
    log = Log(tmp_path, most=700)
    with pytest.raises(LogError, match="another server"):
        Log(tmp_path)
    digest = log.append("answer", id="next")
    log.close(rotate=True)
    lines = list(read_log(tmp_path))
    assert len(lines) == 8 and lines[-1][0] == digest and len(list(tmp_path.glob("*.jsonl"))) > 2


@pytest.mark.parametrize("change", ["edit", "drop", "swap", "cut", "file"])
def test_any_change_shows(tmp_path: Path, change: str) -> None:
    written(tmp_path)
    paths = sorted(tmp_path.glob("*.jsonl"))
    lines = paths[0].read_bytes().splitlines(keepends=True)
    if change == "edit":
        lines[1] = lines[1].replace(b'"completion_tokens": 10', b'"completion_tokens": 99')
    elif change == "drop":
        del lines[1]
    elif change == "swap":
        lines[0], lines[1] = lines[1], lines[0]
    elif change == "cut":
        lines[-1] = lines[-1][:-1]
    paths[0].write_bytes(b"".join(lines))
    if change == "file":
        paths[0].unlink()
    with pytest.raises(LogError, match=r"chain is broken|is missing"):
        list(read_log(tmp_path))


def test_closed_files_are_signed(tmp_path: Path) -> None:
    public, _ = make_key(tmp_path / "server.pem")
    other, _ = make_key(tmp_path / "other.pem")
    written(tmp_path / "log", tmp_path / "server.pem")
    assert len(list(read_log(tmp_path / "log", public))) == 7
    with pytest.raises(LogError, match="not this file's signature"):
        list(read_log(tmp_path / "log", other))
    (tmp_path / "log/000001.jsonl.sig").unlink()
    with pytest.raises(LogError, match="FileNotFoundError"):
        list(read_log(tmp_path / "log", public))
    Log(tmp_path / "log", tmp_path / "server.pem").close()  # a server that was killed signs when it comes again
    assert list(read_log(tmp_path / "log", public))


def test_a_statement_is_by_month_owner_and_expert(tmp_path: Path) -> None:
    written(tmp_path)
    rows = statement(read_log(tmp_path))
    by = {row.expert: row for row in rows}
    assert by["math"].tokens == 45 and by["public"].tokens == 15 and by["math"].share == 0.75
    assert by["math"].answers == 6 and by["public"].owner == "the anchor"
    text = as_csv(rows)
    assert (
        text.splitlines()[0] == "month,owner,expert,licence,answers,tokens,share"
        and "'=cmd()<b>,math,CC0,6,45.000" in text
    )
    page = as_html(rows)
    assert "=cmd()&lt;b&gt;" in page and "<b>" not in page


def test_receipts_are_found_or_the_log_is_wrong(tmp_path: Path) -> None:
    receipts = written(tmp_path / "log")
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in receipts[:3]))
    assert check_receipts(read_log(tmp_path / "log"), path) == 3
    for changes in ({"shares": {"public": 1.0}}, {"id": "other"}, {"log": "0" * 64}):
        path.write_text(json.dumps(receipts[0] | changes))
        with pytest.raises(LogError, match=r"mine\.jsonl:1: the log says otherwise"):
            check_receipts(read_log(tmp_path / "log"), path)
    path.write_text("{}")
    with pytest.raises(InputError, match=r"mine\.jsonl:1: not a receipt"):
        check_receipts(read_log(tmp_path / "log"), path)
    with pytest.raises(LogError, match="no log there"):
        list(read_log(tmp_path))


def test_receipts_expire_and_the_oldest_go_first() -> None:
    now = [0.0]
    receipts = Receipts(10, most=2, clock=lambda: now[0])
    for id in "abc":
        receipts.add("alice", {"id": id})
        now[0] += 1
    assert receipts.find("alice", "a") is None and receipts.find("alice", "b") == {"id": "b"}
    assert receipts.find("bob", "b") is None
    now[0] = 11
    assert receipts.find("alice", "b") is None and receipts.find("alice", "c")
