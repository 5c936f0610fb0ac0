"""A process that does with hostile files what a merge does, in little memory, and reports what came of each.

python -m tests.merge.attacks.victim ANCHOR OUTPUT GOOD FILE...
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from pathlib import Path

import merge.tensor_io.factors  # noqa: F401 - it is imported where an expert first needs it
from flexo.errors import InputError
from merge.formats.expert_file import open_expert
from merge.planning.merge_plan import execute, plan
from tests.merge.watch import watched

ROOM = 400 << 20  # address space beyond what the interpreter and numpy take
SECONDS = 60


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def attempt(path: Path, anchor: Path, output: Path) -> dict[str, object]:
    """What reading the whole file, and else a merge of it, ends in."""
    with watched() as seen:
        try:
            expert = open_expert(path)
            for name in expert.tensors:
                expert.read(name)
            plan([path], anchor)
        except InputError as refusal:
            return {"says": str(refusal), "seen": seen, "peak": peak_mb()}
        except BaseException as error:  # what we must not see is reported, too
            return {"says": f"{type(error).__name__}: {error}", "seen": seen, "peak": peak_mb()}
    try:
        execute(plan([path], anchor), output)
    except InputError as refusal:
        return {"says": str(refusal), "seen": seen, "peak": peak_mb()}
    return {"says": "merged", "seen": seen, "peak": peak_mb()}


def main() -> None:
    anchor, output, good, *files = map(Path, sys.argv[1:])
    attempt(good, anchor, output)  # imports what it needs
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    found = {"": {"says": "", "seen": [], "peak": peak_mb()}}
    for path in files:
        signal.alarm(SECONDS)
        found[path.name] = attempt(path, anchor, output.with_name("hostile"))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
