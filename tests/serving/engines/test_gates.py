"""Requests of many sets at once get what each gets alone under `select_experts`: text, log-probabilities, shares."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers.generation.continuous_batching.requests import RequestState

from flexo.errors import InputError
from serving.engines.engine import Failed, Job, NotEntitledError
from tests.serving.asked import ENGINES, SETS, SMALL, Alone, Asked, alone, renamed, requests

KINDS = pytest.mark.parametrize("kind", ENGINES)


@KINDS
def test_thirty_requests_of_six_sets_at_once(served: Path, expected: list[Alone], kind: str) -> None:
    with Asked(served, kind) as asked:
        asked.ask(requests())
        for one in expected:
            asked.agrees(one)
    different = {tuple(one.tokens) for one in expected[-6:]}
    assert len(different) > 3, "the sets would not tell themselves apart"


def test_in_chunks_and_with_a_cache_that_is_too_small(
    served: Path, expected: list[Alone], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some requests lose their place and are computed again; their tokens count once."""
    again, preempted = RequestState.create_equivalent_initial_request, []
    monkeypatch.setattr(
        RequestState, "create_equivalent_initial_request", lambda state: preempted.append(state) or again(state)
    )
    with Asked(served, options=replace(SMALL, pass_tokens=8, blocks=9, at_once=6)) as asked:
        asked.ask(requests())
        for one in expected:
            asked.agrees(one)
    assert preempted


@KINDS
def test_one_prompt_several_times_and_one_of_them_cancelled(served: Path, expected: list[Alone], kind: str) -> None:
    long = [renamed(job, f"long{n}", max_tokens=60, score=False) for n, job in enumerate(requests()[:6])]
    with Asked(served, kind) as asked:
        for job in [*long, *(renamed(one.job, f"{one.job.id}-{n}") for one in expected for n in range(2))]:
            asked.engine.submit(job)
        asked.wait([long[0].id], tokens=2)
        for job in long:
            asked.engine.cancel(job.id)
        asked.engine.cancel("nobody")
        asked.wait(f"{one.job.id}-{n}" for one in expected for n in range(2))
        for one in expected:
            for n in range(2):
                asked.agrees(one, f"{one.job.id}-{n}")
        heard = len(asked.made(long[0].id))
        assert 2 <= heard < 60
        asked.ask([renamed(expected[0].job, "after")])
        assert len(asked.made(long[0].id)) == heard
        assert not asked.engine._answering


def test_a_cached_beginning_is_read_by_the_same_tenant_and_set_alone(served: Path, expected: list[Alone]) -> None:
    """So the time to the first token tells nobody what others have asked."""
    with Asked(served) as asked:
        for again in range(2):
            for tenant in ("alice", "bob"):
                for one in expected[-6:][::-1]:
                    job = renamed(one.job, f"{one.job.id}-{tenant}-{again}", tenant=tenant, score=False)
                    asked.ask([job])
                    asked.agrees(replace(one, job=replace(one.job, score=False)), job.id)
                    assert asked.ended(job.id).cached == 16 * again
        asked.ask([renamed(expected[-6].job, "scored")])
        assert asked.ended("scored").cached == 0
        asked.agrees(expected[-6], "scored")
    with Asked(served, options=replace(SMALL, share_prefixes=False)) as asked:
        for name in "ab":
            asked.ask([renamed(job, name)])
        assert asked.ended("b").cached == 0


@KINDS
@pytest.mark.parametrize("value", [float("nan"), 1e30])
def test_a_broken_expert_breaks_the_answers_of_those_who_may_use_it_alone(
    served: Path, expected: list[Alone], kind: str, value: float
) -> None:
    with Asked(served, kind) as asked:
        for layer in asked.model.model.layers:
            block = layer.mlp
            for weight in (block.gate.weight, block.experts.gate_up_proj, block.experts.down_proj):
                weight.data[3] = value
        asked.ask(requests())
        for one in expected:
            if "code" not in one.job.experts:
                asked.agrees(one)
            else:
                assert not asked.made(one.job.id)
                last = asked.events[one.job.id][-1]
                assert isinstance(last, Failed) and "not finite" in last.why and not last.again
        asked.ask([renamed(expected[0].job, "after")])
        asked.agrees(expected[0], "after")


@KINDS
def test_a_pass_that_fails_ends_its_own_requests_and_no_others(served: Path, expected: list[Alone], kind: str) -> None:
    with Asked(served, kind) as asked:
        head = asked.model.lm_head.forward

        def fail(*_: object) -> None:
            asked.model.lm_head.forward = head
            raise MemoryError("secret of another prompt")

        asked.model.lm_head.forward = fail
        asked.ask([renamed(expected[0].job, "failed")])
        last = asked.events["failed"][-1]
        assert last == Failed("a pass failed (MemoryError).", again=True)
        asked.ask(requests())
        for one in expected:
            asked.agrees(one)


@KINDS
def test_a_stop_string_ends_an_answer_and_is_no_part_of_it(served: Path, expected: list[Alone], kind: str) -> None:
    job = replace(expected[4].job, max_tokens=30, score=False)
    with Asked(served, kind) as asked:
        asked.ask([renamed(job, "whole")])
        whole = asked.text("whole")
        middle = whole[len(whole) // 2 : len(whole) // 2 + 3]
        asked.ask([renamed(job, "stopped", stop=["never!", middle]), renamed(job, "held", stop=[whole + "!"])])
        assert asked.text("stopped") == whole[: whole.index(middle)] and asked.ended("stopped").reason == "stop"
        assert len(asked.made("stopped")) < len(asked.made("whole"))
        assert asked.text("held") == whole and asked.ended("held").reason == "length"


@KINDS
def test_sampling_is_by_request(served: Path, kind: str) -> None:
    job = Job("a", "alice", ["public", "math"], [5, 6, 7], 12, temperature=1.0, seed=1)
    others = [renamed(job, "b"), renamed(job, "c", seed=2), renamed(job, "d", seed=None), renamed(job, "e", top_p=1e-9),
              renamed(job, "f", temperature=0.0)]  # fmt: skip
    with Asked(served, kind) as asked:
        asked.ask([job, *others])
        a, b, c, d, e, f = ([made.token for made in asked.made(name)] for name in "abcdef")
    assert a == b and len({tuple(one) for one in (a, c, d, f)}) == 4 and e == f


@KINDS
def test_what_cannot_be_answered_is_refused_with_a_sentence(served: Path, kind: str) -> None:
    job = Job("a", "alice", ["public"], [5, 6, 7], 12)
    with Asked(served, kind) as asked:
        for experts in ([], ["secret"], ["public", "public"], ["Public"]):
            with pytest.raises(NotEntitledError, match="expected one or more of public, math, news, code"):
                asked.engine.submit(replace(job, experts=experts))
        for changes in ({"tokens": []}, {"max_tokens": 10**6}):
            with pytest.raises(InputError, match=r"at most \d+ in all"):
                asked.engine.submit(replace(job, **changes))
        assert not asked.engine._answering


def test_a_pass_that_nobody_has_prepared_uses_the_public_expert_alone(served: Path, expected: list[Alone]) -> None:
    public = next(one for one in expected if one.job.experts == SETS[0])
    with Asked(served) as asked:
        x_ND = torch.randn(5, 32)
        block = asked.model.model.layers[1].mlp
        told: list[torch.Tensor] = []
        block.experts.register_forward_hook(lambda _module, given, _made: told.append(given[1]))
        block(x_ND[None])
        assert set(told[0].flatten().tolist()) == {0}
        asked.ask([public.job])
        assert set(torch.cat(told[1:]).flatten().tolist()) == {0}, "a forbidden expert ran"
        assert all(index_NK.shape[1] == 1 for index_NK in told[1:]), "spare places ran"
        asked.agrees(public)


@KINDS
def test_a_model_with_several_end_tokens_and_no_limit_of_its_own(
    served: Path, expected: list[Alone], tmp_path: Path, kind: str
) -> None:
    one = next(one for one in expected if len(set(one.tokens[:3])) == 3 and 0 not in one.tokens)
    folder = tmp_path / "model"
    shutil.copytree(served, folder)
    for name in ("config.json", "generation_config.json"):
        content = json.loads((folder / name).read_text()) | {"eos_token_id": [0, one.tokens[2]]}
        if name == "config.json":
            content["max_position_embeddings"] = -1
        (folder / name).write_text(json.dumps(content))
    with Asked(folder, kind) as asked:
        assert asked.engine.limit == SMALL.blocks * SMALL.block_tokens
        asked.ask([renamed(one.job, "ends")])
        assert [made.token for made in asked.made("ends")] == one.tokens[:3] and asked.ended("ends").reason == "stop"


@KINDS
def test_half_precision(served: Path, kind: str) -> None:
    jobs = [renamed(job, job.id, score=True) for job in requests()]
    with Asked(served, kind, replace(SMALL, dtype="bfloat16")) as asked:
        asked.ask(jobs)
        asked.agrees_roughly(alone(served, jobs))


def test_events_hold_what_json_can(served: Path, expected: list[Alone]) -> None:
    with Asked(served) as asked:
        asked.ask([expected[0].job])
        assert "NaN" not in json.dumps(asked.events[expected[0].job.id])
