"""A trusted key that lies in a domain's folder signs for that domain and no other."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from merge.formats.expert_file import open_expert
from merge.formats.signatures import SignatureError, read_trusted_keys
from merge.formats.signing import make_key, sign
from merge.planning.merge_options import MergeOptions
from merge.planning.merge_plan import plan
from tests.conftest import MakeExpert


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """`keys/math/alice.pub`, and the private key beside the folder."""
    (tmp_path / "keys" / "math").mkdir(parents=True)
    public, _ = make_key(tmp_path / "alice.pem")
    shutil.copy(public, tmp_path / "keys" / "math")
    return tmp_path / "keys"


def signed(make_expert: MakeExpert, domain: str, folder: Path) -> Path:
    expert = make_expert(domain, path=folder / f"{domain}.pt")
    sign([expert], folder / "alice.pem")
    return expert


def test_a_bound_key_signs_its_own_domain(keys: Path, make_expert: MakeExpert, tmp_path: Path) -> None:
    math = signed(make_expert, "math", tmp_path)
    voucher = read_trusted_keys(keys).verify(open_expert(math))
    assert voucher and voucher.name == "alice"


def test_and_no_other(keys: Path, make_expert: MakeExpert, tmp_path: Path) -> None:
    code = signed(make_expert, "code", tmp_path)
    with pytest.raises(SignatureError, match=r"signed by 'alice', whose key is in .* for math alone, not for 'code'"):
        plan([code], options=MergeOptions(trusted_keys=keys))
    (keys / "code").mkdir()
    shutil.copy(keys / "math" / "alice.pub", keys / "code")
    assert read_trusted_keys(keys).verify(open_expert(code)), "unless it is in that folder, too"


def test_a_bound_key_is_bound_wherever_else_it_lies(keys: Path, make_expert: MakeExpert, tmp_path: Path) -> None:
    shutil.copy(keys / "math" / "alice.pub", keys / "alice.pub")
    with pytest.raises(SignatureError, match=r"for math alone"):
        read_trusted_keys(keys).verify(open_expert(signed(make_expert, "code", tmp_path)))


def test_a_voucher_in_a_manifest_is_bound_too(keys: Path, make_expert: MakeExpert, tmp_path: Path) -> None:
    trusted = read_trusted_keys(keys)
    voucher = trusted.verify(open_expert(signed(make_expert, "math", tmp_path)))
    assert voucher
    assert trusted.vouched(voucher.to_dict(), "math")
    assert not trusted.vouched(voucher.to_dict(), "code")


def test_a_folder_of_keys_is_a_domains(keys: Path) -> None:
    (keys / "math").rename(keys / "Math Inc")
    with pytest.raises(SignatureError, match=r"expected the name of a domain"):
        read_trusted_keys(keys)
