"""A key file is hashed, strict, and changed while a server reads it."""

from __future__ import annotations

import datetime
import stat
from pathlib import Path

import pytest
import yaml

from flexo.errors import InputError
from serving.access.errors import RequestError
from serving.access.keys import Key, KeyStore, add_key, revoke_key
from serving.access.limits import Limits


def test_a_key_is_stored_hashed_and_found_until_it_is_revoked_or_expires(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    alice = add_key(path, "alice", experts=["public", "math"])
    store = KeyStore(path)
    today = datetime.datetime.now(datetime.UTC).date()
    bob = add_key(path, "bob", experts=["public"], expires=today + datetime.timedelta(1), at_once=2)
    late = add_key(path, "late", experts=["public"], expires=today)
    assert alice not in path.read_text() and stat.S_IMODE(path.stat().st_mode) == 0o600
    found = store.find(alice)
    assert found and found[0].name == "alice" and found[1] == ["public", "math"]
    assert (found := store.find(bob)) and found[0].at_once == 2
    assert store.find(late) is None and store.find("") is None and store.find("\udc80") is None
    revoke_key(path, "alice")
    assert store.find(alice) is None and store.find(bob)
    with pytest.raises(InputError, match=r"no key 'alice'\. It has bob, late"):
        revoke_key(path, "alice")
    with pytest.raises(InputError, match="there is a key 'bob' already"):
        add_key(path, "bob", experts=["public"])


def test_a_role_stands_for_its_experts(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text("roles: {clinic: [public, news]}\n")
    secret = add_key(path, "carol", role="clinic")
    assert (found := KeyStore(path).find(secret)) and found[1] == ["public", "news"]
    for allowed in ({"role": "other"}, {}, {"role": "clinic", "experts": ["public"]}, {"experts": []}):
        with pytest.raises(InputError, match="key 'dave': "):
            add_key(path, "dave", **allowed)
    assert "dave" not in path.read_text()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("keys: [{name: a, sha256: HASH, experts: [x]}, {name: b, sha256: HASH, experts: [x]}]", "sha256 .* twice"),
        (
            "keys: [{name: a, sha256: HASH, experts: [x]}, {name: a, sha256: OTHER, experts: [x]}]",
            "name 'a' is there twice",
        ),
        ("keys: [{name: a, sha256: HASH}]", "either experts or a role"),
        ("keys: [{name: a, sha256: HASH, experts: [x], admin: true}]", r"keys\.0\.admin: Extra"),
        ("keys: [{name: a, sha256: HASH, experts: all}]", r"keys\.0\.experts: .* list"),
        ("keys: [{name: a, sha256: abc, experts: [x]}]", r"keys\.0\.sha256"),
        ("roles: {r: []}", r"roles\.r"),
        ("keys: [", "not readable as YAML"),
        ("- 1", "valid dictionary"),
    ],
)
def test_a_wrong_file_lets_nobody_in(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "keys.yaml"
    secret = add_key(path, "alice", experts=["public"])
    store = KeyStore(path)
    path.write_text(content.replace("HASH", f"'{0:064}'").replace("OTHER", f"'{1:064}'"))
    for _ in range(2):
        with pytest.raises(InputError, match=said):
            store.find(secret)
    path.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        store.find(secret)


def test_limits_are_by_key() -> None:
    now = [1000.0]
    limits = Limits(lambda: now[0])
    key = Key(name="a", sha256="0" * 64, experts=["x"], requests_per_minute=3, tokens_per_day=100, at_once=1)
    other = key.model_copy(update={"name": "b"})
    with limits.running(key):
        with pytest.raises(RequestError, match="1 requests at once"), limits.running(key):
            raise AssertionError
        with limits.running(other):
            pass
    for _ in range(2):
        with limits.running(key):
            now[0] += 10
    with pytest.raises(RequestError, match="3 requests a minute") as refused, limits.running(key):
        raise AssertionError
    assert refused.value.status == 429 and refused.value.headers() == {"Retry-After": "41"}
    now[0] += 41
    with limits.running(key):
        pass
    settle = limits.reserve(key, 80)
    with pytest.raises(RequestError, match="100 tokens a day, 80 of them spent"):
        limits.reserve(key, 30)
    settle(20)
    limits.reserve(key, 80)
    now[0] += 86400
    limits.reserve(key, 100)


def test_what_is_written_is_what_is_meant(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    add_key(path, "alice", experts=["public"], requests_per_minute=5)
    (kept,) = yaml.safe_load(path.read_text())["keys"]
    assert kept.keys() == {"name", "sha256", "experts", "requests_per_minute"}
