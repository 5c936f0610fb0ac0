from __future__ import annotations

import dataclasses
import json
import re
import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexo.errors import ExpertFileError
from merge.formats.anchor_folder import open_anchor
from merge.formats.expert_header import Header, StatedPrivacy, TensorInfo, parse_header
from merge.tensor_io.json_file import MAX_HEADER
from tests.merge.tiny import STATED, expert_header

REMOVE = object()


@pytest.fixture(scope="module")
def header(tiny_anchor: Path) -> Header:
    table = {"layers.0.router.weight": TensorInfo("F32", (32,), "a" * 64)}
    return expert_header("math", open_anchor(tiny_anchor)).with_tensors(table)


@pytest.fixture(scope="module")
def private(header: Header) -> Header:
    """A header of version 2."""
    return dataclasses.replace(header, privacy=STATED)


def changed(header: Header, where: str, value: object) -> str:
    """The header's JSON with one field replaced, added or removed."""
    content = json.loads(header.to_json())
    *path, last = where.split("/")
    place: Any = content
    for name in path:
        place = place[name]
    if value is REMOVE:
        del place[last]
    else:
        place[last] = value
    return json.dumps(content)


def test_a_header_survives_the_round_trip(header: Header) -> None:
    assert parse_header(header.to_json(), "x.pt") == header


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("extra", "private text", "header has the field 'extra', which is not part of it"),
        ("training/extra", 1, "header.training has the field 'extra'"),
        ("evil\x1b[2J", 1, r"the field 'evil\\x1b\[2J'"),
        ("data", REMOVE, "header.data is missing"),
        ("anchor/architecture/rope_theta", REMOVE, "header.anchor.architecture.rope_theta is missing"),
        ("title", 5, "header.title is 5, expected one line of printable text"),
        ("title", None, "header.title is None"),
        ("title", "two\nlines", "header.title is 'two"),
        ("title", "\x1b[31mred", "header.title is"),
        ("title", "\u202eright to left", "header.title is"),
        ("title", "\ud800", "header.title is"),
        ("title", "x" * 2001, "header.title is"),
        ("title", [["deep"]], "header.title is a JSON object or array"),
        ("training/tokens", -1, "header.training.tokens is -1, expected a whole number"),
        ("training/tokens", 1.5, "header.training.tokens is 1.5"),
        ("training/tokens", True, "header.training.tokens is True"),
        ("training/tokens", 2**63, "expected a whole number"),
        ("training/learning_rate", 10**400, "header.training.learning_rate is 1000"),
        ("training/learning_rate", "1e-3", "expected a finite number"),
        ("training/learning_rate", True, "expected a finite number"),
        ("training/learning_rate", float("nan"), "header.training.learning_rate is nan, expected a finite number"),
        ("training/losses/own_after", float("inf"), "header.training.losses.own_after is inf"),
        ("training/losses", None, "header.training.losses is None, expected a JSON object"),
        ("privacy", {"mechanism": "DP-SGD"}, "header.privacy.delta is missing"),
        ("software", ["flexo"], "header.software is a JSON object or array"),
        ("software", {"flexo": 1}, "header.software.flexo is 1"),
        ("software", {"flexo\x1b": "1"}, "a name in header.software is"),
        ("tensors", {"layers\n": {}}, "a name in header.tensors is"),
        ("tensors/layers.0.router.weight/shape", "32", "expected a shape"),
        ("tensors/layers.0.router.weight/shape", [32.0], "expected a shape"),
        ("tensors/layers.0.router.weight/shape", [-32], "expected a dtype like F32"),
        ("tensors/layers.0.router.weight/shape", [], "expected a dtype like F32"),
        ("tensors/layers.0.router.weight/shape", [1, 2, 3], "expected a dtype like F32"),
        ("tensors/layers.0.router.weight/dtype", "F7", "expected a dtype like F32"),
        ("tensors/layers.0.router.weight/sha256", "A" * 64, "expected a sha256 in hex"),
        ("anchor/digest", "abc", "header.anchor.digest is 'abc', expected a sha256"),
        ("anchor/tokenizer_digest", "", "header.anchor.tokenizer_digest"),
        ("anchor/router_digest", "g" * 64, "header.anchor.router_digest"),
        ("anchor/architecture/num_hidden_layers", 0, "0 layers, expected 1 to"),
        ("anchor/architecture/num_hidden_layers", 10**9, "1000000000 layers, expected 1 to"),
        ("anchor/architecture/tie_word_embeddings", 1, "expected true or false"),
        ("domain", "public", "'public' is taken"),
        ("domain", "", "'' is no domain name"),
        ("domain", "../../etc", "is no domain name"),
        ("domain", "a/b", "is no domain name"),
        ("domain", "..", "is no domain name"),
        ("domain", "-o", "is no domain name"),
        ("domain", "Math", "is no domain name"),
        ("domain", "math\n", "is"),
        ("domain", "x" * 65, "is no domain name"),
    ],
)
def test_every_wrong_field_is_named(header: Header, where: str, value: object, message: str) -> None:
    with pytest.raises(ExpertFileError, match=message) as refusal:
        parse_header(changed(header, where, value), "x.pt")
    assert str(refusal.value).startswith("x.pt: ")
    assert str(refusal.value).isprintable() and len(str(refusal.value)) < 400


def test_a_guarantee_survives_the_round_trip_as_version_2_alone(header: Header, private: Header) -> None:
    assert (header.version, private.version) == (1, 2)
    assert parse_header(private.to_json(), "x.pt", 2) == private
    with pytest.raises(ExpertFileError, match=r"privacy has the field 'accountant'"):
        parse_header(private.to_json(), "x.pt", 1)
    with pytest.raises(ExpertFileError, match="version 2 whose header is one of version 1"):
        parse_header(header.to_json(), "x.pt", 2)
    short = {"mechanism": "DP-SGD", "epsilon": 8.0, "delta": 1e-6}
    assert parse_header(changed(header, "privacy", short), "x.pt").to_dict()["privacy"] == short


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("unit", REMOVE, "header.privacy.unit is missing"),
        ("samples", "private text", "header.privacy has the field 'samples'"),
        ("epsilon", -1.0, "header.privacy.epsilon is -1, expected a number above 0"),
        ("epsilon", float("nan"), "header.privacy.epsilon is nan, expected a finite number"),
        ("delta", 1.5, "header.privacy.delta is 1.5, expected a number above 0, at most 1"),
        ("noise_multiplier", 0.0, "header.privacy.noise_multiplier is 0, expected a number above 0"),
        ("sampling_rate", 2, "header.privacy.sampling_rate is 2"),
        ("released/gradients/rate", 0, "header.privacy.released.gradients.rate is 0"),
        ("released/gradients/times", -3, "released.gradients.times is -3, expected a whole number"),
    ],
)
def test_a_guarantee_that_nobody_can_give_is_refused(private: Header, where: str, value: object, message: str) -> None:
    with pytest.raises(ExpertFileError, match=message):
        parse_header(changed(private, f"privacy/{where}", value), "x.pt", 2)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", "5", '"text"', "[" * 10_000, "[" * 800 + "]" * 800, '{"a":' * 10_000, "1" * 5000,
        '{"domain":"math","domain":"private"}', " " * (MAX_HEADER + 1), "\x00", "{} {}",
    ],
)  # fmt: skip
def test_what_is_no_header_is_refused(text: str) -> None:
    with pytest.raises(ExpertFileError, match=r"x\.pt: "):
        parse_header(text, "x.pt")


@pytest.mark.parametrize("depth", [900, 980, 10_000])
def test_nested_values_are_refused_at_any_depth(header: Header, depth: int) -> None:
    text = header.to_json().replace('"Text about math"', "[" * depth + "]" * depth)
    with pytest.raises(ExpertFileError):
        parse_header(text, "x.pt")


def test_a_repeated_name_cannot_hide_text(header: Header) -> None:
    text = header.to_json().replace('{"domain"', '{"title":"private text","domain"')
    with pytest.raises(ExpertFileError, match="not readable as JSON"):
        parse_header(text, "x.pt")


def test_the_specification_names_every_field() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "expert-file.md").read_text(encoding="utf-8")

    def fields(kind: Any, path: str = "") -> set[str]:
        found: set[str] = set()
        for name, hint in typing.get_type_hints(kind).items():
            inner = [part for part in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(part)]
            below = f"{path}{name}.{'NAME.' if typing.get_origin(hint) is dict else ''}"
            found |= fields(inner[0], below) if inner else {path + name}
        return found

    named = set(re.findall(r"`([a-zA-Z_.0-9]+)`", page))
    assert fields(Header) - named == set()
    assert fields(StatedPrivacy, "privacy.") - named == set()


def test_to_json_never_writes_what_json_has_not(header: Header) -> None:
    from dataclasses import replace

    with pytest.raises(ValueError):
        replace(header, training=replace(header.training, learning_rate=float("nan"))).to_json()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = (
    "domain",
    "title",
    "anchor",
    "anchor/architecture",
    "training/losses",
    "training/tokens",
    "tensors",
    "privacy",
)


@given(where=st.sampled_from(FIELDS), value=json_values)
def test_any_value_anywhere_is_read_or_refused(header: Header, where: str, value: object) -> None:
    try:
        parse_header(changed(header, where, value), "x.pt")
    except ExpertFileError as refusal:
        assert str(refusal).isprintable()
