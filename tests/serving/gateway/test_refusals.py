"""What bad input gets: an OpenAI error object with a sentence, never a 500, and nothing of anybody else."""

from __future__ import annotations

import json
import random
import re
import socket
from typing import Any

import pytest

from tests.serving.live import Live

GOOD: dict[str, Any] = {"model": "model", "prompt": "The cat", "max_tokens": 2, "temperature": 0}
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 0.5, -0.0, 1e400, 10**30, "", "x", "\ud800", "\0", [], [[]], [0], [0, "x"], {},
    {"a": 1}, ["x"] * 5, [[1], [2]], [95], [96], "The " * 200, [True], [None],
]  # fmt: skip
FIELDS = [
    *GOOD, "experts", "stop", "n", "seed", "logprobs", "echo", "stream", "top_p", "stream_options", "best_of", "suffix",
    "logit_bias", "presence_penalty", "vllm_xargs", "cache_salt", "shares", "user", "messages", "tools",
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "status", "said"),
    [
        ({"temperature": -1}, 400, "temperature: .*greater than or equal to 0, got -1"),
        ({"temperature": "hot"}, 400, "temperature: .*got 'hot'"),
        ({"temperature": True}, 400, "temperature"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": 127}, 400, "127 new ones: expected at most 128 in all"),
        ({"prompt": "The cat sat on the mat. " * 40}, 400, "Shorten the prompt"),
        ({"prompt": []}, 400, "prompt"),
        ({"prompt": [96]}, 400, "token 96: this model has 96 tokens"),
        ({"n": 200}, 400, "n: "),
        ({"n": 100, "prompt": ["a", "b"]}, 400, "2 prompts times n of 100"),
        ({"logprobs": 50}, 400, "logprobs: "),
        ({"stop": [""]}, 400, "stop: "),
        ({"best_of": 3}, 400, "best_of: expected n"),
        ({"suffix": "x"}, 400, "suffix"),
        ({"logit_bias": {"1": 2}}, 400, "logit_bias"),
        ({"presence_penalty": 1}, 400, "presence_penalty"),
        ({"model": "gpt-4"}, 404, "Expected 'model'"),
    ],
)
def test_fields_are_refused_with_their_name(server: Live, changes: dict[str, Any], status: int, said: str) -> None:
    response = server.post(GOOD | changes)
    error = response.json()["error"]
    assert response.status_code == status and error.keys() == {"message", "type", "param", "code"}
    assert re.search(said, error["message"]), error["message"]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 400, "not JSON"),
        (b"[1]", 400, "valid dictionary"),
        (b'{"prompt": "\xff"}', 400, "not UTF-8 at byte 13"),
        (b'{"prompt": "\\ud800"}', 400, "half of a surrogate pair"),
        (b'{"prompt": "a", "prompt": "b"}', 400, "the same name twice"),
        (b'{"prompt": "a", "seed": NaN}', 400, "not JSON"),
        (b"[" * 100_000, 400, "nested"),
        (b'{"prompt": ' + b"9" * 5000 + b"}", 400, "not JSON"),
        (b" " * 300_001, 413, "at most 300000 bytes"),
    ],
)
def test_bodies_are_refused(server: Live, body: bytes, status: int, said: str) -> None:
    response = server.post(body)
    assert response.status_code == status and said in response.json()["error"]["message"]


def test_a_body_of_100_mb_is_refused_before_it_is_read(server: Live) -> None:
    with socket.create_connection(("127.0.0.1", server.http.base_url.port or 0)) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 413")


def test_the_fuzz_finds_nothing(server: Live) -> None:
    fuzz(server, 300)


@pytest.mark.slow
def test_the_long_fuzz_finds_nothing(server: Live) -> None:
    fuzz(server, 10_000)


def fuzz(server: Live, count: int) -> None:
    """Bodies with some wrong fields, some cut or overwritten: no 500, no expert, prompt or key of anybody else."""
    dice = random.Random(count)
    server.post(GOOD | {"prompt": "zebra quartz zebra quartz", "max_tokens": 20}, "all")
    logged = len(server.answers())
    answered = 0
    for _ in range(count):
        body: Any = dict(GOOD)
        for _ in range(dice.randint(1, 3)):
            body[dice.choice(FIELDS)] = dice.choice(VALUES)
        data = json.dumps(body).encode()
        if dice.random() < 0.3:
            place = dice.randrange(len(data))
            data = data[:place] + dice.randbytes(dice.randint(0, 4)) + data[place + dice.randint(0, 9) :]
        path = dice.choice(["/v1/completions"] * 4 + ["/v1/chat/completions"])
        response = server.post(data, "other", path)
        assert response.status_code in (200, 400, 403, 404), (response.status_code, data, response.text)
        answered += response.status_code == 200
        for secret in ("zebra", "news", "code: ", *server.secrets.values()):
            assert secret not in response.text, (secret, data, response.text)
    assert answered > count / 50
    assert len(server.answers()) == logged + answered
    shares = [line["shares"] for line in server.answers().values() if line["key"] == "other"]
    assert all(share.keys() <= {"public", "math"} for share in shares)
    assert server.http.get("/ready").status_code == 200
