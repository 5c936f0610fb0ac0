"""What attribution costs beside plain generation, the two in turn, on CPU or a GPU.

    python benchmarks/attribution.py                            # random models of eight experts, two sizes
    python benchmarks/attribution.py --model model/             # a merged folder

A run is `generate` of a fixed number of tokens; the attributed one opens the block, generates, and asks for the answers
and their shares. Reported is the median over pairs of the ratio of the two, whose order changes from pair to pair. On
CPU the clock is the processor time of the process, on a GPU the time on the wall.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from transformers import FlexOlmoConfig, FlexOlmoForCausalLM

from inference.attribution import attribute
from inference.load import load_model, quiet

SIZES = {"tiny": (128, 512, 4), "small": (512, 2048, 8)}  # hidden size, feed-forward size, layers
EXPERTS = 8


def random_model(folder: Path, size: str, top_k: int) -> Any:
    """A model of random weights that looks like a merged one to `attribute`."""
    hidden, feed_forward, layers = SIZES[size]
    config = FlexOlmoConfig(
        vocab_size=4096, hidden_size=hidden, intermediate_size=feed_forward, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, num_key_value_heads=hidden // 64, num_experts=EXPERTS,
        num_experts_per_tok=top_k, pad_token_id=1, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = FlexOlmoForCausalLM(config).eval()
    experts = [{"domain": "public" if n == 0 else f"domain{n}"} for n in range(EXPERTS)]
    manifest = {"format": "flexo.manifest", "version": 1, "experts": experts}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    model.name_or_path = str(folder)
    return model


def ratios(model: Any, rows: int, tokens: int, pairs: int) -> tuple[list[float], float]:
    """Attributed over plain, pair by pair, and milliseconds of a plain token."""
    x_BS = torch.randint(2, model.config.vocab_size, (rows, 32), generator=torch.Generator().manual_seed(0))
    x_BS = x_BS.to(model.device)
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}

    def plain() -> None:
        model.generate(x_BS, **options)

    def attributed() -> None:
        with attribute(model) as record:
            made_BS = model.generate(x_BS, **options)
        for answer in record.answers(made_BS, x_BS.shape[1]):
            assert abs(sum(answer.shares.values()) - 1) < 1e-9

    on_gpu = model.device.type == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time

    def timed(work: Any) -> float:
        start = clock()
        work()
        if on_gpu:
            torch.cuda.synchronize()
        return clock() - start

    found, each = [], []
    for pair in range(-1, pairs):  # the first warms up
        order = (plain, attributed) if pair % 2 else (attributed, plain)
        seconds = {work: timed(work) for work in order}
        if pair >= 0:
            found.append(seconds[attributed] / seconds[plain])
            each.append(1000 * seconds[plain] / tokens)
    return found, median(each)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a merged folder in place of random models")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--top-k", type=int, nargs="+", default=[2, EXPERTS], help="active experts of random models")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=25)
    arguments = parser.parse_args()
    quiet()
    print(f"torch {torch.__version__}, {arguments.device}, {arguments.dtype}, {torch.get_num_threads()} threads")
    print("| model | batch | plain, a token | attributed / plain | quartiles |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        models: dict[str, Any] = {}
        if arguments.model:
            name = f"merged, {arguments.model.resolve().name}"
            models[name] = lambda: load_model(arguments.model, arguments.dtype, arguments.device)[0]
        for size in () if arguments.model else arguments.sizes:
            for top_k in arguments.top_k:
                models[f"{size}, top-{top_k} of {EXPERTS}"] = lambda size=size, top_k=top_k: random_model(
                    Path(folder), size, top_k
                ).to(arguments.device, getattr(torch, arguments.dtype))
        for name, make in models.items():
            model = make()
            for rows in arguments.rows:
                found, each = ratios(model, rows, arguments.tokens, arguments.pairs)
                low, _, high = quantiles(found, n=4)
                print(
                    f"| {name} | {rows} | {each:.1f} ms | {median(found):.3f} | {low:.3f} to {high:.3f} |", flush=True
                )


if __name__ == "__main__":
    main()
