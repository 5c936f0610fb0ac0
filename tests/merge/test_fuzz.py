"""Some hundreds of hostile files of both containers; `benchmarks/fuzzing.py` reads as many as time allows."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from merge.formats.anchor_folder import open_anchor
from merge.formats.expert_file import open_expert
from tests.merge.fuzz import Sample, hostile, read, read_by_others, samples
from tests.merge.tiny import expert_header
from tests.merge.tools import listing

KINDS = [(".pt", kind) for kind in ("bytes", "header", "values", "program", "zip")]
KINDS += [(".safetensors", kind) for kind in ("bytes", "header", "values", "table")]


@pytest.fixture(scope="module")
def valid(tiny_anchor: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Sample]:
    found = samples(tmp_path_factory.mktemp("valid"), expert_header("math", open_anchor(tiny_anchor)))
    return {sample.suffix: sample for sample in found}


def test_all_kinds_of_changes_are_tried(valid: dict[str, Sample]) -> None:
    assert [(suffix, kind) for suffix, sample in valid.items() for kind in hostile(sample)] == KINDS


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(("suffix", "kind"), KINDS)
def test_whatever_is_sent_is_refused_or_read_as_others_read_it(
    valid: dict[str, Sample], tmp_path: Path, suffix: str, kind: str
) -> None:
    path = tmp_path / f"x{suffix}"

    @settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
    @given(data=hostile(valid[suffix])[kind])
    def one(data: bytes) -> None:
        path.write_bytes(data)
        found = read(path)
        if not isinstance(found, str):
            assert read_by_others(open_expert(path)) in (None, found)

    one()
    assert listing(tmp_path) == {path.name}
