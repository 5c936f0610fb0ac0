from __future__ import annotations

import pytest
import typer

from merge.commands.options import parse_size


def test_sizes_as_people_write_them() -> None:
    written = {
        "5GB": 5 * 10**9,
        "1.5 gb": 1_500_000_000,
        "500M": 5 * 10**8,
        "2000KB": 2_000_000,
        "5000000000": 5 * 10**9,
    }
    assert {text: parse_size(text) for text in written} == written


@pytest.mark.parametrize("text", ["", "5", "999999B", "GB", "-5GB", "1e9", "5GiB", "5 G B", "nan", "٥GB"])
def test_what_is_no_size_or_too_small_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match=r"is no size|Is the unit missing"):
        parse_size(text)
