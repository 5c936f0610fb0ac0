"""`flexo-merge` beside mergekit's MoE merge: the same number of bytes, made of tensors of the same shapes.

    python -m venv /tmp/mergekit && /tmp/mergekit/bin/pip install mergekit==0.1.5
    python -m benchmarks.merge_mergekit --work /dev/shm --mergekit /tmp/mergekit/bin/mergekit-moe --gigabytes 0.7 2

mergekit has no OLMo-2, so it makes a Mixtral of Llama models with our hidden size, FFN size, layers, vocabulary, heads
and number of experts, bfloat16, random gates (no model runs). A Mixtral lacks only the norms of queries and keys. Each
of its experts is a whole Llama, of which it takes the FFN; the first is also its base. Both commands run as a user
would run them; `--flush` adds an fsync to mergekit's, which leaves its files to the page cache.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.merge_inputs import Sizes
from benchmarks.merging import GB, Run, fitting, make, measured, merge, setting

LLAMA = """
import json, sys
from pathlib import Path
from benchmarks.merge_inputs import Weights
weights, shapes = Weights(sparse=False), json.loads(sys.argv[2])
for number, folder in enumerate(sorted(Path(sys.argv[1]).glob("llama-*"))):
    weights.write(folder / "model.safetensors", shapes, {"format": "pt"}, 10007 * number)
"""
TOKENIZER = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
    "pre_tokenizer": None, "post_processor": None, "decoder": None,
    "model": {"type": "WordLevel", "vocab": {"<s>": 0, "<unk>": 1}, "unk_token": "<unk>"},
}  # fmt: skip


def write_llamas(work: Path, sizes: Sizes) -> Path:
    """Llama folders, and the configuration of their merge, which is returned."""
    hidden, ffn = sizes.hidden, sizes.ffn
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (sizes.vocabulary, hidden)}
    for n in range(sizes.layers):
        layer = f"model.layers.{n}."
        shapes |= {f"{layer}self_attn.{part}_proj.weight": (hidden, hidden) for part in "qkvo"}
        shapes |= {f"{layer}mlp.{part}_proj.weight": (ffn, hidden) for part in ("gate", "up")}
        shapes |= {f"{layer}mlp.down_proj.weight": (hidden, ffn)}
        shapes |= {f"{layer}{norm}.weight": (hidden,) for norm in ("input_layernorm", "post_attention_layernorm")}
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (sizes.vocabulary, hidden)}
    config = sizes.config() | {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    folders = [work / f"llama-{number:02}" for number in range(sizes.experts)]
    for folder in folders:
        folder.mkdir()
        for name, content in {
            "config.json": config,
            "tokenizer.json": TOKENIZER,
            "tokenizer_config.json": {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": "<s>",
                "eos_token": "<s>",
            },
        }.items():
            (folder / name).write_text(json.dumps(content))
    measured([sys.executable, "-c", LLAMA, work, json.dumps(shapes)])
    path = work / "merge.yml"  # JSON is YAML
    experts = [{"source_model": str(folder)} for folder in folders]
    path.write_text(
        json.dumps({"base_model": str(folders[0]), "gate_mode": "random", "dtype": "bfloat16", "experts": experts})
    )
    return path


def compare(work: Path, mergekit: Path, sizes: Sizes, rounds: int, flush: bool) -> None:
    make(work / "in", sizes, sparse=False)
    config = write_llamas(work, sizes)
    flushed = f" && sync {work}/mixtral/*" if flush else ""
    ways = {
        "mergekit-moe": ["bash", "-c", f"{mergekit} {config} {work}/mixtral{flushed}"],
        "flexo-merge": merge(work / "in"),
        "flexo-merge --no-verify": merge(work / "in", "--no-verify"),
    }
    runs: dict[str, list[Run]] = {name: [] for name in ways}
    written: dict[str, int] = {}
    for _ in range(rounds):
        for name, command in ways.items():
            runs[name].append(measured(command))
            output = work / "mixtral" if name == "mergekit-moe" else work / "in" / "merged"
            written[name] = sum(path.stat().st_size for path in output.glob("*.safetensors"))
            shutil.rmtree(output)
    print(f"\n{sizes}{', flushed' if flush else ''}, medians of {rounds}")
    print("| way | GB written | s | CPU s | peak MB | times faster | of its CPU | of its memory |\n|" + "---|" * 8)
    theirs = runs["mergekit-moe"]
    for name, took in runs.items():
        wall, cpu, peak = (statistics.median(getattr(run, what) for run in took) for what in ("wall", "cpu", "peak"))
        pairs = list(zip(theirs, took, strict=True))
        print(
            f"| {name} | {written[name] / GB:.3f} | {wall:.2f} | {cpu:.2f} | {peak:.0f} "
            f"| {statistics.median(other.wall / ours.wall for other, ours in pairs):.2f} "
            f"| {statistics.median(ours.cpu / other.cpu for other, ours in pairs):.2f} "
            f"| {statistics.median(ours.peak / other.peak for other, ours in pairs):.2f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where files are made, and deleted")
    parser.add_argument("--mergekit", type=Path, required=True, help="mergekit-moe of an environment of its own")
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[1.0], help="of output")
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--flush", action="store_true")
    options = parser.parse_args()
    print(setting())
    for size in options.gigabytes:
        with tempfile.TemporaryDirectory(dir=options.work, prefix="flexo-merge-") as folder:
            compare(Path(folder), options.mergekit, fitting(size, options.experts), options.rounds, options.flush)


if __name__ == "__main__":
    main()
