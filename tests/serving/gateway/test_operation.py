"""Engines that die, models that change, logs that cannot be written, keys that are taken away: while a server runs."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from flexo.errors import InputError
from merge.formats.manifest import MANIFEST
from merge.formats.signing import make_key
from merge.planning.membership import opt_out
from serving.access.keys import add_key, revoke_key
from serving.engines import probe, remote
from serving.engines.engine import EngineOptions, Failed, Job
from serving.engines.routing import EntitledBlock
from serving.engines.worker import build
from serving.gateway.pool import Pool
from serving.gateway.server import _stamp
from serving.gateway.settings import read_settings
from serving.receipts.log import Log, LogError, read_log
from tests.serving.conftest import KEYS, LIMITS
from tests.serving.live import SMALL, events, live, meanwhile, until

ASK: dict[str, Any] = {"prompt": "The cat", "max_tokens": 6, "temperature": 0}
ALL = {"all": KEYS["all"] | LIMITS}


def test_a_link_that_is_changed_while_it_is_looked_at_is_one_model_or_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next look finds another change, and loads the same model once more."""
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / MANIFEST).write_text(name * int(name))
    link, stat = tmp_path / "model", Path.stat
    link.symlink_to(tmp_path / "1")
    before = _stamp(link)

    def changed(path: Path, **given: Any) -> os.stat_result:
        found = stat(path, **given)
        (tmp_path / "next").symlink_to(tmp_path / "2")
        (tmp_path / "next").rename(link)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", changed)
        meanwhile = _stamp(link)
    after = _stamp(link)
    assert before == meanwhile != after


def test_a_model_changes_without_a_failing_request_and_who_left_answers_no_more(
    served: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A link that points elsewhere, as an operator or `flexo-federation fetch` would change it."""
    (tmp_path / "models").mkdir()
    first, second = tmp_path / "models/1", tmp_path / "models/2"
    shutil.copytree(served, first)
    opt_out(first, second, drop=["news"])
    link = tmp_path / "model"
    link.symlink_to(first)
    with live(tmp_path, link, ALL, watch_seconds=0.05) as server:
        before = server.post(ASK).json()
        assert server.post(ASK | {"experts": ["news"]}).status_code == 200
        found: list[httpx.Response] = []
        with meanwhile(lambda: found.append(server.post(ASK | {"max_tokens": 30})), threads=4):
            until(lambda: len(found) > 8)
            (tmp_path / "next").symlink_to(second)
            (tmp_path / "next").rename(link)
            until(lambda: len(server.engines) == 2 and not server.engines[0].alive)
        assert {response.status_code for response in found} == {200}
        after = server.post(ASK).json()
        assert after["model"] == "model" and after["system_fingerprint"] != before["system_fingerprint"]
        assert server.post(ASK | {"experts": ["news"]}).status_code == 403
        models = [line["model"] for line in server.log() if line["what"] == "model"]
        lines = [line for line in server.log() if line["what"] == "answer"]
        changed = [line["model"] for line in lines].index(models[1])
        assert len(models) == 2 and not any(
            "news" in line["experts"] for line in lines[changed:] if line["model"] == models[1]
        )
        assert {response.json()["id"] for response in found} <= server.answers().keys()
        # one that is broken changes nothing
        broken = tmp_path / "models/3"
        shutil.copytree(second, broken)
        shard = next(broken.glob("*.safetensors"))
        data = bytearray(shard.read_bytes())
        data[-1] ^= 1
        shard.write_bytes(data)
        (tmp_path / "next").symlink_to(broken)
        (tmp_path / "next").rename(link)
        until(lambda: "the model that is served stays" in caplog.text)
        assert server.engines[1].alive and server.post(ASK).json()["choices"] == after["choices"]
        (tmp_path / "next").symlink_to(second)
        (tmp_path / "next").rename(link)


@pytest.mark.slow
def test_an_engine_that_dies_is_taken_out_and_comes_again(served: Path, tmp_path: Path) -> None:
    with live(tmp_path, served, ALL, engines=2) as server, ThreadPoolExecutor(8) as pool:
        expected = server.post(ASK | {"max_tokens": 60}).json()["choices"]
        answers = [pool.submit(server.post, ASK | {"max_tokens": 60}) for _ in range(8)]
        until(lambda: server.engines[0].load > 0)
        server.engines[0].die()
        for answer in answers:  # nothing had been told of them, so they were tried again
            assert answer.result().status_code == 200 and answer.result().json()["choices"] == expected
        until(lambda: len(server.engines) == 3 and server.engines[2].alive)
        ids = [answer.result().json()["id"] for answer in answers]
        logged = [line["id"] for line in server.log() if line["what"] == "answer"]
        assert all(logged.count(id) == 1 for id in ids)
        for engine in server.engines[1:]:
            engine.alive = False
        refused = server.post(ASK)
        assert (
            refused.status_code == 503 and "no engine is running" in refused.text and "retry-after" in refused.headers
        )
        assert server.http.get("/ready").json() == {"ready": False, "faults": ["no engine is running"]}
        for engine in server.engines[1:]:
            engine.alive = True


class Loading:
    """An engine that takes for ever to load."""

    alive, load, limit = False, 0, 0

    def __init__(self, *_given: object) -> None:
        self.began, self._closed = threading.Event(), threading.Event()
        self.close = self._closed.set

    def wait_ready(self) -> None:
        self.began.set()
        if not self._closed.wait(60):
            raise AssertionError("nobody has closed it")
        raise InputError("closed")

    def submit(self, _job: Job) -> None: ...
    def cancel(self, _job: str) -> None: ...


def test_a_stop_while_a_model_loads_ends_its_engines(served: Path) -> None:
    """Otherwise the loop, as it ends, would wait for the thread that waits for them."""
    engines = [Loading(), Loading()]
    coming = iter(engines)

    async def stopped() -> None:
        pool = Pool(EngineOptions(), 2, lambda *_given: next(coming))
        serving = asyncio.ensure_future(pool.serve(served))
        for engine in engines:
            await asyncio.to_thread(engine.began.wait)
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        assert all(engine._closed.is_set() for engine in engines)
        for engine in engines:
            engine.close()

    asyncio.run(stopped())


def test_a_request_to_an_engine_that_has_just_died_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be chosen before anybody knows of its end."""
    monkeypatch.setattr(remote, "work", print)  # and that is all that its process does
    heard: list[Any] = []
    engine = remote.RemoteEngine(Path(), EngineOptions(), heard.extend, lambda: None)
    with pytest.raises(InputError, match="has ended"):
        engine.wait_ready()
    engine._thread.join()
    engine.submit(Job("a", "alice", ["public"], [5], 1))
    engine.close()
    assert heard == [("a", Failed("the engine has stopped.", again=True))]


def test_keys_come_and_go(served: Path, tmp_path: Path) -> None:
    with live(tmp_path, served, ALL) as server:
        path = server.settings.keys
        server.secrets["new"] = add_key(path, "new", experts=["public"], requests_per_minute=2)
        assert server.post(ASK, "new").status_code == server.post(ASK, "new").status_code == 200
        assert server.post(ASK, "new").json()["error"]["code"] == "rate_limit"
        revoke_key(path, "new")
        assert server.post(ASK, "new").status_code == 401
        kept = path.read_bytes()
        path.write_text("keys: [")
        assert server.post(ASK).status_code == 503 and not server.http.get("/ready").json()["ready"]
        path.write_bytes(kept)
        assert server.post(ASK).status_code == 200


def test_nothing_is_answered_that_cannot_be_logged(
    served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with live(tmp_path, served, ALL) as server:
        append = Log.append

        def full(*_: object, **__: object) -> str:
            raise LogError("the disk is full")

        monkeypatch.setattr(Log, "append", full)
        refused = server.post(ASK)
        assert refused.status_code == 503 and "choices" not in refused.json() and "disk" not in refused.text
        text = server.post(ASK | {"stream": True}).text
        assert "cannot write its log" in text and "[DONE]" not in text
        assert server.http.get("/ready").json()["faults"] == ["the log cannot be written"]
        monkeypatch.setattr(Log, "append", append)
        assert server.post(ASK).status_code == 200 and server.http.get("/ready").status_code == 200


@pytest.mark.slow
def test_a_client_that_sends_slowly_is_refused_and_a_stop_is_graceful(served: Path, tmp_path: Path) -> None:
    public, _ = make_key(tmp_path / "server.pem")
    given = {"body_seconds": 0.2, "sign": tmp_path / "server.pem"}
    with live(tmp_path, served, ALL, **given) as server, ThreadPoolExecutor(1) as pool:
        with socket.create_connection(("127.0.0.1", server.http.base_url.port or 0)) as client:
            client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
            assert client.recv(1000).startswith(b"HTTP/1.1 408")
        asking = pool.submit(server.post, ASK | {"max_tokens": 100, "stream": True})
        until(lambda: server.engines[0].load > 0)
        server.server.should_exit = True
        assert len(events(asking.result())) > 50
    assert [line["what"] for _, line in read_log(tmp_path / "log", public)] == ["model", "answer"]
    assert (tmp_path / "log/000001.jsonl.sig").exists()


def test_a_model_is_probed_before_it_is_served(served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = EngineOptions(**SMALL)
    build(served, options, print).close()
    monkeypatch.setattr(EntitledBlock, "forward", lambda self, x: self.experts_of_all(x))
    with pytest.raises(InputError, match="the probe under public failed"):
        build(served, options, print)
    monkeypatch.undo()
    monkeypatch.setattr("serving.engines.packed.EntitledBlock", lambda block, *_: block)
    with pytest.raises(InputError, match="Selections are not in force, and nothing is served"):
        build(served, options, print)
    monkeypatch.undo()
    monkeypatch.setattr(probe, "MINUTES", 0.0)
    with pytest.raises(InputError, match="was not answered"):
        build(served, options, print)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"host": "0.0.0.0"}, "keys would cross the network unprotected"),
        ({"port": 99999}, "port"),
        ({"engine": {"kind": "gpu"}}, r"engine\.kind"),
        ({"engine": {"kind": "vllm"}}, "the interpreter of vLLM's environment"),
        ({"engine": {"arguments": {"enable_eplb": True}}}, "goes with kind: vllm"),
        ({"colour": "red"}, "colour"),
        ({"model": None}, "model"),
    ],
)
def test_settings_are_checked(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_settings(None, **{"model": "m", "keys": "k"} | given)


def test_paths_of_a_settings_file_are_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text("model: model\nkeys: /etc/keys.yaml\nhost: 0.0.0.0\ntls: {certificate: c.pem, key: k.pem}\n"
                    "engine: {kind: vllm, python: vllm/bin/python, arguments: {model: x}}\n")  # fmt: skip
    found = read_settings(path, port=1)
    assert found.model == tmp_path / "model" and str(found.keys) == "/etc/keys.yaml" and found.port == 1
    assert found.tls and found.tls.certificate == tmp_path / "c.pem"
    assert found.options().python == str(tmp_path / "vllm/bin/python") and found.options().arguments == {"model": "x"}
    for text in ("- 1", "model: [", "\0"):
        path.write_text(text)
        with pytest.raises(InputError, match=r"serve\.yaml"):
            read_settings(path)


@pytest.mark.slow
def test_a_padded_engine_serves_the_same(served: Path, tmp_path: Path) -> None:
    texts = []
    for kind in ("packed", "padded"):
        with live(tmp_path / kind, served, ALL, engine=SMALL | {"kind": kind}) as server:
            texts.append(
                [server.post(ASK | {"experts": experts}).json()["choices"] for experts in (["public"], ["math"])]
            )
    assert texts[0] == texts[1]


def test_a_chat_template_is_used(served: Path, tmp_path: Path) -> None:
    model = tmp_path / "chatty"
    shutil.copytree(served, model)
    (model / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }} {% endfor %}")
    with live(tmp_path, model, ALL) as server:
        messages = [{"role": "user", "content": [{"type": "text", "text": "The"}]}, {"role": "user", "content": "cat"}]
        body = {"messages": messages, "max_tokens": 6, "temperature": 0, "logprobs": True, "top_logprobs": 2}
        answer = server.post(body, path="/v1/chat/completions").json()
        found = events(server.post(body | {"stream": True}, path="/v1/chat/completions"))
        choice = answer["choices"][0]
        plain = server.post({"prompt": server_tokens(model), "max_tokens": 6, "temperature": 0}).json()["choices"][0]
        assert choice["message"]["role"] == "assistant" and answer["object"] == "chat.completion"
        assert len(choice["logprobs"]["content"]) == 6 and len(choice["logprobs"]["content"][0]["top_logprobs"]) == 2
        said = "".join(event["choices"][0]["delta"].get("content", "") for event in found)
        assert said == choice["message"]["content"] and found[0]["choices"][0]["delta"]["role"] == "assistant"
        assert plain["text"] or choice
        for wrong in ({"messages": []}, {"messages": [{"role": "tool", "content": "x"}]}, {"tools": [{}]}):
            assert server.post(body | wrong, path="/v1/chat/completions").status_code == 400


def server_tokens(model: Path) -> list[int]:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    return list(tokenizer("The cat ")["input_ids"])
