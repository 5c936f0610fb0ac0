"""OpenAI's interface, over HTTP."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tests.serving.asked import Alone, alone, close, renamed
from tests.serving.live import Live, events, until

NAMES = ["public", "math", "news", "code"]
GREEDY: dict[str, Any] = {"prompt": "The cat", "max_tokens": 8, "temperature": 0}


def body_of(one: Alone) -> dict[str, Any]:
    return {"prompt": list(one.job.tokens), "max_tokens": one.job.max_tokens, "temperature": 0, "logprobs": 2,
            "experts": list(one.job.experts), "echo": one.job.score}  # fmt: skip


def test_thirty_requests_at_once_get_what_each_gets_alone(server: Live, expected: list[Alone]) -> None:
    """Those whose prompts begin with the token that the server puts in front of all others."""
    jobs = [renamed(one.job, one.job.id, tokens=[0, *one.job.tokens]) for one in expected]
    theirs = alone(server.settings.model, jobs)
    with ThreadPoolExecutor(30) as pool:
        found = list(pool.map(lambda one: server.post(body_of(one)), theirs))
    answers = server.answers()
    for one, response in zip(theirs, found, strict=True):
        assert response.status_code == 200, response.text
        answer = response.json()
        (choice,) = answer["choices"]
        logprobs = choice["logprobs"]["token_logprobs"]
        close(logprobs[-len(one.tokens) :], one.logprobs, 2e-5)
        assert answer["usage"]["completion_tokens"] == len(one.tokens)
        shares = answer["usage"]["shares"]
        assert list(shares) == [name for name in NAMES if name in one.job.experts]
        close([shares.get(name, 0.0) for name in NAMES], one.shares, 1e-6)
        if one.job.score:
            assert logprobs[0] is None and len(logprobs) == len(one.job.tokens) + len(one.tokens)
            close(logprobs[1 : len(one.job.tokens)], one.prompt, 2e-5)
        line = answers[answer["id"]]
        close([line["shares"].get(name, 0.0) for name in NAMES], one.shares, 1e-6)
        receipt = server.get(f"/v1/receipts/{answer['id']}").json()
        assert receipt["log"] == response.headers["x-flexo-log"] and receipt["experts"] == line["experts"]


def test_a_key_is_narrowed_and_never_widened(server: Live) -> None:
    def texts(key: str, **given: Any) -> Any:
        return server.post(GREEDY | given, key).json().get("choices", [{}])[0].get("text")

    both, public = texts("two"), texts("two", experts=["public"])
    assert both == texts("all", experts=["math", "public"]) != public == texts("all", experts=["public"])
    assert texts("two", vllm_xargs={"experts": ["code"]}, cache_salt="", extra_body={"experts": ["code"]}) == both
    for experts in (["code"], ["gone"], ["public", "secret"], [], ["public", "public"]):
        refused = server.post(GREEDY | {"experts": experts}, "two")
        assert refused.status_code == 403
        assert (
            refused.json()["error"]["code"] == "not_entitled" and "public, math" in refused.json()["error"]["message"]
        )
        assert "news" not in refused.text
    assert server.post(GREEDY, "gone").status_code == 403
    for key in ("wrong", "flexo-"):
        assert server.post(GREEDY, key).json()["error"]["code"] == "invalid_api_key"
    assert server.http.post("/v1/completions", json=GREEDY).status_code == 401
    for path in ("/v1/models", "/v1/receipts/x"):
        assert server.get(path, "wrong").status_code == 401


def test_a_stream_says_the_same_and_counts_the_same(server: Live) -> None:
    asked = GREEDY | {"n": 2, "logprobs": 1, "stop": ["never"], "shares": True}
    whole = server.post(asked).json()
    found = events(server.post(asked | {"stream": True, "stream_options": {"include_usage": True}}))
    usage = found.pop()
    assert usage["choices"] == [] and usage["usage"]["shares"] == whole["usage"]["shares"]
    assert usage["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    for n, choice in enumerate(whole["choices"]):
        parts = [part for event in found for part in event["choices"] if part["index"] == n]
        assert "".join(part["text"] for part in parts) == choice["text"]
        assert parts[-1]["finish_reason"] == choice["finish_reason"]
        assert [token for part in parts for token in part["logprobs"]["tokens"]] == choice["logprobs"]["tokens"]
        assert [token for part in parts for token in part.get("tokens", [])] == choice["tokens"]
        assert "".join(token["text"] for token in choice["tokens"]) == choice["text"]
    assert server.answers()[found[0]["id"]]["whole"] is True


def test_several_prompts_and_answers(server: Live) -> None:
    answer = server.post(GREEDY | {"prompt": ["The cat", "The dog"], "n": 2, "echo": True}).json()
    texts = [choice["text"] for choice in answer["choices"]]
    assert [text[:7] for text in texts] == ["The cat"] * 2 + ["The dog"] * 2 and texts[0] == texts[1]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    one = server.post(GREEDY | {"echo": True}).json()
    assert one["choices"][0]["text"] == texts[0]
    assert answer["usage"]["prompt_tokens"] > one["usage"]["prompt_tokens"]
    assert answer["usage"]["completion_tokens"] == sum(
        server.post(GREEDY | {"prompt": prompt}).json()["usage"]["completion_tokens"] * 2
        for prompt in ("The cat", "The dog")
    )


def test_seeds_repeat_and_differ(server: Live) -> None:
    def text(**given: Any) -> str:
        return str(
            server.post({"prompt": "The", "max_tokens": 12, "temperature": 1.5} | given).json()["choices"][-1]["text"]
        )

    assert text(seed=1) == text(seed=1) != text(seed=2) == text(seed=1, n=2)


def test_the_openai_client(server: Live) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.secrets["two"], max_retries=0)
    (model,) = client.models.list().data
    assert model.id == "model" and client.models.retrieve("model").id == "model"
    made = client.completions.create(model="model", **GREEDY, extra_body={"experts": ["public"]})
    streamed = client.completions.create(model="model", **GREEDY, extra_body={"experts": ["public"]}, stream=True)
    assert "".join(part.choices[0].text for part in streamed) == made.choices[0].text
    with pytest.raises(openai.BadRequestError, match="no chat template"):
        client.chat.completions.create(model="model", messages=[{"role": "user", "content": "hello"}])
    with pytest.raises(openai.PermissionDeniedError, match="which this key allows"):
        client.completions.create(model="model", prompt="x", extra_body={"experts": ["code"]})
    with pytest.raises(openai.NotFoundError, match="Expected 'model'"):
        client.completions.create(model="gpt-4", prompt="x")
    client.api_key = "wrong"
    with pytest.raises(openai.AuthenticationError, match="no valid API key"):
        client.models.list()


def test_models_show_what_the_key_allows(server: Live) -> None:
    (about,) = server.get("/v1/models", "two").json()["data"]
    assert [expert["domain"] for expert in about["experts"]] == ["public", "math"]
    assert about["experts"][1] == {"place": 1, "domain": "math", "title": "Text about math", "licence": "CC-BY-4.0",
                                   "contact": "owner@example.org"}  # fmt: skip
    assert about["max_model_len"] == 128 and not about["chat"]


def test_a_client_that_leaves_a_stream_is_counted_for_what_it_was_told(server: Live) -> None:
    asked = GREEDY | {"max_tokens": 100, "stream": True, "temperature": 2, "seed": 3}
    with server.http.stream("POST", "/v1/completions", json=asked, headers=server.headers("all")) as response:
        name = response.headers["x-request-id"]
        next(response.iter_lines())
    until(lambda: name in server.answers())
    line = server.answers()[name]
    assert line["whole"] is False or line["completion_tokens"] <= 100
    until(lambda: not any(engine.load for engine in server.engines))


def test_receipts_are_for_the_key_alone(server: Live) -> None:
    id = server.post(GREEDY, "two").json()["id"]
    assert server.get(f"/v1/receipts/{id}", "two").status_code == 200
    for key in ("all", "other"):
        assert server.get(f"/v1/receipts/{id}", key).json()["error"]["code"] == "no_receipt"


def test_a_cached_prefix_is_told_to_its_tenant_alone(server: Live) -> None:
    asked = GREEDY | {"prompt": "A prompt of one tenant that is long enough for blocks.", "experts": ["public"]}

    def cached(key: str) -> int:
        return int(server.post(asked, key).json()["usage"]["prompt_tokens_details"]["cached_tokens"])

    assert cached("two") == 0 and cached("two") > 0 and cached("other") == 0 and cached("all") == 0


def test_what_an_operator_asks(server: Live) -> None:
    assert server.http.get("/health").json() == {"status": "ok"}
    assert server.http.get("/ready").json() == {"ready": True, "faults": []}
    text = server.http.get("/metrics").text
    assert 'flexo_expert_tokens_total{expert="math"}' in text and "flexo_engines 1.0" in text
    assert 'flexo_requests_total{key="all",status="200"}' in text
    assert server.http.get("/nothing").json()["error"]["type"] == "not_found_error"
    assert "docs/serving.md" in server.http.get("/v1/completions").json()["error"]["message"]
