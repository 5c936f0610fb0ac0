"""A policy says each thing once, and what it does not understand it refuses by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from federation.policy.policy import Policy, parse_policy, read_policy
from flexo.errors import InputError

FULL = """
version: 2
signatures: false
licences: [CC-BY-4.0, CC0-1.0]
largest_epsilon: 8
smallest_tokens: 100000
quorum: 3
public_weight: 2
priors: {math: 2.0}
top_k: 2
audit: {share: [0.6, 0.9], loss: [0.05, 0.15], outlier: 10}
days: {timestamp: 1}
"""


def test_a_policy_survives_being_written() -> None:
    policy = parse_policy(FULL, "x")
    assert parse_policy(policy.to_yaml(), "x") == policy
    assert policy.licences == ("CC-BY-4.0", "CC0-1.0")
    assert policy.days["timestamp"] == 1 and policy.days["root"] == 365
    assert parse_policy(Policy().to_yaml(), "x") == Policy()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("quorums: 3", "'quorums' is no setting of a policy. Expected: audit, days"),
        ("quorum: 0", "quorum is '0', expected a whole number from 1 on"),
        ("quorum: true", "quorum is 'True', expected a whole number"),
        ("licences: CC0", "licences is 'CC0', expected a list of licences"),
        ("largest_epsilon: .nan", "largest_epsilon is 'nan', expected a positive number"),
        ("priors: {math: -1}", "priors is .* expected domains with positive numbers"),
        ("priors: {Math: 1}", "priors is .* expected domains"),
        ("audit: {share: [0.9, 0.6]}", "audit is .* expected limits of flexo-audit"),
        ("audit: {shares: 1}", "audit is"),
        ("days: {timestamp: 0}", "days is .* expected positive numbers of days"),
        ("- 1", "expected settings like 'quorum: 3', got list"),
        ("a: [", "not readable as YAML"),
    ],
)
def test_what_is_wrong_is_named(line: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_policy(line, "policy.yaml")


def test_a_file_that_is_no_policy(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read as a policy"):
        read_policy(tmp_path / "none.yaml")
    (tmp_path / "large.yaml").write_text("#" * 200_000)
    with pytest.raises(InputError, match="expected a policy of at most"):
        read_policy(tmp_path / "large.yaml")
