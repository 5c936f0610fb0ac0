"""What serving costs: the packed engine against padded batches, and the gateway beside its engine.

    OMP_NUM_THREADS=1 python benchmarks/serving_speed.py MODEL [--rounds 5]

Everything is measured in pairs, one after the other in each round, and reported as ratios: median and range over
rounds. Times are CPU seconds where nothing waits, and wall seconds to the answer of a request over HTTP.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import httpx
import torch
import uvicorn

from inference.load import load_model
from inference.select import expert_names
from serving.access.keys import add_key
from serving.engines.engine import Ended, EngineOptions, Event, Failed, Job, Made
from serving.engines.packed import PackedEngine
from serving.engines.padded import PaddedEngine
from serving.gateway.server import serve
from serving.gateway.settings import read_settings

KINDS = {"packed": PackedEngine, "padded": PaddedEngine}


def jobs(names: list[str], vocabulary: int, uneven: bool, count: int = 64) -> list[Job]:
    """Requests of mixed sets: all alike, or of uneven prompts and answers."""
    dice = torch.Generator().manual_seed(1)
    sets = [["public"], [names[-1]], names[:2], names]
    found = []
    for n in range(count):
        length, most = (16 + 15 * (n % 8), 8 + 11 * (n % 9)) if uneven else (33, 64)
        tokens = torch.randint(3, vocabulary, (length,), generator=dice).tolist()
        found.append(Job(f"{n}", "bench", list(dict.fromkeys(sets[n % 4])), tokens, most))
    return found


def answered(kind: str, model: Any, tokenizer: Any, asked: list[Job]) -> float:
    """Tokens of answers for each CPU second."""
    left, made, over = len(asked), 0, threading.Event()

    def hear(events: list[tuple[str, Event]]) -> None:
        nonlocal left, made
        for _, event in events:
            assert not isinstance(event, Failed), event
            left, made = left - isinstance(event, Ended), made + (not isinstance(event, Ended))
        if not left:
            over.set()

    engine = KINDS[kind](model, tokenizer, hear, EngineOptions(at_once=32, share_prefixes=False))
    engine.submit(Job("first", "bench", ["public"], [1], 1))  # its cache is there after it
    while left == len(asked):
        time.sleep(0.01)
    left, made = len(asked), 0
    over.clear()
    began = time.process_time()
    for job in asked:
        engine.submit(job)
    over.wait()
    took = time.process_time() - began
    engine.close()
    return made / took


def engines(folder: Path, rounds: int) -> None:
    model, tokenizer = load_model(folder, "float32", "cpu")
    model.generation_config.eos_token_id = None  # every answer has its whole length
    names = expert_names(model)
    for work in ("even", "uneven"):
        asked = jobs(names, model.config.vocab_size, work == "uneven")
        answered("packed", model, tokenizer, asked[:8])
        rates = [{kind: answered(kind, model, tokenizer, asked) for kind in KINDS} for _ in range(rounds)]
        show(f"{work}: packed over padded", [rate["packed"] / rate["padded"] for rate in rates])
        print("   tokens a CPU second:", {kind: round(statistics.median(r[kind] for r in rates)) for kind in KINDS})


def gateway(folder: Path, rounds: int) -> None:
    """Over HTTP: what a request of one token takes beyond its engine, and the time to the first token."""
    with tempfile.TemporaryDirectory() as place, Running(folder, Path(place)) as running:
        for _ in range(20):
            running.ask(1)
        overheads, works = [], []
        for _ in range(40 * rounds):
            began, worked = time.perf_counter(), time.process_time()
            running.ask(1)
            overheads.append(1000 * (time.perf_counter() - began) - running.engine_ms())
            works.append(1000 * (time.process_time() - worked))
        show("gateway and client, ms a request beyond its engine", overheads)
        show("   of it CPU", works)
        for clients in (1, 8, 32):
            with ThreadPoolExecutor(clients) as pool:
                firsts = list(pool.map(lambda _: running.first(24), range(4 * clients)))
            show(f"{clients} clients: ms to the first token", firsts)
        running.rates(False)  # starts the process of the clients
        for stream in (False, True):
            pairs = [(running.rates(stream), running.rates(None)) for _ in range(rounds)]
            for n, unit in enumerate(("CPU second", "second")):
                how = "streamed" if stream else "whole"
                show(
                    f"tokens a {unit}, over HTTP over engine alone, {how}",
                    [over[n] / alone[n] for over, alone in pairs],
                )


class Running:
    """A server with one engine in a process of its own."""

    def __init__(self, folder: Path, place: Path) -> None:
        limits = {"requests_per_minute": 10**6, "tokens_per_day": 10**9, "at_once": 100}
        secret = add_key(place / "keys.yaml", "bench", experts=["public"], **limits)
        self.settings = read_settings(
            None, model=folder, keys=place / "keys.yaml", log=place / "log", port=0, engine={"dtype": "float32"}
        )
        self.headers = {"Authorization": f"Bearer {secret}"}
        self.engine: Any = None
        self.made = 0  # tokens of answers
        self.servers: list[uvicorn.Server] = []
        self.times: list[float] = []
        self.thread = threading.Thread(
            target=lambda: asyncio.run(serve(self.settings, Timed.of(self), self.servers.append))
        )

    def __enter__(self) -> Running:
        self.thread.start()
        self.clients = ProcessPoolExecutor(1, get_context("spawn"))  # in this process they would hold up the gateway
        wait(lambda: bool(self.servers and self.servers[0].started))
        port = self.servers[0].servers[0].sockets[0].getsockname()[1]
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=self.headers, timeout=120)
        return self

    def __exit__(self, *_: object) -> None:
        self.clients.shutdown()
        self.servers[0].should_exit = True
        self.thread.join()

    def body(self, tokens: int) -> dict[str, Any]:
        return {"prompt": "The city is the capital of", "max_tokens": tokens, "temperature": 0}

    def ask(self, tokens: int) -> None:
        self.http.post("/v1/completions", json=self.body(tokens)).raise_for_status()

    def first(self, tokens: int) -> float:
        """Milliseconds to the first token of a stream."""
        began, found = time.perf_counter(), 0.0
        with self.http.stream("POST", "/v1/completions", json=self.body(tokens) | {"stream": True}) as response:
            for line in response.iter_lines():
                if not found and line.startswith("data: {") and json.loads(line[6:])["choices"]:
                    found = 1000 * (time.perf_counter() - began)
        return found

    def rates(self, stream: bool | None) -> tuple[float, float]:
        """Tokens of answers for each CPU second of the gateway and its engine, and by the clock; None: no HTTP."""
        count, most = 32, 64
        prompts = [[3 + n, *range(3, 35)] for n in range(count)]
        began, before, made = time.perf_counter(), self.cpu_seconds(), self.made
        if stream is None:
            done = len(self.times) + count
            for prompt in prompts:
                self.engine.submit(Job(f"rate{done + prompt[0]}", "bench", ["public"], prompt, most))
            wait(lambda: len(self.times) >= done)
        else:
            body = {"max_tokens": most, "temperature": 0, "stream": stream}
            bodies = [body | {"prompt": prompt} for prompt in prompts]
            self.clients.submit(post, str(self.http.base_url), self.headers, bodies).result()
        tokens, took = self.made - made, time.perf_counter() - began
        return tokens / (self.cpu_seconds() - before), tokens / took

    def cpu_seconds(self) -> float:
        """Of the gateway's process and of its engine's."""
        ticks = Path(f"/proc/{self.engine.process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return time.process_time() + sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")

    def engine_ms(self) -> float:
        """How long the engine had the last request, with the pipe to its process."""
        return 1000 * self.times[-1]


def post(address: str, headers: dict[str, str], bodies: list[dict[str, Any]]) -> None:
    """Asks for all at once, and waits for the last answer."""
    with httpx.Client(base_url=address, headers=headers, timeout=120) as http, ThreadPoolExecutor(len(bodies)) as pool:
        for answer in pool.map(lambda body: http.post("/v1/completions", json=body), bodies):
            answer.raise_for_status()


class Timed:
    """Makes engines whose jobs are timed from `submit` to the last event."""

    @staticmethod
    def of(running: Running) -> Callable[..., Any]:
        from serving.engines.remote import RemoteEngine

        class Engine(RemoteEngine):
            def __init__(self, folder: Path, options: EngineOptions, sink: Any, died: Any) -> None:
                self.begun: dict[str, float] = {}

                def hear(events: list[tuple[str, Event]]) -> None:
                    for job, event in events:
                        running.made += isinstance(event, Made)
                        if isinstance(event, Ended):
                            running.times.append(time.perf_counter() - self.begun.pop(job))
                    sink(events)

                super().__init__(folder, options, hear, died)
                running.engine = self

            def submit(self, job: Job) -> None:
                self.begun[job.id] = time.perf_counter()
                super().submit(job)

        return Engine


def wait(done: Callable[[], bool]) -> None:
    while not done():
        time.sleep(0.05)


def show(what: str, values: list[float]) -> None:
    print(f"{what}: {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=["engines", "gateway"])
    given = parser.parse_args()
    torch.set_num_threads(1)
    for part in (engines, gateway):
        if given.only in (None, part.__name__):
            part(given.model, given.rounds)
