from __future__ import annotations

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from flexo.overrides import override


def parsed(line: str) -> object:
    """What Hydra makes of an argument after the shell has read it."""
    (word,) = shlex.split(line)
    (found,) = OverridesParser.create().parse_overrides([word])
    assert found.key_or_group == "domain.train"
    return found.value()


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("prepared", "domain.train=prepared"),
        ("/a/b-c/x_1.jsonl.gz", "domain.train=/a/b-c/x_1.jsonl.gz"),
        ("a (1)/x", "'domain.train=\"a (1)/x\"'"),
        ("null", "'domain.train=\"null\"'"),
    ],
)
def test_a_setting_as_it_is_typed(value: str, line: str) -> None:
    assert override("domain.train", value) == line and parsed(line) == value


@given(
    st.text(alphabet="ab =,()#@'\"\\~{}[]$%:*!&|;?é数1.-/\t", min_size=1, max_size=20)
    | st.sampled_from(["lang=en", "Müller, A", "数据", "#1 @home", "it's", "1e3", "-1", "True", "a:b", "x${y}"])
)
def test_shell_and_hydra_read_what_was_meant(value: str) -> None:
    if "${" not in value:  # an interpolation stays one in quotes, too
        assert parsed(override("domain.train", value)) == value
