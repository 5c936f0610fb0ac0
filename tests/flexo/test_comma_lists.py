from __future__ import annotations

import pytest

from flexo.console import comma_list
from flexo.errors import InputError


def test_blanks_around_commas_are_no_part_of_names() -> None:
    assert comma_list("public, math ,news\n", "--experts") == ["public", "math", "news"]
    assert comma_list(" one ", "--experts") == ["one"]


@pytest.mark.parametrize("text", ["", " ", "a,,b", "a,", ",a"])
def test_an_empty_name_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"^--experts '.*': expected names with commas between them"):
        comma_list(text, "--experts")
