from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import flexmix.commands.flexo_data
from flexmix.documents.corpus import held_out
from flexmix.documents.source import Source
from flexmix.prepare import executors, gather, steps
from flexmix.prepare.options import Options
from flexmix.prepare.pipeline import _uneven, prepare
from flexmix.prepare.statistics import Statistics, read_statistics
from flexmix.tokens import encoder
from flexmix.tokens.encoder import load_encoder
from flexmix.tokens.shard import TokenShard, open_shard
from flexo.errors import InputError
from flexo.locks import hold
from tests.flexmix.text import TEXTS, write_jsonl
from tests.merge.tools import call, listing

ROOT = Path(__file__).resolve().parents[3]
STORIES = [f"Story {n}: once upon a time there were {n} cats, and {n * 7 % 13} dogs." for n in range(400)]


def quiet(_line: str) -> None:
    pass


def run(source: Path | str | Source, output: Path, model: Path, **options: Any) -> Statistics:
    """One preparation in this process; `workers` and `say` are its own, all else are `Options`."""
    ours = {name: options.pop(name) for name in ("workers", "say") if name in options}
    if not isinstance(source, Source):
        source = Source(str(source))
    found = prepare([source], output, model, Options(**options), **({"say": quiet} | ours))
    assert found is not None
    return found


def documents(shard: TokenShard) -> list[list[int]]:
    ids = shard.ids.tolist()
    return [ids[start:end] for start, end in zip(shard.starts[:-1], shard.starts[1:], strict=True)]


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder and its sha256, the plot left out."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".png"
    }


def test_the_shards_hold_the_documents_in_their_order(tiny_anchor: Path, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", [*STORIES, "", STORIES[3], "  \n", "short", STORIES[3], STORIES[399]])
    found = run(Source(str(source), min_length=10), tmp_path / "out", tiny_anchor)
    made = load_encoder(tiny_anchor)
    for split in ("train", "test"):
        ours = [text for text in STORIES if held_out(text) == (split == "test")]
        shard = open_shard(tmp_path / "out" / split, tiny_anchor)
        assert documents(shard) == [made.encode([text])[0].tolist() for text in ours]
        assert shard.text_bytes == sum(len(text.encode()) for text in ours)
        assert getattr(found, split).documents == len(ours) > 5
    assert (found.read, found.empty, found.filtered) == (406, 2, {"shorter than 10": 1})
    assert (found.duplicates_exact, found.duplicates_near, found.emails, found.long) == (3, 0, 0, 0)
    assert listing(tmp_path / "out") == {"train", "test", "statistics.json", "statistics.png"}
    assert listing(tmp_path / "out/train") == {"tokens.bin", "documents.npy", "shard.json"}
    assert listing(tmp_path) == {"a.jsonl", "out"}
    assert read_statistics(tmp_path / "out") == found


def test_quantiles_and_histogram_are_those_of_the_documents(tiny_anchor: Path, tmp_path: Path) -> None:
    found = run(write_jsonl(tmp_path / "a.jsonl", STORIES), tmp_path / "out", tiny_anchor)
    lengths = sorted(
        len(document) for split in ("train", "test") for document in documents(open_shard(tmp_path / "out" / split))
    )
    assert (found.length_tokens["0"], found.length_tokens["0.5"], found.length_tokens["1"]) == (
        lengths[0], lengths[199], lengths[-1],
    )  # fmt: skip
    assert sum(found.histogram) == 400
    assert all(count == sum(1 << k <= length < 2 << k for length in lengths) for k, count in enumerate(found.histogram))
    tokens = sum(lengths) - 400
    assert found.bytes_per_token == pytest.approx(sum(len(text.encode()) for text in STORIES) / tokens)


def test_near_duplicates_leave_the_first(tiny_anchor: Path, tmp_path: Path) -> None:
    long = " ".join(f"word{n}" for n in range(300))
    texts = ["once upon a time", long + " the end", *STORIES[:20], long, long + " really the end", long + " the end"]
    source = write_jsonl(tmp_path / "a.jsonl", texts)
    found = run(source, tmp_path / "near", tiny_anchor, duplicates="near", task_bytes=1000, held_out=0.0)
    assert (found.duplicates_exact, found.duplicates_near) == (1, 2)
    made = load_encoder(tiny_anchor)
    assert documents(open_shard(tmp_path / "near/train")) == [made.encode([t])[0].tolist() for t in texts[:22]]
    assert not (tmp_path / "near/test").exists() and found.test.documents == 0
    assert run(source, tmp_path / "all", tiny_anchor, duplicates="keep").read == len(texts)
    assert read_statistics(tmp_path / "all").duplicates_exact == 0


def test_addresses_are_blotted_out_before_duplicates_are_sought(tiny_anchor: Path, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", [*TEXTS, "write to a@example.org", "write to b@example.org"])
    found = run(source, tmp_path / "out", tiny_anchor, scrub=True, held_out=0.0)
    assert (found.emails, found.duplicates_exact, found.train.documents) == (2, 1, 5)


def test_the_result_does_not_depend_on_workers_or_tasks(tiny_anchor: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_jsonl(tmp_path / f"in/{name}.jsonl", [*STORIES, *(f"{name} {n}" for n in range(50))])
    first = run(tmp_path / "in", tmp_path / "one", tiny_anchor, duplicates="near", task_bytes=3000)
    second = run(tmp_path / "in", tmp_path / "two", tiny_anchor, duplicates="near", task_bytes=3000, workers=2)
    assert first == second and contents(tmp_path / "one") == contents(tmp_path / "two")
    run(tmp_path / "in", tmp_path / "large", tiny_anchor, duplicates="near")
    for split in ("train", "test"):
        assert contents(tmp_path / "large" / split) == contents(tmp_path / "one" / split)


def test_several_sources_are_read_in_their_order(tiny_anchor: Path, tmp_path: Path) -> None:
    a = Source(str(write_jsonl(tmp_path / "a.jsonl", STORIES[:10], column="body")), "body")
    b = Source(str(write_jsonl(tmp_path / "b.jsonl.gz", STORIES[5:20])))
    found = prepare([a, b], tmp_path / "out", tiny_anchor, Options(held_out=0.0), say=quiet)
    assert found is not None and (found.read, found.duplicates_exact) == (25, 5)
    made = load_encoder(tiny_anchor)
    expected = [made.encode([text])[0].tolist() for text in STORIES[:20]]
    assert documents(open_shard(tmp_path / "out/train")) == expected


def test_a_long_document_is_one_document(tiny_anchor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "STRETCH", 1000)
    monkeypatch.setattr(steps, "STRETCH", 1000)
    long = "\n".join(f"line {n} of a long text" for n in range(600))
    found = run(write_jsonl(tmp_path / "a.jsonl", [*TEXTS, long]), tmp_path / "out", tiny_anchor, held_out=0.0)
    assert (found.long, found.train.documents) == (1, 5)
    tokenizer = load_encoder(tiny_anchor).tokenizer
    assert documents(open_shard(tmp_path / "out/train"))[-1][1:] == tokenizer.encode(long, add_special_tokens=False).ids


# --- resuming


class CrashError(Exception):
    """Stands for a kill in the middle of things."""


@pytest.fixture
def undisturbed(tiny_anchor: Path, tmp_path: Path) -> Callable[..., dict[str, str]]:
    def make(source: Path, **options: Any) -> dict[str, str]:
        run(source, tmp_path / "undisturbed", tiny_anchor, **options)
        return contents(tmp_path / "undisturbed")

    return make


@pytest.mark.parametrize("duplicates", ["exact", "near"])
def test_a_run_goes_on_after_a_crash_anywhere(
    tiny_anchor: Path, tmp_path: Path, undisturbed: Callable[..., dict[str, str]], duplicates: Any
) -> None:
    """Crashes at each of the moments at which files are written, one after the other, in a single preparation."""
    source = write_jsonl(tmp_path / "a.jsonl", STORIES[:60])
    options: dict[str, Any] = {"duplicates": duplicates, "task_bytes": 1500}
    expected = undisturbed(source, **options)
    moment = crashes = 0
    while True:
        moment += 1
        count = 0

        def tick(frame: Any, event: str, argument: Any, moment: int = moment) -> None:
            nonlocal count
            if event == "c_call" and getattr(argument, "__name__", "") in ("write", "rename", "mkdir", "open"):
                count += 1
                if count == moment * 20:
                    raise CrashError

        sys.setprofile(tick)
        try:
            run(source, tmp_path / "out", tiny_anchor, **options)
            break
        except CrashError:
            crashes += 1
        finally:
            sys.setprofile(None)
    assert crashes >= 3
    assert contents(tmp_path / "out") == expected
    assert listing(tmp_path) == {"a.jsonl", "out", "undisturbed"}


def test_finished_tasks_are_not_done_again(tiny_anchor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", STORIES)
    task, done, said = executors._Local.run_task, [], []

    def some(self: Any, rank: int) -> None:
        if rank == 5:
            raise CrashError
        done.append(rank)
        task(self, rank)

    monkeypatch.setattr(executors._Local, "run_task", some)
    with pytest.raises(CrashError):
        run(source, tmp_path / "out", tiny_anchor, task_bytes=2000)
    monkeypatch.setattr(executors._Local, "run_task", lambda self, rank: (done.append(rank), task(self, rank)))
    run(source, tmp_path / "out", tiny_anchor, task_bytes=2000, say=said.append)
    assert done == list(range(len(done))) and said[0] == f"going on: 5 of {len(done)} tasks were done before"


def test_a_finished_folder_is_left_alone(tiny_anchor: Path, tmp_path: Path) -> None:
    source, said = write_jsonl(tmp_path / "a.jsonl", STORIES), []
    first = run(source, tmp_path / "out", tiny_anchor)
    assert run(source, tmp_path / "out", tiny_anchor, say=said.append) == first
    assert said == [f"{tmp_path / 'out'} was prepared before, with these settings; nothing to do"]
    with pytest.raises(InputError, match="out: this folder is not empty"):
        run(source, tmp_path / "out", tiny_anchor, scrub=True)


def test_an_unfinished_folder_takes_the_same_settings_and_files_alone(
    tiny_anchor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", STORIES)
    with monkeypatch.context() as patch:
        patch.setattr(gather, "repeated", lambda _tasks: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(source, tmp_path / "out", tiny_anchor)
    with pytest.raises(
        InputError, match=r"\.out\.preparing: an unfinished preparation with other settings \(options d"
    ):
        run(source, tmp_path / "out", tiny_anchor, scrub=True)
    os.utime(source, (1, 1))
    with pytest.raises(InputError, match=r"a.jsonl: changed since the preparation began. Delete .*preparing to begin"):
        run(source, tmp_path / "out", tiny_anchor)


def test_an_error_in_the_first_task_leaves_nothing_behind(tiny_anchor: Path, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", STORIES, column="body")
    with pytest.raises(InputError, match=r"a.jsonl: line 1: no column 'text' \(found 'body'\)"):
        run(source, tmp_path / "out", tiny_anchor)
    assert listing(tmp_path) == {"a.jsonl"}
    write_jsonl(source, STORIES)
    assert run(source, tmp_path / "out", tiny_anchor).read == 400
    assert listing(tmp_path) == {"a.jsonl", "out"}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=8, deadline=None)
@given(data=st.data())
def test_any_documents_and_any_crash(tiny_anchor: Path, tmp_path_factory: Any, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("any")
    texts = data.draw(
        st.lists(st.sampled_from(["", " ", "a", "b", "a b c", "die Katze"]) | st.text(max_size=9), max_size=30)
    )
    source = write_jsonl(folder / "a.jsonl", [*TEXTS, *texts])
    task_bytes, stop = data.draw(st.integers(20, 300)), data.draw(st.integers(0, 10))
    with pytest.MonkeyPatch.context() as patch:
        task = executors._Local.run_task

        def some(self: Any, rank: int) -> None:
            if rank == stop:
                raise CrashError
            task(self, rank)

        patch.setattr(executors._Local, "run_task", some)
        try:
            run(source, folder / "out", tiny_anchor, task_bytes=task_bytes, held_out=0.0)
        except CrashError:
            patch.undo()
            run(source, folder / "out", tiny_anchor, task_bytes=task_bytes, held_out=0.0)
    made = load_encoder(tiny_anchor)
    full = [text for text in dict.fromkeys([*TEXTS, *texts]) if text.strip()]
    assert documents(open_shard(folder / "out/train")) == [made.encode([text])[0].tolist() for text in full]


COMMAND = "import flexmix.commands.flexo_data, sys; flexmix.commands.flexo_data.main()"


def start(source: Path, output: Path, model: Path, *more: object) -> subprocess.Popen[bytes]:
    command = ["prepare", source, "-o", output, "--tokenizer", model, *more]
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *map(str, command)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def children(pid: int) -> list[int]:
    """Processes whose parent is `pid`, and theirs."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found += [int(path.parent.name), *children(int(path.parent.name))]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_outright_at_three_moments(tiny_anchor: Path, tmp_path: Path, workers: int) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", (f"{n} " + STORIES[n % 400] * 5 for n in range(30_000)))
    run(source, tmp_path / "undisturbed", tiny_anchor, workers=2, duplicates="near", task_bytes=1 << 20)
    for kill in range(3):
        process = start(
            source, tmp_path / "out", tiny_anchor, "--workers", workers, "--task-size", 1, "--duplicates", "near"
        )
        state = tmp_path / ".out.preparing"
        while len(list(state.glob("stage-*/completions/*"))) < 2 * kill + 1:
            assert process.poll() is None, "ended before it was killed"
            time.sleep(0.02)
        time.sleep(0.1 * kill)
        workers_of_it = children(process.pid)
        process.send_signal(signal.SIGKILL)
        process.wait()
        end = time.monotonic() + 10
        while any(
            Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() for pid in workers_of_it
        ):
            assert time.monotonic() < end, "a worker outlived its parent"
            time.sleep(0.05)
    process = start(
        source, tmp_path / "out", tiny_anchor, "--workers", workers, "--task-size", 1, "--duplicates", "near"
    )
    assert process.wait() == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_by_a_signal_it_stops_at_once_and_goes_on(
    tiny_anchor: Path, tmp_path: Path, signum: signal.Signals, code: int
) -> None:
    text = [f"{n} " + STORIES[n % 400] * 5 for n in range(60_000)]
    write_jsonl(tmp_path / "in/a.jsonl.gz", text)  # one long task
    write_jsonl(tmp_path / "in/b.jsonl", STORIES)
    process = start(tmp_path / "in", tmp_path / "out", tiny_anchor, "--workers", 2)
    while not list((tmp_path / ".out.preparing").glob("stage-read/completions/*")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signum)
    begin = time.monotonic()
    assert process.stderr is not None
    said = process.stderr.read().decode()
    assert process.wait() == code and time.monotonic() - begin < 5
    assert "Traceback" not in said and ("the same command goes on" in said or signum == signal.SIGTERM), said
    assert start(tmp_path / "in", tmp_path / "out", tiny_anchor, "--workers", 2).wait() == 0
    assert read_statistics(tmp_path / "out").read == 60_400


# --- what is refused


def test_two_preparations_into_one_folder_are_refused(tiny_anchor: Path, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", STORIES)
    with (
        hold(tmp_path / ".out.preparing.lock"),
        pytest.raises(InputError, match="out: another preparation is at work on this folder"),
    ):
        run(source, tmp_path / "out", tiny_anchor)
    assert run(source, tmp_path / "out", tiny_anchor).read == 400
    assert listing(tmp_path) == {"a.jsonl", "out"}


def test_a_full_disk_is_one_message_and_keeps_what_is_done(
    tiny_anchor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", STORIES)
    save, count = np.save, 0

    def full(path: Path, records: Any) -> None:
        nonlocal count
        count += 1
        if count > 3:
            raise OSError(28, "No space left on device")
        save(path, records)

    with monkeypatch.context() as patch:
        patch.setattr(steps.np, "save", full)
        with pytest.raises(InputError) as caught:
            run(source, tmp_path / "out", tiny_anchor, task_bytes=2000)
    assert str(caught.value).startswith(f"{tmp_path / 'out'}: the disk is full. What is done is kept; free some room")
    assert capsys.readouterr().err == ""
    said: list[str] = []
    assert run(source, tmp_path / "out", tiny_anchor, task_bytes=2000, say=said.append).read == 400
    assert said[0].startswith("going on: 3 of ")


def test_bad_input_in_a_worker_is_one_message(
    tiny_anchor: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "in/a.jsonl", STORIES)
    data = gzip.compress((tmp_path / "in/a.jsonl").read_bytes())
    (tmp_path / "in/b.jsonl.gz").write_bytes(data[: len(data) // 2])
    arguments = ["prepare", tmp_path / "in", "-o", tmp_path / "out", "--tokenizer", tiny_anchor]
    for workers in (1, 2):
        assert call(flexmix.commands.flexo_data.main, *arguments, "--workers", workers) == 1
        said = capsys.readouterr().err
        assert re.fullmatch(r"error: .*b.jsonl.gz: damaged gzip after line \d+ \(.*Copy the file again.\n", said), said


@pytest.mark.slow
def test_a_worker_that_is_killed_stops_the_run(tiny_anchor: Path, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", (f"{n} " + STORIES[n % 400] * 5 for n in range(30_000)))
    process = start(source, tmp_path / "out", tiny_anchor, "--workers", 2, "--task-size", 1)
    while not list((tmp_path / ".out.preparing").glob("tasks/.*")):
        time.sleep(0.05)
    workers = [pid for pid in children(process.pid) if not children(pid) and _is_worker(pid)]
    os.kill(workers[-1], signal.SIGKILL)
    assert process.stderr is not None
    said = process.stderr.read().decode()
    assert process.wait() == 1 and said.startswith("error: a worker process was killed"), said
    assert start(source, tmp_path / "out", tiny_anchor, "--workers", 2, "--task-size", 1).wait() == 0


def _is_worker(pid: int) -> bool:
    return b"tasks" in b"".join(os.fsencode(p.readlink()) for p in Path(f"/proc/{pid}/fd").iterdir() if p.is_symlink())


def test_no_document_left_is_refused_with_where_they_went(tiny_anchor: Path, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", ["one text", "", "one text", "tiny"])
    with pytest.raises(InputError) as caught:
        run(Source(str(source), min_length=9), tmp_path / "out", tiny_anchor, held_out=0.0)
    assert str(caught.value).startswith(
        "no document is left to train on. Of 4 read, 1 were empty, 0 damaged, filtered 3 by 'shorter than 9', "
        "0 duplicates, 0 held out. Loosen the filters"
    )
    assert listing(tmp_path) == {"a.jsonl"}


def test_a_single_document_is_said_to_be_alone(tiny_anchor: Path, tmp_path: Path) -> None:
    source, said = write_jsonl(tmp_path / "a.jsonl", ["one text", "one text"]), []
    found = run(source, tmp_path / "out", tiny_anchor, held_out=0.0, say=said.append)
    assert (found.train.documents, found.duplicates_exact) == (1, 1)
    assert said == [
        "a single document to train on: split long texts into their parts, such as chapters, articles or records"
    ]


def test_settings_that_make_no_sense_are_refused(tiny_anchor: Path, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", STORIES)
    for options, said in (
        ({"held_out": 1.0}, "held-out share is 1.0"),
        ({"task_bytes": 0}, "size of a task is 0 bytes"),
        ({"workers": 0}, "0 workers"),
    ):
        with pytest.raises(InputError, match=said):
            run(source, tmp_path / "out", tiny_anchor, **options)
    with pytest.raises(InputError, match=r"tokenizer.json: not a readable tokenizer"):
        run(source, tmp_path / "out", tmp_path)
    with pytest.raises(InputError, match="filter 'no:filter': cannot be loaded"):
        run(Source(str(source), keep=("no:filter",)), tmp_path / "out", tiny_anchor)
    assert listing(tmp_path) == {"a.jsonl"}


def test_statistics_that_do_not_add_up_are_our_mistake(tiny_anchor: Path, tmp_path: Path) -> None:
    found = run(write_jsonl(tmp_path / "a.jsonl", STORIES), tmp_path / "out", tiny_anchor)
    about = json.loads((tmp_path / "out/statistics.json").read_text())
    about["read"] += 1
    (tmp_path / "out/statistics.json").write_text(json.dumps(about))
    with pytest.raises(AssertionError, match="401 documents read, 0 left out, 400 kept: one is lost"):
        read_statistics(tmp_path / "out")
    assert found.read == 400
    with pytest.raises(InputError, match="not a folder made by flexo-data prepare"):
        read_statistics(tmp_path)


# --- the command


def test_the_command_and_its_table(tiny_anchor: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        "".join(json.dumps({"body": t, "lang": "en" if n % 2 else "de"}) + "\n" for n, t in enumerate(STORIES))
    )
    arguments = [path, "-o", tmp_path / "out", "--tokenizer", tiny_anchor, "--text", "body", "--where", "lang=en"]
    assert call(flexmix.commands.flexo_data.main, "prepare", *arguments) == 0
    said = capsys.readouterr().out
    assert re.search(r"read .* 400 ", said) and re.search(r"filtered: lang=en .* 200 .* 50.0 %", said)
    assert f"domain.train={tmp_path / 'out'}" in said
    assert call(flexmix.commands.flexo_data.main, "stats", tmp_path / "out") == 0
    assert re.search(r"read .* 400 ", capsys.readouterr().out)
    with (tmp_path / "out/train/tokens.bin").open("r+b") as file:
        file.write(b"\1\1")
    assert call(flexmix.commands.flexo_data.main, "stats", tmp_path / "out") == 1
    assert "tokens.bin: its sha256 is not the one written down" in capsys.readouterr().err
    for wrong, said in (
        (["--where", "lang"], "NAME=VALUE"),
        (["--slurm"], "partition"),
        (["--duplicates", "no"], "'no'"),
    ):
        assert call(flexmix.commands.flexo_data.main, "prepare", *arguments, *wrong) == 2
        assert said in capsys.readouterr().err


def test_one_large_compressed_file_that_leaves_workers_idle_is_named() -> None:
    large, small = 100 << 20, 1 << 20
    assert _uneven([large, small, small], 1) is None, "one worker is never idle"
    assert _uneven([small] * 5, 4) is None and _uneven([large] * 3, 4) is None
    assert _uneven([large, small, small], 4) == (
        "one file makes up 98% of the input, and a single worker reads it; others will have nothing to do. Cut it into "
        "several files to use them."
    )
