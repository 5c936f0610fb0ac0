"""Signatures: what holds, what is refused, and that openssl alone agrees."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import merge.commands.flexo_inspect
import merge.commands.flexo_merge
import merge.commands.flexo_sign
from merge.formats.expert_file import open_expert, write_expert
from merge.formats.manifest import read_manifest
from merge.formats.signatures import SignatureError, read_trusted_keys, signature_path
from merge.formats.signing import read_private_key, write_signature
from tests.merge.tools import call, listing

pytest.importorskip("cryptography")

Make = Callable[..., Path]


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A folder with alice.pem, her private key, and `trusted/alice.pub`."""
    assert call(merge.commands.flexo_sign.main, "--generate", "--key", tmp_path / "alice.pem") == 0
    (tmp_path / "trusted").mkdir()
    (tmp_path / "alice.pub").rename(tmp_path / "trusted" / "alice.pub")
    return tmp_path


@pytest.fixture
def expert(make_expert: Make, tmp_path: Path) -> Path:
    (tmp_path / "experts").mkdir()
    return make_expert("math", path=tmp_path / "experts" / "math.pt")


def openssl(*arguments: object, folder: Path) -> subprocess.CompletedProcess[bytes]:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here")
    return subprocess.run(["openssl", *map(str, arguments)], cwd=folder, capture_output=True)


def test_a_signed_expert_is_merged_and_the_manifest_says_who_vouched(
    keys: Path, expert: Path, tiny_anchor: Path, make_expert: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    unsigned = make_expert("news")
    required = ["--anchor", tiny_anchor, "--trusted-keys", keys / "trusted", "--require-signatures"]
    assert call(merge.commands.flexo_sign.main, expert, "--key", keys / "alice.pem") == 0
    assert call(merge.commands.flexo_merge.main, expert, unsigned, "-o", keys / "model", *required) == 1
    assert "news.pt.sig: no such file, and a signature is required" in capsys.readouterr().err
    assert not (keys / "model").exists()
    assert call(merge.commands.flexo_merge.main, expert, unsigned, "-o", keys / "model", *required[:-1]) == 0
    assert "signed by alice" in capsys.readouterr().out
    first, second = read_manifest(keys / "model")["experts"][1:]
    assert first["vouched"]["name"] == "alice" and "vouched" not in second
    assert call(merge.commands.flexo_inspect.main, expert, "--json", "--trusted-keys", keys / "trusted") == 0
    assert json.loads(capsys.readouterr().out)["signature"] == first["vouched"]
    assert call(merge.commands.flexo_inspect.main, expert) == 0
    assert f"by the key {first['vouched']['key']}, not checked" in capsys.readouterr().out
    assert call(merge.commands.flexo_merge.main, expert, "-o", keys / "other", "--require-signatures") == 2


def test_both_containers_of_one_expert_share_a_signature(keys: Path, expert: Path) -> None:
    opened = open_expert(expert)
    tensors = {name: opened.tensor(name) for name in opened.header.tensors}
    write_expert(expert.with_suffix(".safetensors"), opened.header, tensors)
    signature = write_signature(opened, read_private_key(keys / "alice.pem"))
    shutil.copy(signature, signature_path(expert.with_suffix(".safetensors")))
    trusted = read_trusted_keys(keys / "trusted")
    vouchers = [trusted.verify(open_expert(expert.with_suffix(suffix))) for suffix in (".pt", ".safetensors")]
    assert vouchers[0] == vouchers[1] and vouchers[0] is not None


def test_openssl_makes_keys_and_verifies_without_us(keys: Path, expert: Path) -> None:
    """The steps of docs/security.md."""
    assert openssl("genpkey", "-algorithm", "ed25519", "-out", "bob.pem", folder=keys).returncode == 0
    assert openssl("pkey", "-in", "bob.pem", "-pubout", "-out", "trusted/bob.pub", folder=keys).returncode == 0
    write_signature(open_expert(expert), read_private_key(keys / "bob.pem"))
    voucher = read_trusted_keys(keys / "trusted").verify(open_expert(expert))
    assert voucher is not None and voucher.name == "bob"
    der = openssl("pkey", "-pubin", "-in", "trusted/bob.pub", "-outform", "DER", folder=keys).stdout
    assert hashlib.sha256(der).hexdigest() == voucher.key
    header = torch.load(expert, weights_only=True)["header"]
    digest = hashlib.sha256(header.encode()).hexdigest()
    (keys / "statement").write_text(f"flexo expert signature, version 1\nheader sha256 {digest}\n")
    said = json.loads(signature_path(expert).read_text())
    (keys / "signature").write_bytes(base64.b64decode(said["signature"]))
    verify = ["pkeyutl", "-verify", "-pubin", "-inkey", "trusted/bob.pub", "-rawin", "-in", "statement"]
    assert openssl(*verify, "-sigfile", "signature", folder=keys).returncode == 0
    (keys / "statement").write_text("something else")
    assert openssl(*verify, "-sigfile", "signature", folder=keys).returncode != 0


def test_what_does_not_hold_is_refused(keys: Path, expert: Path, make_expert: Make) -> None:
    trusted = read_trusted_keys(keys / "trusted")
    path = write_signature(open_expert(expert), read_private_key(keys / "alice.pem"))
    good = json.loads(path.read_text())

    def refused(content: object, message: str) -> None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(SignatureError, match=message) as refusal:
            trusted.verify(open_expert(expert), required=False)
        assert str(refusal.value).isprintable() and str(refusal.value).startswith(f"{path}: ")

    refused("", "not a signature by flexo-sign")
    refused("[" * 5000, "not a signature by flexo-sign")
    refused(" " * 20_000, "more than 10000 bytes")
    refused(json.dumps(good)[:-1] + ', "key": "x"}', "not a signature by flexo-sign")
    refused(good | {"note": "x"}, "Expected exactly the fields")
    refused(good | {"version": 2}, "signature version '2'")
    refused(good | {"version": True}, "signature version 'True'")
    refused(good | {"key": "0" * 64}, "which is not among the 1 in")
    refused(good | {"key": ["\x1b"]}, "expected a sha256")
    refused(good | {"signature": "AAAA"}, "not 64 bytes in base64")
    refused(good | {"signature": good["signature"] + "\n"}, "not 64 bytes in base64")
    refused(good | {"signature": [1]}, "not 64 bytes in base64")
    refused(good | {"signature": base64.b64encode(bytes(64)).decode()}, "not made by the key 'alice' that it names")
    other = write_signature(open_expert(make_expert("news")), read_private_key(keys / "alice.pem")).read_text()
    refused(other, "changed after it was signed, or this is the signature of another file")
    forged = json.loads(other) | {"header": good["header"]}
    refused(forged, "not made by the key 'alice'")


def test_keys_that_cannot_be_used_are_refused(keys: Path, expert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (keys / "alice.pem").stat().st_mode & 0o777 == 0o600
    assert (
        call(merge.commands.flexo_sign.main, "--generate", "--key", keys / "alice.pem") == 1
    )  # never over another key
    (keys / "alice.pem").chmod(0o644)
    assert call(merge.commands.flexo_sign.main, expert, "--key", keys / "alice.pem") == 0
    assert "others on this machine may read" in capsys.readouterr().err
    (keys / "none.pem").write_text("no key")
    with pytest.raises(SignatureError, match="cannot be read as a private key"):
        read_private_key(keys / "none.pem")
    shutil.copy(keys / "alice.pem", keys / "trusted" / "carol.pem")
    with pytest.raises(SignatureError, match="a private key, where only public keys belong"):
        read_trusted_keys(keys / "trusted")
    (keys / "empty").mkdir()
    for folder in (keys / "empty", keys / "absent"):
        with pytest.raises(SignatureError, match=r"no public key in it|no such folder"):
            read_trusted_keys(folder)
    locked = ["genpkey", "-algorithm", "ed25519", "-aes256", "-pass", "pass:secret", "-out", "locked.pem"]
    assert openssl(*locked, folder=keys).returncode == 0
    with pytest.raises(SignatureError, match="encrypted, and there is no terminal"):
        read_private_key(keys / "locked.pem")
    with pytest.raises(SignatureError, match="the passphrase is wrong"):
        read_private_key(keys / "locked.pem", lambda: "guess")
    read_private_key(keys / "locked.pem", lambda: "secret")
    assert openssl("genpkey", "-algorithm", "x25519", "-out", "other.pem", folder=keys).returncode == 0
    with pytest.raises(SignatureError, match="another kind than Ed25519"):
        read_private_key(keys / "other.pem")


def test_a_damaged_expert_is_not_signed(keys: Path, expert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened = open_expert(expert)
    data = bytearray(expert.read_bytes())
    data[data.index(opened.tensor("layers.1.up_proj.weight").numpy().tobytes())] ^= 1
    expert.write_bytes(data)
    assert call(merge.commands.flexo_sign.main, expert, "--key", keys / "alice.pem") == 1
    assert "does not match the sha256" in capsys.readouterr().err
    assert listing(expert.parent) == {"math.pt"}


def test_without_cryptography_the_message_says_what_to_install(
    tmp_path: Path, expert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("cryptography")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(SignatureError, match=r"flexo\[sign\]"):
        read_trusted_keys(tmp_path)
    with pytest.raises(SignatureError, match=r"flexo\[sign\]"):
        read_private_key(tmp_path / "alice.pem")
