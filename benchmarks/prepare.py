"""How fast `flexo-data prepare` is beside the bare tokenizer and `datasets.map`, and how much memory a worker takes.

    python benchmarks/prepare.py --text data/corpora            (text as flexo-data sample makes it, or any JSON lines)
    python benchmarks/prepare.py --memory 100 500 2000          (MB; minutes)
    python benchmarks/prepare.py --rounds 0 --pairs 8           (the encoder, with and without its memory of words)

Speeds are ratios taken side by side in one run: the three ways alternate, and the median of the rounds counts. The bare
tokenizer gets its text as a list in memory and writes nothing; `prepare` reads files, hashes, splits and writes shards,
and its start-up counts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import count
from pathlib import Path

MB = 1 << 20
ROOT = Path(__file__).resolve().parents[1]

BARE = """
import json, sys, time
from flexmix.tokens.encoder import load_encoder
tokenizer = load_encoder(__import__("pathlib").Path(sys.argv[1])).tokenizer
texts = [json.loads(line)["text"] for path in sys.argv[2:] for line in open(path, encoding="utf-8")]
start = time.perf_counter()
for first in range(0, len(texts), 1000):
    tokenizer.encode_batch(texts[first : first + 1000], add_special_tokens=False)
print(time.perf_counter() - start)
"""

MAP = """
import sys, time
from pathlib import Path
from datasets import load_dataset
from flexmix.tokens.encoder import load_encoder

TRANSFORMERS = sys.argv[4] == "transformers"
if TRANSFORMERS:
    from transformers import PreTrainedTokenizerFast

def encode(batch, model=sys.argv[1]):
    global tokenizer
    if "tokenizer" not in globals():
        tokenizer = load_encoder(Path(model)).tokenizer
        if TRANSFORMERS:
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=model + "/tokenizer.json")
    if TRANSFORMERS:
        return tokenizer(batch["text"], add_special_tokens=False)
    return {"ids": [e.ids for e in tokenizer.encode_batch(batch["text"], add_special_tokens=False)]}

if __name__ == "__main__":
    begin = time.perf_counter()
    data = load_dataset("json", data_files=sys.argv[5:], split="train", cache_dir=sys.argv[2])
    start = time.perf_counter()
    data.map(encode, batched=True, num_proc=int(sys.argv[3]), remove_columns=data.column_names)
    print(time.perf_counter() - start, time.perf_counter() - begin)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="a folder of JSON lines; left out, flexo-data sample makes one")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--size", type=int, default=48, help="MB of text for speed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--memory", type=int, nargs="*", default=[], help="MB of input for memory")
    parser.add_argument("--pairs", type=int, default=0, help="slices of 2 MB to encode both ways")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        text = options.text or _sample(work / "corpora")
        model = _model(text, work / "model", options.vocabulary)
        print(
            f"commit {_output('git', 'rev-parse', '--short', 'HEAD')}, Python {platform.python_version()}",
            _hardware(),
        )
        if options.rounds:
            _speed(text, model, work, options.size, options.workers, options.rounds)
        if options.pairs:
            _encode_pairs(text, model, options.pairs)
        for size in options.memory:
            _memory(text, model, work, size, options.workers)


def _speed(text: Path, model: Path, work: Path, size: int, workers: int, rounds: int) -> None:
    files = _write(text, work / "speed", size * MB)
    seconds: dict[str, list[float]] = defaultdict(list)
    for n in range(rounds):
        env = {"TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": str(workers)}
        seconds["bare"].append(float(_python(BARE, [model, *files], env)))
        start = time.perf_counter()
        _prepare(files[0].parent, work / f"out-{n}", model, workers).wait()
        seconds["prepare"].append(time.perf_counter() - start)
        script = work / "map.py"
        script.write_text(MAP)
        env = {"TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(ROOT)}
        for kind in ("tokenizers", "transformers"):
            cache = work / f"cache-{kind}-{n}"
            mapped, loaded = _output(sys.executable, script, model, cache, workers, kind, *files, env=env).split()
            seconds[f"map, {kind}"].append(float(mapped))
            seconds[f"load and map, {kind}"].append(float(loaded))
    amount = sum(path.stat().st_size for path in files) / MB
    print(f"\n{amount:.0f} MB of JSON lines, {workers} workers, seconds in {rounds} rounds")
    for name, took in seconds.items():
        middle = statistics.median(took)
        print(f"  {name:24} {' '.join(f'{t:6.2f}' for t in took)}   median {middle:6.2f}, {amount / middle:.2f} MB/s")
    for name, goal in (("bare", 0.85), ("map, tokenizers", 1.3), ("map, transformers", 1.3)):
        pairs = zip(seconds[name], seconds["prepare"], strict=True)
        print(f"  throughput over {name}: {statistics.median(other / ours for other, ours in pairs):.2f} (goal {goal})")


def _encode_pairs(text: Path, model: Path, pairs: int) -> None:
    """One slice after the other of the text, each encoded both ways in turns; processor time of this one thread."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from flexmix.tokens.encoder import load_encoder

    ways = {"plain": load_encoder(model), "words": load_encoder(model, one_core=True)}
    assert ways["words"].words is not None, "this tokenizer allows no memory of words"
    documents, ratios = _documents(text), []
    for pair in range(pairs):
        batches, size = [], 0
        while size < 2 * MB:
            batches.append([next(documents) for _ in range(200)])
            size += sum(map(len, batches[-1]))
        spent, ids = {}, {}
        for way in sorted(ways, reverse=bool(pair % 2)):
            start = time.process_time()
            ids[way] = [ways[way].encode(batch)[0].tobytes() for batch in batches]
            spent[way] = time.process_time() - start
        assert ids["plain"] == ids["words"], "the ids differ"
        ratios.append(spent["plain"] / spent["words"])
        print(
            f"  {size / MB:.1f} MB: plain {spent['plain']:.2f} s, words {spent['words']:.2f} s, ratio {ratios[-1]:.2f}",
            flush=True,
        )
    print(f"  median {statistics.median(ratios):.2f}")


def _memory(text: Path, model: Path, work: Path, size: int, workers: int) -> None:
    folder = work / f"memory-{size}"
    _write(text, folder, size * MB)
    start = time.perf_counter()
    process = _prepare(folder, work / f"memory-out-{size}", model, workers)
    worker_peak = main_peak = 0
    while process.poll() is None:
        main_peak = max(main_peak, _memory_of(process.pid, "RssAnon"))
        for pid in _descendants(process.pid):
            worker_peak = max(worker_peak, _memory_of(pid, "VmHWM"))
        time.sleep(0.1)
    assert process.returncode == 0, "the preparation failed"
    print(
        f"{size:5} MB: a worker at most {worker_peak / 1024:.0f} MB resident; the parent {main_peak / 1024:.0f} "
        f"MB of its own; {time.perf_counter() - start:.0f} s",
        flush=True,
    )
    for path in folder.iterdir():
        path.unlink()


def _prepare(source: Path, output: Path, model: Path, workers: int) -> subprocess.Popen[bytes]:
    code = "import flexmix.commands.flexo_data; flexmix.commands.flexo_data.main()"
    command = [sys.executable, "-c", code, "prepare", source, "-o", output, "--tokenizer", model, "--workers", workers]
    return subprocess.Popen(list(map(str, command)), cwd=ROOT, stdout=subprocess.DEVNULL)


def _sample(folder: Path) -> Path:
    subprocess.run(
        [
            sys.executable,
            "-c",
            "import flexmix.commands.flexo_data; flexmix.commands.flexo_data.main()",
            "sample",
            "-o",
            str(folder),
        ],
        cwd=ROOT,
        check=True,
    )
    return folder


def _model(text: Path, folder: Path, vocabulary: int) -> Path:
    """A tokenizer trained on the first 8 MB of the text."""
    from flexmix.tokens.train_tokenizer import train_tokenizer

    folder.mkdir()
    texts, room = [], 8 * MB
    for document in _documents(text):
        texts.append(document)
        if (room := room - len(document)) < 0:
            break
    train_tokenizer(texts, vocabulary).save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text('{"eos_token_id": 0}')
    return folder


def _documents(folder: Path) -> Iterator[str]:
    """All documents of a folder, the sets of its subfolders in turn, so that any beginning holds something of each."""
    from flexmix.documents.corpus import read_documents

    files = sorted(path for path in folder.rglob("*.jsonl*") if path.is_file())
    streams = [read_documents(path) for path in files]
    while streams:
        for stream in list(streams):
            if (text := next(stream, None)) is None:
                streams.remove(stream)
            elif text.strip():
                yield text


def _write(text: Path, folder: Path, size: int) -> list[Path]:
    """About `size` bytes of documents as JSON lines, in parts of 50 MB; a later pass starts each with its number."""
    folder.mkdir()
    paths: list[Path] = []
    file, room = None, 0
    for number in count():
        for document in _documents(text):
            line = json.dumps({"text": f"{number} {document}" if number else document}, ensure_ascii=False) + "\n"
            if room <= 0:
                if file is not None:
                    file.close()
                paths.append(folder / f"{len(paths):03}.jsonl")
                file, room = paths[-1].open("w", encoding="utf-8"), 50 * MB
            assert file is not None
            file.write(line)
            used = len(line.encode())
            room, size = room - used, size - used
            if size <= 0:
                file.close()
                return paths
    raise AssertionError("count() does not end")


def _descendants(pid: int) -> list[int]:
    found = []
    for child in _read(f"/proc/{pid}/task/{pid}/children").split():
        found += [int(child), *_descendants(int(child))]
    return found


def _memory_of(pid: int, name: str) -> int:
    """In KiB; 0 for a process that is gone."""
    lines = [line for line in _read(f"/proc/{pid}/status").splitlines() if line.startswith(name + ":")]
    return int(lines[0].split()[1]) if lines else 0


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _python(code: str, arguments: list[Path], env: dict[str, str]) -> str:
    return _output(sys.executable, "-c", code, *arguments, env=env)


def _output(*command: object, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=os.environ | (env or {}), check=True, stdout=subprocess.PIPE, text=True,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return done.stdout.strip().splitlines()[-1]


def _hardware() -> str:
    names = [
        line.partition(":")[2].strip() for line in _read("/proc/cpuinfo").splitlines() if line.startswith("model name")
    ]
    return f"{os.cpu_count()} cores ({names[0] if names else platform.processor()}), load {os.getloadavg()[0]:.1f}"


if __name__ == "__main__":
    main()
