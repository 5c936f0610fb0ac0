"""The process of an engine: `python -m flexo_vllm.process FD`, with a socket to `serving.engines.vllm` of flexo.

Messages are JSON. In come {"start": ...}, {"ask": ...} and {"cancel": id}; the end of the socket ends the process. Out
go {"ready": {"version": ..., "runner": ...}} or {"refused": why}, after each pass {"made": [...]}, and {"failed": [id,
why]}.
"""

from __future__ import annotations

import json
import os
import select
import sys
import threading
from collections import defaultdict, deque
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import vllm
from flexo_vllm import ARCHITECTURE, SETTING
from vllm.sampling_params import RequestOutputKind

DECIDED = {"hf_overrides", "additional_config", "worker_extension_cls", "skip_tokenizer_init", "async_scheduling"}


def engine_of(start: dict[str, Any]) -> vllm.LLMEngine:
    """vLLM's engine with the entitled model; raises whatever vLLM raises for what it cannot run."""
    given = start["arguments"]
    if wrong := sorted(DECIDED & given.keys()):
        raise ValueError(f"arguments: {', '.join(wrong)} cannot be chosen here.")
    arguments = vllm.EngineArgs(
        **given,
        hf_overrides={"architectures": [ARCHITECTURE]},
        additional_config={SETTING: start["setting"]},
        worker_extension_cls="flexo_vllm.worker.Shares",
        skip_tokenizer_init=True,
        async_scheduling=False,
    )
    return vllm.LLMEngine.from_engine_args(arguments)


class Asked:
    """The requests of an engine.

    Args:
        engine: vLLM's.
        pipe: to flexo.
    """

    def __init__(self, engine: vllm.LLMEngine, pipe: Connection) -> None:
        self._engine, self._pipe = engine, pipe
        self._inside: dict[str, str] = {}  # vLLM's own name of each request
        self._shares: dict[str, deque[list[float]]] = defaultdict(deque)  # by vLLM's names

    def run(self) -> None:
        """Until the socket ends."""
        while True:
            while self._pipe.poll(0 if self._engine.has_unfinished_requests() else None):
                self._hear(json.loads(self._pipe.recv_bytes()))
            outputs = self._engine.step()
            for request, shares in self._engine.collective_rpc("flexo_shares")[0]:  # all ranks have the same
                self._shares[request].append(shares)
            made = [self._made(output) for output in outputs if output.request_id in self._inside]
            if made:
                send(self._pipe, {"made": made})

    def _hear(self, message: dict[str, Any]) -> None:
        if "cancel" in message:
            if message["cancel"] in self._inside:
                self._engine.abort_request([message["cancel"]])
                self._forget(message["cancel"])
            return
        ask = message["ask"]
        prompt = vllm.TokensPrompt(prompt_token_ids=ask["tokens"], cache_salt=ask["salt"])
        try:
            params = vllm.SamplingParams(
                temperature=ask["temperature"],
                top_p=ask["top_p"],
                seed=ask["seed"],
                max_tokens=ask["max_tokens"],
                logprobs=ask["top"],
                prompt_logprobs=ask["top"] if ask["score"] else None,
                ignore_eos=True,
                stop_token_ids=ask["ends"],
                detokenize=False,
                output_kind=RequestOutputKind.DELTA,
                extra_args={SETTING: ask["allowed"]},
            )
            self._inside[ask["id"]] = self._engine.add_request(ask["id"], prompt, params)
        except ValueError as error:  # of this request alone
            send(self._pipe, {"failed": [ask["id"], str(error)]})

    def _made(self, output: vllm.RequestOutput) -> dict[str, Any]:
        """What a pass brought for a request: tokens with their shares, the prompt's, and how much was cached."""
        said: dict[str, Any] = {"id": output.request_id, "over": output.finished, "tokens": []}
        said["cached"] = output.num_cached_tokens or 0
        shares = self._shares[self._inside[output.request_id]]
        (answer,) = output.outputs
        for token, found in zip(answer.token_ids, answer.logprobs or [], strict=True):
            said["tokens"].append([*listed(found, token), shares.popleft()])
        if output.prompt_logprobs:
            tokens = output.prompt_token_ids[1:]
            said["prompt"] = [
                [token, *listed(found, token)[1:]]
                for token, found in zip(tokens, output.prompt_logprobs[1:], strict=True)
            ]
        if output.finished:
            self._forget(output.request_id)
        return said

    def _forget(self, request: str) -> None:
        self._shares.pop(self._inside.pop(request), None)


def listed(found: dict[int, Any], token: int) -> list[Any]:
    """A token, its log-probability, and the likeliest with theirs."""
    ranked = sorted((one.rank, other, one.logprob) for other, one in found.items())
    return [token, found[token].logprob, [[other, logprob] for _, other, logprob in ranked]]


def send(pipe: Connection, message: dict[str, Any]) -> None:
    pipe.send_bytes(json.dumps(message).encode())


def leave_with(pipe: Connection) -> None:
    """Ends this process when flexo's end of the socket is closed, also while vLLM loads or hangs in a pass."""
    end = select.poll()
    end.register(pipe.fileno(), 0)  # that the other side has hung up is told without being asked for
    end.poll()
    os._exit(1)


def main() -> None:
    pipe = Connection(int(sys.argv[1]))
    threading.Thread(target=leave_with, args=(pipe,), daemon=True).start()
    start = json.loads(pipe.recv_bytes())["start"]
    try:
        engine = engine_of(start)
    except Exception as error:  # of any kind: whoever waits is told why
        send(pipe, {"refused": f"{type(error).__name__}: {error}"})
        return
    runner = "V2" if engine.vllm_config.use_v2_model_runner else "V1"
    send(pipe, {"ready": {"version": vllm.__version__, "runner": runner}})
    with suppress(EOFError, OSError):  # flexo is gone
        Asked(engine, pipe).run()


if __name__ == "__main__":
    main()
