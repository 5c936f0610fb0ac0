"""Whether a server stays right under load: clients that cancel and send nonsense, and engines that are killed.

    OMP_NUM_THREADS=1 nice python benchmarks/serving_load.py MODEL [--minutes 30 --clients 64 --pause 20 --kill 300]

It starts `flexo-serve` with two engines, kills one with SIGKILL every `--kill` seconds, and at the end stops the server
and reads its log. Every greedy answer is compared with `select_experts`, and every answer with its line in the log.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import torch
import yaml

from inference.load import load_model
from inference.prompt import prompt_tokens
from inference.select import expert_names, select_experts
from serving.access.keys import add_key
from serving.receipts.log import read_log

WORDS = ["The", "city", "is", "the", "capital", "of", "7", "and", "8", ",", "def", "return", "once", "there", "was"]
WRONG: list[Any] = [
    b"", b"{", b'{"prompt": "\xff"}', {"prompt": 7}, {"prompt": "a", "n": -1}, {"prompt": "a" * 10**6},
    {"prompt": "a", "experts": []}, {"prompt": "a", "experts": ["nobody"]}, {"prompt": "a", "max_tokens": 10**9},
]  # fmt: skip
LIMITS = {"requests_per_minute": 10**6, "tokens_per_day": 10**9, "at_once": 100}


class Load:
    """What the clients asked and heard."""

    def __init__(self, folder: Path, place: Path, given: argparse.Namespace) -> None:
        self.given, self.place, self.model, self.tokenizer = given, place, *load_model(folder, "float32", "cpu")
        names = expert_names(self.model)
        self.sets = [names[:1], names[:2], names[1:], names, names[-1:], [names[0], names[-1]]]
        self.secrets = [
            add_key(place / "keys.yaml", f"k{n}", experts=names, **LIMITS) for n, names in enumerate(self.sets)
        ]
        dice = random.Random(0)
        self.prompts = [" ".join(dice.choices(WORDS, k=5 + 3 * n)) for n in range(12)]
        self.statuses: collections.Counter[str] = collections.Counter()
        self.answers: list[dict[str, Any]] = []  # id, set, prompt, tokens, text, log, shares
        self.cancelled: set[str] = set()
        self.megabytes: list[tuple[float, float, int]] = []  # minute, of the gateway, of everything
        self.kills = 0

    async def client(self, http: httpx.AsyncClient, n: int, end: float) -> None:
        dice = random.Random(n)
        while time.monotonic() < end:
            await asyncio.sleep(dice.expovariate(1 / self.given.pause))
            key, kind = dice.randrange(len(self.sets)), dice.random()
            headers = {"Authorization": f"Bearer {self.secrets[key]}"}
            try:
                if kind < 0.15:
                    body = dice.choice(WRONG)
                    data = body if isinstance(body, bytes) else json.dumps(body).encode()
                    found = await http.post("/v1/completions", content=data, headers=headers)
                    self.statuses[f"malformed {found.status_code}"] += 1
                elif kind < 0.3:
                    await self._cancel(http, headers, dice)
                else:
                    await self._ask(http, headers, key, dice, streamed=kind > 0.65)
            except httpx.HTTPError as error:
                self.statuses[type(error).__name__] += 1

    async def _ask(self, http: httpx.AsyncClient, headers: dict[str, str], key: int, dice: Any, streamed: bool) -> None:
        narrowed = dice.choice([names for names in self.sets if set(names) <= set(self.sets[key])])
        prompt, tokens = dice.randrange(len(self.prompts)), dice.choice([1, 8, 32])
        body = {"prompt": self.prompts[prompt], "max_tokens": tokens, "temperature": 0, "experts": narrowed}
        told = {"set": narrowed, "prompt": prompt, "tokens": tokens}
        if not streamed:
            found = await http.post("/v1/completions", json=body, headers=headers)
            self.statuses[f"whole {found.status_code}"] += 1
            if found.status_code == 200:
                answer = found.json()
                told |= {"id": answer["id"], "log": found.headers["x-flexo-log"], "text": answer["choices"][0]["text"]}
                self.answers.append(told | {"shares": answer["usage"]["shares"]})
            return
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        text, usage = "", {}
        async with http.stream("POST", "/v1/completions", json=body, headers=headers) as found:
            async for line in found.aiter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line[6:])
                    text += "".join(choice["text"] for choice in event.get("choices", []))
                    usage = event.get("usage", usage)
                elif line.startswith(": log "):
                    told["log"] = line[6:]
        if "log" in told:
            self.answers.append(told | {"id": found.headers["x-request-id"], "text": text, "shares": usage["shares"]})
        elif "x-request-id" in found.headers:
            self.cancelled.add(found.headers["x-request-id"])
        self.statuses[f"stream {found.status_code}{'' if 'log' in told else ', cut'}"] += 1

    async def _cancel(self, http: httpx.AsyncClient, headers: dict[str, str], dice: Any) -> None:
        body = {"prompt": dice.choice(self.prompts), "max_tokens": 300, "stream": True, "temperature": 1}
        async with http.stream("POST", "/v1/completions", json=body, headers=headers) as found:
            self.cancelled.add(found.headers.get("x-request-id", ""))
            lines = found.aiter_lines()
            for _ in range(dice.randrange(6)):
                await anext(lines, None)
        self.statuses[f"cancelled {found.status_code}"] += 1

    async def watch(self, pid: int, end: float) -> None:
        """Kills engines, and measures."""
        began = killed = time.monotonic()
        dice = random.Random(1)
        while time.monotonic() < end:
            await asyncio.sleep(min(10, self.given.kill / 3))
            engines = engines_of(pid)
            mine, whole = megabytes(pid), sum(map(megabytes, engines))
            self.megabytes.append(((time.monotonic() - began) / 60, mine, round(whole / max(1, len(engines)))))
            if time.monotonic() - killed > self.given.kill and engines:
                killed, self.kills = time.monotonic(), self.kills + 1
                os.kill(dice.choice(engines), signal.SIGKILL)

    def report(self) -> None:
        lines = [(digest, line) for digest, line in read_log(self.place / "log") if line["what"] == "answer"]
        count = collections.Counter(line["id"] for _, line in lines)
        by_id = {line["id"]: (digest, line) for digest, line in lines}
        print("requests:", dict(sorted(self.statuses.items())), f"{self.kills} engines killed")
        lost = [one for one in self.answers if count[one["id"]] != 1 or by_id[one["id"]][0] != one["log"]]
        strange = [id for id in count if id not in self.cancelled and id not in {one["id"] for one in self.answers}]
        print(f"log: {len(lines)} lines; answered {len(self.answers)}, not there just once {len(lost)}, ids twice "
              f"{sum(n > 1 for n in count.values())}, lines of nobody {len(strange)}")  # fmt: skip
        wider = [one for one in self.answers if set(one["shares"]) - set(one["set"])
                 or set(by_id[one["id"]][1]["experts"]) != set(one["set"])]  # fmt: skip
        asked = {(tuple(one["set"]), one["prompt"], one["tokens"]) for one in self.answers}
        expected = {one: self.alone(*one) for one in asked}
        wrong = [
            one for one in self.answers if one["text"] != expected[tuple(one["set"]), one["prompt"], one["tokens"]]
        ]
        print(f"{len(self.answers)} greedy answers of {len(asked)} kinds, not as under select_experts {len(wrong)}")
        print(f"with other experts {len(wider)}")
        for minute in sorted({round(at / 5) * 5 for at, *_ in self.megabytes}):
            among = [one for one in self.megabytes if abs(one[0] - minute) < 2.5]
            print(f"minute {minute}: gateway {statistics.median(one[1] for one in among):.0f} MB, an engine "
                  f"{statistics.median(one[2] for one in among):.0f} MB", flush=True)  # fmt: skip
        said = [json.loads(line) for line in (self.place / "stderr").read_text().splitlines()]
        print("errors:", dict(collections.Counter(line["message"][:60] for line in said if line["level"] == "error")))

    @torch.inference_mode()
    def alone(self, experts: tuple[str, ...], prompt: int, tokens: int) -> str:
        """The text that a request gets when nobody else is there."""
        run: Any = self.model
        x_1T = torch.tensor([prompt_tokens(self.tokenizer, self.prompts[prompt], self.tokenizer.eos_token_id)])
        with select_experts(self.model, experts):
            made = run.generate(x_1T, max_new_tokens=tokens, do_sample=False)[0, x_1T.shape[1] :]
        return str(self.tokenizer.decode(made, skip_special_tokens=True))


def engines_of(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]


def megabytes(pid: int) -> float:
    """What a process has in memory of its own."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Private_")) / 1024


async def load(one: Load, url: str, pid: int) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=httpx.Limits(max_connections=200)) as http:
        while "flexo_engines 2.0" not in await text(http):
            await asyncio.sleep(0.5)
        end = time.monotonic() + 60 * one.given.minutes
        await asyncio.gather(one.watch(pid, end), *(one.client(http, n, end) for n in range(one.given.clients)))


async def text(http: httpx.AsyncClient) -> str:
    try:
        return (await http.get("/metrics")).text
    except httpx.HTTPError:
        return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    for name, value in (("minutes", 30.0), ("clients", 64), ("pause", 20.0), ("kill", 300.0), ("port", 18480)):
        parser.add_argument(f"--{name}", type=type(value), default=value)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        one = Load(given.model, place, given)
        settings = {"model": str(given.model.resolve()), "keys": "keys.yaml", "log": "log", "port": given.port}
        settings |= {"engines": 2, "engine": {"dtype": "float32"}, "body_bytes": 300_000}
        (place / "serve.yaml").write_text(yaml.safe_dump(settings))
        command = [sys.executable, "-m", "serving.commands.flexo_serve", "--config", str(place / "serve.yaml")]
        with (place / "stderr").open("w") as errors:
            server = subprocess.Popen(command, stderr=errors)
        try:
            asyncio.run(load(one, f"http://127.0.0.1:{given.port}", server.pid))
            server.terminate()
            print("the server ended with", server.wait(300))
        finally:
            server.kill()
        one.report()


if __name__ == "__main__":
    main()
